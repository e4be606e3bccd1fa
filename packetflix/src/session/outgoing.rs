//! What is put into a client's stream, as far as its limits allow, and what of that is still to be sent.
//!
//! Packets are slices of batches that all clients share. The first packet of an interface behind a loss of this client's has
//! to say so, and is copied for that.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    SessionInfo, Totals,
    limits::{Limit, Limits, TooFewBytes, beginning},
    names::Names,
    packets::MAX_BATCH_LEN,
    packets_in,
    statistics::{Statistics, TapInterface},
    stream::{Stream, Which},
    window::{Batch, PacketCount},
};
use crate::pcapng::{DROPCOUNT_LEN, EncodedPacket, MIN_PACKET_LEN};

/// So many bytes of packets are kept back while the first names are looked for, and no more.
const MAX_KEPT_BACK: usize = 64 * 1024;

/// A piece of a stream, to be sent as one message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// Whole blocks.
    pub(super) blocks: Bytes,
    /// How many packets are among them.
    pub(super) packets: u64,
    /// When the first of them was captured, on the records' clock.
    pub(super) oldest: u64,
}

impl AsRef<Bytes> for Message {
    fn as_ref(&self) -> &Bytes {
        &self.blocks
    }
}

impl From<Bytes> for Message {
    fn from(blocks: Bytes) -> Self {
        Self {
            blocks,
            ..Self::default()
        }
    }
}

/// A stream that is being written.
#[derive(Debug)]
pub(super) struct Outgoing {
    stream: Stream,
    /// What was last known of all packets.
    known: Statistics,
    /// How many interfaces are described.
    described: usize,
    /// Packets lost by the client, by their interface, of which its next packet has to tell.
    untold: BTreeMap<u32, u64>,
    /// Packets lost before the client came, by their interface, of which packets have still to tell: they are not this client's.
    foreign: BTreeMap<u32, u64>,
    limits: Limits,
    left: Left,
    /// What is sent next.
    names: VecDeque<Bytes>,
    /// What is sent after that, unless it is kept back.
    packets: VecDeque<Message>,
}

/// How much may still be put into a stream.
#[derive(Clone, Copy, Debug)]
struct Left {
    packets: u64,
    bytes: u64,
}

impl Outgoing {
    /// Begins with the section header and the descriptions of these interfaces. What `before` tells is not this client's.
    ///
    /// # Errors
    /// When the stream may not even be as long as every stream is.
    pub(super) fn begin(
        info: &SessionInfo<'_>,
        before: Statistics,
        interfaces: &[Arc<TapInterface>],
    ) -> Result<Self, TooFewBytes> {
        let mut stream = Stream::begin(&info.stream(), &before.interfaces, before.taken);
        stream.describe(0, interfaces);
        let beginning = stream.take().unwrap_or_default();
        let beginning_len = beginning.len() as u64;
        info.check_room(beginning_len + stream.end_len())?;
        let limits = info.limits.clone();
        let foreign = before.interfaces.iter().filter_map(|(place, counts)| {
            let foreign = counts.dropped.saturating_sub(counts.told_lost);
            (foreign > 0).then_some((*place as u32, foreign))
        });
        let foreign = foreign.collect();
        let mut outgoing = Self {
            stream,
            known: before,
            described: 0,
            untold: BTreeMap::new(),
            foreign,
            left: Left {
                packets: limits.packets.unwrap_or(u64::MAX),
                bytes: limits.bytes.unwrap_or(u64::MAX) - beginning_len,
            },
            limits,
            names: VecDeque::from([beginning]),
            packets: VecDeque::new(),
        };
        outgoing.know_described(interfaces.len());
        Ok(outgoing)
    }

    /// What is sent next, if anything. Packets may be kept back, until they are too many.
    pub(super) fn next(&mut self, keeps_packets_back: bool) -> Option<Message> {
        if let Some(blocks) = self.names.pop_front() {
            return Some(blocks.into());
        }
        let len: usize = self.packets.iter().map(|message| message.blocks.len()).sum();
        if keeps_packets_back && len < MAX_KEPT_BACK {
            return None;
        }
        self.packets.pop_front()
    }

    /// Whether something is to be sent.
    pub(super) fn has_more(&self) -> bool {
        !(self.names.is_empty() && self.packets.is_empty())
    }

