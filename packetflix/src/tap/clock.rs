//! The clock of the records' timestamps, and its way to CLOCK_REALTIME.

use std::io;

use nix::time::{ClockId, clock_gettime};
use packetflix_common::clock;

const NANOSECONDS_PER_SECOND: i64 = 1_000_000_000;

/// A clock that a program stamps records with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}

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
        let mut clock = Self { source, offset: 0 };
        clock.adjust()?;
        Ok(clock)
    }

    /// Measures the distance again: it changes with leap seconds, and of CLOCK_BOOTTIME with each correction.
    ///
    /// # Errors
    /// When a clock cannot be read.
    pub(crate) fn adjust(&mut self) -> io::Result<()> {
        let before = read(self.source.id())?;
        let realtime = read(ClockId::CLOCK_REALTIME)?;
        let after = read(self.source.id())?;
        let distance = realtime - (before + (after - before) / 2);
        self.offset = match self.source {
            ClockSource::Tai => whole_seconds(distance),
            ClockSource::Boottime => distance,
        };
        Ok(())
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
