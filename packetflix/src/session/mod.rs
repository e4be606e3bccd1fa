//! A session joins a tap to one client: it turns records into batches of pcapng, as fast as they are taken,
//! keeps the statistics, and knows why it ended.

mod names;
mod stream;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::stream::{Stream, StreamInfo};
use crate::{
    discovery::AddressBook,
    error,
    netns::Netns,
    tap::{CaptureFilters, Drained, InterfaceSelection, Tap, TapChange, TapConfig, TapError},
    target::Target,
};

/// Rings are read no more often than this: what comes meanwhile is read in one go, and wakes nobody.
const COALESCE: Duration = Duration::from_millis(1);

/// A record younger than this, in nanoseconds, waits for older ones that another CPU may still be writing.
const MERGE_WINDOW: u64 = 500_000;

/// How often statistics are sent, and the namespace and the clocks looked at.
const STATISTICS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the end of a capture may take: what is still in the rings is sent as far as the client takes it.
const FINISH_TIMEOUT: Duration = Duration::from_secs(3);

/// What a client gets.
#[derive(Clone, Debug)]
pub(crate) struct SessionRequest {
    /// Which interfaces.
    pub(crate) selection: InterfaceSelection,
    /// The filter as the client wrote it, or empty.
    pub(crate) expression: String,
    /// What that amounts to.
    pub(crate) filters: CaptureFilters,
    /// Without promiscuous mode.
    pub(crate) chaste: bool,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked to.
    Stopped,
    /// Nobody takes what it sends.
    ClientGone,
    /// Nobody but us holds the namespace any more.
    NamespaceGone(u64),
    /// It could not go on.
    Failed(String),
}

/// A capture that is set up, and has sent nothing yet.
#[derive(Debug)]
pub(crate) struct Session {
    netns: Arc<Netns>,
    tap: Tap,
    stream: Stream,
    names: Option<watch::Receiver<Arc<AddressBook>>>,
}

/// What a whole session amounted to, for the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) delivered: u64,
    pub(crate) dropped: u64,
}

