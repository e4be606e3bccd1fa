//! What the rings of all captures may take together.
//!
//! Rings are by default 64 MiB for a capture: a reader on a busy machine may have to wait for 20 ms, in which one CPU receives
//! 32 MB at 13 Gbit/s. All rings together have a bound (`--ring-memory`). A capture gets at most a sixteenth of what is left,
//! so that rings get smaller, and the last ones are refused, before the machine suffers. A sixteenth is kept for those who may
//! administer. Nor does a capture get more than the machine or the control group has left at that moment, less 8 MiB: the
//! kernel refuses a ring that there is no memory for, but ends a process that is short of it for a program or a stack.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{KernelError, MIN_RING_SIZE};
use crate::{filter, memory};

/// A capture gets at most this part of what is left, so that those that come later get something, too: there is room
/// for more than a hundred whatever the memory, unless it is less than their smallest rings take.
const SHARE: u64 = 16;

/// Of so much memory a part is kept for those who administer the service, or room for one capture if that is more; but
/// never more than a quarter of all.
const KEPT: u64 = 16;
const MOST_KEPT: u64 = 4;

/// So many bytes of memory stay for the programs and for all that is not rings: the kernel refuses a ring when there is no
/// more memory, but for most other things it ends a process.
const RESERVE: u64 = 8 << 20;

