//! Packets as they come.

use std::{
    net::UdpSocket,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::{Browser, DOWN, UP},
    engine::FakeEngine,
    folder::Folder,
    generator::{Generator, Plan},
    namespace::{Namespace, output_of},
    process::Sleeper,
    server::{Server, wait_until},
    slow::SlowLink,
};

use crate::{BEGUN, choose, fields, lost, pick, row, send, total, url, wait_for_total, watch_here, watching};

#[test]
fn packets_are_watched_and_saved_as_tshark_sees_them() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 50, b"PAYLOAD")?;
    send(web.pid(), 4712, 50, b"filtered")?;
    wait_for_total(&browser, 50)?;
    browser.wait_for_text("→ 4711 len 7")?;
    browser.click("//div[@id='packets-49']")?;
    browser.wait_for_text("destination port: 4711")?;
    // A line of the dump has the first six of its signs.
    browser.wait_for_text("PAYLOA")?;
    browser.press("conversations")?;
    browser.wait_for(
        "return [...document.querySelectorAll('td')].some(cell => cell.innerText === '127.0.0.1:4711')",
    )?;
    browser.press("packets")?;
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    assert_eq!(total(&browser)?, 50);
    browser.press("Save what is here")?;
    let saved = browser.downloaded()?;
    let seen = fields(&saved)?;
    assert_eq!(seen.len(), 50);
    ensure!(
        seen.iter().all(|line| line.contains("\t49\t4711\tlo")),
        "{seen:?}"
    );
    browser.check_console()
}

/// Several targets become one stream, whose rows say which of them each packet is of.
#[test]
fn several_targets_are_watched_on_one_timeline() -> anyhow::Result<()> {
    let (web, db) = (
        Sleeper::unshared_as("web", &[])?,
        Sleeper::unshared_as("db", &[])?,
    );
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    for name in [format!("web({})", web.pid()), format!("db({})", db.pid())] {
        pick(&browser, &name)?;
    }
    browser.press("Capture 2 targets")?;
    browser.type_into("//label[@class='filter']/input", "udp")?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 3, b"x")?;
    send(db.pid(), 4712, 2, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.type_into("//input[@type='search']", "target:db(")?;
    browser.wait_for_text("2 shown")?;
    browser.wait_for(&format!(
        "return [...document.querySelectorAll('.row .target')].every(one => one.innerText === 'db({})')",
        db.pid()
    ))?;
    browser.wait_for_text("→ 4712 len 1")?;
    browser.type_into(
        "//input[@type='search']",
        "\u{e009}a\u{e000}!target:db( port:4711",
    )?;
    browser.wait_for_text("3 shown")?;
    browser.check_console()
}

/// What no packet can be is told where it is asked for, and the list stays as it was.
#[test]
fn words_that_mean_nothing_are_told_at_the_field() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    let type_in =
        |words: &str| browser.type_into("//input[@type='search']", &format!("\u{e009}a\u{e000}{words}"));
    for (words, told) in [
        ("proto:nosuch", "proto takes one of eth"),
        ("port:99999", "port takes a number up to 65535"),
        ("port:80-20", "port takes"),
        ("port:>65535", "port takes"),
        ("len:<0", "len takes"),
        ("port:>10-20", "port takes"),
        ("foo:bar", "there is no foo: but proto, addr, port"),
        ("constructor:x", "there is no constructor:"),
        ("proto:", "proto takes one of eth"),
        ("mark:nosuch", "mark takes one of retransmission"),
        ("udp !", "! turns the word that follows it"),
    ] {
        type_in(words)?;
        browser
            .wait_for(&format!(
                "return document.querySelector('#show-error').innerText.includes({})",
                serde_json::json!(told)
            ))
            .with_context(|| words.to_owned())?;
    }
    for words in [
        "proto:udp port:4711",
        "127.0.0.1",
        "!fe80::1",
        "!abcd:",
        "mark:retrans !udp",
    ] {
        type_in(words)?;
        browser.wait_for("return document.querySelector('#show-error').innerText === ''")?;
    }
    browser.check_console()
}

