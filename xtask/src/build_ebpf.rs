//! `cargo xtask build-ebpf`

use std::{env::consts, fs, path::Path, process::Command};

use anyhow::Context as _;

use crate::{
    setup,
    shell::{cargo, execute, root},
};

/// Builds the eBPF object for kernels of this machine's architecture.
///
/// # Errors
/// When the toolchain for it is missing and cannot be installed, or the crate does not compile.
pub(crate) fn build_ebpf() -> anyhow::Result<()> {
    build_ebpf_for(consts::ARCH)
}

/// Builds the eBPF object for kernels of an architecture, which has Rust's name. `packetflix/build.rs` takes it from where it
/// is put.
///
/// # Errors
/// As [`build_ebpf`].
pub(crate) fn build_ebpf_for(architecture: &str) -> anyhow::Result<()> {
    execute(&mut ebpf_cargo("build", architecture)?)?;
    let built = root().join("target/ebpf/bpfel-unknown-none/release/packetflix-ebpf");
    let object = root().join(format!("target/ebpf/packetflix.{architecture}.bpf.o"));
    replace_if_different(&built, &object)
}

/// A cargo command on the eBPF crate, for its target and kernels of an architecture.
pub(crate) fn ebpf_cargo(verb: &str, architecture: &str) -> anyhow::Result<Command> {
    let linker = setup::ebpf_toolchain()?;
    let rustflags = [
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
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
