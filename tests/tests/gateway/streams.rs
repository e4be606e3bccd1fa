//! What several nodes capture becomes one stream: in order, with an exact account of each interface.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Capture, Piece, Recorder, refusal},
    namespace::Namespace,
    raw::{self, RawSocket},
    recording::{Interface, Recording},
    server::{Server, percent_encoded, wait_until},
};
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::{
    Cluster, TOKEN, closed_port, say_nothing,
    scripted::{Script, Sends, play},
};

const FILTER: &str = "filter=ether+proto+0x88b5";

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

fn path(namespace: &Namespace) -> String {
    namespace.path().display().to_string()
}

/// The target of a namespace on a node, as `/mobyshark` lists it.
fn target(gateway: &Server, node: &str, namespace: &Namespace) -> anyhow::Result<Value> {
    let path = path(namespace);
    let mut found = None;
    wait_until(Duration::from_secs(10), || {
        let of_node = |target: &Value| target["name"] == path && target["node-name"] == node;
        found = gateway.targets()?.into_iter().find(of_node);
        Ok(found.is_some())
    })?;
    found.context("no target")
}

/// The name that an interface has in a stream of several nodes.
fn interface(node: &str, namespace: &Namespace, name: &str) -> String {
    format!("{node}/{}/{name}", path(namespace))
}

/// Checks that packets of several nodes stand in the order of time, but for those of which the stream itself says that they came too
/// late: on a busy machine a node may not be given a CPU for as long as packets wait. Unless it says that a node lags, or `may_lag`,
/// these are few.
fn check_order(recording: &Recording, may_lag: bool) -> anyhow::Result<()> {
    let late = recording.check_late()?;
    let may_lag = may_lag
        || recording
            .interfaces
            .iter()
            .any(|one| one.options.contains(" lags: "));
    ensure!(may_lag || late * 10 <= recording.packets.len(), "{late} are late");
    Ok(())
}

/// What asks for one namespace of each of two nodes.
fn query_of_both(here: &Namespace, there: &Namespace, rest: &str) -> anyhow::Result<String> {
    let described = json!([
        { "name": path(here), "netns": here.inode()?, "node-name": "one" },
        { "name": path(there), "netns": there.inode()?, "node-name": "two" },
    ]);
    let container = percent_encoded(&described.to_string());
    Ok(format!("container={container}&{FILTER}{rest}"))
}

/// A stream of two nodes, each with one end of a link, once both ends are described.
async fn stream_of_both(
    gateway: &Server,
    here: &Namespace,
    there: &Namespace,
    rest: &str,
) -> anyhow::Result<(Recorder, [String; 2])> {
    let url = gateway.url(&query_of_both(here, there, rest)?);
    let mut recorder = Recorder::start(&url).await?;
    let names = [interface("one", here, "va"), interface("two", there, "vb")];
    recorder
        .read_until(|recording| {
            names
                .iter()
                .all(|name| recording.interfaces.iter().any(|one| one.name == *name))
        })
        .await?;
    Ok((recorder, names))
}

#[tokio::test]
async fn container_is_captured_on_its_node_as_existing_clients_ask() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let target = target(&gateway, "two", &here)?;
    let container = target.to_string();
    let query = format!("container={}&nif=all&filter=tcp", percent_encoded("{}"));
    // csharg sends all of it twice, and a header wins.
    let headers = [
        ("clustershark-container", &container[..]),
        ("clustershark-nif", "va"),
        ("clustershark-filter", "ether proto 0x88b5"),
        ("clustershark-chaste", ""),
    ];
    let mut recorder = Recorder::of(Capture::open(&gateway.url(&query), &headers).await?).await?;
    recorder
        .read_until(|recording| !recording.interfaces.is_empty())
        .await?;
    let socket = RawSocket::open(&there, "vb")?;
    for number in 0..50 {
        socket.send(&frame(number))?;
    }
    recorder
        .read_until(|recording| recording.packets.len() == 50)
        .await?;
    let captured_on = |node: &str| {
        let request = format!("GET /captures HTTP/1.1\r\nAuthorization: Bearer {TOKEN}");
        let (_, body) = cluster.node(node).ask(&request)?;
        let list: Value = serde_json::from_slice(&body)?;
        anyhow::Ok(list["captures"].as_array().map_or(0, Vec::len))
    };
    assert_eq!((captured_on("one")?, captured_on("two")?), (0, 1));
    let recording = recorder.finish().await?;
    assert_eq!(recording.interfaces.len(), 1);
    assert_eq!(recording.interfaces[0].name, "va");
    for said in [
        "container-name: ",
        "node-name: \"two\"",
        "no-promiscuous-mode: true",
    ] {
        assert!(recording.comment.contains(said), "{}", recording.comment);
    }
    let said = &recording.interfaces[0].options;
    assert!(said.contains("node two: its clock is 0."), "{said}");
    assert!(said.contains("by which no time was altered"), "{said}");
    let statistics = recording.final_statistics("va")?;
    assert_eq!((statistics.delivered, statistics.dropped), (50, 0));
    Ok(())
}

