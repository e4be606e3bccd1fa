//! At a gateway, rights of Kubernetes hold for all nodes, and for single pods.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Capture, Recorder, Refused},
    engine::FakeEngine,
    kubernetes::{ApiServer, OWN_TOKEN, Rule},
    namespace::Namespace,
    process::{Sleeper, speak_in},
    server::{Server, percent_encoded, wait_until},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{
    Cluster, TOKEN, closed_port,
    scripted::{Script, play},
};

/// A gateway that asks the API server of tokens.
fn asking(cluster: &Cluster, api: &ApiServer, more: &[&str]) -> anyhow::Result<Server> {
    let own = cluster.folder.put_secret("own", OWN_TOKEN)?;
    let flags = [
        "--kubernetes-auth",
        &format!("--kubernetes-api=http://127.0.0.1:{}", api.port()),
        &format!("--kubernetes-token-file={}", own.display()),
    ];
    cluster.gateway(&[&flags[..], more].concat())
}

/// What is at a path for whoever has a token.
fn ask(server: &Server, path: &str, token: &str) -> anyhow::Result<(u16, Value)> {
    let (head, body) = server.ask(&format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}"))?;
    Ok((head.status()?, serde_json::from_slice(&body).unwrap_or_default()))
}

/// Why a capture is refused, if it is.
async fn refused(gateway: &Server, query: &str, token: &str) -> anyhow::Result<Option<Refused>> {
    let bearer = format!("Bearer {token}");
    match Capture::open(&gateway.url(query), &[("authorization", &bearer)]).await {
        Ok(mut capture) => {
            capture.close().await?;
            Ok(None)
        }
        Err(error) => Ok(Some(error.downcast::<Refused>()?)),
    }
}

#[tokio::test]
async fn who_has_rights_to_all_nodes_is_let_in() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["n1"])?;
    let api = ApiServer::start(None)?;
    let gateway = asking(&cluster, &api, &[])?;
    let may = |user, verb, resource, namespace| Rule {
        user,
        verb,
        resource,
        namespace,
        name: "",
    };
    api.set_rules(&[
        may("alice", "get", "nodes", ""),
        may("alice", "create", "nodes", ""),
        // The nodes would tell the gateway of all that there is.
        may("frank", "create", "nodes", ""),
        // Of one node alone.
        Rule {
            name: "n1",
            ..may("dave", "get", "nodes", "")
        },
    ]);
    for (user, expected) in [("alice", 200), ("dave", 403), ("erin", 403)] {
        let token = format!("token-of-{user}");
        api.let_in(&token, user);
        for path in ["/targets", "/mobyshark", "/metrics"] {
            let (head, body) =
                gateway.ask(&format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}"))?;
            let body = String::from_utf8_lossy(&body);
            ensure!(head.status()? == expected, "{user}, {path}: {} {body}", head.line);
        }
    }
    api.let_in("token-of-frank", "frank");
    let namespace = Namespace::new()?;
    let name = namespace.path().display().to_string();
    let described = percent_encoded(&json!({ "name": name, "node-name": "n1" }).to_string());
    for query in [format!("container={described}"), "target=**".to_owned()] {
        for (user, expected) in [("alice", None), ("frank", Some(403)), ("erin", Some(403))] {
            let refused = refused(&gateway, &query, &format!("token-of-{user}")).await?;
            let refused = refused.map(|refused| refused.status);
            ensure!(refused == expected, "{user}, {query}: {refused:?}");
        }
    }
    let (head, _) = gateway.ask("GET /targets HTTP/1.1\r\nAuthorization: Bearer token-of-nobody")?;
    ensure!(head.status()? == 401);
    Ok(())
}

