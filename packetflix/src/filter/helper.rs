//! Processes of our own program that help with a filter: they are told an input, and say what becomes of it.

use std::{
    io,
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    time::timeout,
};

/// Seconds of CPU time for one filter, and its names. libpcap takes one and a half for three hundred hosts.
pub(super) const CPU_SECONDS: u64 = 5;
/// Bytes of an answer: the longest program is a seventh of that.
const MAX_ANSWER: u64 = 1 << 20;

/// What a helper, our own program with these arguments, says to this input, and how it ended; `None` when it takes longer
/// than it may.
///
/// # Errors
/// When it cannot be started, or nothing can be told to it.
pub(super) async fn ask_helper(
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
