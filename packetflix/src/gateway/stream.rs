//! One client's stream of the captures of several nodes: one section, one timeline (`crate::timeline`).
//!
//! A packet waits until all other nodes have one that is younger, or until the time that packets of the cluster take to come has
//! passed (`window.rs`). What waits is one message of each node, and what its connection holds. A node that is asked for no more,
//! since the client takes no more, drops packets itself, and says so in its stream: nothing is dropped here.

use std::{
    collections::{BTreeMap, HashSet},
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use packetflix_client::{http::ClockReading, stream::Pulse};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{
    capture::Joining,
    feed::{Feed, InterfaceCount, NodeEnd, Said},
    window::{self, Window},
};
use crate::{
    capture_end::CaptureEnd,
    captures::RunningCapture,
    session::{BY_OPERATOR, ClientStream, Ended, Limit, Limits, Timer, Totals},
    timeline::{Bounds, Part, Piece, Timeline},
};

/// Packets are passed on no more often: what comes meanwhile is looked through in one go.
const PAUSE: Duration = Duration::from_millis(1);

/// How long the nodes may take for the rest, once the stream is to end.
const FINISH: Duration = Duration::from_secs(3);

/// How far in the future a packet's time may lie, in nanoseconds: it waits no longer, where a clock was set meanwhile.
const FORESIGHT: u64 = 1_000_000_000;

/// How often nodes are looked at that say nothing, and whether the client may still have what it has.
const LOOK: Duration = Duration::from_secs(1);

/// After how long a node is told to be silent that does not even answer a ping.
const SILENT: Duration = Duration::from_secs(5);

/// How long it may take to send a ping.
const PING: Duration = Duration::from_millis(500);

/// Bounds of how long it takes until a node is tried again that takes no part.
const MIN_ABSENCE: Duration = Duration::from_secs(1);
const MAX_ABSENCE: Duration = Duration::from_secs(60);

/// How many captures are begun at the same time, while the stream runs.
const MAX_OPENING: usize = 16;

/// How long sentences wait for the first interface of a node, whose link type theirs are to have: readers on libpcap refuse several.
const BARE: Duration = Duration::from_secs(1);

/// Most interfaces that all nodes may have at the same time, and in all.
const MAX_OPEN: u64 = 1 << 19;
const MAX_DESCRIBED: u64 = 1 << 24;

/// How much of what nodes say is heard before anything else is looked at.
const MAX_STEPS: usize = 1024;

/// Most sentences in a stream on its nodes.
const MAX_SENTENCES: usize = 1024;

/// A client that takes nothing for longer than this may have held up what nodes send.
const STALL: Duration = Duration::from_millis(100);

/// Close codes of nodes (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const NOT_ALLOWED: u16 = 1008;

/// How the reason ends of a node whose target has ended, or its network namespace.
const HAS_ENDED: &str = " has ended";

type Work<T> = FuturesUnordered<Pin<Box<dyn Future<Output = T> + Send>>>;

/// The stream.
pub(crate) struct GatewayStream {
    timeline: Timeline,
    nodes: BTreeMap<u64, Source>,
    steps: Work<Step>,
    pings: Work<()>,
    window: Window,
    limits: Limits,
    timer: Option<Timer>,
    /// Ends the captures of all nodes, each of which then has its rest to tell.
    stop: CancellationToken,
    /// When the stream ends although nodes have not told all, once it is to end.
    deadline: Option<Instant>,
    look: tokio::time::Interval,
    /// When nodes were last looked at.
    looked: Instant,
    passed_on: Instant,
    begun: Instant,
    /// Since when the client has a message.
    given: Option<Instant>,
    /// Since when it takes what there is, in nanoseconds since 1970: what was captured before may have waited for it.
    taking_since: u64,
    sentences: usize,
    /// Those that wait, each with what it is about.
    early: Vec<(String, String)>,
    /// Those of all nodes.
    interfaces: InterfaceCount,
    /// Whether there is one node, whose stream this is.
    is_of_one: bool,
    last: Option<(String, NodeEnd)>,
    totals: Totals,
    next_id: u64,
    /// Where nodes may come, or come back.
    joining: Option<Joining>,
    /// Nodes that are begun.
    opening: Work<(String, Result<Member, String>)>,
    /// Those that do not take part, by their names.
    absent: BTreeMap<String, Absence>,
    /// Why the client may have it no more, if so.
    judge: Box<dyn Fn() -> Option<String> + Send>,
    running: RunningCapture,
}

/// A node of a stream.
struct Source {
    name: String,
    pulse: Pulse,
    /// Since when it is waited for; `None` while it has something to be passed on.
    awaited: Option<Instant>,
    feed: Option<Box<Feed>>,
    interfaces: InterfaceCount,
    /// By how much its clock is ahead, in nanoseconds.
    ahead: i64,
    /// Since when it takes part, and for how long it was let alone before.
    since: Instant,
    pause: Option<Duration>,
    is_late: bool,
    is_silent: bool,
}

/// A node that does not take part.
#[derive(Default)]
struct Absence {
    /// When it is tried again; never where it has ended on purpose, or sends what no packetflix sends.
    next: Option<Instant>,
    /// For how long it was let alone.
    pause: Option<Duration>,
    /// Whether the stream tells of it.
    is_told: bool,
}

/// What a node has said next.
struct Step {
    source: u64,
    feed: Box<Feed>,
    said: Said,
}

enum Event {
    Stop,
    Step(Box<Step>),
    Joined(String, Box<Result<Member, String>>),
    Look,
    Pinged,
    Time,
}

/// A capture of a node that takes part.
pub(super) struct Member {
    pub(super) name: String,
    pub(super) feed: Feed,
    pub(super) clock: Option<ClockReading>,
}

/// What a stream is, beside its nodes.
pub(super) struct StreamInfo {
    pub(super) section_header: BytesMut,
    /// Snapshot length in bytes.
    pub(super) snaplen: u32,
    pub(super) limits: Limits,
    pub(super) is_of_one: bool,
    pub(super) joining: Option<Joining>,
    pub(super) judge: Box<dyn Fn() -> Option<String> + Send>,
}

/// A piece of the stream, to be sent as one message.
#[derive(Debug)]
pub(crate) struct GatewayMessage {
    blocks: Bytes,
    parts: BTreeMap<u64, Part>,
}

impl AsRef<Bytes> for GatewayMessage {
    fn as_ref(&self) -> &Bytes {
        &self.blocks
    }
}

impl GatewayStream {
    /// Begins a stream of these captures, which ends when `stop` is cancelled, or when all of them have ended.
    pub(super) fn begin(
        info: StreamInfo,
        members: Vec<Member>,
        running: RunningCapture,
        stop: CancellationToken,
    ) -> Self {
        let bounds = Bounds {
            packets: info.limits.packets,
            bytes: info.limits.bytes,
        };
        let now = Instant::now();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stream = Self {
            timeline: Timeline::begin(info.section_header, info.snaplen, bounds, FORESIGHT),
            nodes: BTreeMap::new(),
            steps: FuturesUnordered::new(),
            pings: FuturesUnordered::new(),
            window: Window::new(now),
            limits: info.limits,
            timer: None,
            stop,
            deadline: None,
            look,
            looked: now,
            passed_on: now,
            begun: now,
            given: None,
            taking_since: 0,
            sentences: 0,
            early: Vec::new(),
            interfaces: InterfaceCount::default(),
            is_of_one: info.is_of_one,
            last: None,
            totals: Totals::default(),
            next_id: 0,
            joining: info.joining,
            opening: FuturesUnordered::new(),
            absent: BTreeMap::new(),
            judge: info.judge,
            running,
        };
        for member in members {
            stream.add(member, None);
        }
        stream.ask_the_hungry();
        stream
    }

    /// A node takes part, which was let alone for that long before.
    fn add(&mut self, member: Member, pause: Option<Duration>) {
        let id = self.next_id;
        self.next_id += 1;
        let ahead = member.clock.map_or(0, significant);
        self.window.begin_anew(Instant::now());
        self.timeline.add(id, ahead);
        let source = Source {
            name: member.name,
            pulse: member.feed.pulse(),
            awaited: None,
            feed: Some(Box::new(member.feed)),
            interfaces: InterfaceCount::default(),
            ahead,
            since: Instant::now(),
            pause,
            is_late: false,
            is_silent: false,
        };
        self.nodes.insert(id, source);
    }

    /// A node does not take part, of which the stream tells already; it is tried again after a while.
    pub(super) fn miss(&mut self, name: &str, sentence: &str) {
        self.tell(name, sentence);
        self.absent_for_a_while(name, None, true);
    }

    /// A node is tried again after twice the pause that there was before.
    fn absent_for_a_while(&mut self, name: &str, before: Option<Duration>, is_told: bool) -> &mut Absence {
        let pause = before.map_or(MIN_ABSENCE, |pause| (pause * 2).min(MAX_ABSENCE));
        let absence = self.absent.entry(name.to_owned()).or_default();
        *absence = Absence {
            next: Some(Instant::now() + pause),
            pause: Some(pause),
            is_told,
        };
        absence
    }

    /// Begins captures on nodes that have come, or may have come back.
    fn look_for_nodes(&mut self) {
        let Some(joining) = self.joining.as_ref().filter(|_| self.deadline.is_none()) else {
            return;
        };
        let now = Instant::now();
        let present: HashSet<&str> = self.nodes.values().map(|source| &source.name[..]).collect();
        let mut nodes = joining.nodes();
        // What is said of one that is gone says nothing of one that comes.
        self.absent
            .retain(|name, absence| absence.is_told || nodes.iter().any(|node| node.name == *name));
        nodes.retain(|node| {
            let is_due = match self.absent.get(&node.name) {
                Some(absence) => absence.next.is_some_and(|next| next <= now),
                None => true,
            };
            is_due && !present.contains(&node.name[..])
        });
        nodes.truncate(MAX_OPENING.saturating_sub(self.opening.len()));
        for node in nodes {
            // Not again before it is known what becomes of it.
            self.absent.entry(node.name.clone()).or_default().next = None;
            self.opening.push(joining.open(node));
        }
    }

    /// It is known what becomes of a node that was begun.
    fn joined(&mut self, name: &str, joined: Result<Member, String>) {
        let absence = self.absent.get(name);
        let was_told = absence.is_some_and(|absence| absence.is_told);
        let pause = absence.and_then(|absence| absence.pause);
        match joined {
            Ok(member) if self.deadline.is_none() => {
                self.absent.remove(name);
                tracing::info!(node = name, "a node joins the stream");
                if was_told {
                    self.tell(name, &format!("node {name}: it is captured again"));
                }
                self.add(member, pause);
                self.ask_the_hungry();
            }
            Ok(_) => {}
            Err(why) => {
                if !was_told {
                    self.tell(name, &format!("node {name}: not captured: {why}"));
                }
                self.absent_for_a_while(name, pause, true);
            }
        }
    }

    /// What is called so is not captured, or not as it should be: the stream tells so.
    pub(super) fn tell(&mut self, name: &str, sentence: &str) {
        self.sentences += 1;
        let has_place = self.sentences <= MAX_SENTENCES;
        tracing::info!(node = name, sentence, has_place, "the stream tells of a node");
        let sentence = match self.sentences {
            MAX_SENTENCES => "what else there is to tell of nodes stands in the gateway's log alone",
            _ => sentence,
        };
        if has_place {
            self.early.push((name.to_owned(), sentence.to_owned()));
            self.tell_early();
        }
    }

    /// Tells what waits for the first interface, once that is there, or is waited for no longer.
    fn tell_early(&mut self) {
        let is_waiting = self.timeline.is_bare() && self.begun.elapsed() < BARE && !self.nodes.is_empty();
        if !is_waiting {
            for (name, sentence) in std::mem::take(&mut self.early) {
                self.timeline.tell(&name, &sentence, now());
            }
        }
    }

    fn is_over(&self) -> bool {
        self.nodes.is_empty() && !self.timeline.has_waiting() && !self.may_come_back()
    }

    /// Whether a node may join that has ended, or was not reached.
    fn may_come_back(&self) -> bool {
        let is_tried = |absence: &Absence| absence.next.is_some();
        self.joining.is_some()
            && !self.stop.is_cancelled()
            && (!self.opening.is_empty() || self.absent.values().any(is_tried))
    }

    async fn event(&mut self) -> Event {
        let due = self.due();
        let is_stopping = self.deadline.is_some();
        tokio::select! {
            biased;
            () = self.stop.cancelled(), if !is_stopping => Event::Stop,
            Some(step) = self.steps.next() => Event::Step(Box::new(step)),
            Some((name, joined)) = self.opening.next() => Event::Joined(name, Box::new(joined)),
            _ = self.look.tick() => Event::Look,
            Some(()) = self.pings.next() => Event::Pinged,
            () = until(due) => Event::Time,
        }
    }

    /// When there may be something to pass on although nothing more is said, or the stream ends.
    fn due(&mut self) -> Option<Instant> {
        let time = Instant::now();
        let is_awaiting = self.is_awaiting();
        let waiting = self.timeline.first_waiting().map(|first| {
            let passes = first.saturating_add(nanoseconds(self.window.len(time)));
            let wait = Duration::from_nanos(passes.saturating_sub(now())).min(window::MAX);
            let wait = if is_awaiting { wait } else { Duration::ZERO };
            (time + wait).max(self.passed_on + PAUSE)
        });
        waiting.into_iter().chain(self.deadline).min()
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Stop => self.finish(),
            Event::Step(step) => self.took(*step),
            Event::Joined(name, joined) => self.joined(&name, *joined),
            Event::Look => {
                self.look_at_nodes();
                self.look_for_nodes();
            }
            Event::Pinged | Event::Time => {}
        }
    }

    /// Takes what is due besides what nodes say, of which there may always be more than a client takes.
    fn take_due(&mut self) {
        while let Some(Some(())) = self.pings.next().now_or_never() {}
        while let Some(Some((name, joined))) = self.opening.next().now_or_never() {
            self.joined(&name, joined);
        }
        if self.look.tick().now_or_never().is_some() {
            self.take(Event::Look);
        }
        if self.stop.is_cancelled() && self.deadline.is_none() && !self.nodes.is_empty() {
            self.finish();
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.give_up();
        }
    }

    /// The stream is to end: the nodes are asked for the rest.
    fn finish(&mut self) {
        self.stop.cancel();
        self.deadline.get_or_insert_with(|| Instant::now() + FINISH);
    }

    /// Nodes that have not told all by now are not waited for.
    fn give_up(&mut self) {
        self.steps = FuturesUnordered::new();
        for (id, source) in std::mem::take(&mut self.nodes) {
            tracing::info!(node = source.name, "a node has not told its last in time");
            if !self.is_of_one {
                let sentence = format!("node {}: it has not told its last in time", source.name);
                self.tell(&source.name, &sentence);
            }
            self.timeline.end(id, now());
        }
        self.deadline = None;
        self.pass_on();
    }

    /// A node has said something, or has ended.
    fn took(&mut self, step: Step) {
        let Step {
            source: id,
            feed,
            said,
        } = step;
        let Some(source) = self.nodes.get_mut(&id) else {
            return;
        };
        source.awaited = None;
        let interfaces = feed.interfaces();
        let before = std::mem::replace(&mut source.interfaces, interfaces);
        source.feed = Some(feed);
        let said = match self.interfaces.follow(before, interfaces) {
            Ok(()) => said,
            Err(why) => Said::Ended(NodeEnd::Malformed(why)),
        };
        match said {
            Said::Blocks { blocks, came } => {
                if let Some(came) = came {
                    self.note_lateness(id, &blocks, came);
                }
                self.timeline.give(id, blocks, now());
            }
            Said::Ended(end) => {
                self.timeline.end(id, now());
                self.leave(id, end);
            }
        }
        self.ask_the_hungry();
    }

    /// Takes in how late packets were when they came, and tells where that is too late to be put in order.
    fn note_lateness(&mut self, id: u64, blocks: &[u8], came: Instant) {
        let Some(source) = self.nodes.get_mut(&id) else {
            return;
        };
        let Some(time) = first_time(blocks) else {
            return;
        };
        let time = time.saturating_add_signed(source.ahead.saturating_neg());
        if time < self.taking_since {
            return;
        }
        let late = Duration::from_nanos(now().saturating_sub(time)).saturating_sub(came.elapsed());
        self.window.note(late, Instant::now());
        if late <= window::MAX {
            source.is_late &= late > window::MAX / 2;
            return;
        }
        if !std::mem::replace(&mut source.is_late, true) && self.nodes.len() > 1 {
            let name = self
                .nodes
                .get(&id)
                .map_or_else(String::new, |source| source.name.clone());
            let sentence = format!(
                "node {name} lags: its packets come {:.1} s late, and may stand behind younger ones of others",
                late.as_secs_f64()
            );
            self.tell(&name, &sentence);
        }
    }

    /// A node has ended, and what it had to say is passed on.
    fn leave(&mut self, id: u64, end: NodeEnd) {
        let Some(source) = self.nodes.remove(&id) else {
            return;
        };
        self.interfaces.open -= source.interfaces.open;
        let (_, reason) = told(&end);
        tracing::info!(node = source.name, reason, "the capture of a node has ended");
        let is_closed = matches!(end, NodeEnd::Closed(_));
        let is_expected = self.is_of_one || (self.deadline.is_some() && is_closed);
        let is_by_operator =
            matches!(&end, NodeEnd::Closed(close) if close.code == NORMAL && close.reason == BY_OPERATOR);
        // Where targets may come, a node does not end because there are none.
        let is_natural = self.joining.is_none()
            && matches!(&end, NodeEnd::Closed(close) if close.code == NORMAL && close.reason.ends_with(HAS_ENDED));
        if !is_expected && !is_natural {
            let sentence = format!("node {}: {reason}", source.name);
            self.tell(&source.name, &sentence);
        }
        let is_for_good = match &end {
            NodeEnd::Closed(close) => is_by_operator || close.code == NOT_ALLOWED,
            NodeEnd::Malformed(_) => true,
            NodeEnd::Broken(_) => false,
        };
        // One that goes again as soon as it has come is not tried all the time.
        let pause = source.pause.filter(|_| source.since.elapsed() < MAX_ABSENCE);
        let absence = self.absent_for_a_while(&source.name, pause, !is_expected);
        if is_for_good {
            absence.next = None;
        }
        self.last = Some((source.name, end));
    }

    /// Has nodes go on of which all is passed on; gives how many.
    fn ask_the_hungry(&mut self) -> usize {
        let hungry = self.timeline.take_hungry();
        for &id in &hungry {
            let Some(source) = self.nodes.get_mut(&id) else {
                continue;
            };
            if let Some(feed) = source.feed.take() {
                source.awaited = Some(Instant::now());
                self.steps.push(Box::pin(step(id, feed, self.stop.clone())));
            }
        }
        hungry.len()
    }

    /// Whether a node may have older packets than what waits.
    fn is_awaiting(&self) -> bool {
        self.nodes.len() > 1 && self.nodes.values().any(|source| source.awaited.is_some())
    }

    /// Passes on what no other node can have older packets than, up to a message.
    fn pass_on(&mut self) {
        while self.timeline.has_waiting() && !self.timeline.is_full() {
            let until = match self.is_awaiting() {
                true => now().saturating_sub(nanoseconds(self.window.len(Instant::now()))),
                false => u64::MAX,
            };
            self.timeline.pass_on(until, now());
            if self.timeline.reached().is_some() && !self.timeline.is_cut() {
                self.timeline.cut(now());
                self.finish();
            }
            if self.ask_the_hungry() == 0 {
                // What waits is too young.
                break;
            }
            self.take_ready();
        }
        self.passed_on = Instant::now();
    }

    /// Hears what nodes have to say without waiting for any, up to a message: what is about no packet waits for nothing.
    fn take_ready(&mut self) {
        for _ in 0..MAX_STEPS {
            if self.timeline.is_full() {
                return;
            }
            let Some(Some(step)) = self.steps.next().now_or_never() else {
                return;
            };
            self.took(step);
        }
    }

    /// Asks nodes that say nothing whether they are there, and tells of those that are not; looks whether the client may still
    /// have what it has.
    fn look_at_nodes(&mut self) {
        if let Some(why) = (self.judge)() {
            self.running.revoke(why);
        }
        // Nobody was asked while the client took nothing.
        let was_held_up = self.looked.elapsed() > 2 * LOOK;
        self.looked = Instant::now();
        let mut silent = Vec::new();
        for source in self.nodes.values_mut() {
            let Some(since) = source.awaited else {
                continue;
            };
            let quiet = since.elapsed().min(source.pulse.heard().elapsed());
            if quiet < SILENT {
                source.is_silent = false;
            } else if !was_held_up && !std::mem::replace(&mut source.is_silent, true) {
                silent.push(source.name.clone());
            }
            let pulse = source.pulse.clone();
            self.pings.push(Box::pin(async move {
                // What becomes of it shows by what is heard.
                let _ = timeout(PING, pulse.ping()).await;
            }));
        }
        for name in silent {
            let sentence = format!(
                "node {name} has said nothing for {} s: it hangs, or is not reached, and its packets come late or not at all",
                SILENT.as_secs()
            );
            if !self.is_of_one {
                self.tell(&name, &sentence);
            }
        }
    }

    fn ended(&self) -> Ended {
        if let Some(why) = self.running.revocation() {
            return Ended::Revoked(why.to_owned());
        }
        if let Some(bound) = self.timeline.reached() {
            return Ended::Limit(bound.into());
        }
        if self.running.is_ended_by_operator() {
            return Ended::ByOperator;
        }
        let over: Option<Limit> = self.timer.as_ref().and_then(|timer| timer.over(Instant::now()));
        match (&self.last, over) {
            (_, Some(limit)) if self.stop.is_cancelled() => Ended::Limit(limit),
            (_, None) if self.stop.is_cancelled() => Ended::Stopped,
            (Some((name, end)), _) => {
                let (end, reason) = told(end);
                let reason = match self.is_of_one {
                    true => reason,
                    false => format!("all nodes have ended, the last of which is {name}: {reason}"),
                };
                Ended::OfNode(end, reason)
            }
            (None, _) => Ended::Stopped,
        }
    }
}

