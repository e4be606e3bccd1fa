//! The one task that reads a tap: it turns records into batches as fast as the fastest client takes them, follows the
//! interfaces, keeps the statistics, and knows why it ended.
//!
//! `pace.rs` says when the rings are read, and `held.rs` whether anybody else still holds the namespace.

use std::{
    collections::BTreeMap,
    io,
    ops::ControlFlow,
    sync::{Arc, LazyLock},
    time::Duration,
};

use packetflix_common::InterfaceCounters;
use tokio::{
    sync::mpsc,
    task::coop::consume_budget,
    time::{Instant, MissedTickBehavior, interval_at},
};

use super::{
    Ended,
    feed::{Command, FeedContext, Shared, Subscription},
    framing::Framing,
    held::{HeldLook, Searches},
    pace::Pace,
    packets::Packets,
    packets_in,
    statistics::{Statistics, TapInterface, Written},
    tally::Tally,
    window::Batch,
};
use crate::{
    error,
    metrics::Metrics,
    netns::OpenNetns,
    tap::{Drained, LinkChanges, MAY_MISS_INTERFACES, OwnTraffic, Tap, TapChange, TapError, TappedInterface},
};

/// A record younger than this, in nanoseconds, waits for older ones that another CPU may still be writing.
pub(super) const MERGE_WINDOW: u64 = 500_000;

/// How often statistics are published, and the namespace and the clocks looked at.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// Most interfaces that are gone which one who comes late is told of. With more, it gets a tap of its own, and they are
/// forgotten once every client has their final statistics.
const MAX_GONE: usize = 64;

/// Reads a tap.
pub(super) struct Reader {
    /// Dropped first: whatever becomes of the tap, its clients are told.
    _end: End,
    netns: Arc<OpenNetns>,
    tap: Tap,
    packets: Packets,
    shared: Arc<Shared>,
    commands: mpsc::Receiver<Command>,
    tally: Tally,
    /// Interfaces that were detached, by their index, with the time since which no record of them can come.
    leaving: Vec<(u32, u64)>,
    /// How many descriptions there are of what is gone, forgotten or not.
    gone: usize,
    has_let_go: bool,
    /// Whether the interfaces could not all be looked at, which is tried again.
    links_due: bool,
    /// Whether that lasted for a second at some time.
    may_miss: bool,
    statistics_due: bool,
    /// Statistics are wanted when all that was captured until then is published.
    settle: Option<u64>,
    metrics: Arc<Metrics>,
    searches: Searches,
}

impl Reader {
    pub(super) fn new(
        netns: OpenNetns,
        tap: Tap,
        shared: Arc<Shared>,
        commands: mpsc::Receiver<Command>,
        context: &FeedContext,
    ) -> Self {
        let metrics = Arc::clone(&context.metrics);
        metrics.tap_begun();
        let mut reader = Self {
            _end: End {
                shared: Arc::clone(&shared),
                metrics: Arc::clone(&metrics),
            },
            netns: Arc::new(netns),
            packets: Packets::new(tap.snaplen()),
            tap,
            shared,
            commands,
            tally: Tally::new(Arc::clone(&metrics)),
            leaving: Vec::new(),
            gone: 0,
            has_let_go: false,
            links_due: false,
            may_miss: false,
            statistics_due: false,
            settle: None,
            metrics,
            searches: context.searches.clone(),
        };
        reader.describe_new();
        reader
    }

    /// Publishes what the tap captures, until the last client has left or the namespace has ended; then detaches,
    /// publishes what is left with the final statistics, and the end. `commands` is for those who join.
    pub(super) async fn run(mut self, commands: mpsc::WeakSender<Command>) {
        let ended = match self.capture(&commands).await {
            Ok(ended) => ended,
            Err(error) => Ended::Failed(error::chain(&error)),
        };
        self.shared.begin_to_end();
        while let Ok(command) = self.commands.try_recv() {
            self.obey_at_end(command);
        }
        self.finish().await;
        self.commands.close();
        self.count();
        self.shared.publish(|window| window.end(ended));
        self.tap.close();
    }

