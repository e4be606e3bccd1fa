//! Beginnings and ends: nothing is left behind, whoever ends a capture and however.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::ensure;
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use packetflix_tests::{
    bpf_objects::Objects,
    client::{Capture, Recorder},
    hook::hooks,
    metrics::Metrics,
    namespace::Namespace,
    pace,
    raw::{self, RawSocket},
    server::{RESTING_THREADS, Server, wait_until},
    traces::{traces, traces_before, wait_for_traces},
};

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

#[tokio::test]
async fn killed_twenty_times_and_nothing_is_left() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let before = traces_before(None, &[&here])?;
    let rounds = pace::sample(20) as u8;
    for (round, hook) in (0..rounds).zip(hooks()?.into_iter().cycle()) {
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(round))?;
        recorder
            .read_until(|recording| recording.count(&frame(round)) == 1)
            .await?;
        ensure!(
            traces(None, &[&here])? != before,
            "the capture left no trace while it ran"
        );
        let held = Objects::held_by(server.keeper()?)?;
        // Programs, maps and rings, of which none is said to be gone too early.
        let left = held.left()?;
        ensure!(
            ["Program ", "Map ", " ring "]
                .iter()
                .all(|what| left.contains(what)),
            "the server holds too little while it captures:\n{left}"
        );
        ensure!(hook == "socket" || left.contains("Link "), "{left}");
        server.signal(Signal::SIGKILL)?;
        drop(server);
        held.wait_until_gone()?;
        wait_for_traces(&before, None, &[&here])?;
    }
    Ok(())
}

#[tokio::test]
async fn shutting_down_ends_every_capture_properly() -> anyhow::Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (here, there) = Namespace::pair()?;
        let before = traces_before(None, &[&here])?;
        let mut server = Server::start(&[])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let recorders = try_join_all((0..3).map(|_| Recorder::start(&url))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        let held = Objects::held_by(server.keeper()?)?;
        server.signal(signal)?;
        for recorder in recorders {
            let (recording, code, reason) = recorder.read_to_end().await?;
            recording.check_complete()?;
            assert_eq!(recording.count(&frame(1)), 1);
            assert_eq!((code, reason.as_str()), (1001, "the service is shutting down"));
        }
        assert_eq!(server.wait()?.code(), Some(0));
        held.wait_until_gone()?;
        wait_for_traces(&before, None, &[&here])?;
    }
    Ok(())
}

#[tokio::test]
async fn shutting_down_does_not_wait_for_a_client_that_stalls() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let mut server = Server::start(&[])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    let socket = RawSocket::open(&there, "vb")?;
    socket.flood(&raw::ethernet(0x88b5, &[0; 1400]), 30_000, 14)?;
    let start = Instant::now();
    server.signal(Signal::SIGTERM)?;
    assert_eq!(server.wait()?.code(), Some(0));
    ensure!(
        start.elapsed() < Duration::from_secs(10),
        "took {:?}",
        start.elapsed()
    );
    drop(recorder);
    Ok(())
}

