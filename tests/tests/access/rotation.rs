//! Tokens and certificates are replaced while captures run and clients come.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_tests::{
    certificates::{Authority, Trust},
    client::{Capture, Recorder},
    folder::Folder,
    metrics::Metrics,
    namespace::Namespace,
    server::{Server, wait_until},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::{bearer, server_with};

/// Always valid.
const STEADY: &str = "steady-0123456789abcdef";

/// The token of one turn.
fn token(turn: u32) -> String {
    format!("rotating-{turn}-0123456789abcdef")
}

/// The token file of one turn.
fn text(turn: u32) -> String {
    format!("steady {STEADY}\nrotating {}\n", token(turn))
}

/// A client of one server.
#[derive(Clone)]
struct Client {
    port: u16,
    trust: Trust,
}

impl Client {
    /// The status of a list of targets, over a new connection.
    async fn status(&self, token: &str) -> anyhow::Result<u16> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let mut stream = self.trust.connect("127.0.0.1", stream).await?;
        let request = format!(
            "GET /filter?expr=tcp HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nConnection: close\r\n\r\n",
            bearer(token)
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        timeout(Duration::from_secs(20), stream.read_exact(&mut answer)).await??;
        Ok(std::str::from_utf8(&answer)?
            .strip_prefix("HTTP/1.1 ")
            .context("no answer")?
            .parse()?)
    }

    async fn becomes(&self, token: &str, wanted: u16) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        while self.status(token).await? != wanted {
            ensure!(
                begun.elapsed() < Duration::from_secs(10),
                "{token} does not become {wanted}"
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(begun.elapsed())
    }
}

/// Puts certificate and key where the server looks, as Kubernetes does: all at once, by a link.
fn link_to(folder: &Folder, version: &Path) -> anyhow::Result<()> {
    let next = folder.file("next");
    symlink(version, &next)?;
    Ok(fs::rename(next, folder.file("data"))?)
}

/// A folder with the files of one version.
fn version(folder: &Folder, authority: &Authority, name: &str) -> anyhow::Result<std::path::PathBuf> {
    let issued = authority.issue(name, &format!("/CN={name}"))?;
    let path = folder.file(&format!("version-{name}"));
    fs::create_dir(&path)?;
    fs::rename(&issued.certificate, path.join("tls.crt"))?;
    fs::rename(&issued.key, path.join("tls.key"))?;
    Ok(path)
}

/// Whatever hinders the server from reading the file once is no reason to let anybody in for longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_revoked_though_descriptors_were_wanting() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &text(0))?;
    let server = server_with(&tokens, &[])?;
    let ask = |token: &str| {
        let request = format!("GET /metrics HTTP/1.1\r\nAuthorization: {}", bearer(token));
        let (head, body) = server.ask(&request)?;
        anyhow::Ok((head.status()?, String::from_utf8(body)?))
    };
    let behind = || {
        let (_, body) = ask(STEADY)?;
        Metrics::parse(&body)?.get("packetflix_file_behind_seconds{file=\"token file\"}")
    };
    let bound = |most: &str| {
        let limit = format!("--nofile={most}:20000");
        server.limit(&limit)
    };
    assert_eq!(ask(&token(0))?.0, 200);
    assert_eq!(behind()?, 0.0);
    bound("3")?;
    folder.put_secret("tokens", &text(1))?;
    server.wait_for_log("the token file stays as it was")?;
    ensure!(server.log().contains("Too many open files"), "{}", server.log());
    sleep(Duration::from_secs(1)).await;
    bound("20000")?;
    wait_until(Duration::from_secs(5), || Ok(ask(&token(0))?.0 == 401))?;
    assert_eq!(ask(&token(1))?.0, 200);
    assert_eq!(behind()?, 0.0);

