//! What clients are told when there is no capture, and what runs all the same.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Capture, Recorder, refusal},
    namespace::Namespace,
    raw::Tun,
    server::{Server, program},
};
use tokio::time::sleep;

/// Opens a capture by its query that must be refused.
async fn refused(
    server: &Server,
    query: &str,
    headers: &[(&'static str, &str)],
) -> anyhow::Result<(u16, String)> {
    refusal(server, &server.url(query), headers).await
}

#[tokio::test]
async fn each_refusal_has_its_status_and_names_the_value() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let _tun = Tun::open(&namespace, "tun7")?;
    let server = Server::start(&[])?;
    let netns = format!("netns={}", namespace.inode()?);
    let pid_namespace = std::fs::read_link("/proc/self/ns/pid")?;
    let pid_inode = pid_namespace
        .to_str()
        .context("no text")?
        .trim_start_matches("pid:[")
        .trim_end_matches(']');

    for (query, status, words) in [
        ("", 400, "no target"),
        ("netns=x", 400, "netns=x"),
        ("netns=0", 400, "netns=0"),
        ("netns=99999999999999999999999", 400, "99999999999999999999999"),
        ("netns=5&container=%7B%7D", 400, "exclude each other"),
        (
            "container=%7B%7D",
            400,
            "no target is given: it needs a name, a netns, or a pid",
        ),
        ("container=web", 400, "expected value at line 1 column 1"),
        (
            "container=%7B%22netns%22%3A%22x%22%7D",
            400,
            "string \"x\", expected u64 at line 1 column 12",
        ),
        (
            "container=%7B%22name%22%3A%22nobody%22%7D",
            404,
            "there is no target nobody",
        ),
        (&format!("{netns}&filter=tcp+tcp"), 400, "filter \"tcp tcp\": "),
        ("netns=1", 404, "network namespace 1"),
        (&format!("netns={pid_inode}"), 404, "a namespace of type pid"),
        (
            &format!("{netns}&nif=eth7"),
            404,
            "eth7 in the namespace; there are: lo, tun7",
        ),
        (&format!("{netns}&nif=lo/eth7"), 404, "eth7"),
    ] {
        let (found, sentence) = refused(&server, query, &[]).await?;
        ensure!(
            found == status && sentence.contains(words),
            "{query}: {found} {sentence}"
        );
    }

    for origin in ["http://evil.example", "null"] {
        let (status, sentence) = refused(&server, &netns, &[("origin", origin)]).await?;
        ensure!(
            status == 403 && sentence.contains(origin),
            "{origin}: {status} {sentence}"
        );
    }
    let own = format!("http://127.0.0.1:{}", server.port());
    Capture::open(&server.url(&netns), &[("origin", &own)])
        .await
        .context("its own origin")?;
    Capture::open(
        &server.url(&netns),
        &[("clustershark-nif", "lo"), ("clustershark-chaste", "")],
    )
    .await?;
    let (status, _) = refused(&server, &netns, &[("clustershark-nif", "eth7")]).await?;
    assert_eq!(status, 404);
    Ok(())
}

#[test]
fn plain_requests_are_answered() -> anyhow::Result<()> {
    let server = Server::start(&["--log-requests", "--log-headers"])?;
    let (head, version) = server.ask("GET /version HTTP/1.1\r\nAuthorization: Bearer secret")?;
    assert_eq!(head.line, "HTTP/1.1 200 OK");
    assert_eq!(version, br#"{"name":"packetflix","version":"0.1.0"}"#);
    let (head, upgrade) = server.ask("GET /capture HTTP/1.1")?;
    assert_eq!(head.line, "HTTP/1.1 426 Upgrade Required");
    assert_eq!(head.values("upgrade"), ["websocket"]);
    let upgrade = String::from_utf8(upgrade)?;
    ensure!(upgrade.contains("this is a WebSocket endpoint"), "{upgrade}");
    let head = "HEAD /capture?netns=1 HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x";
    for (request, status) in [
        (head, 426),
        ("GET /nothing HTTP/1.1", 404),
        ("POST /capture HTTP/1.1", 405),
        ("CONNECT localhost:80 HTTP/1.1", 405),
        ("OPTIONS * HTTP/1.1", 405),
        ("GET localhost:80 HTTP/1.1", 400),
        ("nonsense", 400),
    ] {
        let (head, _) = server.ask(request)?;
        ensure!(head.status()? == status, "{request}: {}", head.line);
    }
    server.wait_for_log("path=\"/nothing\" status=404")?;
    ensure!(server.log().contains("authorization: (hidden)") && !server.log().contains("secret"));
    Ok(())
}

#[tokio::test]
async fn too_many_captures_are_refused_until_one_ends() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&["--max-captures", "1"])?;
    let query = format!("netns={}", namespace.inode()?);
    let first = Recorder::start(&server.url(&query)).await?;
    let (status, sentence) = refused(&server, &query, &[]).await?;
    assert_eq!(
        (status, &sentence[..]),
        (
            429,
            "no more captures may run at the same time than 1 (--max-captures), and those are running (clients: 1)"
        )
    );
    first.finish().await?;
    server.wait_for_log("stopped by the client")?;
    let mut tries = 0;
    while let Err(error) = Recorder::start(&server.url(&query)).await {
        tries += 1;
        ensure!(tries < 100, "{error}");
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

#[tokio::test]
async fn missing_capability_is_named() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    for (lacks, query, words) in [
        (
            "-sys_admin",
            format!("netns={}", namespace.inode()?),
            "CAP_SYS_ADMIN",
        ),
        ("-net_raw", format!("netns={}", namespace.inode()?), "CAP_NET_RAW"),
        ("-sys_ptrace", "netns=1".to_owned(), "CAP_SYS_PTRACE"),
    ] {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .arg(format!("--bounding-set={lacks}"))
            .arg(program("packetflix")?);
        let server = Server::start_by(&mut setpriv, &["--hook", "tcx"])?;
        let (status, sentence) = refused(&server, &query, &[]).await?;
        ensure!(
            status == 500 && sentence.contains(words),
            "{lacks}: {status} {sentence}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn kernel_without_tcx_captures_through_a_socket() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let query = format!("netns={}", namespace.inode()?);
    let without = || Ok::<_, anyhow::Error>(Command::new(program("without-tcx")?));
    let server = Server::start_by(without()?.arg(program("packetflix")?), &["--hook", "tcx"])?;
    let (status, sentence) = refused(&server, &query, &[]).await?;
    ensure!(
        status == 500 && sentence.contains("no TCX"),
        "{status} {sentence}"
    );

    let server = Server::start_by(without()?.arg(program("packetflix")?), &["--hook", "auto"])?;
    let mut recorder = Recorder::start(&server.url(&query)).await?;
    server.wait_for_log("the hook is a socket filter: this kernel has no TCX")?;
    namespace.inside(|| std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"here", "127.0.0.1:9"))??;
    recorder
        .read_until(|recording| !recording.packets.is_empty())
        .await?;
    recorder.finish().await?;

    let server = Server::start(&["--hook", "auto"])?;
    Recorder::start(&server.url(&query)).await?.finish().await?;
    server.wait_for_log("the hook is TCX, which this kernel has")
}

#[tokio::test]
async fn kernel_without_btf_captures() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let mut hidden = Command::new("unshare");
    hidden
        .args(["--mount", "sh", "-c", script])
        .arg(program("packetflix")?);
    let server = Server::start_by(&mut hidden, &[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={}", namespace.inode()?))).await?;
    namespace.inside(|| std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"here", "127.0.0.1:9"))??;
    recorder
        .read_until(|recording| !recording.packets.is_empty())
        .await?;
    recorder.finish().await?;
    Ok(())
}

/// Each capture opens a packet socket, whatever the hook.
#[test]
fn whoever_lacks_a_needed_capability_is_not_ready() -> anyhow::Result<()> {
    for (lacks, hook, name) in [
        ("-net_raw", "socket", "CAP_NET_RAW"),
        ("-net_raw", "tcx", "CAP_NET_RAW"),
        ("-sys_admin", "socket", "CAP_SYS_ADMIN"),
    ] {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .arg(format!("--bounding-set={lacks}"))
            .arg(program("packetflix")?);
        let server = Server::start_by(&mut setpriv, &["--hook", hook])?;
        let (status, body) = server.get("/readyz")?;
        let sentence = body["error"].as_str().unwrap_or_default();
        let expected = format!("the service lacks {name}, without which no capture can begin: ");
        ensure!(
            status == 503 && sentence.starts_with(&expected),
            "{lacks} {hook}: {status} {body}"
        );
    }
    Ok(())
}

#[test]
fn whoever_is_not_root_is_told_so_once() -> anyhow::Result<()> {
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program("packetflix")?);
    let server = Server::start_by(&mut setpriv, &[])?;
    let (status, body) = server.get("/readyz")?;
    let sentence = body["error"].as_str().unwrap_or_default();
    ensure!(
        status == 503
            && sentence.starts_with("the service lacks CAP_SYS_ADMIN and CAP_NET_RAW, ")
            && sentence.contains("run the service as root"),
        "{status} {body}"
    );
    // Longer than it takes to try again twice.
    std::thread::sleep(Duration::from_secs(11));
    let log = server.log();
    let about: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("CAP_SYS_ADMIN"))
        .collect();
    let [line] = &about[..] else {
        anyhow::bail!("{log}");
    };
    for words in [
        "the service lacks CAP_SYS_ADMIN, CAP_NET_RAW, CAP_SYS_PTRACE, CAP_DAC_OVERRIDE and CAP_NET_ADMIN",
        "there are no captures",
        "run the service as root",
    ] {
        ensure!(line.contains(words), "{words}: {line}");
    }
    assert_eq!(server.get("/readyz")?.1, body);
    Ok(())
}

