//! Several streams become one section: their interfaces get numbers of their own in it, and their packets follow each other
//! in the order of their times.
//!
//! Pure: whoever has the streams says until when they have told all, and packets up to that time are passed on, oldest first,
//! with a heap of the sources' first packets: O(log sources) when the source changes. A packet that comes later than that is
//! passed on at once, and not lost.
//!
//! What a stream says of an interface goes where it stands between that stream's packets, so that its account stays exact.
//! Where the section is cut because it is as long as it may be, the packets behind the cut are taken off the accounts that
//! have counted them. Each interface that is described has final statistics, whatever became of its source.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use bytes::{Buf as _, Bytes, BytesMut};

use crate::pcapng::{
    EncodedBlock, EncodedPacket, InterfaceDescription, InterfaceStatistics, LinkType, MAX_STATISTICS_LEN,
    MIN_PACKET_LEN, SEVERAL_LINK_TYPES,
};

/// Most bytes of a piece, but for a single block that is longer.
const MAX_PIECE_LEN: usize = 256 * 1024;

/// Most bytes that an option has beside its text: its head, and what fills it up to words.
const MAX_OPTION_MARGIN: usize = 4 + 3;

/// Where the number of its interface stands in a packet's block.
const INTERFACE_AT: usize = 8;

/// The section, up to what was last taken from it.
#[derive(Debug)]
pub(crate) struct Timeline {
    sources: BTreeMap<u64, Source>,
    /// Time and source of the first packet of those that have one.
    heads: BinaryHeap<Reverse<(u64, u64)>>,
    /// Those that have told all that they were given.
    hungry: Vec<u64>,
    /// Snapshot length of all interfaces, in bytes.
    snaplen: u32,
    /// The link type of the first interface, by its number.
    link_type: Option<u16>,
    /// How many interfaces are described.
    described: u32,
    /// How many of them have no final statistics yet.
    open: usize,
    /// Packets that were lost of the others.
    dropped: u64,
    piece: Piece,
    /// Those that are as long as a message may be.
    done: VecDeque<Piece>,
    /// No packet more fits into the piece.
    is_full: bool,
    bounds: Bounds,
    /// How far in the future the time of a packet may lie, in nanoseconds.
    foresight: u64,
    /// The latest time of those that were passed on.
    latest: u64,
    left: Left,
    reached: Option<Bound>,
    /// Packets are passed on no longer.
    is_cut: bool,
}

/// Where the section ends at the latest.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    /// Packets.
    pub(crate) packets: Option<u64>,
    /// Bytes of the whole section.
    pub(crate) bytes: Option<u64>,
}

/// The bound that a section has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    Packets(u64),
    Bytes(u64),
}

/// How much may still be written.
#[derive(Clone, Copy, Debug)]
struct Left {
    packets: u64,
    bytes: u64,
}

/// A piece of the section, to be sent as one message.
#[derive(Debug, Default)]
pub(crate) struct Piece {
    /// Whole blocks.
    pub(crate) blocks: BytesMut,
    /// What of that is of which source.
    pub(crate) parts: BTreeMap<u64, Part>,
}

/// What a piece has of one source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) packets: u64,
    pub(crate) bytes: usize,
    /// When the first packet was captured, in nanoseconds since 1970.
    pub(crate) oldest: u64,
}

