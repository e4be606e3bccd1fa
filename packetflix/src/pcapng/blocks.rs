//! Blocks that were encoded here, taken out of a row of them.

use super::{interface, packet, packet::EncodedPacket, section, statistics};

/// Block type, and the length on both sides.
const MIN_BLOCK_LEN: usize = 12;

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