#[tokio::test]
async fn both_ends_of_a_link_on_two_nodes_stand_on_one_timeline() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let (mut recorder, names) = stream_of_both(&gateway, &here, &there, "").await?;
    let (ours, theirs) = (RawSocket::open(&here, "va")?, RawSocket::open(&there, "vb")?);
    for number in 0..100 {
        ours.send(&frame(number))?;
        theirs.send(&frame(100 + number))?;
    }
    recorder
        .read_until(|recording| recording.packets.len() == 400)
        .await?;
    let recording = recorder.finish().await?;
    check_order(&recording, false)?;
    recording.check_complete()?;
    for (name, sent, received) in [(&names[0], 0, 100), (&names[1], 100, 0)] {
        for number in 0..100 {
            assert_eq!(
                recording.count_on(name, true, &frame(sent + number)),
                1,
                "{name} {number}"
            );
            assert_eq!(
                recording.count_on(name, false, &frame(received + number)),
                1,
                "{name} {number}"
            );
        }
        let statistics = recording.final_statistics(name)?;
        assert_eq!((statistics.delivered, statistics.dropped), (200, 0), "{name}");
    }
    assert!(recording.comment.contains("selection"), "{}", recording.comment);
    Ok(())
}

#[tokio::test]
async fn words_select_on_all_nodes_or_on_those_that_they_choose() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let words = format!("target={}&{FILTER}", percent_encoded(&path(&here)));
    let socket = RawSocket::open(&there, "vb")?;
    let names = ["one", "two"].map(|node| interface(node, &here, "va"));
    for (rest, nodes) in [("&wait=1", 2), ("&target=node:two", 1), ("&target=!node:o*", 1)] {
        let mut recorder = Recorder::start(&gateway.url(&format!("{words}{rest}"))).await?;
        let wanted = &names[2 - nodes..];
        recorder
            .read_until(|recording| {
                wanted
                    .iter()
                    .all(|name| recording.interfaces.iter().any(|one| one.name == *name))
            })
            .await?;
        socket.send(&frame(7))?;
        recorder
            .read_until(|recording| recording.count(&frame(7)) == nodes)
            .await?;
        let recording = recorder.finish().await?;
        let such = recording
            .interfaces
            .iter()
            .filter(|one| one.name.ends_with("/va"));
        assert_eq!(such.count(), nodes, "{rest}");
        recording.check_complete()?;
    }
    Ok(())
}

