//! What a scan could not look at.

use std::path::PathBuf;

use crate::{capabilities::Capability, netns::Unseen};

/// What a scan did not look at, or not to its end: there may be more there than it tells, and what that is it cannot say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// The containers of an engine, or some of them.
    #[error("the engine at {}, {whose}: {problem}", path.display())]
    Engine {
        /// Its socket, as those see it who have it.
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
    #[error("the interfaces of network namespace {netns}: {problem}")]
    InterfacesOf {
        /// Its number.
        netns: u64,
        /// Why they are not known, or not all.
        problem: String,
    },
    /// The interfaces of all network namespaces, and with them all that has no process.
    #[error("{problem}")]
    Interfaces {
        /// Why they could not be listed.
        problem: String,
    },
}

impl Gap {
    /// Whether it is of the same kind and place as another, however much is missing there.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            // How many are hidden changes all the time; what they are hidden for does not.
            (Self::Processes { .. }, Self::Processes { .. })
            | (Self::Sockets { .. }, Self::Sockets { .. }) => true,
            _ => self == other,
        }
    }
}
