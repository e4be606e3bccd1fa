//! Where reports are kept, and how they are published.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{Report, markdown, plots, replace_results};

/// Folder of the documentation's plots and figures, beside its page.
const FOLDER: &str = "benchmarks";

/// Adds a report to those that were kept in `target/bench/results.json` below `root`; gives that file.
///
/// # Errors
/// When it cannot be read or written.
pub fn keep(report: &Report, root: &Path) -> anyhow::Result<PathBuf> {
    let file = root.join("target/bench/results.json");
    write(&merged(report, &file)?, &file)?;
    Ok(file)
}

/// Adds a report to what was published before in `docs` below `root`: figures, plots and tables.
///
/// # Errors
/// When a file cannot be read or written, or the page has no markers.
pub fn publish(report: &Report, root: &Path) -> anyhow::Result<()> {
    let page = root.join("docs/benchmarks.md");
    let folder = root.join("docs").join(FOLDER);
    let file = folder.join("results.json");
    let report = merged(report, &file)?;
    let document = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let document = replace_results(&document, &markdown(&report, FOLDER))?;
    write(&report, &file)?;
    for entry in fs::read_dir(&folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "svg") {
            fs::remove_file(path)?;
        }
    }
    for plot in plots(&report) {
        fs::write(folder.join(plot.file_name()), plot.svg())?;
    }
    Ok(fs::write(page, document)?)
}

/// With the scenarios of the file that were not measured anew.
fn merged(report: &Report, file: &Path) -> anyhow::Result<Report> {
    let mut report = report.clone();
    match fs::read(file) {
        Ok(json) => {
            let before = serde_json::from_slice(&json).with_context(|| file.display().to_string())?;
            if !report.merge(before) {
                eprintln!(
                    "bench: what {} has is of another machine or kernel, and is replaced",
                    file.display()
                );
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| file.display().to_string()),
    }
    Ok(report)
}

fn write(report: &Report, file: &Path) -> anyhow::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut json = serde_json::to_string_pretty(report)?;
    json.push('\n');
    fs::write(file, json).with_context(|| file.display().to_string())
}
