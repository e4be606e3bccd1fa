//! What the tests on the real kernel share: namespaces, processes and container engines, the server as a program, a
//! client and a pcapng reader of other makes, a sender of frames, a scripted HTTP service, a reader of metrics, eBPF
//! programs alone, and what filters are compared with. The benchmarks use it, too, and its generator of packets is theirs.

pub mod bpf_objects;
pub mod bpf_run;
pub mod browser;
pub mod certificates;
pub mod client;
pub mod clock;
pub mod containerd;
pub mod control_group;
pub mod differential;
pub mod docker;
pub mod engine;
pub mod folder;
pub mod generator;
pub mod hoard;
pub mod hook;
pub mod http;
pub mod image;
pub mod kubernetes;
mod leftovers;
pub mod metrics;
pub mod namespace;
pub mod pace;
pub mod podman;
pub mod process;
pub mod random;
pub mod raw;
pub mod recording;
pub mod reverse_proxy;
pub mod server;
pub mod slow;
pub mod taken_over;
pub mod traces;
pub mod upstream;

use std::path::Path;

/// Root of the repository from which we were built.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}
