//! Network namespaces that a test makes, and what it connects them with.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use anyhow::{Context as _, ensure};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns},
};

use crate::folder::Folder;

/// A network namespace without a process, deleted when dropped. Its loopback device is up, and its interfaces
/// speak no IPv6 of their own accord.
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one with a name of its own.
    ///
    /// # Errors
    /// When `ip netns` fails, which takes root.
    pub fn new() -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(&format!("pf-test-{}-{count}", std::process::id()))
    }

    /// Makes one with this name, which nobody else has.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn named(name: &str) -> anyhow::Result<Self> {
        run("ip", &["netns", "add", name])?;
        let namespace = Self {
            name: name.to_owned(),
        };
        namespace.inside(|| {
            for which in ["all", "default"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1")?;
            }
            anyhow::Ok(())
        })??;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// Two that are connected: `va` with 10.9.1.1 in the first, `vb` with 10.9.1.2 in the second.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn pair() -> anyhow::Result<(Self, Self)> {
        let (here, there) = (Self::new()?, Self::new()?);
        here.connect("va", &there, "vb", 1)?;
        Ok((here, there))
    }

    /// Its name for `ip netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps it.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Its number.
    ///
    /// # Errors
    /// When it is gone.
    pub fn inode(&self) -> anyhow::Result<u64> {
        Ok(std::fs::metadata(self.path())?.ino())
    }

    /// Runs `ip` inside.
    ///
    /// # Errors
    /// When it fails.
    pub fn ip(&self, arguments: &[&str]) -> anyhow::Result<String> {
        run("ip", &[&["-n", &self.name], arguments].concat())
    }

    /// Runs these lines of `ip` inside, one after the other.
    ///
    /// # Errors
    /// When one fails.
    pub fn ip_batch(&self, lines: &str) -> anyhow::Result<()> {
        ip_batch(&["-n", &self.name], lines)
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        command
    }

    /// Does `work` inside, on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        inside(&self.path(), work)
    }

    /// Index of an interface.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn ifindex(&self, name: &str) -> anyhow::Result<u32> {
        self.inside(|| if_nametoindex(name))?
            .with_context(|| format!("no interface {name}"))
    }

    /// Connects two namespaces by a pair of virtual Ethernet devices, `ours` here and `theirs` there, with
    /// the IPv4 addresses `10.9.NETWORK.1` and `.2`, both up.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn connect(&self, ours: &str, other: &Self, theirs: &str, network: u8) -> anyhow::Result<()> {
        self.ip(&[
            "link",
            "add",
            ours,
            "type",
            "veth",
            "peer",
            "name",
            theirs,
            "netns",
            &other.name,
        ])?;
        for (namespace, interface, host) in [(self, ours, 1), (other, theirs, 2)] {
            let address = format!("10.9.{network}.{host}/24");
            namespace.ip(&["address", "add", &address, "dev", interface])?;
            namespace.ip(&["link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Deletes the namespace's name while processes or descriptors may still hold it.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn delete(&self) -> anyhow::Result<()> {
        run("ip", &["netns", "delete", &self.name]).map(drop)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A test may have deleted it itself.
        let _ = self.delete();
    }
}

/// Many network namespaces with nothing in them but a loopback device that is down; deleted when dropped.
pub struct ManyNamespaces(Vec<String>);

impl ManyNamespaces {
    /// Makes so many.
    ///
    /// # Errors
    /// When `ip netns` fails.
    pub fn new(count: usize) -> anyhow::Result<Self> {
        let names = (0..count).map(|number| format!("pf-test-{}-many-{number}", std::process::id()));
        let many = Self(names.collect());
        many.ip("add")?;
        Ok(many)
    }

    /// A pattern that means them all.
    pub fn pattern(&self) -> String {
        format!("/run/netns/pf-test-{}-many-*", std::process::id())
    }

    /// Their names for `ip netns`.
    pub fn names(&self) -> &[String] {
        &self.0
    }

    /// Does one thing with all of them.
    fn ip(&self, what: &str) -> anyhow::Result<()> {
        let lines = self.0.iter().map(|name| format!("netns {what} {name}\n"));
        ip_batch(&[], &lines.collect::<String>())
    }
}

impl Drop for ManyNamespaces {
    fn drop(&mut self) {
        let _ = self.ip("del");
    }
}

/// Runs lines of `ip`, with these options.
fn ip_batch(options: &[&str], lines: &str) -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let file = folder.file("lines");
    std::fs::write(&file, lines)?;
    let file = file.to_str().context("no text")?;
    run("ip", &[options, &["-batch", file]].concat())?;
    Ok(())
}

/// Runs a program and gives what it prints.
///
/// # Errors
/// When it fails, with what it says.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    output_of(Command::new(program).args(arguments))
}

/// Runs a command and gives what it prints.
///
/// # Errors
/// When it fails, with what it says.
pub fn output_of(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Does `work` inside the namespace of this file, on a thread of its own.
///
/// # Errors
/// When the namespace cannot be entered.
pub fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let namespace = File::open(namespace)?;
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// File of a process's network namespace.
pub fn of_process(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}
