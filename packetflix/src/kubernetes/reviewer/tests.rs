//! What is asked of an API server that is slow where it is told to be, and what becomes of its answers.

use std::{convert::Infallible, net::Ipv4Addr, path::PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::access::{Access, AccessError, Credentials as Shown, Identity};

/// A token begins with the name of its user.
const SEPARATOR: char = '#';

/// What users may do, and how long it takes to say so.
#[derive(Default)]
struct Script {
    /// Such as `alice create shop/web-1`, `alice create shop/` and `alice create n1`.
    allowed: HashSet<String>,
    /// How long each answer on what a user may do takes.
    slow: HashMap<String, Duration>,
    /// Questions on what users may do in namespaces that begin so are never answered.
    silent_on: Option<&'static str>,
    /// What was asked, in that order: tokens, and what users would do.
    asked: Vec<String>,
}

/// A scripted API server, and who asks it.
struct Cluster {
    script: Arc<Mutex<Script>>,
    pods: Arc<Mutex<Pods>>,
    reviews: Arc<Reviews>,
    access: Access,
    reviewer: Arc<Reviewer>,
    own: PathBuf,
    _server: AbortOnDropHandle<()>,
}

impl Cluster {
    async fn start(name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (script, pods) = (Arc::<Mutex<Script>>::default(), Arc::<Mutex<Pods>>::default());
        let of_server = Arc::clone(&script);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let script = Arc::clone(&of_server);
                let service = service_fn(move |request| answer(Arc::clone(&script), request));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let own = std::env::temp_dir().join(format!("packetflix-reviewer-{name}-{}", std::process::id()));
        std::fs::write(&own, "own").unwrap();
        let credentials = Credentials {
            ca: PathBuf::new(),
            token: own.clone(),
        };
        let reviews = Arc::new(Reviews::default());
        let known = Arc::clone(&pods);
        let find_pods: FindPods = Box::new(move || {
            let pods = known.lock().unwrap().clone();
            Box::pin(async move { Some(pods) })
        });
        let address = format!("http://127.0.0.1:{port}").parse().unwrap();
        let reviewer = Reviewer::new(
            address,
            credentials,
            "n1".to_owned(),
            find_pods,
            Arc::clone(&reviews),
        );
        Self {
            script,
            pods,
            access: Access::open(None, false, Some(Arc::clone(&reviews))).unwrap(),
            reviews,
            reviewer: Arc::new(reviewer),
            own,
            _server: AbortOnDropHandle::new(server),
        }
    }

    fn allow(&self, rights: &[&str]) {
        let rights = rights.iter().map(ToString::to_string);
        self.script().allowed.extend(rights);
    }

    fn put(&self, namespace: &str, pod: &str) {
        let mut pods = self.pods.lock().unwrap();
        pods.entry(namespace.to_owned())
            .or_default()
            .insert(pod.to_owned());
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap()
    }

    /// Who it is that shows a token, as a request has it judged.
    async fn show(&self, token: &str) -> Result<Identity, AccessError> {
        let came = Instant::now();
        self.reviewer.review(token.as_bytes(), came).await;
        self.access.identify(Shown {
            came,
            token: Some(token.as_bytes()),
            certificate: None,
            user: None,
        })
    }

    fn times_asked(&self, what: &str) -> usize {
        self.script().asked.iter().filter(|asked| *asked == what).count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may not be there.
        let _ = std::fs::remove_file(&self.own);
    }
}

async fn answer(
    script: Arc<Mutex<Script>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let asked: Value = serde_json::from_slice(&body).unwrap();
    let spec = &asked["spec"];
    let of = |name: &str| spec["resourceAttributes"][name].as_str().unwrap_or_default();
    let (what, delay) = match (spec["token"].as_str(), spec["user"].as_str()) {
        (None, Some(user)) => {
            let object = match of("resource") {
                "nodes" => of("name").to_owned(),
                _ => format!("{}/{}", of("namespace"), of("name")),
            };
            let script = script.lock().unwrap();
            let is_silent = script.silent_on.is_some_and(|begin| object.starts_with(begin));
            let slow = script.slow.get(user).copied();
            let delay = if is_silent { Some(Duration::MAX) } else { slow };
            (format!("{user} {} {object}", of("verb")), delay)
        }
        (token, _) => (token.unwrap_or_default().to_owned(), None),
    };
    script.lock().unwrap().asked.push(what.clone());
    sleep(delay.unwrap_or_default()).await;
    let status = match what.split_once(SEPARATOR) {
        Some(("nobody", _)) => json!({ "authenticated": false }),
        Some((user, _)) => json!({ "authenticated": true, "user": { "username": user } }),
        None => json!({ "allowed": script.lock().unwrap().allowed.contains(&what) }),
    };
    Ok(Response::new(Full::from(json!({ "status": status }).to_string())))
}

#[tokio::test]
async fn a_right_that_is_taken_away_is_noticed_whatever_others_are_asked_for() {
    let cluster = Cluster::start("others").await;
    cluster.allow(&["alice create n1"]);
    let alice = cluster.show("alice#1").await.unwrap();
    assert!(alice.rights.may_capture_something());
    let others: Vec<String> = (0..40)
        .map(|other| format!("other-{}#{other}", other / 4))
        .collect();
    let mut held = Vec::new();
    for other in &others {
        held.push(cluster.show(other).await.unwrap());
    }
    cluster.script().allowed.clear();
    let slow = (0..10).map(|other| (format!("other-{other}"), Duration::from_millis(200)));
    cluster.script().slow.extend(slow);
    cluster.reviews.age(Duration::from_secs(4));
    let reviewer = Arc::clone(&cluster.reviewer);
    let _follower = AbortOnDropHandle::new(tokio::spawn(async move { reviewer.follow().await }));
    let begun = Instant::now();
    while cluster
        .access
        .renew(&alice)
        .unwrap()
        .rights
        .may_capture_something()
    {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it has not been noticed"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn who_comes_and_goes_keeps_no_right() {
    let cluster = Cluster::start("goes").await;
    cluster.allow(&["alice create n1"]);
    let alice = cluster.show("alice#1").await.unwrap();
    cluster.script().allowed.clear();
    let slow = Duration::from_millis(100);
    cluster.script().slow.insert("alice".to_owned(), slow);
    cluster.reviews.age(Duration::from_secs(6));
    // There is always one who has just come.
    let mut shown: FuturesUnordered<_> = (1..=10)
        .map(|wait| timeout(Duration::from_millis(9 * wait), cluster.show("alice#1")))
        .collect();
    let reviewer = Arc::clone(&cluster.reviewer);
    let _follower = AbortOnDropHandle::new(tokio::spawn(async move { reviewer.follow().await }));
    let begun = Instant::now();
    while cluster
        .access
        .renew(&alice)
        .unwrap()
        .rights
        .may_capture_something()
    {
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it has not been noticed"
        );
        let _ = shown.next().await;
        shown.push(timeout(Duration::from_millis(90), cluster.show("alice#1")));
    }
}

#[tokio::test]
async fn one_user_takes_not_all_turns_and_one_token_takes_one() {
    let cluster = Cluster::start("turns").await;
    let slow = Duration::from_millis(600);
    cluster.script().slow.insert("many".to_owned(), slow);
    let shown: Vec<_> = (0..40).map(|shown| format!("many#{}", shown / 20)).collect();
    let of_many = shown.iter().map(|token| cluster.show(token));
    let more: Vec<_> = (0..40).map(|more| format!("many#more-{more}")).collect();
    let of_many = futures_util::future::join_all(of_many.chain(more.iter().map(|token| cluster.show(token))));
    let of_alice = async {
        sleep(Duration::from_millis(200)).await;
        let begun = Instant::now();
        cluster.show("alice#1").await.unwrap();
        begun.elapsed()
    };
    tokio::pin!(of_many);
    let waited = tokio::select! {
        waited = of_alice => waited,
        _ = &mut of_many => panic!("alice is the last"),
    };
    assert!(waited < Duration::from_secs(1), "alice waited for {waited:?}");
    for token in ["many#0", "many#1"] {
        assert_eq!(cluster.times_asked(token), 1, "{token}");
    }
}

#[tokio::test]
async fn growth_elsewhere_takes_no_right_away() {
    let cluster = Cluster::start("growth").await;
    cluster.put("zoo", "web");
    cluster.allow(&["alice create zoo/web", "alice get zoo/web", "bob create zoo/"]);
    let before = [
        cluster.show("alice#1").await.unwrap(),
        cluster.show("bob#1").await.unwrap(),
    ];
    for more in 0..MAX_QUESTIONS {
        cluster.put(&format!("a-{more}"), "web");
    }
    for (identity, token) in before.iter().zip(["alice#1", "bob#1"]) {
        cluster.reviews.age(Duration::from_secs(6));
        cluster.script().asked.clear();
        let after = cluster.show(token).await.unwrap();
        assert!(
            after.rights.include(&identity.rights),
            "{token}: {:?}",
            after.rights
        );
        // The token, and what is bounded by no names.
        assert!(cluster.script().asked.len() <= 1 + 5 + MAX_QUESTIONS);
    }
    // What is taken away is gone.
    cluster.pods.lock().unwrap().clear();
    cluster.script().allowed.clear();
    for token in ["alice#1", "bob#1"] {
        cluster.reviews.age(Duration::from_secs(6));
        assert_eq!(
            *cluster.show(token).await.unwrap().rights,
            Rights::NONE,
            "{token}"
        );
    }
}

#[tokio::test]
async fn questions_that_take_too_long_keep_no_right_that_is_taken_away() {
    let cluster = Cluster::start("slow").await;
    cluster.put("shop", "web-1");
    cluster.put("shop", "web-2");
    cluster.allow(&["alice create shop/web-1", "alice create shop/web-2"]);
    cluster.show("alice#1").await.unwrap();
    cluster.put("a-1", "web");
    cluster.script().silent_on = Some("a-");
    cluster.script().allowed.remove("alice create shop/web-2");
    cluster.reviews.age(Duration::from_secs(6));
    let rights = cluster.show("alice#1").await.unwrap().rights;
    assert!(rights.may_ask_for("shop/web-1") && !rights.may_ask_for("shop/web-2"));
}

#[tokio::test]
async fn only_an_api_server_that_was_asked_is_said_to_answer() {
    let cluster = Cluster::start("answers").await;
    cluster.reviewer.tell(Some("it is away".to_owned()));
    let problem = || cluster.reviewer.problem.lock().unwrap().clone();
    for wrong in ["x".repeat(64 << 10), String::new()] {
        assert_eq!(cluster.show(&wrong).await, Err(AccessError::WrongToken));
        assert!(problem().is_some());
    }
    assert!(cluster.script().asked.is_empty());
    assert_eq!(cluster.show("nobody#1").await, Err(AccessError::WrongToken));
    assert!(problem().is_none());
}
