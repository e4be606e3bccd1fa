//! Namespaces are found through whatever holds them, and a capture ends with its namespace.

use std::{process::Command, sync::mpsc, time::Duration};

use anyhow::{Context as _, ensure};
use nix::sched::{CloneFlags, unshare};
use packetflix_tests::{
    client::Recorder,
    namespace::Namespace,
    process::script_in,
    raw::{self, RawSocket},
    server::{Server, wait_until},
};

#[tokio::test]
async fn capture_ends_with_its_namespace() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let inode = here.inode()?;
    let server = Server::start(&[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
    let frame = raw::ethernet(0x88b5, &[3; 46]);
    RawSocket::open(&there, "vb")?.send(&frame)?;
    recorder
        .read_until(|recording| recording.count_on("va", false, &frame) == 1)
        .await?;
    here.delete()?;
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    assert_eq!(code, 1000);
    assert_eq!(reason, format!("the network namespace {inode} has ended"));
    // Nothing of ours keeps it: its end of the cable is gone, and so is the other.
    wait_until(Duration::from_secs(5), || {
        Ok(there.ip(&["link", "show", "vb"]).is_err())
    })?;
    Ok(())
}

#[tokio::test]
async fn namespace_of_a_process_alone_is_found_and_ends_with_it() -> anyhow::Result<()> {
    let mut process = Command::new("unshare").args(["--net", "sleep", "60"]).spawn()?;
    let link = format!("/proc/{}/ns/net", process.id());
    let ours = std::fs::read_link("/proc/self/ns/net")?;
    wait_until(Duration::from_secs(5), || {
        let is_sleep = std::fs::read(format!("/proc/{}/comm", process.id()))? == b"sleep\n";
        Ok(is_sleep && std::fs::read_link(&link).is_ok_and(|theirs| theirs != ours))
    })?;
    let inode = inode_of_link(&link)?;
    let server = Server::start(&[])?;
    let recorder = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
    process.kill()?;
    process.wait()?;
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    ensure!(
        recording.comment.contains("container-name: \"sleep("),
        "{}",
        recording.comment
    );
    ensure!(code == 1000 && reason.contains(&inode), "{code} {reason}");
    Ok(())
}

#[tokio::test]
async fn namespace_of_a_thread_alone_is_found() -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        sender.send(inode_of_link("/proc/thread-self/ns/net")?)?;
        let _ = ended.recv();
        anyhow::Ok(())
    });
    let inode = receiver.recv()?;
    let server = Server::start(&[])?;
    let recorder = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
    drop(end);
    thread.join().ok().context("the thread panicked")??;
    let (_, code, reason) = recorder.read_to_end().await?;
    ensure!(code == 1000 && reason.contains(&inode), "{code} {reason}");
    Ok(())
}

#[tokio::test]
async fn namespace_mounted_in_another_mount_namespace_is_found() -> anyhow::Result<()> {
    let script = "mount -t tmpfs none /mnt && touch '/mnt/a b' && \
                  unshare --net='/mnt/a b' true && stat -Lc %i '/mnt/a b' && exec sleep 60";
    let (mut process, line) = script_in(&["--mount"], script)?;
    let server = Server::start(&[])?;
    let recorder = Recorder::start(&server.url(&format!("netns={line}"))).await?;
    let recording = recorder.finish().await?;
    ensure!(
        recording.comment.contains("container-name: \"/mnt/a b\""),
        "{}",
        recording.comment
    );
    process.kill()?;
    process.wait()?;
    Ok(())
}

/// The number in a link such as `net:[4026531840]`.
fn inode_of_link(path: &str) -> anyhow::Result<String> {
    let target = std::fs::read_link(path)?;
    let text = target.to_str().context("no text")?;
    Ok(text.trim_start_matches("net:[").trim_end_matches(']').to_owned())
}
