//! Engines that say what they are told to say.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::server::{program, wait_until};

/// The user as whom engines of users run.
pub const USER: u32 = 65_534;

/// A scripted engine that speaks Docker's API; ended when dropped.
pub struct FakeEngine {
    child: Child,
    socket: PathBuf,
}

impl FakeEngine {
    /// Starts root's, with these containers by the names and PIDs of their processes, and these variables.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(
        socket: &Path,
        containers: &[(&str, u32)],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        Self::start_by(
            Command::new(program("fake-engine")?),
            socket,
            containers,
            variables,
        )
    }

    /// Starts that of [`USER`], whose folder the socket's must be.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_of_user(
        socket: &Path,
        containers: &[(&str, u32)],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut command = as_user("setpriv");
        command.arg(program("fake-engine")?);
        Self::start_by(command, socket, containers, variables)
    }

    /// Starts one by a command that ends with its program's name.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_by(
        mut command: Command,
        socket: &Path,
        containers: &[(&str, u32)],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let _ = fs::remove_file(socket);
        command.arg(socket);
        for (name, pid) in containers {
            command.args([name, &&pid.to_string()[..]]);
        }
        let child = command
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let engine = Self {
            child,
            socket: socket.to_owned(),
        };
        wait_until(Duration::from_secs(5), || Ok(socket.exists()))?;
        Ok(engine)
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// The program of scripted engines under another name, in a folder.
///
/// # Errors
/// When the file system does not let us.
pub fn program_called(name: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    fs::copy(program("fake-engine")?, &path)?;
    Ok(path)
}

/// A program that runs as [`USER`], by `setpriv` at the path `setpriv`.
pub fn as_user(setpriv: &str) -> Command {
    let mut command = Command::new(setpriv);
    command.args([
        &format!("--reuid={USER}")[..],
        &format!("--regid={USER}"),
        "--clear-groups",
    ]);
    command
}

/// A folder that is [`USER`]'s, deleted when dropped.
pub struct UserFolder(PathBuf);

impl UserFolder {
    /// Makes one.
    ///
    /// # Errors
    /// When the file system does not let us.
    pub fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("packetflix-user-{}", std::process::id()));
        Self::at(path)
    }

    /// Makes the one in which the user's own engines have their sockets.
    ///
    /// # Errors
    /// When there is one.
    pub fn at_run_user() -> anyhow::Result<Self> {
        fs::create_dir_all("/run/user")?;
        Self::at(PathBuf::from(format!("/run/user/{USER}")))
    }

    fn at(path: PathBuf) -> anyhow::Result<Self> {
        fs::create_dir(&path)?;
        let folder = Self(path);
        chown(&folder.0, Some(USER), Some(USER))?;
        anyhow::ensure!(fs::metadata(&folder.0)?.uid() == USER);
        Ok(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Path of something in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for UserFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
