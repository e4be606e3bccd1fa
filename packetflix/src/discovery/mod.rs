//! The discovery of targets on this host: what container engines run, processes with a network namespace of their
//! own, mounted namespaces, and the host itself.
//!
//! A scan is: find sockets (`sockets.rs`, and by the processes of engines `listeners.rs`); ask the host's engines at once, and
//! of others some at a time, each for at most a second (`engines.rs`, `docker.rs`, `cri.rs`); read the process table
//! (`processes.rs`); list bind mounts, and the links of every namespace (`netns`); put it together (`assemble.rs`, pure but for
//! PID numbers of other PID namespaces).
//!
//! # Nothing that an engine says is taken on trust
//!
//! Anyone in a container can put a socket at a well-known place. It is found by `openat2` within that container's root and
//! connected to through its handle. Who is asked is asked by a process without rights (`asker`). Answers are bounded in bytes, count and time (`bounded.rs`, `budget.rs`). A pidfd holds the
//! process that listens (`peer.rs`), which has to live before and after it was asked. `trust.rs` says of whom it may speak.
//! What it says is translated from its PID namespace. Sockets that the operator named are asked first, then the host's, then
//! those of containers and users in turn (`turns.rs`).
//!
//! A process of which an engine has spoken is that one's for as long as it lives, whether the engine is there or not, unless
//! one that is trusted more speaks of it. PIDs that an engine told are kept for as long as the process with that start time
//! lives, so that later scans ask for the list alone.
//!
//! # What others have in their hands is looked at from a distance
//!
//! A path in a mount namespace may lead to a file system that never answers. A list of mounts may be of any length, and so may
//! a namespace's list of addresses. Such looks are taken by `lookout.rs`. Each place has an owner: the host, a container, a
//! user namespace or a user. Each owner has a bound of time in a round, and of threads that may be lost. Lists are read in
//! pieces, up to bounds of count and time (`netns/views.rs`, `netns/dump.rs`). What was not looked at, or not to its end, is a
//! `Gap`. A search that ends without all having been seen says so, and does not say that there is nothing.

mod addresses;
mod arrivals;
mod asker;
mod assemble;
mod bounded;
mod budget;
mod cri;
mod cri_api;
mod docker;
mod docker_starts;
mod doubts;
mod engine;
mod engine_socket;
mod engines;
mod formerly;
mod gap;
mod listeners;
mod occupants;
mod peer;
mod problem;
mod processes;
mod report;
mod scan;
mod scanner;
mod shared;
mod sockets;
mod starts;
pub(crate) mod target;
mod trust;
mod turns;
mod workload;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{Mutex, broadcast, watch},
    time::{Instant, sleep, timeout},
};

pub use self::asker::ask_engine_if_asked;
#[cfg(test)]
pub(crate) use self::problem::Problem;
pub(crate) use self::{
    addresses::AddressBook,
    arrivals::Arrived,
    formerly::Formerly,
    gap::Gap,
    report::EngineReport,
    scan::Scan,
    shared::{Follower, LateScan},
    target::DiscoveredTarget,
    trust::Trust,
    workload::PodName,
};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    pub use super::{asker::fuzzing::told, cri::fuzzing::cri, docker::fuzzing::docker};
}

use self::{
    arrivals::ArrivalWatch,
    engine_socket::EngineSocket,
    scan::{blocking, process_ids},
    scanner::Scanner,
    shared::SharedScan,
    starts::NewNamespace,
    turns::EngineTurns,
};
use crate::{line_bounds::WINDOW, metrics::Metrics, netns::Holder};

/// How long a scan is good enough for those who only want to see.
const FRESH: Duration = Duration::from_secs(1);

/// How often targets are looked for while their names are wanted.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);

/// Times that a scan took, to rest before the next.
const FOLLOW_REST: u32 = 100;

/// How long the sockets of engines are taken for those that there are, by who asks what is started.
const SOCKETS_ARE_FRESH: Duration = Duration::from_secs(10);

/// How long engines are asked what they start.
const START_PATIENCE: Duration = Duration::from_secs(5);

/// How long captures may go on without being judged anew.
const MAX_UNJUDGED: Duration = Duration::from_secs(5);

/// Finds targets. Scans are shared among all who ask at the same time.
#[derive(Debug)]
pub(crate) struct Discovery {
    scans: Arc<SharedScan<Scan>>,
    scanner: Arc<Scanner>,
    arrivals: ArrivalWatch,
    /// Sockets of engines that answer, and when they were found.
    answering: Mutex<Option<(Instant, Arc<Vec<EngineSocket>>)>>,
}

