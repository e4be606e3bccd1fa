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
    browser::{Browser, DOWN, ENTER, TAB},
    engine::FakeEngine,
    folder::Folder,
    namespace::{Namespace, inside},
    process::Sleeper,
    server::Server,
};

use crate::{BEGUN, choose, pick, row, search, send, url, wait_for_total, watch_here};

#[test]
fn nobody_is_kept_out() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    for is_dark in [false, true] {
        browser.set_dark(is_dark)?;
        for_each_view(&server, &browser, &web, |what| {
            let found = browser.barriers()?;
            ensure!(found.is_empty(), "{what}: {found:#?}");
            Ok(())
        })?;
    }
    // Where nothing has a colour of its own, what somebody is at is seen all the same.
    browser.force_colours()?;
    browser.go(&url(&server))?;
    pick(&browser, &format!("web({})", web.pid()))?;
    browser
        .wait_for("return getComputedStyle(document.querySelector('.row.active')).outlineStyle === 'solid'")
        .map(drop)
}

/// In a window as narrow as a large one at four times its size (WCAG 2.2, success criterion 1.4.10), nothing but lists and tables
/// has to be moved sideways, and nothing is out of reach.
#[test]
fn narrow_windows_show_all() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.shrink(320, 640)?;
    let outside = "const least = [...document.querySelectorAll('dialog')].at(-1) ?? document.body; \
                   const isIn = one => { const box = one.getBoundingClientRect(); return box.width === 0 || (box.left >= 0 && box.right <= innerWidth) }; \
                   const moves = one => one.closest('.rows, .conversations, .scrolled, .layers, .bytes, .hidden'); \
                   return [...least.querySelectorAll('button, a, input, select, p, li, label, h1, h2')] \
                   .filter(one => !moves(one) && !isIn(one)).map(one => one.outerHTML)";
    for_each_view(&server, &browser, &web, |what| {
        let width = browser.script("return [innerWidth, document.documentElement.scrollWidth]")?;
        assert_eq!(width, serde_json::json!([320, 320]), "{what}");
        let found = browser.script(outside)?;
        assert_eq!(found, serde_json::json!([]), "{what}");
        let found = browser.barriers()?;
        ensure!(found.is_empty(), "{what}: {found:#?}");
        Ok(())
    })
}

/// What is drawn, where axe sees nothing, has the colours of the rest of the page, also when these change.
#[test]
fn plots_are_seen_in_the_dark_and_in_the_light() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.run_before(
        "window.inks_ = []; const draw = CanvasRenderingContext2D.prototype.fillText; \
         CanvasRenderingContext2D.prototype.fillText = function (...given) { inks_.push(this.fillStyle); return draw.apply(this, given) }",
    )?;
    browser.set_dark(false)?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 20, b"x")?;
    wait_for_total(&browser, 20)?;
    browser.press("rates")?;
    let inks = "const pen = document.createElement('canvas').getContext('2d'); \
                pen.fillStyle = getComputedStyle(document.documentElement).color; \
                const last = inks_.slice(-5); return last.length > 0 && last.every(ink => ink === pen.fillStyle) && pen.fillStyle";
    // Those that it was drawn with last.
    let light = browser.wait_for(inks)?;
    browser.set_dark(true)?;
    let dark = browser.wait_for(inks)?;
    ensure!(light != dark, "{light}");
    browser.check_console()
}

/// Goes through all that the page shows.
fn for_each_view(
    server: &Server,
    browser: &Browser,
    web: &Sleeper,
    check: impl Fn(&str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    browser.go(&url(server))?;
    let name = format!("web({})", web.pid());
    search(browser, &name)?;
    browser.wait_for_text(&name)?;
    check("targets")?;
    choose(browser, &name)?;
    check("capture")?;
    watch_here(browser)?;
    send(web.pid(), 4711, 20, b"x")?;
    wait_for_total(browser, 20)?;
    browser.type_into("//div[@role='grid']", DOWN)?;
    browser.wait_for_text("destination port")?;
    check("watch")?;
    browser.press("conversations")?;
    browser.wait_for_text("round trip")?;
    check("conversations")?;
    browser.press("rates")?;
    check("rates")?;
    browser.click("//a[.='Captures']")?;
    browser.wait_for("return document.querySelector('.captures td')")?;
    check("captures")?;
    // It is asked whether what was watched is to be lost.
    browser
        .script("window.addEventListener('beforeunload', event => event.stopImmediatePropagation(), true)")?;
    Ok(())
}

/// From the list to a file, by keys alone, as they go to whatever has the focus.
#[test]
fn everything_is_done_by_keys() -> anyhow::Result<()> {
    const END: &str = "\u{e010}";
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.wait_for("return document.querySelector('.row')")?;
    let has_focus = |what: &str| {
        let text = serde_json::json!(what);
        // What is no selector is the text of a button.
        let is = match what.starts_with(['.', '[']) {
            true => format!("matches({text})"),
            false => format!("innerText === {text}"),
        };
        anyhow::Ok(browser.script(&format!("return document.activeElement.{is}"))? == true)
    };
    let tab_to = |what: &str| {
        for _ in 0..40 {
            if has_focus(what)? {
                return Ok(());
            }
            browser.keys(TAB)?;
        }
        anyhow::bail!("{what} is not reached by Tab")
    };
    let name = format!("web({})", web.pid());
    tab_to("[type=search]")?;
    browser.keys(&name)?;
    browser.wait_for_text("1 target of")?;
    tab_to(".targets")?;
    browser.keys(END)?;
    // Whoever does not see it is told which one is chosen.
    for chosen in ["true", "false"] {
        browser.keys(" ")?;
        browser.wait_for(&format!(
            "return document.getElementById(document.querySelector('.targets').getAttribute('aria-activedescendant')).ariaSelected === '{chosen}'"
        ))?;
    }
    browser.keys(ENTER)?;
    browser.wait_for("return document.querySelector('dialog:modal')")?;
    // Whoever goes back is where they were.
    browser.keys("\u{e00c}")?;
    browser.wait_for("return !document.querySelector('dialog')")?;
    ensure!(has_focus(".targets")?);
    browser.keys(ENTER)?;
    browser.wait_for("return document.querySelector('dialog:modal')")?;
    tab_to("[list=common-filters]")?;
    browser.keys("udp port 4711")?;
    tab_to("Watch here")?;
    browser.keys(ENTER)?;
    browser.wait_for(BEGUN)?;
    browser.wait_for("return document.activeElement.matches('.packets')")?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.keys(END)?;
    browser.wait_for_text("destination port: 4711")?;
    tab_to(".field")?;
    browser.wait_for("return document.querySelector('.byte.marked')")?;
    for what in ["Stop", "Save what is here", "Close watch"] {
        tab_to(what)?;
        browser.keys(" ")?;
    }
    browser.downloaded()?;
    browser.wait_for("return document.querySelector('.targets-view')")?;
    // It is not begun at the top of everything again.
    browser.wait_for("return document.activeElement.matches('main')")?;
    browser.check_console()
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
    watch_here(&browser)?;
    wait_for_total(&browser, 20)?;
    if is_published {
        // Where somebody else on this machine has the same address, it has no name.
        browser.wait_for(
            "return [...document.querySelectorAll('.row .destination')].some(one => one.innerText === 'db')",
        )?;
    }
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
