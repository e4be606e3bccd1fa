//! A session is one client's stream of a capture. Clients that ask for the same share one tap: its reader
//! (`reader.rs`) encodes each packet once and publishes it in a queue (`window.rs`), from which each session takes it
//! between blocks of its own (`stream.rs`), as far as its limits allow (`outgoing.rs`).

mod backlog;
mod client_stream;
mod feed;
mod feeds;
mod framing;
mod held;
mod info;
mod limits;
mod merged;
mod names;
mod offloads;
mod outgoing;
mod pace;
pub(crate) mod packets;
mod phase;
mod reader;
mod schedule;
mod statistics;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
mod watermark;
pub(crate) mod window;

use std::{mem, os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    io::unix::AsyncFd,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::packets::fuzzing;
pub(crate) use self::{
    client_stream::{ClientStream, SingleStream},
    feed::Progress,
    feeds::{CaptureKey, Feeds, Joined},
    info::SessionInfo,
    limits::{Limit, Limits, Timer, TooFewBytes},
    merged::{
        Arrival, Arrivals, Member, MergedInfo, MergedMessage, MergedSession, NamespacePlace, Namespaces,
    },
    names::KnownNames,
    outgoing::Message,
    schedule::StatisticsPace,
    stream::encode_section_header,
};
use self::{
    feed::Subscription,
    names::ToldNames,
    outgoing::Outgoing,
    phase::{Phase, Stopping},
    schedule::Schedule,
    statistics::Statistics,
    stream::Which,
    window::{Batch, Next, PacketCount},
};
use crate::{capture_end::CaptureEnd, captures::Capture};

/// How long the end of a capture may take: what is still in the rings is sent as far as the client takes it.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// How long one that was stopped and is late waits for the last counts.
const LATE_COUNT_TIMEOUT: Duration = Duration::from_secs(3);

/// The reason of a capture's end that an operator asked for.
pub(crate) const BY_OPERATOR: &str = "ended by the operator";

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped,
    /// Whoever has the service's rights does not answer, and the service ends.
    RightsLost,
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
    /// All of several targets have.
    TargetsGone(usize),
    /// The node that captures has ended it, for this reason.
    OfNode(CaptureEnd, String),
    /// It could not go on.
    Failed(String),
}

