//! Puts the eBPF object where the server includes it from, and says what the build lacks before compiler and linker do.

use std::{
    env, fs,
    path::Path,
    process::{Command, Stdio},
};

fn main() {
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        return;
    }
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let object = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .parent()
        .expect("the crate lies in the workspace's root")
        .join(format!("target/ebpf/packetflix.{architecture}.bpf.o"));
    println!("cargo::rerun-if-changed={}", object.display());
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    let out = Path::new(&out);
    if let Err(error) = fs::copy(&object, out.join("packetflix.bpf.o")) {
        println!(
            "cargo::error=no eBPF object at {} ({error}): run `cargo xtask build-ebpf`",
            object.display()
        );
    }
    // For another architecture, whoever builds tells rustc where its libraries are.
    if env::var("HOST") == env::var("TARGET") && lacks_libpcap(out) {
        println!(
            "cargo::error=the linker finds no libpcap: install libpcap-dev (Debian, Ubuntu, Alpine), libpcap-devel (Fedora) \
             or libpcap (Arch)"
        );
    }
}

/// Whether a linker that works cannot link libpcap.
fn lacks_libpcap(out: &Path) -> bool {
    let linker = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let links = |libraries: &[&str]| {
        Command::new(&linker)
            .args(["-shared", "-x", "c", "/dev/null", "-o"])
            .arg(out.join("linked"))
            .args(libraries)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    !links(&["-lpcap"]) && links(&[])
}
