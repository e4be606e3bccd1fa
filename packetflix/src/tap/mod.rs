//! A tap: one kernel capture in one network namespace. It has rings that it reads, and the other side of a line (`remote.rs`,
//! `serve.rs`), where the rights are, has the loaded eBPF object, and what attaches it to interfaces. Dropping a tap, or the death of
//! either process, detaches everything.

mod ahead;
mod call;
pub(crate) mod clock;
mod code;
mod connections;
mod cpu_rings;
mod filters;
mod hook;
mod interfaces;
mod kernel;
mod kernel_rings;
mod link_types;
mod loader;
mod memory;
mod numbers;
mod object;
mod own;
mod rates;
mod refused;
mod remote;
mod reported;
pub(crate) mod rings;
mod selection;
mod serve;
mod tcx;
mod threads;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::Arc,
    time::{Duration, Instant},
};

use aya::maps::MapError;
use packetflix_common::MAX_INTERFACES;
use serde::{Deserialize, Serialize};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::call::fuzzing;
pub(crate) use self::{
    ahead::Ahead,
    call::KernelUse,
    clock::{CaptureClock, ClockSource},
    cpu_rings::Positions,
    filters::CaptureFilters,
    interfaces::{ForeseenInterface, LinkChanges, TappedInterface},
    loader::Loader,
    own::OwnTraffic,
    remote::{Connections, OpenConnection, Taps},
    reported::Cause,
    rings::{CLOCK_WAS_SET_BACK, Drained, Head, is_younger},
    serve::{serve, serve_all, serve_connections, serve_rings},
};
use self::{
    call::{Begun, Counted},
    cpu_rings::{Beginning, CpuRings},
    hook::ChosenHook,
    interfaces::foresee,
    link_types::link_type,
    object::CLOCK_SOURCE,
    remote::Capture,
    selection::{Selected, select},
};
pub use self::{
    code::FilterLinkError,
    hook::{Hook, HookError},
    memory::RingConfig,
    object::{LoadError, object_abi},
    own::OwnError,
    rates::RateLimits,
    refused::Refused,
    reported::Reported,
    selection::InterfaceSelection,
};
use crate::{
    allowance::Allowance,
    capabilities::Capability,
    channel::Broken,
    error::chain,
    netns::{EnterError, Link, LinkWatch, Links, OpenNetns},
};

/// The smallest ring, in bytes: it holds the largest record.
pub const MIN_RING_SIZE: u64 = 512 << 10;

/// What a stream says where the kernel did not list all interfaces, or some were gone before it did.
pub(crate) const MAY_MISS_INTERFACES: &str =
    "interfaces may be missing: they come and go faster than the kernel lists them";

/// What is said of a capture with more interfaces than one holds.
const TOO_MANY_INTERFACES: &str = "a capture holds at most 4096 interfaces, and those that come beyond that are not told of until others have gone";
const _: () = assert!(MAX_INTERFACES == 4096, "the sentence says how many");

/// How taps are made.
#[derive(Clone, Debug)]
pub struct TapConfig {
    /// Where packets are seen.
    pub hook: Hook,
    /// How large rings are.
    pub rings: RingConfig,
    /// How much a capture may have in a second.
    pub rates: RateLimits,
    /// Whether the programs log what fails.
    pub log_programs: bool,
}

/// What a sentence says of memory that is kept.
fn said_of_kept(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(", of which {} MiB are kept for admin", bytes >> 20),
    }
}