/// Each view has its place in the history, a watch goes on behind the others, and nobody is rid of its packets unasked.
/// Browsers keep pages that were left for who comes back, and their streams with them.
#[test]
fn a_watch_ends_when_its_page_is_left() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let captures = || {
        let (_, list) = server.get("/captures")?;
        Ok::<_, anyhow::Error>(list["captures"].as_array().context("no list")?.len())
    };
    let browser = watching(&server, &here)?;
    assert_eq!(captures()?, 1);
    browser.go("about:blank")?;
    wait_until(Duration::from_secs(3), || Ok(captures()? == 0))?;
    // Who comes back finds the page as it is at first.
    browser.script("history.back()")?;
    browser.wait_for("return document.readyState === 'complete' && document.querySelector('nav') && !document.querySelector('section.watch')")?;
    assert_eq!(captures()?, 0);
    browser.check_console()
}

/// Who clicks on a row as it is shown is told of its packet, though rows of another filter are on their way.
#[test]
fn what_is_clicked_on_is_shown_though_the_filter_has_just_changed() -> anyhow::Result<()> {
    const CLICK: &str = "return (async () => {
        const show = document.querySelector('[aria-describedby=show-error]');
        const type = (text) => {
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(show, text);
            show.dispatchEvent(new InputEvent('input', { bubbles: true }));
        };
        const after = (time) => new Promise((resolve) => setTimeout(resolve, time));
        type('');
        await after(500);
        const row = document.querySelector('#packets-2');
        type('port:4712');
        await after(20);
        const shown = row.isConnected && row.innerText.includes('→ 4711');
        row.click();
        await after(500);
        return shown && { details: document.querySelector('.details')?.innerText ?? '', active: document.querySelector('.row.active')?.innerText };
    })()";

    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into("//label[@class='filter']/input", "udp")?;
    watch_here(&browser)?;
    for port in [4711, 4712] {
        send(web.pid(), port, 3, b"x")?;
    }
    wait_for_total(&browser, 6)?;
    // Again, where the rows of the filter are there at once.
    let clicked = browser.wait_for(CLICK)?;
    ensure!(
        clicked["details"]
            .as_str()
            .is_some_and(|details| details.contains("destination port: 4711")),
        "{clicked}"
    );
    // Where it was is another by now.
    ensure!(clicked["active"].is_null(), "{clicked}");
    browser.check_console()
}

#[test]
fn a_watch_is_not_lost_by_going_elsewhere() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    let name = format!("web({})", web.pid());
    choose(&browser, &name)?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    watch_here(&browser)?;
    let is_shown = |view: &str, link: &str| {
        browser.wait_for(&format!(
            "return document.querySelector('{view}')?.checkVisibility() && document.querySelector('nav [aria-current=page]').innerText === '{link}'"
        ))
    };
    let is_asked = || {
        browser.script(
            "const leaving = new Event('beforeunload', { cancelable: true }); dispatchEvent(leaving); return leaving.defaultPrevented",
        )
    };
    is_shown(".watch", "Watch")?;
    assert_eq!(is_asked()?, false);
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.script("history.back()")?;
    is_shown(".targets-view", "Targets")?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 10)?;
    browser.click("//a[.='Captures']")?;
    is_shown(".captures", "Captures")?;
    ensure!(browser.script("return document.querySelector('.watch').checkVisibility()")? == false);
    browser.click("//a[.='Watch']")?;
    is_shown(".watch", "Watch")?;
    browser.wait_for("return document.querySelectorAll('.row .summary').length === 10")?;
    // A reload asks, as does whatever else they would be lost with.
    assert_eq!(is_asked()?, true);
    browser.script("window.asked_ = 0; window.confirm = () => { asked_ += 1; return false }")?;
    browser.press("Close watch")?;
    is_shown(".watch", "Watch")?;
    browser.click("//a[.='Targets']")?;
    is_shown(".targets-view", "Targets")?;
    browser.press("Capture 1 target")?;
    browser.press("Watch here")?;
    assert_eq!(browser.script("return asked_")?, 2);
    assert_eq!(total(&browser)?, 10);
    browser.script("document.querySelector('dialog').close()")?;
    browser.click("//a[.='Watch']")?;
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    browser.press("Save what is here")?;
    assert_eq!(fields(&browser.downloaded()?)?.len(), 10);
    // There is nothing more to lose.
    assert_eq!(is_asked()?, false);
    browser.press("Close watch")?;
    is_shown(".targets-view", "Targets")?;
    assert_eq!(browser.script("return asked_")?, 2);
    browser.check_console()
}

