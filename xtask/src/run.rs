//! `cargo xtask run`

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::Context as _;

use crate::{
    build_ebpf::build_ebpf,
    setup,
    shell::{cargo, execute, find_program, is_root, root},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Flags of the server: see `cargo xtask run -- --help`
    #[arg(last = true)]
    server: Vec<String>,
}

/// Builds all, tells what to do next, and becomes the server.
///
/// # Errors
/// When something does not build, or the server cannot be started.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    build_ebpf()?;
    build_programs()?;

    let server = root().join("target/release/packetflix");
    let mut command = if is_root() || find_program("sudo").is_none() {
        Command::new(&server)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(&server);
        sudo
    };
    print_next_steps();
    // Returns only when it fails.
    let error = command.args(&args.server).exec();
    Err(error).with_context(|| format!("cannot start {}", server.display()))
}

/// Builds the program, optimised.
///
/// # Errors
/// When a library is missing and cannot be installed, or something does not build.
pub(crate) fn build_programs() -> anyhow::Result<()> {
    build_packages(&["packetflix"])
}

/// Builds the programs of packages, optimised, as one: apart, each would have the others' dependencies built anew with
/// its own choice of their features.
///
/// # Errors
/// As [`build_programs`].
pub(crate) fn build_packages(packages: &[&str]) -> anyhow::Result<()> {
    setup::libraries()?;
    let packages = packages.iter().flat_map(|package| ["--package", package]);
    execute(cargo().args(["build", "--release", "--bins"]).args(packages))
}

fn print_next_steps() {
    let sudo = if is_root() { "" } else { "sudo " };
    eprintln!(
        "
Starting packetflix. To see it capture, paste this into a second terminal, in this folder:

    {sudo}ip netns add demo; {sudo}ip -n demo link set lo up
    cargo xtask capture /run/netns/demo | wireshark -k -i -

(or `| tshark -i -` without a desktop), and make some traffic from a third:

    {sudo}ip netns exec demo ping 127.0.0.1

A container is captured by its name, as are all targets that http://127.0.0.1:5001/targets lists:

    cargo xtask capture NAME | wireshark -k -i -

Ctrl-C ends the server.
"
    );
}
