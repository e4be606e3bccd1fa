//! A real Docker container, while another one talks to it.

use std::{
    collections::BTreeSet,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use packetflix_tests::{
    client::{Recorder, refusal},
    docker::{Docker, IMAGE},
    recording::Recording,
    server::{Server, percent_encoded},
};
use serde_json::json;
use tokio::time::timeout;

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
    let echoes = |recording: &Recording, kind: u8, outbound: bool| {
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

#[tokio::test]
async fn containers_that_start_join_a_stream_with_their_first_packet() -> anyhow::Result<()> {
    const STARTS: u16 = 6;
    const PATIENCE: Duration = Duration::from_secs(10);

    let docker = Docker::start()?;
    // Other engines of this host may have an app of the same name.
    let label = format!("app=web-{}", std::process::id());
    docker.run(&[
        "run",
        "--detach",
        "--name",
        "first",
        "--label",
        &label,
        IMAGE,
        "/bin/busybox",
        "sleep",
        "600",
    ])?;
    let address = docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "first"])?;
    let socket = docker.socket().display().to_string();
    let server = Server::start(&["--engine-socket", &socket])?;
    let mut recorder = Recorder::start(&server.url(&format!("target=label:{label}&names=0"))).await?;
    let has = |recording: &Recording, name: &str| recording.interfaces.iter().any(|one| one.name == name);
    recorder
        .read_until(|recording| has(recording, "first/eth0"))
        .await?;
    let mut caught = 0;
    for number in 0..STARTS {
        let (name, port) = (format!("web-{number}"), 2000 + number);
        let connects = ["/bin/busybox", "nc", "-w", "1", &address, &port.to_string()];
        let starts = ["run", "--name", &name, "--label", &label, IMAGE];
        // Its end is that of a program that is refused, within milliseconds of its start.
        let refused = docker.run(&[&starts[..], &connects].concat()).unwrap_err();
        ensure!(refused.to_string().contains("refused"), "{refused:#}");
        docker.run(&[
            "run",
            "--rm",
            "--label",
            "app=other",
            IMAGE,
            "/bin/busybox",
            "true",
        ])?;
        let came = recorder.read_until(|recording| recording.connections_of(&name, port) == 1);
        caught += u16::from(timeout(PATIENCE, came).await.is_ok());
    }
    // Where others leave an engine no time, it may not tell in those milliseconds.
    ensure!(caught >= STARTS - 1, "{caught} of {STARTS} first packets");
    // One that starts anew is a new namespace under the old name.
    let before = recorder.recording()?.connections_of("first", 2000);
    docker.run(&[
        "run",
        "--detach",
        "--name",
        "again",
        "--label",
        &label,
        IMAGE,
        "/bin/busybox",
        "sleep",
        "600",
    ])?;
    recorder
        .read_until(|recording| has(recording, "again/eth0"))
        .await?;
    docker.run(&["restart", "--time", "0", "again"])?;
    let times = |recording: &Recording| {
        let named = recording.interfaces.iter().filter(|one| one.name == "again/eth0");
        named.count()
    };
    recorder.read_until(|recording| times(recording) >= 2).await?;
    docker
        .run(&["exec", "again", "/bin/busybox", "nc", "-w", "1", &address, "3000"])
        .unwrap_err();
    recorder
        .read_until(|recording| recording.connections_of("again", 3000) == 1)
        .await?;
    ensure!(before >= 1, "what came in stands beside what went out");
    let recording = recorder.finish().await?;
    recording.check_order()?;
    let incoming = recording.packets_of("first/eth0");
    for number in 0..STARTS {
        let syns = incoming.iter().filter(|packet| packet.is_syn(2000 + number));
        assert_eq!(syns.count(), 1);
    }
    let names = recording.interfaces.iter().map(|interface| &interface.name);
    // Of an engine that has no time to answer, the stream tells.
    let is_meant = |name: &&String| {
        ["first/", "web-", "again/", "engine "]
            .iter()
            .any(|start| name.starts_with(start))
    };
    let others: Vec<&String> = names.filter(|name| !is_meant(name)).collect();
    ensure!(others.is_empty(), "{others:?}");
    Ok(())
}

