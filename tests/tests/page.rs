//! The page, in a real browser, with real namespaces and traffic.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::{Browser, DOWN, ENTER},
    engine::FakeEngine,
    folder::Folder,
    generator::{Generator, Plan},
    namespace::{Namespace, inside, of_process, output_of},
    process::Sleeper,
    raw::{RawSocket, arp, ethernet, ipv4_udp, ipv6_udp, vlan},
    server::{Server, wait_until},
    upstream::{Upstream, answer},
};
use serde_json::{Value, json};

/// Whether the stream has begun that is watched: from then on packets are captured.
const BEGUN: &str = "return document.querySelector('.status') && !document.body.innerText.includes('waiting for the service')";

fn url(server: &Server) -> String {
    format!("http://127.0.0.1:{}/", server.port())
}

/// The row of a target, once it is shown.
fn row(name: &str) -> String {
    format!("//div[@role='row'][.//*[@class='name'][contains(., '{name}')]]")
}

/// Looks for what is called so alone: on a machine with many targets, others would be what is drawn.
fn search(browser: &Browser, name: &str) -> anyhow::Result<()> {
    // In the place of what was searched before.
    let keys = format!("\u{e009}a\u{e000}{name}");
    browser.type_into("//input[@type='search']", &keys)
}

/// Chooses a target, and opens what can be captured of it.
fn choose(browser: &Browser, name: &str) -> anyhow::Result<()> {
    search(browser, name)?;
    browser.click(&format!("{}//input", row(name)))?;
    browser.press("Capture 1 target")
}

/// Sends datagrams over the loopback device of a process's namespace.
fn send(pid: u32, port: u16, count: usize, payload: &[u8]) -> anyhow::Result<()> {
    inside(&of_process(pid), || {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for _ in 0..count {
            // Nobody listens there, and a later one is told so.
            let _ = socket.send_to(payload, ("127.0.0.1", port));
        }
        anyhow::Ok(())
    })?
}

/// A browser in which all that a namespace has is watched.
fn watching(server: &Server, namespace: &Namespace) -> anyhow::Result<Browser> {
    let browser = Browser::start()?;
    browser.go(&url(server))?;
    choose(&browser, &namespace.path().display().to_string())?;
    browser.press("Watch here")?;
    browser.wait_for(BEGUN)?;
    Ok(browser)
}

/// How many packets the page says that it has.
fn total(browser: &Browser) -> anyhow::Result<u64> {
    let total = browser.script("return document.querySelector('.total')?.dataset.total ?? '0'")?;
    Ok(total.as_str().context("no number")?.parse()?)
}

fn wait_for_total(browser: &Browser, at_least: u64) -> anyhow::Result<()> {
    let wanted = format!("return Number(document.querySelector('.total')?.dataset.total) >= {at_least}");
    browser.wait_for(&wanted).map(drop)
}

/// What tshark says of the packets of a file.
fn fields(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = output_of(Command::new("tshark").arg("-r").arg(file).args([
        "-T",
        "fields",
        "-e",
        "frame.time_epoch",
        "-e",
        "frame.len",
        "-e",
        "udp.dstport",
        "-e",
        "frame.interface_name",
    ]))?;
    Ok(text.lines().map(str::to_owned).collect())
}

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
    let first = browser.script(
        "const [page] = performance.getEntriesByType('navigation'); const sum = performance.getEntriesByType('resource')\
         .filter(one => /\\/ui\\//.test(one.name)).reduce((sum, one) => sum + one.transferSize, page.transferSize); \
         return { bytes: sum, milliseconds: page.domContentLoadedEventEnd }",
    )?;
    eprintln!("the page: {first}");
    ensure!(first["bytes"].as_u64() < Some(300 << 10), "{first}");
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

#[test]
fn packets_are_watched_and_saved_as_tshark_sees_them() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    browser.press("Watch here")?;
    // It is asked for; that it has begun is told with the first message.
    browser.wait_for(BEGUN)?;
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