impl Discovery {
    /// Asks the engines at `engine_sockets` beside those at well-known places.
    pub(crate) fn new(engine_sockets: Vec<PathBuf>, node_name: String, metrics: Arc<Metrics>) -> Self {
        Self {
            scans: SharedScan::new(),
            scanner: Arc::new(Scanner::new(engine_sockets, node_name, metrics)),
            arrivals: ArrivalWatch::new(),
            answering: Mutex::default(),
        }
    }

    /// The names of addresses as they are known, and then each time that they have changed, as long as
    /// [`Self::follow`] runs.
    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<AddressBook>> {
        self.scanner.addresses.subscribe()
    }

    /// What comes into being from now on, as soon as it does, as long as [`Self::follow`] runs. What is missed, scans find.
    pub(crate) fn arrivals(&self) -> broadcast::Receiver<Arrived> {
        self.arrivals.follow()
    }

    /// Each scan that there is from now on, again and again as long as [`Self::follow`] runs.
    pub(crate) fn scans(&self) -> Follower<Scan> {
        self.scans.follow()
    }

    /// Looks again and again while there is someone who wants to know the names of addresses, or to judge by who is where.
    /// Never ends.
    pub(crate) async fn follow(&self) {
        tokio::join!(self.arrivals.run(|| self.mounted_in()), self.scan_again());
    }

    /// Where the host had network namespaces mounted in the last scan.
    fn mounted_in(&self) -> BTreeSet<PathBuf> {
        let Some(last) = self.scans.last() else {
            return BTreeSet::new();
        };
        let mounts = last.targets.iter().flat_map(|target| &target.namespace.mounts);
        let hosts = mounts.filter(|mount| mount.is_hosts);
        hosts
            .filter_map(|mount| mount.path.parent())
            .map(Path::to_owned)
            .collect()
    }

    async fn scan_again(&self) {
        self.scanner.look_at_named().await;
        let mut pause = FOLLOW_INTERVAL;
        loop {
            sleep(pause).await;
            let is_judged = self.scans.is_followed();
            if is_judged || self.scanner.addresses.receiver_count() > 0 {
                let began = Instant::now();
                // One that is late is told of by the service as a whole.
                let _ = self.recent().await;
                let rest = began.elapsed() * FOLLOW_REST;
                // Rights are not to outlive their reason for long.
                let most = if is_judged { MAX_UNJUDGED } else { rest };
                pause = FOLLOW_INTERVAL.max(rest.min(most));
            }
        }
    }

    /// Images of the target of this full name in a network namespace, as the last scan had them. Waits for nothing.
    pub(crate) fn known_images(&self, netns: u64, name: &str) -> Vec<String> {
        let Some(last) = self.scans.last() else {
            return Vec::new();
        };
        let targets = last.targets.iter();
        let mut found = targets.filter(|one| one.namespace.inode == netns && one.full_name() == name);
        found.next().map(|one| one.images().to_vec()).unwrap_or_default()
    }

    /// Who held a network namespace, given by its inode number, in the last scan. Waits for nothing.
    pub(crate) fn known_holders(&self, netns: u64) -> Vec<Holder> {
        let known = self
            .scans
            .last()
            .and_then(|scan| scan.holders.get(&netns).cloned());
        known.unwrap_or_default()
    }

    /// The state of a container that does not run, such as `exited`, if an engine knows one of this name or identifier.
    pub(crate) async fn state_at_rest(&self, name: &str) -> Option<String> {
        let configured = self.scanner.engine_sockets.clone();
        let found =
            blocking(move || sockets::find(&process_ids(), &configured, &EngineTurns::default())).await;
        engines::state_at_rest(&found.sockets, name).await
    }

    /// What the last scan found, however long that is ago. Waits for nothing.
    pub(crate) fn known(&self) -> Option<Arc<Scan>> {
        self.scans.last()
    }

    /// The container whose network namespace, of this inode number, the host has mounted at a path, as the engine tells that is
    /// starting it: before a scan can, and although it may end before one does. `macs` gives the hardware addresses that there
    /// are in the namespace by then. Asks again and again, for a bounded time.
    pub(crate) async fn starting_at(
        &self,
        path: &Path,
        netns: u64,
        macs: impl Fn() -> Vec<[u8; 6]> + Sync,
    ) -> Option<DiscoveredTarget> {
        let sockets = self.answering_sockets().await;
        let namespace = NewNamespace { path, macs: &macs };
        let told = timeout(START_PATIENCE, engines::starting_in(&sockets, &namespace)).await;
        let (engine, workload) = told.ok().flatten()?;
        Some(DiscoveredTarget::starting(workload, engine, netns, path))
    }

