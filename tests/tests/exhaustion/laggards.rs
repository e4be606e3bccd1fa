//! Clients that do not take what was captured for them.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use packetflix_tests::{
    client::{Capture, Piece},
    control_group::ControlGroup,
    folder::Folder,
    namespace::Namespace,
    raw::{self, RawSocket},
    server::Server,
};
use tokio::time::timeout;

use crate::has_not_panicked;

/// Begins a capture at a Unix socket, which holds few messages for who takes none.
fn begin_and_take_nothing(socket: &Path, query: &str) -> anyhow::Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    let request = format!(
        "GET /capture?{query} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    ensure!(answer == *b"HTTP/1.1 101", "{}", answer.escape_ascii());
    Ok(stream)
}

/// Sends a packet now and then, so that each is a batch of its own.
struct Trickle {
    is_over: Arc<AtomicBool>,
    sending: Option<thread::JoinHandle<anyhow::Result<()>>>,
}

impl Trickle {
    fn start(socket: RawSocket) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&is_over);
        let sending = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                socket.send(&raw::ethernet(0x88b5, &[7; 46]))?;
                thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        });
        Self {
            is_over,
            sending: Some(sending),
        }
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let sending = self.sending.take().context("stopped")?;
        sending.join().ok().context("a thread has panicked")?
    }
}

impl Drop for Trickle {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_batches_that_wait_for_slow_clients_take_little_memory() -> anyhow::Result<()> {
    const PAIRS: usize = 12;
    /// Of each capture: with four kilobytes each they would be as large as the group.
    const BATCHES: usize = 2500;

    let (here, there) = Namespace::pair()?;
    let group = ControlGroup::with_memory(128 << 20)?;
    let folder = Folder::new()?;
    let socket = folder.file("socket");
    let server = Server::start_by(
        &mut group.server()?,
        &[
            "--listen",
            "127.0.0.1",
            "--listen",
            &format!("unix:{}", socket.display()),
        ],
    )?;
    let mut pairs = Vec::new();
    for number in 0..PAIRS {
        let query = format!("netns={}&nif=va&snaplen={}", here.inode()?, 60 + number);
        let slow = begin_and_take_nothing(&socket, &query)?;
        pairs.push((Capture::open(&server.url(&query), &[]).await?, slow));
    }
    let begin = group.peak()? >> 20;
    let trickle = Trickle::start(RawSocket::open(&there, "vb")?);
    let taking = pairs.iter_mut().map(|(fast, _)| async {
        for _ in 0..BATCHES {
            match timeout(Duration::from_secs(60), fast.next())
                .await
                .context("nothing comes")??
            {
                Piece::Data(_) => {}
                Piece::Closed(code, reason) => bail!("{code} {reason}"),
            }
        }
        Ok(())
    });
    try_join_all(taking).await?;
    trickle.stop()?;
    let peak = group.peak()? >> 20;
    eprintln!(
        "{PAIRS} slow clients with {BATCHES} batches each to take: {begin} MiB before, {peak} MiB at most"
    );
    ensure!(peak - begin < 32, "{begin} {peak}");
    drop(pairs);
    has_not_panicked(&server)
}
