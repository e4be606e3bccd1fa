//! Programs for an architecture other than the machine's: what their guest has for its root, and how they are built. They
//! are linked with what is in that root, so that they run there whatever Debian the machine has.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{apt::Archive, catalog::Architecture, fetch::folder};
use crate::shell;

/// Debian's release that the root is of, whichever kernel is booted.
const SUITE: &str = "bookworm";

/// What the tests start and load, and what they are linked with.
const PACKAGES: &[&str] = &[
    "apparmor",
    "base-files",
    "base-passwd",
    "bash",
    "bpftool",
    "busybox-static",
    "coreutils",
    "curl",
    "dash",
    "ethtool",
    "findutils",
    "grep",
    "iproute2",
    "iptables",
    "kmod",
    "libc-bin",
    "libc6-dev",
    "libpcap-dev",
    "mount",
    "netbase",
    "openssl",
    "procps",
    "python3",
    "sed",
    "tcpdump",
    "tshark",
    "util-linux",
    "wireguard-tools",
    "wireshark-common",
];

/// Users and groups, as the installation of two packages makes them: those that `base-passwd` copies, and the one that
/// `tcpdump` becomes.
const ACCOUNTS: [(&str, &str, &str); 2] = [
    (
        "etc/passwd",
        "usr/share/base-passwd/passwd.master",
        "tcpdump:x:100:100::/nonexistent:/usr/sbin/nologin\n",
    ),
    (
        "etc/group",
        "usr/share/base-passwd/group.master",
        "tcpdump:x:100:\n",
    ),
];

/// Makes the root, unless it was made before.
///
/// # Errors
/// When Debian's archive does not have a package, or cannot be reached.
pub(crate) fn root(architecture: Architecture) -> anyhow::Result<PathBuf> {
    let place = folder().join(architecture.name()).join("root");
    let name_accounts = |files: &Path| {
        for (file, master, own) in ACCOUNTS {
            let base =
                fs::read_to_string(files.join(master)).with_context(|| format!("cannot make /{file}"))?;
            fs::write(files.join(file), base + own)?;
        }
        Ok(())
    };
    root_of(architecture, &place, PACKAGES, name_accounts)
}

/// Makes a root of packages and what they need, unless it was made before; `finish` puts in what no package has.
///
/// # Errors
/// As [`root`].
pub(crate) fn root_of(
    architecture: Architecture,
    place: &Path,
    packages: &[&str],
    finish: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let (complete, files) = (place.join("complete"), place.join("files"));
    let wanted = format!("{SUITE}: {}\n", packages.join(" "));
    if fs::read_to_string(&complete).is_ok_and(|made| made == wanted) {
        return Ok(files);
    }
    make(architecture, place, &files, packages)
        .and_then(|()| finish(&files))
        .with_context(|| format!("the root of {} could not be made", architecture.name()))?;
    fs::write(&complete, wanted)?;
    Ok(files)
}

fn make(architecture: Architecture, place: &Path, files: &Path, packages: &[&str]) -> anyhow::Result<()> {
    if place.exists() {
        fs::remove_dir_all(place)?;
    }
    let archive = Archive::open(&place.join("apt"), architecture, SUITE, true)?;
    archive.unpack(&archive.closure(packages)?, files)?;
    link_within(files, &files.join("usr/lib").join(architecture.gnu()))
}

/// Lets links to libraries stay within the root, for the linker, which follows them from outside of it.
fn link_within(files: &Path, libraries: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(libraries)? {
        let link = entry?.path();
        let Ok(target) = fs::read_link(&link) else {
            continue;
        };
        let Ok(target) = target.strip_prefix("/") else {
            continue;
        };
        // From `usr/lib/TRIPLET`.
        let within = Path::new("../../..").join(target);
        if files.join(target).exists() {
            fs::remove_file(&link)?;
            symlink(within, &link)?;
        }
    }
    Ok(())
}

/// cargo, in the workspace's root, as it builds for the architecture. Libraries in the folders of `first` go before the root's.
pub(crate) fn cargo(architecture: Architecture, root: &Path, first: &[&Path]) -> Command {
    let target = architecture.target();
    let compiler = format!("{}-gcc", architecture.gnu());
    let sysroot = format!("--sysroot={}", root.display());
    // Where the compiler brings a C library of its own, that would come first, and may be newer than the root's.
    let start = format!("-B{}/usr/lib/{}", root.display(), architecture.gnu());
    let mut flags = vec![
        format!("-Clinker={compiler}"),
        format!("-Clink-arg={sysroot}"),
        format!("-Clink-arg={start}"),
    ];
    flags.extend(
        first
            .iter()
            .map(|folder| format!("-Lnative={}", folder.display())),
    );
    let of_target = target.replace('-', "_");
    let mut cargo = shell::cargo();
    cargo
        .env("CARGO_BUILD_TARGET", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env_remove("RUSTFLAGS")
        .env(format!("CC_{of_target}"), &compiler)
        .env(format!("CFLAGS_{of_target}"), &sysroot);
    cargo
}
