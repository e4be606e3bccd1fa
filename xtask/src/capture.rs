//! `cargo xtask capture`

use std::{os::unix::process::CommandExt as _, process::Command};

use crate::{build_ebpf::build_ebpf, run::build_programs, shell::root};

const PROGRAM: &str = "target/release/packetflix";

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// As those of `packetflix capture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Becomes `packetflix capture`.
///
/// # Errors
/// When the program does not build or cannot be started.
pub(crate) fn capture(args: &Args) -> anyhow::Result<()> {
    let program = root().join(PROGRAM);
    if !program.is_file() {
        build_ebpf()?;
        build_programs()?;
    }
    // Returns only when it fails.
    let error = Command::new(program).arg("capture").args(&args.arguments).exec();
    Err(error.into())
}
