//! What people call targets, what they write wrong, and how long what they meant lives.

use std::{
    fs::File,
    io::Write as _,
    net::UdpSocket,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Recorder, refusal},
    namespace::Namespace,
    process::Sleeper,
    root,
    server::{Server, wait_until},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// As README has it, with the traffic started first.
#[tokio::test]
async fn mounted_namespace_has_its_name_while_processes_are_in_it() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut sleeper = Sleeper::inside(&namespace)?;
    let server = Server::start(&[])?;
    let path = namespace.path().display().to_string();
    for name in [
        &path[..],
        namespace.name(),
        &path.replacen("/run/", "/var/run/", 1),
    ] {
        for kind in ["", "bindmount"] {
            let target = json!({ "name": name, "type": kind });
            let recorder = Recorder::start(&server.url_of(&target, "")).await?;
            let recording = recorder.finish().await?;
            let line = format!("container-name: \"{path}\"");
            ensure!(recording.comment.contains(&line), "{name}: {}", recording.comment);
        }
        let target = json!({ "name": name, "type": "docker" });
        let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
        ensure!(status == 404, "{status} {sentence}");
    }
    // It was meant, and not the process that was in it.
    let mut recorder = Recorder::start(&server.url_of(&json!({ "name": path }), "")).await?;
    sleeper.end()?;
    sleep(Duration::from_millis(2500)).await;
    namespace.inside(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"still here", "127.0.0.1:9"))??;
    recorder
        .read_until(|recording| recording.has(b"still here"))
        .await?;
    recorder.finish().await?;
    Ok(())
}

#[tokio::test]
async fn host_is_called_host() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let target = json!({ "name": "host" });
    let recorder = Recorder::start(&server.url_of(&target, "&nif=lo&filter=less+1")).await?;
    let recording = recorder.finish().await?;
    assert_eq!(recording.interfaces[0].name, "lo");
    Ok(())
}

#[tokio::test]
async fn numbers_and_parts_of_names_are_understood() -> anyhow::Result<()> {
    let (first, second) = (
        Sleeper::unshared_as("crux-first", &["setpriv"])?,
        Sleeper::unshared_as("crux-second", &["setpriv"])?,
    );
    let server = Server::start(&[])?;
    let (pid, inode) = (first.pid(), first.netns()?);
    for name in [
        format!("pid:{pid}"),
        format!("netns:{inode}"),
        format!("crux-first({pid})"),
        "crux-f".to_owned(),
    ] {
        let recorder = Recorder::start(&server.url_of(&json!({ "name": name }), "")).await?;
        let (_, captures) = server.get("/captures")?;
        ensure!(
            captures["captures"][0]["target"]["netns"] == inode,
            "{name}: {captures}"
        );
        let recording = recorder.finish().await?;
        let line = format!("container-name: \"crux-first({pid})\"");
        ensure!(recording.comment.contains(&line), "{name}: {}", recording.comment);
    }
    for (name, status, words) in [
        (
            "crux",
            409,
            vec!["crux may mean several targets", "crux-first(", "crux-second("],
        ),
        ("pid:4194304", 404, vec!["there is no process 4194304"]),
        ("netns:7", 404, vec!["7"]),
        ("cr", 404, vec!["there is no target cr"]),
    ] {
        let refused = refusal(&server, &server.url_of(&json!({ "name": name }), ""), &[]).await?;
        ensure!(
            refused.0 == status && words.iter().all(|word| refused.1.contains(word)),
            "{name}: {refused:?}"
        );
    }
    // Programs send what they were told: a part of that is another target.
    for described in [
        json!({ "name": "crux-f", "netns": inode }),
        json!({ "name": "crux-f", "prefix": "engine" }),
        json!({ "name": "crux-f", "type": "docker" }),
        json!({ "pid": pid }),
    ] {
        let (status, sentence) = refusal(&server, &server.url_of(&described, ""), &[]).await?;
        ensure!([400, 404].contains(&status), "{described}: {status} {sentence}");
    }
    drop(second);
    wait_until(Duration::from_secs(10), || {
        let (_, targets) = server.get("/targets")?;
        Ok(!targets.to_string().contains("crux-second"))
    })?;
    let recorder = Recorder::start(&server.url_of(&json!({ "name": "crux" }), "")).await?;
    recorder.finish().await?;
    Ok(())
}

