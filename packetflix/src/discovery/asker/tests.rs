//! What the process may say, and what comes of what it never would.

use std::{path::Path, time::Duration};

use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
};
use proptest::{collection::vec, prelude::*};
use tokio::{net::UnixListener, time::timeout};

use super::{
    super::{
        budget::Budget,
        engine_socket::{Api, Origin},
        starts::{Mark, Starting},
        workload::{PodName, WorkloadKind},
    },
    *,
};
use crate::lookout::{Kind, Owner, Place};

fn workload(name: &str) -> Workload {
    Workload {
        kind: WorkloadKind::Docker,
        id: "c0ffee".to_owned(),
        key: "c0ffee".to_owned(),
        name: name.to_owned(),
        pid: 7,
        images: Vec::new(),
        labels: [].into(),
        labels_left_out: 0,
        state: "running".to_owned(),
        pod: None,
    }
}

fn any_workload() -> impl Strategy<Value = Workload> {
    let texts = (".{1,9}", "[a-z0-9]{0,9}", ".{1,30}", "[a-z]{0,9}");
    let lists = (
        vec(".{0,9}", 0..4),
        prop::collection::btree_map(".{0,9}", ".{0,9}", 0..4),
    );
    let pod = prop::option::of((".{0,9}", ".{0,9}"));
    let kinds = [WorkloadKind::Docker, WorkloadKind::Podman, WorkloadKind::Pod];
    let numbers = (1..u32::MAX, 0..1000_usize, prop::sample::select(kinds.to_vec()));
    (texts, lists, pod, numbers).prop_map(|((id, key, name, state), (images, labels), pod, numbers)| {
        let (pid, labels_left_out, kind) = numbers;
        let pod = pod.map(|(namespace, name)| PodName { namespace, name });
        Workload {
            kind,
            id,
            key,
            name,
            pid,
            images,
            labels,
            labels_left_out,
            state,
            pod,
        }
    })
}

proptest! {
    #[test]
    fn what_is_told_survives_the_way(workload in any_workload(), cut in any::<prop::sample::Index>()) {
        let told = Told::Workload(workload);
        let words = told.encode().unwrap();
        let len = u32::from_ne_bytes(words[..LEN_LEN].try_into().unwrap());
        let words = &words[LEN_LEN..];
        prop_assert_eq!(len as usize, words.len());
        prop_assert_eq!(Told::decode(words), Some(told));
        prop_assert_eq!(Told::decode(&words[..cut.index(words.len())]), None);
        prop_assert_eq!(Told::decode(&[words, &[0]].concat()), None);
    }

    #[test]
    fn what_is_said_of_starts_survives_the_way(workload in any_workload(), mac in any::<[u8; 6]>(), path in ".{0,60}") {
        for mark in [Mark::Mac(mac), Mark::Mount(path)] {
            let told = Told::Starting(Starting { workload: workload.clone(), mark });
            let words = told.encode().unwrap();
            prop_assert_eq!(Told::decode(&words[LEN_LEN..]), Some(told));
            prop_assert_eq!(Told::decode(&words[LEN_LEN..words.len() - 1]), None);
        }
    }

    #[test]
    fn orders_survive_the_way(known in prop::collection::hash_map("[a-z0-9]{1,64}", any::<u32>(), 0..20)) {
        let bounds = Budget::new().allow(Owner::User(1)).bounds();
        for api in [None, Some(Api::Docker), Some(Api::Cri)] {
            let order = Order::Workloads { api, bounds, known: known.clone() };
            prop_assert_eq!(Order::decode(&order.encode()[LEN_LEN..]), Some(order));
            let order = Order::Starting(api);
            prop_assert_eq!(Order::decode(&order.encode()[LEN_LEN..]), Some(order));
        }
    }
}

