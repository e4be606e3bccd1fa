//! Finds the packets of a [`generator`](packetflix_tests::generator) in a stream of pcapng or pcap as it comes: which are missing,
//! doubled or out of order, and how late they are. It is to take little time beside what is measured: it copies nothing
//! but what is cut in two, and looks at no more of a packet than its headers and its number.

use anyhow::{Context as _, bail, ensure};
use packetflix_tests::{generator::MAGIC, raw::HEADERS_LEN};

/// Types of blocks and codes of options: draft-ietf-opsawg-pcapng, sections 4.1, 4.3 and 4.6.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const ENHANCED_PACKET: u32 = 6;
const INTERFACE_STATISTICS: u32 = 5;
const PACKET_DROPS: u16 = 4;
const IF_DROPS: u16 = 5;
const OS_DROPS: u16 = 7;

/// First words of pcap files, whose times are micro- and nanoseconds: draft-ietf-opsawg-pcap.
const PCAP: [u32; 2] = [0xa1b2_c3d4, 0xa1b2_3c4d];
/// Lengths of the header of such a file, and of each packet in it.
const PCAP_HEADER: usize = 24;
const PCAP_PACKET: usize = 16;

/// What a stream had so far.
#[derive(Clone, Debug, Default)]
pub struct Analysis {
    format: Option<Format>,
    /// Begin of what is not yet there as a whole.
    rest: Vec<u8>,
    seen: Vec<u64>,
    next: u64,
    found: Found,
    delays: Delays,
}

/// What was found in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Bytes of the stream.
    pub stream_bytes: u64,
    /// Packets of any kind.
    pub packets: u64,
    /// Bytes of these packets, as they were on the link, and as far as they are in the stream.
    pub original_bytes: u64,
    /// See `original_bytes`.
    pub captured_bytes: u64,
    /// Packets of the generator, each once.
    pub delivered: u64,
    /// Packets of the generator that came again.
    pub doubled: u64,
    /// Packets of the generator that came after one with a higher number.
    pub out_of_order: u64,
    /// Sum of all `epb_dropcount`.
    pub packet_drops: u64,
    /// What the last statistics tell as lost in the whole capture; none if there are no statistics.
    pub reported_drops: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Pcapng,
    PcapHeader,
    Pcap,
}

impl Analysis {
    /// There is nothing yet. At most `packets` packets of the generator are told apart.
    pub fn new(packets: u64) -> Self {
        Self {
            seen: vec![0; packets.div_ceil(64) as usize],
            ..Self::default()
        }
    }

    /// Takes in a piece of the stream that was received at `time`, in nanoseconds.
    ///
    /// # Errors
    /// When it is no stream of one of these formats, of this machine's byte order.
    pub fn feed(&mut self, mut data: &[u8], time: u64) -> anyhow::Result<()> {
        self.found.stream_bytes += data.len() as u64;
        let mut rest = std::mem::take(&mut self.rest);
        while !rest.is_empty() && !data.is_empty() {
            // Where the length is not known yet, the next word is missing: nothing is shorter than three.
            let known = self.len(&rest)?.unwrap_or(rest.len() / 4 * 4 + 4);
            let missing = known - rest.len();
            let (now, later) = data.split_at(missing.min(data.len()));
            rest.extend_from_slice(now);
            data = later;
            if self.len(&rest)? == Some(rest.len()) {
                self.take_in(&rest, time)?;
                rest.clear();
            }
        }
        while let Some(len) = self.len(data)?
            && len <= data.len()
        {
            let (whole, later) = data.split_at(len);
            self.take_in(whole, time)?;
            data = later;
        }
        rest.extend_from_slice(data);
        self.rest = rest;
        Ok(())
    }

    /// What was found so far.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// How late packets were.
    pub fn delays(&self) -> &Delays {
        &self.delays
    }

    /// Length of the block, the packet or the header that `data` begins with, if it is known yet.
    fn len(&mut self, data: &[u8]) -> anyhow::Result<Option<usize>> {
        let Some(first) = word(data, 0) else {
            return Ok(None);
        };
        let format = match self.format {
            Some(format) => format,
            None if first == SECTION_HEADER => Format::Pcapng,
            None if PCAP.contains(&first) => Format::PcapHeader,
            None => bail!("a stream that begins with {first:#x}"),
        };
        self.format = Some(format);
        let len = match format {
            Format::PcapHeader => Some(PCAP_HEADER),
            Format::Pcap => word(data, 8).map(|len| PCAP_PACKET + len as usize),
            Format::Pcapng => word(data, 4).map(|len| len as usize),
        };
        ensure!(
            len.is_none_or(|len| (12..1 << 24).contains(&len)),
            "a block of {len:?} bytes"
        );
        Ok(len)
    }

