//! The stream of one node: whole blocks, checked, with what is said of its interfaces.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use packetflix_client::stream::{CaptureStream, Close, Data, Piece, Pulse, StreamError};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ask::sentence;
use crate::{
    error::chain,
    pcapng::{EncodedBlock, InterfaceDescription, InterfaceStatistics, MAX_BLOCK_LEN, NotWritten},
};

/// Most interfaces that a node may have at the same time, and in all. Each takes memory until its final statistics have come.
const MAX_OPEN: usize = 1 << 16;
const MAX_DESCRIBED: u32 = 1 << 20;

/// What a node says next.
#[derive(Debug)]
pub(super) enum Said {
    /// Whole blocks, and when the last of them came, where it was waited for.
    Blocks { blocks: Bytes, came: Option<Instant> },
    /// Nothing more.
    Ended(NodeEnd),
}

/// How the stream of a node has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NodeEnd {
    /// The node has closed it.
    Closed(Close),
    /// It broke off.
    Broken(String),
    /// It was ended, since the node sends what no packetflix sends.
    Malformed(String),
}

/// What is said of each interface of a node.
#[derive(Clone, Debug, Default)]
pub(super) struct Note {
    /// What stands before its name.
    pub(super) path: String,
    /// What else there is to say.
    pub(super) comment: String,
    /// Snapshot length of all interfaces of the stream, in bytes.
    pub(super) snaplen: u32,
}

/// The stream of a node.
pub(super) struct Feed {
    capture: CaptureStream,
    check: Check,
    /// Whole blocks that have come already.
    ready: Option<Bytes>,
    is_stopped: bool,
}

/// How many interfaces are described, and how many of them have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct InterfaceCount {
    pub(super) described: u64,
    pub(super) open: u64,
}

/// What has been checked of a stream.
#[derive(Debug, Default)]
struct Check {
    note: Note,
    /// The beginning of a block, whose end is still to come.
    rest: BytesMut,
    has_begun: bool,
    /// How many interfaces are described.
    described: u32,
    /// Those without final statistics, with how many packets there were of each.
    open: BTreeMap<u32, u64>,
}

/// What no packetflix sends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum Malformed {
    #[error("it sends what is no block of pcapng")]
    Block,
    #[error("it sends a block of type {0:#x}, which no packetflix sends")]
    Type(u32),
    #[error("it sends a block of type {0:#x} whose content is none that packetflix sends")]
    Content(u32),
    #[error("it does not begin with one section header, or begins another section")]
    Section,
    #[error("it sends packets or statistics of an interface that it has not described")]
    Interface,
    #[error("it sends packets or statistics of an interface behind that interface's final statistics")]
    Over,
    #[error("it says that it has sent other packets than it has")]
    Delivered,
    #[error("it sends packets with other times than nanoseconds")]
    Resolution,
    #[error("it sends more bytes of a packet than were asked for")]
    Snaplen,
    #[error("it describes more than {MAX_OPEN} interfaces that have not ended")]
    Open,
    #[error("it has described more than {MAX_DESCRIBED} interfaces")]
    Described,
}

impl From<NotWritten> for Malformed {
    fn from(why: NotWritten) -> Self {
        match why {
            NotWritten::Type(block_type) => Self::Type(block_type),
            NotWritten::Content(block_type) => Self::Content(block_type),
        }
    }
}

impl Feed {
    pub(super) fn new(capture: CaptureStream, note: Note) -> Self {
        Self {
            capture,
            check: Check {
                note,
                ..Check::default()
            },
            ready: None,
            is_stopped: false,
        }
    }

    /// Whether the node still answers, to be asked beside it.
    pub(super) fn pulse(&self) -> Pulse {
        self.capture.pulse()
    }

    /// How many interfaces it has.
    pub(super) fn interfaces(&self) -> InterfaceCount {
        InterfaceCount {
            described: self.check.described.into(),
            open: self.check.open.len() as u64,
        }
    }

    /// What people are told of the capture.
    pub(super) fn note(&self) -> Option<String> {
        // It is a header, which clients read as ASCII.
        self.capture.note().map(|note| sentence(note).replace('…', "..."))
    }

    /// Takes the section header, which stands at the beginning of what was said first, and keeps the rest for the next time.
    pub(super) fn begin(&mut self, mut blocks: Bytes) -> BytesMut {
        let len = EncodedBlock::first(&blocks).map_or(0, |block| block.len());
        let header = blocks.split_to(len);
        self.ready = Some(blocks);
        BytesMut::from(&header[..])
    }