    // What is in force is told to be older than the file as long as that cannot be used.
    folder.put_secret("tokens", "nobody\n")?;
    wait_until(Duration::from_secs(5), || Ok(behind()? > 1.0))?;
    let told = server.log().matches("the token file stays as it was").count();
    assert_eq!(told, 2, "{}", server.log());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_disturbed_by_new_tokens_and_certificates() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "authority")?;
    link_to(&folder, &version(&folder, &authority, "one")?)?;
    let tokens = folder.put_secret("tokens", &text(0))?;
    let (certificate, key) = (folder.file("data/tls.crt"), folder.file("data/tls.key"));
    let server: Server = server_with(
        &tokens,
        &[
            "--tls-cert",
            certificate.to_str().context("no text")?,
            "--tls-key",
            key.to_str().context("no text")?,
        ],
    )?;
    let client = Client {
        port: server.port(),
        trust: Trust::new(authority.certificate(), None)?,
    };

    // A capture that runs all the time, and something for it to capture.
    let url = format!(
        "wss://127.0.0.1:{}/capture?netns={}",
        server.port(),
        namespace.inode()?
    );
    let headers = [("authorization", &bearer(STEADY)[..])];
    let mut recorder = Recorder::of(Capture::open_encrypted(&url, &client.trust, &headers).await?).await?;
    let socket = namespace.inside(|| std::net::UdpSocket::bind("127.0.0.1:0"))??;
    let is_over = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU32::new(0));
    let (over, count) = (Arc::clone(&is_over), Arc::clone(&sent));
    let traffic = tokio::spawn(async move {
        while !over.load(Ordering::Relaxed) {
            socket.send_to(b"rotation-is-nothing-to-me", "127.0.0.1:9")?;
            count.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(2)).await;
        }
        anyhow::Ok(())
    });
    // Clients who come all the time.
    let mut comers = Vec::new();
    for _ in 0..3 {
        let (over, client) = (Arc::clone(&is_over), client.clone());
        comers.push(tokio::spawn(async move {
            let mut come = 0;
            while !over.load(Ordering::Relaxed) {
                let status = client.status(STEADY).await?;
                ensure!(status == 200, "{status} after {come} others");
                come += 1;
            }
            anyhow::Ok(come)
        }));
    }

    let (over, other) = (Arc::clone(&is_over), client.clone());
    let rotate = tokio::spawn(async move {
        let server = server;
        let mut longest = Duration::ZERO;
        for n in 1..=6 {
            match n % 3 {
                // Written in place,
                0 => fs::write(&tokens, text(n))?,
                // renamed,
                1 => drop(folder.put_secret("tokens", &text(n))?),
                // and linked to.
                _ => {
                    let file = folder.put_secret(&format!("tokens-{n}"), &text(n))?;
                    symlink(file, folder.file("tokens-link"))?;
                    fs::rename(folder.file("tokens-link"), &tokens)?;
                }
            }
            longest = longest.max(other.becomes(&token(n), 200).await?);
            ensure!(other.status(&token(n - 1)).await? == 401, "an old token lets in");
            if n % 2 == 0 {
                let next = version(&folder, &authority, &format!("v{n}"))?;
                link_to(&folder, &next)?;
                let is_new =
                    || Ok(server.log().matches("the TLS certificate was read again").count() as u32 >= n / 2);
                wait_until(Duration::from_secs(10), is_new)?;
            }
        }
        // What cannot be used changes nothing.
        let broken = folder.file("version-broken");
        fs::create_dir(&broken)?;
        fs::write(broken.join("tls.crt"), "-----BEGIN CERTIFICATE-----\nbroken\n")?;
        fs::write(broken.join("tls.key"), "broken")?;
        fs::set_permissions(broken.join("tls.key"), fs::Permissions::from_mode(0o600))?;
        link_to(&folder, &broken)?;
        folder.put_secret("tokens", "nobody\n")?;
        server.wait_for_log("the TLS certificate stays as it was")?;
        server.wait_for_log("the token file stays as it was")?;
        ensure!(other.status(&token(6)).await? == 200);
        over.store(true, Ordering::Relaxed);
        println!("a new token was taken after {longest:?} at the most");
        anyhow::Ok((server, folder))
    });
    let kept = loop {
        if rotate.is_finished() {
            break rotate.await??;
        }
        // A capture that ends does so with a reason.
        let ended = timeout(Duration::from_millis(100), recorder.read()).await;
        if let Ok(Some((code, reason))) = ended.unwrap_or(Ok(None)) {
            anyhow::bail!("the capture has ended: {code} {reason}");
        }
    };
    traffic.await??;
    let mut come = 0;
    for comer in comers {
        come += comer.await??;
    }
    ensure!(come > 20, "only {come} clients came");
    println!("{come} clients came, and none was refused");
    let sent = sent.load(Ordering::Relaxed) as usize;
    let count = |recording: &packetflix_tests::recording::Recording| {
        // Not what tells the sender that nobody is there, which quotes it.
        let is_mine = |data: &[u8]| data[23] == 17 && data.ends_with(b"rotation-is-nothing-to-me");
        let mine = recording.packets.iter();
        mine.filter(|packet| is_mine(&packet.data)).count()
    };
    recorder.read_until(|recording| count(recording) >= sent).await?;
    let recording = recorder.finish().await?;
    assert_eq!(count(&recording), sent);
    println!("{sent} packets were captured meanwhile, all of them");
    drop(kept);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_has_files_looked_at_and_ends_nothing() -> anyhow::Result<()> {
    const SIGNALS: usize = 5000;

    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &text(0))?;
    let (account, moved) = (folder.file("account"), folder.file("account.1"));
    let server = Server::start(&[
        "--token-file",
        tokens.to_str().context("no text")?,
        "--audit-log",
        account.to_str().context("no text")?,
    ])?;
    let namespace = Namespace::new()?;
    let url = server.url(&format!("netns={}", namespace.inode()?));
    let authorization = bearer(STEADY);
    let capture = Capture::open(&url, &[("authorization", &authorization)]).await?;
    let capture = Recorder::of(capture).await?;

    fs::rename(&account, &moved)?;
    server.signal(Signal::SIGHUP)?;
    // Nothing is written meanwhile.
    wait_until(Duration::from_secs(10), || Ok(account.exists()))?;
    let names = |path: &Path| anyhow::Ok(fs::read_to_string(path)?.contains("capture ended"));
    ensure!(!names(&moved)? && !names(&account)?);

    fs::write(&tokens, text(1))?;
    for _ in 0..SIGNALS {
        server.signal(Signal::SIGHUP)?;
    }
    server.wait_for_log("the token file was read again")?;
    let read = server.log().matches("was read again").count();
    ensure!(read == 1, "{read}");
    capture.finish().await?;
    wait_until(Duration::from_secs(10), || names(&account))?;
    ensure!(!names(&moved)?);
    Ok(())
}
