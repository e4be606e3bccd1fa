//! Two and five servers, each in a network namespace of its own, and a gateway in another, that has a link to each of them. Nodes come,
//! die and lag while one stream runs.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    folder::Folder,
    namespace::Namespace,
    raw::{self, RawSocket},
    recording::{Recording, Statistics},
    server::{Server, program, wait_until},
};

use crate::TOKEN;

const PORT: u16 = 5001;

/// Hosts, and the gateway to them, which is asked at a Unix socket.
struct Apart {
    folder: Folder,
    hosts: Vec<Namespace>,
    nodes: Vec<Option<Server>>,
    socket: PathBuf,
    _gateway: Server,
    _hub: Namespace,
}

impl Apart {
    /// So many hosts, of which the last has no server yet.
    fn start(count: usize) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        folder.put_secret("tokens", &format!("gateway {TOKEN} discover capture admin\n"))?;
        let token = folder.put_secret("token", TOKEN)?;
        let hub = Namespace::new()?;
        let mut flags = vec![
            format!("--node-token-file={}", token.display()),
            "--node-timeout=20".to_owned(),
        ];
        let mut hosts = Vec::new();
        for (number, network) in (1..=count).zip(1_u8..) {
            let host = Namespace::new()?;
            hub.connect(&format!("h{number}"), &host, "eth1", network)?;
            flags.push(format!("--node=n{number}=http://10.9.{network}.2:{PORT}"));
            hosts.push(host);
        }
        let socket = folder.path().join("gateway.sock");
        flags.push("--listen=127.0.0.1:0".to_owned());
        flags.push(format!("--listen=unix:{}", socket.display()));
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let mut apart = Self {
            nodes: hosts.iter().map(|_| None).collect(),
            hosts,
            socket,
            _gateway: Server::start_by(hub.command(&program_path()?).arg("gateway"), &flags)?,
            folder,
            _hub: hub,
        };
        for number in 1..count {
            apart.begin(number)?;
        }
        Ok(apart)
    }

    /// Starts the server of a host.
    fn begin(&mut self, number: usize) -> anyhow::Result<()> {
        let tokens = self.folder.path().join("tokens").display().to_string();
        let name = format!("n{number}");
        let flags = [
            "--node-name",
            &name,
            "--token-file",
            &tokens,
            "--ring-size",
            "1MiB",
        ];
        let mut command = self.hosts[number - 1].command(&program_path()?);
        self.nodes[number - 1] = Some(Server::start_by_at(&mut command, PORT, &flags)?);
        Ok(())
    }

    fn node(&self, number: usize) -> anyhow::Result<&Server> {
        self.nodes[number - 1].as_ref().context("it does not run")
    }

    /// The client, which writes what it gets into a file.
    fn capture(&self, words: &[&str], file: &Path) -> anyhow::Result<Child> {
        let mut client = Command::new(program("packetflix")?);
        client
            .args([
                "capture",
                "--server",
                &format!("unix:{}", self.socket.display()),
                "--follow",
            ])
            .args(["-f", "ether proto 0x88b5", "-w"])
            .arg(file)
            .args(words)
            .stderr(Stdio::piped());
        Ok(client.spawn()?)
    }
}

fn program_path() -> anyhow::Result<String> {
    Ok(program("packetflix")?.display().to_string())
}

/// What is in the file so far.
fn so_far(file: &Path) -> anyhow::Result<Recording> {
    let stream = std::fs::read(file).unwrap_or_default();
    let mut end = 0;
    while let Some(len) = stream
        .get(end + 4..end + 8)
        .and_then(|len| len.try_into().ok())
        .map(u32::from_le_bytes)
    {
        let next = end + usize::try_from(len)?;
        if next > stream.len() {
            break;
        }
        end = next;
    }
    match end {
        0 => Ok(Recording::default()),
        end => Recording::parse(&stream[..end]),
    }
}

fn wait_for(file: &Path, mut is_there: impl FnMut(&Recording) -> bool) -> anyhow::Result<()> {
    wait_until(Duration::from_secs(30), || Ok(is_there(&so_far(file)?)))
}

/// The captured namespace, and the other end of its link, from which frames come.
fn target() -> anyhow::Result<(Namespace, RawSocket, Namespace)> {
    let (here, there) = Namespace::pair()?;
    let socket = RawSocket::open(&there, "vb")?;
    Ok((here, socket, there))
}