impl InterfaceCount {
    /// Takes in what a node has now that had this before.
    ///
    /// # Errors
    /// When it has more than before, and all nodes have too many.
    fn follow(&mut self, before: Self, now: Self) -> Result<(), String> {
        self.described += now.described - before.described;
        self.open = self.open + now.open - before.open;
        let (most, which) = match () {
            () if now.described == before.described => return Ok(()),
            () if self.open > MAX_OPEN => (MAX_OPEN, "that have not ended"),
            () if self.described > MAX_DESCRIBED => (MAX_DESCRIBED, "in all"),
            () => return Ok(()),
        };
        Err(format!(
            "it describes interfaces, of which the nodes of the stream have more than {most} {which}"
        ))
    }
}

impl ClientStream for GatewayStream {
    type Message = GatewayMessage;

    async fn next(&mut self) -> Option<GatewayMessage> {
        if self.timer.is_none() {
            self.timer = Timer::start(&self.limits, self.stop.clone());
        }
        if self.given.take().is_some_and(|given| given.elapsed() > STALL) {
            self.taking_since = now();
        }
        loop {
            self.take_due();
            if self.running.revocation().is_some() {
                // As at a node, nothing follows.
                return None;
            }
            self.take_ready();
            if self.passed_on.elapsed() >= PAUSE {
                self.pass_on();
            }
            self.tell_early();
            if let Some(Piece { blocks, parts }) = self.timeline.take() {
                let blocks = blocks.freeze();
                self.given = Some(Instant::now());
                return Some(GatewayMessage { blocks, parts });
            }
            if self.is_over() {
                return None;
            }
            let event = self.event().await;
            self.take(event);
        }
    }

