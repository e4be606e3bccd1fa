//! What a stream amounts to.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    pcapng::{Kind, Statistics, blocks},
    terminal::shown,
    units::{shown_duration, shown_size},
};

/// What has come so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes of pcapng.
    pub bytes: u64,
    /// Packets that were lost, as far as that is told by now.
    sections: Vec<SectionTally>,
}

/// What has come of one section.
#[derive(Debug, Default)]
struct SectionTally {
    packets: u64,
    /// As later packets tell it.
    dropped: u64,
    /// As the statistics of each interface tell it.
    statistics: BTreeMap<u32, Statistics>,
}

/// What a whole capture came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Packets that the filter accepted.
    pub captured: u64,
    /// Those that came.
    pub delivered: u64,
    /// Those that were lost.
    pub dropped: u64,
}

impl Tally {
    /// Takes note of whole blocks.
    pub fn note(&mut self, whole: &[u8]) {
        self.note_first(whole, u64::MAX);
    }

    /// Takes note of whole blocks, up to the packet after the first `count`.
    pub fn note_first(&mut self, whole: &[u8], count: u64) {
        let most = self.packets.saturating_add(count);
        for block in blocks(whole) {
            let kind = block.kind();
            if matches!(kind, Kind::Packet(_)) && self.packets == most {
                return;
            }
            self.bytes += block.bytes().len() as u64;
            if kind == Kind::Section {
                self.sections.push(SectionTally::default());
            }
            let Some(section) = self.sections.last_mut() else {
                continue;
            };
            match kind {
                Kind::Packet(packet) => {
                    self.packets += 1;
                    section.packets += 1;
                    section.dropped += packet.dropped_before();
                }
                Kind::Statistics(statistics) => {
                    section.statistics.insert(statistics.interface, statistics);
                }
                _ => {}
            }
        }
    }

    /// What that comes to.
    pub fn totals(&self) -> Totals {
        let dropped = self.sections.iter().map(SectionTally::dropped).sum();
        Totals {
            captured: self.packets + dropped,
            delivered: self.packets,
            dropped,
        }
    }
}

impl SectionTally {
    /// The statistics know of losses that no packet followed; the packets, of those after the last statistics.
    fn dropped(&self) -> u64 {
        let told: u64 = self.statistics.values().map(|one| one.dropped).sum();
        told.max(self.dropped)
    }
}

/// The lines that tell how a capture went.
pub(crate) struct Summary<'a> {
    pub(crate) tally: &'a Tally,
    pub(crate) duration: Duration,
    /// Why it ended, where it did not fail.
    pub(crate) reason: Option<&'a str>,
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals = self.tally.totals();
        if let Some(reason) = self.reason {
            writeln!(f, "packetflix: {}", shown(reason))?;
        }
        write!(
            f,
            "packetflix: {} packets captured, {} delivered, {} dropped ({} in {})",
            totals.captured,
            totals.delivered,
            totals.dropped,
            shown_size(self.tally.bytes),
            shown_duration(self.duration),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_counted_once() {
        let mut tally = Tally::default();
        tally.sections.push(SectionTally {
            packets: 10,
            dropped: 3,
            statistics: BTreeMap::new(),
        });
        tally.packets = 10;
        let told = Totals {
            captured: 13,
            delivered: 10,
            dropped: 3,
        };
        assert_eq!(tally.totals(), told);
        // They know of two more, which no packet followed.
        let statistics = Statistics {
            dropped: 5,
            ..Statistics::default()
        };
        tally.sections[0].statistics.insert(0, statistics);
        assert_eq!((tally.totals().dropped, tally.totals().captured), (5, 15));
    }
}
