//! A session is one client's stream of a capture. Clients that ask for the same share one tap: its reader
//! (`reader.rs`) encodes each packet once and publishes it in a queue (`window.rs`), from which each session takes it
//! between blocks of its own (`stream.rs`).

mod backlog;
mod feed;
mod feeds;
mod framing;
mod info;
mod limits;
mod names;
mod offloads;
pub(crate) mod packets;
mod reader;
mod statistics;
mod stream;
pub(crate) mod window;

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::unix::AsyncFd,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::packets::fuzzing;
use self::{
    feed::Subscription,
    limits::{Timer, beginning},
    names::Names,
    packets::MAX_BATCH_LEN,
    statistics::Statistics,
    stream::{Stream, Which},
    window::{Batch, Next, PacketCount},
};
pub(crate) use self::{
    feeds::{CaptureKey, Feeds, Joined},
    info::SessionInfo,
    limits::{Limit, Limits, StatisticsPace, TooFewBytes},
    stream::SEVERAL_LINK_TYPES,
};
use crate::{
    access::{Occupants, Rights},
    captures::Capture,
    discovery::AddressBook,
    pcapng::{DROPCOUNT_LEN, EncodedPacket, MIN_PACKET_LEN},
};

/// How long the end of a capture may take: what is still in the rings is sent as far as the client takes it.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// So many bytes of packets are kept back while the first names are looked for, and no more.
const MAX_KEPT_BACK: usize = 64 * 1024;

/// Losses are told in statistics so long after they were noticed: what is lost meanwhile is told with them, and a stream
/// that ends before has the final ones alone, as Wireshark wants it.
const LOSS_PATIENCE: Duration = Duration::from_secs(5);

/// The reader's statistics come a little sooner or later than each second.
const STATISTICS_JITTER: Duration = Duration::from_millis(200);

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped,
    /// An operator asked it to.
    ByOperator,
    /// Its client may capture no more.
    Revoked(String),
    /// The stream is as long as it may be.
    Limit(Limit),
    /// Nobody but us holds the namespace any more.
    NamespaceGone(u64),
    /// What was meant has ended, whoever else is in its namespace.
    TargetGone(String),
    /// It could not go on.
    Failed(String),
}

/// What a whole session amounted to, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
}

/// What a client meant by a name or a process: its stream ends with that.
#[derive(Debug)]
pub(crate) struct MeantTarget {
    pub(crate) name: String,
    /// Readable once it has ended.
    pub(crate) process: AsyncFd<OwnedFd>,
}

/// The names of addresses that a client is told.
#[derive(Debug)]
pub(crate) struct KnownNames {
    /// As they are known, and then as they change.
    pub(crate) names: watch::Receiver<Arc<AddressBook>>,
    /// What the client may do by now, and so which of them it may be told.
    pub(crate) rights: watch::Receiver<Arc<Rights>>,
}

/// One client's stream.
#[derive(Debug)]
pub(crate) struct Session {
    netns: u64,
    subscription: Subscription,
    stream: Stream,
    /// What was last known of all packets.
    known: Statistics,
    /// How many interfaces are described.
    described: usize,
    /// Packets lost by the client, by their interface, of which its next packet has to tell.
    untold: BTreeMap<u32, u64>,
    pace: StatisticsPace,
    /// When statistics were last told, and when they are to be told next.
    told: Instant,
    due: Option<Instant>,
    names: Names,
    known_names: Option<KnownNames>,
    /// What was meant by a name or a process, until it has ended.
    meant: Option<MeantTarget>,
    /// What was meant, once it has ended.
    gone: Option<String>,
    /// While it is there, packets are kept back.
    first_names: Option<AbortOnDropHandle<()>>,
    /// What is sent next.
    blocks: VecDeque<Bytes>,
    /// What is sent after that, unless it is kept back.
    packets: VecDeque<Piece>,
    /// What is to be counted once it is sent of what `next` gave last.
    in_hand: Piece,
    capture: Arc<Capture>,
    limits: Limits,
    /// Packets and bytes that may still be put into the stream.
    left: Left,
    /// Stops the session when its time is over, from the first byte of the stream on.
    timer: Option<Timer>,
    /// The limit beyond which nothing is put into the stream any more.
    reached: Option<Limit>,
    stop: CancellationToken,
    /// Since when all is to come to an end, on the records' clock and on ours.
    stopping: Option<(u64, Instant)>,
    ended: Option<Ended>,
}