    fn sent(&mut self, message: GatewayMessage) {
        let packets = message.parts.values().map(|part| part.packets).sum();
        let with_packets = message.parts.values().filter(|part| part.packets > 0);
        let oldest = with_packets.map(|part| part.oldest).min();
        let age = oldest.map(|oldest| Duration::from_nanos(now().saturating_sub(oldest)));
        self.running.delivered(packets, message.blocks.len(), age);
        self.totals.delivered += packets;
        self.totals.dropped = self.timeline.dropped();
    }

    /// What nodes have lost stands in their accounts.
    async fn settle_account(&mut self) {}

    fn end(&mut self) -> (Ended, Totals) {
        let totals = Totals {
            dropped: self.timeline.dropped(),
            ..self.totals
        };
        (self.ended(), totals)
    }

    fn conclude(self, end: CaptureEnd, reason: &str) {
        self.running.end(end, reason);
    }
}

async fn step(source: u64, mut feed: Box<Feed>, stop: CancellationToken) -> Step {
    let said = feed.next(&stop).await;
    Step { source, feed, said }
}

/// How the stream of a node has ended, as the account has it.
fn told(end: &NodeEnd) -> (CaptureEnd, String) {
    match end {
        NodeEnd::Closed(close) => {
            let end = match close.code {
                NORMAL => CaptureEnd::Node,
                GOING_AWAY => CaptureEnd::Shutdown,
                NOT_ALLOWED => CaptureEnd::Revoked,
                _ => CaptureEnd::Failed,
            };
            (end, close.reason.clone())
        }
        NodeEnd::Broken(why) | NodeEnd::Malformed(why) => (CaptureEnd::Failed, why.clone()),
    }
}

