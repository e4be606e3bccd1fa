//! Processes of our own program that help with a filter: they are told an input, and say what becomes of it.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

use super::child;
use crate::channel::{Control, Errno, Kind, Served};

/// Seconds of CPU time for one filter, and its names. libpcap takes one and a half for three hundred hosts.
pub(super) const CPU_SECONDS: u64 = 5;
/// Bytes of an answer: the longest program is a seventh of that.
const MAX_ANSWER: u64 = 1 << 20;

/// Most helpers at the same time that are started for another process, and how long each may take at most.
const AT_ONCE: usize = 16;
const LONGEST: Duration = Duration::from_secs(30);

/// Who starts helpers.
#[derive(Clone, Debug)]
pub(super) enum Helpers {
    /// This process, of this program.
    Own(PathBuf),
    /// The process that has the rights.
    Kept(Arc<Control>),
}

/// What is asked of who starts helpers: `Result<Option<(i32, Vec<u8>)>, Errno>`, how one ended and what it said, or nothing where
/// it took longer than it may.
#[derive(Debug, Serialize, Deserialize)]
struct Help {
    arguments: Vec<String>,
    input: Vec<u8>,
    deadline: Duration,
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;
    use crate::channel::fuzzing::message;

    /// What a front asks that may have been taken over.
    pub(crate) fn asked(data: &[u8]) {
        if let Some(help) = message::<Help>(data) {
            let _ = child::is_known(&help.arguments);
        }
    }
}

impl Helpers {
    /// As [`ask_helper`].
    pub(super) async fn ask(
        &self,
        arguments: &[String],
        input: &[u8],
        deadline: Duration,
    ) -> io::Result<Option<(ExitStatus, Vec<u8>)>> {
        let control = match self {
            Self::Own(program) => return ask_helper(program, arguments, input, deadline).await,
            Self::Kept(control) => Arc::clone(control),
        };
        let help = Help {
            arguments: arguments.to_vec(),
            input: input.to_vec(),
            deadline,
        };
        let mut line = control
            .open(Kind::Helpers)
            .map_err(io::Error::from)?
            .into_served()?;
        line.say(&help).await?;
        let said = line.next::<Result<Option<(i32, Vec<u8>)>, Errno>>().await?;
        let said = said.ok_or(io::ErrorKind::UnexpectedEof)??;
        Ok(said.map(|(status, said)| (ExitStatus::from_raw(status), said)))
    }
}

/// Those that are started for another process.
#[derive(Debug)]
pub(crate) struct Started(Semaphore);

impl Default for Started {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

/// Starts helpers for a process that has no rights to, and ends one whose answer nobody waits for any more.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn serve(mut line: Served, started: Arc<Started>) -> io::Result<()> {
    while let Some(help) = line.next::<Help>().await? {
        let Help {
            arguments,
            input,
            deadline,
        } = help;
        let helped = async {
            if !child::is_known(&arguments) {
                return Err(io::Error::from(io::ErrorKind::PermissionDenied));
            }
            let _turn = started.0.acquire().await;
            let program = Path::new("/proc/self/exe");
            ask_helper(program, &arguments, &input, deadline.min(LONGEST)).await
        };
        let helped = tokio::select! {
            helped = helped => helped,
            () = line.is_left() => return Ok(()),
        };
        let said = helped.map(|said| said.map(|(status, said)| (status.into_raw(), said)));
        line.say(&said.map_err(Errno::from)).await?;
    }
    Ok(())
}

/// What a helper, our own program with these arguments, says to this input, and how it ended; `None` when it takes longer
/// than it may.
///
/// # Errors
/// When it cannot be started, or nothing can be told to it.
async fn ask_helper(
    program: &Path,
    arguments: &[String],
    input: &[u8],
    deadline: Duration,
) -> io::Result<Option<(ExitStatus, Vec<u8>)>> {
    let mut child = start(program, arguments)?;
    match timeout(deadline, ask(&mut child, input)).await {
        Ok(Ok(said)) => Ok(Some(said)),
        Ok(Err(error)) => {
            end(&mut child).await;
            Err(error)
        }
        Err(_) => {
            end(&mut child).await;
            Ok(None)
        }
    }
}

fn start(program: &Path, arguments: &[String]) -> io::Result<Child> {
    Command::new(program)
        .arg0("packetflix")
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Whoever gives up waiting for us ends it too.
        .kill_on_drop(true)
        .spawn()
}

/// Gives the process its input, and takes how it ended and what it said.
async fn ask(child: &mut Child, said: &[u8]) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut answer = Vec::new();
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(said).await {
            // It may have failed before it reads, of which it tells.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
            _ => {}
        }
    }
    if let Some(output) = child.stdout.take() {
        output.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    }
    Ok((child.wait().await?, answer))
}

/// Ends the process for good, and lets the kernel forget it.
async fn end(child: &mut Child) {
    if let Err(error) = child.kill().await {
        tracing::warn!(%error, "a process that helps with a filter could not be ended");
    }
}
