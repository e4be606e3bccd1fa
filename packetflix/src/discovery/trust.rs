//! Which engine may speak of which processes.
//!
//! That follows from who listens and from where the socket was found:
//!
//! - at a place of root's in the host's mount namespace: of all processes
//! - in a known container: of those below its first process
//! - in a PID namespace below ours: of those in it
//! - a user's: of those in user namespaces of that user
//! - else of nobody
//!
//! A socket that was found by a process may be called what that process likes. So only that process itself is heard there, and
//! the socket has to be its user's. It has no more to say than at a well-known place, and lists of sockets, where a path may
//! hold whole lines, say nothing but where to ask.

use std::io;

use serde::{Deserialize, Serialize};

use super::{engine::Engine, engine_socket::Origin, processes::ProcessTable};

/// Of whom an engine may speak. It follows from where its socket was found, and from who listens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Authority {
    /// Of all processes: the host's.
    Host,
    /// Of processes below a container's first one, but not of that: one in the container.
    Container {
        /// The container's first process.
        first: u32,
    },
    /// Of processes in a PID namespace and in those below: one in a container that nobody has spoken of.
    PidNamespace(u64),
    /// Of processes in user namespaces of this user: the user's own.
    User(u32),
    /// Of nobody.
    Nobody,
}

/// How far names are trusted that an engine gives, the least first: the more trusted has a name for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Trust {
    /// Whoever is not trusted further: a user's engine, one of which nothing is known, or processes that name themselves.
    #[default]
    Others,
    /// One in a container, whose name all its own have as a prefix.
    Container,
    /// The host's.
    Host,
}

impl Authority {
    /// That of the one who listens at a socket which was found here. `enclosing` is the first process of the innermost
    /// container that the listener is in.
    pub(super) fn of(engine: &Engine, table: &ProcessTable, enclosing: impl Fn(u32) -> Option<u32>) -> Self {
        let Some(peer) = engine.peer.as_ref().filter(|peer| table.is(peer)) else {
            return Self::Nobody;
        };
        if let Some(first) = enclosing(peer.pid) {
            return Self::Container { first };
        }
        if peer.uid != 0 {
            return Self::User(peer.uid);
        }
        match (engine.origin, table.pid_namespace(peer.pid)) {
            (_, None) | (Origin::User(_), _) => Self::Nobody,
            (_, Some(namespace)) if namespace != table.own_pid_namespace() => Self::PidNamespace(namespace),
            (Origin::Named | Origin::Host, _) => Self::Host,
            // Anyone may have mounts of their own, and be root in them.
            (Origin::Elsewhere, _) => Self::Nobody,
        }
    }

    /// The widest that one could have whose socket is where this process sees it, whoever that is.
    pub(super) fn widest(
        origin: Origin,
        pid: u32,
        table: &ProcessTable,
        enclosing: impl Fn(u32) -> Option<u32>,
    ) -> Self {
        match origin {
            Origin::Named | Origin::Host => return Self::Host,
            Origin::User(user) => return Self::User(user),
            Origin::Elsewhere => {}
        }
        if let Some(first) = enclosing(pid) {
            return Self::Container { first };
        }
        match table.pid_namespace(pid) {
            Some(namespace) if namespace != table.own_pid_namespace() => Self::PidNamespace(namespace),
            _ => table
                .user_of(pid)
                .filter(|user| *user != 0)
                .map_or(Self::Nobody, Self::User),
        }
    }

    /// Of which processes it may speak. `owners_of` tells the users whose user namespaces are around a process.
    pub(super) fn reach<'a>(
        self,
        table: &ProcessTable,
        owners_of: impl Fn(u32) -> io::Result<Vec<u32>> + 'a,
    ) -> Box<dyn Fn(u32) -> bool + 'a> {
        match self {
            Self::Host => Box::new(|_| true),
            Self::Container { first } => {
                let below = table.below(|pid| pid == first);
                Box::new(move |pid| pid != first && below.contains(&pid))
            }
            Self::PidNamespace(namespace) => {
                let below = table.below(|pid| table.pid_namespace(pid) == Some(namespace));
                Box::new(move |pid| below.contains(&pid))
            }
            Self::User(user) => {
                Box::new(move |pid| owners_of(pid).is_ok_and(|owners| owners.contains(&user)))
            }
            Self::Nobody => Box::new(|_| false),
        }
    }

    /// How far its names are trusted.
    pub(super) fn trust(self) -> Trust {
        match self {
            Self::Host => Trust::Host,
            Self::Container { .. } => Trust::Container,
            Self::PidNamespace(_) | Self::User(_) | Self::Nobody => Trust::Others,
        }
    }

    /// Whether Kubernetes may run its pods there.
    pub(super) fn runs_pods(self) -> bool {
        self.trust() != Trust::Others
    }
}
