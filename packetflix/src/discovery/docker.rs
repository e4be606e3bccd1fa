//! Asks an engine through Docker's HTTP API, that podman speaks too.
//!
//! Source: Docker Engine API, `GET /containers/json` and `GET /containers/{id}/json`; without a version in the path
//! each engine answers in its own.

use std::collections::BTreeMap;

use futures_util::{StreamExt as _, stream};
use hyper::{HeaderMap, StatusCode, header::SERVER};
use serde::{Deserialize, de::DeserializeOwned};

use super::{
    sockets::EngineSocket,
    workload::{KnownPids, MAX_DETAILS_LEN, MAX_LIST_LEN, MAX_WORKLOADS, PodName, Workload, WorkloadKind},
};
use crate::{
    http_client::{Connection, RequestError},
    json::null_as_default,
};

/// Containers that are asked for at the same time.
const PARALLEL: usize = 8;

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
    #[error("it lists more than {MAX_WORKLOADS} containers, or some whose identifiers are none")]
    NotTaken,
    #[error("{path} was answered with the status {status}")]
    Status { path: String, status: StatusCode },
    #[error("the answer to {path} is not what Docker's API says")]
    Answer {
        path: String,
        #[source]
        source: serde_json::Error,
    },
}

/// An element of the list; what may be null or missing counts as empty.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Summary {
    id: String,
    #[serde(default, deserialize_with = "null_as_default")]
    names: Vec<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    image: String,
    #[serde(default, deserialize_with = "null_as_default")]
    labels: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_as_default")]
    state: String,
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
}

/// Adds the engine's running containers to `found`, each as soon as its process is known.
///
/// # Errors
/// When the list cannot be had, or what is told of a container: the others are found before the first such is returned.
/// A container that is gone meanwhile is left out.
pub(super) async fn containers(
    socket: &EngineSocket,
    known: &KnownPids,
    found: &mut Vec<Workload>,
) -> Result<(), DockerError> {
    let (headers, list): (_, Vec<Summary>) = get(socket, "/containers/json", MAX_LIST_LEN).await?;
    let kind = engine_of(&headers);
    let listed = list.len();
    let containers: Vec<Summary> = list
        .into_iter()
        .filter(|summary| is_identifier(&summary.id))
        .take(MAX_WORKLOADS)
        .collect();
    let mut failure = (containers.len() < listed).then_some(DockerError::NotTaken);
    let mut with_pids = stream::iter(containers)
        .map(|summary| async move {
            let pid = match known.get(&summary.id) {
                Some(pid) => Ok(Some(*pid)),
                None => pid_of(socket, &summary.id).await,
            };
            (summary, pid)
        })
        .buffer_unordered(PARALLEL);
    while let Some((summary, pid)) = with_pids.next().await {
        match pid {
            Ok(pid) => found.extend(pid.map(|pid| workload(summary, kind, pid))),
            Err(error) => {
                tracing::debug!(container = summary.id, error = %crate::error::chain(&error), "a container is left out");
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The first process of a container, if it still runs.
async fn pid_of(socket: &EngineSocket, id: &str) -> Result<Option<u32>, DockerError> {
    let path = format!("/containers/{id}/json");
    match get::<Details>(socket, &path, MAX_DETAILS_LEN).await {
        Ok((_, details)) => Ok(u32::try_from(details.state.pid).ok().filter(|pid| *pid != 0)),
        Err(DockerError::Status {
            status: StatusCode::NOT_FOUND,
            ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks on a connection of its own: over a Unix socket that costs next to nothing, and requests need not wait for
/// each other.
async fn get<T: DeserializeOwned>(
    socket: &EngineSocket,
    path: &str,
    max_len: usize,
) -> Result<(HeaderMap, T), DockerError> {
    let failed = |source| DockerError::Request {
        path: path.to_owned(),
        source,
    };
    let stream = socket.connect().await.map_err(DockerError::Connect)?;
    let mut connection = Connection::open(stream, "localhost", max_len)
        .await
        .map_err(failed)?;
    let answer = connection.get(path).await.map_err(failed)?;
    if answer.status != StatusCode::OK {
        return Err(DockerError::Status {
            path: path.to_owned(),
            status: answer.status,
        });
    }
    let value = serde_json::from_slice(&answer.body).map_err(|source| DockerError::Answer {
        path: path.to_owned(),
        source,
    })?;
    Ok((answer.headers, value))
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
    let pod = pod_of(&summary.labels);
    // A container that is linked from another has further names, such as `/other/alias`.
    let own_name = summary
        .names
        .iter()
        .map(|name| name.trim_start_matches('/'))
        .find(|name| !name.is_empty() && !name.contains('/'));
    Workload {
        kind: engine,
        name: own_name.unwrap_or(&summary.id).to_owned(),
        pid,
        images: vec![summary.image],
        labels: summary.labels,
        state: summary.state.to_lowercase(),
        pod,
        key: summary.id.clone(),
        id: summary.id,
    }
}

/// The pod that Kubernetes says a container belongs to.
fn pod_of(labels: &BTreeMap<String, String>) -> Option<PodName> {
    let label = |name| labels.get(name).filter(|value| !value.is_empty()).cloned();
    Some(PodName {
        namespace: label(POD_NAMESPACE_LABEL)?,
        name: label(POD_NAME_LABEL)?,
    })
}

/// An identifier becomes part of a path.
fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing {
    use super::*;

    /// What an engine answers: a list, or the details of a container.
    pub fn docker(data: &[u8]) {
        if let Ok(list) = serde_json::from_slice::<Vec<Summary>>(data) {
            for summary in list.into_iter().filter(|summary| is_identifier(&summary.id)) {
                let workload = workload(summary, WorkloadKind::Docker, 1);
                assert!(!workload.name.is_empty(), "{workload:?}");
            }
        }
        let _ = serde_json::from_slice::<Details>(data);
    }
}
