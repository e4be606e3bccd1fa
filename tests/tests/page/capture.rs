//! What is asked for, handed over and saved, and the list of captures.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    browser::{Browser, ENTER},
    folder::Folder,
    namespace::output_of,
    process::Sleeper,
    server::{Server, percent_encoded, program, wait_until},
};
use serde_json::json;

use crate::{FIELDS, choose, fields, scripted::Scripted, send, url, watch_here};

/// A tshark that is given the same capture, by our client.
pub(crate) struct BesideTshark {
    client: Child,
    tshark: Child,
}

impl BesideTshark {
    /// Starts it with what is to be captured, and waits until it captures.
    pub(crate) fn start(server: &Server, what: &[&str]) -> anyhow::Result<Self> {
        let mut client = Command::new(program("packetflix")?)
            .args(["capture", "-w", "-"])
            .args(what)
            .env("PACKETFLIX_SERVER", format!("http://127.0.0.1:{}", server.port()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stream = client.stdout.take().context("no stream")?;
        let tshark = Command::new("tshark")
            .args(["-r", "-"])
            .args(FIELDS)
            .stdin(stream)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut first = String::new();
        let mut log = BufReader::new(client.stderr.as_mut().context("no log")?);
        log.read_line(&mut first)?;
        ensure!(first.contains("capturing"), "{first}");
        Ok(Self { client, tshark })
    }

    /// Ends the capture, and gives what tshark has seen.
    fn seen(self) -> anyhow::Result<Vec<String>> {
        kill(Pid::from_raw(i32::try_from(self.client.id())?), Signal::SIGINT)?;
        self.rest()
    }

    /// What tshark has seen of a capture that ends by itself.
    pub(crate) fn rest(mut self) -> anyhow::Result<Vec<String>> {
        self.client.wait()?;
        let output = self.tshark.wait_with_output()?;
        Ok(String::from_utf8(output.stdout)?
            .lines()
            .map(str::to_owned)
            .collect())
    }
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
    let beside = BesideTshark::start(&server, &[&format!("pid:{}", web.pid())])?;
    send(web.pid(), 4711, 200, b"x")?;
    // What the kernel has counted is in the stream when that ends.
    browser.press("Stop and finish the file")?;
    browser.wait_for_text("stopped by the client")?;
    let saved = browser.downloaded()?;
    let seen = fields(&saved)?;
    // That nobody listens there is told with the packet that it is told of.
    let is_sent = |line: &&String| line.contains("\t43\t4711\tlo");
    assert_eq!(seen.iter().filter(is_sent).count(), 200);
    assert_eq!(seen, beside.seen()?);
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

/// A file is told of until it is finished, whatever is looked at, and is not given up unasked.
#[test]
fn a_file_that_is_being_saved_is_never_out_of_sight() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.script("delete window.showSaveFilePicker; delete Window.prototype.showSaveFilePicker")?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.press("Save")?;
    let runs = "return /pcapng: [1-9]/.test(document.querySelector('.saving')?.innerText)";
    browser.wait_for(runs)?;
    let is_asked = || {
        browser.script(
            "const leaving = new Event('beforeunload', { cancelable: true }); dispatchEvent(leaving); return leaving.defaultPrevented",
        )
    };
    browser.press("Close")?;
    browser.wait_for(&format!(
        "return !document.querySelector('dialog') && (() => {{ {runs} }})()"
    ))?;
    assert_eq!(is_asked()?, true);
    browser.click("//a[.='Captures']")?;
    browser.wait_for("return document.querySelector('.captures') && document.querySelector('.saving')")?;
    send(web.pid(), 4711, 7, b"x")?;
    browser.press("Stop and finish the file")?;
    browser
        .wait_for("return document.querySelector('.saving').innerText.includes('stopped by the client')")?;
    let saved = fields(&browser.downloaded()?)?;
    assert_eq!(
        saved
            .iter()
            .filter(|line| line.contains("\t43\t4711\tlo"))
            .count(),
        7
    );
    assert_eq!(is_asked()?, false);
    browser.press("Dismiss")?;
    browser.wait_for("return !document.querySelector('.saving')")?;
    browser.check_console()
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

    // Whatever can be asked for is.
    for (limit, value) in [
        ("packets", "7"),
        ("duration", "5m"),
        ("size", "3MiB"),
        ("bytes of each packet", "96"),
    ] {
        browser.type_into(&format!("//label[normalize-space()='{limit}']/input"), value)?;
    }
    browser.click("//label[normalize-space()='no promiscuous mode']/input")?;
    let address = browser.script("return document.querySelector('dialog a').href")?;
    ensure!(
        address
            .as_str()
            .is_some_and(|address| address.ends_with("&packets=7&duration=5m&bytes=3MiB&snaplen=96&chaste=")),
        "{address}"
    );
    for (limit, len) in [
        ("packets", 1),
        ("duration", 2),
        ("size", 4),
        ("bytes of each packet", 2),
    ] {
        browser.type_into(
            &format!("//label[normalize-space()='{limit}']/input"),
            &"\u{8}".repeat(len),
        )?;
    }
    browser.click("//label[normalize-space()='no promiscuous mode']/input")?;

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
        .env("PROGRAM", program("packetflix")?)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    wait_until(Duration::from_secs(20), || {
        send(web.pid(), 4711, 5, b"x")?;
        Ok(shell.try_wait()?.is_some())
    })?;
    assert_eq!(fields(&again)?.len(), 5, "{line}");

    // So does the call of curl. Not every curl speaks WebSocket: what it would say by itself, it is told to say.
    browser.script("delete window.copied_")?;
    browser.press("Copy for curl")?;
    let call = browser.wait_for("return window.copied_")?;
    let call = call.as_str().context("no text")?;
    let (words, address) = call.split_once(" --output ").context("no file")?;
    let address = address.split_once(" 'ws:").context("no address")?.1;
    let answer = folder.file("answer");
    let line = format!(
        "exec {words} --http1.1 --include --max-time 20 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' \
         -H 'Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==' --output {} 'http:{address}",
        answer.display()
    );
    let mut shell = Command::new("sh")
        .args(["-c", &line])
        .stderr(Stdio::null())
        .spawn()?;
    let has = |bytes: &[u8]| {
        let answer = std::fs::read(&answer).unwrap_or_default();
        answer.windows(bytes.len()).any(|part| part == bytes)
    };
    let come = wait_until(Duration::from_secs(20), || {
        send(web.pid(), 4712, 5, b"not this")?;
        send(web.pid(), 4711, 5, b"by curl")?;
        Ok(has(b"by curl"))
    });
    shell.kill()?;
    shell.wait()?;
    come.context(line.clone())?;
    ensure!(has(b"HTTP/1.1 101 ") && !has(b"not this"), "{line}");
    browser.check_console()
}

/// What a command for a terminal is made of, others have called as they like.
#[test]
fn names_in_commands_hide_nothing() -> anyhow::Result<()> {
    let names = [
        "web\u{1b}[2J",
        "two\nlines",
        "txt\u{202e}exe",
        "zero\u{200b}width",
        "-dash",
        "!not",
        "tag\u{e0041}ged",
        "filler\u{3164}",
        "label:app=x",
        "host",
    ];
    let targets: Vec<_> = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            json!({ "name": name, "type": "docker", "prefix": "", "netns": 4_026_540_000_u64 + at as u64, "host": false,
                    "network-interfaces": [{ "name": "-dash", "index": 1, "state": "up", "addresses": [] },
                                           { "name": "any", "index": 2, "state": "up", "addresses": [] },
                                           { "name": "e\u{1b}'0", "index": 3, "state": "up", "addresses": [] }] })
        })
        .collect();
    let list = json!({ "scanned-at": 1, "node-name": "many", "engines": [], "gaps": [], "targets": targets });
    let service = Scripted::start(move || list.to_string(), |_| Ok(()))?;
    let browser = Browser::start()?;
    browser.go(&service.url())?;
    browser.script("navigator.clipboard.writeText = async text => { window.copied_ = text }")?;
    browser.click("//div[@role='row'][.//*[@class='group']]//*[@class='group']")?;
    browser.press(&format!("Capture {} targets", names.len()))?;
    let copied = || {
        browser.script("delete window.copied_")?;
        browser.press("Copy as command")?;
        let copied = browser.wait_for("return window.copied_")?;
        anyhow::Ok(copied.as_str().context("no text")?.to_owned())
    };
    let command = copied()?;
    ensure!(
        command.chars().all(|sign| (' '..='~').contains(&sign)),
        "{command:?}"
    );
    ensure!(command.contains("_and_7_more_"), "{command}");
    for at in 0..names.len() {
        ensure!(
            command.contains(&format!(" netns:{}", 4_026_540_000_u64 + at as u64)),
            "{command}"
        );
    }
    let choose = |at: usize| browser.click(&format!("(//dialog//fieldset)[1]//div//label[{at}]/input"));
    for (at, expected) in [
        (1, " -i=-dash "),
        (2, " -i any -i any "),
        (3, r" -i $'e\033\'0' "),
    ] {
        choose(at)?;
        let command = copied()?;
        ensure!(command.contains(expected), "{command}");
        if at == 2 {
            let address = browser.script("return document.querySelector('dialog a').href")?;
            ensure!(
                address
                    .as_str()
                    .is_some_and(|address| address.contains("nif=any%2Fany")),
                "{address}"
            );
        }
        choose(at)?;
    }
    browser.check_console()
}

