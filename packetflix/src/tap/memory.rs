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
    /// Rings of each capture.
    pub cpus: u32,
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
    is_pending: bool,
    /// Bytes of the ring of each CPU.
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

    /// Takes the share of one more capture.
    ///
    /// # Errors
    /// When too little is left of what all may take, or of the memory.
    pub(super) fn take(self: &Arc<Self>) -> Result<RingShare, TapError> {
        self.take_of(memory::left().saturating_sub(RESERVE))
    }

    /// Takes it of so much memory that is left.
    fn take_of(self: &Arc<Self>, left: u64) -> Result<RingShare, TapError> {
        let mut used = self.used();
        let allowed = self.config.memory.saturating_sub(used.all);
        let left = left.saturating_sub(used.pending);
        let Some(size) = self.config.fitting(allowed.min(left)) else {
            return Err(if allowed <= left {
                TapError::RingMemory {
                    memory: self.config.memory,
                }
            } else {
                TapError::Memory { left }
            });
        };
        let total = self.config.total(size);
        used.all += total;
        used.pending += total;
        Ok(RingShare {
            memory: Arc::clone(self),
            is_pending: true,
            size,
        })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RingShare {
    /// The kernel has given the memory.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.is_pending) {
            self.memory.used().pending -= self.memory.config.total(self.size);
        }
    }
}

impl RingConfig {
    /// Bytes of each ring when so much is left.
    fn fitting(&self, left: u64) -> Option<u32> {
        let mut size = self.size;
        while !self.is_fixed && u64::from(size) > MIN_RING_SIZE && self.total(size) > left / SHARE {
            size /= 2;
        }
        (self.total(size) <= left).then_some(size)
    }

    /// Bytes of all rings of a capture.
    fn total(&self, size: u32) -> u64 {
        u64::from(size) * u64::from(self.cpus)
    }
}

impl Drop for RingShare {
    fn drop(&mut self) {
        self.settle();
        self.memory.used().all -= self.memory.config.total(self.size);
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
            cpus: 2,
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
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX).ok()).collect();
        let sizes: Vec<u32> = shares.iter().map(|share| share.size).collect();
        assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
        assert_eq!(sizes.first(), Some(&(8 << 20)));
        assert_eq!(sizes.last(), Some(&(512 << 10)));
        assert!(shares.len() >= 80, "{}", shares.len());
        let (all, _) = used(&memory);
        assert!(all <= 512 << 20 && all > 511 << 20);
        drop(shares);
        assert_eq!(used(&memory), (0, 0));
        assert_eq!(memory.take_of(u64::MAX).unwrap().size, 8 << 20);
    }

    #[test]
    fn rings_take_no_more_than_there_is() {
        let memory = RingMemory::new(config(512 << 20, true));
        // What the kernel has yet to give is not left, though it still says so.
        let mut first = memory.take_of(40 << 20).unwrap();
        let second = memory.take_of(40 << 20).unwrap();
        let error = memory.take_of(40 << 20).unwrap_err();
        assert!(
            matches!(error, TapError::Memory { left } if left == 8 << 20),
            "{error}"
        );
        first.settle();
        assert!(memory.take_of(32 << 20).is_ok());
        drop((first, second));
        assert_eq!(used(&memory), (0, 0));
        let smaller = RingMemory::new(config(512 << 20, false));
        assert_eq!(smaller.take_of(40 << 20).unwrap().size, 1 << 20);
    }

    #[test]
    fn a_size_that_was_asked_for_stays() {
        let memory = RingMemory::new(config(100 << 20, true));
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX).ok()).collect();
        assert_eq!(shares.len(), 6);
        assert!(shares.iter().all(|share| share.size == 8 << 20));
    }
}
