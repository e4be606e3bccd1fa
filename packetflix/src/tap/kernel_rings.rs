//! The rings of a capture as the kernel has them, made for the CPUs that are online.
//!
//! The array that programs find them in has a place for each possible CPU, of which there are often many more than the
//! machine ever gets. Those that are not online when the rings are made share a spare ring, so that nothing is lost when one
//! comes. What it delivers goes there until it is given a ring of its own.
//!
//! They are read by another process. Between two captures they are emptied here.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use packetflix_common::{SPARE_RING, maps, ring_of};

use super::{
    KernelError, LoadError,
    memory::RingShare,
    threads::{MAX_THREADS, on_threads},
};
use crate::{
    cpus::Cpus,
    sys::{bpf, ring},
};

/// `BPF_MAP_TYPE_RINGBUF` of `linux/bpf.h`
const RING_BUFFER: u32 = 27;

/// How many places the array of rings has on a machine of these CPUs.
pub(super) fn places(cpus: &Cpus) -> u32 {
    ring_of(cpus.highest()) + 1
}

/// An array of maps of a loaded object, by a handle of its own.
pub(super) fn array_of(programs: &Ebpf, name: &str) -> Result<OwnedFd, MapError> {
    let Some(Map::ArrayOfMaps(array)) = programs.map(name) else {
        return Err(MapError::KeyNotFound);
    };
    let handle = array.fd().as_fd().try_clone_to_owned();
    handle.map_err(MapError::IoError)
}

/// Rings in the array of a loaded object.
pub(super) struct KernelRings {
    array: OwnedFd,
    /// By their places in the array.
    rings: Vec<(u32, OwnedFd)>,
    /// Those that are not in the array yet: nothing may be written to a ring that nobody can read.
    grown: Vec<(u32, OwnedFd)>,
    share: RingShare,
    /// All CPUs that there may be.
    possible: Vec<u32>,
}

impl KernelRings {
    /// Creates rings, as the share has them, in the array.
    pub(super) fn create(array: OwnedFd, cpus: Cpus, share: RingShare) -> Result<Self, MapError> {
        let spare = cpus.may_grow().then_some(SPARE_RING);
        let of_cpus = cpus.online.iter().map(|cpu| ring_of(*cpu));
        let places: Vec<u32> = spare.into_iter().chain(of_cpus).collect();
        let rings = on_threads(places, MapError::IoError, |place| {
            let ring = create_ring(share.size)?;
            put(&array, place, ring.as_fd())?;
            Ok((place, ring))
        });
        let rings = rings.into_iter().collect::<Result<_, MapError>>()?;
        Ok(Self {
            array,
            rings,
            grown: Vec::new(),
            share,
            possible: cpus.possible,
        })
    }

    /// Each with its place.
    pub(super) fn rings(&self) -> &[(u32, OwnedFd)] {
        &self.rings
    }

    /// Whether they are those of a capture of who administers the service.
    pub(super) fn set_admin(&mut self, is_admin: bool) {
        self.share.set_admin(is_admin);
    }

    /// What they have of the memory for rings.
    pub(super) fn share(&self) -> &RingShare {
        &self.share
    }

    /// The kernel has given their memory.
    pub(super) fn settle(&mut self) {
        self.share.settle();
    }

    /// Bytes of each ring.
    pub(super) fn size(&self) -> u32 {
        self.share.size
    }

    /// Waits until no program runs any more that was attached when this was called, and forgets all that they have
    /// delivered.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn clear(&mut self) -> Result<(), KernelError> {
        self.use_grown(&[]);
        if let Some((place, ring)) = self.rings.first() {
            // To put a map into an array of maps waits for all programs that run (`maybe_wait_bpf_programs` of
            // `kernel/bpf/syscall.c`): here it is the one that is there.
            put(&self.array, *place, ring.as_fd()).map_err(failed)?;
        }
        for (_, one) in &self.rings {
            ring::empty(one.as_fd()).map_err(KernelError::Rings)?;
        }
        Ok(())
    }

    /// Makes rings for those of the CPUs that have none of their own, as many as the kernel makes in one go: for each whose
    /// place among the possible ones `has_packets`. They are used once they are said to be read.
    ///
    /// # Errors
    /// When the kernel refuses, or there is no memory for more.
    pub(super) fn grow(&mut self, has_packets: &[bool]) -> Result<&[(u32, OwnedFd)], KernelError> {
        self.use_grown(&[]);
        let busy = self.possible.iter().zip(has_packets).filter(|(_, busy)| **busy);
        let has_ring = |place: &u32| self.rings.iter().any(|(with_ring, _)| with_ring == place);
        let missing: Vec<u32> = busy
            .map(|(cpu, _)| ring_of(*cpu))
            .filter(|place| !has_ring(place))
            .take(MAX_THREADS)
            .collect();
        if missing.is_empty() {
            return Ok(&[]);
        }
        let count = missing.len() as u32;
        self.share.grow(count)?;
        let size = self.share.size;
        let made = on_threads(missing, MapError::IoError, |place| {
            Ok((place, create_ring(size)?))
        });
        match made.into_iter().collect::<Result<Vec<_>, MapError>>() {
            Ok(made) => self.grown = made,
            Err(error) => {
                self.share.shrink(count);
                return Err(failed(error).into());
            }
        }
        Ok(&self.grown)
    }

    /// Has programs find those that were made and have these places; the others go.
    pub(super) fn use_grown(&mut self, read: &[u32]) {
        let array = &self.array;
        for (place, ring) in std::mem::take(&mut self.grown) {
            let is_used = read.contains(&place) && put(array, place, ring.as_fd()).is_ok();
            match is_used {
                true => self.rings.push((place, ring)),
                false => self.share.shrink(1),
            }
        }
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
