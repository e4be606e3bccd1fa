//! What nodes have becomes one list, in which each element has the name of its node.

use std::{
    collections::BTreeSet,
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::Recorder,
    engine::as_user,
    namespace::Namespace,
    server::{Server, program, wait_until},
};
use serde_json::{Value, json};

use crate::{Cluster, TOKEN, closed_port, gateway, silent_port};

/// The names of the nodes that have a target of this name.
fn having(list: &Value, member: &str, name: &str) -> BTreeSet<String> {
    let elements = list[member].as_array().cloned().unwrap_or_default();
    let such = elements.iter().filter(|element| element["name"] == name);
    such.filter_map(|element| Some(element["node-name"].as_str()?.to_owned()))
        .collect()
}

fn both() -> BTreeSet<String> {
    ["one", "two"].map(str::to_owned).into()
}

/// What is told of a node in a list.
fn told_of(nodes: &Value, name: &str) -> Value {
    let nodes = nodes.as_array().cloned().unwrap_or_default();
    let told = nodes.into_iter().find(|node| node["name"] == name);
    told.unwrap_or_default()
}

#[tokio::test]
async fn targets_of_all_nodes_are_one_list() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let namespace = Namespace::new()?;
    let path = namespace.path().display().to_string();
    let mut list = Value::Null;
    wait_until(Duration::from_secs(10), || {
        list = gateway.get("/targets")?.1;
        Ok(having(&list, "targets", &path) == both())
    })
    .with_context(|| format!("{list}"))?;
    assert_eq!(list["gaps"], Value::Null, "{list}");
    let one = told_of(&list["nodes"], "one");
    assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
    // On one machine there is one clock.
    let ahead = one["clock-ahead"].as_f64().context("no clock")?;
    let uncertainty = one["clock-uncertainty"].as_f64().context("no clock")?;
    assert!(ahead.abs() <= uncertainty, "{one}");
    let (status, selected) = gateway.get(&format!("/targets?target={path}"))?;
    assert_eq!(status, 200);
    assert_eq!(
        selected["targets"].as_array().map(Vec::len),
        Some(2),
        "{selected}"
    );
    let (_, ghostwires) = gateway.get("/mobyshark")?;
    assert_eq!(having(&ghostwires, "containers", &path), both());
    let (status, wrong) = gateway.get("/targets?target=")?;
    assert_eq!(
        (status, &wrong["code"]),
        (400, &"parameter_invalid".into()),
        "{wrong}"
    );
    Ok(())
}

#[tokio::test]
async fn captures_and_metrics_of_all_nodes_have_their_node() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let account = cluster.folder.path().join("account");
    let gateway = cluster.gateway(&[&format!("--audit-log={}", account.display())])?;
    let namespace = Namespace::new()?;
    let two = cluster.node("two");
    let url = two.url(&format!("netns={}", namespace.inode()?));
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", &bearer[..])];
    let capture = packetflix_tests::client::Capture::open(&url, &headers).await?;
    let recorder = Recorder::of(capture).await?;
    let (_, list) = gateway.get("/captures")?;
    let captures = list["captures"].as_array().context("no list")?;
    assert_eq!(captures.len(), 1, "{list}");
    assert_eq!(captures[0]["node-name"], "two");
    let (_, text) = gateway.ask("GET /metrics HTTP/1.1")?;
    let text = String::from_utf8(text)?;
    for line in [
        "packetflix_captures{node=\"one\"} 0",
        "packetflix_captures{node=\"two\"} 1",
        "packetflix_node_up{node=\"one\"} 1",
        "packetflix_gateway_captures 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let families = text
        .lines()
        .filter(|line| *line == "# TYPE packetflix_captures gauge");
    assert_eq!(families.count(), 1);
    assert!(text.ends_with("# EOF\n"));
    // An operator ends it from here.
    let id = &captures[0]["id"];
    let asked = [
        (format!("three/{id}"), 404),
        ("two/x".to_owned(), 404),
        ("two/999".to_owned(), 404),
        (format!("two/{id}"), 204),
    ];
    for (path, status) in &asked {
        let (answer, _) = gateway.ask(&format!("DELETE /captures/{path} HTTP/1.1"))?;
        assert_eq!(answer.status()?, *status, "{path}");
    }
    let (_, code, reason) = recorder.read_to_end().await?;
    assert_eq!((code, &reason[..]), (1000, "ended by the operator"));
    // Each has a line in the account, however it was answered.
    let account = std::fs::read_to_string(account)?;
    let lines: Vec<Value> = account
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let ends = lines
        .iter()
        .filter(|line| line["message"] == "end of a capture asked for");
    let ends: Vec<&Value> = ends.collect();
    assert_eq!(ends.len(), asked.len(), "{account}");
    for (line, (path, status)) in ends.into_iter().zip(&asked) {
        assert_eq!(
            (&line["id"], &line["status"]),
            (&json!(path), &json!(status)),
            "{line}"
        );
        assert_eq!(line["client"], "anyone");
        assert!(
            line["address"]
                .as_str()
                .is_some_and(|address| address.starts_with("127.0.0.1:")),
            "{line}"
        );
    }
    Ok(())
}

