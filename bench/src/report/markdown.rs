//! Tables for the documentation.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};

use super::{Report, Scenario, plots, text::rows};

const BEGIN: &str = "<!-- results: begin -->";
const END: &str = "<!-- results: end -->";

/// Replaces what stands between the markers of a document.
///
/// # Errors
/// When it has not each marker once, in their order.
pub fn replace_results(document: &str, results: &str) -> anyhow::Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .with_context(|| format!("no {BEGIN}"))?;
    let (_, after) = rest
        .split_once(END)
        .with_context(|| format!("no {END} after {BEGIN}"))?;
    ensure!(
        ![before, after]
            .iter()
            .any(|part| part.contains(BEGIN) || part.contains(END)),
        "more than one {BEGIN} or {END}"
    );
    Ok(format!("{before}{BEGIN}\n\n{}\n\n{END}{after}", results.trim()))
}

/// The whole report: for each group its plots, which are files of the folder `plots_in`, and a table for each of its
/// scenarios.
pub fn markdown(report: &Report, plots_in: &str) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "packetflix {}, Linux {}, {} CPUs, {} MiB of memory; last run on {}.\n\n\
         Each cell is the median of all rounds (the least–the most). ↓ less is better, ↑ more is better.\n",
        escaped(&machine.version),
        escaped(&machine.kernel),
        machine.cpus,
        machine.memory_mib,
        escaped(&machine.date)
    );
    let plots = plots(report);
    for group in report.groups() {
        for plot in plots.iter().filter(|plot| plot.group == group) {
            let _ = write!(
                text,
                "\n![{}]({plots_in}/{})\n",
                escaped(&plot.title),
                plot.file_name()
            );
        }
        for scenario in report.of_group(group) {
            table(&mut text, scenario);
        }
    }
    text
}

fn table(text: &mut String, scenario: &Scenario) {
    let _ = write!(
        text,
        "\n### `{}`: {}\n\n{} Rounds: {}.\n\n",
        scenario.name.replace('`', ""),
        escaped(&scenario.title),
        escaped(&scenario.method),
        scenario.rounds
    );
    for (number, row) in rows(scenario).iter().enumerate() {
        text.push('|');
        for cell in row {
            let _ = write!(text, " {} |", escaped(cell));
        }
        text.push('\n');
        if number == 0 {
            let rules = ["---", "---"]
                .into_iter()
                .chain(scenario.contestants.iter().map(|_| "---:"));
            text.push('|');
            for rule in rules {
                let _ = write!(text, "{rule}|");
            }
            text.push('\n');
        }
    }
}

/// A text that means nothing in Markdown, on one line.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for char in text.chars() {
        match char {
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '~' => escaped.extend(['\\', char]),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '\n' | '\r' => escaped.push(' '),
            _ => escaped.push(char),
        }
    }
    escaped
}
