//! The eBPF object: its maps, rings and programs, which serve one capture after the other.
//!
//! Nothing of a capture may reach the next, which may be somebody else's. When an object is cleared, programs are detached
//! explicitly, since the child of a fork has a copy of each descriptor until it executes something else. Then all entries and
//! all that is own traffic are removed, and what was spent of the rates. It is waited until no program runs that was attached,
//! and then the rings are emptied. An object of which one of these steps has failed is not used again.

use std::{
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::{Arc, LazyLock, Mutex, PoisonError},
    thread,
};

use ::object::{Endianness, Object as _, ObjectSection as _, read::elf::ElfFile64};
use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Array, Map, MapData, MapError, PerCpuHashMap},
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use nix::sys::utsname::{UtsName, uname};
use packetflix_common::{InterfaceEntry, Paid, globals, maps, programs::SOCKET, sections};
use tokio_util::task::AbortOnDropHandle;

use super::{
    CaptureFilters, FilterLinkError, KernelError, ProgramUse, TapConfig,
    clock::ClockSource,
    code::{Code, descriptor_of},
    connections::Connections,
    hook::ChosenHook,
    kernel_rings::{self, KernelRings},
    memory::RingShare,
    numbers::Number,
    own::OwnTrafficMap,
    refused::Refused,
    threads::joined,
};
use crate::{
    cpus::Cpus,
    sys::{
        self,
        bpf::{self, LoadFailure},
    },
};

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/packetflix.bpf.o"));

/// Number of the contract that the eBPF object was built against: [`packetflix_common::ABI`], unless the object is older than the
/// server's source. `None` if it has none.
pub fn object_abi() -> Option<u32> {
    let object = ElfFile64::<Endianness>::parse(OBJECT).ok()?;
    let section = object.section_by_name(sections::ABI)?;
    Some(u32::from_ne_bytes(section.data().ok()?.try_into().ok()?))
}

/// Value of aya-log's level that keeps the programs silent, and the one that lets them say all.
static LOG_OFF: u8 = 0;
static LOG_DEBUG: u8 = 4;

/// The loader, made once: it reads the kernel's whole BTF, which takes a tenth of a second and which our object,
/// that looks into no structure of the kernel, has no use for.
static LOADER: LazyLock<Mutex<EbpfLoader<'static>>> = LazyLock::new(|| {
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    Mutex::new(loader)
});

/// Whether there are as many descriptors as an object takes. Where they run out within aya, a map is refused as if it were wrong
/// (EINVAL).
fn check_descriptors() -> io::Result<()> {
    const TAKEN: usize = 24;

    let descriptors: io::Result<Vec<_>> = (0..TAKEN).map(|_| UnixDatagram::unbound()).collect();
    descriptors.map(drop)
}

/// How user space sees an interface's entry: one per CPU.
pub(super) type InterfaceMap = PerCpuHashMap<MapData, u32, Entry>;

/// An [`InterfaceEntry`], as aya wants the value of a map.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Entry(pub(super) InterfaceEntry);

#[expect(unsafe_code, reason = "aya copies map values as bytes")]
// SAFETY: `InterfaceEntry` is repr(C) of integers without padding, asserted where it is defined.
unsafe impl aya::Pod for Entry {}

/// A [`Paid`], as aya wants the value of a map.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
struct Spent(Paid);

#[expect(unsafe_code, reason = "aya copies map values as bytes")]
// SAFETY: `Paid` is repr(C) of integers without padding.
unsafe impl aya::Pod for Spent {}

