//! From records to batches of packet blocks: the one copy of a packet in user space, whatever the number of clients.

use bytes::{Bytes, BytesMut};
use packetflix_common::{Direction, RecordHeader};

use super::{framing::Framing, offloads::checksum_is_partial, window::PacketCount};
use crate::{
    pcapng::{EnhancedPacket, LinkType, Offloads, PacketDirection, Reception, VlanTag},
    tap::{CaptureClock, Head},
};

/// Most bytes of a batch. One packet always fits.
pub(super) const MAX_BATCH_LEN: usize = 256 * 1024;

/// Room that a batch begins with on a quiet capture.
const MIN_ROOM: usize = 4 * 1024;

/// The batch that is being filled.
#[derive(Debug)]
pub struct Packets {
    batch: BytesMut,
    /// Snapshot length in bytes.
    snaplen: u32,
    /// By the interface's number in the tap; `None` for one that vanished before it had joined.
    interfaces: Vec<Option<Interface>>,
    /// Places of the interfaces that have packets in the batch.
    touched: Vec<usize>,
    described: usize,
    /// When the first packet of the batch was captured, on the records' clock.
    oldest: u64,
    /// Bytes of the last batch: the next one will have about as many.
    last_len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    framing: Framing,
    /// Place of its description.
    place: usize,
    link_type: LinkType,
    /// Packets written since it joined.
    delivered: u64,
    /// Packets of which those tell that they were lost.
    told_lost: u64,
    /// Packets in this batch.
    in_batch: u64,
    /// Packets of which those tell that they were lost.
    told_in_batch: u64,
}

/// What was written of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    /// Place of its description.
    pub(super) place: usize,
    /// Its packets.
    pub(super) delivered: u64,
    /// Packets of which those tell that they were lost.
    pub(super) told_lost: u64,
}

impl Packets {
    /// Packets cut at a snapshot length in bytes.
    pub fn new(snaplen: u32) -> Self {
        Self {
            batch: BytesMut::new(),
            snaplen,
            interfaces: Vec::new(),
            touched: Vec::new(),
            described: 0,
            oldest: 0,
            last_len: 0,
        }
    }

    /// Takes note of an interface, the next that is described, by its number in the tap, and of what its packets begin with.
    pub fn describe(&mut self, id: u32, link_type: LinkType) {
        self.describe_framed(id, link_type, Framing::default());
    }

    /// Takes note of one whose packets are framed.
    pub(super) fn describe_framed(&mut self, id: u32, link_type: LinkType, framing: Framing) {
        let id = id as usize;
        if self.interfaces.len() <= id {
            self.interfaces.resize(id + 1, None);
        }
        self.interfaces[id] = Some(Interface {
            framing,
            place: self.described,
            link_type,
            delivered: 0,
            told_lost: 0,
            in_batch: 0,
            told_in_batch: 0,
        });
        self.described += 1;
    }

    /// How many interfaces are described.
    pub(super) fn described(&self) -> usize {
        self.described
    }

    /// What was written of an interface, if it is described.
    pub(super) fn of_interface(&self, id: u32) -> Option<Written> {
        let interface = self.interfaces.get(id as usize)?.as_ref()?;
        Some(Written {
            place: interface.place,
            delivered: interface.delivered,
            told_lost: interface.told_lost,
        })
    }

