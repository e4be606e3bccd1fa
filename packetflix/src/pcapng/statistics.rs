//! Interface Statistics Block.

use bytes::BytesMut;

use super::{
    MAX_SENT_LEN,
    options::{Block, OPT_COMMENT, are_written, is_text, options},
    timestamp,
};

pub(super) const BLOCK_TYPE: u32 = 5;

/// Type, length, interface and timestamp, and the length again.
const HEAD_LEN: usize = 20;
const TAIL_LEN: usize = 4;
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
    /// Packets seen, where that is known.
    pub received: Option<u64>,
    /// Packets that the filter let through, those delivered and those dropped, where that is known.
    pub accepted: Option<u64>,
    /// Packets that stand in the stream before this place.
    pub delivered: u64,
    /// Packets lost, where that is known.
    pub dropped: Option<u64>,
    /// What else there is to say, or nothing.
    pub comment: &'a str,
}

/// Whether a block whose lengths are right is one that [`InterfaceStatistics::encode`] writes.
pub(super) fn is_written(block: &[u8]) -> bool {
    let options = block.get(HEAD_LEN..block.len() - TAIL_LEN);
    block.len() <= MAX_SENT_LEN
        && options.is_some_and(|options| {
            are_written(options, |code, value| match code {
                OPT_COMMENT => is_text(value),
                ISB_STARTTIME | ISB_ENDTIME | ISB_IFRECV | ISB_IFDROP | ISB_FILTERACCEPT | ISB_USRDELIV => {
                    value.len() == 8
                }
                _ => false,
            })
        })
}

impl<'a> InterfaceStatistics<'a> {
    /// Reads a block that [`Self::encode`] has written; `None` when it is none.
    pub fn decode(block: &'a [u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(*block.get(at..)?.first_chunk()?));
        if number(0)? != BLOCK_TYPE {
            return None;
        }
        let time = |at: usize| Some(u64::from(number(at)?) << 32 | u64::from(number(at + 4)?));
        let mut statistics = Self {
            interface_id: number(8)?,
            timestamp: time(12)?,
            ..Self::default()
        };
        for (code, value) in options(block.get(HEAD_LEN..block.len().checked_sub(TAIL_LEN)?)?) {
            let count = || Some(u64::from_le_bytes(value.try_into().ok()?));
            // A time is two halves, the high one first.
            let time = || count().map(|count| count.rotate_left(32));
            match code {
                OPT_COMMENT => statistics.comment = str::from_utf8(value).ok()?,
                ISB_STARTTIME => statistics.start = time()?,
                ISB_ENDTIME => statistics.end = Some(time()?),
                ISB_IFRECV => statistics.received = Some(count()?),
                ISB_IFDROP => statistics.dropped = Some(count()?),
                ISB_FILTERACCEPT => statistics.accepted = Some(count()?),
                ISB_USRDELIV => statistics.delivered = count()?,
                _ => {}
            }
        }
        Some(statistics)
    }

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
            (ISB_USRDELIV, Some(self.delivered)),
        ] {
            if let Some(count) = count {
                block.option(code, &count.to_le_bytes());
            }
        }
        block.end();
    }
}
