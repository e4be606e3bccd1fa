//! Interface Description Block.

use std::net::{IpAddr, Ipv4Addr};

use bytes::BytesMut;

use super::{
    MAX_SENT_LEN, SNAPLEN,
    options::{Block, OPT_COMMENT, are_written, cut, is_text, options},
};

pub(super) const BLOCK_TYPE: u32 = 1;
const IF_NAME: u16 = 2;
const IF_DESCRIPTION: u16 = 3;
const IF_IPV4ADDR: u16 = 4;
const IF_IPV6ADDR: u16 = 5;
const IF_MACADDR: u16 = 6;
const IF_SPEED: u16 = 8;
const IF_TSRESOL: u16 = 9;
const IF_FILTER: u16 = 11;
const IF_OS: u16 = 12;

/// Type and length; these, link type and snapshot length; and the length again.
const HEAD_LEN: usize = 8;
const SNAPLEN_AT: usize = 12;
const OPTIONS_AT: usize = 16;
const TAIL_LEN: usize = 4;

/// First byte of `if_filter`: what follows is an expression of libpcap.
const FILTER_IS_TEXT: u8 = 0;

/// Timestamps count 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Most addresses that are told of one interface: a host may have thousands.
pub const MAX_ADDRESSES: usize = 64;

/// Most bytes of a filter that are told: an expression may be long, and each interface has it.
const MAX_FILTER_LEN: usize = 4096;

/// Of an interface with another link type than the first.
pub(crate) const SEVERAL_LINK_TYPES: &str = "the stream has several link types, which tcpdump and others that read with \
    libpcap refuse: choose interfaces with nif=";

/// What a packet of an interface begins with.
///
/// Source: <https://www.tcpdump.org/linktypes.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// An IPv4 or IPv6 header.
    Raw = 101,
    /// An IEEE 802.11 header.
    Ieee80211 = 105,
    /// The header of libpcap's cooked mode: [`CookedHeader`](super::CookedHeader).
    LinuxSll = 113,
    /// A Prism header, and one of IEEE 802.11.
    Prism = 119,
    /// A radiotap header, and one of IEEE 802.11.
    Radiotap = 127,
    /// The identifier of a CAN frame.
    CanSocketcan = 227,
    /// An IEEE 802.15.4 header, of a frame without its check sequence.
    Ieee802154NoFcs = 230,
    /// The header of libpcap's cooked mode, and one of netlink.
    Netlink = 253,
    /// A header of the device vsockmon.
    Vsock = 271,
}

/// An address of an interface and the length of its network prefix in bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The address.
    pub address: IpAddr,
    /// Bits of it that name the network.
    pub prefix_len: u8,
}

/// Describes an interface. Its number is its place among the section's descriptions, from 0.
pub struct InterfaceDescription<'a> {
    /// What its packets begin with.
    pub link_type: LinkType,
    /// Snapshot length in bytes.
    pub snaplen: u32,
    /// Its name.
    pub name: &'a str,
    /// What the operator says of it, or empty.
    pub description: &'a str,
    /// Its addresses; at most 64 are told.
    pub addresses: &'a [InterfaceAddress],
    /// Its hardware address, where it has one of 48 bits.
    pub mac: Option<[u8; 6]>,
    /// Its speed in bits per second, where known.
    pub speed: Option<u64>,
    /// The filter that its packets passed, in libpcap's language, or empty.
    pub filter: &'a str,
    /// What else there is to say of it, or empty.
    pub comment: &'a str,
    /// Name and release of the operating system.
    pub os: &'a str,
}

impl InterfaceDescription<'_> {
    /// Appends the block.
    pub fn encode(&self, out: &mut BytesMut) {
        let mut block = Block::begin(out, BLOCK_TYPE);
        block.body(&u32::from(self.link_type as u16).to_le_bytes());
        block.body(&self.snaplen.to_le_bytes());
        block.text(OPT_COMMENT, self.comment);
        block.text(IF_NAME, self.name);
        block.text(IF_DESCRIPTION, self.description);
        for address in self.addresses.iter().take(MAX_ADDRESSES) {
            encode_address(&mut block, address);
        }
        if let Some(mac) = self.mac {
            block.option(IF_MACADDR, &mac);
        }
        if let Some(speed) = self.speed {
            block.option(IF_SPEED, &speed.to_le_bytes());
        }
        block.option(IF_TSRESOL, &[NANOSECONDS]);
        if !self.filter.is_empty() {
            block.option(
                IF_FILTER,
                &[&[FILTER_IS_TEXT], cut(self.filter, MAX_FILTER_LEN).as_bytes()].concat(),
            );
        }
        block.text(IF_OS, self.os);
        block.end();
    }
}

