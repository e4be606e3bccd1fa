//! Captures of packetflix beside those of what people use else, on one pair of virtual Ethernet devices: what arrives, what
//! it costs, and what it costs those that are captured.

pub(crate) mod bed;
pub(crate) mod contestant;
mod flood;
mod reader;
mod websocket;
mod workload;

use anyhow::{Context as _, ensure};
use packetflix_bench::report::{FigureKind, Report, Scenario};

use self::{
    bed::{Bed, Counters},
    contestant::{Contestant, Outcome, Running, Wish},
};
use crate::{
    Args, interrupt,
    usage::{Memory, Usage},
};

/// Each round takes a few minutes.
const ROUNDS: u32 = 5;

/// To whose figures ratios are told.
pub(crate) const REFERENCE: &str = "tcpdump";

/// Scenarios by their names.
const SCENARIOS: &[(&str, Run)] = &[
    ("rate-64", flood::rate_64),
    ("rate-512", flood::rate_512),
    ("rate-1500", flood::rate_1500),
    ("rate-imix", flood::rate_imix),
    ("sent-64", flood::sent_64),
    ("sent-1500", flood::sent_1500),
    ("bulk", workload::bulk),
    ("latency", workload::latency),
    ("selective", flood::selective),
    ("delay", flood::delay),
];

type Run = fn(&Context<'_>, &str) -> anyhow::Result<Scenario>;

/// What all scenarios need.
pub(crate) struct Context<'a> {
    pub(crate) bed: &'a Bed,
    pub(crate) rounds: u32,
    /// How many packets, or other things, are asked for.
    pub(crate) packets: Option<u64>,
    pub(crate) contestants: Vec<Contestant>,
}

pub(crate) fn run(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    let wanted =
        |name: &str, part: &Option<String>| part.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut contestants = Contestant::ALL.to_vec();
    contestants.retain(|contestant| wanted(contestant.name(), &args.contestant));
    ensure!(!contestants.is_empty(), "there is no such contestant");
    let mut scenarios = SCENARIOS.to_vec();
    scenarios.retain(|(name, _)| wanted(name, &args.scenario));
    ensure!(!scenarios.is_empty(), "there is no such scenario");

    let bed = Bed::new()?;
    let context = Context {
        bed: &bed,
        rounds: args.rounds(ROUNDS),
        packets: args.packets,
        contestants,
    };
    for (name, run) in scenarios {
        eprintln!("bench: {name}");
        let scenario = run(&context, name).with_context(|| name.to_owned())?;
        report.scenarios.push(scenario);
    }
    Ok(())
}

impl Context<'_> {
    /// Measures each contestant in each round, in another order each time, and hands on what was measured, round by
    /// round. The first round counts for nothing.
    ///
    /// # Errors
    /// When measuring fails, or upon an interruption.
    pub(crate) fn measure<T>(
        &self,
        mut measure: impl FnMut(Contestant) -> anyhow::Result<T>,
        mut take_in: impl FnMut(&[(Contestant, T)]),
    ) -> anyhow::Result<()> {
        for round in 0..=self.rounds {
            let mut order = self.contestants.clone();
            let turn = round as usize % order.len();
            order.rotate_left(turn);
            let mut measured = Vec::new();
            for contestant in order {
                interrupt::check()?;
                let result = measure(contestant).with_context(|| contestant.name().to_owned())?;
                measured.push((contestant, result));
            }
            if round > 0 {
                // Always in the same order, whatever the round's.
                measured.sort_by_key(|(contestant, _)| {
                    self.contestants.iter().position(|known| known == contestant)
                });
                take_in(&measured);
            }
        }
        Ok(())
    }
}

/// What was measured of a capture while something was done.
pub(crate) struct Measured<T> {
    pub(crate) done: T,
    pub(crate) outcome: Outcome,
    /// Of the contestant's processes.
    pub(crate) used: Usage,
    pub(crate) memory: Memory,
    /// What the captured interface saw.
    pub(crate) seen: Counters,
}

/// Does work while a contestant captures, and waits until it has delivered all.
///
/// # Errors
/// When one of them fails.
pub(crate) fn during<T>(
    bed: &Bed,
    contestant: Contestant,
    wish: &Wish<'_>,
    work: impl FnOnce(&Running) -> anyhow::Result<T>,
) -> anyhow::Result<Measured<T>> {
    let running = contestant.start(bed, wish)?;
    let pids = running.processes()?;
    Memory::forget_peak(&pids)?;
    let (before, seen) = (Usage::of(&pids)?, bed.counters()?);
    let done = work(&running)?;
    running.settle()?;
    let used = Usage::of(&pids)?.since(&before);
    let seen = bed.counters()?.since(seen);
    let memory = Memory::of(&pids)?;
    Ok(Measured {
        done,
        outcome: running.finish()?,
        used,
        memory,
        seen,
    })
}

/// A figure of which less is better, and whose ratio means something.
pub(crate) const fn cost(name: &'static str, unit: &'static str) -> FigureKind {
    FigureKind {
        name,
        unit,
        is_less_better: Some(true),
        is_ratio_told: true,
    }
}

/// A figure of which more is better, and whose ratio means something.
pub(crate) const fn gain(name: &'static str, unit: &'static str) -> FigureKind {
    FigureKind {
        name,
        unit,
        is_less_better: Some(false),
        is_ratio_told: true,
    }
}

/// A number of packets or bytes of which less is better.
pub(crate) const fn loss(name: &'static str, unit: &'static str) -> FigureKind {
    FigureKind {
        name,
        unit,
        is_less_better: Some(true),
        is_ratio_told: false,
    }
}

/// A number that is neither good nor bad.
pub(crate) const fn count(name: &'static str, unit: &'static str) -> FigureKind {
    FigureKind {
        name,
        unit,
        is_less_better: None,
        is_ratio_told: false,
    }
}

/// Records what a value is of those that two others have in the same round.
pub(crate) fn record_ratios<T>(
    scenario: &mut Scenario,
    round: &[(Contestant, T)],
    kinds: &[(Contestant, FigureKind)],
    value: impl Fn(&T) -> f64,
) {
    for (of, kind) in kinds {
        let Some((_, base)) = round.iter().find(|(contestant, _)| contestant == of) else {
            continue;
        };
        for (contestant, measured) in round {
            scenario.record(contestant.name(), kind, value(measured) / value(base));
        }
    }
}

/// Records memory of a contestant.
pub(crate) fn record_memory(scenario: &mut Scenario, contestant: Contestant, memory: &Memory) {
    if contestant != Contestant::Nobody {
        scenario.record(
            contestant.name(),
            &cost("memory after it", "MiB"),
            memory.resident,
        );
        scenario.record(contestant.name(), &cost("most memory", "MiB"), memory.peak);
    }
}
