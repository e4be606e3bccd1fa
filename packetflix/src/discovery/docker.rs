//! Asks an engine through Docker's HTTP API, that podman speaks too.
//!
//! Source: Docker Engine API, `GET /containers/json` and `GET /containers/{id}/json`; without a version in the path
//! each engine answers in its own.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use hyper::{HeaderMap, StatusCode, header::SERVER};
use serde::{Deserialize, de::DeserializeSeed as _};

use super::{
    asker::{Line, Question, is_word},
    bounded::{Footprint, Labels, List, Listed, Text, Texts},
    budget::EngineBudget,
    workload::{KnownPids, PodName, Workload, WorkloadKind},
};
use crate::http_client::{Answer, Connection, RequestError};

/// Most bytes of what has happened of late. Docker remembers 256 events.
pub(super) const MAX_EVENTS_LEN: usize = 1 << 20;

const POD_NAME_LABEL: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE_LABEL: &str = "io.kubernetes.pod.namespace";

/// Why an engine's containers are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum DockerError {
    #[error("the socket cannot be connected to")]
    Connect(#[source] std::io::Error),
    #[error("{path} could not be asked for")]
    Request {
        path: String,
        #[source]
        source: RequestError,
    },
    #[error("it lists {0} more containers than are taken, or some whose identifiers are none")]
    NotTaken(usize),
    #[error("{path} was answered with the status {status}")]
    Status { path: String, status: StatusCode },
    #[error("the answer to {path} is not what Docker's API says")]
    Answer {
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

impl DockerError {
    /// Whether nobody answered as an engine does, that runs or fails.
    pub(super) fn is_of_no_engine(&self) -> bool {
        match self {
            Self::Request { source, .. } => matches!(source, RequestError::Http(_)),
            Self::Status { status, .. } => status.is_client_error(),
            Self::Connect(_) | Self::NotTaken(_) | Self::Answer { .. } => false,
        }
    }
}

/// An element of the list; what may be null or missing counts as empty, and so does what is too long.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: Text<128>,
    #[serde(default)]
    names: Texts<16, 512>,
    #[serde(default)]
    image: Text<1024>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    state: Text<64>,
}

impl Footprint for Summary {
    fn footprint(&self) -> usize {
        let names: usize = self
            .names
            .0
            .iter()
            .map(|name| name.len() + size_of::<String>())
            .sum();
        // The identifier is kept twice, and what it is is the name of another.
        2 * self.id.0.len() + names + self.image.0.len() + self.labels.footprint()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Details {
    state: DetailedState,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DetailedState {
    #[serde(default)]
    pid: i64,
    /// One word, such as `exited`.
    #[serde(default, deserialize_with = "crate::json::null_as_default")]
    status: String,
}

/// Adds the engine's running containers to `found`, each as soon as its process is known.
///
/// # Errors
/// When the list cannot be had, or what is told of a container: the others are found before the first such is returned.
/// A container that is gone meanwhile is left out.
pub(super) async fn containers(
    line: &Line,
    known: &KnownPids,
    allowance: &mut EngineBudget,
    found: &mut impl Extend<Workload>,
) -> Result<(), DockerError> {
    let EngineBudget {
        details, parallel, ..
    } = *allowance;
    let (headers, list) = list(line, allowance).await?;
    let kind = engine_of(&headers);
    let listed = list.items.len() + list.left_out;
    let containers: Vec<Summary> = list
        .items
        .into_iter()
        .filter(|summary| is_identifier(&summary.id.0))
        .collect();
    let not_taken = listed - containers.len();
    let mut failure = (not_taken > 0).then_some(DockerError::NotTaken(not_taken));
    let mut with_pids = stream::iter(containers)
        .map(|summary| async move {
            let pid = match known.get(&summary.id.0) {
                Some(pid) => Ok(Some(*pid)),
                None => pid_of(line, &summary.id.0, details).await,
            };
            (summary, pid)
        })
        .buffer_unordered(parallel);
    while let Some((summary, pid)) = with_pids.next().await {
        match pid {
            Ok(pid) => found.extend(pid.map(|pid| workload(summary, kind, pid))),
            Err(error) => {
                tracing::debug!(container = summary.id.0, error = %crate::error::chain(&error), "a container is left out");
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// What the engine says that it runs, as far as there is room for it.
async fn list(
    line: &Line,
    allowance: &mut EngineBudget,
) -> Result<(HeaderMap, Listed<Summary>), DockerError> {
    let answer = get(line, Question::List, allowance.list).await?;
    let mut deserializer = serde_json::Deserializer::from_slice(&answer.body);
    let list = List::within(allowance)
        .deserialize(&mut deserializer)
        .and_then(|list| deserializer.end().map(|()| list));
    Ok((answer.headers, list.map_err(not_understood(&Question::List))?))
}

fn not_understood(question: &Question) -> impl FnOnce(serde_json::Error) -> DockerError {
    let path = question.path();
    move |source| DockerError::Answer { path, source }
}

/// The state of a container that does not run, by its name or identifier; nothing when there is none.
pub(super) async fn state_at_rest(line: &Line, name: &str) -> Option<String> {
    if !may_be_name(name) {
        return None;
    }
    let question = Question::Details(name.to_owned());
    let answer = get(line, question, super::budget::MAX_DETAILS_LEN).await.ok()?;
    let details: Details = serde_json::from_slice(&answer.body).ok()?;
    let DetailedState { pid, status } = details.state;
    (pid == 0 && is_word(&status)).then_some(status)
}

/// Whether this may be the name or identifier of a container, and become part of a path.
pub(super) fn may_be_name(name: &str) -> bool {
    let is_names = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    !name.is_empty() && name.len() <= 128 && name.bytes().all(is_names) && !name.starts_with('.')
}

/// What has happened, of which the engine tells.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Event {
    #[serde(default)]
    r#type: Text<32>,
    #[serde(default)]
    actor: Actor,
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
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InspectedConfig {
    #[serde(default)]
    image: Text<1024>,
    #[serde(default)]
    labels: Labels,
}

/// The state of a container that its engine does not say to run yet.
const STARTING: &str = "starting";

/// Most containers, and networks, that are asked for to which something happened.
const MAX_RECENT: usize = 32;

/// A container that is being started, or has been, and what its network namespace is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Starting {
    pub(super) workload: Workload,
    /// The hardware address of one of its interfaces.
    pub(super) mac: [u8; 6],
}

/// A network namespace that has come.
pub(super) struct NewNamespace<'a> {
    /// The hardware addresses that there are in it by now.
    pub(super) macs: &'a (dyn Fn() -> Vec<[u8; 6]> + Sync),
}

impl NewNamespace<'_> {
    /// Whether it is that of a container.
    pub(super) fn is_of(&self, starting: &Starting) -> bool {
        (self.macs)().contains(&starting.mac)
    }
}

/// What is known of containers that are being started, by their identifiers.
#[derive(Default)]
pub(super) struct KnownStarts(BTreeMap<String, Workload>);

/// The containers to which something has happened of late.
///
/// Docker does not answer for a container while it starts it. That a namespace is its own shows by an end of a network which it
/// has there, as soon as it is connected, and before its first process runs. podman tells of no such ends.
///
/// # Errors
/// When the engine does not tell.
///
/// Source: Docker Engine API, `GET /events` and `GET /networks/{id}`.
pub(super) async fn starting(line: &Line, known: &mut KnownStarts) -> Result<Vec<Starting>, DockerError> {
    let recent = Recent::ask(line).await?;
    let mut starting = Vec::new();
    for network in recent.networks.iter().rev().take(MAX_RECENT) {
        for (id, mac) in recent.ends_of(line, network).await? {
            if !known.0.contains_key(&id)
                && let Some(workload) = recent.workload(line, id.clone()).await?
            {
                known.0.insert(id.clone(), workload);
            }
            starting.extend(known.0.get(&id).map(|workload| Starting {
                workload: workload.clone(),
                mac,
            }));
        }
    }
    Ok(starting)
}

/// Containers and networks to which something has happened of late.
struct Recent {
    kind: WorkloadKind,
    /// What was said of containers, by their identifiers.
    containers: BTreeMap<String, Labels>,
    /// Identifiers of networks.
    networks: Vec<String>,
}

impl Recent {
    async fn ask(line: &Line) -> Result<Self, DockerError> {
        let answer = get(line, Question::Recent, MAX_EVENTS_LEN).await?;
        let mut recent = Self {
            kind: engine_of(&answer.headers),
            containers: BTreeMap::new(),
            networks: Vec::new(),
        };
        for event in serde_json::Deserializer::from_slice(&answer.body).into_iter::<Event>() {
            let Event { r#type, actor } = event.map_err(not_understood(&Question::Recent))?;
            let Actor { id, attributes } = actor;
            match &r#type.0[..] {
                _ if !is_identifier(&id.0) => {}
                "container" => {
                    recent.containers.insert(id.0, attributes);
                }
                "network" => {
                    let container = attributes.kept.get("container");
                    if let Some(id) = container.filter(|id| is_identifier(id)) {
                        recent.containers.entry(id.clone()).or_default();
                    }
                    if !recent.networks.contains(&id.0) {
                        recent.networks.push(id.0);
                    }
                }
                _ => {}
            }
        }
        Ok(recent)
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
        let mut labels = self.containers.get(&id).cloned().unwrap_or_default();
        match (labels.kept.remove("name"), labels.kept.remove("image")) {
            (Some(name), image) => {
                let summary = Summary {
                    names: Texts(vec![name]),
                    image: Text(image.unwrap_or_default()),
                    labels,
                    id: Text(id),
                    state: Text(STARTING.to_owned()),
                };
                Ok(Some(workload(summary, self.kind, 0)))
            }
            (None, _) => {
                let found = inspect(line, &id).await?;
                Ok(found.map(|found| found.workload(id, self.kind)))
            }
        }
    }
}

impl Inspected {
    fn workload(self, id: String, kind: WorkloadKind) -> Workload {
        let summary = Summary {
            names: Texts(vec![self.name.0]),
            image: self.config.image,
            labels: self.config.labels,
            id: Text(id),
            state: Text(STARTING.to_owned()),
        };
        workload(summary, kind, 0)
    }
}

/// A container as it is told in whole; nothing where it is gone.
async fn inspect(line: &Line, id: &str) -> Result<Option<Inspected>, DockerError> {
    let question = Question::Details(id.to_owned());
    match get(line, question.clone(), super::budget::MAX_DETAILS_LEN).await {
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

/// The first process of a container, if it still runs.
async fn pid_of(line: &Line, id: &str, max_len: usize) -> Result<Option<u32>, DockerError> {
    let question = Question::Details(id.to_owned());
    match get(line, question.clone(), max_len).await {
        Ok(answer) => {
            let details: Details = serde_json::from_slice(&answer.body).map_err(not_understood(&question))?;
            Ok(u32::try_from(details.state.pid).ok().filter(|pid| *pid != 0))
        }
        Err(DockerError::Status {
            status: StatusCode::NOT_FOUND,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks on a connection of its own: over a Unix socket that costs next to nothing, and requests need not wait for
/// each other.
async fn get(line: &Line, question: Question, max_len: usize) -> Result<Answer, DockerError> {
    let path = question.path();
    let failed = |source| DockerError::Request {
        path: path.clone(),
        source,
    };
    let stream = line.ask(question).await.map_err(DockerError::Connect)?;
    let mut connection = Connection::open(stream, "localhost", max_len)
        .await
        .map_err(failed)?;
    let answer = connection.get(&path).await.map_err(failed)?;
    if answer.status != StatusCode::OK {
        return Err(DockerError::Status {
            path,
            status: answer.status,
        });
    }
    Ok(answer)
}

/// podman says so in its `Server` header.
fn engine_of(headers: &HeaderMap) -> WorkloadKind {
    let server = headers.get(SERVER).and_then(|value| value.to_str().ok());
    if server.is_some_and(|server| server.starts_with("Libpod")) {
        WorkloadKind::Podman
    } else {
        WorkloadKind::Docker
    }
}

fn workload(summary: Summary, engine: WorkloadKind, pid: u32) -> Workload {
    let Labels {
        kept: labels,
        left_out,
        ..
    } = summary.labels;
    // A container that is linked from another has further names, such as `/other/alias`.
    let own_name = summary
        .names
        .0
        .iter()
        .map(|name| name.trim_start_matches('/'))
        .find(|name| !name.is_empty() && !name.contains('/'));
    let pod = own_name.and_then(|name| pod_of(name, &labels));
    Workload {
        kind: engine,
        name: own_name.unwrap_or(&summary.id.0).to_owned(),
        pid,
        images: vec![summary.image.0],
        labels,
        labels_left_out: left_out,
        state: summary.state.0.to_lowercase(),
        pod,
        key: summary.id.0.clone(),
        id: summary.id.0,
    }
}

/// The pod that Kubernetes says a container belongs to. Labels may be the image's, and so the word of whoever made that: they
/// count where the container has the name that a kubelet makes for it.
fn pod_of(name: &str, labels: &BTreeMap<String, String>) -> Option<PodName> {
    let label = |name| labels.get(name).filter(|value| !value.is_empty()).cloned();
    let pod = PodName {
        namespace: label(POD_NAMESPACE_LABEL)?,
        name: label(POD_NAME_LABEL)?,
    };
    is_kubelets(name, &pod).then_some(pod)
}

/// Whether a kubelet makes this name for a container of a pod: `k8s_CONTAINER_POD_NAMESPACE_UID_ATTEMPT`, and a random word
/// behind it where that is taken.
fn is_kubelets(name: &str, pod: &PodName) -> bool {
    match name.split('_').collect::<Vec<_>>()[..] {
        ["k8s", container, name, namespace, uid, attempt, ref random @ ..] => {
            !container.is_empty()
                && (name, namespace) == (&pod.name[..], &pod.namespace[..])
                && !uid.is_empty()
                && attempt.parse::<u32>().is_ok()
                && random.len() <= 1
        }
        _ => false,
    }
}

/// An identifier becomes part of a path.
fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
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

    #[test]
    fn labels_make_a_pod_where_the_name_is_a_kubelets() {
        let labels = [(POD_NAME_LABEL, "web-1"), (POD_NAMESPACE_LABEL, "shop")];
        let labels = labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        for name in [
            "k8s_POD_web-1_shop_3b5e-11_0",
            "k8s_cart_web-1_shop_3b5e-11_17",
            "k8s_cart_web-1_shop_3b5e-11_17_5e1f0c22",
        ] {
            let pod = pod_of(name, &labels);
            assert_eq!(pod.map(|pod| pod.full()), Some("shop/web-1".to_owned()), "{name}");
        }
        for name in [
            "db",
            "web-1",
            "k8s_POD_web-1_shop",
            "k8s_POD_web-2_shop_3b5e-11_0",
            "k8s_POD_web-1_bank_3b5e-11_0",
            "k8s_POD_web-1_shop_3b5e-11_x",
            "k8s_POD_web-1_shop__0",
            "k8s__web-1_shop_3b5e-11_0",
            "k8s_POD_web-1_shop_3b5e-11_0_a_b",
        ] {
            assert_eq!(pod_of(name, &labels), None, "{name}");
        }
        assert_eq!(pod_of("k8s_POD_web-1_shop_3b5e-11_0", &BTreeMap::new()), None);
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing {
    use super::*;
    use crate::{discovery::budget::Budget, lookout::Owner};

    /// What an engine answers: a list, or the details of a container.
    pub fn docker(data: &[u8]) {
        let mut allowance = Budget::new().allow(Owner::User(1));
        let mut deserializer = serde_json::Deserializer::from_slice(data);
        if let Ok(list) = List::<Summary>::within(&mut allowance).deserialize(&mut deserializer) {
            assert!(list.items.len() <= allowance.workloads);
            for summary in list
                .items
                .into_iter()
                .filter(|summary| is_identifier(&summary.id.0))
            {
                let workload = workload(summary, WorkloadKind::Docker, 1);
                assert!(!workload.name.is_empty(), "{workload:?}");
            }
        }
        let _ = serde_json::from_slice::<Details>(data);
    }
}
