//! What the reader of a tap has published and its clients have yet to take: one queue for all of them, bounded in
//! bytes, with a place in it for each.
//!
//! The fastest client sets the pace: the reader makes the next batch when any client has taken all there are. Those that lag
//! have 4 MiB of memory to lag in, where all captures together leave that. One that lags further loses the oldest of them:
//! alone, and the next packet of its stream tells so (a copy of it, since others share it). Slower clients hold up neither the
//! reader nor the kernel.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use packetflix_common::MAX_INTERFACES;

use super::{
    Ended,
    backlog::Share,
    statistics::{InterfaceCounts, Statistics, TapInterface},
};

/// Most bytes of memory that wait for clients that lag behind the fastest one. One that lags further loses what is older.
pub(super) const MAX_WINDOW_LEN: usize = 4 << 20;

/// Bytes of memory that a batch takes beside its parts: its place, and what the allocator adds to each part. This bounds how
/// many batches there are.
const BATCH_LEN: usize = 256;

/// Most descriptions that are kept, of interfaces that are gone for the most part, until each client has their final
/// statistics. A client that holds back more gets no further.
pub(super) const MAX_DESCRIPTIONS: usize = 3 * MAX_INTERFACES as usize;

/// Packets, encoded once for all clients, and what is known at their end.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Whole blocks.
    pub(super) packets: Bytes,
    /// Bytes of memory that these take.
    pub(super) room: usize,
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

impl Batch {
    /// Bytes of memory that it takes for as long as it waits.
    fn len(&self) -> usize {
        let interfaces = self.statistics.iter().map(|one| one.interfaces.len());
        let statistics = interfaces.sum::<usize>() * size_of::<InterfaceCounts>();
        BATCH_LEN + self.room + self.counts.capacity() * size_of::<PacketCount>() + statistics
    }
}

/// The queue, the interfaces that its packets are of, and how it ended.
#[derive(Debug)]
pub(super) struct Window {
    batches: VecDeque<Waiting>,
    /// Number of the oldest batch.
    first: u64,
    /// What all batches take of the memory that is for those of all captures.
    share: Share,
    /// Packets of each interface in batches that are gone, by the place of its description.
    passed: BTreeMap<usize, Sum>,
    /// Packets of each interface that were published.
    published: BTreeMap<usize, Sum>,
    /// The number up to which the fastest client has taken batches.
    furthest: u64,
    /// By their numbers.
    clients: BTreeMap<u64, Place>,
    /// The number that the next client gets.
    next_client: u64,
    /// The interfaces that there are, and those that are gone of which somebody has yet to be told, by the places of their
    /// descriptions.
    interfaces: BTreeMap<usize, Arc<TapInterface>>,
    /// The place of the next description.
    described: usize,
    /// Of those that are gone, the first batch with the final statistics.
    ended: BTreeMap<usize, u64>,
    end: Option<Ended>,
    /// All that was captured until then is published, in nanoseconds since 1970.
    complete_until: u64,
}

#[derive(Debug)]
struct Waiting {
    batch: Arc<Batch>,
    /// How many clients have yet to take it.
    takers: usize,
}

/// A client's place in the queue.
#[derive(Debug)]
struct Place {
    /// Number of its next batch.
    next: u64,
    /// The batch before which it knows all statistics.
    known: u64,
    /// Packets of each interface before that place.
    accounted: BTreeMap<usize, Sum>,
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
    /// There are none any more for this client, which held too many descriptions back.
    CutOff,
}

impl Window {
    /// An empty one.
    pub(super) fn new(share: Share) -> Self {
        Self {
            batches: VecDeque::new(),
            first: 0,
            share,
            passed: BTreeMap::new(),
            published: BTreeMap::new(),
            furthest: 0,
            clients: BTreeMap::new(),
            next_client: 0,
            interfaces: BTreeMap::new(),
            described: 0,
            ended: BTreeMap::new(),
            end: None,
            complete_until: 0,
        }
    }

    /// Adds a client, which gets what is published from now on; gives its number.
    pub(super) fn join(&mut self) -> u64 {
        let client = self.next_client;
        self.next_client += 1;
        let place = Place {
            next: self.published_until(),
            known: self.published_until(),
            accounted: self.published.clone(),
        };
        self.clients.insert(client, place);
        // It waits for the next batch, whatever the others have yet to take.
        self.furthest = self.published_until();
        client
    }

