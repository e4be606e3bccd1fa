//! The rings of a tap, made for the CPUs that are online.
//!
//! The array that programs find them in has a place for each possible CPU, of which there are often many more than the
//! machine ever gets. Those that are not online when the tap is made share a spare ring, so that nothing is lost when one
//! comes. What it delivers goes there until it is given a ring of its own.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle, ScopedJoinHandle},
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use packetflix_common::{SPARE_RING, maps, ring_of};

use super::{
    LoadError, TapError,
    memory::RingShare,
    rings::{Drained, Head, Merge, RingsReady},
};
use crate::{
    cpus::Cpus,
    error::chain,
    sys::{
        bpf,
        ring::{RingPages, RingReader},
    },
};

/// `BPF_MAP_TYPE_RINGBUF` of `linux/bpf.h`
const RING_BUFFER: u32 = 27;

/// Most threads that create rings. Putting one into the array waits some ten milliseconds for the kernel, but several
/// threads wait for the same thing.
const MAX_THREADS: usize = 16;

/// How many places the array of rings has on a machine of these CPUs.
pub(super) fn places(cpus: &Cpus) -> u32 {
    ring_of(cpus.highest()) + 1
}

/// Rings as they are created: they are mapped into memory when they are needed.
pub(super) struct CreatedRings {
    array: OwnedFd,
    /// By their places in the array.
    rings: Vec<(u32, OwnedFd)>,
    cpus: Cpus,
}

impl CreatedRings {
    /// Creates rings of `size` bytes each in the array of a loaded object.
    pub(super) fn create(array: OwnedFd, cpus: Cpus, size: u32) -> Result<Self, MapError> {
        let spare = cpus.may_grow().then_some(SPARE_RING);
        let of_cpus = cpus.online.iter().map(|cpu| ring_of(*cpu));
        let places: Vec<u32> = spare.into_iter().chain(of_cpus).collect();
        let rings = on_threads(places, MapError::IoError, |place| {
            let ring = create_ring(size)?;
            put(&array, place, ring.as_fd())?;
            Ok((place, ring))
        });
        let rings = rings.into_iter().collect::<Result<_, MapError>>()?;
        Ok(Self { array, rings, cpus })
    }
}

/// An array of maps of a loaded object, by a handle of its own.
pub(super) fn array_of(programs: &Ebpf, name: &str) -> Result<OwnedFd, MapError> {
    let Some(Map::ArrayOfMaps(array)) = programs.map(name) else {
        return Err(MapError::KeyNotFound);
    };
    let handle = array.fd().as_fd().try_clone_to_owned();
    handle.map_err(MapError::IoError)
}

/// The rings of a tap, merged.
pub(super) struct CpuRings {
    merge: Merge<RingReader>,
    positions: Positions,
    /// Those that are not mapped.
    created: Vec<(u32, OwnedFd)>,
    mapping: Mapping,
    ready: Option<RingsReady>,
    share: RingShare,
    array: OwnedFd,
    /// Places of the rings in the array.
    places: Vec<u32>,
    /// All CPUs that there may be.
    possible: Vec<u32>,
    /// How much the spare ring had been given when it was last looked at.
    spare_seen: usize,
    /// Whether it was told that rings cannot be had.
    has_told: bool,
}

/// How far each ring is written and read, for whoever wants to know whether there is something in them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Positions(Arc<Mutex<Vec<Arc<RingPages>>>>);

impl Positions {
    /// Whether all that programs have written was read.
    pub(crate) fn are_read(&self) -> bool {
        self.lock().iter().all(|ring| ring.waiting() == 0)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<RingPages>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings that are being mapped, by a thread that is waited for.
#[derive(Default)]
struct Mapping(Option<JoinHandle<Vec<Result<MappedRing, TapError>>>>);

impl Mapping {
    fn wait(&mut self) -> Vec<Result<MappedRing, TapError>> {
        let mapped = self.0.take().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        mapped.unwrap_or_default()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Whoever would have told of a panic has failed already.
            let _ = thread.join();
        }
    }
}

impl CpuRings {
    /// Rings that are not mapped into memory yet.
    pub(super) fn new(created: CreatedRings, share: RingShare) -> Self {
        let CreatedRings { array, rings, cpus } = created;
        Self {
            merge: Merge::new(Vec::with_capacity(rings.len())),
            positions: Positions::default(),
            places: Vec::with_capacity(rings.len()),
            created: rings,
            mapping: Mapping::default(),
            ready: None,
            share,
            array,
            possible: cpus.possible,
            spare_seen: 0,
            has_told: false,
        }
    }

