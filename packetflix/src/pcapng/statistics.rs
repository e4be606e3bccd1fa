//! Interface Statistics Block.

use bytes::BytesMut;

use super::{
    options::{Block, OPT_COMMENT},
    timestamp,
};

const BLOCK_TYPE: u32 = 5;
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;
const ISB_FILTERACCEPT: u16 = 6;
const ISB_USRDELIV: u16 = 8;

/// Most bytes of a block without a comment: head and tail, six options with a number each, and the end of options.
pub const MAX_STATISTICS_LEN: usize = 8 + 12 + 6 * 12 + 4 + 4;

/// What became of the packets of an interface, from the start of its capture to this place in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceStatistics<'a> {
    /// Place of the interface among the section's descriptions.
    pub interface_id: u32,
    /// Nanoseconds since 1970, UTC: when the numbers were read.
    pub timestamp: u64,
    /// When the capture of the interface began.
    pub start: u64,
    /// When it ended; in the last statistics of an interface only.
    pub end: Option<u64>,
    /// Packets seen.
    pub received: u64,
    /// Packets that the filter let through: those delivered and those dropped.
    pub accepted: u64,
    /// Packets that stand in the stream before this place.
    pub delivered: u64,
    /// Packets lost.
    pub dropped: u64,
    /// What else there is to say, or nothing.
    pub comment: &'a str,
}

impl InterfaceStatistics<'_> {
    /// Appends the block.
    ///
    /// Lost packets are told once, as `isb_ifdrop`: there dumpcap writes all that it has lost, whoever lost it, and
    /// there Wireshark looks for them.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut block = Block::begin(out, BLOCK_TYPE);
        block.body(&self.interface_id.to_le_bytes());
        block.body(&timestamp(self.timestamp));
        block.text(OPT_COMMENT, self.comment);
        block.option(ISB_STARTTIME, &timestamp(self.start));
        if let Some(end) = self.end {
            block.option(ISB_ENDTIME, &timestamp(end));
        }
        for (code, count) in [
            (ISB_IFRECV, self.received),
            (ISB_IFDROP, self.dropped),
            (ISB_FILTERACCEPT, self.accepted),
            (ISB_USRDELIV, self.delivered),
        ] {
            block.option(code, &count.to_le_bytes());
        }
        block.end();
    }
}
