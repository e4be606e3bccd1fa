use proptest::prelude::*;

use super::*;
use crate::pcapng::{
    EnhancedPacket, SNAPLEN,
    samples::{INTERFACE, PACKET},
};

/// Times of packets are multiples of this, in nanoseconds, and before this one.
const STEP: u64 = 10_000_000;
const SECOND: u64 = 1_000_000_000;
const NOW: u64 = 1000 * STEP;

/// What a source tells: packets with their times, each of one of its two interfaces, and how many were lost before.
type Told = Vec<(u64, u32, u32)>;

/// Packets received, accepted, delivered and dropped.
type Counts = (Option<u64>, Option<u64>, u64, Option<u64>);

fn packet(time: u64, interface: u32, lost: u32, source: u8) -> BytesMut {
    let mut block = BytesMut::new();
    EnhancedPacket {
        interface_id: interface,
        timestamp: time,
        data: &[source; 20],
        dropped_before: lost,
        ..PACKET
    }
    .encode(&mut block);
    block
}

fn description(name: &str) -> BytesMut {
    let mut block = BytesMut::new();
    InterfaceDescription { name, ..INTERFACE }.encode(&mut block);
    block
}

fn statistics(interface: u32, delivered: u64, dropped: u64, end: Option<u64>) -> BytesMut {
    let mut block = BytesMut::new();
    InterfaceStatistics {
        interface_id: interface,
        timestamp: 7,
        start: 1,
        end,
        received: Some(delivered + dropped + 3),
        accepted: Some(delivered + dropped),
        delivered,
        dropped: Some(dropped),
        comment: "",
    }
    .encode(&mut block);
    block
}

/// The messages of a source, of so many packets each: a description before the first of each interface, and, if it
/// comes to that, its statistics at the end.
fn messages(told: &Told, each: usize, source: u8, tells_end: bool) -> Vec<Bytes> {
    let mut blocks: Vec<BytesMut> = vec![description("one"), description("two")];
    let mut counts = [(0, 0); 2];
    for (time, interface, lost) in told {
        blocks.push(packet(*time, *interface, *lost, source));
        let (delivered, dropped) = &mut counts[*interface as usize];
        *delivered += 1;
        *dropped += u64::from(*lost);
    }
    if tells_end {
        for (interface, (delivered, dropped)) in counts.into_iter().enumerate() {
            blocks.push(statistics(interface as u32, delivered, dropped, Some(9)));
        }
    }
    blocks
        .chunks(each)
        .map(|chunk| Bytes::from(chunk.concat()))
        .collect()
}

/// What stands in a section.
#[derive(Debug, Default)]
struct Read {
    interfaces: u32,
    packets: Vec<(u64, u32, u8)>,
    lost: BTreeMap<u32, u64>,
    last: BTreeMap<u32, Counts>,
    len: usize,
}

impl Read {
    fn read(&mut self, piece: &Piece) {
        let mut rest = &piece.blocks[..];
        self.len += rest.len();
        while let Some(block) = EncodedBlock::first(rest) {
            let len = block.len();
            match block {
                EncodedBlock::Interface(_) => self.interfaces += 1,
                EncodedBlock::Packet(packet) => {
                    assert!(packet.interface_id < self.interfaces, "described before");
                    assert!(
                        !self.last.contains_key(&packet.interface_id),
                        "not after its statistics"
                    );
                    self.packets
                        .push((packet.timestamp, packet.interface_id, rest[28]));
                    *self.lost.entry(packet.interface_id).or_default() += packet.dropped_before;
                }
                EncodedBlock::Statistics(block) => {
                    let said = InterfaceStatistics::decode(block).unwrap();
                    assert!(said.end.is_some());
                    let counts = (said.received, said.accepted, said.delivered, said.dropped);
                    assert_eq!(self.last.insert(said.interface_id, counts), None, "one of each");
                }
                EncodedBlock::SectionHeader(_) | EncodedBlock::Other(_) => {}
            }
            rest = &rest[len..];
        }
        assert!(rest.is_empty());
    }

