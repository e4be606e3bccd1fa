//! Full speed, and clients that are too slow: every packet is delivered or told as dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use packetflix_tests::{
    client::Recorder,
    hook::{self, hooks},
    namespace::Namespace,
    pace,
    raw::{self, RawSocket},
    recording::Recording,
    server::Server,
};
use tokio::time::{Instant, sleep};

/// Packets of a burst: a million on a machine of today.
fn in_burst() -> u64 {
    pace::sample(1_000_000) as u64
}

/// Payload of the smallest frames: 64 bytes, as they stand in a frame without its checksum.
const SMALL: usize = 50;

/// Payload of frames of which a burst is more than rings, batches and sockets hold, on slow machines too.
const LARGE: usize = 1400;

/// Where the running number lies in the frame.
const NUMBER_AT: usize = 14;

fn number(data: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&data[NUMBER_AT..NUMBER_AT + 8]);
    u64::from_be_bytes(number)
}

struct Burst {
    _here: Namespace,
    there: Namespace,
    server: Server,
    recorder: Recorder,
    sending: tokio::task::JoinHandle<anyhow::Result<()>>,
}

async fn start_burst(hook: &str, payload: usize, flags: &[&str]) -> anyhow::Result<Burst> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[&["--hook", hook], flags].concat())?;
    let url = server.url(&format!("netns={}&nif=va&statistics=1s", here.inode()?));
    let recorder = Recorder::start(&url).await?;
    let socket = RawSocket::open(&there, "vb")?;
    let frame = raw::ethernet(0x88b5, &vec![0; payload]);
    let sending = tokio::task::spawn_blocking(move || socket.flood(&frame, in_burst(), NUMBER_AT));
    Ok(Burst {
        _here: here,
        there,
        server,
        recorder,
        sending,
    })
}

/// Delivered and dropped are what was sent, and in its order.
fn check_accounts(recording: &Recording, sent: u64) -> anyhow::Result<()> {
    let statistics = recording.final_statistics("va")?;
    assert_eq!(statistics.received, sent);
    assert_eq!(statistics.accepted, sent);
    assert_eq!(statistics.delivered, recording.packets.len() as u64);
    assert_eq!(statistics.delivered + statistics.dropped, sent);
    let numbers: Vec<u64> = recording
        .packets
        .iter()
        .filter(|packet| packet.data.len() >= 64)
        .map(|packet| number(&packet.data))
        .collect();
    ensure!(numbers.is_sorted(), "packets are out of order");
    recording.check_order()?;
    Ok(())
}

async fn loses_nothing(hook: &str) -> anyhow::Result<()> {
    // Whoever reads may wait for a CPU while whoever sends has one: the rings then hold the whole burst.
    let rings: &[&str] = if pace::is_slow() {
        &["--ring-size", "32MiB"]
    } else {
        &[]
    };
    let mut burst = start_burst(hook, SMALL, rings).await?;
    burst.recorder.read_during(burst.sending).await?;
    let recording = burst.recorder.finish().await?;
    check_accounts(&recording, in_burst())?;
    assert_eq!(recording.final_statistics("va")?.dropped, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_million_packets_through_tcx_and_none_lost() -> anyhow::Result<()> {
    match hook::tcx()? {
        Some(tcx) => loses_nothing(tcx).await,
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_million_packets_through_a_socket_and_none_lost() -> anyhow::Result<()> {
    loses_nothing("socket").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn client_that_stalls_costs_packets_but_no_memory() -> anyhow::Result<()> {
    let mut burst = start_burst(hooks()?[0], LARGE, &[]).await?;
    // Of its own: pages of rings are the kernel's, and some are mapped before the next capture.
    let before = burst.server.status("RssAnon")?;
    let mut most = before;
    let stall_ends = Instant::now() + Duration::from_secs(5);
    while Instant::now() < stall_ends {
        sleep(Duration::from_millis(50)).await;
        most = most.max(burst.server.status("RssAnon")?);
    }
    burst.sending.await??;
    ensure!(
        most < before + 4 * 1024,
        "resident memory grew from {before} KiB to {most} KiB"
    );

    // The client reads again. The next packet on each CPU tells how many were lost before it.
    burst
        .recorder
        .read_until_statistics(|one| one.delivered + one.dropped == in_burst())
        .await?;
    let cpus = send_from_each_cpu(&burst.there)?;
    let recording = burst.recorder.finish().await?;
    check_accounts(&recording, in_burst() + cpus)?;
    let statistics = recording.final_statistics("va")?;
    ensure!(statistics.dropped > 0, "{statistics:?}");
    let told: u64 = recording.packets.iter().map(|packet| packet.dropped_before).sum();
    assert_eq!(told, statistics.dropped);
    Ok(())
}

/// The rings never run empty: statistics come all the same where they are asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn client_that_is_too_slow_is_told_of_its_losses_meanwhile() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--ring-size", "512KiB"])?;
    let url = server.url(&format!("netns={}&nif=va&statistics=1s", here.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    let socket = RawSocket::open(&there, "vb")?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let sending = tokio::task::spawn_blocking(move || {
        let frame = raw::ethernet(0x88b5, &[0; 1400]);
        while !stopped.load(Ordering::Relaxed) {
            socket.flood(&frame, 1000, NUMBER_AT)?;
        }
        anyhow::Ok(())
    });
    // About 5 MB a second, of more than a gigabyte.
    let slow_until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < slow_until {
        recorder.read().await?;
        sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    sending.await??;
    let recording = recorder.finish().await?;
    let while_slow = recording
        .statistics
        .iter()
        .filter(|one| !one.last && one.dropped > 0)
        .count();
    ensure!(while_slow >= 2, "{:?}", recording.statistics);
    Ok(())
}

fn send_from_each_cpu(namespace: &Namespace) -> anyhow::Result<u64> {
    let socket = RawSocket::open(namespace, "vb")?;
    let cpus = std::thread::available_parallelism()?.get();
    for cpu in 0..cpus {
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut only = CpuSet::new();
                only.set(cpu)?;
                sched_setaffinity(Pid::from_raw(0), &only)?;
                socket.send(&raw::ethernet(0x88b5, b"after the storm"))?;
                anyhow::Ok(())
            });
            sender.join().ok().context("the sender panicked")?
        })?;
    }
    Ok(cpus as u64)
}
