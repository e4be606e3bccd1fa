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
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use bytes::Bytes;
    use http_body_util::{BodyExt as _, StreamBody};
    use hyper::{HeaderMap, Response, body::Frame, header::HeaderValue, service::service_fn};
    use hyper_util::rt::TokioExecutor;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::*;
    use crate::{
        discovery::{
            budget::Budget,
            cri_api::{ImageSpec, Info, Listed, PodSandboxMetadata},
        },
        lookout::Owner,
    };

    /// What a scripted engine does about a call.
    enum Answer {
        Message(Vec<u8>),
        Refusal(Code),
        Silence,
    }

    /// An engine that answers a call's path and request as `script` says.
    fn engine(script: impl Fn(&str, &[u8]) -> Answer + Clone + Send + 'static) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let script = script.clone();
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let (code, message) = match script(&path, &body[5..]) {
                    Answer::Message(message) => (Code::Ok, message),
                    Answer::Refusal(code) => (code, Vec::new()),
                    Answer::Silence => std::future::pending().await,
                };
                // Not compressed, and the length.
                let len = u32::try_from(message.len()).unwrap().to_be_bytes();
                let data = [&[0], &len[..], &message].concat();
                let status = HeaderValue::from(i32::from(code));
                let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status)]);
                let frames = [Frame::data(Bytes::from(data)), Frame::trailers(trailers)];
                let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
                Ok::<_, Infallible>(Response::new(body))
            }
        });
        tokio::spawn(
            hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(theirs), service),
        );
        ours
    }

    fn allowance() -> EngineBudget {
        Budget::new().allow(Owner::Host)
    }

    fn sandbox(id: &str) -> PodSandbox {
        PodSandbox {
            id: id.to_owned(),
            metadata: Some(PodSandboxMetadata {
                name: format!("pod-{id}"),
                namespace: "shop".to_owned(),
            }),
            ..PodSandbox::default()
        }
    }

    fn running(id: &str, pod: &str) -> Container {
        Container {
            id: id.to_owned(),
            pod_sandbox_id: pod.to_owned(),
            state: ContainerState::Running.into(),
            ..Container::default()
        }
    }

    fn list_of<T: prost::Message + Default>(items: Vec<T>) -> Answer {
        Answer::Message(Listed::<T, 100> { items, cut: false }.encode_to_vec())
    }

    fn status(info: &str) -> Answer {
        let info = Some(Info::new(info));
        Answer::Message(StatusAnswer { info }.encode_to_vec())
    }

    /// Last word of a call's path, and the identifier that is asked for, if there is one.
    fn asked_for(path: &str, request: &[u8]) -> (String, String) {
        let name = path.rsplit('/').next().unwrap().to_owned();
        let id = if name.ends_with("Status") {
            let request = PodSandboxStatusRequest::decode(request).unwrap();
            assert!(request.verbose);
            request.pod_sandbox_id
        } else {
            String::new()
        };
        (name, id)
    }

    #[tokio::test]
    async fn finds_the_pids_of_pods() {
        let socket = engine(|path, request| {
            let (call, id) = asked_for(path, request);
            match (&call[..], &id[..]) {
                ("ListPodSandbox", _) => {
                    // The filter is for the state 0, which is written as nothing.
                    assert_eq!(request, [0x0a, 2, 0x12, 0]);
                    let ready = ["plain", "known", "bare", "empty", "gone", "refused"].map(sandbox);
                    let not_ready = PodSandbox {
                        state: PodSandboxState::NotReady.into(),
                        ..sandbox("not-ready")
                    };
                    list_of([&ready[..], &[not_ready]].concat())
                }
                ("ListContainers", _) => {
                    assert_eq!(request, [0x0a, 4, 0x12, 2, 0x08, 1]);
                    let exited = Container {
                        state: ContainerState::Exited.into(),
                        ..running("exited", "bare")
                    };
                    let ended = running("ended", "bare");
                    list_of(vec![
                        exited,
                        ended,
                        running("main", "plain"),
                        running("first", "bare"),
                        running("none", "empty"),
                    ])
                }
                ("PodSandboxStatus", "plain") => status(r#"{"pid": 11}"#),
                ("PodSandboxStatus", "bare" | "empty") => status(r#"{"pid": 0}"#),
                ("PodSandboxStatus", "refused") => Answer::Refusal(Code::Internal),
                ("PodSandboxStatus", "gone") | ("ContainerStatus", "ended") => {
                    Answer::Refusal(Code::NotFound)
                }
                ("ContainerStatus", "first") => status(r#"{"pid": 12}"#),
                ("ContainerStatus", "main") => status(r#"{"pid": 14}"#),
                ("ContainerStatus", "none") => Answer::Message(Vec::new()),
                _ => panic!("not to be asked for: {call} {id}"),
            }
        });
        let known = KnownPids::from([("known".to_owned(), 13)]);
        let mut found = Vec::new();
        let error = pods(socket, &known, &mut allowance(), &mut found)
            .await
            .unwrap_err();
        let error = error.to_string();
        assert!(
            [
                "/runtime.v1.RuntimeService/PodSandboxStatus failed (Internal): ",
                "it does not tell the process of a container that runs"
            ]
            .contains(&&error[..]),
            "{error}"
        );
        let mut found: Vec<_> = found
            .iter()
            .map(|pod| (&pod.id[..], &pod.key[..], pod.pid))
            .collect();
        found.sort_unstable();
        let all = [
            ("bare", "first", 12),
            ("known", "known", 13),
            ("plain", "main", 14),
            ("plain", "plain", 11),
        ];
        assert_eq!(found, all);
    }

    #[tokio::test]
    async fn keeps_what_a_slow_engine_has_told() {
        static ASKED: AtomicUsize = AtomicUsize::new(0);

        let socket = engine(|path, request| match &asked_for(path, request).0[..] {
            "ListPodSandbox" => list_of((0..100).map(|id| sandbox(&id.to_string())).collect()),
            "ListContainers" => list_of::<Container>(Vec::new()),
            _ if ASKED.fetch_add(1, Ordering::Relaxed) < 3 => status(r#"{"pid": 1}"#),
            _ => Answer::Silence,
        });
        let (known, mut found) = (KnownPids::new(), Vec::new());
        let late = timeout(
            Duration::from_millis(500),
            pods(socket, &known, &mut allowance(), &mut found),
        )
        .await;
        assert!(late.is_err());
        assert_eq!(found.len(), 3);
        assert_eq!(ASKED.load(Ordering::Relaxed), 3 + MAX_CALLS);
    }

    #[tokio::test]
    async fn knows_an_engine_without_the_interface() {
        let socket = engine(|_, _| Answer::Refusal(Code::Unimplemented));
        let error = pods(socket, &KnownPids::new(), &mut allowance(), &mut Vec::new())
            .await
            .unwrap_err();
        assert!(matches!(error, CriError::Unimplemented { .. }), "{error}");
    }

    /// Asks an engine that first says `words`, and then listens until the client is gone.
    async fn ask(words: &'static [u8], then_close: bool) -> Option<CriError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let engine = tokio::spawn(async move {
            theirs.write_all(words).await.unwrap();
            if !then_close {
                let _ = theirs.read_to_end(&mut Vec::new()).await;
            }
        });
        let (known, mut found) = (KnownPids::new(), Vec::new());
        let answer = timeout(
            Duration::from_millis(200),
            pods(ours, &known, &mut allowance(), &mut found),
        )
        .await;
        assert!(found.is_empty());
        // Nothing is left of the connection, although the engine has not ended it.
        timeout(Duration::from_secs(5), engine).await.unwrap().unwrap();
        answer.ok().map(Result::unwrap_err)
    }

    #[tokio::test]
    async fn says_what_is_wrong_with_an_engine() {
        let error = ask(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).await.unwrap();
        assert!(
            error.to_string().contains("ListPodSandbox failed") && error.to_string().contains("frame"),
            "{error}"
        );
        assert!(matches!(
            ask(b"", true).await,
            Some(CriError::Call { .. } | CriError::Connect(_))
        ));
    }

    #[tokio::test]
    async fn leaves_nothing_of_an_engine_that_hangs() {
        assert!(ask(b"", false).await.is_none());
        // Settings, and then nothing.
        assert!(ask(&[0, 0, 0, 4, 0, 0, 0, 0, 0], false).await.is_none());
    }

    #[test]
    fn takes_only_pids_that_can_be() {
        let pid_of = |info: &str| {
            pid(&StatusAnswer {
                info: Some(Info::new(info)),
            })
        };
        assert_eq!(
            pid_of(r#"{"image": {"a": [1]}, "pid": 4711, "runtimeSpec": {"pid": "x"}}"#),
            Some(4711)
        );
        for info in [
            "",
            "null",
            "{}",
            r#"{"pid": 0}"#,
            r#"{"pid": -1}"#,
            r#"{"pid": 2147483648}"#,
            r#"{"pid": 1e3}"#,
            r#"{"pid": "1"}"#,
            r#"{"pid": 1, "pid": 2}"#,
        ] {
            assert_eq!(pid_of(info), None, "{info}");
        }
        assert_eq!(pid(&StatusAnswer::default()), None);
    }

    #[test]
    fn takes_the_path_of_a_network_namespace() {
        let path_of = |info: &str| {
            network_path(&StatusAnswer {
                info: Some(Info::new(info)),
            })
        };
        let spec =
            |namespaces: &str| format!(r#"{{"runtimeSpec": {{"linux": {{"namespaces": {namespaces}}}}}}}"#);
        assert_eq!(
            path_of(&spec(
                r#"[{"type": "pid"}, {"type": "network", "path": "/var/run/netns/cni-1"}]"#
            )),
            Some("/var/run/netns/cni-1".to_owned())
        );
        for namespaces in [
            "[]",
            r#"[{"type": "network"}]"#,
            r#"[{"type": "pid", "path": "/x"}]"#,
            "null",
        ] {
            assert_eq!(path_of(&spec(namespaces)), None, "{namespaces}");
        }
        assert_eq!(path_of("{}"), None);
    }

    #[tokio::test]
    async fn tells_of_pods_as_they_are_made() {
        static LISTS: AtomicUsize = AtomicUsize::new(0);

        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let socket = engine(move |path, request| {
            let (call, id) = asked_for(path, request);
            let made = |id: &str, created_at: i64| PodSandbox {
                created_at,
                ..sandbox(id)
            };
            match (&call[..], &id[..]) {
                ("ListPodSandbox", _) => match LISTS.fetch_add(1, Ordering::Relaxed) {
                    0 => list_of(vec![made("old", 1), made("bare", now)]),
                    // One that has ended meanwhile is told of, too.
                    1 => list_of(vec![
                        made("bare", now),
                        PodSandbox {
                            state: PodSandboxState::NotReady.into(),
                            ..made("short", now)
                        },
                    ]),
                    _ => Answer::Refusal(Code::Internal),
                },
                ("PodSandboxStatus", "bare") => status(r#"{"runtimeSpec": {"linux": {"namespaces": []}}}"#),
                ("PodSandboxStatus", "short") => status(
                    r#"{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/1"}]}}}"#,
                ),
                _ => panic!("not to be asked for: {call} {id}"),
            }
        });
        let told = Mutex::new(Vec::new());
        let error = follow_starts(socket, |starting| told.lock().unwrap().push(starting)).await;
        assert!(error.to_string().contains("ListPodSandbox failed"), "{error}");
        let told = told.into_inner().unwrap();
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].workload.name, "shop/pod-short");
        assert_eq!(told[0].workload.state, STARTING);
        assert_eq!(told[0].mark, Mark::Mount("/run/netns/1".to_owned()));
    }

    #[tokio::test]
    async fn remembers_no_more_pods_than_it_asks_for_at_once() {
        const TURNS: usize = 5;

        static LISTS: AtomicUsize = AtomicUsize::new(0);

        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        let socket = engine(move |path, request| match &asked_for(path, request).0[..] {
            // Each time all are new, and there are more than are asked for.
            "ListPodSandbox" => {
                let turn = LISTS.fetch_add(1, Ordering::Relaxed);
                let made = (0..2 * MAX_RECENT).map(|number| PodSandbox {
                    created_at: now,
                    ..sandbox(&format!("{turn}-{number}"))
                });
                list_of(made.collect())
            }
            _ => status(
                r#"{"runtimeSpec": {"linux": {"namespaces": [{"type": "network", "path": "/run/netns/1"}]}}}"#,
            ),
        });
        let tasks = OwnedTasks::default();
        let bounds = (MAX_LIST_LEN, MAX_DETAILS_LEN);
        let engine = Engine::connect(socket, bounds, &tasks).await.unwrap();
        let (mut told, count) = (BTreeSet::new(), AtomicUsize::new(0));
        for _ in 0..TURNS {
            let tell = |_| {
                count.fetch_add(1, Ordering::Relaxed);
            };
            tell_starts(&engine, &mut told, &tell).await.unwrap();
            assert_eq!(told.len(), MAX_RECENT);
        }
        assert_eq!(count.into_inner(), TURNS * MAX_RECENT);
    }

    #[test]
    fn cuts_long_lists() {
        let long = [[0x0a, 2, 0x18, 1]; 5].concat();
        let list = Listed::<PodSandbox, 3>::decode(&long[..]).unwrap();
        assert!(list.items.len() == 3 && list.cut);
        let list = Listed::<PodSandbox, 5>::decode(&long[..]).unwrap();
        assert!(list.items.len() == 5 && !list.cut);
        assert_eq!(list.items[4].state(), PodSandboxState::NotReady);
    }

    #[test]
    fn makes_pods_of_ready_sandboxes() {
        let sandbox = sandbox("0123");
        let container = |image: &str, user_specified_image: &str| Container {
            image: Some(ImageSpec {
                image: image.to_owned(),
                user_specified_image: user_specified_image.to_owned(),
            }),
            ..Container::default()
        };
        let containers = [
            container("sha256:1", "nginx:1"),
            container("envoy", ""),
            container("nginx:1", ""),
            container("", ""),
            Container::default(),
        ];
        let pod = workload(sandbox.clone(), &containers).unwrap();
        assert_eq!((&pod.name[..], &pod.id[..]), ("shop/pod-0123", "0123"));
        assert_eq!(pod.images, ["envoy", "nginx:1"]);

        let not_ready = PodSandbox {
            state: 1,
            ..sandbox.clone()
        };
        let without_name = PodSandbox {
            metadata: Some(PodSandboxMetadata::default()),
            ..sandbox
        };
        assert_eq!(workload(not_ready, &[]), None);
        assert_eq!(workload(without_name, &[]), None);
    }
}
