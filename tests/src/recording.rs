//! A pcapng stream, read by a library that is not the server's encoder.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context as _, bail, ensure};
use pcap_file::pcapng::{
    Block, PcapNgParser,
    blocks::{
        enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
        interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
        name_resolution::{NameResolutionBlock, Record},
        section_header::SectionHeaderOption,
    },
};

/// A whole stream.
#[derive(Debug, Default)]
pub struct Recording {
    /// Comment of the section header.
    pub comment: String,
    /// In the order of their numbers.
    pub interfaces: Vec<Interface>,
    /// In the order of the stream.
    pub packets: Vec<Packet>,
    /// In the order of the stream.
    pub statistics: Vec<Statistics>,
    /// What the last statistics of interfaces say, by their numbers, where they say something.
    pub said: BTreeMap<usize, String>,
    /// In the order of the stream.
    pub names: Vec<Name>,
}

/// An interface description.
#[derive(Debug, Default)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its link type's number.
    pub link_type: u32,
    /// Snapshot length.
    pub snaplen: u32,
    /// All options as the library shows them.
    pub options: String,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Number of its interface.
    pub interface: usize,
    /// Nanoseconds since 1970.
    pub timestamp: u64,
    /// Bytes that it had.
    pub original_len: u32,
    /// Its captured bytes.
    pub data: Vec<u8>,
    /// `epb_flags`.
    pub flags: u32,
    /// `epb_dropcount`, 0 if absent.
    pub dropped_before: u64,
}

/// Interface statistics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Number of the interface.
    pub interface: usize,
    /// How many packets of the interface stand before this block.
    pub packets_before: u64,
    /// `isb_ifrecv`; as accepted, if it has none
    pub received: u64,
    /// Whether it has an `isb_ifrecv`, which only a part of a capture lacks.
    pub has_received: bool,
    /// `isb_filteraccept`
    pub accepted: u64,
    /// `isb_usrdeliv`
    pub delivered: u64,
    /// `isb_ifdrop`
    pub dropped: u64,
    /// Whether it has one: of what was not told to the end it is not known.
    pub is_told: bool,
    /// Whether it has an `isb_endtime`.
    pub last: bool,
}

/// What an address is called from a place in the stream on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The address.
    pub address: IpAddr,
    /// Its name.
    pub name: String,
    /// How many packets stand before its block.
    pub packets_before: usize,
}

impl Packet {
    /// Whether the interface sent it.
    pub fn is_outbound(&self) -> bool {
        self.flags & 3 == 2
    }

    /// Whether it is the first of a TCP connection to this port, over Ethernet and IPv4.
    pub fn is_syn(&self, port: u16) -> bool {
        let packet = &self.data;
        let is_tcp = packet.len() > 14 + 20 + 13 && packet[12..14] == [8, 0] && packet[23] == 6;
        is_tcp && packet[36..38] == port.to_be_bytes() && packet[47] & 0x12 == 2
    }
}

impl Recording {
    /// Reads a stream, which must be whole blocks.
    ///
    /// # Errors
    /// When it is not, or breaks a rule of the service's contract.
    pub fn parse(stream: &[u8]) -> anyhow::Result<Self> {
        let mut reader = Reader::default();
        reader.read(stream)?;
        Ok(reader.recording)
    }

    /// Packets of the interface `name`.
    pub fn packets_of(&self, name: &str) -> Vec<&Packet> {
        let ids: Vec<usize> = (0..self.interfaces.len())
            .filter(|id| self.interfaces[*id].name == name)
            .collect();
        self.packets
            .iter()
            .filter(|packet| ids.contains(&packet.interface))
            .collect()
    }

    /// How many connections to a port were begun at the interfaces of a target, whatever those are called at the time: engines
    /// give an interface its name while they move it, and take that back soon.
    pub fn connections_of(&self, target: &str, port: u16) -> usize {
        let prefix = format!("{target}/");
        let theirs = |packet: &&Packet| self.interfaces[packet.interface].name.starts_with(&prefix);
        let packets = self.packets.iter().filter(theirs);
        packets.filter(|packet| packet.is_syn(port)).count()
    }