#[tokio::test]
async fn every_packet_of_a_flood_is_accounted_for_however_slow_the_client_is() -> anyhow::Result<()> {
    // More than all buffers on the way hold.
    const COUNT: u64 = 60_000;
    const LEN: usize = 1000;
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let pairs = [Namespace::pair()?, Namespace::pair()?];
    for is_slow in [false, true] {
        let (mut recorder, names) = {
            let [(here, _), (there, _)] = &pairs;
            let url = gateway.url(&query_of_both(here, there, "&nif=va")?);
            let mut recorder = Recorder::start(&url).await?;
            let names = [interface("one", here, "va"), interface("two", there, "va")];
            recorder
                .read_until(|recording| {
                    names
                        .iter()
                        .all(|name| recording.interfaces.iter().any(|one| one.name == *name))
                })
                .await?;
            (recorder, names)
        };
        let sockets = pairs
            .iter()
            .map(|(_, there)| RawSocket::open(there, "vb"))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let flood = spawn_blocking(move || {
            thread::scope(|scope| {
                let floods = sockets
                    .iter()
                    .map(|socket| scope.spawn(|| socket.flood(&raw::ethernet(0x88b5, &[0; LEN]), COUNT, 20)));
                let floods: Vec<_> = floods.collect();
                for flood in floods {
                    flood.join().map_err(|_| anyhow::anyhow!("panicked"))??;
                }
                Ok(())
            })
        });
        if is_slow {
            // Nothing is read meanwhile.
            flood.await??;
        } else {
            recorder.read_during(flood).await?;
        }
        let recording = recorder.finish().await?;
        // A client that takes nothing has nodes wait for it, and not for each other.
        check_order(&recording, is_slow)?;
        for name in &names {
            let statistics = recording.final_statistics(name)?;
            assert_eq!(statistics.accepted, COUNT, "{name}");
            assert_eq!(recording.packets_of(name).len() as u64, statistics.delivered);
            assert_eq!(statistics.delivered + statistics.dropped, COUNT);
            let told = recording
                .packets_of(name)
                .iter()
                .map(|one| one.dropped_before)
                .sum::<u64>();
            assert!(told <= statistics.dropped);
            if is_slow {
                assert!(
                    statistics.dropped > 0,
                    "{name}: nothing of a flood is lost to who does not read"
                );
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn limits_are_those_of_the_whole_stream() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let socket = RawSocket::open(&here, "va")?;
    for (limit, reason) in [
        ("&packets=7", "the limit of 7 packets is reached"),
        ("&bytes=8KiB", "the limit of 8192 bytes is reached"),
        ("&duration=300ms", "the limit of 300ms is reached"),
    ] {
        let (recorder, _) = stream_of_both(&gateway, &here, &there, limit).await?;
        for _ in 0..60 {
            socket.send(&frame(1))?;
        }
        let (recording, code, told) = recorder.read_to_end().await?;
        assert_eq!((code, &told[..]), (1000, reason));
        recording.check_complete()?;
        check_order(&recording, false)?;
        if limit == "&packets=7" {
            assert_eq!(recording.packets.len(), 7);
        }
        let delivered: u64 = recording.statistics.iter().map(|one| one.delivered).sum();
        assert_eq!(delivered, recording.packets.len() as u64);
    }
    Ok(())
}

#[tokio::test]
async fn node_that_dies_is_told_and_the_others_go_on() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let (mut recorder, names) = stream_of_both(&gateway, &here, &there, "").await?;
    let socket = RawSocket::open(&here, "va")?;
    socket.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 2)
        .await?;
    // Dropping a server kills it.
    cluster.nodes.remove(1);
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "two"))
        .await?;
    socket.send(&frame(2))?;
    recorder
        .read_until(|recording| recording.count(&frame(2)) == 1)
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let told = recording
        .interfaces
        .iter()
        .find(|one| one.name == "two")
        .context("not told")?;
    assert!(told.options.contains("node two: "), "{}", told.options);
    let statistics = recording.final_statistics(&names[0])?;
    assert_eq!((statistics.delivered, statistics.dropped), (2, 0));
    // Nobody knows what it had still to tell.
    let (delivered, said) = recording.untold_statistics(&names[1])?;
    assert_eq!(delivered, 1);
    assert!(said.contains("how many packets were lost is not known"), "{said}");
    Ok(())
}

#[tokio::test]
async fn node_that_comes_back_joins_again() -> anyhow::Result<()> {
    // Also while there is no other.
    for names in [&["two", "one"][..], &["two"]] {
        comes_back(names).await?;
    }
    Ok(())
}

