//! The programs of the tests, with those that they start.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::{
    setup,
    shell::{cargo, execute},
};

/// Chooses the packages that are tested. All that is built for tests is built with this choice: with another, cargo would
/// build what packages share anew, with other features.
pub(crate) const PACKAGES: [&str; 3] = [
    "--workspace",
    "--exclude=packetflix-ebpf",
    "--exclude=packetflix-bench",
];

/// Rust's target of the client for Windows.
const WINDOWS: &str = "x86_64-pc-windows-gnu";

/// A program of tests.
pub(crate) struct TestProgram {
    /// As cargo calls it: a library, a program or a file below `tests/`.
    pub(crate) name: String,
    /// The folder of its package.
    package: String,
    /// Where it is.
    pub(crate) file: PathBuf,
}

impl TestProgram {
    /// The folder of its package, in the workspace.
    pub(crate) fn package(&self) -> &str {
        &self.package
    }

    /// Whether it is of the package in this folder of the workspace.
    pub(crate) fn is_of(&self, package: &str) -> bool {
        self.package == package
    }
}

/// Builds all programs and all their tests. `cargo` says what for.
///
/// # Errors
/// When something does not build.
pub(crate) fn build(mut cargo: Command) -> anyhow::Result<Vec<TestProgram>> {
    cargo
        .arg("build")
        .args(PACKAGES)
        .args(["--bins", "--tests", "--message-format=json-render-diagnostics"]);
    let output = cargo.stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "the programs and their tests do not build"
    );
    let text = String::from_utf8(output.stdout)?;
    let mut programs: Vec<TestProgram> = text
        .lines()
        .filter_map(|line| test_program(line).transpose())
        .collect::<Result<_, _>>()?;
    programs.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(programs)
}

/// Builds the client for Windows, which a test runs with Wine.
///
/// # Errors
/// When it does not build.
pub(crate) fn build_for_windows() -> anyhow::Result<()> {
    setup::rust_target(WINDOWS)?;
    execute(
        cargo()
            .args(["build", "--package=packetflix", "--bin=packetflix", "--target"])
            .arg(WINDOWS),
    )
}

/// What cargo says of a program of tests it has built, if this line says so.
fn test_program(line: &str) -> anyhow::Result<Option<TestProgram>> {
    let artifact: Value = serde_json::from_str(line)?;
    let (Some(true), Some(file)) = (
        artifact["profile"]["test"].as_bool(),
        artifact["executable"].as_str(),
    ) else {
        return Ok(None);
    };
    let manifest = artifact["manifest_path"].as_str().map(PathBuf::from);
    let folder = manifest
        .as_deref()
        .and_then(|manifest| manifest.parent()?.file_name()?.to_str());
    Ok(Some(TestProgram {
        name: artifact["target"]["name"]
            .as_str()
            .context("a program without a name")?
            .to_owned(),
        package: folder.context("a program without a package")?.to_owned(),
        file: file.into(),
    }))
}