    /// How many packets are just `data`.
    pub fn count(&self, data: &[u8]) -> usize {
        self.packets.iter().filter(|packet| packet.data == data).count()
    }

    /// How many packets of the interface `name`, in this direction, are just `data`.
    pub fn count_on(&self, name: &str, outbound: bool, data: &[u8]) -> usize {
        self.packets_of(name)
            .iter()
            .filter(|packet| packet.data == data && packet.is_outbound() == outbound)
            .count()
    }

    /// Whether a packet has `bytes` in it.
    pub fn has(&self, bytes: &[u8]) -> bool {
        self.packets
            .iter()
            .any(|packet| packet.data.windows(bytes.len()).any(|window| window == bytes))
    }

    /// What `address` is called where `packets_before` packets have been read: the last name told of it.
    pub fn name_of(&self, address: IpAddr, packets_before: usize) -> Option<&str> {
        self.names
            .iter()
            .rfind(|name| name.address == address && name.packets_before <= packets_before)
            .map(|name| name.name.as_str())
    }

    /// The final statistics of the first interface of that name.
    ///
    /// # Errors
    /// When there are none, or they do not tell what was lost.
    pub fn final_statistics(&self, name: &str) -> anyhow::Result<Statistics> {
        let last = self.last_of(name)?;
        ensure!(last.is_told, "{name}: {:?}", self.said.get(&last.interface));
        Ok(last)
    }

    /// How many packets of the first interface of that name are there, and what is said of those that were lost, of which the
    /// final statistics do not tell.
    ///
    /// # Errors
    /// When there are none, or they tell.
    pub fn untold_statistics(&self, name: &str) -> anyhow::Result<(u64, &str)> {
        let last = self.last_of(name)?;
        ensure!(!last.is_told, "{name}: {last:?}");
        let said = self.said.get(&last.interface);
        Ok((last.delivered, said.context("nothing is said")?))
    }

    fn last_of(&self, name: &str) -> anyhow::Result<Statistics> {
        let id = self
            .interfaces
            .iter()
            .position(|interface| interface.name == name)
            .with_context(|| format!("no interface {name}"))?;
        self.statistics
            .iter()
            .copied()
            .find(|statistics| statistics.interface == id && statistics.last)
            .with_context(|| format!("no final statistics of {name}"))
    }

    /// What holds for every stream.
    fn check(&self) -> anyhow::Result<()> {
        for interface in &self.interfaces {
            // Readers on libpcap refuse what differs.
            ensure!(interface.snaplen == self.interfaces[0].snaplen, "{interface:?}");
        }
        for statistics in &self.statistics {
            ensure!(
                !statistics.is_told || statistics.accepted == statistics.delivered + statistics.dropped,
                "{statistics:?}"
            );
            ensure!(statistics.received >= statistics.accepted, "{statistics:?}");
            ensure!(
                statistics.delivered == statistics.packets_before,
                "{statistics:?}"
            );
        }
        Ok(())
    }

    /// Checks that the stream ends with the final statistics of all interfaces.
    ///
    /// # Errors
    /// When one is missing.
    pub fn check_complete(&self) -> anyhow::Result<()> {
        for (id, interface) in self.interfaces.iter().enumerate() {
            let finals = self
                .statistics
                .iter()
                .filter(|one| one.interface == id && one.last)
                .count();
            ensure!(finals == 1, "{finals} final statistics of {}", interface.name);
        }
        Ok(())
    }

