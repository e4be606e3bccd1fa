//! When the rings of a tap are read.
//!
//! One descriptor (an epoll of all rings) tells when there is something new. The kernel signals only a reader that has caught
//! up, so that one that drains, sleeps a millisecond and drains again is not woken per packet, while a lone packet waits for
//! that millisecond only. Where packets trickle, the pause grows to four milliseconds, but no longer than it takes to fill a
//! ring.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::tap::Drained;

/// When rings are read, and how long they are left alone before that: what comes meanwhile is read in one go, and wakes nobody.
#[derive(Debug)]
pub(super) struct Pace {
    state: State,
    pause: Duration,
    longest: Duration,
    /// When the rings were last read.
    read: Instant,
}

/// What is to be done about the rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They were empty: the kernel tells when they are not.
    Idle,
    /// Something came a moment ago, more may come.
    Coalescing,
    /// They are to be read as soon as there is room.
    Due,
}

impl Pace {
    /// A packet that comes alone waits so long.
    const SHORTEST: Duration = Duration::from_millis(1);
    /// Where packets trickle, those that come meanwhile cost no more.
    const LONGEST: Duration = Duration::from_millis(4);
    /// A batch of so many bytes is worth the while.
    const LARGE: usize = 64 * 1024;
    /// So many bytes of a ring are filled in a millisecond at most, by what one CPU can receive.
    const FILLED_IN_MILLISECOND: u32 = 2 << 20;

    /// For rings of so many bytes: they must not be full before they are looked at again. They are to be read at once.
    pub(super) fn new(ring_size: u32) -> Self {
        let longest = Duration::from_millis((ring_size / Self::FILLED_IN_MILLISECOND).into());
        Self {
            state: State::Due,
            pause: Self::SHORTEST,
            longest: longest.clamp(Self::SHORTEST, Self::LONGEST),
            read: Instant::now(),
        }
    }

    /// Whether the rings are to be read.
    pub(super) fn is_due(&self) -> bool {
        self.state == State::Due
    }

    /// Whether the kernel is to tell when there is something in the rings.
    pub(super) fn is_idle(&self) -> bool {
        self.state == State::Idle
    }

    /// Waits until the rings were left alone for long enough; for ever where that is not what they wait for.
    pub(super) async fn over(&self) {
        match self.state {
            State::Coalescing => sleep(self.pause).await,
            State::Idle | State::Due => std::future::pending().await,
        }
    }

    /// The rings are to be read.
    pub(super) fn read_now(&mut self) {
        self.state = State::Due;
    }

    /// The rings were read, and gave so many bytes; whether all that they have is waited for.
    pub(super) fn rings_read(&mut self, drained: Drained, len: usize, is_settling: bool) {
        if len >= Self::LARGE {
            self.pause = Self::SHORTEST;
        } else if len > 0 {
            self.pause = (2 * self.pause).min(self.longest);
        }
        self.read = Instant::now();
        self.state = match drained {
            Drained::Full(_) => State::Due,
            Drained::Held => State::Coalescing,
            Drained::Empty if is_settling => State::Coalescing,
            Drained::Empty => State::Idle,
        };
    }

    /// There is something in the rings again. What comes right behind the first packet goes with it.
    pub(super) fn rings_filled(&mut self) {
        if self.read.elapsed() > self.longest {
            self.pause = Self::SHORTEST;
        }
        self.state = State::Coalescing;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: u32 = 16 << 20;

    #[test]
    fn pause_grows_where_packets_trickle_and_not_beyond_what_fills_a_ring() {
        for (ring, longest) in [(RING, 4), (2 * Pace::FILLED_IN_MILLISECOND, 2), (4096, 1)] {
            let mut pace = Pace::new(ring);
            for _ in 0..5 {
                pace.rings_read(Drained::Empty, 100, false);
            }
            assert_eq!(pace.pause, Duration::from_millis(longest), "{ring}");
            pace.rings_read(Drained::Empty, Pace::LARGE, false);
            assert_eq!(pace.pause, Pace::SHORTEST);
        }
    }

    #[test]
    fn rings_that_are_empty_wait_for_the_kernel_unless_all_they_have_is_waited_for() {
        let mut pace = Pace::new(RING);
        assert!(pace.is_due());
        for (drained, is_settling, state) in [
            (Drained::Full(0), false, State::Due),
            (Drained::Held, false, State::Coalescing),
            (Drained::Empty, true, State::Coalescing),
            (Drained::Empty, false, State::Idle),
        ] {
            pace.rings_read(drained, 0, is_settling);
            assert_eq!(pace.state, state);
        }
        assert!(pace.is_idle());
        pace.rings_filled();
        assert!(!pace.is_idle() && !pace.is_due());
        pace.read_now();
        assert!(pace.is_due());
    }
}
