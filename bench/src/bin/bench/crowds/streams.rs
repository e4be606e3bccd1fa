//! Clients that look at their streams and forget them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use packetflix_bench::analysis::Analysis;
use packetflix_tests::{
    client::{Capture, Piece},
    generator::now,
};
use tokio::{
    runtime::{self, Runtime},
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::interrupt::check;

/// After this time without a packet, none is on its way. Statistics come once a second.
pub(crate) const QUIET: Duration = Duration::from_millis(1200);

/// Longer than any packet is on its way.
const MOST: Duration = Duration::from_secs(30);

/// For what comes after the client has closed.
const LAST: Duration = Duration::from_secs(10);

/// Open captures, which are read in the background.
pub(crate) struct Streams {
    runtime: Runtime,
    tasks: Vec<JoinHandle<anyhow::Result<Analysis>>>,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
}

#[derive(Default)]
struct Shared {
    packets: AtomicU64,
    /// Whether slow clients are as fast as others now.
    is_released: AtomicBool,
}

/// Who reads.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) url: String,
    /// Bytes in a second; as fast as they come if there is none.
    pub(crate) pace: Option<u64>,
}

impl Client {
    /// One that reads as fast as it can.
    pub(crate) fn fast(url: String) -> Self {
        Self { url, pace: None }
    }
}

impl Streams {
    /// Opens captures one after the other, and waits until packets are captured. Packets of the generator are told
    /// apart up to the number `packets`.
    pub(crate) fn open(clients: &[Client], packets: u64) -> anyhow::Result<Self> {
        let runtime = runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let shared = Arc::new(Shared::default());
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Vec::new();
        for client in clients {
            check()?;
            let mut analysis = Analysis::new(packets);
            let capture = runtime.block_on(async {
                let mut capture = Capture::open(&client.url, &[]).await?;
                let begun = capture.next();
                let begun = timeout(MOST, begun)
                    .await
                    .context("the stream does not begin")??;
                match begun {
                    Piece::Data(data) => analysis.feed(&data, now()?)?,
                    Piece::Closed(code, reason) => bail!("closed with {code} {reason}"),
                }
                Ok(capture)
            })?;
            let reader = Reader {
                capture,
                analysis,
                shared: Arc::clone(&shared),
                pace: client.pace,
            };
            tasks.push(runtime.spawn(reader.read(stopped.clone())));
        }
        Ok(Self {
            runtime,
            tasks,
            shared,
            stop,
        })
    }

    /// Lets slow clients be as fast as others.
    pub(crate) fn release(&self) {
        self.shared.is_released.store(true, Ordering::Relaxed);
    }

    /// Waits until no more packets come.
    pub(crate) fn wait_until_quiet(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        let (mut last, mut since) = (0, begin);
        while since.elapsed() < QUIET && begin.elapsed() < MOST {
            check()?;
            thread::sleep(Duration::from_millis(20));
            let packets = self.shared.packets.load(Ordering::Relaxed);
            if packets != last {
                (last, since) = (packets, Instant::now());
            }
        }
        Ok(())
    }

    /// Closes all, and gives what they had.
    pub(crate) fn finish(self) -> anyhow::Result<Vec<Analysis>> {
        self.stop.send_replace(true);
        let Self { runtime, tasks, .. } = self;
        runtime.block_on(async {
            let mut analyses = Vec::new();
            for task in tasks {
                analyses.push(task.await??);
            }
            Ok(analyses)
        })
    }
}

/// One client.
struct Reader {
    capture: Capture,
    analysis: Analysis,
    shared: Arc<Shared>,
    pace: Option<u64>,
}

impl Reader {
    async fn read(mut self, mut stopped: watch::Receiver<bool>) -> anyhow::Result<Analysis> {
        let mut begin = Instant::now();
        let mut bytes = 0;
        while !*stopped.borrow() {
            let piece = tokio::select! {
                _ = stopped.changed() => break,
                piece = self.capture.next() => piece?,
            };
            let Piece::Data(data) = piece else {
                bail!("closed: {piece:?}");
            };
            self.take_in(&data)?;
            if let Some(pace) = self
                .pace
                .filter(|_| !self.shared.is_released.load(Ordering::Relaxed))
            {
                if bytes == 0 {
                    begin = Instant::now();
                }
                bytes += data.len() as u64;
                let due = Duration::from_secs_f64(bytes as f64 / pace as f64);
                sleep(due.saturating_sub(begin.elapsed())).await;
            }
        }
        self.capture.stop().await?;
        let rest = async {
            // Who ends without a close frame has ended, too.
            while let Ok(Piece::Data(data)) = self.capture.next().await {
                self.take_in(&data)?;
            }
            anyhow::Ok(())
        };
        timeout(LAST, rest).await.context("the stream does not end")??;
        Ok(self.analysis)
    }

    fn take_in(&mut self, data: &[u8]) -> anyhow::Result<()> {
        let before = self.analysis.found().packets;
        self.analysis.feed(data, now()?)?;
        let new = self.analysis.found().packets - before;
        self.shared.packets.fetch_add(new, Ordering::Relaxed);
        Ok(())
    }
}