    /// Begins to map those into memory that are not, to be read: for 64 MiB the kernel makes 32,768 entries of page tables.
    ///
    /// # Errors
    /// When there is no thread or descriptor for that.
    pub(super) fn begin_to_map(&mut self) -> Result<(), TapError> {
        if self.ready.is_none() {
            self.ready = Some(RingsReady::new().map_err(TapError::Rings)?);
        }
        if self.created.is_empty() {
            return Ok(());
        }
        let created = std::mem::take(&mut self.created);
        let size = self.size();
        let map = move || {
            let map = |(place, ring)| MappedRing::map(place, ring, size);
            on_threads(created, TapError::Rings, map)
        };
        let thread = thread::Builder::new().spawn(map).map_err(TapError::Rings)?;
        self.mapping = Mapping(Some(thread));
        Ok(())
    }

    /// Waits until they are mapped.
    ///
    /// # Errors
    /// When there is no room for them.
    pub(super) fn wait_until_mapped(&mut self) -> Result<(), TapError> {
        for ring in self.mapping.wait() {
            let ring = ring?;
            if let Some(ready) = &self.ready {
                ready.add(&ring.ring).map_err(TapError::Rings)?;
            }
            self.add(ring);
        }
        Ok(())
    }

    /// Whether they are mapped.
    pub(super) fn are_mapped(&self) -> bool {
        self.ready.is_some()
    }

    /// Takes them out of our memory again, where they count as ours.
    pub(super) fn unmap(&mut self) {
        self.ready = None;
        self.positions.lock().clear();
        let rings = self.merge.take().into_iter().map(RingReader::unmap);
        self.created.extend(self.places.drain(..).zip(rings));
    }

    /// Waits until no program runs any more that was attached when this was called, and forgets all that they have
    /// delivered.
    ///
    /// # Errors
    /// When the kernel refuses, or a record is left.
    pub(super) fn clear(&mut self) -> Result<(), TapError> {
        if let (Some(ring), Some(place)) = (self.merge.rings().first(), self.places.first()) {
            // To put a map into an array of maps waits for all programs that run (`maybe_wait_bpf_programs` of
            // `kernel/bpf/syscall.c`): here it is the one that is there.
            put(&self.array, *place, ring.as_fd()).map_err(failed)?;
        }
        self.merge.clear();
        if !self.positions.are_read() {
            let left = io::Error::other("a program has not finished a record");
            return Err(TapError::Rings(left));
        }
        self.has_told = false;
        Ok(())
    }

    fn add(&mut self, ring: MappedRing) {
        self.positions.lock().push(Arc::clone(ring.ring.pages()));
        self.merge.add(ring.ring);
        self.places.push(ring.place);
    }

    /// Whether they are those of a capture of who administers the service.
    pub(super) fn set_admin(&mut self, is_admin: bool) {
        self.share.set_admin(is_admin);
    }

    /// What they have of the memory for rings.
    pub(super) fn share(&self) -> &RingShare {
        &self.share
    }

    /// Bytes of each ring.
    pub(super) fn size(&self) -> u32 {
        self.share.size
    }

    /// How far they are written and read.
    pub(super) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// How full the fullest ring is, from 0 to 1.
    pub(super) fn fill(&self) -> f64 {
        let fullest = self.positions.lock().iter().map(|ring| ring.waiting()).max();
        // More may have been read between a look at the one position and at the other.
        (fullest.unwrap_or(0) as f64 / f64::from(self.size())).min(1.0)
    }