#[derive(Debug, Default)]
struct Source {
    /// Empty, or beginning with a packet.
    blocks: Bytes,
    /// By how much its clock is ahead of the others', in nanoseconds.
    ahead: i64,
    /// How many interfaces it has described.
    described: u32,
    /// By their numbers in the source, those without final statistics.
    interfaces: BTreeMap<u32, Interface>,
    has_ended: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Interface {
    /// Its number in the section.
    id: u32,
    /// When it was described.
    since: u64,
    /// Packets passed on.
    delivered: u64,
    /// Packets lost, as far as those that were passed on have told, and as far as statistics have: either may know more first.
    told_lost: u64,
    said_lost: u64,
    /// Packets behind the cut, and those lost of which they tell.
    cut: u64,
    cut_dropped: u64,
    /// Packets that were passed on behind younger ones.
    late: u64,
}

impl Timeline {
    /// Begins with a section header, of interfaces that have all this snapshot length, in bytes. A packet of a time that lies
    /// further than `foresight` nanoseconds in the future is from before a clock was set back, and waits for nothing.
    pub(crate) fn begin(section_header: BytesMut, snaplen: u32, bounds: Bounds, foresight: u64) -> Self {
        let len = section_header.len() as u64;
        Self {
            sources: BTreeMap::new(),
            heads: BinaryHeap::new(),
            hungry: Vec::new(),
            snaplen,
            link_type: None,
            described: 0,
            open: 0,
            dropped: 0,
            piece: Piece {
                blocks: section_header,
                parts: BTreeMap::new(),
            },
            done: VecDeque::new(),
            is_full: false,
            bounds,
            foresight,
            latest: 0,
            left: Left {
                packets: bounds.packets.unwrap_or(u64::MAX),
                bytes: bounds.bytes.unwrap_or(u64::MAX).saturating_sub(len),
            },
            reached: None,
            is_cut: false,
        }
    }

    /// One more source, which has to be given what it tells. Its clock is ahead of the others' by so many nanoseconds, by which
    /// its packets are put among theirs; their times stay what they are.
    pub(crate) fn add(&mut self, source: u64, ahead: i64) {
        let of = Source {
            ahead,
            ..Source::default()
        };
        self.sources.insert(source, of);
        self.hungry.push(source);
    }

    /// Those that have told all that they were given since this was last asked: they may be given more.
    pub(crate) fn take_hungry(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.hungry)
    }

    /// The next blocks of a source that has told all others; `now` is in nanoseconds since 1970.
    pub(crate) fn give(&mut self, source: u64, blocks: Bytes, now: u64) {
        if let Some(of) = self.sources.get_mut(&source) {
            debug_assert!(of.blocks.is_empty());
            of.blocks = blocks;
            self.proceed(source, None, now);
        }
    }

    /// What a source has yet to pass on is not told.
    pub(crate) fn discard(&mut self, source: u64) {
        self.heads.retain(|Reverse((_, other))| *other != source);
        if let Some(of) = self.sources.get_mut(&source) {
            of.blocks = Bytes::new();
            self.hungry.push(source);
        }
    }

    /// A source ends behind what it was given.
    pub(crate) fn end(&mut self, source: u64, now: u64) {
        if let Some(of) = self.sources.get_mut(&source) {
            of.has_ended = true;
            if of.blocks.is_empty() {
                self.close(source, now);
            }
        }
    }

