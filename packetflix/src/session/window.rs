//! What the reader of a tap has published and its clients have yet to take: one queue for all of them, bounded in
//! bytes, with a place in it for each.
//!
//! The fastest client sets the pace: the reader makes the next batch when any client has taken all there are. Those that lag
//! have 4 MiB of batches to lag in. One that lags further loses the oldest of them: alone, and the next packet of its stream
//! tells so (a copy of it, since others share it). Slower clients hold up neither the reader nor the kernel.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Ended,
    statistics::{Statistics, TapInterface},
};

/// Most bytes that wait for clients that lag behind the fastest one. One that lags further loses what is older.
pub(super) const MAX_WINDOW_LEN: usize = 4 << 20;

/// Packets, encoded once for all clients, and what is known at their end.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Whole blocks.
    pub(super) packets: Bytes,
    /// How many packets of which interface that is.
    pub(super) counts: Vec<PacketCount>,
    /// When the first of them was captured, in nanoseconds of the records' clock.
    pub(super) oldest: u64,
    /// How many interfaces must have been described before these packets.
    pub(super) interfaces: usize,
    /// Statistics as of the end of these packets, if it is time for them.
    pub(super) statistics: Option<Arc<Statistics>>,
}

/// Packets of one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCount {
    /// Place of the interface among the descriptions.
    pub(super) interface: usize,
    pub(super) packets: u64,
    /// Packets of which those tell that the kernel lost them before.
    pub(super) told_lost: u64,
}

/// Of all packets of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    packets: u64,
    told_lost: u64,
}

/// The queue, the interfaces that its packets are of, and how it ended.
#[derive(Debug, Default)]
pub(super) struct Window {
    batches: VecDeque<Waiting>,
    /// Number of the oldest batch.
    first: u64,
    /// Bytes of all batches.
    len: usize,
    /// Packets of each interface in batches that are gone.
    passed: Vec<Sum>,
    /// Packets of each interface that were published.
    published: Vec<Sum>,
    /// The number up to which the fastest client has taken batches.
    furthest: u64,
    clients: BTreeSet<u64>,
    /// The number that the next client gets.
    next_client: u64,
    /// All interfaces that there were, in the order of their descriptions.
    interfaces: Vec<Arc<TapInterface>>,
    end: Option<Ended>,
}

#[derive(Debug)]
struct Waiting {
    batch: Arc<Batch>,
    /// How many clients have yet to take it.
    takers: usize,
}

/// A client's place in the queue.
#[derive(Debug)]
pub(super) struct Cursor {
    /// Number of the client.
    pub(super) client: u64,
    next: u64,
    /// Packets of each interface before that place.
    accounted: Vec<Sum>,
}

/// The next of the queue for a client.
#[derive(Debug)]
pub(super) enum Next {
    /// A batch.
    Batch {
        batch: Arc<Batch>,
        /// What was lost before it, by interface.
        lost: Vec<PacketCount>,
        /// Whether no other client has got as far.
        is_furthest: bool,
    },
    /// There is none yet.
    Nothing,
    /// There will be none.
    End(Ended),
}

impl Window {
    /// Adds a client, which gets what is published from now on.
    pub(super) fn join(&mut self) -> Cursor {
        let client = self.next_client;
        self.next_client += 1;
        self.clients.insert(client);
        Cursor {
            client,
            next: self.published_until(),
            accounted: self.published.clone(),
        }
    }

    /// Removes a client.
    pub(super) fn leave(&mut self, cursor: &Cursor) {
        self.clients.remove(&cursor.client);
        let taken = self.index(cursor).unwrap_or(0);
        for waiting in self.batches.range_mut(taken..) {
            waiting.takers -= 1;
        }
        self.let_pass();
    }

    /// How many clients there are.
    pub(super) fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Whether a client is the only one.
    pub(super) fn is_alone(&self, client: u64) -> bool {
        self.clients.len() == 1 && self.clients.contains(&client)
    }

    /// Whether the fastest client has taken everything: the next batch is for it to wait for.
    pub(super) fn has_room(&self) -> bool {
        self.furthest >= self.published_until()
    }

    /// Adds a batch. Makes room for it by the oldest ones if it must, which clients that have yet to take them lose.
    pub(super) fn publish(&mut self, batch: Batch) {
        add(&mut self.published, &batch.counts);
        self.len += batch.packets.len();
        self.batches.push_back(Waiting {
            batch: Arc::new(batch),
            takers: self.clients.len(),
        });
        while self.len > MAX_WINDOW_LEN && self.batches.len() > 1 {
            self.pass_one();
        }
        self.let_pass();
    }