    /// Waits until a ring may have a record that was not there when it was last drained.
    pub(super) async fn filled(&self) -> io::Result<()> {
        match &self.ready {
            Some(ready) => ready.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Takes records that are not younger than `until`, oldest first. See [`Merge::drain`].
    pub(super) fn drain(&mut self, until: u64, take: impl FnMut(&[u8]) -> Head) -> Drained {
        self.merge.drain(until, take)
    }

    /// Whether the spare ring was given something since the last time: a CPU without a ring of its own sees packets.
    pub(super) fn spare_is_used(&mut self) -> bool {
        let spare = self.places.iter().position(|place| *place == SPARE_RING);
        let given = spare.map_or(0, |spare| self.positions.lock()[spare].written());
        std::mem::replace(&mut self.spare_seen, given) != given
    }

    /// Gives rings of their own to those of the CPUs that have none, as many as the kernel makes in one go: to each whose
    /// place among the possible ones `has_packets`. They keep to the spare ring if there is no memory for more.
    pub(super) fn follow(&mut self, has_packets: &[bool]) {
        let busy = self.possible.iter().zip(has_packets).filter(|(_, busy)| **busy);
        let missing: Vec<u32> = busy
            .map(|(cpu, _)| ring_of(*cpu))
            .filter(|place| !self.places.contains(place))
            .take(MAX_THREADS)
            .collect();
        if missing.is_empty() {
            return;
        }
        match self.grow(&missing) {
            Ok(()) => tracing::debug!(rings = missing.len(), "CPUs that came online have rings"),
            Err(error) if !self.has_told => {
                self.has_told = true;
                let error = chain(&error);
                tracing::warn!(error, "CPUs that came online go on sharing one ring");
            }
            Err(_) => {}
        }
    }

    fn grow(&mut self, places: &[u32]) -> Result<(), TapError> {
        let count = places.len() as u32;
        self.share.grow(count)?;
        let size = self.size();
        let Self { array, ready, .. } = &*self;
        // Nothing may be written to a ring that could not be read: the array comes last.
        let grown = on_threads(places.to_vec(), TapError::Rings, |place| {
            let ring = MappedRing::map(place, create_ring(size).map_err(failed)?, size)?;
            if let Some(ready) = ready {
                ready.add(&ring.ring).map_err(TapError::Rings)?;
            }
            put(array, place, ring.ring.as_fd()).map_err(failed)?;
            Ok(ring)
        });
        let mut result = Ok(());
        let before = self.places.len();
        for ring in grown {
            match ring {
                Ok(ring) => self.add(ring),
                Err(error) => result = Err(error),
            }
        }
        self.share.shrink(count - (self.places.len() - before) as u32);
        result
    }
}

/// A ring that can be read.
struct MappedRing {
    place: u32,
    ring: RingReader,
}

impl MappedRing {
    fn map(place: u32, ring: OwnedFd, size: u32) -> Result<Self, TapError> {
        let ring = RingReader::map(ring, size).map_err(|source| TapError::Map { size, source })?;
        Ok(Self { place, ring })
    }
}

fn failed(source: MapError) -> LoadError {
    LoadError::Map {
        name: maps::RINGS,
        source,
    }
}

fn create_ring(size: u32) -> Result<OwnedFd, MapError> {
    let ring = aya_obj::Map::new_from_params(RING_BUFFER, 0, 0, size, 0);
    let ring = MapData::create(ring, "ring", None)?;
    let descriptor = ring.fd().as_fd().try_clone_to_owned();
    descriptor.map_err(MapError::IoError)
}

/// Puts maps that others have, too, into an array, each at its place.
pub(super) fn share(array: &OwnedFd, maps: &[(u32, OwnedFd)]) -> Result<(), MapError> {
    let shared = on_threads(maps.iter().collect(), MapError::IoError, |(place, map)| {
        put(array, *place, map.as_fd())
    });
    shared.into_iter().collect()
}

/// Puts a map into an array, for programs to find.
fn put(array: &OwnedFd, place: u32, map: BorrowedFd<'_>) -> Result<(), MapError> {
    bpf::set_descriptor(array.as_fd(), place, map).map_err(MapError::IoError)
}

/// Does `work` for each, shared among threads. One result stands for all those of a thread that could not be had.
fn on_threads<I: Send, T: Send, E: Send>(
    items: Vec<I>,
    no_thread: impl Fn(io::Error) -> E,
    work: impl Fn(I) -> Result<T, E> + Sync,
) -> Vec<Result<T, E>> {
    let work = &work;
    let each = items.len().div_ceil(MAX_THREADS).max(1);
    let mut items = items.into_iter();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        loop {
            let part: Vec<I> = items.by_ref().take(each).collect();
            if part.is_empty() {
                break;
            }
            let work = move || part.into_iter().map(work).collect::<Vec<_>>();
            threads.push(thread::Builder::new().spawn_scoped(scope, work));
        }
        let done = threads.into_iter().flat_map(|thread| match thread {
            Ok(thread) => joined(thread),
            Err(error) => vec![Err(no_thread(error))],
        });
        done.collect()
    })
}

/// What a thread gives.
pub(super) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
