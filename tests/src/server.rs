//! The server, as the program that users start.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{
    hook,
    http::{Body, Head},
    namespace::run,
    pace,
};

/// Most threads of both processes of a server at rest.
pub const RESTING_THREADS: u64 = 13;

/// A running server on a port of its own; killed when dropped.
pub struct Server {
    child: Child,
    /// The process that has its rights, if it has one.
    keeper: Option<u32>,
    port: u16,
    log: Arc<Mutex<Vec<String>>>,
}

/// The built program `name`, beside the tests.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let tests = std::env::current_exe()?;
    let program = tests
        .ancestors()
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("the program {name} was not built: use `cargo xtask test`"))?;
    Ok(program)
}

impl Server {
    /// Starts a server with these flags.
    ///
    /// # Errors
    /// When it does not get to listen.
    pub fn start(flags: &[&str]) -> anyhow::Result<Self> {
        Self::start_by(&mut Command::new(program("packetflix")?), flags)
    }

    /// Starts a server by a command that ends with the program's name.
    ///
    /// # Errors
    /// When it does not get to listen.
    pub fn start_by(command: &mut Command, flags: &[&str]) -> anyhow::Result<Self> {
        Self::start_by_at(command, 0, flags)
    }

    /// Starts a server at a port, which another has had.
    ///
    /// # Errors
    /// When it does not get to listen.
    pub fn start_at(port: u16, flags: &[&str]) -> anyhow::Result<Self> {
        Self::start_by_at(&mut Command::new(program("packetflix")?), port, flags)
    }

