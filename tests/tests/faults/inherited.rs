//! What whoever starts the server leaves it: signals, limits and permissions.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::ensure;
use nix::sys::signal::Signal;
use packetflix_tests::{
    client::Recorder,
    folder::Folder,
    namespace::Namespace,
    server::{Server, program},
};

/// Captures with a filter, for which a process of its own is started and waited for.
async fn captures_with_a_filter(server: &Server, namespace: &Namespace) -> anyhow::Result<()> {
    let url = server.url(&format!("netns={}&filter=tcp+port+80", namespace.inode()?));
    Recorder::start(&url).await?.finish().await.map(drop)
}

#[tokio::test]
async fn signals_that_are_ignored_or_blocked_hinder_nothing() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut env = Command::new("env");
    env.args(["--ignore-signal=CHLD,TERM", "--block-signal=TERM,CHLD,INT"])
        .arg(program("packetflix")?);
    let mut server = Server::start_by(&mut env, &[])?;
    captures_with_a_filter(&server, &namespace).await?;
    server.signal(Signal::SIGTERM)?;
    assert_eq!(server.wait()?.code(), Some(0));
    Ok(())
}

/// Limits below those that the compiler of filters gives itself cannot be raised to these.
#[tokio::test]
async fn limits_that_are_low_bound_the_compiler_further() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut prlimit = Command::new("prlimit");
    prlimit
        .args(["--cpu=4:4", "--core=0:0", "--fsize=0:0"])
        .arg(program("packetflix")?);
    let server = Server::start_by(&mut prlimit, &[])?;
    captures_with_a_filter(&server, &namespace).await?;
    ensure!(server.get("/readyz")?.0 == 200);
    // What they cost is told at the start.
    for words in ["at most 4 seconds of CPU time", "at most 0 bytes in a file"] {
        ensure!(server.log().contains(words), "{words}: {}", server.log());
    }
    Ok(())
}

#[tokio::test]
async fn soft_limits_are_raised() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut prlimit = Command::new("prlimit");
    prlimit
        .args(["--cpu=1:unlimited", "--nofile=64:4096", "--fsize=10:unlimited"])
        .arg(program("packetflix")?);
    let server = Server::start_by(&mut prlimit, &[])?;
    captures_with_a_filter(&server, &namespace).await?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid()))?;
    for (name, soft) in [
        ("Max cpu time", "unlimited"),
        ("Max open files", "4096"),
        ("Max file size", "unlimited"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_default();
        let now = line[name.len()..].split_whitespace().next();
        assert_eq!(now, Some(soft), "{line}");
    }
    Ok(())
}

#[test]
fn files_have_the_permissions_that_they_need() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    for mask in ["0000", "0777"] {
        let (log, socket) = (
            folder.file(&format!("log-{mask}")),
            folder.file(&format!("socket-{mask}")),
        );
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("umask {mask}; exec \"$0\" \"$@\"")])
            .arg(program("packetflix")?);
        let unix = format!("--listen=unix:{}", socket.display());
        let audit = format!("--audit-log={}", log.display());
        let _server = Server::start_by(&mut shell, &["--listen=127.0.0.1", &unix, &audit])?;
        for path in [&log, &socket] {
            let mode = fs::metadata(path)?.permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{mask}: {}", path.display());
        }
    }
    Ok(())
}
