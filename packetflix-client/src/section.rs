//! A section of pcapng that is written into one file after the other, each of which opens by itself.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;

use crate::pcapng::{Block, Kind, Packet, Statistics, name_records, write};

/// Most bytes of names in a block: of a larger one, readers on libpcap make an error.
const MAX_NAMES_LEN: usize = 64 << 10;

/// What a reader has to know of a section before it can read its packets, and what was told to readers by now.
#[derive(Debug, Default)]
pub(crate) struct Section {
    header: Bytes,
    /// By their numbers in the stream.
    interfaces: Vec<Interface>,
    /// Records of names, by what they begin with: kind and address.
    names: BTreeMap<Bytes, Bytes>,
    /// How many interfaces are described in this file.
    described: u32,
    /// How many of these have no final statistics in it.
    live: u32,
    /// When this file was begun, in nanoseconds since 1970.
    begun: u64,
}

#[derive(Debug)]
struct Interface {
    description: Bytes,
    /// What files that are full tell of it.
    told: Count,
    here: Option<Share>,
}

/// What this file has of an interface.
#[derive(Debug)]
struct Share {
    /// Its number in this file.
    number: u32,
    count: Count,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    delivered: u64,
    dropped: u64,
}

impl Section {
    /// A section that begins with this header in `out`.
    pub(crate) fn begin(header: Bytes, out: &mut Vec<u8>) -> Self {
        out.extend_from_slice(&header);
        Self {
            header,
            begun: now(),
            ..Self::default()
        }
    }

    /// Writes what a new file begins with, once the old one was ended.
    pub(crate) fn begin_file(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.header);
        self.begun = now();
        let mut live: Vec<&mut Interface> = self.interfaces.iter_mut().filter(|one| one.is_live()).collect();
        for (number, interface) in (0..).zip(&mut live) {
            out.extend_from_slice(&interface.description);
            interface.here = Some(Share::of(number));
        }
        self.described = live.len() as u32;
        self.live = self.described;
        write::names(out, self.names.values(), MAX_NAMES_LEN);
    }

    /// Writes the final statistics of the interfaces that have none in this file yet. Where the stream is broken, nobody tells how
    /// many more packets were lost.
    pub(crate) fn end_file(&mut self, is_broken: bool, out: &mut Vec<u8>) {
        let (begun, ended) = self.times();
        for interface in &mut self.interfaces {
            let Some(share) = &interface.here else {
                continue;
            };
            let statistics = Statistics {
                is_untold: is_broken,
                ..share.statistics()
            };
            write::statistics(out, begun, ended, &statistics);
            interface.told.delivered += share.count.delivered;
            interface.told.dropped = interface.told.dropped.saturating_add(share.count.dropped);
        }
    }

    /// Most bytes that the end of this file takes.
    pub(crate) fn end_len(&self) -> u64 {
        u64::from(self.live) * write::STATISTICS_LEN
    }

    /// Takes note of a block of this kind that is no section header. Whether it stands in this file as it came; if not, `out`
    /// gets what stands in its place, if anything does.
    pub(crate) fn takes(&mut self, block: &Block<'_>, kind: &Kind<'_>, out: &mut Vec<u8>) -> bool {
        match kind {
            Kind::Interface(_) => self.describe(block),
            Kind::Packet(packet) => return self.takes_packet(block, packet, out),
            Kind::Statistics(statistics) => return self.takes_statistics(block, statistics, out),
            Kind::Names => self.names.extend(name_records(block)),
            Kind::Section | Kind::Other => {}
        }
        true
    }

    fn describe(&mut self, block: &Block<'_>) {
        self.interfaces.push(Interface {
            description: Bytes::copy_from_slice(block.bytes()),
            told: Count::default(),
            here: Some(Share::of(self.described)),
        });
        self.described += 1;
        self.live += 1;
    }

    fn takes_packet(&mut self, block: &Block<'_>, packet: &Packet<'_>, out: &mut Vec<u8>) -> bool {
        let Some(share) = self.share_of(packet.interface) else {
            return false;
        };
        share.count.delivered += 1;
        share.count.dropped = share.count.dropped.saturating_add(packet.dropped_before());
        share.takes(packet.interface, block, out)
    }

    /// Statistics of the stream end an interface. They tell of all files: what the others have told, this one does not.
    fn takes_statistics(&mut self, block: &Block<'_>, statistics: &Statistics, out: &mut Vec<u8>) -> bool {
        let (begun, ended) = self.times();
        let Some(interface) = self.interfaces.get_mut(statistics.interface as usize) else {
            return false;
        };
        let Some(share) = interface.here.take() else {
            return false;
        };
        self.live = self.live.saturating_sub(1);
        // No later file describes it.
        interface.description = Bytes::new();
        if interface.told == Count::default() {
            return share.takes(statistics.interface, block, out);
        }
        let dropped = statistics.dropped.saturating_sub(interface.told.dropped);
        let rest = Statistics {
            dropped,
            accepted: share.count.delivered.saturating_add(dropped),
            is_untold: statistics.is_untold,
            ..share.statistics()
        };
        write::statistics(out, begun, ended, &rest);
        false
    }

    /// When this file was begun, and now, which is no earlier although the clock may have been set.
    fn times(&self) -> (u64, u64) {
        (self.begun, now().max(self.begun))
    }

    fn share_of(&mut self, interface: u32) -> Option<&mut Share> {
        self.interfaces.get_mut(interface as usize)?.here.as_mut()
    }
}

