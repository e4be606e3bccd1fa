//! Enhanced Packet Block: written once per packet, so without the detours of the other blocks.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{SNAPLEN, padded, timestamp};

pub(super) const BLOCK_TYPE: u32 = 6;
const EPB_FLAGS: u16 = 2;
const EPB_DROPCOUNT: u16 = 4;

/// Where the packet's bytes begin.
const DATA_AT: usize = 28;

/// Block type, length, interface, timestamp, two lengths of the packet, and the length again.
const FIXED_LEN: usize = 32;
/// The flags with their option header, and the end of options.
const FLAGS_LEN: usize = 8 + 4;
/// Bytes of the option that tells how many packets were lost before.
pub const DROPCOUNT_LEN: usize = 12;

/// Bytes of an Ethernet header before the place of a VLAN tag.
const VLAN_OFFSET: usize = 12;
const VLAN_LEN: usize = 4;

/// No packet's block is shorter, in bytes.
pub const MIN_PACKET_LEN: usize = FIXED_LEN + FLAGS_LEN;

/// Which way a packet went, seen from the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketDirection {
    /// Received.
    Inbound,
    /// Sent.
    Outbound,
}

/// Whom a received packet was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// Not known.
    Unspecified = 0,
    /// This interface alone.
    Unicast = 1,
    /// A group.
    Multicast = 2,
    /// Everyone.
    Broadcast = 3,
    /// Another; seen thanks to promiscuous mode.
    Promiscuous = 4,
}

/// A VLAN tag that was kept beside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanTag {
    /// EtherType of the tag: 0x8100 or 0x88a8.
    pub protocol: u16,
    /// Priority, drop eligibility and VLAN identifier.
    pub tci: u16,
}

/// What is left to a device, so that the packet is not what goes over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// The checksum of its transport protocol is not in it yet.
    pub checksum: bool,
    /// It is to be cut into segments, or was put together from such.
    pub segmentation: bool,
}

/// What libpcap's cooked mode puts before packets that have no header of their own. They have no addresses either.
///
/// Source: <https://www.tcpdump.org/linktypes/LINKTYPE_LINUX_SLL.html>
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookedHeader {
    /// `PACKET_…` of `linux/if_packet.h`: whom it was for, or that it was sent.
    pub packet_type: u16,
    /// `ARPHRD_…` of `linux/if_arp.h`.
    pub hardware_type: u16,
    /// EtherType.
    pub protocol: u16,
}

impl CookedHeader {
    const LEN: usize = 16;

    fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[0..2].copy_from_slice(&self.packet_type.to_be_bytes());
        out[2..4].copy_from_slice(&self.hardware_type.to_be_bytes());
        out[14..16].copy_from_slice(&self.protocol.to_be_bytes());
        out
    }
}

/// A packet, or its beginning.
pub struct EnhancedPacket<'a> {
    /// Place of the interface among the section's descriptions.
    pub interface_id: u32,
    /// Nanoseconds since 1970, UTC.
    pub timestamp: u64,
    /// Bytes that the packet had, without `cooked` and `vlan`.
    pub original_len: u32,
    /// What comes before the bytes.
    pub cooked: Option<CookedHeader>,
    /// The captured bytes, without `cooked` and `vlan`.
    pub data: &'a [u8],
    /// Snapshot length: with `cooked` and `vlan`, no more bytes are written.
    pub snaplen: u32,
    /// Tag to put back into an Ethernet packet.
    pub vlan: Option<VlanTag>,
    /// Which way it went.
    pub direction: PacketDirection,
    /// Whom it was for.
    pub reception: Reception,
    /// What was still to be done with it when it was captured.
    pub offloads: Offloads,
    /// Packets of this interface lost since its previous one.
    pub dropped_before: u32,
}

