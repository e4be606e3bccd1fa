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
mod call;
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
mod rest;
mod scan;
mod scanner;
mod serve;
mod shared;
mod sockets;
mod starts;
pub(crate) mod target;
mod trust;
mod turns;
mod workload;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep},
};

pub use self::asker::ask_engine_if_asked;
pub(crate) use self::{
    addresses::AddressBook,
    arrivals::Arrived,
    formerly::Formerly,
    gap::Gap,
    report::EngineReport,
    scan::Scan,
    serve::{Finder, serve, serve_arrivals},
    shared::{Follower, LateScan},
    target::DiscoveredTarget,
    trust::Trust,
    workload::PodName,
};
#[cfg(test)]
pub(crate) use self::{problem::Problem, serve::find_here};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    pub use super::{asker::fuzzing::told, cri::fuzzing::cri, docker::fuzzing::docker};
    use crate::channel::fuzzing::message;

    /// What a front asks that may have been taken over.
    pub(crate) fn asked(data: &[u8]) {
        let _ = message::<super::call::TargetsQuestion>(data);
    }
}

use self::{
    arrivals::ArrivalWatch,
    call::{StartNews, TargetsQuestion},
    rest::{Rest, SHORTEST, Wanted},
    scanner::Scanner,
    shared::SharedScan,
    starts::NewNamespace,
};
use crate::{
    channel::{Control, Kind, Line},
    line_bounds::WINDOW,
    metrics::Metrics,
    netns::CountersOf,
};

/// How long a scan is good enough for those who only want to see.
const FRESH: Duration = Duration::from_secs(1);

/// Finds targets. Scans are shared among all who ask at the same time.
#[derive(Debug)]
pub(crate) struct Discovery {
    scans: Arc<SharedScan<Scan>>,
    scanner: Arc<Scanner>,
    arrivals: ArrivalWatch,
    control: Arc<Control>,
}

impl Discovery {
    /// Asks the engines at `engine_sockets` beside those at well-known places.
    pub(crate) fn new(
        control: &Arc<Control>,
        engine_sockets: Vec<PathBuf>,
        node_name: String,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            scans: SharedScan::new(),
            scanner: Arc::new(Scanner::new(control, engine_sockets, node_name, metrics)),
            arrivals: ArrivalWatch::new(),
            control: Arc::clone(control),
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
        tokio::join!(self.arrivals.run(&self.control), self.scan_again());
    }

    async fn scan_again(&self) {
        self.scanner.look_at_named().await;
        let mut rest = Rest::after(Duration::ZERO);
        loop {
            let wanted = self.wanted();
            let left = rest.left(wanted.unwrap_or(Wanted::ByNames));
            if wanted.is_some() && left.is_zero() {
                let began = Instant::now();
                // One that is late is told of by the service as a whole.
                let _ = self.recent().await;
                rest = Rest::after(began.elapsed());
            } else {
                // Others may come meanwhile.
                sleep(if left.is_zero() {
                    SHORTEST
                } else {
                    left.min(SHORTEST)
                })
                .await;
            }
        }
    }

    /// Who wants scans, with the least patience of all.
    fn wanted(&self) -> Option<Wanted> {
        if self.scans.is_followed() {
            return Some(Wanted::ByFollowers);
        }
        (self.scanner.addresses.receiver_count() > 0).then_some(Wanted::ByNames)
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

    /// The state of a container that does not run, such as `exited`, if an engine knows one of this name or identifier.
    pub(crate) async fn state_at_rest(&self, name: &str) -> Option<String> {
        let question = TargetsQuestion::AtRest(name.to_owned());
        self.scanner.ask::<Option<String>>(question).await.flatten()
    }

    /// What the interfaces of all namespaces of the last scan have counted.
    pub(crate) async fn counters(&self) -> Option<CountersOf> {
        self.scanner.ask(TargetsQuestion::Counters).await
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
        let namespace = NewNamespace { path, macs: &macs };
        let news = self.starting(&namespace).await;
        let told = news.inspect_err(|error| tracing::debug!(%error, "it is not told what engines start"));
        let meant = told.ok().flatten()?;
        Some(DiscoveredTarget::starting(
            meant.workload,
            meant.engine,
            netns,
            path,
        ))
    }

    async fn starting(&self, namespace: &NewNamespace<'_>) -> io::Result<Option<call::Meant>> {
        let line = self.control.open(Kind::Targets).map_err(io::Error::from);
        let mut line = line.and_then(Line::into_served)?;
        line.say(&TargetsQuestion::Starting).await?;
        loop {
            match line.next::<StartNews>().await? {
                Some(StartNews::Starts(starting)) => {
                    line.say(&namespace.is_known_by(&starting.mark)).await?;
                }
                Some(StartNews::Over(meant)) => return Ok(meant),
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
    }

    /// Looks for the sockets of engines, if that was long ago, so that [`Self::starting_at`] need not.
    pub(crate) async fn look_for_sockets(&self) {
        let _ = self.scanner.ask::<()>(TargetsQuestion::LookForSockets).await;
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

    #[tokio::test(flavor = "multi_thread")]
    async fn those_who_wait_share_a_scan_that_began_after_they_asked() {
        let sockets = vec!["/nowhere".into()];
        let discovery = Discovery::new(
            &find_here(sockets.clone()),
            sockets,
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
