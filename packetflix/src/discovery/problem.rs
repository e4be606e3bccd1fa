//! Why an engine told nothing, or not everything.

use std::{borrow::Cow, io::ErrorKind};

use serde::{Deserialize, Serialize};

use crate::capabilities::Capability;

/// Why an engine told nothing, or not everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// Why.
    pub(crate) sentence: String,
    /// What to do about it.
    pub(crate) remedy: Cow<'static, str>,
}

impl Problem {
    /// What to do about a socket that may not be opened.
    pub(super) const DENIED: &'static str =
        "give the service CAP_DAC_OVERRIDE, or let it into the group of the socket";

    /// Of a socket that the operator named and that cannot be opened.
    pub(super) fn missing(error: &std::io::Error) -> Self {
        let blame = Capability::DacOverride.blame(error);
        let remedy = match error.kind() {
            ErrorKind::NotFound => "start the engine, or write --engine-socket as its socket is called",
            ErrorKind::PermissionDenied => Self::DENIED,
            ErrorKind::TimedOut => "see what serves the file system that it lies on",
            _ => "write --engine-socket as the engine's socket is called",
        };
        Self {
            sentence: format!("it cannot be opened: {error}{blame}"),
            remedy: remedy.into(),
        }
    }
}