/// Runs a container with a label that sleeps; gives its address.
fn run_labelled(docker: &Docker, name: &str, label: &str, flags: &[&str]) -> anyhow::Result<String> {
    let begins = ["run", "--detach", "--name", name, "--label", label];
    docker.run(&[&begins[..], flags, &[IMAGE, "/bin/busybox", "sleep", "600"]].concat())?;
    docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", name])
}

/// Runs a container with a label that connects to a port, is refused, and so ends within milliseconds of its start.
fn run_refused(docker: &Docker, name: &str, label: &str, address: &str, port: u16) -> anyhow::Result<()> {
    let begins = ["run", "--rm", "--name", name, "--label", label, IMAGE];
    let port = port.to_string();
    let connects = ["/bin/busybox", "nc", "-w", "1", address, &port];
    match docker.run(&[&begins[..], &connects].concat()) {
        Err(refused) if refused.to_string().contains("refused") => Ok(()),
        other => bail!("{other:?}"),
    }
}

/// Starts containers with a label, each of which connects to a port of its own, and reads the first packets of all but one at most:
/// where others leave an engine no time, it may not tell in those milliseconds.
async fn read_starts(
    docker: &Docker,
    recorder: &mut Recorder,
    (label, address): (&str, &str),
    starts: u16,
) -> anyhow::Result<()> {
    let mut caught = 0;
    for number in 0..starts {
        let (name, port) = (format!("web-{number}"), 2000 + number);
        run_refused(docker, &name, label, address, port)?;
        let came = recorder.read_until(|recording| recording.connections_of(&name, port) >= 1);
        caught += u16::from(timeout(Duration::from_secs(10), came).await.is_ok());
    }
    ensure!(caught + 1 >= starts, "{caught} of {starts} first packets");
    Ok(())
}

/// How many interfaces have this name.
fn times(recording: &Recording, name: &str) -> usize {
    let named = recording.interfaces.iter().filter(|one| one.name == name);
    named.count()
}

/// Whether something is told of what is called so, as a description of an interface that has no packets.
fn is_told(recording: &Recording, name: &str, words: &str) -> bool {
    let mut named = recording.interfaces.iter().filter(|one| one.name == name);
    named.any(|one| one.options.contains(words))
}

