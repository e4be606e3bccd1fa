//! Maps and globals. Their names stand in `packetflix_common`, for user space to find them by.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuHashMap, ProgramArray, RingBuf},
    macros::btf_map,
};
use packetflix_common::{
    DECLARED_RINGS, InterfaceEntry, MAX_INTERFACES, MAX_OWN_CONNECTIONS, MAX_OWN_ENDPOINTS, OwnConnection,
    OwnEndpoint, OwnPorts, Paid, clock, connections,
};

/// A CPU's ring, as declared: user space creates each in the size that it wants.
pub(crate) type Ring = RingBuf<u8, 4096>;

/// One ring per CPU, so that CPUs never wait for each other; and one that those share which came online a moment ago.
#[btf_map]
pub(crate) static RINGS: ArrayOfMaps<Ring, { DECLARED_RINGS as usize }> = ArrayOfMaps::new();

/// The captured interfaces by their index. Entries are allocated as they come: all that there could be would
/// take megabytes on a machine of many CPUs.
#[btf_map]
pub(crate) static INTERFACES: PerCpuHashMap<
    u32,
    InterfaceEntry,
    { MAX_INTERFACES as usize },
    { BPF_F_NO_PREALLOC as usize },
> = PerCpuHashMap::new();

/// Ports of the service's own traffic.
#[btf_map]
pub(crate) static OWN_PORTS: Array<OwnPorts, 1> = Array::new();

/// A list of connections, as declared: user space puts the ones in that all captures share.
pub(crate) type Connections =
    HashMap<OwnConnection, u32, { MAX_OWN_CONNECTIONS as usize }, { BPF_F_NO_PREALLOC as usize }>;

/// The service's connections.
#[btf_map]
pub(crate) static OWN_CONNECTIONS: ArrayOfMaps<Connections, { connections::LISTS as usize }> =
    ArrayOfMaps::new();

/// Both ends of own traffic whose addresses are translated on the way.
#[btf_map]
pub(crate) static OWN_ENDPOINTS: HashMap<
    OwnEndpoint,
    u32,
    { MAX_OWN_ENDPOINTS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

/// What the capture has spent of its rates.
#[btf_map]
pub(crate) static PAID: Array<Paid, 1> = Array::new();

/// The program `socket`, for `socket_entry`.
#[btf_map]
pub(crate) static SOCKET_PROGRAM: ProgramArray<1> = ProgramArray::new();

#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "user space finds the global by its name")]
static CLOCK: u32 = clock::TAI;

#[unsafe(no_mangle)]
#[expect(unsafe_code, reason = "user space finds the global by its name")]
static PREEMPTIBLE: u32 = 0;

/// The clock of the timestamps.
#[inline(always)]
pub(crate) fn clock() -> u32 {
    global(&CLOCK)
}

/// Whether a program may interrupt another one on its CPU.
#[inline(always)]
pub(crate) fn is_preemptible() -> bool {
    global(&PREEMPTIBLE) != 0
}

#[inline(always)]
#[expect(unsafe_code, reason = "the compiler must not trust the initial value")]
fn global(value: &'static u32) -> u32 {
    // SAFETY: a reference is valid to read from. Volatile, since user space changes the value before the
    // program is loaded, which the compiler cannot know.
    unsafe { core::ptr::read_volatile(value) }
}
