//! More connections than anyone needs, and those that never come to the point.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use packetflix_tests::{
    client::Recorder,
    namespace::Namespace,
    server::{Server, wait_until},
};
use socket2::{Domain, Socket, Type};

/// How long others have to wait at most.
const PROMPT: Duration = Duration::from_secs(2);

/// Lets this process open that many connections.
fn raise_descriptor_limit() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
}

/// A connection from an address that is not the one of everyone else.
fn connect(server: &Server, host: u8) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0)).into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, server.port())).into())?;
    Ok(socket.into())
}

/// A capture begins and a page is answered, without delay.
async fn others_are_served(server: &Server, namespace: &Namespace) -> anyhow::Result<Duration> {
    let begin = Instant::now();
    let recorder = Recorder::start(&server.url(&format!("netns={}", namespace.inode()?))).await?;
    let (status, _) = server.get("/version")?;
    let took = begin.elapsed();
    ensure!(status == 200 && took < PROMPT, "{status} after {took:?}");
    recorder.finish().await?;
    Ok(took)
}

#[tokio::test]
async fn thousand_connections_that_say_nothing_keep_nobody_out() -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    others_are_served(&server, &namespace).await?;
    let before = server.descriptors()?;
    let mut idle = Vec::new();
    for number in 0..1000 {
        let mut stream = connect(&server, 66)?;
        if number % 2 == 0 {
            // One that was closed for there being too many is as good.
            let _ = stream.write_all(b"GET /capture?netns=1 HTTP/1.1\r\nHost: he");
        }
        idle.push(stream);
    }
    let took = others_are_served(&server, &namespace).await?;
    eprintln!("beside a thousand connections, a capture and a page took {took:.1?}");
    drop(idle);
    wait_until(Duration::from_secs(5), || Ok(server.descriptors()? <= before))?;
    Ok(())
}

#[tokio::test]
async fn more_connections_than_there_may_be_keep_nobody_else_out() -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    others_are_served(&server, &namespace).await?;
    let before = server.descriptors()?;
    // All from one address. Those that are too many may be closed at once, or wait.
    let idle: Vec<_> = (0..2000).map(|_| connect(&server, 66)).collect();
    let took = others_are_served(&server, &namespace).await?;
    eprintln!("beside two thousand connections from elsewhere, a capture and a page took {took:.1?}");
    drop(idle);
    wait_until(Duration::from_secs(15), || Ok(server.descriptors()? <= before))?;
    Ok(())
}

/// Whether the server has ended a connection, whatever it said before.
fn has_ended(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4096];
    loop {
        match stream.read(&mut answer) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

#[tokio::test]
async fn requests_that_trickle_in_are_cut_off_and_others_are_served() -> anyhow::Result<()> {
    raise_descriptor_limit()?;
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let begin = Instant::now();
    let mut slow = Vec::new();
    for number in 0..200 {
        let stream = connect(&server, 1 + number)?;
        stream.set_nonblocking(true)?;
        slow.push(stream);
    }
    let request =
        b"GET /capture?netns=1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nX: and so on and on and on";
    let mut bytes = request.iter();
    while !slow.is_empty() {
        let byte = bytes.next().context("never cut off")?;
        slow.retain_mut(|stream| stream.write_all(&[*byte]).is_ok() && !has_ended(stream));
        others_are_served(&server, &namespace).await?;
        let took = begin.elapsed();
        ensure!(
            took < Duration::from_secs(15),
            "{} are left after {took:?}",
            slow.len()
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    eprintln!(
        "requests that trickle in were cut off after {:.1?}",
        begin.elapsed()
    );
    Ok(())
}
