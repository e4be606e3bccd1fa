//! What the rings of all captures may take together.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::MIN_RING_SIZE;

/// A capture gets at most this part of what is left, so that those that come later get something, too: there is room
/// for more than a hundred whatever the memory, unless it is less than their smallest rings take.
const SHARE: u64 = 16;

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
    used: AtomicU64,
}

/// A capture's share, given back when dropped.
#[derive(Debug)]
pub(super) struct RingShare {
    memory: Arc<RingMemory>,
    /// Bytes of the ring of each CPU.
    pub(super) size: u32,
}

impl RingMemory {
    pub(super) fn new(config: RingConfig) -> Arc<Self> {
        let used = AtomicU64::new(0);
        Arc::new(Self { config, used })
    }

    /// Bytes that are taken.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes the share of one more capture; `None` when too little is left.
    pub(super) fn take(self: &Arc<Self>) -> Option<RingShare> {
        let mut size = 0;
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                size = self.config.fitting(used)?;
                Some(used + self.config.total(size))
            });
        taken.ok().map(|_| RingShare {
            memory: Arc::clone(self),
            size,
        })
    }
}

impl RingConfig {
    /// Bytes of each ring when others use so much.
    fn fitting(&self, used: u64) -> Option<u32> {
        let left = self.memory.saturating_sub(used);
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
        let total = self.memory.config.total(self.size);
        self.memory.used.fetch_sub(total, Ordering::Relaxed);
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

    #[test]
    fn rings_get_smaller_as_memory_gets_scarce_and_end_within_the_bound() {
        let memory = RingMemory::new(config(512 << 20, false));
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take()).collect();
        let sizes: Vec<u32> = shares.iter().map(|share| share.size).collect();
        assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
        assert_eq!(sizes.first(), Some(&(8 << 20)));
        assert_eq!(sizes.last(), Some(&(512 << 10)));
        assert!(shares.len() >= 80, "{}", shares.len());
        let used = memory.used();
        assert!(used <= 512 << 20 && used > 511 << 20);
        drop(shares);
        assert_eq!(memory.used(), 0);
        assert_eq!(memory.take().unwrap().size, 8 << 20);
    }

    #[test]
    fn a_size_that_was_asked_for_stays() {
        let memory = RingMemory::new(config(100 << 20, true));
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take()).collect();
        assert_eq!(shares.len(), 6);
        assert!(shares.iter().all(|share| share.size == 8 << 20));
    }
}
