//! The record that carries one packet from the kernel to user space.

use core::mem::{offset_of, size_of};

/// At most so many bytes of a packet are copied, so that its Enhanced Packet Block with its options and a
/// re-inserted VLAN tag stays within the 262144 bytes that Wireshark's live pipe takes.
pub const MAX_CAPTURED_LEN: u32 = 262_144 - 32 - 32 - 8;

/// Which way a packet went, seen from the interface.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Received by the interface.
    Inbound = 1,
    /// Sent by the interface.
    Outbound = 2,
}

/// Head of a record; `captured_len` bytes of the packet follow, then unused room of the size class.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// Nanoseconds of the clock that was set at load.
    pub timestamp: u64,
    /// [`InterfaceEntry::interface_id`](crate::InterfaceEntry::interface_id) of the interface.
    pub interface_id: u32,
    /// Interface index in its network namespace.
    pub ifindex: u32,
    /// Bytes the packet had, without a VLAN tag that the kernel keeps beside it.
    pub original_len: u32,
    /// Bytes of the packet that follow.
    pub captured_len: u32,
    /// Packets of this interface dropped on this CPU since its previous record there.
    pub dropped_before: u32,
    /// Payload bytes of each segment of a super-packet, 0 otherwise.
    pub gso_size: u16,
    /// Number of segments of a super-packet, 0 otherwise.
    pub gso_segs: u16,
    /// VLAN tag that the kernel keeps beside the packet; meaningful when `vlan_protocol` is not 0.
    pub vlan_tci: u16,
    /// EtherType of that tag (0x8100, 0x88a8), 0 when there is none.
    pub vlan_protocol: u16,
    /// A [`Direction`].
    pub direction: u8,
    /// `PACKET_HOST` 0, `PACKET_BROADCAST` 1, `PACKET_MULTICAST` 2, `PACKET_OTHERHOST` 3,
    /// `PACKET_OUTGOING` 4 (`linux/if_packet.h`).
    pub packet_type: u8,
    /// EtherType that the kernel knows the packet by, or what its device has instead: a netlink family, a kind of CAN frame.
    pub protocol: u16,
}

const _: () = {
    assert!(size_of::<RecordHeader>() == RecordHeader::SIZE);
    assert!(offset_of!(RecordHeader, timestamp) == 0);
    assert!(offset_of!(RecordHeader, interface_id) == 8);
    assert!(offset_of!(RecordHeader, ifindex) == 12);
    assert!(offset_of!(RecordHeader, original_len) == 16);
    assert!(offset_of!(RecordHeader, captured_len) == 20);
    assert!(offset_of!(RecordHeader, dropped_before) == 24);
    assert!(offset_of!(RecordHeader, gso_size) == 28);
    assert!(offset_of!(RecordHeader, gso_segs) == 30);
    assert!(offset_of!(RecordHeader, vlan_tci) == 32);
    assert!(offset_of!(RecordHeader, vlan_protocol) == 34);
    assert!(offset_of!(RecordHeader, direction) == 36);
    assert!(offset_of!(RecordHeader, packet_type) == 37);
    assert!(offset_of!(RecordHeader, protocol) == 38);
};

impl RecordHeader {
    /// Bytes of the header in a ring.
    pub const SIZE: usize = 40;

    /// Splits a record into its header and the packet's captured bytes.
    ///
    /// `None` when `record` is shorter than it says.
    #[inline]
    pub fn decode(record: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = record.split_first_chunk::<{ Self::SIZE }>()?;
        let header = Self {
            timestamp: u64::from_ne_bytes(bytes(head, 0)),
            interface_id: u32::from_ne_bytes(bytes(head, 8)),
            ifindex: u32::from_ne_bytes(bytes(head, 12)),
            original_len: u32::from_ne_bytes(bytes(head, 16)),
            captured_len: u32::from_ne_bytes(bytes(head, 20)),
            dropped_before: u32::from_ne_bytes(bytes(head, 24)),
            gso_size: u16::from_ne_bytes(bytes(head, 28)),
            gso_segs: u16::from_ne_bytes(bytes(head, 30)),
            vlan_tci: u16::from_ne_bytes(bytes(head, 32)),
            vlan_protocol: u16::from_ne_bytes(bytes(head, 34)),
            direction: head[36],
            packet_type: head[37],
            protocol: u16::from_ne_bytes(bytes(head, 38)),
        };
        let packet = rest.get(..header.captured_len as usize)?;
        Some((header, packet))
    }

