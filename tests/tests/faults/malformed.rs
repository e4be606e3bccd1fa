//! Requests that no client would send, made at random: 10,000 of them, and the server is as it was.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::Recorder,
    namespace::Namespace,
    random::Random,
    raw::RawSocket,
    server::{Server, percent_encoded, wait_until},
    traces::{traces_before, wait_for_traces},
    upstream::{Upstream, answer},
};

use crate::frame;

const REQUESTS: usize = 10_000;
const THREADS: usize = 8;

/// Seed of the requests. `FAULTS_SEED=5 cargo test` makes other ones than usual.
fn seed() -> u64 {
    let chosen = std::env::var("FAULTS_SEED").ok();
    chosen.and_then(|seed| seed.parse().ok()).unwrap_or(13)
}

/// Makes requests.
struct Fuzzer {
    random: Random,
    /// A namespace that there is.
    netns: u64,
}

impl Fuzzer {
    /// Text that may be well formed, or what one gets wrong.
    fn text(&mut self) -> String {
        let random = &mut self.random;
        match random.below(8) {
            0 => String::new(),
            1 => random.number().to_string(),
            2 => "%".repeat(random.below(9) as usize),
            3 => "ü\u{202e}/../\u{0}"
                .chars()
                .cycle()
                .take(random.below(40) as usize)
                .collect(),
            4 => "9".repeat(random.below(400) as usize),
            5 => "a".repeat(random.below(9000) as usize),
            6 => String::from_utf8_lossy(&random.bytes(20)).into_owned(),
            _ => random
                .pick(&[
                    "all", "lo", "-1", "null", "0x10", "tcp", "'\"\\", "{}", "[]", "://", "\t",
                ])
                .to_owned(),
        }
    }

    /// Something that is no JSON object that describes a target, or nearly none.
    fn json(&mut self) -> String {
        let member = self.random.pick(&[
            "name",
            "type",
            "prefix",
            "netns",
            "pid",
            "starttime",
            "network-interfaces",
            "cluster",
            "x",
        ]);
        let text = self.text();
        let value = match self.random.below(9) {
            0 => "[".repeat(self.random.below(3000) as usize),
            1 => format!("{{\"uid\":{text:?}}}"),
            2 => self.random.number().to_string(),
            3 => format!("-{}", self.random.below(99)),
            4 => "1e999".to_owned(),
            5 => "null".to_owned(),
            6 => "[\"lo\",\"eth0\",7]".to_owned(),
            7 => format!("\"\\u{:04x}\"", self.random.below(0x1_0000)),
            _ => serde_json::Value::from(text).to_string(),
        };
        let mut json = format!("{{\"{member}\":{value}}}").into_bytes();
        if self.random.percent(30) {
            let at = self.random.below(json.len() as u32) as usize;
            json[at] = self.random.number() as u8;
        }
        String::from_utf8_lossy(&json).into_owned()
    }

    fn query(&mut self) -> String {
        let mut query = String::new();
        for _ in 0..self.random.below(5) {
            let name = self.random.pick(&[
                "container",
                "netns",
                "nif",
                "filter",
                "chaste",
                "self",
                "names",
                "expr",
                "linktype",
                "",
            ]);
            let value = match self.random.below(20) {
                0..8 => self.json(),
                8 => self.netns.to_string(),
                _ => self.text(),
            };
            // Filters take a process each.
            let value = if name == "filter" && self.random.percent(80) {
                "\"".to_owned() + &value
            } else {
                value
            };
            let value = match self.random.below(3) {
                0 => percent_encoded(&value),
                1 => value.replace(|c: char| !c.is_ascii_graphic(), "+"),
                _ => percent_encoded(&value).replacen('%', "%%", 1),
            };
            query += &format!("{}{name}={value}", if query.is_empty() { "?" } else { "&" });
        }
        query
    }

