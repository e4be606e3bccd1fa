//! `cargo xtask VERB`: one module per verb.

mod bench;
mod build_ebpf;
mod capture;
mod dist;
mod documents;
mod fuzz;
mod image;
mod kernel;
mod lint;
mod programs;
mod rooms;
mod run;
mod setup;
mod shell;
mod test;
mod ui;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs, tests, measures and checks packetflix"
)]
enum Verb {
    /// Build the eBPF object into target/ebpf
    BuildEbpf,
    /// Install what is missing, build everything and start the server
    Run(run::Args),
    /// Run `packetflix capture`, built first if it is not
    Capture(capture::Args),
    /// Make an image for container engines, of this machine's program and libraries
    Image(image::Args),
    /// Make what people install: archives, packages, their checksums and what is in them
    Dist(dist::Args),
    /// Install what is missing and run all tests, here or on other kernels
    Test(test::Args),
    /// Install what is missing and measure optimised programs on the real kernel
    Bench(bench::Args),
    /// Look for inputs that fail: filter expressions on their way into the kernel, and whatever else is parsed
    Fuzz(fuzz::Args),
    /// Write the tables in docs/ anew that are made from the program: of flags, and of metrics
    Docs,
    /// Make the page for browsers anew, that the server has in it
    Ui(ui::Args),
    /// Check formatting, lints of the host and eBPF crates, links of the documents, and dependencies
    Lint,
    /// Run the tests of a plan: what a kernel under test does
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let done = match Verb::parse() {
        Verb::BuildEbpf => build_ebpf::build_ebpf(),
        Verb::Run(args) => run::run(&args),
        Verb::Capture(args) => capture::capture(&args),
        Verb::Image(args) => image::image(&args),
        Verb::Dist(args) => dist::dist(&args),
        Verb::Test(args) => test::test(&args),
        Verb::Bench(args) => bench::bench(&args),
        Verb::Fuzz(args) => fuzz::fuzz(&args),
        Verb::Docs => documents::docs(),
        Verb::Ui(args) => ui::ui(&args),
        Verb::Lint => lint::lint(),
        Verb::Guest => kernel::guest(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
