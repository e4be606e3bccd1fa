//! What the service says of the kernel that it runs on.

use std::process::Command;

use anyhow::ensure;
use packetflix_tests::{
    client::Recorder,
    hook,
    namespace::Namespace,
    server::{Server, program},
};

#[test]
fn check_finds_that_captures_work() -> anyhow::Result<()> {
    let output = Command::new(program("packetflix")?).arg("check").output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{text}");
    let line = |name: &str| text.lines().find(|line| line.contains(name)).unwrap_or_default();
    ensure!(line("hook socket").contains("works"), "{text}");
    hook::works("socket");
    let tcx = line("hook tcx");
    match hook::tcx()? {
        Some(name) => {
            ensure!(tcx.contains("works"), "{text}");
            hook::works(name);
        }
        None => ensure!(tcx.contains("no TCX"), "{text}"),
    }
    Ok(())
}

/// `auto` is what the kernel has.
#[tokio::test]
async fn auto_takes_tcx_where_the_kernel_has_it() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&["--hook", "auto"])?;
    let url = server.url(&format!("netns={}&nif=lo", namespace.inode()?));
    Recorder::start(&url).await?.finish().await?;
    let (hook, told) = match hook::tcx()? {
        Some(tcx) => (tcx, "the hook is TCX, which this kernel has"),
        None => ("socket", "the hook is a socket filter: this kernel has no TCX"),
    };
    server.wait_for_log(told)?;
    hook::works(hook);
    Ok(())
}