impl InterfaceDescription<'_> {
    /// Whether a block that describes an interface says that its timestamps count nanoseconds.
    pub(crate) fn counts_nanoseconds(block: &[u8]) -> bool {
        options_of(block).any(|(code, value)| code == IF_TSRESOL && value == [NANOSECONDS])
    }

    /// Number of the link type and snapshot length in a block that describes an interface.
    pub(crate) fn link_type_and_snaplen(block: &[u8]) -> (u16, u32) {
        let link_type = block.get(HEAD_LEN..).and_then(|rest| rest.first_chunk());
        let snaplen = block.get(SNAPLEN_AT..).and_then(|rest| rest.first_chunk());
        (
            link_type.map_or(0, |bytes| u16::from_le_bytes(*bytes)),
            snaplen.map_or(0, |bytes| u32::from_le_bytes(*bytes)),
        )
    }

    /// Whether a comment of a block that describes an interface has this in it.
    pub(crate) fn says(block: &[u8], text: &str) -> bool {
        options_of(block).any(|(code, value)| {
            code == OPT_COMMENT && str::from_utf8(value).is_ok_and(|comment| comment.contains(text))
        })
    }

    /// Writes another link type into a block that describes an interface.
    pub(crate) fn set_link_type(block: &mut [u8], link_type: u16) {
        block[HEAD_LEN..HEAD_LEN + 2].copy_from_slice(&link_type.to_le_bytes());
    }

    /// Appends a block that describes an interface, with this snapshot length, with `path` before its name, and one more comment.
    pub(crate) fn annotate(block: &[u8], snaplen: u32, path: &str, comment: &str, out: &mut BytesMut) {
        let mut annotated = Block::begin(out, BLOCK_TYPE);
        let (link_type, _) = Self::link_type_and_snaplen(block);
        annotated.body(&u32::from(link_type).to_le_bytes());
        annotated.body(&snaplen.to_le_bytes());
        for (code, value) in options_of(block) {
            match code {
                IF_NAME => annotated.option(code, &[path.as_bytes(), value].concat()),
                _ => annotated.option(code, value),
            }
        }
        annotated.text(OPT_COMMENT, comment);
        annotated.end();
    }
}

/// Whether a block whose lengths are right is one that [`InterfaceDescription::encode`] writes. Its link type may be one that is
/// not known here.
pub(super) fn is_written(block: &[u8]) -> bool {
    let (Some([_, _, 0, 0]), Some(options)) = (
        block.get(HEAD_LEN..SNAPLEN_AT),
        block.get(OPTIONS_AT..block.len() - TAIL_LEN),
    ) else {
        return false;
    };
    let (_, snaplen) = InterfaceDescription::link_type_and_snaplen(block);
    let mut resolutions = 0;
    let are_written = are_written(options, |code, value| match code {
        OPT_COMMENT | IF_NAME | IF_DESCRIPTION | IF_OS => is_text(value),
        IF_IPV4ADDR | IF_SPEED => value.len() == 8,
        IF_IPV6ADDR => value.len() == 17,
        IF_MACADDR => value.len() == 6,
        IF_TSRESOL => {
            resolutions += 1;
            value.len() == 1
        }
        IF_FILTER => matches!(value, [FILTER_IS_TEXT, text @ ..] if is_text(text)),
        _ => false,
    });
    are_written && resolutions == 1 && (1..=SNAPLEN).contains(&snaplen) && block.len() <= MAX_SENT_LEN
}

/// The options of a block that describes an interface.
fn options_of(block: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let end = block.len().saturating_sub(TAIL_LEN);
    options(block.get(OPTIONS_AT..end).unwrap_or_default())
}

/// Addresses are the one thing of pcapng in network order.
fn encode_address(block: &mut Block<'_>, InterfaceAddress { address, prefix_len }: &InterfaceAddress) {
    match address {
        IpAddr::V4(address) => {
            let host_bits = 32 - u32::from(*prefix_len).min(32);
            let mask = Ipv4Addr::from_bits(u32::MAX.checked_shl(host_bits).unwrap_or(0));
            let mut value = [0; 8];
            value[..4].copy_from_slice(&address.octets());
            value[4..].copy_from_slice(&mask.octets());
            block.option(IF_IPV4ADDR, &value);
        }
        IpAddr::V6(address) => {
            let mut value = [0; 17];
            value[..16].copy_from_slice(&address.octets());
            value[16] = *prefix_len;
            block.option(IF_IPV6ADDR, &value);
        }
    }
}
