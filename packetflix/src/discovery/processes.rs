//! The processes of this host: who is whose child, and in which namespaces they are.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::ErrorKind,
    process,
};

use super::peer::SocketPeer;
use crate::{
    error::note_want,
    netns::Holder,
    proc_fs::{Stat, live_namespace, proc_path},
};

/// Processes of one network namespace through which it is tried to reach that.
const MAX_HOLDERS: usize = 16;

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
    /// How often a process was looked up.
    #[cfg(test)]
    looks: std::cell::Cell<usize>,
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
            #[cfg(test)]
            looks: std::cell::Cell::default(),
        }
    }

    /// Has a process be in a PID namespace of this number.
    #[cfg(test)]
    pub(super) fn put_into_pid_namespace(&mut self, pid: u32, number: u64) {
        let process = self.processes.get_mut(&pid);
        process.expect("it is in the table").pid_namespace = OnceCell::from(Some(number));
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
    pub(super) fn is(&self, peer: &SocketPeer) -> bool {
        self.get(peer.pid).is_some() && peer.is_alive()
    }

    /// The user of a process; `None` when it may act for several.
    pub(super) fn user_of(&self, pid: u32) -> Option<u32> {
        self.get(pid)?;
        users_of(pid)
    }

    /// Whether root has started it on the host, and not in a container.
    pub(super) fn is_roots(&self, pid: u32) -> bool {
        self.user_of(pid) == Some(0) && self.pid_namespace(pid) == Some(self.own_pid_namespace)
    }

    /// All processes, by their network namespaces, the lowest PID first.
    pub(super) fn by_namespace(&self) -> HashMap<u64, Vec<u32>> {
        let mut all: HashMap<u64, Vec<u32>> = HashMap::new();
        for (&pid, process) in &self.processes {
            if let Some(netns) = process.netns {
                all.entry(netns).or_default().push(pid);
            }
        }
        all
    }

    /// How each network namespace is reached through processes that are in it: the first few, as any may leave it or end.
    /// The lowest PID is the most likely to last.
    pub(super) fn holders(&self) -> HashMap<u64, Vec<Holder>> {
        let holder = |&pid: &u32| {
            Some(match self.get(pid)?.thread {
                None => Holder::Process { pid },
                Some(tid) => Holder::Thread { pid, tid },
            })
        };
        let all = self.by_namespace().into_iter();
        all.map(|(inode, pids)| (inode, pids.iter().filter_map(holder).take(MAX_HOLDERS).collect()))
            .collect()
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
        #[cfg(test)]
        self.looks.update(|looks| looks + 1);
        self.processes.get(&pid)
    }

    /// The parent of a process.
    pub(super) fn parent(&self, pid: u32) -> Option<u32> {
        let parent = self.get(pid)?.stat.ppid;
        Some(parent).filter(|parent| *parent != 0)
    }

    /// For each process, what `find` gives of the first in its line for which it gives anything: itself, its parent, and so
    /// on. Looks at each process once, since a line may be as long as there are PIDs.
    pub(super) fn innermost<T: Copy>(&self, find: impl Fn(u32) -> Option<T>) -> HashMap<u32, T> {
        let mut known: HashMap<u32, Option<T>> = HashMap::with_capacity(self.processes.len());
        for &first in self.processes.keys() {
            let mut line = Vec::new();
            let mut next = Some(first);
            let mut found = None;
            while let (Some(pid), None) = (next, found) {
                if let Some(known) = known.get(&pid) {
                    found = *known;
                    break;
                }
                found = find(pid);
                // Before its parents are: one that ended while we read may have left its PID to a child.
                known.insert(pid, found);
                line.push(pid);
                next = self.parent(pid);
            }
            known.extend(line.into_iter().map(|pid| (pid, found)));
        }
        known
            .into_iter()
            .filter_map(|(pid, found)| Some((pid, found?)))
            .collect()
    }

    /// All processes that are among these, or descend from them.
    pub(super) fn below(&self, is_among: impl Fn(u32) -> bool) -> HashSet<u32> {
        let below = self.innermost(|pid| is_among(pid).then_some(()));
        below.into_keys().collect()
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
        let below = self.below(|pid| self.pid_namespace(pid) == Some(home));
        let numbered = below.into_iter().filter_map(|pid| {
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
    let status = fs::read(proc_path(pid, "status")).inspect_err(note_want).ok()?;
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
    let status = fs::read(proc_path(pid, "status"))
        .inspect_err(note_want)
        .unwrap_or_default();
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
            own_pid_namespace: tests::OWN,
            ..Self::default()
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

        /// How often a process was looked up.
        pub(in super::super) fn looks(&self) -> usize {
            self.looks.get()
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
        assert_eq!(table.by_namespace()[&200], [8, 9, 10]);
    }

    #[test]
    fn lines_end_even_when_they_are_circles() {
        let table = table(&[(1, 0, 0, 1), (5, 6, 0, 1), (6, 5, 0, 1), (7, 99, 0, 1)]);
        for pid in [5, 6] {
            assert_eq!(table.below(|one| one == pid), HashSet::from([5, 6]));
        }
        assert_eq!(table.below(|one| one == 99), HashSet::from([7, 99]));
        assert_eq!(table.below(|_| false), HashSet::new());
    }

    #[test]
    fn innermost_is_the_first_of_the_line() {
        let table = table(&[
            (1, 0, 0, 1),
            (4, 9, 0, 1),
            (5, 1, 0, 1),
            (9, 5, 0, 1),
            (12, 4, 0, 1),
            (13, 77, 0, 1),
        ]);
        let innermost = table.innermost(|pid| [1, 9].contains(&pid).then_some(pid));
        let expected = [(1, 1), (4, 9), (5, 1), (9, 9), (12, 9)];
        assert_eq!(innermost, HashMap::from(expected));
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
