//! Blocks of pcapng, as far as a client looks into them: little endian, as packetflix writes them.
//!
//! Source: draft-ietf-opsawg-pcapng.

pub(crate) mod write;

use bytes::{Bytes, BytesMut};

/// Block types (section 11.1).
pub(crate) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
pub(crate) const INTERFACE_DESCRIPTION: u32 = 1;
pub(crate) const NAME_RESOLUTION: u32 = 4;
pub(crate) const INTERFACE_STATISTICS: u32 = 5;
pub(crate) const ENHANCED_PACKET: u32 = 6;

/// Bytes of a block's type and length in front, and of its length behind.
const FRONT: usize = 8;
const BEHIND: usize = 4;

/// Most bytes of a block that is believed to be one.
const MAX_BLOCK_LEN: usize = 16 << 20;

/// Where the options of blocks begin.
const SECTION_OPTIONS: usize = 24;
const INTERFACE_OPTIONS: usize = 16;
const STATISTICS_OPTIONS: usize = 20;
const PACKET_DATA: usize = 28;

/// Where a packet, and statistics, have the number of their interface.
const EPB_OR_ISB_INTERFACE: usize = 8;

/// Where the records of names begin, and the kind of record that ends them (section 4.5).
const NAME_RECORDS: usize = 8;
const NAMES_END: u16 = 0;
const NAME_IPV4: u16 = 1;
const NAME_IPV6: u16 = 2;

/// Codes of options (sections 3.5 and 4).
const END_OF_OPTIONS: u16 = 0;
const COMMENT: u16 = 1;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_USRDELIV: u16 = 8;

/// A whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block<'a>(&'a [u8]);

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A section begins.
    Section,
    /// An interface is described; its number is how many came before it in the section.
    Interface(Interface<'a>),
    /// A packet.
    Packet(Packet<'a>),
    /// Statistics of an interface.
    Statistics(Statistics),
    /// Names of addresses.
    Names,
    /// Something else.
    Other,
}

/// The description of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface<'a> {
    /// `LinkType`, by libpcap's number.
    pub link_type: u16,
    /// `if_name`, or nothing.
    pub name: &'a [u8],
    /// Its options, which are read when they are asked for.
    options: &'a [u8],
}

/// How the comment of an interface begins of which no packets come.
const NOT_CAPTURED: &[u8] = b"nothing is captured here";

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Number of its interface in the section.
    pub interface: u32,
    /// Nanoseconds since 1970, UTC.
    pub timestamp: u64,
    /// Bytes that it had.
    pub original_len: u32,
    /// Its captured bytes.
    pub data: &'a [u8],
    /// Its options, which are read when they are asked for.
    options: &'a [u8],
}

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The interface received it.
    Inbound,
    /// The interface sent it.
    Outbound,
}

/// Statistics of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Number of the interface in the section.
    pub interface: u32,
    /// `isb_ifrecv`
    pub received: u64,
    /// `isb_filteraccept`
    pub accepted: u64,
    /// `isb_usrdeliv`
    pub delivered: u64,
    /// `isb_ifdrop`
    pub dropped: u64,
    /// Whether that is not told: how many were lost is not known then, or only at least.
    pub is_untold: bool,
}

/// What comes is no pcapng.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server sends what is no pcapng")]
pub struct Malformed;

/// Makes blocks of bytes, however these are cut.
#[derive(Debug, Default)]
pub struct Blocks {
    /// The beginning of a block.
    begun: BytesMut,
}

impl Blocks {
    /// Takes bytes, and gives all blocks that are whole by now, as one piece.
    ///
    /// # Errors
    /// When they are no blocks.
    pub fn whole(&mut self, data: Bytes) -> Result<Bytes, Malformed> {
        let data = if self.begun.is_empty() {
            data
        } else {
            self.begun.extend_from_slice(&data);
            self.begun.split().freeze()
        };
        let mut len = 0;
        while let Some(block) = len_of_first(&data[len..])? {
            if block > data.len() - len {
                break;
            }
            len += block;
        }
        self.begun.extend_from_slice(&data[len..]);
        Ok(data.slice(..len))
    }

    /// Whether a block has begun that is not whole yet.
    pub fn is_within_one(&self) -> bool {
        !self.begun.is_empty()
    }
}

