//! How long it takes from a request to its first packet.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_bench::report::{FigureKind, Report, Scenario};

use super::{
    contestant::{self, Contestant, Running},
    figures::{compared, less},
    in_turns,
    lanes::{Lanes, RECEIVER},
    traffic::{Load, Traffic},
};
use crate::interrupt::check;

/// Requests of each contestant in each round, one after the other.
const REQUESTS: usize = 60;

const PATIENCE: Duration = Duration::from_secs(20);

/// Without end: it is stopped.
const LOAD: Load = Load::new(2000, 64, Duration::from_secs(3600));

/// Types of pcapng blocks.
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;

/// Between two requests, in which the server makes itself ready for the next.
const PAUSE: Duration = Duration::from_millis(200);

const BESIDES: &str = "while 2,000 packets of 64 bytes are sent in a second into the namespace, which has the loopback device \
    and a virtual Ethernet device. packetflix is asked for all interfaces; the original, which takes one name, for the \
    device that has traffic. The time begins with the TCP connection. The stand-in answers a request before it starts \
    dumpcap.";

const FILTER: &str = "&filter=tcp%20port%2080%20or%20udp";

const ANSWER: [FigureKind; 2] = [
    compared("until the answer 101, p50", "ms"),
    less("until the answer 101, p99", "ms"),
];
const DESCRIBED: [FigureKind; 2] = [
    compared("until the first interface description, p50", "ms"),
    less("until the first interface description, p99", "ms"),
];
const FIRST: [FigureKind; 2] = [
    compared("until the first packet, p50", "ms"),
    less("until the first packet, p99", "ms"),
];

/// How requests follow each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Apart,
    InRow,
    /// Each with a filter that was not asked for before.
    InRowOfFilters,
}

pub(crate) fn run(report: &mut Report, rounds: u32, part: &str) -> anyhow::Result<()> {
    let lanes = Lanes::new(1)?;
    let _traffic = Traffic::start(lanes.sockets(1)?, LOAD);
    let bare = "&names=0".to_owned();
    let filter = format!("&names=0{FILTER}");
    for (name, title, rest, way) in [
        ("start-bare", "Start without names or filter", &bare, Way::Apart),
        (
            "start-names",
            "Start with names of addresses",
            &String::new(),
            Way::Apart,
        ),
        ("start-filter", "Start with a filter", &filter, Way::Apart),
        (
            "start-both",
            "Start with names and a filter",
            &FILTER.to_owned(),
            Way::Apart,
        ),
        ("start-row", "Start in a row", &bare, Way::InRow),
        (
            "start-row-filter",
            "Start in a row, with a filter",
            &filter,
            Way::InRow,
        ),
        (
            "start-row-filters",
            "Start in a row, each with another filter",
            &filter,
            Way::InRowOfFilters,
        ),
    ] {
        if !name.contains(part) {
            continue;
        }
        let when = match way {
            Way::Apart => "a fifth of a second apart,",
            Way::InRow | Way::InRowOfFilters => {
                "each as soon as the one before has its first packet and its connection is cut,"
            }
        };
        let method = format!("{REQUESTS} requests in each round, {when} {BESIDES}");
        let scenario = Scenario::new(name, title, method, Some(contestant::REFERENCE));
        in_turns(report, scenario, rounds, |scenario, contestant| {
            let running = contestant.start()?;
            let interface = match contestant {
                Contestant::Packetflix(_) => "",
                Contestant::Original => RECEIVER,
            };
            let path = running.path(&lanes.receivers[0], interface, rest)?;
            // The first request finds what later ones have in their caches.
            Times::of(&running, &path)?;
            let mut all = Vec::new();
            for number in 0..REQUESTS {
                check()?;
                if way == Way::Apart {
                    sleep(PAUSE);
                }
                let path = match way {
                    Way::Apart | Way::InRow => path.clone(),
                    Way::InRowOfFilters => format!("{path}%20or%20tcp%20port%20{}", 1000 + number),
                };
                all.push(Times::of(&running, &path)?);
            }
            for (figures, time) in [
                (&ANSWER, (|times| times.answer) as fn(&Times) -> Duration),
                (&DESCRIBED, |times| times.described),
                (&FIRST, |times| times.first),
            ] {
                let mut times: Vec<Duration> = all.iter().map(time).collect();
                times.sort_unstable();
                for (figure, part) in figures.iter().zip([50, 99]) {
                    let at = (times.len() * part).div_ceil(100).saturating_sub(1);
                    scenario.record(contestant.name(), figure, times[at].as_secs_f64() * 1e3);
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// When parts of an answer came, after the connection was begun.
struct Times {
    answer: Duration,
    described: Duration,
    first: Duration,
}

impl Times {
    /// Of one request, of which the connection is then cut.
    fn of(running: &Running, path: &str) -> anyhow::Result<Self> {
        let begin = Instant::now();
        let mut stream = TcpStream::connect(("127.0.0.1", running.port()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        // The key of RFC 6455.
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes())?;

        let (mut answer, mut described) = (None, None);
        let mut rest = Vec::new();
        let mut blocks = Vec::new();
        let mut piece = vec![0; 64 * 1024];
        loop {
            let len = stream.read(&mut piece)?;
            let now = begin.elapsed();
            ensure!(len > 0, "the stream ends");
            rest.extend_from_slice(&piece[..len]);
            if answer.is_none() {
                let Some(end) = rest.windows(4).position(|window| window == b"\r\n\r\n") else {
                    continue;
                };
                let head = String::from_utf8_lossy(&rest[..end]);
                ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
                rest.drain(..end + 4);
                answer = Some(now);
            }
            while let Some(payload) = take_frame(&mut rest) {
                blocks.extend(payload);
            }
            while let Some(kind) = take_block(&mut blocks) {
                if kind == INTERFACE && described.is_none() {
                    described = Some(now);
                }
                if kind == PACKET {
                    return Ok(Self {
                        answer: answer.context("no answer")?,
                        described: described.context("no description")?,
                        first: now,
                    });
                }
            }
        }
    }
}

/// Takes a whole frame of a server off the front, and gives its payload: RFC 6455, section 5.2.
fn take_frame(bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (head, len) = match *bytes.get(1)? {
        126 => (4, u64::from(u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*bytes.get(2..)?.first_chunk()?)),
        len => (2, u64::from(len)),
    };
    let end = head + usize::try_from(len).ok()?;
    let payload = bytes.get(head..end)?.to_vec();
    bytes.drain(..end);
    Some(payload)
}

/// Takes a whole pcapng block off the front, and gives its type.
fn take_block(bytes: &mut Vec<u8>) -> Option<u32> {
    let kind = u32::from_ne_bytes(*bytes.first_chunk()?);
    let len = u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
    bytes.get(..len)?;
    bytes.drain(..len);
    Some(kind)
}
