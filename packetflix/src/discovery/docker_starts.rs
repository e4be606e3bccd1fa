//! Asks an engine of Docker's API what it starts.
//!
//! Docker does not answer for a container while it starts it. That a namespace is its own shows by an end of a network which it
//! has there, as soon as it is connected, and before its first process runs.
//!
//! podman tells of no such ends. It answers for a container once it has made all of it that its first process needs, and then
//! says where it has mounted its namespace.
//!
//! Source: Docker Engine API, `GET /events`, `GET /networks/{id}` and `GET /containers/{id}/json`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::{
    asker::{Line, Question},
    bounded::{Labels, Text, Texts},
    budget::MAX_DETAILS_LEN,
    docker::{DockerError, Summary, engine_of, get, is_identifier, not_understood, workload},
    starts::{MAX_PATH_LEN, Mark, STARTING, Starting},
    workload::{Workload, WorkloadKind},
};

/// Most bytes of what has happened of late. Docker remembers 256 events.
pub(super) const MAX_EVENTS_LEN: usize = 1 << 20;

/// How long an engine is left alone before it is asked again what it starts.
const PAUSE: Duration = Duration::from_millis(20);

/// Most containers, and networks, that are asked for to which something happened.
const MAX_RECENT: usize = 32;

/// Most containers that are remembered to which something happened: as many as Docker remembers events.
const MAX_REMEMBERED: usize = 256;

/// Most containers that podman is asked for at the same time: it answers for one when it has started that.
const MAX_WAITING: usize = 6;

/// Tells what an engine starts, again and again, until that does not answer.
pub(super) async fn follow(line: &Line, tell: impl Fn(Starting)) -> DockerError {
    let mut known = Known::default();
    let mut waiting = FuturesUnordered::new();
    loop {
        let until = Instant::now() + PAUSE;
        let asked = match known.engine {
            WorkloadKind::Podman => known.ask_podman(line, &mut waiting).await,
            _ => known.ask_docker(line, &tell).await,
        };
        if let Err(error) = asked {
            return error;
        }
        while let Ok((id, inspected)) = timeout_at(until, next(&mut waiting)).await {
            known.waiting.remove(&id);
            match inspected {
                Ok(starting) => starting.into_iter().for_each(&tell),
                Err(error) => return error,
            }
        }
    }
}

/// What podman answers for a container, by its identifier.
type Inspection = (String, Result<Option<Starting>, DockerError>);

/// Answers that podman has not given yet.
type Waiting<'a> = FuturesUnordered<BoxFuture<'a, Inspection>>;

/// The next that it gives; waits for ever while there are none.
async fn next(waiting: &mut Waiting<'_>) -> Inspection {
    match waiting.next().await {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

/// What is known of containers that are being started.
struct Known {
    /// As it says that it is.
    engine: WorkloadKind,
    /// Docker's, by their identifiers.
    containers: BTreeMap<String, Workload>,
    /// For which of podman's it has been asked, and when the last had happened to each by then.
    asked: BTreeMap<String, i64>,
    /// For which it has not answered yet.
    waiting: BTreeSet<String>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            engine: WorkloadKind::Docker,
            containers: BTreeMap::new(),
            asked: BTreeMap::new(),
            waiting: BTreeSet::new(),
        }
    }
}

impl Known {
    async fn ask_docker(&mut self, line: &Line, tell: &impl Fn(Starting)) -> Result<(), DockerError> {
        let recent = Recent::ask(line, Question::Recent).await?;
        self.engine = recent.engine;
        self.forget_others(&recent);
        for network in recent.networks.iter().rev().take(MAX_RECENT) {
            for (id, mac) in recent.ends_of(line, network).await? {
                if !self.containers.contains_key(&id)
                    && let Some(workload) = recent.workload(line, id.clone()).await?
                {
                    self.containers.insert(id.clone(), workload);
                }
                let starting = self.containers.get(&id).map(|workload| Starting {
                    workload: workload.clone(),
                    mark: Mark::Mac(mac),
                });
                starting.into_iter().for_each(tell);
            }
        }
        Ok(())
    }

