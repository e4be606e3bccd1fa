//! What runs in the guest: each test as a process of its own, so that one that hangs or takes the process with it costs
//! the others nothing.

use std::{
    env,
    fs::{self, File},
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{
    initramfs::RESULTS,
    results::{LOGS, Line, Outcome, PLAN, RESULTS_FILE, Test},
};
use crate::shell::{output_of, root};

/// How long a test may take on an emulated processor.
const TIME_OF_TEST: Duration = Duration::from_secs(400);

/// How many times slower than a machine of its own an emulated one is; the tests' waits and samples go by it.
const SLOWNESS: &str = "10";

/// Filesystems that a system has beside those that the initramfs leaves behind: type and place.
const MOUNTS: [(&str, &str); 5] = [
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("securityfs", "/sys/kernel/security"),
];

/// What the kernel does not load by itself when it is first used.
const MODULES: [&str; 1] = ["tun"];

/// Runs the tests of the plan, and writes what comes of them, as it comes.
///
/// # Errors
/// When the guest is not what it should be. That a test fails is a result, and no error.
pub(crate) fn guest() -> anyhow::Result<()> {
    ensure!(
        Path::new(RESULTS).join(PLAN).is_file(),
        "this is what a kernel under test runs, and this machine is none"
    );
    prepare()?;
    let mut results = File::options()
        .create(true)
        .append(true)
        .open(Path::new(RESULTS).join(RESULTS_FILE))?;
    let mut tell = |line: &Line| writeln!(results, "{line}");
    let read = |file: &str| anyhow::Ok(fs::read_to_string(file)?.trim().to_owned());
    tell(&Line::Kernel {
        release: read("/proc/sys/kernel/osrelease")?,
        version: read("/proc/sys/kernel/version")?,
    })?;
    let runner = env::current_exe()?;
    let plan = fs::read_to_string(Path::new(RESULTS).join(PLAN))?;
    for line in plan.lines() {
        let [area, program, words, name] = line
            .split('\t')
            .collect::<Vec<_>>()
            .try_into()
            .map_err(|_| anyhow::anyhow!("not a line of a plan: {line}"))?;
        let program = &runner.with_file_name(program);
        for test in tests(area, program, words, name)? {
            tell(&Line::Start(test.clone()))?;
            tell(&Line::Test(run(area, program, &test)?))?;
        }
    }
    Ok(tell(&Line::End)?)
}

fn prepare() -> anyhow::Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place)?;
        succeed(Command::new("mount").args(["-t", kind, "none", place]))?;
    }
    for module in MODULES {
        succeed(Command::new("modprobe").arg(module))?;
    }
    succeed(Command::new("ip").args(["link", "set", "lo", "up"]))
}

fn succeed(command: &mut Command) -> anyhow::Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

/// Names of the tests in a program, of which each contains one of `words`, and with its area before it `name`.
fn tests(area: &str, program: &Path, words: &str, name: &str) -> anyhow::Result<Vec<String>> {
    let listed = output_of(Command::new(program).args(["--list", "--format=terse"]))
        .with_context(|| format!("{} does not list its tests", program.display()))?;
    let words: Vec<&str> = words.split_whitespace().collect();
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let wanted = names
        .filter(|test| words.is_empty() || words.iter().any(|word| test.contains(word)))
        .filter(|test| format!("{area}::{test}").contains(name));
    Ok(wanted.map(str::to_owned).collect())
}

fn run(area: &str, program: &Path, name: &str) -> anyhow::Result<Test> {
    let started = Instant::now();
    let log = Path::new(RESULTS)
        .join(LOGS)
        .join(format!("{area}-{}.log", name.replace("::", "-")));
    let output = File::create(&log)?;
    let mut child = Command::new(program)
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("PACKETFLIX_TEST_SLOWNESS", SLOWNESS)
        .env("PACKETFLIX_TEST_MACHINE", RESULTS)
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LIB_BACKTRACE", "0")
        .current_dir(root().join("tests"))
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let outcome = wait(&mut child)?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    Ok(Test::new(area, name, outcome, started.elapsed(), &text))
}

/// Waits for the end of a test, and ends it with all that it started when that takes too long.
fn wait(child: &mut Child) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + TIME_OF_TEST;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() {
                Outcome::Passed
            } else {
                Outcome::Failed
            });
        }
        if Instant::now() > deadline {
            killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL)?;
            child.wait()?;
            return Ok(Outcome::TimedOut);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
