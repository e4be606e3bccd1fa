//! Loads the eBPF object for captures. What does not depend on a request is done before it comes: one object is always
//! ready, loaded, verified and with its rings. One that a capture is done with is used again.
//!
//! A capture then has to find its namespace, list the links and attach. Beside that its rings are mapped by who reads them, and
//! with a filter its programs are loaded, which are no longer than the filter makes them.
//!
//! When a capture ends, the next one gets its object, so that those that come in a row do not wait for memory to be cleared,
//! nor for grace periods. With it come the programs that have its filter, for whoever asks for the same, and the links of
//! `tcx.rs`. Four objects may so be ready. After two seconds one is left, and that has no more than it had when it was loaded, so
//! that a server at rest has no more than at its start.

use std::{
    collections::BTreeSet,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    sync::{Mutex as AsyncMutex, Notify, watch},
    time::{sleep, sleep_until},
};

use super::{
    CaptureFilters, KernelError, LoadError, TapConfig, connections::Connections, hook::ChosenHook,
    memory::RingMemory, numbers::Numbers, object::Object, tcx::TcxLinks,
};
use crate::{
    capabilities::{self, Capability},
    cpus::Cpus,
    error::{chain, errno, is_exhaustion},
    netns::Netns,
    sys,
};

/// Most objects that are ready: as many as captures in a row need, of which each ends as the next begins.
const MAX_SPARES: usize = 4;

/// How long loading an object may take whose memory another capture lacks.
const LOADING: Duration = Duration::from_secs(1);

/// For how long more than one is kept, since captures that come in a row come soon.
const SURPLUS: Duration = Duration::from_secs(2);

/// After how long loading an object is tried again that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Loads objects, and keeps one ready at least.
pub(crate) struct Loader {
    config: TapConfig,
    memory: Arc<RingMemory>,
    /// The service's own, for the programs of all captures.
    connections: Arc<Connections>,
    spares: Mutex<Spares>,
    numbers: Numbers,
    /// Tells that a load which was begun has ended.
    loaded: Condvar,
    tcx: Arc<TcxLinks>,
    /// Tells that none may be ready, or that more is kept.
    changed: Notify,
    /// Why none could be loaded the last time.
    problem: Mutex<Option<String>>,
    /// One at a time sees to it that there is one.
    preparing: AsyncMutex<()>,
}

/// What is there for the next captures.
#[derive(Default)]
struct Spares {
    /// Those that are ready, the longest first.
    ready: Vec<Spare>,
    /// Whether another is being loaded.
    is_loading: bool,
}

/// A loaded object, whose programs wait to be attached.
struct Spare {
    object: Object,
    since: Instant,
}

impl Loader {
    pub(crate) fn new(config: TapConfig) -> Self {
        Self {
            memory: RingMemory::new(config.rings),
            config,
            connections: Arc::default(),
            spares: Mutex::default(),
            numbers: Numbers::default(),
            loaded: Condvar::new(),
            tcx: Arc::default(),
            changed: Notify::new(),
            preparing: AsyncMutex::default(),
            problem: Mutex::new(Some(
                "the service is starting: no eBPF object is loaded yet".to_owned(),
            )),
        }
    }

