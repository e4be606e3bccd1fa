//! Loads the eBPF object for captures. What does not depend on a request is done before it comes: one object without
//! filters is always ready, loaded, verified and with its rings.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::{
    CaptureFilters, TapConfig, TapError,
    hook::ChosenHook,
    memory::{RingMemory, RingShare},
    object::Object,
};
use crate::error::{chain, is_exhaustion};

/// How long the kernel may take to free an object.
const FREEING: Duration = Duration::from_millis(200);

/// Loads objects, and keeps one ready.
pub(crate) struct Loader {
    config: TapConfig,
    memory: Arc<RingMemory>,
    spare: Mutex<Option<Loaded>>,
    /// Tells that the spare one may be missing.
    wanted: Notify,
}

/// A loaded object, whose programs wait to be attached.
pub(super) struct Loaded {
    pub(super) object: Object,
    pub(super) hook: ChosenHook,
    pub(super) share: RingShare,
}

impl Loader {
    pub(crate) fn new(config: TapConfig) -> Self {
        Self {
            memory: RingMemory::new(config.rings),
            config,
            spare: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    pub(super) fn config(&self) -> &TapConfig {
        &self.config
    }

    /// Has another object loaded, unless one is ready. Not earlier than need be: it takes time from whoever waits for
    /// a capture.
    pub(super) fn refill(&self) {
        self.wanted.notify_one();
    }

    /// Loads an object whenever that is wanted. Never ends.
    pub(crate) async fn keep_one_ready(self: Arc<Self>) {
        loop {
            self.wanted.notified().await;
            if !self.has_spare() {
                self.make_ready().await;
            }
        }
    }

    /// Loads an object for the next capture.
    pub(crate) async fn make_ready(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        match tokio::task::spawn_blocking(move || loader.load(&CaptureFilters::default())).await {
            Ok(Ok(loaded)) => drop(self.replace_spare(Some(loaded))),
            // Whoever asks for a capture is told the same.
            Ok(Err(error)) => tracing::debug!(error = %chain(&error), "no object is ready"),
            Err(error) => tracing::error!(%error, "loading an object was cut off"),
        }
    }

    fn has_spare(&self) -> bool {
        self.spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// An object for a capture: the one that is ready, if it serves. Blocks for some tens of milliseconds if it must
    /// load one. Runs in any network namespace.
    ///
    /// # Errors
    /// When the kernel refuses something, or the rings of other captures take all the memory that there is for rings.
    pub(super) fn take(&self, filters: &CaptureFilters) -> Result<Loaded, TapError> {
        if filters.is_none()
            && let Some(spare) = self.replace_spare(None)
        {
            return Ok(spare);
        }
        match self.load(filters) {
            // What is kept ready for the next one goes first.
            Err(error) if is_scarcity(&error) && self.replace_spare(None).is_some() => {
                self.load_when_freed(filters)
            }
            loaded => loaded,
        }
    }

    /// Loads an object as soon as the kernel has back what was just let go of, which takes it a moment.
    fn load_when_freed(&self, filters: &CaptureFilters) -> Result<Loaded, TapError> {
        let deadline = Instant::now() + FREEING;
        loop {
            match self.load(filters) {
                Err(error) if is_scarcity(&error) && Instant::now() < deadline => thread::sleep(FREEING / 10),
                loaded => return loaded,
            }
        }
    }

    fn load(&self, filters: &CaptureFilters) -> Result<Loaded, TapError> {
        let mut share = self.memory.take()?;
        let hook = ChosenHook::choose(self.config.hook)?;
        let object = Object::load(&self.config, hook, filters, share.size)?;
        share.settle();
        Ok(Loaded { object, hook, share })
    }

    fn replace_spare(&self, spare: Option<Loaded>) -> Option<Loaded> {
        let mut place = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut place, spare)
    }
}

/// Whether others hold what is missing.
fn is_scarcity(error: &TapError) -> bool {
    matches!(error, TapError::RingMemory { .. } | TapError::Memory { .. }) || is_exhaustion(error)
}