/// Why the object could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The object as a whole.
    #[error("the eBPF object could not be loaded")]
    Object(#[source] Box<aya::EbpfError>),
    /// The verifier refused a program.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// A program could not be loaded, and the verifier has nothing to do with it.
    #[error("the kernel did not load the eBPF program {name}")]
    Program {
        /// Which one.
        name: &'static str,
        /// The error of `BPF_PROG_LOAD`.
        #[source]
        source: io::Error,
    },
    /// A map is missing or was refused.
    #[error("the eBPF map {name} could not be set up")]
    Map {
        /// Which one.
        name: &'static str,
        /// The error of creating the map, or of writing to it.
        #[source]
        source: MapError,
    },
    /// A filter could not be put into it.
    #[error(transparent)]
    Filter(#[from] FilterLinkError),
    /// The object was not built from the source of this server.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    /// What the programs log could not be read.
    #[error("the log of the eBPF programs could not be read")]
    Logs(#[source] io::Error),
    /// There are too few descriptors.
    #[error("the eBPF object needs descriptors")]
    Descriptors(#[source] io::Error),
    /// The number of CPUs is not known.
    #[error("the number of CPUs could not be read")]
    Cpus(#[source] io::Error),
}

impl LoadError {
    /// Why a program could not be loaded. What the verifier finds is told from what rights, or another policy, forbid: both
    /// come with the same error numbers.
    pub(super) fn of_program(name: &'static str, failure: LoadFailure, has_filter: bool) -> Self {
        match Refused::by_log(name, &failure.log, has_filter) {
            Some(refused) => refused.into(),
            None => Self::Program {
                name,
                source: failure.error,
            },
        }
    }

    fn of_map(name: &'static str) -> impl Fn(MapError) -> Self {
        move |source| Self::Map { name, source }
    }
}

/// Programs that are loaded, by their names.
pub(super) struct Programs(Vec<(&'static str, OwnedFd)>);

impl Programs {
    /// The program of this name.
    pub(super) fn get(&self, name: &'static str) -> Result<BorrowedFd<'_>, LoadError> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        let (_, program) = found.ok_or(LoadError::Missing(name))?;
        Ok(program.as_fd())
    }

    /// What the kernel has spent on them.
    pub(super) fn usage(&self) -> ProgramUse {
        let known = self.0.iter();
        let known = known.filter_map(|(_, program)| bpf::program_use(program.as_fd()).ok());
        known.fold(ProgramUse::default(), |sum, (time, runs)| ProgramUse {
            time: sum.time + time,
            runs: sum.runs + runs,
        })
    }
}

/// The loaded object, which one capture uses at a time.
pub(super) struct Object {
    pub(super) number: Number,
    maps: Ebpf,
    code: Code,
    pub(super) hook: ChosenHook,
    /// Those of a capture without filters.
    pub(super) unfiltered: Programs,
    /// Those with the filters of the last capture that had any, for one that has the same.
    filtered: Option<(CaptureFilters, Arc<Programs>)>,
    /// What leads to the program of a socket, where that is too long to be attached; for TCX, what does nothing.
    pub(super) helper: OwnedFd,
    pub(super) entries: InterfaceMap,
    pub(super) own: OwnTrafficMap,
    spent: Array<MapData, Spent>,
    pub(super) rings: KernelRings,
    pub(super) clock: ClockSource,
    log: Option<AbortOnDropHandle<()>>,
}

impl Object {
    /// Creates the maps, and rings as the share has them, for these CPUs, and loads the programs of a hook.
    pub(super) fn load(
        config: &TapConfig,
        hook: ChosenHook,
        share: RingShare,
        cpus: Cpus,
        connections: &Connections,
        number: Number,
    ) -> Result<Self, LoadError> {
        check_descriptors().map_err(LoadError::Descriptors)?;
        let clock = *CLOCK_SOURCE;
        let log_level = if config.log_programs { &LOG_DEBUG } else { &LOG_OFF };
        let mut made = LOADER
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .override_global(globals::CLOCK, clock.number(), true)
            .override_global(globals::PREEMPTIBLE, &*PREEMPTIBLE, true)
            .override_global(globals::LOG_LEVEL, log_level, true)
            .map_max_entries(maps::RINGS, kernel_rings::places(&cpus))
            .load(OBJECT)
            .map_err(|error| LoadError::Object(Box::new(error)))?;

        let failed = LoadError::of_map(maps::RINGS);
        let not_own = LoadError::of_map(maps::OWN_CONNECTIONS);
        let array = kernel_rings::array_of(&made, maps::RINGS).map_err(&failed)?;
        let lists = kernel_rings::array_of(&made, maps::OWN_CONNECTIONS).map_err(&not_own)?;
        let connections = connections.maps().map_err(&not_own)?;
        // All take some ten milliseconds, rings and connections by waiting.
        let (loaded, rings, shared) = thread::scope(|scope| {
            let create = || KernelRings::create(array, cpus, share);
            let rings = thread::Builder::new().spawn_scoped(scope, create);
            let shared =
                thread::Builder::new().spawn_scoped(scope, || kernel_rings::share(&lists, &connections));
            let loaded = Code::new(OBJECT, &made).and_then(|code| Loaded::load(code, hook, &made));
            let rings = rings.map_err(MapError::IoError).and_then(joined);
            (loaded, rings, shared.map_err(MapError::IoError).and_then(joined))
        });
        let Loaded {
            code,
            unfiltered,
            helper,
        } = loaded?;
        shared.map_err(not_own)?;
        let mut rings = rings.map_err(failed)?;
        rings.settle();
        Ok(Self {
            number,
            entries: take_map(&mut made, maps::INTERFACES)?
                .try_into()
                .map_err(LoadError::of_map(maps::INTERFACES))?,
            own: OwnTrafficMap::take(&mut made)?,
            spent: take_map(&mut made, maps::PAID)?
                .try_into()
                .map_err(LoadError::of_map(maps::PAID))?,
            maps: made,
            code,
            hook,
            unfiltered,
            filtered: None,
            helper,
            rings,
            clock,
            log: None,
        })
    }

    /// Loads programs with the filters of a capture, unless the last one had the same; none where there are no filters.
    ///
    /// # Errors
    /// When a filter is too long, or the kernel refuses.
    pub(super) fn load_filtered(
        &mut self,
        filters: &CaptureFilters,
    ) -> Result<Option<Arc<Programs>>, LoadError> {
        if filters.is_none() {
            return Ok(None);
        }
        let programs = match &self.filtered {
            Some((of, programs)) if of == filters => Arc::clone(programs),
            _ => Arc::new(load(&self.code, self.hook, filters)?),
        };
        lead_to(&self.maps, self.hook, &programs)?;
        self.filtered = Some((filters.clone(), Arc::clone(&programs)));
        Ok(Some(programs))
    }

    /// Whether it has programs with these filters.
    pub(super) fn has_filtered(&self, filters: &CaptureFilters) -> bool {
        self.filtered.as_ref().is_some_and(|(of, _)| of == filters)
    }

    /// Has no more than when it was loaded, until the next capture.
    pub(super) fn rest(&mut self) {
        self.filtered = None;
    }

    /// Whether it has more than when it was loaded.
    pub(super) fn has_more(&self) -> bool {
        self.filtered.is_some()
    }

    /// Passes on what the programs log, from now on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn forward_logs(&mut self) -> Result<(), LoadError> {
        if self.log.is_some() {
            return Ok(());
        }
        let init = aya_log::EbpfLogger::init(&mut self.maps);
        let mut logger = init.map_err(|_| LoadError::Missing(maps::LOGS))?;
        let watch = logger.as_fd().try_clone_to_owned().and_then(sys::watch);
        let watch = watch.map_err(LoadError::Logs)?;
        self.log = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(mut guard) = watch.readable().await {
                guard.clear_ready();
                logger.flush();
            }
        })));
        Ok(())
    }

    /// Makes it as it was when it was loaded, after a capture, when it is attached to nothing any more: nothing of a capture may
    /// reach the next, which may be another client's. Blocks while a program that was attached may still be running.
    ///
    /// # Errors
    /// When something of the capture may be left. It must not be used again then.
    pub(super) fn clear(&mut self) -> Result<(), KernelError> {
        lead_to(&self.maps, self.hook, &self.unfiltered)?;
        let entries = LoadError::of_map(maps::INTERFACES);
        let interfaces: Result<Vec<u32>, MapError> = self.entries.keys().collect();
        for ifindex in interfaces.map_err(&entries)? {
            self.entries.remove(&ifindex).map_err(&entries)?;
        }
        self.own.clear()?;
        let spent = self.spent.set(0, Spent::default(), 0);
        spent.map_err(LoadError::of_map(maps::PAID))?;
        // Last, when nothing is written any more.
        self.rings.clear()
    }
}

/// What is loaded while the rings are made.
struct Loaded {
    code: Code,
    unfiltered: Programs,
    helper: OwnedFd,
}

impl Loaded {
    fn load(code: Code, hook: ChosenHook, made: &Ebpf) -> Result<Self, LoadError> {
        let filters = CaptureFilters::default();
        let unfiltered = load(&code, hook, &filters)?;
        lead_to(made, hook, &unfiltered)?;
        let (_, kind) = hook.programs();
        let name = hook.helper();
        let helper = code.load(&[name], kind, &filters)?.pop();
        Ok(Self {
            code,
            unfiltered,
            helper: helper.ok_or(LoadError::Missing(name))?,
        })
    }
}

fn load(code: &Code, hook: ChosenHook, filters: &CaptureFilters) -> Result<Programs, LoadError> {
    let (names, kind) = hook.programs();
    let programs = code.load(names, kind, filters)?;
    Ok(Programs(names.iter().copied().zip(programs).collect()))
}

/// Has `socket_entry` lead to the program of a socket.
fn lead_to(made: &Ebpf, hook: ChosenHook, programs: &Programs) -> Result<(), LoadError> {
    if hook == ChosenHook::Tcx {
        return Ok(());
    }
    let array = made.map(maps::SOCKET_PROGRAM).and_then(descriptor_of);
    let array = array.ok_or(LoadError::Missing(maps::SOCKET_PROGRAM))?;
    bpf::set_descriptor(array, 0, programs.get(SOCKET)?)
        .map_err(MapError::IoError)
        .map_err(LoadError::of_map(maps::SOCKET_PROGRAM))
}

pub(super) fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    programs.take_map(name).ok_or(LoadError::Missing(name))
}

