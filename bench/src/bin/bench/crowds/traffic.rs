//! Paced packets on many links in turn, as the generator makes them on one: a thread for all of them, so that as many
//! threads want a CPU whether there is one link or a hundred.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use packetflix_tests::{
    generator::{MAGIC, now},
    raw::{HEADERS_LEN, RawSocket, ethernet, ipv4_udp},
};

use crate::usage::thread_cpu;

/// Time between two looks at the clock when nothing is due.
const REST: Duration = Duration::from_micros(500);

/// Packets sent between two looks at the clock, at most.
const AT_ONCE: u64 = 256;

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Packets in a second, on all links together.
    pub(crate) rate: u64,
    /// Bytes of a packet.
    pub(crate) len: usize,
    /// For how long.
    pub(crate) time: Duration,
    /// Whether they have numbers and times.
    is_numbered: bool,
    /// Whether no two links have a number in common.
    is_numbered_over_all: bool,
}

/// A running sender; it ends when dropped.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<Sent>>>,
}

/// What was sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent {
    pub(crate) packets: u64,
    /// On each link.
    pub(crate) each: Vec<u64>,
    pub(crate) seconds: f64,
    /// Of the sending thread, among it what the kernel does with a packet while it is being sent.
    pub(crate) cpu: f64,
}

impl Load {
    pub(crate) const fn new(rate: u64, len: usize, time: Duration) -> Self {
        Self {
            rate,
            len,
            time,
            is_numbered: true,
            is_numbered_over_all: false,
        }
    }

    /// The same with numbers of which no two links have one in common.
    pub(crate) const fn numbered_over_all(self) -> Self {
        Self {
            is_numbered_over_all: true,
            ..self
        }
    }

    /// The same for another time, of packets that are not counted.
    pub(crate) fn unnumbered(self, time: Duration) -> Self {
        Self {
            time,
            is_numbered: false,
            ..self
        }
    }

    /// The numbers of packets on each link are below this.
    pub(crate) fn most(&self, links: usize) -> u64 {
        let links = if self.is_numbered_over_all { 1 } else { links };
        (self.rate as f64 * self.time.as_secs_f64()) as u64 / links as u64 + 1
    }
}

impl Traffic {
    pub(crate) fn start(sockets: Vec<RawSocket>, load: Load) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || send(&sockets, load, &stopped));
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> anyhow::Result<Sent> {
        let thread = self.thread.take().context("finished")?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn send(sockets: &[RawSocket], load: Load, stop: &AtomicBool) -> anyhow::Result<Sent> {
    let mut payload = vec![0; load.len.saturating_sub(HEADERS_LEN)];
    if load.is_numbered {
        payload[..MAGIC.len()].copy_from_slice(&MAGIC);
    }
    let mut frame = ethernet(0x0800, &ipv4_udp(&payload));
    let at = HEADERS_LEN + MAGIC.len();

    let links = sockets.len() as u64;
    let mut each = vec![0; sockets.len()];
    let mut sent = 0;
    let cpu_before = thread_cpu()?;
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let elapsed = begin.elapsed().min(load.time);
        let due = (elapsed.as_secs_f64() * load.rate as f64) as u64;
        if due <= sent {
            if elapsed == load.time {
                break;
            }
            thread::sleep(REST);
            continue;
        }
        // Who cannot keep the pace does not go on for ever.
        if begin.elapsed() > load.time * 2 {
            break;
        }
        for _ in 0..(due - sent).min(AT_ONCE) {
            let link = usize::try_from(sent % links)?;
            let number = if load.is_numbered_over_all {
                sent
            } else {
                sent / links
            };
            frame[at..at + 8].copy_from_slice(&number.to_be_bytes());
            frame[at + 8..at + 16].copy_from_slice(&now()?.to_be_bytes());
            sockets[link].send(&frame)?;
            each[link] += 1;
            sent += 1;
        }
    }
    Ok(Sent {
        packets: sent,
        each,
        seconds: begin.elapsed().as_secs_f64(),
        cpu: (thread_cpu()? - cpu_before).as_secs_f64(),
    })
}
