//! What is served, where, and to whom.

use std::process::Command;

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::{Browser, ENTER},
    folder::Folder,
    namespace::output_of,
    process::Sleeper,
    reverse_proxy::ReverseProxy,
    server::{Server, program},
    upstream::{Upstream, answer},
};

use crate::{choose, fields, send, total, url, wait_for_total, watch_here};

/// What is at the page's paths, whoever asks.
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

    Ok(())
}

/// Behind a path that a reverse proxy has put before the service's, and beside a discovery service, to which all of `/` belongs
/// but the page's folder: the page finds the service, looks into a container, and hands over what leads there.
#[test]
fn the_page_finds_the_service_behind_any_path() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let discovery = Upstream::start(|_, stream| answer(&stream, "200 OK", "", "GhostWire"))?;
    let port = discovery.port().to_string();
    let (alone, beside) = (
        Server::start(&[])?,
        Server::start(&["--proxy-discovery", "--gw-port", &port])?,
    );
    let (_, body) = beside.ask("GET / HTTP/1.1")?;
    assert_eq!(body, b"GhostWire");
    let behind = |server: &Server| ReverseProxy::to(server.port(), "/edge/shark");
    let (alone_behind, beside_behind) = (behind(&alone)?, behind(&beside)?);
    let browser = Browser::start()?;
    let name = format!("web({})", web.pid());
    for (port, path) in [
        (alone.port(), "/ui/"),
        (beside.port(), "/ui/"),
        (alone_behind.port(), "/edge/shark/"),
        (alone_behind.port(), "/edge/shark/ui/"),
        (beside_behind.port(), "/edge/shark/ui/"),
        // This leads into the folder.
        (beside_behind.port(), "/edge/shark/ui"),
    ] {
        browser.go(&format!("http://127.0.0.1:{port}{path}"))?;
        choose(&browser, &name).with_context(|| path.to_owned())?;
        let before = format!(
            "127.0.0.1:{port}{}",
            path.trim_end_matches('/').trim_end_matches("/ui")
        );
        let address = browser.script("return document.querySelector('dialog a').href")?;
        ensure!(
            address
                .as_str()
                .is_some_and(|address| address.starts_with(&format!("packetflix:ws://{before}/capture?"))),
            "{address}"
        );
        browser.script("navigator.clipboard.writeText = async text => { window.copied_ = text }")?;
        browser.press("Copy as command")?;
        let command = browser.wait_for("return window.copied_")?;
        let words = format!("packetflix capture --server http://{before} ");
        ensure!(
            command
                .as_str()
                .is_some_and(|command| command.starts_with(&words)),
            "{command}"
        );
        watch_here(&browser)?;
        send(web.pid(), 4711, 5, b"x")?;
        wait_for_total(&browser, 5)?;
        browser.click("//a[.='Targets']")?;
        // The rates come there, too.
        browser.wait_for("return document.querySelector('.row .age')?.innerText")?;
        browser.check_console()?;
        // Nothing is to be lost that anybody misses.
        browser.script(
            "window.addEventListener('beforeunload', event => event.stopImmediatePropagation(), true)",
        )?;
    }
    Ok(())
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
    watch_here(&browser)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
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

/// A token that ends takes nothing away of what was captured with it, and nothing is captured unasked with another.
#[test]
fn a_watch_outlives_its_token() -> anyhow::Result<()> {
    const OLD: &str = "old-0123456789abcdef";
    const NEW: &str = "new-0123456789abcdef";
    let web = Sleeper::unshared_as("web", &[])?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("old {OLD} discover capture\n"))?;
    let flag = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &flag])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='password']", &format!("{OLD}{ENTER}"))?;
    let name = format!("web({})", web.pid());
    choose(&browser, &name)?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    let before = total(&browser)?;
    std::fs::write(&tokens, format!("new {NEW} discover capture\n"))?;
    browser.wait_for("return document.querySelector('input[type=password]')")?;
    browser.wait_for("return document.querySelector('.ends .end')?.innerText")?;
    ensure!(total(&browser)? >= before);
    browser.press("Save what is here")?;
    let saved = browser.downloaded()?;
    ensure!(fields(&saved)?.len() as u64 >= before);
    browser.type_into("//input[@type='password']", &format!("{NEW}{ENTER}"))?;
    browser.wait_for("return !document.querySelector('input[type=password]')")?;
    // It is still what it was: nothing new came, and nothing was asked for.
    ensure!(
        browser
            .script("return document.querySelector('.ends .end')?.innerText")?
            .is_string()
    );
    assert_eq!(total(&browser)?, before);
    // What somebody starts is captured with the token that they have.
    browser.script("window.confirm = () => true")?;
    browser.click("//a[.='Targets']")?;
    browser.press("Capture 1 target")?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.check_console()
}

