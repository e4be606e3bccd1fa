//! `cargo xtask ui`

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::{
    setup,
    shell::{execute, root},
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Make it elsewhere, and fail where it is another than that in the tree
    #[arg(long)]
    check: bool,
}

/// The sources of the page, and what is made of them, in `dist` there.
const PAGE: &str = "packetflix/page";

/// Checks the types of the page's sources, and makes the page of them that the server has in it. That is kept in the tree, so that
/// nobody needs Node to build the server.
///
/// # Errors
/// When Node is missing and cannot be installed, the sources are wrong, or with `--check` the page is of other ones.
pub(crate) fn ui(args: &Args) -> anyhow::Result<()> {
    setup::page_tools()?;
    let page = root().join(PAGE);
    let run = |arguments: &[&str]| execute(Command::new("npm").current_dir(&page).args(arguments));
    // As the lock file has them, and none of their scripts.
    run(&["ci", "--ignore-scripts", "--no-audit", "--no-fund"])?;
    run(&["run", "check"])?;
    if !args.check {
        return run(&["run", "build"]);
    }
    let made = root().join("target/page");
    let into = made.to_str().context("the path of target is no text")?;
    run(&["run", "build", "--", into])?;
    compare(&made, &page.join("dist"))
}

fn compare(made: &Path, kept: &Path) -> anyhow::Result<()> {
    let mut others = Vec::new();
    for entry in fs::read_dir(made)? {
        let name = entry?.file_name();
        if fs::read(kept.join(&name)).ok() != Some(fs::read(made.join(&name))?) {
            others.push(name.to_string_lossy().into_owned());
        }
    }
    if others.is_empty() {
        return Ok(());
    }
    bail!(
        "{PAGE}/dist is not what is made of its sources, run `cargo xtask ui`: {}",
        others.join(", ")
    )
}
