//! Leaves the stream of a capture out of the capture: it would feed on itself otherwise.

use std::net::{IpAddr, SocketAddr};

use super::classic::{Instruction, opcode::*};
use crate::pcapng::LinkType;

/// The TCP connection over which a capture is streamed, as far as it looks the same everywhere. The server's address may
/// be translated on the way, and is not looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnStream {
    /// The client's end, as the server sees it.
    pub client: SocketAddr,
    /// Ports of the server's end: the one that it listens on, and the one that the client asked for.
    pub ports: Vec<u16>,
}

/// `linux/in.h`
const IPPROTO_TCP: u32 = 6;
/// Bytes of the two ports at the beginning of a TCP header.
const PORTS_LEN: u32 = 4;
/// EtherTypes.
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;

/// The program that rejects `own` and leaves all other packets to `filter`; without a filter it accepts them.
///
/// Looks at TCP right behind an IP header: a stream in a tunnel, or with a VLAN tag within the packet, is not known.
pub fn without_own(own: &OwnStream, link_type: LinkType, filter: Option<&[Instruction]>) -> Vec<Instruction> {
    /// The whole packet, whatever its length.
    const ACCEPT: Instruction = Instruction::new(RET | K, u32::MAX);

    let mut program = if own.ports.is_empty() {
        Vec::new()
    } else {
        rejecting(own, link_type)
    };
    program.extend_from_slice(filter.unwrap_or(&[ACCEPT]));
    program
}

/// Where a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// On to the next instruction.
    Next,
    /// To the comparison with the packets of the other direction.
    OtherWay,
    /// The packet is our own.
    Own,
    /// The packet is another's.
    Other,
}

/// Instructions with the targets of their jumps.
#[derive(Default)]
struct Assembly {
    steps: Vec<(Instruction, To, To)>,
    other_way: usize,
}

impl Assembly {
    fn compute(&mut self, code: u16, k: u32) {
        self.steps.push((Instruction::new(code, k), To::Next, To::Next));
    }

    fn load(&mut self, code: u16, at: u32) {
        self.compute(LD | code, at);
    }

    /// Compares with X.
    fn jump_x(&mut self, code: u16, when_true: To, when_false: To) {
        self.steps
            .push((Instruction::new(JMP | code | X, 0), when_true, when_false));
    }

    fn jump(&mut self, code: u16, k: u32, when_true: To, when_false: To) {
        self.steps
            .push((Instruction::new(JMP | code | K, k), when_true, when_false));
    }

    fn expect(&mut self, k: u32, otherwise: To) {
        self.jump(JEQ, k, To::Next, otherwise);
    }

    /// All instructions, with a rejection of our own packets as the last; those of others go on behind it.
    fn finish(self) -> Vec<Instruction> {
        let end = self.steps.len();
        let distance = |from: usize, to: To| {
            let target = match to {
                To::Next => from + 1,
                To::OtherWay => self.other_way,
                To::Own => end,
                To::Other => end + 1,
            };
            // The whole has some fifty instructions.
            (target - from - 1) as u8
        };
        let jumps = self.steps.iter().enumerate();
        let mut program: Vec<Instruction> = jumps
            .map(|(at, &(instruction, when_true, when_false))| Instruction {
                jt: distance(at, when_true),
                jf: distance(at, when_false),
                ..instruction
            })
            .collect();
        program.push(Instruction::new(RET | K, 0));
        program
    }
}

