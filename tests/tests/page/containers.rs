//! Real containers, which talk to each other, and one that is hostile.

use std::process::Command;

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::Browser,
    docker::{Docker, IMAGE},
    namespace::output_of,
    server::Server,
};

use crate::{choose, fields, row, search, url, wait_for_total, watch_here};

/// What everyone finds out who looks into a container: that it is there, what is said to it, and by whom, and all of that in a file.
#[test]
fn real_containers_are_listed_watched_and_saved() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let run = |name: &str, more: &[&str]| docker.run(&[&["run", "--detach", "--name", name], more].concat());
    let web = ["--label", "com.docker.compose.project=shop", IMAGE];
    let serves = ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/"];
    run("web", &[&web[..], &serves].concat())?;
    run("db", &web)?;
    let address = docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web"])?;
    let ask = |path: &str| {
        let at = format!("http://{address}/{path}");
        // Most of what is asked for is not there, which is an answer, too.
        let _ = docker.run(&["exec", "db", "/bin/busybox", "wget", "-q", "-O", "/dev/null", &at]);
    };
    let server = Server::start(&[&format!("--engine-socket={}", docker.socket().display())])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;

    // The list, with all that is known of them, and with what they say.
    browser.click("//select/option[@value='compose']")?;
    search(&browser, IMAGE)?;
    browser.wait_for_text("project shop (2)")?;
    let cell = |name: &str, of: &str| {
        browser.wait_for(&format!(
            "return [...document.querySelectorAll('.row')].find(row => row.querySelector('.name')?.innerText === '{name}')?.querySelector('.{of}').innerText"
        ))
    };
    for (of, expected) in [
        ("type", "docker"),
        ("image", IMAGE),
        ("addresses", &address),
        ("links", "eth0"),
    ] {
        let told = cell("web", of)?;
        ensure!(
            told.as_str().is_some_and(|told| told.contains(expected)),
            "{of}: {told}"
        );
    }
    let age = cell("web", "age")?;
    ensure!(age.as_str().is_some_and(|age| age.ends_with(" s")), "{age}");
    ask("bin/busybox");
    browser.wait_for(
        "return [...document.querySelectorAll('.row')].some(row => row.querySelector('.name')?.innerText === 'web' && !row.querySelector('.number').innerText.startsWith('0'))",
    )?;

    // What is said, on the one interface and up to the limit that somebody asked for.
    choose(&browser, "web")?;
    browser.click("//dialog//label[normalize-space()='eth0']/input")?;
    browser.type_into("//label[@class='filter']/input", "tcp port 80")?;
    browser.type_into("//label[normalize-space()='packets']/input", "12")?;
    watch_here(&browser)?;
    ask("some/thing");
    browser.wait_for_text("GET /some/thing HTTP/1.1")?;
    browser.wait_for_text("HTTP/1.1 404 Not Found")?;
    let talks = |row: &str| {
        let all = ["source", "destination"].map(|of| {
            browser.script(&format!(
                "return [...document.querySelectorAll('.row')].find(row => row.innerText.includes('{row}')).querySelector('.{of}').innerText"
            ))
        });
        let [from, to] = all;
        anyhow::Ok((from?, to?))
    };
    assert_eq!(talks("GET /some/thing")?, ("db".into(), "web".into()));
    browser.press("conversations")?;
    browser.wait_for(
        "return [...document.querySelectorAll('.conversations tr')].some(row => row.innerText.includes('web:80') && row.innerText.includes(' ms'))",
    )?;
    ask("");
    browser.wait_for_text("12 packets")?;
    browser.wait_for("return document.querySelector('.ends .end')?.innerText.includes('limit')")?;

    // A file of what is said from now on, until the container ends, beside what tshark is given of the same.
    browser.script("window.confirm = () => true; delete window.showSaveFilePicker; delete Window.prototype.showSaveFilePicker")?;
    browser.press("Close watch")?;
    browser.press("Capture 1 target")?;
    browser.type_into("//label[normalize-space()='packets']/input", &"\u{8}".repeat(2))?;
    browser.press("Save")?;
    browser.wait_for("return /pcapng: [1-9]/.test(document.querySelector('.saving')?.innerText)")?;
    let beside = crate::capture::BesideTshark::start(&server, &["web", "-i", "eth0", "-f", "tcp port 80"])?;
    for path in ["one", "bin/busybox", "three"] {
        ask(path);
    }
    docker.run(&["kill", "web"])?;
    browser.wait_for("return document.querySelector('.saving')?.innerText.includes('has ended')")?;
    let saved = browser.downloaded()?;
    let seen = fields(&saved)?;
    ensure!(seen.len() > 100, "{} packets", seen.len());
    assert_eq!(seen, beside.rest()?);
    let asked = output_of(Command::new("tshark").arg("-r").arg(&saved).args([
        "-Y",
        "http.request",
        "-T",
        "fields",
        "-e",
        "http.request.uri",
    ]))?;
    assert_eq!(asked, "/one\n/bin/busybox\n/three\n");
    browser.press("Close")?;
    // It is looked at as it was before.
    browser.wait_for_text("Capture …")?;
    search(&browser, IMAGE)?;
    browser.wait_for_text("project shop (1)")?;
    hostile_names_stay_names(&docker, &browser)?;
    browser.check_console()
}

