//! What pages make a browser ask, whoever looks at them: those of other sites, and those whose name leads here.

use std::{
    io::{BufReader, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    folder::Folder,
    http::{Body, Head},
    namespace::Namespace,
    server::{Server, wait_until},
};
use serde_json::Value;

use crate::{bearer, server_with};

const ALICE: &str = "alice-0123456789abcdef";
const WEBSOCKET: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// Status and sentence of the answer to a request with just these headers.
fn ask(server: &Server, path: &str, headers: &str) -> anyhow::Result<(u16, String)> {
    let stream = TcpStream::connect(("127.0.0.1", server.port()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(&stream, "GET {path} HTTP/1.1\r\n{headers}\r\n")?;
    let mut stream = BufReader::new(stream);
    let head = Head::read(&mut stream)?;
    if head.status()? == 101 {
        return Ok((101, String::new()));
    }
    let body = Body::of_answer(&head, &mut stream)?.read_all()?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok((
        head.status()?,
        body["error"].as_str().unwrap_or_default().to_owned(),
    ))
}

/// Paths at which something is told or done.
fn guarded_paths(namespace: &Namespace) -> anyhow::Result<Vec<(String, &'static str, u16)>> {
    Ok(vec![
        (format!("/capture?netns={}", namespace.inode()?), WEBSOCKET, 101),
        ("/filter?expr=tcp".to_owned(), "", 200),
        ("/targets".to_owned(), "", 200),
        ("/mobyshark".to_owned(), "", 200),
        ("/discover/mobyshark".to_owned(), "", 200),
        ("/captures".to_owned(), "", 200),
        ("/metrics".to_owned(), "", 200),
        ("/openapi.json".to_owned(), "", 200),
    ])
}

#[test]
fn names_that_were_made_to_lead_here_are_not_ours() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&["--allow-host", "capture.example"])?;
    let open = Server::start(&["--open-to-everyone"])?;
    let node = nix::unistd::gethostname()?;
    let node = node.to_str().context("no text")?;
    for (path, headers, status) in guarded_paths(&namespace)? {
        for server in [&server, &open] {
            let port = server.port();
            let rebound =
                format!("Host: evil.example:{port}\r\nOrigin: http://evil.example:{port}\r\n{headers}");
            let (found, sentence) = ask(server, &path, &rebound)?;
            ensure!(
                found == 403 && sentence.contains("evil.example") && sentence.contains("--allow-host"),
                "{path}: {found} {sentence}"
            );
            for host in [
                "127.0.0.1",
                &format!("127.0.0.1:{port}"),
                &format!("[::1]:{port}"),
                "10.99.1.2",
                "localhost",
                &format!("LocalHost:{port}"),
                node,
            ] {
                let own = format!("Host: {host}\r\n{headers}");
                assert_eq!(ask(server, &path, &own)?.0, status, "{path} {host}");
            }
        }
        let allowed = format!("Host: capture.example\r\n{headers}");
        assert_eq!(ask(&server, &path, &allowed)?.0, status, "{path}");
        assert_eq!(ask(&open, &path, &allowed)?.0, 403, "{path}");
    }
    // Probes are for everyone, under whatever name.
    for path in ["/version", "/healthz", "/readyz"] {
        assert_eq!(ask(&server, path, "Host: evil.example\r\n")?.0, 200, "{path}");
    }
    let absolute = "http://evil.example/targets";
    assert_eq!(ask(&server, absolute, "Host: localhost\r\n")?.0, 403);
    Ok(())
}

#[test]
fn who_shows_a_token_may_call_us_what_they_like() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE} discover capture admin\n"))?;
    let server = server_with(&tokens, &[])?;
    for (path, headers, status) in guarded_paths(&namespace)? {
        // Such as behind the API server of Kubernetes, or an ingress.
        let named = format!("Host: packetflix.packetflix.svc\r\n{headers}");
        let authorized = format!("{named}Authorization: {}\r\n", bearer(ALICE));
        assert_eq!(ask(&server, &path, &authorized)?.0, status, "{path}");
        assert_eq!(ask(&server, &path, &named)?.0, 401, "{path}");
    }
    Ok(())
}