/// Why there is no tap, or an interface could not be added to it.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// What takes rights could not be done.
    #[error(transparent)]
    Kernel(#[from] Reported),
    /// Nobody is there who could do it.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// The interfaces could not be listed.
    #[error("the network interfaces of the namespace could not be listed")]
    List(#[source] io::Error),
    /// An interface was asked for that is not there.
    #[error("there is no network interface {} in the namespace; there are: {}", missing.join(", "), present.join(", "))]
    NoSuchInterface {
        /// Those that were asked for and are missing.
        missing: Vec<String>,
        /// Those that exist.
        present: Vec<String>,
    },
    /// The hook sees no packets of an interface that was asked for.
    #[error("the packets of the network interface {name} cannot be captured: {reason}")]
    NotSeen {
        /// Its name.
        name: String,
        /// Why, and what sees them.
        reason: &'static str,
    },
    /// An interface was asked for whose packets begin with something that we do not know.
    #[error(
        "the packets of the network interface {name} cannot be captured: its hardware type {hardware_type} is not known"
    )]
    UnknownLinkType {
        /// The interface.
        name: String,
        /// Its `ARPHRD_…` number.
        hardware_type: u16,
    },
    /// No interface is left to capture.
    #[error("the namespace has no network interface that can be captured")]
    NoInterface,
    /// The filter means nothing for any of the interfaces.
    #[error("the filter cannot be applied to {interface}: {reason}")]
    Filter {
        /// One of the interfaces.
        interface: String,
        /// What the compiler said.
        reason: String,
    },
    /// More than one tap holds.
    #[error("{TOO_MANY_INTERFACES}")]
    TooManyInterfaces,
    /// The rings could not be waited for.
    #[error("the rings could not be watched")]
    Rings(#[source] io::Error),
    /// There is no room for a ring where the service reads it.
    #[error("a ring of {} KiB could not be mapped into memory", size >> 10)]
    Map {
        /// Bytes of the ring. Its data is mapped twice.
        size: u32,
        /// The error of `mmap`.
        #[source]
        source: io::Error,
    },
    /// The clock could not be read.
    #[error("the clock could not be read")]
    Clock(#[source] io::Error),
}

impl TapError {
    /// What is to be had for what failed, should the kernel have refused it for want of a right.
    pub(crate) fn needs(&self) -> Capability {
        match self {
            Self::Kernel(reported) => reported.needs,
            _ => Capability::SysAdmin,
        }
    }

    /// What the failure of what takes rights is about.
    pub(crate) fn cause(&self) -> Option<&Cause> {
        match self {
            Self::Kernel(reported) => Some(&reported.cause),
            _ => None,
        }
    }
}

/// Why something that takes rights could not be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// The namespace could not be entered.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// A socket in the namespace could not be opened.
    #[error("the {kind} socket in the network namespace could not be opened")]
    Socket {
        /// Which kind.
        kind: &'static str,
        /// The error of `socket(2)`.
        #[source]
        source: io::Error,
    },
    /// More than one capture holds.
    #[error("{TOO_MANY_INTERFACES}")]
    TooManyInterfaces,
    /// Other captures need the memory.
    #[error(
        "the rings of the captures that run leave too little of the {} MiB that --ring-memory allows for all{}",
        memory >> 20,
        said_of_kept(*kept)
    )]
    RingMemory {
        /// Bytes that all rings may take.
        memory: u64,
        /// Of these, the bytes that are kept for others.
        kept: u64,
    },
    /// There is too little memory, whatever is allowed.
    #[error(
        "of the memory of this machine, or of the service's control group, {} MiB are left for rings, \
         and those of another capture take more",
        left >> 20
    )]
    Memory {
        /// Bytes that are left.
        left: u64,
    },
    /// The object or its maps.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An interface could not be attached to.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What is left in the rings could not be removed.
    #[error("the rings could not be emptied")]
    Rings(#[source] io::Error),
    /// An interface's entry in the map of interfaces.
    #[error("the interface {name} could not be made known to the eBPF programs")]
    Entry {
        /// The interface.
        name: String,
        /// The error of `BPF_MAP_UPDATE_ELEM`.
        #[source]
        source: MapError,
    },
    /// The service's own traffic cannot be left out.
    #[error(transparent)]
    Own(#[from] OwnError),
}

impl KernelError {
    /// What is to be had for what failed, should the kernel have refused it for want of a right.
    fn needs(&self) -> Capability {
        match self {
            Self::Socket { .. } | Self::Hook(HookError::Socket { .. }) => Capability::NetRaw,
            _ => Capability::SysAdmin,
        }
    }
}

/// The clock that programs of this kernel can read.
pub(crate) fn clock_source() -> ClockSource {
    *CLOCK_SOURCE
}

/// What a tap is to capture.
#[derive(Debug)]
pub(crate) struct TapRequest {
    /// Which interfaces.
    pub(crate) selection: InterfaceSelection,
    /// What packets must pass.
    pub(crate) filters: CaptureFilters,
    /// What is left out as the service's own, to begin with.
    pub(crate) own: OwnTraffic,
    /// Snapshot length in bytes.
    pub(crate) snaplen: u32,
    /// Whether the interfaces are to receive what is not for them.
    pub(crate) promiscuous: bool,
    /// Whether it may have the memory that is kept for who administers the service.
    pub(crate) is_admin: bool,
}

/// How long what was counted is taken for what is counted, unless something is read or altered meanwhile.
const COUNTED_IS_FRESH: Duration = Duration::from_millis(5);

/// A running kernel capture.
pub(crate) struct Tap {
    capture: Capture,
    /// The number of the object that it has.
    object: u64,
    ahead: Arc<Ahead>,
    hook: ChosenHook,
    rings: CpuRings,
    interfaces: BTreeMap<u32, TappedInterface>,
    links: LinkWatch,
    clock: CaptureClock,
    selection: InterfaceSelection,
    /// Indexes of interfaces that were there at the beginning, and not wanted.
    unwanted: BTreeSet<u32>,
    /// What there was to say of the selection at the beginning.
    note: Option<String>,
    filters: CaptureFilters,
    snaplen: u32,
    promiscuous: bool,
    next_interface_id: u32,
    /// Those of interfaces.
    warnings: Allowance,
    /// What the kernel has counted, and when that was asked for, if nothing has happened since.
    counted: Arc<Counted>,
    counted_at: Option<Instant>,
    /// Whether it was told that rings cannot be had.
    has_told: bool,
}

/// What a tap waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TapChange {
    /// Interfaces came, went or changed.
    Links,
    /// The rings may have something new.
    Rings,
}

