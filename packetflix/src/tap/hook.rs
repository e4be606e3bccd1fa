//! Where in the kernel an interface's packets are seen.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::OnceLock,
};

use aya::{
    Ebpf,
    maps::ProgramArray,
    programs::{Program, ProgramError, SchedClassifier, SocketFilter, TcAttachType, tc::TcError},
};
use nix::{errno::Errno, net::if_::if_indextoname};
use packetflix_common::{
    maps::SOCKET_PROGRAM,
    programs::{SOCKET, SOCKET_ENTRY, TC_EGRESS, TC_INGRESS},
};

use super::{link_types::hands_back, object::LoadError};
use crate::{
    error::{chain, errno},
    netns::Link,
    sys::{self, TcxSide},
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
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The packet socket could not be set up.
    #[error("the packet socket for {interface} could not be set up ({step})")]
    Socket {
        /// For which interface.
        interface: String,
        /// Which step.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Holds an interface's hook; dropping it detaches, and waits until no program runs any more.
pub(super) enum Attachment {
    /// Links of one or both directions, kept for their drop.
    Tcx { _links: Vec<OwnedFd> },
    /// A socket whose filter captures, kept for its drop.
    Socket { _socket: OwnedFd },
    /// None of its packets is wanted.
    Nothing,
}

/// The hook that a tap uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Loads the programs of this hook, which may have a client's filter in them.
    pub(super) fn load(self, programs: &mut Ebpf, has_filter: bool) -> Result<(), LoadError> {
        match self {
            Self::Tcx => {
                for name in [TC_INGRESS, TC_EGRESS] {
                    let program: &mut SchedClassifier = program(programs, name)?;
                    let loaded = program.load();
                    loaded.map_err(|error| LoadError::of_program(name, error, has_filter))?;
                }
                Ok(())
            }
            Self::Socket => load_socket(programs, has_filter),
        }
    }

    /// Attaches to an interface of the calling thread's network namespace.
    pub(super) fn attach(self, programs: &mut Ebpf, link: &Link) -> Result<Attachment, HookError> {
        match self {
            Self::Tcx => attach_tcx(programs, link),
            Self::Socket => attach_socket(programs, link),
        }
    }
}

fn load_socket(programs: &mut Ebpf, has_filter: bool) -> Result<(), LoadError> {
    let failed = |name| move |error| LoadError::of_program(name, error, has_filter);
    let entry: &mut SocketFilter = program(programs, SOCKET_ENTRY)?;
    entry.load().map_err(failed(SOCKET_ENTRY))?;
    let socket: &mut SocketFilter = program(programs, SOCKET)?;
    socket.load().map_err(failed(SOCKET))?;
    let handle = socket.fd().and_then(|handle| Ok(handle.try_clone()?));
    let handle = handle.map_err(failed(SOCKET))?;
    let slot = programs
        .map_mut(SOCKET_PROGRAM)
        .ok_or(LoadError::Missing(SOCKET_PROGRAM))?;
    ProgramArray::try_from(slot)
        .and_then(|mut slot| slot.set(0, &handle, 0))
        .map_err(|source| LoadError::Map {
            name: SOCKET_PROGRAM,
            source,
        })
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

fn attach_tcx(programs: &mut Ebpf, link: &Link) -> Result<Attachment, HookError> {
    // One side sees it all.
    let sides: &[_] = if hands_back(link) {
        &[(TC_INGRESS, TcxSide::Ingress)]
    } else {
        &[(TC_INGRESS, TcxSide::Ingress), (TC_EGRESS, TcxSide::Egress)]
    };
    let mut links = Vec::with_capacity(sides.len());
    for (name, side) in sides {
        let failed = |error: ProgramError| match errno(&error) {
            Some(Errno::ENODEV) => HookError::Gone {
                name: link.name.clone(),
            },
            Some(Errno::ERANGE) => HookError::Full {
                interface: link.name.clone(),
            },
            _ => HookError::Attach {
                program: name,
                interface: link.name.clone(),
                source: Box::new(error),
            },
        };
        let classifier: &mut SchedClassifier = program(programs, name)?;
        let classifier = classifier.fd().map_err(failed)?;
        // By its index: its name may have changed since it was listed, and need be no text.
        let attached = sys::attach_tcx(classifier.as_fd(), link.ifindex, *side);
        links.push(attached.map_err(|error| failed(ProgramError::TcError(TcError::IoError(error))))?);
    }
    Ok(Attachment::Tcx { _links: links })
}

/// The filter is in place before the socket is bound, so that no packet is ever queued on it.
fn attach_socket(programs: &mut Ebpf, link: &Link) -> Result<Attachment, HookError> {
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
    attach_filter(programs, &socket).map_err(|error| HookError::Attach {
        program: SOCKET,
        interface: link.name.clone(),
        source: Box::new(error),
    })?;
    sys::bind_packet_socket(socket.as_fd(), link.ifindex).map_err(failed("bind"))?;
    Ok(Attachment::Socket { _socket: socket })
}

/// Attaches the program, or else what leads to it: a kernel attaches nothing to a packet socket that is longer than
/// `net.core.optmem_max` (ENOMEM), which is 20 KiB before Linux 6.7, and a filter alone can be 32.
fn attach_filter(programs: &mut Ebpf, socket: &OwnedFd) -> Result<(), ProgramError> {
    let filter: &SocketFilter = loaded(programs, SOCKET)?;
    match filter.attach(socket) {
        Err(error) if errno(&error) == Some(Errno::ENOMEM) => {
            let entry: &SocketFilter = loaded(programs, SOCKET_ENTRY)?;
            entry.attach(socket)
        }
        attached => attached,
    }
}

fn loaded<'a>(programs: &'a Ebpf, name: &str) -> Result<&'a SocketFilter, ProgramError> {
    let program = programs.program(name).ok_or(ProgramError::NotLoaded)?;
    program.try_into()
}

fn program<'a, P>(programs: &'a mut Ebpf, name: &'static str) -> Result<P, LoadError>
where
    P: TryFrom<&'a mut Program>,
{
    programs
        .program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(LoadError::Missing(name))
}
