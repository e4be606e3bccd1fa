//! The encoder, held against a walk through its blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use proptest::prelude::*;

use super::{
    options::Block,
    samples::{INTERFACE, PACKET, SECTION_HEADER},
    *,
};

/// A block's type, its body with options, as plain as the format defines it.
fn blocks(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let len = u32_at(bytes, 4) as usize;
        assert_eq!(len % 4, 0);
        assert_eq!(u32_at(bytes, len - 4) as usize, len, "both lengths of a block");
        found.push((u32_at(bytes, 0), bytes[8..len - 4].to_vec()));
        bytes = &bytes[len..];
    }
    found
}

fn options(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    loop {
        let code = u16::from_le_bytes([bytes[0], bytes[1]]);
        let len = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        if code == 0 {
            assert_eq!(bytes.len(), 4, "nothing follows the end of options");
            return found;
        }
        found.push((code, bytes[4..4 + len].to_vec()));
        bytes = &bytes[4 + padded(len)..];
    }
}

/// Records of a block of names, which nothing follows.
fn names(mut bytes: &[u8]) -> Vec<(IpAddr, String)> {
    let mut found = Vec::new();
    loop {
        let record_type = u16::from_le_bytes([bytes[0], bytes[1]]);
        let len = usize::from(u16::from_le_bytes([bytes[2], bytes[3]]));
        if record_type == 0 {
            assert_eq!((len, bytes.len()), (0, 4), "nothing follows the end of records");
            return found;
        }
        let value = &bytes[4..4 + len];
        let (address, name): (IpAddr, &[u8]) = match record_type {
            1 => (<[u8; 4]>::try_from(&value[..4]).unwrap().into(), &value[4..]),
            2 => (<[u8; 16]>::try_from(&value[..16]).unwrap().into(), &value[16..]),
            other => panic!("record type {other}"),
        };
        let (name, end) = name.split_at(name.len() - 1);
        assert_eq!(end, [0]);
        assert!(!name.contains(&0), "one name per record");
        found.push((address, String::from_utf8(name.to_vec()).unwrap()));
        assert!(bytes[4 + len..4 + padded(len)].iter().all(|byte| *byte == 0));
        bytes = &bytes[4 + padded(len)..];
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn time_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

proptest! {
    #[test]
    fn section_header_stays_within_its_bound(
        hardware in any::<String>(), os in any::<String>(), application in any::<String>(),
        container_name in ".*{0,8}", container_type in "[\"\\\\\u{1}]{0,300}", node_name in any::<String>(),
        chaste in any::<bool>(), cluster_uid in any::<String>(), filter in ".*{0,20}",
    ) {
        let header = SectionHeader {
            hardware: &hardware, os: &os, application: &application,
            comment: CaptureComment {
                container_name: &container_name, container_type: &container_type, node_name: &node_name, cluster_uid: &cluster_uid,
                filter: &filter, chaste,
            },
        };
        let mut out = BytesMut::new();
        header.encode(&mut out);
        prop_assert!(out.len() <= MAX_SECTION_HEADER_LEN, "{} bytes", out.len());
        let blocks = blocks(&out);
        prop_assert_eq!(blocks.len(), 1);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 0x0a0d_0d0a);
        prop_assert_eq!(&body[..16], &[0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        let (code, comment) = &options(&body[16..])[0];
        prop_assert_eq!(*code, 1);
        let comment = std::str::from_utf8(comment).unwrap();
        prop_assert!(comment.starts_with("---\n# capture target information\ncontainer-name: \""));
        prop_assert_eq!(comment.lines().count(), 5 + usize::from(chaste) + usize::from(!cluster_uid.is_empty()) + usize::from(!filter.is_empty()));
    }

    #[test]
    fn packet_stands_as_it_was(
        interface_id in any::<u32>(), timestamp in any::<u64>(), more in 0u32..9000,
        data in proptest::collection::vec(any::<u8>(), 0..300),
        vlan in proptest::option::of((any::<u16>(), any::<u16>())),
        cooked in proptest::option::of(any::<[u16; 3]>()),
        outbound in any::<bool>(), checksum in any::<bool>(), segmentation in any::<bool>(), dropped_before in prop_oneof![Just(0u32), any::<u32>()],
        snaplen in prop_oneof![0u32..320, Just(SNAPLEN)],
    ) {
        let packet = EnhancedPacket {
            interface_id, timestamp,
            original_len: data.len() as u32 + more,
            cooked: cooked.map(|[packet_type, hardware_type, protocol]| CookedHeader {
                packet_type, hardware_type, protocol,
            }),
            data: &data,
            snaplen,
            vlan: vlan.map(|(protocol, tci)| VlanTag { protocol, tci }),
            direction: if outbound { PacketDirection::Outbound } else { PacketDirection::Inbound },
            reception: Reception::Multicast,
            offloads: Offloads { checksum, segmentation },
            dropped_before,
        };
        let mut out = BytesMut::new();
        packet.encode(&mut out);
        prop_assert_eq!(out.len(), packet.encoded_len());

        let mut expected = data.clone();
        if let Some([packet_type, hardware_type, protocol]) = cooked {
            let [packet_type, hardware_type, protocol] = [packet_type, hardware_type, protocol].map(u16::to_be_bytes);
            // An address of no bytes, in the eight that there are for it.
            let head = [&packet_type[..], &hardware_type, &[0; 10], &protocol].concat();
            expected.splice(0..0, head);
        } else if let Some((protocol, tci)) = vlan.filter(|_| data.len() >= 12) {
            expected.splice(12..12, [protocol.to_be_bytes(), tci.to_be_bytes()].concat());
        }
        let original_len = expected.len() + more as usize;
        expected.truncate(snaplen as usize);
        let read_back = EncodedPacket { len: out.len(), interface_id, timestamp, captured_len: expected.len() as u32, dropped_before: dropped_before.into() };
        prop_assert_eq!(EncodedPacket::first(&out), Some(read_back));
        for dropped in [0, u64::from(dropped_before) + 7] {
            let other = read_back.with_dropped(&out, dropped);
            let told = EncodedPacket { len: other.len(), dropped_before: dropped, ..read_back };
            prop_assert_eq!(EncodedPacket::first(&other), Some(told));
            if let Ok(dropped_before) = u32::try_from(dropped) {
                let mut again = BytesMut::new();
                EnhancedPacket { dropped_before, ..packet }.encode(&mut again);
                prop_assert_eq!(&again[..], &other[..]);
            }
        }
        prop_assert_eq!(EncodedPacket::first(&out[..out.len() - 1]), None);
        let blocks = blocks(&out);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 6);
        prop_assert_eq!(u32_at(body, 0), interface_id);
        prop_assert_eq!(time_at(body, 4), timestamp);
        prop_assert_eq!(u32_at(body, 12) as usize, expected.len());
        prop_assert_eq!(u32_at(body, 16) as usize, original_len);
        prop_assert_eq!(&body[20..20 + expected.len()], &expected[..]);
        let options = options(&body[20 + padded(expected.len())..]);
        let direction = if outbound { 2u32 } else { 1 };
        let offloads = u32::from(checksum) << 9 | u32::from(segmentation) << 11;
        prop_assert_eq!(&options[0], &(2, (direction | 2 << 2 | offloads).to_le_bytes().to_vec()));
        if dropped_before > 0 {
            prop_assert_eq!(&options[1], &(4, u64::from(dropped_before).to_le_bytes().to_vec()));
        } else {
            prop_assert_eq!(options.len(), 1);
        }
    }

    #[test]
    fn interface_tells_what_is_known(
        name in "[a-z0-9.]{1,15}", description in any::<String>(), v4 in any::<u32>(), v6 in any::<u128>(),
        prefix_len in 0u8..=32, mac in proptest::option::of(any::<[u8; 6]>()),
        speed in proptest::option::of(any::<u64>()), filter in "[a-z ]{1,20}", snaplen in 1..=SNAPLEN,
    ) {
        let addresses = [
            InterfaceAddress { address: IpAddr::V4(Ipv4Addr::from_bits(v4)), prefix_len },
            InterfaceAddress { address: IpAddr::V6(Ipv6Addr::from_bits(v6)), prefix_len },
        ];
        let mut out = BytesMut::new();
        InterfaceDescription {
            link_type: LinkType::Raw, snaplen, name: &name, description: &description, addresses: &addresses, mac, speed,
            filter: &filter, comment: "", os: "Linux",
        }.encode(&mut out);
        let blocks = blocks(&out);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 1);
        prop_assert_eq!(u32_at(body, 0), 101);
        prop_assert_eq!(u32_at(body, 4), snaplen);
        let options = options(&body[8..]);
        let value = |code: u16| options.iter().find(|option| option.0 == code).map(|option| option.1.clone());
        prop_assert_eq!(value(2), Some(name.into_bytes()));
        prop_assert_eq!(value(3), Some(description.into_bytes()).filter(|text| !text.is_empty()));
        prop_assert_eq!(value(11), Some([&[0], filter.as_bytes()].concat()));
        let mask = (u64::from(u32::MAX) << (32 - prefix_len)) as u32;
        prop_assert_eq!(value(4), Some([v4.to_be_bytes(), mask.to_be_bytes()].concat()));
        prop_assert_eq!(value(5), Some([&v6.to_be_bytes()[..], &[prefix_len]].concat()));
        prop_assert_eq!(value(6), mac.map(|mac| mac.to_vec()));
        prop_assert_eq!(value(8), speed.map(|speed| speed.to_le_bytes().to_vec()));
        prop_assert_eq!(value(9), Some(vec![9]));
    }

    #[test]
    fn statistics_tell_every_count(
        interface_id in any::<u32>(),
        (timestamp, start, end) in any::<(u64, u64, Option<u64>)>(),
        (received, accepted, delivered, dropped) in any::<(Option<u64>, Option<u64>, u64, Option<u64>)>(),
    ) {
        let mut out = BytesMut::new();
        InterfaceStatistics { interface_id, timestamp, start, end, received, accepted, delivered, dropped, comment: "" }
            .encode(&mut out);
        let absent = [end, received, accepted, dropped].iter().filter(|one| one.is_none()).count();
        prop_assert_eq!(out.len(), MAX_STATISTICS_LEN - 12 * absent);
        let blocks = blocks(&out);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 5);
        prop_assert_eq!(u32_at(body, 0), interface_id);
        prop_assert_eq!(time_at(body, 4), timestamp);
        let options = options(&body[12..]);
        let value = |code: u16| options.iter().find(|option| option.0 == code).map(|option| &option.1[..]);
        prop_assert_eq!(value(2).map(|time| time_at(time, 0)), Some(start));
        prop_assert_eq!(value(3).map(|time| time_at(time, 0)), end);
        for (code, count) in [(4, received), (5, dropped), (6, accepted), (8, Some(delivered))] {
            prop_assert_eq!(value(code).map(<[u8]>::to_vec), count.map(|count| count.to_le_bytes().to_vec()));
        }
        // Nobody is to add up what is told once.
        prop_assert_eq!(value(7), None);
    }
}

