//! What has become of the packets of each interface of a tap, from what the kernel counts and what was written.
//!
//! The kernel counts by interface, and goes on when one is renamed; a stream counts by description, which a new name makes
//! anew. What belongs to earlier names is taken off.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
};

use packetflix_common::InterfaceCounters;

use super::{packets::Written, statistics::InterfaceCounts};
use crate::{metrics::Metrics, tap::ProgramUse};

/// The counts of all interfaces.
#[derive(Debug)]
pub(super) struct Tally {
    /// By the place of its description.
    counts: BTreeMap<usize, InterfaceCounts>,
    /// The counts that were last published; `None` when the next are wanted whatever they say.
    published: Option<BTreeMap<usize, InterfaceCounts>>,
    /// What had become of the packets of an interface, by its number in the tap, when it got the name that it has.
    earlier: HashMap<u32, InterfaceCounts>,
    metrics: Arc<Metrics>,
    /// What the metrics have of each interface, by its number in the tap.
    told: HashMap<u32, InterfaceCounters>,
    /// What they have of the programs.
    told_of_programs: ProgramUse,
}

impl Tally {
    /// One that tells these metrics.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            counts: BTreeMap::new(),
            published: None,
            earlier: HashMap::new(),
            metrics,
            told: HashMap::new(),
            told_of_programs: ProgramUse::default(),
        }
    }

    /// The counts by the places of descriptions.
    pub(super) fn counts(&self) -> &BTreeMap<usize, InterfaceCounts> {
        &self.counts
    }

    /// Whether there is something new since this was last asked.
    pub(super) fn is_new(&mut self) -> bool {
        let is_new = self.published.as_ref() != Some(&self.counts);
        if is_new {
            self.published = Some(self.counts.clone());
        }
        is_new
    }

    /// The next counts are new, whatever they say.
    pub(super) fn renew(&mut self) {
        self.published = None;
    }

    /// Takes what is counted of an interface that goes on, of which so much is written.
    pub(super) fn update(&mut self, id: u32, written: Written, counters: &InterfaceCounters) {
        let earlier = self.earlier(id);
        let counts = InterfaceCounts {
            delivered: written.delivered,
            dropped: counters.dropped().saturating_sub(earlier.dropped),
            told_lost: written.told_lost,
            in_rings: 0,
            rejected: rejected(counters).saturating_sub(earlier.rejected),
            end: None,
        };
        self.counts.insert(written.place, counts);
    }

    /// How many packets of an interface are in the rings, of which so much is written.
    pub(super) fn in_rings(&self, id: u32, written: Written, counters: &InterfaceCounters) -> u64 {
        let published = self.earlier(id).delivered + written.delivered;
        counters.delivered.saturating_sub(published)
    }

    /// An interface goes on under another name, at the time `at`: what was written of it so far is all of the old one, and what
    /// was lost since then is told with the new one.
    pub(super) fn rename(&mut self, id: u32, written: Written, counters: &InterfaceCounters, at: u64) {
        let earlier = self.earlier.entry(id).or_default();
        let counts = InterfaceCounts {
            delivered: written.delivered,
            dropped: written.told_lost,
            told_lost: written.told_lost,
            in_rings: 0,
            rejected: rejected(counters).saturating_sub(earlier.rejected),
            end: Some(at),
        };
        earlier.delivered += counts.delivered;
        earlier.dropped += counts.dropped;
        earlier.rejected = rejected(counters);
        self.counts.insert(written.place, counts);
    }

    /// Takes the final counts of an interface that left at the time `at`; gives how many packets were delivered and dropped of
    /// it under all its names.
    pub(super) fn end(
        &mut self,
        id: u32,
        written: Written,
        counters: InterfaceCounters,
        at: u64,
    ) -> (u64, u64) {
        self.tell(id, counters);
        let earlier = self.earlier(id);
        let delivered = earlier.delivered + written.delivered;
        let dropped = counters.accepted.saturating_sub(delivered);
        let counts = InterfaceCounts {
            delivered: written.delivered,
            dropped: dropped.saturating_sub(earlier.dropped),
            told_lost: written.told_lost,
            in_rings: 0,
            rejected: rejected(&counters).saturating_sub(earlier.rejected),
            end: Some(at),
        };
        self.counts.insert(written.place, counts);
        (delivered, dropped)
    }

    /// A description has ended of which nothing was captured.
    pub(super) fn end_unseen(&mut self, place: usize, at: u64) {
        self.counts.entry(place).or_default().end = Some(at);
    }

    /// Nothing more comes of an interface.
    pub(super) fn forget(&mut self, id: u32) {
        self.told.remove(&id);
        self.earlier.remove(&id);
    }

    /// Forgets descriptions whose end every client knows.
    pub(super) fn release(&mut self, places: &[usize]) {
        for place in places {
            self.counts.remove(place);
            if let Some(published) = &mut self.published {
                published.remove(place);
            }
        }
    }

    /// Tells the metrics what was counted of an interface since they were last told.
    pub(super) fn tell(&mut self, id: u32, counters: InterfaceCounters) {
        let before = mem::replace(self.told.entry(id).or_default(), counters);
        self.metrics.kernel_counted(&counters.since(&before));
    }

    /// Tells the metrics how the programs have run since they were last told.
    pub(super) fn tell_of_programs(&mut self, used: ProgramUse) {
        let before = mem::replace(&mut self.told_of_programs, used);
        let time = used.time.saturating_sub(before.time);
        let runs = used.runs.saturating_sub(before.runs);
        self.metrics.programs_ran(time, runs);
    }

    fn earlier(&self, id: u32) -> InterfaceCounts {
        self.earlier.get(&id).copied().unwrap_or_default()
    }
}

