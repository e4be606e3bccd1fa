//! Memory and descriptors run out.

use std::{collections::BTreeSet, net::TcpStream, process::Command, time::Duration};

use anyhow::{Context as _, bail, ensure};
use packetflix_tests::{
    client::{Capture, Recorder, Refused, refusal},
    control_group::ControlGroup,
    namespace::Namespace,
    raw::RawSocket,
    server::{Server, bound, descriptors_of, mapped_rings_at_rest, program, status_of, wait_until},
    traces::{traces_before, wait_for_traces},
};
use tokio::time::sleep;

use crate::{flow::Flow, frame};

/// Opens captures that each ask for something else, until one is refused; gives that refusal too.
async fn open_until_refused(server: &Server, inode: u64) -> anyhow::Result<(Vec<Recorder>, Refused)> {
    let mut open = Vec::new();
    loop {
        let query = format!("netns={inode}&nif=va&names=0&filter=len+%3E+{}", open.len());
        match Recorder::start(&server.url(&query)).await {
            Ok(recorder) => open.push(recorder),
            Err(error) => return Ok((open, error.downcast()?)),
        }
        ensure!(open.len() < 120, "never refused");
    }
}

/// Captures again as before, once those that run have ended.
async fn ends_and_recovers(server: &Server, open: Vec<Recorder>, inode: u64) -> anyhow::Result<()> {
    for recorder in open {
        recorder.finish().await?;
    }
    let url = server.url(&format!("netns={inode}&nif=va&filter=len+%3E+0"));
    let mut tries = 0;
    loop {
        match Recorder::start(&url).await {
            Ok(recorder) => return recorder.finish().await.map(drop),
            Err(error) if tries == 100 => return Err(error),
            Err(_) => tries += 1,
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn has_not_panicked(server: &Server) -> anyhow::Result<()> {
    match server.log().lines().find(|line| line.contains("panicked")) {
        Some(line) => bail!("{line}"),
        None => Ok(()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rings_that_there_is_no_memory_for_are_refused() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let group = ControlGroup::with_memory(192 << 20)?;
    let rings = ["--ring-size", "32MiB", "--ring-memory", "8GiB"];
    let server = Server::start_by(&mut group.server()?, &rings)?;
    let inode = here.inode()?;
    let before = traces_before(Some(&server), &[&here])?;
    let (mut open, refused) = open_until_refused(&server, inode).await?;
    ensure!(
        refused.status == 429 && refused.body.contains("MiB are left for rings"),
        "{refused}"
    );
    eprintln!(
        "{} captures of 64 MiB in a group of 192 MiB, then: {refused}",
        open.len()
    );
    // What was kept ready for the second was given to it.
    assert_eq!(open.len(), 2);
    // Those that run do not notice.
    let first = open.first_mut().context("none began")?;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    first
        .read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    ends_and_recovers(&server, open, inode).await?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    has_not_panicked(&server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rings_that_the_kernel_refuses_to_map_are_refused() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&["--ring-size", "128MiB", "--ring-memory", "1GiB"])?;
    mapped_rings_at_rest(server.pid())?;
    let before = traces_before(Some(&server), &[&here])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let bound = |bytes: &str| {
        let limit = format!("--as={bytes}:unlimited");
        server.limit(&limit)
    };
    // Enough for all but a ring, which takes twice its size: also for what libc reserves for threads.
    let most = (status_of(server.pid(), "VmSize")? << 10) + (192 << 20);
    bound(&most.to_string())?;
    // Those of the first were mapped before.
    let first = Recorder::start(&format!("{url}&filter=udp")).await?;
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(
        status == 429
            && sentence
                .contains("a ring of 131072 KiB could not be mapped into memory: Cannot allocate memory"),
        "{status} {sentence}"
    );
    eprintln!("rings that cannot be mapped: {status} {sentence}");
    first.finish().await?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    bound("unlimited")?;
    Recorder::start(&url).await?.finish().await?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    has_not_panicked(&server)
}

/// What the flags are by default for so little memory keeps the server alive, whatever its clients do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_stays_within_the_memory_of_its_control_group() -> anyhow::Result<()> {
    const MEMORY: u64 = 64 << 20;

    let (here, there) = Namespace::pair()?;
    let group = ControlGroup::with_memory(MEMORY)?;
    let server = Server::start_by(&mut group.server()?, &[])?;
    let inode = here.inode()?;
    let before = traces_before(Some(&server), &[&here])?;
    let (mut open, refused) = open_until_refused(&server, inode).await?;
    ensure!(
        refused.status == 429 && refused.body.contains("--ring-memory"),
        "{refused}"
    );
    // All but one stall.
    let flow = Flow::start(&there, "vb", 1400, 20)?;
    let reading = open.pop().context("none began")?;
    let mut reading = reading;
    let flowing = tokio::spawn(sleep(Duration::from_secs(2)));
    reading
        .read_during(tokio::spawn(async move { Ok(flowing.await?) }))
        .await?;
    let sent = flow.stop()?;
    eprintln!(
        "{} captures in a group of 64 MiB, most of it used: {} KiB",
        open.len() + 1,
        group.peak()? >> 10
    );
    open.push(reading);
    for recorder in open {
        let statistics = recorder.finish().await?.final_statistics("va")?;
        assert_eq!(statistics.received, sent);
        assert_eq!(statistics.delivered + statistics.dropped, sent);
    }
    ends_and_recovers(&server, Vec::new(), inode).await?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    has_not_panicked(&server)
}

/// A server that may open so many descriptors.
fn with_descriptors(most: usize) -> anyhow::Result<Server> {
    let mut prlimit = Command::new("prlimit");
    prlimit
        .arg(format!("--nofile={most}:{most}"))
        .arg(program("packetflix")?);
    Server::start_by(&mut prlimit, &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_are_refused_while_descriptors_are_wanting() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = with_descriptors(100)?;
    let inode = here.inode()?;
    let before = traces_before(Some(&server), &[&here])?;
    let (open, refused) = open_until_refused(&server, inode).await?;
    eprintln!(
        "{} captures with a hundred descriptors, then: {refused}",
        open.len()
    );
    ensure!(
        refused.status == 429 && refused.body.contains("Too many open files"),
        "{refused}"
    );
    ensure!(!open.is_empty());
    ends_and_recovers(&server, open, inode).await?;
    wait_for_traces(&before, Some(&server), &[&here])?;
    has_not_panicked(&server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_goes_on_when_there_are_no_descriptors_left() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    // Of a namespace that is but mounted, whose end is told from its still being there to open.
    let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
    descriptors_at_rest(server.pid())?;
    let bound = |most: u64| server.limit(&format!("--nofile={most}:20000"));
    bound(3)?;
    // Longer than it takes to look at the namespace some times.
    sleep(Duration::from_millis(3500)).await;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    recorder
        .read_until(|recording| recording.count(&frame(1)) == 1)
        .await?;
    // Who comes now waits, or is sent away.
    let waiting = TcpStream::connect(("127.0.0.1", server.port()))?;
    server.wait_for_log("a connection could not be accepted")?;
    bound(10_000)?;
    drop(waiting);
    recorder.finish().await?;
    let mut again = Capture::open(&server.url(&format!("netns={}", here.inode()?)), &[]).await?;
    again.close().await?;
    here.delete()?;
    has_not_panicked(&server)
}

/// For the case that the namespace is asked for by a client at just that moment.
#[tokio::test]
async fn namespace_that_cannot_be_looked_for_is_not_said_to_be_missing() -> anyhow::Result<()> {
    let here = Namespace::new()?;
    let server = Server::start(&[])?;
    server.get("/version")?;
    for pid in server.processes() {
        refused_for_want(&server, &here, pid).await?;
    }
    let (status, _) = refusal(&server, &server.url("netns=1"), &[]).await?;
    assert_eq!(status, 404);
    Ok(())
}

/// The numbers of the descriptors of a process, once it opens and closes none any more.
fn descriptors_at_rest(pid: u32) -> anyhow::Result<BTreeSet<u64>> {
    let mut seen = descriptors_of(pid)?;
    wait_until(Duration::from_secs(5), || {
        let before = std::mem::take(&mut seen);
        std::thread::sleep(Duration::from_millis(300));
        seen = descriptors_of(pid)?;
        Ok(seen == before)
    })?;
    Ok(seen)
}

/// Has one of the server's processes have too few descriptors for a capture, which is told.
async fn refused_for_want(server: &Server, here: &Namespace, pid: u32) -> anyhow::Result<()> {
    let used = descriptors_at_rest(pid)?;
    // The bound is on their numbers, some of which may be free.
    let mut free = (0..).filter(|number| !used.contains(number));
    // Enough for the connection, and nothing to read /proc with.
    let url = server.url(&format!("netns={}&names=0", here.inode()?));
    let mut last = None;
    for most in free.by_ref().take(8) {
        bound(pid, &format!("--nofile={most}:20000"))?;
        let Ok(stream) = TcpStream::connect(("127.0.0.1", server.port())) else {
            continue;
        };
        let opening = Capture::over(stream, &url, &[]);
        let Ok(opened) = tokio::time::timeout(Duration::from_millis(500), opening).await else {
            continue;
        };
        let refused: Refused = match opened {
            Ok(_) => break,
            Err(error) => error.downcast()?,
        };
        ensure!(refused.status == 429, "{refused}");
        last = Some(refused);
    }
    ensure!(last.is_some(), "never refused");
    bound(pid, "--nofile=10000:20000")
}
