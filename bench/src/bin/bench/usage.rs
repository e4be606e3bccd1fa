//! What processes and the machine have used.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context as _, ensure};
use nix::{
    time::ClockId,
    unistd::{Pid, SysconfVar, sysconf},
};

/// CPU time and memory of processes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// CPU seconds, exact.
    pub(crate) cpu: f64,
    /// The same in the program and in the kernel, as far as a look at each of the clock's ticks tells.
    pub(crate) user: f64,
    /// See `user`.
    pub(crate) system: f64,
    /// CPU seconds of the whole machine's soft interrupts that interrupted something, or were too many for that.
    pub(crate) softirq: f64,
}

impl Usage {
    /// What processes have used until now.
    ///
    /// # Errors
    /// When one has ended.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut usage = Self {
            // `/proc/stat`: the name, then user, nice, system, idle, waiting, interrupts.
            softirq: ticks(&fs::read_to_string("/proc/stat")?, 7)?,
            ..Self::default()
        };
        for pid in pids {
            usage.cpu += cpu_of(&[*pid])?.as_secs_f64();
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
            let (_, rest) = stat.rsplit_once(") ").context("no name")?;
            // The first of these is the third.
            usage.user += ticks(rest, 14 - 3)?;
            usage.system += ticks(rest, 15 - 3)?;
        }
        Ok(usage)
    }

    /// What was used since an earlier moment.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu: self.cpu - earlier.cpu,
            user: self.user - earlier.user,
            system: self.system - earlier.system,
            softirq: self.softirq - earlier.softirq,
        }
    }
}

/// Seconds in a column of ticks of the first line.
fn ticks(text: &str, at: usize) -> anyhow::Result<f64> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("no ticks")? as f64;
    let line = text.lines().next().context("no line")?;
    let column = line.split_whitespace().nth(at).context("no such column")?;
    Ok(column.parse::<f64>()? / per_second)
}

/// Memory of processes, in MiB.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) resident: f64,
    /// The most since [`Memory::forget_peak`].
    pub(crate) peak: f64,
}

impl Memory {
    /// # Errors
    /// When a process has ended.
    pub(crate) fn of(pids: &[u32]) -> anyhow::Result<Self> {
        let mut memory = Self::default();
        for pid in pids {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let mib = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name))?;
                Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
            };
            memory.resident += mib("VmRSS:").context("no memory")?;
            memory.peak += mib("VmHWM:").context("no memory")?;
        }
        Ok(memory)
    }

    /// Lets the peaks of processes begin anew.
    ///
    /// # Errors
    /// When one has ended.
    pub(crate) fn forget_peak(pids: &[u32]) -> anyhow::Result<()> {
        for pid in pids {
            fs::write(format!("/proc/{pid}/clear_refs"), "5")?;
        }
        Ok(())
    }
}

/// A process and all that it has started, and so on.
///
/// # Errors
/// When there is no `/proc`.
pub(crate) fn tree(root: u32) -> anyhow::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // It may just have ended.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let mut tree = vec![root];
    let mut at = 0;
    while let Some(parent) = tree.get(at).copied() {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        tree.extend(children.map(|(pid, _)| *pid));
        at += 1;
    }
    Ok(tree)
}

/// CPU time of processes and all threads that they ever had: from their clocks, since `/proc/PID/stat` counts in hundredths
/// of a second only.
///
/// # Errors
/// When one has ended.
pub(crate) fn cpu_of(pids: &[u32]) -> anyhow::Result<Duration> {
    let mut used = Duration::ZERO;
    for pid in pids {
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(*pid)?))?;
        used += Duration::from(clock.now()?);
    }
    Ok(used)
}

/// CPU time of this thread.
///
/// # Errors
/// When the kernel has no such clock.
pub(crate) fn thread_cpu() -> anyhow::Result<Duration> {
    Ok(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?.into())
}

/// Nanoseconds per run of the program of these processes that is run most often while `work` is done; to be asked while the
/// kernel takes times.
///
/// # Errors
/// When it was not run `at_least` so often, or the work fails.
pub(crate) fn time_per_run<T>(
    pids: &[u32],
    at_least: u64,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<(f64, T)> {
    let before = runs(pids)?;
    let done = work()?;
    let mut most = (0, 0);
    for (program, (runs, time)) in runs(pids)? {
        // One may have served earlier captures.
        let (earlier, earlier_time) = before.get(&program).copied().unwrap_or_default();
        most = most.max((runs - earlier, time - earlier_time));
    }
    let (runs, time) = most;
    ensure!(runs >= at_least, "only {runs} runs");
    Ok((time as f64 / runs as f64, done))
}

/// How often the programs of processes ran, and for how many nanoseconds, by their numbers.
fn runs(pids: &[u32]) -> anyhow::Result<HashMap<u64, (u64, u64)>> {
    let mut programs = HashMap::new();
    for info in descriptors(pids)? {
        let number = |name| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.trim().parse::<u64>().ok())
        };
        if let (Some(id), Some(runs), Some(time)) =
            (number("prog_id:"), number("run_cnt:"), number("run_time_ns:"))
        {
            programs.insert(id, (runs, time));
        }
    }
    Ok(programs)
}

/// What `/proc/PID/fdinfo` tells of each descriptor.
///
/// # Errors
/// When a process has ended.
pub(crate) fn descriptors(pids: &[u32]) -> anyhow::Result<Vec<String>> {
    let mut infos = Vec::new();
    for pid in pids {
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // It may just have been closed.
            infos.push(fs::read_to_string(entry?.path()).unwrap_or_default());
        }
    }
    Ok(infos)
}
