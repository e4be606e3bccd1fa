//! Steady traffic.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nix::{
    sched::{CpuSet, sched_getcpu, sched_setaffinity},
    unistd::Pid,
};
use packetflix_tests::{
    namespace::Namespace,
    raw::{self, RawSocket},
    recording::Recording,
};

/// Frames of one sender, with running numbers, until it is stopped or its interface is gone.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

/// Where the running number lies in a frame.
const NUMBER_AT: usize = 14;

impl Flow {
    /// Sends so many frames with so many bytes of payload in each millisecond.
    ///
    /// # Errors
    /// When there is no such interface.
    pub(crate) fn start(
        from: &Namespace,
        interface: &str,
        payload: usize,
        each_millisecond: usize,
    ) -> anyhow::Result<Self> {
        let socket = RawSocket::open(from, interface)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            stay_on_this_cpu().expect("a thread may stay where it is");
            let mut frames = vec![raw::ethernet(0x88b5, &vec![0xf1; payload.max(46)]); each_millisecond];
            let mut batch = socket.batch(each_millisecond);
            let begin = Instant::now();
            let mut sent = 0u64;
            for turn in 1.. {
                for (number, frame) in (sent..).zip(&mut frames) {
                    frame[NUMBER_AT..NUMBER_AT + 8].copy_from_slice(&number.to_be_bytes());
                }
                let Ok(taken) = batch.send(&frames) else {
                    break;
                };
                sent += taken as u64;
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let due = begin + Duration::from_millis(turn);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            sent
        });
        Ok(Self { stop, thread })
    }

    /// Ends it, and tells how many frames were sent.
    ///
    /// # Errors
    /// When it has panicked.
    pub(crate) fn stop(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the sender panicked")
    }
}

/// Keeps the calling thread on its CPU, so that all that it sends is in one ring, in order whatever the clock says.
fn stay_on_this_cpu() -> nix::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu()?)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
}

/// The running numbers of the flow's frames among the packets of an interface.
pub(crate) fn numbers(recording: &Recording, interface: &str) -> Vec<u64> {
    let packets = recording.packets_of(interface);
    let of_flow = packets.iter().filter(|packet| packet.data.last() == Some(&0xf1));
    of_flow
        .filter_map(|packet| {
            let number = packet.data.get(NUMBER_AT..NUMBER_AT + 8)?;
            Some(u64::from_be_bytes(number.try_into().ok()?))
        })
        .collect()
}
