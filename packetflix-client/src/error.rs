//! How a verb ends: with a status for scripts, and with a sentence for people where it is not as asked.

use std::{error::Error, fmt, process::ExitCode};

/// Exit status of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// As asked.
    Done = 0,
    /// It did not begin: the server refused it, or is not reached.
    Refused = 1,
    /// The command line cannot be followed.
    Usage = 2,
    /// It began, and was broken off.
    Broken = 3,
    /// Ended since its terminal is gone, as shells have it: 128 and the number of the signal.
    HungUp = 129,
    /// Ended by Ctrl-C, as shells have it: 128 and the number of the signal.
    Interrupted = 130,
    /// Ended by SIGTERM.
    Terminated = 143,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// Why a verb did not do what it was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// What scripts are told.
    pub status: Status,
    /// What people are told: what happened, and what to do about it.
    pub sentence: String,
}

impl Failure {
    /// It did not begin.
    pub fn refused(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Status::Refused, error)
    }

    /// The command line is at fault.
    pub fn usage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Status::Usage, error)
    }

    /// It was broken off.
    pub fn broken(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Status::Broken, error)
    }

    fn new(status: Status, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            status,
            sentence: chain(error.into().as_ref()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for Failure {}

/// An error and its sources, as one sentence.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        told += &format!(": {error}");
        source = error.source();
    }
    told
}