#[test]
fn a_capture_is_saved_whole() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    // Nobody is there to say where a file is to go.
    browser.script("delete window.showSaveFilePicker; delete Window.prototype.showSaveFilePicker")?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.press("Save")?;
    browser.wait_for("return /pcapng: [1-9]/.test(document.querySelector('.saving')?.innerText)")?;
    send(web.pid(), 4711, 200, b"x")?;
    // What the kernel has counted is in the stream when that ends.
    browser.press("Stop and finish the file")?;
    browser.wait_for_text("stopped by the client")?;
    let saved = browser.downloaded()?;
    // That nobody listens there is told with the packet that it is told of.
    let is_sent = |line: &&String| line.contains("\t43\t4711\tlo");
    let sent = fields(&saved)?.iter().filter(is_sent).count();
    assert_eq!(sent, 200);
    let name = saved
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    ensure!(name.starts_with("web_"), "{name}");
    let report = output_of(Command::new("capinfos").arg(&saved))?;
    ensure!(report.contains("Number of packets"), "{report}");
    Ok(())
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

#[test]
fn refusals_and_faulty_filters_are_told_at_their_place() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&["--max-captures", "0"])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into("//label[@class='filter']/input", "tcp tcp")?;
    let told = browser.wait_for("return document.querySelector('#filter-error').innerText")?;
    ensure!(
        told.as_str().is_some_and(|told| told.contains("tcp tcp")),
        "{told}"
    );
    ensure!(
        browser.script("return [...document.querySelectorAll('button')].find(one => one.innerText === 'Watch here').disabled")? == true
    );
    browser.type_into("//label[@class='filter']/input", "\u{8}\u{8}\u{8}\u{8}")?;
    browser.wait_for("return document.querySelector('#filter-error').innerText === '' || null")?;
    browser.press("Watch here")?;
    let told = browser.wait_for("return document.querySelector('.ends .error')?.innerText")?;
    let told = told.as_str().context("no text")?;
    ensure!(told.contains("captures"), "{told}");
    server.wait_for_log("reason=")?;
    let sentence = told.split_once(": ").context("no sentence")?.1;
    ensure!(server.log().contains(sentence), "{told}\n{}", server.log());
    Ok(())
}

#[test]
fn the_page_comes_back_with_the_server() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let port = server.port();
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.wait_for_text(&format!("web({})", web.pid()))?;
    drop(server);
    browser.wait_for_text("trying again")?;
    let late = Sleeper::unshared_as("late", &[])?;
    let _again = Server::start_at(port, &[])?;
    browser.wait_for_text(&format!("late({})", late.pid()))?;
    browser
        .wait_for("return !document.body.innerText.includes('trying again')")
        .map(drop)
}

#[test]
fn tokens_sign_in_and_scopes_decide_what_is_shown() -> anyhow::Result<()> {
    const PART: &str = "part-0123456789abcdef";
    let (web, db) = (
        Sleeper::unshared_as("web", &[])?,
        Sleeper::unshared_as("db", &[])?,
    );
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("part {PART} discover capture:web(*)\n"))?;
    let tokens = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &tokens, "--log-requests", "--log-headers"])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.wait_for_text("a token is needed")?;
    browser.type_into("//input[@type='password']", &format!("wrong{ENTER}"))?;
    browser.wait_for_text("token")?;
    browser.type_into(
        "//input[@type='password']",
        &format!("\u{e009}a\u{e000}{PART}{ENTER}"),
    )?;
    let web_name = format!("web({})", web.pid());
    browser.wait_for_text(&web_name)?;
    let shown = browser.script("return document.body.innerText")?;
    ensure!(
        !shown.to_string().contains(&format!("db({})", db.pid())),
        "{shown}"
    );
    choose(&browser, &web_name)?;
    browser.press("Watch here")?;
    browser.wait_for(BEGUN)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.press("Back")?;
    browser.click("//a[.='Captures']")?;
    browser.wait_for_text("part may not administer the service")?;
    ensure!(
        browser
            .script("return location.href")?
            .as_str()
            .is_some_and(|at| !at.contains(PART))
    );
    ensure!(!server.log().contains(PART), "{}", server.log());
    // It is kept for the session, and nowhere else.
    browser.go(&url(&server))?;
    browser.wait_for_text(&web_name)?;
    ensure!(browser.script("return localStorage.length + document.cookie.length")? == 0);
    browser.press("Sign out")?;
    browser.wait_for_text("a token is needed").map(drop)
}

