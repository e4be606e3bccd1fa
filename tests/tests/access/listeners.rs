//! Where the service listens.

use std::{
    io::ErrorKind,
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    client::Recorder,
    folder::Folder,
    namespace::Namespace,
    raw::RawSocket,
    recording::Recording,
    server::{Server, program, wait_until},
};
use tokio::time::{Instant, timeout};

use crate::{curl, server_with};

const ALICE: &str = "alice-0123456789abcdef";

/// Joins whoever connects to a port of this host, as `ssh -L` does, with a Unix socket. Gives the port.
fn tunnel_to(socket: PathBuf) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || -> anyhow::Result<()> {
        loop {
            let (stream, _) = listener.accept()?;
            let socket = UnixStream::connect(&socket)?;
            let (mut from, mut to) = (stream.try_clone()?, socket.try_clone()?);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            let (mut from, mut to) = (socket, stream);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    Ok(port)
}

#[tokio::test]
async fn clients_that_know_no_tokens_capture_through_a_tunnel_to_the_unix_socket() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let socket = folder.file("packetflix.sock");
    let listen = format!("unix:{}", socket.display());
    let server = server_with(&tokens, &["--listen", "127.0.0.1", "--listen", &listen])?;
    server.wait_for_log(&format!("listening address={listen}"))?;
    let port = tunnel_to(socket)?;
    let (status, list) = curl(&[&format!("http://localhost:{port}/discover/mobyshark")])?;
    ensure!(status == 200 && list.contains("containers"), "{status} {list}");
    let namespace = Namespace::new()?;
    let query = format!("netns={}&nif=all", namespace.inode()?);
    let url = format!("ws://localhost:{port}/capture?{query}");
    let recording = Recorder::start(&url).await?.finish().await?;
    assert_eq!(recording.interfaces.len(), 1);

    // What such clients do not tell is in the log.
    for (url, line) in [
        (server.url(&query), "not let in peer=127.0.0.1"),
        (
            format!("ws://localhost:{port}/capture?netns=1"),
            "refused status=404 reason=",
        ),
    ] {
        ensure!(Recorder::start(&url).await.is_err());
        server.wait_for_log(line)?;
    }
    Ok(())
}

#[test]
fn unix_sockets_are_for_their_owner() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let path = folder.file("packetflix.sock");
    let socket = path.to_str().context("no text")?;
    let listen = format!("unix:{socket}");
    let flags = ["--listen", "127.0.0.1", "--listen", &listen];
    let mut server = server_with(&tokens, &flags)?;
    server.wait_for_log(&format!("listening address={listen} tls=false"))?;
    let mode = path.symlink_metadata()?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let local = format!("http://127.0.0.1:{}/targets", server.port());
    assert_eq!(curl(&[&local])?.0, 401);
    let ask = || curl(&["--unix-socket", socket, "http://localhost/targets"]);
    assert_eq!(ask()?.0, 200);
    let wrong = [
        "--oauth2-bearer",
        "x",
        "--unix-socket",
        socket,
        "http://localhost/targets",
    ];
    assert_eq!(curl(&wrong)?.0, 401);

    // What is in use is not taken away,
    let second = Command::new(program("packetflix")?)
        .args(["--listen", &listen])
        .output()?;
    let log = String::from_utf8(second.stderr)?;
    ensure!(
        log.contains(&format!(
            "cannot listen on {listen}: another service listens at it"
        )),
        "{log}"
    );
    // what is left behind is,
    kill(Pid::from_raw(i32::try_from(server.keeper()?)?), Signal::SIGKILL)?;
    ensure!(!server.wait()?.success());
    ensure!(path.symlink_metadata()?.file_type().is_socket());
    let mut server = server_with(&tokens, &flags)?;
    server.wait_for_log(&format!("listening address={listen}"))?;
    assert_eq!(ask()?.0, 200);
    // and whoever ends in good order leaves nothing behind,
    server.signal(Signal::SIGTERM)?;
    ensure!(server.wait()?.success());
    ensure!(!path.exists());
    // nor does one whose process is killed that serves clients.
    let mut server = server_with(&tokens, &flags)?;
    server.signal(Signal::SIGKILL)?;
    server.wait()?;
    wait_until(Duration::from_secs(5), || Ok(!path.exists()))?;
    Ok(())
}

#[test]
fn open_doors_are_warned_of() -> anyhow::Result<()> {
    let warning = "NOBODY IS ASKED WHO THEY ARE";
    let server = Server::start(&["--open-to-everyone"])?;
    server.wait_for_log(warning)?;
    let local = Server::start(&["--listen", "127.0.0.1", "--listen", "[::1]"])?;
    local.wait_for_log("listening address=[::1]:")?;
    local.get("/version")?;
    ensure!(!local.log().contains(warning), "{}", local.log());
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let guarded = server_with(&tokens, &[])?;
    guarded.get("/version")?;
    ensure!(!guarded.log().contains(warning), "{}", guarded.log());
    guarded.wait_for_log("listening address=[::]:")?;
    Ok(())
}

