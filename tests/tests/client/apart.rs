//! A view of the file system in which no server is at its usual place, whatever runs on the machine.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{folder::Folder, namespace::Namespace};

/// A mount namespace with a `/run` of its own, in which are the namespaces of the machine; and a network namespace, in which no
/// server listens.
pub(crate) struct Apart {
    pub(crate) home: Folder,
    pub(crate) network: Namespace,
    holder: Child,
}

/// Makes it, of a folder and pairs of a file and its place.
const SCRIPT: &str = r#"
    set -e
    mkdir "$1/netns"
    mount --rbind /run/netns "$1/netns"
    mount -t tmpfs none /run
    mkdir /run/netns /run/sshd
    mount --move "$1/netns" /run/netns
    shift
    while [ $# -gt 0 ]; do mount --bind "$1" "$2"; shift 2; done
    echo ready
    exec sleep 600
"#;

impl Apart {
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::with(Folder::new()?, &[])
    }

    /// One in which files stand in the place of others.
    pub(crate) fn with(home: Folder, files: &[(&Path, &str)]) -> anyhow::Result<Self> {
        let network = Namespace::new()?;
        let mut command = network.command("unshare");
        command
            .args(["--mount", "sh", "-c", SCRIPT, "sh"])
            .arg(home.path());
        for (file, place) in files {
            command.arg(file).arg(place);
        }
        let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "it cannot be made");
        Ok(Self {
            home,
            network,
            holder,
        })
    }

    /// A command that runs in it, as a user with a home of their own.
    pub(crate) fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id()))
            .arg(format!("--net={}", self.network.path().display()))
            .arg(program)
            .args(arguments)
            .env("HOME", self.home.path())
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        command
    }

    /// Its folder is of no use to others as long as only root may look into it.
    pub(crate) fn open_home(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;

        Ok(fs::set_permissions(
            self.home.path(),
            fs::Permissions::from_mode(0o777),
        )?)
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