fn rejecting(own: &OwnStream, link_type: LinkType) -> Vec<Instruction> {
    let mut assembly = Assembly::default();
    let is_ipv4 = own.client.ip().is_ipv4();
    let (network, header_len) = match link_type {
        LinkType::Ethernet => (14, if is_ipv4 { 20 } else { 40 }),
        LinkType::Raw => (0, if is_ipv4 { 20 } else { 40 }),
    };
    // A load beyond the packet's end would reject it.
    assembly.load(LEN, 0);
    assembly.jump(JGE, network + header_len + PORTS_LEN, To::Next, To::Other);
    match link_type {
        LinkType::Ethernet => {
            assembly.load(H | ABS, 12);
            assembly.expect(if is_ipv4 { IPV4 } else { IPV6 }, To::Other);
        }
        LinkType::Raw => {
            assembly.load(B | ABS, 0);
            assembly.compute(ALU | AND | K, 0xf0);
            assembly.expect(if is_ipv4 { 0x40 } else { 0x60 }, To::Other);
        }
    }
    let (protocol, source, len, port_mode, ports) = if is_ipv4 {
        (9, 12, 4, IND, network)
    } else {
        (6, 8, 16, ABS, network + header_len)
    };
    assembly.load(B | ABS, network + protocol);
    assembly.expect(IPPROTO_TCP, To::Other);
    if is_ipv4 {
        // What follows the first fragment has no ports; X is the length of the header.
        assembly.load(H | ABS, network + 6);
        assembly.jump(JSET, 0x1fff, To::Other, To::Next);
        assembly.compute(LDX | B | MSH, network);
        assembly.load(LEN, 0);
        assembly.compute(ALU | SUB | K, network + PORTS_LEN);
        assembly.jump_x(JGE, To::Next, To::Other);
    }
    let (source_port, destination_port) = (ports, ports + 2);
    let sides = [
        (source, source_port, destination_port, To::OtherWay),
        (source + len, destination_port, source_port, To::Other),
    ];
    for (address, client_port, server_port, otherwise) in sides {
        if otherwise == To::Other {
            assembly.other_way = assembly.steps.len();
        }
        for (index, word) in words(own.client.ip()).into_iter().enumerate() {
            assembly.load(W | ABS, network + address + 4 * index as u32);
            assembly.expect(word, otherwise);
        }
        assembly.load(H | port_mode, client_port);
        assembly.expect(own.client.port().into(), otherwise);
        assembly.load(H | port_mode, server_port);
        for (index, port) in own.ports.iter().enumerate() {
            let is_last = index + 1 == own.ports.len();
            let when_false = if is_last { otherwise } else { To::Next };
            assembly.jump(JEQ, (*port).into(), To::Own, when_false);
        }
    }
    assembly.finish()
}