/// A piece of a stream.
#[derive(Clone, Debug, Default)]
struct Piece {
    /// Whole blocks.
    blocks: Bytes,
    /// How many packets are among them.
    packets: u64,
    /// When the first of them was captured, on the records' clock.
    oldest: u64,
}

/// How much may still be put into a stream.
#[derive(Clone, Copy, Debug)]
struct Left {
    packets: u64,
    bytes: u64,
}

impl Session {
    /// Begins a stream with its section header and the descriptions of all interfaces.
    fn new(
        mut subscription: Subscription,
        info: SessionInfo<'_>,
        stop: CancellationToken,
        capture: Arc<Capture>,
    ) -> Result<Self, TooFewBytes> {
        let before = &subscription.before;
        let mut stream = Stream::begin(&info.stream(), &before.interfaces, before.taken);
        stream.describe(0, &subscription.interfaces);
        let beginning = stream.take();
        let beginning_len = beginning.as_ref().map_or(0, Bytes::len) as u64;
        let bytes = info.limits.bytes.unwrap_or(u64::MAX);
        info.check_room(beginning_len + stream.end_len())?;
        let described = mem::take(&mut subscription.interfaces).len();
        let mut session = Self {
            netns: info.netns,
            described: 0,
            untold: BTreeMap::new(),
            pace: info.statistics,
            told: Instant::now(),
            due: None,
            known: subscription.before.clone(),
            subscription,
            blocks: beginning.into_iter().collect(),
            stream,
            names: Names::default(),
            known_names: None,
            meant: None,
            gone: None,
            first_names: None,
            packets: VecDeque::new(),
            in_hand: Piece::default(),
            capture,
            left: Left {
                packets: info.limits.packets.unwrap_or(u64::MAX),
                bytes: bytes - beginning_len,
            },
            limits: info.limits,
            timer: None,
            reached: None,
            stop,
            stopping: None,
            ended: None,
        };
        session.know_described(described);
        Ok(session)
    }

    /// Tells the names of addresses: those that are known soon before the first packet, and from then on each that is
    /// new before the packets that follow. `first` ends when the first are known, or when they are not worth waiting for any
    /// longer.
    pub(crate) fn tell_names(&mut self, names: KnownNames, first: AbortOnDropHandle<()>) {
        self.known_names = Some(names);
        self.first_names = Some(first);
    }

    /// Ends with this target, which may be before its namespace does.
    pub(crate) fn end_with(&mut self, target: MeantTarget) {
        self.meant = Some(target);
    }