impl Session {
    /// Sets up the capture: from now on packets are captured.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(crate) async fn start(
        target: Target,
        request: SessionRequest,
        config: &TapConfig,
        node_name: &str,
    ) -> Result<Self, TapError> {
        let netns = Arc::new(target.netns);
        let tap = Tap::open(
            &netns,
            request.selection,
            request.filters,
            !request.chaste,
            config,
        )
        .await?;
        let stream = Stream::begin(
            &tap,
            &StreamInfo {
                netns: &netns,
                description: &target.description,
                node_name,
                chaste: request.chaste,
                filter: &request.expression,
            },
        );
        Ok(Self {
            netns,
            tap,
            stream,
            names: None,
        })
    }

    /// Tells the names of addresses: those that are known now before the first packet, and from then on each that is
    /// new before the packets that follow.
    pub(crate) fn tell_names(&mut self, names: watch::Receiver<Arc<AddressBook>>) {
        self.names = Some(names);
        self.take_names();
    }

    fn take_names(&mut self) {
        if let Some(names) = &mut self.names {
            let names = Arc::clone(&names.borrow_and_update());
            self.stream.name(names.seen_from(self.netns.inode()));
        }
    }

    /// Sends batches until `stop` is cancelled, the client is gone, or the namespace has ended; then detaches,
    /// sends what is left with the final statistics, and tells why.
    pub(crate) async fn run(
        mut self,
        batches: mpsc::Sender<Bytes>,
        stop: CancellationToken,
    ) -> (Ended, Totals) {
        let ended = tokio::select! {
            biased;
            () = stop.cancelled() => Ended::Stopped,
            () = batches.closed() => Ended::ClientGone,
            ended = self.capture(&batches) => ended,
        };
        let deadline = Instant::now() + FINISH_TIMEOUT;
        // Without its end the stream still holds the statistics of a moment ago.
        let _ = timeout_at(deadline, self.finish(&batches)).await;
        (ended, self.stream.totals())
    }

    /// Captures until the namespace ends or something fails. May be dropped at any await without losing a
    /// record.
    async fn capture(&mut self, batches: &mpsc::Sender<Bytes>) -> Ended {
        match self.capture_loop(batches).await {
            Ok(ended) => ended,
            Err(CaptureError::Closed) => Ended::ClientGone,
            Err(CaptureError::Tap(error)) => Ended::Failed(error::chain(&error)),
            Err(CaptureError::Wait(error)) => Ended::Failed(error::chain(&error)),
        }
    }

    async fn capture_loop(&mut self, batches: &mpsc::Sender<Bytes>) -> Result<Ended, CaptureError> {
        let mut every_second = interval(STATISTICS_INTERVAL);
        every_second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rings = RingsState::Due;
        loop {
            tokio::select! {
                biased;
                _ = every_second.tick() => {
                    self.tap.adjust_clock();
                    if !self.is_held().await {
                        return Ok(Ended::NamespaceGone(self.netns.inode()));
                    }
                    self.stream.statistics_due();
                    rings = RingsState::Due;
                }
                // Records leave the rings only when there is room for them: when the client is too slow, they
                // fill the rings, and the programs count what they cannot put there.
                room = batches.reserve(), if rings == RingsState::Due => {
                    let room = room.map_err(|_| CaptureError::Closed)?;
                    let old_enough = self.tap.clock().now().saturating_sub(MERGE_WINDOW);
                    let drained = self.stream.fill(&mut self.tap, old_enough);
                    if let Some(batch) = self.stream.take_batch() {
                        room.send(batch);
                    }
                    rings = match drained {
                        Drained::Full(_) => RingsState::Due,
                        Drained::Held => RingsState::Coalescing,
                        Drained::Empty => RingsState::Idle,
                    };
                }
                () = changed(&mut self.names) => {
                    self.take_names();
                    rings = RingsState::Due;
                }
                () = sleep(COALESCE), if rings == RingsState::Coalescing => rings = RingsState::Due,
                change = self.tap.changed(rings == RingsState::Idle) => {
                    match change.map_err(CaptureError::Wait)? {
                        TapChange::Links => {
                            self.follow_links().await?;
                            rings = RingsState::Due;
                        }
                        // What comes right behind the first packet goes with it.
                        TapChange::Rings => rings = RingsState::Coalescing,
                    }
                }
            }
            if self.stream.has_let_go() {
                // An interface may have waited for the index of one that has left.
                self.follow_links().await?;
            }
        }
    }

    async fn is_held(&self) -> bool {
        let netns = Arc::clone(&self.netns);
        tokio::task::spawn_blocking(move || netns.is_held())
            .await
            .unwrap_or(true)
    }

    /// Lets interfaces that are gone leave, and new ones join.
    async fn follow_links(&mut self) -> Result<(), CaptureError> {
        let changes = self.tap.link_changes().await?;
        for ifindex in changes.gone {
            self.tap.detach(ifindex);
            self.stream.leave(&self.tap, ifindex);
        }
        let joined = self.tap.join(&self.netns, changes.new);
        // Those that did join have packets already, whatever became of the others.
        self.stream.describe_new(&self.tap);
        Ok(joined?)
    }

    /// Detaches, and sends all that was captured until then, with the final statistics.
    async fn finish(&mut self, batches: &mpsc::Sender<Bytes>) {
        self.tap.detach_all();
        self.stream.end(&self.tap);
        while let Ok(room) = batches.reserve().await {
            let drained = self.stream.fill(&mut self.tap, u64::MAX);
            if let Some(batch) = self.stream.take_batch() {
                room.send(batch);
            }
            if drained == Drained::Empty {
                break;
            }
        }
    }
}

/// Waits until there are other names; for ever where none are told.
async fn changed(names: &mut Option<watch::Receiver<Arc<AddressBook>>>) {
    if let Some(names) = names
        && names.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// What is to be done about the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RingsState {
    /// They were empty: the kernel tells when they are not.
    Idle,
    /// Something came a moment ago, more may come.
    Coalescing,
    /// They are to be read as soon as there is room.
    Due,
}

/// Why capturing cannot go on.
#[derive(Debug, thiserror::Error)]
enum CaptureError {
    #[error("nobody takes the batches")]
    Closed,
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error("the rings cannot be waited for")]
    Wait(#[source] std::io::Error),
}