#[test]
fn captures_are_listed_and_stopped() -> anyhow::Result<()> {
    const ADMIN: &str = "admin-0123456789abcdef";
    let web = Sleeper::unshared_as("web", &[])?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("chief {ADMIN} admin discover capture\n"))?;
    let tokens = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &tokens])?;
    let (browser, other) = (Browser::start()?, Browser::start()?);
    let name = format!("web({})", web.pid());
    for one in [&browser, &other] {
        one.go(&url(&server))?;
        one.type_into("//input[@type='password']", &format!("{ADMIN}{ENTER}"))?;
        one.wait_for_text(&name)?;
    }
    choose(&other, &name)?;
    other.press("Watch here")?;
    browser.click("//a[.='Captures']")?;
    browser.click(&format!(
        "//tr[contains(., 'chief') and contains(., '{name}')]//button"
    ))?;
    other.wait_for_text("ended by the operator")?;
    browser.wait_for_text("Nobody captures anything")
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
        browser.click(&format!("{}//input", row(&name)))?;
    }
    browser.press("Capture 2 targets")?;
    browser.type_into("//label[@class='filter']/input", "udp")?;
    browser.press("Watch here")?;
    browser.wait_for(BEGUN)?;
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

/// What programs really say to each other, as the page tells it.
#[test]
fn protocols_are_told_as_people_know_them() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    // It takes whatever comes, so that whoever asks goes on to say what they want.
    let listener = there.inside(|| TcpListener::bind("10.9.1.2:443"))??;
    let serving = thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept()?;
            let _ = stream.read(&mut [0; 4096])?;
        }
        anyhow::Ok(())
    });
    let run = |program: &str, arguments: &[&str]| {
        // They hear of no good answer, which is no matter here.
        let mut command = here.command(program);
        let command = command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    run("busybox", &["ping", "-c", "1", "-W", "1", "10.9.1.2"])?;
    run(
        "curl",
        &["--silent", "--max-time", "2", "http://10.9.1.2:443/some/thing"],
    )?;
    run(
        "timeout",
        &[
            "2",
            "openssl",
            "s_client",
            "-connect",
            "10.9.1.2:443",
            "-servername",
            "shop.example",
        ],
    )?;
    run(
        "timeout",
        &["2", "busybox", "nslookup", "db.shop.example", "10.9.1.2"],
    )?;
    run(
        "busybox",
        &[
            "udhcpc",
            "-i",
            "va",
            "-n",
            "-q",
            "-t",
            "1",
            "-T",
            "1",
            "-s",
            "/bin/true",
        ],
    )?;
    serving.join().map_err(|_| anyhow::anyhow!("nobody served"))??;
    let raw = RawSocket::open(&here, "va")?;
    raw.send(&ethernet(0x8100, &vlan(42, 0x0800, &ipv4_udp(b"in a VLAN"))))?;
    for (filter, text) in [
        ("proto:arp", "who has 10.9.1.2? tell 10.9.1.1"),
        ("proto:icmp", "echo request, identifier"),
        ("proto:http", "GET /some/thing HTTP/1.1"),
        ("proto:tls", "client hello, server name shop.example"),
        ("proto:dns", "query A db.shop.example"),
        ("proto:dhcp", "discover"),
        ("proto:vlan", "12345 → 12346 len 9"),
        ("flags:syn port:443", "[SYN] seq 0"),
    ] {
        browser.type_into("//input[@type='search']", &format!("\u{e009}a\u{e000}{filter}"))?;
        browser.wait_for_text(text).with_context(|| filter.to_owned())?;
    }
    browser.press("conversations")?;
    // The kernel answered a SYN, which has taken a time.
    browser.wait_for(
        "return [...document.querySelectorAll('tr')].some(row => row.innerText.includes(':443') && / ms/.test(row.innerText))",
    )?;
    browser.check_console()
}

