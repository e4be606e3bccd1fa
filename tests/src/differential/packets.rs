//! Packets of all kinds that filters tell apart, made from a seed.

use crate::random::Random;

pub(super) const ADDRESSES: [[u8; 4]; 8] = [
    [10, 0, 0, 1],
    [10, 0, 0, 2],
    [10, 0, 0, 255],
    [10, 1, 2, 3],
    [192, 168, 1, 1],
    [224, 0, 0, 1],
    [255, 255, 255, 255],
    [0, 0, 0, 0],
];

pub(super) const ADDRESSES6: [[u16; 8]; 6] = [
    [0xfe80, 0, 0, 0, 0, 0, 0, 1],
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1],
    [0x2001, 0xdb8, 0, 1, 0, 0, 0, 2],
    [0xff02, 0, 0, 0, 0, 0, 0, 1],
    [0xff02, 0, 0, 0, 0, 1, 0xff00, 1],
    [0, 0, 0, 0, 0, 0, 0, 1],
];

pub(super) const MACS: [[u8; 6]; 6] = [
    [2, 0, 0, 0, 0, 1],
    [2, 0, 0, 0, 0, 2],
    [0xff; 6],
    [1, 0, 0x5e, 0, 0, 1],
    [0x33, 0x33, 0, 0, 0, 1],
    [1, 0x80, 0xc2, 0, 0, 0],
];

pub(super) const PORTS: [u16; 12] = [20, 22, 53, 67, 80, 123, 443, 1024, 5353, 6081, 8080, 65535];

pub(super) const VLANS: [u16; 4] = [0, 7, 100, 4095];
pub(super) const LABELS: [u32; 4] = [0, 16, 100, 1_048_575];
pub(super) const SESSIONS: [u16; 3] = [1, 42, 0xffff];

/// Protocols that have no packet of their own here.
const PROTOCOLS: [u8; 9] = [2, 9, 47, 50, 51, 89, 103, 108, 112];

/// Makes so many packets, each at most 1,500 bytes long.
pub fn packets(count: usize, seed: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed);
    let mut packets: Vec<Vec<u8>> = (0..40).map(|len| vec![0; len]).collect();
    while packets.len() < count {
        let mut packet = frame(&mut random);
        match random.below(20) {
            0..=2 => packet.truncate(random.below(packet.len() as u32 + 1) as usize),
            3 => {
                let len = random.below(1200);
                packet.extend(random.bytes(len));
            }
            4 => {
                let len = random.below(120);
                packet = random.bytes(len);
            }
            5 => {
                for _ in 0..4 {
                    let at = random.below(packet.len() as u32) as usize;
                    packet[at] = random.number() as u8;
                }
            }
            _ => {}
        }
        packet.truncate(1500);
        packets.push(packet);
    }
    packets
}

fn frame(random: &mut Random) -> Vec<u8> {
    let mut frame = [random.pick(&MACS), random.pick(&MACS)].concat();
    for _ in 0..random.below(40).saturating_sub(35) / 2 {
        tag(&mut frame, random);
    }
    if random.percent(15) {
        tag(&mut frame, random);
    }
    match random.below(40) {
        0..=15 => {
            frame.extend([8, 0]);
            frame.extend(ipv4(random));
        }
        16..=24 => {
            frame.extend([0x86, 0xdd]);
            frame.extend(ipv6(random));
        }
        25..=27 => {
            frame.extend(random.pick(&[[8, 6], [0x80, 0x35]]));
            frame.extend(arp(random));
        }
        28..=31 => {
            frame.extend(random.pick(&[[0x88, 0x47], [0x88, 0x48]]));
            let labels = 1 + random.below(3);
            for number in 1..=labels {
                let bottom = u32::from(number == labels) << 8;
                let entry = random.pick(&LABELS) << 12 | random.below(8) << 9 | bottom | random.below(256);
                frame.extend(entry.to_be_bytes());
            }
            frame.extend(ip(random));
        }
        32..=34 => {
            frame.extend([0x88, 0x64, 0x11, 0]);
            frame.extend(random.pick(&SESSIONS).to_be_bytes());
            frame.extend([0, 99]);
            let packet = ip(random);
            let protocol = match packet.first() {
                Some(0x60..=0x6f) => [0, 0x57],
                _ => random.pick(&[[0, 0x21], [0, 0x21], [0xc0, 0x21]]),
            };
            frame.extend(protocol);
            frame.extend(packet);
        }
        35..=36 => {
            // 802.2, of which some are SNAP and spanning tree.
            let payload = match random.below(4) {
                0 => [&[0x42, 0x42, 3, 0, 0][..], &random.bytes(30)].concat(),
                1 => [&[0xaa, 0xaa, 3, 0, 0, 0, 8, 0][..], &ipv4(random)].concat(),
                2 => [&[0xaa, 0xaa, 3, 8, 0, 7, 0x80, 0x9b][..], &random.bytes(30)].concat(),
                _ => {
                    let access_point = random.pick(&[0xe0, 0xf0, 0xfe, 0xff]);
                    [&[access_point, access_point, 3][..], &random.bytes(30)].concat()
                }
            };
            frame.extend((payload.len() as u16).to_be_bytes());
            frame.extend(payload);
        }
        _ => {
            frame.extend(random.pick(&[
                [0x88, 0xcc],
                [0x88, 0x63],
                [0x80, 0x9b],
                [0x80, 0xf3],
                [0x81, 0x37],
                [0x60, 2],
                [0x60, 3],
                [0x60, 4],
                [0x90, 0],
                [0x88, 0xb5],
            ]));
            frame.extend(random.bytes(46));
        }
    }
    frame
}

