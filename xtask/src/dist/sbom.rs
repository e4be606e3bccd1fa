//! The list of what a program is made of: a software bill of materials as CycloneDX has it, in JSON.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{System, libpcap::Origin, time_of_source};
use crate::{
    setup,
    shell::{cargo, execute, output_of, root},
};

/// What cargo-cyclonedx calls its files, of which it puts one beside the description of each of the workspace's crates.
const NAME: &str = "packetflix-dist";

/// Writes the list of all crates that are built for a system, and of libpcap if that is in the program.
///
/// # Errors
/// When cargo-cyclonedx is missing and cannot be installed, or fails.
pub(super) fn write(system: System, to: &Path, libpcap: Option<&Origin>) -> anyhow::Result<()> {
    let program = setup::cargo_cyclonedx()?;
    let listed = execute(
        Command::new(program)
            .current_dir(root())
            .env("SOURCE_DATE_EPOCH", time_of_source())
            .args(["cyclonedx", "--format=json", "--spec-version=1.5", "--quiet"])
            .args([
                "--manifest-path=packetflix/Cargo.toml",
                "--override-filename",
                NAME,
            ])
            .args(["--target", system.target()]),
    );
    let mut bill = None;
    for member in members()? {
        let file = root().join(&member).join(format!("{NAME}.json"));
        let Ok(text) = fs::read_to_string(&file) else {
            continue;
        };
        fs::remove_file(&file)?;
        if member == "packetflix" {
            bill = Some(text);
        }
    }
    listed?;
    let mut bill: Value = serde_json::from_str(&bill.context("cargo-cyclonedx made no list")?)?;
    if let Some(origin) = libpcap {
        add_libpcap(&mut bill, &origin.version)?;
        // Where the server is, so is its page.
        add_page(&mut bill)?;
    }
    fs::write(to, serde_json::to_string_pretty(&bill)? + "\n")?;
    Ok(())
}

/// The folders of the workspace's crates.
fn members() -> anyhow::Result<Vec<String>> {
    let metadata = output_of(cargo().args(["metadata", "--no-deps", "--format-version=1"]));
    let metadata: Value = serde_json::from_str(&metadata.context("cargo metadata fails")?)?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let folders = packages.iter().filter_map(|package| {
        let manifest = Path::new(package["manifest_path"].as_str()?);
        Some(
            manifest
                .parent()?
                .strip_prefix(root())
                .ok()?
                .display()
                .to_string(),
        )
    });
    Ok(folders.collect())
}

/// The library in C, which no crate names. It is built of Debian's package of that version.
fn add_libpcap(bill: &mut Value, version: &str) -> anyhow::Result<()> {
    let url = format!("pkg:deb/debian/libpcap@{version}?arch=source");
    let library = json!({
        "type": "library",
        "bom-ref": url,
        "name": "libpcap",
        "version": version,
        "licenses": [{"license": {"id": "BSD-3-Clause"}}],
        "purl": url,
    });
    add(bill, &url, library)
}

/// What others have written of the page that the server has in it.
fn add_page(bill: &mut Value) -> anyhow::Result<()> {
    let package = fs::read_to_string(root().join("packetflix/page/package.json"))?;
    let package: Value = serde_json::from_str(&package)?;
    for (name, version) in package["dependencies"].as_object().context("no dependencies")? {
        let url = format!("pkg:npm/{name}@{}", version.as_str().context("no version")?);
        let library = json!({
            "type": "library",
            "bom-ref": url,
            "name": name,
            "version": version,
            "licenses": [{"license": {"id": "MIT"}}],
            "purl": url,
        });
        add(bill, &url, library)?;
    }
    Ok(())
}

fn add(bill: &mut Value, reference: &str, library: Value) -> anyhow::Result<()> {
    let components = bill["components"].as_array_mut();
    components.context("no components")?.push(library);
    let dependencies = bill["dependencies"].as_array_mut();
    dependencies
        .context("no dependencies")?
        .push(json!({"ref": reference}));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_of_the_page_are_listed_as_they_are_in_it() -> anyhow::Result<()> {
        let mut bill = json!({"components": [], "dependencies": []});
        add_page(&mut bill)?;
        let licences = fs::read_to_string(root().join("packetflix/page/dist/licences.txt"))?;
        let listed = bill["components"].as_array().context("no list")?;
        assert!(listed.len() >= 2);
        for library in listed {
            let line = format!(
                "\n{} {}\n",
                library["name"].as_str().unwrap_or_default(),
                library["version"].as_str().unwrap_or_default()
            );
            assert!(licences.contains(&line), "{line}");
        }
        Ok(())
    }
}
