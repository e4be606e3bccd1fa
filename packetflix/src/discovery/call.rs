//! What is asked of the process that looks for targets.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::starts::Starting;
use crate::channel;

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum TargetsQuestion {
    /// `Found`: to look for all targets.
    Scan,
    /// `Vec<EngineReport>`: to ask the engines that the operator named.
    Named,
    /// `Option<String>`: the state of the container of this name that does not run.
    AtRest(String),
    /// `()`: to look for the sockets of engines, if that was long ago.
    LookForSockets,
    /// `StartNews`, again and again until that is the last: what engines start. To each but the last is said by a `bool` whether it
    /// is what was meant.
    Starting,
    /// `CountersOf`: what the interfaces of all namespaces have counted.
    Counters,
}

/// What engines say of what they start.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum StartNews {
    /// Something is being started.
    Starts(Starting),
    /// What was meant was found, at the engine with this socket, or was not. Nothing more is told.
    Over(Option<Meant>),
}

/// What was meant, as its engine has told it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Meant {
    #[serde(with = "channel::path")]
    pub(super) engine: PathBuf,
    pub(super) workload: super::workload::Workload,
}
