//! The service is two processes: one serves clients and has no rights, the other has them and serves no client.

use std::{
    fs,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    bpf_objects::Objects,
    client::Recorder,
    folder::Folder,
    hook::hooks,
    namespace::Namespace,
    raw::{self, RawSocket},
    server::{Server, has_ended, program, wait_until},
    taken_over::{has_no_rights, has_nothing_of_the_host, status},
};

/// Its user where it is started as root.
const USER: &str = "75001";

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

#[test]
fn who_takes_over_what_serves_clients_has_nothing_of_the_host() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", "alice 0123456789abcdef admin discover capture\n")?;
    let server = Server::start(&[
        "--listen=127.0.0.1",
        &format!("--token-file={}", tokens.display()),
    ])?;
    assert_eq!(status(server.pid(), "Uid")?, [USER; 4]);
    let new = folder.file("new");
    fs::set_permissions(
        new.parent().context("no folder")?,
        fs::Permissions::from_mode(0o777),
    )?;
    let files = [
        (&*tokens.to_string_lossy(), libc::O_RDONLY),
        ("/etc/shadow", libc::O_RDONLY),
        (&*new.to_string_lossy(), libc::O_CREAT | libc::O_WRONLY),
    ];
    has_nothing_of_the_host(server.pid(), server.keeper()?, &files)?;
    assert_eq!(server.get("/healthz")?.0, 200);
    Ok(())
}

/// What goes wrong in one of them leaves nothing behind, and is told.
#[tokio::test]
async fn each_process_ends_with_the_other() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        for keeper_dies in [true, false] {
            let mut server = Server::start(&["--hook", hook])?;
            let url = server.url(&format!("netns={}", here.inode()?));
            let mut recorder = Recorder::start(&url).await?;
            RawSocket::open(&there, "vb")?.send(&frame(1))?;
            recorder
                .read_until(|recording| recording.count(&frame(1)) == 1)
                .await?;
            let keeper = server.keeper()?;
            let held = Objects::held_by(keeper)?;
            ensure!(!held.is_empty());
            let killed = if keeper_dies { keeper } else { server.pid() };
            kill(Pid::from_raw(i32::try_from(killed)?), Signal::SIGKILL)?;
            if keeper_dies {
                let (recording, code, why) = recorder.read_to_end().await?;
                assert_eq!((recording.count(&frame(1)), code), (1, 1001));
                assert_eq!(
                    why,
                    "the service ends: the process that has its rights does not answer"
                );
                // Whoever manages the service learns of it.
                assert_eq!(server.wait()?.code(), Some(1));
                ensure!(
                    server.log().contains("did not end as it should"),
                    "{}",
                    server.log()
                );
            } else {
                server.wait()?;
            }
            wait_until(Duration::from_secs(5), || Ok(has_ended(keeper)))?;
            held.wait_until_gone()?;
        }
    }
    Ok(())
}

/// Root, and a user with capabilities of its own, as units of systemd and images start it.
#[tokio::test]
async fn however_it_is_started_what_serves_clients_has_no_rights() -> anyhow::Result<()> {
    const CAPABILITIES: &str = "+sys_admin,+net_raw,+sys_ptrace,+dac_override,+net_admin";

    let (here, there) = Namespace::pair()?;
    let file = program("packetflix")?;
    let mut as_root = Command::new(&file);
    let mut as_user = Command::new("setpriv");
    as_user.args(["--reuid=75002", "--regid=75002", "--clear-groups"]);
    as_user.args(["--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES]);
    as_user.arg(&file);
    for (command, user) in [(&mut as_root, USER), (&mut as_user, "75002")] {
        let server = Server::start_by(command, &["--listen=127.0.0.1"])?;
        has_no_rights(server.pid())?;
        assert_eq!(status(server.pid(), "Uid")?, [user; 4]);
        let rights = u64::from_str_radix(&status(server.keeper()?, "CapEff")?.concat(), 16)?;
        // Five at least: CAP_DAC_OVERRIDE, CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_PTRACE and CAP_SYS_ADMIN of `linux/capability.h`.
        ensure!(
            [1, 12, 13, 19, 21].iter().all(|number| rights & 1 << number != 0),
            "{rights:x}"
        );
        server.wait_for_log("the one that serves clients has none")?;
        ensure!(
            server.log().contains("CAP_SYS_ADMIN CAP_NET_RAW"),
            "{}",
            server.log()
        );
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(2))?;
        recorder
            .read_until(|recording| recording.count(&frame(2)) == 1)
            .await?;
        recorder.finish().await?;
    }
    Ok(())
}

/// Nobody can end a process that the kernel holds, but nobody waits for it either.
#[test]
fn a_keeper_that_answers_no_more_ends_the_service() -> anyhow::Result<()> {
    let mut server = Server::start(&["--listen=127.0.0.1"])?;
    let keeper = Pid::from_raw(i32::try_from(server.keeper()?)?);
    kill(keeper, Signal::SIGSTOP)?;
    let begin = Instant::now();
    let mut waits = (0..4).map(|_| server.wait());
    let status = waits.find_map(Result::ok).context("it goes on")?;
    let took = begin.elapsed();
    kill(keeper, Signal::SIGCONT)?;
    ensure!(
        !status.success() && took < Duration::from_secs(60),
        "{status} after {took:?}"
    );
    wait_until(Duration::from_secs(20), || {
        Ok(has_ended(keeper.as_raw().cast_unsigned()))
    })
}

/// Whatever the front's memory tells, there is no token in it that nobody has shown.
#[test]
fn tokens_are_not_in_what_serves_clients() -> anyhow::Result<()> {
    let token = format!("token{:0>16}{}", std::process::id(), "z".repeat(9));
    let folder = Folder::new()?;
    let tokens = folder.put_secret("tokens", &format!("alice {token} admin\n# old {token}\n"))?;
    let server = Server::start(&[
        "--listen=127.0.0.1",
        &format!("--token-file={}", tokens.display()),
    ])?;
    ensure!(!is_in_memory(server.pid(), token.as_bytes())?, "the token");
    ensure!(is_in_memory(server.pid(), b"alice")?, "whose it is");
    let with = format!("GET /captures HTTP/1.1\r\nAuthorization: Bearer {token}");
    let (head, _) = server.ask(&with)?;
    assert_eq!(head.status()?, 200);
    Ok(())
}

/// Whether these bytes are anywhere in what a process has written.
fn is_in_memory(pid: u32, wanted: &[u8]) -> anyhow::Result<bool> {
    const PAGE: usize = 4096;

    let memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    for line in maps.lines().filter(|line| line.contains(" rw-p ")) {
        let (begin, end) = line
            .split(' ')
            .next()
            .and_then(|range| range.split_once('-'))
            .context("no range")?;
        let (begin, end) = (u64::from_str_radix(begin, 16)?, u64::from_str_radix(end, 16)?);
        let mut bytes = vec![0; usize::try_from(end - begin)?];
        // Some cannot be read.
        if memory.read_exact_at(&mut bytes, begin).is_err() {
            continue;
        }
        // Most of it was never used.
        let used = (0..bytes.len())
            .step_by(PAGE)
            .filter(|at| bytes[*at..at + PAGE] != [0; PAGE]);
        for at in used {
            let end = bytes.len().min(at + PAGE + wanted.len());
            if bytes[at..end].windows(wanted.len()).any(|some| some == wanted) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