    /// Removes a client, if that is not cut off.
    pub(super) fn leave(&mut self, client: u64) {
        let Some(place) = self.clients.remove(&client) else {
            return;
        };
        let to_take = index(self.first, place.next);
        for waiting in self.batches.range_mut(to_take..) {
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
        self.clients.len() == 1 && self.clients.contains_key(&client)
    }

    /// Whether the fastest client has taken everything: the next batch is for it to wait for.
    pub(super) fn has_room(&self) -> bool {
        self.furthest >= self.published_until()
    }

    /// Whether a client has taken all that there is, and more may come.
    pub(super) fn has_nothing_for(&self, client: u64) -> bool {
        let next = self.clients.get(&client).map(|place| place.next);
        self.end.is_none() && next == Some(self.published_until())
    }

    /// All that was captured until then is published, in nanoseconds since 1970.
    pub(super) fn complete(&mut self, until: u64) {
        self.complete_until = until;
    }

    /// Until when a client has taken all that was captured, in nanoseconds since 1970; `None` where it has more to take first.
    pub(super) fn told_until(&self, client: u64) -> Option<u64> {
        self.has_nothing_for(client).then_some(self.complete_until)
    }

    /// Adds a batch. Makes room for it by the oldest ones if it must, which clients that have yet to take them lose.
    pub(super) fn publish(&mut self, batch: Batch) {
        add(&mut self.published, &batch.counts);
        let number = self.published_until();
        let statistics = batch.statistics.iter().flat_map(|one| &one.interfaces);
        for (place, _) in statistics.filter(|(_, counts)| counts.end.is_some()) {
            self.ended.entry(*place).or_insert(number);
        }
        self.share.take(batch.len());
        self.batches.push_back(Waiting {
            batch: Arc::new(batch),
            takers: self.clients.len(),
        });
        self.keep_within_bounds();
        self.let_pass();
    }

    /// Lets the oldest batches go that are too much, for want of memory.
    pub(super) fn keep_within_bounds(&mut self) {
        while self.batches.len() > 1 && (self.share.used() > MAX_WINDOW_LEN || self.share.is_too_much()) {
            self.pass_one();
        }
    }

    /// Takes the next batch of a client.
    pub(super) fn take(&mut self, client: u64) -> Next {
        let Some(place) = self.clients.get_mut(&client) else {
            return Next::CutOff;
        };
        let lost = if place.next < self.first {
            place.skip(self.first, &self.passed)
        } else {
            Vec::new()
        };
        let Some(waiting) = self.batches.get_mut(index(self.first, place.next)) else {
            return self.end.clone().map_or(Next::Nothing, Next::End);
        };
        waiting.takers -= 1;
        let batch = Arc::clone(&waiting.batch);
        place.next += 1;
        if batch.statistics.is_some() {
            place.known = place.next;
        }
        add(&mut place.accounted, &batch.counts);
        let next = place.next;
        let is_furthest = next > self.furthest;
        self.furthest = self.furthest.max(next);
        self.let_pass();
        Next::Batch {
            batch,
            lost,
            is_furthest,
        }
    }

    /// The interfaces at these places of their descriptions; `None` when some were let go, as only happens before a client
    /// that is cut off.
    pub(super) fn interfaces(&self, places: Range<usize>) -> Option<Vec<Arc<TapInterface>>> {
        let interfaces = self.interfaces.range(places.clone());
        let interfaces: Vec<_> = interfaces.map(|(_, interface)| Arc::clone(interface)).collect();
        (interfaces.len() == places.len()).then_some(interfaces)
    }

    /// Hardware addresses of the interfaces.
    pub(super) fn macs(&self) -> Vec<[u8; 6]> {
        self.interfaces
            .values()
            .filter_map(|interface| interface.link.mac)
            .collect()
    }

    /// The place of the next description.
    pub(super) fn described(&self) -> usize {
        self.described
    }

    /// Describes the interface at `place` anew, or one more behind the last.
    pub(super) fn describe(&mut self, place: Option<usize>, interface: TapInterface) {
        let place = place.unwrap_or_else(|| {
            self.described += 1;
            self.described - 1
        });
        self.interfaces.insert(place, Arc::new(interface));
    }

    /// Lets interfaces go that are gone, once each client has their final statistics; gives the places of their descriptions.
    /// Clients that hold too many back are cut off, those that lag most first.
    pub(super) fn release(&mut self) -> Vec<usize> {
        let mut released = self.release_told();
        while self.interfaces.len() > MAX_DESCRIPTIONS
            && let Some(slowest) = self.slowest()
        {
            self.leave(slowest);
            released.extend(self.release_told());
        }
        released
    }

    /// The client that has yet to be told most of what there is to tell.
    fn slowest(&self) -> Option<u64> {
        let slowest = self.clients.iter().min_by_key(|(_, place)| place.known);
        slowest.map(|(client, _)| *client)
    }

    fn release_told(&mut self) -> Vec<usize> {
        let known = self.clients.values().map(|place| place.known).min();
        let is_told = |number: u64| known.is_none_or(|known| number < known);
        let told = self.ended.extract_if(.., |_, number| is_told(*number));
        let told: Vec<usize> = told.map(|(place, _)| place).collect();
        for place in &told {
            self.interfaces.remove(place);
            self.published.remove(place);
            self.passed.remove(place);
            for client in self.clients.values_mut() {
                client.accounted.remove(place);
            }
        }
        told
    }

    /// Ends the queue; the first end counts.
    pub(super) fn end(&mut self, ended: Ended) {
        self.end.get_or_insert(ended);
    }

    /// The number that the next batch gets.
    pub(super) fn published_until(&self) -> u64 {
        self.first + self.batches.len() as u64
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
            self.share.give_back(batch.len());
            add(&mut self.passed, &batch.counts);
        }
    }
}