    fn head(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let method = match random.below(10) {
            0..6 => "GET",
            _ => random.pick(&[
                "HEAD", "POST", "PUT", "OPTIONS", "CONNECT", "TRACE", "get", "G\u{0}T", "", "PRI",
            ]),
        };
        let path = random.pick(&[
            "/capture",
            "/capture",
            "/capture",
            "/capture/",
            "/targets",
            "/mobyshark",
            "/version",
            "/filter",
            "/openapi.json",
            "/discover/mobyshark",
            "/discover/",
            "//",
            "*",
            "",
            "http://here/capture",
            "here:80",
            "/%2e%2e/%00",
            "/\u{7f}",
            "/capture#x",
        ]);
        let version = match random.below(10) {
            0..8 => "HTTP/1.1",
            _ => random.pick(&["HTTP/1.0", "HTTP/2.0", "HTTP/9.9", "HTP/1.1", "", "HTTP/1.1 x"]),
        };
        let line_end = if random.percent(95) { "\r\n" } else { "\n" };
        let query = self.query();
        let mut head = format!("{method} {path}{query} {version}{line_end}");
        if self.random.percent(90) {
            head += "Host: localhost\r\n";
        }
        if self.random.percent(50) {
            head += "Upgrade: websocket\r\nConnection: Upgrade\r\n";
            head += self.random.pick(&[
                "Sec-WebSocket-Version: 13\r\n",
                "Sec-WebSocket-Version: 8\r\n",
                "Sec-WebSocket-Version:\r\n",
                "",
            ]);
            head += self.random.pick(&[
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
                "Sec-WebSocket-Key: x\r\n",
                "Sec-WebSocket-Key:\r\n",
                "",
            ]);
        }
        for _ in 0..self.random.below(4) {
            let name = self.random.pick(&[
                "Clustershark-Container",
                "Clustershark-Nif",
                "Clustershark-Filter",
                "Clustershark-Chaste",
                "Origin",
                "Host",
                "Cookie",
                "Content-Length",
                "Transfer-Encoding",
                "Connection",
                "Expect",
                "Authorization",
                "X\u{0}",
                " ",
                "Upgrade",
            ]);
            let value = match self.random.below(4) {
                0 => self.json(),
                1 => self
                    .random
                    .pick(&[
                        "chunked",
                        "100-continue",
                        "close",
                        "http://[::1",
                        "null",
                        "5",
                        "-5",
                        "h2c",
                        "gzip, chunked",
                        "Bearer x",
                    ])
                    .to_owned(),
                _ => self.text().replace(['\r', '\n'], " "),
            };
            let name = if name == "Clustershark-Filter" && self.random.percent(80) {
                "Clustershark-Nif"
            } else {
                name
            };
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// A handshake that is in order, for something that may be.
    fn handshake(&mut self) -> Vec<u8> {
        let netns = if self.random.percent(30) {
            self.netns.to_string()
        } else {
            self.text()
        };
        format!(
            "GET /capture?netns={}&nif={} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            percent_encoded(&netns),
            self.random.pick(&["", "va", "lo", "all/lo", "va/va", "%FF", "a"]),
        )
        .into_bytes()
    }

    fn body(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        match random.below(5) {
            0 => b"5\r\nhello\r\n0\r\n\r\n".to_vec(),
            1 => b"ffffffffffffffff\r\nx".to_vec(),
            2 => b"5;ext=\"\r\nhel".to_vec(),
            3 => b"-1\r\n\r\n".to_vec(),
            _ => {
                let len = random.below(300);
                random.bytes(len)
            }
        }
    }

    /// One request, or what is meant to pass for one.
    fn request(&mut self) -> Vec<u8> {
        let mut request = self.head();
        if self.random.percent(20) {
            request.extend(self.body());
        }
        match self.random.below(24) {
            0 => {
                let len = self.random.below(2000);
                request = self.random.bytes(len);
            }
            1 => {
                for _ in 0..5 {
                    let at = self.random.below(request.len() as u32) as usize;
                    request[at] = self.random.number() as u8;
                }
            }
            2 => request.truncate(self.random.below(request.len() as u32) as usize),
            3 => {
                request = [
                    &b"GET /version HTTP/1.1\r\nX: "[..],
                    &[b'x'; 100_000],
                    b"\r\n\r\n",
                ]
                .concat();
            }
            4 => {
                request = [
                    b"GET /version HTTP/1.1\r\n".to_vec(),
                    b"A: b\r\n".repeat(200),
                    b"\r\n".to_vec(),
                ]
                .concat();
            }
            5..8 => request = self.handshake(),
            _ => {}
        }
        request
    }
}

/// Sends requests on one connection, says no more, and gives the statuses of the answers.
fn exchange(server: &Server, requests: &[u8]) -> anyhow::Result<Vec<u16>> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // The server may have had enough before the end.
    let _ = stream.write_all(requests);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answers) {
        let is_timeout = matches!(
            error.kind(),
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        );
        ensure!(!is_timeout, "no end: {}", String::from_utf8_lossy(&answers));
    }
    let text = String::from_utf8_lossy(&answers);
    let statuses = text
        .split("HTTP/1.1 ")
        .skip(1)
        .filter_map(|rest| rest.get(..3)?.parse().ok());
    Ok(statuses.collect())
}