    /// Checks that the final statistics say exactly of which packets timestamps go back, as those of merged streams do of what came
    /// too late to be put in order. Gives how many these are.
    ///
    /// # Errors
    /// When others go back.
    pub fn check_late(&self) -> anyhow::Result<usize> {
        let (mut latest, mut late) = (0, BTreeMap::<usize, u64>::new());
        for packet in &self.packets {
            if packet.timestamp < latest {
                *late.entry(packet.interface).or_default() += 1;
            }
            latest = latest.max(packet.timestamp);
        }
        let mut told = BTreeMap::new();
        for (interface, said) in &self.said {
            let sentence = said.split("; ").find(|one| one.contains(" came late, and "));
            if let Some((count, _)) = sentence.and_then(|one| one.split_once(' ')) {
                told.insert(*interface, count.parse()?);
            }
        }
        ensure!(late == told, "{late:?} are late, and {told:?} are told");
        Ok(usize::try_from(late.into_values().sum::<u64>())?)
    }

    /// Checks that timestamps never go back.
    ///
    /// # Errors
    /// At the first that does.
    pub fn check_order(&self) -> anyhow::Result<()> {
        for (index, pair) in self.packets.windows(2).enumerate() {
            ensure!(
                pair[0].timestamp <= pair[1].timestamp,
                "packet {} is older than the one before",
                index + 1
            );
        }
        Ok(())
    }
}

/// Reads a stream piece by piece, so that a long one is read once.
#[derive(Default)]
pub struct Reader {
    parser: Option<PcapNgParser>,
    recording: Recording,
    /// Packets of each interface.
    counts: BTreeMap<usize, u64>,
    /// Interfaces that have their final statistics.
    ended: BTreeSet<usize>,
}

impl Reader {
    /// Reads on in `piece`, which must be whole blocks, and tells all that came so far.
    ///
    /// # Errors
    /// As [`Recording::parse`].
    pub fn read(&mut self, piece: &[u8]) -> anyhow::Result<&Recording> {
        check_block_lengths(piece, self.parser.is_none())?;
        let mut rest = piece;
        let mut parser = match self.parser.take() {
            Some(parser) => parser,
            None => {
                let (after, parser) = PcapNgParser::new(piece)?;
                rest = after;
                self.recording.comment = comment(&parser)?;
                parser
            }
        };
        while !rest.is_empty() {
            let (next, block) = parser.next_block(rest)?;
            rest = next;
            self.take(block)?;
        }
        self.parser = Some(parser);
        self.recording.check()?;
        Ok(&self.recording)
    }

    /// All that came so far.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    fn take(&mut self, block: Block) -> anyhow::Result<()> {
        let recording = &mut self.recording;
        match block {
            Block::InterfaceDescription(block) => recording.interfaces.push(interface(&block)),
            Block::EnhancedPacket(block) => {
                let packet = packet(&block)?;
                ensure!(
                    packet.interface < recording.interfaces.len(),
                    "a packet before its interface"
                );
                ensure!(
                    !self.ended.contains(&packet.interface),
                    "a packet behind the final statistics of {}",
                    recording.interfaces[packet.interface].name
                );
                *self.counts.entry(packet.interface).or_default() += 1;
                recording.packets.push(packet);
            }
            Block::InterfaceStatistics(block) => {
                let before = self.counts.get(&(block.interface_id as usize));
                let statistics = statistics(&block, before.copied().unwrap_or_default())?;
                if let Some(said) = said(&block) {
                    recording.said.insert(statistics.interface, said);
                }
                if statistics.last {
                    self.ended.insert(statistics.interface);
                }
                recording.statistics.push(statistics);
            }
            Block::NameResolution(block) => {
                let names = names(&block, recording.packets.len())?;
                recording.names.extend(names);
            }
            other => bail!("unexpected block {other:?}"),
        }
        Ok(())
    }
}

fn packet(block: &EnhancedPacketBlock) -> anyhow::Result<Packet> {
    let mut packet = Packet {
        interface: block.interface_id as usize,
        timestamp: u64::try_from(block.timestamp.as_nanos())?,
        original_len: block.original_len,
        data: block.data.to_vec(),
        flags: 0,
        dropped_before: 0,
    };
    for option in &block.options {
        match option {
            EnhancedPacketOption::Flags(flags) => packet.flags = *flags,
            EnhancedPacketOption::DropCount(count) => packet.dropped_before = *count,
            other => bail!("unexpected option {other:?}"),
        }
    }
    Ok(packet)
}

