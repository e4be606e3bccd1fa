//! What one engine has answered.

use std::path::PathBuf;

use super::{
    engine_socket::{EngineSocket, Origin},
    peer::SocketPeer,
    problem::Problem,
    workload::Workload,
};
use crate::lookout::Place;

/// What one engine has answered.
#[derive(Debug)]
pub(super) struct Engine {
    /// Its socket, as those see it who have it.
    pub(super) path: PathBuf,
    /// Device and inode number of the socket.
    pub(super) id: (u64, u64),
    /// Where the socket was found.
    pub(super) origin: Origin,
    /// A process that sees the socket there.
    pub(super) seen_by: u32,
    /// In which mount namespace.
    pub(super) place: Place,
    /// The process that listens there; without one, what is said there is nobody's word.
    pub(super) peer: Option<SocketPeer>,
    /// What it runs.
    pub(super) workloads: Vec<Workload>,
    /// Why it told nothing, or not everything.
    pub(super) problem: Option<Problem>,
    /// Whether it answered.
    pub(super) heard: Heard,
}

/// What became of asking an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// It answered, whatever that was.
    Answered,
    /// It did not, or not to the end.
    Silent,
    /// It was not asked.
    Unasked,
}

impl Engine {
    /// One of which nothing is known yet.
    pub(super) fn of(socket: &EngineSocket) -> Self {
        Self {
            path: socket.path.clone(),
            id: socket.id,
            origin: socket.origin,
            seen_by: socket.seen_by,
            place: socket.place,
            peer: None,
            workloads: Vec::new(),
            problem: None,
            heard: Heard::Unasked,
        }
    }

    /// One that is not asked, and why.
    pub(super) fn unasked(socket: &EngineSocket, problem: Problem) -> Self {
        Self {
            problem: Some(problem),
            ..Self::of(socket)
        }
    }
}
