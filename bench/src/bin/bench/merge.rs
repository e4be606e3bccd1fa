//! Merging the rings of many CPUs: packetflix' own merge and batches, on rings in memory.

use std::sync::atomic::{AtomicUsize, Ordering, fence};

use anyhow::{Context as _, ensure};
use nix::sys::prctl::set_thp_disable;
use packetflix::{
    merging::{CaptureClock, ClockSource, Drained, Head, Merge, Packets, Ring},
    pcapng::LinkType,
};
use packetflix_bench::report::{FigureKind, Report, Scenario};
use packetflix_common::{Direction, RecordHeader};

use crate::{
    Args,
    crowds::figures::{compared, more, plain},
    interrupt::check,
    usage::thread_cpu,
};

const ROUNDS: u32 = 7;

/// Numbers of rings, of which the most is a multiple of all.
const RINGS: [usize; 8] = [1, 2, 4, 8, 16, 32, 64, MOST_RINGS];
const MOST_RINGS: usize = 256;

/// Bytes of all rings together: what a capture has unless a flag says otherwise, and more than a core's own cache.
const MEMORY: usize = 64 << 20;

/// Records in a row that a network card hands to one CPU, at most half of what NAPI lets it.
const BURST: usize = 32;

/// How often all records are merged in a measurement.
const PASSES: usize = 4;

/// Nanoseconds between two packets.
const INTERVAL: u64 = 500;

/// Of the first packet, in nanoseconds: some time in 2027.
const BEGIN: u64 = 1_800_000_000_000_000_000;

/// Bytes before a record in a ring, `BPF_RINGBUF_HDR_SZ`: its length, and what only the kernel wants to know.
const RING_HEADER: usize = 8;
const BUSY: u32 = 1 << 31;

/// Bytes of a block before an Enhanced Packet Block's options and packet.
const BLOCK_HEADER: usize = 28;
const ENHANCED_PACKET: u32 = 6;

const SIZES: [Size; 2] = [
    Size {
        packet: 64,
        class: 64,
        cpu: compared("CPU per record of 64 bytes", "ns"),
        alone: compared("CPU per record of 64 bytes, merge alone", "ns"),
        speed: more("records of 64 bytes per second of CPU", "records/s"),
        to_heap: plain("time for 64 bytes, merge alone, as a ratio to the heap's", "×"),
    },
    Size {
        packet: 1500,
        class: 1520,
        cpu: compared("CPU per record of 1500 bytes", "ns"),
        alone: compared("CPU per record of 1500 bytes, merge alone", "ns"),
        speed: more("records of 1500 bytes per second of CPU", "records/s"),
        to_heap: plain("time for 1500 bytes, merge alone, as a ratio to the heap's", "×"),
    },
];

const METHOD: &str = "One thread merges 64 MiB of records again and again, its CPU time is taken. The rings are in memory, \
    are laid out as the kernel's, have been filled before, and share the same records in sum. Records become batches as in \
    a capture, which are thrown away; in figures of the merge alone, records are looked at and removed.";

/// Packets of one size.
struct Size {
    packet: usize,
    /// Room of a record for the packet.
    class: usize,
    cpu: FigureKind,
    alone: FigureKind,
    speed: FigureKind,
    to_heap: FigureKind,
}

impl Size {
    fn stride(&self) -> usize {
        RING_HEADER + RecordHeader::SIZE + self.class
    }

    /// In all rings: a whole number of bursts for each.
    fn records(&self) -> usize {
        MEMORY / self.stride() / (MOST_RINGS * BURST) * (MOST_RINGS * BURST)
    }
}

/// How packets come to CPUs.
#[derive(Clone, Copy)]
enum Order {
    /// So many in a row to one, then to another, in turns.
    Turns(usize),
    /// All to the first.
    OneBusy,
}

/// A way to merge.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Heap,
    Scan,
}

const ORDERS: [(&str, &str, Order); 3] = [
    ("interleaved", "each record in another ring", Order::Turns(1)),
    ("bursts", "32 records of a ring in a row", Order::Turns(BURST)),
    ("busy", "one busy ring, the others idle", Order::OneBusy),
];
const KINDS: [(&str, &str, Kind); 2] = [
    ("heap", "Merge by a heap", Kind::Heap),
    ("scan", "Merge by a linear scan", Kind::Scan),
];

