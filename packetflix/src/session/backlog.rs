//! What waits for slow clients, of all captures together.
//!
//! Each capture's window has a bound of its own, which many captures would make too much of where memory is short. Beyond the
//! bound for all, each has an equal share: who has more gives up the oldest, at the next batch or within a second.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// What all windows take.
#[derive(Debug)]
pub(super) struct Backlog {
    bound: usize,
    windows: AtomicUsize,
    used: AtomicUsize,
}

/// What one window takes, given back when dropped.
#[derive(Debug)]
pub(super) struct Share {
    backlog: Arc<Backlog>,
    used: usize,
}

impl Backlog {
    /// One of so many bytes.
    pub(super) fn new(bound: u64) -> Arc<Self> {
        Arc::new(Self {
            bound: usize::try_from(bound).unwrap_or(usize::MAX),
            windows: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
        })
    }

    /// The share of one more window.
    pub(super) fn share(self: &Arc<Self>) -> Share {
        self.windows.fetch_add(1, Ordering::Relaxed);
        Share {
            backlog: Arc::clone(self),
            used: 0,
        }
    }
}

impl Share {
    /// Bytes that it takes.
    pub(super) fn used(&self) -> usize {
        self.used
    }

    /// Takes so many bytes more.
    pub(super) fn take(&mut self, bytes: usize) {
        self.used += bytes;
        self.backlog.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives so many back.
    pub(super) fn give_back(&mut self, bytes: usize) {
        self.used -= bytes;
        self.backlog.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether it is more than there is for one window, since all together are too much.
    pub(super) fn is_too_much(&self) -> bool {
        let Backlog { bound, windows, used } = &*self.backlog;
        used.load(Ordering::Relaxed) > *bound && self.used > bound / windows.load(Ordering::Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.give_back(self.used);
        self.backlog.windows.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_least_keeps_it() {
        let backlog = Backlog::new(100);
        let mut shares = [backlog.share(), backlog.share()];
        shares[0].take(90);
        assert!(!shares[0].is_too_much());
        shares[1].take(20);
        assert!(shares[0].is_too_much() && !shares[1].is_too_much());
        shares[0].give_back(20);
        assert!(!shares[0].is_too_much());
        drop(shares);
        let used = backlog.used.load(Ordering::Relaxed);
        assert_eq!((used, backlog.windows.load(Ordering::Relaxed)), (0, 0));
    }
}