impl Place {
    /// Moves to the oldest batch that there is, before which so much has passed; tells what is lost by that.
    fn skip(&mut self, first: u64, passed: &BTreeMap<usize, Sum>) -> Vec<PacketCount> {
        let sums = passed.iter().map(|(interface, passed)| {
            let accounted = self.accounted.get(interface).copied().unwrap_or_default();
            PacketCount {
                interface: *interface,
                packets: passed.packets - accounted.packets,
                told_lost: passed.told_lost - accounted.told_lost,
            }
        });
        let lost = sums.filter(|lost| lost.packets > 0).collect();
        self.next = first;
        self.accounted.clone_from(passed);
        lost
    }
}

/// Place of a batch in a queue that begins with the batch `first`; the beginning for one that is gone.
fn index(first: u64, number: u64) -> usize {
    number.saturating_sub(first) as usize
}

/// Adds counts to the sums by interface.
fn add(sums: &mut BTreeMap<usize, Sum>, counts: &[PacketCount]) {
    for count in counts {
        let sum = sums.entry(count.interface).or_default();
        sum.packets += count.packets;
        sum.told_lost += count.told_lost;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        netns::Link,
        pcapng::LinkType,
        session::{backlog::Backlog, statistics::Written},
        tap::{CaptureClock, ClockSource},
    };

    fn window() -> Window {
        Window::new(Backlog::new(u64::MAX).share())
    }

    fn batch(len: usize, interface: usize, packets: u64) -> Batch {
        Batch {
            packets: vec![0; len].into(),
            room: len,
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
        fn take(&mut self, window: &mut Window, client: u64) -> bool {
            let Next::Batch { batch, lost, .. } = window.take(client) else {
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
        let mut window = window();
        let early = window.join();
        window.publish(batch(10, 0, 3));
        let late = window.join();
        window.publish(batch(10, 1, 4));
        let (mut seen_early, mut seen_late) = (Seen::default(), Seen::default());
        while seen_early.take(&mut window, early) {}
        assert_eq!(window.batches.len(), 1);
        while seen_late.take(&mut window, late) {}
        assert_eq!(seen_early.delivered, [3, 4]);
        assert_eq!(seen_late.delivered, [0, 4]);
        assert_eq!((window.share.used(), window.batches.len()), (0, 0));
    }

    #[test]
    fn who_joins_waits_for_the_next_batch_whatever_others_have_yet_to_take() {
        let mut window = window();
        let slow = window.join();
        window.publish(batch(1, 0, 1));
        assert!(!window.has_room());
        let late = window.join();
        assert!(window.has_room() && window.has_nothing_for(late));
        window.publish(batch(1, 0, 2));
        assert!(!window.has_room());
        assert!(matches!(
            window.take(late),
            Next::Batch {
                is_furthest: true,
                ..
            }
        ));
        assert!(matches!(
            window.take(slow),
            Next::Batch {
                is_furthest: false,
                ..
            }
        ));
    }

    #[test]
    fn who_joins_as_the_last_leaves_waits_for_nothing_of_theirs() {
        let mut window = window();
        let first = window.join();
        window.publish(batch(10, 0, 3));
        window.leave(first);
        let second = window.join();
        assert!(window.has_room());
        // The reader may have been about to publish more when the last one left.
        window.leave(second);
        window.publish(batch(10, 0, 4));
        let third = window.join();
        assert!(window.has_room());
        window.publish(batch(10, 0, 5));
        let mut seen = Seen::default();
        while seen.take(&mut window, third) {}
        assert_eq!((seen.delivered, seen.lost), ([5, 0], [0, 0]));
        assert!(window.has_room());
    }

    #[test]
    fn the_fastest_client_sets_the_pace() {
        let mut window = window();
        let (fast, slow) = (window.join(), window.join());
        assert!(window.has_room());
        window.publish(batch(10, 0, 1));
        assert!(!window.has_room());
        assert!(matches!(window.take(fast), Next::Batch { .. }));
        assert!(window.has_room());
        assert!(matches!(window.take(slow), Next::Batch { .. }));
        assert!(matches!(window.take(slow), Next::Nothing));
    }

    #[test]
    fn a_client_that_lags_loses_the_oldest_and_knows_how_much() {
        let mut window = window();
        let (fast, slow) = (window.join(), window.join());
        let (mut seen_fast, mut seen_slow) = (Seen::default(), Seen::default());
        for number in 0..10 {
            window.publish(batch(MAX_WINDOW_LEN / 4 - 1024, number % 2, 1));
            assert!(seen_fast.take(&mut window, fast));
            assert!(window.share.used() <= MAX_WINDOW_LEN);
        }
        while seen_slow.take(&mut window, slow) {}
        assert_eq!(seen_fast.lost, [0, 0]);
        assert_eq!((seen_slow.delivered, seen_slow.lost), ([2, 2], [3, 3]));
    }

    #[test]
    fn small_batches_are_as_many_as_memory_allows() {
        let mut window = window();
        let (fast, _slow) = (window.join(), window.join());
        for _ in 0..100_000 {
            window.publish(batch(0, 0, 1));
            assert!(matches!(window.take(fast), Next::Batch { .. }));
        }
        let count = window.batches.len();
        assert!((1000..MAX_WINDOW_LEN / BATCH_LEN).contains(&count), "{count}");
    }

    #[test]
    fn captures_leave_each_other_memory() {
        const BOUND: usize = MAX_WINDOW_LEN / 2;

        let backlog = Backlog::new(BOUND as u64);
        let mut windows: Vec<_> = (0..4).map(|_| Window::new(backlog.share())).collect();
        for window in &mut windows {
            window.join();
            for _ in 0..8 {
                window.publish(batch(BOUND / 8, 0, 1));
            }
        }
        for window in &mut windows {
            window.keep_within_bounds();
            assert!(window.share.used() >= BOUND / 8);
        }
        assert!(windows.iter().map(|window| window.share.used()).sum::<usize>() <= BOUND);
    }

    #[test]
    fn the_end_comes_behind_the_last_batch() {
        let mut window = window();
        let client = window.join();
        window.publish(batch(10, 0, 1));
        window.end(Ended::Stopped);
        window.end(Ended::NamespaceGone(1));
        assert!(matches!(window.take(client), Next::Batch { .. }));
        assert!(matches!(window.take(client), Next::End(Ended::Stopped)));
    }

    #[test]
    fn a_client_that_leaves_holds_nothing_back() {
        let mut window = window();
        let (here, gone) = (window.join(), window.join());
        window.publish(batch(10, 0, 1));
        assert!(matches!(window.take(here), Next::Batch { .. }));
        assert_eq!(window.batches.len(), 1);
        window.leave(gone);
        assert_eq!((window.share.used(), window.clients()), (0, 1));
    }

    pub(in crate::session) fn interface() -> TapInterface {
        TapInterface {
            link_type: LinkType::Ethernet,
            link: Link::default(),
            left_out: None,
            note: None,
            is_seen_by_tcx: false,
            since: 0,
        }
    }

    /// Has one more interface come and go, of which a packet was captured.
    fn come_and_go(window: &mut Window) -> usize {
        let place = window.described();
        window.describe(None, interface());
        window.publish(batch(100, place, 1));
        let counts = InterfaceCounts {
            end: Some(1),
            ..InterfaceCounts::default()
        };
        let statistics = Statistics {
            clock: CaptureClock::new(ClockSource::Tai).unwrap(),
            taken: 1,
            written: Written::default(),
            may_miss: false,
            interfaces: BTreeMap::from([(place, counts)]),
        };
        window.publish(Batch {
            interfaces: place + 1,
            statistics: Some(Arc::new(statistics)),
            ..Batch::default()
        });
        place
    }

    #[test]
    fn what_is_gone_is_let_go_once_each_client_has_its_final_statistics() {
        let mut window = window();
        window.describe(None, interface());
        let (one, other) = (window.join(), window.join());
        for _ in 0..100 {
            let place = come_and_go(&mut window);
            for (client, rest) in [(one, vec![]), (other, vec![place])] {
                assert!(window.release().is_empty());
                assert!(window.interfaces(place..place + 1).is_some());
                assert!(matches!(window.take(client), Next::Batch { .. }));
                assert!(window.release().is_empty());
                assert!(matches!(window.take(client), Next::Batch { .. }));
                assert_eq!(window.release(), rest);
            }
            let Window {
                passed,
                published,
                interfaces,
                ended,
                clients,
                ..
            } = &window;
            let kept = [passed.len(), published.len(), interfaces.len(), ended.len()];
            assert_eq!(kept, [0, 0, 1, 0]);
            assert!(clients.values().all(|place| place.accounted.is_empty()));
        }
        // Places are not used again.
        assert_eq!(window.described(), 101);
    }

    #[test]
    fn a_client_that_holds_too_much_of_what_is_gone_is_cut_off() {
        let mut window = window();
        let (fast, slow) = (window.join(), window.join());
        let mut released = 0;
        for _ in 0..=MAX_DESCRIPTIONS {
            assert_eq!((released, window.clients()), (0, 2));
            come_and_go(&mut window);
            while let Next::Batch { .. } = window.take(fast) {}
            released += window.release().len();
        }
        assert_eq!((released, window.clients()), (MAX_DESCRIPTIONS + 1, 1));
        assert_eq!((window.share.used(), window.batches.len()), (0, 0));
        assert!(matches!(window.take(slow), Next::CutOff));
        assert!(window.interfaces(0..1).is_none());
        window.leave(slow);
        // The other goes on.
        come_and_go(&mut window);
        assert!(matches!(window.take(fast), Next::Batch { lost, .. } if lost.is_empty()));
    }

    proptest! {
        /// Whatever happens in which order, each client accounts for each packet since it joined.
        #[test]
        fn nothing_is_lost_uncounted(steps in proptest::collection::vec((0usize..4, 0usize..4, 1usize..4), 1..200)) {
            let mut window = window();
            let mut published = [0; 2];
            let mut clients: Vec<(u64, Seen, [u64; 2])> = Vec::new();
            for (what, which, size) in steps {
                match what {
                    0 if clients.len() < 4 => clients.push((window.join(), Seen::default(), published)),
                    1 if clients.len() > 1 => {
                        let (client, ..) = clients.swap_remove(which % clients.len());
                        window.leave(client);
                    }
                    2 if !clients.is_empty() => {
                        let at = which % clients.len();
                        let (client, seen, _) = &mut clients[at];
                        seen.take(&mut window, *client);
                    }
                    _ => {
                        window.publish(batch(size * MAX_WINDOW_LEN / 8, which % 2, size as u64));
                        published[which % 2] += size as u64;
                    }
                }
                prop_assert_eq!(window.clients(), clients.len());
                prop_assert_eq!(window.share.used(), window.batches.iter().map(|one| one.batch.len()).sum::<usize>());
            }
            for (client, mut seen, before) in clients {
                while seen.take(&mut window, client) {}
                for interface in 0..2 {
                    let accounted = seen.delivered[interface] + seen.lost[interface];
                    prop_assert_eq!(accounted, published[interface] - before[interface]);
                }
            }
        }
    }
}