#[test]
fn node_that_does_not_answer_is_named_and_costs_its_own_targets_only() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let (silent, gone) = (silent_port()?, closed_port()?);
    let gateway = cluster.gateway(&[
        "--node-timeout=5",
        &format!("--node=silent=http://127.0.0.1:{silent}"),
        &format!("--node=silent-2=http://127.0.0.1:{silent}"),
        &format!("--node=silent-3=http://127.0.0.1:{silent}"),
        &format!("--node=gone=http://127.0.0.1:{gone}"),
    ])?;
    let namespace = Namespace::new()?;
    let path = namespace.path().display().to_string();
    let begun = Instant::now();
    let (status, list) = gateway.get("/targets")?;
    // Those that do not answer are waited for at the same time, and no longer where they did not answer before: when the gateway began,
    // it has looked at all.
    assert!(begun.elapsed() < packetflix_tests::pace::time(Duration::from_secs(12)));
    assert_eq!(status, 200);
    assert_eq!(having(&list, "targets", &path), both());
    let gaps = list["gaps"].to_string();
    assert!(
        gaps.contains("node silent: it does not answer within 1s"),
        "{gaps}"
    );
    assert!(
        gaps.contains("node gone: no server answers at http://127.0.0.1"),
        "{gaps}"
    );
    assert_ne!(told_of(&list["nodes"], "gone")["problem"], Value::Null, "{list}");
    let (_, ghostwires) = gateway.get("/mobyshark")?;
    assert_eq!(having(&ghostwires, "containers", &path), both());
    let silent = told_of(&ghostwires["metadata"]["nodes"], "silent");
    assert_eq!(silent["problem"], "it does not answer within 1s", "{ghostwires}");
    let (_, text) = gateway.ask("GET /metrics HTTP/1.1")?;
    let text = String::from_utf8(text)?;
    assert!(text.contains("packetflix_node_up{node=\"silent\"} 0\n"), "{text}");
    assert_eq!(gateway.get("/readyz")?.0, 200);
    Ok(())
}

#[test]
fn nodes_that_cannot_be_asked_are_told_with_the_reason() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    std::fs::remove_file(cluster.folder.path().join("token"))?;
    let (status, list) = gateway.get("/captures")?;
    assert_eq!(
        (status, list["nodes"].as_array().map(Vec::len)),
        (200, Some(2)),
        "{list}"
    );
    let (_, text) = gateway.ask("GET /metrics HTTP/1.1")?;
    let text = String::from_utf8(text)?;
    for node in ["one", "two"] {
        let told = told_of(&list["nodes"], node);
        let problem = told["problem"].as_str().context("no problem")?;
        let why = "it was not asked: there is nothing to show to nodes: --node-token-file: ";
        ensure!(problem.starts_with(why), "{problem}");
        let up = format!("packetflix_node_up{{node=\"{node}\"}} 0\n");
        ensure!(text.contains(&up), "{text}");
    }
    Ok(())
}

