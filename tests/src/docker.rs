//! A Docker engine of the test's own, in a network namespace of its own: nothing of it touches the host's.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    image,
    leftovers::{kill_processes_of, unmount_below},
    namespace::{Namespace, output_of},
    server::wait_until,
};

pub use crate::image::IMAGE;

/// A running engine; stopped with its containers when dropped.
pub struct Docker {
    engine: Child,
    folder: PathBuf,
    namespace: Namespace,
    /// Names of its sockets in its folder.
    sockets: &'static [&'static str],
}

/// Name of the second socket, where there is one.
const OTHER_SOCKET: &str = "other-socket";

impl Docker {
    /// Starts the engine and makes its image.
    ///
    /// # Errors
    /// When it does not come up; the message holds its log.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&["socket"])
    }

    /// Starts one that listens at two sockets, and so is two engines, each of which claims what the other has.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_at_two_sockets() -> anyhow::Result<Self> {
        Self::start_with(&["socket", OTHER_SOCKET])
    }

    fn start_with(sockets: &'static [&'static str]) -> anyhow::Result<Self> {
        let namespace = Namespace::new()?;
        let folder = std::env::temp_dir().join(format!("packetflix-docker-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let docker = Self {
            engine: spawn(&namespace, &folder, sockets)?,
            folder,
            namespace,
            sockets,
        };
        docker.wait_until_ready()?;
        let archive = image::archive(&docker.folder)?;
        docker.run(&["load", "--input", &archive.display().to_string()])?;
        Ok(docker)
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Where it listens, too, if it was started at two sockets.
    pub fn other_socket(&self) -> PathBuf {
        self.folder.join(OTHER_SOCKET)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.engine.id()
    }

    /// Kills the engine itself. Its containers live on until it is started again.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.engine.kill()?;
        self.engine.wait()?;
        Ok(())
    }

    /// Starts it again.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        // Its containerd has ended with it, which whoever inherits that may not have noticed yet.
        let _ = fs::remove_file(self.folder.join("exec/containerd/containerd.pid"));
        self.engine = spawn(&self.namespace, &self.folder, self.sockets)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> anyhow::Result<()> {
        wait_until(Duration::from_secs(60), || Ok(self.run(&["info"]).is_ok()))
            .with_context(|| fs::read_to_string(self.folder.join("log")).unwrap_or_default())
    }

    /// The network namespace that it and the bridges of its containers are in.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Runs `docker` and gives what it prints, without the newline at its end.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let host = format!("--host=unix://{}", self.socket().display());
        let printed = output_of(Command::new("docker").arg(host).args(arguments))?;
        Ok(printed.trim_end().to_owned())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if let Ok(containers) = self.run(&["ps", "--quiet"]) {
            for container in containers.lines() {
                let _ = self.run(&["kill", container]);
            }
        }
        if let Ok(pid) = i32::try_from(self.engine.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.engine.wait();
        kill_processes_of(&self.folder);
        unmount_below(&self.folder);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(namespace: &Namespace, folder: &Path, sockets: &[&str]) -> anyhow::Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(folder.join("log"))?;
    let path = |name: &str| folder.join(name).display().to_string();
    let hosts = sockets.iter().map(|name| format!("--host=unix://{}", path(name)));
    namespace
        .command("dockerd")
        .args([
            "--data-root",
            &path("data"),
            "--exec-root",
            &path("exec"),
            "--pidfile",
            &path("pid"),
        ])
        .args(hosts)
        .args(["--group", "root"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start dockerd")
}
