//! The discovery service behind the server, as clients of the server see it.

use std::{
    fmt,
    io::{BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    sync::{
        Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_tests::{
    folder::Folder,
    http::{Body, Head, Pattern},
    server::{Server, wait_until},
    upstream::{Stream, Upstream, answer},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;
use tokio_tungstenite::tungstenite::{
    self, Message, WebSocket,
    client::IntoClientRequest as _,
    handshake::derive_accept_key,
    http::HeaderValue,
    protocol::{CloseFrame, Role, frame::coding::CloseCode},
};

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);

/// Length of a body that nobody should hold.
const LARGE: usize = 100 << 20;

/// By how much the server may grow for a large body, in KiB. Most of it is what it prepares when it starts.
const MOST_GROWTH: u64 = 40 << 10;

fn proxy_of(upstream: &Upstream) -> anyhow::Result<Server> {
    let port = upstream.port().to_string();
    // Rings are mapped before there is a capture, and are to be little of what it takes.
    Server::start(&["--proxy-discovery", "--gw-port", &port, "--ring-size=512KiB"])
}

#[test]
fn requests_that_are_not_proxied_do_not_fill_the_log() -> anyhow::Result<()> {
    const TRIES: usize = 300;

    // Nobody listens there any more.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut server = Server::start(&["--proxy-discovery", "--gw-port", &port.to_string()])?;
    for _ in 0..TRIES {
        let (head, _) = get(&server, "/anything")?;
        assert_eq!(head.status()?, 502);
    }
    server.signal(Signal::SIGTERM)?;
    server.wait()?;
    server.wait_for_log("shutting down")?;
    let mut told = 0;
    wait_until(PATIENCE, || {
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains("not proxied")).count();
        ensure!(lines <= TRIES * 2 / 3, "{lines} lines");
        let more = log.lines().filter_map(|line| {
            let (_, rest) = line
                .split_once("more were refused than are logged")?
                .1
                .split_once("count=")?;
            rest.split(' ').next()?.parse::<usize>().ok()
        });
        told = lines + more.sum::<usize>();
        Ok(told == TRIES)
    })
    .with_context(|| format!("{told} were told\n{}", server.log()))
}

fn connect(server: &Server) -> anyhow::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(BufReader::new(stream))
}

/// Sends a whole request, of which the line endings are given as they are, and reads the answer.
fn exchange(server: &Server, request: &str) -> anyhow::Result<(Head, String)> {
    let mut stream = connect(server)?;
    write!(stream.get_ref(), "{request}")?;
    let head = Head::read(&mut stream)?;
    let body = Body::of_answer(&head, &mut stream)?.read_all()?;
    Ok((head, String::from_utf8(body)?))
}

fn get(server: &Server, path: &str) -> anyhow::Result<(Head, String)> {
    exchange(
        server,
        &format!("GET {path} HTTP/1.1\r\nHost: localhost:5001\r\n\r\n"),
    )
}

/// Tells method, path and body of the request.
fn tell(head: &Head, mut stream: Stream) -> anyhow::Result<()> {
    let body = Body::of_request(head, &mut stream)?.read_all()?;
    answer(
        &stream,
        "200 OK",
        "",
        &format!("{} {}", head.line, String::from_utf8(body)?),
    )
}

/// Receives what another thread says.
fn heard<T>(channel: &Receiver<T>) -> anyhow::Result<T> {
    channel.recv_timeout(PATIENCE).context("the other side is silent")
}

fn heard_by_script<T>(channel: &Mutex<Receiver<T>>) -> anyhow::Result<T> {
    let channel = channel.lock();
    heard(&*channel.map_err(|_| anyhow::anyhow!("another script has failed"))?)
}

/// Answers the handshake, and says "welcome" with the same packet.
fn accept_websocket(head: &Head, stream: Stream) -> anyhow::Result<WebSocket<TcpStream>> {
    let key = head.values("sec-websocket-key").concat();
    let accept = derive_accept_key(key.as_bytes());
    let mut answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nX-Service: yes\r\n\r\n"
    )
    .into_bytes();
    answer.extend(b"\x81\x07welcome");
    ensure!(stream.buffer().is_empty());
    let mut stream = stream.into_inner();
    stream.write_all(&answer)?;
    Ok(WebSocket::from_raw_socket(stream, Role::Server, None))
}