/// What a container may choose of itself: a label, what its interface is called, and what it says.
fn hostile_names_stay_names(docker: &Docker, browser: &Browser) -> anyhow::Result<()> {
    const LABEL: &str =
        "com.docker.compose.project=<img src=x onerror=document.title='owned'>\u{202e}\u{e0041}";
    // Of the fifteen bytes that there are.
    const LINK: &str = "<b>&\"'\u{202e}";
    let begin = ["run", "--detach", "--name", "evil", "--cap-add", "NET_ADMIN"];
    docker.run(&[&begin[..], &["--label", LABEL, IMAGE]].concat())?;
    let inside = |words: &[&str]| docker.run(&[&["exec", "evil", "/bin/busybox"][..], words].concat());
    for words in [
        &["ip", "link", "set", "eth0", "down"][..],
        &["ip", "link", "set", "eth0", "name", LINK],
        &["ip", "link", "set", LINK, "up"],
    ] {
        inside(words)?;
    }
    search(browser, "evil")?;
    browser.wait_for_text("project <img src=x onerror=document.title='owned'>\\u{202e}\\u{e0041} (1)")?;
    // The service has its own way with bytes that are not seen.
    browser.wait_for_text("<b>&\"'\\xe2\\x80\\xae")?;
    browser.click(&format!("{}//input", row("evil")))?;
    browser.press("Capture 1 target")?;
    // What was captured of the other stays as it was, but for its interface, which is none of this one's.
    browser.type_into("//label[@class='filter']/input", "\u{e009}a\u{e000}icmp or udp")?;
    browser.click("//dialog//label[contains(., '<b>')]/input")?;
    watch_here(browser)?;
    let gateway = docker.run(&["inspect", "--format", "{{.NetworkSettings.Gateway}}", "evil"])?;
    // Nobody answers; what is asked is what matters.
    let _ = inside(&[
        "timeout",
        "1",
        "busybox",
        "nslookup",
        "<script>.\u{202e}example",
        &gateway,
    ]);
    let _ = inside(&["ping", "-c", "1", "-W", "1", &gateway]);
    wait_for_total(browser, 1)?;
    browser.wait_for("return document.querySelector('.row .interface')?.innerText.includes('<b>')")?;
    let made = browser.script("return document.querySelectorAll('main :is(img, b, i, script)').length")?;
    assert_eq!(made, 0);
    ensure!(browser.script("return document.title")? == "packetflix");
    let shown = browser.script("return document.body.innerText")?;
    let shown = shown.as_str().context("no text")?;
    ensure!(
        !shown.contains('\u{202e}') && !shown.contains('\u{e0041}'),
        "{shown:?}"
    );
    Ok(())
}
