//! What became of asking the engines.

use std::{collections::HashSet, path::PathBuf, process};

use super::{engine::Engine, gap::Gap, problem::Problem};
use crate::lookout::{Kind, Owner, Place};

/// What became of asking an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EngineReport {
    /// Its socket, as those see it who have it.
    pub(crate) path: PathBuf,
    /// Where it was found.
    place: Place,
    /// A process that sees it there.
    seen_by: u32,
    /// How many containers and pods it told of.
    pub(crate) workloads: usize,
    /// Why it told nothing, or not everything.
    pub(crate) problem: Option<Problem>,
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
    });
    let missing = missing.into_iter().map(|(path, place, error)| EngineReport {
        path,
        place,
        seen_by: process::id(),
        workloads: 0,
        problem: Some(Problem::missing(&error)),
    });
    asked.chain(missing).collect()
}

/// How many containers and pods an engine told of. It tells of a pod as often as that has processes.
fn count(engine: &Engine) -> usize {
    let ids: HashSet<&str> = engine.workloads.iter().map(|workload| &workload.id[..]).collect();
    ids.len()
}
