//! A tap: one kernel capture in one network namespace. It owns the loaded eBPF object, what attaches it to
//! interfaces, and its rings. Dropping it, or the death of the process, detaches everything.

pub(crate) mod clock;
mod code;
mod connections;
mod cpu_rings;
mod filters;
mod hook;
mod interfaces;
mod kernel;
mod link_types;
mod loader;
mod memory;
mod object;
mod own;
mod rates;
mod refused;
pub(crate) mod rings;
mod selection;
mod tcx;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use aya::maps::MapError;
use packetflix_common::MAX_INTERFACES;
use tokio::runtime::Handle;

pub(crate) use self::{
    clock::{CaptureClock, ClockSource},
    connections::{Connections, OpenConnection},
    cpu_rings::Positions,
    filters::CaptureFilters,
    interfaces::{ForeseenInterface, LinkChanges, TappedInterface},
    loader::Loader,
    own::OwnTraffic,
    rings::{CLOCK_WAS_SET_BACK, Drained, Head, is_younger},
};
pub use self::{
    code::FilterLinkError,
    hook::{Hook, HookError},
    memory::RingConfig,
    object::{LoadError, object_abi},
    own::OwnError,
    rates::RateLimits,
    refused::Refused,
    selection::InterfaceSelection,
};
use self::{
    hook::ChosenHook,
    interfaces::foresee,
    kernel::KernelCapture,
    link_types::link_type,
    object::CLOCK_SOURCE,
    selection::{Selected, select},
};
use crate::{
    allowance::Allowance,
    capabilities::Capability,
    netns::{EnterError, Link, LinkWatch, Links, Netns},
    sys,
};

/// The smallest ring, in bytes: it holds the largest record.
pub const MIN_RING_SIZE: u64 = 512 << 10;

/// What a stream says where the kernel did not list all interfaces, or some were gone before it did.
pub(crate) const MAY_MISS_INTERFACES: &str =
    "interfaces may be missing: they come and go faster than the kernel lists them";

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
    #[error(
        "a capture holds at most {MAX_INTERFACES} interfaces, and those that come beyond that are not told of until others have gone"
    )]
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
    /// The clock could not be read.
    #[error("the clock could not be read")]
    Clock(#[source] io::Error),
}

impl TapError {
    /// What is to be had for what failed, should the kernel have refused it for want of a right.
    pub(crate) fn needs(&self) -> Capability {
        match self {
            Self::Socket { .. } | Self::Hook(HookError::Socket { .. }) => Capability::NetRaw,
            _ => Capability::SysAdmin,
        }
    }

    /// The fault that the verifier found, if that is it.
    pub(crate) fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Load(LoadError::Refused(refused))
            | Self::Hook(HookError::Load(LoadError::Refused(refused))) => Some(refused),
            _ => None,
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

/// A running kernel capture.
pub(crate) struct Tap {
    /// Dropped first, so that nothing runs any more when the rest goes.
    kernel: KernelCapture,
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
    rates: RateLimits,
    promiscuous: bool,
    next_interface_id: u32,
    /// Those of interfaces.
    warnings: Allowance,
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ProgramUse {
    /// How long they ran.
    pub(crate) time: Duration,
    /// How often.
    pub(crate) runs: u64,
}

impl Tap {
    /// Sets up a capture in `netns`.
    ///
    /// # Errors
    /// Whatever the kernel refuses; nothing is left behind then.
    pub(crate) async fn open(
        netns: &Netns,
        request: TapRequest,
        loader: &Arc<Loader>,
    ) -> Result<Self, TapError> {
        let tap = Self::set_up(netns, request, loader).await;
        loader.tend();
        tap
    }

    async fn set_up(netns: &Netns, request: TapRequest, loader: &Arc<Loader>) -> Result<Self, TapError> {
        let TapRequest {
            selection,
            filters,
            own,
            snaplen,
            promiscuous,
            is_admin,
        } = request;
        let (control, links, selected) = look(netns, &selection)?;
        let Selected {
            links: wanted,
            unwanted,
            note,
        } = selected;
        check_filters(&filters, &wanted)?;

        check_hook(ChosenHook::choose(loader.config().hook)?, &selection, &wanted)?;
        let kernel = blocking(|| KernelCapture::begin(loader, control, &filters, is_admin))?;
        let mut tap = Self {
            interfaces: BTreeMap::new(),
            clock: CaptureClock::new(kernel.clock()).map_err(TapError::Clock)?,
            kernel,
            links,
            selection,
            unwanted,
            note,
            filters,
            snaplen,
            rates: loader.config().rates,
            promiscuous,
            next_interface_id: 0,
            warnings: Allowance::new(interfaces::SAVED_FOR_WARNINGS),
        };
        tap.add_own(&own)?;
        tap.begin(netns, wanted)?;
        blocking(|| tap.kernel.rings_mut().wait_until_mapped())?;
        Ok(tap)
    }

