//! What it costs to tell the traffic of many network namespaces to those who look at it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use packetflix_tests::server::{Server, wait_until};

use crate::{Args, crowd::Crowd, http::get, interrupt::sleep_until, table::Table, usage::cpu_of};

/// For how long the server's CPU time is taken, for each round.
const ROUND: Duration = Duration::from_secs(5);

/// Rounds, if nothing else is asked for.
const ROUNDS: u32 = 6;

/// Those who look.
const VIEWERS: [usize; 3] = [0, 1, 10];

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let time = ROUND * args.rounds(ROUNDS);
    let mut table = Table::new(format!(
        "Telling the traffic of network namespaces, {} s each",
        time.as_secs()
    ));
    let mut crowd = Crowd::new()?;
    for count in [0, args.namespaces, 2 * args.namespaces] {
        eprintln!("bench: {count} namespaces");
        crowd.grow(count)?;
        for viewers in VIEWERS {
            table.column(format!("{}/{viewers}", crowd.len()));
            measure(&mut table, viewers, time)?;
        }
    }
    table.print();
    Ok(())
}

/// Adds the figures for so many who look.
fn measure(table: &mut Table, viewers: usize, time: Duration) -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    // The first scan is dearer than those that follow.
    get(server.port(), "/targets")?;
    let events = Arc::new(AtomicU64::new(0));
    let bytes = Arc::new(AtomicU64::new(0));
    for _ in 0..viewers {
        view(&server, &events, &bytes)?;
    }
    let told = || events.load(Ordering::Relaxed);
    wait_until(Duration::from_secs(30), || Ok(told() >= 2 * viewers as u64))?;
    let (cpu, before, bytes_before) = (
        cpu_of(&server.processes())?,
        told(),
        bytes.load(Ordering::Relaxed),
    );
    let began = Instant::now();
    sleep_until(began + time)?;
    let cpu = cpu_of(&server.processes())? - cpu;
    let elapsed = began.elapsed().as_secs_f64();
    table.figure("viewers", "", viewers as f64);
    table.figure(
        "CPU of the server, scans among it",
        "% of one",
        cpu.as_secs_f64() / elapsed * 100.0,
    );
    if viewers > 0 {
        let each = (told() - before) as f64 / viewers as f64;
        ensure!(each > 0.0, "nothing is told");
        table.figure("seconds between two events", "s", elapsed / each);
        let bytes = bytes.load(Ordering::Relaxed) - bytes_before;
        table.figure("bytes of an event", "", bytes as f64 / (told() - before) as f64);
    }
    Ok(())
}

/// Reads events on a thread of its own, until the server ends.
fn view(server: &Server, events: &Arc<AtomicU64>, bytes: &Arc<AtomicU64>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    write!(stream, "GET /rates HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let (events, bytes) = (Arc::clone(events), Arc::clone(bytes));
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            bytes.fetch_add(line.len() as u64 + 1, Ordering::Relaxed);
            if line == "event: rates" {
                events.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    Ok(())
}
