//! The discovery of targets on this host: container engines, processes and bind mounts.

mod workload;

use workload::{KnownPids, PodName, Workload, WorkloadKind};