/// The first of these nodes is killed and started again.
async fn comes_back(names: &[&str]) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(names)?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    target(&gateway, "two", &here)?;
    let word = percent_encoded(&path(&here));
    let mut recorder = Recorder::start(&gateway.url(&format!("target={word}&follow=1&{FILTER}"))).await?;
    let name = interface("two", &here, "va");
    let described = |recording: &Recording| {
        let of_two = recording.interfaces.iter().filter(|one| one.name == name);
        of_two.count()
    };
    recorder.read_until(|recording| described(recording) == 1).await?;
    let (_, node) = cluster.nodes.remove(0);
    let port = node.port();
    drop(node);
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "two"))
        .await?;
    let _again = cluster.start_at(port, "two")?;
    recorder.read_until(|recording| described(recording) == 2).await?;
    let socket = RawSocket::open(&there, "vb")?;
    socket.send(&frame(7))?;
    recorder
        .read_until(|recording| recording.count(&frame(7)) == names.len())
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let told = recording.interfaces.iter().filter(|one| one.name == "two");
    let told: Vec<&str> = told.map(|one| &one.options[..]).collect();
    assert!(
        told.iter()
            .any(|told| told.contains("node two: it is captured again")),
        "{told:?}"
    );
    Ok(())
}

/// The end of its part is told, although it has closed as it should.
#[tokio::test]
async fn node_that_reaches_its_own_limit_is_told_and_joins_again() -> anyhow::Result<()> {
    let cluster = Cluster::start_with(&[
        ("one", Vec::new()),
        ("short", vec!["--max-duration=2s".to_owned()]),
    ])?;
    let gateway = cluster.gateway(&[])?;
    let here = Namespace::new()?;
    let word = percent_encoded(&path(&here));
    let mut recorder = Recorder::start(&gateway.url(&format!("target={word}&follow=1"))).await?;
    let told = |recording: &Recording, what: &str| {
        let mut of_node = recording.interfaces.iter().filter(|one| one.name == "short");
        of_node.any(|one| one.options.contains(what))
    };
    for what in [
        "node short: the limit of 2s that the service sets every capture is reached",
        "node short: it is captured again",
    ] {
        recorder.read_until(|recording| told(recording, what)).await?;
    }
    recorder.finish().await?.check_complete()?;
    // Where it does not join again, its end is told all the same.
    let described = json!([
        { "name": path(&here), "netns": here.inode()?, "node-name": "one" },
        { "name": path(&here), "netns": here.inode()?, "node-name": "short" },
    ]);
    let container = percent_encoded(&described.to_string());
    let mut recorder = Recorder::start(&gateway.url(&format!("container={container}"))).await?;
    let what = "node short: the limit of 2s that the service sets every capture is reached";
    recorder.read_until(|recording| told(recording, what)).await?;
    recorder.finish().await?.check_complete()
}

/// Its sentences leave others room for theirs.
#[tokio::test]
async fn node_that_goes_as_soon_as_it_comes_is_tried_less_and_less() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let scripted = |sends| {
        play(Script {
            sends,
            ..Script::default()
        })
    };
    let (breaks, odd) = (scripted(Sends::Breaks)?, scripted(Sends::Garbage)?);
    let gateway = cluster.gateway(&[
        &format!("--node=breaks=http://127.0.0.1:{breaks}"),
        &format!("--node=odd=http://127.0.0.1:{odd}"),
    ])?;
    let mut recorder = Recorder::start(&gateway.url("target=scripted&follow=1")).await?;
    let time = tokio::spawn(async {
        tokio::time::sleep(Duration::from_secs(9)).await;
        anyhow::Ok(())
    });
    recorder.read_during(time).await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let told = |node: &str, what: &str| {
        let of_node = recording.interfaces.iter().filter(|one| one.name == node);
        of_node.filter(|one| one.options.contains(what)).count()
    };
    // After one second, two and four.
    let again = told("breaks", "it is captured again");
    ensure!((1..=3).contains(&again), "{again}");
    // What sends nonsense is not asked for more.
    assert_eq!(
        (told("odd", "it sends what is no block"), told("odd", "")),
        (1, 1)
    );
    Ok(())
}

/// One that was left out since it did not answer joins once it does.
#[tokio::test]
async fn node_that_did_not_answer_at_the_beginning_joins_later() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let (_, node) = cluster.nodes.remove(1);
    let port = node.port();
    drop(node);
    let (_, list) = gateway.get("/targets")?;
    let gaps = list["gaps"].to_string();
    ensure!(gaps.contains("node two: no server answers"), "{gaps}");
    let word = percent_encoded(&path(&here));
    let mut recorder = Recorder::start(&gateway.url(&format!("target={word}&follow=1&{FILTER}"))).await?;
    let _again = cluster.start_at(port, "two")?;
    let name = interface("two", &here, "va");
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == name))
        .await?;
    RawSocket::open(&there, "vb")?.send(&frame(7))?;
    recorder
        .read_until(|recording| recording.count(&frame(7)) == 2)
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    let told = recording.interfaces.iter().filter(|one| one.name == "two");
    let told: Vec<&str> = told.map(|one| &one.options[..]).collect();
    for said in ["it did not answer when it was last asked", "it is captured again"] {
        ensure!(told.iter().any(|told| told.contains(said)), "{said}: {told:?}");
    }
    Ok(())
}

