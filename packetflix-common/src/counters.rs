//! What is counted for an interface, on each CPU.

use core::mem::{offset_of, size_of};

use crate::RateCosts;

/// Packets of one interface on one CPU since the capture began.
///
/// `accepted = delivered + over_rate + ring_full + copy_failed` holds whenever no program is running: either a program runs
/// to its end before another one starts on the same CPU, or it counts atomically
/// ([`PREEMPTIBLE`](crate::globals::PREEMPTIBLE)).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    /// Packets that the hook saw.
    pub seen: u64,
    /// Packets that the filter let through.
    pub accepted: u64,
    /// Packets that were put into a ring.
    pub delivered: u64,
    /// Packets left out because the capture has as many, or as much, as it may have in the time.
    pub over_rate: u64,
    /// Packets lost because the ring had no room.
    pub ring_full: u64,
    /// Packets lost because the kernel could not copy them.
    pub copy_failed: u64,
    /// Bytes of the packets that the hook saw.
    pub seen_bytes: u64,
    /// Bytes of the packets that the filter let through, as long as they were.
    pub accepted_bytes: u64,
}

impl InterfaceCounters {
    /// Packets that were accepted but lost, whatever the cause.
    pub fn dropped(&self) -> u64 {
        self.over_rate + self.ring_full + self.copy_failed
    }

    /// What was counted since `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            seen: self.seen.saturating_sub(before.seen),
            accepted: self.accepted.saturating_sub(before.accepted),
            delivered: self.delivered.saturating_sub(before.delivered),
            over_rate: self.over_rate.saturating_sub(before.over_rate),
            ring_full: self.ring_full.saturating_sub(before.ring_full),
            copy_failed: self.copy_failed.saturating_sub(before.copy_failed),
            seen_bytes: self.seen_bytes.saturating_sub(before.seen_bytes),
            accepted_bytes: self.accepted_bytes.saturating_sub(before.accepted_bytes),
        }
    }
}

impl core::iter::Sum for InterfaceCounters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), |sum, next| Self {
            seen: sum.seen + next.seen,
            accepted: sum.accepted + next.accepted,
            delivered: sum.delivered + next.delivered,
            over_rate: sum.over_rate + next.over_rate,
            ring_full: sum.ring_full + next.ring_full,
            copy_failed: sum.copy_failed + next.copy_failed,
            seen_bytes: sum.seen_bytes + next.seen_bytes,
            accepted_bytes: sum.accepted_bytes + next.accepted_bytes,
        })
    }
}

/// An interface as the programs know it, on one CPU. An interface without an entry is not captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceEntry {
    /// What is counted.
    pub counters: InterfaceCounters,
    /// Packets dropped since the last one delivered: goes into the next record. As a signed number, since with PREEMPT_RT it
    /// may be told twice, and is then made up for.
    pub dropped_unreported: u64,
    /// What stays the same.
    pub settings: InterfaceSettings,
}

/// How the packets of an interface are captured. Programs write none of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSettings {
    /// What its packets cost of the capture's rates.
    pub costs: RateCosts,
    /// Number of the interface in the capture, put into its records. Never used twice, unlike an index.
    pub interface_id: u32,
    /// Not zero for an interface that hands back what it is given, such as a loopback device: its packets pass twice, and only
    /// the receiving side is captured.
    pub hands_back: u16,
    /// Bytes before the network header: 14 for Ethernet, 0 for packets that begin with an IP header.
    pub network_offset: u16,
    /// Which filter its packets must pass: an [`InterfaceFilter`].
    pub filter: u32,
    /// Snapshot length: at most so many bytes of a packet are copied, and never more than
    /// [`MAX_CAPTURED_LEN`](crate::MAX_CAPTURED_LEN).
    pub snaplen: u32,
}

/// The filters of the object: an expression is another program for each link type.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterfaceFilter {
    /// Every packet passes.
    #[default]
    None = 0,
    /// The one for packets that begin with an Ethernet header.
    Ethernet = 1,
    /// The one for packets that begin with an IP header.
    Raw = 2,
}

const _: () = {
    assert!(size_of::<InterfaceCounters>() == 64);
    assert!(size_of::<InterfaceEntry>() == 104);
    assert!(offset_of!(InterfaceEntry, counters) == 0);
    assert!(offset_of!(InterfaceEntry, dropped_unreported) == 64);
    assert!(offset_of!(InterfaceEntry, settings) == 72);
    assert!(size_of::<InterfaceSettings>() == 32);
    assert!(offset_of!(InterfaceSettings, costs) == 0);
    assert!(offset_of!(InterfaceSettings, interface_id) == 16);
    assert!(offset_of!(InterfaceSettings, hands_back) == 20);
    assert!(offset_of!(InterfaceSettings, network_offset) == 22);
    assert!(offset_of!(InterfaceSettings, filter) == 24);
    assert!(offset_of!(InterfaceSettings, snaplen) == 28);
};

#[cfg(test)]
mod tests {
    use super::InterfaceCounters;

    #[test]
    fn sums_every_counter() {
        let one = InterfaceCounters {
            seen: 9,
            accepted: 8,
            delivered: 1,
            over_rate: 4,
            ring_full: 2,
            copy_failed: 1,
            seen_bytes: 500,
            accepted_bytes: 400,
        };
        let sum: InterfaceCounters = [one, one].into_iter().sum();
        assert_eq!(
            sum,
            InterfaceCounters {
                seen: 18,
                accepted: 16,
                delivered: 2,
                over_rate: 8,
                ring_full: 4,
                copy_failed: 2,
                seen_bytes: 1000,
                accepted_bytes: 800,
            }
        );
        assert_eq!(sum.accepted, sum.delivered + sum.dropped());
        assert_eq!(sum.since(&one), one);
        assert_eq!(one.since(&sum), InterfaceCounters::default());
    }
}
