//! A program that the kernel does not take: what the service says of it, and that this is not taken for a missing right.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Output},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::refusal,
    folder::Folder,
    namespace::Namespace,
    server::{Server, program},
};

/// `r0 = 1; exit`, and `r0 = 2; exit`: the functions in whose places filters are put.
const FUNCTIONS: [[u8; 8]; 4] = [
    [0xb7, 0, 0, 0, 1, 0, 0, 0],
    [0x95, 0, 0, 0, 0, 0, 0, 0],
    [0xb7, 0, 0, 0, 2, 0, 0, 0],
    [0x95, 0, 0, 0, 0, 0, 0, 0],
];

/// `r0 = r9`, where nothing was ever put into r9: verifiers answer EACCES.
const FORBIDDEN: [u8; 8] = [0xbf, 0x90, 0, 0, 0, 0, 0, 0];

/// What they say.
const FAULT: &str = "R9 !read_ok";

/// The program that users start, but for one instruction of its eBPF object, which makes that invalid.
fn with_invalid_object(folder: &Folder) -> anyhow::Result<PathBuf> {
    let mut bytes = fs::read(program("packetflix")?)?;
    let functions = FUNCTIONS.as_flattened();
    let mut places = bytes
        .windows(functions.len())
        .enumerate()
        .filter_map(|(at, window)| (window == functions).then_some(at));
    let first = places.next().context("no place of a filter")?;
    ensure!(places.next().is_none(), "not the only one");
    bytes[first..first + FORBIDDEN.len()].copy_from_slice(&FORBIDDEN);
    let file = folder.file("packetflix");
    fs::write(&file, bytes)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o700))?;
    Ok(file)
}

fn release() -> anyhow::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A report is for people, who have a screen.
fn fits_on_a_screen(report: &str) -> anyhow::Result<()> {
    let longest = report.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    ensure!(report.lines().count() <= 60 && longest <= 400, "{report}");
    Ok(())
}

fn check(command: &mut Command) -> anyhow::Result<(Output, String)> {
    let output = command.arg("check").output()?;
    let report = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{report}");
    fits_on_a_screen(&report)?;
    Ok((output, report))
}

#[test]
fn check_tells_a_refused_program_in_a_sentence() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let invalid = with_invalid_object(&folder)?;
    let (output, report) = check(&mut Command::new(&invalid))?;
    let line = report
        .lines()
        .find(|line| line.contains("hook socket"))
        .context("no such hook")?;
    let told = format!("the verifier of Linux {} refuses the eBPF program `", release()?);
    ensure!(
        line.starts_with("FAILS") && line.contains(&told) && line.ends_with(&format!("\"{FAULT}\"")),
        "{line}"
    );
    ensure!(
        report.contains("report this with the whole log, which --debug shows"),
        "{report}"
    );
    ensure!(
        !report.contains("seccomp profile") && !report.contains("stands against"),
        "{report}"
    );
    ensure!(report.ends_with("Captures cannot work.\n"), "{report}");
    ensure!(
        !text(&output.stderr).contains("processed "),
        "{}",
        text(&output.stderr)
    );

    let debug = Command::new(&invalid).args(["check", "--debug"]).output()?;
    let log = text(&debug.stderr) + &text(&debug.stdout);
    ensure!(
        log.contains("processed ") && log.contains(&format!("\n{FAULT}\n")),
        "{log}"
    );
    Ok(())
}

#[tokio::test]
async fn service_tells_a_refused_program_in_a_sentence() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let namespace = Namespace::new()?;
    let server = Server::start_by(&mut Command::new(with_invalid_object(&folder)?), &[])?;
    let expected = |sentence: &str| {
        sentence.starts_with("the verifier of Linux ")
            && sentence.contains(FAULT)
            && sentence
                .ends_with(": update the kernel, or report this with the whole log, which --debug shows")
    };
    let url = server.url(&format!("netns={}", namespace.inode()?));
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(status == 500 && expected(&sentence), "{status} {sentence}");
    let (status, body) = server.get("/readyz")?;
    ensure!(
        status == 503 && body["error"].as_str().is_some_and(expected),
        "{status} {body}"
    );
    server.wait_for_log(FAULT)?;
    fits_on_a_screen(&server.log())
}

/// The same error numbers, for want of a right.
#[tokio::test]
async fn missing_right_is_not_taken_for_a_refused_program() -> anyhow::Result<()> {
    let lacking = || {
        let mut setpriv = Command::new("setpriv");
        setpriv
            .arg("--bounding-set=-sys_admin,-bpf,-perfmon")
            .arg(program("packetflix")?);
        anyhow::Ok(setpriv)
    };
    let (_, report) = check(&mut lacking()?)?;
    ensure!(
        !report.contains("verifier") && report.contains("the service lacks CAP_SYS_ADMIN"),
        "{report}"
    );
    let server = Server::start_by(&mut lacking()?, &["--hook", "socket"])?;
    let (status, body) = server.get("/readyz")?;
    let sentence = body["error"].as_str().unwrap_or_default();
    ensure!(
        status == 503
            && sentence.starts_with("the service lacks CAP_SYS_ADMIN, without which no capture can begin: ")
            && !sentence.contains("erifier"),
        "{status} {body}"
    );
    Ok(())
}
