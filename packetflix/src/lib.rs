//! packetflix: eBPF-accelerated packet capture as a service for container hosts.
//!
//! The road of a packet: the kernel's hook ─► a ring per CPU ([`tap`]) ─► pcapng ([`pcapng`]) ─► batches
//! (`session`) ─► WebSocket ([`http`]). `ARCHITECTURE.md` has the whole picture.
#![cfg(target_os = "linux")]

pub mod access;
mod allowance;
pub mod capabilities;
mod capture_end;
pub mod captures;
mod channel;
pub mod check;
pub mod cli;
pub mod config;
mod confined;
mod cpus;
mod description;
mod discovery;
#[cfg(test)]
mod documents;
mod error;
pub mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod gateway;
pub mod http;
mod http_client;
mod json;
pub mod keeper;
pub mod kubernetes;
mod line_bounds;
mod line_writer;
pub mod local;
pub mod logging;
mod lookout;
mod memory;
pub mod merging;
mod metrics;
mod nearest;
pub mod netns;
mod page;
pub mod pcapng;
mod proc_fs;
mod rates;
mod resolve;
pub mod service;
mod service_manager;
mod session;
mod sys;
pub mod tap;
mod text;
mod timeline;
mod turns;
mod units;

pub use confined::give_up_if_asked;
pub use discovery::ask_engine_if_asked;
pub use sys::{
    close_inherited_descriptors, limit_allocator_arenas, raise_limits, settle_inherited_signals,
    settle_inherited_state,
};
