//! What works on this machine, what does not, what that costs, and what to do: tried, not guessed from versions.

mod environment;
mod tries;

use std::fmt;

use serde::Serialize;

use crate::config::Config;

/// The subject of a finding that is about whoever asks, and not about this machine.
const USER: &str = "user";

/// Whether something works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All of it.
    Works,
    /// Captures are possible, but something about them is not.
    Limited,
    /// Not at all.
    Fails,
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub subject: String,
    /// Whether it works.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What it costs that it does not work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// All that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Version of packetflix.
    pub version: &'static str,
    /// Whether captures can work.
    pub captures: bool,
    /// One for each thing that was looked at.
    pub findings: Vec<Finding>,
}

impl Finding {
    fn works(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            subject: subject.into(),
            state: State::Works,
            found: found.into(),
            cost: None,
            remedy: None,
        }
    }

    fn limited(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            state: State::Limited,
            ..Self::works(subject, found)
        }
    }

    fn fails(subject: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            state: State::Fails,
            ..Self::works(subject, found)
        }
    }

    fn costs(self, cost: impl Into<String>) -> Self {
        Self {
            cost: Some(cost.into()),
            ..self
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// Tries everything that captures take, in a network namespace that is made for it. Takes a second or two, needs a
/// runtime of several threads, and leaves nothing behind.
pub async fn run(config: &Config) -> Report {
    let mut findings = environment::look(config);
    let captures = tries::all(config, &mut findings).await;
    Report {
        version: env!("CARGO_PKG_VERSION"),
        captures,
        findings,
    }
}

/// Logs what is known to be missing without trying anything: for the start of the service.
pub fn log_what_does_not_work(config: &Config) {
    for finding in environment::look_at_the_start(config) {
        if finding.state != State::Works {
            let Finding {
                subject,
                found,
                cost,
                remedy,
                ..
            } = finding;
            tracing::warn!(
                subject,
                found,
                cost,
                remedy,
                "something does not work as it should: `packetflix check` says more"
            );
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Works => "works",
            Self::Limited => "limited",
            Self::Fails => "FAILS",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "packetflix {}\n", self.version)?;
        for finding in &self.findings {
            writeln!(
                f,
                "{:<8} {:<18} {}",
                finding.state, finding.subject, finding.found
            )?;
            for (label, text) in [("cost:", &finding.cost), ("do:", &finding.remedy)] {
                if let Some(text) = text {
                    writeln!(f, "{:27} {label:<5} {text}", "")?;
                }
            }
        }
        let is_of_user = self.findings.iter().any(|finding| finding.subject == USER);
        let verdict = match (self.captures, is_of_user) {
            (true, _) => "Captures can work.",
            (false, false) => "Captures cannot work.",
            (false, true) => {
                "Captures cannot work for this user. Whether they can for root, `sudo packetflix check` says."
            }
        };
        writeln!(f, "\n{verdict}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_tells_all_to_people_and_to_programs() {
        let report = Report {
            version: "1.2.3",
            captures: false,
            findings: vec![
                Finding::works("kernel", "Linux 6.18"),
                Finding::fails("hook tcx", "no")
                    .costs("everything")
                    .remedy("update"),
            ],
        };
        assert_eq!(
            report.to_string(),
            "packetflix 1.2.3\n\n\
             works    kernel             Linux 6.18\n\
             FAILS    hook tcx           no\n                            \
             cost: everything\n                            \
             do:   update\n\n\
             Captures cannot work.\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][1]["state"], "fails");
        assert_eq!(json["findings"][0].get("cost"), None);
    }
}
