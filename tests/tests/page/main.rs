//! The page, in a real browser, with real namespaces and traffic.

mod capture;
mod clock;
mod containers;
mod decode;
mod people;
mod scripted;
mod service;
mod targets;
mod watch;

use std::{net::UdpSocket, path::Path, process::Command, time::Duration};

use anyhow::Context as _;
use packetflix_tests::{
    browser::Browser,
    namespace::{Namespace, inside, of_process, output_of},
    server::{Server, wait_until},
};

/// Whether the stream has begun that is watched: from then on packets are captured. What says that it has not is looked for where it
/// is not shown, too: the view comes a moment after what it shows.
const BEGUN: &str = "const status = document.querySelector('.status'); return status && !status.textContent.includes('waiting for the service')";

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
    // What is drawn anew meanwhile may have it begin elsewhere.
    wait_until(Duration::from_secs(10), || {
        browser.type_into("//input[@type='search']", &keys)?;
        Ok(browser.script("return document.querySelector('[type=search]').value")? == name)
    })
}

/// Marks a target in the list.
fn pick(browser: &Browser, name: &str) -> anyhow::Result<()> {
    search(browser, name)?;
    browser.click(&format!("{}//input", row(name)))?;
    let name = serde_json::json!(name);
    browser
        .wait_for(&format!(
            "return [...document.querySelectorAll('.row')].some(row => row.querySelector('.name')?.innerText.includes({name}) && row.querySelector('input').checked)"
        ))
        .map(drop)
}

/// Chooses a target, and opens what can be captured of it.
fn choose(browser: &Browser, name: &str) -> anyhow::Result<()> {
    pick(browser, name)?;
    browser.press("Capture 1 target")
}

/// Watches what is to be captured, and waits until packets are.
fn watch_here(browser: &Browser) -> anyhow::Result<()> {
    browser.press("Watch here")?;
    browser.wait_for(BEGUN).map(drop)
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
    watch_here(&browser)?;
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

/// How many packets the page says that were lost.
fn lost(browser: &Browser) -> anyhow::Result<u64> {
    let lost = browser.script(
        "return (document.querySelector('.status').innerText.match(/([\\d,]+) packets? dropped/)?.[1] ?? '0').replaceAll(',', '')",
    )?;
    Ok(lost.as_str().context("no number")?.parse()?)
}

/// What tshark is asked of each packet.
const FIELDS: [&str; 7] = [
    "-T",
    "fields",
    "-eframe.time_epoch",
    "-eframe.len",
    "-eudp.dstport",
    "-eframe.interface_name",
    "-eudp.payload",
];

/// What tshark says of the packets of a file.
fn fields(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = output_of(Command::new("tshark").arg("-r").arg(file).args(FIELDS))?;
    Ok(text.lines().map(str::to_owned).collect())
}
