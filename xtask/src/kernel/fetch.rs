//! Gets a kernel: unpacked below `target/kernels`, and never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;

use super::{
    apt::{Archive, Package},
    catalog::{Architecture, Kernel},
};
use crate::shell::{execute, root};

/// What packages of kernels are called: newer ones have image, modules and lists of modules apart.
const PARTS: [&str; 4] = ["linux-image-", "linux-binary-", "linux-modules-", "linux-base-"];

/// A kernel that was unpacked.
pub(crate) struct Unpacked {
    /// The kernel itself.
    pub(crate) image: PathBuf,
    /// The folder of its modules, which has its release's name.
    pub(crate) modules: PathBuf,
}

/// Where everything is that belongs to other kernels.
pub(crate) fn folder() -> PathBuf {
    root().join("target/kernels")
}

/// Gets the kernel, unless it was got before.
///
/// # Errors
/// When Debian's archive does not have it, or cannot be reached.
pub(crate) fn fetch(kernel: &Kernel, architecture: Architecture) -> anyhow::Result<Unpacked> {
    let place = folder().join(architecture.name()).join(kernel.name);
    let complete = place.join("complete");
    let files = place.join("files");
    if !complete.is_file() {
        get(kernel, architecture, &place, &files).with_context(|| {
            format!(
                "the kernel {} for {} could not be had",
                kernel.name,
                architecture.name()
            )
        })?;
        fs::write(&complete, "")?;
    }
    find(&files)
}

fn get(kernel: &Kernel, architecture: Architecture, place: &Path, files: &Path) -> anyhow::Result<()> {
    if files.exists() {
        fs::remove_dir_all(files)?;
    }
    let archive = Archive::open(&place.join("apt"), architecture, kernel.suite, kernel.security)?;
    let newest = format!("linux-image-{}{}", kernel.flavour, architecture.name());
    let is_part =
        |package: &Package| package.name != newest && PARTS.iter().any(|part| package.name.starts_with(part));
    let mut packages = archive.closure(&[&newest])?;
    packages.retain(is_part);
    archive.unpack(&packages, files)?;
    let modules = find(files)?.modules;
    let release = modules.file_name().context("modules of no release")?;
    // `BASE/lib/modules/RELEASE`
    let base = modules.ancestors().nth(3).context("modules of no system")?;
    execute(Command::new("depmod").arg("-b").arg(base).arg(release))
}

/// Finds kernel and modules among what was unpacked: older packages have them in other folders than newer ones.
fn find(files: &Path) -> anyhow::Result<Unpacked> {
    let of_releases = ["lib/modules", "usr/lib/modules"].map(|folder| files.join(folder));
    let modules = of_releases
        .iter()
        .find_map(|folder| fs::read_dir(folder).ok()?.next()?.ok())
        .with_context(|| format!("no modules in {}", files.display()))?
        .path();
    let release = modules.file_name().context("modules of no release")?;
    let old = files
        .join("boot")
        .join(format!("vmlinuz-{}", release.to_string_lossy()));
    let image = [old, modules.join("vmlinuz")]
        .into_iter()
        .find(|image| image.is_file())
        .with_context(|| format!("no kernel in {}", files.display()))?;
    Ok(Unpacked { image, modules })
}
