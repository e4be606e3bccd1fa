//! The numbers of objects that captures use in turn, by which who reads their rings knows them again.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::sync::watch;

/// Gives numbers, and tells which objects are kept: those that are ready for a capture, and those in use that were ready before.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(watch::Sender<BTreeSet<u64>>);

/// The number of an object, which no other of this process ever has.
#[derive(Debug)]
pub(super) struct Number {
    number: u64,
    numbers: Numbers,
}

impl Numbers {
    /// One for an object that is not kept yet.
    pub(super) fn next(&self) -> Number {
        static NEXT: AtomicU64 = AtomicU64::new(0);

        Number {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            numbers: self.clone(),
        }
    }

    /// Those of the objects that are kept, from now on.
    pub(super) fn watch(&self) -> watch::Receiver<BTreeSet<u64>> {
        self.0.subscribe()
    }
}

impl Number {
    pub(super) fn get(&self) -> u64 {
        self.number
    }

    /// Its object is ready for a capture.
    pub(super) fn keep(&self) {
        self.numbers.0.send_if_modified(|kept| kept.insert(self.number));
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.numbers.0.send_if_modified(|kept| kept.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_told_of_from_when_they_are_ready_until_they_are_gone() {
        let numbers = Numbers::default();
        let mut told = numbers.watch();
        let (one, other) = (numbers.next(), numbers.next());
        assert_ne!(one.get(), other.get());
        assert!(!told.has_changed().unwrap());
        other.keep();
        assert_eq!(*told.borrow_and_update(), BTreeSet::from([other.get()]));
        other.keep();
        drop(one);
        assert!(!told.has_changed().unwrap());
        drop(other);
        assert!(told.borrow_and_update().is_empty());
    }
}