    /// Asks for each container to which something has happened since it was asked for, and for those that are only made, since of
    /// what comes next is told when it is over; does not wait for the answers.
    async fn ask_podman<'a>(&mut self, line: &'a Line, waiting: &mut Waiting<'a>) -> Result<(), DockerError> {
        let recent = Recent::ask(line, Question::RecentOfPodman).await?;
        for id in self.may_start(recent) {
            waiting.push(inspection(line, id).boxed());
        }
        Ok(())
    }

    /// Forgets containers to which nothing has happened of late.
    fn forget_others(&mut self, recent: &Recent) {
        self.containers.retain(|id, _| recent.containers.contains_key(id));
    }

    /// Those of podman's that may be starting, and are to be asked for now.
    fn may_start(&mut self, recent: Recent) -> Vec<String> {
        let mut latest: Vec<_> = recent.containers.into_iter().collect();
        latest.sort_by_key(|(_, happened)| std::cmp::Reverse(happened.at));
        latest.truncate(MAX_RECENT);
        // No more are remembered than are looked at.
        self.asked
            .retain(|id, _| latest.iter().any(|(other, _)| other == id));
        let mut due = Vec::new();
        for (id, happened) in latest {
            let may_start = match happened.last {
                Last::Made => true,
                Last::Removed => false,
                Last::Other => self.asked.get(&id) != Some(&happened.at),
            };
            if may_start && self.waiting.len() < MAX_WAITING && self.waiting.insert(id.clone()) {
                self.asked.insert(id.clone(), happened.at);
                due.push(id);
            }
        }
        due
    }
}

/// A container that podman starts, as soon as it answers for it; nothing where that has no namespace of its own, or none any more.
async fn inspection(line: &Line, id: String) -> Inspection {
    let inspected = inspect(line, &id).await;
    let starting = inspected.map(|inspected| {
        let inspected = inspected.filter(|inspected| !inspected.network_settings.sandbox_key.0.is_empty())?;
        let path = inspected.network_settings.sandbox_key.0.clone();
        Some(Starting {
            workload: inspected.workload(id.clone(), WorkloadKind::Podman),
            mark: Mark::Mount(path),
        })
    });
    (id, starting)
}

/// What has happened, of which the engine tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    r#type: Text<32>,
    #[serde(default)]
    action: Text<512>,
    #[serde(default)]
    actor: Actor,
    /// Nanoseconds since 1970.
    #[serde(default, rename = "timeNano")]
    time: i64,
}

/// A container, with its name, image and labels, or a network, with the container that it is about.
#[derive(Debug, Default, Deserialize)]
struct Actor {
    #[serde(default, rename = "ID")]
    id: Text<128>,
    #[serde(default, rename = "Attributes")]
    attributes: Labels,
}

/// A network, with the ends that it has in containers by their identifiers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Network {
    #[serde(default)]
    containers: BTreeMap<String, NetworkEnd>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkEnd {
    #[serde(default)]
    mac_address: Text<32>,
}

/// A container as it is told in whole, whether it runs or not.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    #[serde(default)]
    name: Text<512>,
    config: InspectedConfig,
    #[serde(default, deserialize_with = "crate::json::null_as_default")]
    network_settings: NetworkSettings,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    #[serde(default)]
    image: Text<1024>,
    #[serde(default)]
    labels: Labels,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkSettings {
    /// Where its namespace is mounted.
    #[serde(default)]
    sandbox_key: Text<MAX_PATH_LEN>,
}

/// The last that happened to a container.
#[derive(Debug, Default)]
struct Happened {
    /// What was said of it.
    attributes: Labels,
    /// In nanoseconds since 1970.
    at: i64,
    last: Last,
}

/// What that was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    Made,
    Removed,
    #[default]
    Other,
}

/// Containers and networks to which something has happened of late.
struct Recent {
    engine: WorkloadKind,
    /// By their identifiers.
    containers: BTreeMap<String, Happened>,
    /// Identifiers of networks.
    networks: Vec<String>,
}