#[test]
fn only_this_host_is_let_in_unless_more_is_said() -> anyhow::Result<()> {
    let (house, desk) = Namespace::pair()?;
    house.inside(|| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "0"))??;
    let folder = Folder::new()?;
    let mut inside = house.command("env");
    inside
        .arg(format!("RUNTIME_DIRECTORY={}", folder.path().display()))
        .arg(program("packetflix")?);
    let server = Server::start_by(&mut inside, &[])?;
    server.wait_for_log("only this host is let in")?;
    server.wait_for_log("--open-to-everyone")?;
    let port = server.port();
    for address in ["127.0.0.1", "::1"] {
        house.inside(|| TcpStream::connect((address, port)))??;
    }
    for (from, address) in [(&desk, "10.9.1.1"), (&house, "10.9.1.1")] {
        let connected = from.inside(|| TcpStream::connect((address, port)))?;
        ensure!(
            connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused),
            "{address}"
        );
    }
    let path = folder.file("packetflix.sock");
    assert_eq!(path.symlink_metadata()?.permissions().mode() & 0o777, 0o600);
    let socket = path.to_str().context("no text")?;
    let targets = ["--unix-socket", socket, "http://localhost/targets"];
    assert_eq!(curl(&targets)?.0, 200);

    // It is no open door that would be told here, but that there is none.
    let nowhere = Server::start_by(
        Command::new(program("packetflix")?).env("RUNTIME_DIRECTORY", "/proc/nowhere"),
        &[],
    )?;
    nowhere.wait_for_log("there is no Unix socket")?;
    assert_eq!(nowhere.get("/targets")?.0, 200);
    Ok(())
}

#[test]
fn open_doors_are_asked_for() -> anyhow::Result<()> {
    for listen in ["[::]", "0.0.0.0", "192.0.2.1"] {
        let refused = Command::new(program("packetflix")?)
            .args(["--listen", &format!("{listen}:0")])
            .output()?;
        let log = String::from_utf8(refused.stderr)?;
        for words in [
            "not listening on",
            "--token-file",
            "--tls-client-ca",
            "--open-to-everyone",
        ] {
            ensure!(
                !refused.status.success() && log.contains(words),
                "{listen}: {log}"
            );
        }
    }
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let both = Command::new(program("packetflix")?)
        .args(["--open-to-everyone", "--token-file"])
        .arg(&tokens)
        .output()?;
    let log = String::from_utf8(both.stderr)?;
    ensure!(
        !both.status.success() && log.contains("--open-to-everyone asks nobody"),
        "{log}"
    );
    let open = Server::start(&["--open-to-everyone", "--listen", "[::]:0"])?;
    assert_eq!(open.get("/version")?.0, 200);
    let guarded = server_with(&tokens, &["--listen", "[::]:0"])?;
    assert_eq!(guarded.get("/version")?.0, 200);
    Ok(())
}

#[tokio::test]
async fn traffic_of_all_its_ports_is_its_own() -> anyhow::Result<()> {
    let (house, desk) = Namespace::pair()?;
    let mut inside = house.command("env");
    inside.arg(program("packetflix")?);
    let server = Server::start_by(
        &mut inside,
        &["--open-to-everyone", "--listen", "[::]", "--listen", "10.9.1.1:0"],
    )?;
    let text = "listening address=10.9.1.1:";
    server.wait_for_log(text)?;
    let log = server.log();
    let second = log.split_once(text).and_then(|(_, rest)| rest.split(' ').next());
    let second: u16 = second.context("no second port")?.parse()?;
    assert_ne!(second, server.port());
    // Each would be fed by the other.
    let mut recorders = Vec::new();
    for port in [server.port(), second] {
        let stream = desk.inside(|| TcpStream::connect(("10.9.1.1", port)))??;
        let url = format!("ws://10.9.1.1:{port}/capture?netns={}", house.inode()?);
        recorders.push(Recorder::over(stream, &url).await?);
    }
    let mut frame = vec![0xff; 60];
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    RawSocket::open(&desk, "vb")?.send(&frame)?;
    for recorder in &mut recorders {
        recorder
            .read_until(|recording| recording.count(&frame) == 1)
            .await?;
    }
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        for recorder in &mut recorders {
            let _ = timeout(Duration::from_millis(100), recorder.read()).await;
        }
    }
    for recorder in recorders {
        let recording: Recording = recorder.finish().await?;
        let tcp = recording
            .packets
            .iter()
            .filter(|packet| packet.data.len() > 34 && packet.data[12..14] == [8, 0] && packet.data[23] == 6);
        // The first of them has the beginning of the other's connection, until that was accepted.
        ensure!(tcp.clone().count() < 10, "{} packets", tcp.count());
    }
    Ok(())
}
