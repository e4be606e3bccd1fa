//! How much is captured of containers that start: by a stream that follows a label, and by a client that asks each second what there
//! is, and captures what is new.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::Context as _;
use packetflix_tests::{
    client::Recorder,
    docker::{Docker, IMAGE},
    recording::{Packet, Recording},
    server::Server,
};
use serde_json::Value;
use tokio::{
    runtime::Runtime,
    sync::oneshot,
    task::{JoinHandle, block_in_place, spawn_blocking},
    time::sleep,
};

use crate::{
    Args,
    http::get,
    interrupt,
    table::{Table, Times},
};

/// Containers that start, one after the other, if nothing else is asked for.
const ROUNDS: u32 = 20;

/// How often it is asked what there is.
const POLL: Duration = Duration::from_secs(1);

/// What each does from its first instruction on: it lives for some three seconds, and is refused all the time.
const CONNECTS: &str =
    "i=0; while [ $i -lt 60 ]; do /bin/busybox nc -w 1 $0 $1; /bin/busybox usleep 50000; i=$((i + 1)); done";

/// The port that the first connects to; each has another.
const PORTS: u16 = 2000;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rounds = args.rounds(ROUNDS).min(10_000) as u16;
    let docker = Arc::new(Docker::start()?);
    let label = format!("app=web-{}", std::process::id());
    let begins = ["run", "--detach", "--name", "first", "--label", &label, IMAGE];
    docker.run(&[&begins[..], &["/bin/busybox", "sleep", "86400"]].concat())?;
    let engine = format!("--engine-socket={}", docker.socket().display());
    // Neither has what the other has found.
    let (following, polled) = (Server::start(&[&engine])?, Server::start(&[&engine])?);
    let (followed, by_name) = Runtime::new()?.block_on(async {
        let url = following.url(&format!("target=label:{label}&names=0"));
        let mut recorder = Recorder::start(&url).await?;
        let (stop, stopped) = oneshot::channel::<()>();
        let polls = tokio::spawn(poll(polled.port(), label.clone(), stopped));
        let engine = Arc::clone(&docker);
        recorder
            .read_during(spawn_blocking(move || start_all(&engine, &label, rounds)))
            .await?;
        drop(stop);
        let by_name = polls.await??;
        let followed = recorder.finish().await.context("the stream that follows")?;
        anyhow::Ok((followed, by_name))
    })?;
    followed.check_order()?;
    let mut table = Table::new(format!(
        "Containers of Docker that connect at once, {rounds} starts"
    ));
    table.column("followed");
    tell(&mut table, &followed, rounds, |number| {
        syns(&followed, &format!("web-{number}/"), number)
    });
    table.column("polled each second");
    tell(&mut table, &followed, rounds, |number| {
        let captured = by_name.get(&format!("web-{number}"));
        captured
            .map(|recording| syns(recording, "", number))
            .unwrap_or_default()
    });
    table.print();
    Ok(())
}

/// Adds how many are captured from their first packet on, and how late the first packet of the others is, beside what came to the
/// container that they connect to.
fn tell(table: &mut Table, came: &Recording, rounds: u16, captured: impl Fn(u16) -> Vec<u64>) {
    let (mut whole, mut nothing, mut late) = (0, 0, Times::default());
    for number in 0..rounds {
        let (came, captured) = (syns(came, "first/", number), captured(number));
        match (came.first(), captured.first()) {
            (Some(_), Some(_)) if captured.len() == came.len() => whole += 1,
            (Some(came), Some(captured)) => late.push(Duration::from_nanos(captured.saturating_sub(*came))),
            _ => nothing += 1,
        }
    }
    table.figure("captured from the first packet on", "", f64::from(whole));
    table.figure("not captured at all", "", f64::from(nothing));
    // Where there are no others, there is no figure of them.
    if late.max().is_finite() {
        table.figure("the others from when, p50", "ms", late.p50());
        table.figure("the others from when, max", "ms", late.max());
    }
}

/// When connections to the port of a container were begun, as far as they were captured at interfaces whose names begin so, in
/// nanoseconds.
fn syns(recording: &Recording, prefix: &str, number: u16) -> Vec<u64> {
    let is_there = |packet: &&Packet| recording.interfaces[packet.interface].name.starts_with(prefix);
    let packets = recording.packets.iter().filter(is_there);
    let begun = packets.filter(|packet| packet.is_syn(PORTS + number));
    begun.map(|packet| packet.timestamp).collect()
}

/// Starts containers, one after the other, each of which ends by itself.
fn start_all(docker: &Docker, label: &str, rounds: u16) -> anyhow::Result<()> {
    let address = docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "first"])?;
    for number in 0..rounds {
        interrupt::check()?;
        eprintln!("bench: start {number}");
        let (name, port) = (format!("web-{number}"), (PORTS + number).to_string());
        let begins = ["run", "--rm", "--name", &name, "--label", label, IMAGE];
        let connects = ["/bin/busybox", "sh", "-c", CONNECTS, &address, &port];
        docker.run(&[&begins[..], &connects].concat())?;
    }
    Ok(())
}

/// Asks again and again what has this label, and captures what is new, until it is stopped; gives what was captured, by the names.
async fn poll(
    port: u16,
    label: String,
    mut stopped: oneshot::Receiver<()>,
) -> anyhow::Result<BTreeMap<String, Recording>> {
    let mut captures: BTreeMap<String, Option<JoinHandle<anyhow::Result<Recording>>>> = BTreeMap::new();
    while stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty) {
        let listed = block_in_place(|| get(port, &format!("/targets?target=label:{label}")))?;
        let listed: Value = serde_json::from_slice(&listed)?;
        for target in listed["targets"].as_array().context("no targets")? {
            let name = target["name"].as_str().context("no name")?.to_owned();
            let url = format!("ws://127.0.0.1:{port}/capture?target={name}&names=0");
            if !captures.contains_key(&name) && name != "first" {
                // One that has ended meanwhile is one of which nothing is captured.
                let capture = Recorder::start(&url).await.ok();
                let reading =
                    capture.map(|recorder| tokio::spawn(async { Ok(recorder.read_to_end().await?.0) }));
                captures.insert(name, reading);
            }
        }
        sleep(POLL).await;
    }
    let mut recordings = BTreeMap::new();
    for (name, reading) in captures {
        if let Some(reading) = reading {
            let recording = reading.await?.with_context(|| format!("the capture of {name}"))?;
            recordings.insert(name, recording);
        }
    }
    Ok(recordings)
}