    /// How many interfaces are described.
    pub(super) fn described(&self) -> usize {
        self.described
    }

    /// This time on the records' clock.
    pub(super) fn now(&self) -> u64 {
        self.known.clock.now()
    }

    /// Packets delivered and lost on all interfaces, as far as it is known.
    pub(super) fn totals(&self) -> Totals {
        self.stream.totals()
    }

    /// Packets that the kernel lost on all interfaces, as far as it is known.
    pub(super) fn lost_in_kernel(&self) -> u64 {
        self.stream.lost_in_kernel()
    }

    /// Whether losses are known that no statistics have told.
    pub(super) fn has_untold_losses(&self) -> bool {
        self.stream.has_untold_losses()
    }

    /// Writes the names that wait, before all packets that are not sent yet; tells whether there was room.
    pub(super) fn write_names(&mut self, names: &mut Names) -> bool {
        let mut is_done = false;
        while !is_done {
            is_done = names.write(MAX_BATCH_LEN, self.stream.blocks());
            let Some(blocks) = self.stream.take() else {
                continue;
            };
            if blocks.len() as u64 > self.room() {
                return false;
            }
            self.left.bytes -= blocks.len() as u64;
            self.names.push_back(blocks);
        }
        true
    }

    /// Describes the next interfaces.
    ///
    /// # Errors
    /// The limit, when there is no room for them.
    pub(super) fn describe(&mut self, interfaces: &[Arc<TapInterface>]) -> Result<(), Limit> {
        self.stream.describe(self.described, interfaces);
        if let Some(limit) = self.limits.bytes
            && self.stream.blocks().len() as u64 > self.room()
        {
            self.stream.forget(self.described);
            return Err(Limit::Bytes(limit));
        }
        self.know_described(self.described + interfaces.len());
        self.put_blocks();
        Ok(())
    }

    /// So many interfaces are described; of those that no statistics have told of, nothing has become of any packet yet.
    fn know_described(&mut self, described: usize) {
        for place in self.described..described {
            let counts = self.known.interfaces.entry(place);
            counts.or_default();
        }
        self.described = described;
    }

    /// Takes account of packets that the client took too late. The next one of their interface tells of them.
    pub(super) fn lose(&mut self, lost: &[PacketCount]) {
        self.stream.lose(lost);
        self.stream.account(&self.known);
        for count in lost {
            *self.untold.entry(count.interface as u32).or_default() += count.packets + count.told_lost;
        }
    }

    /// Puts as many packets of a batch into the stream as may be in it; tells whether that is all of them, and the limit that
    /// leaves no place for another one, if one does.
    pub(super) fn put_packets(&mut self, batch: &Batch) -> (bool, Option<Limit>) {
        let untold_len = (self.untold.len() * DROPCOUNT_LEN) as u64;
        let (room, packets) = (self.room().saturating_sub(untold_len), self.left.packets);
        let total = packets_in(&batch.counts);
        let is_whole = total <= packets && batch.packets.len() as u64 <= room;
        let mut message = Message {
            blocks: batch.packets.clone(),
            packets: total,
            oldest: batch.oldest,
        };
        if is_whole {
            self.stream.deliver(&batch.counts);
        } else {
            let beginning = beginning(&batch.packets, packets, room);
            self.stream.deliver(&beginning.counts);
            (message.blocks, message.packets) = (beginning.packets, beginning.total);
        }
        self.left.packets -= message.packets;
        let is_foreign =
            |count: &PacketCount| count.told_lost > 0 && self.foreign.contains_key(&(count.interface as u32));
        let rest = match self.untold.is_empty() && !batch.counts.iter().any(is_foreign) {
            true => message,
            false => self.tell_losses(message),
        };
        self.put(rest);
        let reached = match (self.limits.packets, self.limits.bytes) {
            (Some(limit), _) if self.left.packets == 0 => Some(Limit::Packets(limit)),
            (_, Some(limit)) if !is_whole || self.room() < MIN_PACKET_LEN as u64 => Some(Limit::Bytes(limit)),
            _ => None,
        };
        (is_whole, reached)
    }