    /// Takes in what is there as a whole.
    fn take_in(&mut self, data: &[u8], time: u64) -> anyhow::Result<()> {
        match self.format {
            Some(Format::PcapHeader) => self.format = Some(Format::Pcap),
            Some(Format::Pcap) => {
                let len = word(data, 12).context("no length")?;
                self.packet(&data[PCAP_PACKET..], len, time);
            }
            _ => self.block(data, time).context("a block that is too short")?,
        }
        Ok(())
    }

    fn block(&mut self, data: &[u8], time: u64) -> Option<()> {
        match word(data, 0)? {
            ENHANCED_PACKET => {
                let captured = word(data, 20)? as usize;
                self.packet(data.get(28..28 + captured)?, word(data, 24)?, time);
                let options = data.get(28 + captured.next_multiple_of(4)..data.len() - 4)?;
                self.found.packet_drops += option(options, PACKET_DROPS).unwrap_or_default();
            }
            INTERFACE_STATISTICS => {
                let options = data.get(20..data.len() - 4)?;
                let drops = option(options, OS_DROPS).or_else(|| option(options, IF_DROPS));
                self.found.reported_drops = drops.or(self.found.reported_drops);
            }
            _ => {}
        }
        Some(())
    }

    fn packet(&mut self, data: &[u8], len: u32, time: u64) {
        self.found.packets += 1;
        self.found.original_bytes += u64::from(len);
        self.found.captured_bytes += data.len() as u64;
        let payload = data.get(HEADERS_LEN..).and_then(|rest| rest.strip_prefix(&MAGIC));
        let Some((number, sent)) = payload.and_then(|rest| Some((long(rest, 0)?, long(rest, 8)?))) else {
            return;
        };
        let bit = 1 << (number % 64);
        let Some(seen) = self.seen.get_mut((number / 64) as usize) else {
            return;
        };
        if *seen & bit != 0 {
            self.found.doubled += 1;
            return;
        }
        *seen |= bit;
        self.found.delivered += 1;
        if number < self.next {
            self.found.out_of_order += 1;
        } else {
            self.next = number + 1;
        }
        self.delays.push(time.saturating_sub(sent));
    }
}

/// The number in the first option of this code.
fn option(mut options: &[u8], code: u16) -> Option<u64> {
    loop {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let [a, b, c, d] = *head;
        let (found, len) = (u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]));
        if found == code {
            return Some(u64::from_ne_bytes(*rest.first_chunk()?));
        }
        options = rest.get(usize::from(len).next_multiple_of(4)..)?;
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*data.get(at..)?.first_chunk()?))
}

fn long(data: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

/// How often there was which delay, exact to one part in 64.
#[derive(Clone, Debug)]
pub struct Delays {
    counts: Vec<u64>,
}

impl Default for Delays {
    fn default() -> Self {
        Self {
            counts: vec![0; Self::CLASSES],
        }
    }
}

impl Delays {
    /// Each power of two is 64 classes.
    const FINE: u32 = 6;
    const CLASSES: usize = (64 - Self::FINE as usize + 1) << Self::FINE;

    /// Takes in a delay in nanoseconds.
    pub fn push(&mut self, delay: u64) {
        self.counts[Self::class(delay)] += 1;
    }

    /// Takes in all of another's.
    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The delay in seconds that this part of all does not exceed, such as 0.99; not a number if there is none.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = (self.count() as f64 * part).ceil().max(1.0) as u64;
        let mut sum = 0;
        for (class, count) in self.counts.iter().enumerate() {
            sum += count;
            if sum >= rank {
                return Self::middle(class) / 1e9;
            }
        }
        f64::NAN
    }

    fn class(delay: u64) -> usize {
        let shift = (u64::BITS - delay.leading_zeros()).saturating_sub(Self::FINE + 1);
        ((shift as usize) << Self::FINE) + (delay >> shift) as usize
    }

    /// The delay in the middle of a class.
    fn middle(class: usize) -> f64 {
        let shift = (class >> Self::FINE).saturating_sub(1);
        let first = class - (shift << Self::FINE);
        let width = 2f64.powi(shift as i32);
        first as f64 * width + (width - 1.0) / 2.0
    }
}
