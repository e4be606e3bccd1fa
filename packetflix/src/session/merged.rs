//! One client's stream of several captures: one section, one timeline (`timeline.rs`).
//!
//! Each capture is a session of its own, with its place on the list, its account, and its end. What these say is taken as fast
//! as the client takes it. A packet waits until all other captures have told what is older: each either has a packet that is
//! younger, or has read its rings until then (`feed.rs`, [`Progress`]). One that does not come on is not waited for, which the
//! stream tells (`watermark.rs`).

use std::{
    any::Any,
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _, future::join_all, stream::FuturesUnordered};
use nix::time::{ClockId, clock_gettime};
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    Ended, Message, Session, Totals,
    feed::Progress,
    limits::{Limit, Limits, Timer, TooFewBytes},
    names::{KnownNames, ToldNames},
    packets::MAX_BATCH_LEN,
    reader::MERGE_WINDOW,
    stream::encode_section_header,
    watermark::{PATIENCE, Wait, Watermark},
};
use crate::{
    capture_end::CaptureEnd,
    captures::{Capture, RunningCapture, RunningStream},
    pcapng::{CaptureComment, MAX_STATISTICS_LEN},
    tap::CLOCK_WAS_SET_BACK,
    timeline::{Bounds, Part, Piece, Timeline},
};

/// Packets are passed on no more often: what comes meanwhile is looked through in one go.
const PAUSE: Duration = Duration::from_millis(1);

/// The type of target that stands in the section header.
const KIND: &str = "selection";

/// How long packets wait for captures that have older ones, of which it is not known yet whether they join.
const PATIENCE_WITH_HELD: Duration = Duration::from_secs(2);

/// Most captures and sentences that wait to join.
const QUEUED_ARRIVALS: usize = 64;

/// Most sentences in a stream on what is not captured.
const MAX_SENTENCES: usize = 256;

/// The stream.
pub(crate) struct MergedSession {
    running: RunningStream,
    timeline: Timeline,
    members: BTreeMap<u64, Running>,
    next_member: u64,
    steps: FuturesUnordered<Pin<Box<dyn Future<Output = Step> + Send>>>,
    arrivals: Option<mpsc::Receiver<Arrival>>,
    /// Captures that may join with what they have captured already, by their namespaces, and until when they are waited for.
    held: BTreeMap<u64, (Progress, Instant)>,
    names: Option<Names>,
    limits: Limits,
    timer: Option<Timer>,
    /// Ends all captures, each of which then has its rest to tell.
    stop: CancellationToken,
    /// The section is cut.
    cut: CancellationToken,
    is_stopping: bool,
    /// When packets are passed on next.
    due: Instant,
    sentences: usize,
    /// How many captures there were, and why the last of them ended.
    joined: usize,
    last: Option<Ended>,
    /// Those that have ended because the stream ends.
    stopped: Vec<RunningCapture>,
    /// Why its caller may have it no more.
    revoked: Option<String>,
    totals: Totals,
}

/// A capture that joins a stream.
pub(crate) struct Member {
    pub(crate) session: Session,
    pub(crate) running: RunningCapture,
    /// What lives as long as it does.
    pub(crate) companion: Box<dyn Any + Send + Sync>,
    /// Where it stands among the namespaces of the stream.
    pub(crate) place: NamespacePlace,
    /// Of its log.
    pub(crate) span: tracing::Span,
}

/// What comes to a stream while it runs.
pub(crate) enum Arrival {
    Member(Box<Member>),
    /// The capture of this namespace is held until it is known whether it joins.
    Held {
        netns: u64,
        progress: Progress,
    },
    /// It has been decided: what joins has come before this.
    Decided {
        netns: u64,
    },
    /// Its caller may have it no more, for this reason.
    Revoked(String),
    /// There is something to say of what is called so, as why it is not captured.
    Told {
        name: String,
        sentence: String,
    },
}