/// What is watched is shown at once, however late the browser tells that the view is another.
#[test]
fn a_watch_is_shown_as_soon_as_it_is_asked_for() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.run_before(
        "const add = window.addEventListener; window.addEventListener = (kind, note, ...rest) => \
         add.call(window, kind, kind === 'hashchange' ? event => setTimeout(() => note(event), 2000) : note, ...rest)",
    )?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.press("Watch here")?;
    ensure!(browser.script("return document.querySelector('.watch').checkVisibility() && !document.querySelector('.targets-view')")? == true);
    browser.wait_for(BEGUN)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.check_console()
}

/// A name stands for an address, and the address is to be had beside it.
#[test]
fn addresses_are_told_beside_their_names() -> anyhow::Result<()> {
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
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='search']", "fake")?;
    browser.click(&format!("{}//input", row("web")))?;
    browser.press("Capture 1 target")?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    watch_here(&browser)?;
    here.inside(|| UdpSocket::bind("10.9.1.1:4712")?.send_to(b"x", "10.9.1.2:4711"))??;
    wait_for_total(&browser, 1)?;
    // The name is told when it is known.
    browser.wait_for("return document.querySelector('.row .source')?.innerText === 'web'")?;
    let title = browser.script("return document.querySelector('.row .source').title")?;
    assert_eq!(title, "web (10.9.1.1)");
    browser.click("//div[@id='packets-0']")?;
    browser.wait_for_text("source: 10.9.1.1 (web)")?;
    browser.press("conversations")?;
    browser.wait_for(
        "return [...document.querySelectorAll('td')].some(cell => cell.innerText === 'web:4712' && cell.title === 'web:4712 (10.9.1.1:4712)')",
    )?;
    browser.check_console()
}

/// What is lost is told at its place, and in sum.
#[test]
fn losses_are_told_where_they_happened() -> anyhow::Result<()> {
    const COUNT: u64 = 20_000;
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&["--max-packet-rate", "1000"])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &here.path().display().to_string())?;
    browser.type_into("//label[@class='filter']/input", "udp port 9")?;
    watch_here(&browser)?;
    let plan = Plan {
        interface: "va".to_owned(),
        to_mac: [0xff; 6],
        addresses: [[10, 9, 1, 1].into(), [10, 9, 1, 2].into()],
        packets: COUNT,
        lens: vec![64],
        rate: Some(10_000.0),
        is_irregular: false,
        select_each: None,
    };
    let mut sent = Generator::start(&here, &plan)?.finish()?.packets;
    // One more, before which the last were lost, as soon as there is room for it.
    let one = Plan { packets: 1, ..plan };
    wait_until(Duration::from_secs(20), || {
        sent += Generator::start(&here, &one)?.finish()?.packets;
        Ok(browser.script("return document.body.innerText.includes('dropped before this')")? == true)
    })?;
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    browser.wait_for_text("packets dropped")?;
    assert_eq!(total(&browser)? + lost(&browser)?, sent);
    browser.check_console()
}

/// On a connection that takes less than there is, losses are told, and the page does what it is told to.
#[test]
fn slow_connections_lose_packets_and_the_page_goes_on() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    // What the kernel keeps of packets is little, so that not much has to be sent.
    let server = Server::start(&["--ring-size", "512KiB"])?;
    let slow = SlowLink::to(server.port(), 2_000_000)?;
    let browser = Browser::start()?;
    browser.go(&format!("http://127.0.0.1:{}/", slow.port()))?;
    choose(&browser, &here.path().display().to_string())?;
    browser.type_into("//label[@class='filter']/input", "udp port 9")?;
    watch_here(&browser)?;
    let plan = Plan {
        interface: "va".to_owned(),
        to_mac: [0xff; 6],
        addresses: [[10, 9, 1, 1].into(), [10, 9, 1, 2].into()],
        packets: 50_000,
        lens: vec![1000],
        rate: Some(10_000.0),
        is_irregular: false,
        select_each: None,
    };
    let sending = Generator::start(&here, &plan)?;
    wait_for_total(&browser, 1)?;
    browser.press("Pause")?;
    browser.press("Go on")?;
    browser.type_into("//input[@type='search']", "len:>900")?;
    browser.wait_for_text("shown")?;
    browser.press("conversations")?;
    browser.wait_for("return document.querySelector('.conversations td')")?;
    browser.press("packets")?;
    browser.wait_for("return document.querySelector('.row .summary')")?;
    // What is lost is told while the stream goes on, not at its end alone.
    wait_until(Duration::from_secs(20), || Ok(lost(&browser)? > 0))?;
    let sent = sending.finish()?;
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    let (total, lost) = (total(&browser)?, lost(&browser)?);
    assert_eq!(total + lost, sent.packets, "{lost} lost");
    browser.check_console()
}

