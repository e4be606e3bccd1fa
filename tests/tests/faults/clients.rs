//! Clients that vanish, stall, or say too much. `lifecycle.rs` has those that leave, `load.rs` and `sharing.rs` those that
//! are too slow.

use std::{
    io::{ErrorKind, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_tests::{
    client::Recorder,
    metrics::Metrics,
    namespace::Namespace,
    raw::{self, RawSocket},
    server::{Server, program, wait_until},
    traces::{traces_before, wait_for_traces},
};
use tokio::time::{sleep, timeout};

use crate::{flow::Flow, frame};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_vanishes_under_load_is_given_up() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let (desk, house) = (Namespace::new()?, Namespace::new()?);
    desk.connect("desk", &house, "house", 2)?;
    let mut inside = house.command("env");
    inside.arg(program("packetflix")?);
    let server = Server::start_by(&mut inside, &["--open-to-everyone", "--client-timeout", "2"])?;
    let before = traces_before(Some(&server), &[&here])?;
    let stream = desk.inside(|| TcpStream::connect(("10.9.2.2", server.port())))??;
    let url = format!("ws://10.9.2.2/capture?netns={}&nif=va", here.inode()?);
    let mut recorder = Recorder::over(stream, &url).await?;
    let flow = Flow::start(&there, "vb", 1400, 10)?;
    recorder
        .read_until(|recording| recording.packets.len() > 100)
        .await?;
    // Neither FIN nor RST comes through any more.
    desk.ip(&["link", "set", "desk", "down"])?;
    let begin = Instant::now();
    server.wait_for_log("the client is gone")?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    let took = begin.elapsed();
    eprintln!("a client that vanished was freed after {took:.1?}");
    ensure!(took < Duration::from_secs(4), "{took:?}");
    flow.stop()?;
    Ok(())
}

/// It has three seconds to take what was captured until it stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_takes_too_long_over_the_end_is_told_all_that_it_lost() -> anyhow::Result<()> {
    const COUNT: u64 = 40_000;

    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=va&names=0", here.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    RawSocket::open(&there, "vb")?.flood(&raw::ethernet(0x88b5, &[7; 1000]), COUNT, 20)?;
    // The kernel hands over what was sent a little later, where it has much to do.
    wait_until(Duration::from_secs(10), || {
        Ok(Metrics::of(&server)?.count("packetflix_accepted_packets_total")? == COUNT)
    })?;
    recorder.capture().stop().await?;
    let until = Instant::now() + Duration::from_millis(4500);
    while Instant::now() < until {
        ensure!(recorder.read().await?.is_none(), "{}", server.log());
        sleep(Duration::from_millis(150)).await;
    }
    let (recording, code, _) = recorder.read_to_end().await?;
    let statistics = recording.final_statistics("va")?;
    assert_eq!(
        (
            code,
            statistics.accepted,
            statistics.delivered + statistics.dropped
        ),
        (1000, COUNT, COUNT),
        "{statistics:?}"
    );
    assert_eq!(statistics.delivered, recording.packets.len() as u64);
    ensure!(statistics.dropped > 0, "it was quick: {statistics:?}");
    Ok(())
}

/// As a minute is to the two minutes of the default: pings stay unanswered meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_stalls_for_half_its_time_reads_on() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--client-timeout", "8", "--ring-size", "1MiB"])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
    let flow = Flow::start(&there, "vb", 1400, 5)?;
    sleep(Duration::from_secs(4)).await;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        ensure!(recorder.read().await?.is_none(), "{}", server.log());
    }
    let sent = flow.stop()?;
    let recording = recorder.finish().await?;
    let statistics = recording.final_statistics("va")?;
    assert_eq!(statistics.received, sent);
    assert_eq!(statistics.delivered + statistics.dropped, sent);
    assert_eq!(statistics.delivered, recording.packets.len() as u64);
    ensure!(statistics.dropped > 0, "the stall was none: {statistics:?}");
    eprintln!(
        "of {sent} packets, {} were dropped while the client stalled, and all of them told",
        statistics.dropped
    );
    Ok(())
}