#[test]
fn nobody_is_refused_while_no_node_says_which_pods_there_are() -> anyhow::Result<()> {
    let cluster = Cluster::start(&[])?;
    let api = ApiServer::start(None)?;
    let node = format!("--node=one=http://127.0.0.1:{}", closed_port()?);
    let gateway = asking(&cluster, &api, &[&node])?;
    let may = |user, resource, namespace| Rule {
        user,
        verb: "get",
        resource,
        namespace,
        name: "",
    };
    api.set_rules(&[may("alice", "pods", "shop")]);
    for user in ["alice", "bob"] {
        api.let_in(&format!("token-of-{user}"), user);
    }
    let (status, answer) = ask(&gateway, "/targets", "token-of-alice")?;
    ensure!(status == 503 && answer["code"] == "not_reviewed", "{answer}");
    gateway.wait_for_log("which pods there are to ask it about, nobody says: no node answers")?;
    // Who may list everything needs none.
    api.set_rules(&[
        may("bob", "nodes", ""),
        Rule {
            verb: "create",
            ..may("bob", "nodes", "")
        },
    ]);
    let (status, answer) = ask(&gateway, "/targets", "token-of-bob")?;
    ensure!(status == 502 && answer["code"] == "node_failed", "{answer}");
    Ok(())
}

/// A node that knows of no rights but its own refuses as it would the gateway.
#[tokio::test]
async fn refusals_of_a_node_that_heeds_no_rights_are_not_passed_on() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let api = ApiServer::start(None)?;
    let old = Script {
        refusal: Some(
            r#"{"error": "there is no bank/vaul; the nearest is bank/vault", "code": "target_unknown"}"#,
        ),
        ..Script::default()
    };
    let old = format!("--node=old=http://127.0.0.1:{}", play(old)?);
    let gateway = asking(&cluster, &api, &[&old])?;
    let may = |user, verb, resource| Rule {
        user,
        verb,
        resource,
        namespace: "",
        name: "",
    };
    api.set_rules(&[
        may("alice", "get", "nodes"),
        may("alice", "create", "nodes"),
        may("bob", "get", "pods"),
        may("bob", "create", "pods"),
    ]);
    let described = percent_encoded(&json!({ "name": "bank/vaul", "node-name": "old" }).to_string());
    for (user, expected) in [
        ("alice", (404, "the nearest is bank/vault")),
        ("bob", (502, "bounds nothing by the rights of whoever asks")),
    ] {
        let token = format!("token-of-{user}");
        api.let_in(&token, user);
        let refused = refused(&gateway, &format!("container={described}"), &token).await?;
        let Refused { status, body } = refused.context("not refused")?;
        ensure!(
            status == expected.0 && body.contains(expected.1),
            "{user}: {status} {body}"
        );
        ensure!(user == "alice" || !body.contains("vault"), "{user}: {body}");
    }
    Ok(())
}

