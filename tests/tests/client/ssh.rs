//! Hosts that are reached by ssh, whose server is a real one.

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    bpf_objects::Objects,
    folder::Folder,
    namespace::{Namespace, run},
    server::{Server, program, wait_until},
    traces::{traces_before, wait_for_traces},
};

use crate::{Capture, apart::Apart, file_in, read, send};

const PORT: u16 = 2222;

/// A host with a server of ssh, which root and another user may log in to, and the desk of somebody who has a key for that.
struct Host {
    apart: Apart,
    sshd: Child,
}

/// The server of ssh and its libraries, which are not installed, but unpacked.
fn unpacked() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/sshd")
}

impl Host {
    fn new() -> anyhow::Result<Self> {
        let home = Folder::new()?;
        let place = home.path().display().to_string();
        for key in ["host-key", "key"] {
            let file = format!("{place}/{key}");
            run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &file])?;
        }
        fs::copy(home.file("key.pub"), home.file("authorized"))?;
        // Whoever is let in finds our program.
        let programs = program("packetflix")?;
        let programs = programs.parent().context("no folder")?.display().to_string();
        let server = home.put_secret(
            "sshd_config",
            &format!(
                "Port {PORT}\nListenAddress 127.0.0.1\nHostKey {place}/host-key\nAuthorizedKeysFile {place}/authorized\n\
                 PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 SetEnv PATH={programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n"
            ),
        )?;
        let client = home.put_secret(
            "ssh_config",
            &format!(
                "IdentityFile {place}/key\nIdentitiesOnly yes\nUserKnownHostsFile {place}/known\nBatchMode yes\n\
                 StrictHostKeyChecking yes\nLogLevel ERROR\n"
            ),
        )?;
        fs::set_permissions(&client, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        let key = fs::read_to_string(home.file("host-key.pub"))?;
        fs::write(home.file("known"), format!("[127.0.0.1]:{PORT} {key}"))?;
        let users = home.file("passwd");
        let known = fs::read_to_string("/etc/passwd")?;
        let known: String = known
            .lines()
            .filter(|line| !line.starts_with("sshd:") && !line.starts_with("me:"))
            .map(|line| format!("{line}\n"))
            .collect();
        fs::write(
            &users,
            known + "sshd:x:65533:65534::/:/usr/sbin/nologin\nme:x:4242:4242::/:/bin/sh\n",
        )?;
        let passwords = home.file("shadow");
        fs::write(
            &passwords,
            "root:*:19000:0:99999:7:::\nsshd:!:19000::::::\nme:*:19000:0:99999:7:::\n",
        )?;
        let apart = Apart::with(
            home,
            &[
                (&users, "/etc/passwd"),
                (&passwords, "/etc/shadow"),
                (&client, "/etc/ssh/ssh_config"),
            ],
        )?;
        // The user has to find the keys.
        apart.open_home()?;
        fs::set_permissions(
            apart.home.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )?;
        let libraries: Vec<String> = fs::read_dir(unpacked().join("usr/lib"))
            .context("`cargo xtask test` unpacks sshd")?
            .flatten()
            .map(|entry| entry.path().display().to_string())
            .collect();
        let log = fs::File::create(apart.home.file("log"))?;
        let sshd = apart
            .command(&unpacked().join("usr/sbin/sshd"), &["-D", "-e", "-f"])
            .arg(server)
            .env("LD_LIBRARY_PATH", libraries.join(":"))
            .stderr(log)
            .spawn()?;
        let host = Self { apart, sshd };
        wait_until(Duration::from_secs(10), || {
            host.apart
                .network
                .inside(|| TcpStream::connect(("127.0.0.1", PORT)).is_ok())
        })
        .with_context(|| host.log())?;
        Ok(host)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.apart.home.file("log")).unwrap_or_default()
    }

    /// The client on the desk.
    fn command(&self, arguments: &[&str], user: &str) -> anyhow::Result<Command> {
        let mut command = self.apart.command(&program("packetflix")?, arguments);
        command.args(["--server", &format!("ssh://{user}@127.0.0.1:{PORT}")]);
        Ok(command)
    }

    fn output(&self, arguments: &[&str], user: &str) -> anyhow::Result<Output> {
        Ok(self.command(arguments, user)?.output()?)
    }

    fn refused(&self, arguments: &[&str], user: &str) -> anyhow::Result<String> {
        let output = self.output(arguments, user)?;
        ensure!(output.status.code() == Some(1), "{output:?}\n{}", self.log());
        Ok(String::from_utf8(output.stderr)?)
    }

    fn capture(&self, arguments: &[&str]) -> anyhow::Result<Capture> {
        let mut command = self.command(&[&["capture"], arguments].concat(), "root")?;
        Capture::start_by(command.stdout(Stdio::piped()))
    }

    /// Those of our program that were started by ssh.
    fn dialed(&self) -> anyhow::Result<Vec<u32>> {
        let mut dialed = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let entry = entry?;
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let network = fs::metadata(entry.path().join("ns/net"));
            let is_here = network.is_ok_and(|found| {
                std::os::unix::fs::MetadataExt::ino(&found) == self.apart.network.inode().unwrap_or_default()
            });
            if is_here && line.starts_with(b"packetflix\0dial-stdio") {
                dialed.extend(entry.file_name().to_str().and_then(|pid| pid.parse::<u32>().ok()));
            }
        }
        Ok(dialed)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.sshd.kill();
        let _ = self.sshd.wait();
    }
}

