//! What is known of a tap's interfaces: what they are, and what became of their packets.

use crate::{netns::Link, pcapng::LinkType, tap::CaptureClock};

/// An interface of a tap, as it is described.
#[derive(Clone, Debug)]
pub(super) struct TapInterface {
    /// What its packets begin with.
    pub(super) link_type: LinkType,
    /// What is known of it.
    pub(super) link: Link,
    /// Why the filter cannot be applied to it, if so.
    pub(super) excluded: Option<String>,
    /// When it joined the tap, in nanoseconds of the records' clock.
    pub(super) since: u64,
}

/// What became of the packets of each interface since it joined, as of a place in the stream.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    /// The clock of all times here.
    pub(super) clock: CaptureClock,
    /// When the counts were read.
    pub(super) taken: u64,
    /// Packets that were captured until then stand before this place.
    pub(super) until: u64,
    /// In the order of the descriptions.
    pub(super) interfaces: Vec<InterfaceCounts>,
}

/// What became of the packets of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfaceCounts {
    /// Packets that were published.
    pub(super) delivered: u64,
    /// Packets that the kernel lost.
    pub(super) dropped: u64,
    /// Of those, packets of which the published ones tell that they were lost before them.
    pub(super) told_lost: u64,
    /// Packets that the filter did not let through.
    pub(super) rejected: u64,
    /// When it left the tap, if it has; the counts are final then.
    pub(super) end: Option<u64>,
}
