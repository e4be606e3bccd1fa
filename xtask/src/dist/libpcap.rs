//! libpcap as the program has it in itself: Debian's, without its captures of D-Bus, which would need the library of that.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::{copy, fresh};
use crate::{
    kernel::Architecture,
    shell::{execute, output_of},
};

/// What libpcap asks of its part for D-Bus, answered as if there were none.
///
/// Source: `pcap-dbus.h` of libpcap, and `pcap_create` in its `pcap.c`.
const NO_DBUS: &str = "
int dbus_findalldevs(void *devices, char *error) { (void)devices; (void)error; return 0; }
void *dbus_create(const char *device, char *error, int *is_ours) { (void)device; (void)error; *is_ours = 0; return 0; }
";

const DBUS: &str = "pcap-dbus.o";

/// Makes the library of what a root has of it. In the folder, which is returned, is no other: the linker would take a shared one first.
///
/// # Errors
/// When the root's libpcap has no such part, or a tool fails.
pub(super) fn alone(architecture: Architecture, files: &Path, folder: &Path) -> anyhow::Result<PathBuf> {
    let gnu = architecture.gnu();
    let built = files.join("usr/lib").join(&gnu).join("libpcap.a");
    fresh(folder)?;
    let library = folder.join("libpcap.a");
    copy(&built, &library)?;
    let source = folder.join("no-dbus.c");
    fs::write(&source, NO_DBUS)?;
    let mut compile = Command::new(format!("{gnu}-gcc"));
    compile
        .current_dir(folder)
        .args(["-O2", "-Wall", "-Werror", "-fPIC", "-c", "-o", DBUS])
        .arg(&source);
    execute(&mut compile)?;
    // It replaces the part of that name.
    let archiver = format!("{gnu}-ar");
    let parts = output_of(Command::new(&archiver).arg("t").arg(&library));
    ensure!(
        parts.is_some_and(|parts| parts.lines().any(|part| part == DBUS)),
        "{} has no {DBUS}",
        built.display()
    );
    execute(
        Command::new(&archiver)
            .current_dir(folder)
            .arg("rs")
            .args([Path::new("libpcap.a"), Path::new(DBUS)]),
    )?;
    Ok(folder.to_owned())
}

/// What a root's libpcap is.
pub(super) struct Origin {
    /// Debian's version.
    pub(super) version: String,
    /// Under which terms it may be passed on.
    pub(super) terms: String,
}

/// Where the libpcap comes from that a program has in itself.
///
/// # Errors
/// When the root does not say.
pub(super) fn origin(files: &Path) -> anyhow::Result<Origin> {
    let documents = files.join("usr/share/doc/libpcap0.8");
    let terms = documents.join("copyright");
    let changes = output_of(Command::new("zcat").arg(documents.join("changelog.Debian.gz")));
    Ok(Origin {
        version: changes
            .and_then(|changes| version(&changes).map(str::to_owned))
            .context("libpcap's changes are not there")?,
        terms: fs::read_to_string(&terms).with_context(|| terms.display().to_string())?,
    })
}

/// That of the newest entry: `NAME (VERSION) SUITE; …`.
fn version(changes: &str) -> Option<&str> {
    let (_, rest) = changes.split_once('(')?;
    Some(rest.split_once(')')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_that_of_the_newest_entry() {
        let changes =
            "libpcap (1.10.3-1) unstable; urgency=medium\n\n  * New.\n\nlibpcap (1.10.2-1) unstable";
        assert_eq!(version(changes), Some("1.10.3-1"));
        assert_eq!(version(""), None);
    }
}