    /// Writes one record, unless the batch is full.
    #[inline]
    pub fn write(&mut self, record: &[u8], clock: &CaptureClock) -> Head {
        let Some((header, data)) = RecordHeader::decode(record) else {
            tracing::error!(len = record.len(), "a record is shorter than it says");
            return Head::Remove;
        };
        let interface = self.interfaces.get_mut(header.interface_id as usize);
        let Some(interface) = interface.and_then(Option::as_mut) else {
            tracing::debug!(
                ?header,
                "a packet is of an interface that vanished before it had joined"
            );
            return Head::Remove;
        };
        let framing = interface.framing;
        let data = framing.data(&header, data);
        let packet = EnhancedPacket {
            interface_id: interface.place as u32,
            timestamp: clock.realtime(header.timestamp),
            original_len: header.original_len,
            cooked: framing.cooked(&header),
            data: &data,
            snaplen: self.snaplen,
            vlan: (header.vlan_protocol != 0).then_some(VlanTag {
                protocol: header.vlan_protocol,
                tci: header.vlan_tci,
            }),
            direction: direction(&header),
            reception: reception(&header),
            offloads: Offloads {
                checksum: checksum_is_partial(interface.link_type, &data, header.original_len),
                segmentation: header.gso_size != 0,
            },
            dropped_before: header.dropped_before,
        };
        if self.batch.is_empty() {
            // Enough for what is to be expected: a batch that grows is copied.
            let room = (self.last_len + self.last_len / 4).clamp(MIN_ROOM, MAX_BATCH_LEN);
            self.batch.reserve(room.max(packet.encoded_len()));
            self.oldest = header.timestamp;
        } else if self.batch.len() + packet.encoded_len() > MAX_BATCH_LEN {
            return Head::Keep;
        }
        packet.encode(&mut self.batch);
        if interface.in_batch == 0 {
            self.touched.push(header.interface_id as usize);
        }
        interface.in_batch += 1;
        interface.delivered += 1;
        interface.told_lost += u64::from(header.dropped_before);
        interface.told_in_batch += u64::from(header.dropped_before);
        Head::Remove
    }

    /// When the first packet was captured that was written since the last time, on the records' clock.
    pub(super) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// What was written since the last time, and how many packets of which interface that is.
    pub fn take(&mut self) -> (Bytes, Vec<PacketCount>) {
        let Self {
            interfaces, touched, ..
        } = self;
        let counts = touched.drain(..).filter_map(|id| {
            let interface = interfaces[id].as_mut()?;
            Some(PacketCount {
                interface: interface.place,
                packets: std::mem::take(&mut interface.in_batch),
                told_lost: std::mem::take(&mut interface.told_in_batch),
            })
        });
        let counts = counts.collect();
        if !self.batch.is_empty() {
            self.last_len = self.batch.len();
        }
        (self.batch.split().freeze(), counts)
    }
}

fn direction(header: &RecordHeader) -> PacketDirection {
    if header.direction == Direction::Outbound as u8 {
        PacketDirection::Outbound
    } else {
        PacketDirection::Inbound
    }
}

/// From the packet type of `linux/if_packet.h`, which means something for received packets only.
fn reception(header: &RecordHeader) -> Reception {
    match (direction(header), header.packet_type) {
        (PacketDirection::Outbound, _) => Reception::Unspecified,
        (PacketDirection::Inbound, 0) => Reception::Unicast,
        (PacketDirection::Inbound, 1) => Reception::Broadcast,
        (PacketDirection::Inbound, 2) => Reception::Multicast,
        (PacketDirection::Inbound, 3) => Reception::Promiscuous,
        (PacketDirection::Inbound, _) => Reception::Unspecified,
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;
    use crate::{pcapng::MAX_BLOCK_LEN, tap::clock::ClockSource};

    /// Records as they stand in a ring, each behind its length of two bytes: they become whole blocks.
    pub fn record(mut data: &[u8]) {
        let clock = CaptureClock::new(ClockSource::Tai).expect("the machine has a clock");
        let mut packets = Packets::new(crate::pcapng::SNAPLEN);
        packets.describe(0, LinkType::Ethernet);
        packets.describe(2, LinkType::Raw);
        packets.describe_framed(3, LinkType::CanSocketcan, Framing::Can);
        packets.describe_framed(4, LinkType::LinuxSll, Framing::Cooked { hardware_type: 778 });
        let mut written = 0;
        while let Some((len, rest)) = data.split_first_chunk() {
            let (record, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
            data = rest;
            let before = packets.batch.len();
            let head = packets.write(record, &clock);
            written += u64::from(packets.batch.len() > before);
            assert_eq!(head, Head::Remove);
        }
        let (blocks, counts) = packets.take();
        assert_eq!(counts.iter().map(|count| count.packets).sum::<u64>(), written);
        let mut rest = &blocks[..];
        while let Some(head) = rest.first_chunk::<8>() {
            let len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
            assert!(len.is_multiple_of(4) && len <= MAX_BLOCK_LEN, "{len}");
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
    }
}
