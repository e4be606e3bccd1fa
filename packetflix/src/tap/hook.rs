//! Where in the kernel an interface's packets are seen.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::OnceLock,
};

use aya::programs::{ProgramError, SchedClassifier, TcAttachType};
use nix::{errno::Errno, net::if_::if_indextoname};
use packetflix_common::programs::{SOCKET, SOCKET_ENTRY, TC_EGRESS, TC_IDLE, TC_INGRESS};
use serde::{Deserialize, Serialize};

use super::{
    link_types::hands_back,
    object::{LoadError, Object, Programs},
    tcx::{TcxLink, TcxLinks},
};
use crate::{
    error::{chain, errno},
    netns::Link,
    sys::{
        self,
        bpf::{self, ProgramType, TcxSide},
    },
};

/// Most programs in each direction of an interface: one less than `BPF_MPROG_MAX` of `linux/bpf_mprog.h`.
const MAX_PROGRAMS: usize = 63;

/// Which hook to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Hook {
    /// A filter on a packet socket, where tcpdump sees packets (kernel 5.10)
    Socket,
    /// TCX, at the head of the chain (kernel 6.6)
    Tcx,
    /// TCX where the kernel has it, else a socket filter
    Auto,
}

/// Why an interface could not be tapped.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The program could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The namespace's loopback device has no name.
    #[error("the namespace has no loopback device")]
    Loopback(#[source] io::Error),
    /// Whether the kernel has TCX could not be found out.
    #[error("whether this kernel has TCX could not be found out")]
    Query(#[source] Box<ProgramError>),
    /// The kernel has no TCX.
    #[error("this kernel has no TCX, which came with Linux 6.6: use the hook `socket`")]
    NoTcx,
    /// The interface vanished meanwhile.
    #[error("the interface {name} is gone")]
    Gone {
        /// Its name when it was listed.
        name: String,
    },
    /// Others have attached all that the interface takes.
    #[error(
        "{interface} has {MAX_PROGRAMS} TCX programs already, and takes no more: other captures of it have to end first"
    )]
    Full {
        /// The interface.
        interface: String,
    },
    /// The kernel refused to attach.
    #[error("the program {program} could not be attached to {interface}")]
    Attach {
        /// Which program.
        program: &'static str,
        /// To which interface.
        interface: String,
        /// The error of `BPF_LINK_CREATE` or `SO_ATTACH_BPF`.
        #[source]
        source: io::Error,
    },
    /// The packet socket could not be set up.
    #[error("the packet socket for {interface} could not be set up ({step})")]
    Socket {
        /// For which interface.
        interface: String,
        /// Which step.
        step: &'static str,
        /// The error of that step.
        #[source]
        source: io::Error,
    },
}

/// Holds an interface's hook; dropping it detaches, and waits until no program runs any more, unless a process that is just
/// being started has a copy of the descriptor.
pub(super) enum Attachment {
    /// Links of one or both directions, which go with the interface into another network namespace. A socket beside them
    /// stays, and knows then that it is gone.
    Tcx { links: Vec<TcxLink>, beside: OwnedFd },
    /// A socket whose filter captures.
    Socket { socket: OwnedFd },
}

impl Attachment {
    /// Ends as when it is dropped, but whoever has copies of the descriptors. Links of an interface that is where it was are
    /// kept for the next capture of it.
    ///
    /// # Errors
    /// When the kernel refuses; a program of `object` may still be attached then.
    pub(super) fn end(self, object: &Object, kept: &TcxLinks) -> io::Result<()> {
        let is_here = self.whereabouts() == Whereabouts::Here;
        match self {
            Self::Tcx { links, beside } => {
                let ended = links.into_iter().try_for_each(|link| match is_here {
                    true => kept.keep(link, object.helper.as_fd()),
                    false => link.detach(),
                });
                // Waits until no program runs any more.
                drop(beside);
                ended
            }
            Self::Socket { socket } => bpf::silence(socket.as_fd()),
        }
    }

    /// Where its interface is: one that is removed lets go of links and sockets, whoever has its index then.
    pub(super) fn whereabouts(&self) -> Whereabouts {
        let (Self::Tcx { beside: socket, .. } | Self::Socket { socket }) = self;
        if sys::index_of_packet_socket(socket.as_fd()).is_ok_and(|index| index > 0) {
            return Whereabouts::Here;
        }
        // An interface lets go of links before it is removed, and keeps them where it is moved.
        match self {
            Self::Tcx { links, .. } if links.iter().any(TcxLink::is_attached) => Whereabouts::Elsewhere,
            _ => Whereabouts::Removed,
        }
    }
}

/// Where an interface is that was attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Whereabouts {
    /// Where it was.
    Here,
    /// In another network namespace, with the programs.
    Elsewhere,
    /// Nowhere; before that, it may have been elsewhere.
    Removed,
}

/// The hook that a tap uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ChosenHook {
    Tcx,
    Socket,
}

impl ChosenHook {
    /// Settles on a hook. Runs inside a network namespace, any will do.
    pub(super) fn choose(hook: Hook) -> Result<Self, HookError> {
        match hook {
            Hook::Socket => Ok(Self::Socket),
            Hook::Tcx if has_tcx()? => Ok(Self::Tcx),
            Hook::Tcx => Err(HookError::NoTcx),
            Hook::Auto => Ok(Self::choose_for_auto()),
        }
    }