    /// Takes the next batch of a client.
    pub(super) fn take(&mut self, cursor: &mut Cursor) -> Next {
        let (index, lost) = match self.index(cursor) {
            Some(index) => (index, Vec::new()),
            None => (0, self.skip(cursor)),
        };
        let Some(waiting) = self.batches.get_mut(index) else {
            return self.end.clone().map_or(Next::Nothing, Next::End);
        };
        waiting.takers -= 1;
        let batch = Arc::clone(&waiting.batch);
        cursor.next += 1;
        add(&mut cursor.accounted, &batch.counts);
        let is_furthest = cursor.next > self.furthest;
        self.furthest = self.furthest.max(cursor.next);
        self.let_pass();
        Next::Batch {
            batch,
            lost,
            is_furthest,
        }
    }

    /// All interfaces that there were, in the order of their descriptions.
    pub(super) fn interfaces(&self) -> &[Arc<TapInterface>] {
        &self.interfaces
    }

    /// Describes the interface at `place` anew, or one more behind the last.
    pub(super) fn describe(&mut self, place: Option<usize>, interface: TapInterface) {
        let interface = Arc::new(interface);
        match place.and_then(|place| self.interfaces.get_mut(place)) {
            Some(known) => *known = interface,
            None => self.interfaces.push(interface),
        }
    }

    /// Ends the queue; the first end counts.
    pub(super) fn end(&mut self, ended: Ended) {
        self.end.get_or_insert(ended);
    }

    /// The number that the next batch gets.
    pub(super) fn published_until(&self) -> u64 {
        self.first + self.batches.len() as u64
    }

    /// Place of a client's next batch in the queue, which may be its end; `None` when that batch is gone.
    fn index(&self, cursor: &Cursor) -> Option<usize> {
        cursor
            .next
            .checked_sub(self.first)
            .and_then(|index| usize::try_from(index).ok())
    }

    /// Moves a client that lags behind to the oldest batch, and tells what it has lost by that.
    fn skip(&self, cursor: &mut Cursor) -> Vec<PacketCount> {
        let accounted = cursor
            .accounted
            .iter()
            .copied()
            .chain(std::iter::repeat(Sum::default()));
        let passed = self.passed.iter().zip(accounted).enumerate();
        let lost = passed.filter(|(_, (passed, accounted))| passed.packets > accounted.packets);
        let lost = lost.map(|(interface, (passed, accounted))| PacketCount {
            interface,
            packets: passed.packets - accounted.packets,
            told_lost: passed.told_lost - accounted.told_lost,
        });
        let lost = lost.collect();
        cursor.next = self.first;
        cursor.accounted.clone_from(&self.passed);
        lost
    }

    /// Lets those of the oldest batches go that everyone has taken.
    fn let_pass(&mut self) {
        while self.batches.front().is_some_and(|waiting| waiting.takers == 0) {
            self.pass_one();
        }
    }

    fn pass_one(&mut self) {
        if let Some(Waiting { batch, .. }) = self.batches.pop_front() {
            self.first += 1;
            // Those that it waited for may have left without it: whoever joins then waits for what is behind it.
            self.furthest = self.furthest.max(self.first);
            self.len -= batch.packets.len();
            add(&mut self.passed, &batch.counts);
        }
    }
}

