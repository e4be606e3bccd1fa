//! What a scan could not look at.
//!
//! `/targets` and the log tell it, those of one user and kind as one.

use std::{
    collections::HashMap,
    mem::{Discriminant, discriminant},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    capabilities::Capability,
    channel::path,
    lookout::{Kind, Owner, Place},
    netns::Unseen,
    text::readable,
};

/// What a scan did not look at, or not to its end: there may be more there than it tells, and what that is it cannot say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Gap {
    /// Processes that the kernel does not let us look at: their namespaces, and what runs in these.
    #[error(
        "{count} processes could not be looked at: the service lacks {}",
        Capability::SysPtrace
    )]
    Processes {
        /// How many.
        count: usize,
    },
    /// Anything, since there were no descriptors or no memory left to look at it.
    #[error("not everything could be looked at, for want of descriptors or memory")]
    Want,
    /// The containers of an engine, or some of them.
    #[error("the engine at {}, {whose}: {problem}", readable(path.as_os_str().as_bytes()))]
    Engine {
        /// Its socket, as those see it who have it.
        #[serde(with = "path")]
        path: PathBuf,
        /// Who that is.
        whose: String,
        /// Why it told nothing, or not everything.
        problem: String,
    },
    /// What others have in their hands: engines, and mounted network namespaces.
    #[error(transparent)]
    Place(#[from] Unseen),
    /// Engines that were found and not asked.
    #[error("{left_out} more engines were found than are asked")]
    Sockets {
        /// How many.
        left_out: usize,
    },
    /// The interfaces of one network namespace, or some of them.
    #[error("the interfaces of {place}: {problem}")]
    InterfacesOf {
        /// The namespace.
        place: Place,
        /// Why they are not known, or not all.
        problem: String,
    },
    /// The interfaces of all network namespaces, and with them all that has no process.
    #[error("{problem}")]
    Interfaces {
        /// Why they could not be listed.
        problem: String,
    },
    /// Several of one kind that are in the same user's hands, who can make any number of them.
    #[error("{first}; and {others} more of {owner}")]
    Several {
        /// One of them.
        first: Box<Self>,
        /// How many there are besides.
        others: usize,
        /// Whose they are.
        owner: Owner,
    },
}

impl Gap {
    /// Whether there may be namespaces that were not seen for it.
    pub(super) fn hides_namespaces(&self) -> bool {
        match self {
            Self::Processes { .. } | Self::Want | Self::Place(_) | Self::Interfaces { .. } => true,
            Self::Engine { .. } | Self::Sockets { .. } | Self::InterfacesOf { .. } => false,
            Self::Several { first, .. } => first.hides_namespaces(),
        }
    }

    /// Whether it is of the same kind and place as another, however much is missing there; of a user, whether it is of
    /// the same kind.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            // How many are hidden changes all the time; what they are hidden for does not.
            (Self::Processes { .. }, Self::Processes { .. })
            | (Self::Sockets { .. }, Self::Sockets { .. }) => true,
            _ => self == other || self.of_user().is_some_and(|own| other.of_user() == Some(own)),
        }
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        const WANT: &str = "give the service more descriptors and memory";

        match self {
            Self::Processes { .. } => "see the capabilities above",
            Self::Want | Self::Place(Unseen::Unopened(_)) => WANT,
            Self::Engine { .. } => "see the engines above",
            Self::Place(Unseen::Missed(_)) => {
                "see whether a file system there hangs, and try again when the machine is less busy"
            }
            Self::Place(Unseen::TooMany(_)) => {
                "ask by a process or by the number of a namespace for what is not listed"
            }
            Self::Sockets { .. } => "name the socket of an engine that is missing with --engine-socket",
            Self::InterfacesOf { .. } | Self::Interfaces { .. } => {
                "see the capabilities above, and run the service in the host's user namespace"
            }
            Self::Several { first, .. } => first.remedy(),
        }
    }

    /// Whose it is, where it is not the service's own or the host's.
    pub(super) fn owner(&self) -> Owner {
        self.place().map_or(Owner::Host, |place| place.owner)
    }

    fn place(&self) -> Option<Place> {
        match self {
            Self::Place(unseen) => Some(unseen.place()),
            Self::InterfacesOf { place, .. } => Some(*place),
            Self::Several { first, .. } => first.place(),
            _ => None,
        }
    }

    /// The user in whose hands it is, if it is in a user's, and of what kind.
    fn of_user(&self) -> Option<(Owner, Discriminant<Kind>)> {
        let Place { owner, kind } = self.place()?;
        let is_users = matches!(owner, Owner::Namespace(_) | Owner::User(_));
        is_users.then(|| (owner, discriminant(&kind)))
    }
}

/// The same gaps, those of one kind together that are in one user's hands.
pub(super) fn together(gaps: Vec<Gap>) -> Vec<Gap> {
    let mut all: Vec<Gap> = Vec::new();
    let mut indexes = HashMap::new();
    for gap in gaps {
        let Some(of_user) = gap.of_user() else {
            all.push(gap);
            continue;
        };
        let index = *indexes.entry(of_user).or_insert(all.len());
        match all.get_mut(index) {
            None => all.push(gap),
            Some(Gap::Several { others, .. }) => *others += 1,
            Some(one) => {
                *one = Gap::Several {
                    first: Box::new(one.clone()),
                    others: 1,
                    owner: of_user.0,
                };
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces(owner: Owner, netns: u64) -> Gap {
        Gap::InterfacesOf {
            place: Place {
                owner,
                kind: Kind::Interfaces(netns),
            },
            problem: "there are more than are taken".to_owned(),
        }
    }

    fn mounts(owner: Owner, number: u64) -> Gap {
        let kind = Kind::Mounts(number);
        Unseen::TooMany(Place { owner, kind }).into()
    }

    #[test]
    fn any_number_of_a_user_is_one_of_each_kind() {
        let (one, other) = (Owner::User(1000), Owner::User(2000));
        let of_one = (0..10_000).flat_map(|number| [interfaces(one, number), mounts(one, number)]);
        let of_root = [5, 6].map(|number| interfaces(Owner::Container, number));
        let gaps = of_one
            .chain(of_root.clone())
            .chain([mounts(other, 7), Gap::Want])
            .collect();
        let all = together(gaps);
        let sentences: Vec<String> = all.iter().map(Gap::to_string).collect();
        assert_eq!(
            sentences,
            [
                "the interfaces of network namespace 0 of user 1000: there are more than are taken; and 9999 more of user 1000",
                "there is more of the list of mounts of mount namespace 0 of user 1000 than is looked at; and 9999 more of \
                 user 1000",
                "the interfaces of network namespace 5: there are more than are taken",
                "the interfaces of network namespace 6: there are more than are taken",
                "there is more of the list of mounts of mount namespace 7 of user 2000 than is looked at",
                "not everything could be looked at, for want of descriptors or memory",
            ]
        );
        // Another of the same is no news.
        assert!(all[0].is_like(&interfaces(one, 77)) && interfaces(one, 77).is_like(&all[0]));
        assert!(!all[0].is_like(&all[1]) && !all[0].is_like(&interfaces(other, 0)));
        assert!(!of_root[0].is_like(&of_root[1]));
        // A namespace may only be mounted, and be there all the same where mounts were not all looked at.
        assert!(all[1].hides_namespaces() && all[5].hides_namespaces());
        assert!(!all[0].hides_namespaces());
    }
}