proptest! {
    #[test]
    fn names_stand_in_blocks_that_fit(
        given in proptest::collection::vec((any::<IpAddr>(), any::<String>()), 0..40),
        (long, long_len) in (0u32..600, 200usize..400),
        max_len in prop_oneof![0usize..2000, Just(MAX_BLOCK_LEN)],
    ) {
        let long = (0..long).map(|n| (Ipv4Addr::from_bits(n).into(), "x".repeat(long_len)));
        let given: Vec<(IpAddr, HostName)> = given
            .into_iter()
            .chain(long)
            .filter_map(|(address, name)| Some((address, HostName::new(&name)?)))
            .collect();
        let resolutions = given.iter().map(|(address, name)| NameResolution { address: *address, name });
        let mut out = BytesMut::from(&b"what was there before"[..]);
        let before = out.len();
        let written = NameResolution::encode_all(resolutions, max_len, &mut out);
        let out = &out[before..];
        prop_assert!(out.len() <= max_len);
        let mut found = Vec::new();
        for (block_type, body) in blocks(out) {
            prop_assert_eq!(block_type, 4);
            prop_assert!(body.len() + 12 <= 64 * 1024);
            let names = names(&body);
            prop_assert!(!names.is_empty());
            found.extend(names);
        }
        let expected: Vec<(IpAddr, String)> = given[..written]
            .iter()
            .map(|(address, name)| (*address, name.as_ref().to_owned()))
            .collect();
        prop_assert_eq!(found, expected);
        if let Some((address, name)) = given.get(written) {
            let record_len = if address.is_ipv4() { 8 } else { 20 } + name.as_ref().len() + 1;
            prop_assert!(out.len() + 16 + padded(record_len) > max_len, "there was room for one more");
        }
    }

    #[test]
    fn host_name_can_be_shown(name in any::<String>(), ascii in "[ -~]{1,300}") {
        if let Some(name) = HostName::new(&name) {
            let name = name.as_ref();
            prop_assert!(!name.is_empty());
            prop_assert!(!name.contains(char::is_control));
            let limit = if name.is_ascii() { 255 } else { 63 };
            prop_assert!(name.len() <= limit, "{} bytes", name.len());
            prop_assert_eq!(HostName::new(name).map(|again| again.as_ref() == name), Some(true));
        } else {
            prop_assert!(name.is_empty());
        }
        let shown = HostName::new(&ascii).unwrap();
        prop_assert_eq!(shown.as_ref(), &ascii[..ascii.len().min(255)]);
    }
}