impl Recent {
    async fn ask(line: &Line, question: Question) -> Result<Self, DockerError> {
        let answer = get(line, question.clone(), MAX_EVENTS_LEN).await?;
        let mut recent = Self {
            engine: engine_of(&answer.headers),
            containers: BTreeMap::new(),
            networks: Vec::new(),
        };
        for event in serde_json::Deserializer::from_slice(&answer.body).into_iter::<Event>() {
            recent.take(event.map_err(not_understood(&question))?);
        }
        Ok(recent)
    }

    /// Takes in an event; of containers that are too many, the one to which something happened first is forgotten.
    fn take(&mut self, event: Event) {
        let Actor { id, attributes } = event.actor;
        match &event.r#type.0[..] {
            _ if !is_identifier(&id.0) => {}
            "container" => {
                let happened = Happened {
                    attributes,
                    at: event.time,
                    last: match &event.action.0[..] {
                        "create" => Last::Made,
                        "remove" => Last::Removed,
                        _ => Last::Other,
                    },
                };
                self.containers.insert(id.0, happened);
            }
            "network" => {
                let container = attributes.kept.get("container");
                if let Some(id) = container.filter(|id| is_identifier(id)) {
                    let happened = self.containers.entry(id.clone());
                    happened.or_insert_with(|| Happened {
                        at: event.time,
                        ..Happened::default()
                    });
                }
                if !self.networks.contains(&id.0) {
                    self.networks.push(id.0);
                }
            }
            _ => {}
        }
        if self.containers.len() > MAX_REMEMBERED {
            let first = self.containers.iter().min_by_key(|(_, happened)| happened.at);
            let first = first.map(|(id, _)| id.clone());
            first.and_then(|id| self.containers.remove(&id));
        }
    }

    /// The containers that have an end of a network, with its hardware address.
    async fn ends_of(&self, line: &Line, network: &str) -> Result<Vec<(String, [u8; 6])>, DockerError> {
        let question = Question::Network(network.to_owned());
        let answer = match get(line, question.clone(), MAX_EVENTS_LEN).await {
            Ok(answer) => answer,
            // It is gone.
            Err(DockerError::Status { .. }) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let network: Network = serde_json::from_slice(&answer.body).map_err(not_understood(&question))?;
        let ends = network.containers.into_iter();
        let recent = ends.filter(|(id, _)| self.containers.contains_key(id));
        let ends = recent.filter_map(|(id, end)| Some((id, parse_mac(&end.mac_address.0)?)));
        Ok(ends.take(MAX_RECENT).collect())
    }

    /// A container, as what has happened to it tells, or, where that does not tell its name, as it is told in whole.
    async fn workload(&self, line: &Line, id: String) -> Result<Option<Workload>, DockerError> {
        let told = self
            .containers
            .get(&id)
            .map(|happened| happened.attributes.clone());
        let mut labels = told.unwrap_or_default();
        match (labels.kept.remove("name"), labels.kept.remove("image")) {
            (Some(name), image) => {
                let image = Text(image.unwrap_or_default());
                Ok(Some(starting(id, name, image, labels, self.engine)))
            }
            (None, _) => {
                let found = inspect(line, &id).await?;
                Ok(found.map(|found| found.workload(id, self.engine)))
            }
        }
    }
}

impl Inspected {
    fn workload(self, id: String, engine: WorkloadKind) -> Workload {
        let InspectedConfig { image, labels } = self.config;
        starting(id, self.name.0, image, labels, engine)
    }
}

fn starting(id: String, name: String, image: Text<1024>, labels: Labels, engine: WorkloadKind) -> Workload {
    let summary = Summary {
        names: Texts(vec![name]),
        image,
        labels,
        id: Text(id),
        state: Text(STARTING.to_owned()),
    };
    workload(summary, engine, 0)
}