    /// What it says next. When `stop` is cancelled, it is asked for the rest and its end.
    pub(super) async fn next(&mut self, stop: &CancellationToken) -> Said {
        if let Some(blocks) = self.ready.take().filter(|blocks| !blocks.is_empty()) {
            return Said::Blocks { blocks, came: None };
        }
        loop {
            if stop.is_cancelled() && !self.is_stopped {
                self.is_stopped = true;
                if let Err(error) = self.capture.stop().await {
                    return broken(&error);
                }
            }
            let piece = tokio::select! {
                biased;
                piece = self.capture.next() => piece,
                () = stop.cancelled(), if !self.is_stopped => continue,
            };
            match piece {
                Ok(Piece::Data(Data { bytes, came })) => match self.check.take(bytes) {
                    Ok(blocks) if blocks.is_empty() => {}
                    Ok(blocks) => return Said::Blocks { blocks, came },
                    Err(malformed) => return Said::Ended(NodeEnd::Malformed(malformed.to_string())),
                },
                Ok(Piece::Closed(close)) => return Said::Ended(NodeEnd::Closed(close)),
                Err(error) => return broken(&error),
            }
        }
    }
}

impl Note {
    /// Appends the description of an interface with what is said of it. It has the snapshot length of the stream, since readers on
    /// libpcap refuse a section whose interfaces differ.
    fn put(&self, description: &[u8], out: &mut BytesMut) {
        let (_, snaplen) = InterfaceDescription::link_type_and_snaplen(description);
        let shorter = match snaplen < self.snaplen {
            true => format!("; of its packets there are the first {snaplen} bytes at most"),
            false => String::new(),
        };
        let comment = format!("{}{shorter}", self.comment);
        InterfaceDescription::annotate(description, self.snaplen, &self.path, &comment, out);
    }
}

fn broken(error: &StreamError) -> Said {
    Said::Ended(NodeEnd::Broken(sentence(&chain(error))))
}

impl Check {
    /// The whole blocks up to here, once they are checked.
    fn take(&mut self, bytes: Bytes) -> Result<Bytes, Malformed> {
        let bytes = match self.rest.is_empty() {
            true => bytes,
            false => {
                self.rest.extend_from_slice(&bytes);
                // However small the pieces of a block are, it is copied once.
                if len_of(&self.rest)?.is_none() {
                    return Ok(Bytes::new());
                }
                std::mem::take(&mut self.rest).freeze()
            }
        };
        let mut len = 0;
        let mut has_notes = false;
        while let Some(block_len) = len_of(&bytes[len..])? {
            let block = &bytes[len..len + block_len];
            has_notes |= self.check(block)?;
            len += block_len;
        }
        self.rest.extend_from_slice(&bytes[len..]);
        let blocks = bytes.slice(..len);
        Ok(match has_notes {
            true => self.noted(&blocks),
            false => blocks,
        })
    }

    /// Checks a block; tells whether it is one to which something is added.
    fn check(&mut self, block: &[u8]) -> Result<bool, Malformed> {
        let parsed = EncodedBlock::sent(block)?;
        let begins = matches!(parsed, EncodedBlock::SectionHeader(_));
        if begins == self.has_begun {
            return Err(Malformed::Section);
        }
        self.has_begun = true;
        match parsed {
            EncodedBlock::Interface(block) => {
                if !InterfaceDescription::counts_nanoseconds(block) {
                    return Err(Malformed::Resolution);
                }
                self.open.insert(self.described, 0);
                self.described += 1;
                match () {
                    () if self.open.len() > MAX_OPEN => Err(Malformed::Open),
                    () if self.described > MAX_DESCRIBED => Err(Malformed::Described),
                    () => Ok(true),
                }
            }
            EncodedBlock::Packet(packet) => {
                *self.interface(packet.interface_id)? += 1;
                match packet.captured_len > self.note.snaplen {
                    true => Err(Malformed::Snaplen),
                    false => Ok(false),
                }
            }
            EncodedBlock::Statistics(block) => {
                let said = InterfaceStatistics::decode(block).ok_or(Malformed::Block)?;
                if *self.interface(said.interface_id)? != said.delivered {
                    return Err(Malformed::Delivered);
                }
                if said.end.is_some() {
                    self.open.remove(&said.interface_id);
                }
                Ok(false)
            }
            _ => Ok(false),
        }
    }

    /// How many packets there were of an interface of which there may be more.
    fn interface(&mut self, id: u32) -> Result<&mut u64, Malformed> {
        let why = match id < self.described {
            true => Malformed::Over,
            false => Malformed::Interface,
        };
        self.open.get_mut(&id).ok_or(why)
    }

    /// The same blocks, with what is said of each interface.
    fn noted(&self, mut blocks: &[u8]) -> Bytes {
        let mut noted = BytesMut::with_capacity(blocks.len());
        while let Some(block) = EncodedBlock::first(blocks) {
            let (block, rest) = (block.len(), blocks);
            let this = &rest[..block];
            match EncodedBlock::first(this) {
                Some(EncodedBlock::Interface(description)) => self.note.put(description, &mut noted),
                _ => noted.extend_from_slice(this),
            }
            blocks = &rest[block..];
        }
        noted.freeze()
    }
}

