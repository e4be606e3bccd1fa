//! Which tests are run on another kernel: those whose subject is the kernel.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::Context as _;

use crate::programs::{self, TestProgram};

/// Folders of the packages whose tests are run on other kernels.
const PACKAGES: [&str; 2] = ["packetflix-common", "tests"];

/// Tests of one subject, which is a column of the report.
pub(crate) struct Area {
    pub(crate) name: &'static str,
    /// The program of the tests, by the name that cargo gives it.
    program: &'static str,
    /// Those whose names contain one of these; all, if there are none.
    tests: &'static [&'static str],
    /// Those of them that are run before a change lands.
    core: Core,
}

enum Core {
    All,
    Nothing,
    Only(&'static [&'static str]),
}

/// What is left out is the same on each kernel: engines, HTTP, tokens, TLS, the report, the image.
pub(crate) const AREAS: &[Area] = &[
    Area {
        name: "records",
        program: "packetflix_common",
        tests: &[],
        core: Core::All,
    },
    Area {
        name: "check",
        program: "kernel",
        tests: &[],
        core: Core::All,
    },
    Area {
        name: "frames",
        program: "frames",
        tests: &[],
        core: Core::All,
    },
    Area {
        name: "interfaces",
        program: "interfaces",
        tests: &[],
        core: Core::Nothing,
    },
    Area {
        name: "interfaces",
        program: "kinds",
        tests: &[],
        core: Core::Only(&["vlan_and_its"]),
    },
    Area {
        name: "CPUs",
        program: "cpus",
        tests: &[],
        core: Core::Only(&["comes_online"]),
    },
    Area {
        name: "check",
        program: "verifier",
        tests: &[],
        core: Core::Nothing,
    },
    Area {
        name: "AppArmor",
        program: "apparmor",
        tests: &[],
        core: Core::All,
    },
    Area {
        name: "namespaces",
        program: "namespaces",
        tests: &["ends_with_its"],
        core: Core::All,
    },
    Area {
        name: "filters",
        program: "filters",
        tests: &[],
        core: Core::Only(&["of_any_size"]),
    },
    Area {
        name: "differential",
        program: "filter_differential",
        tests: &[],
        core: Core::Only(&["expressions_do"]),
    },
    Area {
        name: "accounts",
        program: "load",
        tests: &[],
        core: Core::Only(&["a_million"]),
    },
    Area {
        name: "preemption",
        program: "preemption",
        tests: &[],
        core: Core::Only(&["losses_are"]),
    },
    Area {
        name: "lifecycle",
        program: "lifecycle",
        tests: &[],
        core: Core::Only(&["killed"]),
    },
    Area {
        name: "lifecycle",
        program: "sharing",
        tests: &[],
        core: Core::Nothing,
    },
    Area {
        name: "lifecycle",
        program: "in_a_row",
        tests: &[],
        core: Core::Nothing,
    },
    Area {
        name: "discovery",
        program: "namespaces",
        tests: &["is_found"],
        core: Core::Only(&["mounted_in_another"]),
    },
    Area {
        name: "discovery",
        program: "targets",
        tests: &[],
        core: Core::Only(&["process_that_is_meant"]),
    },
    Area {
        name: "clock",
        program: "faults",
        tests: &["clock::"],
        core: Core::Only(&["clock_that"]),
    },
];

impl Area {
    /// The names of its tests contain one of these; `None` when none is to be run, no words when all are.
    fn words(&self, core: bool) -> Option<&'static [&'static str]> {
        match self.core {
            Core::Nothing if core => None,
            Core::Only(words) if core => Some(words),
            _ => Some(self.tests),
        }
    }
}

/// What the guest is to do: a line for each program of tests, with the area, the program, the words and the words that
/// the caller wants to find in a test's name.
pub(crate) fn plan(
    programs: &BTreeMap<String, String>,
    core: bool,
    name: Option<&str>,
) -> anyhow::Result<String> {
    let mut plan = String::new();
    for area in AREAS {
        let Some(words) = area.words(core) else { continue };
        let program = programs
            .get(area.program)
            .with_context(|| format!("cargo has built no tests called {}", area.program))?;
        let fields = [area.name, program, &words.join(" "), name.unwrap_or_default()];
        plan += &fields.join("\t");
        plan.push('\n');
    }
    Ok(plan)
}

/// Builds the programs and their tests, and sets them aside in `folder`, so that they stay the same whatever is built
/// while kernels run them. `cargo` says what for. Gives the files of those of the tests by their names.
///
/// # Errors
/// When something does not build.
pub(crate) fn build(cargo: Command, folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let programs = programs::build(cargo)?;
    let programs = programs
        .iter()
        .filter(|program| PACKAGES.iter().any(|package| program.is_of(package)));
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let mut files = BTreeMap::new();
    for TestProgram {
        name, file: program, ..
    } in programs
    {
        // The programs that tests start are in the folder above.
        let above = program.ancestors().nth(2).context("a program without a folder")?;
        for file in fs::read_dir(above)? {
            let file = file?;
            let metadata = file.metadata()?;
            if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
                set_aside(&file.path(), &folder.join(file.file_name()))?;
            }
        }
        // The same whatever is built, so that plans can be compared.
        let file = format!("{name}-test");
        set_aside(program, &folder.join(&file))?;
        files.insert(name.clone(), file);
    }
    Ok(files)
}

fn set_aside(program: &Path, to: &Path) -> anyhow::Result<()> {
    if !to.exists() {
        fs::hard_link(program, to).with_context(|| format!("cannot set {} aside", program.display()))?;
    }
    Ok(())
}
