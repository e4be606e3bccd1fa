//! Which interfaces are captured.

use super::{TapError, link_types::link_type};
use crate::netns::Link;

/// Which interfaces a capture wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceSelection {
    /// Each there is, and each that comes.
    All,
    /// Those of these names.
    Named(Vec<String>),
}

impl InterfaceSelection {
    pub(super) fn wants(&self, link: &Link) -> bool {
        link_type(link).is_some()
            && match self {
                Self::All => true,
                Self::Named(names) => names.contains(&link.name),
            }
    }
}

/// The links to begin with. An interface that was asked for and cannot be captured is an error; among all,
/// it is left out with a line in the log.
pub(super) fn select(present: &[Link], selection: &InterfaceSelection) -> Result<Vec<Link>, TapError> {
    if let InterfaceSelection::Named(names) = selection {
        let missing: Vec<String> = names
            .iter()
            .filter(|name| !present.iter().any(|link| link.name == **name))
            .cloned()
            .collect();
        if !missing.is_empty() {
            let present = present.iter().map(|link| link.name.clone()).collect();
            return Err(TapError::NoSuchInterface { missing, present });
        }
    }
    for link in present.iter().filter(|link| link_type(link).is_none()) {
        match selection {
            InterfaceSelection::All => tracing::warn!(
                interface = link.name,
                hardware_type = link.hardware_type,
                "an interface is left out: its hardware type is not known"
            ),
            InterfaceSelection::Named(names) if names.contains(&link.name) => {
                return Err(TapError::UnknownLinkType {
                    name: link.name.clone(),
                    hardware_type: link.hardware_type,
                });
            }
            InterfaceSelection::Named(_) => {}
        }
    }
    let wanted: Vec<Link> = present
        .iter()
        .filter(|link| selection.wants(link))
        .cloned()
        .collect();
    if wanted.is_empty() {
        Err(TapError::NoInterface)
    } else {
        Ok(wanted)
    }
}
