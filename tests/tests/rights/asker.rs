//! Who asks an engine has no rights, and nothing but that engine.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_tests::{
    engine::FakeEngine,
    folder::Folder,
    process::{Sleeper, is_confined},
    server::{Server, program, wait_until},
};

/// A process that is to ask, and waits for its order.
fn asker() -> anyhow::Result<(Child, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new(program("packetflix")?)
        .arg("ask-engine")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .env_clear()
        .spawn()?;
    Ok((child, ours))
}

#[test]
fn who_asks_an_engine_has_no_rights() -> anyhow::Result<()> {
    let (mut child, line) = asker()?;
    let folder = Path::new("/proc").join(child.id().to_string());
    let status = is_confined(&folder)?;
    ensure!(status.lines().any(|line| line == "Threads:\t1"), "{status}");
    let limits = fs::read_to_string(folder.join("limits"))?;
    for (resource, bound) in [
        ("Max cpu time", "5"),
        ("Max open files", "48"),
        ("Max processes", "0"),
        ("Max file size", "0"),
        ("Max core file size", "0"),
    ] {
        let line = limits.lines().find_map(|line| line.strip_prefix(resource));
        let soft = line.and_then(|line| line.split_whitespace().next());
        ensure!(soft == Some(bound), "{resource}: {limits}");
    }
    assert_eq!(fs::read_to_string(folder.join("oom_score_adj"))?.trim(), "1000");
    ensure!(fs::read(folder.join("environ"))?.is_empty());
    // Nobody else who is nobody may look into it.
    assert_eq!(fs::metadata(folder.join("mem"))?.uid(), 0);
    for descriptor in fs::read_dir(folder.join("fd"))? {
        let leads_to = fs::read_link(descriptor?.path())?;
        let leads_to = leads_to.to_string_lossy();
        let is_known = ["socket:", "anon_inode:[event", "/dev/null"]
            .iter()
            .any(|known| leads_to.starts_with(known));
        ensure!(is_known, "{leads_to}");
    }
    // Without whoever gives orders it ends.
    drop(line);
    child.wait()?;
    Ok(())
}

/// Processes that a server has started to ask.
fn askers_of(server: &Server) -> anyhow::Result<Vec<PathBuf>> {
    let mut askers = Vec::new();
    for process in fs::read_dir("/proc")? {
        let process = process?.path();
        let is_ours = |folder: &Path| {
            let status = fs::read_to_string(folder.join("status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            let arguments = fs::read(folder.join("cmdline")).ok()?;
            let is_asker = arguments == b"packetflix\0ask-engine\0";
            Some(is_asker && parent.trim() == server.keeper().ok()?.to_string())
        };
        if is_ours(&process) == Some(true) {
            askers.push(process);
        }
    }
    Ok(askers)
}

#[test]
fn who_asks_an_engine_ends_with_the_server() -> anyhow::Result<()> {
    let (folder, sleeper) = (Folder::new()?, Sleeper::unshared()?);
    let silent = [("FAKE_ENGINE_HANGS_FOR", "web")];
    let engine = FakeEngine::start(&folder.file("engine"), &[("web", sleeper.pid())], &silent)?;
    let mut server = Server::start(&[&format!("--engine-socket={}", engine.socket().display())])?;
    let mut askers = Vec::new();
    thread::scope(|scope| {
        let looking = scope.spawn(|| server.get("/targets"));
        let found = wait_until(Duration::from_secs(10), || {
            // Each is given a second.
            let is_looking = !looking.is_finished();
            askers = askers_of(&server)?;
            Ok(!askers.is_empty() || !is_looking)
        });
        server.signal(Signal::SIGKILL)?;
        // It is answered by nobody.
        drop(looking.join());
        found
    })?;
    server.wait()?;
    let asker = askers.first().context("nobody was asking")?;
    wait_until(Duration::from_secs(10), || Ok(!asker.exists()))
}
