//! Which figures are drawn, and what belongs together in one plot.

use super::{Figure, Report, Scenario, Spread, svg};

/// What the names of figures begin with that are drawn: those for which one looks first.
const DRAWN: &[&str] = &[
    "CPU of the capture per million packets",
    "CPU per",
    "CPU while idle",
    "memory (VmRSS)",
    "packets sent per second",
    "throughput",
    "request and answer",
    "delay",
    "lost",
    "packets missing",
    "until the first packet",
];

/// One figure of all scenarios of a group.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Name of the group.
    pub group: String,
    /// Name of the figure, and where.
    pub title: String,
    /// Unit, and what is better.
    pub axis: String,
    /// One for each scenario.
    pub parts: Vec<Part>,
    figure: String,
}

/// The bars of one scenario.
#[derive(Clone, Debug)]
pub struct Part {
    /// What the scenario is.
    pub title: String,
    /// In the order of contestants.
    pub bars: Vec<Bar>,
}

/// What one contestant has.
#[derive(Clone, Debug)]
pub struct Bar {
    /// Its name.
    pub contestant: String,
    /// Number of its colour, the same in all plots of a report.
    pub colour: usize,
    /// What it has.
    pub spread: Spread,
}

impl Plot {
    /// Unique in a report.
    pub fn file_name(&self) -> String {
        format!("{}.svg", slug(&format!("{} {}", self.group, self.figure)))
    }

    /// As a document of its own.
    pub fn svg(&self) -> String {
        svg::draw(self)
    }
}

/// All plots of a report: those that have something other than zero to show.
pub fn plots(report: &Report) -> Vec<Plot> {
    let mut contestants: Vec<&str> = Vec::new();
    for contestant in report.scenarios.iter().flat_map(|one| &one.contestants) {
        if !contestants.contains(&contestant.as_str()) {
            contestants.push(contestant);
        }
    }
    let mut plots = Vec::new();
    for group in report.groups() {
        let scenarios: Vec<&Scenario> = report.of_group(group).collect();
        let mut drawn: Vec<&Figure> = Vec::new();
        for figure in scenarios.iter().flat_map(|scenario| &scenario.figures) {
            if is_drawn(figure) && !drawn.iter().any(|one| one.name == figure.name) {
                drawn.push(figure);
            }
        }
        plots.extend(
            drawn
                .into_iter()
                .filter_map(|figure| plot(group, figure, &scenarios, &contestants)),
        );
    }
    plots
}

fn is_drawn(figure: &Figure) -> bool {
    DRAWN.iter().any(|begin| figure.name.starts_with(begin))
}

fn plot(group: &str, figure: &Figure, scenarios: &[&Scenario], contestants: &[&str]) -> Option<Plot> {
    let parts: Vec<Part> = scenarios
        .iter()
        .filter_map(|scenario| part(scenario, &figure.name, contestants))
        .collect();
    let is_something = |bar: &Bar| bar.spread.max > 0.0;
    if !parts.iter().flat_map(|part| &part.bars).any(is_something) {
        return None;
    }
    let better = match figure.is_less_better {
        Some(true) => "less is better",
        Some(false) => "more is better",
        None => "",
    };
    let axis: Vec<&str> = [figure.unit.as_str(), better]
        .into_iter()
        .filter(|text| !text.is_empty())
        .collect();
    Some(Plot {
        group: group.to_owned(),
        title: format!("{group}: {}", figure.name),
        axis: axis.join(", "),
        parts,
        figure: figure.name.clone(),
    })
}

fn part(scenario: &Scenario, figure: &str, contestants: &[&str]) -> Option<Part> {
    let figure = scenario.figures.iter().find(|one| one.name == figure)?;
    let bar = |contestant: &String| {
        Some(Bar {
            contestant: contestant.clone(),
            colour: contestants.iter().position(|name| name == contestant)?,
            spread: figure.spread(contestant)?,
        })
    };
    let bars: Vec<Bar> = scenario.contestants.iter().filter_map(bar).collect();
    (!bars.is_empty()).then(|| Part {
        title: scenario.title.clone(),
        bars,
    })
}

/// Letters, digits and hyphens only.
fn slug(text: &str) -> String {
    let words: Vec<String> = text
        .split(|char: char| !char.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}
