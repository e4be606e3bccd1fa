//! The pods of containerd and CRI-O, by the Kubernetes Container Runtime Interface: gRPC over a Unix socket.

use std::{
    collections::{BTreeSet, HashMap},
    error::Error,
    future::{Ready, ready},
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::{StreamExt as _, stream};
use hyper::{Uri, http::uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde::Deserialize;
use tokio::{net::UnixStream, task::JoinSet, time::sleep};
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::{
    bounded::{Labels, Text},
    budget::{EngineBudget, MAX_DETAILS_LEN, MAX_LIST_LEN},
    cri_api::{
        Call, Container, ContainerState, ContainerStatusRequest, ListContainersRequest,
        ListPodSandboxRequest, PodSandbox, PodSandboxState, PodSandboxStatusRequest, StatusAnswer,
    },
    starts::{MAX_PATH_LEN, Mark, STARTING, Starting},
    workload::{KnownPids, PodName, Workload, WorkloadKind},
};

/// Most pods that the engine is asked about at the same time.
const MAX_CALLS: usize = 16;

/// Bytes of an answer that an engine may send before they are read.
const WINDOW: u32 = 256 << 10;

/// Most characters that are kept of what an engine says of a failure.
const MAX_MESSAGE_LEN: usize = 300;

/// Why the pods, or some of them, are not known.
#[derive(Debug, thiserror::Error)]
pub(super) enum CriError {
    /// There is no connection.
    #[error("cannot begin an HTTP/2 connection")]
    Connect(#[source] tonic::transport::Error),
    /// The engine does not speak version 1 of the interface: Docker's containerd has it disabled, and one before
    /// 1.6 has older versions only.
    #[error("{call} is not implemented: {message}")]
    Unimplemented {
        /// Path of the call.
        call: &'static str,
        /// What the engine says.
        message: String,
    },
    /// There may be more.
    #[error("it has more pods or containers than are taken")]
    TooMany,
    /// What has no process has ended, but for those that run elsewhere, such as in a virtual machine.
    #[error("it does not tell the process of a container that runs")]
    NoProcess,
    /// A call failed.
    #[error("{call} failed ({code:?}): {message}")]
    Call {
        /// Path of the call.
        call: &'static str,
        /// The code of gRPC.
        code: Code,
        /// What the engine says, or what is wrong with its answer or the connection.
        message: String,
        /// Whether the engine says so, and not the connection.
        is_answered: bool,
    },
}

impl CriError {
    /// Whether nobody answered as an engine does, that runs or fails.
    pub(super) fn is_of_no_engine(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Unimplemented { .. } => true,
            Self::Call { is_answered, .. } => !is_answered,
            Self::TooMany | Self::NoProcess => false,
        }
    }
}

/// Finds the pods that are ready, and pushes each as often as it has processes that are known: that of its sandbox, and
/// those of its containers. What is in `known` is not asked for.
///
/// A pod that ends meanwhile is left out.
///
/// # Errors
/// When the engine cannot be asked. Should only some be refused or left out, the others are found before the first refusal
/// is returned.
pub(super) async fn pods(
    socket: UnixStream,
    known: &KnownPids,
    allowance: &mut EngineBudget,
    found: &mut impl Extend<Workload>,
) -> Result<(), CriError> {
    let tasks = OwnedTasks::default();
    let engine = Engine::connect(socket, (allowance.list, allowance.details), &tasks).await?;
    let (sandboxes, containers) = tokio::try_join!(
        engine.call(ListPodSandboxRequest::of(PodSandboxState::Ready)),
        engine.call(ListContainersRequest::of(ContainerState::Running)),
    )?;
    let mut refusal = (sandboxes.cut || containers.cut).then_some(CriError::TooMany);

    let mut containers_of = HashMap::<String, Vec<Container>>::new();
    for mut container in containers.items {
        if container.state() == ContainerState::Running {
            let pod = std::mem::take(&mut container.pod_sandbox_id);
            containers_of.entry(pod).or_default().push(container);
        }
    }
    let mut unknown = Vec::new();
    let mut parts = 0;
    for sandbox in sandboxes.items {
        let containers = containers_of.remove(&sandbox.id).unwrap_or_default();
        let len = sandbox.encoded_len() + size_of::<Workload>();
        let Some(pod) = workload(sandbox, &containers) else {
            continue;
        };
        let len = len + pod.images.iter().map(String::len).sum::<usize>();
        let of_container = |container: Container| (Asked::Container, container.id);
        let of_pod = std::iter::once((Asked::Sandbox, pod.id.clone()));
        for (asked, key) in of_pod.chain(containers.into_iter().map(of_container)) {
            if parts == allowance.workloads || !allowance.take(len) {
                refusal.get_or_insert(CriError::TooMany);
                break;
            }
            parts += 1;
            let pid = known.get(&key).copied();
            let part = Workload {
                key,
                pid: pid.unwrap_or_default(),
                ..pod.clone()
            };
            match pid {
                Some(_) => found.extend([part]),
                None => unknown.push((asked, part)),
            }
        }
    }

    let mut answers = stream::iter(unknown)
        .map(|(asked, part)| {
            let engine = engine.clone();
            async move {
                let pid = engine.pid(asked, &part.key).await;
                (part, pid)
            }
        })
        .buffer_unordered(MAX_CALLS.min(2 * allowance.parallel));
    while let Some((part, pid)) = answers.next().await {
        match pid {
            Ok(pid) => found.extend(pid.map(|pid| Workload { pid, ..part })),
            Err(error) => {
                tracing::debug!(pod = part.name, id = part.key, %error, "a process of a pod is left out");
                refusal.get_or_insert(error);
            }
        }
    }
    refusal.map_or(Ok(()), Err)
}

/// How long an engine is left alone before it is asked again what it starts. A pod outlives its containers.
const START_PAUSE: Duration = Duration::from_millis(50);

/// How long ago a pod may have been made that starts now, and most such that are asked for at once.
const RECENT: Duration = Duration::from_secs(60);
const MAX_RECENT: usize = 32;

/// Tells which pods an engine makes, again and again, each with where its namespace is mounted, until that cannot be asked for.
///
/// A pod is told of as soon as its sandbox is there, which is before its containers are made, and also when it has ended.
pub(super) async fn follow_starts(socket: UnixStream, tell: impl Fn(Starting)) -> CriError {
    let tasks = OwnedTasks::default();
    let engine = match Engine::connect(socket, (MAX_LIST_LEN, MAX_DETAILS_LEN), &tasks).await {
        Ok(engine) => engine,
        Err(error) => return error,
    };
    let mut told = BTreeSet::new();
    loop {
        if let Err(error) = tell_starts(&engine, &mut told, &tell).await {
            return error;
        }
        sleep(START_PAUSE).await;
    }
}

/// Tells of pods that were made of late, but for those that were told of, by their identifiers.
async fn tell_starts(
    engine: &Engine,
    told: &mut BTreeSet<String>,
    tell: &impl Fn(Starting),
) -> Result<(), CriError> {
    let sandboxes = engine.call(ListPodSandboxRequest::default()).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = i64::try_from(now.saturating_sub(RECENT).as_nanos()).unwrap_or(i64::MAX);
    let recent = sandboxes.items.into_iter();
    let mut recent: Vec<_> = recent.filter(|sandbox| sandbox.created_at >= since).collect();
    recent.sort_unstable_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
    recent.truncate(MAX_RECENT);
    // No more are remembered than are looked at.
    told.retain(|id| recent.iter().any(|sandbox| sandbox.id == *id));
    for sandbox in recent {
        if told.contains(&sandbox.id) {
            continue;
        }
        // One that has no namespace yet is asked for again.
        if let Some(path) = engine.mounted_at(&sandbox.id).await? {
            told.insert(sandbox.id.clone());
            let pod = named(sandbox, &[]).map(|pod| Workload {
                state: STARTING.to_owned(),
                ..pod
            });
            let starting = pod.map(|workload| Starting {
                workload,
                mark: Mark::Mount(path),
            });
            starting.into_iter().for_each(tell);
        }
    }
    Ok(())
}

/// What an engine is asked for the process of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Sandbox,
    Container,
}

/// A pod whose PID is still to be found; `None` when it has no name, or is not ready.
fn workload(sandbox: PodSandbox, containers: &[Container]) -> Option<Workload> {
    match sandbox.state() {
        PodSandboxState::Ready => named(sandbox, containers),
        PodSandboxState::NotReady => None,
    }
}

/// The same of one in any state.
fn named(sandbox: PodSandbox, containers: &[Container]) -> Option<Workload> {
    let metadata = sandbox
        .metadata
        .filter(|metadata| !metadata.name.is_empty() && !metadata.namespace.is_empty());
    let Some(metadata) = metadata.filter(|_| !sandbox.id.is_empty()) else {
        tracing::debug!(id = sandbox.id, "a pod without a name or identifier is left out");
        return None;
    };
    let mut images: Vec<String> = containers.iter().filter_map(image).collect();
    images.sort_unstable();
    images.dedup();
    let Labels {
        kept: labels,
        left_out,
        ..
    } = sandbox.labels.unwrap_or_default();
    Some(Workload {
        kind: WorkloadKind::Pod,
        key: sandbox.id.clone(),
        id: sandbox.id,
        name: format!("{}/{}", metadata.namespace, metadata.name),
        pid: 0,
        images,
        labels,
        labels_left_out: left_out,
        state: "running".to_owned(),
        pod: Some(PodName {
            namespace: metadata.namespace,
            name: metadata.name,
        }),
    })
}

/// The image by the name that the user gave it, or else as the engine knows it, which may be a digest.
fn image(container: &Container) -> Option<String> {
    let image = container.image.as_ref()?;
    [&image.user_specified_image, &image.image]
        .into_iter()
        .find(|name| !name.is_empty())
        .cloned()
}

/// The PID in an answer's verbose part.
fn pid(status: &StatusAnswer) -> Option<u32> {
    #[derive(Deserialize)]
    struct Info {
        pid: i32,
    }

    let info: Info = serde_json::from_str(&status.info.as_ref()?.json).ok()?;
    u32::try_from(info.pid).ok().filter(|pid| *pid != 0)
}

/// Where a pod's network namespace is mounted, as the answer's verbose part has it.
fn network_path(status: &StatusAnswer) -> Option<String> {
    #[derive(Deserialize)]
    struct Info {
        #[serde(rename = "runtimeSpec")]
        spec: Spec,
    }

    #[derive(Deserialize)]
    struct Spec {
        linux: Linux,
    }

    #[derive(Deserialize)]
    struct Linux {
        namespaces: Vec<Namespace>,
    }

    #[derive(Deserialize)]
    struct Namespace {
        #[serde(default)]
        r#type: Text<32>,
        #[serde(default)]
        path: Text<MAX_PATH_LEN>,
    }

    let info: Info = serde_json::from_str(&status.info.as_ref()?.json).ok()?;
    let mut namespaces = info.spec.linux.namespaces.into_iter();
    let network = namespaces.find(|namespace| namespace.r#type.0 == "network")?;
    Some(network.path.0).filter(|path| !path.is_empty())
}

/// An engine that is connected.
#[derive(Clone)]
struct Engine {
    channel: Channel,
    /// Most bytes of a list.
    list: usize,
    /// Most bytes of what it tells of one pod or container.
    details: usize,
}

impl Engine {
    async fn connect(
        socket: UnixStream,
        (list, details): (usize, usize),
        tasks: &OwnedTasks,
    ) -> Result<Self, CriError> {
        // The host is part of every request, and means nothing.
        let channel = Endpoint::from_static("http://localhost")
            .executor(tasks.0.clone())
            // What comes is read at once, and what does not need not be kept.
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(4 * WINDOW)
            .connect_with_connector(Given(Some(socket)))
            .await
            .map_err(CriError::Connect)?;
        Ok(Self {
            channel,
            list,
            details,
        })
    }

    /// The first process of a sandbox, for which the engine may keep none, as CRI-O does, or of a container that runs;
    /// `None` when it has ended.
    async fn pid(&self, asked: Asked, id: &str) -> Result<Option<u32>, CriError> {
        match asked {
            Asked::Sandbox => {
                let status = self.sandbox(id).await?;
                Ok(status.as_ref().and_then(pid))
            }
            Asked::Container => {
                let request = ContainerStatusRequest {
                    container_id: id.to_owned(),
                    verbose: true,
                };
                let Some(status) = unless_gone(self.call(request).await)? else {
                    return Ok(None);
                };
                pid(&status).map(Some).ok_or(CriError::NoProcess)
            }
        }
    }

    /// Where a pod's network namespace is mounted; `None` while it has none, or when it is gone.
    async fn mounted_at(&self, id: &str) -> Result<Option<String>, CriError> {
        let status = self.sandbox(id).await?;
        Ok(status.as_ref().and_then(network_path))
    }

    /// The status of a pod, unless it is gone.
    async fn sandbox(&self, id: &str) -> Result<Option<StatusAnswer>, CriError> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        unless_gone(self.call(request).await)
    }

    async fn call<C: Call>(&self, request: C) -> Result<C::Answer, CriError> {
        let max_len = if C::IS_LIST { self.list } else { self.details };
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(max_len);
        grpc.ready().await.map_err(CriError::Connect)?;
        let path = PathAndQuery::from_static(C::PATH);
        grpc.unary(Request::new(request), path, ProstCodec::default())
            .await
            .map(tonic::Response::into_inner)
            .map_err(|status| failure(C::PATH, &status))
    }
}

/// Nothing, when what was asked for has ended since it was listed.
fn unless_gone<T>(answer: Result<T, CriError>) -> Result<Option<T>, CriError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(CriError::Call {
            code: Code::NotFound, ..
        }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn failure(call: &'static str, status: &Status) -> CriError {
    // A failure of the connection says what it is in its sources only.
    let mut message = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        message = format!("{message}: {error}");
        source = error.source();
    }
    let message = message
        .chars()
        .filter(|character| !character.is_control())
        .take(MAX_MESSAGE_LEN)
        .collect();
    match status.code() {
        Code::Unimplemented => CriError::Unimplemented { call, message },
        code => CriError::Call {
            call,
            code,
            message,
            is_answered: status.source().is_none(),
        },
    }
}

/// A connector that hands out its one connection once.
struct Given(Option<UnixStream>);

impl tower_service::Service<Uri> for Given {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(
            self.0
                .take()
                .map(TokioIo::new)
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the connection has ended")),
        )
    }
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The tasks that serve a connection: they end when this is dropped, whatever the peer does.
#[derive(Default)]
struct OwnedTasks(Spawner);

/// Starts tasks as long as their owner is there.
#[derive(Clone)]
struct Spawner(Arc<Mutex<Option<JoinSet<()>>>>);

impl Default for Spawner {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(JoinSet::new()))))
    }
}

