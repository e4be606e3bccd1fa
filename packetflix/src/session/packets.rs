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
    /// In the order of their numbers in the tap, without those that vanished before they had joined, and those that are gone.
    interfaces: Vec<Interface>,
    /// Numbers of the interfaces that have packets in the batch.
    touched: Vec<u32>,
    described: usize,
    /// When the first packet of the batch was captured, on the records' clock.
    oldest: u64,
    /// Bytes of the last batch: the next one will have about as many.
    last_len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    /// Its number in the tap.
    id: u32,
    framing: Framing,
    /// Place of its description.
    place: usize,
    /// What was captured until then is of the network namespace that is captured.
    sure_until: u64,
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
        let interface = Interface {
            id,
            framing,
            place: self.described,
            sure_until: 0,
            link_type,
            delivered: 0,
            told_lost: 0,
            in_batch: 0,
            told_in_batch: 0,
        };
        match find(&self.interfaces, id) {
            Ok(index) => self.interfaces[index] = interface,
            Err(index) => self.interfaces.insert(index, interface),
        }
        self.described += 1;
    }

    /// An interface goes on under the next description.
    pub(super) fn describe_anew(&mut self, id: u32) {
        if let Ok(index) = find(&self.interfaces, id) {
            let Interface {
                framing, link_type, ..
            } = self.interfaces[index];
            self.describe_framed(id, link_type, framing);
        }
    }

    /// An interface is gone: no more of its packets come, and the last are taken.
    pub(super) fn forget(&mut self, id: u32) {
        if let Ok(index) = find(&self.interfaces, id) {
            self.interfaces.remove(index);
        }
    }

    /// How many interfaces are described.
    pub(super) fn described(&self) -> usize {
        self.described
    }

    /// What was written of an interface, if it is described.
    pub(super) fn of_interface(&self, id: u32) -> Option<Written> {
        let interface = &self.interfaces[find(&self.interfaces, id).ok()?];
        Some(Written {
            place: interface.place,
            delivered: interface.delivered,
            told_lost: interface.told_lost,
        })
    }

    /// Writes one record, unless the batch is full; `is_here` tells whether the interface of an index is in the network
    /// namespace that is captured. What was captured in another one is left out.
    #[inline]
    pub fn write(
        &mut self,
        record: &[u8],
        clock: &CaptureClock,
        is_here: &mut dyn FnMut(u32) -> bool,
    ) -> Head {
        let Some((header, data)) = RecordHeader::decode(record) else {
            tracing::error!(len = record.len(), "a record is shorter than it says");
            return Head::Remove;
        };
        let Ok(index) = find(&self.interfaces, header.interface_id) else {
            tracing::debug!(
                ?header,
                "a packet is of an interface that vanished before it had joined"
            );
            return Head::Remove;
        };
        let interface = &mut self.interfaces[index];
        if header.timestamp > interface.sure_until {
            let now = clock.now();
            if !is_here(header.ifindex) {
                return Head::Remove;
            }
            interface.sure_until = now;
        }
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
            self.touched.push(header.interface_id);
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

    /// Bytes of memory that what was written since the last time takes once it is taken.
    pub(super) fn room(&self) -> usize {
        match self.is_small() {
            true => self.batch.len(),
            false => self.batch.capacity(),
        }
    }

    /// Whether there is so little in a batch that it is copied, and what was for more stays for the next one.
    fn is_small(&self) -> bool {
        self.batch.len() < self.batch.capacity() / 2
    }

    /// What was written since the last time, and how many packets of which interface that is.
    pub fn take(&mut self) -> (Bytes, Vec<PacketCount>) {
        let Self {
            interfaces, touched, ..
        } = self;
        let counts = touched.drain(..).filter_map(|id| {
            let index = find(interfaces, id).ok()?;
            let interface = &mut interfaces[index];
            Some(PacketCount {
                interface: interface.place,
                packets: std::mem::take(&mut interface.in_batch),
                told_lost: std::mem::take(&mut interface.told_in_batch),
            })
        });
        let counts = counts.collect();
        (self.take_blocks(), counts)
    }

    fn take_blocks(&mut self) -> Bytes {
        if self.batch.is_empty() {
            return Bytes::new();
        }
        self.last_len = self.batch.len();
        if !self.is_small() {
            return self.batch.split().freeze();
        }
        let blocks = Bytes::copy_from_slice(&self.batch);
        self.batch.clear();
        blocks
    }
}

/// The place of an interface's number, or where it would be.
fn find(interfaces: &[Interface], id: u32) -> Result<usize, usize> {
    // As long as none is gone, they stand at their numbers.
    let index = id as usize;
    match interfaces.get(index) {
        Some(interface) if interface.id == id => Ok(index),
        _ => interfaces.binary_search_by_key(&id, |interface| interface.id),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_found_by_their_numbers_whichever_are_gone() {
        let mut packets = Packets::new(100);
        let places = |packets: &Packets| [0, 1, 2, 3, 9].map(|id| Some(packets.of_interface(id)?.place));
        for id in [0, 1, 3] {
            packets.describe_framed(id, LinkType::LinuxSll, Framing::Cooked { hardware_type: 778 });
        }
        assert_eq!(places(&packets), [Some(0), Some(1), None, Some(2), None]);
        packets.forget(1);
        packets.describe(9, LinkType::Ethernet);
        assert_eq!(places(&packets), [Some(0), None, None, Some(2), Some(3)]);
        packets.describe_anew(3);
        packets.forget(0);
        packets.forget(0);
        assert_eq!(places(&packets), [None, None, None, Some(4), Some(3)]);
        // Its packets begin as they did.
        assert_eq!(
            packets.interfaces[0].framing,
            Framing::Cooked { hardware_type: 778 }
        );
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
            let head = packets.write(record, &clock, &mut |_| true);
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