#[test]
fn other_sites_make_a_browser_ask_for_nothing() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&["--allow-origin", "http://tools.example"])?;
    for (path, headers, status) in guarded_paths(&namespace)? {
        for site in ["cross-site", "same-site"] {
            let image = format!(
                "Host: localhost\r\nSec-Fetch-Site: {site}\r\nSec-Fetch-Mode: no-cors\r\nSec-Fetch-Dest: image\r\n{headers}"
            );
            let (found, sentence) = ask(&server, &path, &image)?;
            ensure!(
                found == 403 && sentence.contains("another site"),
                "{path}: {found} {sentence}"
            );
            let allowed = format!("{image}Origin: http://tools.example\r\n");
            assert_eq!(ask(&server, &path, &allowed)?.0, status, "{path}");
        }
        let foreign = format!("Host: localhost\r\nOrigin: http://evil.example\r\n{headers}");
        assert_eq!(ask(&server, &path, &foreign)?.0, 403, "{path}");
        for site in ["same-origin", "none"] {
            let own = format!("Host: localhost\r\nSec-Fetch-Site: {site}\r\n{headers}");
            assert_eq!(ask(&server, &path, &own)?.0, status, "{path}");
        }
    }
    Ok(())
}

#[test]
fn headers_that_decide_come_once() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    for (headers, name) in [
        ("Host: localhost\r\nHost: localhost\r\n", "Host"),
        ("Host: localhost\r\nHost: evil.example\r\n", "Host"),
        (
            "Host: localhost\r\nAuthorization: Bearer x\r\nAuthorization: Bearer y\r\n",
            "Authorization",
        ),
        (
            "Host: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil.example\r\n",
            "Origin",
        ),
    ] {
        for path in ["/targets", "/version", "/capture?netns=1"] {
            let (status, sentence) = ask(&server, path, headers)?;
            ensure!(
                status == 400 && sentence == format!("the header {name} comes more than once"),
                "{path}: {status} {sentence}"
            );
        }
    }
    Ok(())
}

#[test]
fn wrong_tokens_are_counted_and_do_not_fill_the_log() -> anyhow::Result<()> {
    const TRIES: usize = 500;

    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let server = server_with(&tokens, &[])?;
    for _ in 0..TRIES {
        let wrong = "Host: localhost\r\nAuthorization: Bearer wrong\r\n";
        assert_eq!(ask(&server, "/targets", wrong)?.0, 401);
    }
    let mut told = 0;
    wait_until(Duration::from_secs(25), || {
        let log = server.log();
        let lines = log.lines().filter(|line| line.contains("not let in")).count();
        let more = log
            .lines()
            .filter(|line| line.contains("more were refused than are logged"));
        let counts = more.filter_map(|line| {
            line.split_once("count=")?
                .1
                .split(' ')
                .next()?
                .parse::<usize>()
                .ok()
        });
        told = lines + counts.sum::<usize>();
        Ok(told == TRIES)
    })
    .with_context(|| format!("{told} were told\n{}", server.log()))?;
    let log = server.log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("not let in")).collect();
    ensure!(lines.len() <= 200, "{} lines", lines.len());
    ensure!(
        lines.iter().all(|line| line.contains("peer=127.0.0.1:")),
        "{lines:?}"
    );
    let (status, metrics) = {
        let authorized = format!("Host: localhost\r\nAuthorization: {}\r\n", bearer(ALICE));
        let stream = TcpStream::connect(("127.0.0.1", server.port()))?;
        write!(&stream, "GET /metrics HTTP/1.1\r\n{authorized}\r\n")?;
        let mut stream = BufReader::new(stream);
        let head = Head::read(&mut stream)?;
        let body = Body::of_answer(&head, &mut stream)?.read_all()?;
        (head.status()?, String::from_utf8(body)?)
    };
    let counted = format!("packetflix_http_requests_total{{status=\"401\"}} {TRIES}");
    ensure!(status == 200 && metrics.contains(&counted), "{metrics}");
    Ok(())
}
