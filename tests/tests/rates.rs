//! `/rates`: traffic of targets without a capture, for those who may know of them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpStream, UdpSocket},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    folder::Folder,
    http::Head,
    namespace::{Namespace, inside, of_process, run},
    process::Sleeper,
    server::{Server, wait_until},
};
use serde_json::Value;

const ALICE: &str = "alice-0123456789abcdef";
const PART: &str = "part-0123456789abcdef";
const BLIND: &str = "blind-0123456789abcdef";

/// Bytes of an IP packet that is sent.
const LEN: usize = 20 + 8 + 72;

/// Packets sent over the loopback device of a namespace, until it is dropped.
struct Traffic {
    is_over: Arc<AtomicBool>,
    sending: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Traffic {
    fn start(namespace: &Path) -> anyhow::Result<Self> {
        run(
            "nsenter",
            &[
                &format!("--net={}", namespace.display()),
                "ip",
                "link",
                "set",
                "lo",
                "up",
            ],
        )?;
        let socket = inside(namespace, || UdpSocket::bind("127.0.0.1:0"))??;
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let sending = thread::spawn(move || {
            let here = socket.local_addr()?;
            while !until.load(Ordering::Relaxed) {
                socket.send_to(&[0; LEN - 28], here)?;
                thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Ok(Self {
            is_over,
            sending: Some(sending),
        })
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let _ = self.sending.take().map(JoinHandle::join);
    }
}

/// The events of a stream.
struct Events {
    stream: BufReader<TcpStream>,
}

impl Events {
    fn open(server: &Server, token: Option<&str>) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port()))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let token = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        // Without pieces of the body's own.
        write!(stream, "GET /rates HTTP/1.0\r\nHost: localhost\r\n{token}\r\n")?;
        let mut stream = BufReader::new(stream);
        let head = Head::read(&mut stream)?;
        ensure!(head.status()? == 200, "{head:?}");
        ensure!(head.values("content-type") == ["text/event-stream"], "{head:?}");
        Ok(Self { stream })
    }

    /// Reads events until one is what is looked for.
    fn read_until(
        &mut self,
        mut is_it: impl FnMut(&str, &str) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let mut kind = String::new();
        for _ in 0..1000 {
            let mut line = String::new();
            ensure!(self.stream.read_line(&mut line)? > 0, "the stream has ended");
            let line = line.trim_end();
            if let Some(word) = line.strip_prefix("event: ") {
                word.clone_into(&mut kind);
            } else if let Some(data) = line.strip_prefix("data: ")
                && is_it(&kind, data)?
            {
                return Ok(());
            }
        }
        anyhow::bail!("a thousand lines, and none of them is it")
    }

    /// Waits until a namespace has traffic; gives all rates of that moment.
    fn traffic_of(&mut self, netns: u64) -> anyhow::Result<Value> {
        let mut found = Value::Null;
        self.read_until(|kind, data| {
            if kind == "rates" {
                found = serde_json::from_str(data)?;
            }
            Ok(kind == "rates" && found["rates"].get(netns.to_string()).is_some())
        })?;
        Ok(found)
    }
}

#[test]
fn traffic_is_told_without_a_capture() -> anyhow::Result<()> {
    let (busy, idle) = (Namespace::new()?, Namespace::new()?);
    let _traffic = Traffic::start(&busy.path())?;
    let server = Server::start(&[])?;
    let mut events = Events::open(&server, None)?;
    let told = events.traffic_of(busy.inode()?)?;
    let rates = &told["rates"];
    let lo: Vec<f64> = serde_json::from_value(rates[busy.inode()?.to_string()]["1"].clone())?;
    let [received, sent, received_bytes, sent_bytes] = lo[..] else {
        anyhow::bail!("{lo:?}");
    };
    // What loopback sends, it receives; and each packet has its length. Rates are rounded to tenths.
    ensure!((received - sent).abs() < 1.0 && received > 0.0, "{lo:?}");
    ensure!((sent_bytes / sent - LEN as f64).abs() < 1.0, "{lo:?}");
    ensure!((received_bytes / received - LEN as f64).abs() < 1.0, "{lo:?}");
    ensure!(rates.get(idle.inode()?.to_string()).is_none(), "{told}");
    ensure!(told["uptime"].as_f64() > Some(0.0), "{told}");
    ensure!(!server.log().contains("started"), "{}", server.log());
    Ok(())
}

#[test]
fn one_reads_for_all_and_nobody_where_nobody_looks() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let mut viewers = Vec::new();
    for _ in 0..5 {
        viewers.push(Events::open(&server, None)?);
    }
    let targets = |viewer: &mut Events| viewer.read_until(|kind, _| Ok(kind == "targets"));
    viewers.iter_mut().try_for_each(targets)?;
    // Another target is news, and told once.
    let namespace = Namespace::new()?;
    viewers.iter_mut().try_for_each(targets)?;
    let mut again = 0;
    viewers[0].read_until(|kind, _| {
        again += 1;
        ensure!(kind == "rates", "the same targets are told again");
        Ok(again == 3)
    })?;
    drop(namespace);
    viewers.iter_mut().try_for_each(targets)
}

#[test]
fn rates_are_for_those_who_may_know_of_the_target() -> anyhow::Result<()> {
    let (web, db) = (
        Sleeper::unshared_as("web", &[])?,
        Sleeper::unshared_as("db", &[])?,
    );
    let folder = Folder::new()?;
    let others = format!("alice {ALICE}\nblind {BLIND} capture\n");
    let part = format!("part {PART} discover capture:web(*)\n");
    let tokens = folder.put_secret("tokens", &(others.clone() + &part))?;
    let server = Server::start(&["--token-file", tokens.to_str().context("no text")?])?;
    for (token, status) in [(None, 401), (Some(BLIND), 403)] {
        let refused = Events::open(&server, token).map(drop);
        let sentence = refused.err().context("let in")?.to_string();
        ensure!(sentence.contains(&status.to_string()), "{sentence}");
    }
    let _traffic = (
        Traffic::start(&of_process(web.pid()))?,
        Traffic::start(&of_process(db.pid()))?,
    );
    let (web, db) = (web.netns()?, db.netns()?);
    let mut all = Events::open(&server, Some(ALICE))?;
    let mut part = Events::open(&server, Some(PART))?;
    let both = all.traffic_of(web)?["rates"].clone();
    let both = match both.get(db.to_string()) {
        Some(_) => both,
        None => all.traffic_of(db)?["rates"].clone(),
    };
    ensure!(both.get(db.to_string()).is_some(), "{both}");
    for _ in 0..3 {
        let own = part.traffic_of(web)?;
        let rates = own["rates"].as_object().context("no rates")?;
        ensure!(rates.len() == 1, "{own}");
        ensure!(own.get("unseen").is_none(), "{own}");
    }
    // Who is let in no more is told no more.
    folder.put_secret("tokens", &others)?;
    let mut is_over = false;
    wait_until(Duration::from_secs(20), || {
        is_over = part.read_until(|_, _| Ok(true)).is_err();
        Ok(is_over)
    })?;
    all.traffic_of(db).map(drop)
}

#[test]
fn those_who_look_do_not_keep_the_service_from_ending() -> anyhow::Result<()> {
    let mut server = Server::start(&[])?;
    let mut events = Events::open(&server, None)?;
    events.read_until(|kind, _| Ok(kind == "rates"))?;
    server.signal(nix::sys::signal::Signal::SIGTERM)?;
    ensure!(server.wait()?.success(), "{}", server.log());
    Ok(())
}