    async fn capture(&mut self, commands: &mpsc::WeakSender<Command>) -> Result<Ended, CaptureError> {
        let mut every_second = interval_at(next_turn(), STATISTICS_INTERVAL);
        every_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pace = Pace::new(self.tap.ring_size());
        let mut held = HeldLook::new(self.searches.clone());
        loop {
            let (clients, has_room) = self.demand();
            if clients == 0 {
                return Ok(Ended::Stopped);
            }
            // Records leave the rings only when somebody waits for them: when all clients are too slow, they fill
            // the rings, and the programs count what they cannot put there.
            let is_due = pace.is_due() && has_room;
            tokio::select! {
                biased;
                _ = every_second.tick() => {
                    self.look_after_all();
                    held.look(&self.netns, self.tap.is_held_by_process());
                    pace.read_now();
                }
                is_held = held.found() => if !is_held {
                    return Ok(Ended::NamespaceGone(self.netns.inode()));
                },
                Some(command) = self.commands.recv() => {
                    if self.obey(command, commands).await.is_break() {
                        return Ok(Ended::Stopped);
                    }
                    pace.read_now();
                }
                () = consume_budget(), if is_due => {
                    let old_enough = self.tap.clock().now().saturating_sub(MERGE_WINDOW);
                    let (drained, len) = self.drain(old_enough);
                    pace.rings_read(drained, len, self.settle.is_some());
                }
                () = self.shared.taken() => self.forget_own(),
                () = self.shared.asked() => pace.read_now(),
                () = pace.over() => pace.read_now(),
                change = self.tap.changed(pace.is_idle()) => {
                    match change.map_err(CaptureError::Wait)? {
                        TapChange::Links => {
                            self.follow_links();
                            pace.read_now();
                        }
                        TapChange::Rings => pace.rings_filled(),
                    }
                }
            }
            if std::mem::take(&mut self.has_let_go) {
                // An interface may have waited for the index of one that has left.
                self.follow_links();
            }
        }
    }

    /// Does what is to be done once a second.
    fn look_after_all(&mut self) {
        self.tap.adjust_clock();
        self.tap.follow_cpus();
        self.try_again();
        self.forget_gone();
        self.count();
        self.shared.window().keep_within_bounds();
        self.statistics_due = true;
    }