/// What could not be looked at is not said to be elsewhere.
#[tokio::test]
async fn look_of_a_node_that_was_not_whole_is_told() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let blind = play(Script {
        answer: Some(r#"{"version": 1, "targets": [], "gaps": ["the list of mounts"]}"#),
        ..Script::default()
    })?;
    let gateway = cluster.gateway(&[&format!("--node=blind=http://127.0.0.1:{blind}")])?;
    let here = Namespace::new()?;
    let word = percent_encoded(&path(&here));
    let mut recorder = Recorder::start(&gateway.url(&format!("target={word}&target=no-such"))).await?;
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "blind"))
        .await?;
    let recording = recorder.finish().await?;
    let told = recording.interfaces.iter().find(|one| one.name == "blind");
    let told = &told.context("not told")?.options;
    let said =
        "node blind: not captured: it has not found it, and could not look at everything: the list of mounts";
    ensure!(told.contains(said), "{told}");
    let (status, sentence) = refusal(&gateway, &gateway.url("target=nobody-at-all"), &[]).await?;
    let said =
        "none of 2 nodes has nobody-at-all, 1 of which does not answer, or could not look at everything";
    ensure!(status == 404 && sentence.contains(said), "{status} {sentence}");
    Ok(())
}

/// Others may have it, and were not asked.
#[tokio::test]
async fn names_that_are_near_are_those_of_the_nodes_that_were_asked() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let target = r#"{"name": "scripted", "type": "docker", "netns": 5, "network-interfaces": []}"#;
    let long = target.replace("scripted", &format!("scripte{}", "d".repeat(600)));
    let answer = format!(r#"{{"version": 1, "targets": [{long}, {target}]}}"#).leak();
    let odd = play(Script {
        answer: Some(answer),
        has_no_word: true,
        ..Script::default()
    })?;
    let gateway = cluster.gateway(&[&format!("--node=odd=http://127.0.0.1:{odd}")])?;
    for (choice, expected) in [
        ("one", "the node that was asked has no scriptde"),
        (
            "odd",
            "the node that was asked has no scriptde; the nearest of what they have is scripted",
        ),
        (
            "o*",
            "none of 2 nodes has scriptde; the nearest of what they have is scripted",
        ),
    ] {
        let url = gateway.url(&format!("target=node:{choice}&target=scriptde"));
        let (status, sentence) = refusal(&gateway, &url, &[]).await?;
        ensure!(status == 404 && sentence == expected, "{status} {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn node_that_hangs_is_told_and_the_others_go_on() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let (mut recorder, names) = stream_of_both(&gateway, &here, &there, "").await?;
    cluster.node("two").stop()?;
    let socket = RawSocket::open(&here, "va")?;
    let begun = Instant::now();
    socket.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    // It is not waited for any longer than packets may be late.
    ensure!(begun.elapsed() < packetflix_tests::pace::time(Duration::from_secs(4)));
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "two"))
        .await?;
    let recording = recorder.recording()?;
    let told = recording
        .interfaces
        .iter()
        .find(|one| one.name == "two")
        .context("not told")?;
    assert!(
        told.options.contains("node two has said nothing for 5 s"),
        "{}",
        told.options
    );
    // What it has captured comes when it goes on.
    cluster.node("two").go_on();
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 2)
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    for name in &names {
        assert_eq!(recording.final_statistics(name)?.delivered, 1, "{name}");
    }
    Ok(())
}

