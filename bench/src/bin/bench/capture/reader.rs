//! Reads a stream on a thread of its own, and looks at what is in it.

use std::{
    io::Read as _,
    process::ChildStdout,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use packetflix_bench::analysis::Analysis;
use packetflix_tests::generator::now;

use super::websocket::WebSocket;
use crate::interrupt::sleep_until;

/// What is read from a pipe at once, at most.
const ROOM: usize = 256 * 1024;

/// Longer than anybody may take to say the first thing.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where a stream comes from.
pub(crate) enum Source {
    WebSocket(WebSocket),
    Pipe(ChildStdout),
}

/// A stream that is being read.
pub(crate) struct Reader {
    thread: JoinHandle<anyhow::Result<Analysis>>,
    bytes: Arc<AtomicU64>,
}

impl Reader {
    /// Reads until the stream ends; tells at most so many packets of the generator apart.
    pub(crate) fn start(source: Source, packets: u64) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let read = Arc::clone(&bytes);
        let thread = thread::spawn(move || {
            let mut analysis = Analysis::new(packets);
            let mut take_in = |data: &[u8]| {
                analysis.feed(data, now()?)?;
                read.store(analysis.found().stream_bytes, Ordering::Relaxed);
                anyhow::Ok(())
            };
            match source {
                Source::WebSocket(mut socket) => {
                    while let Some(data) = socket.next()? {
                        take_in(data)?;
                    }
                }
                Source::Pipe(mut pipe) => {
                    let mut buffer = vec![0; ROOM];
                    loop {
                        match pipe.read(&mut buffer)? {
                            0 => break,
                            len => take_in(&buffer[..len])?,
                        }
                    }
                }
            }
            Ok(analysis)
        });
        Self { thread, bytes }
    }

    /// Waits until there is something.
    ///
    /// # Errors
    /// When there is nothing for long, or the stream has ended.
    pub(crate) fn wait_for_begin(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        while self.bytes.load(Ordering::Relaxed) == 0 {
            ensure!(
                begin.elapsed() < PATIENCE && !self.thread.is_finished(),
                "nothing comes"
            );
            sleep_until(Instant::now() + Duration::from_millis(5))?;
        }
        Ok(())
    }

    /// Waits until nothing has come for so long.
    ///
    /// # Errors
    /// Upon an interruption.
    pub(crate) fn settle(&self, quiet: Duration) -> anyhow::Result<()> {
        // Statistics, which packetflix sends once a second, are no more than this.
        const LITTLE: u64 = 1024;

        let mut bytes = 0;
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            let now = self.bytes.load(Ordering::Relaxed);
            if now > bytes + LITTLE {
                bytes = now;
                last = Instant::now();
            }
            sleep_until(Instant::now() + Duration::from_millis(20))?;
        }
        Ok(())
    }

    /// What was in the stream, once it has ended.
    ///
    /// # Errors
    /// When it did not end well.
    pub(crate) fn finish(self) -> anyhow::Result<Analysis> {
        self.thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
