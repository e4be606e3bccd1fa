//! Kubernetes says whose tokens are, and what these may capture.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    certificates::Authority,
    engine::FakeEngine,
    folder::Folder,
    kubernetes::{ApiServer, OWN_TOKEN, Rule},
    process::{Sleeper, speak_in},
    recording::Recording,
    server::wait_until,
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{ADMIN, Guarded, named};

/// May do something with pods, of a namespace and of a name if these are not empty.
fn pods(user: &'static str, verb: &'static str, namespace: &'static str, name: &'static str) -> Rule {
    Rule {
        user,
        verb,
        resource: "pods",
        namespace,
        name,
    }
}

/// Likewise with a node.
fn node(user: &'static str, verb: &'static str, name: &'static str) -> Rule {
    Rule {
        resource: "nodes",
        ..pods(user, verb, "", name)
    }
}

/// A server on a node with two pods and a container, and the API server that it asks.
struct Cluster {
    api: ApiServer,
    server: Guarded,
    web: Sleeper,
    db: Sleeper,
    plain: Sleeper,
    _engines: [FakeEngine; 3],
    _folder: Folder,
}

impl Cluster {
    fn start() -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let (web, db, plain) = (Sleeper::unshared()?, Sleeper::unshared()?, Sleeper::unshared()?);
        let pod = |namespace: &str, name: &str, of: &Sleeper| {
            let labels = json!({ "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace })
                .to_string();
            FakeEngine::start(
                &folder.file(name),
                &[(&format!("k8s_POD_{name}_{namespace}_3b5e-11_0"), of.pid())],
                &[("FAKE_ENGINE_LABELS", &labels)],
            )
        };
        let engines = [
            pod("shop", "web-1", &web)?,
            pod("bank", "db-0", &db)?,
            FakeEngine::start(&folder.file("plain"), &[("plain", plain.pid())], &[])?,
        ];
        let api = ApiServer::start(None)?;
        let own = folder.put_secret("own", OWN_TOKEN)?;
        let mut flags = vec![
            "--kubernetes-auth".to_owned(),
            format!("--kubernetes-api=http://127.0.0.1:{}", api.port()),
            format!("--kubernetes-token-file={}", own.display()),
            "--node-name=n1".to_owned(),
        ];
        let sockets = engines.iter().map(|engine| engine.socket().display());
        flags.extend(sockets.map(|socket| format!("--engine-socket={socket}")));
        Ok(Self {
            server: Guarded::start_with("nothing-at-all", &flags)?,
            api,
            web,
            db,
            plain,
            _engines: engines,
            _folder: folder,
        })
    }

    /// The names that a token is shown, of those that are ours.
    fn listed(&self, token: &str) -> anyhow::Result<Vec<String>> {
        let ours = [self.web.netns()?, self.db.netns()?, self.plain.netns()?];
        let targets = self.server.targets(token)?.into_iter();
        Ok(targets
            .filter(|(_, netns)| ours.contains(netns))
            .map(|(name, _)| name)
            .collect())
    }
}

#[tokio::test]
async fn rights_to_pods_and_nodes_are_those_of_kubernetes() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let Cluster { api, server, .. } = &cluster;
    let all = ["bank/db-0", "plain", "shop/web-1"];
    api.set_rules(&[
        pods("alice", "create", "shop", ""),
        pods("alice", "get", "shop", ""),
        pods("bob", "create", "bank", "db-0"),
        pods("carol", "create", "", ""),
        pods("carol", "get", "", ""),
        node("dave", "create", "n1"),
        node("dave", "get", "n1"),
        node("dave", "delete", "n1"),
        node("erin", "create", "n2"),
        node("erin", "get", "n2"),
        pods("frank", "get", "bank", ""),
    ]);
    for (user, listed, captured) in [
        ("alice", Some(&["shop/web-1"][..]), &["shop/web-1"][..]),
        // One pod alone, of which one has to know.
        ("bob", None, &["bank/db-0"]),
        (
            "carol",
            Some(&["bank/db-0", "shop/web-1"]),
            &["bank/db-0", "shop/web-1"],
        ),
        ("dave", Some(&all), &all),
        // Another node's.
        ("erin", None, &[]),
        ("frank", Some(&["bank/db-0"]), &[]),
        ("grace", None, &[]),
    ] {
        api.let_in(&format!("token-of-{user}"), user);
        let token = format!("token-of-{user}");
        match listed {
            Some(expected) => {
                let mut listed = cluster.listed(&token)?;
                listed.sort();
                ensure!(listed == expected, "{user}: {listed:?}");
            }
            None => {
                let request = format!("GET /targets HTTP/1.1\r\nAuthorization: Bearer {token}");
                let (head, body) = server.server.ask(&request)?;
                ensure!(
                    head.status()? == 403,
                    "{user}: {}",
                    String::from_utf8_lossy(&body)
                );
            }
        }
        for name in all {
            let (status, sentence) = server.status(&token, &named(name)).await?;
            let expected = match captured {
                _ if captured.contains(&name) => 101,
                [] => 403,
                _ => 404,
            };
            ensure!(status == expected, "{user}, {name}: {status} {sentence}");
        }
        let (head, _) = server
            .server
            .ask(&format!("GET /metrics HTTP/1.1\r\nAuthorization: Bearer {token}"))?;
        ensure!((head.status()? == 200) == (user == "dave"), "{user}");
    }
    // Those of the file are not asked of.
    ensure!(server.status(ADMIN, &named("plain")).await?.0 == 101);
    ensure!(server.status("token-of-nobody", &named("plain")).await?.0 == 401);
    let asked = api.asked();
    let tokens: Vec<&Value> = asked.iter().map(|one| &one["spec"]["token"]).collect();
    ensure!(tokens.contains(&&json!("token-of-nobody")) && !tokens.contains(&&json!(ADMIN)));
    // Kubernetes judges by all that it has said of a user.
    let review = asked
        .iter()
        .find(|one| one["kind"] == "SubjectAccessReview" && one["spec"]["user"] == "alice");
    let spec = &review.context("nothing was asked of alice")?["spec"];
    ensure!(
        spec["uid"] == "uid-alice" && spec["groups"] == json!(["people", "system:authenticated"]),
        "{spec}"
    );
    ensure!(spec["extra"] == json!({ "example.org/team": ["red"] }), "{spec}");
    Ok(())
}

