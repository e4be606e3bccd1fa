//! Pages of other origins, in a real browser.

use std::{
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::{Capture, Piece, Refused},
    folder::Folder,
    namespace::{Namespace, output_of},
    server::Server,
    upstream::{Upstream, answer},
};

use crate::server_with;

const ALICE: &str = "alice-0123456789abcdef";

/// A page that tries to capture and to list targets, writes what happened, and is done once it has told so.
const PAGE: &str = r#"<!DOCTYPE html><title>a page</title><p id="capture">nothing</p><p id="targets">nothing</p>
<img src="/wait"><script>
const write = (id, text) => { document.getElementById(id).textContent = text; };
const capture = new Promise(done => {
  const socket = new WebSocket("CAPTURE");
  socket.binaryType = "arraybuffer";
  socket.onmessage = message => {
    const magic = new DataView(message.data).getUint32(0);
    write("capture", magic === 0x0a0d0d0a ? "captured" : "something else");
    socket.close(); done();
  };
  socket.onerror = () => { write("capture", "refused"); done(); };
});
const targets = fetch("TARGETS", { headers: { Authorization: "Bearer TOKEN" } })
  .then(response => response.json())
  .then(list => write("targets", "version " + list.version), () => write("targets", "refused"));
Promise.all([capture, targets]).then(() => fetch("/done"));
</script>"#;

/// What a page of another origin gets to know, as the browser shows it.
fn visit(server: &Server, origin: &Upstream) -> anyhow::Result<String> {
    let folder = Folder::new()?;
    let mut chromium = Command::new("timeout");
    chromium
        .args([
            "60",
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
        ])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
        ])
        .args(["--disable-sync", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().display()))
        .arg(format!("http://127.0.0.1:{}/", origin.port()))
        .stdin(Stdio::null());
    let page = output_of(&mut chromium).with_context(|| server.log())?;
    let part = |id: &str| {
        let (_, rest) = page.split_once(&format!("<p id=\"{id}\">"))?;
        Some(rest.split_once('<')?.0.to_owned())
    };
    let told = part("capture")
        .zip(part("targets"))
        .with_context(|| page.clone())?;
    Ok(format!("{}, {}", told.0, told.1))
}

/// Serves the page at an origin of its own.
fn serve(page: Arc<Mutex<String>>) -> anyhow::Result<Upstream> {
    let is_done = Arc::new((Mutex::new(false), Condvar::new()));
    Upstream::start(move |head, stream| {
        let (done, changed) = &*is_done;
        let lock = || done.lock().map_err(|_| anyhow::anyhow!("a script has failed"));
        match head.line.split(' ').nth(1) {
            Some("/") => {
                *lock()? = false;
                let page = page.lock().map(|page| page.clone()).unwrap_or_default();
                answer(&stream, "200 OK", "Content-Type: text/html\r\n", &page)
            }
            Some("/done") => {
                *lock()? = true;
                changed.notify_all();
                answer(&stream, "200 OK", "", "")
            }
            // The browser takes the page for loaded when all of it has come.
            Some("/wait") => {
                let limit = Duration::from_secs(30);
                drop(changed.wait_timeout_while(lock()?, limit, |done| !*done));
                answer(&stream, "404 Not Found", "", "")
            }
            _ => answer(&stream, "404 Not Found", "", ""),
        }
    })
}

#[test]
fn pages_capture_where_their_origin_is_allowed() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let page = Arc::new(Mutex::new(String::new()));
    let origin = serve(Arc::clone(&page))?;
    let own = format!("http://127.0.0.1:{}", origin.port());
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let guarded = ["--allow-query-token", "--allow-origin", &own];
    for (flags, has_tokens, told) in [
        (&[][..], false, "refused, refused"),
        (
            &["--allow-origin", "http://tools.example"],
            false,
            "refused, refused",
        ),
        (&["--allow-origin", &own], false, "captured, version 1"),
        (&guarded, true, "captured, version 1"),
    ] {
        let server = match has_tokens {
            true => server_with(&tokens, flags)?,
            false => Server::start(flags)?,
        };
        let capture = format!(
            "ws://127.0.0.1:{}/capture?netns={}&token={ALICE}",
            server.port(),
            namespace.inode()?
        );
        let targets = format!("http://127.0.0.1:{}/targets", server.port());
        let text = PAGE
            .replace("CAPTURE", &capture)
            .replace("TARGETS", &targets)
            .replace("TOKEN", ALICE);
        if let Ok(mut page) = page.lock() {
            *page = text;
        }
        let found = visit(&server, &origin)?;
        ensure!(found == told, "{flags:?}: {found}\n{}", server.log());
        if told.starts_with("refused") {
            server.wait_for_log("may not capture here: its origin is not")?;
        }
    }
    Ok(())
}

