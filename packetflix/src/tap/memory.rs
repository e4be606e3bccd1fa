//! What the rings of all captures may take together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{MIN_RING_SIZE, TapError};
use crate::memory;

/// A capture gets at most this part of what is left, so that those that come later get something, too: there is room
/// for more than a hundred whatever the memory, unless it is less than their smallest rings take.
const SHARE: u64 = 16;

/// So many bytes of memory stay for the programs and for all that is not rings: the kernel refuses a ring when there is no
/// more memory, but for most other things it ends a process.
const RESERVE: u64 = 8 << 20;

/// How large rings are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Bytes of the ring of each CPU: a power of two, and of whole pages.
    pub size: u32,
    /// Whether rings are of just this size; else they get smaller as memory gets scarce.
    pub is_fixed: bool,
    /// Most bytes of all rings of all captures.
    pub memory: u64,
}

/// The rings' memory, of which captures take shares.
#[derive(Debug)]
pub(super) struct RingMemory {
    config: RingConfig,
    used: Mutex<Used>,
}

/// Bytes of all captures.
#[derive(Debug, Default)]
struct Used {
    all: u64,
    /// Of these, what the kernel has not given yet.
    pending: u64,
}

/// A capture's share, given back when dropped.
#[derive(Debug)]
pub(super) struct RingShare {
    memory: Arc<RingMemory>,
    /// Rings that it has, and those of them that the kernel has yet to make.
    rings: u32,
    pending: u32,
    /// Bytes of each ring.
    pub(super) size: u32,
}

impl RingMemory {
    pub(super) fn new(config: RingConfig) -> Arc<Self> {
        let used = Mutex::default();
        Arc::new(Self { config, used })
    }

    /// Bytes that are taken.
    pub(super) fn taken(&self) -> u64 {
        self.used().all
    }

    /// Takes the share of one more capture, which is to have so many rings.
    ///
    /// # Errors
    /// When too little is left of what all may take, or of the memory.
    pub(super) fn take(self: &Arc<Self>, rings: u32) -> Result<RingShare, TapError> {
        self.take_of(left(), rings)
    }

    /// Takes it of so much memory that is left.
    fn take_of(self: &Arc<Self>, left: u64, rings: u32) -> Result<RingShare, TapError> {
        let size = self.reserve(left, rings, |free| self.config.fitting(free, rings))?;
        Ok(RingShare {
            memory: Arc::clone(self),
            rings,
            pending: rings,
            size,
        })
    }

