//! Metrics as a strict reader of OpenMetrics 1.0 takes them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, bail, ensure};

use crate::server::Server;

/// All that a server counts at one time.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Type by name.
    families: BTreeMap<String, String>,
    /// Value by name and labels as they are written.
    samples: BTreeMap<String, f64>,
}

/// A family while it is read.
#[derive(Debug, Default)]
struct Family {
    name: String,
    help: bool,
    kind: Option<String>,
    unit: Option<String>,
    /// The last bucket's bound and value.
    bucket: Option<(f64, f64)>,
}

impl Metrics {
    /// Asks a server.
    ///
    /// # Errors
    /// When it answers with anything but OpenMetrics.
    pub fn of(server: &Server) -> anyhow::Result<Self> {
        let (head, body) = server.ask("GET /metrics HTTP/1.1")?;
        ensure!(head.status()? == 200, "{head:?}");
        assert_eq!(
            head.values("content-type"),
            ["application/openmetrics-text; version=1.0.0; charset=utf-8"]
        );
        Self::parse(&String::from_utf8(body)?)
    }

    /// Reads them.
    ///
    /// # Errors
    /// At the first thing that is not as it should be.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let lines = text.strip_suffix("# EOF\n").context("no end")?;
        let mut metrics = Self::default();
        let mut family = Family::default();
        for line in lines.lines() {
            let read = match line.strip_prefix("# ") {
                Some(said) => metrics.describe(&mut family, said),
                None => metrics.sample(&mut family, line),
            };
            read.with_context(|| line.to_owned())?;
        }
        metrics.close(&family)?;
        Ok(metrics)
    }

    /// The value of a sample, which is named with its labels, such as `a_total{b="c"}`.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, sample: &str) -> anyhow::Result<f64> {
        let value = self.samples.get(sample).copied();
        value.with_context(|| format!("no {sample}: {:#?}", self.samples))
    }

    /// The value of a sample that counts something.
    ///
    /// # Errors
    /// When there is none, or it is no whole number.
    pub fn count(&self, sample: &str) -> anyhow::Result<u64> {
        let value = self.get(sample)?;
        ensure!(value >= 0.0 && value.fract() == 0.0, "{sample} {value}");
        Ok(value as u64)
    }

    /// Names of all samples, without labels.
    pub fn names(&self) -> BTreeSet<&str> {
        let samples = self.samples.keys();
        samples
            .map(|sample| sample.split('{').next().unwrap_or(sample))
            .collect()
    }

    /// Checks that no count is lower than it was.
    ///
    /// # Errors
    /// At the first that is.
    pub fn check_grown_since(&self, before: &Self) -> anyhow::Result<()> {
        for (sample, value) in &before.samples {
            let name = sample.split('{').next().unwrap_or(sample);
            let counts = ["_total", "_bucket", "_count", "_sum"];
            if counts.iter().any(|end| name.ends_with(end)) {
                ensure!(self.get(sample)? >= *value, "{sample} went down from {value}");
            }
        }
        Ok(())
    }

    fn describe(&mut self, family: &mut Family, said: &str) -> anyhow::Result<()> {
        let mut words = said.splitn(3, ' ');
        let (what, name, value) = (words.next(), words.next(), words.next());
        let (what, name) = (what.context("nothing")?, name.context("no name")?);
        let value = value.filter(|value| !value.is_empty()).context("no value")?;
        if name != family.name {
            self.close(family)?;
            ensure!(is_name(name), "no name: {name}");
            ensure!(!self.families.contains_key(name), "it is there twice");
            *family = Family {
                name: name.to_owned(),
                ..Family::default()
            };
        }
        match what {
            "HELP" => ensure!(!std::mem::replace(&mut family.help, true), "two helps"),
            "TYPE" => {
                ensure!(
                    ["counter", "gauge", "histogram", "info"].contains(&value),
                    "{value}"
                );
                ensure!(family.kind.replace(value.to_owned()).is_none(), "two types");
                self.families.insert(name.to_owned(), value.to_owned());
            }
            "UNIT" => {
                ensure!(family.unit.replace(value.to_owned()).is_none(), "two units");
                ensure!(
                    name.ends_with(&format!("_{value}")),
                    "the unit is not in the name"
                );
            }
            _ => bail!("no such word"),
        }
        Ok(())
    }

    fn sample(&mut self, family: &mut Family, line: &str) -> anyhow::Result<()> {
        let (sample, value) = line.rsplit_once(' ').context("no value")?;
        let value: f64 = value.parse()?;
        let (name, labels) = match sample.split_once('{') {
            Some((name, rest)) => (name, labels(rest.strip_suffix('}').context("no }")?)?),
            None => (sample, Vec::new()),
        };
        let end = name
            .strip_prefix(family.name.as_str())
            .context("of another family")?;
        let is_counted = match (family.kind.as_deref().context("no type")?, end) {
            ("counter", "_total") | ("histogram", "_count" | "_sum" | "_bucket") => true,
            ("gauge", "") => false,
            ("info", "_info") => {
                assert!((value - 1.0).abs() < f64::EPSILON);
                false
            }
            (kind, end) => bail!("{end} of a {kind}"),
        };
        ensure!(!is_counted || value >= 0.0, "below zero");
        if end == "_bucket" {
            family.take_bucket(&labels, value)?;
        }
        ensure!(
            self.samples.insert(sample.to_owned(), value).is_none(),
            "it is there twice"
        );
        Ok(())
    }

    /// Checks a family at its end.
    fn close(&self, family: &Family) -> anyhow::Result<()> {
        let Some(kind) = &family.kind else {
            ensure!(family.name.is_empty(), "{family:?}");
            return Ok(());
        };
        ensure!(family.help, "{family:?}");
        if kind == "histogram" {
            let (bound, all) = family.bucket.as_ref().context("no bucket")?;
            let count = self.get(&format!("{}_count", family.name))?;
            self.get(&format!("{}_sum", family.name))?;
            ensure!(*bound == f64::INFINITY && *all == count, "{family:?}: {count}");
        }
        Ok(())
    }
}

impl Family {
    /// Bounds and values of buckets grow.
    fn take_bucket(&mut self, labels: &[(String, String)], value: f64) -> anyhow::Result<()> {
        let bound = labels.iter().find(|(name, _)| name == "le").context("no le")?;
        let bound = bound.1.parse()?;
        if let Some((lower, below)) = &self.bucket {
            ensure!(bound > *lower && value >= *below, "{lower} {below}");
        }
        self.bucket = Some((bound, value));
        Ok(())
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && name
            .chars()
            .all(|one| one.is_ascii_lowercase() || one.is_ascii_digit() || one == '_')
}

/// Labels such as `a="b",c="d"`, without quotes in their values.
fn labels(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let mut labels = Vec::new();
    for label in text.split(',') {
        let (name, value) = label.split_once('=').context("no label")?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = value.context("no quotes")?;
        ensure!(is_name(name) && !value.contains(['"', '\\', '\n']), "{label}");
        ensure!(labels.iter().all(|(known, _)| known != name), "{name} twice");
        labels.push((name.to_owned(), value.to_owned()));
    }
    Ok(labels)
}
