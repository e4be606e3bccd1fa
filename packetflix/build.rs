//! Puts the eBPF object where the server includes it from.

use std::{env, fs, path::Path};

fn main() {
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let object = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"))
        .parent()
        .expect("the crate lies in the workspace's root")
        .join(format!("target/ebpf/packetflix.{architecture}.bpf.o"));
    println!("cargo::rerun-if-changed={}", object.display());
    let copy = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("packetflix.bpf.o");
    if let Err(error) = fs::copy(&object, &copy) {
        println!(
            "cargo::error=no eBPF object at {} ({error}): run `cargo xtask build-ebpf`",
            object.display()
        );
    }
}