/// By how much a clock is ahead, in nanoseconds; 0 where it may be none.
fn significant(clock: ClockReading) -> i64 {
    match clock.ahead.unsigned_abs() > clock.uncertainty {
        true => clock.ahead,
        false => 0,
    }
}

/// When the first packet was captured, by the node's clock.
fn first_time(mut blocks: &[u8]) -> Option<u64> {
    use crate::pcapng::EncodedBlock;

    loop {
        match EncodedBlock::first(blocks)? {
            EncodedBlock::Packet(packet) => return Some(packet.timestamp),
            block => blocks = &blocks[block.len()..],
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => std::future::pending().await,
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Nanoseconds since 1970, UTC.
fn now() -> u64 {
    nanoseconds(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use packetflix_client::stream::Close;

    use super::*;

    #[test]
    fn clock_counts_where_it_is_surely_another() {
        for (ahead, uncertainty, expected) in [
            (100, 200, 0),
            (-200, 200, 0),
            (300, 200, 300),
            (-5_000_000_000, 200, -5_000_000_000),
        ] {
            assert_eq!(significant(ClockReading { ahead, uncertainty }), expected);
        }
    }

    #[test]
    fn interfaces_of_all_nodes_have_bounds() {
        let has = |described, open| InterfaceCount { described, open };
        let most = MAX_OPEN / 2;
        let mut all = InterfaceCount::default();
        assert_eq!(all.follow(has(0, 0), has(most, most)), Ok(()));
        assert_eq!(all.follow(has(0, 0), has(most, most)), Ok(()));
        let told = all.follow(has(most, most), has(most + 1, most + 1)).unwrap_err();
        assert_eq!(
            told,
            "it describes interfaces, of which the nodes of the stream have more than 524288 that have not ended"
        );
        // The others go on.
        assert_eq!(all.follow(has(most, most), has(most, most - 1)), Ok(()));
        assert_eq!(all, has(MAX_OPEN + 1, MAX_OPEN));
        let told = all
            .follow(has(most, most - 1), has(MAX_DESCRIBED, 0))
            .unwrap_err();
        assert_eq!(
            told,
            "it describes interfaces, of which the nodes of the stream have more than 16777216 in all"
        );
    }

    #[test]
    fn ends_of_nodes_are_passed_on() {
        for (code, expected) in [
            (1000, CaptureEnd::Node),
            (1001, CaptureEnd::Shutdown),
            (1005, CaptureEnd::Failed),
            (1008, CaptureEnd::Revoked),
            (1011, CaptureEnd::Failed),
        ] {
            let reason = "the target has ended".to_owned();
            let end = NodeEnd::Closed(Close {
                code,
                reason: reason.clone(),
            });
            assert_eq!(told(&end), (expected, reason));
        }
    }
}
