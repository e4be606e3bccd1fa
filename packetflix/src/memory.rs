//! How much memory this process may use.

use std::{fs, path::Path};

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

/// The lowest bound of the group that a line of `/proc/self/cgroup` names, and of those around it.
fn bound_of_group(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, group) = rest.split_once(':')?;
    let (root, file) = match controllers {
        "" => ("/sys/fs/cgroup", "memory.max"),
        _ if controllers.split(',').any(|controller| controller == "memory") => {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // In a container the group may be the root of what is mounted, whatever its name outside.
    let group = group.trim_start_matches('/');
    let bounds = Path::new(group).ancestors().filter_map(|group| {
        let bound = fs::read_to_string(Path::new(root).join(group).join(file)).ok()?;
        bound.trim().parse().ok()
    });
    bounds.min()
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
    fn lines_that_bound_nothing_are_passed_over() {
        for line in ["", "1:cpu:/x", "1", "0::/there/is/no/such/group/here"] {
            assert!(bound_of_group(line).is_none_or(|bound| bound > 0), "{line}");
        }
    }
}