    /// Whether packets wait for others that may be older.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.heads.is_empty()
    }

    /// When the first of those that wait was captured, by the clock of the section.
    pub(crate) fn first_waiting(&self) -> Option<u64> {
        self.heads.peek().map(|Reverse((time, _))| *time)
    }

    /// Whether packets are passed on no longer.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// How many packets were lost of all interfaces, as far as it is told.
    pub(crate) fn dropped(&self) -> u64 {
        let open = self
            .sources
            .values()
            .flat_map(|source| source.interfaces.values());
        open.fold(self.dropped, |dropped, interface| {
            dropped.saturating_add(interface.lost())
        })
    }

    /// The bound that is reached, if one is.
    pub(crate) fn reached(&self) -> Option<Bound> {
        self.reached
    }

    /// Passes on packets that were captured until then, oldest first, as many as fit into a piece, or until a source has told all
    /// that it was given: it may have more to tell that is older than what others have.
    pub(crate) fn pass_on(&mut self, until: u64, now: u64) {
        while self.hungry.is_empty()
            && let Some(Reverse((time, source))) = self.heads.peek().copied()
            && !waits(time, until, now, self.foresight)
            && !self.is_full
            && self.reached.is_none()
        {
            self.heads.pop();
            let others = self.heads.peek().map(|Reverse((time, _))| *time);
            let until = others.map_or(until, |others| others.min(until));
            self.proceed(source, Some(until), now);
        }
    }

    /// Passes on no more packets. What the sources still say of their interfaces counts for what was passed on.
    pub(crate) fn cut(&mut self, now: u64) {
        self.is_cut = true;
        self.heads.clear();
        let sources: Vec<u64> = self.sources.keys().copied().collect();
        for source in sources {
            let is_waiting = self.sources.get(&source).is_some_and(|of| !of.blocks.is_empty());
            if is_waiting {
                self.proceed(source, None, now);
            }
        }
    }

    /// Tells something of what is called so, as why it is not captured, as an interface without packets, of the section's link
    /// type; tells whether there was room.
    pub(crate) fn tell(&mut self, name: &str, sentence: &str, now: u64) -> bool {
        let mut blocks = BytesMut::new();
        InterfaceDescription {
            link_type: LinkType::Ethernet,
            snaplen: self.snaplen,
            name,
            description: sentence,
            addresses: &[],
            mac: None,
            speed: None,
            filter: "",
            comment: sentence,
            os: "",
        }
        .encode(&mut blocks);
        let link_type = self.link_type.unwrap_or(LinkType::Ethernet as u16);
        InterfaceDescription::set_link_type(&mut blocks, link_type);
        InterfaceStatistics {
            interface_id: self.described,
            timestamp: now,
            start: now,
            end: Some(now),
            received: Some(0),
            accepted: Some(0),
            delivered: 0,
            dropped: Some(0),
            comment: "",
        }
        .encode(&mut blocks);
        if blocks.len() as u64 > self.room() {
            return false;
        }
        self.link_type = Some(link_type);
        self.described += 1;
        self.write(&blocks);
        true
    }

    /// Writes blocks that are about no interface, such as names; tells whether there was room.
    pub(crate) fn write_others(&mut self, blocks: &[u8]) -> bool {
        let has_room = blocks.len() as u64 <= self.room();
        if has_room {
            self.write(blocks);
        }
        has_room
    }

    /// Whether no interface is described.
    pub(crate) fn is_bare(&self) -> bool {
        self.link_type.is_none()
    }

    /// Whether there is as much to send as a message may have.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full || !self.done.is_empty()
    }

    /// What there is to send, if anything.
    pub(crate) fn take(&mut self) -> Option<Piece> {
        self.is_full = false;
        if let Some(piece) = self.done.pop_front() {
            return Some(piece);
        }
        (!self.piece.blocks.is_empty()).then(|| std::mem::take(&mut self.piece))
    }

    /// Bytes that may be written beside final statistics.
    fn room(&self) -> u64 {
        self.left
            .bytes
            .saturating_sub((self.open * MAX_STATISTICS_LEN) as u64)
    }

    fn write(&mut self, blocks: &[u8]) {
        if self.piece.blocks.len() + blocks.len() > MAX_PIECE_LEN {
            self.done.push_back(std::mem::take(&mut self.piece));
        }
        self.piece.blocks.extend_from_slice(blocks);
        self.left.bytes = self.left.bytes.saturating_sub(blocks.len() as u64);
    }

    /// Goes through what a source was given: up to the first packet that was captured after `until`, or up to the first of all.
    fn proceed(&mut self, source: u64, until: Option<u64>, now: u64) {
        let Some(mut of) = self.sources.remove(&source) else {
            return;
        };
        let mut blocks = std::mem::take(&mut of.blocks);
        while let Some(block) = EncodedBlock::first(&blocks) {
            let len = block.len();
            match block {
                EncodedBlock::Packet(packet) if self.is_cut => of.leave_out(&packet),
                EncodedBlock::Packet(packet) => {
                    let time = of.time_of(&packet);
                    if until.is_none_or(|until| waits(time, until, now, self.foresight))
                        || !self.put_packet(source, &mut of, &packet, &blocks[..len], now)
                    {
                        self.heads.push(Reverse((time, source)));
                        break;
                    }
                }
                EncodedBlock::Interface(block) => self.describe(source, &mut of, block, now),
                EncodedBlock::Statistics(block) => self.put_statistics(&mut of, block),
                // The section has its own.
                EncodedBlock::SectionHeader(_) => {}
                EncodedBlock::Other(block) => {
                    let block = Bytes::copy_from_slice(block);
                    self.write_others(&block);
                }
            }
            blocks.advance(len);
        }
        let waits = EncodedBlock::first(&blocks).is_some();
        of.blocks = if waits { blocks } else { Bytes::new() };
        let has_ended = of.has_ended;
        self.sources.insert(source, of);
        match (waits, has_ended) {
            (true, _) => {}
            (false, true) => self.close(source, now),
            (false, false) => self.hungry.push(source),
        }
    }

    /// Puts a packet into the section; tells whether it is there.
    fn put_packet(
        &mut self,
        source: u64,
        of: &mut Source,
        packet: &EncodedPacket,
        block: &[u8],
        now: u64,
    ) -> bool {
        let time = of.time_of(packet);
        let Some(interface) = of.interfaces.get_mut(&packet.interface_id) else {
            // There was no room for its description, and the section ends.
            return true;
        };
        if self.left.packets == 0 {
            self.reached = self.bounds.packets.map(Bound::Packets);
            return false;
        }
        if block.len() as u64 > self.room() {
            self.reached = self.bounds.bytes.map(Bound::Bytes);
            return false;
        }
        let begun = self.piece.blocks.len();
        if begun > 0 && begun + block.len() > MAX_PIECE_LEN {
            self.is_full = true;
            return false;
        }
        interface.delivered += 1;
        interface.told_lost = interface.told_lost.saturating_add(packet.dropped_before);
        if self.latest > now {
            // The clock was set back: nothing is late by that.
            self.latest = time;
        }
        interface.late += u64::from(time < self.latest);
        self.latest = self.latest.max(time);
        let id = interface.id.to_le_bytes();
        self.write(block);
        self.piece.blocks[begun + INTERFACE_AT..begun + INTERFACE_AT + id.len()].copy_from_slice(&id);
        self.left.packets -= 1;
        let part = self.piece.parts.entry(source).or_default();
        if part.packets == 0 {
            part.oldest = time;
        }
        part.packets += 1;
        part.bytes += block.len();
        // At once, and not with the next, which may never come.
        if self.left.packets == 0 {
            self.reached = self.bounds.packets.map(Bound::Packets);
        } else if self.room() < MIN_PACKET_LEN as u64 {
            self.reached = self.bounds.bytes.map(Bound::Bytes);
        }
        true
    }

    /// Describes the next interface of a source.
    fn describe(&mut self, source: u64, of: &mut Source, block: &[u8], now: u64) {
        let local = of.described;
        of.described += 1;
        if self.is_cut {
            return;
        }
        let (link_type, snaplen) = InterfaceDescription::link_type_and_snaplen(block);
        let first = self.link_type.unwrap_or(link_type);
        let mut annotated = BytesMut::new();
        let block = match link_type == first || InterfaceDescription::says(block, SEVERAL_LINK_TYPES) {
            true => block,
            false => {
                InterfaceDescription::annotate(block, snaplen, "", SEVERAL_LINK_TYPES, &mut annotated);
                &annotated
            }
        };
        let len = (block.len() + MAX_STATISTICS_LEN) as u64;
        if len > self.room() {
            self.reached = self.reached.or(self.bounds.bytes.map(Bound::Bytes));
            return;
        }
        let interface = Interface {
            id: self.described,
            since: now,
            ..Interface::default()
        };
        of.interfaces.insert(local, interface);
        self.link_type = Some(first);
        self.described += 1;
        self.open += 1;
        self.write(block);
        self.piece.parts.entry(source).or_default().bytes += block.len();
    }

    /// Puts statistics into the section, of what was passed on.
    fn put_statistics(&mut self, of: &mut Source, block: &[u8]) {
        let Some(said) = InterfaceStatistics::decode(block) else {
            return;
        };
        let local = said.interface_id;
        let Some(interface) = of.interfaces.get_mut(&local) else {
            return;
        };
        let is_final = said.end.is_some();
        let in_all = said.dropped.unwrap_or_default();
        let said_lost = in_all.saturating_sub(interface.cut_dropped);
        interface.said_lost = interface.said_lost.max(said_lost);
        // Packets may tell of more than was this stream's.
        let lost = interface.lost().min(in_all);
        let cut = interface.cut.saturating_add(in_all.saturating_sub(lost));
        let now = InterfaceStatistics {
            interface_id: interface.id,
            received: said.received.map(|count| count.saturating_sub(cut)),
            accepted: said.accepted.map(|count| count.saturating_sub(cut)),
            delivered: said.delivered.saturating_sub(interface.cut),
            dropped: said.dropped.map(|_| lost),
            ..said
        };
        let late = interface.late;
        let mut comment = Cow::Borrowed(said.comment);
        if is_final {
            comment = about_late(late, said.comment);
            if self.room() < (comment.len() + MAX_OPTION_MARGIN) as u64 {
                comment = Cow::Borrowed("");
            }
            self.dropped = self.dropped.saturating_add(lost);
            of.interfaces.remove(&local);
            self.open -= 1;
        } else if self.is_cut || block.len() as u64 > self.room() {
            return;
        }
        let mut block = BytesMut::with_capacity(block.len() + comment.len());
        InterfaceStatistics {
            comment: &comment,
            ..now
        }
        .encode(&mut block);
        self.write(&block);
    }

    /// Gives the interfaces of a source that has ended without them final statistics, which have what is known.
    fn close(&mut self, source: u64, now: u64) {
        let Some(of) = self.sources.remove(&source) else {
            return;
        };
        for interface in of.interfaces.values() {
            let Interface {
                id,
                since,
                delivered,
                late,
                ..
            } = *interface;
            let lost = interface.lost();
            let untold = untold(lost);
            let comment = about_late(late, &untold);
            let has_place = self.room() >= (comment.len() + MAX_OPTION_MARGIN) as u64;
            let mut block = BytesMut::with_capacity(MAX_STATISTICS_LEN + comment.len() + MAX_OPTION_MARGIN);
            InterfaceStatistics {
                interface_id: id,
                timestamp: now,
                start: since,
                end: Some(now),
                delivered,
                comment: if has_place { &comment } else { "" },
                ..InterfaceStatistics::default()
            }
            .encode(&mut block);
            self.open -= 1;
            self.dropped = self.dropped.saturating_add(lost);
            self.write(&block);
        }
    }
}

