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
pub(super) struct Summary {
    pub(super) id: Text<128>,
    #[serde(default)]
    pub(super) names: Texts<16, 512>,
    #[serde(default)]
    pub(super) image: Text<1024>,
    #[serde(default)]
    pub(super) labels: Labels,
    #[serde(default)]
    pub(super) state: Text<64>,
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

pub(super) fn not_understood(question: &Question) -> impl FnOnce(serde_json::Error) -> DockerError {
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
pub(super) async fn get(line: &Line, question: Question, max_len: usize) -> Result<Answer, DockerError> {
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
pub(super) fn engine_of(headers: &HeaderMap) -> WorkloadKind {
    let server = headers.get(SERVER).and_then(|value| value.to_str().ok());
    if server.is_some_and(|server| server.starts_with("Libpod")) {
        WorkloadKind::Podman
    } else {
        WorkloadKind::Docker
    }
}

pub(super) fn workload(summary: Summary, engine: WorkloadKind, pid: u32) -> Workload {
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
pub(super) fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    use crate::{
        discovery::{budget::Budget, docker_starts::fuzzing::docker_starts},
        lookout::Owner,
    };

    /// What an engine answers: a list, the details of a container, or what it starts.
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
        docker_starts(data);
    }
}