    /// Starts a server at a port by a command that ends with the program's name.
    ///
    /// # Errors
    /// When it does not get to listen.
    pub fn start_by_at(command: &mut Command, port: u16, flags: &[&str]) -> anyhow::Result<Self> {
        hook::tell(flags);
        let mut child = command
            .args(["--port", &port.to_string()])
            .args(flags)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start the server")?;
        let mut lines = BufReader::new(child.stderr.take().context("no log")?).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let port = loop {
            let Some(Ok(line)) = lines.next() else {
                bail!("the server ended: {:?}", log.lock())
            };
            let port = port_in(&line);
            if let Ok(mut log) = log.lock() {
                log.push(line);
            }
            if let Some(port) = port {
                break port;
            }
        };
        let into = Arc::clone(&log);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(mut log) = into.lock() {
                    log.push(line);
                }
            }
        });
        let keeper = keeper_of(child.id());
        Ok(Self {
            child,
            keeper,
            port,
            log,
        })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// URL of a capture with this query.
    pub fn url(&self, query: &str) -> String {
        format!("ws://127.0.0.1:{}/capture?{query}", self.port)
    }

    /// What it answers to a request, of which the first lines are given: the head, and the body if there is one.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ask(&self, request: &str) -> anyhow::Result<(Head, Vec<u8>)> {
        let stream = TcpStream::connect(("127.0.0.1", self.port))?;
        write!(&stream, "{request}\r\nHost: localhost\r\n\r\n")?;
        let mut stream = BufReader::new(stream);
        let head = Head::read(&mut stream)?;
        let body = if request.starts_with("HEAD ") || [101, 204].contains(&head.status()?) {
            Vec::new()
        } else {
            Body::of_answer(&head, &mut stream)?.read_all()?
        };
        Ok((head, body))
    }

    /// What it answers to a GET: status and JSON body.
    ///
    /// # Errors
    /// When it answers with no JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<(u16, Value)> {
        let (head, body) = self.ask(&format!("GET {path} HTTP/1.1"))?;
        let json = serde_json::from_slice(&body)
            .with_context(|| format!("{path}: {}", String::from_utf8_lossy(&body)))?;
        Ok((head.status()?, json))
    }

    /// The targets that it lists as GhostWire does.
    ///
    /// # Errors
    /// When it lists none.
    pub fn targets(&self) -> anyhow::Result<Vec<Value>> {
        let (status, mut list) = self.get("/mobyshark")?;
        ensure!(status == 200, "{status} {list}");
        match list["containers"].take() {
            Value::Array(targets) => Ok(targets),
            other => bail!("no list: {other}"),
        }
    }

    /// The one target of this name, as it is once it has been listed: an engine may take its time.
    ///
    /// # Errors
    /// When it is not listed soon, or more than once.
    pub fn target(&self, name: &str) -> anyhow::Result<Value> {
        let mut found = Vec::new();
        wait_until(Duration::from_secs(10), || {
            found = self.targets()?;
            found.retain(|target| target["name"] == name);
            Ok(!found.is_empty())
        })
        .with_context(|| format!("no target {name}: {:?}\n{}", self.targets(), self.log()))?;
        ensure!(found.len() == 1, "{found:?}");
        found.pop().context("nothing")
    }

    /// URL of a capture of a described target; `rest` begins with `&` or is empty.
    pub fn url_of(&self, target: &Value, rest: &str) -> String {
        let json = percent_encoded(&target.to_string());
        self.url(&format!("container={json}{rest}"))
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        self.log.lock().map(|lines| lines.join("\n")).unwrap_or_default()
    }

    /// Waits until it has logged `text`.
    ///
    /// # Errors
    /// When it has not within ten seconds.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<()> {
        wait_until(Duration::from_secs(10), || Ok(self.log().contains(text)))
            .with_context(|| format!("not logged: {text}; but:\n{}", self.log()))
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid())?), signal)?)
    }

    /// Stops all its threads, until it is told to go on.
    ///
    /// # Errors
    /// When it has ended, or does not stop within ten seconds.
    pub fn stop(&self) -> anyhow::Result<()> {
        for pid in self.processes() {
            stop(pid)?;
        }
        Ok(())
    }

    /// Has it go on.
    pub fn go_on(&self) {
        for pid in self.processes() {
            // One that has ended does not.
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGCONT);
        }
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within 15 seconds.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let mut status = None;
        wait_until(Duration::from_secs(15), || {
            status = self.child.try_wait()?;
            Ok(status.is_some())
        })?;
        status.context("no status")
    }

    /// The process that has its rights.
    ///
    /// # Errors
    /// When there is none.
    pub fn keeper(&self) -> anyhow::Result<u32> {
        self.keeper.context("no keeper")
    }

    /// Its processes: the one that serves clients, and the one that has the rights, if there is one.
    pub fn processes(&self) -> Vec<u32> {
        [self.pid()].into_iter().chain(self.keeper).collect()
    }

    /// Bounds what each of its processes may have, as prlimit(1) takes it.
    ///
    /// # Errors
    /// When one has ended.
    pub fn limit(&self, limit: &str) -> anyhow::Result<()> {
        self.processes().into_iter().try_for_each(|pid| bound(pid, limit))
    }

    /// Number of open descriptors of both its processes.
    ///
    /// # Errors
    /// When one has ended.
    pub fn descriptors(&self) -> anyhow::Result<usize> {
        let counts = self
            .processes()
            .into_iter()
            .map(|pid| descriptors_of(pid).map(|open| open.len()));
        counts.sum()
    }

    /// A number of `/proc/PID/status`, such as `VmRSS` in KiB, or `Threads`, of both its processes together.
    ///
    /// # Errors
    /// When one has ended.
    pub fn status(&self, name: &str) -> anyhow::Result<u64> {
        self.processes().into_iter().map(|pid| status_of(pid, name)).sum()
    }
}

/// The process that has the rights of a server, if there is one.
pub fn keeper_of(pid: u32) -> Option<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let mut children = children.split_whitespace();
    let is_keeper = |pid: &&str| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.trim_end() == "packetflix-keep")
    };
    children.find(is_keeper)?.parse().ok()
}

