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
//! connected to through its handle. Answers are bounded in bytes, count and time (`bounded.rs`, `budget.rs`). A pidfd holds the
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
mod assemble;
mod bounded;
mod budget;
mod cri;
mod cri_api;
mod docker;
mod doubts;
mod engine;
mod engine_socket;
mod engines;
mod formerly;
mod gap;
mod listeners;
mod occupants;
mod peer;
mod processes;
mod shared;
mod sockets;
mod target;
mod trust;
mod turns;
mod workload;

use std::{
    collections::{HashMap, HashSet},
    io::ErrorKind,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    time::{Instant, sleep},
};

pub(crate) use self::{
    addresses::AddressBook,
    formerly::Formerly,
    gap::Gap,
    shared::{Follower, LateScan},
    target::{DiscoveredTarget, Mount, Namespace},
    trust::Trust,
    workload::PodName,
};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    pub use super::{cri::fuzzing::cri, docker::fuzzing::docker};
}

use self::{
    assemble::RunningWorkload,
    engine::Engine,
    engine_socket::{EngineSocket, Origin},
    gap::together,
    occupants::Census,
    processes::ProcessTable,
    shared::SharedScan,
    trust::Authority,
    turns::EngineTurns,
    workload::KnownPids,
};
use crate::{
    access::Occupants,
    capabilities::Capability,
    error::{chain, wants},
    line_bounds::{LineBounds, WINDOW},
    lookout::{Kind, Owner, Place},
    metrics::Metrics,
    netns::{Holder, LinksOf, MountLists, View, Visited, links_of},
    proc_fs::numbers_in,
    sys,
    text::readable,
};

/// How long a scan is good enough for those who only want to see.
const FRESH: Duration = Duration::from_secs(1);

/// How often targets are looked for while their names are wanted.
const FOLLOW_INTERVAL: Duration = Duration::from_secs(2);

/// Times that a scan took, to rest before the next.
const FOLLOW_REST: u32 = 100;

/// How long captures may go on without being judged anew.
const MAX_UNJUDGED: Duration = Duration::from_secs(5);

/// Most places that are told at which one namespace is mounted.
const MAX_PATHS: usize = 16;

/// Lines of the log in a while about what is in the hands of one user, or of containers.
const LINES: u64 = 10;

/// Most mounts of one namespace through which it is tried to reach that.
const MAX_MOUNTS: usize = 4;

/// Number of the host's network namespace on kernels that give it a fixed one, where that of the first process may
/// not be looked at. Kernel 6.18, `linux/nsfs.h`, `NET_NS_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFF9;

/// Finds targets. Scans are shared among all who ask at the same time.
#[derive(Debug)]
pub(crate) struct Discovery {
    scans: Arc<SharedScan<Scan>>,
    scanner: Arc<Scanner>,
}

/// Makes scans, and tells what has changed.
#[derive(Debug)]
struct Scanner {
    engine_sockets: Vec<PathBuf>,
    /// Name of the host.
    node_name: String,
    last: Mutex<Last>,
    /// Lines of the log about what is in others' hands, who can change it as often as they like.
    lines: LineBounds<Owner>,
    addresses: watch::Sender<Arc<AddressBook>>,
    metrics: Arc<Metrics>,
}

/// What is kept of the last scan, for the next.
#[derive(Debug, Default)]
struct Last {
    known: Remembered,
    engines: Vec<EngineReport>,
    gaps: Vec<Gap>,
}

/// What is remembered from one scan to the next.
#[derive(Clone, Debug, Default)]
struct Remembered {
    /// What ran.
    running: Vec<RunningWorkload>,
    /// Which engines answered.
    turns: EngineTurns,
    /// Words that mean what is the host's.
    formerly: Arc<Formerly>,
}

