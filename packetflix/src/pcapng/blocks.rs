//! Blocks that were encoded here, taken out of a row of them, or by another packetflix, and held to the form that they have here.

use super::{MAX_BLOCK_LEN, interface, names, packet, packet::EncodedPacket, section, statistics};

/// Block type, and the length on both sides.
const MIN_BLOCK_LEN: usize = 12;

/// Why a block is none that a packetflix sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotWritten {
    /// None is of this type.
    Type(u32),
    /// None of this type has such a content.
    Content(u32),
}

/// The first of a row of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EncodedBlock<'a> {
    /// It begins a section.
    SectionHeader(&'a [u8]),
    /// It describes an interface.
    Interface(&'a [u8]),
    /// A packet.
    Packet(EncodedPacket),
    /// What became of an interface's packets.
    Statistics(&'a [u8]),
    /// It is about no interface.
    Other(&'a [u8]),
}

impl<'a> EncodedBlock<'a> {
    /// The first block; `None` when that is no whole one.
    pub(crate) fn first(blocks: &'a [u8]) -> Option<Self> {
        if let Some(packet) = EncodedPacket::first(blocks) {
            return Some(Self::Packet(packet));
        }
        let number = |at: usize| Some(u32::from_le_bytes(*blocks.get(at..)?.first_chunk()?));
        let len = number(4)? as usize;
        let block = blocks.get(..len).filter(|_| len >= MIN_BLOCK_LEN)?;
        match number(0)? {
            section::BLOCK_TYPE => Some(Self::SectionHeader(block)),
            interface::BLOCK_TYPE => Some(Self::Interface(block)),
            statistics::BLOCK_TYPE => Some(Self::Statistics(block)),
            // It has lengths that do not fit.
            packet::BLOCK_TYPE => None,
            _ => Some(Self::Other(block)),
        }
    }

    /// A block that another packetflix has sent, if that is what it is: one that [`Self::first`] and any reader of pcapng can read.
    pub(crate) fn sent(block: &'a [u8]) -> Result<Self, NotWritten> {
        let first = |bytes: &[u8]| {
            bytes
                .first_chunk()
                .map_or(0, |number| u32::from_le_bytes(*number))
        };
        let block_type = first(block);
        let is_written = match block_type {
            section::BLOCK_TYPE => section::is_written,
            interface::BLOCK_TYPE => interface::is_written,
            packet::BLOCK_TYPE => packet::is_written,
            statistics::BLOCK_TYPE => statistics::is_written,
            names::BLOCK_TYPE => names::is_written,
            other => return Err(NotWritten::Type(other)),
        };
        let len = block.len();
        let is_framed = (MIN_BLOCK_LEN..=MAX_BLOCK_LEN).contains(&len)
            && len.is_multiple_of(4)
            && [&block[4..], &block[len - 4..]].map(first) == [len as u32; 2];
        let sent = Self::first(block).filter(|_| is_framed && is_written(block));
        sent.ok_or(NotWritten::Content(block_type))
    }

    /// Bytes of the block.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Packet(packet) => packet.len,
            Self::SectionHeader(block)
            | Self::Interface(block)
            | Self::Statistics(block)
            | Self::Other(block) => block.len(),
        }
    }
}