    /// TCX if the kernel has it. The answer holds for the process, and is logged once.
    fn choose_for_auto() -> Self {
        static CHOSEN: OnceLock<ChosenHook> = OnceLock::new();

        if let Some(chosen) = CHOSEN.get() {
            return *chosen;
        }
        match has_tcx() {
            Ok(true) => *CHOSEN.get_or_init(|| {
                tracing::info!(hook = "tcx", "the hook is TCX, which this kernel has");
                Self::Tcx
            }),
            Ok(false) => *CHOSEN.get_or_init(|| {
                let why = "the hook is a socket filter: this kernel has no TCX (Linux 6.6)";
                tracing::info!(hook = "socket", "{why}");
                Self::Socket
            }),
            Err(error) => {
                let why = "the hook is a socket filter: whether this kernel has TCX could not be found out";
                tracing::warn!(hook = "socket", error = %chain(&error), "{why}");
                Self::Socket
            }
        }
    }

    /// Why it sees nothing of an interface, if so.
    pub(super) fn reason_against(self, link: &Link) -> Option<&'static str> {
        (self == Self::Tcx && link.is_vrf)
            .then_some("the packets of a VRF do not pass TCX, and --hook socket sees them")
    }

    /// The programs of this hook.
    pub(super) fn programs(self) -> (&'static [&'static str], ProgramType) {
        match self {
            Self::Tcx => (&[TC_INGRESS, TC_EGRESS], ProgramType::Classifier),
            Self::Socket => (&[SOCKET], ProgramType::SocketFilter),
        }
    }

    /// The program that it has beside those, whatever the filters.
    pub(super) fn helper(self) -> &'static str {
        match self {
            Self::Tcx => TC_IDLE,
            Self::Socket => SOCKET_ENTRY,
        }
    }

    /// Attaches to an interface of the calling thread's network namespace.
    pub(super) fn attach(
        self,
        object: &Object,
        programs: &Programs,
        link: &Link,
        links: &TcxLinks,
    ) -> Result<Attachment, HookError> {
        match self {
            Self::Tcx => attach_tcx(programs, link, links),
            Self::Socket => attach_socket(object, programs, link),
        }
    }
}

/// Asks for the programs on the loopback device, which every namespace has under the first index. A kernel without
/// TCX knows no such attach type and answers `EINVAL`.
fn has_tcx() -> Result<bool, HookError> {
    let loopback = if_indextoname(1).map_err(|error| HookError::Loopback(error.into()))?;
    match SchedClassifier::query_tcx(&loopback.to_string_lossy(), TcAttachType::Ingress) {
        Ok(_) => Ok(true),
        Err(error) if errno(&error) == Some(Errno::EINVAL) => Ok(false),
        Err(error) => Err(HookError::Query(Box::new(error))),
    }
}

/// The socket comes first: an interface that goes meanwhile is known by it to be gone.
fn attach_tcx(programs: &Programs, link: &Link, tcx: &TcxLinks) -> Result<Attachment, HookError> {
    let beside = sys::packet_socket_beside(link.ifindex).map_err(|source| {
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODEV | Errno::ENXIO) => HookError::Gone {
                name: link.name.clone(),
            },
            _ => HookError::Socket {
                interface: link.name.clone(),
                step: "beside TCX",
                source,
            },
        }
    })?;
    // One side sees it all.
    let sides: &[_] = if hands_back(link) {
        &[(TC_INGRESS, TcxSide::Ingress)]
    } else {
        &[(TC_INGRESS, TcxSide::Ingress), (TC_EGRESS, TcxSide::Egress)]
    };
    let mut links = Vec::with_capacity(sides.len());
    for (name, side) in sides {
        let failed = |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODEV) => HookError::Gone {
                name: link.name.clone(),
            },
            Some(Errno::ERANGE) => HookError::Full {
                interface: link.name.clone(),
            },
            _ => HookError::Attach {
                program: name,
                interface: link.name.clone(),
                source,
            },
        };
        // By its index: its name may have changed since it was listed, and need be no text.
        let attached = tcx.attach(programs.get(name)?, link.ifindex, *side);
        links.push(attached.map_err(failed)?);
    }
    Ok(Attachment::Tcx { links, beside })
}

/// The filter is in place before the socket is bound, so that no packet is ever queued on it.
fn attach_socket(object: &Object, programs: &Programs, link: &Link) -> Result<Attachment, HookError> {
    let failed = |step| {
        move |source: io::Error| match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENODEV | Errno::ENXIO) => HookError::Gone {
                name: link.name.clone(),
            },
            _ => HookError::Socket {
                interface: link.name.clone(),
                step,
                source,
            },
        }
    };
    let socket = sys::packet_socket().map_err(failed("open"))?;
    let program = programs.get(SOCKET)?;
    let attached = match bpf::attach_to_socket(program, socket.as_fd()) {
        // A kernel attaches nothing to a packet socket that is longer than `net.core.optmem_max`, which is 20 KiB before
        // Linux 6.7, and a filter alone can be 32: so it gets what leads to the program.
        Err(error) if error.raw_os_error() == Some(Errno::ENOMEM as i32) => {
            bpf::attach_to_socket(object.helper.as_fd(), socket.as_fd())
        }
        attached => attached,
    };
    attached.map_err(|source| HookError::Attach {
        program: SOCKET,
        interface: link.name.clone(),
        source,
    })?;
    sys::bind_packet_socket(socket.as_fd(), link.ifindex).map_err(failed("bind"))?;
    Ok(Attachment::Socket { socket })
}
