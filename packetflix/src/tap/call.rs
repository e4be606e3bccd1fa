//! What the side of a tap that reads asks of the side that has rights, about a network namespace that is open.

use std::net::SocketAddr;

use packetflix_common::InterfaceCounters;
use serde::{Deserialize, Serialize};

use super::{CaptureFilters, OwnTraffic, ProgramUse, clock::ClockSource, reported::Reported};
use crate::netns::Link;

/// What is asked about a namespace that is open. Each question says what answers it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Question {
    /// `Result<ChosenHook, Reported>`, with two netlink sockets.
    Look,
    /// `Result<Begun, Reported>`, with the rings: to have a capture with these filters, which may have the memory that is kept for
    /// who administers the service.
    Begin { filters: CaptureFilters, is_admin: bool },
    /// `Result<Vec<Attached>, Reported>`: to capture interfaces, one after the other.
    Attach {
        interfaces: Vec<Wanted>,
        promiscuous: bool,
        stops_at: StopsAt,
    },
    /// `()`: to capture these no more. What was counted stays.
    Detach(Vec<u32>),
    /// `()`: to capture none any more.
    DetachAll,
    /// `()`: to forget what was counted of these.
    Remove(Vec<u32>),
    /// `Counted`
    Count,
    /// `Vec<Option<Whereabouts>>`: where interfaces are that are captured.
    Whereabouts(Vec<u32>),
    /// `Result<(), Reported>`: to leave out what is the service's own.
    AddOwn(OwnTraffic),
    /// `()`
    RemoveOwn(OwnTraffic),
    /// `Result<Vec<u32>, Reported>`, places in the array with their rings: to have rings for CPUs that came online.
    Grow,
    /// `()`: programs are to use those of them that are read, by their places.
    UseGrown(Vec<u32>),
    /// `bool`: to end the capture, and to leave what was loaded to the next; whether it was.
    Close,
}

/// What there is of an object that is ready for a capture.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    /// Bytes of each ring.
    pub(super) ring_size: u32,
    /// Of the rings, in the order in which they are handed over.
    pub(super) places: Vec<u32>,
}

/// What a capture begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Begun {
    pub(super) clock: ClockSource,
    /// The number of the object that it has.
    pub(super) object: u64,
    /// Bytes of each ring.
    pub(super) ring_size: u32,
    /// Of the rings, in the order in which they are handed over.
    pub(super) places: Vec<u32>,
}

/// An interface that is to be captured, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) link: Link,
    /// Its number in the capture.
    pub(super) id: u32,
    pub(super) network_offset: u16,
    /// As `packetflix_common::InterfaceFilter` numbers them.
    pub(super) filter: u32,
    pub(super) snaplen: u32,
}

/// At which interface that is refused no further one is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StopsAt {
    /// None.
    Never,
    /// One that is refused for what another would be refused for, too: rights, memory, descriptors.
    Everything,
    /// Any that is there.
    First,
}

/// What became of an interface.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Attached {
    /// It is captured; and promiscuous mode could not be had, for this reason.
    Captured {
        not_promiscuous: Option<String>,
    },
    /// It is gone.
    Gone,
    Refused(Reported),
}

/// What the kernel has counted for a capture.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Counted {
    /// By the index of the interface, over all CPUs.
    pub(super) interfaces: Vec<(u32, Counters)>,
    pub(super) used: ProgramUse,
    /// Whether the process or thread through which the namespace was found still holds it.
    pub(super) is_held_by_process: bool,
}

/// [`InterfaceCounters`], to be sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Counters(#[serde(with = "Sent")] pub(super) InterfaceCounters);

#[derive(Serialize, Deserialize)]
#[serde(remote = "InterfaceCounters")]
struct Sent {
    seen: u64,
    accepted: u64,
    delivered: u64,
    over_rate: u64,
    ring_full: u64,
    copy_failed: u64,
    seen_bytes: u64,
    accepted_bytes: u64,
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;
    use crate::channel::fuzzing::message;

    /// What a front asks that may have been taken over.
    pub(crate) fn asked(data: &[u8]) {
        if let Some(Question::Begin { filters, .. }) = message(data) {
            // What is no filter is refused.
            let _ = filters.programs();
        }
        let _ = message::<TapsQuestion>(data);
        let _ = message::<ConnectionNews>(data);
    }
}

/// What is asked about all captures.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum TapsQuestion {
    /// `()`, once it is known whether captures can begin.
    GetReady,
    /// `Option<String>`: why no capture can begin, if so.
    Problem,
    /// `KernelUse`
    Use,
    /// `Option<Ready>`, with its rings: what the object of this number has, if it is ready.
    RingsOf(u64),
}

/// What is in use for all captures where the rights are.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct KernelUse {
    /// Bytes of rings, those that are ready for the next captures too.
    pub(crate) ring_memory: u64,
    /// How many descriptors are open, and how many may be.
    pub(crate) descriptors: (u64, u64),
}

/// What is told of the service's own connections; each is answered by `()`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ConnectionNews {
    Opened { local: SocketAddr, peer: SocketAddr },
    Closed { local: SocketAddr, peer: SocketAddr },
}