#[test]
fn what_makes_no_sense_is_none() {
    let usable = workload("web");
    let unusable = [
        Workload {
            pid: 0,
            ..usable.clone()
        },
        Workload {
            name: String::new(),
            ..usable.clone()
        },
        Workload {
            id: String::new(),
            ..usable.clone()
        },
        Workload {
            labels: (0..257)
                .map(|number| (number.to_string(), String::new()))
                .collect(),
            ..usable.clone()
        },
        Workload {
            labels: [("long".to_owned(), "x".repeat(33 << 10))].into(),
            ..usable.clone()
        },
    ];
    for workload in unusable {
        let words = Told::Workload(workload).encode().unwrap();
        assert_eq!(Told::decode(&words[LEN_LEN..]), None);
    }
    let too_long = [
        Workload {
            images: vec![String::new(); 5000],
            ..usable.clone()
        },
        Workload {
            name: "x".repeat(MAX_TOLD_LEN),
            ..usable
        },
    ];
    for workload in too_long {
        assert_eq!(Told::Workload(workload).encode(), None);
    }
    let told = Told::AtRest(Some("exited; and more".to_owned()))
        .encode()
        .unwrap();
    assert_eq!(Told::decode(&told[LEN_LEN..]), Some(Told::AtRest(None)));
    let long = Failure {
        is_of_no_engine: false,
        is_unimplemented: false,
        sentence: "ü".repeat(5000),
    };
    let told = Told::Done(Err(long)).encode().unwrap();
    assert!(
        matches!(Told::decode(&told[LEN_LEN..]), Some(Told::Done(Err(failure))) if failure.sentence.len() == 4096)
    );
}

/// A socket at which somebody listens.
struct Engine {
    socket: EngineSocket,
    listener: UnixListener,
}