    /// Takes room for rings, each as large as `size_in` says for so much that is free.
    fn reserve(
        &self,
        left: u64,
        rings: u32,
        size_in: impl FnOnce(u64) -> Option<u32>,
    ) -> Result<u32, TapError> {
        let mut used = self.used();
        let allowed = self.config.memory.saturating_sub(used.all);
        let left = left.saturating_sub(used.pending);
        let Some(size) = size_in(allowed.min(left)) else {
            return Err(if allowed <= left {
                TapError::RingMemory {
                    memory: self.config.memory,
                }
            } else {
                TapError::Memory { left }
            });
        };
        let total = total(size, rings);
        used.all += total;
        used.pending += total;
        Ok(size)
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RingShare {
    /// The kernel has given the memory.
    pub(super) fn settle(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        self.memory.used().pending -= total(self.size, pending);
    }

    /// Takes as much for so many more rings, which are to be of the same size.
    ///
    /// # Errors
    /// As for [`RingMemory::take`].
    pub(super) fn grow(&mut self, rings: u32) -> Result<(), TapError> {
        self.grow_of(left(), rings)
    }

    fn grow_of(&mut self, left: u64, rings: u32) -> Result<(), TapError> {
        let size = self.size;
        self.memory
            .reserve(left, rings, |free| (total(size, rings) <= free).then_some(size))?;
        self.rings += rings;
        self.pending += rings;
        Ok(())
    }

    /// Gives back what it has for so many rings.
    pub(super) fn shrink(&mut self, rings: u32) {
        self.settle();
        self.rings -= rings;
        self.memory.used().all -= total(self.size, rings);
    }
}

impl RingConfig {
    /// Bytes of each of so many rings when so much is left.
    fn fitting(&self, left: u64, rings: u32) -> Option<u32> {
        let mut size = self.size;
        while !self.is_fixed && u64::from(size) > MIN_RING_SIZE && total(size, rings) > left / SHARE {
            size /= 2;
        }
        (total(size, rings) <= left).then_some(size)
    }
}

/// Bytes of so many rings.
fn total(size: u32, rings: u32) -> u64 {
    u64::from(size) * u64::from(rings)
}

/// Bytes of memory that there are for rings.
fn left() -> u64 {
    memory::left().saturating_sub(RESERVE)
}

impl Drop for RingShare {
    fn drop(&mut self) {
        self.shrink(self.rings);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(memory: u64, is_fixed: bool) -> RingConfig {
        RingConfig {
            size: 8 << 20,
            is_fixed,
            memory,
        }
    }

    /// Bytes that are used, and of these the pending.
    fn used(memory: &RingMemory) -> (u64, u64) {
        let used = memory.used();
        (used.all, used.pending)
    }

    #[test]
    fn rings_get_smaller_as_memory_gets_scarce_and_end_within_the_bound() {
        let memory = RingMemory::new(config(512 << 20, false));
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX, 2).ok()).collect();
        let sizes: Vec<u32> = shares.iter().map(|share| share.size).collect();
        assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
        assert_eq!(sizes.first(), Some(&(8 << 20)));
        assert_eq!(sizes.last(), Some(&(512 << 10)));
        assert!(shares.len() >= 80, "{}", shares.len());
        let (all, _) = used(&memory);
        assert!(all <= 512 << 20 && all > 511 << 20);
        drop(shares);
        assert_eq!(used(&memory), (0, 0));
        assert_eq!(memory.take_of(u64::MAX, 2).unwrap().size, 8 << 20);
    }

    #[test]
    fn rings_take_no_more_than_there_is() {
        let memory = RingMemory::new(config(512 << 20, true));
        // What the kernel has yet to give is not left, though it still says so.
        let mut first = memory.take_of(40 << 20, 2).unwrap();
        let second = memory.take_of(40 << 20, 2).unwrap();
        let error = memory.take_of(40 << 20, 2).unwrap_err();
        assert!(
            matches!(error, TapError::Memory { left } if left == 8 << 20),
            "{error}"
        );
        first.settle();
        assert!(memory.take_of(32 << 20, 2).is_ok());
        drop((first, second));
        assert_eq!(used(&memory), (0, 0));
        let smaller = RingMemory::new(config(512 << 20, false));
        assert_eq!(smaller.take_of(40 << 20, 2).unwrap().size, 1 << 20);
    }

    #[test]
    fn a_size_that_was_asked_for_stays() {
        let memory = RingMemory::new(config(100 << 20, true));
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX, 2).ok()).collect();
        assert_eq!(shares.len(), 6);
        assert!(shares.iter().all(|share| share.size == 8 << 20));
    }

    #[test]
    fn a_share_grows_within_the_bound_and_gives_all_back() {
        let memory = RingMemory::new(config(32 << 20, true));
        let mut share = memory.take_of(u64::MAX, 2).unwrap();
        share.settle();
        assert_eq!(used(&memory), (16 << 20, 0));
        share.grow_of(u64::MAX, 1).unwrap();
        assert_eq!(used(&memory), (24 << 20, 8 << 20));
        let error = share.grow_of(u64::MAX, 2).unwrap_err();
        assert!(matches!(error, TapError::RingMemory { .. }), "{error}");
        // What the first took and the kernel has yet to give is not left.
        let error = share.grow_of(15 << 20, 1).unwrap_err();
        assert!(
            matches!(error, TapError::Memory { left } if left == 7 << 20),
            "{error}"
        );
        share.settle();
        share.grow_of(15 << 20, 1).unwrap();
        share.shrink(1);
        assert_eq!(used(&memory), (24 << 20, 0));
        drop(share);
        assert_eq!(used(&memory), (0, 0));
    }
}
