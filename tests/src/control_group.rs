//! A control group with little memory.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Context as _;

use crate::server::{program, wait_until};

/// A group whose processes may use so much memory together; removed when dropped, after its processes have ended.
pub struct ControlGroup {
    folder: PathBuf,
    version: Version,
}

/// Of the interface of control groups, which name their files differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl ControlGroup {
    /// Makes one with `bytes` of memory, and no swap.
    ///
    /// # Errors
    /// When there are no control groups, or not of memory.
    pub fn with_memory(bytes: u64) -> anyhow::Result<Self> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, version) = if first.is_dir() {
            (first, Version::One)
        } else {
            let root = Path::new("/sys/fs/cgroup");
            fs::write(root.join("cgroup.subtree_control"), "+memory").context("memory is not controlled")?;
            (root, Version::Two)
        };
        let folder = root.join(format!("packetflix-test-{}", std::process::id()));
        fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let group = Self { folder, version };
        group.write(Version::One, "memory.limit_in_bytes", bytes)?;
        group.write(Version::Two, "memory.max", bytes)?;
        // Where the kernel counts swap at all.
        let _ = group.write(Version::One, "memory.memsw.limit_in_bytes", bytes);
        let _ = group.write(Version::Two, "memory.swap.max", 0);
        Ok(group)
    }

    /// A command that runs the server in the group.
    ///
    /// # Errors
    /// When the server was not built.
    pub fn server(&self) -> anyhow::Result<Command> {
        let mut command = Command::new("sh");
        command
            .args(["-c", "echo $$ > \"$0\" && exec \"$@\""])
            .arg(self.folder.join("cgroup.procs"))
            .arg(program("packetflix")?);
        Ok(command)
    }

    /// Bytes that the group has used at most.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn peak(&self) -> anyhow::Result<u64> {
        let file = match self.version {
            Version::One => "memory.max_usage_in_bytes",
            Version::Two => "memory.peak",
        };
        Ok(fs::read_to_string(self.folder.join(file))?.trim().parse()?)
    }

    fn write(&self, version: Version, file: &str, bytes: u64) -> anyhow::Result<()> {
        if version == self.version {
            fs::write(self.folder.join(file), bytes.to_string()).with_context(|| file.to_owned())?;
        }
        Ok(())
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        let _ = wait_until(
            Duration::from_secs(5),
            || Ok(fs::remove_dir(&self.folder).is_ok()),
        );
    }
}