/// What the kernel has spent on programs, where it keeps account of that (`kernel.bpf_stats_enabled`, kernel 5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProgramUse {
    /// How long they ran.
    pub(crate) time: Duration,
    /// How often.
    pub(crate) runs: u64,
}

impl Tap {
    /// Sets up a capture in `netns`, with rings that may have been mapped ahead.
    ///
    /// # Errors
    /// Whatever the kernel refuses; nothing is left behind then.
    pub(crate) async fn open(
        netns: &OpenNetns,
        request: TapRequest,
        ahead: &Arc<Ahead>,
    ) -> Result<Self, TapError> {
        let TapRequest {
            selection,
            filters,
            own,
            snaplen,
            promiscuous,
            is_admin,
        } = request;
        blocking(|| {
            let (hook, links, selected) = look(netns, &selection)?;
            let Selected {
                links: wanted,
                unwanted,
                note,
            } = selected;
            check_filters(&filters, &wanted)?;
            check_hook(hook, &selection, &wanted)?;
            let (capture, begun, rings) = Capture::begin(netns, &filters, is_admin)?;
            let Begun {
                clock,
                object,
                ring_size,
                places,
            } = begun;
            // Goes on while all else is done.
            let beginning = Beginning::of(ahead.take(object, &places), rings, ring_size)?;
            let mut tap = Self {
                capture,
                object,
                ahead: Arc::clone(ahead),
                hook,
                rings: CpuRings::new(ring_size)?,
                interfaces: BTreeMap::new(),
                clock: CaptureClock::new(clock).map_err(TapError::Clock)?,
                links,
                selection,
                unwanted,
                note,
                filters,
                snaplen,
                promiscuous,
                next_interface_id: 0,
                warnings: Allowance::new(interfaces::SAVED_FOR_WARNINGS),
                counted: Arc::default(),
                counted_at: None,
                has_told: false,
            };
            tap.add_own(&own)?;
            tap.begin(wanted)?;
            tap.rings.read_all(beginning)?;
            Ok(tap)
        })
    }

    /// Detaches from what is still attached to, and leaves what was loaded to the next capture, without a trace of this one.
    pub(crate) fn close(self) {
        blocking(move || drop(self));
    }

    /// Leaves out what is the service's own traffic on account of a client, from now on.
    ///
    /// # Errors
    /// When there is no room for it, or the kernel refuses; all is as before then.
    pub(crate) fn add_own(&mut self, own: &OwnTraffic) -> Result<(), TapError> {
        self.capture.add_own(own)
    }

    /// A client has gone for which `own` was added: what no other needs is captured again.
    pub(crate) fn remove_own(&mut self, own: &OwnTraffic) {
        self.capture.remove_own(own);
    }

    /// Snapshot length in bytes.
    pub(crate) fn snaplen(&self) -> u32 {
        self.snaplen
    }

    /// Bytes of the ring of each CPU.
    pub(crate) fn ring_size(&self) -> u32 {
        self.rings.size()
    }

    /// How far its rings are written and read.
    pub(crate) fn positions(&self) -> &Positions {
        self.rings.positions()
    }

    /// How full the fullest ring is, from 0 to 1.
    pub(crate) fn ring_fill(&self) -> f64 {
        self.rings.fill()
    }

    /// What the kernel has spent on the programs, as of the last look at what is counted.
    pub(crate) fn program_use(&self) -> ProgramUse {
        self.counted.used
    }

    /// Whether the process or thread through which the namespace was found still held it at the last look at what is counted.
    pub(crate) fn is_held_by_process(&self) -> bool {
        self.counted.is_held_by_process
    }

    /// The records' clock.
    pub(crate) fn clock(&self) -> &CaptureClock {
        &self.clock
    }