/// The next one may be another client's, in a namespace where interfaces have the same numbers.
#[tokio::test]
async fn what_a_capture_has_loaded_serves_the_next_which_sees_nothing_of_it() -> anyhow::Result<()> {
    const LEFT: [u8; 1400] = [0xa5; 1400];

    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let (other, beyond) = Namespace::pair()?;
        assert_eq!(here.ifindex("va")?, other.ifindex("va")?);
        let server = Server::start(&["--hook", hook])?;
        let loaded = Objects::held_by(server.keeper()?)?;
        let all = loaded.left()?;

        // Much of it is still in the rings when its client is gone.
        let stalled = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.flood(&raw::ethernet(0x88b5, &LEFT), 60_000, 14)?;
        drop(stalled);

        for (round, query) in ["", "&filter=ether%20proto%200x88b5", "", "&self=1"]
            .into_iter()
            .enumerate()
        {
            // What it has loaded is there again; else the next one takes what is kept beside it.
            wait_until(Duration::from_secs(10), || {
                Ok(Metrics::of(&server)?.count("packetflix_taps")? == 0)
            })?;
            let url = server.url(&format!("netns={}{query}", other.inode()?));
            let mut recorder = Recorder::start(&url).await?;
            let frame = frame(round as u8);
            RawSocket::open(&beyond, "vb")?.send(&frame)?;
            recorder
                .read_until(|recording| recording.count(&frame) == 1)
                .await?;
            let recording = recorder.finish().await?;
            recording.check_complete()?;
            ensure!(!recording.has(&LEFT[..64]), "{hook}: packets of another capture");
            let statistics = recording.final_statistics("va")?;
            ensure!(
                statistics.received < 1000,
                "{hook}: counts of another capture: {statistics:?}"
            );
        }
        ensure!(
            loaded.left()? == all,
            "{hook}: it was loaded anew:\n{}",
            loaded.left()?
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lone_packet_arrives_within_five_milliseconds() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
        let socket = RawSocket::open(&there, "vb")?;
        let sending = tokio::task::spawn_blocking(move || {
            let mut lateness = Vec::new();
            for _ in 0..101 {
                let pause = Duration::from_millis(17);
                let began = Instant::now();
                std::thread::sleep(pause);
                lateness.push(began.elapsed().saturating_sub(pause));
                let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
                socket.send(&raw::ethernet(0x88b5, &now.to_be_bytes()))?;
            }
            lateness.sort_unstable();
            anyhow::Ok(lateness[50])
        });
        let mut delays = Vec::new();
        while delays.len() < 101 {
            let seen = recorder.stream().len();
            recorder.read().await?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
            delays.extend(payload_times(&recorder.stream()[seen..]).map(|sent| now.saturating_sub(sent)));
        }
        // On a busy machine whoever sleeps is woken late, and on its way a packet wakes four.
        let limit = Duration::from_millis(5) + sending.await?? * 4;
        delays.sort_unstable();
        eprintln!(
            "{hook}: delay p50 {} µs, p99 {} µs",
            delays[50] / 1000,
            delays[99] / 1000
        );
        ensure!(
            u128::from(delays[50]) < pace::time(limit).as_nanos(),
            "{hook}: the median is {} µs, and not below {limit:?}",
            delays[50] / 1000
        );
        recorder.finish().await?;
    }
    Ok(())
}

/// The times in the payloads of a piece, which is whole blocks.
fn payload_times(mut piece: &[u8]) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        while !piece.is_empty() {
            let len = u32::from_le_bytes(piece[4..8].try_into().ok()?) as usize;
            let (block, rest) = piece.split_at(len);
            piece = rest;
            if block[..4] == [6, 0, 0, 0] {
                return Some(u64::from_be_bytes(block[28 + 14..28 + 22].try_into().ok()?));
            }
        }
        None
    })
}