fn statistics(block: &InterfaceStatisticsBlock, packets_before: u64) -> anyhow::Result<Statistics> {
    let mut statistics = Statistics {
        interface: block.interface_id as usize,
        packets_before,
        ..Statistics::default()
    };
    let mut received = None;
    for option in &block.options {
        match option {
            InterfaceStatisticsOption::IsbIfRecv(n) => received = Some(*n),
            InterfaceStatisticsOption::IsbFilterAccept(n) => statistics.accepted = *n,
            InterfaceStatisticsOption::IsbUsrDeliv(n) => statistics.delivered = *n,
            InterfaceStatisticsOption::IsbIfDrop(n) => {
                (statistics.dropped, statistics.is_told) = (*n, true);
            }
            // Whoever adds it to the other would count twice.
            InterfaceStatisticsOption::IsbOsDrop(n) => bail!("losses are told twice: {n}"),
            InterfaceStatisticsOption::IsbEndTime(_) => statistics.last = true,
            _ => {}
        }
    }
    if !statistics.is_told {
        // What is reckoned with losses is not known then, and the reason is said.
        ensure!(statistics.accepted == 0 && received.is_none(), "{statistics:?}");
        ensure!(said(block).is_some(), "no losses, and no reason: {statistics:?}");
    }
    statistics.has_received = received.is_some();
    statistics.received = received.unwrap_or(statistics.accepted);
    Ok(statistics)
}

/// The comment of statistics.
fn said(block: &InterfaceStatisticsBlock) -> Option<String> {
    block.options.iter().find_map(|option| match option {
        InterfaceStatisticsOption::Comment(comment) => Some(comment.to_string()),
        _ => None,
    })
}

fn check_block_lengths(stream: &[u8], mut first: bool) -> anyhow::Result<()> {
    let mut rest = stream;
    while !rest.is_empty() {
        let head: [u8; 8] = rest.get(..8).context("half a block")?.try_into()?;
        let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        ensure!(
            (12..=262_144).contains(&len) && len.is_multiple_of(4),
            "a block of {len} bytes"
        );
        ensure!(!first || len <= 1024, "a section header of {len} bytes");
        rest = rest.get(len..).context("half a block")?;
        first = false;
    }
    Ok(())
}

fn comment(parser: &PcapNgParser) -> anyhow::Result<String> {
    parser
        .section()
        .options
        .iter()
        .find_map(|option| match option {
            SectionHeaderOption::Comment(comment) => Some(Cow::into_owned(comment.clone())),
            _ => None,
        })
        .context("the section header has no comment")
}

fn interface(block: &InterfaceDescriptionBlock<'_>) -> Interface {
    let name = block.options.iter().find_map(|option| match option {
        InterfaceDescriptionOption::IfName(name) => Some(name.to_string()),
        _ => None,
    });
    Interface {
        name: name.unwrap_or_default(),
        link_type: u32::from(block.linktype),
        snaplen: block.snaplen,
        options: format!("{:?}", block.options),
    }
}

fn names(block: &NameResolutionBlock<'_>, packets_before: usize) -> anyhow::Result<Vec<Name>> {
    ensure!(!block.records.is_empty(), "a block without names");
    ensure!(block.options.is_empty(), "unexpected options {:?}", block.options);
    block
        .records
        .iter()
        .map(|record| {
            let (address, names) = match record {
                Record::Ipv4(record) => (<[u8; 4]>::try_from(&*record.ip_addr)?.into(), &record.names),
                Record::Ipv6(record) => (<[u8; 16]>::try_from(&*record.ip_addr)?.into(), &record.names),
                other => bail!("unexpected record {other:?}"),
            };
            let [name] = names.as_slice() else {
                bail!("{address} has the names {names:?}");
            };
            ensure!(name.len() <= 255, "a name of {} bytes", name.len());
            Ok(Name {
                address,
                name: name.to_string(),
                packets_before,
            })
        })
        .collect()
}
