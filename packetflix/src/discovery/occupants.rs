//! Who is in each network namespace: all whose packets a capture of it would have.
//!
//! Those are each container with a process in it, and each process that is in no container and whose parent is elsewhere. A
//! process is in the container that it descends from, or whose PID namespace or control group it shares: that is found for all
//! processes in one walk. A name counts where it comes from someone to whom the namespace belongs.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fs::{self, File},
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::Path,
    sync::Arc,
};

use super::{
    assemble::{FoundWorkloads, RunningWorkload},
    doubts::Doubts,
    processes::ProcessTable,
    target::Namespace,
    trust::Authority,
};
use crate::{
    access::{Occupant, Occupants},
    error::note_want,
    proc_fs::{namespace_path, proc_path},
    sys,
};

/// Most containers that a process is taken to be in, where several share its PID namespace: whoever makes them chooses their
/// number, and that of the processes. Where there are more, who is there is in doubt.
const MAX_AROUND: usize = 64;

/// What is known of who is where.
pub(super) struct Census<'a> {
    pub(super) found: &'a FoundWorkloads,
    pub(super) table: &'a ProcessTable,
    pub(super) namespaces: &'a HashMap<u64, Arc<Namespace>>,
    /// The host's, by its number.
    pub(super) host: u64,
    /// Whether there may be processes anywhere that the table does not have.
    pub(super) is_cut: bool,
}

impl Census<'_> {
    /// All who are in each namespace: in those, too, that could not be looked at, since the table has them. `owners_of` tells the users whose user namespaces are around a process.
    pub(super) fn take(&self, owners_of: impl Fn(u32) -> io::Result<Vec<u32>>) -> HashMap<u64, Occupants> {
        let mut processes = self.table.by_namespace();
        let containers = Containers::of(self.found, self.table);
        let doubts = Doubts::of(&self.found.doubts, self.table);
        let inodes: HashSet<u64> = self.namespaces.keys().chain(processes.keys()).copied().collect();
        let occupants = inodes.into_iter().map(|inode| {
            let pids = processes.remove(&inode).unwrap_or_default();
            let is_doubtful = pids.iter().any(|pid| {
                let ancestor = containers.ancestor(*pid).map(|running| running.pid);
                doubts.cover(*pid, ancestor, &owners_of)
            });
            let owner = OnceCell::new();
            let owner = || *owner.get_or_init(|| self.owner_of(inode, &pids));
            let (names, is_all) = self.names(inode, &pids, owner, &containers);
            let is_complete = is_all && !self.is_cut && !is_doubtful;
            (inode, Occupants::new(names, is_complete))
        });
        occupants.collect()
    }

    /// The names of those who are in a namespace, and whether these are all.
    fn names(
        &self,
        inode: u64,
        pids: &[u32],
        owner: impl Fn() -> Option<u32> + Copy,
        containers: &Containers<'_>,
    ) -> (BTreeSet<Occupant>, bool) {
        let is_host = inode == self.host;
        let (mut names, mut is_all) = (BTreeSet::new(), true);
        for &pid in pids {
            let around = match containers.ancestor(pid) {
                Some(running) => vec![running],
                // What has no container of its own is the host's.
                None if is_host => continue,
                None => containers.around(pid),
            };
            is_all &= around.len() <= MAX_AROUND;
            names.extend(around.iter().take(MAX_AROUND).map(|running| Occupant {
                name: running.full_name(),
                is_self_chosen: match running.authority() {
                    Authority::Host | Authority::Container { .. } => false,
                    Authority::User(user) => owner() != Some(user),
                    Authority::PidNamespace(_) | Authority::Nobody => true,
                },
                is_pod: running.is_pod(),
            }));
            // Whoever inherited the namespace is whoever entered it.
            if around.is_empty() && self.table.is_leader(pid) {
                names.extend(self.by_own_name(pid, owner));
            }
        }
        if is_host {
            let first = pids.iter().find(|pid| self.table.is_leader(**pid));
            names.extend(first.and_then(|pid| self.by_own_name(*pid, || None)));
        }
        if let (true, Some(namespace)) = (pids.is_empty(), self.namespaces.get(&inode)) {
            names.extend(namespace.mounts.first().map(|mount| Occupant {
                name: mount.path.display().to_string(),
                is_self_chosen: !mount.is_hosts,
                is_pod: false,
            }));
        }
        (names, is_all)
    }

    /// A process by the name that it has given itself. That says what it is where root has started it, or where there is
    /// nothing to be had but what is its own user's.
    fn by_own_name(&self, pid: u32, owner: impl Fn() -> Option<u32>) -> Option<Occupant> {
        let is_said_by_owner = match self.table.user_of(pid) {
            None => false,
            Some(0) => self.table.pid_namespace(pid) == Some(self.table.own_pid_namespace()),
            Some(user) => owner() == Some(user),
        };
        let stat = &self.table.get(pid)?.stat;
        Some(Occupant {
            name: format!("{}({pid})", stat.name),
            is_self_chosen: !is_said_by_owner,
            is_pod: false,
        })
    }

    /// The user to whom a namespace belongs, seen through one of the processes in it that has not left it meanwhile.
    fn owner_of(&self, inode: u64, pids: &[u32]) -> Option<u32> {
        pids.iter().find_map(|pid| {
            let thread = self.table.get(*pid)?.thread;
            owner_through(&namespace_path(*pid, thread, "net"), inode)
        })
    }
}