/// Sends back what comes, until the client closes with a code, which goes back too.
fn echo(head: &Head, stream: Stream) -> anyhow::Result<()> {
    let mut socket = accept_websocket(head, stream)?;
    loop {
        let message = socket.read()?;
        if message.is_text() || message.is_binary() {
            socket.send(message)?;
        }
    }
}

fn open_websocket(server: &Server, path: &str) -> anyhow::Result<WebSocket<TcpStream>> {
    open_websocket_with(server, path, None)
}

fn open_websocket_with(
    server: &Server,
    path: &str,
    token: Option<&str>,
) -> anyhow::Result<WebSocket<TcpStream>> {
    let stream = connect(server)?.into_inner();
    let url = format!("ws://127.0.0.1:{}{path}", server.port());
    let mut request = url.into_client_request()?;
    let own = format!("http://127.0.0.1:{}", server.port());
    request
        .headers_mut()
        .insert("origin", HeaderValue::try_from(own)?);
    if let Some(token) = token {
        let bearer = HeaderValue::try_from(format!("Bearer {token}"))?;
        request.headers_mut().insert("authorization", bearer);
    }
    let (mut socket, answer) = tungstenite::client(request, stream)?;
    ensure!(answer.headers()["x-service"] == "yes");
    ensure!(socket.read()? == Message::text("welcome"));
    Ok(socket)
}

#[test]
fn websocket_is_joined_to_that_of_the_service() -> anyhow::Result<()> {
    let upstream = Upstream::start(echo)?;
    let server = proxy_of(&upstream)?;
    let mut socket = open_websocket(&server, "/discover/ws?a=%20b")?;
    let large: Vec<u8> = (0..1 << 20).map(|place| (place % 251) as u8).collect();
    for message in [Message::text("hello"), Message::binary(large)] {
        socket.send(message.clone())?;
        ensure!(socket.read()? == message);
    }
    let close = CloseFrame {
        code: CloseCode::Library(4321),
        reason: "enough".into(),
    };
    socket.close(Some(close.clone()))?;
    ensure!(socket.read()? == Message::Close(Some(close)));
    ensure!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));

    let head = &upstream.heads()[0];
    assert_eq!(head.line, "GET /ws?a=%20b HTTP/1.1");
    assert_eq!(head.values("upgrade"), ["websocket"]);
    assert_eq!(head.values("connection"), ["Upgrade"]);
    assert_eq!(head.values("sec-websocket-version"), ["13"]);
    Ok(())
}

#[test]
fn any_protocol_may_be_changed_to() -> anyhow::Result<()> {
    let upstream = Upstream::start(|_, mut stream| {
        let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: lines/2\r\n\r\n";
        write!(stream.get_ref(), "{head}welcome ")?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(write!(stream.get_ref(), "{said} goodbye")?)
    })?;
    let server = proxy_of(&upstream)?;
    let mut stream = connect(&server)?;
    let request = "GET /lines HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: lines/1\r\n\r\n";
    // What is said already before the answer belongs to the new protocol.
    write!(stream.get_ref(), "{request}one ")?;
    let head = Head::read(&mut stream)?;
    assert_eq!(head.status()?, 101);
    assert_eq!(head.values("upgrade"), ["lines/2"]);
    assert_eq!(upstream.heads()[0].values("upgrade"), ["lines/1"]);
    write!(stream.get_ref(), "two")?;
    stream.get_ref().shutdown(Shutdown::Write)?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    assert_eq!(said, "welcome one two goodbye");
    Ok(())
}