/// What nodes send is passed on as they send it, also where each message has one packet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_that_come_all_the_time_come_at_once() -> anyhow::Result<()> {
    const PACKETS: usize = 2000;
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let (mut recorder, names) = stream_of_both(&gateway, &here, &there, "").await?;
    let socket = RawSocket::open(&here, "va")?;
    let sending = spawn_blocking(move || {
        for _ in 0..PACKETS {
            socket.send(&frame(1))?;
            thread::sleep(Duration::from_millis(2));
        }
        anyhow::Ok(())
    });
    recorder.read_during(sending).await?;
    // Streams fell behind by up to two seconds, after three.
    let ended = Instant::now();
    recorder
        .read_until(|recording| recording.packets.len() == 2 * PACKETS)
        .await?;
    let late = ended.elapsed();
    ensure!(
        late < packetflix_tests::pace::time(Duration::from_secs(1)),
        "{late:?}"
    );
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    for name in &names {
        let told = recording.final_statistics(name)?;
        assert_eq!((told.delivered, told.dropped), (PACKETS as u64, 0), "{name}");
    }
    let is_of_node = |one: &Interface| ["one", "two"].contains(&&one.name[..]);
    let said = recording.interfaces.iter().find(|one| is_of_node(one));
    ensure!(said.is_none(), "said to lag: {said:?}");
    Ok(())
}

/// What waited for the client was not late at its node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_stalls_has_no_node_said_to_lag_or_hang() -> anyhow::Result<()> {
    // The third has nothing to say meanwhile.
    let cluster = Cluster::start(&["one", "two", "idle"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let idle = Namespace::new()?;
    let described = json!([
        { "name": path(&here), "netns": here.inode()?, "node-name": "one" },
        { "name": path(&there), "netns": there.inode()?, "node-name": "two" },
        { "name": path(&idle), "netns": idle.inode()?, "node-name": "idle" },
    ]);
    let container = percent_encoded(&described.to_string());
    let mut recorder = Recorder::start(&gateway.url(&format!("container={container}&{FILTER}"))).await?;
    let names = [interface("one", &here, "va"), interface("two", &there, "vb")];
    recorder
        .read_until(|recording| {
            let is_there = |name: &String| recording.interfaces.iter().any(|one| one.name == *name);
            names.iter().all(is_there)
        })
        .await?;
    let socket = RawSocket::open(&here, "va")?;
    let large = raw::ethernet(0x88b5, &[9; 1400]);
    // More than the sockets on the road hold, and for longer than packets are waited for.
    let sent = spawn_blocking(move || {
        for _ in 0..150 {
            socket.flood(&large, 500, 14)?;
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::Ok(socket)
    });
    let socket = sent.await??;
    recorder
        .read_until(|recording| recording.packets.len() > 1000)
        .await?;
    socket.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 2)
        .await?;
    let recording = recorder.finish().await?;
    recording.check_complete()?;
    for name in &names {
        let told = recording.final_statistics(name)?;
        assert_eq!(told.delivered + told.dropped, 75_001, "{name}");
        // Else nothing had waited.
        ensure!(told.dropped > 0, "{name}");
    }
    let is_of_node = |one: &&Interface| ["one", "two", "idle"].contains(&&one.name[..]);
    let said = recording.interfaces.iter().find(is_of_node);
    ensure!(said.is_none(), "said to lag or hang: {said:?}");
    Ok(())
}

#[tokio::test]
async fn end_that_an_operator_asks_of_a_node_is_told() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let (mut recorder, _) = stream_of_both(&gateway, &here, &there, "").await?;
    let (_, list) = gateway.get("/captures")?;
    let captures = list["captures"].as_array().context("no list")?;
    let of_two = captures.iter().find(|one| one["node-name"] == "two");
    let id = &of_two.context("nothing on two")?["id"];
    let (ended, _) = gateway.ask(&format!("DELETE /captures/two/{id} HTTP/1.1"))?;
    assert_eq!(ended.status()?, 204);
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "two"))
        .await?;
    let recording = recorder.finish().await?;
    let told = recording.interfaces.iter().find(|one| one.name == "two");
    let told = &told.context("not told")?.options;
    ensure!(told.contains("node two: ended by the operator"), "{told}");
    Ok(())
}

