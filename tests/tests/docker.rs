//! A real Docker container, while another one talks to it.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Recorder, refusal},
    docker::{Docker, IMAGE},
    server::{Server, percent_encoded},
};
use serde_json::json;

#[tokio::test]
async fn captures_a_container_that_another_talks_to() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    docker.run(&[
        "run",
        "--detach",
        "--name",
        "quiet",
        IMAGE,
        "/bin/busybox",
        "sleep",
        "600",
    ])?;
    let pid = docker.run(&["inspect", "--format", "{{.State.Pid}}", "quiet"])?;
    let address = docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "quiet"])?;
    let inode = std::fs::metadata(format!("/proc/{pid}/ns/net"))?.ino();

    let server = Server::start(&[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
    docker.run(&[
        "run",
        "--rm",
        IMAGE,
        "/bin/busybox",
        "ping",
        "-c",
        "3",
        "-s",
        "777",
        &address,
    ])?;
    // ICMP of IPv4: three requests in, three replies out.
    let echoes = |recording: &packetflix_tests::recording::Recording, kind: u8, outbound: bool| {
        recording
            .packets_of("eth0")
            .iter()
            .filter(|packet| packet.data.len() == 14 + 20 + 8 + 777)
            .filter(|packet| packet.data[12..14] == [8, 0] && packet.data[23] == 1 && packet.data[34] == kind)
            .filter(|packet| packet.is_outbound() == outbound)
            .count()
    };
    recorder
        .read_until(|recording| echoes(recording, 0, true) == 3)
        .await?;

    docker.run(&["kill", "quiet"])?;
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    assert_eq!(echoes(&recording, 8, false), 3);
    assert_eq!(echoes(&recording, 0, true), 3);
    ensure!(code == 1000 && reason.contains("has ended"), "{code} {reason}");
    let names: Vec<&str> = recording
        .interfaces
        .iter()
        .map(|interface| &interface.name[..])
        .collect();
    assert_eq!(names[..2], ["lo", "eth0"]);
    // Docker gives the interface its first name again before it takes it back, which the stream tells if it is seen.
    ensure!(
        names[2..].iter().all(|name| name.starts_with("veth")),
        "{names:?}"
    );
    let octets = address.replace('.', ", ");
    assert!(
        recording.interfaces[1].options.contains(&octets),
        "{}",
        recording.interfaces[1].options
    );
    Ok(())
}

#[tokio::test]
async fn container_is_known_by_all_its_names_with_all_its_interfaces() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let id = docker.run(&[
        "run",
        "--detach",
        "--name",
        "web",
        "--label",
        "app=web/front",
        "--label",
        "com.docker.compose.project=shop",
        IMAGE,
        "/bin/busybox",
        "sleep",
        "600",
    ])?;
    docker.run(&["network", "create", "second"])?;
    let socket = docker.socket().display().to_string();
    let server = Server::start(&["--engine-socket", &socket])?;
    let image = format!("image:{}*", IMAGE.split(':').next().unwrap_or_default());
    for (words, is_meant) in [
        (&["web"][..], true),
        (&[&id[..4]], true),
        (&["w?*"], true),
        (&["label:app=web*"], true),
        (&["compose:shop"], true),
        (&[&image], true),
        (&["!host"], true),
        (&["label:app=db"], false),
        (&["compose:shop", "!web"], false),
        (&["host"], false),
    ] {
        let query: Vec<String> = words
            .iter()
            .map(|word| format!("target={}", percent_encoded(word)))
            .collect();
        let (status, list) = server.get(&format!("/targets?{}", query.join("&")))?;
        let targets = list["targets"].as_array().context("no targets")?;
        let is_listed = targets
            .iter()
            .any(|target| target["name"] == "web" && target["type"] == "docker");
        ensure!(status == 200 && is_listed == is_meant, "{words:?}: {list}");
    }
    for (query, words) in [
        ("target=", "target= is empty"),
        ("target=pid:x", "target=pid:x has no number"),
        ("target=pid:4194305", "cannot be looked at"),
        ("taget=web", "there is no parameter taget; there is target"),
    ] {
        let (status, sentence) = server.get(&format!("/targets?{query}"))?;
        ensure!(
            status == 400 && sentence.to_string().contains(words),
            "{query}: {status} {sentence}"
        );
    }
    for name in [&id[..], &id[..12], &id[..4]] {
        let target = json!({ "name": name });
        let recording = Recorder::start(&server.url_of(&target, ""))
            .await?
            .finish()
            .await?;
        ensure!(
            recording.comment.contains("container-name: \"web\""),
            "{}",
            recording.comment
        );
    }
    let target = json!({ "name": "web", "type": "pod" });
    let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
    ensure!(
        status == 404 && sentence.contains("of type docker"),
        "{status} {sentence}"
    );

    let target = json!({ "name": "web" });
    let mut recorder = Recorder::start(&server.url_of(&target, "")).await?;
    docker.run(&["network", "connect", "second", "web"])?;
    recorder
        .read_until(|recording| {
            recording
                .interfaces
                .iter()
                .any(|interface| interface.name == "eth1")
        })
        .await?;
    docker.run(&["kill", "web"])?;
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    assert_eq!((code, &reason[..]), (1000, "the target web has ended"));
    let image = format!("web (docker, {IMAGE}");
    ensure!(
        recording
            .interfaces
            .iter()
            .all(|interface| interface.options.contains(&image)),
        "{:?}",
        recording.interfaces
    );
    let (status, sentence) = refusal(&server, &server.url_of(&target, ""), &[]).await?;
    ensure!(
        status == 404 && sentence.contains("web is stopped (exited)"),
        "{status} {sentence}"
    );
    Ok(())
}
