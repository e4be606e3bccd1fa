//! `cargo xtask lint`

use std::process::Command;

use crate::{
    build_ebpf::{build_ebpf, ebpf_cargo},
    shell::{cargo, execute, find_program, root},
};

/// Checks formatting, the lints of all crates, and, where cargo-deny is installed, licences and sources of
/// the dependencies.
///
/// # Errors
/// At the first check that fails.
pub(crate) fn lint() -> anyhow::Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    build_ebpf()?;
    execute(cargo().args(["clippy", "--workspace", "--exclude=packetflix-ebpf", "--all-targets"]).args(DENY))?;
    execute(ebpf_cargo("clippy")?.args(DENY))?;
    if find_program("cargo-deny").is_some() {
        execute(Command::new("cargo-deny").current_dir(root()).args(["check", "bans", "licenses", "sources"]))?;
    } else {
        eprintln!("xtask: left out: cargo-deny is not installed (cargo install --locked cargo-deny)");
    }
    Ok(())
}

const DENY: [&str; 3] = ["--", "--deny", "warnings"];