/// Bytes of the first block, if it is whole.
fn len_of(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    const MIN_LEN: usize = 12;
    let Some(len) = bytes.get(4..).and_then(|rest| rest.first_chunk()) else {
        return Ok(None);
    };
    let len = u32::from_le_bytes(*len) as usize;
    if !(MIN_LEN..=MAX_BLOCK_LEN).contains(&len) || !len.is_multiple_of(4) {
        return Err(Malformed::Block);
    }
    Ok((bytes.len() >= len).then_some(len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pcapng::{
        EnhancedPacket, LinkType, SNAPLEN,
        samples::{INTERFACE, PACKET, SECTION_HEADER},
    };

    fn stream() -> BytesMut {
        let mut out = BytesMut::new();
        SECTION_HEADER.encode(&mut out);
        INTERFACE.encode(&mut out);
        EnhancedPacket {
            dropped_before: 3,
            ..PACKET
        }
        .encode(&mut out);
        out.extend_from_slice(&statistics(0, 1, false));
        out
    }

    fn check() -> Check {
        Check {
            note: Note {
                path: "n1/".to_owned(),
                comment: "its clock".to_owned(),
                snaplen: SNAPLEN,
            },
            ..Check::default()
        }
    }

    /// All blocks that come of these pieces.
    fn taken(check: &mut Check, pieces: &[&[u8]]) -> Result<Vec<u8>, Malformed> {
        let mut blocks = Vec::new();
        for piece in pieces {
            blocks.extend_from_slice(&check.take(Bytes::copy_from_slice(piece))?);
        }
        Ok(blocks)
    }

    #[test]
    fn interfaces_get_their_path_and_note() {
        let blocks = taken(&mut check(), &[&stream()]).unwrap();
        let text = String::from_utf8_lossy(&blocks);
        assert!(text.contains("n1/eth0") && text.contains("its clock") && text.contains("of web"));
        let mut rest = &blocks[..];
        let mut count = 0;
        while let Some(block) = EncodedBlock::first(rest) {
            rest = &rest[block.len()..];
            count += 1;
        }
        assert_eq!((count, rest.len()), (4, 0));
    }

    #[test]
    fn what_no_packetflix_sends_ends_it() {
        let stream = stream();
        let header = EncodedBlock::first(&stream).unwrap().len();
        let description = EncodedBlock::first(&stream[header..]).unwrap().len();
        let packet = EncodedBlock::first(&stream[header + description..])
            .unwrap()
            .len();
        let statistics = header + description + packet;
        for (pieces, error) in [
            (vec![&stream[header..]], Malformed::Section),
            (vec![&stream[..], &stream[..]], Malformed::Section),
            (
                vec![&stream[..header], &stream[header + description..]],
                Malformed::Interface,
            ),
            (
                vec![&stream[..header], &stream[statistics..]],
                Malformed::Interface,
            ),
            (vec![&b"HTTP/1.1 200 OK"[..]], Malformed::Block),
            (vec![&[0x0a, 0x0d, 0x0d, 0x0a, 13, 0, 0, 0][..]], Malformed::Block),
        ] {
            assert_eq!(taken(&mut check(), &pieces), Err(error));
        }
    }

    /// Statistics of an interface, which are its last where it is to end.
    fn statistics(interface_id: u32, delivered: u64, is_last: bool) -> BytesMut {
        let mut out = BytesMut::new();
        InterfaceStatistics {
            interface_id,
            delivered,
            end: is_last.then_some(9),
            ..InterfaceStatistics::default()
        }
        .encode(&mut out);
        out
    }

    #[test]
    fn statistics_count_the_packets_before_and_nothing_comes_behind_the_last() {
        let stream = stream();
        let header = EncodedBlock::first(&stream).unwrap().len();
        let description = EncodedBlock::first(&stream[header..]).unwrap().len();
        let packet = &stream[header + description..stream.len() - statistics(0, 1, false).len()];
        let end = statistics(0, 1, true);
        for (more, expected) in [
            (&[packet, packet, &statistics(0, 3, true)][..], Ok(())),
            (
                &[packet, packet, &statistics(0, 2, true)],
                Err(Malformed::Delivered),
            ),
            (&[&statistics(0, 2, false)], Err(Malformed::Delivered)),
            (&[&end, packet], Err(Malformed::Over)),
            (&[&end, &end], Err(Malformed::Over)),
            (&[&end, &statistics(0, 1, false)], Err(Malformed::Over)),
            (&[&end, &stream[header..header + description]], Ok(())),
        ] {
            let pieces = [&[&stream[..]], more].concat();
            assert_eq!(taken(&mut check(), &pieces).map(drop), expected);
        }
        assert_eq!(
            Malformed::Over.to_string(),
            "it sends packets or statistics of an interface behind that interface's final statistics"
        );
    }

    #[test]
    fn all_interfaces_have_the_snapshot_length_that_was_asked_for() {
        let description_with = |snaplen| {
            let mut block = stream()[..].to_vec();
            let at = EncodedBlock::first(&block).unwrap().len() + 12;
            block[at..at + 4].copy_from_slice(&u32::to_le_bytes(snaplen));
            block
        };
        for (told, asked, expected) in [
            (SNAPLEN, SNAPLEN, "its clock\0"),
            (
                65_535,
                SNAPLEN,
                "its clock; of its packets there are the first 65535 bytes at most\0",
            ),
            (SNAPLEN, 96, "its clock\0"),
        ] {
            let mut check = check();
            check.note.snaplen = asked;
            let blocks = taken(&mut check, &[&description_with(told)]).unwrap();
            let header = EncodedBlock::first(&blocks).unwrap().len();
            let Some(EncodedBlock::Interface(block)) = EncodedBlock::first(&blocks[header..]) else {
                panic!("a description");
            };
            assert_eq!(
                InterfaceDescription::link_type_and_snaplen(block),
                (LinkType::Ethernet as u16, asked)
            );
            assert!(String::from_utf8_lossy(block).contains(expected), "{block:?}");
        }
        let mut check = check();
        check.note.snaplen = 20;
        assert_eq!(taken(&mut check, &[&stream()]), Err(Malformed::Snaplen));
        assert_eq!(
            Malformed::Snaplen.to_string(),
            "it sends more bytes of a packet than were asked for"
        );
    }

    #[test]
    fn interfaces_of_a_node_have_bounds() {
        let stream = stream();
        let header = EncodedBlock::first(&stream).unwrap().len();
        let description = EncodedBlock::first(&stream[header..]).unwrap().len();
        let description = Bytes::copy_from_slice(&stream[header..header + description]);
        let mut check = check();
        taken(&mut check, &[&stream[..header]]).unwrap();
        for _ in 0..MAX_OPEN {
            check.take(description.clone()).unwrap();
        }
        assert_eq!(check.take(description.clone()), Err(Malformed::Open));
        check.open.clear();
        check.described = MAX_DESCRIBED - 1;
        assert!(check.take(description.clone()).is_ok());
        assert!(
            check
                .take(statistics(MAX_DESCRIBED - 1, 0, true).freeze())
                .is_ok()
        );
        assert!(check.open.is_empty());
        assert_eq!(check.take(description), Err(Malformed::Described));
        assert_eq!(
            [Malformed::Open, Malformed::Described].map(|error| error.to_string()),
            [
                "it describes more than 65536 interfaces that have not ended",
                "it has described more than 1048576 interfaces"
            ]
        );
    }

    /// Beginning and end of a stream, with a block of this type between them.
    fn with_block(block_type: u32, body: &[u8]) -> Result<Vec<u8>, Malformed> {
        let len = (body.len() as u32 + 12).to_le_bytes();
        let block = [&block_type.to_le_bytes()[..], &len, body, &len].concat();
        taken(&mut check(), &[&stream(), &block])
    }

    #[test]
    fn blocks_that_no_packetflix_sends_end_it() {
        // Packets of another's interface among them.
        for block_type in [2, 3, 9, 10, 0xbad, 0x4000_0bad, 0x8000_0001] {
            assert_eq!(with_block(block_type, &[0; 28]), Err(Malformed::Type(block_type)));
        }
        for block_type in [1, 4, 5, 6] {
            assert_eq!(
                with_block(block_type, &[0; 28]),
                Err(Malformed::Content(block_type))
            );
        }
        assert_eq!(
            Malformed::Type(0xbad).to_string(),
            "it sends a block of type 0xbad, which no packetflix sends"
        );
        assert_eq!(
            Malformed::Content(6).to_string(),
            "it sends a block of type 0x6 whose content is none that packetflix sends"
        );
    }

    proptest! {
        #[test]
        fn pieces_may_be_cut_anywhere(cuts in proptest::collection::vec(0usize..700, 0..6)) {
            let stream = stream();
            let whole = taken(&mut check(), &[&stream]).unwrap();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(stream.len())).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([stream.len()]) {
                pieces.push(&stream[from..cut]);
                from = cut;
            }
            prop_assert_eq!(taken(&mut check(), &pieces).unwrap(), whole);
        }

        #[test]
        fn takes_any_bytes(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..5)) {
            let mut check = check();
            for piece in pieces {
                if check.take(piece.into()).is_err() {
                    break;
                }
            }
        }
    }
}