    /// Takes account of a change of the clocks.
    pub(crate) fn adjust_clock(&mut self) {
        if let Err(error) = self.clock.adjust() {
            tracing::warn!(%error, "the clock could not be read");
        }
    }

    /// Waits until an interface was added, removed or altered, or, if `rings_too`, the rings may have something
    /// new.
    ///
    /// # Errors
    /// When the runtime is shutting down.
    pub(crate) async fn changed(&mut self, rings_too: bool) -> io::Result<TapChange> {
        tokio::select! {
            () = self.links.changed() => Ok(TapChange::Links),
            ready = self.rings.filled(), if rings_too => ready.map(|()| TapChange::Rings),
        }
    }

    /// Gives rings to the CPUs that came online and have seen packets since. They keep to the spare ring if there is no memory
    /// for more.
    pub(crate) fn follow_cpus(&mut self) {
        if !self.rings.spare_is_used() {
            return;
        }
        let grown = blocking(|| {
            let rings = self.capture.grow()?;
            if rings.is_empty() {
                return Ok(0);
            }
            let (places, read) = self.rings.grow(rings);
            let count = places.len();
            self.capture.use_grown(places);
            read.map(|()| count)
        });
        match grown {
            Ok(0) => {}
            Ok(rings) => tracing::debug!(rings, "CPUs that came online have rings"),
            Err(error) if !self.has_told => {
                self.has_told = true;
                let error = chain(&error);
                tracing::warn!(error, "CPUs that came online go on sharing one ring");
            }
            Err(_) => {}
        }
    }

    /// Whether its hook is TCX.
    pub(crate) fn uses_tcx(&self) -> bool {
        self.hook == ChosenHook::Tcx
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let rings = self.rings.take();
        if self.capture.close() {
            self.ahead.give_back(self.object, rings);
        }
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("hook", &self.hook)
            .finish_non_exhaustive()
    }
}

/// The hook sees each interface that was asked for.
fn check_hook(hook: ChosenHook, selection: &InterfaceSelection, wanted: &[Link]) -> Result<(), TapError> {
    let not_seen = wanted
        .iter()
        .find_map(|link| Some((link, hook.reason_against(link)?)));
    match not_seen {
        Some((link, reason)) if selection.is_by_name() => Err(TapError::NotSeen {
            name: link.name.clone(),
            reason,
        }),
        _ => Ok(()),
    }
}

/// A filter must mean something for one of the interfaces at least.
fn check_filters(filters: &CaptureFilters, wanted: &[Link]) -> Result<(), TapError> {
    let mut against = wanted
        .iter()
        .filter_map(|link| Some((link, link_type(link)?)))
        .map(|(link, link_type)| Some((link.name.clone(), filters.reason_against(link_type)?)));
    match against.next().flatten() {
        Some((interface, reason)) if against.all(|reason| reason.is_some()) => {
            Err(TapError::Filter { interface, reason })
        }
        _ => Ok(()),
    }
}

/// Looks for the interfaces that are wanted; gives the hook that a capture there has, and the sockets through which it looks.
fn look(
    netns: &OpenNetns,
    selection: &InterfaceSelection,
) -> Result<(ChosenHook, LinkWatch, Selected), TapError> {
    let (hook, mut links) = remote::look(netns)?;
    let (present, is_whole) = list(&mut links, selection).map_err(TapError::List)?;
    let mut selected = select(present, selection)?;
    if !is_whole && !selection.is_by_name() {
        let note = selected.note.into_iter().chain([MAY_MISS_INTERFACES.to_owned()]);
        selected.note = Some(note.collect::<Vec<_>>().join("; "));
    }
    Ok((hook, links, selected))
}

/// The links as far as they could be listed, with those that are asked for in any case, and whether there are no others.
fn list(links: &mut LinkWatch, selection: &InterfaceSelection) -> io::Result<(Vec<Link>, bool)> {
    let Links {
        links: mut present,
        is_whole,
    } = links.list()?;
    if !is_whole && let Some(names) = selection.names() {
        links.find(names, &mut present)?;
    }
    Ok((present, is_whole))
}

/// What a capture of these interfaces would begin with, if it began now: nothing is attached to them.
///
/// # Errors
/// As [`Tap::open`], as far as it comes to that.
pub(crate) fn look_at_interfaces(
    netns: &OpenNetns,
    selection: &InterfaceSelection,
    filters: &CaptureFilters,
) -> Result<Vec<ForeseenInterface>, TapError> {
    let (hook, _, Selected { links, note, .. }) = blocking(|| look(netns, selection))?;
    Ok(foresee(links, selection, hook, filters, note))
}

/// Does what blocks for a moment without holding up the runtime's other tasks.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
