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
            ("PodSandboxStatus", "gone") | ("ContainerStatus", "ended") => Answer::Refusal(Code::NotFound),
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
