//! The rings of a tap as they are read: mapped into our memory, and merged.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use packetflix_common::SPARE_RING;

use super::{
    TapError,
    rings::{Drained, Head, Merge, RingsReady},
    threads::on_threads,
};
use crate::sys::ring::{RingPages, RingReader};

/// Rings that were handed over, each with its place in the array that programs find them in.
pub(super) type HandedOver = Vec<(u32, OwnedFd)>;

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

/// Rings that are being mapped, by a thread that is waited for: for 64 MiB the kernel makes 32,768 entries of page tables.
pub(super) struct Mapping(Option<JoinHandle<Vec<Result<MappedRing, TapError>>>>);

/// Rings that a capture begins with.
pub(super) enum Beginning {
    /// They were mapped ahead.
    Mapped(Vec<MappedRing>),
    BeingMapped(Mapping),
}

impl Beginning {
    /// Maps rings of `size` bytes, unless these were.
    ///
    /// # Errors
    /// When there is no thread for that.
    pub(super) fn of(ahead: Option<Vec<MappedRing>>, rings: HandedOver, size: u32) -> Result<Self, TapError> {
        match ahead {
            Some(rings) => Ok(Self::Mapped(rings)),
            None => Mapping::begin(rings, size).map(Self::BeingMapped),
        }
    }
}

impl Mapping {
    /// Begins to map rings of `size` bytes.
    ///
    /// # Errors
    /// When there is no thread for that.
    pub(super) fn begin(rings: HandedOver, size: u32) -> Result<Self, TapError> {
        let map = move || map_all(rings, size);
        let thread = thread::Builder::new().spawn(map).map_err(TapError::Rings)?;
        Ok(Self(Some(thread)))
    }

    /// Waits until they are mapped.
    fn wait(mut self) -> Vec<Result<MappedRing, TapError>> {
        let joined = self.0.take().map(JoinHandle::join);
        let mapped = joined.map(|joined| joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
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

/// The rings of a tap, merged.
pub(super) struct CpuRings {
    merge: Merge<RingReader>,
    positions: Positions,
    ready: RingsReady,
    /// Places of the rings in the array.
    places: Vec<u32>,
    /// Bytes of each ring.
    size: u32,
    /// How much the spare ring had been given when it was last looked at.
    spare_seen: usize,
}

impl CpuRings {
    /// None yet.
    ///
    /// # Errors
    /// When there is no descriptor to wait for them by.
    pub(super) fn new(size: u32) -> Result<Self, TapError> {
        Ok(Self {
            merge: Merge::new(Vec::new()),
            positions: Positions::default(),
            ready: RingsReady::new().map_err(TapError::Rings)?,
            places: Vec::new(),
            size,
            spare_seen: 0,
        })
    }

    /// Waits until rings are mapped, and reads them from then on.
    ///
    /// # Errors
    /// When there is no room for them.
    pub(super) fn read_all(&mut self, rings: Beginning) -> Result<(), TapError> {
        match rings {
            Beginning::Mapped(rings) => rings.into_iter().try_for_each(|ring| self.read(ring)),
            Beginning::BeingMapped(mapping) => {
                mapping.wait().into_iter().try_for_each(|ring| self.read(ring?))
            }
        }
    }

    /// Reads none any more; gives those that were read.
    pub(super) fn take(&mut self) -> Vec<MappedRing> {
        // Whoever asks later is not told of another capture's.
        self.positions.lock().clear();
        let places = std::mem::take(&mut self.places).into_iter();
        let rings = self.merge.take().into_iter();
        places
            .zip(rings)
            .map(|(place, ring)| MappedRing { place, ring })
            .collect()
    }

    /// Reads further rings from now on; gives the places of those that can be.
    pub(super) fn grow(&mut self, rings: HandedOver) -> (Vec<u32>, Result<(), TapError>) {
        let before = self.places.len();
        let mapped = map_all(rings, self.size).into_iter();
        let read = mapped.map(|ring| self.read(ring?)).fold(Ok(()), Result::and);
        (self.places[before..].to_vec(), read)
    }

    fn read(&mut self, MappedRing { place, ring }: MappedRing) -> Result<(), TapError> {
        self.ready.add(&ring).map_err(TapError::Rings)?;
        self.positions.lock().push(Arc::clone(ring.pages()));
        self.merge.add(ring);
        self.places.push(place);
        Ok(())
    }

    /// Bytes of each ring.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// How far they are written and read.
    pub(super) fn positions(&self) -> &Positions {
        &self.positions
    }

    /// How full the fullest ring is, from 0 to 1.
    pub(super) fn fill(&self) -> f64 {
        let fullest = self.positions.lock().iter().map(|ring| ring.waiting()).max();
        // More may have been read between a look at the one position and at the other.
        (fullest.unwrap_or(0) as f64 / f64::from(self.size)).min(1.0)
    }

    /// Waits until a ring may have a record that was not there when it was last drained.
    pub(super) async fn filled(&self) -> std::io::Result<()> {
        self.ready.wait().await
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
}

/// A ring that can be read.
pub(super) struct MappedRing {
    place: u32,
    ring: RingReader,
}

impl MappedRing {
    /// Its place in the array that programs find it in.
    pub(super) fn place(&self) -> u32 {
        self.place
    }

    /// Reads on where the other side has emptied it to.
    pub(super) fn restart(&mut self) {
        self.ring.restart();
    }
}

/// Maps rings of `size` bytes.
pub(super) fn map_all(rings: HandedOver, size: u32) -> Vec<Result<MappedRing, TapError>> {
    on_threads(rings, TapError::Rings, |(place, ring)| {
        let ring = RingReader::map(ring, size).map_err(|source| TapError::Map { size, source })?;
        Ok(MappedRing { place, ring })
    })
}
