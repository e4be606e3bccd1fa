//! `cargo xtask bench`

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, ensure};

use crate::{
    build_ebpf::build_ebpf,
    run::build_packages,
    setup,
    shell::{cargo, execute, is_root, root},
};

const BENCH: &str = "target/release/bench";
/// The package with the benchmarks.
const PACKAGE: &str = "packetflix-bench";
/// Where its tests are.
const TESTS: &str = "bench/tests";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only benchmarks whose name contains this
    name: Option<String>,
    /// Measure nothing, and test what benchmarks look at streams and tell figures with; needs no root
    #[arg(long, conflicts_with_all = ["name", "flags"])]
    tests: bool,
    /// Flags of the program with the benchmarks: see `cargo xtask bench -- --help`
    #[arg(last = true)]
    flags: Vec<String>,
}

/// Builds all, optimised, and becomes the program with the benchmarks, so that Ctrl-C is its alone.
///
/// # Errors
/// When we are not root, something is missing and cannot be installed, or does not build.
pub(crate) fn bench(args: &Args) -> anyhow::Result<()> {
    if args.tests {
        setup::libraries()?;
        build_ebpf()?;
        // The packages are those of the other tests, so that what they share is not built anew.
        let mut test = cargo();
        test.args(["test", "--workspace", "--exclude=packetflix-ebpf"]);
        for file in fs::read_dir(root().join(TESTS))? {
            let file = file?.path();
            test.arg("--test").args(file.file_stem());
        }
        return execute(&mut test);
    }
    ensure!(
        is_root(),
        "benchmarks work on the real kernel, and need root: sudo -E env \"PATH=$PATH\" cargo xtask bench"
    );
    setup::bench_tools()?;
    build_ebpf()?;
    build_packages(&["packetflix", "packetflix-tests", PACKAGE])?;
    let program = root().join(BENCH);
    // Returns only when it fails.
    let error = Command::new(&program).args(&args.name).args(&args.flags).exec();
    Err(error).with_context(|| format!("cannot start {}", program.display()))
}
