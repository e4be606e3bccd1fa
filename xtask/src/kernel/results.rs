//! What a guest tells of its tests, line by line, in a file that it shares with the host.

use std::{collections::BTreeSet, fmt, time::Duration};

/// Files in the folder that both share: what is to be done, what came of it, and what each test printed.
pub(crate) const PLAN: &str = "plan";
pub(crate) const RESULTS_FILE: &str = "results";
pub(crate) const LOGS: &str = "logs";

/// How a test tells on which hook it captured, and what it found missing in the kernel and proved to be refused.
const HOOK: &str = "hook: ";
const MISSING: &str = "this kernel has no ";

/// A line of the results.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// The kernel, in its own words.
    Kernel { release: String, version: String },
    /// A test begins.
    Start(String),
    /// A test has ended.
    Test(Test),
    /// All tests of the plan were run.
    End,
}

/// What came of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) area: String,
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
    /// The hooks that it captured on.
    pub(crate) hooks: BTreeSet<String>,
    /// What it found missing in the kernel.
    pub(crate) missing: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Passed,
    Failed,
    TimedOut,
}

impl Outcome {
    const ALL: [(Self, &str); 3] = [
        (Self::Passed, "ok"),
        (Self::Failed, "FAILED"),
        (Self::TimedOut, "TIMED OUT"),
    ];
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Self::ALL.iter().find(|(outcome, _)| outcome == self);
        f.write_str(found.map_or("", |(_, word)| word))
    }
}

impl Test {
    /// A test that printed `text`.
    pub(crate) fn new(area: &str, name: &str, outcome: Outcome, took: Duration, text: &str) -> Self {
        let said = |start: &str| {
            let words = text.lines().filter_map(|line| line.strip_prefix(start));
            words.map(str::to_owned).collect()
        };
        Self {
            area: area.to_owned(),
            name: name.to_owned(),
            outcome,
            took: Duration::from_millis(took.as_millis() as u64),
            hooks: said(HOOK),
            missing: said(MISSING),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel { release, version } => write!(f, "kernel\t{release}\t{version}"),
            Self::Start(name) => write!(f, "start\t{name}"),
            Self::End => f.write_str("end"),
            Self::Test(test) => {
                let joined = |words: &BTreeSet<String>| words.iter().cloned().collect::<Vec<_>>().join(",");
                write!(
                    f,
                    "test\t{}\t{}\t{}\t{}\t{}\t{}",
                    test.area,
                    test.name,
                    test.outcome,
                    test.took.as_millis(),
                    joined(&test.hooks),
                    joined(&test.missing),
                )
            }
        }
    }
}

impl Line {
    /// Reads a line. `None` when it is none.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields[..] {
            ["kernel", release, version] => Some(Self::Kernel {
                release: release.to_owned(),
                version: version.to_owned(),
            }),
            ["start", name] => Some(Self::Start(name.to_owned())),
            ["end"] => Some(Self::End),
            ["test", area, name, outcome, took, hooks, missing] => {
                let split = |text: &str| {
                    let words = text.split(',').filter(|word| !word.is_empty());
                    words.map(str::to_owned).collect()
                };
                Some(Self::Test(Test {
                    area: area.to_owned(),
                    name: name.to_owned(),
                    outcome: Outcome::ALL.iter().find(|(_, word)| *word == outcome)?.0,
                    took: Duration::from_millis(took.parse().ok()?),
                    hooks: split(hooks),
                    missing: split(missing),
                }))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Line, Outcome, Test};

    #[test]
    fn lines_are_read_as_they_were_written() {
        let text = "running 1 test\nhook: tcx\nhook: socket\nhook: tcx\nthis kernel has no TAI clock\nok";
        let test = Test::new(
            "frames",
            "a::b",
            Outcome::TimedOut,
            Duration::from_millis(1234),
            text,
        );
        let lines = [
            Line::Kernel {
                release: "6.1.0-56-amd64".to_owned(),
                version: "#1 SMP Debian 6.1.192-2".to_owned(),
            },
            Line::Start("a::b".to_owned()),
            Line::Test(test),
            Line::End,
        ];
        assert_eq!(
            lines[2].to_string(),
            "test\tframes\ta::b\tTIMED OUT\t1234\tsocket,tcx\tTAI clock"
        );
        for line in lines {
            assert_eq!(Line::parse(&line.to_string()), Some(line));
        }
        assert_eq!(Line::parse("test\tframes\ta::b\tperhaps\t1\t\t"), None);
    }
}
