//! Sends UDP packets that each have a number and the time at which they were sent, so that whoever sees them can tell
//! what is missing, out of order, or late. The program `generate` does it in a process of its own, whose CPU time is so
//! told apart.

use std::{
    net::Ipv4Addr,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        time::{TimeVal, TimeValLike as _},
    },
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

use crate::{
    namespace::Namespace,
    raw::{HEADERS_LEN, RawSocket, checksum},
    server::program,
};

/// What a payload begins with, before the packet's number and its time, both of 8 bytes, most significant first.
pub const MAGIC: [u8; 4] = *b"PfxB";

/// Length of the shortest frame that has room for these.
pub const MIN_LEN: usize = 64;
/// Length of the longest frame that needs no larger MTU than 1500.
pub const MAX_LEN: usize = 1514;

/// Frames of a usual mix in the Internet, without their checksums: seven small, four of middle size, one large.
pub const IMIX: [usize; 12] = [64, 594, 64, 64, 594, 64, 1514, 64, 594, 64, 594, 64];

/// Port to which packets are sent.
pub const DISCARD_PORT: u16 = 9;
/// Port to which those are sent that a filter is to select.
pub const SELECTED_PORT: u16 = 10_009;

/// Packets handed to the kernel with one call, or a few more.
const AT_ONCE: usize = 64;

/// What is sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Interface at which packets leave.
    pub interface: String,
    /// MAC address to which they are sent.
    pub to_mac: [u8; 6],
    /// The sender's IPv4 address, and the receiver's.
    pub addresses: [Ipv4Addr; 2],
    /// How many.
    pub packets: u64,
    /// Lengths of the frames, in turn.
    pub lens: Vec<usize>,
    /// How many in a second; as many as the kernel takes if there is none.
    pub rate: Option<f64>,
    /// Whether the time between two packets is a random one, of which `rate` is the mean.
    pub is_irregular: bool,
    /// Each packet whose number can be divided by this goes to [`SELECTED_PORT`].
    pub select_each: Option<u64>,
}

/// What was sent, as the program `generate` prints it in a line of JSON.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Sent {
    /// How many packets.
    pub packets: u64,
    /// In how many seconds.
    pub seconds: f64,
    /// CPU seconds in the program.
    pub user: f64,
    /// CPU seconds in the kernel, among them what receives the packets and what captures them there.
    pub system: f64,
}

impl Sent {
    /// Packets in a second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.seconds
    }

    /// CPU seconds per million packets.
    pub fn cpu_per_million(&self) -> f64 {
        (self.user + self.system) * 1e6 / self.packets as f64
    }
}

/// A running `generate`; killed when dropped.
pub struct Generator {
    child: Child,
}