/// Stops all threads of a process.
fn stop(pid: u32) -> anyhow::Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGSTOP)?;
    wait_until(Duration::from_secs(10), || {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let stat = std::fs::read_to_string(thread?.path().join("stat"))?;
            let (_, rest) = stat.rsplit_once(") ").context("no state")?;
            if !rest.starts_with('T') {
                return Ok(false);
            }
        }
        Ok(true)
    })
}

/// Bounds what a process may have, as prlimit(1) takes it, as the user that it is: without CAP_SYS_RESOURCE, root may not.
///
/// # Errors
/// When it has ended.
pub fn bound(pid: u32, limit: &str) -> anyhow::Result<()> {
    let user = format!("--reuid={}", status_of(pid, "Uid")?);
    let group = format!("--regid={}", status_of(pid, "Gid")?);
    let prlimit = ["prlimit", "--pid", &pid.to_string(), limit];
    run(
        "setpriv",
        &[&[&user, &group, "--clear-groups"], &prlimit[..]].concat(),
    )
    .map(drop)
}

/// The numbers of the descriptors that a process has open.
///
/// # Errors
/// When it has ended.
pub fn descriptors_of(pid: u32) -> anyhow::Result<BTreeSet<u64>> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
    entries
        .map(|entry| Ok(entry?.file_name().to_string_lossy().parse()?))
        .collect()
}

/// Where a process has mapped the pages of eBPF maps, which are those of rings.
///
/// # Errors
/// When it has ended.
pub fn mapped_rings(pid: u32) -> anyhow::Result<BTreeSet<String>> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let of_rings = maps.lines().filter(|line| line.ends_with("anon_inode:bpf-map"));
    Ok(of_rings
        .filter_map(|line| Some(line.split_once(' ')?.0.to_owned()))
        .collect())
}

/// The same, once those of what is ready for the next capture are there.
///
/// # Errors
/// When they do not come.
pub fn mapped_rings_at_rest(pid: u32) -> anyhow::Result<BTreeSet<String>> {
    let mut seen = BTreeSet::new();
    wait_until(Duration::from_secs(10), || {
        let before = std::mem::replace(&mut seen, mapped_rings(pid)?);
        thread::sleep(Duration::from_millis(300));
        Ok(!seen.is_empty() && seen == before)
    })?;
    Ok(seen)
}

/// A number of `/proc/PID/status`.
///
/// # Errors
/// When the process has ended, or has no such number.
pub fn status_of(pid: u32, name: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| {
        let value = line.strip_prefix(name)?.strip_prefix(':')?;
        value.split_whitespace().next()?.parse().ok()
    });
    value.with_context(|| format!("no {name}"))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.go_on();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What it has open is closed then.
        let _ = wait_until(Duration::from_secs(5), || Ok(self.keeper.is_none_or(has_ended)));
    }
}

/// Whether all threads of a process have ended, the first of which stays until somebody has asked how. What they had open is closed
/// by the last.
pub fn has_ended(pid: u32) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let threads = std::fs::read_dir(process.join("task")).map_or(0, Iterator::count);
    threads == 0 || (threads == 1 && !process.join("ns/net").exists())
}

/// The port in the line that tells where the server listens, in either format of the log.
fn port_in(line: &str) -> Option<u16> {
    let (_, rest) = line
        .split_once("listening")?
        .1
        .split_once("]:")
        .or_else(|| line.split_once("127.0.0.1:"))?;
    let end = rest.find(|character: char| !character.is_ascii_digit())?;
    rest[..end].parse().ok()
}

/// A text as the value of a query's parameter.
pub fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        let _ = write!(&mut encoded, "%{byte:02X}");
        encoded
    })
}

/// Asks again and again until the answer is yes; for longer on a slow machine.
///
/// # Errors
/// When it is not in time.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let limit = pace::time(limit);
    let deadline = Instant::now() + limit;
    while !done()? {
        if Instant::now() > deadline {
            bail!("waited for {limit:?} in vain");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