#[tokio::test]
async fn what_was_meant_is_told_where_it_is_not() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let path = namespace.path().display().to_string();
    let wrong = format!("{path}x");
    let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": wrong }), ""), &[]).await?;
    ensure!(
        // It is alone, unless others on the machine have names that are as near.
        status == 404
            && ["is", "are"]
                .iter()
                .any(|word| sentence.contains(&format!("the nearest {word} {path}"))),
        "{status} {sentence}"
    );
    let target = json!({ "name": path, "type": "pod" });
    let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
    ensure!(
        status == 404 && sentence.contains("of type bindmount"),
        "{status} {sentence}"
    );
    let url = server.url(&format!("netns={}&fliter=icmp", namespace.inode()?));
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    assert_eq!(
        (status, &sentence[..]),
        (400, "there is no parameter fliter: filter is the nearest")
    );
    let (status, answer) = server.get("/filter?expression=tcp")?;
    ensure!(
        status == 400
            && answer["error"]
                .as_str()
                .is_some_and(|sentence| sentence.contains("expr")),
        "{answer}"
    );
    for (expression, words) in [
        (
            "tcp portt 80",
            "syntax error at portt, of which port is the nearest word",
        ),
        ("tcp.port == 80", "display filters"),
    ] {
        let expression = packetflix_tests::server::percent_encoded(expression);
        let url = server.url(&format!("netns={}&filter={expression}", namespace.inode()?));
        let (status, sentence) = refusal(&server, &url, &[]).await?;
        ensure!(status == 400 && sentence.contains(words), "{status} {sentence}");
    }
    let (status, answer) = server.get("/filter?expr=inbound")?;
    ensure!(
        status == 200
            && answer["classic"][0]
                .as_str()
                .is_some_and(|line| line.contains("[type]")),
        "{answer}"
    );
    Ok(())
}

/// As clients of several makes send it.
#[tokio::test]
async fn addresses_are_taken_as_real_clients_send_them() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let query = format!(
        "/capture?container={{\"netns\":{}}}&filter=len>1",
        namespace.inode()?
    );
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
    let (head, _) = server.ask(&format!("GET {query} HTTP/1.1\r\n{upgrade}"))?;
    assert_eq!(head.status()?, 101, "{head:?}");
    let (head, body) = server.ask("GET /capture?container={\"netns\":1}\"<> HTTP/1.1")?;
    let body = String::from_utf8_lossy(&body).into_owned();
    ensure!(head.status()? == 426 && body.contains("WebSocket"), "{body}");
    Ok(())
}

#[tokio::test]
async fn target_that_was_meant_by_its_process_ends_with_it() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut sleeper = Sleeper::inside(&namespace)?;
    let server = Server::start(&[])?;
    let name = format!("sleep({})", sleeper.pid());
    let by_name = Recorder::start(&server.url_of(&json!({ "name": name }), "")).await?;
    let by_process = Recorder::start(&server.url_of(&sleeper.identity()?, "")).await?;
    let mut by_number = Recorder::start(&server.url(&format!("netns={}", namespace.inode()?))).await?;
    sleeper.end()?;
    for recorder in [by_name, by_process] {
        let ended = timeout(Duration::from_secs(3), recorder.read_to_end()).await??;
        let (recording, code, reason) = ended;
        recording.check_complete()?;
        ensure!(
            code == 1000 && reason.contains("has ended") && reason.contains("target"),
            "{code} {reason}"
        );
    }
    // The namespace is there all the same, and who meant that goes on.
    namespace.inside(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"still here", "127.0.0.1:9"))??;
    by_number
        .read_until(|recording| recording.has(b"still here"))
        .await?;
    by_number.finish().await?;
    Ok(())
}

