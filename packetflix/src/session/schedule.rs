//! When a stream has statistics beside the final ones.

use std::time::Duration;

use tokio::time::Instant;

use super::stream::Which;

/// Losses are told in statistics so long after they were noticed: what is lost meanwhile is told with them, and a stream
/// that ends before has the final ones alone, as Wireshark wants it.
const LOSS_PATIENCE: Duration = Duration::from_secs(5);

/// The reader's statistics come a little sooner or later than each second.
const STATISTICS_JITTER: Duration = Duration::from_millis(200);

/// When a stream has statistics of an interface beside those at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StatisticsPace {
    /// Some seconds after packets were lost, for clients that leave without waiting for the end.
    OnLoss,
    /// Never.
    AtEnd,
    /// After each such time in which something has changed.
    Every(Duration),
}

/// When statistics are told next.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: StatisticsPace,
    /// When they were told last.
    told: Instant,
    due: Option<Instant>,
}

impl Schedule {
    /// Begins now.
    pub(super) fn new(pace: StatisticsPace) -> Self {
        Self {
            pace,
            told: Instant::now(),
            due: None,
        }
    }

    /// Settles when statistics are told next, if there is something to tell.
    pub(super) fn plan(&mut self, is_lossy: bool) {
        let at = match self.pace {
            StatisticsPace::AtEnd => None,
            StatisticsPace::OnLoss => is_lossy.then(|| Instant::now() + LOSS_PATIENCE),
            StatisticsPace::Every(time) => Some(self.told + time.saturating_sub(STATISTICS_JITTER)),
        };
        self.due = self.due.or(at);
    }

    /// When statistics are due, if any are.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Statistics are told now: gives those of which interfaces.
    pub(super) fn tell(&mut self) -> Which {
        self.told = Instant::now();
        self.due = None;
        match self.pace {
            StatisticsPace::Every(_) => Which::Changed,
            StatisticsPace::OnLoss | StatisticsPace::AtEnd => Which::Lossy,
        }
    }
}
