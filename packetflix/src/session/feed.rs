//! A tap with all its clients: one reader publishes what it captures, and each client takes that at its own pace.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::{
    backlog::Backlog,
    held::Searches,
    reader::Reader,
    statistics::{Statistics, TapInterface, Written},
    window::{Next, Window},
};
use crate::{
    metrics::Metrics,
    netns::OpenNetns,
    tap::{OwnTraffic, Positions, Tap},
};

/// Most clients that wait to join, or for statistics.
const QUEUED_COMMANDS: usize = 64;

/// What all feeds share.
#[derive(Clone, Debug)]
pub(super) struct FeedContext {
    /// The readers, to wait for at the end.
    pub(super) tasks: TaskTracker,
    pub(super) metrics: Arc<Metrics>,
    pub(super) backlog: Arc<Backlog>,
    pub(super) searches: Searches,
}

/// Where clients join the reader of a tap.
#[derive(Clone, Debug)]
pub(super) struct Feed {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

/// What the reader and its clients share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Number of the capture that began the feed.
    id: u64,
    window: Mutex<Window>,
    /// Tells clients that there is something new.
    published: watch::Sender<()>,
    /// Tells the reader that a client has taken something, or left.
    taken: Notify,
    /// Tells the reader that somebody waits to know what is in the rings.
    asked: Notify,
    /// The own traffic of clients that have left.
    left: Mutex<Vec<OwnTraffic>>,
    /// How far the rings are written and read.
    positions: Positions,
    /// Whether what was read of them may not be published yet.
    is_reading: AtomicBool,
    /// Whether nobody can join any more.
    is_ending: AtomicBool,
}

/// How far a client is behind what is captured.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    shared: Arc<Shared>,
    client: u64,
}

/// What clients ask of the reader.
#[derive(Debug)]
pub(super) enum Command {
    /// To take part, without the service's own traffic with this client. Not answered when that cannot be.
    Join {
        own: OwnTraffic,
        reply: oneshot::Sender<Subscription>,
    },
    /// For statistics as soon as all that was captured until `since` is published, since the client will leave.
    Settle { client: u64, since: u64 },
    /// For what is counted at this moment, wherever the client is in the stream.
    Count { reply: oneshot::Sender<Statistics> },
}

/// A client's part in a feed; it leaves when this is dropped.
#[derive(Debug)]
pub(super) struct Subscription {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<()>,
    /// Its number.
    client: u64,
    own: OwnTraffic,
    /// What was before the client joined, and is not its own.
    pub(super) before: Statistics,
    /// The interfaces that there were then.
    pub(super) interfaces: Vec<Arc<TapInterface>>,
}

impl Feed {
    /// Starts the reader of a tap with its first client, whose capture has the number `id`. The reader ends when the last client has left.
    pub(super) fn start(
        id: u64,
        netns: OpenNetns,
        tap: Tap,
        own: OwnTraffic,
        context: &FeedContext,
    ) -> (Self, Subscription) {
        let (commands, queue) = mpsc::channel(QUEUED_COMMANDS);
        let feed = Self {
            shared: Arc::new(Shared::new(id, &context.backlog, tap.positions().clone())),
            commands,
        };
        let before = Statistics {
            clock: *tap.clock(),
            taken: 0,
            written: Written::default(),
            may_miss: false,
            interfaces: BTreeMap::new(),
        };
        let reader = Reader::new(netns, tap, Arc::clone(&feed.shared), queue, context);
        let subscription = Subscription::new(&feed.shared, &feed.commands, own, before);
        context
            .tasks
            .spawn(reader.run(feed.commands.downgrade()).in_current_span());
        (feed, subscription)
    }

