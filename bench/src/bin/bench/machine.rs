//! The machine on which we are.

use std::{
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use packetflix_bench::report::Machine;
use packetflix_tests::root;

/// Finds out what figures depend on.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn machine() -> anyhow::Result<Machine> {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .context("no MemTotal")?
        .parse()?;
    let days = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() / 86_400;
    Ok(Machine {
        kernel: kernel.trim_end().to_owned(),
        cpus: std::thread::available_parallelism()?.get(),
        memory_mib: kib / 1024,
        version: version(),
        date: date(days),
    })
}

/// With the commit, if there is one.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = Command::new("git")
        .args(["rev-parse", "--short", "HEAD"])
        .current_dir(root())
        .output()
        .ok()
        .filter(|output| output.status.success());
    match commit {
        Some(output) => format!("{version} ({})", String::from_utf8_lossy(&output.stdout).trim()),
        None => version.to_owned(),
    }
}

/// Of a number of days since 1970, counted in years that begin with March and in eras of 400 of them.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let (month, later) = if from_march < 10 {
        (from_march + 3, 0)
    } else {
        (from_march - 9, 1)
    };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + later)
}