/// What the program says to these flags and variables, with which it does not start, and its status.
fn complaint(flags: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<(Option<i32>, String)> {
    let output = Command::new("timeout")
        .arg("20")
        .arg(program("packetflix")?)
        .args(flags)
        .envs(variables.iter().copied())
        .output()?;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

#[test]
fn what_stops_the_start_is_told_once_and_always_in_the_same_way() -> anyhow::Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.port().to_string();
    let no_variables: &[(&str, &str)] = &[];
    for (flags, variables, status, words) in [
        (
            &["--listen", "127.0.0.1:abc"][..],
            no_variables,
            1,
            "127.0.0.1:abc is nothing to listen at",
        ),
        (
            &["--allow-origin", "*"],
            no_variables,
            1,
            "* would let the pages of everyone in",
        ),
        (&["--allow-host", "*"], no_variables, 1, "* is no name of a host"),
        (
            &["--ring-size", "5"],
            no_variables,
            1,
            "--ring-size 5: a ring has",
        ),
        (&["--port", &taken], no_variables, 1, "Address already in use"),
        (
            &["--token-file", "/nowhere"],
            no_variables,
            1,
            "/nowhere cannot be read: No such file",
        ),
        (
            &["--audit-log", "/nowhere/log"],
            no_variables,
            1,
            "--audit-log /nowhere/log",
        ),
        (
            &["--tls-cert", "/nowhere", "--tls-key", "/nowhere"],
            no_variables,
            1,
            "/nowhere cannot be read",
        ),
        (
            &["check", "--listen", "x/y"],
            no_variables,
            1,
            "x/y is no absolute path",
        ),
        (&["--port", "abc"], no_variables, 2, "a port is a number"),
        (&["--debgu"], no_variables, 2, "'--debug'"),
        (
            &[],
            &[("PACKETFLIX_PORT", "abc")],
            2,
            "PACKETFLIX_PORT: invalid value 'abc' for '--port <PORT>'",
        ),
        (
            &[],
            &[("PACKETFLIX_PORT", "tcp://10.0.0.1:5001")],
            2,
            "say enableServiceLinks: false",
        ),
        (
            &[],
            &[("PACKETFLIX_DEBUG", "perhaps")],
            2,
            "PACKETFLIX_DEBUG: invalid value 'perhaps'",
        ),
        (
            &[],
            &[("PACKETFLIX_TLS_CLIENT_CRL", "")],
            2,
            "a value is required for '--tls-client-crl",
        ),
    ] {
        let (code, said) = complaint(flags, variables)?;
        assert_eq!(code, Some(status), "{flags:?} {variables:?}: {said}");
        ensure!(
            said.starts_with("packetflix: ") && said.matches(words).count() == 1,
            "{flags:?} {variables:?}: {said}"
        );
        // The flags themselves are told behind it, as clap does.
        ensure!(status == 2 || said.lines().count() == 1, "{said}");
    }
    // Who reads the log by a program gets a line of it.
    let (code, said) = complaint(&["--log-format", "json", "--listen", "x/y"], no_variables)?;
    let line: serde_json::Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(
        code == Some(1) && line["level"] == "ERROR" && line["message"].to_string().contains("x/y"),
        "{said}"
    );
    Ok(())
}

#[test]
fn switches_are_given_by_variables_as_people_write_them() -> anyhow::Result<()> {
    for (value, is_on) in [
        ("1", true),
        ("yes", true),
        ("on", true),
        ("True", true),
        ("0", false),
        ("no", false),
        ("off", false),
        ("", false),
    ] {
        let mut command = Command::new(program("packetflix")?);
        command.env("PACKETFLIX_DEBUG", value);
        let server = Server::start_by(&mut command, &[])?;
        server.get("/targets")?;
        if is_on {
            server.wait_for_log("looked for targets")?;
        }
        let is_debugging = server.log().contains("DEBUG");
        assert_eq!(is_debugging, is_on, "{value:?}: {}", server.log());
    }
    Ok(())
}

#[test]
fn a_variable_that_stands_for_nothing_is_told() -> anyhow::Result<()> {
    let mut command = Command::new(program("packetflix")?);
    command
        .env("PACKETFLIX_TOKENFILE", "/nowhere")
        .env("PACKETFLIX_SERVICE_HOST", "10.0.0.1");
    let server = Server::start_by(&mut command, &[])?;
    let log = server.log();
    ensure!(
        log.contains("PACKETFLIX_TOKENFILE stands for no flag")
            && log.contains("PACKETFLIX_TOKEN_FILE may be meant")
            && !log.contains("PACKETFLIX_SERVICE_HOST"),
        "{log}"
    );
    Ok(())
}

#[test]
fn a_service_that_would_ask_itself_does_not_start() -> anyhow::Result<()> {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let port = port.to_string();
    let open = ["--open-to-everyone", "--listen", "[::]"];
    for (flags, host) in [
        (&[][..], "127.0.0.1"),
        (&[], "localhost"),
        (&[], "[::1]"),
        (&open, "127.0.0.1"),
        (&open, "127.0.0.7"),
        (&open, "0.0.0.0"),
    ] {
        let asked = ["--port", &port, "--gw-port", &port, "--discovery-service", host];
        let (code, said) = complaint(&[&asked[..], flags].concat(), &[])?;
        ensure!(
            code == Some(1) && said.contains("is this service itself"),
            "{host} {flags:?}: {code:?} {said}"
        );
    }
    Ok(())
}

#[test]
fn port_that_is_taken_is_said() -> anyhow::Result<()> {
    let first = Server::start(&[])?;
    let port = first.port().to_string();
    let second = Command::new(program("packetflix")?)
        .args(["--port", &port])
        .output()?;
    assert_eq!(second.status.code(), Some(1));
    let log = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(
        log.contains(&format!(
            "cannot listen on port {port} of loopback: Address already in use"
        )),
        "{log}"
    );
    Ok(())
}
