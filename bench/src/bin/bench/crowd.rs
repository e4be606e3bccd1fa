//! Many network namespaces, as a host of containers has them: half of them mounted, half of them of processes.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use packetflix_tests::server::wait_until;

use crate::interrupt;

/// Where `ip netns` looks for names. The host's own are covered while we run, for us and our children only.
const FOLDER: &str = "/run/netns";

/// No process of ours lasts longer, in seconds.
const LIFETIME: &str = "1800";

/// The namespaces; gone when dropped, and when we are killed.
pub(crate) struct Crowd {
    /// Its namespace has the other end of each pair of virtual Ethernet devices, as a host has; and it has no copies
    /// of what we mount, just as containers have none.
    hub: Sleeper,
    members: Vec<Sleeper>,
    sidecars: Vec<Sleeper>,
    mounts: u32,
    folder: Folder,
}

/// A process that does nothing in namespaces of its own, killed when dropped.
struct Sleeper(Child);

/// A file system in memory at [`FOLDER`], unmounted when dropped.
pub(crate) struct Folder {
    is_ours: bool,
}

impl Crowd {
    /// There is nobody yet.
    ///
    /// # Errors
    /// Without root.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let hub = Sleeper::start("unshare", &["--net", "--mount"])?;
        hub.wait_for_namespace()?;
        Ok(Self {
            hub,
            members: Vec::new(),
            sidecars: Vec::new(),
            mounts: 0,
            folder: Folder::mount()?,
        })
    }

    /// How many namespaces there are.
    pub(crate) fn len(&self) -> u32 {
        self.mounts + self.members.len() as u32
    }

    /// Adds namespaces until there are `count`.
    ///
    /// # Errors
    /// When the kernel or `ip` refuses, or upon an interruption.
    pub(crate) fn grow(&mut self, count: u32) -> anyhow::Result<()> {
        let before = self.members.len();
        while (self.members.len() as u32) < count / 2 {
            interrupt::check()?;
            // Containers have mounts of their own, too.
            self.members
                .push(Sleeper::start_like(&self.hub, &["unshare", "--net", "--mount"])?);
        }
        for (member, number) in self.members.iter().zip(0..).skip(before) {
            interrupt::check()?;
            member.wait_for_namespace()?;
            let namespace = File::open(format!("/proc/{}/ns/net", member.pid()))?;
            self.furnish(2 * number, || setns(namespace, CloneFlags::CLONE_NEWNET))?;
        }
        while self.len() < count {
            interrupt::check()?;
            let path = self.folder.file(self.mounts)?;
            self.furnish(2 * self.mounts + 1, || {
                unshare(CloneFlags::CLONE_NEWNET)?;
                let none = None::<&str>;
                mount(
                    Some("/proc/thread-self/ns/net"),
                    &path,
                    none,
                    MsFlags::MS_BIND,
                    none,
                )
            })?;
            self.mounts += 1;
        }
        Ok(())
    }

    /// Gives a namespace a link to the hub with an address, on a thread that is brought there by `enter`.
    fn furnish(&self, number: u32, enter: impl FnOnce() -> nix::Result<()> + Send) -> anyhow::Result<()> {
        let hub = self.hub.pid();
        let [_, _, high, low] = number.to_be_bytes();
        let commands = format!(
            "link set lo up\n\
             link add eth0 type veth peer name veth{number} netns {hub}\n\
             address add 10.9.{high}.{low}/16 dev eth0\n\
             link set eth0 up\n"
        );
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter().context("no namespace")?;
                batch(&commands)
            });
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Adds a second process to the namespace of each that has one, as pods have several containers.
    ///
    /// # Errors
    /// As [`Self::grow`].
    pub(crate) fn add_sidecars(&mut self) -> anyhow::Result<()> {
        for member in &self.members[self.sidecars.len()..] {
            interrupt::check()?;
            self.sidecars
                .push(Sleeper::start_like(member, &["--net", "unshare", "--mount"])?);
        }
        for sidecar in &self.sidecars {
            sidecar.wait_for_namespace()?;
        }
        Ok(())
    }

    /// All processes in namespaces of the crowd.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.members.iter().chain(&self.sidecars).map(Sleeper::pid)
    }
}

impl Sleeper {
    /// Starts it by a program that makes or enters its namespaces. To be called by the main thread, with which it
    /// dies.
    fn start(by: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", by])
            .args(arguments)
            .args(["sleep", LIFETIME])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start setpriv")?;
        Ok(Self(child))
    }

    /// Starts it from the mount namespace of another.
    fn start_like(other: &Self, arguments: &[&str]) -> anyhow::Result<Self> {
        let target = format!("--target={}", other.pid());
        Self::start("nsenter", &[&[&target, "--mount"], arguments].concat())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Waits until it has become `sleep`.
    fn wait_for_namespace(&self) -> anyhow::Result<()> {
        let comm = format!("/proc/{}/comm", self.pid());
        wait_until(Duration::from_secs(10), || {
            interrupt::check()?;
            Ok(fs::read_to_string(&comm)?.trim_end() == "sleep")
        })
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Folder {
    /// Covers what is there.
    ///
    /// # Errors
    /// Without root.
    pub(crate) fn mount() -> anyhow::Result<Self> {
        let is_ours = fs::create_dir(FOLDER).is_ok();
        let folder = Self { is_ours };
        mount(
            Some("bench"),
            FOLDER,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("cannot mount {FOLDER}"))?;
        Ok(folder)
    }

    /// An empty file to mount a namespace upon.
    fn file(&self, number: u32) -> anyhow::Result<PathBuf> {
        let path = Path::new(FOLDER).join(format!("bench-{number}"));
        File::create(&path)?;
        Ok(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let is_mounted = || {
            let parent = Path::new(FOLDER).parent().map(fs::metadata);
            let folder = fs::metadata(FOLDER);
            matches!((parent, folder), (Some(Ok(parent)), Ok(folder)) if parent.dev() != folder.dev())
        };
        if is_mounted() {
            // With all that is mounted in it.
            let _ = umount2(FOLDER, MntFlags::MNT_DETACH);
        }
        if self.is_ours {
            let _ = fs::remove_dir(FOLDER);
        }
    }
}

/// Has `ip` execute these commands in the calling thread's namespace.
fn batch(commands: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start ip")?;
    let written = ip
        .stdin
        .take()
        .map_or(Ok(()), |mut input| input.write_all(commands.as_bytes()));
    let status = ip.wait()?;
    written?;
    ensure!(status.success(), "ip -batch: {status}: {commands}");
    Ok(())
}
