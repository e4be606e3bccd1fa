//! The machine's clock, set for a moment.

use std::time::Duration;

use nix::{
    sys::time::{TimeSpec, TimeValLike as _},
    time::{ClockId, clock_gettime, clock_settime},
};

/// The machine's time of day is another one for as long as this lives, and then what it would have been.
pub struct SteppedClock {
    /// CLOCK_REALTIME less CLOCK_MONOTONIC, as it was: the difference knows nothing of how long it took.
    distance: TimeSpec,
}

impl SteppedClock {
    /// Sets the clock forward, or back.
    ///
    /// # Errors
    /// Without CAP_SYS_TIME.
    pub fn step(by: Duration, back: bool) -> anyhow::Result<Self> {
        let stepped = Self {
            distance: distance()?,
        };
        let by = TimeSpec::from_duration(by);
        let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
        let then = if back { now - by } else { now + by };
        clock_settime(ClockId::CLOCK_REALTIME, then)?;
        Ok(stepped)
    }
}

impl Drop for SteppedClock {
    fn drop(&mut self) {
        let restored = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .and_then(|now| clock_settime(ClockId::CLOCK_REALTIME, now + self.distance));
        if let Err(error) = restored {
            eprintln!("the clock could not be set right: {error}");
        }
    }
}

/// How far CLOCK_REALTIME is from CLOCK_MONOTONIC: the most exact of some measurements.
fn distance() -> nix::Result<TimeSpec> {
    let mut best: Option<(i64, TimeSpec)> = None;
    for _ in 0..10 {
        let before = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let realtime = clock_gettime(ClockId::CLOCK_REALTIME)?;
        let after = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let took = (after - before).num_nanoseconds();
        if best.is_none_or(|(least, _)| took < least) {
            let middle = before + TimeSpec::nanoseconds(took / 2);
            best = Some((took, realtime - middle));
        }
    }
    best.map(|(_, distance)| distance).ok_or(nix::Error::EINVAL)
}
