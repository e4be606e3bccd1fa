//! The list of targets.

use std::{
    io::Write as _,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::{Browser, DOWN, ENTER},
    engine::FakeEngine,
    folder::Folder,
    process::Sleeper,
    server::{Server, wait_until},
};
use serde_json::json;

use crate::{choose, row, scripted::Scripted, search, send, total, url, wait_for_total, watch_here};

#[test]
fn targets_are_listed_searched_and_have_traffic() -> anyhow::Result<()> {
    let (web, db) = (
        Sleeper::unshared_as("web", &[])?,
        Sleeper::unshared_as("db", &[])?,
    );
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.wait_for_text(&format!("web({})", web.pid()))?;
    browser.wait_for_text(&format!("db({})", db.pid()))?;
    browser.type_into("//input[@type='search']", "web(")?;
    browser.wait_for_text("1 target of")?;
    let names =
        browser.script("return [...document.querySelectorAll('.row .name')].map(one => one.innerText)")?;
    assert_eq!(names, json!([format!("web({})", web.pid())]));
    let deadline = Instant::now() + Duration::from_secs(20);
    let has_traffic =
        "return [...document.querySelectorAll('.row .number')].some(one => !one.innerText.startsWith('0'))";
    while browser.script(has_traffic)? != true {
        ensure!(Instant::now() < deadline, "no traffic is shown");
        send(web.pid(), 9, 100, b"x")?;
    }
    // One that is new is there without anybody asking.
    let late = Sleeper::unshared_as("web(late", &[])?;
    browser.wait_for_text(&format!("web(late({})", late.pid()))?;
    browser.check_console()
}

/// Until somebody sees what there is, little is asked for, and all of it here.
#[test]
fn little_is_loaded_before_the_targets_are_there() -> anyhow::Result<()> {
    /// Compressed, and with the heads of the answers.
    const MOST: u64 = 64 << 10;
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    let name = format!("web({})", web.pid());
    search(&browser, &name)?;
    browser.wait_for_text(&name)?;
    let loaded = browser.script(
        "const all = ['navigation', 'resource'].flatMap(kind => performance.getEntriesByType(kind)); \
         return all.map(one => [one.name, one.transferSize])",
    )?;
    let loaded: Vec<(String, u64)> = serde_json::from_value(loaded)?;
    let base = url(&server);
    let mut paths = Vec::new();
    for (name, _) in &loaded {
        paths.push(
            name.strip_prefix(&base)
                .with_context(|| format!("{name} is elsewhere"))?,
        );
    }
    paths.sort_unstable();
    // The list may have been asked for once more already, and what is said of traffic counts once it has ended.
    paths.dedup();
    paths.retain(|path| *path != "rates");
    assert_eq!(paths, ["", "targets", "ui/icon.svg", "ui/page.css", "ui/page.js"]);
    let page = loaded.iter().filter(|(name, _)| !name.ends_with("/targets"));
    let bytes: u64 = page.map(|(_, bytes)| bytes).sum();
    ensure!((1..MOST).contains(&bytes), "{bytes} bytes");
    browser.check_console()
}

/// What was watched is there still when the server is not, and the page finds the next.
#[test]
fn the_page_comes_back_with_the_server() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let port = server.port();
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    let before = total(&browser)?;
    drop(server);
    browser.wait_for_text("trying again")?;
    browser.wait_for(
        "return document.querySelector('.ends .end')?.innerText.includes('the connection broke')",
    )?;
    ensure!(total(&browser)? >= before);
    browser.click("//a[.='Targets']")?;
    let late = Sleeper::unshared_as("late", &[])?;
    let _again = Server::start_at(port, &[])?;
    search(&browser, "late(")?;
    browser.wait_for_text(&format!("late({})", late.pid()))?;
    browser.wait_for("return !document.body.innerText.includes('trying again')")?;
    ensure!(total(&browser)? >= before);
    browser
        .script("window.addEventListener('beforeunload', event => event.stopImmediatePropagation(), true)")?;
    browser.check_console()
}

