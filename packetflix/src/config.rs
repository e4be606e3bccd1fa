//! Configuration that was checked: what the flags amount to on this machine.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{
    cli::Args,
    memory,
    tap::{MIN_RING_SIZE, RateLimits, RingConfig, TapConfig},
};

/// Shared among the rings of a capture, in bytes, unless a flag says otherwise.
const RING_BUDGET: u64 = 64 << 20;
/// Bounds of what a ring gets of it. The upper one holds what a TCP connection carries at 13 Gbit/s in 20 ms, for which
/// a reader may have to wait on a machine that is busy.
const DEFAULT_RING_SIZES: (u64, u64) = (1 << 20, 32 << 20);
/// All captures' rings together take at most this part of the memory, unless a flag says otherwise.
const MEMORY_SHARE: u64 = 8;
/// The kernel's own bound: ring buffers of 2 GiB and more cannot be mapped with their double data pages.
const MAX_RING_SIZE: u64 = 1 << 30;

/// How the server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// How captures are made.
    pub tap: TapConfig,
    /// Where the targets are asked for; `None` when packetflix finds them itself.
    pub discovery_service: Option<ServiceAddress>,
    /// Whether requests that are not ours go to the discovery service.
    pub proxy_discovery: bool,
    /// API sockets of container engines beside those at well-known places.
    pub engine_sockets: Vec<PathBuf>,
    /// Whether names in filters may be looked up.
    pub resolve_filter_names: bool,
    /// How many captures may run at the same time.
    pub quotas: Quotas,
    /// How long a capture may take at most.
    pub max_duration: Option<Duration>,
    /// After how long a client is given up that takes nothing or answers no ping.
    pub client_timeout: Duration,
    /// Whether each request is logged.
    pub log_requests: bool,
    /// Whether the headers of each request are logged.
    pub log_headers: bool,
    /// The host's name.
    pub node_name: String,
}

/// How many captures may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// In all.
    pub total: usize,
    /// Of one client.
    pub per_client: usize,
    /// Of one network namespace.
    pub per_target: usize,
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A ring cannot have that size.
    #[error(
        "--ring-size {0}: a ring has from {MIN_RING_SIZE} to {MAX_RING_SIZE} bytes, and a power of two of them"
    )]
    RingSize(u64),
    /// No capture could have its rings.
    #[error(
        "--ring-memory {memory}: the rings of one capture take {least} bytes at least, {} for each CPU",
        least / cpus
    )]
    RingMemory {
        /// Bytes that all rings may take.
        memory: u64,
        /// What those of one capture take.
        least: u64,
        /// How many there are.
        cpus: u64,
    },
    /// No packet would be worth its place.
    #[error("--max-byte-rate {0}: a capture has at least {least} bytes in a second", least = RateLimits::MIN_BYTE_RATE)]
    ByteRate(u64),
    /// The number of CPUs is not known.
    #[error("the number of CPUs could not be read")]
    Cpus(#[source] std::io::Error),
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| ConfigError::Cpus(error))?;
        Ok(Self {
            tap: TapConfig {
                hook: args.hook,
                rings: rings(args, cpus)?,
                rates: rates(args)?,
                log_programs: args.debug,
            },
            discovery_service: discovery_service(args),
            proxy_discovery: args.proxy_discovery,
            engine_sockets: args.engine_socket.clone(),
            resolve_filter_names: args.resolve_filter_names,
            quotas: Quotas {
                total: usize::from(args.max_captures),
                per_client: usize::from(args.max_captures_per_client),
                per_target: usize::from(args.max_captures_per_target),
            },
            max_duration: args.max_duration,
            client_timeout: args.client_timeout,
            log_requests: args.log_requests,
            log_headers: args.log_headers,
            node_name: nix::unistd::gethostname()
                .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()),
        })
    }
}

fn discovery_service(args: &Args) -> Option<ServiceAddress> {
    let wanted = args.discovery_service.is_some() || args.gw_port.is_some() || args.proxy_discovery;
    wanted.then(|| {
        let host = args.discovery_service.as_deref().unwrap_or("127.0.0.1");
        ServiceAddress {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: args.gw_port.unwrap_or(5000),
        }
    })
}

fn rates(args: &Args) -> Result<RateLimits, ConfigError> {
    match args.max_byte_rate {
        Some(bytes) if bytes < RateLimits::MIN_BYTE_RATE => Err(ConfigError::ByteRate(bytes)),
        bytes => Ok(RateLimits {
            packets: args.max_packet_rate,
            bytes,
        }),
    }
}

fn rings(args: &Args, cpus: usize) -> Result<RingConfig, ConfigError> {
    let size = ring_size(args.ring_size, cpus)?;
    let is_fixed = args.ring_size.is_some();
    let cpus = cpus as u64;
    let least = cpus * if is_fixed { size.into() } else { MIN_RING_SIZE };
    let memory = match args.ring_memory {
        Some(memory) if memory < least => return Err(ConfigError::RingMemory { memory, least, cpus }),
        Some(memory) => memory,
        // One that is running, and the one that is kept ready for the next.
        None => (memory::usable() / MEMORY_SHARE).max(2 * least),
    };
    Ok(RingConfig {
        size,
        is_fixed,
        memory,
        cpus: cpus as u32,
    })
}

fn ring_size(wanted: Option<u64>, cpus: usize) -> Result<u32, ConfigError> {
    let (least, most) = DEFAULT_RING_SIZES;
    let share = RING_BUDGET / cpus as u64;
    let size = wanted.unwrap_or_else(|| share.clamp(least, most).next_power_of_two().min(most));
    let fits = (MIN_RING_SIZE..=MAX_RING_SIZE).contains(&size) && size.is_power_of_two();
    u32::try_from(size)
        .ok()
        .filter(|_| fits)
        .ok_or(ConfigError::RingSize(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_follow_the_number_of_cpus() {
        for (cpus, size) in [
            (1, 32 << 20),
            (2, 32 << 20),
            (8, 8 << 20),
            (12, 8 << 20),
            (64, 1 << 20),
            (512, 1 << 20),
        ] {
            assert_eq!(ring_size(None, cpus).unwrap(), size, "{cpus} CPUs");
        }
    }

    #[test]
    fn refuses_rings_that_the_kernel_would() {
        assert_eq!(ring_size(Some(1 << 20), 4).unwrap(), 1 << 20);
        for wrong in [0, 4096, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
            assert!(ring_size(Some(wrong), 4).is_err(), "{wrong}");
        }
    }
}
