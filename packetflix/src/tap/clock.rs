//! The clock of the records' timestamps, and its way to CLOCK_REALTIME.

use std::io;

use nix::time::{ClockId, clock_gettime};
use packetflix_common::clock;
use serde::{Deserialize, Serialize};

const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// A clock that a program stamps records with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClockSource {
    /// CLOCK_TAI, which is CLOCK_REALTIME but for whole seconds. Kernel 6.1.
    Tai,
    /// CLOCK_BOOTTIME, for older kernels.
    Boottime,
}

/// A clock, and how far it is from CLOCK_REALTIME.
#[derive(Clone, Copy, Debug)]
pub struct CaptureClock {
    source: ClockSource,
    /// Nanoseconds to add for CLOCK_REALTIME.
    offset: i64,
    /// By how much that may be wrong.
    error: i64,
}

/// How far CLOCK_REALTIME is ahead of a clock.
#[derive(Clone, Copy, Debug)]
struct Distance {
    nanoseconds: i64,
    /// By how much that may be wrong: the machine may have done something else between two readings.
    error: i64,
}

/// How often the distance is measured at first, of which the most exact counts.
const MEASUREMENTS: usize = 10;

impl ClockSource {
    /// Its number, for the programs.
    pub(super) fn number(self) -> &'static u32 {
        match self {
            Self::Tai => &clock::TAI,
            Self::Boottime => &clock::BOOTTIME,
        }
    }

    fn id(self) -> ClockId {
        match self {
            Self::Tai => ClockId::CLOCK_TAI,
            Self::Boottime => ClockId::CLOCK_BOOTTIME,
        }
    }
}

impl CaptureClock {
    /// Measures the distance to CLOCK_REALTIME.
    ///
    /// # Errors
    /// When the kernel has no such clock.
    pub fn new(source: ClockSource) -> io::Result<Self> {
        let mut best = Distance::measure(source)?;
        for _ in 1..MEASUREMENTS {
            let next = Distance::measure(source)?;
            if next.error < best.error {
                best = next;
            }
        }
        let mut clock = Self {
            source,
            offset: best.nanoseconds,
            error: best.error,
        };
        if source == ClockSource::Tai {
            clock.correct(best);
        }
        Ok(clock)
    }

    /// Measures the distance again: it changes with leap seconds, and of CLOCK_BOOTTIME whenever the time of day is set.
    ///
    /// # Errors
    /// When a clock cannot be read.
    pub(crate) fn adjust(&mut self) -> io::Result<()> {
        self.correct(Distance::measure(self.source)?);
        Ok(())
    }

    /// Both clocks run at one rate, so that their distance stays the same unless one is set. What may be but an error of
    /// measuring changes nothing: packets would else seem older than those before them.
    fn correct(&mut self, measured: Distance) {
        match self.source {
            ClockSource::Tai => self.offset = whole_seconds(measured.nanoseconds),
            ClockSource::Boottime => {
                if (measured.nanoseconds - self.offset).abs() > self.error + measured.error {
                    (self.offset, self.error) = (measured.nanoseconds, measured.error);
                }
            }
        }
    }

    /// Now, in nanoseconds of the records' clock.
    pub(crate) fn now(&self) -> u64 {
        read(self.source.id()).map_or(0, i64::cast_unsigned)
    }

    /// Nanoseconds of CLOCK_REALTIME for a time of the records' clock.
    pub(crate) fn realtime(&self, timestamp: u64) -> u64 {
        timestamp.saturating_add_signed(self.offset)
    }
}

impl Distance {
    fn measure(source: ClockSource) -> io::Result<Self> {
        let before = read(source.id())?;
        let realtime = read(ClockId::CLOCK_REALTIME)?;
        let after = read(source.id())?;
        let error = (after - before) / 2 + 1;
        Ok(Self {
            nanoseconds: realtime - (before + error),
            error,
        })
    }
}

fn read(id: ClockId) -> io::Result<i64> {
    let time = clock_gettime(id)?;
    Ok(time.tv_sec() * NANOSECONDS_PER_SECOND + time.tv_nsec())
}

fn whole_seconds(nanoseconds: i64) -> i64 {
    (nanoseconds + NANOSECONDS_PER_SECOND / 2).div_euclid(NANOSECONDS_PER_SECOND) * NANOSECONDS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_to_the_nearest_second() {
        for (distance, whole) in [
            (0, 0),
            (400, 0),
            (-400, 0),
            (-37_000_000_300, -37),
            (-36_999_999_700, -37),
        ] {
            assert_eq!(whole_seconds(distance), whole * NANOSECONDS_PER_SECOND);
        }
    }

    #[test]
    fn only_what_is_no_error_of_measuring_changes_the_distance() {
        let mut clock = CaptureClock {
            source: ClockSource::Boottime,
            offset: 1_000_000,
            error: 50,
        };
        let mut offset_after = |nanoseconds, error| {
            clock.correct(Distance { nanoseconds, error });
            (clock.offset, clock.error)
        };
        assert_eq!(offset_after(1_000_070, 20), (1_000_000, 50));
        assert_eq!(offset_after(0, 2_000_000), (1_000_000, 50));
        // The time of day was set by a little.
        assert_eq!(offset_after(999_920, 20), (999_920, 20));
        assert_eq!(offset_after(999_930, 20), (999_920, 20));
    }

    #[test]
    fn tells_the_time_of_day() {
        for source in [ClockSource::Tai, ClockSource::Boottime] {
            let clock = CaptureClock::new(source).unwrap();
            let before = read(ClockId::CLOCK_REALTIME).unwrap();
            let ours = clock.realtime(clock.now()).cast_signed();
            let after = read(ClockId::CLOCK_REALTIME).unwrap();
            // Boottime is measured to within the time between two readings.
            let slack = 1_000_000;
            assert!(
                (before - slack..=after + slack).contains(&ours),
                "{source:?}: {before} {ours} {after}"
            );
        }
    }
}
