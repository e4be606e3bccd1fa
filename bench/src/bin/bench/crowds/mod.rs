//! What many captures and many clients cost, and idle ones; what a slow client does to others; how fast captures start.

mod account;
mod captures;
mod clients;
mod contestant;
pub(crate) mod figures;
mod idle;
mod lanes;
mod measure;
mod slow;
mod start;
mod streams;
mod together;
mod traffic;

use anyhow::{Context as _, ensure};
use packetflix_bench::report::{Report, Scenario};
use packetflix_tests::{bpf_run::take_run_times, client::Refused};

use self::contestant::Contestant;
use crate::{Args, crowd::Folder, interrupt::check};

/// A round takes minutes.
const ROUNDS: u32 = 3;

/// Scenarios by their names, or what these begin with.
const SCENARIOS: &[(&str, Measure)] = &[
    ("captures", captures::run),
    ("clients", clients::run),
    ("idle", idle::run),
    ("slow", slow::run),
    ("start", start::run),
    ("together", together::run),
];

/// Takes the number of rounds, and what is to be in the names of scenarios.
type Measure = fn(&mut Report, u32, &str) -> anyhow::Result<()>;

pub(crate) fn run(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let part = args.scenario.as_deref().unwrap_or_default();
    // `start-row` is one of those of `start`.
    let chosen = |name: &str| name.contains(part) || part.starts_with(&format!("{name}-"));
    ensure!(
        SCENARIOS.iter().any(|(name, _)| chosen(name)),
        "there is no scenario {part}: there is {}",
        names().join(", ")
    );
    // Names of namespaces are gone with us; to be covered before servers start, that are to see them.
    let _names = Folder::mount()?;
    let _taken = take_run_times().context("the kernel takes no times")?;
    for (name, measure) in SCENARIOS.iter().filter(|(name, _)| chosen(name)) {
        measure(report, args.rounds(ROUNDS), part).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

fn names() -> Vec<&'static str> {
    SCENARIOS.iter().map(|(name, _)| *name).collect()
}

/// Measures each contestant in each round, each time with another first, and puts the scenario into the report. Who
/// refuses a capture takes no further part, and that is told.
fn in_turns(
    report: &mut Report,
    mut scenario: Scenario,
    rounds: u32,
    mut measure: impl FnMut(&mut Scenario, Contestant) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    eprintln!("bench: {}", scenario.name);
    let all = contestant::ALL;
    let mut refusing = Vec::new();
    for round in 0..rounds as usize {
        for number in 0..all.len() {
            check()?;
            let contestant = all[(round + number) % all.len()];
            if refusing.contains(&contestant) {
                continue;
            }
            match measure(&mut scenario, contestant) {
                Err(error) if error.downcast_ref::<Refused>().is_some() => {
                    let told = format!(" {} could not take part: {error:#}.", contestant.name());
                    eprintln!("bench:{told}");
                    scenario.method.push_str(&told);
                    scenario.contestants.push(contestant.name().to_owned());
                    refusing.push(contestant);
                }
                result => {
                    result.with_context(|| format!("{}, round {}", contestant.name(), round + 1))?;
                }
            }
        }
    }
    report.scenarios.push(scenario);
    Ok(())
}
