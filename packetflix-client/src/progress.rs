//! The line that tells how a capture goes.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::{
    summary::Tally,
    units::{shown_duration, shown_size},
};

/// How often the line is written.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);

/// A line on the terminal, which is written over and over.
pub(crate) struct Progress {
    is_shown: bool,
    last: (Instant, u64),
}

impl Progress {
    /// A line, if it is wanted and people see it.
    pub(crate) fn new(is_wanted: bool) -> Self {
        Self {
            is_shown: is_wanted && io::stderr().is_terminal(),
            last: (Instant::now(), 0),
        }
    }

    /// Whether there is a line to write.
    pub(crate) fn is_shown(&self) -> bool {
        self.is_shown
    }

    /// Writes the line anew.
    pub(crate) fn show(&mut self, tally: &Tally, duration: Duration) {
        let (then, packets) = std::mem::replace(&mut self.last, (Instant::now(), tally.packets));
        let seconds = then.elapsed().as_secs_f64().max(0.001);
        let rate = (tally.packets - packets) as f64 / seconds;
        // Nobody reads it where it cannot be written.
        let _ = write!(
            io::stderr(),
            "\r\x1b[K{} packets, {}, {rate:.0} packets/s, {} dropped, {}",
            tally.packets,
            shown_size(tally.bytes),
            tally.totals().dropped,
            shown_duration(duration),
        );
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        if self.is_shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
