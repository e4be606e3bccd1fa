//! Rights end with their reason, and captures with their rights.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    certificates::{Authority, Identity, Transport, Trust},
    client::{Capture, Recorder, Refused},
    engine::FakeEngine,
    folder::Folder,
    namespace::{Namespace, run},
    process::{Sleeper, speak_in},
    raw::{self, RawSocket},
    recording::Recording,
    server::Server,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{ADMIN, Guarded, PART};

/// Whether a capture goes on.
async fn goes_on(recorder: &mut Recorder, pid: u32) -> anyhow::Result<()> {
    speak_in(pid)?;
    let mut before = None;
    let has_grown = |recording: &Recording| {
        let count = recording.packets.len();
        count > *before.get_or_insert(count)
    };
    timeout(Duration::from_secs(10), recorder.read_until(has_grown)).await??;
    Ok(())
}

#[tokio::test]
async fn captures_end_when_others_come_into_the_namespace() -> anyhow::Result<()> {
    let (folder, namespace) = (Folder::new()?, Namespace::new()?);
    let mut web = Sleeper::inside(&namespace)?;
    let engine = FakeEngine::start(&folder.file("engine"), &[("web", web.pid())], &[])?;
    let server = Guarded::start("web", &[engine.socket()])?;
    let netns = format!("netns={}", namespace.inode()?);
    let mut admins = server.record(ADMIN, &netns).await?;
    for ends in [false, true] {
        // With names and without, by name and by number.
        for query in [format!("{netns}&names=0"), crate::named("web")] {
            let mut part = server.record(PART, &query).await?;
            goes_on(&mut part, web.pid()).await?;
            let mut other = Sleeper::inside(&namespace)?;
            if ends {
                web.end()?;
            }
            let begin = Instant::now();
            let (code, reason) = part.end().await?;
            println!("ended after {:?}", begin.elapsed());
            assert_eq!(
                (code, &reason[..]),
                (
                    1008,
                    "part may not capture all that is in the network namespace by now"
                )
            );
            ensure!(server.status(PART, &netns).await?.0 == 404);
            goes_on(&mut admins, other.pid()).await?;
            if ends {
                return Ok(());
            }
            other.end()?;
            std::thread::sleep(Duration::from_millis(1100));
        }
    }
    Ok(())
}

#[tokio::test]
async fn captures_end_when_it_cannot_be_seen_who_is_there() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Guarded::start("web(*)", &[])?;
    let netns = format!("netns={}", web.netns()?);
    let mut admins = server.record(ADMIN, &netns).await?;
    let mut part = server.record(PART, &netns).await?;
    goes_on(&mut part, web.pid()).await?;
    // Nothing can be opened any more.
    let limit = |most: u64| server.server.limit(&format!("--nofile={most}:20000"));
    limit(1)?;
    let (code, reason) = part.end().await?;
    assert_eq!(
        (code, &reason[..]),
        (
            1008,
            "whether part may capture all that is in the network namespace cannot be told any more"
        )
    );
    goes_on(&mut admins, web.pid()).await?;
    limit(10_000)?;
    packetflix_tests::server::wait_until(Duration::from_secs(10), || {
        Ok(server.details(ADMIN)?["gaps"].is_null())
    })?;
    ensure!(server.status(PART, &netns).await?.0 == 101);
    server
        .server
        .wait_for_log("not everything could be looked at, for want of descriptors or memory")?;
    Ok(())
}

