//! Runs tests on kernels other than the machine's: Debian's own, booted under emulation.

mod apt;
mod boot;
mod catalog;
mod fetch;
pub(crate) mod foreign;
mod guest;
mod initramfs;
mod plan;
mod qmp;
mod report;
mod results;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use self::{boot::Machine, report::Run};
pub(crate) use self::{catalog::Architecture, guest::guest};
use crate::{build_ebpf::build_ebpf_for, setup, shell};

/// Which kernels, and which tests.
pub(crate) struct Choice<'a> {
    /// Names of kernels.
    pub(crate) kernels: &'a [String],
    /// One architecture; when none is given, the machine's, or all for the whole matrix.
    pub(crate) architecture: Option<Architecture>,
    /// Only the tests that are run before a change lands.
    pub(crate) core: bool,
    /// Not those kernels again on which the same tests all passed.
    pub(crate) resume: bool,
    /// Only tests whose name contains this.
    pub(crate) name: Option<&'a str>,
}

/// Boots each kernel and runs the tests in it; all of them, whatever fails. The whole matrix becomes a page of the
/// documentation.
///
/// # Errors
/// When a kernel cannot be had or booted, or a test fails on one.
pub(crate) fn test(choice: &Choice<'_>) -> anyhow::Result<()> {
    let all = choice.kernels.iter().any(|name| name == "all");
    let architectures = match choice.architecture {
        Some(one) => vec![one],
        None if all => Architecture::ALL.to_vec(),
        None => vec![Architecture::own()?],
    };
    let core = if choice.core { " --core" } else { "" };
    let name = choice.name.map(|name| format!(" {name}")).unwrap_or_default();
    let command = format!("cargo xtask test --kernel all{core}{name}");
    let mut runs = Vec::new();
    for architecture in architectures {
        setup::kernel_tools(architecture)?;
        let root = if architecture.is_own() {
            setup::libraries()?;
            PathBuf::from("/")
        } else {
            foreign::root(architecture)?
        };
        let cargo = if architecture.is_own() {
            shell::cargo()
        } else {
            foreign::cargo(architecture, &root, &[])
        };
        build_ebpf_for(architecture.processor())?;
        let set_aside =
            fetch::folder()
                .join("programs")
                .join(format!("{}-{}", architecture.name(), std::process::id()));
        let programs = plan::build(cargo, &set_aside)?;
        let plan = plan::plan(&programs, choice.core, choice.name)?;
        for kernel in catalog::chosen(choice.kernels, architecture)? {
            let unpacked = fetch::fetch(kernel, architecture)?;
            let results =
                fetch::folder()
                    .join("results")
                    .join(format!("{}-{}", architecture.name(), kernel.name));
            let machine = Machine {
                architecture,
                kernel: &unpacked,
                root: &root,
                runner: &set_aside.join("xtask"),
                results: &results,
            };
            let kept = choice.resume.then(|| machine.kept(&plan)).flatten();
            let report = match kept {
                Some(report) => report,
                None => machine
                    .run(&plan)
                    .with_context(|| format!("the tests on {} did not come to their end", kernel.name))?,
            };
            runs.push(Run {
                kernel,
                architecture,
                report,
            });
            // The page is that of the whole matrix, as far as it has come.
            if all && choice.architecture.is_none() {
                report::write(&runs, &command)?;
            }
        }
        std::fs::remove_dir_all(&set_aside)?;
    }
    for run in &runs {
        eprintln!("kernel {}", run.summary());
    }
    let failures: Vec<String> = runs
        .iter()
        .filter_map(|run| run.check().err())
        .map(|error| error.to_string())
        .collect();
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
