//! What passed on which kernel, as a table for people.

use std::{collections::BTreeSet, fmt::Write as _, fs};

use anyhow::{Context as _, ensure};

use super::{
    boot::Report,
    catalog::{Architecture, Kernel},
    plan::AREAS,
    results::{Outcome, Test},
};
use crate::shell::root;

const FILE: &str = "docs/kernels.md";

const HOOKS: [(&str, &str); 2] = [("socket", "packet socket"), ("tcx", "TCX")];

/// What came of the tests on one kernel.
pub(crate) struct Run {
    pub(crate) kernel: &'static Kernel,
    pub(crate) architecture: Architecture,
    pub(crate) report: Report,
}

impl Run {
    /// Whether all that was asked for is proved.
    ///
    /// # Errors
    /// When a test failed, none was run, or the kernel lacks what it is known to have.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let tests = &self.report.tests;
        let failed: Vec<&str> = tests
            .iter()
            .filter(|test| test.outcome != Outcome::Passed)
            .map(|test| test.name.as_str())
            .collect();
        ensure!(
            failed.is_empty(),
            "{} of {} tests failed on {}: {}",
            failed.len(),
            tests.len(),
            self.report.release,
            failed.join(", ")
        );
        ensure!(!tests.is_empty(), "no test of this name is run on other kernels");
        let missed = tests.iter().any(|test| test.missing.contains("TCX"));
        ensure!(
            !(missed && self.kernel.has_tcx),
            "tests found no TCX on {}, which has it",
            self.report.release
        );
        Ok(())
    }

    /// A line for the log.
    pub(crate) fn summary(&self) -> String {
        let tests = &self.report.tests;
        let passed = tests
            .iter()
            .filter(|test| test.outcome == Outcome::Passed)
            .count();
        let missing: BTreeSet<&str> = tests
            .iter()
            .flat_map(|test| test.missing.iter().map(String::as_str))
            .collect();
        // Where there is no TCX, a test that names it is told so, which is what it tests there.
        let captures = |hook| hook != "tcx" || self.kernel.has_tcx;
        let by_hook = HOOKS.map(|(hook, name)| {
            let passed = count(tests, |test| captures(hook) && test.hooks.contains(hook));
            format!("{passed} by {name}")
        });
        let mut line = format!(
            "{} {} ({}): {passed} of {} tests passed, {}",
            self.kernel.name,
            self.architecture.name(),
            self.report.release,
            tests.len(),
            by_hook.join(", "),
        );
        for what in missing {
            let _ = write!(&mut line, "; no {what}");
        }
        line
    }
}

fn count(tests: &[Test], wanted: impl Fn(&Test) -> bool) -> usize {
    tests
        .iter()
        .filter(|test| test.outcome == Outcome::Passed && wanted(test))
        .count()
}

/// Writes the page of the matrix.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn write(runs: &[Run], command: &str) -> anyhow::Result<()> {
    let file = root().join(FILE);
    fs::write(&file, page(runs, command)).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("xtask: wrote {FILE}");
    Ok(())
}

fn page(runs: &[Run], command: &str) -> String {
    let mut areas: Vec<&str> = Vec::new();
    for area in AREAS {
        if !areas.contains(&area.name) {
            areas.push(area.name);
        }
    }
    let mut page = introduction(command);
    let _ = writeln!(&mut page, "\n| kernel | hook | {} |", areas.join(" | "));
    let _ = writeln!(&mut page, "|---|---|{}", "---:|".repeat(areas.len()));
    for run in runs {
        let tests = &run.report.tests;
        let kernel = format!(
            "**{}** {}",
            run.report.release,
            package_version(&run.report.version)
        );
        for (hook, name) in HOOKS {
            let missing = hook == "tcx" && !run.kernel.has_tcx;
            let cells = areas.iter().map(|area| {
                let of_area = |test: &Test| test.area == **area;
                if missing {
                    let refused = count(tests, |test| of_area(test) && test.missing.contains("TCX"));
                    return if refused == 0 {
                        String::new()
                    } else {
                        format!("none ({refused})")
                    };
                }
                let on_hook = count(tests, |test| of_area(test) && test.hooks.contains(hook));
                cell(on_hook, tests, of_area, |test| test.hooks.contains(hook))
            });
            let cells: Vec<String> = cells.collect();
            let _ = writeln!(&mut page, "| {kernel} | {name} | {} |", cells.join(" | "));
        }
        let cells: Vec<String> = areas
            .iter()
            .map(|area| {
                let alone = |test: &Test| test.area == **area && test.hooks.is_empty();
                cell(count(tests, alone), tests, alone, |_| true)
            })
            .collect();
        let _ = writeln!(
            &mut page,
            "| {kernel} | without a capture | {} |",
            cells.join(" | ")
        );
    }
    page
}

