//! What became of asking the engines.

use std::{collections::HashSet, path::PathBuf, process};

use serde::{Deserialize, Serialize};

use super::{engine::Engine, gap::Gap, problem::Problem};
use crate::{
    channel::path,
    lookout::{Kind, Owner, Place},
};

/// What became of asking an engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EngineReport {
    /// Its socket, as those see it who have it.
    #[serde(with = "path")]
    pub(crate) path: PathBuf,
    /// Where it was found.
    place: Place,
    /// A process that sees it there.
    seen_by: u32,
    /// How many containers and pods it told of.
    pub(crate) workloads: usize,
    /// Why it told nothing, or not everything.
    pub(crate) problem: Option<Problem>,
    /// Device and inode number of its socket, and the process that listens there: others, where it was started again.
    instance: Option<((u64, u64), u32)>,
}

impl EngineReport {
    /// What is missing for its sake.
    pub(super) fn gap(&self) -> Option<Gap> {
        Some(Gap::Engine {
            path: self.path.clone(),
            whose: self.whose(),
            problem: self.problem.clone()?.sentence,
        })
    }

    /// Who sees the socket at its path: others may have another there.
    pub(crate) fn whose(&self) -> String {
        match self.mount_namespace() {
            Some(namespace) => format!(
                "as process {} sees it in mount namespace {namespace}",
                self.seen_by
            ),
            None => "which --engine-socket names".to_owned(),
        }
    }

    /// In whose hands it is.
    pub(super) fn owner(&self) -> Owner {
        self.place.owner
    }

    /// Whether it is one of the host's.
    pub(crate) fn is_hosts(&self) -> bool {
        self.owner() == Owner::Host
    }

    /// Device and inode number of its socket, if it is one of the host's that answers.
    pub(super) fn hosts_socket(&self) -> Option<(u64, u64)> {
        let (socket, _) = self.instance?;
        (self.is_hosts() && self.problem.is_none()).then_some(socket)
    }

    /// Whether it was not started again since it told of that.
    pub(crate) fn is_same(&self, before: &Self) -> bool {
        self.instance == before.instance
    }

    /// The mount namespace in which it was found; `None` where the operator named it.
    pub(crate) fn mount_namespace(&self) -> Option<u64> {
        match self.place.kind {
            Kind::Files(namespace) => Some(namespace),
            Kind::Named(_) | Kind::Mounts(_) | Kind::Interfaces(_) => None,
        }
    }

    /// Whether it tells of the same socket as another, and the same of it, however many containers there are.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (&self.path, self.place, &self.problem) == (&other.path, other.place, &other.problem)
    }
}

/// What became of asking each engine, and of looking for those that the operator named.
pub(super) fn reports(
    engines: &[Engine],
    missing: Vec<(PathBuf, Place, std::io::Error)>,
) -> Vec<EngineReport> {
    let asked = engines.iter().map(|engine| EngineReport {
        path: engine.path.clone(),
        place: engine.place,
        seen_by: engine.seen_by,
        workloads: count(engine),
        problem: engine.problem.clone(),
        instance: engine.peer.as_ref().map(|peer| (engine.id, peer.pid)),
    });
    let missing = missing.into_iter().map(|(path, place, error)| EngineReport {
        path,
        place,
        seen_by: process::id(),
        workloads: 0,
        problem: Some(Problem::missing(&error)),
        instance: None,
    });
    asked.chain(missing).collect()
}

/// How many containers and pods an engine told of. It tells of a pod as often as that has processes.
fn count(engine: &Engine) -> usize {
    let ids: HashSet<&str> = engine.workloads.iter().map(|workload| &workload.id[..]).collect();
    ids.len()
}

#[cfg(test)]
impl EngineReport {
    /// One of the host's, as it is told of by the process of this number.
    pub(crate) fn of_host(path: &str, process: u32, problem: Option<Problem>) -> Self {
        Self {
            path: PathBuf::from(path),
            place: Place {
                owner: Owner::Host,
                kind: Kind::Named(0),
            },
            seen_by: 1,
            workloads: 0,
            problem,
            instance: Some(((1, 2), process)),
        }
    }
}