/// Whoever sits at the client sees on which node what is, and of which nodes nothing comes.
#[tokio::test]
async fn client_shows_the_nodes_of_what_it_lists_and_captures() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gone = format!("--node=gone=http://127.0.0.1:{}", closed_port()?);
    let gateway = cluster.gateway(&[&gone])?;
    let namespace = Namespace::new()?;
    let path = namespace.path().display().to_string();
    let client = |arguments: &[&str]| -> anyhow::Result<Output> {
        let mut client = Command::new(program("packetflix")?);
        client.args(arguments).env(
            "PACKETFLIX_SERVER",
            format!("http://127.0.0.1:{}", gateway.port()),
        );
        Ok(client.output()?)
    };
    let mut told = String::new();
    wait_until(Duration::from_secs(10), || {
        told = String::from_utf8(client(&["list", &path])?.stdout)?;
        Ok(told.matches(&path).count() == 2)
    })
    .with_context(|| told.clone())?;
    let columns = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let lines: Vec<Vec<String>> = told.lines().map(columns).collect();
    assert_eq!(lines[0][..4], ["TARGET", "TYPE", "NODE", "NETNS"], "{told}");
    assert_eq!((&lines[1][2][..], &lines[2][2][..]), ("one", "two"), "{told}");
    assert!(
        told.contains("not looked at: node gone: no server answers"),
        "{told}"
    );

    let file = cluster.folder.path().join("file.pcapng").display().to_string();
    let captured = client(&["capture", &path, "--follow", "-a", "duration:1", "-w", &file])?;
    let said = String::from_utf8(captured.stderr)?;
    assert!(said.contains("packetflix: node gone: not captured: "), "{said}");
    assert!(!said.contains("its clock"), "{said}");

    let two = cluster.node("two");
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("authorization", &bearer[..])];
    let url = two.url(&format!("netns={}", namespace.inode()?));
    let recorder = Recorder::of(packetflix_tests::client::Capture::open(&url, &headers).await?).await?;
    let told = String::from_utf8(client(&["captures"])?.stdout)?;
    assert!(
        told.contains("not looked at: node gone: no server answers"),
        "{told}"
    );
    let id = columns(told.lines().nth(1).context("no capture")?).swap_remove(0);
    assert!(id.starts_with("two/"), "{told}");
    let stopped = client(&["captures", "stop", &id])?;
    assert!(stopped.status.success(), "{stopped:?}");
    let (_, code, reason) = recorder.read_to_end().await?;
    assert_eq!((code, &reason[..]), (1000, "ended by the operator"));
    Ok(())
}

#[test]
fn gateway_to_nobody_is_not_ready_and_says_why() -> anyhow::Result<()> {
    let gone = closed_port()?;
    let gateway = gateway(&[&format!("--node=gone=http://127.0.0.1:{gone}")])?;
    assert_eq!(gateway.get("/healthz")?.0, 200);
    let (status, refused) = gateway.get("/readyz")?;
    assert_eq!((status, &refused["code"]), (503, &"not_ready".into()));
    let (status, refused) = gateway.get("/targets")?;
    assert_eq!(
        (status, &refused["code"]),
        (502, &"node_failed".into()),
        "{refused}"
    );
    let sentence = refused["error"].to_string();
    assert!(
        sentence.contains("no node answers: gone: no server answers"),
        "{sentence}"
    );
    // Where GhostWire's clients look.
    let (status, list) = gateway.get("/mobyshark")?;
    assert_eq!((status, &list["containers"]), (502, &refused["error"]), "{list}");
    Ok(())
}

#[test]
fn node_that_does_not_know_the_gateway_is_named_and_its_word_is_not_the_callers() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let (_, server) = &cluster.nodes[0];
    let gateway = gateway(&[&format!("--node=one=http://127.0.0.1:{}", server.port())])?;
    let (status, refused) = gateway.get("/targets")?;
    assert_eq!(
        (status, &refused["code"]),
        (502, &"node_failed".into()),
        "{refused}"
    );
    // The remedy is a flag of the gateway's.
    let told = refused["error"].as_str().context("no sentence")?;
    assert!(
        told.ends_with(". --node-token-file names the file of a token that it knows")
            && !told.contains(" --token-file"),
        "{refused}"
    );
    Ok(())
}

#[test]
fn tokens_of_the_gateway_decide_who_may_ask() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let tokens = cluster.folder.path().join("clients");
    let (theirs, _others) = (Namespace::new()?, Namespace::new()?);
    let theirs = theirs.path().display().to_string();
    let text = format!(
        "all all-0123456789abcdefgh discover capture\nsome some-0123456789abcdef discover capture:{theirs}\n"
    );
    std::fs::write(&tokens, text)?;
    Command::new("chmod").arg("600").arg(&tokens).status()?;
    let gateway = cluster.gateway(&["--token-file", &tokens.display().to_string()])?;
    let status = |gateway: &Server, path: &str, token: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nAuthorization: Bearer {token}");
        gateway.ask(&request)?.0.status()
    };
    assert_eq!(gateway.get("/targets")?.0, 401);
    // What the nodes know is nothing here.
    assert_eq!(status(&gateway, "/targets", TOKEN)?, 401);
    assert_eq!(status(&gateway, "/targets", "all-0123456789abcdefgh")?, 200);
    for path in ["/metrics", "/captures"] {
        assert_eq!(status(&gateway, path, "some-0123456789abcdef")?, 403, "{path}");
    }
    // Of what there is, only what is called so.
    let request = "GET /targets HTTP/1.1\r\nAuthorization: Bearer some-0123456789abcdef";
    let mut list = Value::Null;
    wait_until(Duration::from_secs(10), || {
        let (head, body) = gateway.ask(request)?;
        list = serde_json::from_slice(&body)?;
        assert_eq!(head.status()?, 200, "{list}");
        let targets = list["targets"].as_array().context("no list")?;
        assert!(targets.iter().all(|target| target["name"] == *theirs), "{list}");
        Ok(targets.len() == 1)
    })
    .with_context(|| format!("{list}"))?;
    Ok(())
}