#[test]
fn refused_upgrade_is_handed_back() -> anyhow::Result<()> {
    let upstream = Upstream::start(|_, stream| {
        answer(
            &stream,
            "426 Upgrade Required",
            "Connection: upgrade\r\nUpgrade: other\r\n",
            "not so",
        )
    })?;
    let server = proxy_of(&upstream)?;
    let (head, body) = exchange(
        &server,
        "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    )?;
    assert_eq!((head.status()?, &body[..]), (426, "not so"));
    assert_eq!(head.values("upgrade"), ["other"]);
    Ok(())
}

/// Writes the rest of the body until it is not taken any more, tells so, and writes on.
fn write_all_of(
    body: &Pattern,
    mut at: usize,
    mut stream: &TcpStream,
    stalled: &Sender<()>,
) -> anyhow::Result<()> {
    stream.set_write_timeout(Some(Duration::from_millis(500)))?;
    while at < body.len() {
        match body.write_at(at, &mut stream) {
            Ok(written) => at += written,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                // The other side reads when it hears that: it hears nothing twice.
                let _ = stalled.send(());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[test]
fn large_answer_is_streamed_at_the_clients_pace() -> anyhow::Result<()> {
    let (go_on, wait) = channel();
    let (stalled, stall) = channel();
    let wait = Mutex::new(wait);
    let body = Pattern::new(LARGE);
    let upstream = Upstream::start(move |head, stream| {
        if head.line.starts_with("GET /small") {
            return answer(&stream, "200 OK", "", "small");
        }
        let body = Pattern::new(LARGE);
        write!(
            stream.get_ref(),
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n\0",
            body.len()
        )?;
        heard_by_script(&wait)?;
        write_all_of(&body, 1, stream.get_ref(), &stalled)
    })?;
    let server = proxy_of(&upstream)?;
    get(&server, "/small")?;
    let before = server.status("VmHWM")?;

    let mut stream = connect(&server)?;
    write!(stream.get_ref(), "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let head = Head::read(&mut stream)?;
    let mut received = Body::of_answer(&head, &mut stream)?;
    let mut first = [1];
    received.read_exact(&mut first).context("nothing comes early")?;
    go_on.send(())?;
    heard(&stall).context("all was taken from the service, though the client took nothing")?;
    body.check_from(1, &mut received)?;

    let grown = server.status("VmHWM")? - before;
    ensure!(grown < MOST_GROWTH, "the server grew by {grown} KiB");
    Ok(())
}

#[test]
fn large_request_is_streamed_at_the_services_pace() -> anyhow::Result<()> {
    let (go_on, wait) = channel();
    let (begun, begin) = channel();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |head, mut stream| {
        if head.line.starts_with("GET /small") {
            return answer(&stream, "200 OK", "", "small");
        }
        let mut received = Body::of_request(head, &mut stream)?;
        received.read_exact(&mut [1])?;
        begun.send(())?;
        heard_by_script(&wait)?;
        Pattern::new(LARGE).check_from(1, &mut received)?;
        answer(&stream, "201 Created", "", "all of it")
    })?;
    let server = proxy_of(&upstream)?;
    get(&server, "/small")?;
    let before = server.status("VmHWM")?;

    let body = Pattern::new(LARGE);
    let mut stream = connect(&server)?;
    let head = "PUT /large HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n";
    write!(stream.get_ref(), "{head}\r\n{:x}\r\n\0", body.len())?;
    heard(&begin).context("nothing comes early")?;
    // From here on the client tells the service to read when it can write no more.
    write_all_of(&body, 1, stream.get_ref(), &go_on)?;
    ensure!(
        upstream.heads()[1].values("transfer-encoding") == ["chunked"],
        "{:?}",
        upstream.heads()
    );
    write!(stream.get_ref(), "\r\n0\r\n\r\n")?;
    let head = Head::read(&mut stream)?;
    let said = Body::of_answer(&head, &mut stream)?.read_all()?;
    assert_eq!((head.status()?, &said[..]), (201, &b"all of it"[..]));

    let grown = server.status("VmHWM")? - before;
    ensure!(grown < MOST_GROWTH, "the server grew by {grown} KiB");
    Ok(())
}

#[test]
fn headers_are_those_of_the_client_but_for_its_connection() -> anyhow::Result<()> {
    let upstream = Upstream::start(|_, stream| {
        let headers = "Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2c\r\n\
                       Proxy-Authenticate: Basic\r\nTrailer: X-Sum\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\
                       X-Mine: yes\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
        answer(&stream, "200 OK", headers, "here")
    })?;
    let server = proxy_of(&upstream)?;
    let (mut answered, body) = exchange(
        &server,
        "GET /discover/a%2Fb/../c?x=%zz&y=%C3%BC+1&&=? HTTP/1.1\r\nHost: localhost:5001\r\n\
         Connection: keep-alive, X-Named\r\nX-Named: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: Basic abc\r\nTE: trailers, gzip\r\nUpgrade: h2c\r\nAuthorization: Bearer abc\r\n\
         X-Forwarded-For: 192.0.2.1\r\nX-Custom: 1\r\nX-Custom: 2\r\nCookie: a=b\r\n\r\n",
    )?;
    let mut heads = upstream.heads();
    heads[0].headers.sort();
    assert_eq!(heads[0].line, "GET /a%2Fb/../c?x=%zz&y=%C3%BC+1&&=? HTTP/1.1");
    let service = format!("127.0.0.1:{}", upstream.port());
    let expected = [
        ("authorization", "Bearer abc"),
        ("cookie", "a=b"),
        ("enable-monolith", "Affirmative, Dave"),
        ("host", &service),
        ("te", "trailers"),
        ("x-custom", "1"),
        ("x-custom", "2"),
        ("x-forwarded-for", "192.0.2.1, 127.0.0.1"),
        ("x-forwarded-host", "localhost:5001"),
        ("x-forwarded-prefix", "/discover"),
        ("x-forwarded-proto", "http"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(heads[0].headers, expected);

    assert_eq!((answered.status()?, &body[..]), (200, "here"));
    answered.headers.sort();
    let expected = [
        ("content-length", "4"),
        ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
        ("set-cookie", "a=1"),
        ("set-cookie", "b=2"),
        ("x-mine", "yes"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(answered.headers, expected);
    Ok(())
}

#[test]
fn every_method_and_body_goes_through() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = proxy_of(&upstream)?;
    for (request, told) in [
        (
            "POST /anything HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody",
            "POST /anything HTTP/1.1 body",
        ),
        (
            "POST /none HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
            "POST /none HTTP/1.1 ",
        ),
        (
            "PROPFIND /discover HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "PROPFIND / HTTP/1.1 ",
        ),
        (
            "DELETE /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n",
            "DELETE /x HTTP/1.1 body",
        ),
        (
            "GET /body HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
            "GET /body HTTP/1.1 body",
        ),
        (
            "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "OPTIONS * HTTP/1.1 ",
        ),
        (
            "GET http://localhost/y?z HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "GET /y?z HTTP/1.1 ",
        ),
        ("GET / HTTP/1.0\r\n\r\n", "GET / HTTP/1.1 "),
    ] {
        let (head, body) = exchange(&server, request)?;
        assert_eq!((head.status()?, &body[..]), (200, told), "{request}");
    }
    Ok(())
}

#[test]
fn body_is_sent_when_the_client_hears_that_it_may() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = proxy_of(&upstream)?;
    let mut stream = connect(&server)?;
    write!(
        stream.get_ref(),
        "POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    )?;
    assert_eq!(Head::read(&mut stream)?.line, "HTTP/1.1 100 Continue");
    write!(stream.get_ref(), "body")?;
    let head = Head::read(&mut stream)?;
    let body = Body::of_answer(&head, &mut stream)?.read_all()?;
    assert_eq!(body, b"POST /x HTTP/1.1 body");
    Ok(())
}

#[test]
fn answers_without_a_body_and_odd_ones_are_handed_back() -> anyhow::Result<()> {
    let upstream = Upstream::start(|head, stream| {
        let answer = match &*head.line {
            "GET /lost HTTP/1.1" => "HTTP/1.1 404 Nobody Knows\r\nContent-Length: 9\r\n\r\nno such x",
            "HEAD /file HTTP/1.1" => "HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n",
            "GET /same HTTP/1.1" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 12345\r\nETag: x\r\n\r\n",
            "GET /old HTTP/1.1" => "HTTP/1.0 200 OK\r\n\r\nuntil the end",
            _ => {
                "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
            }
        };
        Ok(write!(stream.get_ref(), "{answer}")?)
    })?;
    let server = proxy_of(&upstream)?;
    let (head, body) = get(&server, "/lost")?;
    assert_eq!(
        (&head.line[..], &body[..]),
        ("HTTP/1.1 404 Nobody Knows", "no such x")
    );
    let (head, body) = get(&server, "/old")?;
    assert_eq!((&head.line[..], &body[..]), ("HTTP/1.1 200 OK", "until the end"));
    assert_eq!(get(&server, "/other")?.0.status()?, 500);

    // One connection of the client serves one request after the other.
    let mut stream = connect(&server)?;
    write!(stream.get_ref(), "HEAD /file HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let head = Head::read(&mut stream)?;
    assert_eq!(
        (head.status()?, head.values("content-length")),
        (200, vec!["12345"])
    );
    write!(stream.get_ref(), "GET /same HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let head = Head::read(&mut stream)?;
    assert_eq!((head.status()?, head.values("etag")), (304, vec!["x"]));
    write!(
        stream.get_ref(),
        "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    )?;
    let head = Head::read(&mut stream)?;
    let body = Body::of_answer(&head, &mut stream)?.read_all()?;
    ensure!(String::from_utf8(body)?.contains("packetflix"));
    Ok(())
}

#[test]
fn answer_that_breaks_off_is_no_whole_one() -> anyhow::Result<()> {
    let upstream = Upstream::start(|head, stream| {
        let length = match &*head.line {
            "GET /known HTTP/1.1" => "Content-Length: 1000\r\n\r\nabc",
            _ => "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        };
        Ok(write!(stream.get_ref(), "HTTP/1.1 200 OK\r\n{length}")?)
    })?;
    let server = proxy_of(&upstream)?;
    for path in ["/known", "/chunked"] {
        let mut stream = connect(&server)?;
        write!(stream.get_ref(), "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let head = Head::read(&mut stream)?;
        assert_eq!(head.status()?, 200);
        let begun = Instant::now();
        ensure!(Body::of_answer(&head, &mut stream)?.read_all().is_err(), "{path}");
        ensure!(begun.elapsed() < PATIENCE / 2, "{path} was not cut");
    }
    Ok(())
}

#[test]
fn service_hears_that_the_client_has_left() -> anyhow::Result<()> {
    let (left, leave) = channel();
    let upstream = Upstream::start(move |head, mut stream| {
        if head.line.starts_with("GET /body") {
            write!(
                stream.get_ref(),
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n"
            )?;
        }
        // The end of the connection, however it is told.
        let _ = stream.read(&mut [0]);
        Ok(left.send(())?)
    })?;
    let server = proxy_of(&upstream)?;
    let mut before = 0;
    for round in 1..=20 {
        let mut stream = connect(&server)?;
        write!(stream.get_ref(), "GET /body HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        Head::read(&mut stream)?;
        drop(stream);
        heard(&leave).context("in the middle of a body")?;

        let stream = connect(&server)?;
        write!(stream.get_ref(), "GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        wait_until(PATIENCE, || Ok(upstream.heads().len() == 2 * round))?;
        drop(stream);
        heard(&leave).context("before an answer")?;
        if round == 1 {
            // By now the keeper has all that it begins with.
            before = server.descriptors()?;
        }
    }
    wait_until(PATIENCE, || Ok(server.descriptors()? <= before))
        .with_context(|| format!("{before} descriptors have become {:?}", server.descriptors()))
}

#[test]
fn service_that_is_down_is_named() -> anyhow::Result<()> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port().to_string();
    drop(listener);
    let server = Server::start(&[
        "--discovery-service",
        "localhost",
        "--gw-port",
        &port,
        "--proxy-discovery",
    ])?;
    let (head, body) = get(&server, "/discover/mobyshark")?;
    assert_eq!(head.status()?, 502);
    let body: Value = serde_json::from_str(&body)?;
    let sentence = body["error"].as_str().context("no error")?;
    ensure!(
        sentence.contains(&format!("localhost:{port}")) && sentence.contains("Connection refused"),
        "{sentence}"
    );
    server.wait_for_log(sentence)
}

/// Members of a JSON object in their order, however often a name is there.
struct Members(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

/// How many targets csharg and cshargextcap find in a body, or the error that they print, whatever the status is: they decode into
/// `struct { Targets []*Target `json:"containers"` }`, where the numbers of a target are `int`, by `json.Decoder` of Go 1.
///
/// Source: Go, `encoding/json/decode.go`: names of members match in any case, of several errors the first is told, and of a
/// value that does not fit its kind, and of a number all of it.
fn as_go_reads_it(body: &str) -> Result<usize, String> {
    const NUMBERS: [&str; 4] = ["netns", "starttime", "pid", "captureport"];

    let kind = |value: &Value| match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let no = |value: &str, field: &str| {
        Err(format!(
            "json: cannot unmarshal {value} into Go struct field {field}"
        ))
    };
    let Members(members) = serde_json::from_str(body).map_err(|error| error.to_string())?;
    let mut count = 0;
    for (_, list) in members
        .iter()
        .filter(|(name, _)| name.eq_ignore_ascii_case("containers"))
    {
        let targets = match list {
            Value::Null => &[][..],
            Value::Array(targets) => targets,
            other => return no(kind(other), "GwTargetList.containers"),
        };
        count = targets.len();
        for target in targets.iter().filter(|target| !target.is_null()) {
            let Some(target) = target.as_object() else {
                return no(kind(target), "GwTargetList.containers");
            };
            for (name, value) in target.iter().filter(|(name, _)| NUMBERS.contains(&&name[..])) {
                match value {
                    Value::Number(number) if !number.is_i64() => {
                        return no(&format!("number {number}"), &format!("Target.containers.{name}"));
                    }
                    Value::Number(_) => {}
                    other => return no(kind(other), &format!("Target.containers.{name}")),
                }
            }
        }
    }
    Ok(count)
}

#[test]
fn no_refusal_passes_for_an_empty_list_of_targets() -> anyhow::Result<()> {
    // What there is without `containers`, and what Go 1.19 says of this and that.
    assert_eq!(as_go_reads_it(r#"{"error":"no token"}"#), Ok(0));
    for (body, error) in [
        (
            r#"{"containers":"no"}"#,
            "string into Go struct field GwTargetList.containers",
        ),
        (
            r#"{"Containers":["no"]}"#,
            "string into Go struct field GwTargetList.containers",
        ),
        (
            r#"{"containers":[{"netns":401.0}]}"#,
            "number 401.0 into Go struct field Target.containers.netns",
        ),
    ] {
        assert_eq!(
            as_go_reads_it(body),
            Err(format!("json: cannot unmarshal {error}"))
        );
    }

    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", "ci 0123456789abcdef capture\n")?;
    let tokens = format!("--token-file={}", tokens.display());
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    let host = "Host: localhost\r\n";
    let cases: [(&[&str], &str, &str, u16); 8] = [
        (&[&tokens], "/mobyshark", host, 401),
        (&[&tokens], "/discover/mobyshark", &format!("{host}{bearer}"), 403),
        (
            &[&tokens, "--proxy-discovery", "--gw-port=1"],
            "/discover/mobyshark",
            host,
            401,
        ),
        (&[], "/prefix/discover/mobyshark", host, 404),
        (
            &[],
            "/mobyshark",
            &format!("{host}Sec-Fetch-Site: cross-site\r\n"),
            403,
        ),
        (&[], "/mobyshark", "Host: elsewhere.example\r\n", 403),
        (&["--gw-port=1"], "/discover/mobyshark", host, 404),
        (
            &["--gw-port=1", "--proxy-discovery"],
            "/discover/mobyshark",
            host,
            502,
        ),
    ];
    for (flags, path, headers, status) in cases {
        let server = Server::start(flags)?;
        let (head, body) = exchange(&server, &format!("GET {path} HTTP/1.1\r\n{headers}\r\n"))?;
        let context = || format!("{flags:?} {path}: {} {body}", head.line);
        ensure!(head.status()? == status, "{}", context());
        let told = as_go_reads_it(&body).err().with_context(context)?;
        ensure!(
            told.contains(&format!("number {status}.0 into")),
            "{}: {told}",
            context()
        );
        // Others are told the sentence, and it is no list.
        let body: Value = serde_json::from_str(&body)?;
        let sentence = body["error"].as_str().filter(|sentence| !sentence.is_empty());
        ensure!(
            sentence.is_some() && body["containers"] == body["error"],
            "{body}"
        );
    }
    // A list is one, and other refusals are as they were.
    let server = Server::start(&[])?;
    let (head, body) = get(&server, "/mobyshark")?;
    ensure!(
        head.status()? == 200 && as_go_reads_it(&body).is_ok_and(|count| count > 0),
        "{body}"
    );
    let (_, body) = get(&server, "/nothing")?;
    let members: Value = serde_json::from_str(&body)?;
    ensure!(
        members["code"] == "path_unknown" && members["error"].is_string() && !body.contains("ontainers"),
        "{body}"
    );
    Ok(())
}

#[test]
fn our_paths_stay_ours() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = proxy_of(&upstream)?;
    ensure!(get(&server, "/version")?.1.contains("packetflix"));
    assert_eq!(get(&server, "/capture?netns=1")?.0.status()?, 426);
    let ours = [
        "/targets",
        "/openapi.json",
        "/captures",
        "/captures/7",
        "/metrics",
        "/healthz",
        "/readyz",
    ];
    for path in ours {
        get(&server, path)?;
    }
    let post = "POST /capture HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(exchange(&server, post)?.0.status()?, 405);
    let (head, body) = exchange(
        &server,
        "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n",
    )?;
    assert_eq!(head.status()?, 405);
    ensure!(body.contains("no tunnel is opened to localhost:80"), "{body}");
    assert_eq!(upstream.heads(), []);
    assert_eq!(get(&server, "/discover/version")?.1, "GET /version HTTP/1.1 ");
    assert_eq!(get(&server, "/capturing")?.1, "GET /capturing HTTP/1.1 ");
    Ok(())
}

#[test]
fn nothing_is_proxied_unless_asked_for() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = Server::start(&["--gw-port", &upstream.port().to_string()])?;
    for (path, words) in [
        ("/nothing", "there is nothing at /nothing"),
        ("/discover/x", "there is nothing at /discover/x"),
        ("/mobyshark", "start with --proxy-discovery"),
        ("/discover/mobyshark", "start with --proxy-discovery"),
    ] {
        let (head, body) = get(&server, path)?;
        assert_eq!(head.status()?, 404);
        ensure!(body.contains(words), "{body}");
    }
    assert_eq!(upstream.heads(), []);
    Ok(())
}

#[test]
fn foreign_pages_open_no_websocket() -> anyhow::Result<()> {
    let upstream = Upstream::start(echo)?;
    let server = proxy_of(&upstream)?;
    for upgrade in ["websocket", "WebSocket", "other"] {
        let (head, body) = exchange(
            &server,
            &format!(
                "GET /discover/ws HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n\
                 Upgrade: {upgrade}\r\nOrigin: http://evil.example\r\n\r\n"
            ),
        )?;
        assert_eq!(head.status()?, 403);
        ensure!(body.contains("http://evil.example"), "{body}");
    }
    assert_eq!(upstream.heads(), []);
    Ok(())
}

/// What a page of another site makes a browser send: a form, and what it fetches where browsers do not say where from.
#[test]
fn foreign_pages_reach_the_service_by_links_alone() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = proxy_of(&upstream)?;
    let navigation = "Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n";
    let ask = |method: &str, headers: &str| {
        let request = format!(
            "{method} /discover/changed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{headers}\r\n"
        );
        exchange(&server, &request)?.0.status()
    };
    for (method, headers) in [
        ("POST", &format!("{navigation}Origin: null\r\n")[..]),
        ("POST", navigation),
        ("POST", "Origin: http://evil.example\r\n"),
        ("GET", "Origin: http://evil.example\r\n"),
    ] {
        assert_eq!(ask(method, headers)?, 403, "{method} {headers}");
    }
    assert_eq!(upstream.heads(), []);
    assert_eq!(ask("GET", navigation)?, 200);
    assert_eq!(ask("POST", "Origin: http://localhost\r\n")?, 200);
    Ok(())
}

#[test]
fn what_was_upgraded_ends_with_the_right_to_it() -> anyhow::Result<()> {
    let (upstream, folder) = (Upstream::start(echo)?, Folder::new()?);
    let (alice, bob) = ("alice-0123456789", "bob-0123456789abc");
    let both = format!("alice {alice}\nbob {bob}\n");
    let tokens = folder.put_secret("tokens", &both)?;
    let server = Server::start(&[
        "--proxy-discovery",
        &format!("--gw-port={}", upstream.port()),
        &format!("--token-file={}", tokens.display()),
    ])?;
    let open = |token| open_websocket_with(&server, "/discover/ws", Some(token));
    let (mut of_alice, mut of_bob) = (open(alice)?, open(bob)?);
    // She may have 32, and nobody else has fewer for that.
    let others = (1..32).map(|_| open(alice)).collect::<Result<Vec<_>, _>>()?;
    let refused = open(alice).err().context("not refused")?.to_string();
    ensure!(refused.contains("429"), "{refused}");
    drop(others);
    for socket in [&mut of_alice, &mut of_bob] {
        socket.send(Message::text("hello"))?;
        ensure!(socket.read()? == Message::text("hello"));
    }
    folder.put_secret("tokens", &format!("bob {bob}\n"))?;
    ensure!(of_alice.read().is_err());
    of_bob.send(Message::text("still here"))?;
    ensure!(of_bob.read()? == Message::text("still here"));
    Ok(())
}

#[test]
fn proxied_websocket_ends_at_shutdown() -> anyhow::Result<()> {
    let upstream = Upstream::start(echo)?;
    let mut server = proxy_of(&upstream)?;
    let mut socket = open_websocket(&server, "/discover/ws")?;
    let begun = Instant::now();
    server.signal(Signal::SIGTERM)?;
    ensure!(server.wait()?.success());
    ensure!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    ensure!(socket.read().is_err());
    Ok(())
}

#[test]
fn answers_under_way_get_a_moment_at_shutdown() -> anyhow::Result<()> {
    let (go_on, wait) = channel();
    let wait = Mutex::new(wait);
    let upstream = Upstream::start(move |head, mut stream| {
        write!(
            stream.get_ref(),
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc"
        )?;
        if head.line.starts_with("GET /endless") {
            stream.read_exact(&mut [0])?;
        }
        heard_by_script(&wait)?;
        Ok(write!(stream.get_ref(), "def")?)
    })?;
    let mut server = proxy_of(&upstream)?;
    let mut clients = Vec::new();
    for path in ["/ends", "/endless"] {
        let mut stream = connect(&server)?;
        write!(stream.get_ref(), "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        clients.push((Head::read(&mut stream)?, stream));
    }
    server.signal(Signal::SIGTERM)?;
    server.wait_for_log("shutting down")?;
    go_on.send(())?;
    let (head, stream) = &mut clients[0];
    assert_eq!(Body::of_answer(head, stream)?.read_all()?, b"abcdef");
    let (head, stream) = &mut clients[1];
    ensure!(Body::of_answer(head, stream)?.read_all().is_err());
    ensure!(server.wait()?.success());
    ensure!(!server.log().contains("not everything ended"), "{}", server.log());
    Ok(())
}

#[test]
fn no_request_is_smuggled_in_a_body() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = proxy_of(&upstream)?;
    let hidden = "0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let length = hidden.len();
    for headers in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        format!("Content-Length: {length}\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked"),
    ] {
        let request = format!("POST /open HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n{hidden}");
        let seen = upstream.heads().len();
        // The script fails on a head with both lengths; after such a request the connection is closed.
        let (head, body) = exchange(&server, &request)?;
        assert_eq!((head.status()?, &body[..]), (200, "POST /open HTTP/1.1 "));
        assert_eq!(head.values("connection"), ["close"]);
        assert_eq!(upstream.heads().len(), seen + 1, "{:?}", upstream.heads());
    }
    // A length that the next hop is not to see is told anew.
    let named =
        "POST /x HTTP/1.1\r\nHost: localhost\r\nConnection: Content-Length\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(exchange(&server, named)?.1, "POST /x HTTP/1.1 body");

    let seen = upstream.heads().len();
    for headers in [
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: +1",
        "Content-Length : 1",
    ] {
        let request = format!("POST /open HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n{hidden}");
        assert_eq!(exchange(&server, &request)?.0.status()?, 400, "{headers}");
    }
    assert_eq!(upstream.heads().len(), seen);
    Ok(())
}

#[test]
fn garbled_body_is_the_clients_fault() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let server = proxy_of(&upstream)?;
    let request =
        "POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nnonsense\r\n";
    let (head, body) = exchange(&server, request)?;
    assert_eq!(head.status()?, 400, "{body}");
    ensure!(body.contains("the body of the request cannot be read"), "{body}");
    Ok(())
}

#[test]
fn proxied_requests_are_logged_without_secrets() -> anyhow::Result<()> {
    let upstream = Upstream::start(tell)?;
    let port = upstream.port().to_string();
    let server = Server::start(&["--proxy-discovery", "--gw-port", &port, "--log-headers"])?;
    exchange(
        &server,
        "PUT /discover/x?secret=1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer secret\r\nX-Mine: yes\r\n\r\n",
    )?;
    server.wait_for_log("method=PUT path=\"/discover/x\" status=200")?;
    let log = server.log();
    ensure!(
        log.contains("x-mine: yes") && log.contains("authorization: (hidden)"),
        "{log}"
    );
    ensure!(!log.contains("secret"), "{log}");
    Ok(())
}