/// Not 0 when a program may be interrupted by another one on its CPU: of kernels with PREEMPT_RT only some may do that, and
/// none tells. When the kernel does not say what it is, it may.
static PREEMPTIBLE: LazyLock<u32> = LazyLock::new(|| {
    let is_preemptible = |kernel: &UtsName| kernel.version().to_string_lossy().contains("PREEMPT_RT");
    uname().map_or(1, |kernel| u32::from(is_preemptible(&kernel)))
});

/// CLOCK_TAI where programs can read it.
pub(super) static CLOCK_SOURCE: LazyLock<ClockSource> = LazyLock::new(|| {
    let tai = [ProgramType::SchedClassifier, ProgramType::SocketFilter]
        .into_iter()
        .all(|program| is_helper_supported(program, BpfHelper::BPF_FUNC_ktime_get_tai_ns).unwrap_or(false));
    if tai {
        ClockSource::Tai
    } else {
        tracing::info!(
            "timestamps come from CLOCK_BOOTTIME: programs of this kernel cannot read CLOCK_TAI (Linux 6.1)"
        );
        ClockSource::Boottime
    }
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_was_built_against_what_the_server_expects() {
        // Else `cargo xtask build-ebpf` was left out.
        assert_eq!(object_abi(), Some(packetflix_common::ABI));
    }
}