impl Ended {
    /// As the account and the log have it, where the client had no part in it.
    pub(crate) fn told(&self) -> (CaptureEnd, String) {
        match self {
            Self::Stopped => (CaptureEnd::Shutdown, "the service is shutting down".to_owned()),
            Self::RightsLost => (
                CaptureEnd::Shutdown,
                "the service ends: the process that has its rights does not answer".to_owned(),
            ),
            Self::Revoked(why) => (CaptureEnd::Revoked, why.clone()),
            Self::ByOperator => (CaptureEnd::Operator, BY_OPERATOR.to_owned()),
            Self::Limit(limit) => (CaptureEnd::Limit, limit.to_string()),
            Self::NamespaceGone(inode) => (
                CaptureEnd::NamespaceGone,
                format!("the network namespace {inode} has ended"),
            ),
            Self::TargetGone(name) => (CaptureEnd::TargetGone, format!("the target {name} has ended")),
            Self::TargetsGone(count) => (
                CaptureEnd::TargetGone,
                format!("all targets have ended, of which there were {count}"),
            ),
            Self::OfNode(end, why) => (*end, why.clone()),
            Self::Failed(why) => (CaptureEnd::Failed, why.clone()),
        }
    }
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

/// One client's stream.
#[derive(Debug)]
pub(crate) struct Session {
    netns: u64,
    subscription: Subscription,
    phase: Phase,
    outgoing: Outgoing,
    schedule: Schedule,
    /// The names that are told, if any are.
    names: Option<ToldNames>,
    /// What was meant by a name or a process.
    meant: Option<MeantTarget>,
    capture: Arc<Capture>,
    limits: Limits,
    /// Stops the session when its time is over, from the first byte of the stream on.
    timer: Option<Timer>,
    stop: CancellationToken,
}

/// What a session waits for.
#[derive(Debug)]
enum Event {
    /// It is asked to stop.
    Stop,
    /// It has stopped for too long.
    Late,
    /// Packets need not wait for names any longer.
    Named,
    /// There are other names.
    NamesChanged,
    /// What was meant has ended.
    TargetGone(String),
    /// Statistics are due.
    Statistics,
    /// The reader of the tap has published something.
    Published(Next),
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
            phase: Phase::Passing,
            schedule: Schedule::new(info.statistics),
            names: None,
            meant: None,
            capture,
            limits: info.limits.clone(),
            timer: None,
            stop,
        })
    }

    /// Tells the names of addresses: those that are known soon before the first packet, and from then on each that is
    /// new before the packets that follow. `first` ends when the first are known, or when they are not worth waiting for any
    /// longer. To be called before the first [`next`](Self::next).
    pub(crate) fn tell_names(&mut self, names: KnownNames, first: AbortOnDropHandle<()>) {
        let mut told = ToldNames::new(names);
        told.see_from(self.netns);
        self.names = Some(told);
        self.phase = Phase::Naming { first, full: None };
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
            if self.capture.revocation().is_some() {
                // What was captured already may be others'. Nothing follows, not even how much that was.
                return None;
            }
            if let Some(message) = self.outgoing.next(self.phase.is_naming()) {
                return Some(message);
            }
            match self.phase {
                Phase::Naming { .. } | Phase::Passing | Phase::Stopping(_) => {
                    let event = self.event().await;
                    self.take(event).await;
                }
                Phase::Full(limit) => self.end_here(Ended::Limit(limit)).await,
                Phase::Ended(_) => return None,
            }
        }
    }

    /// Waits for what happens next. May be dropped while it waits.
    async fn event(&mut self) -> Event {
        let (may_stop, is_naming, has_room) = (
            self.phase.may_stop(),
            self.phase.is_naming(),
            self.phase.has_room(),
        );
        tokio::select! {
            biased;
            () = self.stop.cancelled(), if may_stop => Event::Stop,
            () = until(self.phase.deadline()) => Event::Late,
            () = self.phase.named() => Event::Named,
            name = ended(&self.meant), if may_stop => Event::TargetGone(name),
            () = until(self.schedule.due()), if has_room => Event::Statistics,
            () = changed(&mut self.names), if !is_naming => Event::NamesChanged,
            next = self.subscription.next(), if has_room => Event::Published(next),
        }
    }

    /// Does what an event is about. May be dropped while it waits: what is not done then happens again.
    async fn take(&mut self, event: Event) {
        match event {
            Event::Stop => self.begin_to_stop(Ended::Stopped).await,
            Event::TargetGone(name) => self.begin_to_stop(Ended::TargetGone(name)).await,
            Event::Late => self.give_up_the_rest().await,
            Event::Named => {
                self.take_names();
                self.phase.pass();
            }
            Event::NamesChanged => self.take_names(),
            Event::Statistics => {
                let which = self.schedule.tell();
                self.outgoing.tell_statistics(which);
            }
            Event::Published(next) => self.accept(next),
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

    /// Whether it has something to say already, which it has taken from its feed.
    fn has_more(&self) -> bool {
        self.outgoing.has_more()
    }

    /// How far it is behind what is captured.
    fn progress(&self) -> Progress {
        self.subscription.progress()
    }

    /// Ends here: what is captured later is not its client's.
    async fn cut(&mut self) {
        if !matches!(self.phase, Phase::Ended(_)) {
            self.end_here(Ended::Stopped).await;
        }
    }

    /// Inode number of the namespace.
    pub(crate) fn netns(&self) -> u64 {
        self.netns
    }

    /// Why it ended, and what it amounted to.
    pub(crate) fn end(&self) -> (Ended, Totals) {
        let totals = self.outgoing.totals();
        if let Some(why) = self.capture.revocation() {
            return (Ended::Revoked(why.to_owned()), totals);
        }
        let ended = match &self.phase {
            Phase::Ended(ended) => ended.clone(),
            _ => Ended::Stopped,
        };
        match ended {
            Ended::Stopped if self.capture.is_ended_by_operator() => (Ended::ByOperator, totals),
            Ended::Stopped if self.capture.has_lost_rights() => (Ended::RightsLost, totals),
            ended => (ended, totals),
        }
    }

    /// Has what is captured until now be the last. A limit of time is a reason before all others.
    async fn begin_to_stop(&mut self, why: Ended) {
        let now = Instant::now();
        let over = self.timer.as_ref().and_then(|timer| timer.over(now));
        let stopping = Stopping {
            since: self.outgoing.now(),
            asked: now,
            deadline: now + FINISH_TIMEOUT,
            why: over.map_or(why, Ended::Limit),
        };
        self.subscription.settle(stopping.since).await;
        if self.phase.is_naming() {
            self.take_names();
        }
        self.phase.stop(stopping);
    }

    /// Ends without what has not come in time, such as what a slow client has yet to take: that counts as lost.
    async fn give_up_the_rest(&mut self) {
        let count = timeout(LATE_COUNT_TIMEOUT, self.subscription.count());
        let now = count.await.ok().flatten();
        let lost = self.outgoing.end_without_the_rest(now);
        self.capture.lost_by_client(lost);
        self.phase.complete();
    }

    /// Ends with the final statistics at this place.
    async fn end_here(&mut self, why: Ended) {
        let count = timeout(FINISH_TIMEOUT, self.subscription.count());
        let now = count.await.ok().flatten();
        self.outgoing.end_here(now.as_ref());
        self.phase = Phase::Ended(why);
    }

    /// Writes the names that are new.
    fn take_names(&mut self) {
        if let Some(names) = &mut self.names
            && !self.outgoing.write_names(names.update())
        {
            // Packets are what the client wants.
            self.names = None;
        }
    }

    fn accept(&mut self, next: Next) {
        match next {
            Next::Batch { batch, lost, .. } => {
                if let Err(limit) = self.pass_on(&batch, &lost) {
                    self.phase.fill(limit);
                }
            }
            Next::End(Ended::Stopped) => self.phase.complete(),
            Next::End(ended) => self.phase = Phase::Ended(ended),
            Next::CutOff => self.phase.fill(Limit::Untold),
            Next::Nothing => {}
        }
    }

    /// Puts a batch into the stream, or as much of it as the limits allow.
    ///
    /// # Errors
    /// The limit that is reached with it.
    fn pass_on(&mut self, batch: &Batch, lost: &[PacketCount]) -> Result<(), Limit> {
        self.describe_up_to(batch.interfaces)?;
        if !lost.is_empty() {
            self.outgoing.lose(lost);
            self.capture.lost_by_client(packets_in(lost));
            self.schedule.plan(self.outgoing.has_untold_losses());
        }
        let (is_whole, reached) = self.outgoing.put_packets(batch);
        if is_whole && let Some(statistics) = &batch.statistics {
            self.take_statistics(statistics);
        }
        reached.map_or(Ok(()), Err)
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
        let are_last = self.phase.is_completed_by(statistics.written);
        let which = if are_last { Which::All } else { Which::Ended };
        self.outgoing.take_statistics(statistics, which);
        self.capture.lost_in_kernel(self.outgoing.lost_in_kernel());
        self.schedule.plan(self.outgoing.has_untold_losses());
        if are_last {
            self.phase.complete();
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

/// Waits until the target has ended, and gives its name; for ever where none is known.
async fn ended(target: &Option<MeantTarget>) -> String {
    match target {
        Some(target) if target.process.readable().await.is_ok() => target.name.clone(),
        // Without a runtime there is nobody to wait.
        _ => std::future::pending().await,
    }
}

/// Waits until there are other names to tell; for ever where none are told.
async fn changed(names: &mut Option<ToldNames>) {
    match names {
        Some(names) => names.changed().await,
        None => std::future::pending().await,
    }
}
