//! What may be done a few times at once, and then so often and no more.

use std::time::{Duration, Instant};

/// Time that can be spent on something: as much as passes, and what is saved of it up to a bound.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowance {
    spent_until: Instant,
    saved: Duration,
}

impl Allowance {
    /// With so much saved, which is the most that ever is.
    pub(crate) fn new(saved: Duration) -> Self {
        Self {
            spent_until: Instant::now(),
            saved,
        }
    }

    /// When there is something to spend.
    pub(crate) fn due(&self) -> Instant {
        self.spent_until
            .checked_sub(self.saved)
            .unwrap_or(self.spent_until)
    }

    /// Whether there is something to spend now.
    pub(crate) fn is_due(&self) -> bool {
        self.due() <= Instant::now()
    }

    /// So much was spent for nothing.
    pub(crate) fn give_back(&mut self, cost: Duration) {
        self.spent_until = self.spent_until.checked_sub(cost).unwrap_or(self.spent_until);
    }

    /// Spends so much.
    pub(crate) fn spend(&mut self, cost: Duration) {
        self.spent_until = self.spent_until.max(Instant::now()) + cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_spent_once() {
        let mut allowance = Allowance::new(Duration::from_secs(30));
        for _ in 0..4 {
            assert!(allowance.due() <= Instant::now());
            allowance.spend(Duration::from_secs(10));
        }
        assert!(allowance.due() > Instant::now() + Duration::from_secs(5));
    }
}
