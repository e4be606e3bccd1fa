//! The processes of this host: who is whose child, and in which namespaces they are.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::ErrorKind,
};

use crate::proc_fs::{Stat, namespace_link, proc_path};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Name, parent and start time.
    pub(super) stat: Stat,
    /// Number of its network namespace; `None` when the kernel does not tell, as of a zombie.
    pub(super) netns: Option<u64>,
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
}

impl ProcessTable {
    /// Reads `/proc`. Blocks for some ten microseconds per process.
    pub(super) fn read(pids: &[u32]) -> Self {
        let mut hidden = 0;
        let read = |&pid: &u32| {
            let stat = Stat::read(pid).ok()?;
            let netns = namespace_link(&proc_path(pid, "ns/net"))
                .inspect_err(|error| hidden += usize::from(error.kind() == ErrorKind::PermissionDenied))
                .ok()
                .map(|(_, inode)| inode);
            Some((pid, Process { stat, netns }))
        };
        let processes = pids.iter().filter_map(read).collect();
        Self { processes, hidden }
    }

    /// How many processes the kernel does not let us look at.
    pub(super) fn hidden(&self) -> usize {
        self.hidden
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
            let Some(netns) = process.netns.filter(|_| !process.is_kthreadd(pid)) else {
                continue;
            };
            let parent = self.get(process.stat.ppid).and_then(|parent| parent.netns);
            if parent != Some(netns) {
                leaders.entry(netns).or_default().push(pid);
            }
        }
        for pids in leaders.values_mut() {
            pids.sort_by_key(|pid| (self.get(*pid).map(|process| process.stat.starttime), *pid));
        }
        leaders
    }

    /// Some process of each network namespace.
    pub(super) fn namespaces(&self) -> HashMap<u64, u32> {
        let in_namespace = |(pid, process): (&u32, &Process)| Some((process.netns?, *pid));
        // Of many, the lowest PID: it is the most likely to last.
        self.processes.iter().rev().filter_map(in_namespace).collect()
    }

    /// Processes as the PID namespace of process `pid` numbers them: those in it and in the namespaces below it,
    /// and none else. `None` when that is our own, where numbers are ours.
    pub(super) fn as_numbered_by(&self, pid: u32) -> Option<HashMap<u32, u32>> {
        let level = numbers_of(pid).len().checked_sub(1)?;
        if level == 0 {
            return None;
        }
        let home = pid_namespace(pid)?;
        let namespaces: HashMap<u32, u64> = self
            .processes
            .keys()
            .filter_map(|&pid| Some((pid, pid_namespace(pid)?)))
            .collect();
        let is_below = |pid: u32| self.line_of(pid).any(|pid| namespaces.get(&pid) == Some(&home));
        let numbered = self
            .processes
            .keys()
            .filter(|pid| is_below(**pid))
            .filter_map(|&pid| {
                let number = *numbers_of(pid).get(level)?;
                Some((number, pid))
            });
        Some(numbered.collect())
    }
}

fn pid_namespace(pid: u32) -> Option<u64> {
    namespace_link(&proc_path(pid, "ns/pid"))
        .ok()
        .map(|(_, inode)| inode)
}

/// The PIDs of a process in our PID namespace and in those below it, down to its own. Kernel 4.1.
///
/// Source: proc_pid_status(5), `NSpid`.
fn numbers_of(pid: u32) -> Vec<u32> {
    let status = fs::read_to_string(proc_path(pid, "status")).unwrap_or_default();
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
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

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
        assert_eq!(table.namespaces(), HashMap::from([(100, 1), (200, 8)]));
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
        let own = std::process::id();
        assert_eq!(numbers_of(own).first(), Some(&own));
        assert_eq!(
            ProcessTable::read(&[own]).as_numbered_by(own).is_some(),
            numbers_of(own).len() > 1
        );
    }
}