/// The way to a stream for what joins it.
pub(crate) type Arrivals = mpsc::Sender<Arrival>;

/// The namespaces of a stream, by their inode numbers: whether each may be captured again once it is not any more.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces(Arc<Mutex<BTreeMap<u64, Presence>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Captured,
    /// Not again: somebody has ended it.
    Over,
}

/// A namespace of a stream, as long as it is captured there.
#[derive(Debug)]
pub(crate) struct NamespacePlace {
    namespaces: Namespaces,
    netns: u64,
    is_over: bool,
}

/// One that takes part.
struct Running {
    progress: Progress,
    watermark: Watermark,
    /// While the section has something of it to pass on.
    session: Option<Box<Session>>,
    /// Whether it has something to say at once, where it is asked for that.
    has_more: bool,
    running: RunningCapture,
    capture: Arc<Capture>,
    _companion: Box<dyn Any + Send + Sync>,
    place: NamespacePlace,
    span: tracing::Span,
}

/// What a session has said next.
struct Step {
    member: u64,
    session: Box<Session>,
    message: Option<Message>,
}

struct Names {
    told: ToldNames,
    /// Packets are kept back until this ends.
    first: Option<AbortOnDropHandle<()>>,
}

/// A piece of the stream, to be sent as one message.
#[derive(Debug)]
pub(crate) struct MergedMessage {
    blocks: Bytes,
    parts: BTreeMap<u64, Part>,
}

impl AsRef<Bytes> for MergedMessage {
    fn as_ref(&self) -> &Bytes {
        &self.blocks
    }
}

/// What a stream of several captures says of itself, and where it ends.
pub(crate) struct MergedInfo<'a> {
    /// The words that say what is captured.
    pub(crate) words: &'a str,
    pub(crate) node_name: &'a str,
    /// The filter as the client wrote it, or empty.
    pub(crate) filter: &'a str,
    pub(crate) chaste: bool,
    /// Snapshot length in bytes.
    pub(crate) snaplen: u32,
    /// Where the stream ends at the latest.
    pub(crate) limits: Limits,
}

enum Event {
    Step(Box<Step>),
    Arrival(Option<Arrival>),
    Stop,
    Named,
    NamesChanged,
    Time,
}

impl Namespaces {
    /// Takes the place of a namespace; `None` where it is captured already, or is not to be captured again.
    pub(crate) fn enter(&self, netns: u64) -> Option<NamespacePlace> {
        let mut present = self.lock();
        if present.contains_key(&netns) {
            return None;
        }
        present.insert(netns, Presence::Captured);
        Some(NamespacePlace {
            namespaces: self.clone(),
            netns,
            is_over: false,
        })
    }

    /// A namespace of this number has just come: what was said of another of this number is not said of it.
    pub(crate) fn forget_over(&self, netns: u64) {
        self.lock()
            .retain(|other, presence| *other != netns || *presence == Presence::Captured);
    }

    /// Whether it is captured, or is not to be captured again.
    pub(crate) fn have(&self, netns: u64) -> bool {
        self.lock().contains_key(&netns)
    }

