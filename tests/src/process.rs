//! Processes with a network namespace of their own, started by a test and ended with it.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use crate::{
    client::Recorder,
    namespace::{Namespace, inside, of_process},
    recording::Recording,
    server::{Server, wait_until},
};

/// A process that sleeps in a network namespace; killed when dropped.
pub struct Sleeper {
    child: Child,
}

impl Sleeper {
    /// Starts one in a namespace of its own, in which the loopback device is up.
    ///
    /// # Errors
    /// When it does not start.
    pub fn unshared() -> anyhow::Result<Self> {
        Self::unshared_as("sleep", &[])
    }

    /// Starts one that calls itself `name`, by a program such as `setpriv` and its arguments.
    ///
    /// # Errors
    /// When it does not start.
    pub fn unshared_as(name: &str, by: &[&str]) -> anyhow::Result<Self> {
        let script = "ip link set lo up && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]);
        Self::by(command, name, by)
    }

    /// Starts one in a namespace that there is.
    ///
    /// # Errors
    /// When it does not start.
    pub fn inside(namespace: &Namespace) -> anyhow::Result<Self> {
        Self::inside_as(namespace, "sleep", &[])
    }

    /// Starts one in a namespace that there is, and that calls itself `name`, as [`Self::unshared_as`] does.
    ///
    /// # Errors
    /// When it does not start.
    pub fn inside_as(namespace: &Namespace, name: &str, by: &[&str]) -> anyhow::Result<Self> {
        Self::by(namespace.command("env"), name, by)
    }

    fn by(mut command: Command, name: &str, by: &[&str]) -> anyhow::Result<Self> {
        command.args(by);
        // A program's name is that of its file.
        let folder = std::env::temp_dir().join(format!("packetflix-sleeper-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let program = folder.join(name);
        if !program.exists() {
            std::fs::copy("/bin/sleep", &program)?;
        }
        let child = command.arg(program).arg("120").stdin(Stdio::null()).spawn()?;
        let sleeper = Self { child };
        // The kernel keeps fifteen bytes of it.
        let kept = &name.as_bytes()[..name.len().min(15)];
        wait_until(Duration::from_secs(5), || Ok(sleeper.name()? == kept))?;
        Ok(sleeper)
    }

    /// Its PID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Number of its network namespace.
    ///
    /// # Errors
    /// When it has ended.
    pub fn netns(&self) -> anyhow::Result<u64> {
        netns_of(self.pid())
    }

    /// When it began, in clock ticks after boot.
    ///
    /// # Errors
    /// When it has ended.
    pub fn starttime(&self) -> anyhow::Result<u64> {
        starttime_of(self.pid())
    }

    /// All that identifies it, as clients send it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn identity(&self) -> anyhow::Result<Value> {
        Ok(json!({ "netns": self.netns()?, "pid": self.pid(), "starttime": self.starttime()? }))
    }

    /// Ends it.
    ///
    /// # Errors
    /// When that fails.
    pub fn end(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn name(&self) -> anyhow::Result<Vec<u8>> {
        let name = std::fs::read(format!("/proc/{}/comm", self.pid()))?;
        Ok(name.trim_ascii_end().to_vec())
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Number of the network namespace of a process.
///
/// # Errors
/// When it has ended.
pub fn netns_of(pid: u32) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(of_process(pid))?.ino())
}

/// When a process began, in clock ticks after boot.
///
/// # Errors
/// When it has ended.
pub fn starttime_of(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no name")?;
    Ok(rest.split(' ').nth(22 - 3).context("too short")?.parse()?)
}

/// Starts a process that gets the PID which another just had.
///
/// # Errors
/// When others take it again and again.
pub fn with_pid(pid: u32, mut start: impl FnMut() -> anyhow::Result<Child>) -> anyhow::Result<Child> {
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "{pid} is in use");
    for _ in 0..100 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string())?;
        let mut child = start()?;
        if child.id() == pid {
            return Ok(child);
        }
        child.kill()?;
        child.wait()?;
    }
    anyhow::bail!("PID {pid} could not be had")
}

/// Makes a packet on the loopback device of a process's namespace, which is up.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn speak_in(pid: u32) -> anyhow::Result<()> {
    inside(&of_process(pid), || {
        std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(WORDS, "127.0.0.1:9")
    })??;
    Ok(())
}

/// What [`speak_in`] says.
pub const WORDS: &[u8] = b"here I am";

/// Captures what `target` describes, and shows that it is the namespace of process `pid`. `rest` continues the query.
///
/// # Errors
/// When it is not.
pub async fn capture_is_of(
    server: &Server,
    target: &Value,
    rest: &str,
    pid: u32,
) -> anyhow::Result<Recording> {
    let mut recorder = Recorder::start(&server.url_of(target, rest)).await?;
    speak_in(pid)?;
    let spoken = |recording: &Recording| {
        let mut packets = recording.packets.iter();
        packets.any(|packet| packet.data.ends_with(WORDS))
    };
    recorder.read_until(spoken).await?;
    recorder.finish().await
}

/// Starts a shell script in namespaces of its own, as `unshare` makes them, and gives the first line that it prints.
///
/// # Errors
/// When it prints none.
pub fn script_in(unshared: &[&str], script: &str) -> anyhow::Result<(Child, String)> {
    let mut process = Command::new("unshare")
        .args(unshared)
        .args(["sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(process.stdout.take().context("no output")?).read_line(&mut line)?;
    ensure!(line.ends_with('\n'), "it printed {line:?}");
    Ok((process, line.trim_end().to_owned()))
}

/// A process, given by its folder in `/proc`, has soon no rights; gives its status then.
///
/// # Errors
/// When it has some, or has ended.
pub fn is_confined(folder: &Path) -> anyhow::Result<String> {
    let status = || anyhow::Ok(std::fs::read_to_string(folder.join("status"))?);
    wait_until(Duration::from_secs(10), || Ok(status()?.contains("Seccomp:\t2")))?;
    let status = status()?;
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "Gid:\t65534\t65534\t65534\t65534",
        "Groups:\t ",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        ensure!(status.lines().any(|found| found == line), "{line}: {status}");
    }
    Ok(status)
}
