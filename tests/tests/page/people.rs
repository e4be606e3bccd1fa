//! Whoever looks at it, and the pictures for those who do not.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::ensure;
use packetflix_tests::{
    browser::{Browser, DOWN},
    engine::FakeEngine,
    folder::Folder,
    namespace::{Namespace, inside},
    process::Sleeper,
    server::Server,
};

use crate::{BEGUN, choose, row, search, send, url, wait_for_total};

#[test]
fn nobody_is_kept_out() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    let check = |what: &str| {
        let found = browser.barriers()?;
        ensure!(found.is_empty(), "{what}: {found:#?}");
        anyhow::Ok(())
    };
    for is_dark in [false, true] {
        browser.set_dark(is_dark)?;
        browser.go(&url(&server))?;
        let name = format!("web({})", web.pid());
        search(&browser, &name)?;
        browser.wait_for_text(&name)?;
        check("targets")?;
        choose(&browser, &name)?;
        check("capture")?;
        browser.press("Watch here")?;
        browser.wait_for(BEGUN)?;
        send(web.pid(), 4711, 20, b"x")?;
        wait_for_total(&browser, 20)?;
        // By keys alone.
        browser.type_into("//div[@role='grid']", DOWN)?;
        browser.wait_for_text("destination port")?;
        check("watch")?;
        browser.press("conversations")?;
        browser.wait_for_text("round trip")?;
        check("conversations")?;
        browser.press("rates")?;
        check("rates")?;
        browser.click("//a[.='Captures']")?;
        browser.wait_for("return document.querySelector('.captures')")?;
        check("captures")?;
    }
    Ok(())
}

/// The pictures of the documents, which are made anew where `UPDATE_DOCS` says so.
#[test]
fn pictures_for_the_documents() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let (web, db) = (
        Sleeper::inside_as(&here, "web", &[])?,
        Sleeper::inside_as(&there, "db", &[])?,
    );
    let folder = Folder::new()?;
    let socket = folder.file("docker.sock");
    let _engine = FakeEngine::start(&socket, &[("web", web.pid()), ("db", db.pid())], &[])?;
    let server = Server::start(&[&format!("--engine-socket={}", socket.display())])?;
    let browser = Browser::start()?;
    browser.resize(1400, 640)?;
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='search']", "fake")?;
    let is_published = std::env::var_os("UPDATE_DOCS").is_some();
    let into = match is_published {
        true => packetflix_tests::root().join("docs"),
        false => folder.path().to_owned(),
    };
    let talk = Talk::start(&here, &there)?;
    // Of each second; readers are shown a while.
    let most = match is_published {
        true => 8,
        false => 1,
    };
    browser.wait_for(&format!(
        "return [...document.querySelectorAll('.spark polyline')].some(line => line.getAttribute('points').split(' ').length > {most})",
    ))?;
    browser.screenshot(&into.join("page-targets.png"))?;
    browser.click(&format!("{}//input", row("web")))?;
    browser.press("Capture 1 target")?;
    browser.press("Watch here")?;
    browser.wait_for(BEGUN)?;
    wait_for_total(&browser, 20)?;
    browser.press("Pause")?;
    browser.click("(//div[contains(@class, 'row')][.//*[contains(., 'GET /health')]])[last()]")?;
    browser.wait_for_text("GET /health HTTP/1.1\n")?;
    browser.screenshot(&into.join("page-watch.png"))?;
    drop(talk);
    for name in ["page-targets.png", "page-watch.png"] {
        ensure!(std::fs::read(into.join(name))?.starts_with(b"\x89PNG"), "{name}");
    }
    Ok(())
}

/// Requests of HTTP and DNS between two namespaces, some of which nobody answers, until it is dropped.
struct Talk {
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Talk {
    fn start(here: &Namespace, there: &Namespace) -> anyhow::Result<Self> {
        const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x02db\x04shop\x07example\0\0\x01\0\x01";
        const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let is_over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&is_over);
        let listener = there.inside(|| TcpListener::bind("10.9.1.2:8080"))??;
        let serving = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let (mut stream, _) = listener.accept()?;
                let mut request = [0; 1024];
                let _ = stream.read(&mut request)?;
                stream.write_all(ANSWER)?;
            }
            Ok(())
        });
        let (until, file) = (Arc::clone(&is_over), here.path());
        let asking = thread::spawn(move || {
            let mut is_last = false;
            while !is_last {
                // Whoever serves waits for one more.
                is_last = until.load(Ordering::Relaxed);
                inside(&file, || {
                    UdpSocket::bind("10.9.1.1:0")?.send_to(QUERY, "10.9.1.2:53")?;
                    let mut stream = TcpStream::connect("10.9.1.2:8080")?;
                    stream.write_all(b"GET /health HTTP/1.1\r\nHost: db.shop.example\r\n\r\n")?;
                    let mut answer = Vec::new();
                    stream.read_to_end(&mut answer)?;
                    let _ = TcpStream::connect("10.9.1.2:5432");
                    anyhow::Ok(())
                })??;
                thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        });
        Ok(Self {
            is_over,
            threads: vec![asking, serving],
        })
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}
