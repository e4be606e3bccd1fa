//! The eBPF object: loaded once per tap, with its maps taken out.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{LazyLock, Mutex, PoisonError},
    thread::{self, ScopedJoinHandle},
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    maps::{ArrayOfMaps, Map, MapData, MapError, PerCpuHashMap, RingBuf},
    programs::{ProgramError, ProgramType},
    sys::{BpfHelper, is_helper_supported},
    util::nr_cpus,
};
use packetflix_common::{InterfaceEntry, globals, maps};

use super::{
    CaptureFilters, PatchError, TapConfig, clock::ClockSource, hook::ChosenHook, own::OwnTrafficMap,
};

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

/// `BPF_MAP_TYPE_RINGBUF` of `linux/bpf.h`
const RING_BUFFER: u32 = 27;

/// Most threads that create rings.
const MAX_THREADS: usize = 16;

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
    /// A program was refused.
    #[error("the kernel refused the eBPF program {name}")]
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

/// One ring per CPU, in their order, which are mapped when they are needed.
type Rings = Vec<MapData>;

/// The loaded object.
pub(super) struct Object {
    pub(super) programs: Ebpf,
    pub(super) interfaces: InterfaceMap,
    pub(super) own: OwnTrafficMap,
    pub(super) rings: Rings,
    pub(super) clock: ClockSource,
}

impl Object {
    /// Creates the maps and rings of `ring_size` bytes each, and loads the programs of a hook.
    pub(super) fn load(
        config: &TapConfig,
        hook: ChosenHook,
        filters: &CaptureFilters,
        ring_size: u32,
    ) -> Result<Self, LoadError> {
        let object = filters.write_into(OBJECT)?;
        let cpus = nr_cpus().map_err(|(_, error)| LoadError::Cpus(error))? as u32;
        let clock = *CLOCK_SOURCE;
        let log_level = if config.log_programs { &LOG_DEBUG } else { &LOG_OFF };
        let mut programs = LOADER
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .override_global(globals::CLOCK, clock.number(), true)
            .override_global(globals::LOG_LEVEL, log_level, true)
            .map_max_entries(maps::RINGS, cpus)
            .load(&object)
            .map_err(|error| LoadError::Object(Box::new(error)))?;

        let failed = |source| LoadError::Map {
            name: maps::RINGS,
            source,
        };
        let by_cpu = handle_of_rings(&programs).map_err(failed)?;
        // Both take some ten milliseconds, the rings by waiting.
        let (loaded, rings) = thread::scope(|scope| {
            let rings = thread::Builder::new().spawn_scoped(scope, || create_rings(&by_cpu, cpus, ring_size));
            let loaded = hook.load(&mut programs);
            (loaded, rings.map_err(MapError::IoError).and_then(joined))
        });
        loaded?;
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

/// A handle of the array of rings, of its own.
fn handle_of_rings(programs: &Ebpf) -> Result<OwnedFd, MapError> {
    let Some(Map::ArrayOfMaps(by_cpu)) = programs.map(maps::RINGS) else {
        return Err(MapError::KeyNotFound);
    };
    let handle = by_cpu.fd().as_fd().try_clone_to_owned();
    handle.map_err(MapError::IoError)
}

/// Creates a ring for each CPU. Putting one into the array waits some ten milliseconds for the kernel, but several
/// threads wait for the same thing.
fn create_rings(by_cpu: &OwnedFd, cpus: u32, size: u32) -> Result<Rings, MapError> {
    let cpus: Vec<u32> = (0..cpus).collect();
    thread::scope(|scope| {
        let threads: Vec<_> = cpus
            .chunks(cpus.len().div_ceil(MAX_THREADS))
            .map(|cpus| thread::Builder::new().spawn_scoped(scope, || create_rings_of(cpus, by_cpu, size)))
            .collect();
        let mut rings = Vec::with_capacity(cpus.len());
        for thread in threads {
            rings.extend(thread.map_err(MapError::IoError).and_then(joined)?);
        }
        Ok(rings)
    })
}

fn create_rings_of(cpus: &[u32], by_cpu: &OwnedFd, size: u32) -> Result<Rings, MapError> {
    let by_cpu = by_cpu.try_clone().map_err(MapError::IoError)?;
    let mut by_cpu: ArrayOfMaps<_, MapData> = Map::ArrayOfMaps(MapData::from_fd(by_cpu)?).try_into()?;
    cpus.iter()
        .map(|&cpu| {
            let ring = aya_obj::Map::new_from_params(RING_BUFFER, 0, 0, size, 0);
            let ring = MapData::create(ring, "ring", None)?;
            by_cpu.set(cpu, &ring, 0)?;
            Ok(ring)
        })
        .collect()
}

/// Maps rings into memory, to be read.
///
/// # Errors
/// When there is no room for them.
pub(super) fn map_rings(rings: Rings) -> Result<Vec<RingBuf<MapData>>, LoadError> {
    let mapped = rings
        .into_iter()
        .map(|ring| RingBuf::try_from(Map::RingBuf(ring)));
    mapped.collect::<Result<_, _>>().map_err(|source| LoadError::Map {
        name: maps::RINGS,
        source,
    })
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

pub(super) fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    programs.take_map(name).ok_or(LoadError::Missing(name))
}

/// CLOCK_TAI where programs can read it.
static CLOCK_SOURCE: LazyLock<ClockSource> = LazyLock::new(|| {
    let tai = [ProgramType::SchedClassifier, ProgramType::SocketFilter]
        .into_iter()
        .all(|program| is_helper_supported(program, BpfHelper::BPF_FUNC_ktime_get_tai_ns).unwrap_or(false));
    if tai {
        ClockSource::Tai
    } else {
        ClockSource::Boottime
    }
});