/// What there was at one time.
#[derive(Debug)]
pub(crate) struct Scan {
    /// When the scan began.
    pub(crate) at: SystemTime,
    /// All targets, ordered by name.
    pub(crate) targets: Vec<DiscoveredTarget>,
    /// The engines that were asked.
    pub(crate) engines: Vec<EngineReport>,
    /// What could not be looked at; nothing, if this is all that there is.
    pub(crate) gaps: Vec<Gap>,
    /// Who is in each network namespace, by its inode number.
    occupants: HashMap<u64, Occupants>,
    /// Namespaces of which no one was left who was in them a moment before.
    left: HashSet<u64>,
    /// Whether there may be processes in any namespace that were not seen.
    pub(crate) is_cut: bool,
    /// Words that mean what is the host's, or meant it.
    pub(crate) formerly: Arc<Formerly>,
    /// Who holds each network namespace, by its inode number.
    pub(crate) holders: HashMap<u64, Vec<Holder>>,
    /// Whether that is so, or an engine of the host did not tell everything: there may be containers of any name.
    pub(crate) is_partial: bool,
}

/// What became of asking an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineReport {
    /// Its socket, as those see it who have it.
    pub(crate) path: PathBuf,
    /// Where it was found.
    place: Place,
    /// A process that sees it there.
    seen_by: u32,
    /// How many containers and pods it told of.
    pub(crate) workloads: usize,
    /// Why it told nothing, or not everything.
    pub(crate) problem: Option<Problem>,
}

/// Why an engine told nothing, or not everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// Why.
    pub(crate) sentence: String,
    /// What to do about it.
    pub(crate) remedy: &'static str,
}

impl Problem {
    /// What to do about a socket that may not be opened.
    const DENIED: &'static str = "give the service CAP_DAC_OVERRIDE, or let it into the group of the socket";

    /// Of a socket that the operator named and that cannot be opened.
    fn missing(error: &std::io::Error) -> Self {
        let blame = Capability::DacOverride.blame(error);
        let remedy = match error.kind() {
            ErrorKind::NotFound => "start the engine, or write --engine-socket as its socket is called",
            ErrorKind::PermissionDenied => Self::DENIED,
            ErrorKind::TimedOut => "see what serves the file system that it lies on",
            _ => "write --engine-socket as the engine's socket is called",
        };
        Self {
            sentence: format!("it cannot be opened: {error}{blame}"),
            remedy,
        }
    }
}

impl EngineReport {
    /// What is missing for its sake.
    fn gap(&self) -> Option<Gap> {
        Some(Gap::Engine {
            path: self.path.clone(),
            whose: self.whose(),
            problem: self.problem.clone()?.sentence,
        })
    }

    /// Who sees the socket at its path: others may have another there.
    pub(crate) fn whose(&self) -> String {
        match self.mount_namespace() {
            Some(namespace) => format!(
                "as process {} sees it in mount namespace {namespace}",
                self.seen_by
            ),
            None => "which --engine-socket names".to_owned(),
        }
    }

    /// The mount namespace in which it was found; `None` where the operator named it.
    pub(crate) fn mount_namespace(&self) -> Option<u64> {
        match self.place.kind {
            Kind::Files(namespace) => Some(namespace),
            Kind::Named(_) | Kind::Mounts(_) | Kind::Interfaces(_) => None,
        }
    }

    /// Whether it tells of the same socket as another, and the same of it, however many containers there are.
    fn is_like(&self, other: &Self) -> bool {
        (&self.path, self.place, &self.problem) == (&other.path, other.place, &other.problem)
    }
}

impl Scan {
    /// The targets in a network namespace.
    pub(crate) fn targets_in(&self, netns: u64) -> impl Iterator<Item = &DiscoveredTarget> {
        let targets = self.targets.iter();
        targets.filter(move |target| target.namespace.inode == netns)
    }

    /// Who is in a network namespace, given by its inode number; `None` when the scan has found no such namespace.
    pub(crate) fn occupants(&self, netns: u64) -> Option<&Occupants> {
        self.occupants.get(&netns)
    }

    /// Whether all whom it has in a network namespace left that while it looked, so that others may be there by now.
    pub(crate) fn have_left(&self, netns: u64) -> bool {
        self.left.contains(&netns)
    }
}