/// A token that ends leaves what is said of a file that was being saved.
#[test]
fn a_token_that_ends_is_told_where_it_ends_a_file() -> anyhow::Result<()> {
    const TOKEN: &str = "old-0123456789abcdef";
    let web = Sleeper::unshared_as("web", &[])?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("old {TOKEN} discover capture\n"))?;
    let flag = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &flag])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.script("delete window.showSaveFilePicker; delete Window.prototype.showSaveFilePicker")?;
    browser.type_into("//input[@type='password']", &format!("{TOKEN}{ENTER}"))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.press("Save")?;
    browser.wait_for("return /pcapng: [1-9]/.test(document.querySelector('.saving')?.innerText)")?;
    std::fs::write(&tokens, "new new-0123456789abcdef\n")?;
    browser.wait_for("return document.querySelector('.sign-in')")?;
    browser.wait_for("return document.querySelector('.saving')?.innerText.includes('token')")?;
    browser.downloaded()?;
    browser.check_console()
}

/// What can be no token is told at the form, and nobody is signed in with it.
#[test]
fn what_can_be_no_token_is_refused_at_the_form() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", "a a-0123456789abcdef\n")?;
    let tokens = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &tokens])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.wait_for_text("a token is needed")?;
    for (token, told) in [
        ("t\u{f6}ken-0123456789", "only characters of"),
        ("token\u{20ac}0123456789", "only characters of"),
        ("two words of a token", "only characters of"),
        (&"x".repeat(70_000), "16,384 characters at most"),
    ] {
        // By a script, since that many keys take a while.
        browser.script(&format!(
            "const field = document.querySelector('input[type=password]'); field.value = {}; field.dispatchEvent(new Event('input', {{ bubbles: true }}))",
            serde_json::json!(token)
        ))?;
        browser.press("Sign in")?;
        browser.wait_for_text(told)?;
        browser.wait_for_text("a token is needed")?;
        ensure!(browser.script("return sessionStorage.length")? == 0);
    }
    browser.check_console()
}

/// Who may capture but not list types in what it is called.
#[test]
fn without_a_list_targets_are_captured_by_name() -> anyhow::Result<()> {
    const TAKE: &str = "take-0123456789abcdef";
    const CHIEF: &str = "chief-0123456789abcdef";
    const LOOK: &str = "look-0123456789abcdef";
    let web = Sleeper::unshared_as("web", &[])?;
    let folder = Folder::new()?;
    let tokens = folder.put_secret(
        "tokens",
        &format!("take {TAKE} capture\nchief {CHIEF} admin\nlook {LOOK} discover\n"),
    )?;
    let tokens = format!("--token-file={}", tokens.display());
    let server = Server::start(&["--listen=127.0.0.1", &tokens])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='password']", &format!("{TAKE}{ENTER}"))?;
    browser.wait_for_text("take may not discover targets, so that none is listed here")?;
    ensure!(browser.script("return document.body.innerText.includes('looking for')")? == false);
    let name = format!("web({})", web.pid());
    browser.type_into("//form[@class='by-name']//input", &format!("{name}{ENTER}"))?;
    watch_here(&browser)?;
    send(web.pid(), 4711, 5, b"x")?;
    wait_for_total(&browser, 5)?;
    browser.script("window.confirm = () => true")?;
    browser.press("Sign out")?;
    browser.type_into("//input[@type='password']", &format!("{CHIEF}{ENTER}"))?;
    browser.wait_for_text("chief may not discover targets")?;
    browser.click("//a[.='Captures']")?;
    browser.wait_for_text("Nobody captures anything")?;
    ensure!(browser.script("return document.body.innerText.includes('may not')")? == false);
    // Who may list but not capture is told so where that was tried.
    browser.press("Sign out")?;
    browser.type_into("//input[@type='password']", &format!("{LOOK}{ENTER}"))?;
    browser.click("//a[.='Targets']")?;
    browser.script("delete window.showSaveFilePicker; delete Window.prototype.showSaveFilePicker")?;
    choose(&browser, &name)?;
    browser.press("Save")?;
    browser.wait_for(
        "return document.querySelector('.saving.error')?.innerText.includes('look may not capture')",
    )?;
    browser.press("Watch here")?;
    browser.wait_for(
        "return document.querySelector('.ends .error')?.innerText.includes('look may not capture')",
    )?;
    browser.check_console()
}

/// What is typed there is a name, and no option of the command.
#[test]
fn typed_name_is_no_option_of_the_command() -> anyhow::Result<()> {
    const TAKE: &str = "take-0123456789abcdef";
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("take {TAKE} capture\n"))?;
    let server = Server::start(&[
        "--listen=127.0.0.1",
        &format!("--token-file={}", tokens.display()),
    ])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    browser.type_into("//input[@type='password']", &format!("{TAKE}{ENTER}"))?;
    browser.wait_for_text("take may not discover targets")?;
    browser.type_into("//form[@class='by-name']//input", &format!("--quiet{ENTER}"))?;
    browser.script("navigator.clipboard.writeText = async text => { window.copied_ = text }")?;
    browser.press("Copy as command")?;
    let command = browser.wait_for("return window.copied_")?;
    let command = command.as_str().context("no text")?;
    let line = command.replacen("packetflix", "\"$PROGRAM\"", 1);
    let line = line.replacen("PACKETFLIX_TOKEN=TOKEN", &format!("PACKETFLIX_TOKEN={TAKE}"), 1);
    let output = Command::new("sh")
        .args(["-c", &line])
        .current_dir(folder.path())
        .env("PROGRAM", program("packetflix")?)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && told.contains("there is no target --quiet"),
        "{command}: {told}"
    );
    browser.check_console()
}
