//! What a gateway holds of streams has bounds, whatever nodes send and clients take.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::ensure;
use packetflix_tests::{client::Recorder, pace, server::Server};
use tokio::time::{sleep, timeout};

use crate::{
    gateway,
    scripted::{Beside, Ledger, Script, Sends, play},
};

/// Watches the memory until a condition holds; gives the most KiB that it was.
async fn most_until(gateway: &Server, mut holds: impl FnMut() -> bool) -> anyhow::Result<u64> {
    let (begun, mut most) = (Instant::now(), 0);
    loop {
        most = most.max(gateway.status("RssAnon")?);
        if holds() {
            return Ok(most);
        }
        ensure!(begun.elapsed() < pace::time(Duration::from_secs(60)), "in vain");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_client_does_not_take_has_a_bound_and_is_accounted_for() -> anyhow::Result<()> {
    const NODES: u64 = 40;
    /// Messages that wait on the connection of each of so many nodes, and the one that is being merged.
    const MESSAGES: u64 = 256 / NODES + 1;
    const MESSAGE: u64 = 256;
    const MARGIN: u64 = 6 << 10;
    let ledgers: Vec<&Ledger> = (0..NODES).map(|_| &*Box::leak(Box::default())).collect();
    let mut flags = Vec::new();
    for (node, ledger) in ledgers.iter().enumerate() {
        let script = Script {
            sends: Sends::Flood,
            ledger: Some(ledger),
            // Every third lags by more than packets wait for others.
            late: Duration::from_secs(if node % 3 == 0 { 10 } else { 0 }),
            ..Script::default()
        };
        flags.push(format!("--node=n{node}=http://127.0.0.1:{}", play(script)?));
    }
    let flags: Vec<&str> = flags
        .iter()
        .map(String::as_str)
        .chain(["--node-timeout=30"])
        .collect();
    let gateway = gateway(&flags)?;
    let before = gateway.status("RssAnon")?;
    let mut recorder = Recorder::start(&gateway.url("target=scripted&target=none-such-*&follow=0")).await?;
    let delivered = || {
        ledgers
            .iter()
            .map(|one| one.delivered.load(Ordering::Relaxed))
            .sum::<u64>()
    };
    // Until nothing goes on any more.
    let (mut last, mut since) = (0, Instant::now());
    let most = most_until(&gateway, || {
        let now = delivered();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        now > 0 && since.elapsed() > Duration::from_secs(1)
    });
    let most = most.await? - before;
    ensure!(most < NODES * MESSAGES * MESSAGE + MARGIN, "{most} KiB");
    // What was sent by then comes, and each packet is accounted for.
    ledgers
        .iter()
        .for_each(|one| one.is_over.store(true, Ordering::Relaxed));
    let all = async {
        // A node may be about to send its last message.
        while recorder.stream().len() < delivered() as usize * 8000 {
            ensure!(recorder.read().await?.is_none(), "it has ended");
        }
        Ok(())
    };
    timeout(pace::time(Duration::from_secs(60)), all).await??;
    let recording = recorder.finish().await?;
    for (node, ledger) in ledgers.iter().enumerate() {
        let name = format!("n{node}/eth0");
        let packets = recording.packets_of(&name);
        let statistics = recording.final_statistics(&name)?;
        let [sent, lost] = [&ledger.delivered, &ledger.dropped].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(
            (packets.len() as u64, statistics.delivered, statistics.dropped),
            (sent, sent, lost),
            "{name}"
        );
        let told = packets.iter().map(|one| one.dropped_before).sum::<u64>();
        ensure!(told <= lost, "{name}: {told} of {lost}");
        ensure!(lost > 0, "{name} was never too fast");
    }
    Ok(())
}

#[tokio::test]
async fn statistics_without_end_take_little_memory() -> anyhow::Result<()> {
    const MOST: u64 = 8 << 10;
    let script = Script {
        sends: Sends::Statistics,
        ..Script::default()
    };
    let mut beside = Beside::start(script, &[], "").await?;
    let before = beside.gateway.status("RssAnon")?;
    for _ in 0..2 {
        let begun = Instant::now();
        let most = most_until(&beside.gateway, || begun.elapsed() > Duration::from_millis(300)).await?;
        ensure!(most < before + MOST, "{most} KiB, and {before} before");
        beside.check_that_others_go_on().await?;
    }
    Ok(())
}

/// Each of these has many times its bytes as a tree.
#[test]
fn what_is_not_used_of_an_answer_takes_little_memory() -> anyhow::Result<()> {
    const NODES: u64 = 4;
    /// What each node answers, in KiB.
    const ANSWER: u64 = 3 << 10;
    const MARGIN: u64 = 8 << 10;
    let lists = "[],".repeat((ANSWER << 10) as usize / 3);
    let lists = lists.trim_end_matches(',');
    for member in ["new", "gaps", "engines"] {
        let answer = format!(r#"{{"version": 1, "{member}": [{lists}], "targets": []}}"#).leak();
        let script = Script {
            answer: Some(answer),
            ..Script::default()
        };
        let nodes = (0..NODES).map(|node| Ok(format!("--node=n{node}=http://127.0.0.1:{}", play(script)?)));
        let mut flags = nodes.collect::<anyhow::Result<Vec<_>>>()?;
        flags.push("--node-timeout=30".to_owned());
        let gateway = gateway(&flags.iter().map(String::as_str).collect::<Vec<_>>())?;
        let before = gateway.status("VmHWM")?;
        let (status, list) = gateway.get("/targets")?;
        ensure!(status == 200, "{list}");
        let most = gateway.status("VmHWM")? - before;
        // Their bytes may all be there at the same time, in buffers that grow.
        ensure!(most < NODES * 2 * ANSWER + MARGIN, "{member}: {most} KiB");
    }
    Ok(())
}