#[test]
fn names_are_records_of_addresses() {
    let [web, sleep] = ["default/web-0", "sleep(123)"].map(|name| HostName::new(name).unwrap());
    let resolutions = [
        NameResolution {
            address: Ipv4Addr::new(10, 0, 0, 1).into(),
            name: &web,
        },
        NameResolution {
            address: Ipv6Addr::LOCALHOST.into(),
            name: &sleep,
        },
    ];
    let mut out = BytesMut::new();
    assert_eq!(NameResolution::encode_all(resolutions, 1000, &mut out), 2);
    let expected = [
        &b"\x04\0\0\0\x48\0\0\0"[..],
        b"\x01\0\x12\0\x0a\0\0\x01default/web-0\0\0\0",
        b"\x02\0\x1b\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01sleep(123)\0\0",
        b"\0\0\0\0\x48\0\0\0",
    ]
    .concat();
    assert_eq!(out, expected);
}

#[test]
fn host_names_lose_what_cannot_be_shown() {
    let shown = |name: &str| HostName::new(name).map(|name| name.as_ref().to_owned());
    for name in [
        "/run/netns/x y",
        "größe",
        "コンテナ",
        "kube-system/coredns-5d78c9869d-abcde",
    ] {
        assert_eq!(shown(name).as_deref(), Some(name));
    }
    assert_eq!(shown(""), None);
    assert_eq!(
        shown("a\0b\nc\u{1b}[2Jd\u{7f}\u{85}").as_deref(),
        Some("a_b_c_[2Jd__")
    );
    assert_eq!(shown("\u{202e}bew\u{2028}").as_deref(), Some("_bew_"));
    // 31 characters of two bytes, and half of one more.
    assert_eq!(shown(&"é".repeat(100)), Some("é".repeat(31)));
}