/// The length of the block that begins here, if that much of it is here.
fn len_of_first(data: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some(len) = number(data, 4) else {
        return Ok(None);
    };
    let len = len as usize;
    let is_len = (FRONT + BEHIND..=MAX_BLOCK_LEN).contains(&len) && len.is_multiple_of(4);
    is_len.then_some(Some(len)).ok_or(Malformed)
}

/// The blocks of a piece that is whole blocks.
pub fn blocks(mut whole: &[u8]) -> impl Iterator<Item = Block<'_>> {
    std::iter::from_fn(move || {
        let len = len_of_first(whole).ok()??;
        let (block, rest) = whole.split_at_checked(len)?;
        whole = rest;
        Some(Block(block))
    })
}

impl<'a> Block<'a> {
    /// Its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// What it is.
    pub fn kind(&self) -> Kind<'a> {
        let block = self.0;
        let kind = match number(block, 0) {
            Some(SECTION_HEADER) => Some(Kind::Section),
            Some(INTERFACE_DESCRIPTION) => Interface::read(block).map(Kind::Interface),
            Some(ENHANCED_PACKET) => Packet::read(block).map(Kind::Packet),
            Some(INTERFACE_STATISTICS) => Statistics::read(block).map(Kind::Statistics),
            Some(NAME_RESOLUTION) => Some(Kind::Names),
            _ => None,
        };
        kind.unwrap_or(Kind::Other)
    }
}

impl<'a> Interface<'a> {
    fn read(block: &'a [u8]) -> Option<Self> {
        let link_type = u16::from_le_bytes(*block.get(FRONT..)?.first_chunk()?);
        let options = options_from(block, INTERFACE_OPTIONS);
        Some(Self {
            link_type,
            name: option_of(options, IF_NAME).unwrap_or_default(),
            options,
        })
    }

    /// What it tells in the place of packets, if so: why it, or what is called as it is, is not captured, or what becomes of it.
    pub fn sentence(&self) -> Option<&'a [u8]> {
        let comment = option_of(self.options, COMMENT)?;
        let description = option_of(self.options, IF_DESCRIPTION).unwrap_or_default();
        if !description.is_empty() && comment.starts_with(description) {
            return Some(description);
        }
        comment.starts_with(NOT_CAPTURED).then_some(comment)
    }
}

impl<'a> Packet<'a> {
    fn read(block: &'a [u8]) -> Option<Self> {
        let captured = number(block, 20)? as usize;
        let end = PACKET_DATA.checked_add(captured)?;
        Some(Self {
            interface: number(block, EPB_OR_ISB_INTERFACE)?,
            timestamp: u64::from(number(block, 12)?) << 32 | u64::from(number(block, 16)?),
            original_len: number(block, 24)?,
            data: block.get(PACKET_DATA..end)?,
            options: options_from(block, end.next_multiple_of(4)),
        })
    }

    /// How many packets of its interface were lost before it (`epb_dropcount`).
    pub fn dropped_before(&self) -> u64 {
        let count = option_of(self.options, EPB_DROPCOUNT);
        count.and_then(long).unwrap_or_default()
    }

    /// Which way it went, where that is told (`epb_flags`, bits 0 and 1).
    pub fn direction(&self) -> Option<Direction> {
        match option_of(self.options, EPB_FLAGS)?.first()? & 3 {
            1 => Some(Direction::Inbound),
            2 => Some(Direction::Outbound),
            _ => None,
        }
    }
}

impl Statistics {
    fn read(block: &[u8]) -> Option<Self> {
        let options = options_from(block, STATISTICS_OPTIONS);
        let count = |code| option_of(options, code).and_then(long).unwrap_or_default();
        Some(Self {
            interface: number(block, EPB_OR_ISB_INTERFACE)?,
            received: count(ISB_IFRECV),
            accepted: count(ISB_FILTERACCEPT),
            delivered: count(ISB_USRDELIV),
            dropped: count(ISB_IFDROP),
            is_untold: option_of(options, ISB_IFDROP).is_none(),
        })
    }
}

