//! Benchmarks on the real kernel, as root: `bench [NAME] [--rounds COUNT] [--publish]`, with one module per benchmark.

mod capture;
mod client;
mod cluster;
mod crowd;
mod crowds;
mod discovery;
mod engine;
mod filter;
mod http;
mod interrupt;
mod machine;
mod merge;
mod page;
mod rates;
mod starts;
mod table;
mod usage;

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use packetflix_bench::report::{Report, output, text};
use packetflix_tests::root;

use crate::machine::machine;

/// Benchmarks by their names.
const BENCHMARKS: &[(&str, Benchmark)] = &[
    ("capture", capture::run),
    ("client", |args, _| client::run(args)),
    ("cluster", |args, _| cluster::run(args)),
    ("crowds", crowds::run),
    ("discovery", |args, _| discovery::run(args)),
    ("filter", |args, _| filter::run(args)),
    ("merge", merge::run),
    ("page", |args, _| page::run(args)),
    ("rates", |args, _| rates::run(args)),
    ("starts", |args, _| starts::run(args)),
];

/// Prints what it finds out, or puts it into the report.
type Benchmark = fn(&Args, &mut Report) -> anyhow::Result<()>;

#[derive(Parser)]
#[command(name = "bench", about = "Measures packetflix on this machine")]
struct Args {
    /// Only benchmarks whose name contains this
    #[arg(default_value = "")]
    name: String,
    /// How often each thing is measured: by default 20 times, in the benchmarks `capture` and `client` 5 times, `crowds` 3 times, `merge`
    /// 7 times, `page` 30 times, `rates` 6 times and `cluster` 5 times
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Network namespaces of the benchmarks `discovery` and `rates`, which are done with none and with twice as many too
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=5000))]
    namespaces: u32,
    /// Only scenarios of the benchmarks `capture`, `crowds` and `merge` whose name contains this
    #[arg(long)]
    scenario: Option<String>,
    /// Only contestants of the benchmark `capture` whose name contains this
    #[arg(long)]
    contestant: Option<String>,
    /// Packets of each flood, or requests, of the benchmark `capture`
    #[arg(long, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    packets: Option<u64>,
    /// Publish what is found out in docs/benchmarks.md; without this, it is kept in target/bench/results.json
    #[arg(long)]
    publish: bool,
}

impl Args {
    fn rounds(&self, usual: u32) -> u32 {
        self.rounds.unwrap_or(usual)
    }
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let chosen: Vec<_> = BENCHMARKS
        .iter()
        .filter(|(name, _)| name.contains(&args.name))
        .collect();
    let names: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
    ensure!(
        !chosen.is_empty(),
        "there is no benchmark {}: there is {}",
        args.name,
        names.join(", ")
    );
    own_mounts().context("benchmarks need root")?;
    interrupt::listen()?;
    let mut report = Report {
        machine: machine()?,
        scenarios: Vec::new(),
    };
    let mut result = Ok(());
    for (name, benchmark) in chosen {
        eprintln!("bench: {name}");
        let told = report.scenarios.len();
        result = benchmark(args, &mut report).with_context(|| (*name).to_owned());
        for scenario in &report.scenarios[told..] {
            print!("{}", text(scenario));
        }
        if result.is_err() {
            break;
        }
    }
    // What was measured before an interruption is of use, too.
    if !report.scenarios.is_empty() {
        let file = output::keep(&report, root())?;
        eprintln!("bench: kept in {}", file.display());
        if args.publish && result.is_ok() {
            output::publish(&report, root())?;
            eprintln!("bench: published in docs/benchmarks.md");
        }
    }
    result
}

/// What is mounted from now on is seen by us and our children only, and gone with us however we end.
fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
}