/// A segment that is sent twice is told as such.
#[test]
fn segments_that_are_sent_again_are_marked() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    let raw = RawSocket::open(&here, "va")?;
    for (sequence, flags, payload) in [
        (1000_u32, 0x02, &b""[..]),
        (1001, 0x18, b"hello"),
        (1006, 0x18, b"world"),
        (1001, 0x18, b"hello"),
        (1010, 0x10, b"d"),
        (1011, 0x04, b""),
    ] {
        raw.send(&ethernet(0x0800, &ipv4_tcp(sequence, flags, payload)))?;
    }
    wait_for_total(&browser, 6)?;
    browser.type_into("//input[@type='search']", "mark:retransmission")?;
    browser.wait_for_text("1 shown")?;
    browser.wait_for_text("[retransmission] 40000 → 80 [PSH, ACK] seq 1")?;
    browser.type_into("//input[@type='search']", "\u{e009}a\u{e000}mark:keep-alive")?;
    browser.wait_for_text("[keep-alive] 40000 → 80 [ACK] seq 10")?;
    browser.type_into("//input[@type='search']", "\u{e009}a\u{e000}flags:rst")?;
    browser.wait_for_text("seq 11 win")?;
    browser.check_console()
}

/// An IPv4 packet with a segment of TCP, from 10.9.9.1 to 10.9.9.2.
fn ipv4_tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = [&40_000_u16.to_be_bytes()[..], &80_u16.to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    tcp.extend(payload);
    let len = u16::try_from(20 + tcp.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 9, 9, 1, 10, 9, 9, 2]);
    packet.extend(tcp);
    packet
}

