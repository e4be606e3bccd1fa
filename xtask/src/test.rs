//! `cargo xtask test`

use anyhow::bail;

use crate::{
    build_ebpf::build_ebpf,
    setup,
    shell::{cargo, execute, is_root},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only tests whose name contains this
    name: Option<String>,
    /// Only the tests that need no privilege
    #[arg(long)]
    unprivileged: bool,
}

/// The package whose tests work on the real kernel, as root.
const PRIVILEGED: &str = "packetflix-tests";

/// Builds all and runs all tests: first those that need no privilege, then those on the real kernel, one at
/// a time, since they measure what the whole machine holds.
///
/// # Errors
/// When a test fails, or tests that need root were to run without it.
pub(crate) fn test(args: &Args) -> anyhow::Result<()> {
    let privileged = !args.unprivileged;
    if privileged && is_root() {
        setup::test_tools()?;
    }
    setup::libraries()?;
    build_ebpf()?;
    let filter = args.name.iter();
    execute(
        cargo()
            .args(["test", "--workspace", "--exclude=packetflix-ebpf"])
            .arg(format!("--exclude={PRIVILEGED}"))
            .args(filter.clone()),
    )?;
    if !privileged {
        eprintln!("xtask: left out, as asked: the tests on the real kernel ({PRIVILEGED})");
        return Ok(());
    }
    if !is_root() {
        bail!(
            "the tests that need no privilege passed. Those on the real kernel ({PRIVILEGED}) were not run: \
             they need root. Run `sudo -E env \"PATH=$PATH\" cargo xtask test`, or leave them out with --unprivileged"
        );
    }
    // The server and the client are tested as programs of their own too.
    execute(cargo().args(["build", "--package=packetflix", "--package", PRIVILEGED, "--bins"]))?;
    execute(
        cargo()
            .args(["test", "--package", PRIVILEGED])
            .args(filter)
            .args(["--", "--test-threads=1"]),
    )
}