#[tokio::test]
async fn patterns_mean_no_more_than_may_be_listed() -> anyhow::Result<()> {
    const TOKEN: &str = "token-of-alice";
    let cluster = Cluster::start()?;
    let Cluster { api, server, .. } = &cluster;
    api.set_rules(&[node("alice", "create", "n1"), pods("alice", "get", "shop", "")]);
    api.let_in(TOKEN, "alice");
    let mut recorder = server.record(TOKEN, "target=**&names=0").await?;
    let is_of = |recording: &Recording, name: &str| recording.interfaces.iter().any(|one| one.name == name);
    recorder
        .read_until(|recording| is_of(recording, "shop/web-1/lo"))
        .await?;
    // Nor does anything join that they know nothing of.
    let others = recorder.read_until(|recording| recording.interfaces.len() > 1);
    ensure!(
        timeout(Duration::from_secs(5), others).await.is_err(),
        "it is told of others"
    );
    recorder.finish().await?;
    let (status, sentence) = server.status(TOKEN, "target=db-*").await?;
    ensure!(
        status == 404 && sentence.contains("none of the 1 targets") && !sentence.contains("bank"),
        "{status} {sentence}"
    );
    // What is asked for by its name may be captured, also beside patterns.
    for query in [
        named("plain"),
        "target=plain&target=none-such-*&names=0".to_owned(),
    ] {
        let (status, sentence) = server.status(TOKEN, &query).await?;
        ensure!(status == 101, "{query}: {status} {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn captures_end_with_the_rights_and_tokens_that_kubernetes_takes_away() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let Cluster { api, server, .. } = &cluster;
    let rules = [pods("alice", "create", "shop", ""), node("dave", "create", "n1")];
    api.set_rules(&rules);
    api.let_in("token-of-alice", "alice");
    api.let_in("token-of-dave", "dave");
    let mut of_alice = server.record("token-of-alice", &named("shop/web-1")).await?;
    let mut of_dave = server.record("token-of-dave", &named("plain")).await?;
    api.set_rules(&rules[1..]);
    let (code, reason) = of_alice.end().await?;
    ensure!(
        code == 1008 && reason.contains("alice may not capture"),
        "{code} {reason}"
    );
    api.revoke("token-of-dave");
    let (code, reason) = of_dave.end().await?;
    ensure!(
        code == 1008 && reason.contains("this token is not known"),
        "{code} {reason}"
    );
    Ok(())
}

#[tokio::test]
async fn captures_go_on_without_the_api_server_and_nobody_comes_in() -> anyhow::Result<()> {
    let cluster = Cluster::start()?;
    let Cluster { api, server, web, .. } = &cluster;
    api.set_rules(&[pods("alice", "create", "shop", "")]);
    api.let_in("token-of-alice", "alice");
    let mut recorder = server.record("token-of-alice", &named("shop/web-1")).await?;
    api.set_down(true);
    // What it said last is believed for some seconds.
    let mut sentence = String::new();
    for _ in 0..60 {
        let (status, said) = server.status("token-of-alice", &named("shop/web-1")).await?;
        if status != 101 {
            ensure!(status == 503, "{status} {said}");
            sentence = said;
            break;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    ensure!(
        sentence.contains("whether this token is known cannot be told at the moment"),
        "{sentence}"
    );
    server.server.wait_for_log("does not say whose tokens are")?;
    let before = recorder.recording()?.packets.len();
    speak_in(web.pid())?;
    timeout(
        Duration::from_secs(10),
        recorder.read_until(|recording| recording.packets.len() > before),
    )
    .await??;
    api.set_down(false);
    wait_until(Duration::from_secs(10), || {
        let request = "GET /metrics HTTP/1.1\r\nAuthorization: Bearer token-of-alice";
        Ok(server.server.ask(request)?.0.status()? == 403)
    })?;
    recorder.finish().await?;
    Ok(())
}

#[test]
fn service_that_may_not_ask_for_reviews_says_which_role_it_lacks() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let api = ApiServer::start(None)?;
    api.let_in("token-of-alice", "alice");
    let message = "tokenreviews.authentication.k8s.io is forbidden: User \"system:serviceaccount:packetflix:packetflix\" cannot \
                   create resource \"tokenreviews\" in API group \"authentication.k8s.io\" at the cluster scope";
    let answer = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
        "message": message });
    api.answer_with("/tokenreviews", 403, &answer.to_string());
    let own = folder.put_secret("own", OWN_TOKEN)?;
    let flags = [
        "--kubernetes-auth".to_owned(),
        format!("--kubernetes-api=http://127.0.0.1:{}", api.port()),
        format!("--kubernetes-token-file={}", own.display()),
    ];
    let server = Guarded::start_with("nothing-at-all", &flags)?;
    let request = "GET /targets HTTP/1.1\r\nAuthorization: Bearer token-of-alice";
    let (head, body) = server.server.ask(request)?;
    let body = String::from_utf8_lossy(&body);
    ensure!(head.status()? == 503 && body.contains("not_reviewed"), "{body}");
    server.server.wait_for_log(
        "it refuses the service's own request (403): its account needs the ClusterRole system:auth-delegator",
    )
}

#[tokio::test]
async fn api_server_is_verified_before_it_is_told_tokens() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "cluster")?;
    let other = Authority::new(folder.path(), "other")?;
    let api = ApiServer::start(Some(&authority.issue("api", "/CN=kube-apiserver")?))?;
    api.let_in("token-of-alice", "alice");
    api.set_rules(&[node("alice", "create", ""), node("alice", "get", "")]);
    let own = folder.put_secret("own", OWN_TOKEN)?;
    for (ca, expected) in [(&authority, 200), (&other, 503)] {
        let flags = [
            "--kubernetes-auth".to_owned(),
            format!("--kubernetes-api=https://127.0.0.1:{}", api.port()),
            format!("--kubernetes-ca={}", ca.certificate().display()),
            format!("--kubernetes-token-file={}", own.display()),
        ];
        let asked = api.asked().len();
        let server = Guarded::start_with("nothing-at-all", &flags)?;
        let request = "GET /targets HTTP/1.1\r\nAuthorization: Bearer token-of-alice";
        let (head, body) = server.server.ask(request)?;
        ensure!(head.status()? == expected, "{}", String::from_utf8_lossy(&body));
        ensure!((api.asked().len() > asked) == (expected == 200));
    }
    Ok(())
}