/// Packets that the filter did not let through.
fn rejected(counters: &InterfaceCounters) -> u64 {
    counters.seen.saturating_sub(counters.accepted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel has counted: packets that were rejected, delivered and lost.
    fn counters(rejected: u64, delivered: u64, ring_full: u64) -> InterfaceCounters {
        let accepted = delivered + ring_full;
        InterfaceCounters {
            seen: rejected + accepted,
            accepted,
            delivered,
            ring_full,
            ..InterfaceCounters::default()
        }
    }

    fn written(place: usize, delivered: u64, told_lost: u64) -> Written {
        Written {
            place,
            delivered,
            told_lost,
        }
    }

    #[test]
    fn names_of_an_interface_add_up_to_what_the_kernel_counts() {
        let mut tally = Tally::new(Arc::new(Metrics::new()));
        tally.update(7, written(0, 10, 1), &counters(5, 10, 2));
        assert!(tally.is_new() && !tally.is_new());
        tally.rename(7, written(0, 10, 1), &counters(5, 10, 2), 100);
        tally.update(7, written(1, 0, 0), &counters(6, 10, 2));
        let running = tally.counts()[&1];
        assert_eq!((running.dropped, running.rejected, running.end), (1, 1, None));
        let all = tally.end(7, written(1, 20, 3), counters(9, 30, 4), 200);
        assert_eq!(all, (30, 4));
        let counts = InterfaceCounts {
            delivered: 10,
            dropped: 1,
            told_lost: 1,
            in_rings: 0,
            rejected: 5,
            end: Some(100),
        };
        let renamed = InterfaceCounts {
            delivered: 20,
            dropped: 3,
            told_lost: 3,
            in_rings: 0,
            rejected: 4,
            end: Some(200),
        };
        assert_eq!(tally.counts(), &BTreeMap::from([(0, counts), (1, renamed)]));
    }

    #[test]
    fn what_every_client_knows_is_forgotten() {
        let mut tally = Tally::new(Arc::new(Metrics::new()));
        tally.end_unseen(3, 100);
        assert!(tally.is_new());
        tally.release(&[3]);
        assert!(tally.counts().is_empty() && !tally.is_new());
        tally.renew();
        assert!(tally.is_new());
        // A number that is used again begins anew.
        tally.rename(7, written(0, 10, 0), &counters(0, 10, 0), 100);
        tally.forget(7);
        tally.update(7, written(1, 1, 0), &counters(2, 1, 1));
        assert_eq!((tally.counts()[&1].dropped, tally.counts()[&1].rejected), (1, 2));
    }
}
