//! How long packets wait for those of other nodes, which may be older. Pure.
//!
//! As long as the latest packets of the last seconds have come late, and a little longer: a lone packet of a cluster whose nodes
//! are quick is seen at once, and one slow node delays all no longer than the bound.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds of how long packets wait.
const MIN: Duration = Duration::from_millis(50);
pub(super) const MAX: Duration = Duration::from_secs(2);

/// How late packets are taken to come before any has come: nodes that have just begun have more to do.
const AT_FIRST: Duration = Duration::from_millis(200);

/// For how long at least what was late is remembered, and for twice that at most.
const MEMORY: Duration = Duration::from_secs(5);

/// How late packets came lately.
#[derive(Debug)]
pub(super) struct Window {
    /// The latest since then, and the latest of the time before.
    latest: Duration,
    before: Duration,
    since: Instant,
}

impl Window {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            latest: AT_FIRST,
            before: Duration::ZERO,
            since: now,
        }
    }

    /// A packet has come so late.
    pub(super) fn note(&mut self, late: Duration, now: Instant) {
        self.forget(now);
        self.latest = self.latest.max(late);
    }

    /// A node has just begun.
    pub(super) fn begin_anew(&mut self, now: Instant) {
        self.note(AT_FIRST, now);
    }

    /// How long packets wait now.
    pub(super) fn len(&mut self, now: Instant) -> Duration {
        self.forget(now);
        let latest = self.latest.max(self.before);
        (latest + latest / 4).clamp(MIN, MAX)
    }

    fn forget(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < MEMORY {
            return;
        }
        self.before = match elapsed < 2 * MEMORY {
            true => self.latest,
            false => Duration::ZERO,
        };
        self.latest = Duration::ZERO;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_as_long_as_others_were_late_within_bounds_and_forgets() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let milliseconds = Duration::from_millis;
        let mut window = Window::new(begun);
        assert_eq!(window.len(begun), milliseconds(250));
        window.note(milliseconds(400), at(1));
        window.note(milliseconds(4), at(2));
        assert_eq!(window.len(at(3)), milliseconds(500));
        assert_eq!(window.len(at(7)), milliseconds(500));
        window.note(milliseconds(100), at(8));
        assert_eq!(window.len(at(12)), milliseconds(125));
        window.note(Duration::from_secs(60), at(12));
        assert_eq!(window.len(at(13)), MAX);
        assert_eq!(window.len(at(60)), MIN);
        window.begin_anew(at(61));
        assert_eq!(window.len(at(62)), milliseconds(250));
    }
}
