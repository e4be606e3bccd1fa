//! The machine's clock is set while captures run: for a moment, and by a few seconds only, which is more than a capture
//! waits for any time to come again.

use std::time::{Duration, Instant};

use anyhow::ensure;
use packetflix_tests::{
    client::Recorder, clock::SteppedClock, generator::now, namespace::Namespace, pace, raw::RawSocket,
    server::Server,
};
use tokio::time::{sleep, timeout};

use crate::{
    flow::{Flow, numbers},
    frame,
};

/// By how much, and whether back.
const STEPS: [(Duration, bool); 4] = [
    (Duration::from_secs(3), false),
    (Duration::from_secs(3), true),
    (Duration::from_millis(300), false),
    (Duration::from_millis(300), true),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_that_is_set_loses_and_holds_up_nothing() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
    let mut slowest = Duration::ZERO;
    let flow = Flow::start(&there, "vb", 100, 3)?;
    let socket = RawSocket::open(&there, "vb")?;
    let lag = lag(&server);
    for (number, (by, back)) in STEPS.into_iter().enumerate() {
        let number = number as u8;
        let stepped = SteppedClock::step(by, back)?;
        sleep(lag).await;
        let before = now()?;
        socket.send(&frame(number))?;
        let sent = Instant::now();
        let after = now()?;
        let seen = recorder.read_until(|recording| recording.count(&frame(number)) == 1);
        timeout(pace::time(Duration::from_secs(2)), seen).await??;
        slowest = slowest.max(sent.elapsed());
        drop(stepped);
        // Whatever the clock says, packets have its time.
        let told = recorder
            .recording()?
            .packets
            .iter()
            .find(|packet| packet.data == frame(number));
        let told = told.map(|packet| packet.timestamp).unwrap_or_default();
        ensure!(
            (before..=after).contains(&told),
            "{by:?} {back}: {before} {told} {after}"
        );
        sleep(Duration::from_millis(100)).await;
    }
    let sent = flow.stop()?;
    let recording = recorder.finish().await?;
    let found = numbers(&recording, "va");
    ensure!(found.is_sorted(), "packets of one CPU are out of order");
    assert_eq!(found.len() as u64, sent);
    let statistics = recording.final_statistics("va")?;
    assert_eq!(statistics.delivered, sent + STEPS.len() as u64);
    assert_eq!(statistics.dropped, 0);
    eprintln!("a packet came after {slowest:.1?} at most when the clock was set");
    Ok(())
}

/// How long timestamps may go on by the clock as it was: where programs cannot read CLOCK_TAI, the service looks each second.
fn lag(server: &Server) -> Duration {
    if !server.log().contains("CLOCK_BOOTTIME") {
        return Duration::ZERO;
    }
    eprintln!("\nthis kernel has no CLOCK_TAI for programs");
    Duration::from_millis(1500)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_end_and_interfaces_come_back_though_the_clock_is_set_back() -> anyhow::Result<()> {
    let (here, there) = (Namespace::new()?, Namespace::new()?);
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let add = || {
        let peer = ["peer", "name", "peer", "netns", there.name()];
        here.ip(&[&["link", "add", "eth7", "index", "77", "type", "veth"][..], &peer].concat())?;
        here.ip(&["link", "set", "eth7", "up"])?;
        there.ip(&["link", "set", "peer", "up"])
    };
    let mut stays = Recorder::start(&url).await?;
    for round in 1..=5 {
        let leaves = Recorder::start(&url).await?;
        add()?;
        stays
            .read_until(|recording| recording.interfaces.len() == 1 + round)
            .await?;
        // The interface goes, and a client that is not the last one, just before there is another time.
        here.ip(&["link", "delete", "eth7"])?;
        let stepped = SteppedClock::step(Duration::from_secs(3), true)?;
        let left = timeout(pace::time(Duration::from_secs(2)), leaves.finish()).await??;
        let final_statistics =
            stays.read_until(|recording| recording.statistics.iter().filter(|one| one.last).count() == round);
        timeout(pace::time(Duration::from_secs(2)), final_statistics).await??;
        drop(stepped);
        left.check_complete()?;
    }
    ensure!(!server.log().contains("ERROR"), "{}", server.log());
    stays.finish().await?;
    Ok(())
}