pub(crate) fn run(args: &Args, report: &mut Report) -> anyhow::Result<()> {
    // Whether there are huge pages must not depend on how large a ring is; the kernel's rings have none.
    set_thp_disable(true).context("huge pages cannot be done without")?;
    let part = args.scenario.as_deref().unwrap_or_default();
    let mut any = false;
    for (name, how, order) in ORDERS {
        let scenarios = KINDS.map(|(kind, title, _)| {
            let (name, title) = (format!("merge-{name}-{kind}"), format!("{title}: {how}"));
            Scenario::new(name, title, METHOD, Some(&contestant(1)))
        });
        if scenarios.iter().any(|scenario| scenario.name.contains(part)) {
            any = true;
            report
                .scenarios
                .extend(measure(order, scenarios, args.rounds(ROUNDS))?);
        }
    }
    ensure!(any, "there is no scenario {part}");
    Ok(())
}

fn contestant(rings: usize) -> String {
    match rings {
        1 => "1 ring".to_owned(),
        _ => format!("{rings} rings"),
    }
}

/// Measures both ways to merge, side by side.
fn measure(order: Order, mut scenarios: [Scenario; 2], rounds: u32) -> anyhow::Result<[Scenario; 2]> {
    eprintln!("bench: {} and {}", scenarios[0].name, scenarios[1].name);
    for round in 0..rounds as usize {
        for number in 0..RINGS.len() {
            // In the first round in their order, which is that of the table.
            let rings = RINGS[(round + number) % RINGS.len()];
            for size in &SIZES {
                check()?;
                let memories = fill(rings, order, size);
                if round == 0 {
                    for (_, name, kind) in KINDS {
                        verify(kind, &memories, size).with_context(|| format!("{name}, {rings} rings"))?;
                    }
                }
                let mut alone = [0.0; 2];
                for turn in 0..KINDS.len() {
                    let at = (round + turn) % KINDS.len();
                    let (kind, scenario) = (KINDS[at].2, &mut scenarios[at]);
                    let whole = time(size, || into_batches(kind, &memories, size))?;
                    let merge = time(size, || alone_of(kind, &memories, size))?;
                    alone[at] = merge;
                    scenario.record(&contestant(rings), &size.cpu, whole);
                    scenario.record(&contestant(rings), &size.alone, merge);
                    scenario.record(&contestant(rings), &size.speed, 1e9 / whole);
                }
                scenarios[1].record(&contestant(rings), &size.to_heap, alone[1] / alone[0]);
            }
        }
    }
    Ok(scenarios)
}

/// Does something that goes through all records, which has to say how many there were; gives nanoseconds per record.
fn time(size: &Size, mut pass: impl FnMut() -> anyhow::Result<usize>) -> anyhow::Result<f64> {
    let before = thread_cpu()?;
    for _ in 0..PASSES {
        let records = pass()?;
        ensure!(
            records == size.records(),
            "{records} of {} records",
            size.records()
        );
    }
    let taken = thread_cpu()? - before;
    Ok(taken.as_secs_f64() * 1e9 / (PASSES * size.records()) as f64)
}

/// Turns all records into batches; gives how many there were.
fn into_batches(kind: Kind, memories: &[Memory], size: &Size) -> anyhow::Result<usize> {
    let (mut records, mut bytes) = (0, 0);
    batches(kind, memories, |batch, taken| {
        records += taken;
        bytes += batch.len();
        Ok(())
    })?;
    ensure!(
        bytes > records * (BLOCK_HEADER + size.packet),
        "only {bytes} bytes"
    );
    Ok(records)
}