    /// Detaches from what is still attached to, and leaves what was loaded to the next capture, without a trace of this one.
    pub(crate) fn close(self) {
        blocking(move || self.kernel.close());
    }

    /// Leaves out what is the service's own traffic on account of a client, from now on.
    ///
    /// # Errors
    /// When there is no room for it, or the kernel refuses; all is as before then.
    pub(crate) fn add_own(&mut self, own: &OwnTraffic) -> Result<(), OwnError> {
        self.kernel.add_own(own)
    }

    /// A client has gone for which `own` was added: what no other needs is captured again.
    pub(crate) fn remove_own(&mut self, own: &OwnTraffic) {
        self.kernel.remove_own(own);
    }

    /// Snapshot length in bytes.
    pub(crate) fn snaplen(&self) -> u32 {
        self.snaplen
    }

    /// Bytes of the ring of each CPU.
    pub(crate) fn ring_size(&self) -> u32 {
        self.kernel.rings().size()
    }

    /// How far its rings are written and read.
    pub(crate) fn positions(&self) -> &Positions {
        self.kernel.rings().positions()
    }

    /// How full the fullest ring is, from 0 to 1.
    pub(crate) fn ring_fill(&self) -> f64 {
        self.kernel.rings().fill()
    }

    /// What the kernel has spent on the programs.
    pub(crate) fn program_use(&self) -> ProgramUse {
        self.kernel.program_use()
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
            ready = self.kernel.rings().filled(), if rings_too => ready.map(|()| TapChange::Rings),
        }
    }

    /// Gives rings to the CPUs that came online and have seen packets since.
    pub(crate) fn follow_cpus(&mut self) {
        if self.kernel.rings_mut().spare_is_used() {
            let has_packets = self.cpus_with_packets();
            blocking(|| self.kernel.rings_mut().follow(&has_packets));
        }
    }

    /// Whether its hook is TCX.
    pub(crate) fn uses_tcx(&self) -> bool {
        self.kernel.hook() == ChosenHook::Tcx
    }

    /// Which of the possible CPUs have accepted packets of an interface that is captured.
    fn cpus_with_packets(&self) -> Vec<bool> {
        let mut has_packets = Vec::new();
        let attached = self.interfaces.keys();
        for by_cpu in attached.filter_map(|ifindex| self.kernel.counters(*ifindex).ok()) {
            has_packets.resize(by_cpu.len(), false);
            for (has, counters) in has_packets.iter_mut().zip(by_cpu) {
                *has |= counters.accepted > 0;
            }
        }
        has_packets
    }
}

impl fmt::Debug for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tap")
            .field("hook", &self.kernel.hook())
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

/// Runs inside the namespace, in which the sockets stay; they are served by `runtime`.
/// Looks for the interfaces that are wanted; gives the sockets through which it does.
fn look(netns: &Netns, selection: &InterfaceSelection) -> Result<(OwnedFd, LinkWatch, Selected), TapError> {
    let runtime = Handle::current();
    let (control, mut links) = blocking(|| netns.enter(|| open_sockets(&runtime)))??;
    let (present, is_whole) = blocking(|| list(&mut links, selection)).map_err(TapError::List)?;
    let mut selected = select(present, selection)?;
    if !is_whole && !selection.is_by_name() {
        let note = selected.note.into_iter().chain([MAY_MISS_INTERFACES.to_owned()]);
        selected.note = Some(note.collect::<Vec<_>>().join("; "));
    }
    Ok((control, links, selected))
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
    netns: &Netns,
    selection: &InterfaceSelection,
    filters: &CaptureFilters,
    loader: &Loader,
) -> Result<Vec<ForeseenInterface>, TapError> {
    let (.., Selected { links, note, .. }) = look(netns, selection)?;
    let hook = ChosenHook::choose(loader.config().hook)?;
    Ok(foresee(links, selection, hook, filters, note))
}

fn open_sockets(runtime: &Handle) -> Result<(OwnedFd, LinkWatch), TapError> {
    let _context = runtime.enter();
    let control = sys::packet_socket().map_err(|source| TapError::Socket {
        kind: "packet",
        source,
    })?;
    let links = LinkWatch::open().map_err(|source| TapError::Socket {
        kind: "netlink",
        source,
    })?;
    Ok((control, links))
}

/// Does what blocks for a moment without holding up the runtime's other tasks.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    tokio::task::block_in_place(work)
}