    fn delivered(&self, interface: u32) -> u64 {
        self.packets.iter().filter(|(_, of, _)| *of == interface).count() as u64
    }
}

fn told() -> impl Strategy<Value = Told> {
    // Up to ten seconds: what comes of one source may lie far apart.
    let time = (0u64..1000).prop_map(|step| step * STEP);
    let one = (time, 0u32..2, prop_oneof![4 => Just(0u32), 1 => 1u32..9]);
    proptest::collection::vec(one, 0..40).prop_map(|mut told| {
        told.sort_by_key(|(time, ..)| *time);
        told
    })
}

/// Gives all that sources tell to a timeline, in steps of time; what was captured until a step is given before it.
fn run(sources: &[(Told, usize)], bounds: Bounds, tells_end: bool, step: u64) -> (Read, Option<Bound>) {
    let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, bounds, SECOND);
    let mut queues: Vec<VecDeque<Bytes>> = Vec::new();
    for (source, (told, each)) in sources.iter().enumerate() {
        timeline.add(source as u64, 0);
        queues.push(messages(told, *each, source as u8, tells_end).into());
    }
    let mut read = Read::default();
    let mut until = 0;
    loop {
        let mut is_idle = true;
        let mut hungry = timeline.take_hungry();
        while let Some(source) = hungry.pop() {
            is_idle = false;
            match queues[source as usize].pop_front() {
                Some(blocks) => timeline.give(source, blocks, NOW),
                None => timeline.end(source, NOW),
            }
            hungry.extend(timeline.take_hungry());
        }
        timeline.pass_on(until, NOW);
        if timeline.reached().is_some() && !timeline.is_cut {
            timeline.cut(NOW);
        }
        let piece = timeline.take();
        piece.iter().for_each(|piece| read.read(piece));
        if timeline.sources.is_empty() && piece.is_none() {
            return (read, timeline.reached());
        }
        // All that is older was given: whoever is hungry has nothing of it.
        if is_idle && piece.is_none() {
            until += step * STEP;
        }
    }
}

/// Another's stream may say what it likes.
#[test]
fn no_count_of_a_source_ends_what_others_tell() {
    const LOST: u32 = 0x0102_0304;
    let mut block = packet(STEP, 0, LOST, 1).to_vec();
    let at = block
        .windows(8)
        .position(|bytes| bytes == u64::from(LOST).to_le_bytes());
    let at = at.unwrap();
    block[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, Bounds::default(), SECOND);
    timeline.add(1, 0);
    let blocks = [
        &description("eth0")[..],
        &description("eth1"),
        &block,
        &packet(2 * STEP, 0, 5, 1),
        &packet(3 * STEP, 1, 5, 1),
    ]
    .concat();
    timeline.take_hungry();
    timeline.give(1, Bytes::from(blocks), NOW);
    timeline.pass_on(u64::MAX, NOW);
    timeline.take_hungry();
    assert_eq!(timeline.dropped(), u64::MAX);
    timeline.end(1, NOW);
    timeline.pass_on(u64::MAX, NOW);
    let mut last = Vec::new();
    while let Some(piece) = timeline.take() {
        let mut rest = &piece.blocks[..];
        while let Some(block) = EncodedBlock::first(rest) {
            if let EncodedBlock::Statistics(_) = block {
                last.extend(
                    InterfaceStatistics::decode(&rest[..block.len()])
                        .map(|said| (said.delivered, said.dropped, said.comment.to_owned())),
                );
            }
            rest = &rest[block.len()..];
        }
    }
    assert_eq!(last, [(2, None, untold(u64::MAX)), (1, None, untold(5))]);
    assert_eq!(timeline.dropped(), u64::MAX);
}

