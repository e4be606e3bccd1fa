//! Until when a capture of several has told all, so that what others have captured up to then can go into the stream: its
//! watermark.
//!
//! One that is behind is waited for as long as it comes on: what waits for it stays in the rings, and takes no more memory than
//! these have. One that does not come on is waited for no longer than a bound, and again as soon as it comes on.

use std::time::Duration;

use tokio::time::Instant;

/// How long others wait for a capture that does not come on.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);

/// What is known of a capture, in nanoseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    /// All that it captured until then is in the stream, or at its place there.
    until: u64,
    /// Since when packets wait for it, and it has not come on.
    waited_for: Option<Instant>,
    is_overdue: bool,
    was_overdue: bool,
}

/// Whether a capture is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// What was captured until then need not wait for it.
    Until(u64),
    /// It is not waited for any more, for the first time.
    NowOverdue,
    /// It is not waited for any more.
    Overdue,
}

impl Watermark {
    /// All is told that was captured until then.
    pub(super) fn advance(&mut self, until: u64) {
        // It may also have gone back, with the clock.
        if until != self.until {
            self.until = until;
            self.waited_for = None;
            self.is_overdue = false;
        }
    }

    /// Whether it has told all until this time.
    pub(super) fn reaches(&self, time: u64) -> bool {
        self.until >= time
    }

    /// Whether it is waited for by a packet of the time `first`, and no older ones.
    pub(super) fn wait(&mut self, first: u64, now: Instant) -> Wait {
        if self.reaches(first) {
            self.waited_for = None;
            return Wait::Until(self.until);
        }
        let since = *self.waited_for.get_or_insert(now);
        if !self.is_overdue && now.saturating_duration_since(since) < PATIENCE {
            return Wait::Until(self.until);
        }
        self.is_overdue = true;
        match std::mem::replace(&mut self.was_overdue, true) {
            false => Wait::NowOverdue,
            true => Wait::Overdue,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_on_is_waited_for_however_far_behind_it_is() {
        let mut watermark = Watermark::default();
        let begun = Instant::now();
        for turn in 1..10 {
            watermark.advance(u64::from(turn));
            let now = begun + PATIENCE.mul_f64(0.9) * turn;
            assert_eq!(watermark.wait(1000, now), Wait::Until(u64::from(turn)));
        }
    }

    #[test]
    fn one_that_does_not_come_on_is_waited_for_up_to_a_bound_and_again_when_it_does() {
        let mut watermark = Watermark::default();
        let begun = Instant::now();
        watermark.advance(10);
        assert_eq!(watermark.wait(10, begun), Wait::Until(10));
        // That nothing waited meanwhile does not count.
        let begun = begun + 2 * PATIENCE;
        assert_eq!(watermark.wait(11, begun), Wait::Until(10));
        watermark.advance(10);
        let late = begun + PATIENCE;
        assert_eq!(watermark.wait(11, late), Wait::NowOverdue);
        assert_eq!(watermark.wait(12, late), Wait::Overdue);
        watermark.advance(11);
        assert_eq!(watermark.wait(12, late), Wait::Until(11));
        assert_eq!(watermark.wait(12, late + PATIENCE), Wait::Overdue);
        // The clock was set back.
        watermark.advance(5);
        assert_eq!(watermark.wait(6, late + PATIENCE), Wait::Until(5));
    }
}
