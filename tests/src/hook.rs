//! The hooks that this kernel has. One that it lacks is no test less: that it is refused is then what is tested.

use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, ensure};
use nix::errno::Errno;

use crate::{bpf_run::attached_to_ingress, server::Server};

/// What a server answers that is told to use TCX on a kernel without.
const REFUSAL: &str = "this kernel has no TCX, which came with Linux 6.6: use the hook `socket`";

/// The hooks to be tested: a packet socket's, and TCX unless the kernel has none.
///
/// # Errors
/// When the kernel has no TCX, and a server does not say so to those who want it.
pub fn hooks() -> anyhow::Result<Vec<&'static str>> {
    Ok(tcx()?.into_iter().chain(["socket"]).collect())
}

/// TCX, unless the kernel has none.
///
/// # Errors
/// As [`hooks`].
pub fn tcx() -> anyhow::Result<Option<&'static str>> {
    if has_tcx()? {
        return Ok(Some("tcx"));
    }
    is_refused()?;
    Ok(None)
}

/// Tells for the report that the test is one of this hook, in a line of its own. Whoever runs the tests on several kernels
/// reads it.
pub fn works(hook: &str) {
    eprintln!("\nhook: {hook}");
}

/// Tells it of the hook that a server with these flags captures on, unless the kernel decides.
pub(crate) fn tell(flags: &[&str]) {
    let told = flags.iter().skip_while(|flag| **flag != "--hook").nth(1);
    let hook = told.unwrap_or(&"socket");
    if ["tcx", "socket"].contains(hook) {
        works(hook);
    }
}

/// Whether the kernel has TCX, as it says itself; no server is asked.
fn has_tcx() -> anyhow::Result<bool> {
    const LOOPBACK: u32 = 1;

    match attached_to_ingress(LOOPBACK) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => Ok(false),
        Err(error) => Err(error).context("whether the kernel has TCX cannot be found out"),
    }
}

fn is_refused() -> anyhow::Result<()> {
    let server = Server::start(&["--hook", "tcx"])?;
    let netns = std::fs::metadata("/proc/self/ns/net")?.ino();
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==";
    let (head, body) = server.ask(&format!(
        "GET /capture?netns={netns}&nif=lo HTTP/1.1\r\n{upgrade}"
    ))?;
    let body = String::from_utf8(body)?;
    ensure!(head.status()? == 500 && body.contains(REFUSAL), "{body}");
    eprintln!("\nthis kernel has no TCX");
    Ok(())
}