    /// The connections that captures leave out as the service's own.
    pub(super) fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }

    /// Bytes of rings that are in use, those of objects that are ready too.
    pub(super) fn ring_memory(&self) -> u64 {
        self.memory.taken()
    }

    /// The numbers of the objects that are ready, and of those in use that were.
    pub(super) fn numbers(&self) -> watch::Receiver<BTreeSet<u64>> {
        self.numbers.watch()
    }

    /// The rings of the object of this number, each with its place, and how many bytes each has; `None` unless it is ready.
    pub(super) fn rings_of(&self, number: u64) -> Option<(u32, Vec<(u32, OwnedFd)>)> {
        let spares = self.spares();
        let spare = spares
            .ready
            .iter()
            .find(|spare| spare.object.number.get() == number)?;
        let rings = &spare.object.rings;
        let cloned = rings
            .rings()
            .iter()
            .map(|(place, ring)| Ok((*place, ring.try_clone()?)));
        // Without descriptors for them they are mapped later, or not.
        let cloned: io::Result<_> = cloned.collect();
        Some((rings.size(), cloned.ok()?))
    }

    pub(super) fn config(&self) -> &TapConfig {
        &self.config
    }

    /// Why no capture can begin, if so, as far as it is known: no object could be loaded. That others have taken all the
    /// memory for rings is no such reason.
    pub(super) fn problem(&self) -> Option<String> {
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

    /// Has another object loaded, unless one is ready, and what is kept let go of in time. Not earlier than need be: loading
    /// takes time from whoever waits for a capture.
    pub(super) fn tend(&self) {
        self.changed.notify_one();
    }

    /// The TCX links of all captures.
    pub(super) fn tcx(&self) -> &TcxLinks {
        &self.tcx
    }

    /// Loads an object whenever none is ready, or failed a while ago, and lets go of what was kept for long enough. Never ends.
    pub(crate) async fn keep_one_ready(self: &Arc<Self>) {
        let sweeps = async {
            loop {
                sleep(Connections::LINGER).await;
                self.connections.sweep();
            }
        };
        tokio::join!(sweeps, self.load_again());
    }

    async fn load_again(self: &Arc<Self>) {
        loop {
            let has_failed = self.problem().is_some();
            let kept = self
                .surplus_until()
                .into_iter()
                .chain(self.tcx.kept_until())
                .min();
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep(RETRY_INTERVAL), if has_failed => {}
                () = sleep_until(kept.unwrap_or_else(Instant::now).into()), if kept.is_some() => {
                    self.let_go_of_surplus().await;
                    self.let_go_of_link().await;
                }
            }
            self.get_ready().await;
        }
    }

    /// Waits until an object was loaded, or could not be.
    pub(super) async fn get_ready(self: &Arc<Self>) {
        let _turn = self.preparing.lock().await;
        if self.spares().ready.is_empty() {
            self.make_ready().await;
        }
    }

    /// Loads an object for the next capture.
    async fn make_ready(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        let load = move || {
            try_what_captures_take()?;
            loader.load(false)
        };
        self.spares().is_loading = true;
        let loaded = tokio::task::spawn_blocking(load).await;
        let loaded = {
            let mut spares = self.spares();
            spares.is_loading = false;
            loaded.map(|loaded| loaded.map(|object| spares.ready.push(Spare::new(object))))
        };
        self.loaded.notify_all();
        match loaded {
            Ok(Ok(())) => self.set_problem(None),
            // The captures that hold it did begin.
            Ok(Err(error @ KernelError::RingMemory { .. })) => {
                self.set_problem(None);
                tracing::debug!(%error, "no object is ready");
            }
            // Whoever asks for a capture is told the same.
            Ok(Err(error)) => self.set_problem(Some(sentence_of(&error))),
            Err(error) => tracing::error!(%error, "loading an object was cut off"),
        }
    }

    /// Keeps an object that was cleared after a capture, if it is of use for the next; gives whether it is.
    pub(super) fn keep(&self, mut object: Object) -> bool {
        if !self.memory.would_give(object.rings.share()) {
            return false;
        }
        object.rings.set_admin(false);
        let too_many = {
            let ready = &mut self.spares().ready;
            ready.push(Spare::new(object));
            (ready.len() > MAX_SPARES).then(|| ready.remove(0))
        };
        drop(too_many);
        self.changed.notify_one();
        true
    }

    /// Until when there are more than one, or one has more than it needs.
    fn surplus_until(&self) -> Option<Instant> {
        let ready = &self.spares().ready;
        let has_more = |spare: &Spare| spare.object.has_more();
        let first = ready.first().filter(|first| ready.len() > 1 || has_more(first))?;
        Some(first.since + SURPLUS)
    }

    /// Lets go of those that were not used for a while, but one, and of what that has from the last capture.
    async fn let_go_of_surplus(self: &Arc<Self>) {
        let now = Instant::now();
        let mut old = Vec::new();
        let mut last = None;
        {
            let ready = &mut self.spares().ready;
            while ready.first().is_some_and(|spare| spare.since + SURPLUS <= now) {
                let spare = ready.remove(0);
                if ready.is_empty() {
                    last = Some(spare);
                } else {
                    old.push(spare);
                }
            }
        }
        let rested = tokio::task::spawn_blocking(move || {
            drop(old);
            if let Some(last) = &mut last {
                last.object.rest();
            }
            last
        });
        match rested.await {
            Ok(last) => self.spares().ready.splice(..0, last).for_each(drop),
            Err(error) => tracing::error!(%error, "letting go of an object was cut off"),
        }
    }

    /// Lets go of a link that no capture has wanted for a while. Of one at a time, so that an object is loaded in time.
    async fn let_go_of_link(&self) {
        let tcx = Arc::clone(&self.tcx);
        if let Err(error) = tokio::task::spawn_blocking(move || tcx.let_go_of_one()).await {
            tracing::error!(%error, "detaching a link was cut off");
        }
    }

    fn spares(&self) -> MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object for a capture with these filters: one that is ready, if there is any. Who administers the service may have the
    /// memory, too, that is kept for that. Blocks for some tens of milliseconds if it must load one. Runs in any network
    /// namespace.
    ///
    /// # Errors
    /// When the kernel refuses something, or the rings of other captures take all the memory that there is for rings.
    pub(super) fn take(&self, filters: &CaptureFilters, is_admin: bool) -> Result<Object, KernelError> {
        if let Some(mut object) = self.spares().take(filters) {
            object.rings.set_admin(is_admin);
            return Ok(object);
        }
        match self.load(is_admin) {
            // It may have gone into the one that is just being loaded.
            Err(error) if is_scarcity(&error) => self.wait_for_spare(is_admin).ok_or(error),
            loaded => loaded,
        }
    }

    /// An object that is being loaded already, if that is done soon.
    fn wait_for_spare(&self, is_admin: bool) -> Option<Object> {
        let is_awaited = |spares: &mut Spares| spares.ready.is_empty() && spares.is_loading;
        let waited = self.loaded.wait_timeout_while(self.spares(), LOADING, is_awaited);
        let (mut spares, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let mut object = spares.ready.pop()?.object;
        object.rings.set_admin(is_admin);
        Some(object)
    }

    fn load(&self, is_admin: bool) -> Result<Object, KernelError> {
        let cpus = Cpus::look().map_err(LoadError::Cpus)?;
        let share = self.memory.take(cpus.rings(), is_admin)?;
        let hook = ChosenHook::choose(self.config.hook)?;
        let number = self.numbers.next();
        Ok(Object::load(
            &self.config,
            hook,
            share,
            cpus,
            &self.connections,
            number,
        )?)
    }
}

/// What each capture does beside having an object: it enters a namespace, and opens a packet socket there.
fn try_what_captures_take() -> Result<(), KernelError> {
    let opened = Netns::own()?.enter(sys::packet_socket)?;
    let failed = |source| KernelError::Socket {
        kind: "packet",
        source,
    };
    opened.map(drop).map_err(failed)
}

/// Why no capture can begin. The same each time for the same reason: which of the maps the kernel refuses first for want of
/// a right is chance.
fn sentence_of(error: &KernelError) -> String {
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
fn is_scarcity(error: &KernelError) -> bool {
    matches!(error, KernelError::RingMemory { .. } | KernelError::Memory { .. }) || is_exhaustion(error)
}

impl Spares {
    /// The one that was used last; one that has programs with these filters before all others.
    fn take(&mut self, filters: &CaptureFilters) -> Option<Object> {
        let last = self.ready.len().checked_sub(1)?;
        let has_them = |spare: &Spare| spare.object.has_filtered(filters);
        let place = self.ready.iter().rposition(has_them).unwrap_or(last);
        Some(self.ready.remove(place).object)
    }
}

impl Spare {
    fn new(object: Object) -> Self {
        let since = Instant::now();
        object.number.keep();
        Self { object, since }
    }
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