    /// Has the first packet of each interface of which the client has lost some tell so, and none of what was lost before the client
    /// came; gives what follows the last of those. Others share the packets, so that each that tells otherwise is a copy.
    fn tell_losses(&mut self, mut rest: Message) -> Message {
        let mut at = 0;
        let mut passed = 0;
        while !(self.untold.is_empty() && self.foreign.is_empty())
            && let Some(packet) = EncodedPacket::first(&rest.blocks[at..])
        {
            let block = at..at + packet.len;
            at = block.end;
            passed += 1;
            let foreign = self.take_foreign(&packet);
            let lost = self.untold.remove(&packet.interface_id).unwrap_or_default();
            if lost == 0 && foreign == 0 {
                continue;
            }
            let dropped = (packet.dropped_before - foreign).saturating_add(lost);
            self.put(Message {
                blocks: rest.blocks.slice(..block.start),
                packets: passed - 1,
                ..rest
            });
            self.put(Message {
                blocks: packet.with_dropped(&rest.blocks[block], dropped),
                packets: 1,
                ..rest
            });
            rest = Message {
                blocks: rest.blocks.slice(at..),
                packets: rest.packets - passed,
                ..rest
            };
            (at, passed) = (0, 0);
        }
        rest
    }

    /// How many of the packets that were lost before this one were lost before the client came.
    fn take_foreign(&mut self, packet: &EncodedPacket) -> u64 {
        let Some(left) = self.foreign.get_mut(&packet.interface_id) else {
            return 0;
        };
        let foreign = packet.dropped_before.min(*left);
        *left -= foreign;
        if *left == 0 {
            self.foreign.remove(&packet.interface_id);
        }
        foreign
    }

    /// Takes what is known now of all packets, and writes the statistics of interfaces that have left, or of all.
    pub(super) fn take_statistics(&mut self, statistics: &Statistics, which: Which) {
        self.known = statistics.clone();
        self.stream.write_statistics(&self.known, which, 0);
        self.put_blocks();
        let stream = &self.stream;
        self.untold.retain(|place, _| stream.is_open(*place as usize));
    }

    /// Writes statistics beside the final ones, as far as there is room.
    pub(super) fn tell_statistics(&mut self, which: Which) {
        let room = self.room();
        self.stream.write_statistics(&self.known, which, room);
        self.put_blocks();
    }

    /// Writes the final statistics at this place: what is captured later is not this client's. They tell what was delivered
    /// and lost up to here. How many packets the filter rejected before nobody knows, but how many it has rejected by `now`.
    pub(super) fn end_here(&mut self, now: Option<&Statistics>) {
        self.known.taken = now.map_or_else(|| self.known.clock.now(), |now| now.taken);
        for (place, now) in now.into_iter().flat_map(|now| &now.interfaces) {
            if let Some(known) = self.known.interfaces.get_mut(place) {
                known.rejected = now.rejected;
                known.end = now.end;
            }
        }
        self.stream.write_statistics(&self.known, Which::All, 0);
        self.put_blocks();
    }

    /// Writes the final statistics at this place, though packets are still to come that were captured by `now`: the client
    /// loses them. Gives how many.
    pub(super) fn end_without_the_rest(&mut self, now: Option<Statistics>) -> u64 {
        let Some(now) = now else {
            self.end_here(None);
            return 0;
        };
        self.known = now;
        let lost = self.stream.lose_the_rest(&self.known);
        self.stream.write_statistics(&self.known, Which::All, 0);
        self.put_blocks();
        lost
    }

    /// Takes account of what has become of packets that the stream has no place for any more.
    pub(super) fn settle_account(&mut self, now: Statistics) {
        self.known = now;
        self.stream.account(&self.known);
    }

    /// Bytes that may be put into the stream before its final statistics.
    fn room(&self) -> u64 {
        self.left.bytes.saturating_sub(self.stream.end_len())
    }

    /// Puts what the stream has written itself between the packets.
    fn put_blocks(&mut self) {
        if let Some(blocks) = self.stream.take() {
            self.put(blocks.into());
        }
    }

    fn put(&mut self, message: Message) {
        self.left.bytes = self.left.bytes.saturating_sub(message.blocks.len() as u64);
        if !message.blocks.is_empty() {
            self.packets.push_back(message);
        }
    }
}