/// The user to whom the namespace of this number belongs, if it is what the path leads to.
fn owner_through(path: &Path, inode: u64) -> Option<u32> {
    let namespace = File::open(path).ok()?;
    let is_meant = namespace.metadata().ok()?.ino() == inode;
    is_meant.then(|| sys::owner_of_namespace(namespace.as_fd()).ok())?
}

/// Which processes are in which containers.
struct Containers<'a> {
    found: &'a FoundWorkloads,
    table: &'a ProcessTable,
    /// The innermost that each process descends from.
    ancestors: HashMap<u32, &'a RunningWorkload>,
    /// By their PID namespace, where that is not ours.
    by_pid_namespace: OnceCell<HashMap<u64, Vec<&'a RunningWorkload>>>,
    /// By their identifiers, as far as control groups have them for names.
    by_identifier: OnceCell<BTreeMap<&'a str, &'a RunningWorkload>>,
}

impl<'a> Containers<'a> {
    fn of(found: &'a FoundWorkloads, table: &'a ProcessTable) -> Self {
        let listed = |pid| found.running.get(&pid).filter(|running| running.is_listed);
        Self {
            found,
            table,
            ancestors: table.innermost(listed),
            by_pid_namespace: OnceCell::new(),
            by_identifier: OnceCell::new(),
        }
    }

    fn listed(found: &'a FoundWorkloads) -> impl Iterator<Item = &'a RunningWorkload> {
        found.running.values().filter(|running| running.is_listed)
    }

    /// The innermost container that a process descends from.
    fn ancestor(&self, pid: u32) -> Option<&'a RunningWorkload> {
        self.ancestors.get(&pid).copied()
    }

    /// The containers that a process without such an ancestor is in, which was started there from outside, or has lost its
    /// parent: those whose PID namespace it shares, or whose control group it is in. Of those beyond the bound, one tells that
    /// there are some.
    fn around(&self, pid: u32) -> Vec<&'a RunningWorkload> {
        let beside = self.table.pid_namespace(pid).and_then(|namespace| {
            let by_namespace = self.by_pid_namespace.get_or_init(|| {
                let mut all: HashMap<u64, Vec<&RunningWorkload>> = HashMap::new();
                for running in Self::listed(self.found) {
                    let namespace = self.table.pid_namespace(running.pid);
                    if let Some(namespace) =
                        namespace.filter(|number| *number != self.table.own_pid_namespace())
                    {
                        let beside = all.entry(namespace).or_default();
                        if beside.len() <= MAX_AROUND {
                            beside.push(running);
                        }
                    }
                }
                all
            });
            by_namespace.get(&namespace).cloned()
        });
        beside.unwrap_or_else(|| self.by_control_group(pid).into_iter().collect())
    }

    /// Engines name the control group of a container by its identifier. Of several in a path the first counts: further down
    /// it is the container that makes them.
    fn by_control_group(&self, pid: u32) -> Option<&'a RunningWorkload> {
        let by_identifier = self.by_identifier.get_or_init(|| {
            let named = Self::listed(self.found).filter(|running| running.names_control_groups());
            named.map(|running| (running.container(), running)).collect()
        });
        if by_identifier.is_empty() {
            return None;
        }
        let groups = fs::read(proc_path(pid, "cgroup")).inspect_err(note_want).ok()?;
        let groups = String::from_utf8_lossy(&groups);
        let mut paths = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        paths.find_map(|path| {
            let mut words = path.split(|character: char| !character.is_ascii_alphanumeric());
            words.find_map(|word| by_identifier.get(word).copied())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever leaves a namespace for one of his own does not so become the owner of the one that he has left.
    #[test]
    fn owner_is_asked_of_the_namespace_that_is_meant() {
        let path = Path::new("/proc/self/ns/net");
        let inode = fs::metadata(path).unwrap().ino();
        assert!(owner_through(path, inode).is_some());
        assert_eq!(owner_through(path, inode + 1), None);
    }
}