/// A container as it is told in whole; nothing where it is gone.
async fn inspect(line: &Line, id: &str) -> Result<Option<Inspected>, DockerError> {
    let question = Question::Details(id.to_owned());
    match get(line, question.clone(), MAX_DETAILS_LEN).await {
        Ok(answer) => serde_json::from_slice(&answer.body)
            .map(Some)
            .map_err(not_understood(&question)),
        Err(DockerError::Status { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A hardware address as engines write it, `02:42:ac:11:00:02`.
fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut octets = text.split(':');
    for octet in &mut mac {
        *octet = u8::from_str_radix(octets.next()?, 16).ok()?;
    }
    octets.next().is_none().then_some(mac)
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing {
    use super::*;

    /// What an engine answers that is asked what it starts.
    pub(in crate::discovery) fn docker_starts(data: &[u8]) {
        let events = serde_json::Deserializer::from_slice(data).into_iter::<Event>();
        let mut recent = Recent {
            engine: WorkloadKind::Podman,
            containers: BTreeMap::new(),
            networks: Vec::new(),
        };
        events.flatten().for_each(|event| recent.take(event));
        assert!(recent.containers.keys().all(|id| is_identifier(id)));
        let _ = serde_json::from_slice::<Network>(data);
        if let Ok(inspected) = serde_json::from_slice::<Inspected>(data) {
            assert!(inspected.network_settings.sandbox_key.0.len() <= MAX_PATH_LEN);
            let workload = inspected.workload("c0ffee".to_owned(), WorkloadKind::Podman);
            assert!(!workload.name.is_empty(), "{workload:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses_are_read_as_engines_write_them() {
        assert_eq!(parse_mac("02:42:ac:11:00:02"), Some([2, 0x42, 0xac, 0x11, 0, 2]));
        for text in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "02:42:ac:11:00:0g",
            "02:42:ac:11:00:102",
        ] {
            assert_eq!(parse_mac(text), None, "{text}");
        }
    }

    /// What has happened to so many containers, the first of which has this number.
    fn recent(first: usize, count: usize) -> Recent {
        let mut recent = Recent {
            engine: WorkloadKind::Podman,
            containers: BTreeMap::new(),
            networks: Vec::new(),
        };
        for number in first..first + count {
            let event = serde_json::json!({
                "Type": "container", "Action": "init", "timeNano": number,
                "Actor": { "ID": format!("{number:012x}"), "Attributes": { "name": "web" } },
            });
            recent.take(serde_json::from_value(event).unwrap());
        }
        recent
    }

    #[test]
    fn no_more_is_remembered_than_is_looked_at() {
        const COUNT: usize = 1000;

        let mut known = Known::default();
        let workload = starting(
            "c0ffee".to_owned(),
            "web".to_owned(),
            Text::default(),
            Labels::default(),
            WorkloadKind::Docker,
        );
        for first in (0..20 * COUNT).step_by(COUNT) {
            let recent = recent(first, COUNT);
            assert_eq!(recent.containers.len(), MAX_REMEMBERED);
            // The latest are.
            assert!(
                recent
                    .containers
                    .contains_key(&format!("{:012x}", first + COUNT - 1))
            );
            for id in recent.containers.keys() {
                known.containers.insert(id.clone(), workload.clone());
            }
            known.forget_others(&recent);
            assert_eq!(known.containers.len(), MAX_REMEMBERED);
            let mut asked = known.may_start(recent);
            assert_eq!(asked.len(), MAX_WAITING);
            asked.drain(..).for_each(|id| {
                known.waiting.remove(&id);
            });
            assert!(known.asked.len() <= MAX_RECENT, "{}", known.asked.len());
        }
    }

    #[test]
    fn the_last_that_happened_to_a_container_counts() {
        let event = |action: &str, time: i64| -> Event {
            let event = serde_json::json!({
                "status": action, "Type": "container", "Action": action, "timeNano": time,
                "Actor": { "ID": "c0ffee", "Attributes": { "name": "web", "app": "shop" } },
            });
            serde_json::from_value(event).unwrap()
        };
        let mut recent = Recent {
            engine: WorkloadKind::Podman,
            containers: BTreeMap::new(),
            networks: Vec::new(),
        };
        for (action, time, last) in [
            ("create", 1, Last::Made),
            ("init", 2, Last::Other),
            ("remove", 3, Last::Removed),
        ] {
            recent.take(event(action, time));
            let happened = &recent.containers["c0ffee"];
            assert_eq!((happened.at, happened.last), (time, last));
            assert_eq!(happened.attributes.kept["app"], "shop");
        }
    }
}