    /// The timestamp alone, which is all that merging rings needs. `None` when `record` is too short.
    #[inline]
    pub fn decode_timestamp(record: &[u8]) -> Option<u64> {
        record.first_chunk().map(|first| u64::from_ne_bytes(*first))
    }

    /// The header as it stands in a ring.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..8].copy_from_slice(&self.timestamp.to_ne_bytes());
        out[8..12].copy_from_slice(&self.interface_id.to_ne_bytes());
        out[12..16].copy_from_slice(&self.ifindex.to_ne_bytes());
        out[16..20].copy_from_slice(&self.original_len.to_ne_bytes());
        out[20..24].copy_from_slice(&self.captured_len.to_ne_bytes());
        out[24..28].copy_from_slice(&self.dropped_before.to_ne_bytes());
        out[28..30].copy_from_slice(&self.gso_size.to_ne_bytes());
        out[30..32].copy_from_slice(&self.gso_segs.to_ne_bytes());
        out[32..34].copy_from_slice(&self.vlan_tci.to_ne_bytes());
        out[34..36].copy_from_slice(&self.vlan_protocol.to_ne_bytes());
        out[36] = self.direction;
        out[37] = self.packet_type;
        out[38..40].copy_from_slice(&self.protocol.to_ne_bytes());
        out
    }
}

#[inline]
fn bytes<const N: usize>(head: &[u8; RecordHeader::SIZE], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&head[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn header() -> impl Strategy<Value = RecordHeader> {
        (
            any::<(u64, u32, u32, u32, u32)>(),
            0u32..2000,
            any::<(u16, u16, u16, u16, u8, u8, u16)>(),
        )
            .prop_map(
                |(
                    (timestamp, interface_id, ifindex, original_len, dropped_before),
                    captured_len,
                    (gso_size, gso_segs, vlan_tci, vlan_protocol, direction, packet_type, protocol),
                )| RecordHeader {
                    timestamp,
                    interface_id,
                    ifindex,
                    original_len,
                    captured_len,
                    dropped_before,
                    gso_size,
                    gso_segs,
                    vlan_tci,
                    vlan_protocol,
                    direction,
                    packet_type,
                    protocol,
                },
            )
    }

    proptest! {
        #[test]
        fn decodes_what_was_encoded(header in header(), slack in 0usize..64) {
            let packet: Vec<u8> = (0..header.captured_len).map(|n| n as u8).collect();
            let mut record = header.encode().to_vec();
            record.extend_from_slice(&packet);
            record.resize(record.len() + slack, 0xee);
            prop_assert_eq!(RecordHeader::decode(&record), Some((header, &packet[..])));
            prop_assert_eq!(RecordHeader::decode_timestamp(&record), Some(header.timestamp));
        }

        #[test]
        fn refuses_what_was_cut_short(header in header(), cut in 1usize..2040) {
            let mut record = header.encode().to_vec();
            record.resize(record.len() + header.captured_len as usize, 0);
            record.truncate(record.len().saturating_sub(cut));
            prop_assert_eq!(RecordHeader::decode(&record), None);
        }

        #[test]
        fn takes_any_bytes(record in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some((header, packet)) = RecordHeader::decode(&record) {
                prop_assert_eq!(packet.len(), header.captured_len as usize);
            }
        }
    }

    #[test]
    fn encodes_as_the_struct_lies_in_memory() {
        let header = RecordHeader {
            timestamp: 1,
            interface_id: 2,
            ifindex: 3,
            original_len: 4,
            captured_len: 5,
            dropped_before: 6,
            gso_size: 7,
            gso_segs: 8,
            vlan_tci: 9,
            vlan_protocol: 10,
            direction: 11,
            packet_type: 12,
            protocol: 13,
        };
        #[expect(
            unsafe_code,
            reason = "the encoder is held against the memory layout that the programs write"
        )]
        // SAFETY: the struct is repr(C), has no padding (asserted above), and any byte is a valid u8.
        let memory: [u8; RecordHeader::SIZE] = unsafe { core::mem::transmute(header) };
        assert_eq!(memory, header.encode());
    }
}