#[tokio::test]
async fn rights_to_single_pods_and_namespaces_are_rights_to_nothing_else() -> anyhow::Result<()> {
    let folder = packetflix_tests::folder::Folder::new()?;
    let (web, other, db) = (Sleeper::unshared()?, Sleeper::unshared()?, Sleeper::unshared()?);
    let pod = |namespace: &str, name: &str, of: &Sleeper| {
        let labels =
            json!({ "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace }).to_string();
        FakeEngine::start(
            &folder.file(name),
            &[(&format!("k8s_POD_{name}_{namespace}_3b5e-11_0"), of.pid())],
            &[("FAKE_ENGINE_LABELS", &labels)],
        )
    };
    let engines = [
        pod("shop", "web-1", &web)?,
        pod("shop", "web-2", &other)?,
        pod("bank", "db-0", &db)?,
    ];
    let at = |engine: &FakeEngine| format!("--engine-socket={}", engine.socket().display());
    let cluster = Cluster::start_with(&[
        ("one", vec![at(&engines[0]), at(&engines[2])]),
        ("two", vec![at(&engines[1])]),
    ])?;
    let api = ApiServer::start(None)?;
    // One that tells of everything, whatever the rights are.
    let odd = format!("--node=odd=http://127.0.0.1:{}", play(Script::default())?);
    let gateway = asking(&cluster, &api, &[&odd])?;
    let pods = |user, verb, namespace, name| Rule {
        user,
        verb,
        resource: "pods",
        namespace,
        name,
    };
    let rules = [
        pods("alice", "create", "shop", "web-1"),
        pods("alice", "get", "shop", "web-1"),
        pods("bob", "create", "bank", "db-0"),
        pods("carol", "create", "shop", ""),
        pods("carol", "get", "shop", ""),
        pods("dave", "get", "", ""),
        pods("dave", "create", "", ""),
        pods("grace", "get", "shop", ""),
        pods("grace", "create", "", ""),
    ];
    api.set_rules(&rules);
    let all = [("shop/web-1", "one"), ("shop/web-2", "two"), ("bank/db-0", "one")];
    for (user, listed, captured) in [
        ("alice", Some(&all[..1]), &all[..1]),
        // Of which one has to know.
        ("bob", None, &all[2..]),
        ("carol", Some(&all[..2]), &all[..2]),
        ("dave", Some(&all[..]), &all[..]),
        ("erin", None, &[]),
    ] {
        let token = format!("token-of-{user}");
        api.let_in(&token, user);
        for (path, member) in [("/targets", "targets"), ("/mobyshark", "containers")] {
            let (status, list) = ask(&gateway, path, &token)?;
            let Some(expected) = listed else {
                ensure!(status == 403, "{user}, {path}: {list}");
                continue;
            };
            let named = list[member]
                .as_array()
                .with_context(|| format!("{user}, {path}: {list}"))?;
            let named = named
                .iter()
                .map(|target| (target["name"].as_str(), target["node-name"].as_str()));
            let mut named: Vec<_> = named.collect();
            let mut expected: Vec<_> = expected
                .iter()
                .map(|(name, node)| (Some(*name), Some(*node)))
                .collect();
            named.sort_unstable();
            expected.sort_unstable();
            ensure!(named == expected, "{user}, {path}: {list}");
            let nodes = list["nodes"]
                .as_array()
                .or_else(|| list["metadata"]["nodes"].as_array());
            let odd = nodes.and_then(|nodes| nodes.iter().find(|node| node["name"] == "odd"));
            let problem = odd.and_then(|odd| odd["problem"].as_str()).unwrap_or_default();
            ensure!(
                problem.contains(
                    "bounds nothing by the rights of whoever asks: a newer packetflix has to run there"
                ),
                "{problem}"
            );
            ensure!(list["engines"].as_array().is_none_or(Vec::is_empty), "{list}");
        }
        for (name, node) in all {
            let is_theirs = captured.iter().any(|(known, _)| *known == name);
            let described = json!({ "name": name, "node-name": node }).to_string();
            // Elsewhere it is a process of somebody.
            let elsewhere =
                json!({ "name": name, "node-name": if node == "one" { "two" } else { "one" } }).to_string();
            for (query, may) in [
                (format!("container={}", percent_encoded(&described)), is_theirs),
                (
                    format!("target={}&target=none-such-*", percent_encoded(name)),
                    is_theirs && listed.is_some(),
                ),
                (format!("target={}", percent_encoded(name)), is_theirs),
                (format!("container={}", percent_encoded(&elsewhere)), false),
            ] {
                let refused = refused(&gateway, &query, &token).await?;
                ensure!(refused.is_none() == may, "{user}, {query}: {refused:?}");
                let is_forbidden = captured.is_empty() || (listed.is_none() && query.contains("none-such"));
                let expected = if is_forbidden { 403 } else { 404 };
                ensure!(
                    refused.is_none_or(|refused| refused.status == expected),
                    "{user}, {query}"
                );
            }
        }
        for path in ["/metrics", "/captures"] {
            ensure!(ask(&gateway, path, &token)?.0 == 403, "{user}, {path}");
        }
    }
    // What patterns mean is what may be listed, too.
    api.let_in("token-of-grace", "grace");
    for (words, may) in [
        ("target=bank/db-0", true),
        ("target=shop/*", true),
        ("target=bank/*", false),
        ("target=bank/*&follow=0", false),
        ("target=bank/db-*&target=nobody", false),
    ] {
        let refused = refused(&gateway, words, "token-of-grace").await?;
        let is_well = refused
            .as_ref()
            .map_or(may, |refused| !may && refused.status == 404);
        ensure!(is_well, "{words}: {refused:?}");
    }
    // The traffic of what is theirs.
    let (_, list) = ask(&gateway, "/targets", "token-of-alice")?;
    let number = list["targets"][0]["netns"].to_string();
    let mut stream = TcpStream::connect(("127.0.0.1", gateway.port()))?;
    write!(
        stream,
        "GET /rates HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer token-of-alice\r\n\r\n"
    )?;
    let mut told: Vec<Vec<String>> = Vec::new();
    for line in BufReader::new(stream).lines().map_while(Result::ok).take(200) {
        let said = line.strip_prefix("data: {").map(|rest| format!("{{{rest}"));
        let Some(said) = said else { continue };
        let said: Value = serde_json::from_str(&said)?;
        ensure!(said["unseen"] == json!([]), "{said}");
        for pod in [&web, &other, &db] {
            speak_in(pod.pid())?;
        }
        let rates = said["rates"].as_object().context("no rates")?;
        told.extend((!rates.is_empty()).then(|| rates.keys().cloned().collect()));
        if told.len() == 3 {
            break;
        }
    }
    ensure!(
        told.len() == 3 && told.iter().all(|rates| *rates == [&number[..]]),
        "{number} {told:?}"
    );
    // Everything is what is theirs.
    let bearer = "Bearer token-of-alice";
    let capture = Capture::open(&gateway.url("target=**"), &[("authorization", bearer)]).await?;
    let mut recorder = Recorder::of(capture).await?;
    let seen = recorder.read_until(|recording| {
        let _ = [&web, &other, &db].map(|pod| speak_in(pod.pid()));
        !recording.packets.is_empty()
    });
    timeout(Duration::from_secs(30), seen).await??;
    let names: Vec<&str> = recorder
        .recording()?
        .interfaces
        .iter()
        .map(|one| &one.name[..])
        .collect();
    ensure!(
        names
            .iter()
            .all(|name| name.starts_with("one/shop/web-1/") || *name == "odd"),
        "{names:?}"
    );
    // It is taken away.
    api.set_rules(&rules[2..]);
    let (code, reason) = recorder.end().await?;
    ensure!(
        code == 1008 && reason.contains("alice may not"),
        "{code} {reason}"
    );
    // What is new is seen, and the node decides, by rights that it can read.
    let late = Sleeper::unshared()?;
    drop(engines);
    let _engine = FakeEngine::start(
        &folder.file("web-1"),
        &[("k8s_POD_web-9_shop_3b5e-11_0", late.pid())],
        &[(
            "FAKE_ENGINE_LABELS",
            &json!({ "io.kubernetes.pod.name": "web-9", "io.kubernetes.pod.namespace": "shop" }).to_string(),
        )],
    )?;
    api.set_rules(&[
        pods("alice", "create", "shop", "web-9"),
        pods("alice", "get", "shop", "web-9"),
    ]);
    wait_until(Duration::from_secs(40), || {
        let (_, list) = ask(&gateway, "/targets", "token-of-alice")?;
        Ok(list["targets"][0]["name"] == "shop/web-9")
    })?;
    let node = cluster.node("one");
    let rights = r#"{"discover":{"pods":["shop/*"]},"capture":"nothing","administer":true}"#;
    for (rights, status) in [(rights, 200), (r#"{"capture":"everything"}"#, 400), ("", 400)] {
        let request =
            format!("GET /targets HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\npacketflix-rights: {rights}");
        let (head, body) = node.ask(&request)?;
        let body = String::from_utf8_lossy(&body);
        ensure!(head.status()? == status, "{body}");
        ensure!(
            body.contains("packetflix-rights has no rights: ") == (status == 400),
            "{body}"
        );
        ensure!(head.values("packetflix-rights") == ["heeded"], "{body}");
    }
    let request = format!(
        "GET /captures HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\npacketflix-rights: {}",
        rights.replace("true", "false")
    );
    ensure!(node.ask(&request)?.0.status()? == 403);
    Ok(())
}