/// A token in the alphabet of URLs, without padding.
fn base64url(text: &str) -> String {
    const SIGNS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let groups = text.as_bytes().chunks(3).map(|group| {
        let mut bytes = [0; 4];
        bytes[1..=group.len()].copy_from_slice(group);
        let bits = u32::from_be_bytes(bytes);
        let signs = (0..=group.len()).map(|at| SIGNS[(bits >> (18 - 6 * at) & 63) as usize] as char);
        signs.collect::<String>()
    });
    groups.collect()
}

#[tokio::test]
async fn tokens_come_as_subprotocols() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {ALICE}\n"))?;
    let server = server_with(&tokens, &["--log-requests", "--log-headers"])?;
    let url = server.url(&format!("netns={}", namespace.inode()?));
    let token = format!("bearer.{}", base64url(ALICE));
    let wrong = format!("bearer.{}", base64url("alice-0123456789abcdeg"));
    let own = format!("http://127.0.0.1:{}", server.port());
    for (offered, origin, status) in [
        (format!("packetflix.v1, {token}"), &own[..], 101),
        (format!("{token}, packetflix.v1"), &own, 101),
        (format!("packetflix.v1, {wrong}"), &own, 401),
        (format!("packetflix.v1, {token}, {token}"), &own, 401),
        ("packetflix.v1".to_owned(), &own, 401),
        (format!("packetflix.v1, {token}"), "http://evil.example", 403),
    ] {
        let headers = [("sec-websocket-protocol", &offered[..]), ("origin", origin)];
        match Capture::open(&url, &headers).await {
            Ok(mut capture) => {
                ensure!(status == 101, "{offered} {origin}");
                let answer = capture.answer("sec-websocket-protocol");
                ensure!(answer == Some("packetflix.v1"), "{answer:?}");
                capture.close().await?;
            }
            Err(error) => {
                let refused: Refused = error.downcast()?;
                ensure!(refused.status == status, "{offered} {origin}: {refused}");
            }
        }
    }
    // A client that offers nothing is answered as ever.
    let bearer = format!("Bearer {ALICE}");
    let mut capture = Capture::open(&url, &[("authorization", &bearer)]).await?;
    ensure!(capture.answer("sec-websocket-protocol").is_none());
    capture.close().await?;
    ensure!(!server.log().contains(&token), "{}", server.log());
    Ok(())
}

#[tokio::test]
async fn pages_are_told_why_there_is_no_capture() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let own = format!("http://127.0.0.1:{}", server.port());
    let told = "packetflix.v1, refusals.packetflix.v1";
    let url = server.url("netns=1");
    let headers = [("sec-websocket-protocol", told), ("origin", &own[..])];
    let mut capture = Capture::open(&url, &headers).await?;
    ensure!(capture.answer("sec-websocket-protocol") == Some("packetflix.v1"));
    let text = capture.text().await?;
    let refusal: serde_json::Value = serde_json::from_str(&text)?;
    ensure!(refusal["code"] == "target_unknown", "{text}");
    let sentence = refusal["error"].as_str().context("no sentence")?;
    match capture.next().await? {
        Piece::Closed(1008, reason) => ensure!(sentence.starts_with(&reason), "{reason}"),
        other => anyhow::bail!("{other:?}"),
    }
    server.wait_for_log(&format!("reason={sentence:?}"))?;
    // Whoever does not ask for that is refused as ever, and so is a page of another site.
    for (protocols, origin, status) in [
        ("packetflix.v1", &own[..], 404),
        (told, "http://evil.example", 403),
    ] {
        let headers = [("sec-websocket-protocol", protocols), ("origin", origin)];
        let refused: Refused = match Capture::open(&url, &headers).await {
            Ok(_) => anyhow::bail!("let in"),
            Err(error) => error.downcast()?,
        };
        ensure!(refused.status == status, "{refused}");
    }
    Ok(())
}