/// All statistics of a section: what was delivered and dropped, what is said beside it, and whether they are the last.
fn told_statistics(timeline: &mut Timeline) -> Vec<(u64, Option<u64>, String, bool)> {
    let mut told = Vec::new();
    while let Some(piece) = timeline.take() {
        let mut rest = &piece.blocks[..];
        while let Some(block) = EncodedBlock::first(rest) {
            let len = block.len();
            if let EncodedBlock::Statistics(block) = block {
                let said = InterfaceStatistics::decode(block).unwrap();
                told.push((
                    said.delivered,
                    said.dropped,
                    said.comment.to_owned(),
                    said.end.is_some(),
                ));
            }
            rest = &rest[len..];
        }
    }
    told
}

/// Statistics may know of losses before the packet comes that tells of them, as its CPU has another soon or late.
#[test]
fn losses_that_statistics_have_told_are_not_counted_again() {
    let untold = |dropped| (2, None, untold(dropped), true);
    for (lost, said, least) in [
        // Packets have told of nothing else.
        ([0, 1000], 1000, 1000),
        // They have told of less, or of more.
        ([300, 0], 1000, 1000),
        ([300, 900], 1000, 1200),
        ([0, 1200], 1000, 1200),
    ] {
        let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, Bounds::default(), SECOND);
        timeline.add(1, 0);
        timeline.take_hungry();
        let blocks = [
            &description("eth0")[..],
            &packet(STEP, 0, lost[0], 1),
            &statistics(0, 1, said, None),
            &packet(2 * STEP, 0, lost[1], 1),
        ]
        .concat();
        timeline.give(1, Bytes::from(blocks), NOW);
        timeline.pass_on(u64::MAX, NOW);
        assert_eq!(timeline.dropped(), least, "{lost:?}");
        timeline.take_hungry();
        timeline.end(1, NOW);
        let told = told_statistics(&mut timeline);
        assert_eq!(told, [(1, Some(said), String::new(), false), untold(least)]);
        assert_eq!(timeline.dropped(), least);
    }
}

/// The packet that tells of them may stand behind the cut.
#[test]
fn losses_that_were_told_before_the_cut_stay_told() {
    let bounds = Bounds {
        packets: Some(1),
        bytes: None,
    };
    let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, bounds, SECOND);
    timeline.add(1, 0);
    timeline.take_hungry();
    let blocks = [
        &description("eth0")[..],
        &statistics(0, 0, 1000, None),
        &packet(STEP, 0, 0, 1),
        &packet(2 * STEP, 0, 1000, 1),
        &packet(3 * STEP, 0, 7, 1),
        &statistics(0, 3, 1007, Some(9)),
    ]
    .concat();
    timeline.give(1, Bytes::from(blocks), NOW);
    timeline.pass_on(u64::MAX, NOW);
    assert_eq!(timeline.reached(), Some(Bound::Packets(1)));
    timeline.cut(NOW);
    let told = told_statistics(&mut timeline);
    assert_eq!(
        told,
        [
            (0, Some(1000), String::new(), false),
            (1, Some(1000), String::new(), true)
        ]
    );
    assert_eq!(timeline.dropped(), 1000);
}