/// A list of any length, and names of any kind: behind a service that tells of them.
#[test]
fn ten_thousand_targets_are_listed() -> anyhow::Result<()> {
    const COUNT: usize = 10_000;
    const TOLD: &[u8] = b"event: targets\ndata: 1\n\nevent: rates\ndata: {\"uptime\": 3700, \"rates\": {\"4026609999\": {\"2\": \
                          [1000, 500, 1000000, 500]}}}\n\n";
    let mut list = json!({
        "version": 1, "scanned-at": 1.0, "node-name": "many", "engines": [], "gaps": ["a <b>place</b>"],
        "targets": (0..COUNT).map(|number| json!({
            "name": format!("app-{number:05}"), "type": "docker", "prefix": "", "netns": 4_026_600_000_u64 + number as u64,
            "pid": 1000 + number, "starttime": 100, "host": false,
            "network-interfaces": [{ "name": "eth0", "index": 2, "state": "up", "addresses": [format!("10.1.{}.{}/16", number / 256, number % 256)] }],
            "container": { "id": format!("{number:064x}"), "engine": "/run/docker.sock", "state": "running", "images": ["nginx"],
                "labels": { "com.docker.compose.project": format!("shop-{}", number % 10) } },
        })).collect::<Vec<_>>(),
    });
    // One has more interfaces than there is room for.
    let links: Vec<_> = (0..200)
        .map(|number| json!({ "name": format!("d{number}"), "index": 3 + number, "state": "down", "addresses": [] }))
        .collect();
    list["targets"][0]["network-interfaces"] = links.into();
    list["targets"][1]["pod"] = json!({ "namespace": "shop", "name": "web-0" });
    let list = list.to_string();
    let many = Scripted::start(
        move || list.clone(),
        |stream| {
            stream.write_all(TOLD)?;
            thread::sleep(Duration::from_secs(60));
            Ok(())
        },
    )?;
    let browser = Browser::start()?;
    browser.go(&many.url())?;
    browser.wait_for_text("10,000 targets of 10,000")?;
    browser.wait_for_text("app-00000")?;
    browser.wait_for_text("1 h 1 min")?;
    let drawn = browser.script("return document.querySelectorAll('.row').length")?;
    ensure!(
        drawn.as_u64().is_some_and(|drawn| drawn < 100),
        "{drawn} rows are drawn"
    );
    let width = browser
        .script("const rows = document.querySelector('.rows'); return rows.scrollWidth - rows.clientWidth")?;
    assert_eq!(width, 0, "the list goes on to the side");
    // To the end of it, by a key.
    browser.type_into("//div[@role='grid']", "\u{e010}")?;
    browser.wait_for_text("app-09999")?;
    browser.wait_for_text("1.50 k/s")?;
    browser.type_into("//input[@type='search']", "10.1.39.15")?;
    browser.wait_for_text("1 target of")?;
    browser.click("//select/option[@value='compose']")?;
    browser.wait_for_text("project shop-9 (1)")?;
    browser.type_into("//input[@type='search']", "\u{e009}a\u{e000}shop-3")?;
    browser.wait_for_text("1,000 targets of 10,000")?;
    // All of a group, by a key.
    browser.type_into("//div[@role='grid']", " ")?;
    browser.press("Capture 1,000 targets")?;
    browser.wait_for_text("One capture has 256 targets at most.")?;
    ensure!(browser.script("return document.querySelector('dialog button.main').disabled")? == true);
    let found = browser.barriers()?;
    ensure!(found.is_empty(), "{found:#?}");
    browser.press("Close")?;
    browser.wait_for_text("1 place could not be looked at")?;
    browser.click("//summary[contains(., 'could not be looked at')]")?;
    browser.wait_for_text("a <b>place</b>")?;
    browser.type_into("//input[@type='search']", "\u{e009}a\u{e000}app-00001")?;
    browser.click("//select/option[.='pod']")?;
    browser.wait_for_text("pod shop/web-0 (1)")?;
    // And in a narrow window nothing has to be moved sideways but the list itself.
    browser.resize(420, 700)?;
    browser.wait_for("return document.documentElement.scrollWidth <= innerWidth")?;
    let found = browser.barriers()?;
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

/// Whoever presses at a target that moves away under the pointer, or is at it by keys, never has another instead.
#[test]
fn nobody_gets_another_target_than_was_meant() -> anyhow::Result<()> {
    let shown = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&shown);
    let service = Scripted::start(
        move || {
            let names = told.lock().unwrap_or_else(PoisonError::into_inner);
            let target = |name: &&str| {
                // Each has a number of its own, wherever it is.
                let netns = 4_026_600_000 + u64::from(name.as_bytes()[0]);
                json!({ "name": name, "type": "docker", "prefix": "", "netns": netns, "host": false, "network-interfaces": [] })
            };
            let targets: Vec<_> = names.iter().map(target).collect();
            json!({ "scanned-at": 1, "node-name": "one", "engines": [], "gaps": [], "targets": targets })
                .to_string()
        },
        // Until nobody listens.
        |stream| {
            loop {
                stream.write_all(b"event: targets\ndata: 1\n\n")?;
                thread::sleep(Duration::from_millis(50));
            }
        },
    )?;
    let browser = Browser::start()?;
    let show = |names: &[&'static str]| {
        names.clone_into(&mut *shown.lock().unwrap_or_else(PoisonError::into_inner));
        let drawn = "[...document.querySelectorAll('.row .name')].map(one => one.innerText)";
        browser.wait_for(&format!("return {drawn}.join() === {}", json!(names.join(","))))
    };
    let dialog = || browser.script("return document.querySelector('dialog h2')?.innerText ?? null");
    browser.go(&service.url())?;
    show(&["kilo", "lima", "mike"])?;
    browser.hold(&format!("{}//input", row("lima")))?;
    show(&["juliet", "kilo", "lima", "mike"])?;
    browser.let_go()?;
    assert_eq!(
        browser.script("return document.querySelectorAll('.row :checked').length")?,
        0
    );
    browser.click(&format!("{}//*[@class='name']", row("lima")))?;
    show(&["india", "juliet", "kilo", "lima", "mike"])?;
    browser.keys(ENTER)?;
    assert_eq!(dialog()?, "Capture lima");
    browser.press("Close")?;
    browser.wait_for("return !document.querySelector('dialog')")?;
    // Where there was one that is gone, nothing is done unasked with what has come in its place.
    show(&["india", "juliet", "kilo", "mike"])?;
    browser.keys(&format!(" {ENTER}"))?;
    browser.wait_for_text("Capture …")?;
    assert_eq!(dialog()?, json!(null));
    browser.keys(&format!("{DOWN}{ENTER}"))?;
    assert_eq!(dialog()?, "Capture mike");
    browser.check_console()
}

