//! Loads the eBPF object for captures. What does not depend on a request is done before it comes: one object without
//! filters is always ready, loaded, verified and with its rings.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::sleep};

use super::{
    CaptureFilters, LoadError, TapConfig, TapError,
    connections::Connections,
    hook::ChosenHook,
    memory::{RingMemory, RingShare},
    object::Object,
};
use crate::{
    capabilities::{self, Capability},
    cpus::Cpus,
    error::{chain, errno, is_exhaustion},
    netns::Netns,
    sys,
};

/// How long the kernel may take to free an object.
const FREEING: Duration = Duration::from_millis(200);

/// After how long loading an object is tried again that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Loads objects, and keeps one ready.
pub(crate) struct Loader {
    config: TapConfig,
    memory: Arc<RingMemory>,
    /// The service's own, for the programs of all captures.
    connections: Arc<Connections>,
    spare: Mutex<Option<Loaded>>,
    /// Tells that the spare one may be missing.
    wanted: Notify,
    /// Why none could be loaded the last time.
    problem: Mutex<Option<String>>,
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
            connections: Arc::default(),
            spare: Mutex::default(),
            wanted: Notify::new(),
            problem: Mutex::new(Some(
                "the service is starting: no eBPF object is loaded yet".to_owned(),
            )),
        }
    }

    /// The connections that captures leave out as the service's own.
    pub(crate) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// The rings' memory: bytes in use, those of the object that is ready too, and the most that may be.
    pub(crate) fn ring_memory(&self) -> (u64, u64) {
        (self.memory.taken(), self.config.rings.memory)
    }

    pub(super) fn config(&self) -> &TapConfig {
        &self.config
    }

    /// Why no capture can begin, if so, as far as it is known: no object could be loaded. That others have taken all the
    /// memory for rings is no such reason.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut known = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem
            .as_deref()
            .filter(|problem| known.as_deref() != Some(*problem))
        {
            // Which capabilities are missing is told at the start, with all that this costs.
            match capabilities::missing(&Capability::NEEDED) {
                Some(_) => tracing::debug!(problem, "no capture can begin"),
                None => tracing::warn!(problem, "no capture can begin"),
            }
        }
        *known = problem;
    }

    /// Has another object loaded, unless one is ready. Not earlier than need be: it takes time from whoever waits for
    /// a capture.
    pub(super) fn refill(&self) {
        self.wanted.notify_one();
    }

    /// Loads an object whenever that is wanted, or failed a while ago. Never ends.
    pub(crate) async fn keep_one_ready(self: &Arc<Self>) {
        loop {
            let has_failed = self.problem().is_some();
            tokio::select! {
                () = self.wanted.notified() => {}
                () = sleep(RETRY_INTERVAL), if has_failed => {}
            }
            if !self.has_spare() {
                self.make_ready().await;
            }
        }
    }

    /// Loads an object for the next capture.
    pub(crate) async fn make_ready(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        let load = move || {
            try_what_captures_take()?;
            loader.load(&CaptureFilters::default(), false)
        };
        match tokio::task::spawn_blocking(load).await {
            Ok(Ok(loaded)) => {
                self.set_problem(None);
                drop(self.replace_spare(Some(loaded)));
            }
            // The captures that hold it did begin.
            Ok(Err(error @ TapError::RingMemory { .. })) => {
                self.set_problem(None);
                tracing::debug!(%error, "no object is ready");
            }
            // Whoever asks for a capture is told the same.
            Ok(Err(error)) => self.set_problem(Some(sentence_of(&error))),
            Err(error) => tracing::error!(%error, "loading an object was cut off"),
        }
    }

    fn has_spare(&self) -> bool {
        self.spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// An object for a capture: the one that is ready, if it serves. Who administers the service may have the memory, too,
    /// that is kept for that. Blocks for some tens of milliseconds if it must
    /// load one. Runs in any network namespace.
    ///
    /// # Errors
    /// When the kernel refuses something, or the rings of other captures take all the memory that there is for rings.
    pub(super) fn take(&self, filters: &CaptureFilters, is_admin: bool) -> Result<Loaded, TapError> {
        if filters.is_none()
            && let Some(spare) = self.replace_spare(None)
        {
            return Ok(spare);
        }
        match self.load(filters, is_admin) {
            // What is kept ready for the next one goes first.
            Err(error) if is_scarcity(&error) && self.replace_spare(None).is_some() => {
                self.load_when_freed(filters, is_admin)
            }
            loaded => loaded,
        }
    }

    /// Loads an object as soon as the kernel has back what was just let go of, which takes it a moment.
    fn load_when_freed(&self, filters: &CaptureFilters, is_admin: bool) -> Result<Loaded, TapError> {
        let deadline = Instant::now() + FREEING;
        loop {
            match self.load(filters, is_admin) {
                Err(error) if is_scarcity(&error) && Instant::now() < deadline => thread::sleep(FREEING / 10),
                loaded => return loaded,
            }
        }
    }

    fn load(&self, filters: &CaptureFilters, is_admin: bool) -> Result<Loaded, TapError> {
        let cpus = Cpus::look().map_err(LoadError::Cpus)?;
        let mut share = self.memory.take(cpus.rings(), is_admin)?;
        let hook = ChosenHook::choose(self.config.hook)?;
        let object = Object::load(&self.config, hook, filters, share.size, cpus, &self.connections)?;
        share.settle();
        Ok(Loaded { object, hook, share })
    }

    fn replace_spare(&self, spare: Option<Loaded>) -> Option<Loaded> {
        let mut place = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut place, spare)
    }
}

/// What each capture does beside having an object: it enters a namespace, and opens a packet socket there.
fn try_what_captures_take() -> Result<(), TapError> {
    let opened = Netns::own()?.enter(sys::packet_socket)?;
    let failed = |source| TapError::Socket {
        kind: "packet",
        source,
    };
    opened.map(drop).map_err(failed)
}

/// Why no capture can begin. The same each time for the same reason: which of the maps the kernel refuses first for want of
/// a right is chance.
fn sentence_of(error: &TapError) -> String {
    let blame = error.needs().blame(error);
    match errno(error) {
        Some(number) if !blame.is_empty() => match capabilities::missing(&Capability::NEEDED) {
            Some(missing) => format!(
                "{missing}, without which no capture can begin: {}",
                capabilities::remedy()
            ),
            None => format!("{error}: {}{blame}", io::Error::from(number)),
        },
        _ => chain(error),
    }
}

/// Whether others hold what is missing.
fn is_scarcity(error: &TapError) -> bool {
    matches!(error, TapError::RingMemory { .. } | TapError::Memory { .. }) || is_exhaustion(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::{Hook, RateLimits, RingConfig};

    #[test]
    fn no_capture_can_begin_before_an_object_was_loaded() {
        let loader = Loader::new(TapConfig {
            hook: Hook::Auto,
            rings: RingConfig {
                size: 1 << 20,
                is_fixed: false,
                memory: 1 << 30,
            },
            rates: RateLimits::default(),
            log_programs: false,
        });
        let problem = loader.problem().unwrap();
        assert!(problem.starts_with("the service is starting"), "{problem}");
        loader.set_problem(None);
        assert_eq!(loader.problem(), None);
    }
}
