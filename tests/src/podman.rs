//! A podman engine of the test's own, in a network namespace and, unless it is to mount where the host does, a mount namespace
//! of its own: nothing of it is left on the host.

use std::{
    fs::{self, File},
    path::PathBuf,
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
    leftovers::{SharedFolders, kill_processes_of, remove_control_groups},
    namespace::{Namespace, output_of},
    server::wait_until,
};

pub use crate::image::IMAGE;

/// Limits that no one needs to be allowed to raise, and locks and events that are not the host's.
const CONFIG: &str = r#"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
lock_type = "file"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"#;

/// Folders whose places cannot be chosen; innermost first.
const SHARED_FOLDERS: &[&str] = &[
    "/run/containers/networks",
    "/run/containers",
    "/run/runc",
    "/var/lib/containers/cache",
    "/var/lib/containers",
];

/// Hides these folders, and becomes the command that follows.
const IN_PRIVATE: &str = "mkdir -p /run/containers /run/netns /run/runc /var/lib/containers \
    && mount -t tmpfs none /run/containers && mount -t tmpfs none /run/netns \
    && mount -t tmpfs none /run/runc && mount -t tmpfs none /var/lib/containers \
    && exec \"$@\"";

/// A running engine; stopped with its containers when dropped.
pub struct Podman {
    service: Child,
    folder: PathBuf,
    _namespace: Namespace,
    shared: SharedFolders,
}

impl Podman {
    /// Starts the engine's service and makes its image.
    ///
    /// # Errors
    /// When it does not come up; the message holds its log.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_in(&["unshare", "--mount", "sh", "-c", IN_PRIVATE, "sh"])
    }

    /// The same, where it mounts namespaces as the host's own engine does.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with_mounts_of_host() -> anyhow::Result<Self> {
        Self::start_in(&["env"])
    }

    /// Starts it by a command that becomes the one that follows.
    fn start_in(becomes: &[&str]) -> anyhow::Result<Self> {
        let shared = SharedFolders::look(SHARED_FOLDERS);
        let namespace = Namespace::new()?;
        let folder = std::env::temp_dir().join(format!("packetflix-podman-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("containers.conf"), CONFIG)?;
        let log = File::create(folder.join("log"))?;
        let path = |name: &str| folder.join(name).display().to_string();
        let service = namespace
            .command(becomes[0])
            .args(&becomes[1..])
            .arg("podman")
            .args(["--root", &path("root-of-storage"), "--runroot", &path("run")])
            .args([
                "--tmpdir",
                &path("tmp"),
                "--network-config-dir",
                &path("networks"),
            ])
            .args(["--cgroup-manager", "cgroupfs", "--storage-driver", "overlay"])
            .args([
                "system",
                "service",
                "--time=0",
                &format!("unix://{}", path("socket")),
            ])
            .env("CONTAINERS_CONF", path("containers.conf"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot start podman")?;
        let podman = Self {
            service,
            folder,
            _namespace: namespace,
            shared,
        };
        wait_until(Duration::from_secs(60), || Ok(podman.run(&["version"]).is_ok()))
            .with_context(|| fs::read_to_string(podman.folder.join("log")).unwrap_or_default())?;
        let archive = image::archive(&podman.folder)?;
        podman.run(&["load", "--input", &archive.display().to_string()])?;
        Ok(podman)
    }

    /// Where its service listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Has the service run a command of `podman`, and gives what that prints, without the newline at its end.
    ///
    /// # Errors
    /// When it fails, with what it says.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let url = format!("--url=unix://{}", self.socket().display());
        let mut command = Command::new("podman");
        command
            .args(["--remote", &url])
            .args(arguments)
            .env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        Ok(output_of(&mut command)?.trim_end().to_owned())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.run(&["pod", "rm", "--all", "--force"]);
        let _ = self.run(&["rm", "--all", "--force", "--time", "0"]);
        if let Ok(pid) = i32::try_from(self.service.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.service.wait();
        kill_processes_of(&self.folder);
        remove_control_groups(&["libpod_parent/conmon", "libpod_parent"]);
        self.shared
            .remove_files(&["ipam.db", "blob-info-cache-v1.boltdb"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}