#[test]
fn hosts_without_a_server_are_captured_by_ssh() -> anyhow::Result<()> {
    let (host, namespace) = (Host::new()?, Namespace::new()?);
    let list = host.output(&["list"], "root")?;
    assert!(
        list.status.success() && list.stderr.is_empty(),
        "{list:?}\n{}",
        host.log()
    );
    assert!(String::from_utf8(list.stdout)?.contains(namespace.name()));

    let before = traces_before(None, &[&namespace])?;
    let (path, file) = file_in(&host.apart.home, "a.pcapng");
    let capture = host.capture(&[namespace.name(), "-f", "udp dst port 9", "-w", &file])?;
    assert!(
        capture.first.contains(" of ssh://root@127.0.0.1:2222 into "),
        "{}",
        capture.first
    );
    send(&namespace, 0..1000)?;
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    assert!(
        told.contains("1000 packets captured, 1000 delivered, 0 dropped"),
        "{told}"
    );
    let recording = read(&path)?;
    recording.check_complete()?;
    assert_eq!(recording.packets.len(), 1000);
    wait_until(Duration::from_secs(5), || Ok(host.dialed()?.is_empty()))?;
    wait_for_traces(&before, None, &[&namespace])
}

#[test]
fn hosts_with_a_server_are_captured_by_it() -> anyhow::Result<()> {
    let (host, namespace) = (Host::new()?, Namespace::new()?);
    let mut command = host.apart.command(&program("packetflix")?, &[]);
    let mut server = Server::start_by(&mut command, &[])?;
    let captures = |count: usize| -> anyhow::Result<bool> {
        let list = host.output(&["captures"], "root")?;
        ensure!(list.status.success(), "{list:?}");
        Ok(String::from_utf8(list.stdout)?.lines().count() == 1 + count)
    };
    let capture = host.capture(&[namespace.name(), "-w", "-"])?;
    assert!(captures(1)?);
    drop(capture);
    wait_until(Duration::from_secs(10), || captures(0))?;

    // That it has gone is heard over there, and told here.
    let capture = host.capture(&[namespace.name(), "-w", "/dev/null"])?;
    server.signal(Signal::SIGKILL)?;
    server.wait()?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 3, "{told}");
    assert!(told.contains("the server is gone without a word"), "{told}");
    Ok(())
}

#[test]
fn nothing_is_left_when_a_connection_breaks() -> anyhow::Result<()> {
    let (host, namespace) = (Host::new()?, Namespace::new()?);
    let before = traces_before(None, &[&namespace])?;
    for end in ["client", "server"] {
        let mut capture = host.capture(&[namespace.name(), "-f", "udp", "-w", "/dev/null"])?;
        let dialed = host.dialed()?;
        assert_eq!(dialed.len(), 1, "{dialed:?}");
        let held = Objects::held_by(dialed[0])?;
        ensure!(!held.is_empty(), "nothing to be left");
        if end == "client" {
            capture.signal(Signal::SIGKILL)?;
            capture.child.wait()?;
        } else {
            kill(Pid::from_raw(i32::try_from(dialed[0])?), Signal::SIGKILL)?;
            let (status, told) = capture.end()?;
            assert_eq!(status, 3, "{told}");
        }
        wait_until(Duration::from_secs(10), || Ok(host.dialed()?.is_empty()))?;
        held.wait_until_gone()?;
        wait_for_traces(&before, None, &[&namespace])?;
    }
    Ok(())
}

#[test]
fn signals_for_all_processes_leave_the_rest_of_the_stream() -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;

    let (host, namespace) = (Host::new()?, Namespace::new()?);
    for (signal, expected) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        let (path, file) = file_in(&host.apart.home, signal.as_str());
        let mut command = host.command(&["capture", namespace.name(), "-w", &file], "root")?;
        let capture = Capture::start_by(command.process_group(0))?;
        send(&namespace, 0..3)?;
        kill(Pid::from_raw(-i32::try_from(capture.child.id())?), signal)?;
        let (status, told) = capture.end()?;
        assert_eq!(status, expected, "{told}");
        let recording = read(&path)?;
        recording.check_complete()?;
        assert_eq!(recording.packets.len(), 3);
    }
    Ok(())
}

#[test]
fn what_ssh_and_the_host_refuse_is_told() -> anyhow::Result<()> {
    let host = Host::new()?;
    let reached = "packetflix is not reached by ssh://me@127.0.0.1:2222";
    let told = host.refused(&["list"], "me")?;
    assert!(
        told.contains("it lacks CAP_SYS_ADMIN and CAP_NET_RAW") && told.contains(reached),
        "{told}"
    );
    // Nobody is asked by a program that has no terminal.
    fs::write(host.apart.home.file("known"), "")?;
    let told = host.refused(&["capture", "web", "-w", "-"], "me")?;
    assert!(
        told.contains("Host key verification failed") && told.contains(reached),
        "{told}"
    );
    Ok(())
}