/// Gives each batch and the number of its records.
fn batches(
    kind: Kind,
    memories: &[Memory],
    mut each: impl FnMut(&[u8], usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let clock = CaptureClock::new(ClockSource::Tai)?;
    let mut packets = Packets::new(packetflix::pcapng::SNAPLEN);
    packets.describe(0, LinkType::Ethernet);
    let mut merge = Merging::new(kind, memories);
    loop {
        let mut taken = 0;
        let drained = merge.drain(|record| {
            let head = packets.write(record, &clock, &mut |_| true);
            taken += usize::from(head == Head::Remove);
            head
        });
        let (batch, _) = packets.take();
        each(&batch, taken)?;
        match drained {
            Drained::Full(_) => {}
            Drained::Empty => return Ok(()),
            Drained::Held => anyhow::bail!("records are held"),
        }
    }
}

/// Removes all records without a copy; gives how many there were.
fn alone_of(kind: Kind, memories: &[Memory], size: &Size) -> anyhow::Result<usize> {
    let (mut records, mut sum) = (0, 0);
    let mut merge = Merging::new(kind, memories);
    merge.drain(|record| {
        records += 1;
        sum += record.len();
        Head::Remove
    });
    ensure!(
        sum == records * (size.stride() - RING_HEADER),
        "records of {sum} bytes in sum"
    );
    Ok(records)
}

/// Whether all packets are in the batches, each in its place.
fn verify(kind: Kind, memories: &[Memory], size: &Size) -> anyhow::Result<()> {
    let (mut found, mut first) = (0, None);
    batches(kind, memories, |mut batch, _| {
        while let Some(head) = batch.first_chunk::<BLOCK_HEADER>() {
            let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
            ensure!(word(0) == ENHANCED_PACKET, "a block of type {}", word(0));
            let time = u64::from(word(12)) << 32 | u64::from(word(16));
            let first = *first.get_or_insert(time);
            ensure!(time == first + found * INTERVAL, "packet {found} is of {time}");
            let packet = batch.get(BLOCK_HEADER..BLOCK_HEADER + size.packet);
            let number = packet.and_then(<[u8]>::first_chunk).context("a cut block")?;
            ensure!(u64::from_ne_bytes(*number) == found, "not packet {found}");
            found += 1;
            batch = batch.get(word(4) as usize..).context("a cut block")?;
        }
        ensure!(batch.is_empty(), "a cut block");
        Ok(())
    })?;
    ensure!(found == size.records() as u64, "{found} packets");
    Ok(())
}

/// Fills so many rings with records, in the order of their timestamps as CPUs do.
fn fill(rings: usize, order: Order, size: &Size) -> Vec<Memory> {
    let mut random = Random(rings as u64);
    let records = size.records();
    let room = |number| match order {
        Order::Turns(_) => records / rings,
        Order::OneBusy if number == 0 => records,
        Order::OneBusy => 0,
    };
    let mut memories: Vec<Memory> = (0..rings)
        .map(|number| {
            // Rings in use are read at any place of a page; at the same one, all would want the same lines of caches.
            let begin = random.below(4096 / 8) * 8;
            let mut data = Vec::with_capacity(begin + room(number) * size.stride());
            data.resize(begin, 0);
            Memory {
                consumer: Box::default(),
                producer: Box::default(),
                data,
                begin,
            }
        })
        .collect();

    let (mut turns, burst) = match order {
        Order::Turns(burst) => ((0..rings).collect(), burst),
        Order::OneBusy => (vec![0], 1),
    };
    let mut header = RecordHeader {
        timestamp: BEGIN,
        ifindex: 2,
        original_len: size.packet as u32,
        captured_len: size.packet as u32,
        direction: Direction::Inbound as u8,
        ..RecordHeader::default()
    };
    let mut number = 0_u64;
    while number < records as u64 {
        random.shuffle(&mut turns);
        for at in &turns {
            let data = &mut memories[*at].data;
            for _ in 0..burst {
                let end = data.len() + size.stride();
                let len = (RecordHeader::SIZE + size.class) as u32;
                data.extend(len.to_ne_bytes());
                data.extend([0; 4]);
                data.extend(header.encode());
                data.extend(number.to_ne_bytes());
                data.resize(end, 0x55);
                header.timestamp += INTERVAL;
                number += 1;
            }
        }
    }
    for memory in &mut memories {
        *memory.producer.0.get_mut() = memory.data.len();
    }
    memories
}

/// Numbers that are the same in each run: xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Leaves no element that was last where it is first: a change of ring is one between two shuffles, too.
    fn shuffle(&mut self, elements: &mut [usize]) {
        let last = elements.last().copied();
        for at in (1..elements.len()).rev() {
            elements.swap(at, self.below(at + 1));
        }
        if elements.len() > 1 && elements.first().copied() == last {
            elements.swap(0, 1);
        }
    }
}

