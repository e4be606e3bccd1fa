//! Encodes pcapng: a section header, interface descriptions, names of addresses, packets and interface
//! statistics, little endian and into one buffer. No I/O, no clock, nothing of Linux.
//!
//! Source of every format and number here: "PCAP Now Generic Dump File Format"
//! (draft-ietf-opsawg-pcapng), sections 3 and 4.

mod blocks;
mod interface;
mod names;
mod options;
mod packet;
mod section;
mod statistics;

pub(crate) use blocks::{EncodedBlock, NotWritten};
pub(crate) use interface::SEVERAL_LINK_TYPES;
pub use interface::{InterfaceAddress, InterfaceDescription, LinkType, MAX_ADDRESSES};
pub use names::{HostName, NameResolution};
pub use packet::{
    CookedHeader, DROPCOUNT_LEN, EncodedPacket, EnhancedPacket, MIN_PACKET_LEN, Offloads, PacketDirection,
    Reception, VlanTag,
};
pub use section::{CaptureComment, MAX_SECTION_HEADER_LEN, SectionHeader};
pub use statistics::{InterfaceStatistics, MAX_STATISTICS_LEN};

/// Snapshot length in bytes, unless a client wants a shorter one. It is the same in all descriptions of a section: readers
/// on libpcap refuse a file whose interfaces differ.
pub const SNAPLEN: u32 = 262_144;

/// No block is longer, in bytes: Wireshark ends a live capture at one that is.
pub const MAX_BLOCK_LEN: usize = 262_144;

/// No description or statistics of an interface are longer that another packetflix sends: what is said of them beside stays
/// within an option, and the block within its bound.
const MAX_SENT_LEN: usize = 32 * 1024;

/// Length of `len` bytes with the padding to 32 bits.
const fn padded(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// Nanoseconds as the two halves in which pcapng writes a timestamp.
fn timestamp(nanoseconds: u64) -> [u8; 8] {
    let [high, low] = [(nanoseconds >> 32) as u32, nanoseconds as u32];
    let mut out = [0; 8];
    out[..4].copy_from_slice(&high.to_le_bytes());
    out[4..].copy_from_slice(&low.to_le_bytes());
    out
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
