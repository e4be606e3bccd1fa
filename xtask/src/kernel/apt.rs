//! Debian's archive, by apt with lists of its own: it verifies signatures and checksums, knows the machine's mirror and
//! proxy, and touches nothing that the machine has installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::catalog::Architecture;
use crate::shell::{execute, output_of};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where Debian is, when the machine's apt knows no mirror of it.
const MIRROR: &str = "http://deb.debian.org/debian/";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security/";

/// One release of Debian, seen from a machine on which nothing is installed.
pub(crate) struct Archive {
    folder: PathBuf,
    configuration: PathBuf,
}

/// A package in the archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Archive {
    /// Reads a release's lists of packages, into a folder of their own.
    ///
    /// # Errors
    /// When they cannot be had, or are not Debian's.
    pub(crate) fn open(
        folder: &Path,
        architecture: Architecture,
        suite: &str,
        security: bool,
    ) -> anyhow::Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(sub))?;
        }
        fs::write(folder.join("status"), "")?;
        let source = |mirror: &str, suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        let mut sources = source(&mirror("/debian/").unwrap_or_else(|| MIRROR.to_owned()), suite);
        if security {
            let mirror = mirror("/debian-security/").unwrap_or_else(|| SECURITY_MIRROR.to_owned());
            sources += &source(&mirror, &format!("{suite}-security"));
        }
        fs::write(folder.join("sources.list"), sources)?;
        let configuration = folder.join("apt.conf");
        fs::write(&configuration, settings(folder, architecture))?;
        let archive = Self {
            folder: folder.to_owned(),
            configuration,
        };
        execute(archive.command("apt-get").args(["update", "--quiet", "--quiet"]))
            .with_context(|| format!("the packages of Debian's {suite} could not be listed"))?;
        Ok(archive)
    }

    /// All packages that installing these would take.
    ///
    /// # Errors
    /// When there is none of a name.
    pub(crate) fn closure(&self, packages: &[&str]) -> anyhow::Result<Vec<Package>> {
        let mut simulate = self.command("apt-get");
        simulate
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(packages);
        let printed = output_of(&mut simulate)
            .with_context(|| format!("Debian's archive has no {}", packages.join(" with ")))?;
        Ok(printed.lines().filter_map(to_be_installed).collect())
    }

    /// Downloads and unpacks packages into a folder. apt compares what it gets with the signed checksums.
    ///
    /// # Errors
    /// When one cannot be had.
    pub(crate) fn unpack(&self, packages: &[Package], into: &Path) -> anyhow::Result<()> {
        ensure!(!packages.is_empty(), "there is nothing to be unpacked");
        let downloads = self.folder.join("downloads");
        fs::create_dir_all(&downloads)?;
        let named = |package: &Package| format!("{}={}", package.name, package.version);
        execute(
            self.command("apt-get")
                .current_dir(&downloads)
                .args(["download", "--quiet", "--quiet"])
                .args(packages.iter().map(named)),
        )?;
        fs::create_dir_all(into)?;
        for file in fs::read_dir(&downloads)? {
            let file = file?.path();
            let status = Command::new("dpkg-deb")
                .arg("--extract")
                .args([&file, into])
                .status()
                .context("cannot start dpkg-deb")?;
            ensure!(
                status.success(),
                "dpkg-deb cannot unpack {}: {status}",
                file.display()
            );
        }
        Ok(fs::remove_dir_all(&downloads)?)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.configuration);
        command
    }
}

/// What apt is to do otherwise than the machine's own configuration says, which it reads, too.
fn settings(folder: &Path, architecture: Architecture) -> String {
    let folder = folder.display();
    let architecture = architecture.name();
    format!(
        "Dir::Etc::sourcelist \"{folder}/sources.list\";
Dir::Etc::sourceparts \"-\";
Dir::State \"{folder}\";
Dir::State::lists \"{folder}/lists\";
Dir::State::status \"{folder}/status\";
Dir::Cache \"{folder}/cache\";
APT::Architecture \"{architecture}\";
#clear APT::Architectures;
APT::Architectures \"{architecture}\";
APT::Sandbox::User \"root\";
Acquire::Languages \"none\";
Acquire::Retries \"3\";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled \"false\";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"
    )
}

/// Where the machine's apt has a mirror whose address ends so.
fn mirror(end: &str) -> Option<String> {
    let targets = output_of(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let found = targets.lines().find(|uri| uri.ends_with(end));
    found.map(str::to_owned)
}

/// A line of what apt would do: `Inst NAME (VERSION SOURCE [ARCHITECTURE]) …`.
fn to_be_installed(line: &str) -> Option<Package> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
    let (version, _) = rest.split_once(' ')?;
    Some(Package {
        name: name.to_owned(),
        version: version.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::{Package, to_be_installed};

    #[test]
    fn reads_what_apt_would_install() {
        let line =
            "Inst linux-image-6.1.0-56-amd64 (6.1.192-2 Debian-Security:12/oldstable-security [amd64]) []";
        assert_eq!(
            to_be_installed(line),
            Some(Package {
                name: "linux-image-6.1.0-56-amd64".to_owned(),
                version: "6.1.192-2".to_owned(),
            })
        );
        assert_eq!(to_be_installed("Conf linux-base (4.9 Debian:12 [all])"), None);
    }
}
