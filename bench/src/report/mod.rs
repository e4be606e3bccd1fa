//! What benchmarks have found out, and its forms: tables as text and Markdown, JSON, and plots. Pure but for
//! [`output`].

mod markdown;
pub mod output;
mod plots;
mod spread;
mod svg;
mod text;

use serde::{Deserialize, Serialize};

pub use markdown::{markdown, replace_results};
pub use plots::{Plot, plots};
pub use spread::{Spread, number};
pub use text::text;

/// All that was measured on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What, in the order in which it is told.
    pub scenarios: Vec<Scenario>,
}

/// What the figures depend on beside the programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// How many there are.
    pub cpus: usize,
    /// All of its memory.
    pub memory_mib: u64,
    /// Of packetflix.
    pub version: String,
    /// Day of the last run.
    pub date: String,
}

/// One situation, in which all contestants were measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scenario {
    /// Short and unique; what stands before the first `-` is its group.
    pub name: String,
    /// For people.
    pub title: String,
    /// How it was measured, in a sentence or two.
    pub method: String,
    /// In the order in which they are told.
    pub contestants: Vec<String>,
    /// How often each was measured.
    pub rounds: u32,
    /// The contestant to which ratios are told.
    pub reference: Option<String>,
    /// In the order in which they are told.
    pub figures: Vec<Figure>,
}

/// One thing that was measured of all contestants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// For people.
    pub name: String,
    /// May be empty.
    pub unit: String,
    /// Absent where neither is.
    pub is_less_better: Option<bool>,
    /// Whether the ratio to the reference is told, too.
    pub is_ratio_told: bool,
    /// One for each contestant that has it.
    pub series: Vec<Series>,
}

/// What was measured of one contestant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// Its name.
    pub contestant: String,
    /// One per round, in the order of rounds; not a number where there was none in a round.
    #[serde(with = "spread::nullable")]
    pub values: Vec<f64>,
}

/// What a figure is, before there is any.
#[derive(Clone, Copy, Debug)]
pub struct FigureKind {
    /// As [`Figure::name`].
    pub name: &'static str,
    /// As [`Figure::unit`].
    pub unit: &'static str,
    /// As [`Figure::is_less_better`].
    pub is_less_better: Option<bool>,
    /// As [`Figure::is_ratio_told`].
    pub is_ratio_told: bool,
}

impl Report {
    /// Takes in what was measured before, but for the scenarios that were measured anew. Nothing is taken from
    /// another machine; tells whether it is the same.
    pub fn merge(&mut self, before: Self) -> bool {
        let is_same = self.machine.kernel == before.machine.kernel
            && self.machine.cpus == before.machine.cpus
            && self.machine.memory_mib == before.machine.memory_mib;
        if is_same {
            let anew = std::mem::replace(&mut self.scenarios, before.scenarios);
            for scenario in anew {
                let place = self.scenarios.iter_mut().find(|one| one.name == scenario.name);
                match place {
                    Some(place) => *place = scenario,
                    None => self.scenarios.push(scenario),
                }
            }
        }
        is_same
    }

    /// The names of groups, each once.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups = Vec::new();
        for scenario in &self.scenarios {
            if !groups.contains(&scenario.group()) {
                groups.push(scenario.group());
            }
        }
        groups
    }

    /// The scenarios of a group.
    pub fn of_group(&self, group: &str) -> impl Iterator<Item = &Scenario> {
        self.scenarios
            .iter()
            .filter(move |scenario| scenario.group() == group)
    }
}

impl Scenario {
    /// Nothing has been measured yet.
    pub fn new(
        name: impl Into<String>,
        title: impl Into<String>,
        method: impl Into<String>,
        reference: Option<&str>,
    ) -> Self {
        Self {
            name: name.into(),
            title: title.into(),
            method: method.into(),
            contestants: Vec::new(),
            rounds: 0,
            reference: reference.map(str::to_owned),
            figures: Vec::new(),
        }
    }

    /// Adds what was measured of a contestant in a round: once per round and figure, so that what has the same place
    /// in two series is of the same round. A value that could not be had is told as [`f64::NAN`].
    pub fn record(&mut self, contestant: &str, figure: &FigureKind, value: f64) {
        if !self.contestants.iter().any(|name| name == contestant) {
            self.contestants.push(contestant.to_owned());
        }
        let at = self.figures.iter().position(|one| one.name == figure.name);
        let at = at.unwrap_or_else(|| {
            self.figures.push(figure.into());
            self.figures.len() - 1
        });
        let all = &mut self.figures[at].series;
        let of = all.iter().position(|series| series.contestant == contestant);
        let of = of.unwrap_or_else(|| {
            all.push(Series {
                contestant: contestant.to_owned(),
                values: Vec::new(),
            });
            all.len() - 1
        });
        all[of].values.push(value);
        self.rounds = self.rounds.max(all[of].values.len() as u32);
    }

    /// What it is one of several of: its name up to the first `-`.
    pub fn group(&self) -> &str {
        self.name
            .split_once('-')
            .map_or(self.name.as_str(), |(group, _)| group)
    }
}

impl From<&FigureKind> for Figure {
    fn from(kind: &FigureKind) -> Self {
        Self {
            name: kind.name.to_owned(),
            unit: kind.unit.to_owned(),
            is_less_better: kind.is_less_better,
            is_ratio_told: kind.is_ratio_told,
            series: Vec::new(),
        }
    }
}

impl Figure {
    /// What was measured of a contestant.
    pub fn values(&self, contestant: &str) -> &[f64] {
        let series = self.series.iter().find(|series| series.contestant == contestant);
        series.map_or(&[], |series| &series.values)
    }

    /// The same, summed up.
    pub fn spread(&self, contestant: &str) -> Option<Spread> {
        Spread::of(self.values(contestant).iter().copied())
    }

    /// How many times as much a contestant has as another, each time of the same round.
    pub fn ratio(&self, contestant: &str, reference: &str) -> Option<Spread> {
        let pairs = self.values(contestant).iter().zip(self.values(reference));
        Spread::of(pairs.map(|(value, of)| value / of))
    }
}