/// A frame as clients send it, masked by zeros.
fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Writes frames as fast as the server takes them, until it is stopped or the connection ends; then a last one.
struct Flood {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<u64>,
}

impl Flood {
    fn start(mut stream: TcpStream, first: Vec<u8>, again: Vec<u8>, last: Vec<u8>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let many = again.repeat((65_536 / again.len()).max(1));
            let mut written = 0;
            let mut rest = &first[..];
            let mut is_last = false;
            loop {
                // Not in the middle of a frame, so that it is no other fault.
                if rest.is_empty() {
                    if is_last {
                        return written;
                    }
                    is_last = stopped.load(Ordering::Relaxed);
                    rest = if is_last { &last } else { &many };
                    continue;
                }
                match stream.write(rest) {
                    Ok(len) => {
                        rest = &rest[len..];
                        written += len as u64;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_micros(100));
                    }
                    Err(_) => return written,
                }
            }
        });
        Self { stop, thread }
    }

    fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the flood panicked")
    }
}

/// A server with a client that floods it, and one that does not.
struct Flooded {
    server: Server,
    here: Namespace,
    there: Namespace,
    memory: u64,
}

impl Flooded {
    fn new() -> anyhow::Result<Self> {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&[])?;
        let memory = server.status("RssAnon")?;
        Ok(Self {
            server,
            here,
            there,
            memory,
        })
    }

    /// A client, and its connection once more.
    async fn client(&self) -> anyhow::Result<(Recorder, TcpStream)> {
        let stream = TcpStream::connect(("127.0.0.1", self.server.port()))?;
        let again = stream.try_clone()?;
        let url = self.server.url(&format!("netns={}&names=0", self.here.inode()?));
        Ok((Recorder::over(stream, &url).await?, again))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flood_of_frames_takes_no_memory_and_nothing_from_others() -> anyhow::Result<()> {
    let fragment = client_frame(0x00, &[0; 60_000]);
    let data = client_frame(0x82, &[0; 60_000]);
    let flooded = Flooded::new()?;
    let socket = RawSocket::open(&flooded.there, "vb")?;
    for (number, (name, [first, again, last])) in [
        ("pings", [vec![], client_frame(0x89, &[0; 100]), vec![]]),
        ("pongs", [vec![], client_frame(0x8a, &[]), vec![]]),
        ("data", [vec![], data, vec![]]),
        // No other message may begin before it has an end.
        (
            "fragments of one message",
            [client_frame(0x02, &[]), fragment, client_frame(0x80, &[])],
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let url = format!("netns={}&nif=va", flooded.here.inode()?);
        let other = Recorder::start(&flooded.server.url(&url)).await?;
        let (mut flooding, stream) = flooded.client().await?;
        let flood = Flood::start(stream, first, again, last);
        sleep(Duration::from_millis(400)).await;
        // Whoever floods gets packets, too.
        let number = number as u8;
        socket.send(&frame(number))?;
        let seen = flooding.read_until(|recording| recording.count(&frame(number)) > 0);
        timeout(Duration::from_secs(5), seen)
            .await
            .with_context(|| format!("{name}: nothing comes"))??;
        let flow = Flow::start(&flooded.there, "vb", 100, 5)?;
        let mut most = 0;
        for _ in 0..20 {
            most = most.max(flooded.server.status("RssAnon")?);
            let _ = timeout(Duration::from_millis(20), flooding.read()).await;
        }
        let sent = flow.stop()? + 1;
        let written = flood.stop()?;
        flooding.finish().await.with_context(|| name.to_owned())?;
        let statistics = other.finish().await?.final_statistics("va")?;
        assert_eq!((statistics.delivered, statistics.dropped), (sent, 0), "{name}");
        eprintln!(
            "{name}: {} MiB taken in, and at most {} KiB of memory more",
            written >> 20,
            most.saturating_sub(flooded.memory)
        );
        ensure!(
            most < flooded.memory + 8 * 1024,
            "{name}: memory grew from {} KiB to {most} KiB",
            flooded.memory
        );
    }
    Ok(())
}

/// Beside those of `lifecycle.rs`; by the sections of RFC 6455.
#[tokio::test]
async fn frames_that_nobody_may_send_end_the_capture_of_who_sends_them() -> anyhow::Result<()> {
    let flooded = Flooded::new()?;
    let frames = |frames: &[(u8, &[u8])]| {
        let frames = frames.iter().map(|(head, payload)| client_frame(*head, payload));
        frames.collect::<Vec<_>>().concat()
    };
    let long_close = [&[0x03, 0xe8][..], &[b'x'; 124]].concat();
    for (name, garbage, expected) in [
        ("a ping without a mask (5.1)", vec![0x89, 0], 1002),
        ("a text without a mask", [&[0x81, 4][..], b"stop"].concat(), 1002),
        ("a close without a mask", vec![0x88, 0], 1002),
        ("a reserved bit (5.2)", frames(&[(0xc2, &[])]), 1002),
        ("an opcode that is none", frames(&[(0x83, &[])]), 1002),
        (
            "a message of a megabyte",
            [&[0x82, 0xff, 0, 0, 0, 0, 0, 0x10, 0, 0][..], &[0; 4]].concat(),
            1002,
        ),
        ("a continuation of nothing (5.4)", frames(&[(0x80, b"x")]), 1002),
        (
            "a message within another",
            frames(&[(0x01, b"a"), (0x82, b"b")]),
            1002,
        ),
        ("a long ping (5.5)", frames(&[(0x89, &[0; 126])]), 1002),
        ("a long pong", frames(&[(0x8a, &[0; 126])]), 1002),
        ("a long close", frames(&[(0x88, &long_close)]), 1002),
        ("a ping in fragments", frames(&[(0x09, &[])]), 1002),
        ("half a code (5.5.1)", frames(&[(0x88, &[3])]), 1002),
        (
            "a code that is none (7.4)",
            frames(&[(0x88, &[0x03, 0xed])]),
            1002,
        ),
        (
            "a reason that is no text",
            frames(&[(0x88, b"\x03\xe8\xff")]),
            1007,
        ),
        ("a text that is none (8.1)", frames(&[(0x81, b"\xff")]), 1007),
        (
            "a text in fragments that is none",
            frames(&[(0x01, b"\xe2\x82"), (0x80, b"x")]),
            1007,
        ),
        (
            "a text that ends within a character",
            frames(&[(0x01, b"a"), (0x80, b"\xe2\x82")]),
            1007,
        ),
    ] {
        let (recorder, mut stream) = flooded.client().await?;
        stream.write_all(&garbage)?;
        let (recording, code, reason) = recorder.read_to_end().await.with_context(|| name.to_owned())?;
        ensure!(
            code == expected && reason.starts_with("not WebSocket: "),
            "{name}: {code} {reason}"
        );
        ensure!(!recording.interfaces.is_empty());
    }
    // What may come in fragments may, with other frames in between.
    let (recorder, mut stream) = flooded.client().await?;
    let text = [
        (0x01, &b"st\xe2\x82"[..]),
        (0x89, b"ping"),
        (0x00, b"\xac"),
        (0x80, b"op"),
    ];
    stream.write_all(&frames(&text))?;
    recorder.finish().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_pings_without_end_holds_up_no_shutdown() -> anyhow::Result<()> {
    let mut flooded = Flooded::new()?;
    let (mut reads, stream) = flooded.client().await?;
    let (_deaf, other) = flooded.client().await?;
    let floods = [stream, other]
        .map(|stream| Flood::start(stream, Vec::new(), client_frame(0x89, &[0; 125]), Vec::new()));
    for _ in 0..20 {
        let _ = timeout(Duration::from_millis(20), reads.read()).await;
    }
    let reading = tokio::spawn(reads.read_to_end());
    let begin = Instant::now();
    flooded.server.signal(Signal::SIGTERM)?;
    assert_eq!(flooded.server.wait()?.code(), Some(0));
    let took = begin.elapsed();
    ensure!(took < Duration::from_secs(7), "{took:?}");
    let (_, code, _) = reading.await??;
    assert_eq!(code, 1001);
    for flood in floods {
        flood.stop()?;
    }
    Ok(())
}
