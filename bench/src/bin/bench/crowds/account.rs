//! What the kernel does and keeps for processes.

use std::collections::BTreeMap;

use crate::usage::descriptors;

/// What the eBPF programs of processes have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Runs {
    pub(crate) count: u64,
    pub(crate) nanoseconds: u64,
}

impl Runs {
    /// Those after an earlier look.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            nanoseconds: self.nanoseconds.saturating_sub(before.nanoseconds),
        }
    }
}

/// The runs of all programs that processes hold, each once; only while the kernel takes their times.
pub(crate) fn runs(pids: &[u32]) -> anyhow::Result<Runs> {
    let programs = objects(pids, "prog_id:", |info| {
        Some((
            number_after(info, "run_cnt:")?,
            number_after(info, "run_time_ns:")?,
        ))
    })?;
    let mut runs = Runs::default();
    for (count, nanoseconds) in programs.values() {
        runs.count += count;
        runs.nanoseconds += nanoseconds;
    }
    Ok(runs)
}

/// Bytes of the maps that processes hold, each once: of the rings, mostly.
pub(crate) fn maps(pids: &[u32]) -> anyhow::Result<u64> {
    let maps = objects(pids, "map_id:", |info| number_after(info, "memlock:"))?;
    Ok(maps.values().sum())
}

/// What `/proc/PID/fdinfo` tells of eBPF objects, by their numbers.
fn objects<T>(pids: &[u32], id: &str, read: impl Fn(&str) -> Option<T>) -> anyhow::Result<BTreeMap<u64, T>> {
    let mut objects = BTreeMap::new();
    for info in descriptors(pids)? {
        if let (Some(id), Some(object)) = (number_after(&info, id), read(&info)) {
            objects.insert(id, object);
        }
    }
    Ok(objects)
}

fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}
