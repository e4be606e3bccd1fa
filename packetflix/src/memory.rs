//! How much memory this process may use.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::unistd::{SysconfVar, sysconf};

/// Bytes of memory that the machine has, or less where a control group of this process is bounded.
///
/// Source: `Documentation/admin-guide/cgroup-v2.rst`, `memory.max`; `cgroup-v1/memory.rst`, `memory.limit_in_bytes`.
pub(crate) fn usable() -> u64 {
    let number = |variable| sysconf(variable).ok().flatten().unwrap_or(0) as u64;
    let machine = number(SysconfVar::_PHYS_PAGES).saturating_mul(number(SysconfVar::PAGE_SIZE));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(bound_of_group).fold(machine, u64::min)
}

/// Bytes of memory that are left, on the machine or in a control group of this process.
///
/// What the kernel can have back at once, such as files that it keeps in memory, counts as left. Source:
/// `Documentation/filesystems/proc.rst`, `MemAvailable`, and those of [`usable`].
pub(crate) fn left() -> u64 {
    let machine = number_of("/proc/meminfo".as_ref(), "MemAvailable:").map_or(u64::MAX, |kib| kib * 1024);
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().filter_map(left_in_group).fold(machine, u64::min)
}

/// Bytes that may wait for slow clients of all captures together.
pub(crate) fn for_slow_clients() -> u64 {
    /// So much of the memory, and at least what a few of them lag behind.
    const SHARE: u64 = 16;
    const LEAST: u64 = 2 << 20;

    (usable() / SHARE).max(LEAST)
}

/// What the files of control groups are called, which differs between the two versions of their interface.
struct Files {
    root: &'static str,
    bound: &'static str,
    used: &'static str,
    /// In `memory.stat`: what of the used is not needed.
    unneeded: &'static str,
}

const FIRST_VERSION: Files = Files {
    root: "/sys/fs/cgroup/memory",
    bound: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    unneeded: "total_inactive_file",
};

const SECOND_VERSION: Files = Files {
    root: "/sys/fs/cgroup",
    bound: "memory.max",
    used: "memory.current",
    unneeded: "inactive_file",
};

/// The lowest bound of the group that a line of `/proc/self/cgroup` names, and of those around it.
fn bound_of_group(line: &str) -> Option<u64> {
    let (files, groups) = groups_of(line)?;
    groups
        .iter()
        .filter_map(|group| read_number(&group.join(files.bound)))
        .min()
}

/// What is left in the group that a line of `/proc/self/cgroup` names, or in one of those around it.
fn left_in_group(line: &str) -> Option<u64> {
    let (files, groups) = groups_of(line)?;
    let left = groups.iter().filter_map(|group| {
        let bound = read_number(&group.join(files.bound))?;
        let used = read_number(&group.join(files.used))?;
        let unneeded = number_of(&group.join("memory.stat"), files.unneeded).unwrap_or(0);
        Some(bound.saturating_sub(used.saturating_sub(unneeded)))
    });
    left.min()
}

/// The folders of the group that a line of `/proc/self/cgroup` names, and of those around it, if they are of memory.
fn groups_of(line: &str) -> Option<(Files, Vec<PathBuf>)> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    let files = match controllers {
        "" => SECOND_VERSION,
        _ if controllers.split(',').any(|controller| controller == "memory") => FIRST_VERSION,
        _ => return None,
    };
    // In a container the group may be the root of what is mounted, whatever its name outside.
    let group = Path::new(group.trim_start_matches('/'));
    let folders = group.ancestors().map(|group| Path::new(files.root).join(group));
    let folders = folders.collect();
    Some((files, folders))
}

/// The number that is all of a file. A bound that is none is no number.
fn read_number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The number in the line of a file that begins with this word.
fn number_of(file: &Path, word: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().map(str::split_ascii_whitespace);
    lines.find_map(|mut words| (words.next() == Some(word)).then(|| words.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_no_more_than_the_machine_has() {
        let info = fs::read_to_string("/proc/meminfo").unwrap();
        let total = info.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let total: u64 = total.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
        // What the kernel keeps for itself is in one of the two only.
        assert!((1 << 20..=total * 1024 * 11 / 10).contains(&usable()));
    }

    #[test]
    fn less_is_left_than_there_is() {
        assert!((1 << 20..usable()).contains(&left()));
    }

    #[test]
    fn lines_that_bound_nothing_are_passed_over() {
        for line in ["", "1:cpu:/x", "1", "0::/there/is/no/such/group/here"] {
            assert!(bound_of_group(line).is_none_or(|bound| bound > 0), "{line}");
        }
    }
}
