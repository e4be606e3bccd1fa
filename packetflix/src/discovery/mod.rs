//! The discovery of targets on this host: container engines, processes and bind mounts.

mod cri;
mod cri_api;
mod workload;

use workload::{KnownPids, PodName, Workload, WorkloadKind};