/// The records of a block of names, each by its kind and address, which a later record of the same replaces.
pub(crate) fn name_records(block: &Block<'_>) -> impl Iterator<Item = (Bytes, Bytes)> {
    const HEAD: usize = 4;
    let mut rest = options_from(block.0, NAME_RECORDS);
    std::iter::from_fn(move || {
        let head: [u8; HEAD] = *rest.first_chunk()?;
        let kind = u16::from_le_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        let whole = HEAD + len.next_multiple_of(4);
        if kind == NAMES_END {
            return None;
        }
        let (record, others) = rest.split_at_checked(whole)?;
        rest = others;
        let address = match kind {
            NAME_IPV4 => 4,
            NAME_IPV6 => 16,
            _ => len,
        };
        let address = &record[HEAD..(HEAD + address).min(whole)];
        Some((
            [&record[..2], address].concat().into(),
            Bytes::copy_from_slice(record),
        ))
    })
}

/// The options that begin at `start`, without the block's length behind them.
fn options_from(block: &[u8], start: usize) -> &[u8] {
    let end = block.len().saturating_sub(BEHIND);
    block.get(start..end).unwrap_or_default()
}

/// The value of the first option of this code.
fn option_of(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, rest) = options.split_first_chunk::<4>()?;
        let code = u16::from_le_bytes([head[0], head[1]]);
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if code == wanted {
            return rest.get(..len);
        }
        if code == END_OF_OPTIONS {
            return None;
        }
        options = rest.get(len.next_multiple_of(4)..)?;
    }
}

fn number(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*data.get(at..)?.first_chunk()?))
}

fn long(value: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*value.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block_of(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = (12 + body.len() as u32).to_le_bytes();
        [&kind.to_le_bytes()[..], &len, body, &len].concat()
    }

    fn packet(options: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for number in [7, 1, 2, 3, 60] {
            body.extend(u32::to_le_bytes(number));
        }
        body.extend(b"abc\0");
        body.extend(options);
        block_of(ENHANCED_PACKET, &body)
    }

    #[test]
    fn packets_are_read() {
        let options = [
            &[2, 0, 4, 0, 2, 0, 0, 0][..],
            &[4, 0, 8, 0, 9, 0, 0, 0, 0, 0, 0, 0],
            &[0; 4],
        ]
        .concat();
        let block = packet(&options);
        let block = Block(&block);
        let Kind::Packet(packet) = block.kind() else {
            panic!("{block:?}");
        };
        assert_eq!((packet.interface, packet.timestamp), (7, 1 << 32 | 2));
        assert_eq!((packet.original_len, packet.data), (60, &b"abc"[..]));
        assert_eq!(packet.direction(), Some(Direction::Outbound));
        assert_eq!(packet.dropped_before(), 9);
    }

    #[test]
    fn blocks_are_made_whole_however_they_are_cut() {
        let stream = [block_of(SECTION_HEADER, &[0; 16]), packet(&[]), block_of(9, &[])].concat();
        for cut in 0..stream.len() {
            let mut reader = Blocks::default();
            let mut whole = Vec::new();
            for (part, is_within_one) in [
                (&stream[..cut], ![0, 28, 64].contains(&cut)),
                (&stream[cut..], false),
            ] {
                let part = reader.whole(Bytes::copy_from_slice(part)).unwrap();
                whole.extend(blocks(&part).map(|block| block.0.len()));
                assert_eq!(reader.is_within_one(), is_within_one, "{cut}");
            }
            assert_eq!(whole, [28, 36, 12], "{cut}");
        }
        let wrong = Bytes::from_static(&[0; 12]);
        assert_eq!(Blocks::default().whole(wrong), Err(Malformed));
    }

    #[test]
    fn names_are_known_by_their_addresses() {
        let records =
            b"\x01\x00\x08\x00\x0a\x00\x00\x01web\x00\x01\x00\x08\x00\x0a\x00\x00\x02api\x00\0\0\0\0";
        let block = block_of(NAME_RESOLUTION, records);
        let read: Vec<(Bytes, Bytes)> = name_records(&Block(&block)).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].0, &b"\x01\x00\x0a\x00\x00\x02"[..]);
        assert_eq!(read[1].1.len(), 12);
    }

    proptest! {
        #[test]
        fn any_block_is_something(kind in 0u32..8, body in prop::collection::vec(any::<u8>(), 0..120)) {
            let body = &body[..body.len() / 4 * 4];
            let block = block_of(kind, body);
            let block = Block(&block);
            if let Kind::Packet(packet) = block.kind() {
                let _ = (packet.direction(), packet.dropped_before());
            }
            prop_assert!(name_records(&block).count() <= 30);
        }
    }
}