impl Generator {
    /// Starts it in a namespace. To be called by the main thread, with which it dies.
    ///
    /// # Errors
    /// When it was not built.
    pub fn start(namespace: &Namespace, plan: &Plan) -> anyhow::Result<Self> {
        let child = namespace
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(program("generate")?)
            .arg(serde_json::to_string(plan)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start nsenter")?;
        Ok(Self { child })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until all is sent.
    ///
    /// # Errors
    /// When it fails.
    pub fn finish(mut self) -> anyhow::Result<Sent> {
        let said = self.child.stdout.take().context("no output")?;
        let said = std::io::read_to_string(said)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "generate: {status}");
        serde_json::from_str(&said).with_context(|| format!("generate said {said:?}"))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends what is planned, in the calling thread's namespace.
///
/// # Errors
/// When there is no such interface, or the kernel refuses.
pub fn generate(plan: &Plan) -> anyhow::Result<Sent> {
    ensure!(!plan.lens.is_empty(), "no lengths");
    for len in &plan.lens {
        ensure!((MIN_LEN..=MAX_LEN).contains(len), "a frame of {len} bytes");
    }
    let socket = RawSocket::open_here(&plan.interface)?;
    // Whole turns of the lengths, so that each of the frames always has the same.
    let cycle = AT_ONCE.next_multiple_of(plan.lens.len());
    let lens = plan.lens.iter().cycle().take(cycle);
    let mut frames: Vec<Vec<u8>> = lens.map(|len| frame(plan, *len)).collect();
    let mut batch = socket.batch(cycle);
    let mut pace = Pace::new(plan);
    let before = cpu()?;
    let begin = Instant::now();
    let mut sent = 0;
    while sent < plan.packets {
        let at = usize::try_from(sent % cycle as u64)?;
        let due = pace.wait(sent).min(cycle - at);
        let due = due.min(usize::try_from(plan.packets - sent)?);
        let time = now()?;
        let frames = &mut frames[at..at + due];
        for (number, frame) in (sent..).zip(&mut *frames) {
            stamp(frame, number, time, plan.select_each);
        }
        sent += batch.send(frames)? as u64;
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = cpu()?;
    Ok(Sent {
        packets: sent,
        seconds,
        user: after.0 - before.0,
        system: after.1 - before.1,
    })
}

/// When packets are due.
struct Pace {
    /// Mean time between two packets, in seconds.
    interval: Option<f64>,
    is_irregular: bool,
    random: u64,
    begin: Instant,
    /// Time of the next packet, in seconds after the beginning.
    next: f64,
}

impl Pace {
    fn new(plan: &Plan) -> Self {
        Self {
            interval: plan.rate.map(f64::recip),
            is_irregular: plan.is_irregular,
            random: 0x2545_f491_4f6c_dd1d,
            begin: Instant::now(),
            next: 0.0,
        }
    }

    /// Waits until packets are due after `sent`, and tells how many.
    fn wait(&mut self, sent: u64) -> usize {
        let Some(interval) = self.interval else {
            return usize::MAX;
        };
        if self.is_irregular {
            self.next += interval * 2.0 * self.random();
            self.sleep();
            return 1;
        }
        self.next = sent as f64 * interval;
        self.sleep();
        let due = self.begin.elapsed().as_secs_f64() / interval - sent as f64;
        (due as usize).max(1)
    }

    fn sleep(&self) {
        let next = self.begin + Duration::from_secs_f64(self.next);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }

    /// From 0 to 1, the same in each run: Marsaglia's xorshift.
    fn random(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A frame that lacks its number and time only.
fn frame(plan: &Plan, len: usize) -> Vec<u8> {
    let [from, to] = plan.addresses;
    let mut frame = [&plan.to_mac[..], &crate::raw::SOURCE_MAC, &[8, 0, 0x45, 0]].concat();
    frame.extend(((len - 14) as u16).to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame.extend(12_345_u16.to_be_bytes());
    frame.extend(DISCARD_PORT.to_be_bytes());
    frame.extend(((len - 34) as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(MAGIC);
    frame.resize(len, 0);
    frame
}

fn stamp(frame: &mut [u8], number: u64, time: u64, select_each: Option<u64>) {
    let at = HEADERS_LEN + MAGIC.len();
    frame[at..at + 8].copy_from_slice(&number.to_be_bytes());
    frame[at + 8..at + 16].copy_from_slice(&time.to_be_bytes());
    if let Some(each) = select_each {
        let is_selected = number.is_multiple_of(each);
        let port = if is_selected { SELECTED_PORT } else { DISCARD_PORT };
        frame[36..38].copy_from_slice(&port.to_be_bytes());
    }
}

/// Nanoseconds of the clock that packets are stamped with.
///
/// # Errors
/// When the clock is before 1970.
pub fn now() -> anyhow::Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_REALTIME)?;
    Ok(u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?)
}

/// CPU seconds of this process, in the program and in the kernel.
fn cpu() -> anyhow::Result<(f64, f64)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.num_microseconds() as f64 / 1e6;
    Ok((seconds(usage.user_time()), seconds(usage.system_time())))
}
