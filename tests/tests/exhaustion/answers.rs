//! What engines tell, and what is told of it.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::Recorder,
    control_group::ControlGroup,
    namespace::Namespace,
    process::{Sleeper, capture_is_of},
    server::{Server, mapped_rings_at_rest, program, wait_until},
};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::{gaps, has_gap, has_not_panicked};

/// A folder with what engines are to answer, removed when dropped.
struct Script(PathBuf);

impl Script {
    /// The list of an engine.
    fn new(name: &str, list: &str) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("packetflix-script-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("list"), list)?;
        Ok(Self(folder))
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Engines that tell what a script says.
struct Engines(Child);

impl Engines {
    /// Those of a container: at two well-known places of a mount namespace of its own.
    fn of_container(script: &Script) -> anyhow::Result<Self> {
        let shell = "mount -t tmpfs none /run && mkdir /run/podman || exit 1
                     \"$ENGINE\" /run/podman/podman.sock &
                     exec \"$ENGINE\" /run/docker.sock";
        let mut command = Command::new("unshare");
        // They end with the first process of a PID namespace.
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", shell]);
        let engines = Self::start(&mut command, script)?;
        let socket = format!("/proc/{}/root/run/docker.sock", engines.0.id());
        wait_until(Duration::from_secs(5), || Ok(std::fs::metadata(&socket).is_ok()))?;
        Ok(engines)
    }

    /// One of the host.
    fn of_host(script: &Script) -> anyhow::Result<(Self, PathBuf)> {
        let socket = script.0.join("socket");
        let engines = Self::start(Command::new(program("fake-engine")?).arg(&socket), script)?;
        wait_until(Duration::from_secs(5), || Ok(socket.exists()))?;
        Ok((engines, socket))
    }

    fn start(command: &mut Command, script: &Script) -> anyhow::Result<Self> {
        let child = command
            .env("ENGINE", program("fake-engine")?)
            .env("FAKE_ENGINE_LIST", script.0.join("list"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        // The one in the background ends with its mount namespace's folder, and that with this.
        let _ = Command::new("pkill")
            .args(["-P", &self.0.id().to_string()])
            .status();
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_long_in_memory_are_taken_within_a_bound() -> anyhow::Result<()> {
    const MEMORY: u64 = 192 << 20;

    let short = json!({ "Id": "a" }).to_string();
    let count = (8 << 20) / (short.len() + 1) - 1;
    let long = Script::new("long", &format!("[{}]", vec![short; count].join(",")))?;
    let within = Script::new(
        "within",
        &format!("[{}]", vec![json!({ "Id": "b" }).to_string(); 20_000].join(",")),
    )?;
    let engines: Vec<Engines> = (0..4)
        .flat_map(|_| [Engines::of_container(&long), Engines::of_container(&within)])
        .collect::<Result<_, _>>()?;
    let sleeper = Sleeper::unshared()?;
    let own = json!([container("web", sleeper.pid(), &Value::Null)]).to_string();
    let own = Script::new("own", &own)?;
    let (_engine, socket) = Engines::of_host(&own)?;

    let (here, _there) = Namespace::pair()?;
    let group = ControlGroup::with_memory(MEMORY)?;
    let flag = format!("--engine-socket={}", socket.display());
    let server = Server::start_by(&mut group.server()?, &[&flag])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
    mapped_rings_at_rest(server.pid())?;
    let before = server.status("VmRSS")?;
    for _ in 0..4 {
        let (status, details) = server.get("/targets")?;
        ensure!(
            status == 200 && has_gap(&details, "engine"),
            "{status} {:?}",
            gaps(&details)
        );
        tokio::time::sleep(Duration::from_millis(1100)).await;
    }
    capture_is_of(&server, &json!({ "name": "web" }), "", sleeper.pid()).await?;
    recorder.finish().await?;
    let (after, peak) = (server.status("VmRSS")?, server.status("VmHWM")?);
    eprintln!(
        "16 engines with 8 MiB or 20,000 containers each: {before} KiB, then {peak} at most and {after} after"
    );
    ensure!(peak < before + (48 << 10), "{before} {peak}");
    ensure!(after < before + (24 << 10), "{before} {after}");
    drop(engines);
    has_not_panicked(&server)
}

fn container(name: &str, pid: u32, labels: &Value) -> Value {
    json!({ "Id": format!("c{pid}"), "Names": [format!("/{name}")], "State": "running", "Labels": labels })
}

#[test]
fn lists_that_nobody_reads_are_held_once_and_given_up() -> anyhow::Result<()> {
    /// Their list is longer than what the kernel takes of it for a client.
    const COUNT: usize = 160;

    let namespace = Namespace::new()?;
    let sleepers: Vec<Sleeper> = (0..COUNT)
        .map(|_| Sleeper::inside(&namespace))
        .collect::<Result<_, _>>()?;
    let labels: serde_json::Map<String, Value> = (0..30)
        .map(|number| (format!("label-{number}"), "x".repeat(1000).into()))
        .collect();
    let labels = labels.into();
    let list = sleepers
        .iter()
        .map(|sleeper| container(&format!("c{}", sleeper.pid()), sleeper.pid(), &labels));
    let script = Script::new("labels", &Value::from(list.collect::<Vec<_>>()).to_string())?;
    let (_engine, socket) = Engines::of_host(&script)?;
    let flag = format!("--engine-socket={}", socket.display());
    let server = Server::start(&[&flag, "--max-connections-per-address=300"])?;
    // Others on this machine may come and go.
    let of_engine = |details: &Value| -> Vec<Value> {
        let targets = details["targets"].as_array().into_iter().flatten();
        let of_engine = targets.filter(|target| target["type"] == "docker");
        of_engine.cloned().collect()
    };
    let mut details = Value::Null;
    wait_until(Duration::from_secs(10), || {
        details = server.get("/targets")?.1;
        Ok(of_engine(&details).len() == COUNT)
    })?;
    let len = details.to_string().len();
    let resident = server.status("RssAnon")?;
    let mut unread = Vec::new();
    for _ in 0..6 {
        for _ in 0..40 {
            // What the kernel would keep for a client is none of the server's memory.
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_recv_buffer_size(4096)?;
            socket.connect(&SocketAddr::from(([127, 0, 0, 1], server.port())).into())?;
            let mut stream = TcpStream::from(socket);
            write!(stream, "GET /targets HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")?;
            unread.push(stream);
        }
        std::thread::sleep(Duration::from_millis(1200));
    }
    let after = server.status("RssAnon")?;
    eprintln!(
        "240 clients that do not read {} KiB each: {resident} KiB, then {after}",
        len >> 10
    );
    // Those under way may have 64 MiB, and what looks meanwhile has some more: each for itself, they would have a gigabyte.
    ensure!(after < resident + (96 << 10), "{resident} {after}");
    // Whoever reads gets all of it.
    let (status, again) = server.get("/targets")?;
    ensure!(status == 200 && of_engine(&again) == of_engine(&details));
    let mut one = unread.pop().context("none")?;
    let mut beginning = [0; 15];
    one.read_exact(&mut beginning)?;
    ensure!(&beginning == b"HTTP/1.1 200 OK");
    has_not_panicked(&server)
}

#[test]
fn labels_that_are_too_long_are_left_out_and_counted() -> anyhow::Result<()> {
    let sleeper = Sleeper::unshared()?;
    let labels = json!({ "app": "shop", "long": "x".repeat(5000) });
    let list = json!([container("web", sleeper.pid(), &labels)]).to_string();
    let script = Script::new("long-labels", &list)?;
    let (_engine, socket) = Engines::of_host(&script)?;
    let server = Server::start(&[&format!("--engine-socket={}", socket.display())])?;
    let (_, details) = server.get("/targets")?;
    let mut targets = details["targets"].as_array().context("no list")?.iter();
    let web = targets
        .find(|target| target["name"] == "web")
        .context("not listed")?;
    ensure!(web["container"]["labels"] == json!({ "app": "shop" }), "{web}");
    ensure!(web["container"]["labels-left-out"] == 1, "{web}");
    Ok(())
}
