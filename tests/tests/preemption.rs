//! Threads of different priorities that send on one CPU: where the kernel lets one take the CPU from another in the middle
//! of a program (PREEMPT_RT), counters and records are as exact as elsewhere.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    libc,
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use packetflix_tests::{
    client::Recorder,
    hook::hooks,
    namespace::Namespace,
    pace,
    raw::{self, RawSocket},
    recording::{Packet, Recording},
    server::Server,
};

/// Threads, of which each has a higher priority than the one before, and the first an ordinary one.
const THREADS: u8 = 4;
/// Frames of the thread that sends most.
const FRAMES: usize = 100_000;
/// How long the first thread that interrupts others waits before it does so again; each of the others waits so much longer.
/// As short on a slow machine: it takes thousands of interruptions until one is between two instructions that count.
const PAUSE: Duration = Duration::from_micros(30);

/// The sender and its running number, again and again, so that a torn frame is told from a whole one.
fn frame(thread: u8, number: u32) -> Vec<u8> {
    let mut pattern = vec![thread, 0x5a, 0xa5, thread];
    pattern.extend(number.to_be_bytes());
    raw::ethernet(0x88b5, &pattern.repeat(8 + usize::from(thread) * 40))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn counts_are_exact_when_threads_interrupt_each_other() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (recording, sent) = capture(hook, &[]).await?;
        let statistics = recording.final_statistics("va")?;
        assert_eq!((statistics.received, statistics.accepted), (sent, sent), "{hook}");
        assert_eq!(statistics.dropped, 0, "{hook}");
        check_frames(&recording.packets)?;
    }
    Ok(())
}

/// Most is over the rate, so that what is lost and what is not take turns.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn losses_are_exact_when_threads_interrupt_each_other() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (recording, sent) = capture(hook, &["--max-packet-rate", "500"]).await?;
        let statistics = recording.final_statistics("va")?;
        assert_eq!((statistics.received, statistics.accepted), (sent, sent), "{hook}");
        assert_eq!(statistics.delivered, recording.packets.len() as u64, "{hook}");
        assert_eq!(statistics.delivered + statistics.dropped, sent, "{hook}");
        ensure!(statistics.dropped > 0, "{hook}: nothing was lost");
        check_frames(&recording.packets)?;
        let told: u64 = recording.packets.iter().map(|packet| packet.dropped_before).sum();
        assert_eq!(told, statistics.dropped, "{hook}");
    }
    Ok(())
}

/// Captures what all threads send, and at last a frame, which tells what was lost before it.
async fn capture(hook: &str, flags: &[&str]) -> anyhow::Result<(Recording, u64)> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[&["--hook", hook], flags].concat())?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    let open = |_| RawSocket::open(&here, "va");
    let sockets = (0..THREADS).map(open).collect::<Result<Vec<_>, _>>()?;
    let sending = tokio::task::spawn_blocking(move || send_from_all_threads(&sockets));
    let frames = recorder.read_during(sending).await?;
    let last = RawSocket::open(&here, "va")?;
    on_cpu_0(&|| Ok(last.send(&raw::ethernet(0x88b5, b"after the storm"))?))?;
    Ok((recorder.finish().await?, frames + 1))
}

/// Lets the threads send on one CPU, until the one of the lowest priority has sent its frames. Gives how many were sent.
fn send_from_all_threads(sockets: &[RawSocket]) -> anyhow::Result<u64> {
    let done = AtomicBool::new(false);
    let send = |thread: u8, socket: &RawSocket| {
        let done = &done;
        on_cpu_0(&move || {
            if thread == 0 {
                let frames = pace::sample(FRAMES) as u32;
                let sent = (0..frames).try_for_each(|number| socket.send(&frame(thread, number)));
                done.store(true, Ordering::Relaxed);
                sent?;
                return Ok(u64::from(frames));
            }
            take_priority(thread)?;
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                socket.send(&frame(thread, sent))?;
                sent += 1;
                // Not in step with the others.
                thread::sleep(PAUSE * u32::from(thread) + Duration::from_micros(u64::from(sent % 17) * 7));
            }
            Ok(u64::from(sent))
        })
    };
    thread::scope(|scope| {
        let senders: Vec<_> = (0..)
            .zip(sockets)
            .map(|(thread, socket)| scope.spawn(move || send(thread, socket)))
            .collect();
        let counts = senders
            .into_iter()
            .map(|sender| sender.join().ok().context("a sender panicked")?);
        counts.sum()
    })
}

/// Does work on the first CPU, on a thread of its own.
fn on_cpu_0<T: Send>(work: &(impl Fn() -> anyhow::Result<T> + Sync)) -> anyhow::Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut only = CpuSet::new();
            only.set(0)?;
            sched_setaffinity(Pid::from_raw(0), &only)?;
            work()
        });
        worker.join().ok().context("a thread panicked")?
    })
}

/// Gives the calling thread a priority above all ordinary threads.
#[expect(unsafe_code, reason = "no crate of ours sets priorities")]
fn take_priority(priority: u8) -> anyhow::Result<()> {
    let parameters = libc::sched_param {
        sched_priority: i32::from(priority),
    };
    // SAFETY: the kernel reads the parameters, which live until the call returns.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(result).context("no priority")?;
    Ok(())
}

/// Each is whole, and those of a thread are in order, none of them twice.
fn check_frames(packets: &[Packet]) -> anyhow::Result<()> {
    let mut next = [0; THREADS as usize];
    for packet in packets.iter().filter(|packet| packet.data.len() > 60) {
        let thread = packet.data[14];
        let number = packet.data.get(18..22).context("cut")?;
        let number = u32::from_be_bytes(number.try_into()?);
        ensure!(packet.data == frame(thread, number), "torn: {:02x?}", packet.data);
        let next = next.get_mut(usize::from(thread)).context("no such thread")?;
        ensure!(number >= *next, "thread {thread}: {number} behind {next}");
        *next = number + 1;
    }
    Ok(())
}