#[test]
fn refusals_and_faulty_filters_are_told_at_their_place() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&["--max-captures", "0"])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    // Those that are offered can be taken.
    let offered = browser
        .script("return [...document.querySelectorAll('#common-filters option')].map(one => one.value)")?;
    let offered = offered.as_array().context("no list")?;
    ensure!(offered.len() > 3, "{offered:?}");
    for filter in offered {
        let filter = filter.as_str().context("no text")?;
        let (status, answer) = server.get(&format!("/filter?expr={}", percent_encoded(filter)))?;
        assert_eq!(status, 200, "{answer}");
    }
    browser.type_into("//label[@class='filter']/input", "tcp tcp")?;
    let told = browser.wait_for("return document.querySelector('#filter-error').innerText")?;
    ensure!(
        told.as_str().is_some_and(|told| told.contains("tcp tcp")),
        "{told}"
    );
    ensure!(
        browser.script("return [...document.querySelectorAll('button')].find(one => one.innerText === 'Watch here').disabled")? == true
    );
    // One that is longer than a request may be has no answer of ours.
    let put = |script: &str| {
        browser.script(&format!(
            "const input = document.querySelector('label.filter input'); \
             Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(input, {script}); \
             input.dispatchEvent(new InputEvent('input', {{ bubbles: true }}))"
        ))
    };
    put("'x'.repeat(500000)")?;
    browser.wait_for(
        "return document.querySelector('#filter-error').innerText.includes('more than the service reads of a request')",
    )?;
    put("'tcp'")?;
    browser.wait_for("return document.querySelector('#filter-error').innerText === '' || null")?;
    browser.press("Watch here")?;
    let told = browser.wait_for("return document.querySelector('.ends .error')?.innerText")?;
    let told = told.as_str().context("no text")?;
    ensure!(told.contains("captures"), "{told}");
    server.wait_for_log("reason=")?;
    let sentence = told.split_once(": ").context("no sentence")?.1;
    ensure!(server.log().contains(sentence), "{told}\n{}", server.log());

    // The same for a file, of which nothing is left where it was to be.
    browser.script(
        "window.showSaveFilePicker = async () => { const root = await navigator.storage.getDirectory(); \
         return root.getFileHandle('refused', { create: true }) }",
    )?;
    browser.click("//a[.='Targets']")?;
    browser.press("Capture 1 target")?;
    browser.press("Save")?;
    let told = browser.wait_for("return document.querySelector('.saving.error')?.innerText")?;
    ensure!(
        told.as_str().is_some_and(|told| told.contains(sentence)),
        "{told}"
    );
    browser.script(
        "(async () => { const names = []; for await (const name of (await navigator.storage.getDirectory()).keys()) names.push(name); \
         window.names_ = names })()",
    )?;
    assert_eq!(browser.wait_for("return window.names_")?, json!([]));
    browser.check_console()
}

#[test]
fn captures_are_listed_and_stopped() -> anyhow::Result<()> {
    const ADMIN: &str = "admin-0123456789abcdef";
    let web = Sleeper::unshared_as("web", &[])?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("chief {ADMIN} admin discover capture\n"))?;
    let tokens = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &tokens])?;
    let browser = Browser::start()?;
    let name = format!("web({})", web.pid());
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='password']", &format!("{ADMIN}{ENTER}"))?;
    choose(&browser, &name)?;
    watch_here(&browser)?;
    // Whose capture it is makes no difference.
    browser.click("//a[.='Captures']")?;
    browser.click(&format!(
        "//tr[contains(., 'chief') and contains(., '{name}')]//button"
    ))?;
    browser.wait_for_text("Nobody captures anything")?;
    browser.click("//a[.='Watch']")?;
    browser.wait_for_text("ended by the operator")
}
