//! `cargo xtask test`

use std::{process::Command, thread, time::Instant};

use anyhow::{anyhow, bail};

use crate::{
    build_ebpf::build_ebpf,
    kernel::{self, Architecture},
    programs::{self, TestProgram},
    setup,
    shell::{cargo, execute, is_root, root},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this
    name: Option<String>,
    /// Only the tests that need no privilege
    #[arg(long)]
    unprivileged: bool,
    /// Set up and build all that the tests take, and run none
    #[arg(long, conflicts_with = "kernel")]
    no_run: bool,
    /// Run the tests whose subject is the kernel on this one instead, booted under emulation: 5.10, 6.1, 6.12, newest, each
    /// but the first with -rt, rt for the newest of those, or all; repeatable
    #[arg(long, value_name = "KERNEL", conflicts_with = "unprivileged")]
    kernel: Vec<String>,
    /// Only the tests on other kernels that are run before a change lands
    #[arg(long, requires = "kernel")]
    core: bool,
    /// Leave out kernels on which the same tests all passed the last time, as when not all of them came to their turn
    #[arg(long, requires = "kernel")]
    resume: bool,
    /// What the other kernels are built for: this machine's architecture unless told, and for all of them both
    #[arg(long, requires = "kernel")]
    arch: Option<Architecture>,
}

/// The folder of the package whose tests work on the real kernel, as root.
const PRIVILEGED: &str = "tests";

/// Builds all and runs all tests: first those that need no privilege, then those on the real kernel, one at
/// a time, since they measure what the whole machine holds.
///
/// # Errors
/// When a test fails, or tests that need root were to run without it.
pub(crate) fn test(args: &Args) -> anyhow::Result<()> {
    if !args.kernel.is_empty() {
        return kernel::test(&kernel::Choice {
            kernels: &args.kernel,
            architecture: args.arch,
            core: args.core,
            resume: args.resume,
            name: args.name.as_deref(),
        });
    }
    let privileged = !args.unprivileged;
    setup::libraries()?;
    // To download packages takes no CPU, and to build takes nothing else.
    let tools = (privileged && is_root()).then(|| thread::spawn(setup::test_tools));
    build_ebpf()?;
    let programs = programs::build(cargo())?;
    if let Some(tools) = tools {
        tools.join().map_err(|_| anyhow!("setting up has panicked"))??;
        if setup::HAS_WINE {
            programs::build_for_windows()?;
        }
    }
    if args.no_run {
        return Ok(());
    }
    let (mut rest, mut kernel) = (Vec::new(), Vec::new());
    for program in programs {
        let tests = if program.is_of(PRIVILEGED) {
            &mut kernel
        } else {
            &mut rest
        };
        tests.push(program);
    }
    run(&rest, args.name.as_deref(), &[])?;
    if !privileged {
        eprintln!("xtask: left out, as asked: the tests on the real kernel (packetflix-tests)");
        return Ok(());
    }
    if !is_root() {
        bail!(
            "the tests that need no privilege passed. Those on the real kernel (packetflix-tests) were not run: \
             they need root. Run `sudo -E env \"PATH=$PATH\" cargo xtask test`, or leave them out with --unprivileged"
        );
    }
    run(&kernel, args.name.as_deref(), &["--test-threads=1"])
}

/// Runs programs of tests, one after the other, until one fails. Tells how long each has taken, so that it is seen where the
/// time goes.
fn run(programs: &[TestProgram], name: Option<&str>, flags: &[&str]) -> anyhow::Result<()> {
    for program in programs {
        let begun = Instant::now();
        execute(
            Command::new(&program.file)
                .current_dir(root().join(program.package()))
                .args(name)
                .args(flags),
        )?;
        eprintln!("xtask: {}: {:.1} s", program.name, begun.elapsed().as_secs_f64());
    }
    Ok(())
}
