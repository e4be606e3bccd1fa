//! How streams end, and what they tell of losses until then.

use std::{
    fs,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use packetflix_tests::{
    client::{Capture, Piece, Recorder},
    folder::Folder,
    namespace::{Namespace, output_of},
    pace,
    raw::{self, RawSocket},
    recording::Recording,
    server::{Server, program},
};
use tokio::time::{sleep, timeout};

/// What Wireshark's plugin has, until people notice.
const AT_ONCE: Duration = Duration::from_millis(500);

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

/// Sends more than a rate of a thousand packets a second lets pass, and then what tells of the loss.
async fn lose(there: &Namespace) -> anyhow::Result<()> {
    let socket = RawSocket::open(there, "vb")?;
    let sent = tokio::task::spawn_blocking(move || {
        // Of one CPU, since each tells of its own.
        let mut cpus = CpuSet::new();
        cpus.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        socket.flood(&frame(1), 5000, 14)?;
        std::thread::sleep(Duration::from_millis(100));
        socket.send(&frame(2))?;
        anyhow::Ok(())
    });
    sent.await??;
    Ok(())
}

#[tokio::test]
async fn nothing_but_a_close_follows_the_clients_close() -> anyhow::Result<()> {
    for hook in ["tcx", "socket"] {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}&names=0", here.inode()?))).await?;
        let socket = RawSocket::open(&there, "vb")?;
        socket.send(&frame(1))?;
        recorder.read_until(|recording| recording.has(&frame(1))).await?;
        // What comes in the same moment is nothing to a reader that has closed.
        socket.send(&frame(2))?;
        recorder.capture().close().await?;
        let closed = Instant::now();
        let end = timeout(AT_ONCE, recorder.capture().next()).await??;
        assert_eq!(
            end,
            Piece::Closed(1000, "closed by the client".to_owned()),
            "{hook}"
        );
        ensure!(closed.elapsed() < AT_ONCE, "{hook}: {:?}", closed.elapsed());
        ensure!(
            Recording::parse(recorder.stream())?.statistics.is_empty(),
            "{hook}"
        );
    }
    Ok(())
}

/// As Wireshark's plugin does: it closes under load, and its reader takes nothing any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_under_load_is_answered_behind_the_message_that_is_on_its_way() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    for _ in 0..5 {
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let mut capture = Capture::open(&url, &[]).await?;
        let socket = RawSocket::open(&there, "vb")?;
        let sending = tokio::task::spawn_blocking(move || socket.flood(&frame(1), 300_000, 14));
        for _ in 0..20 {
            capture.next().await?;
        }
        capture.close().await?;
        let closed = Instant::now();
        let rest = async {
            let mut pieces = 0;
            while let Piece::Data(_) = capture.next().await? {
                pieces += 1;
            }
            anyhow::Ok(pieces)
        };
        // What was sent before the server could know stands in the socket: not the whole rest of the flood.
        let pieces = timeout(Duration::from_secs(1), rest)
            .await
            .context("no close")??;
        ensure!(pieces < 40, "{pieces} messages");
        ensure!(closed.elapsed() < Duration::from_secs(1));
        sending.await??;
    }
    Ok(())
}

#[tokio::test]
async fn stop_brings_the_rest_and_the_final_statistics() -> anyhow::Result<()> {
    for hook in ["tcx", "socket"] {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        // Other words mean nothing.
        recorder.capture().talk().await?;
        recorder.capture().stop().await?;
        // Nor does saying it again.
        recorder.capture().stop().await?;
        let (recording, code, reason) = recorder.read_to_end().await?;
        assert_eq!((code, &reason[..]), (1000, "stopped by the client"), "{hook}");
        recording.check_complete()?;
        assert_eq!(recording.count_on("va", false, &frame(1)), 1, "{hook}");
        server.wait_for_log("reason=\"stopped by the client\"")?;
    }
    Ok(())
}