#[test]
fn names_are_never_markup_and_scripts_never_run() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let sleeper = Sleeper::unshared()?;
    let name = "<img src=x onerror=document.title='owned'>\u{202e}\u{7}evil";
    let socket = folder.file("docker.sock");
    let _engine = FakeEngine::start(&socket, &[(name, sleeper.pid())], &[])?;
    let server = Server::start(&[&format!("--engine-socket={}", socket.display())])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='search']", "onerror")?;
    browser.wait_for_text("<img src=x onerror=document.title='owned'>")?;
    let shown = browser.script("return document.querySelector('.row .name').innerText")?;
    let shown = shown.as_str().context("no text")?;
    ensure!(
        !shown.contains('\u{202e}') && !shown.contains('\u{7}'),
        "{shown:?}"
    );
    ensure!(browser.script("return document.querySelectorAll('main img').length")? == 0);
    ensure!(browser.script("return document.title")? == "packetflix");
    browser.check_console()?;
    // And whatever puts a script into the page all the same: the policy refuses it.
    browser.script(
        "const script = document.createElement('script'); script.textContent = \"document.title = 'owned'\"; \
         document.body.append(script); const image = document.createElement('div'); \
         image.innerHTML = \"<img src=x onerror=\\\"document.title='owned'\\\">\"; document.body.append(image)",
    )?;
    let refused = browser.log()?;
    ensure!(
        refused
            .iter()
            .any(|line| line.contains("Content Security Policy")),
        "{refused:?}"
    );
    ensure!(browser.script("return document.title")? == "packetflix");
    // Nor does it take text for a script.
    browser.script("setTimeout(\"document.title = 'owned'\", 0)")?;
    let mut said = String::new();
    wait_until(Duration::from_secs(10), || {
        said += &browser.log()?.join("\n");
        Ok(said.contains("eval"))
    })?;
    ensure!(browser.script("return document.title")? == "packetflix", "{said}");
    Ok(())
}
