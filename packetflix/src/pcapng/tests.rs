//! The encoder, held against a walk through its blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

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
        chaste in any::<bool>(), cluster_uid in "[a-z0-9-]{0,40}",
    ) {
        let header = SectionHeader {
            hardware: &hardware, os: &os, application: &application,
            comment: CaptureComment {
                container_name: &container_name, container_type: &container_type, node_name: &node_name, cluster_uid: &cluster_uid, chaste,
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
        prop_assert_eq!(comment.lines().count(), 5 + usize::from(chaste) + usize::from(!cluster_uid.is_empty()));
    }

    #[test]
    fn packet_stands_as_it_was(
        interface_id in any::<u32>(), timestamp in any::<u64>(), more in 0u32..9000,
        data in proptest::collection::vec(any::<u8>(), 0..300),
        vlan in proptest::option::of((any::<u16>(), any::<u16>())),
        outbound in any::<bool>(), dropped_before in prop_oneof![Just(0u32), any::<u32>()],
    ) {
        let packet = EnhancedPacket {
            interface_id, timestamp,
            original_len: data.len() as u32 + more,
            data: &data,
            vlan: vlan.map(|(protocol, tci)| VlanTag { protocol, tci }),
            direction: if outbound { PacketDirection::Outbound } else { PacketDirection::Inbound },
            reception: Reception::Multicast,
            dropped_before,
        };
        let mut out = BytesMut::new();
        packet.encode(&mut out);
        prop_assert_eq!(out.len(), packet.encoded_len());

        let mut expected = data.clone();
        if let Some((protocol, tci)) = vlan.filter(|_| data.len() >= 12) {
            expected.splice(12..12, [protocol.to_be_bytes(), tci.to_be_bytes()].concat());
        }
        let blocks = blocks(&out);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 6);
        prop_assert_eq!(u32_at(body, 0), interface_id);
        prop_assert_eq!(time_at(body, 4), timestamp);
        prop_assert_eq!(u32_at(body, 12) as usize, expected.len());
        prop_assert_eq!(u32_at(body, 16) as usize, expected.len() + more as usize);
        prop_assert_eq!(&body[20..20 + expected.len()], &expected[..]);
        let options = options(&body[20 + padded(expected.len())..]);
        let direction = if outbound { 2u32 } else { 1 };
        prop_assert_eq!(&options[0], &(2, (direction | 2 << 2).to_le_bytes().to_vec()));
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
        speed in proptest::option::of(any::<u64>()),
    ) {
        let addresses = [
            InterfaceAddress { address: IpAddr::V4(Ipv4Addr::from_bits(v4)), prefix_len },
            InterfaceAddress { address: IpAddr::V6(Ipv6Addr::from_bits(v6)), prefix_len },
        ];
        let mut out = BytesMut::new();
        InterfaceDescription {
            link_type: LinkType::Raw, name: &name, description: &description, addresses: &addresses, mac, speed,
            os: "Linux",
        }.encode(&mut out);
        let blocks = blocks(&out);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 1);
        prop_assert_eq!(u32_at(body, 0), 101);
        prop_assert_eq!(u32_at(body, 4), SNAPLEN);
        let options = options(&body[8..]);
        let value = |code: u16| options.iter().find(|option| option.0 == code).map(|option| option.1.clone());
        prop_assert_eq!(value(2), Some(name.into_bytes()));
        prop_assert_eq!(value(3), Some(description.into_bytes()).filter(|text| !text.is_empty()));
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
        (received, accepted, delivered, dropped) in any::<(u64, u64, u64, u64)>(),
    ) {
        let mut out = BytesMut::new();
        InterfaceStatistics { interface_id, timestamp, start, end, received, accepted, delivered, dropped }
            .encode(&mut out);
        let blocks = blocks(&out);
        let (block_type, body) = &blocks[0];
        prop_assert_eq!(*block_type, 5);
        prop_assert_eq!(u32_at(body, 0), interface_id);
        prop_assert_eq!(time_at(body, 4), timestamp);
        let options = options(&body[12..]);
        let value = |code: u16| options.iter().find(|option| option.0 == code).map(|option| &option.1[..]);
        prop_assert_eq!(value(2).map(|time| time_at(time, 0)), Some(start));
        prop_assert_eq!(value(3).map(|time| time_at(time, 0)), end);
        for (code, count) in [(4, received), (5, dropped), (6, accepted), (7, dropped), (8, delivered)] {
            prop_assert_eq!(value(code), Some(&count.to_le_bytes()[..]));
        }
    }
}

#[test]
fn largest_packet_stays_within_a_block() {
    let data = vec![0; packetflix_common::MAX_CAPTURED_LEN as usize];
    let packet = EnhancedPacket {
        interface_id: 0,
        timestamp: 0,
        original_len: 524_280,
        data: &data,
        vlan: Some(VlanTag {
            protocol: 0x8100,
            tci: 5,
        }),
        direction: PacketDirection::Inbound,
        reception: Reception::Unicast,
        dropped_before: 1,
    };
    assert!(packet.encoded_len() <= MAX_BLOCK_LEN);
}