    /// What is sent next: whole blocks; `None` at the end. May be dropped while it waits.
    ///
    /// When `stop` is cancelled, all that was captured until then is still to come, with the final statistics. When
    /// the stream reaches a limit, these follow at once.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        if self.timer.is_none() {
            self.timer = Timer::start(&self.limits, self.stop.clone());
        }
        loop {
            if let Some(why) = self.capture.revocation() {
                // What was captured already may be others'. Nothing follows, not even how much that was.
                self.ended = Some(Ended::Revoked(why.to_owned()));
                return None;
            }
            let next = match self.blocks.pop_front() {
                Some(blocks) => Some(Piece::from(blocks)),
                None if self.is_kept_back() => None,
                None => self.packets.pop_front(),
            };
            if let Some(piece) = next {
                let blocks = piece.blocks.clone();
                self.in_hand = piece;
                return Some(blocks);
            }
            if self.ended.is_some() {
                return None;
            }
            if let Some(limit) = self.reached
                && !self.waits_for_names()
            {
                self.end_at(limit).await;
                continue;
            }
            let deadline = self.stopping.map(|(_, since)| since + FINISH_TIMEOUT);
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if self.stopping.is_none() => self.begin_to_stop().await,
                // Without its end the stream still holds the statistics of a moment ago.
                () = until(deadline) => self.ended = Some(self.stopped()),
                () = first(&mut self.first_names) => {
                    self.first_names = None;
                    self.take_names();
                }
                () = ended(&self.meant), if self.stopping.is_none() => {
                    self.gone = self.meant.take().map(|meant| meant.name);
                    self.begin_to_stop().await;
                }
                () = until(self.due), if self.reached.is_none() => self.tell_statistics(),
                () = changed(&mut self.known_names), if self.first_names.is_none() => self.take_names(),
                next = self.subscription.next(), if self.reached.is_none() => self.accept(next),
            }
        }
    }

    /// What `next` gave last was handed to the client's socket.
    pub(crate) fn sent(&mut self) {
        let Piece {
            blocks,
            packets,
            oldest,
        } = mem::take(&mut self.in_hand);
        let delay = self.known.clock.now().saturating_sub(oldest);
        let delay = (packets > 0).then(|| Duration::from_nanos(delay));
        self.capture.delivered(packets, blocks.len(), delay);
    }

    /// Takes account of what was lost up to now, which the stream has no place for any more: its client has left.
    pub(crate) async fn settle_account(&mut self) {
        let count = timeout(FINISH_TIMEOUT, self.subscription.count());
        if let Ok(Some(now)) = count.await {
            self.known = now;
            self.stream.account(&self.known);
            self.capture.lost_in_kernel(self.stream.lost_in_kernel());
        }
    }

    /// Inode number of the namespace.
    pub(crate) fn netns(&self) -> u64 {
        self.netns
    }

    /// Why it ended, and what it amounted to.
    pub(crate) fn end(self) -> (Ended, Totals) {
        let totals = self.stream.totals();
        if let Some(why) = self.capture.revocation() {
            return (Ended::Revoked(why.to_owned()), totals);
        }
        let ended = match self.ended {
            Some(Ended::Stopped) | None if self.capture.is_ended_by_operator() => Ended::ByOperator,
            ended => ended.unwrap_or(Ended::Stopped),
        };
        (ended, totals)
    }

    /// Whether packets wait for the names of their addresses.
    fn is_kept_back(&self) -> bool {
        let len: usize = self.packets.iter().map(|piece| piece.blocks.len()).sum();
        self.waits_for_names() && len < MAX_KEPT_BACK
    }

    fn waits_for_names(&self) -> bool {
        self.first_names.is_some() && self.stopping.is_none() && self.ended.is_none()
    }

    /// Why it ended, if that is because it was stopped.
    fn stopped(&self) -> Ended {
        let since = self.stopping.map_or_else(Instant::now, |(_, since)| since);
        let over = self.timer.as_ref().and_then(|timer| timer.over(since));
        match (over, &self.gone) {
            (Some(limit), _) => Ended::Limit(limit),
            (None, Some(name)) => Ended::TargetGone(name.clone()),
            (None, None) => Ended::Stopped,
        }
    }

    /// Writes the final statistics where the stream has reached a limit. May be dropped while it waits.
    ///
    /// They tell what was delivered and lost up to this place: what is captured later is not this client's. How many
    /// packets the filter rejected before it nobody knows, but how many it has rejected by now.
    async fn end_at(&mut self, limit: Limit) {
        let count = timeout(FINISH_TIMEOUT, self.subscription.count());
        let now = count.await.ok().flatten();
        self.known.taken = now
            .as_ref()
            .map_or_else(|| self.known.clock.now(), |now| now.taken);
        for (place, now) in now.iter().flat_map(|now| &now.interfaces) {
            if let Some(known) = self.known.interfaces.get_mut(place) {
                known.rejected = now.rejected;
                known.end = now.end;
            }
        }
        self.stream.write_statistics(&self.known, Which::All, 0);
        self.put_blocks();
        self.ended = Some(Ended::Limit(limit));
    }

    async fn begin_to_stop(&mut self) {
        let since = self.known.clock.now();
        self.stopping = Some((since, Instant::now()));
        self.subscription.settle(since).await;
    }

    fn take_names(&mut self) {
        if let Some(KnownNames { names, rights }) = &mut self.known_names {
            let names = Arc::clone(&names.borrow_and_update());
            let rights = Arc::clone(&rights.borrow_and_update());
            let may_see = |occupants: &Occupants| rights.may_list(occupants);
            self.names.set(names.seen_from(self.netns, may_see));
        }
        let mut is_done = false;
        while !is_done {
            is_done = self.names.write(MAX_BATCH_LEN, self.stream.blocks());
            let Some(blocks) = self.stream.take() else {
                continue;
            };
            if blocks.len() as u64 > self.room() {
                // Packets are what the client wants.
                self.known_names = None;
                return;
            }
            self.left.bytes -= blocks.len() as u64;
            self.blocks.push_back(blocks);
        }
    }

    fn accept(&mut self, next: Next) {
        match next {
            Next::Batch { batch, lost, .. } => self.pass_on(&batch, &lost),
            Next::End(Ended::Stopped) => self.ended = Some(self.stopped()),
            Next::End(ended) => self.ended = Some(ended),
            Next::CutOff => self.reached = Some(Limit::Untold),
            Next::Nothing => {}
        }
    }

    /// Puts a batch into the stream, or as much of it as the limits allow.
    fn pass_on(&mut self, batch: &Batch, lost: &[PacketCount]) {
        if self.described < batch.interfaces {
            let new = self.described..batch.interfaces;
            let Some(interfaces) = self.subscription.interfaces(new) else {
                self.reached = Some(Limit::Untold);
                return;
            };
            self.stream.describe(self.described, &interfaces);
            if self.stream.blocks().len() as u64 > self.room() {
                self.stream.forget(self.described);
                self.reached = self.limits.bytes.map(Limit::Bytes);
                return;
            }
            self.know_described(batch.interfaces);
            self.put_blocks();
        }
        if !lost.is_empty() {
            self.lose(lost);
        }
        if !self.put_packets(batch) {
            return;
        }
        if let Some(statistics) = &batch.statistics {
            let is_end = self
                .stopping
                .is_some_and(|(since, _)| statistics.written.reaches(since));
            self.known = Statistics::clone(statistics);
            let which = if is_end { Which::All } else { Which::Ended };
            self.stream.write_statistics(&self.known, which, 0);
            self.put_blocks();
            let stream = &self.stream;
            self.untold.retain(|place, _| stream.is_open(*place as usize));
            self.capture.lost_in_kernel(self.stream.lost_in_kernel());
            if is_end {
                self.ended = Some(self.stopped());
            }
            self.plan_statistics();
        }
    }

    /// Takes account of packets that the client took too late. The next one of their interface tells of them.
    fn lose(&mut self, lost: &[PacketCount]) {
        self.stream.lose(lost);
        self.stream.account(&self.known);
        self.capture.lost_by_client(packets_in(lost));
        for count in lost {
            *self.untold.entry(count.interface as u32).or_default() += count.packets + count.told_lost;
        }
        self.plan_statistics();
    }

    /// Settles when statistics are told next, if there is something to tell.
    fn plan_statistics(&mut self) {
        let at = match self.pace {
            StatisticsPace::AtEnd => None,
            StatisticsPace::OnLoss => {
                let is_lossy = self.stream.has_untold_losses();
                is_lossy.then(|| Instant::now() + LOSS_PATIENCE)
            }
            StatisticsPace::Every(time) => Some(self.told + time.saturating_sub(STATISTICS_JITTER)),
        };
        self.due = self.due.or(at);
    }

    /// Writes the statistics that are due.
    fn tell_statistics(&mut self) {
        let which = match self.pace {
            StatisticsPace::Every(_) => Which::Changed,
            StatisticsPace::OnLoss | StatisticsPace::AtEnd => Which::Lossy,
        };
        let room = self.room();
        self.stream.write_statistics(&self.known, which, room);
        self.put_blocks();
        self.told = Instant::now();
        self.due = None;
    }

    /// So many interfaces are described; of those that no statistics have told of, nothing has become of any packet yet.
    fn know_described(&mut self, described: usize) {
        for place in self.described..described {
            let counts = self.known.interfaces.entry(place);
            counts.or_default();
        }
        self.described = described;
    }

    /// Puts the packets of a batch into the stream; tells whether that is all of them.
    fn put_packets(&mut self, batch: &Batch) -> bool {
        let untold_len = (self.untold.len() * DROPCOUNT_LEN) as u64;
        let (room, packets) = (self.room().saturating_sub(untold_len), self.left.packets);
        let total = packets_in(&batch.counts);
        let is_whole = total <= packets && batch.packets.len() as u64 <= room;
        let mut piece = Piece {
            blocks: batch.packets.clone(),
            packets: total,
            oldest: batch.oldest,
        };
        if is_whole {
            self.stream.deliver(&batch.counts);
        } else {
            let beginning = beginning(&batch.packets, packets, room);
            self.stream.deliver(&beginning.counts);
            (piece.blocks, piece.packets) = (beginning.packets, beginning.total);
        }
        self.left.packets -= piece.packets;
        let rest = self.tell_losses(piece);
        self.put(rest);
        self.reached = match (self.limits.packets, self.limits.bytes) {
            (Some(limit), _) if self.left.packets == 0 => Some(Limit::Packets(limit)),
            (_, Some(limit)) if !is_whole || self.room() < MIN_PACKET_LEN as u64 => Some(Limit::Bytes(limit)),
            _ => None,
        };
        is_whole
    }

    /// Has the first packet of each interface of which the client has lost some tell so; gives what follows the last
    /// of those. Others share the packets, so that each that tells is a copy.
    fn tell_losses(&mut self, mut rest: Piece) -> Piece {
        let mut at = 0;
        let mut passed = 0;
        while !self.untold.is_empty()
            && let Some(packet) = EncodedPacket::first(&rest.blocks[at..])
        {
            let block = at..at + packet.len;
            at = block.end;
            passed += 1;
            let Some(lost) = self.untold.remove(&packet.interface_id) else {
                continue;
            };
            self.put(Piece {
                blocks: rest.blocks.slice(..block.start),
                packets: passed - 1,
                ..rest
            });
            self.put(Piece {
                blocks: packet.with_more_dropped(&rest.blocks[block], lost),
                packets: 1,
                ..rest
            });
            rest = Piece {
                blocks: rest.blocks.slice(at..),
                packets: rest.packets - passed,
                ..rest
            };
            (at, passed) = (0, 0);
        }
        rest
    }

    /// Bytes that may be put into the stream before its final statistics.
    fn room(&self) -> u64 {
        self.left.bytes.saturating_sub(self.stream.end_len())
    }

    /// Puts what the stream has written itself between the packets.
    fn put_blocks(&mut self) {
        if let Some(blocks) = self.stream.take() {
            self.put(blocks.into());
        }
    }

    fn put(&mut self, piece: Piece) {
        self.left.bytes = self.left.bytes.saturating_sub(piece.blocks.len() as u64);
        if !piece.blocks.is_empty() {
            self.packets.push_back(piece);
        }
    }
}

impl From<Bytes> for Piece {
    fn from(blocks: Bytes) -> Self {
        Self {
            blocks,
            ..Self::default()
        }
    }
}

/// How many packets that is in all.
fn packets_in(counts: &[PacketCount]) -> u64 {
    counts.iter().map(|count| count.packets).sum()
}

/// Waits until a time; for ever without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Waits until the target has ended; for ever where none is known.
async fn ended(target: &Option<MeantTarget>) {
    match target {
        Some(target) if target.process.readable().await.is_ok() => {}
        // Without a runtime there is nobody to wait.
        _ => std::future::pending().await,
    }
}

/// Waits until the first names are known; for ever where none are waited for.
async fn first(names: &mut Option<AbortOnDropHandle<()>>) {
    match names {
        // One that failed has nothing to tell.
        Some(names) => drop(names.await),
        None => std::future::pending().await,
    }
}

/// Waits until there are other names, or other rights to know them; for ever where none are told.
async fn changed(known: &mut Option<KnownNames>) {
    let Some(KnownNames { names, rights }) = known else {
        return std::future::pending().await;
    };
    tokio::select! {
        Ok(()) = names.changed() => {}
        Ok(()) = rights.changed() => {}
        else => std::future::pending().await,
    }
}
