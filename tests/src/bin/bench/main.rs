//! Benchmarks on the real kernel, as root: `bench [NAME] [--rounds COUNT]`, with one module per benchmark.

mod capture;
mod crowd;
mod discovery;
mod engine;
mod filter;
mod http;
mod interrupt;
mod table;
mod usage;

use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Parser;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Benchmarks by their names.
const BENCHMARKS: &[(&str, Benchmark)] = &[
    ("capture", capture::run),
    ("discovery", discovery::run),
    ("filter", filter::run),
];

type Benchmark = fn(&Args) -> anyhow::Result<()>;

#[derive(Parser)]
#[command(name = "bench", about = "Measures packetflix on this machine")]
struct Args {
    /// Only benchmarks whose name contains this
    #[arg(default_value = "")]
    name: String,
    /// How often each thing is measured: by default 20 times, in the benchmark `capture` 5 times
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// Network namespaces of the benchmark `discovery`, which is done with none and with twice as many too
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(2..=5000))]
    namespaces: u32,
    /// Only scenarios of the benchmark `capture` whose name contains this
    #[arg(long)]
    scenario: Option<String>,
    /// Only contestants of the benchmark `capture` whose name contains this
    #[arg(long)]
    contestant: Option<String>,
    /// Packets of each flood, or requests, of the benchmark `capture`
    #[arg(long, value_parser = clap::value_parser!(u64).range(1000..=100_000_000))]
    packets: Option<u64>,
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
    for (name, benchmark) in chosen {
        eprintln!("bench: {name}");
        benchmark(args).with_context(|| (*name).to_owned())?;
    }
    Ok(())
}

/// What is mounted from now on is seen by us and our children only, and gone with us however we end.
fn own_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
}
