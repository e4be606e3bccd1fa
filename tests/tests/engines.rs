//! Real container engines.

use std::os::unix::fs::MetadataExt as _;

use packetflix_tests::{
    containerd::Containerd,
    podman::{IMAGE, Podman},
};

/// Number of the network namespace that a process is in.
fn namespace_of(pid: &str) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{pid}/ns/net"))?.ino())
}

#[test]
fn podman_runs_a_container() -> anyhow::Result<()> {
    let podman = Podman::start()?;
    let id = podman.run(&["run", "--detach", "--name", "quiet", IMAGE])?;
    let pid = podman.run(&["inspect", "--format", "{{.State.Pid}}", &id])?;
    assert_ne!(namespace_of(&pid)?, namespace_of("self")?);
    let addresses = podman.run(&["exec", "quiet", "/bin/busybox", "ip", "address", "show", "eth0"])?;
    assert!(addresses.contains("inet 10.88."), "{addresses}");
    assert!(std::fs::exists(podman.socket())?);
    Ok(())
}

#[test]
fn containerd_runs_a_pod() -> anyhow::Result<()> {
    let mut containerd = Containerd::start()?;
    let pod = containerd.run_pod("shop", "web-0", &[("app", "web")])?;
    let pid = containerd.pid(&pod.id)?.to_string();
    assert_ne!(namespace_of(&pid)?, namespace_of("self")?);
    assert!(pod.address.starts_with("10.9.128."), "{}", pod.address);
    assert!(containerd.run_pod("shop", "web-0", &[]).is_err());

    containerd.restart()?;
    assert_eq!(containerd.pid(&pod.id)?.to_string(), pid);
    containerd.stop_pod(&pod.id)?;
    assert!(containerd.pid(&pod.id).is_err());
    containerd.run_pod("shop", "web-0", &[])?;
    Ok(())
}
