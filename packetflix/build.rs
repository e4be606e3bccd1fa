//! Tells the program its commit, puts the eBPF object where the server includes it from, and says what the build lacks before
//! compiler and linker do.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn main() {
    println!("cargo::rustc-env=PACKETFLIX_COMMIT={}", commit());
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|system| system != "linux") {
        return;
    }
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets it");
    let object = crate_folder()
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

/// The commit of the source: what the variable says, or else what is checked out. A build that is no release is not told what
/// is checked out, since it would be built anew with each commit.
fn commit() -> String {
    const UNKNOWN: &str = "unknown";

    println!("cargo::rerun-if-env-changed=PACKETFLIX_COMMIT");
    if let Ok(told) = env::var("PACKETFLIX_COMMIT") {
        return told;
    }
    if env::var("PROFILE").is_ok_and(|profile| profile != "release") {
        return UNKNOWN.to_owned();
    }
    let Some(commit) = git(&["rev-parse", "HEAD"]) else {
        return UNKNOWN.to_owned();
    };
    // What names the commit: HEAD, or a branch in a file of its own or among others.
    let branch = git(&["rev-parse", "--symbolic-full-name", "HEAD"]).unwrap_or_default();
    for name in ["HEAD", &branch, "packed-refs"] {
        let file = git(&["rev-parse", "--git-path", name]).map(|path| crate_folder().join(path));
        if let Some(file) = file.filter(|file| file.is_file()) {
            println!("cargo::rerun-if-changed={}", file.display());
        }
    }
    commit
}

/// What git says of the folder that the crate lies in.
fn git(arguments: &[&str]) -> Option<String> {
    let answer = Command::new("git")
        .current_dir(crate_folder())
        .args(arguments)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8(answer.stdout).ok()?;
    answer.status.success().then(|| said.trim().to_owned())
}

fn crate_folder() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it").into()
}
