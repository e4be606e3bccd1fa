//! Namespaces that are full of things, or in which something never answers: see the program `hoard`.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, ensure};

use crate::server::program;

/// A program with such namespaces; ended when dropped, and they with it.
pub struct Hoard {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Hoard {
    /// What root does, in a mount namespace of its own.
    ///
    /// # Errors
    /// When it cannot be done.
    pub fn of_root(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start(&mut Command::new(program("hoard")?), arguments)
    }

    /// What a user does who has no rights but in a user namespace of that user's own, with a network namespace.
    ///
    /// # Errors
    /// As [`Self::of_root`].
    pub fn of_user(arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start(of_user(65_533).arg(program("hoard")?), arguments)
    }

    /// Runs another program, which says `ready` when it is.
    ///
    /// # Errors
    /// As [`Self::of_root`].
    pub fn start(command: &mut Command, arguments: &[&str]) -> anyhow::Result<Self> {
        let mut child = command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut hoard = Self { child, output };
        hoard.expect("ready\n")?;
        Ok(hoard)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets what never answers end, and what has it go on.
    ///
    /// # Errors
    /// When it does not.
    pub fn let_go(&mut self) -> anyhow::Result<()> {
        self.child.stdin.as_mut().context("no input")?.write_all(b"\n")?;
        self.expect("over\n")
    }

    fn expect(&mut self, words: &str) -> anyhow::Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line == words, "{line}");
        Ok(())
    }
}

impl Drop for Hoard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A command that begins with a user without rights who makes a user namespace and a network namespace.
fn of_user(uid: u32) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([format!("--reuid={uid}"), format!("--regid={uid}")])
        .args([
            "--clear-groups",
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "--net",
        ]);
    command
}