fn tag(frame: &mut Vec<u8>, random: &mut Random) {
    frame.extend(random.pick(&[[0x81, 0], [0x81, 0], [0x88, 0xa8], [0x91, 0]]));
    let tci = (random.below(8) as u16) << 13 | random.pick(&VLANS);
    frame.extend(tci.to_be_bytes());
}

fn ip(random: &mut Random) -> Vec<u8> {
    if random.percent(60) {
        ipv4(random)
    } else {
        ipv6(random)
    }
}

fn ipv4(random: &mut Random) -> Vec<u8> {
    let (protocol, payload) = transport(random, 1);
    let words: u8 = match random.below(20) {
        0 => random.below(5) as u8,
        1..=3 => 5 + random.below(11) as u8,
        _ => 5,
    };
    let options = random.bytes(u32::from(words.saturating_sub(5)) * 4);
    let fragment: u16 = match random.below(10) {
        0 => 0x2000,
        1 => random.below(0x2000) as u16,
        2..=5 => 0x4000,
        _ => 0,
    };
    let total = (20 + options.len() + payload.len()) as u16;
    let mut packet = vec![0x40 | words, random.pick(&[0, 0x10, 0xb8, 0xff])];
    packet.extend(total.to_be_bytes());
    packet.extend(random.bytes(2));
    packet.extend(fragment.to_be_bytes());
    packet.extend([random.pick(&[0, 1, 64, 255]), protocol]);
    packet.extend(random.bytes(2));
    packet.extend(random.pick(&ADDRESSES));
    packet.extend(random.pick(&ADDRESSES));
    packet.extend(options);
    packet.extend(payload);
    packet
}

fn ipv6(random: &mut Random) -> Vec<u8> {
    let (mut next, mut payload) = transport(random, 58);
    for _ in 0..random.below(8).saturating_sub(4) {
        let kind = random.pick(&[0_u8, 43, 44, 51, 60]);
        // A fragment's header has no length, and that of authentication counts in words.
        let mut header = match kind {
            44 => random.bytes(8),
            51 => random.bytes(16),
            _ => {
                let units = random.below(3);
                let mut header = random.bytes(8 + units * 8);
                header[1] = units as u8;
                header
            }
        };
        header[0] = next;
        if kind == 51 {
            header[1] = 2;
        }
        header.extend(payload);
        (next, payload) = (kind, header);
    }
    let mut packet = (0x6000_0000 | random.below(0x1000_0000)).to_be_bytes().to_vec();
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, random.pick(&[1, 64, 255])]);
    for _ in 0..2 {
        packet.extend(
            random
                .pick(&ADDRESSES6)
                .iter()
                .flat_map(|word| word.to_be_bytes()),
        );
    }
    packet.extend(payload);
    packet
}

/// A protocol's number and its packet; `icmp` is the number of ICMP or ICMPv6.
fn transport(random: &mut Random, icmp: u8) -> (u8, Vec<u8>) {
    let ports = [random.pick(&PORTS), random.pick(&PORTS)];
    let ports: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
    let len = random.below(60);
    let payload = random.bytes(len);
    match random.below(20) {
        0..=7 => {
            let flags = if random.percent(60) {
                random.pick(&[2, 0x12, 0x10, 0x18, 0x11, 4, 0x14, 0x29, 0xc2])
            } else {
                random.number() as u8
            };
            let words: u8 = if random.percent(70) {
                5
            } else {
                random.below(16) as u8
            };
            let mut header = [&ports[..], &random.bytes(8), &[words << 4, flags]].concat();
            header.extend(random.bytes(6 + u32::from(words.saturating_sub(5)) * 4));
            header.extend(payload);
            (6, header)
        }
        8..=12 => {
            let len = ((8 + payload.len()) as u16).to_be_bytes();
            let checksum = random.bytes(2);
            (17, [&ports[..], &len, &checksum, &payload].concat())
        }
        13..=15 => {
            let kind = if icmp == 1 {
                random.pick(&[0, 3, 4, 5, 8, 11, 12, 13, 17, 40])
            } else {
                random.pick(&[1, 2, 3, 128, 129, 133, 134, 135, 136, 143])
            };
            let code = random.below(4) as u8;
            (icmp, [&[kind, code][..], &random.bytes(6), &payload].concat())
        }
        16 => (132, [&ports[..], &random.bytes(12), &payload].concat()),
        17 => (random.number() as u8, payload),
        18 => (random.pick(&[4, 41]), random.bytes(40)),
        _ => (random.pick(&PROTOCOLS), payload),
    }
}

fn arp(random: &mut Random) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, random.below(5) as u8];
    for _ in 0..2 {
        packet.extend(random.pick(&MACS));
        packet.extend(random.pick(&ADDRESSES));
    }
    packet
}