/// A list that is paused stays as it is while packets come, and one that follows shows the last of them.
#[test]
fn the_list_pauses_and_follows() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    watch_here(&browser)?;
    let rows = || {
        let count = browser
            .script("return Number(document.querySelector('.rows').getAttribute('aria-rowcount')) - 1")?;
        count.as_u64().context("no number")
    };
    let follows = || {
        browser.script("const last = document.querySelector('.rows'); return last.scrollTop + last.clientHeight >= last.scrollHeight - 1")
    };
    send(web.pid(), 4711, 100, b"x")?;
    wait_for_total(&browser, 100)?;
    wait_until(Duration::from_secs(10), || {
        Ok(rows()? == 100 && follows()? == true)
    })?;
    browser.press("Pause")?;
    // The last that was told before that.
    thread::sleep(Duration::from_millis(300));
    send(web.pid(), 4711, 50, b"x")?;
    wait_for_total(&browser, 150)?;
    assert_eq!(rows()?, 100);
    browser.press("Go on")?;
    wait_until(Duration::from_secs(10), || {
        Ok(rows()? == 150 && follows()? == true)
    })?;
    // Who looks at an earlier one is not led away from it.
    browser.type_into("//div[@role='grid']", "\u{e011}")?;
    send(web.pid(), 4711, 50, b"x")?;
    wait_until(Duration::from_secs(10), || Ok(rows()? == 200))?;
    ensure!(browser.script("return document.querySelector('.rows').scrollTop")? == 0);
    browser.press("Follow")?;
    wait_until(Duration::from_secs(10), || Ok(follows()? == true))?;
    // Nor does it lose its place behind another view.
    browser.type_into("//div[@role='grid']", "\u{e011}\u{e00f}\u{e00f}")?;
    let active = "return document.querySelector('.row.active')?.id";
    let chosen = browser.wait_for(active)?;
    browser.press("conversations")?;
    browser.press("packets")?;
    assert_eq!(browser.wait_for(active)?, chosen);
    browser.check_console()
}