/// Compilers of filters, and what waits for slow clients, get this part of what is left at most, where they may take more.
const SHARE_OF_OTHERS: u64 = 4;

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
    is_admin: bool,
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

    /// Takes the share of one more capture, which is to have so many rings. Who administers the service may have what is
    /// kept, too.
    ///
    /// # Errors
    /// When too little is left of what all may take, or of the memory.
    pub(super) fn take(self: &Arc<Self>, rings: u32, is_admin: bool) -> Result<RingShare, KernelError> {
        self.take_of(left(), rings, is_admin)
    }

    /// Takes it of so much memory that is left.
    fn take_of(self: &Arc<Self>, left: u64, rings: u32, is_admin: bool) -> Result<RingShare, KernelError> {
        let kept = if is_admin { 0 } else { self.config.kept(rings) };
        let size = self.reserve(left, rings, kept, |free| self.config.fitting(free, rings))?;
        Ok(RingShare {
            memory: Arc::clone(self),
            is_admin,
            rings,
            pending: rings,
            size,
        })
    }

    /// Takes room for rings, each as large as `size_in` says for so much that is free, and leaves what is `kept`.
    fn reserve(
        &self,
        left: u64,
        rings: u32,
        kept: u64,
        size_in: impl FnOnce(u64) -> Option<u32>,
    ) -> Result<u32, KernelError> {
        let mut used = self.used();
        let allowed = self.config.memory.saturating_sub(used.all + kept);
        let left = left.saturating_sub(used.pending);
        let Some(size) = size_in(allowed.min(left)) else {
            return Err(if allowed <= left {
                KernelError::RingMemory {
                    memory: self.config.memory,
                    kept,
                }
            } else {
                KernelError::Memory { left }
            });
        };
        let total = total(size, rings);
        used.all += total;
        used.pending += total;
        Ok(size)
    }

    /// Whether anybody would get such a share now, were it given back, and no larger rings.
    pub(super) fn would_give(&self, share: &RingShare) -> bool {
        self.would_give_of(left(), share)
    }

    fn would_give_of(&self, left: u64, share: &RingShare) -> bool {
        let own = total(share.size, share.rings);
        let taken = self.used().all.saturating_sub(own) + self.config.kept(share.rings);
        let free = self.config.memory.saturating_sub(taken);
        let free = free.min(left.saturating_add(own));
        let fitting = self.config.fitting(free, share.rings);
        own <= free && fitting.is_some_and(|size| size <= share.size)
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

    /// Whose it is, who may have what is kept for those who administer, or not.
    pub(super) fn set_admin(&mut self, is_admin: bool) {
        self.is_admin = is_admin;
    }

    /// Takes as much for so many more rings, which are to be of the same size.
    ///
    /// # Errors
    /// As for [`RingMemory::take`].
    pub(super) fn grow(&mut self, rings: u32) -> Result<(), KernelError> {
        self.grow_of(left(), rings)
    }

    fn grow_of(&mut self, left: u64, rings: u32) -> Result<(), KernelError> {
        let size = self.size;
        let kept = match self.is_admin {
            true => 0,
            false => self.memory.config.kept(self.rings),
        };
        self.memory.reserve(left, rings, kept, |free| {
            (total(size, rings) <= free).then_some(size)
        })?;
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
    /// Bytes that are kept for those who administer the service, whose captures have so many rings.
    fn kept(&self, rings: u32) -> u64 {
        let smallest = match self.is_fixed {
            true => self.size.into(),
            false => MIN_RING_SIZE,
        };
        let kept = (self.memory / KEPT).max(smallest * u64::from(rings));
        if kept <= self.memory / MOST_KEPT { kept } else { 0 }
    }

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

/// Bytes of memory that there are for rings: at least three quarters of what is left beside [`RESERVE`], and all of it but for
/// what compiling filters, and what waits for slow clients, may take.
fn left() -> u64 {
    let left = memory::left().saturating_sub(RESERVE);
    let others = filter::memory_of_compilers() + memory::for_slow_clients();
    left - others.min(left / SHARE_OF_OTHERS)
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
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX, 2, true).ok()).collect();
        let sizes: Vec<u32> = shares.iter().map(|share| share.size).collect();
        assert!(sizes.is_sorted_by(|one, next| one >= next), "{sizes:?}");
        assert_eq!(sizes.first(), Some(&(8 << 20)));
        assert_eq!(sizes.last(), Some(&(512 << 10)));
        assert!(shares.len() >= 80, "{}", shares.len());
        let (all, _) = used(&memory);
        assert!(all <= 512 << 20 && all > 511 << 20);
        drop(shares);
        assert_eq!(used(&memory), (0, 0));
        assert_eq!(memory.take_of(u64::MAX, 2, true).unwrap().size, 8 << 20);
    }

    #[test]
    fn rings_take_no_more_than_there_is() {
        let memory = RingMemory::new(config(512 << 20, true));
        // What the kernel has yet to give is not left, though it still says so.
        let mut first = memory.take_of(40 << 20, 2, true).unwrap();
        let second = memory.take_of(40 << 20, 2, true).unwrap();
        let error = memory.take_of(40 << 20, 2, true).unwrap_err();
        assert!(
            matches!(error, KernelError::Memory { left } if left == 8 << 20),
            "{error}"
        );
        first.settle();
        assert!(memory.take_of(32 << 20, 2, true).is_ok());
        drop((first, second));
        assert_eq!(used(&memory), (0, 0));
        let smaller = RingMemory::new(config(512 << 20, false));
        assert_eq!(smaller.take_of(40 << 20, 2, true).unwrap().size, 1 << 20);
    }

    #[test]
    fn a_size_that_was_asked_for_stays() {
        let memory = RingMemory::new(config(100 << 20, true));
        let shares: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX, 2, true).ok()).collect();
        assert_eq!(shares.len(), 6);
        assert!(shares.iter().all(|share| share.size == 8 << 20));
    }

    #[test]
    fn some_is_kept_for_who_administers() {
        let all = |memory: &Arc<RingMemory>, is_admin| -> Vec<RingShare> {
            std::iter::from_fn(|| memory.take_of(u64::MAX, 2, is_admin).ok()).collect()
        };
        let memory = RingMemory::new(config(512 << 20, false));
        let mut others = all(&memory, false);
        let error = memory.take_of(u64::MAX, 2, false).unwrap_err().to_string();
        assert!(
            error.ends_with(
                "of the 512 MiB that --ring-memory allows for all, of which 32 MiB are kept for admin"
            ),
            "{error}"
        );
        assert!(used(&memory).0 <= 480 << 20);
        // Nor do theirs grow into it, but an administrator's.
        let last = others.last_mut().unwrap();
        assert!(last.grow_of(u64::MAX, 2).is_err());
        let mut admins = all(&memory, true);
        assert!(admins.len() >= 16, "{}", admins.len());
        assert!(memory.take_of(u64::MAX, 2, true).is_err());
        admins.truncate(1);
        admins[0].grow_of(u64::MAX, 2).unwrap();
        drop((others, admins));
        assert_eq!(used(&memory), (0, 0));
        // Room for one capture, where that is more; none where there is little at all.
        for (mib, is_fixed, for_others, for_all) in [(80, true, 4, 5), (48, true, 3, 3), (4, false, 3, 4)] {
            let memory = RingMemory::new(config(mib << 20, is_fixed));
            let others = all(&memory, false);
            assert_eq!(others.len(), for_others, "{mib} MiB");
            assert_eq!(others.len() + all(&memory, true).len(), for_all, "{mib} MiB");
        }
    }

    #[test]
    fn a_share_grows_within_the_bound_and_gives_all_back() {
        let memory = RingMemory::new(config(32 << 20, true));
        let mut share = memory.take_of(u64::MAX, 2, true).unwrap();
        share.settle();
        assert_eq!(used(&memory), (16 << 20, 0));
        share.grow_of(u64::MAX, 1).unwrap();
        assert_eq!(used(&memory), (24 << 20, 8 << 20));
        let error = share.grow_of(u64::MAX, 2).unwrap_err();
        assert!(matches!(error, KernelError::RingMemory { .. }), "{error}");
        // What the first took and the kernel has yet to give is not left.
        let error = share.grow_of(15 << 20, 1).unwrap_err();
        assert!(
            matches!(error, KernelError::Memory { left } if left == 7 << 20),
            "{error}"
        );
        share.settle();
        share.grow_of(15 << 20, 1).unwrap();
        share.shrink(1);
        assert_eq!(used(&memory), (24 << 20, 0));
        drop(share);
        assert_eq!(used(&memory), (0, 0));
    }

    #[test]
    fn a_share_is_kept_if_anybody_would_get_it() {
        let memory = RingMemory::new(config(512 << 20, false));
        let first = memory.take_of(u64::MAX, 2, false).unwrap();
        assert!(memory.would_give_of(u64::MAX, &first));
        let others: Vec<RingShare> = std::iter::from_fn(|| memory.take_of(u64::MAX, 2, false).ok()).collect();
        let small = others.last().unwrap();
        assert!(memory.would_give_of(u64::MAX, small));
        // What is kept for those who administer is not for the next.
        let kept = memory.take_of(u64::MAX, 2, true).unwrap();
        assert!(!memory.would_give_of(u64::MAX, &kept));
        // Rings of a time when memory was short.
        let memory = RingMemory::new(config(512 << 20, false));
        let small = memory.take_of(40 << 20, 2, false).unwrap();
        assert!(!memory.would_give_of(u64::MAX, &small));
    }
}
