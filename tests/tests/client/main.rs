//! The client's verbs, as users call them, with a server of their own.

mod apart;
mod capture;
mod extcap;
mod files;
mod lines;
mod local;
mod newcomers;
mod servers;
mod several;
mod ssh;
mod verbs;
mod window;
// Wine runs programs for 64-bit PCs on these alone.
#[cfg(target_arch = "x86_64")]
mod windows;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    net::UdpSocket,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    folder::Folder,
    namespace::{Namespace, run},
    recording::Recording,
    server::{Server, program, wait_until},
};

/// A command line of the client, which heeds SIGHUP though the tests may have been started with nohup.
fn packetflix(server: &Server, arguments: &[&str]) -> anyhow::Result<Command> {
    // By its whole path: a test may have no program found.
    let mut command = Command::new("/usr/bin/env");
    command
        .arg("--default-signal=HUP")
        .arg(program("packetflix")?)
        .args(arguments)
        .env("PACKETFLIX_SERVER", format!("http://127.0.0.1:{}", server.port()))
        .stdin(Stdio::null());
    Ok(command)
}

/// Runs the client to its end.
fn output(server: &Server, arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(packetflix(server, arguments)?.output()?)
}

/// What it prints when all goes well.
fn printed(server: &Server, arguments: &[&str]) -> anyhow::Result<String> {
    let output = output(server, arguments)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// A capture that runs.
struct Capture {
    child: Child,
    log: BufReader<ChildStderr>,
    /// What it has said at its start.
    first: String,
}

impl Capture {
    /// Starts one, and waits until packets are captured.
    fn start(server: &Server, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut command = packetflix(server, &[&["capture"], arguments].concat())?;
        Self::start_by(command.stdout(Stdio::piped()))
    }

    fn start_by(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("no log")?);
        let mut first = String::new();
        log.read_line(&mut first)?;
        // On a busy machine.
        if first.starts_with("packetflix: waiting ") {
            first.clear();
            log.read_line(&mut first)?;
        }
        ensure!(first.starts_with("packetflix: capturing "), "{first}");
        Ok(Self { child, log, first })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }

    /// Waits for its end, and gives its status and what it has said.
    fn end(mut self) -> anyhow::Result<(i32, String)> {
        let mut status = None;
        wait_until(Duration::from_secs(15), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        let mut told = String::new();
        self.log.read_to_string(&mut told)?;
        let code = status
            .and_then(|status| status.code())
            .context("a signal ended it")?;
        Ok((code, told))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends UDP packets of numbers over the loopback device of a namespace.
fn send(namespace: &Namespace, numbers: Range<u32>) -> anyhow::Result<()> {
    namespace.inside(|| {
        // Without it, each would be answered.
        let _receiver = UdpSocket::bind("127.0.0.1:9")?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for number in numbers {
            socket.send_to(&number.to_be_bytes(), "127.0.0.1:9")?;
        }
        anyhow::Ok(())
    })?
}

fn read(file: &Path) -> anyhow::Result<Recording> {
    Recording::parse(&fs::read(file)?)
}

/// A file that is not there yet, in a folder that goes with it.
fn file_in(folder: &Folder, name: &str) -> (PathBuf, String) {
    let path = folder.path().join(name);
    let text = path.display().to_string();
    (path, text)
}

/// Whether no capture runs on a server.
fn is_idle(server: &Server) -> anyhow::Result<bool> {
    let (_, list) = server.get("/captures")?;
    Ok(list["captures"].as_array().is_some_and(Vec::is_empty))
}

/// A file system of little room.
struct Mounted(String);

impl Mounted {
    fn new(folder: &Folder, size: &str) -> anyhow::Result<Self> {
        let path = folder.file("small");
        fs::create_dir(&path)?;
        let path = path.display().to_string();
        run(
            "mount",
            &["-t", "tmpfs", "-o", &format!("size={size}"), "none", &path],
        )?;
        Ok(Self(path))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = run("umount", &[&self.0]);
    }
}
