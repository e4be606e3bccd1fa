//! `cargo xtask fuzz`

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{
    build_ebpf::build_ebpf,
    setup,
    shell::{execute, is_root, root},
};

/// The folder of the targets' crate, where they are built, and where their corpora grow.
const CRATE: &str = "fuzz";
const BUILT: &str = "target/fuzz";

/// Bytes of an input at most: longer ones only repeat what short ones do, and take long.
const MAX_LEN: u32 = 400;
/// Seconds that libpcap has for a filter in the server.
const TIMEOUT: u32 = 5;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is to be fed; each in turn unless told
    target: Option<Target>,
    /// How long to look for inputs that fail
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Flags of libFuzzer, as `-seed=5`, or a file with an input that failed
    #[arg(last = true)]
    flags: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Target {
    /// Filter expressions, up to the kernel's verdict on packets
    Filter,
    /// Names in filter expressions
    Names,
    /// Queries and headers of requests for captures
    Request,
    /// Descriptions of targets, as clients send them
    Container,
    /// Answers of Docker's API
    Docker,
    /// Answers of the Container Runtime Interface
    Cri,
    /// Answers of GhostWire
    Mobyshark,
    /// HTTP answers of services and engines, of any length
    Answer,
    /// Files of /proc
    Proc,
    /// What the process that compiles filters answers
    Program,
    /// Records of the rings, which become pcapng
    Record,
    /// What the process that asks an engine says
    Told,
    /// What the process that serves clients asks the one that has the rights
    Asked,
}

/// Builds the fuzz targets and runs them, on seeds and on what they found of interest before.
///
/// # Errors
/// When an input fails, which is then in `fuzz/artifacts`, or something is missing; for filters also when we are not root.
pub(crate) fn fuzz(args: &Args) -> anyhow::Result<()> {
    let targets = args.target.as_ref();
    let targets = targets.map_or_else(
        || <Target as clap::ValueEnum>::value_variants(),
        std::slice::from_ref,
    );
    ensure!(
        is_root() || !targets.contains(&Target::Filter),
        "programs are loaded into the real kernel, which needs root: \
         sudo -E env \"PATH=$PATH\" cargo xtask fuzz"
    );
    setup::libraries()?;
    build_ebpf()?;
    let cargo_fuzz = setup::fuzz_tools()?;
    targets
        .iter()
        .try_for_each(|target| target.run(&cargo_fuzz, args))
}

impl Target {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn run(self, cargo_fuzz: &Path, args: &Args) -> anyhow::Result<()> {
        let corpus = root().join(BUILT).join("corpus").join(self.name());
        let seeds = self
            .seeds(&corpus)
            .with_context(|| format!("cannot write to {}", corpus.display()))?;
        let dictionary = match self {
            Self::Filter | Self::Names => "filter.dict",
            _ => "parsers.dict",
        };
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
                &self.name(),
            ]);
        let is_flag = |flag: &String| flag.starts_with('-');
        if args.flags.iter().all(is_flag) {
            command.arg(&corpus).args(seeds);
        }
        command
            .args(args.flags.iter().filter(|flag| !is_flag(flag)))
            .arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-max_len={MAX_LEN}"))
            .arg(format!("-timeout={TIMEOUT}"))
            .arg(format!("-dict={}", root().join(CRATE).join(dictionary).display()))
            .arg("-print_final_stats=1")
            .args(args.flags.iter().filter(|flag| is_flag(flag)));
        execute(&mut command)
    }

    /// Makes the folder in which the corpus grows, and gives the one of the seeds, if they are not in there.
    fn seeds(self, corpus: &Path) -> anyhow::Result<Option<PathBuf>> {
        fs::create_dir_all(corpus)?;
        if matches!(self, Self::Filter | Self::Names) {
            write_expressions(corpus)?;
            return Ok(None);
        }
        Ok(Some(root().join(CRATE).join("seeds").join(self.name())))
    }
}

/// Writes the expressions that the tests compare into files of their own, as libFuzzer wants them.
fn write_expressions(folder: &Path) -> anyhow::Result<()> {
    let written = fs::read_to_string(root().join("tests/data/expressions.txt"))?;
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