/// Of a node that is known not to answer, a stream that goes on with those that come tells at once, and does not wait for it.
#[tokio::test]
async fn stream_begins_without_a_node_that_is_known_to_hang() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let port = closed_port()?;
    let node = format!("--node=gone=http://127.0.0.1:{port}");
    let gateway = cluster.gateway(&["--node-timeout=100", &node])?;
    let (here, there) = Namespace::pair()?;
    let (_, list) = gateway.get("/targets")?;
    let gaps = list["gaps"].to_string();
    ensure!(gaps.contains("node gone: no server answers"), "{gaps}");
    say_nothing(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?);
    let words = percent_encoded(&path(&here));
    let mut recorder = Recorder::start(&gateway.url(&format!("target={words}&follow=1&{FILTER}"))).await?;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    let recording = recorder.finish().await?;
    let told = recording.interfaces.iter().find(|one| one.name == "gone");
    let told = &told.context("not told")?.options;
    let said = "node gone: not captured: it did not answer when it was last asked: no server answers";
    ensure!(told.contains(said), "{told}");
    // A list has all, and waits a second for it.
    let (_, list) = gateway.get("/targets")?;
    let gaps = list["gaps"].to_string();
    ensure!(gaps.contains("node gone: it does not answer within 1s"), "{gaps}");
    Ok(())
}

#[tokio::test]
async fn node_that_is_not_reached_is_told_in_the_stream_of_the_others() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let gone = closed_port()?;
    let gateway = cluster.gateway(&[&format!("--node=gone=http://127.0.0.1:{gone}")])?;
    let (here, there) = Namespace::pair()?;
    let url = gateway.url(&format!(
        "target={}&follow=1&{FILTER}",
        percent_encoded(&path(&here))
    ));
    let mut recorder = Recorder::start(&url).await?;
    let name = interface("one", &here, "va");
    recorder
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == name))
        .await?;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    let recording = recorder.finish().await?;
    let told = recording
        .interfaces
        .iter()
        .find(|one| one.name == "gone")
        .context("not told")?;
    assert!(
        told.options.contains("node gone: not captured: "),
        "{}",
        told.options
    );
    assert!(told.options.contains("no server answers"), "{}", told.options);
    Ok(())
}

#[tokio::test]
async fn client_that_leaves_frees_the_captures_of_all_nodes_at_once() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let running = || {
        let list = gateway.get("/captures")?.1;
        anyhow::Ok(list["captures"].as_array().map_or(0, Vec::len))
    };
    let (mut recorder, _) = stream_of_both(&gateway, &here, &there, "").await?;
    // That of the gateway's client, and one on each node.
    assert_eq!(running()?, 3);
    recorder.capture().close().await?;
    let (_, code, _) = recorder.read_to_end().await?;
    assert_eq!(code, 1000);
    wait_until(Duration::from_secs(2), || Ok(running()? == 0))?;

    let (recorder, _) = stream_of_both(&gateway, &here, &there, "").await?;
    drop(recorder);
    wait_until(Duration::from_secs(2), || Ok(running()? == 0))?;

    // The gateway is killed: the nodes notice.
    let (recorder, _) = stream_of_both(&gateway, &here, &there, "").await?;
    gateway.signal(nix::sys::signal::Signal::SIGKILL)?;
    let freed = cluster.gateway(&[])?;
    wait_until(Duration::from_secs(2), || {
        let list = freed.get("/captures")?.1;
        Ok(list["captures"].as_array().is_some_and(Vec::is_empty))
    })?;
    assert!(recorder.read_to_end().await.is_err());
    Ok(())
}