    /// Looks for the sockets of engines, if that was long ago, so that [`Self::starting_at`] need not.
    pub(crate) async fn look_for_sockets(&self) {
        drop(self.answering_sockets().await);
    }

    /// The sockets of engines that answered in the last scan, as they were found a moment ago: to find them takes longer than a
    /// container may live.
    async fn answering_sockets(&self) -> Arc<Vec<EngineSocket>> {
        let mut known = self.answering.lock().await;
        let last = self.scans.last();
        if let Some((found_at, sockets)) = &*known
            && found_at.elapsed() < SOCKETS_ARE_FRESH
        {
            // An engine that was started again has another one.
            let is_known = |id: &(u64, u64)| sockets.iter().any(|socket| socket.id == *id);
            let mut answering = last.iter().flat_map(|scan| &scan.engines);
            if answering.all(|engine| engine.hosts_socket().is_none_or(|id| is_known(&id))) {
                return Arc::clone(sockets);
            }
        }
        let configured = self.scanner.engine_sockets.clone();
        let found =
            blocking(move || sockets::find(&process_ids(), &configured, &EngineTurns::default())).await;
        let answers = |socket: &EngineSocket| {
            let mut engines = last.iter().flat_map(|scan| &scan.engines);
            engines.any(|engine| engine.problem.is_none() && engine.path == socket.path)
        };
        let sockets = Arc::new(found.sockets.into_iter().filter(answers).collect::<Vec<_>>());
        *known = Some((Instant::now(), Arc::clone(&sockets)));
        sockets
    }

    /// What there was a moment ago.
    ///
    /// # Errors
    /// When the scan that this takes is late.
    pub(crate) async fn recent(&self) -> Result<Arc<Scan>, LateScan> {
        let now = Instant::now();
        self.since(now.checked_sub(FRESH).unwrap_or(now)).await
    }

    /// What there is: looked at after this was called.
    ///
    /// # Errors
    /// When the scan is late.
    pub(crate) async fn scan_now(&self) -> Result<Arc<Scan>, LateScan> {
        self.since(Instant::now()).await
    }

    /// A scan that began at `earliest` or later. Those who wait for one share the next.
    ///
    /// # Errors
    /// When it is late.
    pub(crate) async fn since(&self, earliest: Instant) -> Result<Arc<Scan>, LateScan> {
        let scan = || {
            let scanner = Arc::clone(&self.scanner);
            async move { scanner.scan().await }
        };
        self.scans.since(earliest, scan).await
    }

    /// Logs how many changes had no line since the last time.
    pub(crate) fn tell_the_rest(&self) {
        for (owner, count) in self.scanner.lines.take_the_rest() {
            let owner = owner.map_or_else(|| "others".to_owned(), |owner| owner.to_string());
            let seconds = WINDOW.as_secs();
            tracing::warn!(
                owner,
                count,
                seconds,
                "more changed of what can be found than is logged"
            );
        }
    }

    /// Why targets cannot be found at the moment, if so.
    pub(crate) fn problem(&self) -> Option<String> {
        let late = self.scans.late()?;
        Some(format!(
            "the look for targets has not come to its end for {} s",
            late.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn those_who_wait_share_a_scan_that_began_after_they_asked() {
        let discovery = Discovery::new(
            vec!["/nowhere".into()],
            "here".to_owned(),
            Arc::new(Metrics::new()),
        );
        let (first, second, third) =
            tokio::join!(discovery.scan_now(), discovery.scan_now(), discovery.scan_now());
        let [first, second, third] = [first, second, third].map(Result::unwrap);
        assert!(Arc::ptr_eq(&first, &second) || first.at < second.at);
        assert!(Arc::ptr_eq(&second, &third));
        assert!(Arc::ptr_eq(&third, &discovery.recent().await.unwrap()));
        let mut engines = first.engines.iter();
        let named = engines
            .find(|engine| engine.path == Path::new("/nowhere"))
            .unwrap();
        let problem = named.problem.as_ref().unwrap();
        assert!(
            problem.sentence.starts_with("it cannot be opened: No such file"),
            "{problem:?}"
        );
        assert_eq!(named.whose(), "which --engine-socket names");
    }
}