impl EnhancedPacket<'_> {
    /// Bytes that [`Self::encode`] appends.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        let dropcount = if self.dropped_before > 0 { DROPCOUNT_LEN } else { 0 };
        FIXED_LEN + FLAGS_LEN + dropcount + padded(self.captured_len())
    }

    /// Appends the block.
    #[inline]
    pub fn encode(&self, out: &mut BytesMut) {
        let len = self.encoded_len();
        let captured_len = self.captured_len();
        out.reserve(len);

        let mut head = [0; 28];
        head[0..4].copy_from_slice(&BLOCK_TYPE.to_le_bytes());
        head[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        head[8..12].copy_from_slice(&self.interface_id.to_le_bytes());
        head[12..20].copy_from_slice(&timestamp(self.timestamp));
        head[20..24].copy_from_slice(&(captured_len as u32).to_le_bytes());
        let original_len = self.original_len.saturating_add(self.added_len() as u32);
        head[24..28].copy_from_slice(&original_len.to_le_bytes());
        out.put_slice(&head);

        match self.insertable_vlan() {
            Some(VlanTag { protocol, tci }) => {
                let (addresses, rest) = self.data.split_at(VLAN_OFFSET);
                let [[a, b], [c, d]] = [protocol.to_be_bytes(), tci.to_be_bytes()];
                let mut left = captured_len;
                for part in [addresses, &[a, b, c, d], rest] {
                    let part = &part[..part.len().min(left)];
                    out.put_slice(part);
                    left -= part.len();
                }
            }
            None => {
                let mut left = captured_len;
                if let Some(cooked) = self.cooked {
                    let head = &cooked.encode()[..CookedHeader::LEN.min(left)];
                    out.put_slice(head);
                    left -= head.len();
                }
                out.put_slice(&self.data[..left]);
            }
        }
        out.put_bytes(0, padded(captured_len) - captured_len);

        out.put_u16_le(EPB_FLAGS);
        out.put_u16_le(4);
        out.put_u32_le(self.flags());
        if self.dropped_before > 0 {
            out.put_u16_le(EPB_DROPCOUNT);
            out.put_u16_le(8);
            out.put_u64_le(u64::from(self.dropped_before));
        }
        // End of options.
        out.put_u32_le(0);
        out.put_u32_le(len as u32);
    }

    /// A packet that was cut within its addresses has no place for a tag.
    fn insertable_vlan(&self) -> Option<VlanTag> {
        self.vlan
            .filter(|_| self.cooked.is_none() && self.data.len() >= VLAN_OFFSET)
    }

    /// Bytes of the packet that are written, with what is added.
    fn captured_len(&self) -> usize {
        (self.data.len() + self.added_len()).min(self.snaplen as usize)
    }

    fn added_len(&self) -> usize {
        match (self.cooked, self.insertable_vlan()) {
            (Some(_), _) => CookedHeader::LEN,
            (None, Some(_)) => VLAN_LEN,
            (None, None) => 0,
        }
    }

    /// Bits 0 and 1 are the direction, 2 to 4 the reception, bit 9 says that the checksum is not ready, and bit 11 that there
    /// is segmentation to be done.
    fn flags(&self) -> u32 {
        let direction = match self.direction {
            PacketDirection::Inbound => 1,
            PacketDirection::Outbound => 2,
        };
        direction
            | (self.reception as u32) << 2
            | u32::from(self.offloads.checksum) << 9
            | u32::from(self.offloads.segmentation) << 11
    }
}

/// Whether a block whose lengths are right is one that [`EnhancedPacket::encode`] writes.
pub(super) fn is_written(block: &[u8]) -> bool {
    let number = |at: usize| Some(u32::from_le_bytes(*block.get(at..)?.first_chunk()?));
    let option = |code: u16, len: u16| Some(u32::from(len) << 16 | u32::from(code));
    let Some(captured_len) = number(20).filter(|len| *len <= SNAPLEN) else {
        return false;
    };
    let flags_at = DATA_AT + padded(captured_len as usize);
    let end_at = match block
        .len()
        .checked_sub(padded(captured_len as usize) + MIN_PACKET_LEN)
    {
        Some(0) => flags_at + 8,
        Some(DROPCOUNT_LEN) if number(flags_at + 8) == option(EPB_DROPCOUNT, 8) => {
            flags_at + 8 + DROPCOUNT_LEN
        }
        _ => return false,
    };
    number(flags_at) == option(EPB_FLAGS, 4) && number(end_at) == Some(0)
}

/// What must be known of a packet's block to take it out of a row of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedPacket {
    /// Bytes of the block.
    pub len: usize,
    /// Place of the interface among the section's descriptions.
    pub interface_id: u32,
    /// Nanoseconds since 1970, UTC.
    pub timestamp: u64,
    /// Bytes of the packet.
    pub captured_len: u32,
    /// Packets of this interface lost since its previous one.
    pub dropped_before: u64,
}

impl EncodedPacket {
    /// The first of blocks that [`EnhancedPacket::encode`] has written; `None` when that is no whole one.
    pub fn first(blocks: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(*blocks.get(at..)?.first_chunk()?));
        let len = number(4)? as usize;
        if number(0)? != BLOCK_TYPE || len < MIN_PACKET_LEN || len > blocks.len() {
            return None;
        }
        // The count of lost packets is the last option, if there is one.
        let captured_len = number(20)?;
        let without = FIXED_LEN + FLAGS_LEN + padded(captured_len as usize);
        let dropped_before = if len == without + DROPCOUNT_LEN {
            u64::from_le_bytes(*blocks.get(len - 16..)?.first_chunk()?)
        } else {
            0
        };
        Some(Self {
            len,
            interface_id: number(8)?,
            timestamp: u64::from(number(12)?) << 32 | u64::from(number(16)?),
            captured_len,
            dropped_before,
        })
    }

    /// The block that this was read of, telling that so many packets were lost before it.
    pub fn with_dropped(&self, block: &[u8], dropped: u64) -> Bytes {
        let len_of = |count: u64| if count > 0 { DROPCOUNT_LEN } else { 0 };
        // What follows is the end of options, and the length.
        let options_end = self.len - len_of(self.dropped_before) - 8;
        let len = (options_end + len_of(dropped) + 8) as u32;
        let mut out = BytesMut::with_capacity(len as usize);
        out.put_slice(&block[..4]);
        out.put_u32_le(len);
        out.put_slice(&block[8..options_end]);
        if dropped > 0 {
            out.put_u16_le(EPB_DROPCOUNT);
            out.put_u16_le(8);
            out.put_u64_le(dropped);
        }
        out.put_u32_le(0);
        out.put_u32_le(len);
        out.freeze()
    }
}
