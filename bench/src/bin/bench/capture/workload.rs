//! What those do that are captured: much at once over TCP, and one thing after the other.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_bench::{
    analysis::Delays,
    report::{FigureKind, Scenario},
};

use super::{
    Context, REFERENCE,
    bed::{Bed, RECEIVER_ADDRESS},
    contestant::{Contestant, Wish},
    cost, count, during, gain, loss, record_memory, record_ratios,
};

/// What is written and read at once.
const PIECE: usize = 128 * 1024;

/// How long is sent, or how much, whichever ends first.
const BULK_TIME: Duration = Duration::from_secs(3);
const BULK_BYTES: u64 = 4_000_000_000;

/// Bytes of a request, and of its answer.
const REQUEST_LEN: usize = 64;

pub(super) fn bulk(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    let method = "One TCP connection carries what it can for three seconds, or 4 GB, with segmentation offload as the \
                  kernel has it; netsniff-ng has --jumbo-support.";
    let title = "One TCP connection at full speed";
    let mut scenario = Scenario::new(name, title, method, Some(REFERENCE));
    let wish = Wish {
        is_jumbo: true,
        ..Wish::default()
    };
    let measure = |contestant| during(context.bed, contestant, &wish, |_| carry(context.bed));
    context.measure(measure, |round| {
        for (contestant, measured) in round {
            let (bytes, seconds) = measured.done;
            let mut tell = |kind: &FigureKind, value: f64| scenario.record(contestant.name(), kind, value);
            tell(&gain("throughput", "Gbit/s"), rate(measured.done));
            tell(
                &count("packets seen by the interface", "1/s"),
                measured.seen.packets as f64 / seconds,
            );
            if *contestant == Contestant::Nobody {
                continue;
            }
            let gigabytes = bytes as f64 / 1e9;
            let found = measured.outcome.found;
            let captured = 100.0 * found.captured_bytes as f64 / measured.seen.bytes as f64;
            let missing = measured.seen.packets.saturating_sub(found.packets);
            tell(&gain("bytes captured", "%"), captured);
            tell(
                &gain("captured", "Gbit/s"),
                found.captured_bytes as f64 * 8.0 / 1e9 / seconds,
            );
            tell(
                &loss("part of packets missing", "%"),
                100.0 * missing as f64 / measured.seen.packets as f64,
            );
            tell(&loss("packets missing", ""), missing as f64);
            if let Some(dropped) = measured.outcome.dropped {
                tell(&loss("packets that it says are lost", ""), dropped as f64);
            }
            tell(
                &cost("CPU of the capture per GB carried", "s"),
                measured.used.cpu / gigabytes,
            );
            let per_captured = measured.used.cpu * 1e9 / found.captured_bytes as f64;
            tell(&cost("CPU of the capture per GB captured", "s"), per_captured);
            record_memory(&mut scenario, *contestant, &measured.memory);
        }
        let kinds = [
            (Contestant::Nobody, gain("throughput / none", "")),
            (Contestant::Tcpdump, gain("throughput / tcpdump", "")),
        ];
        record_ratios(&mut scenario, round, &kinds, |measured| rate(measured.done));
    })?;
    Ok(scenario)
}

fn rate((bytes, seconds): (u64, f64)) -> f64 {
    bytes as f64 * 8.0 / 1e9 / seconds
}

/// Both ends of a connection between the namespaces, from the sender to the receiver.
fn connect(bed: &Bed) -> anyhow::Result<[TcpStream; 2]> {
    let listener = bed
        .receiver
        .inside(|| TcpListener::bind((RECEIVER_ADDRESS, 0)))??;
    let address = listener.local_addr()?;
    let sender = bed.sender.inside(|| TcpStream::connect(address))??;
    let (receiver, _) = listener.accept()?;
    sender.set_nodelay(true)?;
    receiver.set_nodelay(true)?;
    Ok([sender, receiver])
}

/// Carries much, and tells how many bytes in how many seconds.
fn carry(bed: &Bed) -> anyhow::Result<(u64, f64)> {
    let [mut sender, mut receiver] = connect(bed)?;
    let receiving: JoinHandle<anyhow::Result<u64>> = thread::spawn(move || {
        let mut piece = vec![0; PIECE];
        let mut received = 0;
        loop {
            match receiver.read(&mut piece)? {
                0 => return Ok(received),
                len => received += len as u64,
            }
        }
    });
    let piece = vec![0; PIECE];
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < BULK_TIME && sent < BULK_BYTES {
        sender.write_all(&piece)?;
        sent += PIECE as u64;
    }
    drop(sender);
    let received = join(receiving)?;
    ensure!(received == sent, "{received} of {sent} bytes");
    Ok((sent, begin.elapsed().as_secs_f64()))
}

pub(super) fn latency(context: &Context<'_>, name: &str) -> anyhow::Result<Scenario> {
    let requests = context.packets.unwrap_or(20_000);
    let method = format!(
        "{requests} requests of {REQUEST_LEN} bytes over one TCP connection, each of which is answered before the next."
    );
    let title = "What a capture costs requests and answers";
    let mut scenario = Scenario::new(name, title, &method, Some(REFERENCE));
    let measure = |contestant| {
        during(context.bed, contestant, &Wish::default(), |_| {
            ask(context.bed, requests)
        })
    };
    context.measure(measure, |round| {
        for (contestant, measured) in round {
            let mut tell = |kind: &FigureKind, value: f64| scenario.record(contestant.name(), kind, value);
            let micros = |part| measured.done.quantile(part) * 1e6;
            tell(&cost("request and answer, p50", "us"), micros(0.5));
            tell(&cost("request and answer, p99", "us"), micros(0.99));
            if *contestant == Contestant::Nobody {
                continue;
            }
            let per_request = measured.used.cpu * 1e6 / requests as f64;
            tell(&cost("CPU of the capture per request", "us"), per_request);
            let missing = measured
                .seen
                .packets
                .saturating_sub(measured.outcome.found.packets);
            tell(&loss("packets missing", ""), missing as f64);
        }
        let kinds = [(Contestant::Nobody, cost("request and answer / none, p50", ""))];
        record_ratios(&mut scenario, round, &kinds, |measured| {
            measured.done.quantile(0.5)
        });
    })?;
    Ok(scenario)
}

/// Asks again and again, and tells how long each answer takes.
fn ask(bed: &Bed, requests: u64) -> anyhow::Result<Delays> {
    let [mut client, mut server] = connect(bed)?;
    let serving: JoinHandle<anyhow::Result<()>> = thread::spawn(move || {
        let mut request = [0; REQUEST_LEN];
        for _ in 0..requests {
            server.read_exact(&mut request)?;
            server.write_all(&request)?;
        }
        Ok(())
    });
    let mut delays = Delays::default();
    let mut request = [0; REQUEST_LEN];
    for _ in 0..requests {
        let begin = Instant::now();
        client.write_all(&request)?;
        client.read_exact(&mut request)?;
        delays.push(u64::try_from(begin.elapsed().as_nanos())?);
    }
    join(serving).context("the server")?;
    Ok(delays)
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