proptest! {
    #[test]
    fn packets_follow_each_other_in_time_and_each_is_accounted_for(
        sources in proptest::collection::vec((told(), 1usize..12), 1..6),
        tells_end in any::<bool>(), step in 1u64..400,
    ) {
        let (read, reached) = run(&sources, Bounds::default(), tells_end, step);
        prop_assert_eq!(reached, None);
        let mut expected: Vec<u64> = sources.iter().flat_map(|(told, _)| told).map(|(time, ..)| *time).collect();
        expected.sort_unstable();
        let times: Vec<u64> = read.packets.iter().map(|(time, ..)| *time).collect();
        prop_assert_eq!(times, expected);
        prop_assert_eq!(read.interfaces as usize, 2 * sources.len());
        prop_assert_eq!(read.last.len(), 2 * sources.len());
        // No two sources have an interface in common.
        let mut owners = BTreeMap::new();
        for (_, interface, source) in &read.packets {
            prop_assert_eq!(owners.insert(*interface, *source).unwrap_or(*source), *source);
        }
        for (interface, (received, accepted, delivered, dropped)) in &read.last {
            prop_assert_eq!(*delivered, read.delivered(*interface));
            let lost = read.lost.get(interface).copied().unwrap_or_default();
            // What a source has not told is not made up.
            let counts = tells_end.then_some((delivered + lost + 3, delivered + lost, lost));
            prop_assert_eq!(counts.map(|(count, ..)| count), *received);
            prop_assert_eq!(counts.map(|(_, count, _)| count), *accepted);
            prop_assert_eq!(counts.map(|(.., count)| count), *dropped);
        }
    }

    #[test]
    fn cut_section_accounts_for_what_is_in_it_and_nothing_else(
        sources in proptest::collection::vec((told(), 1usize..12), 1..5),
        packets in proptest::option::of(1u64..60), bytes in proptest::option::of(1500u64..9000),
        tells_end in any::<bool>(),
    ) {
        let (read, reached) = run(&sources, Bounds { packets, bytes }, tells_end, 50);
        let all = sources.iter().map(|(told, _)| told.len()).sum::<usize>();
        prop_assert_eq!(reached.is_none(), read.packets.len() == all && Some(all as u64) != packets
            && reached.is_none());
        prop_assert!(packets.is_none_or(|packets| read.packets.len() as u64 <= packets));
        prop_assert!(bytes.is_none_or(|bytes| read.len as u64 <= bytes), "{} of {:?}", read.len, bytes);
        if let (Some(Bound::Packets(_)), Some(packets)) = (reached, packets) {
            prop_assert_eq!(read.packets.len() as u64, packets);
        }
        prop_assert_eq!(read.last.len(), read.interfaces as usize);
        for (interface, (_, accepted, delivered, dropped)) in &read.last {
            prop_assert_eq!(*delivered, read.delivered(*interface));
            let lost = read.lost.get(interface).copied().unwrap_or_default();
            prop_assert_eq!(*dropped, tells_end.then_some(lost));
            prop_assert_eq!(*accepted, tells_end.then_some(delivered + lost));
        }
    }
}

#[test]
fn what_is_not_told_any_more_holds_nothing_up() {
    let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, Bounds::default(), SECOND);
    for source in 0..2 {
        timeline.add(source, 0);
        let told = vec![(10 + source, 0, 0), (20 + source, 1, 0)];
        timeline.give(source, messages(&told, 9, source as u8, false).concat().into(), 5);
    }
    timeline.discard(0);
    assert_eq!(timeline.take_hungry(), [0, 1, 0]);
    timeline.end(0, 5);
    timeline.pass_on(100, 5);
    timeline.end(1, 5);
    let mut read = Read::default();
    read.read(&timeline.take().unwrap());
    let times: Vec<u64> = read.packets.iter().map(|(time, ..)| *time).collect();
    assert_eq!((times, read.last.len()), (vec![11, 21], 4));
    assert_eq!(timeline.take_hungry(), [1]);
}

#[test]
fn packet_waits_for_older_ones_however_old_and_not_for_a_clock_that_was_set_back() {
    let second = SECOND;
    let now = 100 * second;
    for (time, until, expected) in [
        (now - second, now - second, false),
        (now - 1, now - 2 * second, true),
        (now - second, now - 90 * second, true),
        (now + second - 1, now, true),
        (now + second, now, false),
        (u64::MAX, now, false),
    ] {
        assert_eq!(waits(time, until, now, second), expected, "{time} {until}");
    }
}