#[tokio::test]
async fn captures_end_with_their_tokens() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Guarded::start("web(*)", &[])?;
    let netns = format!("netns={}", web.netns()?);
    let put = |lines: &str| server.folder.put_secret("tokens", lines);
    let whole = format!("admin {ADMIN} admin discover capture\npart {PART} capture:web(*)\n");
    for (lines, words) in [
        (
            format!("admin {ADMIN}\n"),
            "this token is not known, or no longer",
        ),
        (
            format!("admin {ADMIN}\npart {PART} capture:db\n"),
            "part may not capture all that is in the network namespace by now",
        ),
        (
            format!("admin {ADMIN}\npart {PART} discover\n"),
            "part may not capture anything",
        ),
    ] {
        put(&whole)?;
        packetflix_tests::server::wait_until(Duration::from_secs(5), || {
            let details = server.details(ADMIN)?;
            Ok(details["targets"].is_array())
        })?;
        let mut part = loop {
            match server.record(PART, &netns).await {
                Ok(part) => break part,
                Err(error) => drop(error.downcast::<Refused>()?),
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        let mut admins = server.record(ADMIN, &netns).await?;
        goes_on(&mut part, web.pid()).await?;
        put(&lines)?;
        let (code, reason) = part.end().await?;
        assert_eq!((code, &reason[..]), (1008, words));
        goes_on(&mut admins, web.pid()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn names_in_a_stream_follow_the_rights_of_its_token() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    // Addresses that no other namespace has, so that they are named.
    let add = |address: &str| there.ip(&["address", "add", &format!("{address}/32"), "dev", "vb"]);
    add("198.18.77.2")?;
    let server = Guarded::start("web", &[])?;
    let put = |scopes: &str| {
        let lines = format!("admin {ADMIN} admin discover capture\npart {PART} {scopes}\n");
        server.folder.put_secret("tokens", &lines)
    };
    let netns = format!("netns={}", here.inode()?);
    let knows = |address: &str| {
        let address: Result<IpAddr, _> = address.parse();
        move |recording: &Recording| recording.names.iter().any(|name| Ok(name.address) == address)
    };
    put("")?;
    let mut part = loop {
        match server.record(PART, &netns).await {
            Ok(part) => break part,
            Err(error) => drop(error.downcast::<Refused>()?),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    part.read_until(knows("198.18.77.2"))
        .await
        .context("the first name")?;
    let mut admins = server.record(ADMIN, &netns).await?;

    let socket = RawSocket::open(&there, "vb")?;
    let may_capture = format!("capture:{}", here.path().display());
    let less = [may_capture.clone(), format!("discover {may_capture}")];
    for (number, scopes) in less.iter().enumerate() {
        put(scopes)?;
        let wanted = if scopes.contains("discover") { 200 } else { 403 };
        packetflix_tests::server::wait_until(Duration::from_secs(10), || {
            let request = format!("GET /targets HTTP/1.1\r\nAuthorization: Bearer {PART}");
            Ok(server.server.ask(&request)?.0.status()? == wanted)
        })?;
        std::thread::sleep(Duration::from_secs(2));
        let new = format!("198.18.77.{}", 10 + number);
        add(&new)?;
        admins.read_until(knows(&new)).await.context(new.clone())?;
        let frame = raw::ethernet(0x88b5, &[number as u8; 46]);
        socket.send(&frame)?;
        let mut is_known = false;
        part.read_until(|recording| {
            is_known = knows(&new)(recording);
            recording.count_on("va", false, &frame) == 1
        })
        .await
        .context("the packet")?;
        ensure!(!is_known, "{scopes}");
    }
    // What may be known again is told, though nothing has changed but that.
    put("")?;
    part.read_until(|recording| knows("198.18.77.10")(recording) && knows("198.18.77.11")(recording))
        .await
        .context("names that are known again")?;
    Ok(())
}

/// A server that lets in by certificates alone, which follows these files.
fn server_for(own: &Identity, ca: &Path, crl: Option<&Path>) -> anyhow::Result<Server> {
    let mut flags = vec![
        format!("--tls-cert={}", own.certificate.display()),
        format!("--tls-key={}", own.key.display()),
        format!("--tls-client-ca={}", ca.display()),
    ];
    flags.extend(crl.map(|crl| format!("--tls-client-crl={}", crl.display())));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    Server::start(&flags)
}

/// A connection that is kept.
struct Kept(Transport);

impl Kept {
    async fn open(server: &Server, trust: &Trust) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).await?;
        Ok(Self(trust.connect("127.0.0.1", stream).await?))
    }

    /// The status of a request.
    async fn status(&mut self) -> anyhow::Result<u16> {
        let request = "GET /filter?expr=tcp HTTP/1.1\r\nHost: localhost\r\n\r\n";
        self.0.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while !is_whole(&answer) {
            let read = timeout(Duration::from_secs(10), self.0.read_buf(&mut answer)).await??;
            ensure!(read > 0, "the connection is closed");
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        Ok(answer.split(' ').nth(1).context("no status")?.parse()?)
    }
}

/// Whether an answer has come to its end.
fn is_whole(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return false;
    };
    let len = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    len.is_some_and(|len: usize| body.len() >= len)
}

async fn capture(server: &Server, trust: &Trust, namespace: &Namespace) -> anyhow::Result<Recorder> {
    let url = format!(
        "wss://127.0.0.1:{}/capture?netns={}",
        server.port(),
        namespace.inode()?
    );
    Recorder::of(Capture::open_encrypted(&url, trust, &[]).await?).await
}

/// Waits until a kept connection is not let in any more, and the capture has ended.
async fn is_shut_out(kept: &mut Kept, recorder: &mut Recorder) -> anyhow::Result<()> {
    let begin = Instant::now();
    while kept.status().await? != 401 {
        ensure!(begin.elapsed() < Duration::from_secs(15), "it is let in still");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (code, reason) = recorder.end().await?;
    assert_eq!(
        (code, &reason[..]),
        (
            1008,
            "this client certificate has expired, was revoked, or is not trusted any more"
        )
    );
    Ok(())
}

#[tokio::test]
async fn certificates_let_in_for_as_long_as_they_are_trusted() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "authority")?;
    let other = Authority::new(folder.path(), "other")?;
    let own = authority.issue("server", "/CN=localhost")?;
    let (carol, dave) = (
        authority.issue("carol", "/CN=carol")?,
        authority.issue("dave", "/CN=dave")?,
    );
    let [carols, daves] = [&carol, &dave].map(|one| Trust::new(authority.certificate(), Some(one)));
    let (carols, daves) = (carols?, daves?);

    // A revoked one.
    let crl = authority.revoke("first.crl", &[])?;
    let followed = folder.file("followed.crl");
    std::fs::copy(&crl, &followed)?;
    let server = server_for(&own, authority.certificate(), Some(&followed))?;
    let mut kept = Kept::open(&server, &carols).await?;
    ensure!(kept.status().await? == 200);
    let mut recorder = capture(&server, &carols, &namespace).await?;
    let mut daves_kept = Kept::open(&server, &daves).await?;
    let mut daves_recorder = capture(&server, &daves, &namespace).await?;
    std::fs::rename(authority.revoke("second.crl", &[&carol])?, &followed)?;
    is_shut_out(&mut kept, &mut recorder).await?;
    ensure!(daves_kept.status().await? == 200);
    // It gets through no handshake either.
    ensure!(
        Kept::open(&server, &carols).await.is_err()
            || Kept::open(&server, &carols).await?.status().await.is_err()
    );
    namespace.inside(|| std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"hello", "127.0.0.1:9"))??;
    daves_recorder
        .read_until(|recording| !recording.packets.is_empty())
        .await?;
    drop(server);

    // Those of an authority that is trusted no more.
    let ca = folder.file("followed.pem");
    std::fs::copy(authority.certificate(), &ca)?;
    let server = server_for(&own, &ca, None)?;
    let mut kept = Kept::open(&server, &carols).await?;
    ensure!(kept.status().await? == 200);
    let mut recorder = capture(&server, &carols, &namespace).await?;
    let next = folder.file("next.pem");
    std::fs::copy(other.certificate(), &next)?;
    std::fs::rename(next, &ca)?;
    is_shut_out(&mut kept, &mut recorder).await?;
    drop(server);

    // One that has expired.
    let server = server_for(&own, authority.certificate(), None)?;
    let end = run("date", &["--utc", "--date=8 seconds", "+%Y%m%d%H%M%SZ"])?;
    let short = authority.issue_until("short", "/CN=short", end.trim())?;
    let trust = Trust::new(authority.certificate(), Some(&short))?;
    let mut kept = Kept::open(&server, &trust).await?;
    ensure!(kept.status().await? == 200);
    let mut recorder = capture(&server, &trust, &namespace).await?;
    is_shut_out(&mut kept, &mut recorder).await?;
    Ok(())
}

/// Revocation lists are found by the name of their authority. Where two have one, a list may be held against the wrong key;
/// whatever the order of the files, nobody who is revoked gets in by that.
#[tokio::test]
async fn authorities_of_one_name_let_in_nobody_who_is_revoked() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let folders = ["one", "other"].map(|name| folder.file(name));
    folders.iter().try_for_each(std::fs::create_dir)?;
    let [one, other] = [&folders[0], &folders[1]].map(|own| Authority::new(own, "authority"));
    let (one, other) = (one?, other?);
    let own = one.issue("server", "/CN=localhost")?;
    let (carol, erin) = (one.issue("carol", "/CN=carol")?, other.issue("erin", "/CN=erin")?);
    let lists = [one.revoke("list", &[&carol])?, other.revoke("list", &[&erin])?];
    let authorities = [one.certificate(), other.certificate()];
    let [carols, erins] = [&carol, &erin].map(|client| Trust::new(one.certificate(), Some(client)));
    let (carols, erins) = (carols?, erins?);
    let joined = |name: &str, [first, second]: [&Path; 2]| -> anyhow::Result<_> {
        let file = folder.file(name);
        std::fs::write(&file, [std::fs::read(first)?, std::fs::read(second)?].concat())?;
        Ok(file)
    };
    for (number, (authorities, lists)) in [
        (authorities, [&*lists[0], &*lists[1]]),
        (authorities, [&*lists[1], &*lists[0]]),
        ([authorities[1], authorities[0]], [&*lists[0], &*lists[1]]),
    ]
    .into_iter()
    .enumerate()
    {
        let ca = joined(&format!("ca{number}"), authorities)?;
        let list = joined(&format!("list{number}"), lists)?;
        let server = server_for(&own, &ca, Some(&list))?;
        for (name, revoked) in [("carol", &carols), ("erin", &erins)] {
            let is_in = match Kept::open(&server, revoked).await {
                Ok(mut kept) => kept.status().await.is_ok_and(|status| status == 200),
                Err(_) => false,
            };
            ensure!(!is_in, "{name} gets in ({number})");
        }
        // It is the lists that keep them out.
        let server = server_for(&own, &ca, None)?;
        ensure!(Kept::open(&server, &carols).await?.status().await? == 200);
        ensure!(Kept::open(&server, &erins).await?.status().await? == 200);
    }
    Ok(())
}