/// The window has its bound. What goes out of it takes nothing else with it: a packet that was chosen stays the one that is chosen.
#[test]
fn the_window_is_bounded() -> anyhow::Result<()> {
    const FIRST: u64 = 30_000;
    const THEN: u64 = 25_000;
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &here.path().display().to_string())?;
    browser.type_into("//label[@class='filter']/input", "udp port 9")?;
    watch_here(&browser)?;
    let plan = |packets| Plan {
        interface: "va".to_owned(),
        to_mac: [0xff; 6],
        addresses: [[10, 9, 1, 1].into(), [10, 9, 1, 2].into()],
        packets,
        lens: vec![1400],
        rate: Some(10_000.0),
        is_irregular: false,
        select_each: None,
    };
    let told = "const row = document.querySelector('.row.active'); return row && row.querySelector('.time') && \
                { id: row.id, time: row.querySelector('.time').innerText, lost: row.innerText.includes('dropped') }";
    Generator::start(&here, &plan(FIRST))?.finish()?;
    wait_for_total(&browser, FIRST)?;
    browser.type_into("//div[@role='grid']", "\u{e010}")?;
    let chosen = browser.wait_for(told)?;
    assert_eq!(chosen["id"], format!("packets-{}", FIRST - 1));
    browser.wait_for_text("destination port: 9")?;
    Generator::start(&here, &plan(THEN))?.finish()?;
    wait_for_total(&browser, FIRST + THEN)?;
    let gone = browser.wait_for(
        "return document.querySelector('.status').innerText.match(/the first ([\\d,]+) are no longer/)?.[1].replaceAll(',', '')",
    )?;
    let gone: u64 = gone.as_str().context("no number")?.parse()?;
    ensure!((5000..FIRST).contains(&gone), "{gone} are gone");
    // Up and down again leads back to the same.
    browser.type_into("//div[@role='grid']", "\u{e013}\u{e015}")?;
    let still = browser.wait_for(told)?;
    assert_eq!(still["id"], format!("packets-{}", FIRST - 1 - gone));
    assert_eq!(still["time"], chosen["time"]);
    // Under a filter rows go as packets do.
    browser.type_into("//input[@type='search']", "port:9")?;
    browser.wait_for_text(&format!("{} shown", with_commas(FIRST + THEN - gone)))?;
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    browser.press("Save what is here")?;
    let saved = browser.downloaded()?;
    let count = output_of(
        Command::new("capinfos")
            .args(["-c", "-M", "-T", "-r"])
            .arg(&saved),
    )?;
    let count: u64 = count.trim().rsplit('\t').next().context("no number")?.parse()?;
    assert_eq!(count, total(&browser)? - gone);
    // Beside the packets, there is what describes them.
    ensure!(std::fs::metadata(&saved)?.len() <= 65 << 20);
    browser.check_console()
}

fn with_commas(number: u64) -> String {
    format!("{},{:03}", number / 1000, number % 1000)
}

#[test]
fn fifty_thousand_packets_a_second_do_not_freeze_it() -> anyhow::Result<()> {
    const RATE: u64 = 50_000;
    const SECONDS: u64 = 10;
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    let there_path = there.path();
    let name = there_path.display().to_string();
    choose(&browser, &name)?;
    watch_here(&browser)?;
    browser.script(
        "window.frames_ = []; let last = performance.now(); const note = now => { frames_.push(now - last); last = now; \
         requestAnimationFrame(note) }; requestAnimationFrame(note)",
    )?;
    let plan = Plan {
        interface: "va".to_owned(),
        to_mac: [0xff; 6],
        addresses: [[10, 9, 1, 1].into(), [10, 9, 1, 2].into()],
        packets: RATE * SECONDS,
        lens: vec![64],
        rate: Some(RATE as f64),
        is_irregular: false,
        select_each: None,
    };
    let sent = Generator::start(&here, &plan)?.finish()?;
    let frames: Vec<f64> = serde_json::from_value(browser.script("return frames_")?)?;
    // All that was sent is there or accounted for; the last numbers come with the end.
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    let known = || anyhow::Ok(total(&browser)? + lost(&browser)?);
    let deadline = Instant::now() + Duration::from_secs(20);
    while known()? < sent.packets && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    let (known, seen) = (known()?, total(&browser)?);
    ensure!(known >= sent.packets, "{known} of {}", sent.packets);
    let mut sorted = frames.clone();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    eprintln!(
        "{seen} of {} packets at {:.0}/s; {} frames, p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
        sent.packets,
        sent.rate(),
        frames.len(),
        at(0.5),
        at(0.95),
        at(0.99),
        at(1.0)
    );
    // It was drawn all the time; how often is for this machine to tell.
    ensure!(frames.len() as u64 >= SECONDS, "{} frames", frames.len());
    // In a list that is longer than anything a browser can draw, what somebody is at is in sight, from both of its ends.
    for keys in [
        format!("\u{e011}{}", DOWN.repeat(40)),
        format!("\u{e010}{}", UP.repeat(40)),
    ] {
        browser.type_into("//div[@role='grid']", &keys)?;
        browser.wait_for(
            "const box = document.querySelector('.packets').getBoundingClientRect(); \
             const head = document.querySelector('.packets .head').getBoundingClientRect(); \
             const row = document.querySelector('.packets .row.active')?.getBoundingClientRect(); \
             return row && row.top >= head.bottom - 1 && row.bottom <= box.bottom",
        )?;
    }
    browser.check_console()
}
