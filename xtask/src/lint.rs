//! `cargo xtask lint`

use std::{env::consts, process::Command};

use crate::{
    build_ebpf::{build_ebpf, ebpf_cargo},
    documents, rooms, setup,
    shell::{cargo, execute, root},
};

/// Checks formatting, the links of the documents, the rooms of the server, the lints of all crates, and licences and sources of the dependencies.
///
/// # Errors
/// At the first check that fails.
pub(crate) fn lint() -> anyhow::Result<()> {
    execute(cargo().args(["fmt", "--all", "--check"]))?;
    execute(cargo().args(["fmt", "--manifest-path=fuzz/Cargo.toml", "--check"]))?;
    documents::check_links()?;
    rooms::check()?;
    setup::libraries()?;
    build_ebpf()?;
    execute(
        cargo()
            .args([
                "clippy",
                "--workspace",
                "--exclude=packetflix-ebpf",
                "--all-targets",
            ])
            .args(DENY),
    )?;
    execute(ebpf_cargo("clippy", consts::ARCH)?.args(DENY))?;
    let deny = setup::cargo_deny()?;
    execute(
        Command::new(deny)
            .current_dir(root())
            .args(["check", "bans", "licenses", "sources"]),
    )
}

const DENY: [&str; 3] = ["--", "--deny", "warnings"];
