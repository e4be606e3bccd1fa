//! A computer whose clock, or time zone, is another than the service's.

use std::{
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{browser::Browser, namespace::output_of, process::Sleeper, server::Server};

use crate::{choose, send, url, wait_for_total, watch_here};

/// What a time may be off that was told right: it was some while ago.
const PATIENCE: u64 = 60;

const DAY: u64 = 86_400;

#[test]
fn times_are_the_services_on_whatever_clock() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    for (hours, told) in [
        (0, None),
        (5, Some("5 h 0 min ahead of the service's")),
        (-5, Some("5 h 0 min behind the service's")),
    ] {
        let browser = Browser::start()?;
        browser.set_time_zone("Asia/Kolkata")?;
        // Half a minute more than five hours, so that these are whole in spite of what an answer takes.
        let by = hours * 3_606_000;
        browser.run_before(&format!(
            "{{ const Real = Date; globalThis.Date = class extends Real {{ constructor(...given) {{ super(...(given.length ? given : \
             [Real.now() + {by}])) }} static now() {{ return Real.now() + {by} }} }}; \
             window.drawn_ = []; const draw = CanvasRenderingContext2D.prototype.fillText; \
             CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {{ drawn_.push(text); return draw.call(this, text, ...rest) }} }}"
        ))?;
        browser.go(&url(&server))?;
        choose(&browser, &format!("web({})", web.pid()))?;
        browser.script("delete window.showSaveFilePicker; delete Window.prototype.showSaveFilePicker")?;
        watch_here(&browser)?;
        send(web.pid(), 4711, 5, b"x")?;
        wait_for_total(&browser, 5)?;
        let shown = browser.script("return document.querySelector('.clock')?.innerText ?? null")?;
        match told {
            Some(told) => ensure!(
                shown.as_str().is_some_and(|shown| shown.contains(told)),
                "{shown}"
            ),
            None => ensure!(shown.is_null(), "{shown}"),
        }
        // The first time that the details tell is the packet's.
        browser.click("//div[@id='packets-0']")?;
        let time =
            browser.wait_for("return document.querySelector('.layers p')?.innerText.split(' UTC')[0]")?;
        is_now(time.as_str().context("no text")?)?;
        // Names of files that somebody sorts by.
        browser.press("Save what is here")?;
        let file = browser.downloaded()?;
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let (_, time) = name
            .trim_end_matches(".pcapng")
            .rsplit_once('_')
            .context(name.clone())?;
        let (date, time) = time.trim_end_matches('Z').split_once('T').context(name.clone())?;
        is_now(&format!("{date} {}:{}:{}", &time[..2], &time[2..4], &time[4..]))?;
        // What is drawn beside the rates.
        browser.press("rates")?;
        browser.wait_for("return drawn_.some(text => /^\\d\\d:\\d\\d:\\d\\d$/.test(text))")?;
        send(web.pid(), 4711, 5, b"x")?;
        let drawn = browser.script("return drawn_.filter(text => /^\\d\\d:\\d\\d:\\d\\d$/.test(text))")?;
        for time in drawn.as_array().context("no list")? {
            is_about_now(time.as_str().context("no text")?)?;
        }
        browser.click("//a[.='Targets']")?;
        let age = browser.wait_for("return document.querySelector('.row .age')?.innerText")?;
        ensure!(
            age.as_str()
                .is_some_and(|age| age.ends_with(" s") || age.ends_with(" min")),
            "{age}"
        );
        browser.check_console()?;
    }
    Ok(())
}

fn since_1970() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Fails if a date and time, of UTC, was not just now.
fn is_now(text: &str) -> anyhow::Result<()> {
    let seconds = output_of(Command::new("date").args(["--utc", "+%s", "--date", text]))?;
    let off = since_1970()?.abs_diff(seconds.trim().parse()?);
    ensure!(
        off < PATIENCE,
        "{text} is {:?} from now",
        Duration::from_secs(off)
    );
    Ok(())
}

/// Fails if a time of the day, of UTC, is none that a plot of just now has.
fn is_about_now(text: &str) -> anyhow::Result<()> {
    let parts: Vec<u64> = text.split(':').map(str::parse).collect::<Result<_, _>>()?;
    let seconds = parts.iter().fold(0, |sum, part| 60 * sum + part);
    let off = (since_1970()? % DAY).abs_diff(seconds);
    // Midnight may be between them.
    ensure!(
        off.min(DAY - off) < 10 * PATIENCE,
        "{text} is drawn, {off} s away"
    );
    Ok(())
}
