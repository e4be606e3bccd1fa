//! What packetflix' eBPF programs and its user space agree on: the record that carries a packet through a
//! ring, the counters of an interface, what is the service's own traffic, and the names of maps, globals and programs.
//!
//! Both sides run on the same machine, so every number is in native byte order.

#![no_std]

mod counters;
mod own;
mod rate;
mod record;

pub use counters::{InterfaceCounters, InterfaceEntry, InterfaceFilter, InterfaceSettings};
pub use own::{
    MAX_OWN_CONNECTIONS, MAX_OWN_ENDPOINTS, MAX_OWN_PORTS, OwnConnection, OwnEndpoint, OwnPorts, connections,
};
pub use rate::{Paid, RateCosts};
pub use record::{Direction, MAX_CAPTURED_LEN, RecordHeader};

/// Number of what both sides agree on, which the eBPF object has in its section [`ABI`](sections::ABI): what is in this crate, and
/// what a name in it stands for. Whoever changes that takes the next number.
pub const ABI: u32 = 1;

/// Names of the sections in the eBPF object that no kernel reads.
pub mod sections {
    /// The number [`ABI`](crate::ABI) of the sources that the object was built from.
    pub const ABI: &str = "packetflix.abi";
}

/// Names of the programs in the eBPF object.
pub mod programs {
    /// Classifier for packets that an interface receives (TCX ingress, kernel 6.6).
    pub const TC_INGRESS: &str = "tc_ingress";
    /// Classifier for packets that an interface sends (TCX egress, kernel 6.6).
    pub const TC_EGRESS: &str = "tc_egress";
    /// Does nothing, in the place of either between two captures.
    pub const TC_IDLE: &str = "tc_idle";
    /// Socket filter for both directions (AF_PACKET, kernel 5.8 for its ring buffer).
    pub const SOCKET: &str = "socket";
    /// Goes on in [`SOCKET`], where the kernel attaches no program of that size.
    pub const SOCKET_ENTRY: &str = "socket_entry";
}

/// Names of the functions in whose places filters are put.
pub mod filters {
    /// For packets that begin with an Ethernet header.
    pub const ETHERNET: &str = "filter_ethernet";
    /// For packets that begin with an IP header.
    pub const RAW: &str = "filter_raw";
}

/// Names of the maps in the eBPF object.
pub mod maps {
    /// Array of ring buffers: at [`ring_of`](crate::ring_of) its CPU, if that has one of its own, and at
    /// [`SPARE_RING`](crate::SPARE_RING) the one for those that have none, if there may be such.
    pub const RINGS: &str = "RINGS";
    /// Per-CPU hash from interface index to [`InterfaceEntry`](crate::InterfaceEntry).
    pub const INTERFACES: &str = "INTERFACES";
    /// Array of one [`OwnPorts`](crate::OwnPorts).
    pub const OWN_PORTS: &str = "OWN_PORTS";
    /// Array of the lists of connections, at the places of [`connections`](crate::connections): hashes whose keys are
    /// [`OwnConnection`](crate::OwnConnection)s, shared by all captures; their `u32` means nothing.
    pub const OWN_CONNECTIONS: &str = "OWN_CONNECTIONS";
    /// Hash whose keys are [`OwnEndpoint`](crate::OwnEndpoint)s; their `u32` means nothing.
    pub const OWN_ENDPOINTS: &str = "OWN_ENDPOINTS";
    /// Array of one [`Paid`](crate::Paid).
    pub const PAID: &str = "PAID";
    /// Array of one program, [`SOCKET`](crate::programs::SOCKET).
    pub const SOCKET_PROGRAM: &str = "SOCKET_PROGRAM";
    /// The ring of aya-log, with the name aya-log gives it.
    pub const LOGS: &str = "AYA_LOGS";
}

/// Names of the globals that user space sets before it loads a program.
pub mod globals {
    /// `u32`: the clock of the timestamps, see [`clock`](crate::clock).
    pub const CLOCK: &str = "CLOCK";
    /// `u32`: not 0 when a program may interrupt another one on the same CPU, as with PREEMPT_RT; counting then is atomic.
    pub const PREEMPTIBLE: &str = "PREEMPTIBLE";
    /// `u8`: level of aya-log, 0 is off.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

/// Values of the global [`CLOCK`](globals::CLOCK).
pub mod clock {
    /// CLOCK_TAI, by `bpf_ktime_get_tai_ns` (kernel 6.1).
    pub const TAI: u32 = 0;
    /// CLOCK_BOOTTIME, by `bpf_ktime_get_boot_ns` (kernel 5.8).
    pub const BOOTTIME: u32 = 1;
}

/// How many interfaces one capture can hold at a time.
pub const MAX_INTERFACES: u32 = 4096;

/// How many rings their array is declared for; user space sets the number for this machine at load.
pub const DECLARED_RINGS: u32 = 1;

/// Place of the ring that CPUs share which have none of their own.
pub const SPARE_RING: u32 = 0;

/// Place of a CPU's own ring.
pub const fn ring_of(cpu: u32) -> u32 {
    cpu.wrapping_add(1)
}