#[test]
fn largest_packet_stays_within_a_block() {
    let data = vec![0; packetflix_common::MAX_CAPTURED_LEN as usize];
    let packet = EnhancedPacket {
        interface_id: 0,
        timestamp: 0,
        original_len: 524_280,
        cooked: None,
        data: &data,
        snaplen: SNAPLEN,
        vlan: Some(VlanTag {
            protocol: 0x8100,
            tci: 5,
        }),
        direction: PacketDirection::Inbound,
        reception: Reception::Unicast,
        offloads: Offloads::default(),
        dropped_before: 1,
    };
    assert!(packet.encoded_len() <= MAX_BLOCK_LEN);
    let cooked = Some(CookedHeader {
        packet_type: 0,
        hardware_type: 778,
        protocol: 0x800,
    });
    let cooked = EnhancedPacket { cooked, ..packet };
    assert!(cooked.encoded_len() <= MAX_BLOCK_LEN);
}

/// One block of each type, of all that can stand in it.
fn one_of_each() -> Vec<BytesMut> {
    let address = |address: &str, prefix_len| InterfaceAddress {
        address: address.parse().unwrap(),
        prefix_len,
    };
    let name = HostName::new("größe.example").unwrap();
    let encoded = |encode: &dyn Fn(&mut BytesMut)| {
        let mut block = BytesMut::new();
        encode(&mut block);
        block
    };
    let packet = |dropped_before, len| EnhancedPacket {
        data: &PACKET.data[..len],
        dropped_before,
        ..PACKET
    };
    vec![
        encoded(&|out| SECTION_HEADER.encode(out)),
        encoded(&|out| {
            InterfaceDescription {
                addresses: &[address("10.0.0.1", 8), address("fd00::1", 64)],
                mac: Some([2; 6]),
                speed: Some(1_000_000),
                filter: "tcp",
                ..INTERFACE
            }
            .encode(out);
        }),
        encoded(&|out| packet(0, 21).encode(out)),
        encoded(&|out| packet(3, 20).encode(out)),
        encoded(&|out| packet(1, 0).encode(out)),
        encoded(&|out| {
            InterfaceStatistics {
                end: Some(9),
                comment: "late",
                ..InterfaceStatistics::default()
            }
            .encode(out);
        }),
        encoded(&|out| {
            let names = ["10.0.0.1", "fd00::1"].map(|address| NameResolution {
                address: address.parse().unwrap(),
                name: &name,
            });
            NameResolution::encode_all(names, 1000, out);
        }),
    ]
}