/// How many passed, or how many of how many.
fn cell(
    passed: usize,
    tests: &[Test],
    of_area: impl Fn(&Test) -> bool,
    of_hook: impl Fn(&Test) -> bool,
) -> String {
    let all = tests.iter().filter(|test| of_area(test) && of_hook(test)).count();
    match (passed, all) {
        (_, 0) => String::new(),
        (passed, all) if passed == all => passed.to_string(),
        (passed, all) => format!("**{passed} of {all}**"),
    }
}

/// `6.1.192-2` of `#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-2 (2026-10-01)`.
fn package_version(version: &str) -> &str {
    let (_, rest) = version.split_once("Debian ").unwrap_or_default();
    rest.split(' ').next().unwrap_or_default()
}

/// What the table is; `command` is what made it.
fn introduction(command: &str) -> String {
    format!(
        "# Kernels

Made by `{command}`, which boots Debian's own kernels under emulation and runs there tests whose subject is the kernel.
The same tests run on the kernel of the development machine. `cargo xtask test --kernel all` runs all of them; `--core`
those that are run before a change lands; with a name, those that have it in theirs.

A number says how many tests passed; a test that captures on both hooks counts for both. \"none\" says that the kernel lacks
the hook, and how many tests saw `--hook tcx` refused for that reason, instead of capturing. Where a cell is empty, no test
was run.
"
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Report, Run, page};
    use crate::kernel::{
        catalog::{Architecture, chosen},
        results::{Outcome, Test},
    };

    fn run(kernel: &str, tests: Vec<Test>) -> anyhow::Result<Run> {
        Ok(Run {
            kernel: chosen(&[kernel.to_owned()], Architecture::Amd64)?[0],
            architecture: Architecture::Amd64,
            report: Report {
                release: format!("{kernel}.0-1-amd64"),
                version: "#1 SMP Debian 1.2.3-4 (2026-10-01)".to_owned(),
                tests,
            },
        })
    }

    fn test(name: &str, outcome: Outcome, printed: &str) -> Test {
        Test::new("frames", name, outcome, Duration::ZERO, printed)
    }

    #[test]
    fn failures_are_told() -> anyhow::Result<()> {
        let tests = vec![
            test("a", Outcome::Passed, "hook: socket"),
            test("b", Outcome::Failed, "hook: socket\nhook: tcx"),
            test("c", Outcome::Passed, "hook: tcx"),
        ];
        let run = run("6.12", tests)?;
        assert_eq!(
            run.check().map_err(|error| error.to_string()),
            Err("1 of 3 tests failed on 6.12.0-1-amd64: b".to_owned())
        );
        assert_eq!(
            run.summary(),
            "6.12 amd64 (6.12.0-1-amd64): 2 of 3 tests passed, 1 by packet socket, 1 by TCX"
        );
        let page = page(&[run], "cargo xtask test");
        assert!(
            page.contains("| **6.12.0-1-amd64** 1.2.3-4 | packet socket |  |  | **1 of 2** |"),
            "{page}"
        );
        assert!(
            page.contains("| **6.12.0-1-amd64** 1.2.3-4 | TCX |  |  | **1 of 2** |"),
            "{page}"
        );
        Ok(())
    }

    #[test]
    fn what_a_kernel_lacks_is_told_and_known() -> anyhow::Result<()> {
        let told = "hook: socket\nhook: tcx\nthis kernel has no TCX";
        let lacking = || vec![test("a", Outcome::Passed, told)];
        let old = run("6.1", lacking())?;
        old.check()?;
        assert!(
            old.summary()
                .ends_with("1 of 1 tests passed, 1 by packet socket, 0 by TCX; no TCX")
        );
        let page = page(&[old], "cargo xtask test");
        assert!(page.contains("| TCX |  |  | none (1) |"), "{page}");
        assert!(run("6.12", lacking())?.check().is_err());
        assert!(run("6.12", Vec::new())?.check().is_err());
        Ok(())
    }
}