impl Discovery {
    /// Asks the engines at `engine_sockets` beside those at well-known places.
    pub(crate) fn new(engine_sockets: Vec<PathBuf>, node_name: String, metrics: Arc<Metrics>) -> Self {
        let scanner = Scanner {
            engine_sockets,
            node_name,
            last: Mutex::default(),
            lines: LineBounds::new(LINES),
            addresses: watch::Sender::default(),
            metrics,
        };
        Self {
            scans: SharedScan::new(),
            scanner: Arc::new(scanner),
        }
    }

    /// The names of addresses as they are known, and then each time that they have changed, as long as
    /// [`Self::follow`] runs.
    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<AddressBook>> {
        self.scanner.addresses.subscribe()
    }

    /// Each scan that there is from now on, again and again as long as [`Self::follow`] runs.
    pub(crate) fn scans(&self) -> Follower<Scan> {
        self.scans.follow()
    }

    /// Looks again and again while there is someone who wants to know the names of addresses, or to judge by who is where.
    /// Never ends.
    pub(crate) async fn follow(&self) {
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

impl Scanner {
    /// Asks the engines that the operator named before anybody asks for targets, so that a name that is wrong is told at once.
    async fn look_at_named(&self) {
        if self.engine_sockets.is_empty() {
            return;
        }
        let named = self.engine_sockets.clone();
        let turns = EngineTurns::default();
        let found = blocking(move || sockets::find(&[], &named, &EngineTurns::default())).await;
        let engines = engines::ask_all(&found.sockets, &turns, |_| KnownPids::default()).await;
        let now = reports(&engines, found.missing);
        let mut last = self.last();
        self.report_engines(&last.engines, &now);
        // Unless there was a scan meanwhile, which knows all.
        if last.engines.is_empty() {
            last.engines = now;
        }
    }

    /// Makes a scan, and tells those who follow.
    async fn scan(&self) -> Scan {
        let began = Instant::now();
        let known = std::mem::take(&mut self.last().known);
        let (scan, known) = scan(&self.engine_sockets, known).await;
        let before = std::mem::replace(
            &mut *self.last(),
            Last {
                known,
                engines: scan.engines.clone(),
                gaps: scan.gaps.clone(),
            },
        );
        self.report_gaps(&before.gaps, &scan.gaps);
        self.report_engines(&before.engines, &scan.engines);
        self.count(&scan, began.elapsed());
        tracing::debug!(
            targets = scan.targets.len(),
            elapsed_ms = began.elapsed().as_millis(),
            "looked for targets"
        );
        let addresses = AddressBook::new(&scan, &self.node_name);
        self.addresses.send_if_modified(|known| {
            let changed = **known != addresses;
            if changed {
                *known = Arc::new(addresses);
            }
            changed
        });
        scan
    }

    /// Logs what newly could not be looked at.
    fn report_gaps(&self, before: &[Gap], now: &[Gap]) {
        for gap in now {
            let is_told =
                matches!(gap, Gap::Engine { .. }) || before.iter().any(|before| gap.is_like(before));
            if !is_told && self.is_worth_a_line(gap.owner()) {
                tracing::warn!(%gap, "not all targets can be found");
            }
        }
    }

    /// Logs engines whose state is another than before.
    fn report_engines(&self, before: &[EngineReport], now: &[EngineReport]) {
        for report in now {
            let is_told = before.iter().any(|before| report.is_like(before));
            if is_told || !self.is_worth_a_line(report.place.owner) {
                continue;
            }
            let (engine, whose) = (readable(report.path.as_os_str().as_bytes()), report.whose());
            match &report.problem {
                Some(Problem { sentence, remedy }) => tracing::warn!(
                    %engine,
                    whose,
                    problem = sentence,
                    remedy,
                    "an engine does not tell what it runs"
                ),
                None => tracing::info!(
                    %engine,
                    whose,
                    containers = report.workloads,
                    "an engine tells what it runs"
                ),
            }
        }
    }

    fn is_worth_a_line(&self, owner: Owner) -> bool {
        owner == Owner::Host || self.lines.allow(&owner)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the metrics of a scan. Engines are named by where their sockets are, which for containers and users may be
    /// anywhere: these are taken together.
    fn count(&self, scan: &Scan, took: Duration) {
        self.metrics.scanned(took);
        for engine in scan.engines.iter().filter(|engine| engine.problem.is_some()) {
            let is_known = self.engine_sockets.contains(&engine.path) || sockets::is_well_known(&engine.path);
            let name = if is_known {
                engine.path.display().to_string()
            } else {
                "other".to_owned()
            };
            self.metrics.engine_failed(name);
        }
    }
}

async fn scan(engine_sockets: &[PathBuf], known: Remembered) -> (Scan, Remembered) {
    let at = SystemTime::now();
    let wants_before = wants();
    let configured = engine_sockets.to_vec();
    let (found, mut known, pids) = blocking(move || {
        let found = sockets::find(&process_ids(), &configured, &known.turns);
        let pids = still_there(&known.running);
        (found, known, pids)
    })
    .await;
    let sockets::FoundSockets {
        sockets,
        missing,
        mut gaps,
        unasked,
    } = found;
    let known_pids = |id| pids.get(&id).cloned().unwrap_or_default();
    let engines = engines::ask_all(&sockets, &known.turns, known_pids).await;
    known.turns.take_in(&engines);
    let reports = reports(&engines, missing);
    drop::<Vec<EngineSocket>>(sockets);
    gaps.extend(reports.iter().filter_map(EngineReport::gap));
    let (found, known) = blocking(move || targets(&engines, &unasked, known, wants_before)).await;
    gaps.extend(found.gaps);
    let scan = Scan {
        at,
        targets: found.targets,
        engines: reports,
        gaps: together(gaps),
        occupants: found.occupants,
        left: found.left,
        is_cut: found.is_cut,
        formerly: Arc::clone(&known.formerly),
        holders: found.holders,
        is_partial: found.is_partial,
    };
    (scan, known)
}

/// What was found of targets.
struct FoundTargets {
    targets: Vec<DiscoveredTarget>,
    occupants: HashMap<u64, Occupants>,
    left: HashSet<u64>,
    holders: HashMap<u64, Vec<Holder>>,
    gaps: Vec<Gap>,
    is_cut: bool,
    is_partial: bool,
}

/// The targets now, given what the engines told, and where there are others that were not asked; and what is to be
/// remembered. `wants_before` is how often descriptors or memory were wanting before the scan.
fn targets(
    engines: &[Engine],
    unasked: &[(Origin, u32)],
    known: Remembered,
    wants_before: u64,
) -> (FoundTargets, Remembered) {
    let pids = process_ids();
    let table = ProcessTable::read(&pids);
    let Remembered {
        running,
        turns,
        mut formerly,
    } = known;
    let mut found = assemble::find_processes(engines, &table, running, sys::users_around);
    if !unasked.is_empty() {
        let enclosing = found.enclosing(&table);
        let widest = |(origin, seen_by): &(_, u32)| Authority::widest(*origin, *seen_by, &table, &enclosing);
        let doubts: Vec<Authority> = unasked.iter().map(widest).collect();
        drop(enclosing);
        found.doubts.extend(doubts);
    }
    let mut gaps = Vec::new();
    // Some hosts hide a process from everyone: that is not for us to complain about.
    if table.hidden() > 0 && !Capability::SysPtrace.is_effective() {
        gaps.push(Gap::Processes {
            count: table.hidden(),
        });
    }
    let host = table
        .get(1)
        .and_then(|process| process.netns)
        .unwrap_or(FIRST_NAMESPACE);
    let (namespaces, holders) = namespaces(&pids, &table, host, &mut gaps);
    let targets = assemble::assemble(&found, &table, &namespaces);
    Arc::make_mut(&mut formerly).look_at(&targets);
    let mut census = Census {
        found: &found,
        table: &table,
        namespaces: &namespaces,
        host,
        is_cut: table.hides_others(),
    };
    let mut occupants = census.take(sys::users_around);
    // Anything may be missing then: a process, an engine, or whose something is.
    if wants() != wants_before {
        gaps.push(Gap::Want);
        census.is_cut = true;
        occupants = census.take(sys::users_around);
    }
    let is_cut = census.is_cut;
    let is_partial = is_cut || found.doubts.contains(&Authority::Host);
    let left = occupants.keys().filter(|inode| !namespaces.contains_key(inode));
    let left = left.copied().collect();
    let running = found.running.into_values().collect();
    let found = FoundTargets {
        targets,
        occupants,
        left,
        holders,
        gaps,
        is_cut,
        is_partial,
    };
    let known = Remembered {
        running,
        turns,
        formerly,
    };
    (found, known)
}

/// All network namespaces that a process or a bind mount holds, and who does.
fn namespaces(
    pids: &[u32],
    table: &ProcessTable,
    host: u64,
    gaps: &mut Vec<Gap>,
) -> (HashMap<u64, Arc<Namespace>>, HashMap<u64, Vec<Holder>>) {
    let mut holders = table.holders();
    let mut mounted: HashMap<u64, Vec<Mount>> = HashMap::new();
    let mut lists = MountLists::new(View::all(pids));
    for (inode, holder) in lists.by_ref().flatten() {
        if let Holder::Mount { pid, path, .. } = &holder {
            let mounts = mounted.entry(inode).or_default();
            if mounts.len() < MAX_MOUNTS {
                holders.entry(inode).or_default().push(holder.clone());
            }
            let is_hosts = [1, process::id()].contains(pid);
            let has_room = mounts.len() < MAX_PATHS;
            match mounts.iter_mut().find(|mount| mount.path == *path) {
                Some(mount) => mount.is_hosts |= is_hosts,
                // The host's come before those of others.
                None if has_room => mounts.push(Mount {
                    path: path.clone(),
                    is_hosts,
                }),
                None => {}
            }
        }
    }
    gaps.extend(lists.unseen.into_iter().map(Gap::Place));
    let LinksOf { visited, unseen } = links_of(&holders).unwrap_or_else(|error| {
        let problem = chain(&error) + &Capability::SysAdmin.blame(&error);
        gaps.push(Gap::Interfaces { problem });
        LinksOf::default()
    });
    let of_one = |(place, problem)| Gap::InterfacesOf { place, problem };
    gaps.extend(unseen.into_iter().map(of_one));
    let namespaces = visited.into_iter().map(|(inode, Visited { links, is_roots })| {
        let mut mounts = mounted.remove(&inode).unwrap_or_default();
        mounts.sort_by_key(|mount| !mount.is_hosts);
        let namespace = Namespace {
            inode,
            is_host: inode == host,
            is_roots,
            links,
            mounts,
        };
        (inode, Arc::new(namespace))
    });
    (namespaces.collect(), holders)
}

/// All processes; those first whose mounts are the host's.
fn process_ids() -> Vec<u32> {
    let mut pids: Vec<u32> = numbers_in(Path::new("/proc")).into_iter().flatten().collect();
    let own = process::id();
    pids.sort_unstable_by_key(|pid| (*pid != 1, *pid != own, *pid));
    pids
}

/// The PIDs of those that still are the same processes, by the engine's socket.
fn still_there(running: &[RunningWorkload]) -> HashMap<(u64, u64), KnownPids> {
    let mut known: HashMap<(u64, u64), KnownPids> = HashMap::new();
    for running in running.iter().filter(|running| running.is_there()) {
        let (engine, pid) = running.known();
        known.entry(engine).or_default().extend([pid]);
    }
    known
}

fn reports(engines: &[Engine], missing: Vec<(PathBuf, Place, std::io::Error)>) -> Vec<EngineReport> {
    let asked = engines.iter().map(|engine| EngineReport {
        path: engine.path.clone(),
        place: engine.place,
        seen_by: engine.seen_by,
        workloads: count(engine),
        problem: engine.problem.clone(),
    });
    let missing = missing.into_iter().map(|(path, place, error)| EngineReport {
        path,
        place,
        seen_by: process::id(),
        workloads: 0,
        problem: Some(Problem::missing(&error)),
    });
    asked.chain(missing).collect()
}

/// How many containers and pods an engine told of. It tells of a pod as often as that has processes.
fn count(engine: &Engine) -> usize {
    let ids: HashSet<&str> = engine.workloads.iter().map(|workload| &workload.id[..]).collect();
    ids.len()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and whoever waits with it.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
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
