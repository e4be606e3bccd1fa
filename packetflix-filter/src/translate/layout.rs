//! What is where on the stack.

use super::{Form, facts::Fact};
use crate::{
    classic::{Ancillary, Operation, SCRATCH_WORDS, Size},
    native,
};

/// Bytes of the packet that are copied to the stack at most.
const MAX_HEAD: u32 = 128;

/// Length of an IPv4 header without options.
pub(super) const PLAIN_HEADER: u32 = 20;

/// Copy of the packet's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Where it begins on the stack.
    pub(super) address: i16,
    pub(super) len: u32,
}

/// What is where on the stack. Addresses are relative to R10.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) scratch: [i16; SCRATCH_WORDS as usize],
    /// Where the packet's type is kept that the function was given, if it is used.
    pub(super) packet_type: Option<i16>,
    /// End of the head; a multiple of eight.
    pub(super) head_end: i16,
    pub(super) head: Option<Head>,
}

/// Where helpers write one word.
pub(super) const WORD_OF_HELPERS: i16 = -4;

impl Layout {
    pub(super) fn new(form: Form, operations: &[Operation], facts: &[Option<Fact>]) -> Self {
        let mut lowest = WORD_OF_HELPERS;
        let mut packet_type = None;
        let mut scratch = [0; SCRATCH_WORDS as usize];
        let mut loads = Vec::new();
        for (operation, fact) in operations.iter().zip(facts) {
            let Some(fact) = fact else { continue };
            match *operation {
                Operation::Store(_, k) | Operation::LoadScratch(_, k) => {
                    let address = &mut scratch[k as usize];
                    if *address == 0 {
                        lowest -= 4;
                        *address = lowest;
                    }
                }
                Operation::LoadAbsolute(size, k) if k < MAX_HEAD => loads.push((size, k)),
                Operation::LoadAbsolute(_, k)
                    if form == Form::Function
                        && packet_type.is_none()
                        && Ancillary::at(k) == Some(Ancillary::PacketType) =>
                {
                    lowest -= 4;
                    packet_type = Some(lowest);
                }
                Operation::LoadHeaderLength(k) if k < MAX_HEAD => loads.push((Size::Byte, k)),
                Operation::LoadIndirect(size, k) if fact.header_length_in_x && k < MAX_HEAD => {
                    loads.push((size, k + PLAIN_HEADER));
                }
                _ => {}
            }
        }
        loads.retain(|(size, k)| k + size.bytes() <= MAX_HEAD);
        let head_end = lowest.div_euclid(8) * 8;
        let head = loads.iter().map(|(size, k)| k + size.bytes()).max().map(|len| {
            let pieces = |shift: &u32| -> usize {
                loads
                    .iter()
                    .map(|(size, k)| pieces(*size, (k + shift) as i16).count())
                    .sum()
            };
            let shift = [2, 0, 1, 3].into_iter().min_by_key(pieces).unwrap_or_default();
            let highest = head_end - len as i16;
            let address = (highest - 3..=highest)
                .find(|address| address.rem_euclid(4) == shift as i16)
                .unwrap_or(highest);
            Head { address, len }
        });
        Self {
            scratch,
            packet_type,
            head_end,
            head,
        }
    }

    /// Where the packet's bytes before `end` are on the stack, the last `size` of them.
    pub(super) fn in_head(&self, size: Size, end: u32) -> Option<i16> {
        let head = self.head.filter(|head| end <= head.len)?;
        Some(head.address + (end - size.bytes()) as i16)
    }
}

/// Splits a load from the stack into aligned ones: address and size of each, in their order.
pub(super) fn pieces(size: Size, address: i16) -> impl Iterator<Item = (i16, native::Size)> {
    let end = address + size.bytes() as i16;
    let mut from = address;
    std::iter::from_fn(move || {
        let at = from;
        let (size, bytes) = match end - at {
            ..=0 => return None,
            4.. if at % 4 == 0 => (native::Size::Word, 4),
            2.. if at % 2 == 0 => (native::Size::Half, 2),
            _ => (native::Size::Byte, 1),
        };
        from += bytes;
        Some((at, size))
    })
}
