//! The processes of this host: who is whose child, and in which namespaces they are.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::ErrorKind,
    process,
};

use super::peer::Peer;
use crate::proc_fs::{Stat, live_namespace, proc_path};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Name, parent and start time.
    pub(super) stat: Stat,
    /// Number of its network namespace; `None` when the kernel does not tell, as of one that has ended.
    pub(super) netns: Option<u64>,
    /// The thread that it is reached through, where the first has ended.
    pub(super) thread: Option<u32>,
    /// Number of its PID namespace, once it was asked for.
    pid_namespace: OnceCell<Option<u64>>,
}

impl Process {
    /// Whether it is the parent of the kernel's threads, which stands for nobody.
    fn is_kthreadd(&self, pid: u32) -> bool {
        pid == 2 && self.stat.ppid == 0
    }
}

/// All processes at one time.
#[derive(Debug, Default)]
pub(super) struct ProcessTable {
    processes: BTreeMap<u32, Process>,
    /// How many of them the kernel does not let us look at.
    hidden: usize,
    own_pid_namespace: u64,
}

impl ProcessTable {
    /// Reads `/proc`. Blocks for some ten microseconds per process.
    pub(super) fn read(pids: &[u32]) -> Self {
        let mut hidden = 0;
        let read = |&pid: &u32| {
            let stat = Stat::read(pid).ok()?;
            let (thread, netns) = live_namespace(pid, "net")
                .inspect_err(|error| hidden += usize::from(error.kind() == ErrorKind::PermissionDenied))
                .map_or((None, None), |(thread, inode)| (thread, Some(inode)));
            let process = Process {
                stat,
                netns,
                thread,
                pid_namespace: OnceCell::new(),
            };
            Some((pid, process))
        };
        let processes = pids.iter().filter_map(read).collect();
        Self {
            processes,
            hidden,
            own_pid_namespace: pid_namespace(process::id()).unwrap_or_default(),
        }
    }

    /// Number of our own PID namespace.
    pub(super) fn own_pid_namespace(&self) -> u64 {
        self.own_pid_namespace
    }

    /// Number of the PID namespace of a process, if that can be looked at.
    pub(super) fn pid_namespace(&self, pid: u32) -> Option<u64> {
        let process = self.get(pid)?;
        *process.pid_namespace.get_or_init(|| pid_namespace(pid))
    }

    /// Whether the table has the process that a peer is, which has not ended since.
    pub(super) fn is(&self, peer: &Peer) -> bool {
        self.get(peer.pid).is_some() && peer.is_alive()
    }

    /// The user of a process; `None` when it may act for several.
    pub(super) fn user_of(&self, pid: u32) -> Option<u32> {
        self.get(pid)?;
        users_of(pid)
    }

    /// All processes, by their network namespaces.
    pub(super) fn by_namespace(&self) -> HashMap<u64, Vec<u32>> {
        let mut all: HashMap<u64, Vec<u32>> = HashMap::new();
        for (&pid, process) in &self.processes {
            if let Some(netns) = process.netns {
                all.entry(netns).or_default().push(pid);
            }
        }
        all
    }

    /// How many processes the kernel does not let us look at.
    pub(super) fn hidden(&self) -> usize {
        self.hidden
    }

    /// Whether there are any but the host's first, of which we know what it is: they may be in any namespace.
    pub(super) fn hides_others(&self) -> bool {
        self.hidden > usize::from(self.get(1).is_some_and(|process| process.netns.is_none()))
    }

