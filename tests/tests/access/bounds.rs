//! What connections and requests may take.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::ensure;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use packetflix_tests::{http::Head, server::Server};
use socket2::{Domain, Socket, Type};

use crate::{curl, sentence};

/// What a client gets that says this much and no more: the status, and the whole answer.
fn answer(server: &Server, said: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(said.as_bytes())?;
    let mut stream = BufReader::new(stream);
    if stream.fill_buf()?.is_empty() {
        return Ok((0, String::new()));
    }
    let head = Head::read(&mut stream)?;
    let mut body = String::new();
    stream.read_to_string(&mut body)?;
    Ok((head.status()?, body))
}

#[test]
fn what_is_too_long_is_refused() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let url = |path: &str| format!("http://127.0.0.1:{}{path}", server.port());
    let long = url(&format!("/targets?x={}", "x".repeat(61_500)));
    let (status, body) = curl(&[&long])?;
    ensure!(
        status == 414 && sentence(&body)?.contains("61440 is the most"),
        "{status} {body}"
    );
    assert_eq!(
        curl(&[&url(&format!("/version?x={}", "x".repeat(61_000)))])?.0,
        200
    );
    let header = format!("x: {}", "x".repeat(66_000));
    assert_eq!(curl(&["--header", &header, &url("/version")])?.0, 431);
    let many: String = (0..200).map(|n| format!("x{n}: 1\r\n")).collect();
    let (head, _) = server.ask(&format!("GET /version HTTP/1.1\r\n{}", many.trim_end()))?;
    assert_eq!(head.status()?, 431);
    let body = "x".repeat(65_537);
    let (status, said) = curl(&["--request", "GET", "--data-binary", &body, &url("/version")])?;
    ensure!(
        status == 413 && sentence(&said)?.contains("65537 bytes"),
        "{status} {said}"
    );
    let chunked = [
        "--request",
        "GET",
        "--header",
        "Transfer-Encoding: chunked",
        "--data",
        "x",
    ];
    assert_eq!(curl(&[&chunked[..], &[&url("/version")]].concat())?.0, 413);
    assert_eq!(
        curl(&["--request", "GET", "--data", "x", &url("/version")])?.0,
        200
    );
    Ok(())
}

#[test]
fn one_address_gets_a_part_of_the_connections() -> anyhow::Result<()> {
    let server = Server::start(&["--max-connections-per-address", "3"])?;
    // An answer is under way on each.
    let busy = [1, 2, 3].map(|number| busy(&server, number));
    std::thread::sleep(Duration::from_millis(100));
    let (status, body) = answer(&server, "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    ensure!(
        status == 429 && sentence(&body)?.contains("3 connections from 127.0.0.1"),
        "{status} {body}"
    );
    let other = connect_from(Ipv4Addr::new(127, 0, 0, 2), &server)?;
    write!(&other, "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    assert_eq!(Head::read(&mut BufReader::new(other))?.status()?, 200);
    drop(busy);
    let again = || {
        answer(
            &server,
            "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        )
    };
    packetflix_tests::server::wait_until(Duration::from_secs(5), || Ok(again()?.0 == 200))
}

/// A connection with a request whose answer takes seconds.
fn busy(server: &Server, number: usize) -> anyhow::Result<TcpStream> {
    let hosts: Vec<String> = (0..300)
        .map(|host| format!("host+10.{number}.{}.{}", host / 250, host % 250))
        .collect();
    let stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    let expression = hosts.join("+or+");
    write!(
        &stream,
        "GET /filter?expr={expression} HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )?;
    Ok(stream)
}

fn connect_from(address: Ipv4Addr, server: &Server) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((address, 0)).into())?;
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, server.port())).into())?;
    Ok(socket.into())
}

#[test]
fn those_who_say_nothing_make_room_for_others() -> anyhow::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most.min(4096), most)?;
    let server = Server::start(&[])?;
    let begun = Instant::now();
    // All connections that there may be, from more than one address.
    let mut idle = Vec::new();
    for host in 1..=4 {
        for _ in 0..256 {
            idle.push(connect_from(Ipv4Addr::new(127, 0, 1, host), &server)?);
        }
    }
    // Nobody else is kept out, nor has to wait, for as long as they like to say nothing; nor does it help them to ask what
    // everyone may.
    let mut asking: Vec<TcpStream> = Vec::new();
    for host in 5..=8 {
        for _ in 0..256 {
            let mut stream = connect_from(Ipv4Addr::new(127, 0, 1, host), &server)?;
            stream.write_all(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
            asking.push(stream);
        }
    }
    for path in ["/healthz", "/readyz", "/version", "/targets"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        let asked = Instant::now();
        let (status, body) = answer(&server, &request)?;
        ensure!(status == 200, "{path}: {status} {body}");
        ensure!(
            asked.elapsed() < Duration::from_secs(5),
            "{path}: {:?}",
            asked.elapsed()
        );
    }
    ensure!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    drop((idle, asking));

    // One that has begun is told; it takes as long, however it trickles.
    let begun = Instant::now();
    let mut slow = TcpStream::connect(("127.0.0.1", server.port()))?;
    slow.write_all(b"GET /version HTTP/1.1\r\n")?;
    slow.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut said = Vec::new();
    while begun.elapsed() < Duration::from_secs(20) {
        let _ = slow.write_all(b"x: y\r\n");
        match slow.read_to_end(&mut said) {
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    let said = String::from_utf8(said)?;
    ensure!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{said}");
    ensure!(
        (9..13).contains(&begun.elapsed().as_secs()),
        "{:?}",
        begun.elapsed()
    );
    Ok(())
}
