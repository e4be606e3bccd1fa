//! Figures for people: one per line, with its unit, and a column for each situation in which it was measured.

use std::time::Duration;

/// A table that grows by columns.
pub(crate) struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    unit: &'static str,
    /// By the column's number.
    values: Vec<(usize, f64)>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self {
            title: title.into(),
            columns: Vec::new(),
            rows: Vec::new(),
        }
    }

    /// Begins a column, to which all figures belong until the next.
    pub(crate) fn column(&mut self, name: impl Into<String>) {
        self.columns.push(name.into());
    }

    pub(crate) fn figure(&mut self, name: &'static str, unit: &'static str, value: f64) {
        let at = self.columns.len().saturating_sub(1);
        match self.rows.iter_mut().find(|row| row.name == name) {
            Some(row) => row.values.push((at, value)),
            None => self.rows.push(Row {
                name,
                unit,
                values: vec![(at, value)],
            }),
        }
    }

    pub(crate) fn print(&self) {
        let names = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let units = self.rows.iter().map(|row| row.unit.len()).max().unwrap_or(0);
        let wide = |column: &String| column.len().max(9) + 2;
        print!("\n{}\n{:names$}  {:units$}", self.title, "", "");
        for column in &self.columns {
            print!("{column:>width$}", width = wide(column));
        }
        println!();
        for row in &self.rows {
            print!("{:names$}  {:units$}", row.name, row.unit);
            for (at, column) in self.columns.iter().enumerate() {
                let value = row.values.iter().find(|(of, _)| *of == at);
                let text = value.map_or_else(|| "-".to_owned(), |(_, value)| number(*value));
                print!("{text:>width$}", width = wide(column));
            }
            println!();
        }
    }
}

/// Three digits that count, and more only before the point.
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        size if size < 10.0 => 2,
        size if size < 100.0 => 1,
        _ => 0,
    };
    if value.fract() == 0.0 {
        return format!("{value:.0}");
    }
    format!("{value:.decimals$}")
}

/// Times that something took.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The middle one, in milliseconds.
    pub(crate) fn p50(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).map_or(f64::NAN, millis)
    }

    /// The longest, in milliseconds.
    pub(crate) fn max(&self) -> f64 {
        self.0.iter().max().map_or(f64::NAN, millis)
    }
}

fn millis(time: &Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Figures that something had, of one unit.
#[derive(Default)]
pub(crate) struct Figures(Vec<f64>);

impl Figures {
    pub(crate) fn push(&mut self, figure: f64) {
        self.0.push(figure);
    }

    /// The middle one.
    pub(crate) fn p50(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The smallest.
    pub(crate) fn min(&self) -> f64 {
        self.sorted().first().copied().unwrap_or(f64::NAN)
    }

    /// The largest.
    pub(crate) fn max(&self) -> f64 {
        self.sorted().last().copied().unwrap_or(f64::NAN)
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted
    }
}