/// Packets of which nothing can be relied on are each told, and keep nothing else from it.
#[test]
fn packets_that_are_wrong_are_told_like_others() -> anyhow::Result<()> {
    const COUNT: u64 = 3000;
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    let raw = RawSocket::open(&here, "va")?;
    let good = [
        ethernet(0x0800, &ipv4_udp(b"payload")),
        ethernet(0x86dd, &ipv6_udp(b"payload")),
        ethernet(0x0806, &arp()),
        ethernet(0x8100, &vlan(1, 0x86dd, &ipv6_udp(b""))),
        ethernet(0x0800, &ipv4_tcp(1, 0x18, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\x03")),
        ethernet(0x0800, &ipv4_tcp(1, 0x18, b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n")),
        ethernet(0x0800, &udp_of(53, b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\0\x01a\xc0\x0c\0\x01\0\x01\xc0\x0c\0\x05\0\x01\0\0\0\x01\0\x02\xc0\x0c")),
        ethernet(0x0800, &udp_of(67, &[1; 300])),
    ];
    // The same each time: Marsaglia's xorshift.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..COUNT {
        let mut frame = good[next(good.len())].clone();
        for _ in 0..next(4) {
            // The addresses stay, without which the kernel sends nothing.
            let at = 12 + next(frame.len() - 12);
            frame[at] = next(256) as u8;
        }
        frame.truncate(14 + next(frame.len()));
        raw.send(&frame)?;
    }
    wait_for_total(&browser, COUNT)?;
    // Each is held against a filter that all pass, and so is decoded.
    browser.type_into("//input[@type='search']", "!no-packet-says-this")?;
    browser.wait_for(&format!(
        "return Number(document.querySelector('.rows').getAttribute('aria-rowcount')) > {COUNT}"
    ))?;
    browser.wait_for("return document.querySelectorAll('.row .summary').length > 5")?;
    browser.check_console()
}

/// An IPv4 packet with UDP for a port.
fn udp_of(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = ipv4_udp(payload);
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    if port == 67 {
        packet[20..22].copy_from_slice(&68_u16.to_be_bytes());
    }
    packet
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
    browser.press("Watch here")?;
    browser.wait_for(BEGUN)?;
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
    let sent = Generator::start(&here, &plan)?.finish()?;
    // One more, before which the last were lost.
    thread::sleep(Duration::from_secs(2));
    Generator::start(&here, &Plan { packets: 1, ..plan })?.finish()?;
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    let lost = browser.wait_for(
        "return document.querySelector('.status').innerText.match(/, ([\\d,]+) packets dropped/)?.[1]",
    )?;
    let lost: u64 = lost.as_str().context("no text")?.replace(',', "").parse()?;
    assert_eq!(total(&browser)? + lost, sent.packets + 1);
    browser.wait_for_text("dropped before this")?;
    browser.check_console()
}

/// A list of any length, and names of any kind: behind a service that tells of them.
#[test]
fn ten_thousand_targets_are_listed() -> anyhow::Result<()> {
    const COUNT: usize = 10_000;
    let server = Server::start(&[])?;
    let port = server.port();
    let list = json!({
        "version": 1, "scanned-at": 1.0, "node-name": "many", "engines": [], "gaps": ["a <b>place</b>"],
        "targets": (0..COUNT).map(|number| json!({
            "name": format!("app-{number:05}"), "type": "docker", "prefix": "", "netns": 4_026_600_000_u64 + number as u64,
            "pid": 1000 + number, "starttime": 100, "host": false,
            "network-interfaces": [{ "name": "eth0", "index": 2, "state": "up", "addresses": [format!("10.1.{}.{}/16", number / 256, number % 256)] }],
            "container": { "id": format!("{number:064x}"), "engine": "/run/docker.sock", "state": "running", "images": ["nginx"],
                "labels": { "com.docker.compose.project": format!("shop-{}", number % 10) } },
        })).collect::<Vec<_>>(),
    });
    let list = list.to_string();
    let many = Upstream::start(move |head, mut stream| {
        let path = head.line.split(' ').nth(1).unwrap_or_default();
        match path {
            "/targets" => answer(&stream, "200 OK", "Content-Type: application/json\r\n", &list),
            "/rates" => {
                let told = "event: targets\ndata: 1\n\nevent: rates\ndata: {\"uptime\": 3700, \"rates\": \
                            {\"4026609999\": {\"2\": [1000, 500, 1000000, 500]}}}\n\n";
                write!(
                    stream.get_mut(),
                    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{told}"
                )?;
                thread::sleep(Duration::from_secs(60));
                Ok(())
            }
            path => {
                let at = format!("http://127.0.0.1:{port}{path}");
                let body = output_of(Command::new("curl").args(["--silent", &at]))?;
                let kind = if path.ends_with("css") {
                    "text/css"
                } else {
                    "text/html"
                };
                answer(&stream, "200 OK", &format!("Content-Type: {kind}\r\n"), &body)
            }
        }
    })?;
    let browser = Browser::start()?;
    browser.go(&format!("http://127.0.0.1:{}/", many.port()))?;
    browser.wait_for_text("10,000 targets of 10,000")?;
    browser.wait_for_text("app-00000")?;
    browser.wait_for_text("1 h 1 min")?;
    let drawn = browser.script("return document.querySelectorAll('.row').length")?;
    ensure!(
        drawn.as_u64().is_some_and(|drawn| drawn < 100),
        "{drawn} rows are drawn"
    );
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
    browser.wait_for_text("Capture 1,000 targets")?;
    browser.wait_for_text("1 place could not be looked at")?;
    // And in a narrow window nothing has to be moved sideways but the list itself.
    browser.resize(420, 700)?;
    browser.wait_for("return document.documentElement.scrollWidth <= innerWidth")?;
    let found = browser.barriers()?;
    ensure!(found.is_empty(), "{found:#?}");
    Ok(())
}

/// Into a file that the browser has been given, and what is handed over to other programs.
#[test]
fn captures_are_handed_over() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    // In the place of the window in which somebody says where the file is to go.
    browser.script(
        "window.showSaveFilePicker = async options => { window.asked_ = options.suggestedName; const root = await \
         navigator.storage.getDirectory(); return root.getFileHandle('saved', { create: true }) }; \
         navigator.clipboard.writeText = async text => { window.copied_ = text }",
    )?;
    let name = format!("web({})", web.pid());
    choose(&browser, &name)?;
    browser.type_into("//label[@class='filter']/input", "udp port 4711")?;
    browser.press("Save")?;
    browser.wait_for("return /pcapng: [1-9]/.test(document.querySelector('.saving')?.innerText)")?;
    send(web.pid(), 4711, 100, &[0; 1000])?;
    browser.press("Stop and finish the file")?;
    browser.wait_for_text("stopped by the client")?;
    browser.script(
        "navigator.storage.getDirectory().then(root => root.getFileHandle('saved')).then(handle => handle.getFile())\
         .then(file => file.arrayBuffer()).then(bytes => { window.bytes_ = [...new Uint8Array(bytes)] })",
    )?;
    let bytes: Vec<u8> = serde_json::from_value(browser.wait_for("return window.bytes_")?)?;
    let folder = Folder::new()?;
    let file = folder.file("saved.pcapng");
    std::fs::write(&file, bytes)?;
    assert_eq!(fields(&file)?.len(), 100);
    let asked = browser.script("return asked_")?;
    ensure!(
        asked
            .as_str()
            .is_some_and(|asked| asked.starts_with("web_") && asked.ends_with(".pcapng")),
        "{asked}"
    );

    let address = browser.script("return document.querySelector('dialog a').href")?;
    let address = address.as_str().context("no address")?;
    let expected = format!("packetflix:ws://127.0.0.1:{}/capture?container=", server.port());
    ensure!(
        address.starts_with(&expected) && address.contains("filter=udp%20port%204711"),
        "{address}"
    );

    // The command does what the page has done.
    browser.press("Copy as command")?;
    let command = browser.wait_for("return window.copied_")?;
    let command = command.as_str().context("no text")?;
    let (words, _) = command.rsplit_once(" -w ").context("no file")?;
    let again = folder.file("again.pcapng");
    let line = format!(
        "{} -c 5 -w {}",
        words.replacen("packetflix", "\"$PROGRAM\"", 1),
        again.display()
    );
    let mut shell = Command::new("sh")
        .args(["-c", &line])
        .env("PROGRAM", packetflix_tests::server::program("packetflix")?)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_until(Duration::from_secs(20), || {
        send(web.pid(), 4711, 5, b"x")?;
        Ok(shell.try_wait()?.is_some())
    })?;
    assert_eq!(fields(&again)?.len(), 5, "{line}");
    Ok(())
}

/// What is at the page's paths, whoever asks, also behind a proxy that has put a path before them.
#[test]
fn the_page_is_served_whole_from_here() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let files =
        ["page.js", "worker.js", "page.css", "licences.txt", "icon.svg"].map(|name| format!("/ui/{name}"));
    for path in ["/".to_owned(), "/ui/".to_owned()].iter().chain(&files) {
        let at = format!("http://127.0.0.1:{}{path}", server.port());
        let curl = |more: &[&str]| {
            output_of(
                Command::new("curl")
                    .args(["--silent", "--fail"])
                    .args(more)
                    .arg(&at),
            )
        };
        let (plain, packed) = (curl(&[])?, curl(&["--compressed"])?);
        ensure!(plain == packed && !plain.is_empty(), "{path}");
    }
    let (head, _) = server.ask("GET / HTTP/1.1")?;
    let policy = head.values("content-security-policy").join("; ");
    ensure!(
        policy.starts_with("default-src 'none'") && !policy.contains("unsafe"),
        "{policy}"
    );
    let (head, _) = server.ask("GET /ui HTTP/1.1")?;
    assert_eq!((head.status()?, head.values("location")), (308, vec!["ui/"]));

    // A proxy's path is the page's to find.
    let port = server.port();
    let proxy = Upstream::start(move |head, stream| {
        let path = head.line.split(' ').nth(1).unwrap_or_default();
        let Some(path) = path.strip_prefix("/edge/shark") else {
            return answer(&stream, "404 Not Found", "", "");
        };
        let kind = match path.rsplit('.').next() {
            Some("js") => "text/javascript",
            Some("css") => "text/css",
            _ => "text/html",
        };
        let at = format!("http://127.0.0.1:{port}{path}");
        let body = output_of(Command::new("curl").args(["--silent", "--max-time", "3", &at]));
        answer(
            &stream,
            "200 OK",
            &format!("Content-Type: {kind}\r\n"),
            &body.unwrap_or_default(),
        )
    })?;
    let browser = Browser::start()?;
    for path in ["/edge/shark/", "/edge/shark/ui/"] {
        let asked = || {
            let heads = proxy.heads();
            let rates = heads
                .iter()
                .filter(|head| head.line.starts_with("GET /edge/shark/rates "));
            rates.count()
        };
        let before = asked();
        browser.go(&format!("http://127.0.0.1:{}{path}", proxy.port()))?;
        browser.wait_for("return document.querySelector('h1')")?;
        wait_until(Duration::from_secs(10), || Ok(asked() > before))?;
    }
    Ok(())
}

/// With `--proxy-discovery`, what is at `/` is the discovery service's.
#[test]
fn beside_a_discovery_service_the_page_is_in_its_folder() -> anyhow::Result<()> {
    let upstream = Upstream::start(|_, stream| answer(&stream, "200 OK", "", "GhostWire"))?;
    let port = upstream.port().to_string();
    let server = Server::start(&["--proxy-discovery", "--gw-port", &port])?;
    let (_, body) = server.ask("GET / HTTP/1.1")?;
    assert_eq!(body, b"GhostWire");
    let browser = Browser::start()?;
    browser.go(&format!("{}ui/", url(&server)))?;
    browser.wait_for_text("(1)")?;
    browser.check_console()
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
    let into = match std::env::var_os("UPDATE_DOCS") {
        Some(_) => packetflix_tests::root().join("docs"),
        None => folder.path().to_owned(),
    };
    let talk = Talk::start(&here, &there)?;
    browser.wait_for(
        "return [...document.querySelectorAll('.spark polyline')].some(line => line.getAttribute('points').split(' ').length > 8)",
    )?;
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
        browser.press("Back")?;
        browser.click("//a[.='Captures']")?;
        browser.wait_for("return document.querySelector('.captures')")?;
        check("captures")?;
    }
    Ok(())
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
    browser.press("Watch here")?;
    browser.wait_for(BEGUN)?;
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
    let dropped = "return (document.querySelector('.status').innerText.match(/([\\d,]+) packets? dropped/)?.[1] ?? '0').replaceAll(',', '')";
    // All that was sent is there or accounted for; the last numbers come with the end.
    browser.press("Stop")?;
    browser.wait_for_text("stopped by the client")?;
    let known = || {
        let lost: Value = browser.script(dropped)?;
        anyhow::Ok(total(&browser)? + lost.as_str().context("no number")?.parse::<u64>()?)
    };
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
    browser.click("//div[@id='packets']|//div[contains(@class,'rows')]")?;
    browser.check_console()
}
