//! Time and memory of looking for targets, among many network namespaces and among many containers of an engine.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use packetflix_tests::server::Server;
use serde_json::Value;

use crate::{
    Args,
    crowd::Crowd,
    engine::Engine,
    http::get,
    interrupt::{check, sleep_until},
    table::{Table, Times},
    usage::cpu_of,
};

/// A scan is good for a second: the next question after that has another made.
const FRESH: Duration = Duration::from_millis(1050);

/// What lists network namespaces without us: a yardstick for the machine and the moment.
const LSNS: &[&str] = &["lsns", "--type", "net", "--json"];

/// What looks into each mounted namespace without us: half of all.
const IP_ALL: &[&str] = &["ip", "-all", "netns", "exec", "ip", "-json", "address"];

/// [`IP_ALL`] takes its time.
const MAX_IP_ALL_ROUNDS: u32 = 3;

/// How often each thing is measured, if nothing else is asked for.
const ROUNDS: u32 = 20;

/// Servers that are started for first scans, at most.
const MAX_FIRST_ROUNDS: u32 = 5;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let rounds = args.rounds(ROUNDS);
    let mut table = Table::new(format!(
        "Scans of network namespaces, half of them mounted, half of a process, {rounds} rounds"
    ));
    let mut crowd = Crowd::new()?;
    for count in [0, args.namespaces, 2 * args.namespaces] {
        eprintln!("bench: {count} namespaces");
        crowd.grow(count)?;
        namespaces(&mut table, &crowd, rounds)?;
    }
    table.print();

    eprintln!("bench: an engine");
    crowd.add_sidecars()?;
    let pids: Vec<u32> = crowd.pids().collect();
    let mut table = Table::new(format!(
        "Scans of {} containers of an engine, two in each of {} namespaces, beside {} mounted ones",
        pids.len(),
        pids.len() / 2,
        crowd.len() as usize - pids.len() / 2
    ));
    engines(&mut table, &pids, rounds)?;
    table.print();
    Ok(())
}

/// Adds a column for the namespaces that there are.
fn namespaces(table: &mut Table, crowd: &Crowd, rounds: u32) -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let resident = server.status("VmRSS")?;
    let (mut scans, mut kept, mut lsns, mut ip_all) = (
        Times::default(),
        Times::default(),
        Times::default(),
        Times::default(),
    );
    let (mut scans_cpu, mut lsns_cpu) = (Duration::ZERO, Duration::ZERO);
    let mut answer = Vec::new();
    for round in 0..rounds {
        let before = cpu_of(&server.processes())?;
        let begin = Instant::now();
        answer = get(server.port(), "/targets")?;
        scans.push(begin.elapsed());
        scans_cpu += cpu_of(&server.processes())? - before;

        let again = Instant::now();
        get(server.port(), "/targets")?;
        kept.push(again.elapsed());

        let before = cpu_of_children()?;
        lsns.push(time_of(LSNS)?);
        lsns_cpu += cpu_of_children()?.saturating_sub(before);
        if round < rounds.min(MAX_IP_ALL_ROUNDS) {
            ip_all.push(time_of(IP_ALL)?);
        }
        sleep_until(begin + FRESH)?;
    }
    let targets = targets_of(&answer)?;
    ensure!(
        targets.len() as u32 >= crowd.len(),
        "only {} targets",
        targets.len()
    );

    table.column(crowd.len().to_string());
    table.figure("processes on the host", "", processes()? as f64);
    table.figure("targets told", "", targets.len() as f64);
    table.figure("scan and answer, p50", "ms", scans.p50());
    table.figure("scan and answer, max", "ms", scans.max());
    table.figure("answer from the last scan, p50", "ms", kept.p50());
    let cpu = scans_cpu.as_secs_f64() * 1000.0 / f64::from(rounds);
    table.figure("CPU time of the server per scan", "ms", cpu);
    table.figure("lsns --type net --json, p50", "ms", lsns.p50());
    table.figure("lsns --type net --json, max", "ms", lsns.max());
    let lsns_cpu = lsns_cpu.as_secs_f64() * 1000.0 / f64::from(rounds);
    table.figure("CPU time of lsns", "ms", lsns_cpu);
    table.figure("ip -all netns exec ip -json address, p50", "ms", ip_all.p50());
    table.figure("scan / lsns, p50", "", scans.p50() / lsns.p50());
    table.figure("scan / lsns, CPU time", "", cpu / lsns_cpu);
    memory(table, &server, resident)?;
    table.figure("answer of /targets", "bytes", answer.len() as f64);
    table.figure(
        "answer of /mobyshark",
        "bytes",
        get(server.port(), "/mobyshark")?.len() as f64,
    );
    Ok(())
}

