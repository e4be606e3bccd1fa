//! `cargo xtask build-ebpf`

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

use crate::{
    setup,
    shell::{cargo, execute, root},
};

/// Where the object lies; `packetflix/build.rs` takes it from there.
const OBJECT: &str = "target/ebpf/packetflix.bpf.o";

/// Builds the eBPF object.
///
/// # Errors
/// When the toolchain for it is missing and cannot be installed, or the crate does not compile.
pub(crate) fn build_ebpf() -> anyhow::Result<()> {
    execute(&mut ebpf_cargo("build")?)?;
    let built = root().join("target/ebpf/bpfel-unknown-none/release/packetflix-ebpf");
    replace_if_different(&built, &root().join(OBJECT))
}

/// A cargo command on the eBPF crate, for its target.
pub(crate) fn ebpf_cargo(verb: &str) -> anyhow::Result<Command> {
    let linker = setup::ebpf_toolchain()?;
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        format!("-Clinker={}", linker.display()),
        // Map definitions are BTF.
        "-Clink-arg=--btf".to_owned(),
    ]
    .join("\u{1f}");
    let mut command = cargo();
    command
        .args([
            verb,
            "--package=packetflix-ebpf",
            "--release",
            "--target=bpfel-unknown-none",
        ])
        .arg("-Zbuild-std=core")
        .arg("--target-dir=target/ebpf")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags)
        // No target of a released compiler has a core library for eBPF: it is built here, which is unstable.
        .env("RUSTC_BOOTSTRAP", "1")
        // bpf-linker makes the BTF, without which the kernel takes no maps, of whole debug information.
        .env("CARGO_PROFILE_RELEASE_DEBUG", "full")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env_remove("RUSTFLAGS");
    Ok(command)
}

/// Leaves an unchanged object alone, so that the server is not built anew for it.
fn replace_if_different(from: &Path, to: &Path) -> anyhow::Result<()> {
    let object = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|present| present == object) {
        return Ok(());
    }
    fs::write(to, object).with_context(|| format!("cannot write {}", to.display()))
}
