//! How soon somebody sees the page, in a real browser, beside a page of one line.

use std::time::Duration;

use anyhow::Context as _;
use packetflix_tests::{
    browser::Browser,
    process::Sleeper,
    server::Server,
    upstream::{Upstream, answer},
};

use crate::{
    Args, interrupt,
    table::{Table, Times},
};

/// How often each page is loaded, if nothing else is asked for.
const ROUNDS: u32 = 30;

/// Notes when the first target has been drawn: in the frame after the one that it was put into.
const NOTE: &str = "new MutationObserver((_, observer) => { if (!document.querySelector('.row .name')) return; \
                    observer.disconnect(); requestAnimationFrame(() => requestAnimationFrame(() => { window.drawn_ = performance.now() })) \
                    }).observe(document, { childList: true, subtree: true })";

/// Milliseconds since the browser was told to go there, once both are known: something is seen, and so is a target.
const TOLD: &str = "const [seen] = performance.getEntriesByName('first-contentful-paint'); \
                    return seen && window.drawn_ && [seen.startTime, drawn_]";

/// What is put beside it.
const STATIC: &str =
    "<!DOCTYPE html><title>static</title><div class=row><span class=name>a line</span></div>";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rounds = args.rounds(ROUNDS);
    let _target = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let line = Upstream::start(|_, stream| answer(&stream, "200 OK", "Content-Type: text/html\r\n", STATIC))?;
    let contestants = [("a static line", line.port()), ("the page", server.port())];
    let browser = Browser::start()?;
    browser.run_before(NOTE)?;
    let mut times = contestants.map(|_| (Times::default(), Times::default()));
    // What comes first is slower: the browser's own first page, and the server's first scan.
    for round in 0..=rounds {
        interrupt::check()?;
        for ((_, port), (seen, drawn)) in contestants.iter().zip(&mut times) {
            browser.forget_cache()?;
            browser.go(&format!("http://127.0.0.1:{port}/"))?;
            let told = browser.wait_for(TOLD)?;
            if round > 0 {
                let time = |at: usize| {
                    told[at]
                        .as_f64()
                        .map(|time| Duration::from_secs_f64(time / 1000.0))
                };
                seen.push(time(0).context("no time")?);
                drawn.push(time(1).context("no time")?);
            }
        }
    }
    let mut table = Table::new(format!(
        "The page in a browser that has nothing of it, {rounds} times"
    ));
    for ((name, _), (seen, drawn)) in contestants.iter().zip(times) {
        table.column(*name);
        table.figure("until something is seen, p50", "ms", seen.p50());
        table.figure("until something is seen, max", "ms", seen.max());
        table.figure("until a target is seen, p50", "ms", drawn.p50());
        table.figure("until a target is seen, max", "ms", drawn.max());
    }
    table.print();
    Ok(())
}