#[test]
fn names_that_are_near_are_told_to_those_who_may_list_them() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let (near, others) = (Namespace::new()?, Namespace::new()?);
    let (near, others) = (
        near.path().display().to_string(),
        others.path().display().to_string(),
    );
    let tokens = cluster.folder.put_secret(
        "clients",
        &format!(
            "all all-0123456789abcdefgh discover capture\nblind blind-0123456789abcdef capture\n\
             some some-0123456789abcdef discover capture:{others}\n"
        ),
    )?;
    let gateway = cluster.gateway(&["--token-file", &tokens.display().to_string()])?;
    let (_, name) = near.rsplit_once('/').context("no path")?;
    // A slip of the hand: two letters are exchanged.
    let slip = name.replacen("test", "tets", 1);
    let pattern = format!("{}*", &name[..name.len() - 1]);
    let told = |port: u16, token: &str, words: &[&str]| {
        let output = Command::new(program("packetflix")?)
            .args([
                "capture",
                "-w",
                "-",
                "--server",
                &format!("http://127.0.0.1:{port}"),
            ])
            .args(words)
            .env("PACKETFLIX_TOKEN", token)
            .output()?;
        ensure!(output.status.code() == Some(1), "{output:?}");
        anyhow::Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let node = cluster.node("one").port();
    // They have to be there before they can be near.
    wait_until(Duration::from_secs(15), || {
        Ok(told(gateway.port(), "all-0123456789abcdefgh", &[&slip])?.contains(&near))
    })?;
    let others_too = format!("{slip}x");
    for (port, token, words, expected) in [
        (
            node,
            TOKEN,
            &[&slip[..]][..],
            "others are known, of which the nearest ",
        ),
        (
            node,
            TOKEN,
            &[&slip, &others_too],
            "others are known, of which the nearest ",
        ),
        (
            node,
            TOKEN,
            &[&pattern, "--no-follow"],
            "targets that there are, of which the nearest ",
        ),
        (
            gateway.port(),
            "all-0123456789abcdefgh",
            &[&slip],
            "none of 2 nodes has ",
        ),
        (
            gateway.port(),
            "all-0123456789abcdefgh",
            &[&slip],
            "; the nearest of what they have ",
        ),
        (
            gateway.port(),
            "all-0123456789abcdefgh",
            &[&slip, &others_too],
            "; the nearest of what they have ",
        ),
    ] {
        let told = told(port, token, words)?;
        ensure!(
            told.contains(expected) && told.contains(&near),
            "{words:?}: {told}"
        );
    }
    let told_blind = told(gateway.port(), "blind-0123456789abcdef", &[&slip]);
    ensure!(
        told_blind.as_ref().is_ok_and(|told| !told.contains(&near)),
        "{told_blind:?}"
    );
    let told_some = told(gateway.port(), "some-0123456789abcdef", &[&slip])?;
    ensure!(!told_some.contains(&near), "{told_some}");
    Ok(())
}

#[test]
fn gateway_takes_no_right() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    // The token is a file of root's, which this user may not read: it is given another.
    let port = cluster.node("one").port();
    let folder = packetflix_tests::folder::Folder::new()?;
    let copy = folder.path().join("packetflix");
    std::fs::copy(program("packetflix")?, &copy)?;
    let token = folder.path().join("token");
    std::fs::write(&token, TOKEN)?;
    for (file, mode) in [(folder.path(), "755"), (&copy, "755"), (&token, "600")] {
        Command::new("chmod").arg(mode).arg(file).status()?;
    }
    let user = String::from_utf8(as_user("setpriv").args(["id", "-u"]).output()?.stdout)?;
    Command::new("chown").arg(user.trim()).arg(&token).status()?;
    let mut command = as_user("setpriv");
    command.arg(&copy).arg("gateway");
    let gateway = Server::start_by(
        &mut command,
        &[
            &format!("--node=one=http://127.0.0.1:{port}"),
            &format!("--node-token-file={}", token.display()),
        ],
    )?;
    assert_eq!(gateway.get("/readyz")?.0, 200);
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid()))?;
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    assert!(
        gateway.get("/targets")?.1["targets"]
            .as_array()
            .is_some_and(|list| !list.is_empty())
    );
    Ok(())
}
