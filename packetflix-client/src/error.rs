//! How a verb ends: with a status for scripts, and with a sentence for people where it is not as asked.

use std::{error::Error, fmt, process::ExitCode};

use fastwebsockets::WebSocketError;

use crate::{cluster::ForwardError, connect::ConnectError, http::RequestError, stream::OpenError};

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
        let error = error.into();
        let again = "With --reconnect, it goes on as soon as there is another";
        let remedy = match behind(error.as_ref()) {
            Some(ForwardError::Ended(_)) if status == Status::Broken => Some(again),
            _ => remedy(error.as_ref()),
        };
        let sentence = match remedy {
            Some(remedy) => format!("{}. {remedy}", chain(error.as_ref())),
            None => chain(error.as_ref()),
        };
        Self { status, sentence }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for Failure {}

/// What to do at this command line about an error of a server's, which programs that know other flags tell otherwise.
fn remedy(error: &(dyn Error + 'static)) -> Option<&'static str> {
    let of_request = |error: &OpenError| match error {
        OpenError::Request(error) => error.remedy(),
        _ => None,
    };
    let mut cause = Some(error);
    while let Some(error) = cause {
        let found = error
            .downcast_ref::<RequestError>()
            .and_then(RequestError::remedy);
        let found = found.or_else(|| {
            error
                .downcast_ref::<ConnectError>()
                .and_then(ConnectError::remedy)
        });
        let found = found.or_else(|| error.downcast_ref().and_then(of_request));
        let found = found.or_else(|| {
            error
                .downcast_ref::<Box<OpenError>>()
                .and_then(|error| of_request(error))
        });
        if found.is_some() {
            return found;
        }
        cause = error.source();
    }
    None
}

/// An error and its sources, as one sentence.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // Some crates repeat their cause.
        if !told.ends_with(&cause) {
            told += &format!(": {cause}");
        }
        source = error.source();
    }
    told
}

/// What is behind an error and all its sources.
pub(crate) fn root(error: &dyn Error) -> String {
    let mut last = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        last = error.to_string();
        source = error.source();
    }
    last
}

/// The error of a type that is behind another, if one is.
pub(crate) fn behind<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        let io = match error.downcast_ref::<WebSocketError>() {
            Some(WebSocketError::IoError(error)) => Some(error),
            _ => error.downcast_ref(),
        };
        cause = match io {
            // Its source would be that of what it is about.
            Some(error) => error.get_ref().map(|error| error as _),
            None => error.source(),
        };
    }
    None
}