#[tokio::test]
async fn end_of_the_only_capture_is_passed_on() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let namespace = Namespace::new()?;
    let target = target(&gateway, "one", &namespace)?;
    let recorder = Recorder::start(&gateway.url_of(&target, "")).await?;
    let inode = namespace.inode()?;
    drop(namespace);
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    assert_eq!(code, 1000);
    assert!(reason.contains("has ended"), "{reason} {inode}");
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_captured_is_refused_before_the_upgrade() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let namespace = Namespace::new()?;
    let target = target(&gateway, "one", &namespace)?;
    let known = percent_encoded(&path(&namespace));
    let elsewhere = percent_encoded(r#"{"name": "web", "node-name": "three"}"#);
    let here = percent_encoded(&target.to_string());
    for (query, status, said) in [
        (
            format!("container={elsewhere}"),
            404,
            "there is no node three: there are one, two",
        ),
        (
            format!("target={known}"),
            409,
            "is on several nodes: there are one, two",
        ),
        (
            "target=nobody-at-all".to_owned(),
            404,
            "none of 2 nodes has nobody-at-all",
        ),
        ("target=nobody-*".to_owned(), 404, "none of 2 nodes has nobody-*"),
        (
            "target=node:three".to_owned(),
            404,
            "no node of this name is chosen",
        ),
        ("target=node:".to_owned(), 400, "give node:NAME"),
        (
            format!("netns={}", namespace.inode()?),
            400,
            "a number says nothing without its node",
        ),
        (
            format!("container={here}&filter=nonsense"),
            400,
            "node one: \"nonsense\"",
        ),
        (format!("container={here}&nif=eth7"), 404, "node one: "),
        (
            format!("container={here}&bytes=10"),
            400,
            "has no room for packets",
        ),
        (
            format!("container={here}&speed=7"),
            400,
            "there is no parameter speed",
        ),
    ] {
        let (found, sentence) = refusal(&gateway, &gateway.url(&query), &[]).await?;
        assert_eq!(found, status, "{query}: {sentence}");
        assert!(sentence.contains(said), "{query}: {sentence}");
    }
    Ok(())
}

/// A gateway that knows Alice by a token, and a link between two namespaces.
struct OfAlice {
    cluster: Cluster,
    gateway: Server,
    link: (Namespace, Namespace),
}

impl OfAlice {
    const TOKEN: &str = "alice-0123456789abcdef";

    fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(&["one", "two"])?;
        let line = format!("alice {} discover capture\n", Self::TOKEN);
        cluster.folder.put_secret("clients", &line)?;
        let tokens = cluster.folder.path().join("clients").display().to_string();
        let gateway = cluster.gateway(&["--token-file", &tokens])?;
        let link = Namespace::pair()?;
        Ok(Self {
            cluster,
            gateway,
            link,
        })
    }

    /// Both ends of the link, captured by her.
    async fn capture(&self) -> anyhow::Result<Capture> {
        let (here, there) = &self.link;
        let url = self.gateway.url(&query_of_both(here, there, "")?);
        let bearer = format!("Bearer {}", Self::TOKEN);
        Capture::open(&url, &[("authorization", &bearer)]).await
    }

    /// Her token is known no longer.
    fn take_away(&self) -> anyhow::Result<()> {
        let line = "bob bob-0123456789abcdefgh discover capture\n";
        self.cluster.folder.put_secret("clients", line)?;
        self.gateway.signal(nix::sys::signal::Signal::SIGHUP)
    }
}

#[tokio::test]
async fn token_that_is_taken_away_ends_the_stream() -> anyhow::Result<()> {
    let ours = OfAlice::start()?;
    let recorder = Recorder::of(ours.capture().await?).await?;
    ours.take_away()?;
    let (_, code, _) = recorder.read_to_end().await?;
    assert_eq!(code, 1008);
    Ok(())
}

/// Although there is always more than it takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_that_is_taken_away_ends_the_stream_of_who_reads_slowly() -> anyhow::Result<()> {
    const TIMES: usize = 2000;
    let ours = OfAlice::start()?;
    let mut capture = ours.capture().await?;
    let socket = RawSocket::open(&ours.link.0, "va")?;
    let large = raw::ethernet(0x88b5, &[9; 1400]);
    let is_over = Arc::new(AtomicBool::new(false));
    let is_enough = Arc::clone(&is_over);
    let sending = spawn_blocking(move || {
        let mut times = 0;
        while times < TIMES && !is_enough.load(Ordering::Relaxed) {
            socket.flood(&large, 500, 14)?;
            thread::sleep(Duration::from_millis(5));
            times += 1;
        }
        anyhow::Ok(times)
    });
    let mut messages = 0;
    let (code, reason) = loop {
        match capture.next().await? {
            Piece::Data(_) => messages += 1,
            Piece::Closed(code, reason) => break (code, reason),
        }
        if messages == 50 {
            ours.take_away()?;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    is_over.store(true, Ordering::Relaxed);
    let times = sending.await??;
    ensure!(
        code == 1008 && times < TIMES,
        "{code} {reason} after {times} of {TIMES}"
    );
    Ok(())
}
