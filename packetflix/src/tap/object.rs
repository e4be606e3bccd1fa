//! The eBPF object: loaded once per tap, with its maps taken out.

use std::{
    io,
    sync::{LazyLock, Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{Map, MapData, MapError, PerCpuHashMap},
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
};
use nix::sys::utsname::{UtsName, uname};
use packetflix_common::{InterfaceEntry, globals, maps};

use super::{
    CaptureFilters, PatchError, TapConfig,
    clock::ClockSource,
    connections::Connections,
    cpu_rings::{self, CreatedRings, joined},
    hook::ChosenHook,
    own::OwnTrafficMap,
    refused::Refused,
};
use crate::cpus::Cpus;

pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/packetflix.bpf.o"));

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

/// How user space sees an interface's entry: one per CPU.
pub(super) type InterfaceMap = PerCpuHashMap<MapData, u32, Entry>;

/// An [`InterfaceEntry`], as aya wants the value of a map.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub(super) struct Entry(pub(super) InterfaceEntry);

#[expect(unsafe_code, reason = "aya copies map values as bytes")]
// SAFETY: `InterfaceEntry` is repr(C) of integers without padding, asserted where it is defined.
unsafe impl aya::Pod for Entry {}

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
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map is missing or was refused.
    #[error("the eBPF map {name} could not be set up")]
    Map {
        /// Which one.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: MapError,
    },
    /// A filter could not be written into it.
    #[error(transparent)]
    Filter(#[from] PatchError),
    /// The object was not built from the source of this server.
    #[error("the eBPF object has no {0}")]
    Missing(&'static str),
    /// What the programs log could not be read.
    #[error("the log of the eBPF programs could not be read")]
    Logs(#[source] io::Error),
    /// The number of CPUs is not known.
    #[error("the number of CPUs could not be read")]
    Cpus(#[source] io::Error),
}

impl LoadError {
    /// Why a program could not be loaded. What the verifier finds is told from what rights, or another policy, forbid: both
    /// come with the same error numbers.
    pub(super) fn of_program(name: &'static str, error: ProgramError, has_filter: bool) -> Self {
        let source = match error {
            ProgramError::LoadError {
                io_error,
                verifier_log,
            } => match Refused::by_log(name, &verifier_log.to_string(), has_filter) {
                Some(refused) => return refused.into(),
                // Else it would repeat itself, and speak of a log that is none.
                None => ProgramError::IOError(io_error),
            },
            other => other,
        };
        Self::Program {
            name,
            source: Box::new(source),
        }
    }
}

/// The loaded object.
pub(super) struct Object {
    pub(super) programs: Ebpf,
    pub(super) interfaces: InterfaceMap,
    pub(super) own: OwnTrafficMap,
    pub(super) rings: CreatedRings,
    pub(super) clock: ClockSource,
}

impl Object {
    /// Creates the maps and rings of `ring_size` bytes each for these CPUs, and loads the programs of a hook.
    pub(super) fn load(
        config: &TapConfig,
        hook: ChosenHook,
        filters: &CaptureFilters,
        ring_size: u32,
        cpus: Cpus,
        connections: &Connections,
    ) -> Result<Self, LoadError> {
        let object = filters.write_into(OBJECT)?;
        let clock = *CLOCK_SOURCE;
        let log_level = if config.log_programs { &LOG_DEBUG } else { &LOG_OFF };
        let mut programs = LOADER
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .override_global(globals::CLOCK, clock.number(), true)
            .override_global(globals::PREEMPTIBLE, &*PREEMPTIBLE, true)
            .override_global(globals::LOG_LEVEL, log_level, true)
            .map_max_entries(maps::RINGS, cpu_rings::places(&cpus))
            .load(&object)
            .map_err(|error| LoadError::Object(Box::new(error)))?;

        let failed = |source| LoadError::Map {
            name: maps::RINGS,
            source,
        };
        let array = cpu_rings::array_of(&programs, maps::RINGS).map_err(failed)?;
        let not_own = |source| LoadError::Map {
            name: maps::OWN_CONNECTIONS,
            source,
        };
        let lists = cpu_rings::array_of(&programs, maps::OWN_CONNECTIONS).map_err(not_own)?;
        let connections = connections.maps().map_err(not_own)?;
        // All take some ten milliseconds, rings and connections by waiting.
        let (loaded, rings, shared) = thread::scope(|scope| {
            let create = || CreatedRings::create(array, cpus, ring_size);
            let rings = thread::Builder::new().spawn_scoped(scope, create);
            let shared =
                thread::Builder::new().spawn_scoped(scope, || cpu_rings::share(&lists, &connections));
            let loaded = hook.load(&mut programs, !filters.is_none());
            let rings = rings.map_err(MapError::IoError).and_then(joined);
            (loaded, rings, shared.map_err(MapError::IoError).and_then(joined))
        });
        loaded?;
        shared.map_err(not_own)?;
        let rings = rings.map_err(failed)?;
        let interfaces = take_map(&mut programs, maps::INTERFACES)?
            .try_into()
            .map_err(|source| LoadError::Map {
                name: maps::INTERFACES,
                source,
            })?;
        let own = OwnTrafficMap::take(&mut programs)?;
        Ok(Self {
            programs,
            interfaces,
            own,
            rings,
            clock,
        })
    }
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