/// One of the two ways to merge, over the same rings.
enum Merging<'a> {
    Heap(Merge<Cursor<'a>>),
    Scan(Scan<Cursor<'a>>),
}

impl<'a> Merging<'a> {
    fn new(kind: Kind, memories: &'a [Memory]) -> Self {
        let rings = memories.iter().map(|memory| memory.read()).collect();
        match kind {
            Kind::Heap => Self::Heap(Merge::new(rings)),
            Kind::Scan => Self::Scan(Scan(rings)),
        }
    }

    fn drain(&mut self, take: impl FnMut(&[u8]) -> Head) -> Drained {
        match self {
            Self::Heap(merge) => merge.drain(u64::MAX, take),
            Self::Scan(merge) => merge.drain(take),
        }
    }
}

/// The yardstick: looks for the oldest among the timestamps of all rings, for each record.
struct Scan<R>(Vec<R>);

impl<R: Ring> Scan<R> {
    fn drain(&mut self, mut take: impl FnMut(&[u8]) -> Head) -> Drained {
        let Self(rings) = self;
        // Later than any for a ring that is empty.
        let mut heads: Vec<u64> = rings.iter_mut().map(timestamp).collect();
        loop {
            let oldest = heads.iter().copied().min().unwrap_or(u64::MAX);
            if oldest == u64::MAX {
                return Drained::Empty;
            }
            let at = heads.iter().position(|time| *time == oldest).unwrap_or(0);
            let taken = rings[at].with_head(|record| {
                let head = take(record);
                (head, head)
            });
            if taken == Some(Head::Keep) {
                return Drained::Full(oldest);
            }
            heads[at] = timestamp(&mut rings[at]);
        }
    }
}

fn timestamp(ring: &mut impl Ring) -> u64 {
    let time = ring.with_head(|record| (Head::Keep, RecordHeader::decode_timestamp(record).unwrap_or(0)));
    time.unwrap_or(u64::MAX)
}

/// What the kernel shares of a ring: the positions on pages of their own, and the records.
struct Memory {
    consumer: Box<Page>,
    producer: Box<Page>,
    data: Vec<u8>,
    /// Where the first record is.
    begin: usize,
}

#[derive(Default)]
#[repr(align(4096))]
struct Page(AtomicUsize);

/// Reads a ring as aya does, with the same loads, stores and fences.
struct Cursor<'a> {
    memory: &'a Memory,
    position: usize,
    produced: usize,
    has_consumed: bool,
}

impl Memory {
    /// From its beginning.
    fn read(&self) -> Cursor<'_> {
        self.consumer.0.store(self.begin, Ordering::Release);
        Cursor {
            memory: self,
            position: self.begin,
            produced: self.begin,
            has_consumed: false,
        }
    }
}

impl Ring for Cursor<'_> {
    fn with_head<R>(&mut self, look: impl FnOnce(&[u8]) -> (Head, R)) -> Option<R> {
        if self.position == self.produced {
            if self.has_consumed {
                fence(Ordering::SeqCst);
                self.has_consumed = false;
            }
            self.produced = self.memory.producer.0.load(Ordering::Acquire);
            if self.position == self.produced {
                return None;
            }
        }
        let at = self.position + RING_HEADER;
        let len = u32::from_ne_bytes(*self.memory.data.get(self.position..)?.first_chunk()?);
        fence(Ordering::Acquire);
        if len & BUSY != 0 {
            return None;
        }
        let len = len as usize;
        let (head, result) = look(self.memory.data.get(at..at + len)?);
        if head == Head::Remove {
            self.position += (RING_HEADER + len).next_multiple_of(8);
            self.memory.consumer.0.store(self.position, Ordering::Release);
            self.has_consumed = true;
        }
        Some(result)
    }
}
