//! Requests whose heads do not come to their end.

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use packetflix_tests::{control_group::ControlGroup, folder::Folder, server::Server};
use socket2::{Domain, Socket, Type};

use crate::has_not_panicked;

/// A connection from one of several addresses of this host, and how much of its head is sent.
struct Half {
    stream: TcpStream,
    sent: usize,
}

impl Half {
    fn begin(port: u16, number: u8) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, number), 0)).into())?;
        socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            stream: socket.into(),
            sent: 0,
        })
    }

    /// Sends as much as is taken; one that was turned out has sent what it could.
    fn go_on(&mut self, head: &[u8]) {
        if let Ok(sent) = self.stream.write(&head[self.sent..]) {
            self.sent += sent;
        }
    }
}

#[test]
fn heads_that_are_not_complete_take_little_memory_together() -> anyhow::Result<()> {
    const CONNECTIONS: usize = 1000;
    const TOKEN: &str = "steady-0123456789abcdef";

    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 4096.min(most), most)?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("steady {TOKEN}\n"))?;
    let group = ControlGroup::with_memory(128 << 20)?;
    let flags = ["--token-file", tokens.to_str().context("no text")?];
    let server = Server::start_by(&mut group.server()?, &flags)?;
    let headers: String = (0..46)
        .map(|number| format!("x{number}: {}\r\n", "b".repeat(900)))
        .collect();
    let head = format!(
        "GET /{} HTTP/1.1\r\nHost: localhost\r\n{headers}",
        "a".repeat(20_000)
    );
    let before = server.status("RssAnon")?;
    let mut most = before;
    let mut halves = (0..CONNECTIONS)
        .map(|number| Half::begin(server.port(), 2 + u8::try_from(number / 200)?))
        .collect::<Result<Vec<_>, _>>()?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        halves.iter_mut().for_each(|half| half.go_on(head.as_bytes()));
        most = most.max(server.status("RssAnon")?);
    }
    let sent: usize = halves.iter().map(|half| half.sent).sum();
    ensure!(sent > CONNECTIONS * 4096, "only {sent} bytes were taken");
    // There is room for who comes now.
    let request = format!("GET /filter?expr=tcp HTTP/1.1\r\nAuthorization: Bearer {TOKEN}");
    let (answer, _) = server.ask(&request)?;
    ensure!(answer.status()? == 200, "{}", answer.line);
    eprintln!("{sent} bytes of {CONNECTIONS} heads: {before} kB before, {most} kB at most");
    ensure!(most - before < 40 << 10, "{before} {most}");
    has_not_panicked(&server)
}
