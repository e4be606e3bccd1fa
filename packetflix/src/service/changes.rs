//! What changes about the targets of a stream while it runs, and is told in it: engines that do not answer any more, or do so again,
//! and targets that are called otherwise.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    time::Duration,
};

use crate::{
    allowance::Allowance,
    discovery::{DiscoveredTarget, EngineReport, Scan},
    text::readable,
};

/// So many changes of engines are told one right after the other, and so many of names, and then one in each such time: others are
/// to have their place in the stream.
const CHANGES_AT_ONCE: u32 = 32;
const TIME_OF_A_CHANGE: Duration = Duration::from_secs(60);

/// What is known of engines and names from the scan before.
pub(super) struct Changes {
    /// The host's engines that have answered, by their sockets.
    engines: BTreeMap<PathBuf, Answering>,
    /// Of containers that are captured.
    names: Names,
    of_engines: Allowance,
    of_names: Allowance,
}

/// What containers are called, by the socket of their engine and their identifier.
type Names = BTreeMap<(PathBuf, String), String>;

/// Whether an engine answers.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answering {
    /// As this one, which another takes the place of when it is started again.
    Yes(EngineReport),
    No,
}

/// What there is to tell: of whom, and what.
pub(super) type Change = (String, String);

impl Default for Changes {
    fn default() -> Self {
        let saved = TIME_OF_A_CHANGE * (CHANGES_AT_ONCE - 1);
        Self {
            engines: BTreeMap::new(),
            names: BTreeMap::new(),
            of_engines: Allowance::new(saved),
            of_names: Allowance::new(saved),
        }
    }
}

impl Changes {
    /// What has become another since the last scan that was looked at. `known` are the captured targets that the caller may know of;
    /// of engines are told only those who may know of all.
    pub(super) fn since_last<'a>(
        &mut self,
        scan: &Scan,
        known: impl Iterator<Item = &'a DiscoveredTarget>,
        knows_all: bool,
    ) -> Vec<Change> {
        let engines = self.engines_since_last(&scan.engines);
        let named = known.filter_map(|target| {
            let workload = target.workload.as_ref()?;
            let key = (workload.engine.clone(), workload.id.clone());
            Some((key, target.full_name()))
        });
        let names = self.names_since_last(named.collect());
        let engines = engines.into_iter().filter(|_| knows_all);
        let engines: Vec<Change> = engines
            .filter(|one| may_tell(&mut self.of_engines, one))
            .collect();
        let names = names.into_iter().filter(|one| may_tell(&mut self.of_names, one));
        engines.into_iter().chain(names).collect()
    }

    fn engines_since_last(&mut self, reports: &[EngineReport]) -> Vec<Change> {
        let mut changes = Vec::new();
        let hosts = || reports.iter().filter(|report| report.is_hosts());
        for report in hosts().filter(|report| report.problem.is_none()) {
            let now = Answering::Yes(report.clone());
            let sentence = match self.engines.insert(report.path.clone(), now) {
                Some(Answering::No) => {
                    "answers again: what it has started meanwhile is found, without its first packets"
                }
                Some(Answering::Yes(before)) if !report.is_same(&before) => {
                    "was started again: what it has started meanwhile is found, without its first packets"
                }
                _ => continue,
            };
            changes.push((name_of(&report.path), sentence.to_owned()));
        }
        let answer: BTreeSet<_> = hosts()
            .filter(|report| report.problem.is_none())
            .map(|report| &report.path)
            .collect();
        for (path, before) in &mut self.engines {
            if answer.contains(path) || *before == Answering::No {
                continue;
            }
            *before = Answering::No;
            let problem = hosts().find(|report| report.path == *path);
            let problem = problem.and_then(|report| report.problem.as_ref());
            let why = problem.map_or("nobody listens there", |problem| &problem.sentence);
            let sentence = format!("does not answer ({why}): what it starts joins once it does again");
            changes.push((name_of(path), sentence));
        }
        changes
    }

    fn names_since_last(&mut self, named: Names) -> Vec<Change> {
        let before = std::mem::replace(&mut self.names, named);
        let renamed = self.names.iter().filter_map(|(key, name)| {
            let before = before.get(key).filter(|before| *before != name)?;
            let sentence =
                format!("is called {name} by now, and goes on under the name with which it joined");
            Some((before.clone(), sentence))
        });
        renamed.collect()
    }
}