/// Adds columns for what an engine tells at first, later, and beside one that hangs.
fn engines(table: &mut Table, pids: &[u32], rounds: u32) -> anyhow::Result<()> {
    let engine = Engine::start("docker", pids)?;
    let flag = format!("--engine-socket={}", engine.path().display());

    let mut measured = Measured::default();
    for _ in 1..rounds.min(MAX_FIRST_ROUNDS) {
        measured.scan(&Server::start(&[&flag])?, &engine)?;
    }
    let server = Server::start(&[&flag])?;
    let resident = server.status("VmRSS")?;
    measured.scan(&server, &engine)?;
    table.column("first scan");
    measured.tell(table, pids.len())?;
    memory(table, &server, resident)?;

    let mut measured = Measured::default();
    for _ in 0..rounds {
        sleep_until(Instant::now() + FRESH)?;
        measured.scan(&server, &engine)?;
    }
    table.column("later scans");
    measured.tell(table, pids.len())?;
    memory(table, &server, resident)?;

    let hanging = Engine::hanging("hanging")?;
    let hanging_flag = format!("--engine-socket={}", hanging.path().display());
    let server = Server::start(&[&flag, &hanging_flag])?;
    let resident = server.status("VmRSS")?;
    let mut measured = Measured::default();
    for _ in 0..rounds.min(MAX_FIRST_ROUNDS) {
        measured.scan(&server, &engine)?;
        sleep_until(Instant::now() + FRESH)?;
    }
    table.column("one hangs");
    measured.tell(table, pids.len())?;
    memory(table, &server, resident)
}

/// Scans of a server that has an engine.
#[derive(Default)]
struct Measured {
    times: Times,
    cpu: Duration,
    count: u32,
    requests: u32,
    answer: Vec<u8>,
}

impl Measured {
    fn scan(&mut self, server: &Server, engine: &Engine) -> anyhow::Result<()> {
        check()?;
        engine.take_requests();
        let before = cpu_of(&server.processes())?;
        let begin = Instant::now();
        self.answer = get(server.port(), "/targets")?;
        self.times.push(begin.elapsed());
        self.cpu += cpu_of(&server.processes())? - before;
        self.count += 1;
        self.requests += engine.take_requests();
        Ok(())
    }

    fn tell(&self, table: &mut Table, containers: usize) -> anyhow::Result<()> {
        let told = targets_of(&self.answer)?
            .iter()
            .filter(|target| target["type"] == "docker")
            .count();
        // An engine has a second to tell everything, which is little on a machine that is busy.
        table.figure("containers there are", "", containers as f64);
        table.figure("containers told", "", told as f64);
        table.figure("scans", "", f64::from(self.count));
        table.figure("scan and answer, p50", "ms", self.times.p50());
        table.figure("scan and answer, max", "ms", self.times.max());
        let count = f64::from(self.count);
        table.figure(
            "CPU time of the server per scan",
            "ms",
            self.cpu.as_secs_f64() * 1000.0 / count,
        );
        table.figure(
            "requests to the engine per scan",
            "",
            f64::from(self.requests) / count,
        );
        table.figure("answer of /targets", "bytes", self.answer.len() as f64);
        Ok(())
    }
}

/// Memory of the server, which had `resident` KiB before.
fn memory(table: &mut Table, server: &Server, resident: u64) -> anyhow::Result<()> {
    let (now, most) = (server.status("VmRSS")?, server.status("VmHWM")?);
    table.figure("memory before the first scan (VmRSS)", "KiB", resident as f64);
    table.figure("memory after the last scan (VmRSS)", "KiB", now as f64);
    table.figure("most memory at any time (VmHWM)", "KiB", most as f64);
    Ok(())
}

fn targets_of(answer: &[u8]) -> anyhow::Result<Vec<Value>> {
    let mut answer: Value = serde_json::from_slice(answer)?;
    match answer["targets"].take() {
        Value::Array(targets) => Ok(targets),
        other => anyhow::bail!("no targets: {other}"),
    }
}

/// How long a program takes.
fn time_of(command: &[&str]) -> anyhow::Result<Duration> {
    let (program, arguments) = command.split_first().context("no program")?;
    let begin = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    ensure!(status.success(), "{program}: {status}");
    Ok(begin.elapsed())
}

/// CPU time of our children that have ended.
fn cpu_of_children() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}

fn processes() -> anyhow::Result<usize> {
    let entries = std::fs::read_dir("/proc")?;
    let is_number = |name: &str| name.bytes().all(|byte| byte.is_ascii_digit());
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_number(name))
        .count())
}
