//! What compiling filters may take of the memory that there is.

use std::time::Duration;

use crate::{memory, turns::TurnBounds};

/// Most compilers at the same time, of which half may be one account's.
const AT_ONCE: u64 = 4;
/// So much of the memory is for one compiler, and so much for all.
const SHARE_OF_ONE: u64 = 16;
const SHARE: u64 = 4;
/// Bytes for one compiler: at least what three hundred hosts take, and at most twice what seven hundred do.
const LEAST: u64 = 16 << 20;
const MOST: u64 = 128 << 20;

/// How long a filter waits: longer than those that are before may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// So much of the memory is for filters that wait for their turn, of which a quarter may be one account's.
const SHARE_OF_WAITING: u64 = 64;
/// Bytes for them: at least a few of the longest.
const LEAST_WAITING: u64 = 2 << 20;
const MOST_WAITING: u64 = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bounds {
    /// Compilers at the same time, in all and of one account.
    pub(super) at_once: usize,
    pub(super) of_one: usize,
    /// Bytes that a compiler may take beside what it begins with.
    pub(super) room: u64,
    /// Bytes of what waits for its turn, in all and of one account.
    pub(super) waiting: usize,
    pub(super) waiting_of_one: usize,
}

impl Bounds {
    /// Those of this machine, or of the control group of this process.
    pub(super) fn current() -> Self {
        Self::of(memory::usable())
    }

    /// Those of so many bytes of memory.
    pub(super) fn of(usable: u64) -> Self {
        let room = (usable / SHARE_OF_ONE).clamp(LEAST, MOST);
        let at_once = (usable / SHARE / room).clamp(1, AT_ONCE) as usize;
        let waiting = (usable / SHARE_OF_WAITING).clamp(LEAST_WAITING, MOST_WAITING) as usize;
        Self {
            at_once,
            of_one: at_once.div_ceil(2),
            room,
            waiting,
            waiting_of_one: waiting / 4,
        }
    }

    /// Those of turns, for what waits by its bytes.
    pub(super) fn turns(&self) -> TurnBounds {
        TurnBounds {
            at_once: self.at_once,
            of_one: self.of_one,
            waiting_of_one: self.waiting_of_one,
            waiting: self.waiting,
            patience: PATIENCE,
        }
    }
}

/// Bytes of memory that all compilers may take together.
pub(crate) fn memory_of_compilers() -> u64 {
    let Bounds { at_once, room, .. } = Bounds::current();
    at_once as u64 * room
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_take_a_part_of_the_memory() {
        for (usable, at_once, of_one, room) in [
            (32 << 30, 4, 2, 128 << 20),
            (1 << 30, 4, 2, 64 << 20),
            (192 << 20, 3, 2, 16 << 20),
            (160 << 20, 2, 1, 16 << 20),
            (64 << 20, 1, 1, 16 << 20),
            (0, 1, 1, 16 << 20),
        ] {
            let bounds = Bounds::of(usable);
            assert_eq!(
                (bounds.at_once, bounds.of_one, bounds.room),
                (at_once, of_one, room),
                "{usable}"
            );
        }
    }

    #[test]
    fn what_waits_takes_a_part_of_the_memory() {
        for (usable, waiting) in [(32 << 30, 16 << 20), (192 << 20, 3 << 20), (0, 2 << 20)] {
            let bounds = Bounds::of(usable);
            assert_eq!((bounds.waiting, bounds.waiting_of_one), (waiting, waiting / 4));
        }
    }
}
