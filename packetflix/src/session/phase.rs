//! Where a session stands, from its first byte to its end.
//!
//! ```text
//! Naming ──► Passing ──► Stopping ──► Ended
//!    └──────────┴───► Full ─────────────┘
//! ```
//!
//! A stream that is full or has ended may still have messages to be sent.

use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Ended, limits::Limit, statistics::Written};

/// Where a session stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// Packets are kept back for the names of their addresses.
    Naming {
        /// Ends when the first names are known, or are not worth waiting for any longer.
        first: AbortOnDropHandle<()>,
        /// A limit that the stream has reached meanwhile.
        full: Option<Limit>,
    },
    /// Packets go out as they come.
    Passing,
    /// All that was captured until it was stopped is still to come.
    Stopping(Stopping),
    /// A limit is reached: what is still to come are the final statistics.
    Full(Limit),
    /// Nothing more is to come.
    Ended(Ended),
}

/// How a session stops.
#[derive(Debug)]
pub(super) struct Stopping {
    /// Since when, on the records' clock.
    pub(super) since: u64,
    /// When it was asked to.
    pub(super) asked: Instant,
    /// When it ends even if not all has come.
    pub(super) deadline: Instant,
    /// Why.
    pub(super) why: Ended,
}

impl Phase {
    /// Whether it may still be stopped.
    pub(super) fn may_stop(&self) -> bool {
        matches!(self, Self::Naming { .. } | Self::Passing)
    }

    /// Whether packets wait for the names of their addresses.
    pub(super) fn is_naming(&self) -> bool {
        matches!(self, Self::Naming { .. })
    }

    /// Whether more packets may be put into the stream.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Self::Naming { full, .. } => full.is_none(),
            Self::Passing | Self::Stopping(_) => true,
            Self::Full(_) | Self::Ended(_) => false,
        }
    }

    /// When it ends even if not all has come that is to come.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Stopping(stopping) => Some(stopping.deadline),
            _ => None,
        }
    }

    /// Waits until packets need not wait for names any longer; for ever when they do not.
    pub(super) async fn named(&mut self) {
        match self {
            // One that failed has nothing to tell.
            Self::Naming { first, .. } => drop(first.await),
            _ => std::future::pending().await,
        }
    }

    /// Packets wait for names no longer.
    pub(super) fn pass(&mut self) {
        if let Self::Naming { full, .. } = self {
            *self = full.map_or(Self::Passing, Self::Full);
        }
    }

    /// The stream has reached a limit.
    pub(super) fn fill(&mut self, limit: Limit) {
        match self {
            Self::Naming { full, .. } => *full = Some(limit),
            Self::Passing | Self::Stopping(_) => *self = Self::Full(limit),
            Self::Full(_) | Self::Ended(_) => {}
        }
    }

    /// Has what was captured until now be the last.
    pub(super) fn stop(&mut self, stopping: Stopping) {
        self.pass();
        if let Self::Passing = self {
            *self = Self::Stopping(stopping);
        }
    }

    /// Whether statistics behind what is written are the last: all that was captured until the stop is.
    pub(super) fn is_completed_by(&self, written: Written) -> bool {
        matches!(self, Self::Stopping(stopping) if written.reaches_since(stopping.since, stopping.asked))
    }

    /// All has come that was to come after the stop, or will not come any more.
    pub(super) fn complete(&mut self) {
        *self = Self::Ended(match self {
            Self::Stopping(stopping) => stopping.why.clone(),
            _ => Ended::Stopped,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming() -> Phase {
        let first = tokio::spawn(std::future::pending());
        Phase::Naming {
            first: AbortOnDropHandle::new(first),
            full: None,
        }
    }

    fn stopping() -> Stopping {
        Stopping {
            since: 5,
            asked: Instant::now(),
            deadline: Instant::now(),
            why: Ended::TargetGone("web".to_owned()),
        }
    }

    #[tokio::test]
    async fn a_limit_waits_for_the_first_names() {
        let limit = Limit::Packets(7);
        for leave in [Phase::pass, |phase: &mut Phase| phase.stop(stopping())] {
            let mut phase = naming();
            assert!(phase.is_naming() && phase.may_stop() && phase.has_room());
            phase.fill(limit);
            assert!(phase.is_naming() && phase.may_stop() && !phase.has_room());
            leave(&mut phase);
            assert!(matches!(phase, Phase::Full(found) if found == limit));
            assert!(!phase.may_stop());
        }
        let mut phase = naming();
        phase.pass();
        assert!(matches!(phase, Phase::Passing));
    }

    #[tokio::test]
    async fn why_it_was_stopped_is_why_it_ends() {
        for mut phase in [naming(), Phase::Passing] {
            phase.stop(stopping());
            assert!(phase.deadline().is_some() && phase.has_room() && !phase.may_stop());
            let written = |until| Written { until, emptied: None };
            assert!(!phase.is_completed_by(written(4)) && phase.is_completed_by(written(5)));
            phase.complete();
            assert!(matches!(&phase, Phase::Ended(Ended::TargetGone(name)) if name == "web"));
            // What comes too late changes nothing.
            phase.fill(Limit::Untold);
            phase.stop(stopping());
            assert!(matches!(&phase, Phase::Ended(Ended::TargetGone(_))));
        }
    }
}
