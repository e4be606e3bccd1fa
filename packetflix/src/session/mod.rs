//! A session is one client's stream of a capture. Clients that ask for the same share one tap: its reader
//! (`reader.rs`) encodes each packet once and publishes it in a queue (`window.rs`), from which each session takes it
//! between blocks of its own (`stream.rs`), as far as its limits allow (`outgoing.rs`).

mod backlog;
mod feed;
mod feeds;
mod framing;
mod info;
mod limits;
mod names;
mod offloads;
mod outgoing;
pub(crate) mod packets;
mod reader;
mod schedule;
mod statistics;
mod stream;
pub(crate) mod window;

use std::{mem, os::fd::OwnedFd, sync::Arc, time::Duration};

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
    limits::Timer,
    names::Names,
    outgoing::Outgoing,
    schedule::Schedule,
    statistics::Statistics,
    stream::Which,
    window::{Batch, Next, PacketCount},
};
pub(crate) use self::{
    feeds::{CaptureKey, Feeds, Joined},
    info::SessionInfo,
    limits::{Limit, Limits, TooFewBytes},
    outgoing::Message,
    schedule::StatisticsPace,
    stream::SEVERAL_LINK_TYPES,
};
use crate::{
    access::{Occupants, Rights},
    captures::Capture,
    discovery::AddressBook,
};

/// How long the end of a capture may take: what is still in the rings is sent as far as the client takes it.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

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
    outgoing: Outgoing,
    schedule: Schedule,
    names: Names,
    known_names: Option<KnownNames>,
    /// What was meant by a name or a process, until it has ended.
    meant: Option<MeantTarget>,
    /// What was meant, once it has ended.
    gone: Option<String>,
    /// While it is there, packets are kept back.
    first_names: Option<AbortOnDropHandle<()>>,
    capture: Arc<Capture>,
    limits: Limits,
    /// Stops the session when its time is over, from the first byte of the stream on.
    timer: Option<Timer>,
    /// The limit beyond which nothing is put into the stream any more.
    reached: Option<Limit>,
    stop: CancellationToken,
    /// Since when all is to come to an end, on the records' clock and on ours.
    stopping: Option<(u64, Instant)>,
    ended: Option<Ended>,
}

impl Session {
    /// Begins a stream with its section header and the descriptions of all interfaces.
    fn new(
        mut subscription: Subscription,
        info: &SessionInfo<'_>,
        stop: CancellationToken,
        capture: Arc<Capture>,
    ) -> Result<Self, TooFewBytes> {
        let interfaces = mem::take(&mut subscription.interfaces);
        Ok(Self {
            netns: info.netns,
            outgoing: Outgoing::begin(info, subscription.before.clone(), &interfaces)?,
            subscription,
            schedule: Schedule::new(info.statistics),
            names: Names::default(),
            known_names: None,
            meant: None,
            gone: None,
            first_names: None,
            capture,
            limits: info.limits.clone(),
            timer: None,
            reached: None,
            stop,
            stopping: None,
            ended: None,
        })
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

    /// What is sent next, to be given back when it is [sent](Self::sent); `None` at the end. May be dropped while it waits.
    ///
    /// When `stop` is cancelled, all that was captured until then is still to come, with the final statistics. When
    /// the stream reaches a limit, these follow at once.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        if self.timer.is_none() {
            self.timer = Timer::start(&self.limits, self.stop.clone());
        }
        loop {
            if let Some(why) = self.capture.revocation() {
                // What was captured already may be others'. Nothing follows, not even how much that was.
                self.ended = Some(Ended::Revoked(why.to_owned()));
                return None;
            }
            if let Some(message) = self.outgoing.next(self.waits_for_names()) {
                return Some(message);
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
                () = until(self.schedule.due()), if self.reached.is_none() => self.tell_statistics(),
                () = changed(&mut self.known_names), if self.first_names.is_none() => self.take_names(),
                next = self.subscription.next(), if self.reached.is_none() => self.accept(next),
            }
        }
    }

    /// Takes a message back that was handed to the client's socket.
    pub(crate) fn sent(&self, message: Message) {
        let Message {
            blocks,
            packets,
            oldest,
        } = message;
        let age = self.outgoing.now().saturating_sub(oldest);
        let age = (packets > 0).then(|| Duration::from_nanos(age));
        self.capture.delivered(packets, blocks.len(), age);
    }

    /// Takes account of what was lost up to now, which the stream has no place for any more: its client has left.
    pub(crate) async fn settle_account(&mut self) {
        let count = timeout(FINISH_TIMEOUT, self.subscription.count());
        if let Ok(Some(now)) = count.await {
            self.outgoing.settle_account(now);
            self.capture.lost_in_kernel(self.outgoing.lost_in_kernel());
        }
    }

    /// Inode number of the namespace.
    pub(crate) fn netns(&self) -> u64 {
        self.netns
    }

    /// Why it ended, and what it amounted to.
    pub(crate) fn end(self) -> (Ended, Totals) {
        let totals = self.outgoing.totals();
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

    /// Ends where the stream has reached a limit. May be dropped while it waits.
    async fn end_at(&mut self, limit: Limit) {
        let count = timeout(FINISH_TIMEOUT, self.subscription.count());
        let now = count.await.ok().flatten();
        self.outgoing.end_here(now.as_ref());
        self.ended = Some(Ended::Limit(limit));
    }

    async fn begin_to_stop(&mut self) {
        let since = self.outgoing.now();
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
        if !self.outgoing.write_names(&mut self.names) {
            // Packets are what the client wants.
            self.known_names = None;
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
        if let Err(limit) = self.describe_up_to(batch.interfaces) {
            self.reached = Some(limit);
            return;
        }
        if !lost.is_empty() {
            self.outgoing.lose(lost);
            self.capture.lost_by_client(packets_in(lost));
            self.schedule.plan(self.outgoing.has_untold_losses());
        }
        let (is_whole, reached) = self.outgoing.put_packets(batch);
        self.reached = reached;
        if is_whole && let Some(statistics) = &batch.statistics {
            self.take_statistics(statistics);
        }
    }

    /// Describes the interfaces before the place `end` that are not described yet.
    ///
    /// # Errors
    /// The limit that stands against that.
    fn describe_up_to(&mut self, end: usize) -> Result<(), Limit> {
        let new = self.outgoing.described()..end;
        if new.is_empty() {
            return Ok(());
        }
        let interfaces = self.subscription.interfaces(new).ok_or(Limit::Untold)?;
        self.outgoing.describe(&interfaces)
    }

    fn take_statistics(&mut self, statistics: &Statistics) {
        let is_end = self
            .stopping
            .is_some_and(|(since, _)| statistics.written.reaches(since));
        let which = if is_end { Which::All } else { Which::Ended };
        self.outgoing.take_statistics(statistics, which);
        self.capture.lost_in_kernel(self.outgoing.lost_in_kernel());
        if is_end {
            self.ended = Some(self.stopped());
        }
        self.schedule.plan(self.outgoing.has_untold_losses());
    }

    fn tell_statistics(&mut self) {
        let which = self.schedule.tell();
        self.outgoing.tell_statistics(which);
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