/// `tshark` ends with its last packet, and so does the plugin through which it captures: no error, and no ten seconds.
#[tokio::test]
async fn tshark_ends_at_once_with_the_last_packet_of_a_plugin() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let plugins = folder.file("plugins");
    fs::create_dir(&plugins)?;
    fs::copy(program("plugin")?, plugins.join("plugin"))?;
    let folders = output_of(Command::new("tshark").args(["-G", "folders"]))?;
    let of_tshark = folders.lines().find_map(|line| line.strip_prefix("Extcap path:"));
    let of_tshark = of_tshark.context("tshark knows no plugins")?.trim();
    let file = folder.file("captured.pcapng");
    for (hook, is_one_of_several) in [("tcx", false), ("socket", false), ("socket", true)] {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let one = format!("netns={}", here.inode()?);
        let several = format!("target={}*&target=host&nif=va/lo", here.path().display());
        let query = if is_one_of_several { several } else { one };
        // This plugin is the only one that this tshark sees.
        let tshark = Command::new("unshare")
            .args([
                "--mount",
                "sh",
                "-c",
                "mount --bind \"$0\" \"$1\" && shift && exec \"$@\"",
            ])
            .arg(&plugins)
            .args([of_tshark, "tshark", "-i", "plugin", "-c", "4", "-w"])
            .arg(&file)
            .env("PLUGIN_URL", server.url(&format!("{query}&names=0")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        server.wait_for_log(": started")?;
        // More come all the time, as they do at a desk.
        let socket = RawSocket::open(&there, "vb")?;
        let sending = tokio::task::spawn_blocking(move || {
            for number in 0..100 {
                socket.send(&frame(number))?;
                std::thread::sleep(Duration::from_millis(20));
            }
            anyhow::Ok(())
        });
        let begin = Instant::now();
        let output = tokio::task::spawn_blocking(move || tshark.wait_with_output());
        let output = timeout(pace::time(Duration::from_secs(5)), output)
            .await
            .context("tshark goes on")???;
        let (took, printed) = (begin.elapsed(), String::from_utf8(output.stderr)?);
        ensure!(
            output.status.success() && took < pace::time(Duration::from_secs(3)),
            "{took:?} {printed}"
        );
        ensure!(!printed.contains("after the close"), "{printed}");
        // tshark ends the plugin right after it has closed the pipe: its close may not get out.
        server.wait_for_log("ended code=1000 reason=")?;
        sending.await??;
        let mut read = Command::new("tshark");
        let read = output_of(read.args(["-T", "fields", "-e", "frame.number", "-r"]).arg(&file))?;
        assert_eq!(read.lines().count(), 4, "{hook}: {read}");
    }
    Ok(())
}

/// Account of what a client got that closed: `/metrics` and the audit log have the losses of its last moment too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losses_before_a_close_are_in_the_log() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--max-packet-rate", "1000"])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
    lose(&there).await?;
    recorder.read_until(|recording| recording.has(&frame(2))).await?;
    let told: u64 = Recording::parse(recorder.stream())?
        .packets
        .iter()
        .map(|packet| packet.dropped_before)
        .sum();
    ensure!(told > 0);
    recorder.capture().close().await?;
    server.wait_for_log(&format!("dropped={told}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wireshark_is_told_the_losses_of_an_interface_once() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    for hook in ["tcx", "socket"] {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook, "--max-packet-rate", "1000"])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        lose(&there).await?;
        // Some of what used to be one block a second.
        sleep(Duration::from_millis(2500)).await;
        recorder.capture().stop().await?;
        while recorder.read().await?.is_none() {}
        let file = folder.file("stream.pcapng");
        fs::write(&file, recorder.stream())?;
        let recording = Recording::parse(recorder.stream())?;
        recording.check_complete()?;
        assert_eq!(recording.statistics.len(), recording.interfaces.len(), "{hook}");
        let statistics = recording.final_statistics("va")?;
        assert_eq!(statistics.received, 5001, "{hook}: {statistics:?}");
        ensure!(statistics.dropped > 2000, "{hook}: {statistics:?}");

        // Wireshark shows the drops of an interface that has one entry, and "Unknown" for others.
        let capinfos = output_of(Command::new("capinfos").arg(&file))?;
        let entries = capinfos.matches("Number of stat entries = ").count();
        let single = capinfos.matches("Number of stat entries = 1\n").count();
        assert_eq!(
            (entries, single),
            (recording.interfaces.len(), entries),
            "{capinfos}"
        );
        let mut tshark = Command::new("tshark");
        tshark
            .args(["-T", "fields", "-e", "frame.drop_count", "-r"])
            .arg(&file);
        let dropped = output_of(&mut tshark)?;
        let dropped: u64 = dropped.lines().filter_map(|line| line.parse::<u64>().ok()).sum();
        assert_eq!(dropped, statistics.dropped, "{hook}");
    }
    Ok(())
}

/// What `docs/stream.md` says that Wireshark shows: a number for an interface with one block, and "Unknown" for all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wireshark_shows_what_is_said_of_the_losses_of_each_stream() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--max-packet-rate", "1000"])?;
    let url = server.url(&format!("netns={}&nif=va&names=0", here.inode()?));
    // By what is asked for, whether the client stops rather than closes, and how often packets are lost: how many blocks.
    let cases = [
        ("", true, 0, 1),
        ("", true, 1, 2),
        ("", false, 0, 0),
        ("", false, 1, 1),
        ("", false, 2, 2),
        ("&statistics=end", true, 2, 1),
        ("&duration=1h", true, 2, 1),
        ("&duration=15s", false, 2, 1),
    ];
    let mut recorders = Vec::new();
    for (parameters, ..) in cases {
        recorders.push(Recorder::start(&format!("{url}{parameters}")).await?);
    }
    let began = Instant::now();
    for losses in 0..3 {
        if losses > 0 {
            lose(&there).await?;
            // Five seconds until that is told, and some until it has come.
            let told = Instant::now() + Duration::from_millis(6500);
            while let Some(left) = told.checked_duration_since(Instant::now()) {
                for recorder in &mut recorders {
                    let _ = timeout(left.min(Duration::from_millis(20)), recorder.read()).await;
                }
            }
        }
        for ((parameters, stops, times, blocks), recorder) in cases.iter().zip(&mut recorders) {
            if *times != losses {
                continue;
            }
            match (parameters.contains("15s"), stops) {
                (true, _) => {}
                (_, true) => recorder.capture().stop().await?,
                (_, false) => recorder.capture().close().await?,
            }
            while recorder.read().await?.is_none() {}
            let context = format!("{parameters:?} {stops} {losses} {:?}", began.elapsed());
            let file = folder.file("stream.pcapng");
            fs::write(&file, recorder.stream())?;
            let capinfos = output_of(Command::new("capinfos").arg(&file))?;
            let entries = format!("Number of stat entries = {blocks}\n");
            ensure!(capinfos.contains(&entries), "{context}: {capinfos}");
            let recording = Recording::parse(recorder.stream())?;
            let lost: u64 = recording.packets.iter().map(|packet| packet.dropped_before).sum();
            assert_eq!(lost > 0, losses > 0, "{context}");
            if *blocks == 1 {
                assert_eq!(recording.statistics[0].dropped, lost, "{context}");
            }
        }
    }
    Ok(())
}