impl Interface {
    /// Whether more may come of it.
    fn is_live(&self) -> bool {
        self.here.is_some()
    }
}

impl Share {
    fn of(number: u32) -> Self {
        Self {
            number,
            count: Count::default(),
        }
    }

    /// Whether a block of the interface stands in this file as it came, which had this number for it.
    fn takes(&self, number: u32, block: &Block<'_>, out: &mut Vec<u8>) -> bool {
        if number == self.number {
            return true;
        }
        write::with_interface(out, block, self.number);
        false
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            interface: self.number,
            received: 0,
            accepted: self.count.delivered.saturating_add(self.count.dropped),
            delivered: self.count.delivered,
            dropped: self.count.dropped,
            is_untold: false,
        }
    }
}

fn now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcapng::{ENHANCED_PACKET, INTERFACE_DESCRIPTION, NAME_RESOLUTION, SECTION_HEADER, blocks};

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write::block(&mut out, kind, body);
        out
    }

    fn packet(interface: u32) -> Vec<u8> {
        let numbers = [interface, 0, 0, 4, 4, 0x0403_0201];
        block(ENHANCED_PACKET, &numbers.map(u32::to_le_bytes).concat())
    }

    fn end_of(interface: u32, delivered: u64, dropped: u64) -> Vec<u8> {
        let mut out = Vec::new();
        let told = Statistics {
            interface,
            received: 0,
            accepted: delivered + dropped,
            delivered,
            dropped,
            is_untold: false,
        };
        write::statistics(&mut out, 0, 0, &told);
        out
    }

    fn write(section: &mut Section, block: &[u8], out: &mut Vec<u8>) {
        for block in blocks(block) {
            if section.takes(&block, &block.kind(), out) {
                out.extend_from_slice(block.bytes());
            }
        }
    }

    /// What a file has, in short.
    fn read(file: &[u8]) -> Vec<String> {
        let shown = |block: Block<'_>| match block.kind() {
            Kind::Section => "section".to_owned(),
            Kind::Interface(interface) => format!("link type {}", interface.link_type),
            Kind::Packet(packet) => format!("packet of {}", packet.interface),
            Kind::Statistics(one) => format!(
                "{} of {}: {}, {} dropped",
                one.delivered, one.interface, one.accepted, one.dropped
            ),
            Kind::Names => format!("{} names", name_records(&block).count()),
            Kind::Other => "other".to_owned(),
        };
        blocks(file).map(shown).collect()
    }

    #[test]
    fn each_file_opens_by_itself() {
        let mut out = Vec::new();
        let header = block(SECTION_HEADER, &[0; 16]);
        let mut section = Section::begin(header.into(), &mut out);
        let name = |last: u8| [1, 0, 6, 0, 10, 0, 0, last, b'a', 0, 0, 0, 0, 0, 0, 0];
        for block in [
            block(INTERFACE_DESCRIPTION, &[1, 0, 0, 0, 0, 0, 0, 0]),
            block(INTERFACE_DESCRIPTION, &[101, 0, 0, 0, 0, 0, 0, 0]),
            block(NAME_RESOLUTION, &name(1)),
            packet(0),
            packet(1),
            end_of(0, 1, 2),
        ] {
            write(&mut section, &block, &mut out);
        }
        assert_eq!(section.end_len(), write::STATISTICS_LEN);
        section.end_file(false, &mut out);
        assert_eq!(
            read(&std::mem::take(&mut out)),
            [
                "section",
                "link type 1",
                "link type 101",
                "1 names",
                "packet of 0",
                "packet of 1",
                "1 of 0: 3, 2 dropped",
                "1 of 1: 1, 0 dropped",
            ]
        );
        section.begin_file(&mut out);
        for block in [
            block(NAME_RESOLUTION, &name(2)),
            block(NAME_RESOLUTION, &name(2)),
            packet(1),
            end_of(1, 2, 5),
        ] {
            write(&mut section, &block, &mut out);
        }
        section.end_file(false, &mut out);
        // The interface that has ended is not in it, and the other's losses are those of both files.
        assert_eq!(
            read(&std::mem::take(&mut out)),
            [
                "section",
                "link type 101",
                "1 names",
                "1 names",
                "1 names",
                "packet of 0",
                "1 of 0: 6, 5 dropped",
            ]
        );
        section.begin_file(&mut out);
        assert_eq!(read(&out), ["section", "2 names"]);
    }

    #[test]
    fn gaps_are_told_in_front_of_what_a_header_tells() {
        let header = block(
            SECTION_HEADER,
            &[&[0; 16][..], &[1, 0, 2, 0, b'o', b'k', 0, 0, 0, 0, 0, 0]].concat(),
        );
        let header = blocks(&header).next().unwrap();
        let told = write::with_comment(&header, "a gap");
        let len = u32::from_le_bytes(*told[4..].first_chunk().unwrap()) as usize;
        assert_eq!(len, told.len());
        let [first, second] =
            ["a gap", "ok"].map(|text| told.windows(text.len()).position(|part| part == text.as_bytes()));
        assert!(first.is_some() && first < second);
    }
}