impl Engine {
    fn new(name: &str, api: Option<Api>) -> Self {
        let path = std::env::temp_dir().join(format!("packetflix-asker-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let handle = open(&path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        std::fs::remove_file(&path).unwrap();
        let place = Place {
            owner: Owner::User(1),
            kind: Kind::Files(1),
        };
        let socket = EngineSocket::new(Path::new("/run/engine"), api, handle, place, Origin::Elsewhere);
        Self {
            socket: socket.unwrap(),
            listener,
        }
    }

    /// Answers one question; gives that.
    async fn answer(&self, answer: &[u8]) -> String {
        let (mut stream, _) = self.listener.accept().await.unwrap();
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") {
            question.push(stream.read_u8().await.unwrap());
        }
        // It may be longer than is taken.
        let _ = stream.write_all(answer).await;
        String::from_utf8(question).unwrap()
    }
}

#[tokio::test]
async fn engines_of_dockers_api_hear_our_questions_alone() {
    let engine = Engine::new("asked", Some(Api::Docker));
    let long = [b"HTTP/1.1 200 OK\r\n\r\n", &[b'x'; 200_000][..]].concat();
    let asking = async {
        let mut relay = Relay::new(1);
        let question = Question::Details("web".to_owned());
        let mut answer = relay.ask(&engine.socket, &question, 1000).await.unwrap();
        answer
            .write_all(b"POST /containers/create HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut heard = Vec::new();
        answer.read_to_end(&mut heard).await.unwrap();
        heard
    };
    let (heard, question) = tokio::join!(asking, engine.answer(&long));
    assert_eq!(
        question,
        "GET /containers/web/json HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n"
    );
    assert!(heard.len() == 1000 + (64 << 10) && long.starts_with(&heard));
}

#[tokio::test]
async fn answers_that_nobody_wants_any_more_make_room_for_others() {
    let engine = Engine::new("silent-ones", Some(Api::Docker));
    let mut relay = Relay::new(1);
    let mut unanswered = Vec::new();
    for _ in 0..5 {
        let asking = relay.ask(&engine.socket, &Question::List, 1000);
        let mut answer = timeout(Duration::from_secs(10), asking).await.unwrap().unwrap();
        answer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let (mut stream, _) = engine.listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        unanswered.push(stream);
    }
}

#[tokio::test]
async fn connections_to_what_may_be_dockers_api_are_not_given() {
    for (words, is_given) in [
        (&b"HTTP/1.1 200 OK\r\n\r\n"[..], false),
        (b"HT", false),
        (b"\0\0\x06\x04", true),
        (b"", true),
    ] {
        let engine = Engine::new("unknown", None);
        let checked = engine.socket.connect().await.unwrap();
        drop(engine.listener.accept().await.unwrap());
        let (line, mut theirs) = UnixStream::pair().unwrap();
        let mut asker = Asker { line, child: None };
        let saying = async {
            theirs
                .write_all(&said(&[Told::Ask(Question::List)]))
                .await
                .unwrap();
            let mut answer = given(&theirs).await.unwrap();
            answer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            let mut heard = Vec::new();
            answer.read_to_end(&mut heard).await.unwrap();
            assert_eq!(heard, words);
            theirs.write_all(&said(&[Told::Connect])).await.unwrap();
            let connection = given(&theirs).await;
            let _ = theirs.write_all(&said(&[Told::Done(Ok(()))])).await;
            connection.is_some()
        };
        let listening = async {
            let mut allowance = Budget::new().allow(Owner::User(1));
            let mut found = Vec::new();
            let listened = asker
                .listen(&engine.socket, checked, &mut allowance, &mut found)
                .await;
            drop(asker);
            listened
        };
        let (was_given, listened, _) = tokio::join!(saying, listening, engine.answer(words));
        assert_eq!((was_given, listened.is_ok()), (is_given, is_given), "{words:?}");
    }
    // Without a question that was answered, nobody knows.
    let engine = Engine::new("unknown", None);
    let (listened, _) = listen_to_engine(&engine, said(&[Told::Connect])).await;
    assert!(matches!(listened, Err(AskerError::Forged)), "{listened:?}");
}

/// What the server gives next.
async fn given(line: &UnixStream) -> Option<UnixStream> {
    let mut errno = [0; 4];
    let receive = || sys::receive_with(line, &mut errno);
    let (_, connection) = line.async_io(Interest::READABLE, receive).await.unwrap();
    connection.map(|connection| UnixStream::from_std(connection.into()).unwrap())
}

/// What comes of it when the process says these words, and how much is then believed of what it found.
async fn listen_to(name: &str, words: Vec<u8>) -> (Result<(), AskerError>, Vec<Workload>) {
    listen_to_engine(&Engine::new(name, Some(Api::Docker)), words).await
}

async fn listen_to_engine(engine: &Engine, words: Vec<u8>) -> (Result<(), AskerError>, Vec<Workload>) {
    let (line, mut theirs) = UnixStream::pair().unwrap();
    let mut asker = Asker { line, child: None };
    let saying = tokio::spawn(async move {
        // It is not listened to to the end.
        let _ = theirs.write_all(&words).await;
        let mut given = Vec::new();
        let _ = theirs.read_to_end(&mut given).await;
        given.len() / size_of::<i32>()
    });
    let checked = engine.socket.connect().await.unwrap();
    let mut allowance = Budget::new().allow(Owner::User(1));
    allowance.workloads = 10;
    let mut found = Vec::new();
    let listening = asker.listen(&engine.socket, checked, &mut allowance, &mut found);
    let listened = timeout(Duration::from_secs(10), listening).await;
    drop(asker);
    let given = saying.await.unwrap();
    assert!(given <= 10 + LISTS, "{given} connections");
    (listened.expect("it listens to no end"), found)
}

fn said(told: &[Told]) -> Vec<u8> {
    told.iter().flat_map(|told| told.encode().unwrap()).collect()
}

#[tokio::test]
async fn what_a_process_that_was_taken_over_says_is_taken_within_its_bounds() {
    let container = || Told::Workload(workload("web"));
    let question = Told::Ask(Question::List);
    let done = Told::Done(Ok(()));
    let (listened, found) = listen_to("well", said(&[question.clone(), container(), done])).await;
    assert!(listened.is_ok() && found == [workload("web")], "{listened:?}");

    let forged: [(&str, Vec<u8>); 8] = [
        ("more containers than are taken", said(&vec![container(); 11])),
        ("more questions than there are", said(&vec![question; 12])),
        (
            "that it wants a connection to Docker's API",
            said(&[Told::Connect]),
        ),
        ("that it is ready, twice", said(&[Told::Ready])),
        ("the answer to another order", said(&[Told::AtRest(None)])),
        ("no length that there is", u32::MAX.to_ne_bytes().to_vec()),
        ("nothing at all", 0_u32.to_ne_bytes().to_vec()),
        ("no word of ours", [&1_u32.to_ne_bytes()[..], &[99]].concat()),
    ];
    for (what, words) in forged {
        let (listened, found) = listen_to("forged", words).await;
        assert!(
            matches!(listened, Err(AskerError::Forged)),
            "{what}: {listened:?}"
        );
        assert!(found.len() <= 10, "{what}: {}", found.len());
    }
}

#[tokio::test]
async fn process_that_ends_too_soon_is_told_and_what_it_found_is_kept() {
    let (line, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    assert!(matches!(
        Asker { line, child: None }.hear().await,
        Err(AskerError::Ended(_))
    ));
    let engine = Engine::new("soon", Some(Api::Docker));
    let checked = engine.socket.connect().await.unwrap();
    let (line, mut theirs) = UnixStream::pair().unwrap();
    theirs
        .write_all(&said(&[Told::Workload(workload("web"))]))
        .await
        .unwrap();
    drop(theirs);
    let mut allowance = Budget::new().allow(Owner::User(1));
    let (mut asker, mut found) = (Asker { line, child: None }, Vec::new());
    let listened = asker
        .listen(&engine.socket, checked, &mut allowance, &mut found)
        .await;
    assert!(matches!(listened, Err(AskerError::Ended(_))), "{listened:?}");
    assert_eq!(found, [workload("web")]);
}

#[tokio::test]
async fn what_all_engines_tell_is_bounded_together() {
    let long = Workload {
        images: vec!["x".repeat(100_000)],
        ..workload("web")
    };
    let told: Vec<Told> = (0..9)
        .map(|_| Told::Workload(long.clone()))
        .chain([Told::Done(Ok(()))])
        .collect();
    let mut allowance = Budget::new().allow(Owner::User(1));
    // Others have told that much.
    while allowance.take(100_000) {}
    let engine = Engine::new("much", Some(Api::Docker));
    let checked = engine.socket.connect().await.unwrap();
    let (line, mut theirs) = UnixStream::pair().unwrap();
    let saying = tokio::spawn(async move { theirs.write_all(&said(&told)).await });
    let (mut asker, mut found) = (Asker { line, child: None }, Vec::new());
    let listened = asker
        .listen(&engine.socket, checked, &mut allowance, &mut found)
        .await;
    assert!(matches!(listened, Err(AskerError::TooMuch)), "{listened:?}");
    assert_eq!(found, []);
    saying.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_process_ends_with_the_server_whatever_the_engine_does() {
    let engine = Engine::new("silent", Some(Api::Docker));
    let (line, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    line.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let answering = tokio::spawn(child::answer(theirs));
    let mut asker = Asker {
        line: UnixStream::from_std(line).unwrap(),
        child: None,
    };
    let bounds = Budget::new().allow(Owner::User(1)).bounds();
    assert_eq!(asker.hear().await.unwrap().0, Told::Ready);
    let order = Order::Workloads {
        api: Some(Api::Docker),
        bounds,
        known: KnownPids::new(),
    };
    asker.line.write_all(&order.encode()).await.unwrap();
    assert_eq!(asker.hear().await.unwrap().0, Told::Ask(Question::List));
    asker.give(engine.socket.connect().await.unwrap()).await.unwrap();
    // It waits for what never comes.
    assert!(timeout(Duration::from_millis(100), asker.hear()).await.is_err());
    assert!(!answering.is_finished());
    drop(asker);
    let ended = timeout(Duration::from_secs(10), answering).await;
    assert!(ended.unwrap().unwrap().is_err());
}
