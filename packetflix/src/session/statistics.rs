//! What is known of a tap's interfaces: what they are, and what became of their packets.
//!
//! An Interface Statistics Block speaks of the packets that the stream accounts for up to its place: `isb_usrdeliv` is the
//! number of that interface's packets before it, `isb_ifdrop` those known to be lost, `isb_filteraccept` their sum. Packets in
//! the rings come with the next block. The last block of an interface (it has `isb_endtime`) follows its detachment and a
//! complete drain. Its accepted count is the kernel's own, and should it differ from what the stream says, the log has an
//! error.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::{
    netns::Link,
    pcapng::{LinkType, MAX_ADDRESSES},
    tap::{CaptureClock, TappedInterface, is_younger},
};

/// An interface of a tap, as it is described.
#[derive(Clone, Debug)]
pub(super) struct TapInterface {
    /// What its packets begin with.
    pub(super) link_type: LinkType,
    /// What is known of it.
    pub(super) link: Link,
    /// Why nothing is captured of it, if so.
    pub(super) left_out: Option<String>,
    /// What else there is to say of the capture at its description.
    pub(super) note: Option<String>,
    /// Whether TCX shows its packets, which is not where tcpdump sees them.
    pub(super) is_seen_by_tcx: bool,
    /// When it joined the tap, in nanoseconds of the records' clock.
    pub(super) since: u64,
}

impl TapInterface {
    /// As much of an interface as is told, with a note.
    pub(super) fn of(interface: &TappedInterface, note: Option<String>, is_seen_by_tcx: bool) -> Self {
        let Link {
            name,
            raw_name,
            alias,
            addresses,
            ..
        } = &interface.link;
        let link = Link {
            name: name.clone(),
            raw_name: raw_name.clone(),
            alias: alias.clone(),
            altnames: Vec::new(),
            addresses: addresses.iter().take(MAX_ADDRESSES).copied().collect(),
            ..interface.link
        };
        let left_out = interface.left_out.as_ref();
        Self {
            link_type: interface.link_type,
            link,
            left_out: left_out.map(|left_out| left_out.reason.clone()),
            note,
            is_seen_by_tcx,
            since: interface.since,
        }
    }
}

/// What became of the packets of each interface since it joined, as of a place in the stream.
#[derive(Clone, Debug)]
pub(super) struct Statistics {
    /// The clock of all times here.
    pub(super) clock: CaptureClock,
    /// When the counts were read.
    pub(super) taken: u64,
    /// Which packets stand before this place.
    pub(super) written: Written,
    /// Whether interfaces may be missing.
    pub(super) may_miss: bool,
    /// By the places of their descriptions: all interfaces that there are, and those that are gone and were not let go yet.
    pub(super) interfaces: BTreeMap<usize, InterfaceCounts>,
}

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Written {
    /// All that was captured until then is written.
    pub(super) until: u64,
    /// Since when the rings were looked at, if they were found empty: what has a later time, since the clock was set back, is
    /// written too.
    pub(super) emptied: Option<Instant>,
}

impl Written {
    /// Whether all is written that was captured until `time`, which has passed.
    pub(super) fn reaches(self, time: u64) -> bool {
        time <= self.until || (self.emptied.is_some() && !is_younger(time, self.until))
    }

    /// The same for who asked for that at some moment, and may hear of what was written before.
    pub(super) fn reaches_since(self, time: u64, asked: Instant) -> bool {
        let is_of_before = self.emptied.is_some_and(|emptied| emptied < asked);
        self.reaches(time) && (time <= self.until || !is_of_before)
    }
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
    /// Packets that are still in the rings, where that was asked for.
    pub(super) in_rings: u64,
    /// Packets that the filter did not let through.
    pub(super) rejected: u64,
    /// When it left the tap, if it has; the counts are final then.
    pub(super) end: Option<u64>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clock_that_was_set_back_is_waited_for_no_longer_than_a_second() {
        const SECOND: u64 = 1_000_000_000;
        let until = 100 * SECOND;
        for (time, reached_in_part, reached_in_all) in [
            (until, true, true),
            (until + 1, false, false),
            (until + SECOND - 1, false, false),
            (until + SECOND, false, true),
            (u64::MAX, false, true),
        ] {
            let now = Instant::now();
            let written = |emptied| Written { until, emptied };
            assert_eq!(written(None).reaches(time), reached_in_part, "{time}");
            assert_eq!(written(Some(now)).reaches(time), reached_in_all, "{time}");
            // What was empty before somebody asked says nothing of what has come since.
            for (asked, reached) in [
                (now, reached_in_all),
                (now + Duration::from_nanos(1), reached_in_part),
            ] {
                assert_eq!(written(Some(now)).reaches_since(time, asked), reached, "{time}");
            }
        }
    }
}
