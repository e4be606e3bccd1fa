//! `cargo xtask fuzz`

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::{
    setup,
    shell::{execute, is_root, root},
};

/// The target, and the folder of its crate.
const TARGET: &str = "filter";
const CRATE: &str = "fuzz";
/// Where it is built, and where its corpus grows.
const BUILT: &str = "target/fuzz";

/// Bytes of an expression at most: longer ones only repeat what short ones do, and take long.
const MAX_LEN: u32 = 400;
/// Seconds that libpcap has for one in the server.
const TIMEOUT: u32 = 5;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long to look for expressions that fail
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Flags of libFuzzer, as `-seed=5`, or a file with an expression that failed
    #[arg(last = true)]
    flags: Vec<String>,
}

/// Builds the fuzz target and runs it, on the expressions of the tests and what it found of interest before.
///
/// # Errors
/// When an expression fails, which is then in `fuzz/artifacts`, or we are not root, or something is missing.
pub(crate) fn fuzz(args: &Args) -> anyhow::Result<()> {
    ensure!(
        is_root(),
        "programs are loaded into the real kernel, which needs root: \
         sudo -E env \"PATH=$PATH\" cargo xtask fuzz"
    );
    setup::libraries()?;
    let cargo_fuzz = setup::fuzz_tools()?;
    let corpus = root().join(BUILT).join("corpus");
    write_corpus(&corpus).with_context(|| format!("cannot write to {}", corpus.display()))?;
    let mut command = Command::new(cargo_fuzz);
    command
        .current_dir(root())
        // As cargo calls it. Memory is Rust's to check, so that no sanitizer is needed, nor a nightly compiler.
        .args([
            "fuzz",
            "run",
            "--sanitizer=none",
            "--fuzz-dir",
            CRATE,
            "--target-dir",
            BUILT,
            TARGET,
        ]);
    let is_flag = |flag: &String| flag.starts_with('-');
    if args.flags.iter().all(is_flag) {
        command.arg(&corpus);
    }
    command
        .args(args.flags.iter().filter(|flag| !is_flag(flag)))
        .arg("--")
        .arg(format!("-max_total_time={}", args.seconds))
        .arg(format!("-max_len={MAX_LEN}"))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!(
            "-dict={}",
            root().join(CRATE).join("filter.dict").display()
        ))
        .arg("-print_final_stats=1")
        .args(args.flags.iter().filter(|flag| is_flag(flag)));
    execute(&mut command)
}

/// Writes the expressions that the tests compare into files of their own, as libFuzzer wants them.
fn write_corpus(folder: &Path) -> anyhow::Result<()> {
    let written = fs::read_to_string(root().join("tests/data/expressions.txt"))?;
    fs::create_dir_all(folder)?;
    let lines = written
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for (number, line) in lines.enumerate() {
        let expression = line.strip_prefix("refused: ").unwrap_or(line);
        fs::write(folder.join(format!("written-{number:04}")), expression)?;
    }
    Ok(())
}