#[tokio::test]
async fn twenty_captures_of_one_namespace_each_have_it_all() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let recorders = try_join_all((0..20).map(|_| Recorder::start(&url))).await?;
        let socket = RawSocket::open(&there, "vb")?;
        (0..100).try_for_each(|number| socket.send(&frame(number)))?;
        for mut recorder in recorders {
            recorder
                .read_until(|recording| recording.count(&frame(99)) == 1)
                .await?;
            let recording = recorder.finish().await?;
            let expected: Vec<_> = (0..100).map(frame).collect();
            ensure!(
                recording.packets.iter().map(|packet| &packet.data).eq(&expected),
                "{hook}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn two_hundred_captures_leave_everything_where_it_was() -> anyhow::Result<()> {
    for hook in hooks()? {
        let here = Namespace::new()?;
        let server = Server::start(&["--hook", hook])?;
        let before = traces_before(Some(&server), &[&here])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let cycle = || async { Recorder::start(&url).await?.finish().await };
        // What the allocator keeps for what comes at once is there after some.
        for _ in 0..pace::sample(60) {
            cycle().await?;
        }
        wait_for_traces(&before, Some(&server), &[&here])?;
        let (descriptors, memory) = (server.descriptors()?, server.status("RssAnon")?);
        for _ in 0..pace::sample(140) {
            cycle().await?;
        }
        wait_for_traces(&before, Some(&server), &[&here])?;
        wait_until(
            Duration::from_secs(5),
            || Ok(server.descriptors()? <= descriptors),
        )?;
        // Threads that do what blocks end when there was nothing to do for ten seconds.
        wait_until(Duration::from_secs(15), || {
            Ok(server.status("Threads")? <= RESTING_THREADS)
        })?;
        let grown = server.status("RssAnon")?.saturating_sub(memory);
        eprintln!("{grown} KiB more");
        ensure!(grown < 2048, "{hook}: resident memory grew by {grown} KiB");
    }
    Ok(())
}

#[tokio::test]
async fn client_that_leaves_without_a_word_is_noticed() -> anyhow::Result<()> {
    let here = Namespace::new()?;
    let server = Server::start(&[])?;
    let before = traces_before(Some(&server), &[&here])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    drop(recorder);
    // Where it had yet to read something, its system resets the connection.
    server.wait_for_log("the client is gone: ")?;
    wait_for_traces(&before, Some(&server), &[&here])
}

#[tokio::test]
async fn client_whose_link_drops_is_given_up() -> anyhow::Result<()> {
    let (here, desk, house) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
    desk.connect("desk", &house, "house", 1)?;
    let mut inside = house.command("env");
    inside.arg(packetflix_tests::server::program("packetflix")?);
    let server = Server::start_by(&mut inside, &["--open-to-everyone", "--client-timeout", "2"])?;
    let before = traces_before(Some(&server), &[&here])?;
    let connect = || std::net::TcpStream::connect(("10.9.1.2", server.port()));
    let stream = desk.inside(connect)??;
    let url = format!("ws://10.9.1.2/capture?netns={}", here.inode()?);
    let mut capture = Capture::over(stream, &url, &[]).await?;
    capture.next().await?;
    desk.ip(&["link", "set", "desk", "down"])?;
    server.wait_for_log("it answered no ping for 2 s")?;
    wait_for_traces(&before, Some(&server), &[&here])
}

#[tokio::test]
async fn client_that_stalls_too_long_is_given_up_and_others_do_not_notice() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Arc::new(Server::start(&["--client-timeout", "2"])?);
    let before = traces_before(Some(&*server), &[&here])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let _stalling = Recorder::start(&url).await?;
    let mut reading = Recorder::start(&url).await?;
    let socket = RawSocket::open(&there, "vb")?;
    // More than rings and sockets hold, at a pace that a client can follow.
    let sending = tokio::task::spawn_blocking(move || {
        for _ in 0..40 {
            socket.flood(&raw::ethernet(0x88b5, &[0; 1400]), 1000, 14)?;
            std::thread::sleep(Duration::from_millis(10));
        }
        anyhow::Ok(())
    });
    reading.read_during(sending).await?;
    let waiting = Arc::clone(&server);
    let waiting = tokio::task::spawn_blocking(move || waiting.wait_for_log("it took nothing for 2 s"));
    reading.read_during(waiting).await?;
    let statistics = reading.finish().await?.final_statistics("va")?;
    assert_eq!((statistics.delivered, statistics.dropped), (40_000, 0));
    wait_for_traces(&before, Some(&*server), &[&here])
}

#[tokio::test]
async fn others_do_not_notice_a_client_that_sends_garbage() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    // Of a client that leaves with something unread, the server is told otherwise.
    let url = server.url(&format!("netns={}&names=0", here.inode()?));
    let mut good = Recorder::start(&url).await?;
    let garbage = vec![0xff; 4096];
    // Reserved bits, a frame of 2^63 bytes, and half a header.
    for (bytes, logged) in [
        (&garbage[..], "code=1002 reason=\"not WebSocket: Reserved bits"),
        (
            &[0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4],
            "code=1002 reason=\"not WebSocket: Frame too large",
        ),
        (
            &[0x82],
            "code=1000 reason=\"the client is gone: it left without a close",
        ),
    ] {
        let mut bad = Recorder::start(&url).await?;
        tokio::io::AsyncWriteExt::write_all(bad.capture().tcp(), bytes).await?;
        if bytes.len() == 1 {
            drop(bad);
        } else {
            // Whether the close frame comes or is overtaken by a reset, the stream ends.
            let _ = bad.read_to_end().await;
        }
        server.wait_for_log(logged)?;
    }
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    good.read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    good.finish().await?;
    Ok(())
}

#[tokio::test]
async fn captures_while_debugging() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--debug", "--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        recorder
            .read_until(|recording| recording.count(&frame(1)) == 1)
            .await?;
        recorder.finish().await?;
        server.wait_for_log("asked for a capture")?;
    }
    Ok(())
}

#[tokio::test]
async fn client_may_ping_and_talk() -> anyhow::Result<()> {
    let here = Namespace::new()?;
    let server = Server::start(&[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    recorder.capture().talk().await?;
    recorder.capture().ping().await?;
    recorder.finish().await?;
    Ok(())
}
