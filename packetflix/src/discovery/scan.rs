//! One scan: asks engines, reads the process table and lists of mounts, and puts together what there is.

use std::{
    collections::{HashMap, HashSet},
    ops::Deref,
    path::{Path, PathBuf},
    process,
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{
    assemble::{self, RunningWorkload},
    engine::Engine,
    engine_socket::{EngineSocket, Origin},
    engines,
    formerly::Formerly,
    gap::{Gap, together},
    occupants::Census,
    processes::ProcessTable,
    report::{EngineReport, reports},
    sockets,
    target::{DiscoveredTarget, Mount, Namespace},
    trust::Authority,
    turns::EngineTurns,
    workload::KnownPids,
};
use crate::{
    access::Occupants,
    capabilities::Capability,
    error::{chain, wants},
    netns::{Holder, LinksOf, MountLists, View, Visited, links_of},
    proc_fs::numbers_in,
    sys,
};

/// Most places that are told at which one namespace is mounted.
const MAX_PATHS: usize = 16;

/// Most mounts of one namespace through which it is tried to reach that.
const MAX_MOUNTS: usize = 4;

/// Number of the host's network namespace on kernels that give it a fixed one, where that of the first process may
/// not be looked at. Kernel 6.18, `linux/nsfs.h`, `NET_NS_INIT_INO`.
const FIRST_NAMESPACE: u64 = 0xEFFF_FFF9;

/// What is remembered from one scan to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered {
    /// What ran.
    pub(super) running: Vec<RunningWorkload>,
    /// Which engines answered.
    turns: EngineTurns,
}

/// What there was at one time.
#[derive(Debug)]
pub(crate) struct Scan {
    /// No later than the scan began, on the clock that is not set.
    pub(crate) began: Instant,
    /// What was found.
    pub(crate) found: Found,
    /// Words that mean what is the host's, or meant it.
    pub(crate) formerly: Arc<Formerly>,
}

/// What a scan has found.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Found {
    /// When the scan began.
    pub(crate) at: SystemTime,
    /// All targets, ordered by name.
    pub(crate) targets: Vec<DiscoveredTarget>,
    /// The engines that were asked.
    pub(crate) engines: Vec<EngineReport>,
    /// What could not be looked at; nothing, if this is all that there is.
    pub(crate) gaps: Vec<Gap>,
    /// Who is in each network namespace, by its inode number.
    pub(super) occupants: HashMap<u64, Occupants>,
    /// Namespaces of which no one was left who was in them a moment before.
    pub(super) left: HashSet<u64>,
    /// Whether there may be processes in any namespace that were not seen.
    pub(crate) is_cut: bool,
    /// Whether that is so, or an engine of the host did not tell everything: there may be containers of any name.
    pub(crate) is_partial: bool,
}

impl Found {
    /// What is found where nothing could be looked at: there may be anything.
    pub(super) fn nothing() -> Self {
        Self {
            at: SystemTime::now(),
            targets: Vec::new(),
            engines: Vec::new(),
            gaps: vec![Gap::Want],
            occupants: HashMap::new(),
            left: HashSet::new(),
            is_cut: true,
            is_partial: true,
        }
    }
}

impl Deref for Scan {
    type Target = Found;

    fn deref(&self) -> &Found {
        &self.found
    }
}

impl Scan {
    /// One that has found these, and who is in each network namespace.
    #[cfg(test)]
    pub(crate) fn of(targets: Vec<DiscoveredTarget>, occupants: HashMap<u64, Occupants>) -> Self {
        let found = Found {
            targets,
            occupants,
            gaps: Vec::new(),
            is_cut: false,
            is_partial: false,
            ..Found::nothing()
        };
        Self {
            began: Instant::now(),
            found,
            formerly: Arc::default(),
        }
    }

    /// The targets in a network namespace.
    pub(crate) fn targets_in(&self, netns: u64) -> impl Iterator<Item = &DiscoveredTarget> {
        let targets = self.targets.iter();
        targets.filter(move |target| target.namespace.inode == netns)
    }

    /// Who is in a network namespace, given by its inode number; `None` when the scan has found no such namespace.
    pub(crate) fn occupants(&self, netns: u64) -> Option<&Occupants> {
        self.occupants.get(&netns)
    }

    /// Whether a network namespace, given by its inode number, may be there, although it may not have been seen.
    pub(crate) fn may_have(&self, netns: u64) -> bool {
        let is_hidden = || self.is_cut || self.gaps.iter().any(Gap::hides_namespaces);
        self.occupants(netns).is_some() || is_hidden()
    }

    /// Whether all whom it has in a network namespace left that while it looked, so that others may be there by now.
    pub(crate) fn have_left(&self, netns: u64) -> bool {
        self.left.contains(&netns)
    }
}

/// Looks for targets, given what is known from the scan before; gives who holds each network namespace, by its inode number, too.
pub(super) async fn scan(
    engine_sockets: &[PathBuf],
    known: Remembered,
) -> (Found, HashMap<u64, Vec<Holder>>, Remembered) {
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
    let all = Found {
        at,
        targets: found.targets,
        engines: reports,
        gaps: together(gaps),
        occupants: found.occupants,
        left: found.left,
        is_cut: found.is_cut,
        is_partial: found.is_partial,
    };
    (all, found.holders, known)
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
    let Remembered { running, turns } = known;
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
    let known = Remembered { running, turns };
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
pub(super) fn process_ids() -> Vec<u32> {
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

/// Runs what may block on a thread of its own.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime ends, and whoever waits with it.
        Err(_) => std::future::pending().await,
    }
}
