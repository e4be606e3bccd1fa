//! Pages of other origins, in a real browser.

use std::{
    process::{Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
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