    pub(super) fn get(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// The process and its parents, up to the first.
    pub(super) fn line_of(&self, pid: u32) -> impl Iterator<Item = u32> {
        let mut seen = HashSet::new();
        std::iter::successors(Some(pid), |pid| Some(self.get(*pid)?.stat.ppid))
            // A parent that ended while we read may have left its PID to a child.
            .take_while(move |pid| *pid != 0 && seen.insert(*pid))
    }

    /// Processes whose parent is in another network namespace, by their namespace: those that made or entered it,
    /// oldest first.
    pub(super) fn leaders(&self) -> HashMap<u64, Vec<u32>> {
        let mut leaders: HashMap<u64, Vec<u32>> = HashMap::new();
        for (&pid, process) in &self.processes {
            if let Some(netns) = process.netns.filter(|_| self.is_leader(pid)) {
                leaders.entry(netns).or_default().push(pid);
            }
        }
        for pids in leaders.values_mut() {
            pids.sort_by_key(|pid| (self.get(*pid).map(|process| process.stat.starttime), *pid));
        }
        leaders
    }

    /// Whether the parent of a process is in another network namespace.
    pub(super) fn is_leader(&self, pid: u32) -> bool {
        let Some(process) = self.get(pid).filter(|process| !process.is_kthreadd(pid)) else {
            return false;
        };
        let parent = self.get(process.stat.ppid).and_then(|parent| parent.netns);
        process.netns.is_some() && parent != process.netns
    }

    /// Some process of each network namespace, with the thread that it is reached through.
    pub(super) fn namespaces(&self) -> HashMap<u64, (u32, Option<u32>)> {
        let in_namespace = |(pid, process): (&u32, &Process)| Some((process.netns?, (*pid, process.thread)));
        // Of many, the lowest PID: it is the most likely to last.
        self.processes.iter().rev().filter_map(in_namespace).collect()
    }

    /// Processes as the PID namespace of process `pid` numbers them.
    pub(super) fn as_numbered_by(&self, pid: u32) -> Numbers {
        let Some(home) = self.pid_namespace(pid) else {
            return Numbers::Unknown;
        };
        if home == self.own_pid_namespace {
            return Numbers::Ours;
        }
        let Some(level) = numbers_of(pid).len().checked_sub(1) else {
            return Numbers::Unknown;
        };
        let is_below = |pid: u32| self.line_of(pid).any(|pid| self.pid_namespace(pid) == Some(home));
        let numbered = self
            .processes
            .keys()
            .filter(|pid| is_below(**pid))
            .filter_map(|&pid| {
                let number = *numbers_of(pid).get(level)?;
                Some((number, pid))
            });
        Numbers::Theirs(numbered.collect())
    }
}

/// What PIDs mean that somebody tells.
#[derive(Debug)]
pub(super) enum Numbers {
    /// They are those of our own PID namespace.
    Ours,
    /// Our PIDs of the processes in the teller's PID namespace and in those below it, by its own; there are no others.
    Theirs(HashMap<u32, u32>),
    /// That cannot be told.
    Unknown,
}

impl Numbers {
    /// Our PID of the process that the teller calls by this one.
    pub(super) fn translate(&self, pid: u32) -> Option<u32> {
        match self {
            Self::Ours => Some(pid),
            Self::Theirs(numbers) => numbers.get(&pid).copied(),
            Self::Unknown => None,
        }
    }
}

fn pid_namespace(pid: u32) -> Option<u64> {
    live_namespace(pid, "pid").ok().map(|(_, inode)| inode)
}

/// The one user that a process acts for: its real, effective, saved and file system user. `None` when these differ.
///
/// Source: proc_pid_status(5), `Uid`.
pub(super) fn users_of(pid: u32) -> Option<u32> {
    let status = fs::read(proc_path(pid, "status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let mut users = line.split_whitespace().map(|user| user.parse().ok());
    let first: Option<u32> = users.next()?;
    first.filter(|_| users.all(|user| user == first))
}

/// The PIDs of a process in our PID namespace and in those below it, down to its own. Kernel 4.1.
///
/// Source: proc_pid_status(5), `NSpid`.
fn numbers_of(pid: u32) -> Vec<u32> {
    // The name in it may be anything.
    let status = fs::read(proc_path(pid, "status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
impl FromIterator<(u32, Process)> for ProcessTable {
    fn from_iter<I: IntoIterator<Item = (u32, Process)>>(processes: I) -> Self {
        Self {
            processes: processes.into_iter().collect(),
            hidden: 0,
            own_pid_namespace: tests::OWN,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Number of the PID namespace of those that are made up.
    pub(in super::super) const OWN: u64 = 1;

    impl ProcessTable {
        pub(in super::super) fn extend(&mut self, more: Self) {
            self.processes.extend(more.processes);
        }
    }

    /// A table of processes: PID, parent, start time and network namespace.
    pub(in super::super) fn table(processes: &[(u32, u32, u64, u64)]) -> ProcessTable {
        let process = |&(pid, ppid, starttime, netns): &(u32, u32, u64, u64)| {
            let name = format!("p{pid}");
            let stat = Stat {
                name,
                ppid,
                starttime,
            };
            (
                pid,
                Process {
                    stat,
                    netns: (netns != 0).then_some(netns),
                    thread: None,
                    pid_namespace: OnceCell::from(Some(OWN)),
                },
            )
        };
        processes.iter().map(process).collect()
    }

    #[test]
    fn leaders_are_those_who_entered() {
        let table = table(&[
            (1, 0, 0, 100),
            (2, 0, 0, 100),
            (3, 2, 0, 100),
            (7, 1, 50, 100),
            (9, 7, 90, 200),
            (8, 7, 95, 200),
            (10, 9, 96, 200),
            (11, 1, 99, 0),
        ]);
        let leaders = table.leaders();
        assert_eq!(leaders[&100], [1]);
        assert_eq!(leaders[&200], [9, 8]);
        assert_eq!(leaders.len(), 2);
        assert_eq!(
            table.namespaces(),
            HashMap::from([(100, (1, None)), (200, (8, None))])
        );
    }

    #[test]
    fn lines_end_even_when_they_are_circles() {
        let table = table(&[(1, 0, 0, 1), (5, 6, 0, 1), (6, 5, 0, 1), (7, 99, 0, 1)]);
        assert_eq!(table.line_of(1).collect::<Vec<_>>(), [1]);
        assert_eq!(table.line_of(5).collect::<Vec<_>>(), [5, 6]);
        assert_eq!(table.line_of(7).collect::<Vec<_>>(), [7, 99]);
    }

    #[test]
    fn our_own_numbers_need_no_translation() {
        let own = process::id();
        assert_eq!(numbers_of(own).first(), Some(&own));
        let numbers = ProcessTable::read(&[own]).as_numbered_by(own);
        assert_eq!(numbers.translate(own), Some(own));
        assert_eq!(numbers.translate(u32::MAX), Some(u32::MAX));
    }
}