    /// Takes part in the feed, if it goes on and can be described to one who comes late.
    pub(super) async fn join(&self, own: OwnTraffic) -> Option<Subscription> {
        if self.has_ended() {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Join { own, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Whether nobody can join any more.
    pub(super) fn has_ended(&self) -> bool {
        self.shared.is_ending() || self.commands.is_closed()
    }
}

impl Shared {
    /// Nothing is published yet. `id` is the number of the capture that begins the feed.
    pub(super) fn new(id: u64, backlog: &Arc<Backlog>, positions: Positions) -> Self {
        Self {
            id,
            window: Mutex::new(Window::new(backlog.share())),
            published: watch::Sender::default(),
            taken: Notify::new(),
            asked: Notify::new(),
            left: Mutex::default(),
            positions,
            is_reading: AtomicBool::new(false),
            is_ending: AtomicBool::new(false),
        }
    }

    /// Nobody can join from here on: to detach takes seconds where there are many interfaces, and whoever comes is not to wait for that.
    pub(super) fn begin_to_end(&self) {
        self.is_ending.store(true, Ordering::Release);
    }

    fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Acquire)
    }

    /// Something is about to be read of the rings, or what was read is published.
    pub(super) fn set_reading(&self, is_reading: bool) {
        self.is_reading.store(is_reading, Ordering::SeqCst);
    }

    pub(super) fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The own traffic of clients that have left.
    pub(super) fn left(&self) -> MutexGuard<'_, Vec<OwnTraffic>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Alters the queue, and lets the clients look at it.
    pub(super) fn publish(&self, alter: impl FnOnce(&mut Window)) {
        alter(&mut self.window());
        self.published.send_replace(());
    }

    /// Waits until a client has taken something or left since the last time that this was waited for.
    pub(super) async fn taken(&self) {
        self.taken.notified().await;
    }

    /// Waits until somebody waits to know what is in the rings.
    pub(super) async fn asked(&self) {
        self.asked.notified().await;
    }
}

impl Subscription {
    pub(super) fn new(
        shared: &Arc<Shared>,
        commands: &mpsc::Sender<Command>,
        own: OwnTraffic,
        before: Statistics,
    ) -> Self {
        let mut window = shared.window();
        Self {
            shared: Arc::clone(shared),
            commands: commands.clone(),
            published: shared.published.subscribe(),
            client: window.join(),
            own,
            before,
            interfaces: window.interfaces(0..window.described()).unwrap_or_default(),
        }
    }

    /// How far it is behind, to be asked beside it.
    pub(super) fn progress(&self) -> Progress {
        Progress {
            shared: Arc::clone(&self.shared),
            client: self.client,
        }
    }

    /// Number of the capture that began the feed.
    pub(super) fn feed(&self) -> u64 {
        self.shared.id
    }

    /// Waits for the next batch, or the end. May be dropped while it waits.
    pub(super) async fn next(&mut self) -> Next {
        loop {
            self.published.borrow_and_update();
            let next = self.shared.window().take(self.client);
            match next {
                Next::Nothing => {}
                Next::Batch {
                    is_furthest: true, ..
                } => {
                    self.shared.taken.notify_one();
                    return next;
                }
                next => return next,
            }
            // The sender is in what we share.
            let _ = self.published.changed().await;
        }
    }

    /// The interfaces at these places of their descriptions, as they are known now; `None` when this client is cut off.
    pub(super) fn interfaces(&self, places: Range<usize>) -> Option<Vec<Arc<TapInterface>>> {
        self.shared.window().interfaces(places)
    }

    /// Asks for statistics as soon as all that was captured until `since` is published, before it leaves.
    pub(super) async fn settle(&self, since: u64) {
        // Without a reader the end is published.
        let client = self.client;
        let _ = self.commands.send(Command::Settle { client, since }).await;
    }

    /// What is counted at this moment; `None` when nothing is counted any more.
    pub(super) async fn count(&self) -> Option<Statistics> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Count { reply }).await.ok()?;
        answer.await.ok()
    }
}

impl Progress {
    /// Hardware addresses of the interfaces that are described.
    pub(crate) fn macs(&self) -> Vec<[u8; 6]> {
        self.shared.window().macs()
    }

    /// Whether the client has taken all that had been captured when this was called, but for what programs were just
    /// writing.
    pub(super) fn has_caught_up(&self) -> bool {
        // In this order: what has left the rings by the first look is in the queue by the last, unless it is on the way there.
        self.shared.positions.are_read()
            && !self.shared.is_reading.load(Ordering::SeqCst)
            && self.shared.window().has_nothing_for(self.client)
    }

    /// Until when the client has taken all that was captured, in nanoseconds since 1970; `None` where it has something to take
    /// first. `now` was read before this was called.
    pub(super) fn told_until(&self, now: u64) -> Option<u64> {
        match self.has_caught_up() {
            true => Some(now),
            false => self.shared.window().told_until(self.client),
        }
    }

    /// Others wait for what it has: the rings are to be read at once.
    pub(super) fn ask(&self) {
        self.shared.asked.notify_one();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.window().leave(self.client);
        self.shared.left().push(std::mem::take(&mut self.own));
        self.shared.taken.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// To detach takes seconds where there are many interfaces, and nobody is answered meanwhile.
    #[test]
    fn nobody_waits_for_a_feed_that_is_ending() {
        let shared = Arc::new(Shared::new(1, &Backlog::new(u64::MAX), Positions::default()));
        let (commands, _unanswered) = mpsc::channel(2);
        let feed = Feed { shared, commands };
        assert!(feed.join(OwnTraffic::default()).now_or_never().is_none());
        feed.shared.begin_to_end();
        assert!(matches!(
            feed.join(OwnTraffic::default()).now_or_never(),
            Some(None)
        ));
        assert!(feed.has_ended());
    }
}
