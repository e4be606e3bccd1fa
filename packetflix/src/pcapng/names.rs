//! Name Resolution Block.

use std::net::IpAddr;

use bytes::BytesMut;

use super::{
    options::{Block, RECORD_HEADER_LEN, are_written},
    padded,
};
use crate::text::is_shown;

pub(super) const BLOCK_TYPE: u32 = 4;
const NRB_RECORD_IPV4: u16 = 1;
const NRB_RECORD_IPV6: u16 = 2;

/// Block type, length, the end of the records, and the length again.
const FIXED_LEN: usize = RECORDS_AT + RECORD_HEADER_LEN + TAIL_LEN;
const RECORDS_AT: usize = 8;
const TAIL_LEN: usize = 4;

/// Most bytes of one block of names.
const MAX_NAMES_BLOCK_LEN: usize = 64 * 1024;

/// Most bytes of a name: that of the domain name system, and `MAXDNSNAMELEN` of Wireshark without its NUL.
const MAX_NAME_LEN: usize = 255;

/// Most bytes of a name that is not all ASCII: Wireshark 4.0 shows 63 bytes of any name, and cuts within a
/// character.
const MAX_UNICODE_NAME_LEN: usize = 63;

/// A name as readers can show it: at least one character, none that controls a terminal or the direction of
/// text, and of bounded length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(Box<str>);

impl HostName {
    /// `name` with `_` for what cannot be shown, and without its end where it is too long; none if it is empty.
    pub fn new(name: &str) -> Option<Self> {
        // What replaces a character is no longer than it, so that it may be cut before.
        let name = &name[..name.floor_char_boundary(MAX_NAME_LEN)];
        let mut name = name.replace(|character| !is_shown(character), "_");
        if !name.is_ascii() {
            name.truncate(name.floor_char_boundary(MAX_UNICODE_NAME_LEN));
        }
        (!name.is_empty()).then(|| Self(name.into_boxed_str()))
    }
}

impl AsRef<str> for HostName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What an address is called, from this place in the stream on. Of several names of an address, Wireshark shows
/// the last one.
#[derive(Clone, Copy, Debug)]
pub struct NameResolution<'a> {
    /// The address.
    pub address: IpAddr,
    /// Its name.
    pub name: &'a HostName,
}

/// Whether a block whose lengths are right is one that [`NameResolution::encode_all`] writes.
pub(super) fn is_written(block: &[u8]) -> bool {
    let is_name = |name: &[u8]| match name {
        [name @ .., 0] => str::from_utf8(name)
            .is_ok_and(|name| (1..=MAX_NAME_LEN).contains(&name.len()) && name.chars().all(is_shown)),
        _ => false,
    };
    let records = block.get(RECORDS_AT..block.len() - TAIL_LEN);
    block.len() <= MAX_NAMES_BLOCK_LEN
        && records.is_some_and(|records| {
            are_written(records, |record_type, value| match record_type {
                NRB_RECORD_IPV4 => value.get(4..).is_some_and(is_name),
                NRB_RECORD_IPV6 => value.get(16..).is_some_and(is_name),
                _ => false,
            })
        })
}

impl NameResolution<'_> {
    /// Appends blocks of names, of at most `max_len` bytes in all, and tells how many of the names they hold.
    ///
    /// Source of the format: draft-ietf-opsawg-pcapng, section 4.5.
    pub fn encode_all<'a>(
        names: impl IntoIterator<Item = NameResolution<'a>>,
        max_len: usize,
        out: &mut BytesMut,
    ) -> usize {
        let mut names = names.into_iter().peekable();
        let mut written = 0;
        let mut room = max_len;
        while let Some(first) = names.peek() {
            let block_room = room.min(MAX_NAMES_BLOCK_LEN);
            let mut len = FIXED_LEN;
            if len + first.record_len() > block_room {
                break;
            }
            let mut block = Block::begin(out, BLOCK_TYPE);
            while let Some(name) = names.next_if(|name| len + name.record_len() <= block_room) {
                len += name.record_len();
                name.encode(&mut block);
                written += 1;
            }
            block.end();
            room -= len;
        }
        written
    }

    fn record_len(&self) -> usize {
        let address_len = match self.address {
            IpAddr::V4(_) => 4,
            IpAddr::V6(_) => 16,
        };
        RECORD_HEADER_LEN + padded(address_len + self.name.0.len() + 1)
    }

    /// Records are laid out as options are, and end as they do; no option follows them. Addresses are in network
    /// order.
    fn encode(&self, block: &mut Block<'_>) {
        let name = self.name.0.as_bytes();
        match self.address {
            IpAddr::V4(address) => {
                block.option(NRB_RECORD_IPV4, &[&address.octets()[..], name, b"\0"].concat());
            }
            IpAddr::V6(address) => {
                block.option(NRB_RECORD_IPV6, &[&address.octets()[..], name, b"\0"].concat());
            }
        }
    }
}
