//! File systems that never answer, in mount namespaces of others.

use std::{
    io::Write as _,
    net::{TcpStream, UdpSocket},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use packetflix_tests::{
    client::Recorder,
    hoard::Hoard,
    namespace::{Namespace, inside, of_process},
    process::{Sleeper, capture_is_of},
    server::{Server, program, wait_until},
};
use serde_json::{Deserializer, Value, json};
use tokio::time::sleep;

use crate::{gaps, has_gap, has_not_panicked};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_view_that_hangs_is_told_and_costs_nobody_else() -> anyhow::Result<()> {
    let mut hoard = Hoard::of_root(&["hang", "/run"])?;
    let sleeper = Sleeper::unshared()?;
    let namespace = Namespace::new()?;
    let server = Server::start(&["--max-connections-per-address=1000"])?;

    // The first look waits for it, within bounds; others do not.
    let begin = Instant::now();
    let (status, details) = server.get("/targets")?;
    let first = begin.elapsed();
    ensure!(
        status == 200 && first < Duration::from_secs(8),
        "{status} {first:?}"
    );
    ensure!(has_gap(&details, "did not answer"), "{:?}", gaps(&details));
    server.wait_for_log("does not answer")?;
    let mut check = check_says_what_to_do()?;
    let name = format!("sleep({})", sleeper.pid());
    let begin = Instant::now();
    capture_is_of(&server, &json!({ "name": name }), "", sleeper.pid()).await?;
    let mount = json!({ "name": namespace.path().display().to_string() });
    Recorder::start(&server.url_of(&mount, ""))
        .await?
        .finish()
        .await?;
    let later = begin.elapsed();
    ensure!(later < Duration::from_secs(4), "{later:?}");
    let lost = server.status("Threads")?;

    // Those who leave take nobody's place.
    for number in 0..560 {
        let mut leaving = TcpStream::connect(("127.0.0.1", server.port()))?;
        let path = if number % 2 == 0 {
            "/targets"
        } else {
            "/capture?netns=4026000001"
        };
        let upgrade = "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        write!(leaving, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{upgrade}\r\n")?;
    }
    let begin = Instant::now();
    capture_is_of(&server, &json!({ "name": name }), "", sleeper.pid()).await?;
    let beside = begin.elapsed();
    ensure!(beside < Duration::from_secs(10), "{beside:?}");
    ensure!(server.get("/readyz")?.0 == 200);
    wait_until(Duration::from_secs(30), || {
        Ok(server.status("Threads")? <= lost + 4)
    })?;
    eprintln!(
        "one that hangs: a scan of {first:.1?}, then two captures in {later:.1?}, {beside:.1?} after 560 who left"
    );

    hoard.let_go()?;
    check.wait()?;
    server.wait_for_log("answers again")?;
    wait_until(Duration::from_secs(10), || {
        let (_, details) = server.get("/targets")?;
        Ok(!has_gap(&details, "did not answer"))
    })?;
    has_not_panicked(&server)
}

/// About what hangs, and not about rights, which are not lacking. The kernel lets go of the program when that answers.
fn check_says_what_to_do() -> anyhow::Result<Child> {
    let mut check = Command::new(program("packetflix")?)
        .args(["check", "--json"])
        .stdout(Stdio::piped())
        .spawn()?;
    let printed = check.stdout.take().context("no output")?;
    let mut printed = Deserializer::from_reader(printed).into_iter();
    let report: Value = printed.next().context("no report")??;
    let findings = report["findings"].as_array().context("no findings")?;
    let about = findings.iter().find(|finding| finding["subject"] == "targets");
    let remedy = about
        .and_then(|finding| finding["remedy"].as_str())
        .with_context(|| report.to_string())?;
    ensure!(
        remedy.contains("a file system there hangs") && !remedy.contains("capabilities"),
        "{remedy}"
    );
    Ok(check)
}

/// A process in a mount namespace of its own, in which a network namespace is mounted behind a file system.
struct Behind(Child);

impl Behind {
    /// Mounts the namespace of this process there, and what never answers over the folder.
    fn start(pid: u32) -> anyhow::Result<Self> {
        let script = "mount -t tmpfs none /mnt && mkdir /mnt/folder && : > /mnt/folder/ns \
                      && mount --bind \"$1\" /mnt/folder/ns && exec sleep 120";
        let child = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(of_process(pid))
            .stdin(Stdio::null())
            .spawn()?;
        let behind = Self(child);
        let seen = format!("/proc/{}/root/mnt/folder/ns", behind.0.id());
        wait_until(Duration::from_secs(5), || {
            Ok(statfs(Path::new(&seen)).is_ok_and(|mounted| mounted.filesystem_type() == NSFS_MAGIC))
        })?;
        Ok(behind)
    }

    /// Lets a file system that never answers lie over it.
    fn hang(&self) -> anyhow::Result<Hoard> {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.0.id()))
            .arg(program("hoard")?);
        Hoard::start(&mut command, &["hang-here", "/mnt"])
    }
}

impl Drop for Behind {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_goes_on_when_the_mount_that_holds_its_namespace_hangs() -> anyhow::Result<()> {
    let mut first = Sleeper::unshared()?;
    let inode = first.netns()?;
    let behind = Behind::start(first.pid())?;
    first.end()?;
    let server = Server::start(&[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={inode}&nif=lo"))).await?;
    let hanging = behind.hang()?;
    server.wait_for_log("does not answer")?;
    // For some seconds, in which it is looked at again and again: packets come as they are sent.
    let held = std::fs::read_dir(format!("/proc/{}/fd", server.keeper()?))?;
    let namespace = held
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| std::fs::metadata(path).is_ok_and(|file| file.ino() == inode))
        .context("the server does not hold it")?;
    for number in 1..=8 {
        let words = format!("packet number {number} of eight");
        inside(&namespace, || {
            UdpSocket::bind("127.0.0.1:0")?.send_to(words.as_bytes(), "127.0.0.1:9")
        })??;
        let begin = Instant::now();
        recorder
            .read_until(|recording| recording.has(words.as_bytes()))
            .await?;
        ensure!(
            begin.elapsed() < Duration::from_millis(900),
            "{:?}",
            begin.elapsed()
        );
        sleep(Duration::from_millis(500)).await;
    }
    drop(hanging);
    recorder.finish().await?;
    has_not_panicked(&server)
}