#[tokio::test]
async fn namespace_that_is_but_open_somewhere_has_not_ended() -> anyhow::Result<()> {
    for by_socket in [true, false] {
        let namespace = Namespace::new()?;
        let server = Server::start(&[])?;
        let inode = namespace.inode()?;
        let url = server.url(&format!("netns={inode}"));
        let mut recorder = Recorder::start(&url).await?;
        let socket = by_socket
            .then(|| namespace.inside(|| UdpSocket::bind("127.0.0.1:7000")))
            .transpose()?
            .transpose()?;
        let file = (!by_socket).then(|| File::open(namespace.path())).transpose()?;
        namespace.delete()?;
        sleep(Duration::from_millis(3500)).await;
        if let Some(socket) = &socket {
            socket.send_to(b"still here", "127.0.0.1:7000")?;
            recorder
                .read_until(|recording| recording.has(b"still here"))
                .await?;
        }
        // Nor is it missing for others.
        Recorder::start(&url).await?.finish().await?;
        drop((socket, file));
        let (recording, code, reason) = timeout(Duration::from_secs(20), recorder.read_to_end()).await??;
        recording.check_complete()?;
        ensure!(
            code == 1000 && reason == format!("the network namespace {inode} has ended"),
            "{by_socket}: {code} {reason}"
        );
        wait_until(Duration::from_secs(5), || {
            let (_, captures) = server.get("/captures")?;
            Ok(captures["captures"].as_array().context("no list")?.is_empty())
        })?;
    }
    Ok(())
}

/// What PyYAML reads in a document.
fn as_pyyaml_reads_it(yaml: &str) -> anyhow::Result<Value> {
    const SCRIPT: &str = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin.buffer.read())))";

    let mut python = Command::new(root().join("target/tools/python/bin/python"))
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("`cargo xtask test` installs PyYAML")?;
    python
        .stdin
        .take()
        .context("no input")?
        .write_all(yaml.as_bytes())?;
    let output = python.wait_with_output()?;
    ensure!(
        output.status.success(),
        "{yaml:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test]
async fn names_of_any_characters_are_read_in_the_section_header() -> anyhow::Result<()> {
    // PyYAML takes none of these as they are, or takes them for the end of a line.
    ensure!(
        as_pyyaml_reads_it("name: \"\u{7f}\"").is_err() && as_pyyaml_reads_it("name: \"\u{fffe}\"").is_err()
    );
    let controls = (0..0x20).chain(0x7f..0xa0);
    let others = [
        0x22, 0x27, 0x5c, 0xad, 0x200e, 0x2028, 0x2029, 0x202e, 0x2066, 0xe000, 0xfeff, 0xfffd, 0xfffe,
        0xffff, 0x1_f600, 0x1_fffe, 0x10_ffff,
    ];
    let characters: Vec<char> = controls.chain(others).filter_map(char::from_u32).collect();
    let sleeper = Sleeper::unshared()?;
    let server = Server::start(&[])?;
    for some in characters.chunks(8) {
        let some: String = some.iter().flat_map(|character| [*character, 'a']).collect();
        let mut target = sleeper.identity()?;
        target["name"] = json!(format!("n{some}"));
        target["type"] = json!(format!("t{some}"));
        target["node-name"] = json!(format!("h{some}"));
        target["cluster"] = json!({ "uid": format!("u{some}") });
        let recorder = Recorder::start(&server.url_of(&target, "")).await?;
        let comment = recorder.finish().await?.comment;
        let read = as_pyyaml_reads_it(&comment)?;
        assert_eq!(
            read,
            json!({
                "container-name": target["name"], "container-type": target["type"], "node-name": target["node-name"],
                "cluster": target["cluster"],
            }),
            "{comment:?}"
        );
    }
    Ok(())
}
