//! How much memory a scan has for what engines tell.
//!
//! All engines together have a sixteenth of the memory at most, and those of containers and users a quarter of that.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::{lookout::Owner, memory};

/// A scan may take this part of the memory that the process may use, and within these bounds.
const SHARE: u64 = 16;
const MIN_SCAN: usize = 4 << 20;
const MAX_SCAN: usize = 64 << 20;

/// What engines in containers and of users may tell together is this part of it; and each of them this part of that.
const PART_OF_OTHERS: usize = 4;

/// What engines may tell in one scan.
#[derive(Debug)]
pub(super) struct Budget {
    of_host: Arc<AtomicUsize>,
    of_others: Arc<AtomicUsize>,
    for_one: usize,
}

/// What one engine may tell.
#[derive(Clone, Debug)]
pub(super) struct EngineBudget {
    /// Most bytes of its list.
    pub(super) list: usize,
    /// Most bytes of what it tells of one container or pod.
    pub(super) details: usize,
    /// Most containers or pods that are taken from it.
    pub(super) workloads: usize,
    /// How many containers it is asked about at the same time.
    pub(super) parallel: usize,
    /// Bytes that it may have us keep, of those that all of its kind may.
    left: usize,
    left_for_all: Arc<AtomicUsize>,
}

/// What an engine may tell, as a process knows it that has no part in what all may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) list: usize,
    pub(super) details: usize,
    pub(super) workloads: usize,
    pub(super) parallel: usize,
    /// Bytes that are kept at most.
    pub(super) kept: usize,
}

impl Budget {
    /// That of one scan, of the memory that there is.
    pub(super) fn new() -> Self {
        Self::of(memory::usable())
    }

    fn of(memory: u64) -> Self {
        let whole = usize::try_from(memory / SHARE).unwrap_or(MAX_SCAN);
        let whole = whole.clamp(MIN_SCAN, MAX_SCAN);
        let others = whole / PART_OF_OTHERS;
        Self {
            of_host: Arc::new(AtomicUsize::new(whole - others)),
            of_others: Arc::new(AtomicUsize::new(others)),
            for_one: others / PART_OF_OTHERS,
        }
    }

    /// What an engine may tell whose socket is in these hands.
    pub(super) fn allow(&self, owner: Owner) -> EngineBudget {
        if owner == Owner::Host {
            return EngineBudget {
                list: MAX_LIST_LEN,
                details: MAX_DETAILS_LEN,
                workloads: MAX_WORKLOADS,
                parallel: 8,
                left: usize::MAX,
                left_for_all: Arc::clone(&self.of_host),
            };
        }
        EngineBudget {
            list: self.for_one.min(1 << 20),
            details: 128 << 10,
            workloads: 1000,
            parallel: 2,
            left: self.for_one,
            left_for_all: Arc::clone(&self.of_others),
        }
    }
}

/// Most containers or pods that are taken from one engine.
pub(super) const MAX_WORKLOADS: usize = 10_000;

/// Most bytes of an engine's list: some thousand containers.
pub(super) const MAX_LIST_LEN: usize = 8 << 20;

/// Most bytes of what an engine tells of one container or pod.
pub(super) const MAX_DETAILS_LEN: usize = 512 << 10;

impl EngineBudget {
    /// One that nobody else has a part in.
    pub(super) fn within(bounds: Bounds) -> Self {
        Self {
            list: bounds.list,
            details: bounds.details,
            workloads: bounds.workloads,
            parallel: bounds.parallel,
            left: bounds.kept,
            left_for_all: Arc::new(AtomicUsize::new(bounds.kept)),
        }
    }

    /// What of it there is at the moment.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            list: self.list,
            details: self.details,
            workloads: self.workloads,
            parallel: self.parallel,
            kept: self.left.min(self.left_for_all.load(Ordering::Relaxed)),
        }
    }

    /// Takes so many bytes; `false` when there are not as many left.
    #[must_use]
    pub(super) fn take(&mut self, len: usize) -> bool {
        let Some(left) = self.left.checked_sub(len) else {
            return false;
        };
        let take = |left: usize| left.checked_sub(len);
        let taken = self
            .left_for_all
            .try_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok();
        if taken {
            self.left = left;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_leave_the_hosts_engines_theirs_and_no_one_takes_all() {
        for memory in [64 << 20, 128 << 20, u64::MAX] {
            let budget = Budget::of(memory);
            let take_all = |owner| {
                let mut allowance = budget.allow(owner);
                let mut taken = 0;
                while allowance.take(1000) {
                    taken += 1000;
                }
                taken
            };
            let of_one = take_all(Owner::User(1));
            let of_others: usize = (2..100).map(|uid| take_all(Owner::User(uid))).sum();
            let all_others = of_one + of_others;
            let of_host = take_all(Owner::Host);
            assert!(
                of_one > 200_000 && of_others > 2 * of_one,
                "{memory}: {of_one} {of_others}"
            );
            assert!(of_host > 2 * all_others, "{memory}: {of_host} {all_others}");
            assert!(of_host + all_others <= MAX_SCAN);
            assert!(memory > 64 << 20 || of_host + all_others <= 4 << 20);
        }
    }
}