/// What the final statistics of an interface say whose source has not told its last: so many packets are known to be lost.
fn untold(lost: u64) -> String {
    let least = match lost {
        0 => String::new(),
        lost => format!(", {lost} at least"),
    };
    format!(
        "how many packets were lost is not known{least}: whoever captured has not told the last of this interface"
    )
}

/// What the final statistics of an interface say, of which so many packets came late, beside what its source says.
fn about_late(late: u64, said: &str) -> Cow<'_, str> {
    let sentence = match late {
        0 => return Cow::Borrowed(said),
        1 => "1 packet came late, and stands behind younger ones".to_owned(),
        late => format!("{late} packets came late, and stand behind younger ones"),
    };
    match said {
        "" => Cow::Owned(sentence),
        said => Cow::Owned(format!("{said}; {sentence}")),
    }
}

/// Whether a packet of this time waits for what was captured until then. One that lies further in the future than a clock goes
/// wrong is from before that was set back: nothing waits until its time comes again.
fn waits(time: u64, until: u64, now: u64, foresight: u64) -> bool {
    time > until && time < now.saturating_add(foresight)
}

impl Interface {
    /// How many packets were lost, as far as it is known.
    fn lost(&self) -> u64 {
        self.told_lost.max(self.said_lost)
    }
}

impl Source {
    /// When a packet was captured, by the clock of the others.
    fn time_of(&self, packet: &EncodedPacket) -> u64 {
        packet
            .timestamp
            .saturating_add_signed(self.ahead.saturating_neg())
    }

    /// A packet comes behind the cut.
    fn leave_out(&mut self, packet: &EncodedPacket) {
        if let Some(interface) = self.interfaces.get_mut(&packet.interface_id) {
            interface.cut += 1;
            interface.cut_dropped = interface.cut_dropped.saturating_add(packet.dropped_before);
        }
    }
}

#[cfg(test)]
mod tests;
