//! Which captures run, so that clients who ask for the same share one.
//!
//! The first to ask makes the tap. Whoever asks for the same meanwhile waits for that and joins. One who comes late gets a
//! section header of its own, the descriptions of all interfaces that the tap has had (packets refer to them by their place, so
//! that those that are gone must be there, too; when there are more than 64 of these, it gets a tap of its own), the names, and
//! from then on the same batches as everyone. Its statistics begin with it: what was counted before is subtracted.
//!
//! They ask for the same where these agree: namespace, interfaces, filter (as it is written, and without names that others are asked for), snapshot length,
//! promiscuous mode, with or without the service's own traffic. Clients who say in `Host` that they reach the service elsewhere
//! than where their connection ends share with nobody, lest one could hide other people's traffic from others: what is left out
//! for them, they have chosen.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Session, SessionInfo,
    backlog::Backlog,
    feed::{Feed, FeedContext, Progress, Subscription},
    held::Searches,
    limits::TooFewBytes,
};
use crate::{
    captures::Capture,
    memory,
    metrics::Metrics,
    netns::OpenNetns,
    tap::{InterfaceSelection, OwnTraffic, Tap},
};

/// What makes two captures the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CaptureKey {
    /// Inode number of the namespace, which no other can get while the tap holds it.
    pub(crate) netns: u64,
    /// Which interfaces.
    pub(crate) selection: InterfaceSelection,
    /// The filter as the client wrote it, or empty.
    pub(crate) filter: String,
    /// Snapshot length in bytes.
    pub(crate) snaplen: u32,
    /// With the service's own traffic.
    pub(crate) with_own: bool,
    /// Without promiscuous mode.
    pub(crate) chaste: bool,
    /// The number of a capture that is not shared: the same words may mean something else for others, or what it leaves out
    /// is so on the word of its client alone.
    pub(crate) alone: Option<u64>,
}

/// The feeds of all taps that run.
#[derive(Debug)]
pub(crate) struct Feeds {
    slots: Mutex<HashMap<CaptureKey, Arc<AsyncMutex<Option<Feed>>>>>,
    context: FeedContext,
}

/// The place of one capture, held by a client that is about to join it or to begin it.
pub(crate) struct Slot {
    feed: OwnedMutexGuard<Option<Feed>>,
    context: FeedContext,
}

/// A client's part in a tap.
pub(crate) struct Joined(Subscription);

impl Feeds {
    pub(crate) fn new(tasks: TaskTracker, metrics: Arc<Metrics>) -> Self {
        Self {
            slots: Mutex::default(),
            context: FeedContext {
                tasks,
                metrics,
                backlog: Backlog::new(memory::for_slow_clients()),
                searches: Searches::default(),
            },
        }
    }

    /// The place of a capture. Of those who want the same, one after the other gets it.
    pub(crate) async fn slot(&self, key: CaptureKey) -> Slot {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.retain(|_, slot| !is_forsaken(slot));
            Arc::clone(slots.entry(key).or_default())
        };
        Slot {
            feed: slot.lock_owned().await,
            context: self.context.clone(),
        }
    }
}

/// Whether nobody uses the place, or waits for it.
fn is_forsaken(slot: &Arc<AsyncMutex<Option<Feed>>>) -> bool {
    // Others come by it only through the list, which is locked.
    Arc::strong_count(slot) == 1
        && slot
            .try_lock()
            .is_ok_and(|feed| feed.as_ref().is_none_or(Feed::has_ended))
}

impl Slot {
    /// Joins the capture, if it runs, and leaves the service's own traffic with this client out of it from now on.
    pub(crate) async fn join(&self, own: &OwnTraffic) -> Option<Joined> {
        self.feed.as_ref()?.join(own.clone()).await.map(Joined)
    }

    /// Begins the capture, with the number `id`, with a tap that leaves out `own`.
    pub(crate) fn begin(mut self, id: u64, netns: OpenNetns, tap: Tap, own: OwnTraffic) -> Joined {
        let (feed, subscription) = Feed::start(id, netns, tap, own, &self.context);
        *self.feed = Some(feed);
        Joined(subscription)
    }
}

impl Joined {
    /// Number of the capture that began the tap.
    pub(crate) fn tap(&self) -> u64 {
        self.0.feed()
    }

    /// How far its client is behind what is captured.
    pub(crate) fn progress(&self) -> Progress {
        self.0.progress()
    }

    /// Whether packets of different interfaces begin differently.
    pub(crate) fn has_several_link_types(&self) -> bool {
        let mut types = self.0.interfaces.iter().map(|interface| interface.link_type);
        types
            .next()
            .is_some_and(|first| types.any(|other| other != first))
    }

    /// Begins a client's stream, which ends when `stop` is cancelled, and tells `capture` what it amounts to.
    ///
    /// # Errors
    /// When it may not even be as long as every stream is.
    pub(crate) fn stream(
        self,
        info: &SessionInfo<'_>,
        stop: CancellationToken,
        capture: Arc<Capture>,
    ) -> Result<Session, TooFewBytes> {
        Session::new(self.0, info, stop, capture)
    }
}
