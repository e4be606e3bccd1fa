//! Who captures.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    namespace::Namespace,
    server::{Server, program, wait_until},
};

/// How long the stand-in may take to listen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A way to capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// With the hook of this name.
    Packetflix(&'static str),
    /// A dumpcap for each capture, behind a WebSocket.
    Original,
}

/// All of them.
pub(crate) const ALL: [Contestant; 3] = [
    Contestant::Packetflix("tcx"),
    Contestant::Packetflix("socket"),
    Contestant::Original,
];

/// The one to which ratios are told.
pub(crate) const REFERENCE: &str = "original";

/// A server that runs; killed when dropped.
pub(crate) enum Running {
    Packetflix(Server),
    Original(Child, u16),
}

impl Contestant {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Packetflix("tcx") => "packetflix-tcx",
            Self::Packetflix(_) => "packetflix-socket",
            Self::Original => REFERENCE,
        }
    }

    /// Starts its server. To be called by the main thread, with which it dies.
    pub(crate) fn start(self) -> anyhow::Result<Running> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        match self {
            Self::Packetflix(hook) => {
                let mut flags = vec!["--hook", hook];
                for limit in [
                    "--max-captures",
                    "--max-captures-per-client",
                    "--max-captures-per-target",
                ] {
                    flags.extend([limit, "1000"]);
                }
                let server = Server::start_by(command.arg(program("packetflix")?), &flags)?;
                Ok(Running::Packetflix(server))
            }
            Self::Original => {
                let mut child = command
                    .arg(program("original")?)
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()?;
                let mut port = String::new();
                BufReader::new(child.stdout.take().context("no output")?).read_line(&mut port)?;
                let port = port.trim_end().parse().context("the stand-in tells no port")?;
                let mut running = Running::Original(child, port);
                running.wait_until_listening()?;
                Ok(running)
            }
        }
    }
}

impl Running {
    /// Waits until a connection to it is taken.
    fn wait_until_listening(&mut self) -> anyhow::Result<()> {
        let port = self.port();
        wait_until(PATIENCE, || {
            if let Self::Original(child, _) = self {
                let ended = child.try_wait()?;
                ensure!(ended.is_none(), "it has ended: {ended:?}");
            }
            Ok(TcpStream::connect(("127.0.0.1", port)).is_ok())
        })
        .with_context(|| format!("the stand-in does not listen at port {port}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        match self {
            Self::Packetflix(server) => server.pid(),
            Self::Original(child, _) => child.id(),
        }
    }

    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Packetflix(server) => server.port(),
            Self::Original(_, port) => *port,
        }
    }

    /// Path and query of a capture of one interface; `rest` begins with `&` or is empty.
    pub(crate) fn path(&self, namespace: &Namespace, interface: &str, rest: &str) -> anyhow::Result<String> {
        let netns = match self {
            Self::Packetflix(_) => namespace.inode()?.to_string(),
            Self::Original(..) => namespace.path().display().to_string(),
        };
        Ok(format!("/capture?netns={netns}&nif={interface}{rest}"))
    }

    /// The same as a URL, without names of addresses.
    pub(crate) fn url(&self, namespace: &Namespace, interface: &str) -> anyhow::Result<String> {
        let path = self.path(namespace, interface, "&names=0")?;
        Ok(format!("ws://127.0.0.1:{}{path}", self.port()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Self::Original(child, _) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
