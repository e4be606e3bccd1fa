//! Blocks that a client writes of its own accord.

use bytes::Bytes;

use super::{
    Block, COMMENT, EPB_OR_ISB_INTERFACE, INTERFACE_STATISTICS, ISB_FILTERACCEPT, ISB_IFDROP, ISB_USRDELIV,
    NAME_RESOLUTION, SECTION_OPTIONS, Statistics, options_from,
};

/// Codes of options.
const ISB_STARTTIME: u16 = 2;
const ISB_ENDTIME: u16 = 3;

/// What is said in the place of a count of losses.
const UNTOLD: &str = "how many packets were lost is not known.";

/// Most bytes of the statistics of an interface: the block, a counter, two times, that sentence, which is longer than two counters, and
/// the end of options.
pub(crate) const STATISTICS_LEN: u64 = 24 + 3 * 12 + (4 + UNTOLD.len() as u64) + 4;
const _: () = assert!(UNTOLD.len().is_multiple_of(4) && UNTOLD.len() >= 20);

/// Writes a packet or statistics with another number of its interface.
pub(crate) fn with_interface(out: &mut Vec<u8>, block: &Block<'_>, interface: u32) {
    let start = out.len() + EPB_OR_ISB_INTERFACE;
    out.extend_from_slice(block.bytes());
    if let Some(number) = out.get_mut(start..start + 4) {
        number.copy_from_slice(&interface.to_le_bytes());
    }
}

/// Writes statistics of an interface, from one time to another, in nanoseconds since 1970. What it received is left out, and what is
/// not told.
pub(crate) fn statistics(out: &mut Vec<u8>, begun: u64, ended: u64, statistics: &Statistics) {
    let mut body = Vec::new();
    body.extend(statistics.interface.to_le_bytes());
    body.extend(time(ended));
    option(&mut body, ISB_STARTTIME, &time(begun));
    option(&mut body, ISB_ENDTIME, &time(ended));
    if statistics.is_untold {
        option(&mut body, COMMENT, UNTOLD.as_bytes());
    } else {
        option(&mut body, ISB_IFDROP, &statistics.dropped.to_le_bytes());
        option(&mut body, ISB_FILTERACCEPT, &statistics.accepted.to_le_bytes());
    }
    option(&mut body, ISB_USRDELIV, &statistics.delivered.to_le_bytes());
    body.extend([0; 4]);
    block(out, INTERFACE_STATISTICS, &body);
}

/// Writes records of names, in blocks of at most `max_len` bytes of them.
pub(crate) fn names<'a>(out: &mut Vec<u8>, records: impl Iterator<Item = &'a Bytes>, max_len: usize) {
    let mut body = Vec::new();
    let mut flush = |body: &mut Vec<u8>| {
        if !body.is_empty() {
            // The end of the records, which no options follow.
            body.extend([0; 4]);
            block(out, NAME_RESOLUTION, body);
            body.clear();
        }
    };
    for record in records {
        if body.len() + record.len() > max_len {
            flush(&mut body);
        }
        body.extend_from_slice(record);
    }
    flush(&mut body);
}

/// A section header with one comment more, in front of its options.
pub(crate) fn with_comment(header: &Block<'_>, comment: &str) -> Bytes {
    let bytes = header.bytes();
    let front = bytes.get(8..SECTION_OPTIONS).unwrap_or_default();
    let mut body = front.to_vec();
    option(&mut body, COMMENT, comment.as_bytes());
    body.extend_from_slice(options_from(bytes, SECTION_OPTIONS));
    let mut out = Vec::new();
    block(&mut out, super::SECTION_HEADER, &body);
    out.into()
}

/// Writes a block of a type and its body, which is a multiple of four bytes long.
pub(crate) fn block(out: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let len = (12 + body.len() as u32).to_le_bytes();
    out.extend(kind.to_le_bytes());
    out.extend(len);
    out.extend_from_slice(body);
    out.extend(len);
}

pub(crate) fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A time as it stands in blocks and options: its upper half first.
fn time(nanoseconds: u64) -> [u8; 8] {
    let mut time = [0; 8];
    time[..4].copy_from_slice(&((nanoseconds >> 32) as u32).to_le_bytes());
    time[4..].copy_from_slice(&(nanoseconds as u32).to_le_bytes());
    time
}