/// Each of those who share a capture has the statistics that it asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_come_as_they_are_asked_for() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--max-packet-rate", "1000"])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut by_default = Recorder::start(&url).await?;
    let mut at_end = Recorder::start(&format!("{url}&statistics=end")).await?;
    let mut each_second = Recorder::start(&format!("{url}&statistics=1s")).await?;
    let mut seldom = Recorder::start(&format!("{url}&statistics=1h")).await?;
    for _ in 0..2 {
        lose(&there).await?;
        sleep(Duration::from_millis(1200)).await;
    }
    let told = |recording: &Recording| recording.statistics.iter().any(|one| one.dropped > 0);
    // Within seconds, and once for both bursts.
    timeout(Duration::from_secs(8), by_default.read_until(told)).await??;
    let statistics = Recording::parse(by_default.stream())?.statistics;
    ensure!(statistics.len() == 1 && !statistics[0].last, "{statistics:?}");
    // Whoever closes now has it.
    by_default.capture().close().await?;

    for recorder in [&mut at_end, &mut each_second, &mut seldom] {
        recorder.capture().stop().await?;
    }
    for (recorder, least, most) in [(at_end, 1, 1), (each_second, 3, 9), (seldom, 1, 1)] {
        let (recording, ..) = recorder.read_to_end().await?;
        let of_va = recording.statistics.len();
        ensure!((least..=most).contains(&of_va), "{:?}", recording.statistics);
        let last = recording.final_statistics("va")?;
        assert_eq!(last.dropped, statistics[0].dropped);
    }
    Ok(())
}
