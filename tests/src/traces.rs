//! What captures leave in the kernel, to be compared.

use std::time::Duration;

use anyhow::ensure;

use crate::{
    namespace::{Namespace, run},
    server::wait_until,
};

/// All that a capture could leave in the kernel, as text to compare.
///
/// # Errors
/// When a tool fails.
pub fn traces(namespaces: &[&Namespace]) -> anyhow::Result<String> {
    let mut traces = String::new();
    for what in [&["prog", "show"][..], &["map", "show"], &["link", "show"]] {
        // Without numbers and times: a server keeps one object ready, which is another after each capture.
        let shown = run("bpftool", what)?;
        let numbered = shown.lines().filter_map(|line| line.split_once(": "));
        let mut kinds: Vec<&str> = numbered
            .filter(|(number, _)| number.parse::<u32>().is_ok())
            .map(|(_, kind)| kind.split("  tag ").next().unwrap_or(kind))
            .collect();
        kinds.sort_unstable();
        traces += &kinds.join("\n");
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
pub fn traces_before(namespaces: &[&Namespace]) -> anyhow::Result<String> {
    let mut shown = traces(namespaces)?;
    wait_until(Duration::from_secs(5), || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut shown, traces(namespaces)?);
        Ok(before == shown)
    })?;
    Ok(shown)
}

/// Waits until the kernel holds what it held.
///
/// # Errors
/// When it holds something else for five seconds, which is told.
pub fn wait_for_traces(before: &str, namespaces: &[&Namespace]) -> anyhow::Result<()> {
    let mut now = String::new();
    wait_until(Duration::from_secs(5), || {
        now = traces(namespaces)?;
        Ok(now == before)
    })
    .map_err(|_| anyhow::anyhow!("left behind; before:\n{before}\nnow:\n{now}"))
}
