//! What benchmarks have measured.

use serde::{Deserialize, Serialize};

/// All that one run has measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// What.
    pub scenarios: Vec<Scenario>,
}

/// The machine on which was measured, and what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// How many CPUs there are.
    pub cpus: usize,
    /// Memory of the machine.
    pub memory_mib: u64,
    /// Version of packetflix.
    pub version: String,
    /// When.
    pub date: String,
}

/// Contestants side by side under one kind of load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scenario {
    /// What it is chosen by.
    pub name: String,
    /// What it is about.
    pub title: String,
    /// How it is measured, in a sentence.
    pub method: String,
    /// Who takes part.
    pub contestants: Vec<String>,
    /// How often each thing was measured.
    pub rounds: u32,
    /// The contestant to whose figures ratios are told.
    pub reference: Option<String>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// One thing that was measured of several contestants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Of what there are so many.
    pub unit: String,
    /// Whether less is better, or more; or neither.
    pub is_less_better: Option<bool>,
    /// Whether its ratio to the reference means something.
    pub is_ratio_told: bool,
    /// By contestant.
    pub series: Vec<Series>,
}

/// What was measured of one contestant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// Of whom.
    pub contestant: String,
    /// One per round, in the order of rounds.
    pub values: Vec<f64>,
}

/// What a figure is.
#[derive(Clone, Copy, Debug)]
pub struct FigureKind {
    /// What it is.
    pub name: &'static str,
    /// Of what there are so many.
    pub unit: &'static str,
    /// Whether less is better, or more; or neither.
    pub is_less_better: Option<bool>,
    /// Whether its ratio to the reference means something.
    pub is_ratio_told: bool,
}

impl Scenario {
    /// Nothing is measured yet.
    pub fn new(name: &str, title: &str, method: &str, rounds: u32, reference: Option<&str>) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            method: method.to_owned(),
            contestants: Vec::new(),
            rounds,
            reference: reference.map(str::to_owned),
            figures: Vec::new(),
        }
    }

    /// Takes in what was measured of a contestant in a round.
    pub fn record(&mut self, contestant: &str, figure: &FigureKind, value: f64) {
        if !self.contestants.iter().any(|name| name == contestant) {
            self.contestants.push(contestant.to_owned());
        }
        let at = self.figures.iter().position(|known| known.name == figure.name);
        let at = at.unwrap_or_else(|| {
            self.figures.push(Figure {
                name: figure.name.to_owned(),
                unit: figure.unit.to_owned(),
                is_less_better: figure.is_less_better,
                is_ratio_told: figure.is_ratio_told,
                series: Vec::new(),
            });
            self.figures.len() - 1
        });
        let series = &mut self.figures[at].series;
        match series.iter_mut().find(|series| series.contestant == contestant) {
            Some(series) => series.values.push(value),
            None => series.push(Series {
                contestant: contestant.to_owned(),
                values: vec![value],
            }),
        }
    }

    /// Prints the median of each series, with its smallest and largest value.
    pub fn print(&self) {
        println!("\n{}: {}\n{}", self.name, self.title, self.method);
        for figure in &self.figures {
            println!("{} ({})", figure.name, figure.unit);
            for series in &figure.series {
                let mut values = series.values.clone();
                values.sort_unstable_by(f64::total_cmp);
                let [min, max] =
                    [values.first(), values.last()].map(|value| value.copied().unwrap_or(f64::NAN));
                let median = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
                println!("    {:20} {median:14.3} {min:14.3} {max:14.3}", series.contestant);
            }
        }
    }
}
