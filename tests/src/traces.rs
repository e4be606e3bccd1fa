//! What captures leave in the kernel, to be compared: what the server's process holds, and what is in the test's own
//! namespaces. What others on the machine have loaded does not matter.

use std::time::Duration;

use anyhow::ensure;

use crate::{
    bpf_objects::{Objects, packet_sockets_of},
    namespace::Namespace,
    server::{Server, wait_until},
};

/// All that a capture could leave in the kernel, as text to compare: in these namespaces, and held by a server, unless
/// it is yet to be started or has ended.
///
/// # Errors
/// When the server has ended, or a tool fails.
pub fn traces(server: Option<&Server>, namespaces: &[&Namespace]) -> anyhow::Result<String> {
    let mut traces = String::new();
    if let Some(server) = server {
        // Without numbers: a server keeps one object ready, which may be another after a capture.
        traces += &Objects::held_by(server.pid())?.kinds();
        traces += &format!("packet sockets: {}\n", packet_sockets_of(server.pid())?);
    }
    for namespace in namespaces {
        let inside = |program: &str, arguments: &[&str]| {
            let output = namespace.command(program).args(arguments).output()?;
            ensure!(output.status.success(), "{program} {}", arguments.join(" "));
            Ok(String::from_utf8(output.stdout)?)
        };
        traces += &inside("bpftool", &["net", "show"])?;
        traces += &inside("ip", &["-d", "link", "show"])?;
        traces += &inside("tc", &["qdisc", "show"])?;
        traces += &inside("cat", &["/proc/net/packet"])?;
    }
    Ok(traces)
}

/// The traces before a capture, when the kernel has let go of all that earlier ones held, and a server has what it
/// keeps ready.
///
/// # Errors
/// When it does not settle.
pub fn traces_before(server: Option<&Server>, namespaces: &[&Namespace]) -> anyhow::Result<String> {
    let mut shown = traces(server, namespaces)?;
    wait_until(Duration::from_secs(5), || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut shown, traces(server, namespaces)?);
        Ok(before == shown)
    })?;
    Ok(shown)
}

/// Waits until the server and the kernel hold what they held.
///
/// # Errors
/// When they hold something else for fifteen seconds, which is told.
pub fn wait_for_traces(
    before: &str,
    server: Option<&Server>,
    namespaces: &[&Namespace],
) -> anyhow::Result<()> {
    let mut now = String::new();
    wait_until(Duration::from_secs(15), || {
        now = traces(server, namespaces)?;
        Ok(now == before)
    })
    .map_err(|error| anyhow::anyhow!("{error}; left behind; before:\n{before}\nnow:\n{now}"))
}
