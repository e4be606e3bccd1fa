//! Tables for a terminal.

use std::fmt::Write as _;

use super::{Figure, Scenario};

/// A scenario as a table: a row for each figure and one for its ratios, a column for each contestant.
pub fn text(scenario: &Scenario) -> String {
    let rows = rows(scenario);
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0))
        .collect();

    let mut text = format!("\n{}: {}\n", scenario.name, scenario.title);
    for row in rows {
        let mut line = String::new();
        for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Names to the left, numbers to the right.
            let _ = if at < 2 {
                write!(line, "{cell:<width$}  ")
            } else {
                write!(line, "{cell:>width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "Rounds: {}; each cell is the median (the least–the most). {}",
        scenario.rounds, scenario.method
    );
    text
}

/// The cells of a scenario's table, with a head.
pub(super) fn rows(scenario: &Scenario) -> Vec<Vec<String>> {
    let head = [String::new(), "unit".to_owned()];
    let mut rows = vec![head.into_iter().chain(scenario.contestants.clone()).collect()];
    for figure in &scenario.figures {
        rows.push(row(scenario, named(figure), figure.unit.clone(), |contestant| {
            Some(figure.spread(contestant)?.to_string())
        }));
        if let Some(reference) = scenario.reference.as_ref().filter(|_| figure.is_ratio_told) {
            let ratio = |contestant: &str| match contestant == reference {
                true => Some("1".to_owned()),
                false => Some(figure.ratio(contestant, reference)?.to_string()),
            };
            let has_ratio = |contestant: &String| {
                contestant != reference && figure.ratio(contestant, reference).is_some()
            };
            if scenario.contestants.iter().any(has_ratio) {
                let name = format!("… as a ratio to {reference}");
                rows.push(row(scenario, name, "×".to_owned(), ratio));
            }
        }
    }
    rows
}

fn row(
    scenario: &Scenario,
    name: String,
    unit: String,
    cell: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    let cells = scenario
        .contestants
        .iter()
        .map(|contestant| cell(contestant).unwrap_or_else(|| "–".to_owned()));
    [name, unit].into_iter().chain(cells).collect()
}

/// With an arrow to where it is better.
fn named(figure: &Figure) -> String {
    match figure.is_less_better {
        Some(true) => format!("{} ↓", figure.name),
        Some(false) => format!("{} ↑", figure.name),
        None => figure.name.clone(),
    }
}