/// Sends so many requests, from several threads; gives how often each status came.
fn storm(server: &Server, netns: u64, requests: usize, seed: u64) -> anyhow::Result<BTreeMap<u16, usize>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || {
                    let random = Random::new(seed << 8 | number as u64);
                    let mut fuzzer = Fuzzer { random, netns };
                    let mut statuses: BTreeMap<u16, usize> = BTreeMap::new();
                    let mut left = requests / THREADS;
                    while left > 0 {
                        // Some on a connection that is kept.
                        let together = (1 + fuzzer.random.below(3) as usize).min(left);
                        left -= together;
                        let sent: Vec<u8> = (0..together).flat_map(|_| fuzzer.request()).collect();
                        for status in exchange(server, &sent)? {
                            ensure!(status < 500, "{status} for {:?}", String::from_utf8_lossy(&sent));
                            *statuses.entry(status).or_default() += 1;
                        }
                    }
                    Ok(statuses)
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for thread in threads {
            for (status, count) in thread.join().ok().context("a thread panicked")?? {
                *all.entry(status).or_default() += count;
            }
        }
        Ok(all)
    })
}

/// It captures, holds nothing that it did not hold, and has not panicked.
async fn is_as_before(
    server: &Server,
    here: &Namespace,
    there: &Namespace,
    descriptors: usize,
) -> anyhow::Result<()> {
    wait_until(Duration::from_secs(15), || {
        Ok(server.descriptors()? <= descriptors)
    })
    .with_context(|| format!("{descriptors} descriptors before"))?;
    let log = server.log();
    let panic = log.lines().skip_while(|line| !line.contains("panicked")).take(2);
    let panic: Vec<&str> = panic.collect();
    ensure!(panic.is_empty(), "{panic:?}");
    let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
    RawSocket::open(there, "vb")?.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    recorder.finish().await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_malformed_requests_change_nothing() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let inode = here.inode()?;
    let before = traces_before(Some(&server), &[&here])?;
    // The first ones bring threads and buffers with them.
    storm(&server, inode, REQUESTS / 5, seed() << 32)?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    let (descriptors, memory) = (server.descriptors()?, server.status("RssAnon")?);
    let statuses = storm(&server, inode, REQUESTS, seed())?;
    let grown = server.status("RssAnon")?.saturating_sub(memory);
    eprintln!("{REQUESTS} malformed requests: {statuses:?}, and {grown} KiB of memory more");
    ensure!(grown < 8 * 1024, "memory grew by {grown} KiB");
    ensure!(
        [101, 200, 400, 404, 405, 426]
            .iter()
            .all(|status| statuses.contains_key(status)),
        "too tame: {statuses:?}"
    );
    is_as_before(&server, &here, &there, descriptors).await?;
    wait_for_traces(&before, Some(&server), &[&here])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_requests_pass_the_proxy_without_harm() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let service = Upstream::start(|_, stream| answer(&stream, "200 OK", "", "well"))?;
    let server = Server::start(&["--proxy-discovery", "--gw-port", &service.port().to_string()])?;
    let descriptors = server.descriptors()?;
    // What does not come through is the service's fault for the server: that it says so is no fault.
    let mut fuzzer = Fuzzer {
        random: Random::new(seed()),
        netns: here.inode()?,
    };
    for _ in 0..1000 {
        let request = fuzzer.request();
        let statuses = exchange(&server, &request)?;
        ensure!(
            statuses.iter().all(|status| *status != 500),
            "{statuses:?} for {:?}",
            String::from_utf8_lossy(&request)
        );
    }
    is_as_before(&server, &here, &there, descriptors + 10).await
}
