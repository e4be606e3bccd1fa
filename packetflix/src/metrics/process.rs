//! What the process itself takes, under the names that all programs use for it, and what the keeper takes beside it.

use std::{fmt, fs, ops::Deref, sync::LazyLock};

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

use crate::{proc_fs::other_process, sys::own_descriptors};

/// Reads it when it is asked for.
#[derive(Debug)]
pub(super) struct ProcessCollector;

/// What `/proc/self` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Usage {
    stat: Stat,
    descriptors: u64,
    max_descriptors: u64,
}

/// What `/proc/PID/stat` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Stat {
    /// Seconds of all CPUs.
    cpu: f64,
    threads: u64,
    /// Bytes.
    virtual_memory: u64,
    /// Bytes.
    resident_memory: u64,
    /// Seconds since 1970.
    start: f64,
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // What cannot be read is not told.
        let Some(usage) = Usage::read() else {
            return Ok(());
        };
        let mut tell = |name, help, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        tell(
            "process_cpu_seconds",
            "CPU time that the process has taken",
            &ConstCounter::new(usage.cpu),
        )?;
        tell(
            "process_threads",
            "Threads of the process",
            &ConstGauge::new(usage.threads),
        )?;
        tell(
            "process_virtual_memory_bytes",
            "Address space of the process",
            &ConstGauge::new(usage.virtual_memory),
        )?;
        tell(
            "process_resident_memory_bytes",
            "Memory of the process that is resident",
            &ConstGauge::new(usage.resident_memory),
        )?;
        tell(
            "process_open_fds",
            "Open file descriptors",
            &ConstGauge::new(usage.descriptors),
        )?;
        tell(
            "process_max_fds",
            "The most file descriptors that may be open",
            &ConstGauge::new(usage.max_descriptors),
        )?;
        tell(
            "process_start_time_seconds",
            "When the process began, in seconds since 1970",
            &ConstGauge::new(usage.start),
        )?;
        let keeper = other_process().and_then(|pid| Stat::read(&pid.to_string()));
        let Some(Stat {
            cpu,
            threads,
            resident_memory,
            ..
        }) = keeper
        else {
            return Ok(());
        };
        tell(
            "packetflix_keeper_cpu_seconds",
            "CPU time that the process has taken that has the service's rights",
            &ConstCounter::new(cpu),
        )?;
        tell(
            "packetflix_keeper_threads",
            "Threads of the process that has the service's rights",
            &ConstGauge::new(threads),
        )?;
        tell(
            "packetflix_keeper_resident_memory_bytes",
            "Memory of the process that has the service's rights that is resident",
            &ConstGauge::new(resident_memory),
        )
    }
}

impl Deref for Usage {
    type Target = Stat;

    fn deref(&self) -> &Stat {
        &self.stat
    }
}

impl Usage {
    fn read() -> Option<Self> {
        let (descriptors, max_descriptors) = own_descriptors()?;
        Some(Self {
            stat: Stat::read("self")?,
            descriptors,
            max_descriptors,
        })
    }
}

impl Stat {
    /// Of a process, by its PID or as `self`. Source: proc_pid_stat(5): fields 14, 15, 20, 22, 23 and 24; proc_stat(5), `btime`.
    fn read(pid: &str) -> Option<Self> {
        static BOOT: LazyLock<Option<f64>> = LazyLock::new(|| {
            let stat = fs::read_to_string("/proc/stat").ok()?;
            stat.lines()
                .find_map(|line| line.strip_prefix("btime "))?
                .trim()
                .parse()
                .ok()
        });

        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name before the last parenthesis may hold anything; behind it stands field 3.
        let (_, fields) = stat.rsplit_once(") ")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        let field = |number: usize| -> Option<u64> { fields.get(number - 3)?.parse().ok() };
        let number = |variable| sysconf(variable).ok().flatten().map(|number| number as u64);
        let ticks = number(SysconfVar::CLK_TCK)? as f64;
        Some(Self {
            cpu: (field(14)? + field(15)?) as f64 / ticks,
            threads: field(20)?,
            start: (*BOOT)? + field(22)? as f64 / ticks,
            virtual_memory: field(23)?,
            resident_memory: field(24)? * number(SysconfVar::PAGE_SIZE)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn reads_what_the_process_takes() {
        let usage = Usage::read().unwrap();
        assert!(usage.threads >= 1 && usage.descriptors >= 3, "{usage:?}");
        assert!(usage.max_descriptors >= usage.descriptors, "{usage:?}");
        assert!(
            usage.resident_memory >= 1 << 20 && usage.virtual_memory >= usage.resident_memory,
            "{usage:?}"
        );
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(
            usage.start <= now + 1.0 && usage.start > now - 86_400.0,
            "{usage:?}"
        );
    }
}