/// Adds counts to the sums by interface.
fn add(sums: &mut Vec<Sum>, counts: &[PacketCount]) {
    for count in counts {
        if sums.len() <= count.interface {
            sums.resize(count.interface + 1, Sum::default());
        }
        sums[count.interface].packets += count.packets;
        sums[count.interface].told_lost += count.told_lost;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn batch(len: usize, interface: usize, packets: u64) -> Batch {
        Batch {
            packets: vec![0; len].into(),
            counts: vec![PacketCount {
                interface,
                packets,
                told_lost: packets / 2,
            }],
            ..Batch::default()
        }
    }

    /// What a client has seen: delivered and lost packets of each of two interfaces.
    #[derive(Debug, Default, PartialEq, Eq)]
    struct Seen {
        delivered: [u64; 2],
        lost: [u64; 2],
    }

    impl Seen {
        fn take(&mut self, window: &mut Window, cursor: &mut Cursor) -> bool {
            let Next::Batch { batch, lost, .. } = window.take(cursor) else {
                return false;
            };
            for count in &batch.counts {
                self.delivered[count.interface] += count.packets;
            }
            for count in lost {
                self.lost[count.interface] += count.packets;
            }
            true
        }
    }

    #[test]
    fn everyone_gets_what_was_published_since_they_joined() {
        let mut window = Window::default();
        let mut early = window.join();
        window.publish(batch(10, 0, 3));
        let mut late = window.join();
        window.publish(batch(10, 1, 4));
        let (mut seen_early, mut seen_late) = (Seen::default(), Seen::default());
        while seen_early.take(&mut window, &mut early) {}
        assert_eq!(window.len, 10);
        while seen_late.take(&mut window, &mut late) {}
        assert_eq!(seen_early.delivered, [3, 4]);
        assert_eq!(seen_late.delivered, [0, 4]);
        assert_eq!((window.len, window.batches.len()), (0, 0));
    }

    #[test]
    fn who_joins_as_the_last_leaves_waits_for_nothing_of_theirs() {
        let mut window = Window::default();
        let first = window.join();
        window.publish(batch(10, 0, 3));
        window.leave(&first);
        let second = window.join();
        assert!(window.has_room());
        // The reader may have been about to publish more when the last one left.
        window.leave(&second);
        window.publish(batch(10, 0, 4));
        let mut third = window.join();
        assert!(window.has_room());
        window.publish(batch(10, 0, 5));
        let mut seen = Seen::default();
        while seen.take(&mut window, &mut third) {}
        assert_eq!((seen.delivered, seen.lost), ([5, 0], [0, 0]));
        assert!(window.has_room());
    }

    #[test]
    fn the_fastest_client_sets_the_pace() {
        let mut window = Window::default();
        let (mut fast, mut slow) = (window.join(), window.join());
        assert!(window.has_room());
        window.publish(batch(10, 0, 1));
        assert!(!window.has_room());
        assert!(matches!(window.take(&mut fast), Next::Batch { .. }));
        assert!(window.has_room());
        assert!(matches!(window.take(&mut slow), Next::Batch { .. }));
        assert!(matches!(window.take(&mut slow), Next::Nothing));
    }

    #[test]
    fn a_client_that_lags_loses_the_oldest_and_knows_how_much() {
        let mut window = Window::default();
        let (mut fast, mut slow) = (window.join(), window.join());
        let (mut seen_fast, mut seen_slow) = (Seen::default(), Seen::default());
        for number in 0..10 {
            window.publish(batch(MAX_WINDOW_LEN / 4, number % 2, 1));
            assert!(seen_fast.take(&mut window, &mut fast));
            assert!(window.len <= MAX_WINDOW_LEN);
        }
        while seen_slow.take(&mut window, &mut slow) {}
        assert_eq!(seen_fast.lost, [0, 0]);
        assert_eq!((seen_slow.delivered, seen_slow.lost), ([2, 2], [3, 3]));
    }

    #[test]
    fn the_end_comes_behind_the_last_batch() {
        let mut window = Window::default();
        let mut client = window.join();
        window.publish(batch(10, 0, 1));
        window.end(Ended::Stopped);
        window.end(Ended::NamespaceGone(1));
        assert!(matches!(window.take(&mut client), Next::Batch { .. }));
        assert!(matches!(window.take(&mut client), Next::End(Ended::Stopped)));
    }

    #[test]
    fn a_client_that_leaves_holds_nothing_back() {
        let mut window = Window::default();
        let (mut here, gone) = (window.join(), window.join());
        window.publish(batch(10, 0, 1));
        assert!(matches!(window.take(&mut here), Next::Batch { .. }));
        assert_eq!(window.len, 10);
        window.leave(&gone);
        assert_eq!((window.len, window.clients()), (0, 1));
    }

    proptest! {
        /// Whatever happens in which order, each client accounts for each packet since it joined.
        #[test]
        fn nothing_is_lost_uncounted(steps in proptest::collection::vec((0usize..4, 0usize..4, 1usize..4), 1..200)) {
            let mut window = Window::default();
            let mut published = [0; 2];
            let mut clients: Vec<(Cursor, Seen, [u64; 2])> = Vec::new();
            for (what, which, size) in steps {
                match what {
                    0 if clients.len() < 4 => clients.push((window.join(), Seen::default(), published)),
                    1 if clients.len() > 1 => {
                        let (cursor, ..) = clients.swap_remove(which % clients.len());
                        window.leave(&cursor);
                    }
                    2 if !clients.is_empty() => {
                        let at = which % clients.len();
                        let (cursor, seen, _) = &mut clients[at];
                        seen.take(&mut window, cursor);
                    }
                    _ => {
                        window.publish(batch(size * MAX_WINDOW_LEN / 8, which % 2, size as u64));
                        published[which % 2] += size as u64;
                    }
                }
                prop_assert_eq!(window.clients(), clients.len());
                prop_assert_eq!(window.len, window.batches.iter().map(|one| one.batch.packets.len()).sum::<usize>());
            }
            for (mut cursor, mut seen, before) in clients {
                while seen.take(&mut window, &mut cursor) {}
                for interface in 0..2 {
                    let accounted = seen.delivered[interface] + seen.lost[interface];
                    prop_assert_eq!(accounted, published[interface] - before[interface]);
                }
            }
        }
    }
}
