//! Which interfaces are captured.

use std::collections::BTreeSet;

use super::{TapError, link_types::link_type};
use crate::netns::Link;

/// Which interfaces a capture wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceSelection {
    /// Each there is, and each that comes.
    All,
    /// Those of these names, which somebody asked for.
    Named(Vec<String>),
    /// Those that somebody listed as a target's: some may be gone by now, and others may have come.
    Listed(Vec<String>),
    /// Those of these names that come, in a namespace that is only being made: none need be there yet.
    Coming(Vec<String>),
}

/// What a capture begins with.
pub(super) struct Selected {
    /// The links that are wanted.
    pub(super) links: Vec<Link>,
    /// Indexes of those that are not.
    pub(super) unwanted: BTreeSet<u32>,
    /// What there is to say of a list with names that none has.
    pub(super) note: Option<String>,
}

impl InterfaceSelection {
    /// The names, if it is not all.
    pub(crate) fn names(&self) -> Option<&[String]> {
        match self {
            Self::All => None,
            Self::Named(names) | Self::Listed(names) | Self::Coming(names) => Some(names),
        }
    }

    /// The same, where one of several namespaces need not have all of them.
    pub(crate) fn into_listed(self) -> Self {
        match self {
            Self::Named(names) => Self::Listed(names),
            other => other,
        }
    }

    /// The same, in a namespace that is only being made.
    pub(crate) fn into_coming(self) -> Self {
        match self {
            Self::Named(names) | Self::Listed(names) => Self::Coming(names),
            other => other,
        }
    }

    /// Whether an interface is wanted, if it can be captured.
    pub(super) fn wants(&self, link: &Link) -> bool {
        self.names()
            .is_none_or(|names| names.iter().any(|name| link.is_called(name)))
    }

    /// Whether the stream tells of an interface that has come, why it is not captured for one.
    pub(super) fn tells_of(&self, link: &Link) -> bool {
        matches!(self, Self::All | Self::Listed(_)) || self.wants(link)
    }

    /// Whether they may all be missing, and come.
    pub(super) fn is_of_what_comes(&self) -> bool {
        matches!(self, Self::Coming(_))
    }

    /// Whether each interface was asked for.
    pub(super) fn is_by_name(&self) -> bool {
        matches!(self, Self::Named(_))
    }
}

/// The links to begin with. An interface that was asked for and is not there, or cannot be captured, is an error.
pub(super) fn select(present: Vec<Link>, selection: &InterfaceSelection) -> Result<Selected, TapError> {
    let is_there = |name: &String| present.iter().any(|link| link.is_called(name));
    let names = match selection {
        InterfaceSelection::Coming(_) => &[],
        others => others.names().unwrap_or_default(),
    };
    let missing: Vec<String> = names.iter().filter(|name| !is_there(name)).cloned().collect();
    let is_nothing_there = !missing.is_empty() && missing.len() == names.len();
    if is_nothing_there || (selection.is_by_name() && !missing.is_empty()) {
        let present = present.iter().map(names_of).collect();
        return Err(TapError::NoSuchInterface { missing, present });
    }
    let mut unknown = present.iter().filter(|link| link_type(link).is_none());
    if selection.is_by_name()
        && let Some(link) = unknown.find(|link| selection.wants(link))
    {
        return Err(TapError::UnknownLinkType {
            name: link.name.clone(),
            hardware_type: link.hardware_type,
        });
    }
    let (links, unwanted): (Vec<Link>, Vec<Link>) =
        present.into_iter().partition(|link| selection.wants(link));
    if links.is_empty() && !selection.is_of_what_comes() {
        return Err(TapError::NoInterface);
    }
    // What comes into a namespace that is only being made may get its name there.
    let unwanted = unwanted.iter().filter(|_| !selection.is_of_what_comes());
    let unwanted = unwanted.map(|link| link.ifindex).collect();
    let note = (!missing.is_empty()).then(|| {
        let missing = missing.join(", ");
        format!(
            "the list of the target's interfaces in the request has others that were not there: {missing}"
        )
    });
    Ok(Selected {
        links,
        unwanted,
        note,
    })
}

/// What an interface may be called.
fn names_of(link: &Link) -> String {
    match &link.altnames[..] {
        [] => link.name.clone(),
        altnames => format!("{} ({})", link.name, altnames.join(", ")),
    }
}