    /// Forgets those that are not captured again and are not there any more: their numbers may come to mean others.
    pub(crate) fn retain(&self, is_there: impl Fn(u64) -> bool) {
        self.lock()
            .retain(|netns, presence| *presence == Presence::Captured || is_there(*netns));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Presence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for NamespacePlace {
    fn drop(&mut self) {
        let mut present = self.namespaces.lock();
        if self.is_over {
            present.insert(self.netns, Presence::Over);
        } else {
            present.remove(&self.netns);
        }
    }
}

impl MergedSession {
    /// Begins a stream that ends when `stop` is cancelled, or when nobody can join it any more and all captures have ended.
    ///
    /// # Errors
    /// When it may not even be as long as its section header.
    pub(crate) fn begin(
        info: &MergedInfo<'_>,
        running: RunningStream,
        stop: CancellationToken,
    ) -> Result<(Self, Arrivals), TooFewBytes> {
        let mut header = BytesMut::new();
        let comment = CaptureComment {
            container_name: info.words,
            container_type: KIND,
            node_name: info.node_name,
            cluster_uid: "",
            filter: info.filter,
            chaste: info.chaste,
        };
        encode_section_header(&comment, &mut header);
        let least = (header.len() + MAX_STATISTICS_LEN) as u64;
        if let Some(bytes) = info.limits.bytes
            && bytes < least
        {
            return Err(TooFewBytes { bytes, least });
        }
        let bounds = Bounds {
            packets: info.limits.packets,
            bytes: info.limits.bytes,
        };
        let (sender, arrivals) = mpsc::channel(QUEUED_ARRIVALS);
        let session = Self {
            running,
            timeline: Timeline::begin(header, info.snaplen, bounds, CLOCK_WAS_SET_BACK),
            members: BTreeMap::new(),
            next_member: 0,
            steps: FuturesUnordered::new(),
            arrivals: Some(arrivals),
            held: BTreeMap::new(),
            names: None,
            limits: info.limits.clone(),
            timer: None,
            stop,
            cut: CancellationToken::new(),
            is_stopping: false,
            due: Instant::now(),
            sentences: 0,
            joined: 0,
            last: None,
            stopped: Vec::new(),
            revoked: None,
            totals: Totals::default(),
        };
        Ok((session, sender))
    }

    /// Tells the names of addresses, as a single session does.
    pub(crate) fn tell_names(&mut self, names: KnownNames, first: AbortOnDropHandle<()>) {
        self.names = Some(Names {
            told: ToldNames::new(names),
            first: Some(first),
        });
    }

    /// One more capture.
    pub(crate) fn join(&mut self, member: Member) {
        let Member {
            session,
            running,
            companion,
            place,
            span,
        } = member;
        let id = self.next_member;
        self.next_member += 1;
        self.joined += 1;
        self.timeline.add(id, 0);
        if let Some(names) = &mut self.names {
            names.told.see_from(session.netns());
        }
        let running = Running {
            progress: session.progress(),
            watermark: Watermark::default(),
            session: Some(Box::new(session)),
            has_more: false,
            capture: running.capture(),
            running,
            _companion: companion,
            place,
            span,
        };
        self.members.insert(id, running);
        self.ask_the_hungry();
    }

    /// The stream tells something of what is called so, as why it is not captured.
    pub(crate) fn tell(&mut self, name: &str, sentence: &str) {
        self.sentences += 1;
        match self.sentences {
            ..=MAX_SENTENCES => {
                self.timeline.tell(name, sentence, now());
            }
            _ => tracing::info!(name, sentence, "the stream has no place to tell this"),
        }
    }

    /// What is sent next, to be given back when it is [sent](Self::sent); `None` at the end. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Option<MergedMessage> {
        if self.timer.is_none() {
            self.timer = Timer::start(&self.limits, self.stop.clone());
        }
        loop {
            // Whoever is ready is heard before packets are passed on.
            self.take_ready();
            if Instant::now() >= self.due {
                self.pass_on();
            }
            if let Some(Piece { blocks, parts }) = self.timeline.take() {
                let blocks = blocks.freeze();
                return Some(MergedMessage { blocks, parts });
            }
            if self.is_over() {
                return None;
            }
            let event = self.event().await;
            self.take(event);
        }
    }

    /// Takes a message back that was handed to the client's socket.
    pub(crate) fn sent(&self, message: MergedMessage) {
        let now = now();
        for (member, part) in message.parts {
            if let Some(member) = self.members.get(&member) {
                let age = Duration::from_nanos(now.saturating_sub(part.oldest));
                let age = (part.packets > 0).then_some(age);
                member.capture.delivered(part.packets, part.bytes, age);
            }
        }
    }

    /// Takes account of what was lost up to now, which the stream has no place for any more: its client has left.
    pub(crate) async fn settle_account(&mut self) {
        // Those that are asked for what is next give that up.
        self.cut.cancel();
        while let Some(step) = self.steps.next().await {
            if let Some(member) = self.members.get_mut(&step.member) {
                member.session = Some(step.session);
            }
        }
        let sessions = self
            .members
            .values_mut()
            .filter_map(|member| member.session.as_mut());
        join_all(sessions.map(|session| session.settle_account())).await;
    }

    /// Why it ended, and what it amounted to.
    pub(crate) fn end(&self) -> (Ended, Totals) {
        let ended = match (self.timeline.reached(), &self.last) {
            (Some(bound), _) => Ended::Limit(bound.into()),
            _ if self.running.is_ended_by_operator() => Ended::ByOperator,
            _ if self.revoked.is_some() => Ended::Revoked(self.revoked.clone().unwrap_or_default()),
            _ if self.stop.is_cancelled() => {
                match self.timer.as_ref().and_then(|timer| timer.over(Instant::now())) {
                    Some(limit) => Ended::Limit(limit),
                    None if self.running.has_lost_rights() => Ended::RightsLost,
                    None => Ended::Stopped,
                }
            }
            (None, Some(last)) if self.joined == 1 => last.clone(),
            (None, Some(Ended::NamespaceGone(_) | Ended::TargetGone(_))) => Ended::TargetsGone(self.joined),
            (None, Some(last)) => last.clone(),
            (None, None) => Ended::Stopped,
        };
        let sessions = self.members.values().filter_map(|member| member.session.as_ref());
        let totals = sessions.fold(self.totals, |sum, session| {
            let (_, Totals { delivered, dropped }) = session.end();
            Totals {
                delivered: sum.delivered + delivered,
                dropped: sum.dropped + dropped,
            }
        });
        (ended, totals)
    }

    /// The captures that still run have ended with the stream, for this reason.
    pub(crate) fn conclude(self, end: CaptureEnd, reason: &str) {
        let running = self.members.into_values().map(|member| member.running);
        for running in self.stopped.into_iter().chain(running) {
            running.end(end, reason);
        }
    }

    fn is_over(&self) -> bool {
        self.members.is_empty() && (self.arrivals.is_none() || self.is_stopping)
    }

    async fn event(&mut self) -> Event {
        let due = self.timeline.has_waiting().then_some(self.due);
        let is_stopping = self.is_stopping;
        let Self {
            steps,
            arrivals,
            names,
            stop,
            ..
        } = self;
        tokio::select! {
            biased;
            () = stop.cancelled(), if !is_stopping => Event::Stop,
            event = told(names) => event,
            Some(step) = steps.next() => Event::Step(Box::new(step)),
            arrival = arrived(arrivals), if !is_stopping => Event::Arrival(arrival),
            () = super::until(due) => Event::Time,
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Step(step) => self.took(*step),
            Event::Arrival(Some(Arrival::Member(member))) => self.join(*member),
            Event::Arrival(Some(Arrival::Held { netns, progress })) => {
                self.held
                    .insert(netns, (progress, Instant::now() + PATIENCE_WITH_HELD));
            }
            Event::Arrival(Some(Arrival::Decided { netns })) => {
                self.held.remove(&netns);
            }
            Event::Arrival(Some(Arrival::Revoked(why))) => {
                self.revoked = Some(why);
                self.stop.cancel();
            }
            Event::Arrival(Some(Arrival::Told { name, sentence })) => self.tell(&name, &sentence),
            Event::Arrival(None) => {
                self.arrivals = None;
                self.held.clear();
            }
            Event::Stop => {
                self.is_stopping = true;
                self.let_nobody_join();
            }
            Event::Named => {
                if let Some(names) = &mut self.names {
                    names.first = None;
                }
                self.write_names();
            }
            Event::NamesChanged => self.write_names(),
            Event::Time => {}
        }
    }

    /// A session has said something, or has ended.
    fn took(&mut self, step: Step) {
        let Step {
            member: id,
            session,
            message,
        } = step;
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        match message {
            Some(message) => {
                member.session = Some(session);
                self.timeline.give(id, message.blocks, now());
            }
            None => {
                let (ended, totals) = session.end();
                self.timeline.end(id, now());
                self.leave(id, ended, totals);
            }
        }
        self.ask_the_hungry();
    }

    /// A capture has ended, and what it had to say is passed on.
    fn leave(&mut self, id: u64, ended: Ended, totals: Totals) {
        let Some(member) = self.members.remove(&id) else {
            return;
        };
        self.totals.delivered += totals.delivered;
        self.totals.dropped += totals.dropped;
        let ended = match self.timeline.reached() {
            Some(bound) => Ended::Limit(bound.into()),
            None => ended,
        };
        let Totals { delivered, dropped } = totals;
        let Running {
            running,
            mut place,
            span,
            ..
        } = member;
        place.is_over = ended == Ended::ByOperator;
        if ended == Ended::Stopped {
            // Why, whoever stops the stream knows.
            span.in_scope(|| tracing::info!(delivered, dropped, "stopped"));
            self.stopped.push(running);
        } else {
            let (end, reason) = ended.told();
            span.in_scope(|| tracing::info!(reason, delivered, dropped, "ended"));
            running.end(end, &reason);
        }
        self.last = Some(ended);
    }

    /// Has sessions go on of which all is passed on; gives how many.
    fn ask_the_hungry(&mut self) -> usize {
        let hungry = self.timeline.take_hungry();
        for &id in &hungry {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            if let Some(session) = member.session.take() {
                member.has_more = session.has_more();
                self.steps.push(Box::pin(step(id, session, self.cut.clone())));
            }
        }
        hungry.len()
    }

    /// Passes on what no other capture can have older packets than, up to a message.
    fn pass_on(&mut self) {
        self.drop_what_may_not_be_told();
        let is_naming = self.names.as_ref().is_some_and(|names| names.first.is_some());
        while self.timeline.has_waiting() && !is_naming && !self.timeline.is_full() {
            let until = self.told_until();
            self.timeline.pass_on(until, now());
            if let Some(limit) = self.timeline.reached() {
                self.cut_at(limit.into());
            }
            if self.ask_the_hungry() == 0 {
                // What waits is too young.
                break;
            }
            self.take_ready();
        }
        // What had no place in a message goes into the next.
        let pause = if self.timeline.is_full() {
            Duration::ZERO
        } else {
            PAUSE
        };
        self.due = Instant::now() + pause;
    }

    /// Hears what sessions have to say without waiting for any.
    fn take_ready(&mut self) {
        while let Some(Some(step)) = self.steps.next().now_or_never() {
            self.took(step);
        }
    }

    /// Until when all captures that are waited for have told all, in nanoseconds since 1970.
    fn told_until(&mut self) -> u64 {
        let (now, time) = (now(), Instant::now());
        let first = self.timeline.first_waiting().unwrap_or(now);
        let mut until = now.saturating_sub(self.held_back(time));
        let mut overdue = Vec::new();
        for (id, member) in &mut self.members {
            if member.session.is_some() {
                // What it has said waits itself.
                continue;
            }
            if !member.has_more
                && !member.watermark.reaches(until)
                && let Some(told) = member.progress.told_until(now)
            {
                member.watermark.advance(told);
            }
            match member.watermark.wait(first, time) {
                Wait::Until(told) => {
                    if told < first {
                        member.progress.ask();
                    }
                    until = until.min(told);
                }
                Wait::NowOverdue => overdue.push(*id),
                Wait::Overdue => {}
            }
        }
        for id in overdue {
            self.tell_overdue(id);
        }
        until
    }

    /// How long packets wait at least: whatever comes, and is held until it is known whether it joins, may have older ones.
    fn held_back(&mut self, time: Instant) -> u64 {
        self.held.retain(|_, (_, until)| time < *until);
        match self.held.values().any(|(progress, _)| !progress.has_caught_up()) {
            true => PATIENCE_WITH_HELD.as_nanos() as u64,
            false => MERGE_WINDOW,
        }
    }

    /// The stream tells that packets of a capture may stand behind younger ones from here on.
    fn tell_overdue(&mut self, id: u64) {
        let Some(member) = self.members.get(&id) else {
            return;
        };
        let facts = member.capture.facts();
        let name = match facts.target.full_name() {
            name if name.is_empty() => format!("netns:{}", facts.netns),
            name => name,
        };
        let seconds = PATIENCE.as_secs();
        tracing::warn!(
            name,
            seconds,
            "a stream goes on without a capture that does not tell what it has"
        );
        let sentence = format!(
            "its packets may stand behind younger ones: for {seconds} s it was not known whether there are any"
        );
        self.tell(&name, &sentence);
    }
    /// What is on its way to the stream comes too late.
    fn let_nobody_join(&mut self) {
        self.held.clear();
        let Some(mut arrivals) = self.arrivals.take() else {
            return;
        };
        arrivals.close();
        while let Ok(arrival) = arrivals.try_recv() {
            if let Arrival::Member(member) = arrival {
                self.stopped.push(member.running);
            }
        }
    }

    /// The section is as long as it may be.
    fn cut_at(&mut self, limit: Limit) {
        if self.cut.is_cancelled() {
            return;
        }
        tracing::debug!(%limit, "the stream ends here");
        self.let_nobody_join();
        self.is_stopping = true;
        self.cut.cancel();
        self.timeline.cut(now());
    }

    /// Of what a client may capture no more, it is told nothing, whenever that was captured.
    fn drop_what_may_not_be_told(&mut self) {
        let revoked = self
            .members
            .iter()
            .filter(|(_, member)| member.session.is_some() && member.capture.revocation().is_some());
        let revoked: Vec<u64> = revoked.map(|(id, _)| *id).collect();
        for id in revoked {
            self.timeline.discard(id);
            self.ask_the_hungry();
        }
    }

    fn write_names(&mut self) {
        let Some(names) = &mut self.names else {
            return;
        };
        let told = names.told.update();
        let mut has_room = true;
        let mut is_done = false;
        while has_room && !is_done {
            let mut blocks = BytesMut::new();
            is_done = told.write(MAX_BATCH_LEN, &mut blocks);
            has_room = self.timeline.write_others(&blocks);
        }
        if !has_room {
            // Packets are what the client wants.
            self.names = None;
        }
    }
}

/// What a session says next; where the section is cut, the last of it.
async fn step(member: u64, mut session: Box<Session>, cut: CancellationToken) -> Step {
    let message = tokio::select! {
        biased;
        () = cut.cancelled() => {
            session.cut().await;
            session.next().await
        }
        message = session.next() => message,
    };
    Step {
        member,
        session,
        message,
    }
}

/// Waits until the first names are known, and then until there are others; for ever where none are told.
async fn told(names: &mut Option<Names>) -> Event {
    let Some(Names { told, first }) = names else {
        return std::future::pending().await;
    };
    match first {
        Some(first) => {
            // One that failed has nothing to tell.
            drop(first.await);
            Event::Named
        }
        None => {
            told.changed().await;
            Event::NamesChanged
        }
    }
}

/// Waits for what joins; `None` when nothing can any more.
async fn arrived(arrivals: &mut Option<mpsc::Receiver<Arrival>>) -> Option<Arrival> {
    match arrivals {
        Some(arrivals) => arrivals.recv().await,
        None => std::future::pending().await,
    }
}

/// Nanoseconds since 1970, UTC.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