/// Statistics of all interfaces that are called so: a node that comes back describes its own anew.
fn accounts(recording: &Recording, name: &str) -> Vec<Statistics> {
    let is_so = |one: &&Statistics| one.last && recording.interfaces[one.interface].name == name;
    recording.statistics.iter().filter(is_so).copied().collect()
}

fn come_die_and_lag(count: usize) -> anyhow::Result<()> {
    let mut apart = Apart::start(count)?;
    let (here, socket, _there) = target()?;
    let word = here.path().display().to_string();
    let file = apart.folder.path().join("all.pcapng");
    let names: Vec<String> = (1..=count).map(|number| format!("n{number}/{word}/va")).collect();
    let is_described = |recording: &Recording, number: usize| {
        recording
            .interfaces
            .iter()
            .any(|one| one.name == names[number - 1])
    };
    let mut client = apart.capture(&[&word], &file)?;
    wait_for(&file, |recording| {
        (1..count).all(|number| is_described(recording, number))
    })
    .with_context(|| format!("{:?}", so_far(&file).map(|recording| recording.interfaces)))?;
    let mut sent = 0_u64;
    let mut send = |frames: u8| {
        for number in 0..frames {
            socket.send(&raw::ethernet(0x88b5, &[number; 46]))?;
        }
        sent += u64::from(frames);
        anyhow::Ok(sent)
    };
    let has = |recording: &Recording, number: usize, packets: u64| {
        recording.packets_of(&names[number - 1]).len() as u64 >= packets
    };
    send(50)?;
    wait_for(&file, |recording| {
        (1..count).all(|number| has(recording, number, 50))
    })?;
    // The last one comes.
    apart.begin(count)?;
    wait_for(&file, |recording| is_described(recording, count))?;
    send(50)?;
    wait_for(&file, |recording| {
        (1..count).all(|number| has(recording, number, 100)) && has(recording, count, 50)
    })?;
    // The first lags: it is stopped, and goes on.
    apart.node(1)?.stop()?;
    send(50)?;
    wait_for(&file, |recording| {
        (2..count).all(|number| has(recording, number, 150)) && has(recording, count, 100)
    })?;
    std::thread::sleep(Duration::from_secs(3));
    apart.node(1)?.go_on();
    wait_for(&file, |recording| {
        has(recording, 1, 150) && recording.interfaces.iter().any(|one| one.name == "n1")
    })?;
    // The last one dies, and comes back.
    apart.nodes[count - 1] = None;
    let gone = format!("n{count}");
    wait_for(&file, |recording| {
        recording.interfaces.iter().any(|one| one.name == gone)
    })?;
    apart.begin(count)?;
    let described = |recording: &Recording| {
        recording
            .interfaces
            .iter()
            .filter(|one| one.name == names[count - 1])
            .count()
    };
    wait_for(&file, |recording| described(recording) == 2)?;
    let sent = send(50)?;
    wait_for(&file, |recording| {
        (1..count).all(|number| has(recording, number, sent)) && has(recording, count, 150)
    })?;
    kill(Pid::from_raw(i32::try_from(client.id())?), Signal::SIGINT)?;
    client.wait()?;
    let recording = so_far(&file)?;
    recording.check_complete()?;
    for name in &names[..count - 1] {
        let accounts = accounts(&recording, name);
        ensure!(accounts.len() == 1, "{name}: {accounts:?}");
        ensure!(
            (accounts[0].delivered, accounts[0].dropped) == (sent, 0),
            "{name}: {accounts:?}"
        );
    }
    let of_last: Vec<_> = accounts(&recording, &names[count - 1])
        .iter()
        .map(|one| (one.delivered, one.dropped))
        .collect();
    ensure!(of_last == [(100, 0), (50, 0)], "{of_last:?}");
    let told = |name: &str, sentence: &str| {
        let mut of_node = recording.interfaces.iter().filter(|one| one.name == name);
        ensure!(
            of_node.any(|one| one.options.contains(sentence)),
            "{name}: not told: {sentence}"
        );
        anyhow::Ok(())
    };
    told("n1", "node n1 lags: ")?;
    told(&gone, &format!("node {gone}: it is captured again"))
}

#[test]
fn two_hosts_apart_come_die_and_lag_in_one_stream() -> anyhow::Result<()> {
    come_die_and_lag(2)
}

#[test]
fn five_hosts_apart_come_die_and_lag_in_one_stream() -> anyhow::Result<()> {
    come_die_and_lag(5)
}