fn name_of(engine: &std::path::Path) -> String {
    format!("engine {}", readable(engine.as_os_str().as_bytes()))
}

/// Whether there is a place for one more change; else it is in the log alone.
fn may_tell(allowance: &mut Allowance, (name, sentence): &Change) -> bool {
    let is_due = allowance.is_due();
    if is_due {
        allowance.spend(TIME_OF_A_CHANGE);
    } else {
        tracing::info!(name, sentence, "changes faster than the stream tells");
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Problem;

    #[test]
    fn an_engine_is_told_of_as_it_ends_and_comes_back() {
        let mut changes = Changes::default();
        let mut see = |reports: &[EngineReport]| {
            let told = changes.engines_since_last(reports);
            told.into_iter()
                .map(|(name, sentence)| format!("{name} {sentence}"))
                .collect::<Vec<_>>()
        };
        let docker = |process: u32| EngineReport::of_host("/run/docker.sock", process, None);
        let podman = EngineReport::of_host("/run/podman.sock", 9, None);
        let problem = Problem {
            sentence: "it is silent".to_owned(),
            remedy: "".into(),
        };
        let silent = EngineReport::of_host("/run/docker.sock", 1, Some(problem));
        let told = |words: &str| vec![format!("engine /run/docker.sock {words}")];
        let lost = |why: &str| {
            told(&format!(
                "does not answer ({why}): what it starts joins once it does again"
            ))
        };
        let meanwhile = "what it has started meanwhile is found, without its first packets";

        // One that does not answer in the beginning is none that is followed.
        assert_eq!(see(std::slice::from_ref(&silent)), Vec::<String>::new());
        assert_eq!(see(&[docker(1), podman.clone()]), Vec::<String>::new());
        assert_eq!(see(&[docker(1), podman.clone()]), Vec::<String>::new());
        assert_eq!(see(std::slice::from_ref(&podman)), lost("nobody listens there"));
        assert_eq!(see(&[silent.clone(), podman.clone()]), Vec::<String>::new());
        assert_eq!(
            see(&[docker(1), podman.clone()]),
            told(&format!("answers again: {meanwhile}"))
        );
        assert_eq!(see(&[silent, podman.clone()]), lost("it is silent"));
        assert_eq!(
            see(&[docker(2), podman.clone()]),
            told(&format!("answers again: {meanwhile}"))
        );
        // So fast that no look found it gone.
        assert_eq!(
            see(&[docker(3), podman.clone()]),
            told(&format!("was started again: {meanwhile}"))
        );
        assert_eq!(see(&[docker(3), podman]), Vec::<String>::new());
    }

    #[test]
    fn a_target_is_told_of_that_is_called_otherwise() {
        let mut changes = Changes::default();
        let mut see = |named: &[(&str, &str)]| {
            let key = |id: &str| (PathBuf::from("/run/docker.sock"), id.to_owned());
            let named = named.iter().map(|(id, name)| (key(id), (*name).to_owned()));
            changes.names_since_last(named.collect())
        };
        assert_eq!(see(&[("1", "web"), ("2", "db")]), []);
        let [(name, sentence)] = &see(&[("1", "shop"), ("2", "db"), ("3", "web")])[..] else {
            panic!("not one change");
        };
        assert_eq!(name, "web");
        assert_eq!(
            sentence,
            "is called shop by now, and goes on under the name with which it joined"
        );
        assert_eq!(see(&[("1", "shop"), ("3", "web")]), []);
    }

    #[test]
    fn changes_at_full_speed_are_told_up_to_a_bound() {
        let mut allowance = Changes::default().of_names;
        let change = ("web".to_owned(), "is called db".to_owned());
        let told = (0..1000).filter(|_| may_tell(&mut allowance, &change));
        assert_eq!(told.count(), CHANGES_AT_ONCE as usize);
    }
}