/// Whether a reader that is not written here reads these blocks.
fn is_read(blocks: &[u8]) -> bool {
    let Ok((mut rest, mut parser)) = pcap_file::pcapng::PcapNgParser::new(blocks) else {
        return false;
    };
    while !rest.is_empty() {
        match parser.next_block(rest) {
            Ok((behind, _)) => rest = behind,
            Err(_) => return false,
        }
    }
    true
}

#[test]
fn blocks_of_another_are_held_to_the_form_that_they_have_here() {
    let blocks = one_of_each();
    for block in &blocks {
        assert!(EncodedBlock::sent(block).is_ok(), "{block:?}");
    }
    let [header, interface, packet, lost, _, statistics, names] = &blocks[..] else {
        panic!("one of each");
    };
    let interface_len = interface.len();
    for (what, block, at, bytes) in [
        (
            "another length at the end",
            packet,
            packet.len() - 4,
            &[0, 1, 0, 0][..],
        ),
        ("another length at the beginning", packet, 4, &[4]),
        ("captured beyond the block", packet, 20, &[0xff, 0xff]),
        (
            "captured beyond all bounds",
            packet,
            20,
            &[0xfc, 0xff, 0xff, 0xff],
        ),
        ("flags of another length", packet, 28 + 24 + 2, &[5]),
        ("another option than flags", packet, 28 + 24, &[1]),
        ("another option than the count", lost, 28 + 20 + 8, &[5]),
        ("no end of options", packet, packet.len() - 8, &[1]),
        ("no snapshot length", interface, 12, &[0, 0, 0, 0]),
        (
            "a snapshot length beyond all bounds",
            interface,
            12,
            &[1, 0, 4, 0],
        ),
        ("something beside the link type", interface, 10, &[1]),
        ("an option beyond the block", interface, 18, &[0xff]),
        ("no text", interface, 20, &[0xff]),
        ("no end of options", interface, interface_len - 8, &[2]),
        ("another byte order", header, 8, &[0x1a, 0x2b, 0x3c, 0x4d]),
        ("another version", header, 12, &[2]),
        ("statistics beyond the block", statistics, 22, &[0xff]),
        ("a name beyond the block", names, 10, &[0xff]),
        ("a record of another type", names, 8, &[3]),
        ("a name without its end", names, 8 + 4 + 4 + 15, b"a"),
        ("a name that controls a terminal", names, 8 + 4 + 4, &[0x1b]),
    ] {
        let mut block = block.to_vec();
        let block_type = u32_at(&block, 0);
        block[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(
            EncodedBlock::sent(&block),
            Err(NotWritten::Content(block_type)),
            "{what}"
        );
    }
    let mut long = BytesMut::new();
    let mut header = Block::begin(&mut long, 0x0a0d_0d0a);
    header.body(&one_of_each()[0][8..24]);
    header.option(1, &[b'a'; MAX_SECTION_HEADER_LEN]);
    header.end();
    assert!(is_read(&long));
    assert_eq!(EncodedBlock::sent(&long), Err(NotWritten::Content(0x0a0d_0d0a)));
    for bytes in [&[][..], &[1], &[3, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0]] {
        assert!(matches!(EncodedBlock::sent(bytes), Err(NotWritten::Type(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_another_has_sent_can_be_read(
        which in 0usize..7, repeats in any::<prop::sample::Index>(), cut in 0usize..3,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), prop_oneof![0u8..10, any::<u8>()]), 0..4),
    ) {
        let blocks = one_of_each();
        let mut block = blocks[which].to_vec();
        for (at, byte) in changes {
            let at = at.index(block.len());
            block[at] = byte;
        }
        // Words that stand twice, or not at all, with lengths that are right.
        let at = repeats.index(block.len() / 4) * 4;
        match cut {
            0 => {}
            1 => { block.drain(at..at + 4); }
            _ => { let word = block[at..at + 4].to_vec(); block.splice(at..at, word); }
        }
        if cut > 0 && block.len() >= 12 {
            let (len, end) = ((block.len() as u32).to_le_bytes(), block.len() - 4);
            block[4..8].copy_from_slice(&len);
            block[end..].copy_from_slice(&len);
        }
        if let Ok(sent) = EncodedBlock::sent(&block) {
            prop_assert_eq!(sent.len(), block.len());
            prop_assert_eq!(EncodedBlock::first(&block), Some(sent));
            let stream = match which {
                0 => block,
                _ => [&blocks[0][..], &blocks[1], &block].concat(),
            };
            prop_assert!(is_read(&stream), "{:?}", stream);
        }
    }
}