    /// Does what a client asks for, and breaks where it is the last, and leaves. Whoever asked may have left meanwhile, and so
    /// leaves the feed.
    async fn obey(&mut self, command: Command, commands: &mpsc::WeakSender<Command>) -> ControlFlow<()> {
        match command {
            Command::Settle { client, .. } if self.shared.window().is_alone(client) => {
                return ControlFlow::Break(());
            }
            Command::Settle { since, .. } => {
                self.tap.recount();
                self.tell_names(|_| true);
                self.settle = self.settle.max(Some(since));
            }
            Command::Count { reply } => {
                self.tap.recount();
                drop(reply.send(self.statistics_with_rings()));
            }
            Command::Join { own, reply } => {
                self.catch_up().await;
                if let Some(subscription) = self.join(own, commands) {
                    let _ = reply.send(subscription);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// How many clients there are, and whether one waits for packets.
    fn demand(&self) -> (usize, bool) {
        let window = self.shared.window();
        (window.clients(), window.has_room())
    }

    /// Publishes all that is in the rings, which may be full where all clients are too slow: whoever joins gets nothing of before.
    async fn catch_up(&mut self) {
        let old_enough = self.tap.clock().now().saturating_sub(MERGE_WINDOW);
        while let (Drained::Full(_), _) = self.drain(old_enough) {
            consume_budget().await;
        }
    }

    /// A client that gets what is published from now on; `None` if it had to be told of too much that is gone, or what it
    /// asks for is something else by now.
    fn join(&mut self, own: OwnTraffic, commands: &mpsc::WeakSender<Command>) -> Option<Subscription> {
        // Addresses and names may have changed since the interfaces were described.
        if !self.follow_links() || !self.tap.is_as_asked() || self.gone > MAX_GONE {
            return None;
        }
        if let Err(error) = self.tap.add_own(&own) {
            tracing::debug!(error = %error::chain(&error), "a client gets a capture of its own");
            return None;
        }
        let before = self.statistics(Written::default());
        let commands = commands.upgrade()?;
        Some(Subscription::new(&self.shared, &commands, own, before))
    }

    /// What was left out for clients that have left is captured again.
    fn forget_own(&mut self) {
        for own in self.shared.left().drain(..) {
            self.tap.remove_own(&own);
        }
    }

    /// Lets interfaces that are gone leave, and new ones join; tells whether it could, be it with those that were listed
    /// alone. What fails is tried again.
    fn follow_links(&mut self) -> bool {
        let followed = self.take_changes();
        if let Err(error) = &followed
            && !self.links_due
        {
            tracing::warn!(error = %error::chain(error), "the interfaces are looked at again, since this failed");
        }
        self.links_due = followed.is_err();
        matches!(followed, Ok(()) | Err(LinksError::Changing))
    }

    fn take_changes(&mut self) -> Result<(), LinksError> {
        let LinkChanges {
            gone,
            renamed,
            new,
            are_all,
            has_passed,
        } = self.tap.link_changes();
        if has_passed {
            self.miss_interfaces();
        }
        self.tell_names(|ifindex| gone.contains(&ifindex));
        self.tap.detach(&gone);
        let now = self.tap.clock().now();
        self.leaving
            .extend(gone.into_iter().map(|ifindex| (ifindex, now)));
        for ifindex in renamed {
            self.begin_anew(ifindex);
        }
        let joined = self.tap.join(new);
        self.describe_new();
        joined?;
        if are_all? {
            Ok(())
        } else {
            Err(LinksError::Changing)
        }
    }

    /// Tries again what has failed.
    fn try_again(&mut self) {
        let was_due = self.links_due;
        if was_due || self.tap.has_untold() {
            self.follow_links();
        }
        if was_due && self.links_due {
            self.miss_interfaces();
        }
        match self.tap.retry() {
            Ok(replaced) if replaced.is_empty() => {}
            Ok(replaced) => {
                for interface in replaced {
                    self.end_of(&interface);
                }
                self.describe_new();
            }
            Err(error) => tracing::debug!(error = %error::chain(&error), "no interface could be tried again"),
        }
    }

    /// From now on the stream says that interfaces may be missing.
    fn miss_interfaces(&mut self) {
        if !self.may_miss {
            self.may_miss = true;
            self.tally.renew();
            self.statistics_due = true;
        }
    }

    /// The description of an interface that was left out is not its own any more.
    fn end_of(&mut self, left_out: &TappedInterface) {
        if let Some(written) = self.packets.of_interface(left_out.id) {
            self.tally.end_unseen(written.place, self.tap.clock().now());
            self.gone += 1;
            self.statistics_due = true;
            self.forget(left_out.id);
        }
    }

    /// Nothing more comes of an interface, and nothing of it waits to be published.
    fn forget(&mut self, id: u32) {
        self.packets.forget(id);
        self.tally.forget(id);
    }

    /// Forgets what became of interfaces that are gone, once every client knows it.
    fn forget_gone(&mut self) {
        if self.gone > MAX_GONE {
            let released = self.shared.window().release();
            self.tally.release(&released);
        }
    }

    /// An interface goes on under another name.
    fn begin_anew(&mut self, ifindex: u32) {
        let Some(id) = self.tap.interface(ifindex).map(|interface| interface.id) else {
            return;
        };
        let Some(written) = self.packets.of_interface(id) else {
            return;
        };
        self.tap.count();
        let counters = self.tap.counters(ifindex);
        let now = self.tap.clock().now();
        self.tally.rename(id, written, &counters, now);
        self.packets.describe_anew(id);
        self.tap.begin_anew(ifindex);
        self.gone += 1;
        self.statistics_due = true;
    }

    /// Tells names that were not told yet, however shortly before their interfaces had others: nothing comes later.
    fn tell_names(&mut self, is_meant: impl Fn(u32) -> bool) {
        for ifindex in self.tap.take_untold(is_meant) {
            self.begin_anew(ifindex);
        }
        self.describe_new();
    }

    /// Describes the interfaces anew that there are, and those that have joined since the last time.
    fn describe_new(&mut self) {
        let mut interfaces: Vec<&TappedInterface> = self.tap.interfaces().collect();
        interfaces.sort_by_key(|interface| interface.id);
        let mut window = self.shared.window();
        for interface in interfaces {
            let note = match self.tap.note() {
                Some(note) if interface.id == 0 => Some(note),
                _ if self.may_miss => Some(MAY_MISS_INTERFACES),
                _ => None,
            };
            let note = note.map(str::to_owned);
            let described = TapInterface::of(interface, note, self.tap.uses_tcx());
            let place = self
                .packets
                .of_interface(interface.id)
                .map(|written| written.place);
            if place.is_none() {
                let framing = Framing::of(interface.link_type, interface.link.hardware_type);
                self.packets
                    .describe_framed(interface.id, interface.link_type, framing);
            }
            window.describe(place, described);
        }
    }

    /// Publishes records that are not younger than `until`, as many as fit into a batch, and the statistics if they are
    /// due; tells how far it came, and how many bytes of packets that is.
    fn drain(&mut self, until: u64) -> (Drained, usize) {
        self.shared.set_reading(true);
        let drained = self.drain_and_publish(until);
        self.shared.set_reading(false);
        drained
    }

    fn drain_and_publish(&mut self, until: u64) -> (Drained, usize) {
        let clock = *self.tap.clock();
        let (begun, now) = (Instant::now(), clock.now());
        let Self { tap, packets, .. } = self;
        let drained = tap.drain(until, |record, is_here| packets.write(record, &clock, is_here));
        let written = Written {
            until: match drained {
                // The clock was set back: that all that is older is written does not follow.
                Drained::Full(next) if next > now => 0,
                Drained::Full(next) => next.saturating_sub(1).min(until),
                Drained::Held | Drained::Empty => until,
            },
            emptied: (drained == Drained::Empty).then_some(begun),
        };
        let left = self.let_go(written);
        if self.settle.is_some_and(|since| written.reaches(since)) {
            self.settle = None;
            self.tally.renew();
            self.statistics_due = true;
        }
        let statistics = self.due_statistics(written);
        let (oldest, room) = (self.packets.oldest(), self.packets.room());
        let (packets, counts) = self.packets.take();
        for id in left {
            self.forget(id);
        }
        let len = packets.len();
        self.metrics.captured(packets_in(&counts), len);
        let complete_until = clock.realtime(written.until.min(now));
        if packets.is_empty() && statistics.is_none() {
            self.shared.window().complete(complete_until);
            return (drained, len);
        }
        let batch = Batch {
            packets,
            room,
            counts,
            oldest,
            interfaces: self.packets.described(),
            statistics,
        };
        self.shared.publish(|window| {
            window.publish(batch);
            window.complete(complete_until);
        });
        (drained, len)
    }

    /// Takes the final counts of interfaces that left before all that is written; gives their numbers in the tap.
    fn let_go(&mut self, written: Written) -> Vec<u32> {
        let left = self.leaving.extract_if(.., |(_, since)| written.reaches(*since));
        let left: BTreeMap<u32, u64> = left.collect();
        let interfaces: Vec<u32> = left.keys().copied().collect();
        let removed = self.tap.remove(&interfaces);
        let last = removed.into_iter().filter_map(|(ifindex, interface, counters)| {
            self.take_last_of(&interface, counters, *left.get(&ifindex)?)
        });
        last.collect()
    }

    /// Takes the final counts of an interface that left at the time `since`; gives its number in the tap if it is described.
    fn take_last_of(
        &mut self,
        interface: &TappedInterface,
        counters: InterfaceCounters,
        since: u64,
    ) -> Option<u32> {
        self.gone += 1;
        self.has_let_go = true;
        self.statistics_due = true;
        let written = self.packets.of_interface(interface.id)?;
        let (delivered, dropped) = self.tally.end(interface.id, written, counters, since);
        let is_as_counted = delivered == counters.delivered && dropped == counters.dropped();
        // What was captured elsewhere was counted, too.
        if !is_as_counted && !interface.has_moved {
            tracing::error!(
                interface = interface.link.name,
                ?counters,
                delivered,
                "the stream and the kernel count differently"
            );
        }
        Some(interface.id)
    }

    /// Statistics, if it is time for them and they say something new.
    fn due_statistics(&mut self, written: Written) -> Option<Arc<Statistics>> {
        if !std::mem::take(&mut self.statistics_due) {
            return None;
        }
        let statistics = self.statistics(written);
        self.tally.is_new().then(|| Arc::new(statistics))
    }

    /// Tells the metrics what the kernel has counted since the last time, and how full the rings are.
    fn count(&mut self) {
        self.tap.count();
        for interface in self.tap.interfaces() {
            if self.packets.of_interface(interface.id).is_some() {
                let counters = self.tap.counters(interface.link.ifindex);
                self.tally.tell(interface.id, counters);
            }
        }
        self.tally.tell_of_programs(self.tap.program_use());
        self.metrics.ring_filled(self.tap.ring_fill());
    }

    /// What has become of all packets until now, of which these are written.
    fn statistics(&mut self, written: Written) -> Statistics {
        self.tap.count();
        for interface in self.tap.interfaces() {
            if let Some(written) = self.packets.of_interface(interface.id) {
                let counters = self.tap.counters(interface.link.ifindex);
                self.tally.update(interface.id, written, &counters);
            }
        }
        Statistics {
            clock: *self.tap.clock(),
            taken: self.tap.clock().now(),
            written,
            may_miss: self.may_miss,
            interfaces: self.tally.counts().clone(),
        }
    }

    /// What has become of all packets until now, those in the rings among them.
    fn statistics_with_rings(&mut self) -> Statistics {
        let mut statistics = self.statistics(Written::default());
        for interface in self.tap.interfaces() {
            if let Some(written) = self.packets.of_interface(interface.id)
                && let Some(counts) = statistics.interfaces.get_mut(&written.place)
            {
                let counters = self.tap.counters(interface.link.ifindex);
                counts.in_rings = self.tally.in_rings(interface.id, written, &counters);
            }
        }
        statistics
    }

    /// Tells what is counted to whoever asks for that at the end; nobody can join any more.
    fn obey_at_end(&mut self, command: Command) {
        if let Command::Count { reply } = command {
            drop(reply.send(self.statistics_with_rings()));
        }
    }

    /// Detaches, and publishes all that was captured until then, with the final statistics, as long as there is
    /// someone to take it.
    async fn finish(&mut self) {
        self.tell_names(|_| true);
        self.tap.detach_all();
        let now = self.tap.clock().now();
        let interfaces = self.tap.interfaces();
        self.leaving = interfaces
            .map(|interface| (interface.link.ifindex, now))
            .collect();
        loop {
            while let Ok(command) = self.commands.try_recv() {
                self.obey_at_end(command);
            }
            let (clients, has_room) = self.demand();
            if clients == 0 || (has_room && self.drain(u64::MAX).0 == Drained::Empty) {
                return;
            }
            tokio::select! {
                () = consume_budget(), if has_room => {}
                () = self.shared.taken(), if !has_room => {}
                Some(command) = self.commands.recv() => self.obey_at_end(command),
            }
        }
    }
}

/// The next whole interval since the first reader began: all readers look at their statistics at the same moments, so
/// that a hundred idle ones wake the process once.
fn next_turn() -> Instant {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let turns = FIRST.elapsed().as_millis() / STATISTICS_INTERVAL.as_millis();
    *FIRST + STATISTICS_INTERVAL * (turns as u32 + 1)
}

/// Tells that a tap has ended, however that comes.
struct End {
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

impl Drop for End {
    fn drop(&mut self) {
        let cut_off = Ended::Failed("the capture was cut off".to_owned());
        self.shared.publish(|window| window.end(cut_off));
        self.metrics.tap_ended();
    }
}

/// Why capturing cannot go on.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error("the rings cannot be waited for")]
    Wait(#[source] io::Error),
}

/// Why it is not known what interfaces there are, or what is new could not join.
#[derive(Debug, thiserror::Error)]
enum LinksError {
    #[error("the network interfaces of the namespace could not be listed")]
    List(#[from] io::Error),
    #[error("the network interfaces of the namespace change faster than they can be listed")]
    Changing,
    #[error(transparent)]
    Tap(#[from] TapError),
}