impl hyper::rt::Executor<Task> for Spawner {
    fn execute(&self, task: Task) {
        if let Ok(mut tasks) = self.0.lock()
            && let Some(tasks) = tasks.as_mut()
        {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(task);
        }
    }
}

impl Drop for OwnedTasks {
    fn drop(&mut self) {
        let tasks = self.0.0.lock().ok().and_then(|mut tasks| tasks.take());
        drop(tasks);
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing {
    use super::*;

    /// What an engine answers: a list of pods, one of containers, or the status of either.
    pub fn cri(data: &[u8]) {
        if let Ok(list) = <ListPodSandboxRequest as Call>::Answer::decode(data) {
            for sandbox in list.items {
                let pod = workload(sandbox, &[]);
                assert!(pod.is_none_or(|pod| pod.name.len() > 2 && !pod.id.is_empty()));
            }
        }
        if let Ok(list) = <ListContainersRequest as Call>::Answer::decode(data) {
            let images = list.items.iter().filter_map(image);
            assert!(images.into_iter().all(|image| !image.is_empty()));
        }
        if let Ok(status) = StatusAnswer::decode(data) {
            assert_ne!(pid(&status), Some(0));
            let path = network_path(&status);
            assert!(path.is_none_or(|path| (1..=MAX_PATH_LEN).contains(&path.len())));
        }
    }
}

#[cfg(test)]
mod tests;