#[test]
fn packets_that_come_late_are_told_at_the_end_of_their_interface() {
    let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, Bounds::default(), SECOND);
    // Nothing is late behind what a clock said before it was set back.
    for (source, times) in [
        (0, vec![10, 20, NOW + 2 * SECOND]),
        (1, vec![15, 25]),
        (2, vec![30, 5, 6]),
    ] {
        timeline.add(source, 0);
        let told = times.into_iter().map(|time| (time, 0, 0)).collect();
        let blocks = messages(&told, 9, source as u8, true).concat();
        timeline.take_hungry();
        timeline.give(source, blocks.into(), NOW);
        timeline.pass_on(u64::MAX, NOW);
        timeline.take_hungry();
    }
    let mut told = Vec::new();
    let piece = timeline.take().unwrap();
    let mut rest = &piece.blocks[..];
    while let Some(block) = EncodedBlock::first(rest) {
        let len = block.len();
        if let EncodedBlock::Statistics(block) = block {
            let said = InterfaceStatistics::decode(block).unwrap();
            told.push(said.comment.to_owned());
        }
        rest = &rest[len..];
    }
    assert_eq!(
        told,
        [
            "",
            "",
            "",
            "",
            "2 packets came late, and stand behind younger ones",
            ""
        ]
    );
    assert_eq!(
        about_late(1, "more is missing"),
        "more is missing; 1 packet came late, and stands behind younger ones"
    );
}

/// Link types and snapshot lengths of the interfaces of a section, each with whether it says that there are several.
fn described(timeline: &mut Timeline) -> Vec<(u16, u32, bool)> {
    let mut described = Vec::new();
    while let Some(piece) = timeline.take() {
        let mut rest = &piece.blocks[..];
        while let Some(block) = EncodedBlock::first(rest) {
            let len = block.len();
            if let EncodedBlock::Interface(block) = block {
                let (link_type, snaplen) = InterfaceDescription::link_type_and_snaplen(block);
                described.push((
                    link_type,
                    snaplen,
                    InterfaceDescription::says(block, SEVERAL_LINK_TYPES),
                ));
            }
            rest = &rest[len..];
        }
    }
    described
}

#[test]
fn interfaces_differ_as_little_as_readers_on_libpcap_want_and_say_where_they_do() {
    const ETHERNET: u16 = LinkType::Ethernet as u16;
    const RAW: u16 = LinkType::Raw as u16;
    let of_type = |link_type| {
        let (mut given, mut block) = (description("eth0"), BytesMut::new());
        InterfaceDescription::set_link_type(&mut given, link_type);
        InterfaceDescription::annotate(&given, 96, "", "", &mut block);
        Bytes::from(block)
    };
    let begin = || Timeline::begin(BytesMut::new(), 96, Bounds::default(), SECOND);
    let mut timeline = begin();
    for (source, link_type) in [(0, RAW), (1, RAW), (2, ETHERNET)] {
        timeline.add(source, 0);
        timeline.give(source, of_type(link_type), NOW);
        timeline.tell("n1", "it lags", NOW);
    }
    let told = (RAW, 96, false);
    assert_eq!(
        described(&mut timeline),
        [told, told, told, told, (ETHERNET, 96, true), told]
    );
    // Nobody knows yet.
    let mut timeline = begin();
    timeline.add(0, 0);
    timeline.tell("n1", "it is gone", NOW);
    timeline.give(0, of_type(RAW), NOW);
    assert_eq!(described(&mut timeline), [(ETHERNET, 96, false), (RAW, 96, true)]);
}

#[test]
fn sentence_is_an_interface_without_packets() {
    let mut timeline = Timeline::begin(BytesMut::new(), SNAPLEN, Bounds::default(), SECOND);
    assert!(timeline.tell("web", "not captured: too many", 5));
    let mut read = Read::default();
    read.read(&timeline.take().unwrap());
    assert_eq!((read.interfaces, read.last.len()), (1, 1));
    let bounds = Bounds {
        bytes: Some(50),
        ..Bounds::default()
    };
    assert!(!Timeline::begin(BytesMut::new(), SNAPLEN, bounds, SECOND).tell("web", "not captured", 5));
}