/// An address in the words of 32 bits in which it is loaded.
fn words(address: IpAddr) -> Vec<u32> {
    match address {
        IpAddr::V4(address) => vec![address.to_bits()],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [96, 64, 32, 0].map(|shift| (bits >> shift) as u32).to_vec()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::{classic, translate};

    /// Runs what this module makes.
    fn accepts(program: &[Instruction], packet: &[u8]) -> bool {
        let load = |at: u32, len: usize| {
            let bytes = packet.get(at as usize..at as usize + len)?;
            Some(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
        };
        let (mut a, mut x, mut at) = (0, 0, 0);
        loop {
            let Instruction { code, jt, jf, k } = program[at];
            at += 1;
            let size = match code & 0x18 {
                W => 4,
                H => 2,
                _ => 1,
            };
            let mut branch = |condition| at += usize::from(if condition { jt } else { jf });
            let loaded = match code & !0x18 {
                code if code == LD | ABS => load(k, size),
                code if code == LD | IND => load(k + x, size),
                _ => Some(a),
            };
            match code {
                code if code == JMP | JEQ | K => branch(a == k),
                code if code == JMP | JGE | K => branch(a >= k),
                code if code == JMP | JGE | X => branch(a >= x),
                code if code == LD | LEN => a = packet.len() as u32,
                code if code == ALU | SUB | K => a -= k,
                code if code == JMP | JSET | K => branch(a & k != 0),
                code if code == ALU | AND | K => a &= k,
                code if code == RET | K => return k != 0,
                code if code == LDX | B | MSH => match load(k, 1) {
                    Some(byte) => x = 4 * (byte & 15),
                    None => return false,
                },
                _ => match loaded {
                    Some(value) => a = value,
                    None => return false,
                },
            }
        }
    }

    /// A TCP segment, with as many words of IPv4 options.
    fn segment(from: SocketAddr, to: SocketAddr, options: u8) -> Vec<u8> {
        let mut packet = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut header = vec![0x45 + options, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0];
                header.extend(from.octets());
                header.extend(to.octets());
                header.extend(vec![1; 4 * usize::from(options)]);
                header
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut header = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
                header.extend(from.octets());
                header.extend(to.octets());
                header
            }
            _ => unreachable!(),
        };
        packet.extend(from.port().to_be_bytes());
        packet.extend(to.port().to_be_bytes());
        packet.extend([0; 16]);
        packet
    }

    #[test]
    fn both_directions_of_the_stream_are_left_out_and_nothing_else_is() {
        for (client, server, third) in [
            ("10.0.0.5:40000", "10.0.0.6:5001", "10.0.0.7:40000"),
            ("127.0.0.1:40000", "127.0.0.1:5001", "127.0.0.2:40000"),
            (
                "[2001:db8::5]:40000",
                "[2001:db8::6]:5001",
                "[2001:db8::5:5]:40000",
            ),
            ("[::1]:40000", "[::1]:5001", "[::2]:40000"),
        ] {
            let [client, server, third]: [SocketAddr; 3] =
                [client, server, third].map(|text| text.parse().unwrap());
            let translated = SocketAddr::new(server.ip(), 30_001);
            let own = OwnStream {
                client,
                ports: vec![5001, 30_001],
            };
            let other_client = SocketAddr::new(client.ip(), 40_001);
            let other_server = SocketAddr::new(server.ip(), 80);
            for (link_type, ethertype) in [(LinkType::Ethernet, true), (LinkType::Raw, false)] {
                let program = without_own(&own, link_type, None);
                classic::check(&program).unwrap();
                translate(&program).unwrap();
                let passes = |from, to, options| {
                    let packet = segment(from, to, options);
                    let kind: u16 = if packet[0] & 0x40 != 0 && packet[0] < 0x50 {
                        0x0800
                    } else {
                        0x86dd
                    };
                    let header = [&[0; 12][..], &kind.to_be_bytes()].concat();
                    let packet = if ethertype {
                        [header, packet].concat()
                    } else {
                        packet
                    };
                    accepts(&program, &packet)
                };
                let options: &[u8] = if client.is_ipv4() { &[0, 1, 10] } else { &[0] };
                for &options in options {
                    for ours in [server, translated] {
                        assert!(!passes(client, ours, options), "{client} {ours}");
                        assert!(!passes(ours, client, options), "{client} {ours}");
                    }
                    for (one, other) in [(other_client, server), (third, server), (client, other_server)] {
                        assert!(passes(one, other, options), "{one} {other}");
                        assert!(passes(other, one, options), "{one} {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn packets_that_are_too_short_for_it_are_not_own() {
        let [client, server]: [SocketAddr; 2] =
            ["10.0.0.5:40000", "10.0.0.6:5001"].map(|text| text.parse().unwrap());
        let own = OwnStream {
            client,
            ports: vec![5001],
        };
        for options in [0, 1, 10] {
            let whole = segment(client, server, options);
            let ports_end = 24 + 4 * usize::from(options);
            for len in 0..whole.len() {
                let program = without_own(&own, LinkType::Raw, None);
                assert_eq!(accepts(&program, &whole[..len]), len < ports_end, "{len}");
            }
        }
    }

    #[test]
    fn what_is_not_own_is_left_to_the_filter() {
        let own = OwnStream {
            client: "10.0.0.5:40000".parse().unwrap(),
            ports: vec![5001],
        };
        let reject = [Instruction::new(RET | K, 0)];
        let program = without_own(&own, LinkType::Ethernet, Some(&reject));
        assert!(!accepts(&program, &[0; 64]));
        assert!(accepts(&without_own(&own, LinkType::Ethernet, None), &[0; 64]));
        let none = OwnStream { ports: vec![], ..own };
        assert_eq!(without_own(&none, LinkType::Raw, Some(&reject)), reject);
    }
}
