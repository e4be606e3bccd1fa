//! Several targets in one stream: one section, one timeline, an exact account of each.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Capture, Recorder, refusal},
    hook::hooks,
    metrics::Metrics,
    namespace::{ManyNamespaces, Namespace, output_of, run},
    raw::{self, RawSocket},
    recording::Recording,
    server::{Server, percent_encoded, wait_until},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

/// The address of a stream of what these words mean.
fn url(server: &Server, words: &[&str], rest: &str) -> String {
    let words: Vec<String> = words
        .iter()
        .map(|word| format!("target={}", percent_encoded(word)))
        .collect();
    server.url(&format!("{}{rest}", words.join("&")))
}

/// A path of the namespace, as it is known.
fn path(namespace: &Namespace) -> String {
    namespace.path().display().to_string()
}

/// The name that an interface of a namespace has among those of several.
fn interface(namespace: &Namespace, name: &str) -> String {
    format!("{}/{name}", path(namespace))
}

fn has(recording: &Recording, name: &str) -> bool {
    recording.interfaces.iter().any(|one| one.name == name)
}

#[tokio::test]
async fn both_ends_of_a_link_stand_on_one_timeline() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let (one, two) = (path(&here), path(&there));
        let url = url(&server, &[&one, &two, &two], "&filter=ether+proto+0x88b5");
        let mut recorder = Recorder::start(&url).await?;
        let names = ["va", "lo"].map(|name| interface(&here, name));
        let others = ["vb", "lo"].map(|name| interface(&there, name));
        let all = || names.iter().chain(&others);
        recorder
            .read_until(|recording| all().all(|name| has(recording, name)))
            .await?;
        assert_eq!(recorder.recording()?.interfaces.len(), 4, "each namespace once");
        let (ours, theirs) = (RawSocket::open(&here, "va")?, RawSocket::open(&there, "vb")?);
        for number in 0..50 {
            ours.send(&frame(number))?;
            theirs.send(&frame(100 + number))?;
        }
        recorder
            .read_until(|recording| recording.packets.len() == 200)
            .await?;
        let recording = recorder.finish().await?;
        recording.check_order()?;
        for number in 0..50 {
            for (name, outbound, number) in [
                (&names[0], true, number),
                (&others[0], false, number),
                (&names[0], false, 100 + number),
                (&others[0], true, 100 + number),
            ] {
                assert_eq!(
                    recording.count_on(name, outbound, &frame(number)),
                    1,
                    "{name} {number}"
                );
            }
        }
        for name in [&names[0], &others[0]] {
            let statistics = recording.final_statistics(name)?;
            assert_eq!((statistics.delivered, statistics.dropped), (100, 0), "{name}");
        }
        // What was sent at one end came in at the other later.
        let position = |name: &str, number: u8| {
            let of = recording.interfaces.iter().position(|one| one.name == name);
            recording
                .packets
                .iter()
                .position(|packet| Some(packet.interface) == of && packet.data == frame(number))
        };
        assert!(position(&names[0], 7) < position(&others[0], 7));
        assert!(recording.comment.contains("selection"), "{}", recording.comment);
        let described = &recording.interfaces[0].options;
        let netns = format!("netns {}", here.inode()?);
        let other = format!("netns {}", there.inode()?);
        assert!(
            described.contains(&netns) || described.contains(&other),
            "{described}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn every_packet_of_a_flood_is_accounted_for_in_its_order() -> anyhow::Result<()> {
    const COUNT: u64 = 200_000;
    for hook in hooks()? {
        let pairs = (0..3)
            .map(|_| Namespace::pair())
            .collect::<anyhow::Result<Vec<_>>>()?;
        let server = Arc::new(Server::start(&["--hook", hook])?);
        let words: Vec<String> = pairs.iter().map(|(here, _)| path(here)).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let url = url(&server, &words, "&filter=ether+proto+0x88b5&nif=va");
        let mut recorder = Recorder::start(&url).await?;
        let names: Vec<String> = pairs.iter().map(|(here, _)| interface(here, "va")).collect();
        recorder
            .read_until(|recording| names.iter().all(|name| has(recording, name)))
            .await?;
        let sockets = pairs
            .iter()
            .map(|(_, there)| RawSocket::open(there, "vb"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let watched = Arc::clone(&server);
        let flood = spawn_blocking(move || {
            std::thread::scope(|scope| {
                let floods = sockets
                    .iter()
                    .map(|socket| scope.spawn(|| socket.flood(&frame(0), COUNT, 20)));
                let floods: Vec<_> = floods.collect();
                for flood in floods {
                    flood.join().map_err(|_| anyhow::anyhow!("panicked"))??;
                }
                // The kernel hands over what was sent a little later, where it has much to do.
                wait_until(Duration::from_secs(10), || {
                    std::thread::sleep(Duration::from_millis(100));
                    let accepted = Metrics::of(&watched)?.count("packetflix_accepted_packets_total")?;
                    Ok(accepted == COUNT * sockets.len() as u64)
                })
            })
        });
        recorder.read_during(flood).await?;
        let recording = recorder.finish().await?;
        recording.check_order()?;
        for name in &names {
            let statistics = recording.final_statistics(name)?;
            assert_eq!(statistics.accepted, COUNT, "{name}: {statistics:?}");
            assert_eq!(recording.packets_of(name).len() as u64, statistics.delivered);
            let told: u64 = recording
                .packets_of(name)
                .iter()
                .map(|one| one.dropped_before)
                .sum();
            assert!(told <= statistics.dropped);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_limit_is_that_of_the_whole_stream() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let words = [path(&here), path(&there)];
    let words = [&words[0][..], &words[1]];
    let socket = RawSocket::open(&here, "va")?;
    for (limit, reason) in [
        ("&packets=7", "the limit of 7 packets is reached"),
        ("&bytes=6KiB", "the limit of 6144 bytes is reached"),
    ] {
        let url = url(
            &server,
            &words,
            &format!("&nif=va/vb&filter=ether+proto+0x88b5{limit}"),
        );
        let recorder = Recorder::start(&url).await?;
        (0..40).try_for_each(|_| socket.send(&frame(1)))?;
        let (recording, code, told) = recorder.read_to_end().await?;
        assert_eq!((code, &told[..]), (1000, reason));
        recording.check_complete()?;
        recording.check_order()?;
        if limit == "&packets=7" {
            assert_eq!(recording.packets.len(), 7);
        }
        let delivered: u64 = recording.statistics.iter().map(|one| one.delivered).sum();
        assert_eq!(delivered, recording.packets.len() as u64);
    }
    Ok(())
}

#[tokio::test]
async fn targets_join_and_leave_a_stream_that_follows_a_pattern() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let (here, there) = Namespace::pair()?;
    let pattern = format!("/run/netns/pf-test-{}-*", std::process::id());
    let url = url(
        &server,
        &[&pattern, &format!("!{}", path(&there))],
        "&filter=ether+proto+0x88b5",
    );
    let mut recorder = Recorder::start(&url).await?;
    let first = interface(&here, "va");
    recorder.read_until(|recording| has(recording, &first)).await?;
    let (later, last) = Namespace::pair()?;
    let second = interface(&later, "va");
    recorder.read_until(|recording| has(recording, &second)).await?;
    let (ours, theirs) = (RawSocket::open(&there, "vb")?, RawSocket::open(&last, "vb")?);
    ours.send(&frame(1))?;
    theirs.send(&frame(2))?;
    let came =
        |recording: &Recording, name: &str, number| recording.count_on(name, false, &frame(number)) == 1;
    recorder
        .read_until(|recording| came(recording, &first, 1) && came(recording, &second, 2))
        .await?;
    drop((theirs, last));
    later.delete()?;
    recorder
        .read_until(|recording| recording.final_statistics(&second).is_ok())
        .await?;
    ours.send(&frame(3))?;
    recorder
        .read_until(|recording| came(recording, &first, 3))
        .await?;
    let recording = recorder.finish().await?;
    recording.check_order()?;
    assert!(
        !has(&recording, &interface(&there, "vb")),
        "what is excluded is not captured"
    );
    assert_eq!(recording.final_statistics(&second)?.delivered, 1);
    assert_eq!(recording.final_statistics(&first)?.delivered, 2);
    Ok(())
}

#[tokio::test]
async fn a_stream_waits_for_what_is_not_there_yet() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let there = Namespace::new()?;
    let name = format!("{}-later", there.name());
    let word = format!("/run/netns/{name}");
    let (status, sentence) = refusal(&server, &url(&server, &[&word], ""), &[]).await?;
    ensure!(status == 404, "{status} {sentence}");
    let url = url(&server, &[&word], "&wait=1&names=0");
    let mut recorder = Recorder::start(&url).await?;
    assert!(recorder.recording()?.interfaces.is_empty());
    run("ip", &["netns", "add", &name])?;
    let later = |arguments: &[&str]| run("ip", &[&["-n", &name], arguments].concat());
    let waited = async {
        later(&["link", "set", "lo", "up"])?;
        let lo = format!("{word}/lo");
        recorder.read_until(|recording| has(recording, &lo)).await?;
        let pings = [
            "netns",
            "exec",
            &name,
            "busybox",
            "ping",
            "-q",
            "-c",
            "1",
            "127.0.0.1",
        ];
        run("ip", &pings)?;
        recorder
            .read_until(|recording| recording.packets_of(&lo).len() == 2)
            .await
    };
    let waited = waited.await;
    run("ip", &["netns", "delete", &name])?;
    waited?;
    // It waited for one, and does not follow others.
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    assert!(code == 1000 && reason.contains("ended"), "{code} {reason}");
    Ok(())
}

#[tokio::test]
async fn namespaces_that_come_and_go_hold_nobody_up_for_long() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let (here, there) = Namespace::pair()?;
    let url = url(&server, &[&format!("{}*", path(&here))], "&names=0");
    let mut recorder = Recorder::start(&url).await?;
    let va = interface(&here, "va");
    recorder.read_until(|recording| has(recording, &va)).await?;
    // Each has packets, and nobody says whose it is.
    let name = format!("pf-test-churn-{}", std::process::id());
    let churn = spawn_blocking(move || {
        for _ in 0..25 {
            run("ip", &["netns", "add", &name])?;
            let with = |arguments: &[&str]| run("ip", &[&["netns", "exec", &name], arguments].concat());
            with(&["ip", "link", "set", "lo", "up"])?;
            with(&["busybox", "ping", "-q", "-c", "1", "127.0.0.1"])?;
            std::thread::sleep(Duration::from_millis(300));
            run("ip", &["netns", "delete", &name])?;
        }
        anyhow::Ok(())
    });
    let socket = RawSocket::open(&there, "vb")?;
    for number in 0..2 {
        socket.send(&frame(number))?;
        recorder
            .read_until(|recording| recording.count(&frame(number)) == 1)
            .await?;
    }
    ensure!(!churn.is_finished(), "they were held up until all was over");
    churn.await??;
    recorder.finish().await?.check_order()
}

#[tokio::test]
async fn what_is_beyond_a_limit_is_told_in_the_stream_of_the_others() -> anyhow::Result<()> {
    // The stream waits for more, and so is a capture itself.
    let server = Server::start(&["--max-captures-per-client", "3"])?;
    let namespaces = (0..4)
        .map(|_| Namespace::new())
        .collect::<anyhow::Result<Vec<_>>>()?;
    let words: Vec<String> = namespaces.iter().map(|one| format!("{}*", path(one))).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut recorder = Recorder::start(&url(&server, &words, "&names=0")).await?;
    recorder
        .read_until(|recording| has(recording, "2 targets") && recording.interfaces.len() == 3)
        .await?;
    let captured = |recording: &Recording| {
        let mut all = namespaces.iter();
        all.position(|one| has(recording, &interface(one, "lo")))
    };
    let first = captured(recorder.recording()?).context("none is captured")?;
    let pings = ["ping", "-q", "-c", "2", "127.0.0.1"];
    output_of(namespaces[first].command("busybox").args(pings))?;
    let lo = interface(&namespaces[first], "lo");
    recorder
        .read_until(|recording| recording.packets_of(&lo).len() == 4)
        .await?;
    let recording = recorder.finish().await?;
    let told = recording.interfaces.iter().find(|one| one.name == "2 targets");
    let told = &told.context("nothing is told")?.options;
    ensure!(
        told.contains("not captured") && told.contains("--max-captures-per-client"),
        "{told}"
    );
    assert_eq!(recording.final_statistics("2 targets")?.received, 0);
    // Where nothing else can be captured, there is no stream.
    let server = Server::start(&["--max-captures-per-client", "1"])?;
    let (status, sentence) = refusal(&server, &url(&server, &words, ""), &[]).await?;
    ensure!(
        status == 429 && sentence.contains("--max-captures-per-client"),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn an_operator_ends_one_target_or_the_whole_stream() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let (here, there) = (Namespace::new()?, Namespace::new()?);
    let words = [path(&here), path(&there)];
    let words = [&words[0][..], &words[1]];
    let url = url(&server, &words, "&follow=1&names=0");
    let mut recorder = Recorder::start(&url).await?;
    let names = [interface(&here, "lo"), interface(&there, "lo")];
    recorder
        .read_until(|recording| names.iter().all(|name| has(recording, name)))
        .await?;
    // Another client's selection has one of them in common, which is captured once.
    let alone = Recorder::start(&server.url(&format!("target={}", words[0]))).await?;
    let listed = || -> anyhow::Result<Vec<Value>> {
        let (_, list) = server.get("/captures")?;
        Ok(list["captures"].as_array().context("no list")?.clone())
    };
    let captures = listed()?;
    let of = |netns: u64, has_stream: bool| {
        captures
            .iter()
            .find(|one| one["target"]["netns"] == netns && one["stream"].is_u64() == has_stream)
            .context("it is not listed")
    };
    let (one, two, shared) = (
        of(here.inode()?, true)?,
        of(there.inode()?, true)?,
        of(here.inode()?, false)?,
    );
    assert_eq!(one["stream"], two["stream"]);
    assert_eq!(one["tap"], shared["tap"]);
    assert_ne!(one["tap"], two["tap"]);
    let end = |number: &Value| server.ask(&format!("DELETE /captures/{number} HTTP/1.1"));
    end(&one["id"])?;
    recorder
        .read_until(|recording| recording.final_statistics(&names[0]).is_ok())
        .await?;
    assert!(recorder.recording()?.final_statistics(&names[1]).is_err());
    // What somebody has ended does not come back, although it is followed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(listed()?.len(), 2);
    end(&two["stream"])?;
    let (recording, code, reason) = recorder.read_to_end().await?;
    assert_eq!((code, &reason[..]), (1000, "ended by the operator"));
    recording.check_complete()?;
    assert_eq!(recording.interfaces.len(), 2);
    alone.finish().await?;
    Ok(())
}

#[tokio::test]
async fn a_client_that_is_slow_with_a_hundred_targets_has_an_exact_account_of_each() -> anyhow::Result<()> {
    const TARGETS: usize = 100;
    const COUNT: u64 = 6_000;

    let many = ManyNamespaces::new(TARGETS)?;
    let hub = Namespace::new()?;
    let links = many.names().iter().enumerate().map(|(number, name)| {
        format!("link add e{number} type veth peer name va netns {name}\nlink set e{number} up\n")
    });
    hub.ip_batch(&links.collect::<String>())?;
    for name in many.names() {
        run("ip", &["-n", name, "link", "set", "va", "up"])?;
    }
    let flags = [
        "--ring-size=512KiB",
        "--max-captures=200",
        "--max-captures-per-client=200",
    ];
    let server = Server::start(&flags)?;
    let rest = "&follow=0&filter=ether+proto+0x88b5&nif=va&names=0";
    let mut recorder = Recorder::start(&url(&server, &[&many.pattern()], rest)).await?;
    let interfaces: Vec<String> = many
        .names()
        .iter()
        .map(|name| format!("/run/netns/{name}/va"))
        .collect();
    recorder
        .read_until(|recording| interfaces.iter().all(|name| has(recording, name)))
        .await?;
    // Nothing is read meanwhile.
    let frame = raw::ethernet(0x88b5, &[7; 1000]);
    for number in 0..TARGETS {
        RawSocket::open(&hub, &format!("e{number}"))?.flood(&frame, COUNT, 20)?;
    }
    let recording = recorder.finish().await?;
    recording.check_order()?;
    let mut dropped = 0;
    for name in &interfaces {
        let statistics = recording.final_statistics(name)?;
        let packets = recording.packets_of(name).len();
        assert_eq!(statistics.accepted, COUNT, "{name}: {packets} {statistics:?}");
        assert_eq!(recording.packets_of(name).len() as u64, statistics.delivered);
        dropped += statistics.dropped;
    }
    ensure!(dropped > 0, "nothing was too much");
    Ok(())
}

/// The namespaces that are captured, each of which has to be so once.
fn captured_once(server: &Server) -> anyhow::Result<BTreeSet<u64>> {
    let (_, list) = server.get("/captures")?;
    let captures = list["captures"].as_array().context("no captures")?;
    let inodes = captures.iter().filter_map(|one| one["target"]["netns"].as_u64());
    let inodes: BTreeSet<u64> = inodes.collect();
    ensure!(inodes.len() == captures.len(), "one is captured twice: {list}");
    Ok(inodes)
}

#[tokio::test]
async fn namespaces_that_come_again_and_again_are_each_captured_once_and_count_no_longer_than_they_last()
-> anyhow::Result<()> {
    const MOST: usize = 300;
    const MORE: usize = 30;
    const SENTENCE: &str = "it starts again and again, faster than it is followed";

    let server = Arc::new(Server::start(&[])?);
    let here = Namespace::new()?;
    let pattern = format!("/run/netns/pf-loop-{}-*", std::process::id());
    let url = url(&server, &[&path(&here), &pattern], "&follow=1&names=0");
    let mut recorder = Recorder::start(&url).await?;
    let names = [0, 1, 2].map(|number| pattern.replace('*', &number.to_string()));
    let are_told = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let crashes = spawn_blocking({
        let (server, names, are_told) = (Arc::clone(&server), names.clone(), Arc::clone(&are_told));
        move || {
            let (mut most, mut more) = (0, MORE);
            for name in names.iter().cycle().take(MOST) {
                if are_told.load(Ordering::Relaxed) {
                    more -= 1;
                }
                if more == 0 {
                    break;
                }
                let namespace = Namespace::named(name.trim_start_matches("/run/netns/"))?;
                let inode = namespace.inode()?;
                // Those that come too often are not captured.
                let _ = wait_until(Duration::from_millis(300), || {
                    let captured = captured_once(&server)?;
                    most = most.max(captured.len());
                    Ok(captured.contains(&inode))
                });
            }
            anyhow::Ok(most)
        }
    });
    let told = |recording: &Recording, name: &str| {
        let named = recording.interfaces.iter().filter(|one| one.name == name);
        named.filter(|one| one.options.contains(SENTENCE)).count()
    };
    recorder
        .read_until(|recording| names.iter().all(|name| told(recording, name) == 1))
        .await?;
    are_told.store(true, Ordering::Relaxed);
    let most = recorder.read_during(crashes).await?;
    let elapsed = begun.elapsed();
    // What has ended takes no place any more.
    wait_until(Duration::from_secs(20), || Ok(captured_once(&server)?.len() == 1))?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let bound = 10 + elapsed.as_secs() as usize / 2 + 1;
    let mut all = 0;
    for name in &names {
        let lo = format!("{name}/lo");
        let joined = recording.interfaces.iter().filter(|one| one.name == lo).count();
        ensure!((10..=bound).contains(&joined), "{name}: {joined} in {elapsed:?}");
        assert_eq!(told(&recording, name), 1, "{name}");
        all += joined;
    }
    println!("{all} joined in {elapsed:?}, {most} at a time");
    // As many more than a client may have at the same time.
    ensure!(all > 32, "{all} in {elapsed:?}");
    assert_eq!(left_out(&recording, "--max-captures"), 0);
    Ok(())
}

#[tokio::test]
async fn descriptions_in_a_list_are_one_stream_in_the_query_and_in_the_header() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    // As clients send them, with all members.
    let described = |name: &str, netns: u64| {
        json!({ "name": name, "type": "bindmount", "netns": netns, "network-interfaces": [], "prefix": "",
            "pid": 0, "starttime": 0, "node-name": "node", "capture-service": "", "captureport": 0 })
    };
    let list = json!([
        described(&path(&here), here.inode()?),
        described(&path(&there), there.inode()?),
        described(&path(&there), there.inode()?),
    ])
    .to_string();
    let in_query = format!("container={}&nif=all&chaste=", percent_encoded(&list));
    let in_header = "container=%5B%7B%22name%22%3A%22nobody%22%7D%5D&nif=all";
    let header = [("clustershark-container", &list[..])];
    let captures = [
        Capture::open(&server.url(&in_query), &[]).await?,
        Capture::open(&server.url(in_header), &header).await?,
    ];
    let socket = RawSocket::open(&here, "va")?;
    for (number, capture) in captures.into_iter().enumerate() {
        let mut recorder = Recorder::of(capture).await?;
        let frame = frame(u8::try_from(number)?);
        socket.send(&frame)?;
        let (one, other) = (interface(&here, "va"), interface(&there, "vb"));
        recorder
            .read_until(|recording| {
                recording.count_on(&one, true, &frame) == 1 && recording.count_on(&other, false, &frame) == 1
            })
            .await?;
        let recording = recorder.finish().await?;
        recording.check_order()?;
        assert_eq!(recording.interfaces.len(), 4, "each namespace once");
        // Names are told, of all.
        for address in ["10.9.1.1", "10.9.1.2"] {
            let name = recording.name_of(address.parse()?, usize::MAX);
            ensure!(name.is_some(), "{address}: {name:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_selected_is_refused_with_a_sentence() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let here = Namespace::new()?;
    let word = path(&here);
    let inode = here.inode()?.to_string();
    for (query, status, sentence) in [
        (format!("target={word}&netns={inode}"), 400, "exclude each other"),
        (
            format!("target={word}&target=nobody-is-called-so"),
            404,
            "nobody-is-called-so",
        ),
        ("target=nobody-is-called-so-*".to_owned(), 404, "wait=1"),
        ("target=label:".to_owned(), 400, "target= is empty"),
        (
            format!("netns={inode}&follow=1"),
            400,
            "follow= goes with targets",
        ),
        (format!("netns={inode}&wait=1"), 400, "wait= goes with targets"),
        (
            format!("target={word}&target={word}&follow=x"),
            400,
            "neither 0 nor 1",
        ),
        ("container=[]".to_owned(), 400, "no target is given"),
        ("container=[1,{}]".to_owned(), 400, "1 is no object"),
        (
            format!("target={word}&target=host&filter=nonsense+here"),
            400,
            "filter",
        ),
    ] {
        let (found, body) = refusal(&server, &server.url(&query), &[]).await?;
        ensure!(
            found == status && body.contains(sentence),
            "{query}: {found} {body}"
        );
    }
    Ok(())
}

/// How many are told not to be captured, in sentences with these words.
fn left_out(recording: &Recording, words: &str) -> usize {
    let told = recording
        .interfaces
        .iter()
        .filter(|one| one.options.contains(words));
    let counts = told.filter_map(|one| one.name.strip_suffix(" targets")?.parse::<usize>().ok());
    counts.sum()
}

#[tokio::test]
async fn a_pattern_of_two_thousand_targets_is_captured_up_to_a_bound_that_is_told() -> anyhow::Result<()> {
    const COUNT: usize = 2000;

    let many = ManyNamespaces::new(COUNT)?;
    let pattern = many.pattern();
    let server = Server::start(&[])?;
    let (status, list) = server.get(&format!("/targets?target={}", percent_encoded(&pattern)))?;
    let listed = list["targets"].as_array().map(Vec::len);
    ensure!(status == 200 && listed == Some(COUNT), "{status} {listed:?}");

    let mut recorder = Recorder::start(&url(&server, &[&pattern], "")).await?;
    let bound = "a client may have 32 captures at the same time";
    recorder
        .read_until(|recording| left_out(recording, bound) > 0)
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let captured = recording
        .interfaces
        .iter()
        .filter(|one| one.name.ends_with("/lo"));
    // A stream that waits for others takes the place of one.
    assert_eq!((captured.count(), left_out(&recording, bound)), (31, COUNT - 31));

    // With room for all but in the kernel, it begins with those that could begin in time, and others join.
    let flags = [
        "--max-captures=4000",
        "--max-captures-per-client=4000",
        "--ring-memory=256MiB",
    ];
    let server = Server::start(&flags)?;
    let mut recorder = Recorder::start(&url(&server, &[&pattern], "")).await?;
    recorder
        .read_until(|recording| left_out(recording, "--ring-memory") > 0)
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()
}