#[tokio::test]
async fn an_engine_that_is_killed_and_started_again_is_told_and_followed() -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(10);

    let mut docker = Docker::start()?;
    let label = format!("app=web-{}", std::process::id());
    run_labelled(&docker, "first", &label, &["--restart", "always"])?;
    let engine = format!("engine {}", docker.socket().display());
    let server = Server::start(&["--engine-socket", &docker.socket().display().to_string()])?;
    let mut recorder = Recorder::start(&server.url(&format!("target=label:{label}&names=0"))).await?;
    recorder
        .read_until(|recording| times(recording, "first/eth0") >= 1)
        .await?;

    docker.kill()?;
    recorder
        .read_until(|recording| is_told(recording, &engine, "does not answer (nobody listens"))
        .await
        .with_context(|| format!("its end is not told: {}", server.log()))?;
    // Its containers are known still, and captured.
    ensure!(server.target("first")?["type"] == "docker");
    let recording = recorder.recording()?;
    ensure!(recording.final_statistics("first/eth0").is_err(), "it has left");

    docker.start_again()?;
    recorder
        .read_until(|recording| is_told(recording, &engine, "answers again"))
        .await
        .with_context(|| format!("its return is not told: {}", server.log()))?;
    // What the engine starts anew by itself is another namespace under the old name.
    recorder
        .read_until(|recording| times(recording, "first/eth0") >= 2)
        .await
        .with_context(|| format!("it does not join again: {}", server.log()))?;
    let address = docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "first"])?;
    // It tells what it starts, as before.
    let mut caught = 0;
    for (name, port) in [("web-a", 2000), ("web-b", 2001), ("web-c", 2002)] {
        run_refused(&docker, name, &label, &address, port)?;
        let came = recorder.read_until(|recording| recording.connections_of(name, port) == 1);
        caught += u16::from(timeout(PATIENCE, came).await.is_ok());
    }
    ensure!(caught >= 2, "{caught} of 3 first packets");
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    for words in ["does not answer", "answers again"] {
        let told = recording.interfaces.iter().filter(|one| one.name == engine);
        assert_eq!(
            told.filter(|one| one.options.contains(words)).count(),
            1,
            "{words}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_container_that_is_renamed_goes_on_under_its_name_and_the_new_one_of_that_name_joins()
-> anyhow::Result<()> {
    let docker = Docker::start()?;
    let label = format!("app=web-{}", std::process::id());
    run_labelled(&docker, "web", &label, &[])?;
    let server = Server::start(&["--engine-socket", &docker.socket().display().to_string()])?;
    let mut by_name = Recorder::start(&server.url("target=web&follow=1&names=0")).await?;
    let mut by_label = Recorder::start(&server.url(&format!("target=label:{label}&names=0"))).await?;
    for recorder in [&mut by_name, &mut by_label] {
        recorder
            .read_until(|recording| times(recording, "web/eth0") >= 1)
            .await?;
    }

    docker.run(&["rename", "web", "old"])?;
    for recorder in [&mut by_name, &mut by_label] {
        recorder
            .read_until(|recording| is_told(recording, "web", "is called old by now"))
            .await?;
    }
    let pings = |recording: &Recording, name: &str| recording.packets_of(&format!("{name}/lo")).len();
    docker.run(&["exec", "old", "/bin/busybox", "ping", "-c", "1", "127.0.0.1"])?;
    by_name
        .read_until(|recording| pings(recording, "web") >= 2)
        .await?;

    // The word means another one by now; the label means both.
    run_labelled(&docker, "web", &label, &[])?;
    docker.run(&["restart", "--time", "0", "old"])?;
    by_label
        .read_until(|recording| times(recording, "old/eth0") >= 1 && times(recording, "web/eth0") >= 2)
        .await?;
    by_name
        .read_until(|recording| times(recording, "web/eth0") >= 2)
        .await?;
    docker.run(&["exec", "web", "/bin/busybox", "ping", "-c", "1", "127.0.0.1"])?;
    by_name
        .read_until(|recording| pings(recording, "web") >= 4)
        .await?;
    let recording = by_name.finish().await?;
    recording.check_complete()?;
    ensure!(
        recording
            .interfaces
            .iter()
            .all(|one| !one.name.starts_with("old/"))
    );
    by_label.finish().await?.check_complete()
}

#[tokio::test]
async fn containers_in_a_crash_loop_are_bounded_and_leave_others_alone() -> anyhow::Result<()> {
    const MOST: usize = 40;
    const LATE: usize = 10;
    const SENTENCE: &str = "it starts again and again, faster than it is followed";

    let docker = Docker::start()?;
    let label = format!("app=web-{}", std::process::id());
    let address = run_labelled(&docker, "first", &label, &[])?;
    let server = Server::start(&["--engine-socket", &docker.socket().display().to_string()])?;
    let mut recorder = Recorder::start(&server.url(&format!("target=label:{label}&names=0"))).await?;
    recorder
        .read_until(|recording| times(recording, "first/eth0") >= 1)
        .await?;
    // Docker itself starts this one again and again, after longer and longer pauses.
    let flaps = [
        "run",
        "--detach",
        "--restart",
        "always",
        "--name",
        "flaps",
        "--label",
        &label,
    ];
    docker.run(&[&flaps[..], &[IMAGE, "/bin/busybox", "false"]].concat())?;
    let crashes = [
        "create",
        "--name",
        "loop",
        "--label",
        &label,
        IMAGE,
        "/bin/busybox",
        "true",
    ];
    docker.run(&crashes)?;
    let begun = Instant::now();
    let mut starts = 0;
    // So many of one name are followed.
    let bound = || 10 + begun.elapsed().as_secs() as usize / 2 + 1;
    while !is_told(recorder.recording()?, "loop", SENTENCE) && starts < MOST {
        ensure!(starts < bound() + LATE, "nothing is told of {starts} starts");
        docker.run(&["start", "loop"])?;
        starts += 1;
        // What has come by now.
        let _ = timeout(Duration::from_millis(1), recorder.read_until(|_| false)).await;
    }
    // Where Docker has no time, it starts them no faster than they are followed.
    let is_too_fast = starts < MOST;
    // Others join meanwhile, with their first packet.
    let mut caught = 0;
    for (name, port) in [("web-a", 2000), ("web-b", 2001), ("web-c", 2002)] {
        docker.run(&["start", "loop"])?;
        starts += 1;
        run_refused(&docker, name, &label, &address, port)?;
        let came = recorder.read_until(|recording| recording.connections_of(name, port) == 1);
        caught += u16::from(timeout(Duration::from_secs(10), came).await.is_ok());
    }
    ensure!(caught >= 2, "{caught} of 3 first packets");
    let (_, list) = server.get("/captures")?;
    let elapsed = begun.elapsed();
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let joined = times(&recording, "loop/lo");
    println!("{joined} of {starts} starts joined in {elapsed:?}");
    ensure!(
        joined <= bound() && (joined < starts || !is_too_fast),
        "{joined} of {starts} in {elapsed:?}"
    );
    ensure!(joined >= 5, "{joined} of {starts} in {elapsed:?}");
    ensure!(
        times(&recording, "flaps/lo") >= 2,
        "it joins as it is started again"
    );
    ensure!(times(&recording, "loop") <= 1, "told once");
    // Nothing of those that have ended is left, each that runs is captured once, and none was too many.
    let running = list["captures"].as_array().context("no captures")?;
    let namespaces: BTreeSet<_> = running
        .iter()
        .map(|one| one["target"]["netns"].as_u64())
        .collect();
    ensure!(running.len() <= 6 && namespaces.len() == running.len(), "{list}");
    ensure!(
        !recording
            .interfaces
            .iter()
            .any(|one| one.options.contains("--max-captures"))
    );
    Ok(())
}

/// Both engines list each container, and both tell of one that starts.
#[tokio::test]
async fn a_container_that_two_engines_claim_is_captured_once() -> anyhow::Result<()> {
    const STARTS: u16 = 4;

    let docker = Docker::start_at_two_sockets()?;
    let label = format!("app=web-{}", std::process::id());
    let address = run_labelled(&docker, "first", &label, &[])?;
    let sockets = [docker.socket(), docker.other_socket()].map(|socket| socket.display().to_string());
    let flags = [0, 1].map(|which| format!("--engine-socket={}", sockets[which]));
    let server = Server::start(&[&flags[0], &flags[1]])?;
    let (_, details) = server.get("/targets")?;
    let engines = details["engines"].as_array().context("no engines")?;
    let claims = |socket: &String| {
        let mut engines = engines.iter();
        engines.any(|engine| engine["socket"] == **socket && engine["workloads"] == 1)
    };
    ensure!(sockets.iter().all(claims), "{details}");
    // By its label and its identifier.
    let id = docker.run(&["inspect", "--format", "{{.Id}}", "first"])?;
    let query = format!("target=label:{label}&target={id}&names=0");
    let mut recorder = Recorder::start(&server.url(&query)).await?;
    recorder
        .read_until(|recording| times(recording, "first/eth0") >= 1)
        .await?;
    read_starts(&docker, &mut recorder, (&label, &address), STARTS).await?;
    let (_, list) = server.get("/captures")?;
    let captures = list["captures"].as_array().context("no captures")?;
    let namespaces: BTreeSet<_> = captures
        .iter()
        .map(|one| one["target"]["netns"].as_u64())
        .collect();
    assert_eq!(namespaces.len(), captures.len(), "{list}");
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    assert_eq!(times(&recording, "first/eth0"), 1);
    for number in 0..STARTS {
        let (name, port) = (format!("web-{number}"), 2000 + number);
        ensure!(
            recording.connections_of(&name, port) <= 1,
            "{name} is captured twice"
        );
        assert_eq!(recording.connections_of("first", port), 1, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn a_container_that_starts_joins_with_its_first_packet_where_interfaces_are_named() -> anyhow::Result<()>
{
    const STARTS: u16 = 4;

    let docker = Docker::start()?;
    let label = format!("app=web-{}", std::process::id());
    let address = run_labelled(&docker, "first", &label, &[])?;
    let server = Server::start(&["--engine-socket", &docker.socket().display().to_string()])?;
    let url = server.url(&format!("target=label:{label}&names=0&nif=eth0"));
    let mut recorder = Recorder::start(&url).await?;
    recorder
        .read_until(|recording| times(recording, "first/eth0") >= 1)
        .await?;
    read_starts(&docker, &mut recorder, (&label, &address), STARTS).await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    // The others that it has are nobody's wish.
    ensure!(
        recording.interfaces.iter().all(|one| !one.name.ends_with("/lo")),
        "{:?}",
        recording.interfaces
    );
    Ok(())
}
