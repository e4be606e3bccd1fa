//! How long there is no scan after one, by who wants to know what there is.

use std::time::Duration;

use tokio::time::Instant;

/// The shortest rest.
pub(super) const SHORTEST: Duration = Duration::from_secs(2);

/// Times that a scan took, to rest after it.
const TIMES: u32 = 100;

/// The longest rest where scans are followed: rights are not to outlive their reason for long.
const LONGEST_OF_FOLLOWERS: Duration = Duration::from_secs(5);

/// Who wants to know what scans find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Those who name addresses.
    ByNames,
    /// Streams that targets join, and captures whose right rests on who is where.
    ByFollowers,
}

/// The rest after a scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    since: Instant,
    took: Duration,
}

impl Rest {
    /// Begins now, after a scan that took so long.
    pub(super) fn after(took: Duration) -> Self {
        Self {
            since: Instant::now(),
            took,
        }
    }

    /// How much of it is left. Whoever comes meanwhile may have less patience than those who were there when it began.
    pub(super) fn left(&self, wanted: Wanted) -> Duration {
        let rest = match wanted {
            Wanted::ByNames => self.took * TIMES,
            Wanted::ByFollowers => (self.took * TIMES).min(LONGEST_OF_FOLLOWERS),
        };
        rest.max(SHORTEST).saturating_sub(self.since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_does_not_wait_for_a_rest_that_began_before() {
        let rest = |took: Duration, ago: u64| Rest {
            since: Instant::now().checked_sub(Duration::from_secs(ago)).unwrap(),
            took,
        };
        let short = rest(Duration::from_millis(5), 3);
        // Of ten thousand namespaces.
        let long = rest(Duration::from_millis(1500), 11);
        for (wanted, is_over) in [(Wanted::ByNames, false), (Wanted::ByFollowers, true)] {
            assert!(short.left(wanted).is_zero(), "{wanted:?}");
            assert_eq!(long.left(wanted).is_zero(), is_over, "{wanted:?}");
        }
        let now = Rest::after(Duration::from_millis(1500));
        assert!(!now.left(Wanted::ByFollowers).is_zero());
    }
}
