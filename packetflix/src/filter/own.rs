//! Leaves the service's own traffic out of a capture: it would feed on itself otherwise.

use std::net::{IpAddr, SocketAddr};

use super::classic::{Instruction, opcode::*};
use crate::pcapng::LinkType;

/// Most addresses of each family that are compared with, so that no jump becomes too long.
const MAX_IPV4_SERVERS: usize = 32;
const MAX_IPV6_SERVERS: usize = 8;
/// Most ports of the server.
const MAX_PORTS: usize = 4;

/// Traffic of the service: TCP of one of these ports, either at one of these addresses, or with the client of the capture.
/// The latter stands for what the service's address may be translated to on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnTraffic {
    /// Ports at which the service is reached.
    pub ports: Vec<u16>,
    /// Addresses at which it is reached there; the most important first.
    pub servers: Vec<IpAddr>,
    /// The client of the capture, as the service sees it.
    pub client: Option<SocketAddr>,
}

/// The program that rejects `own` and leaves all other packets to `filter`; without a filter it accepts them.
///
/// Looks at TCP right behind an IP header: a stream in a tunnel, or with a VLAN tag within the packet, is not known.
pub fn without_own(
    own: &[OwnTraffic],
    link_type: LinkType,
    filter: Option<&[Instruction]>,
) -> Vec<Instruction> {
    /// The whole packet, whatever its length.
    const ACCEPT: Instruction = Instruction::new(RET | K, u32::MAX);

    let mut program = Vec::new();
    for own in own {
        for family in [Family::Ipv4, Family::Ipv6] {
            program.extend(rejecting(own, link_type, family));
        }
    }
    program.extend_from_slice(filter.unwrap_or(&[ACCEPT]));
    program
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

/// `linux/in.h`
const IPPROTO_TCP: u32 = 6;
/// Bytes of the two ports at the beginning of a TCP header.
const PORTS_LEN: u32 = 4;

/// Where a jump goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// On to the next instruction.
    Next,
    /// So many instructions on.
    Skip(u8),
    /// To the comparison of what is sent to the service, after that of what it sends.
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

    fn jump(&mut self, code: u16, k: u32, when_true: To, when_false: To) {
        self.steps
            .push((Instruction::new(JMP | code | K, k), when_true, when_false));
    }

    /// Compares with X.
    fn jump_x(&mut self, code: u16, when_true: To, when_false: To) {
        self.steps
            .push((Instruction::new(JMP | code | X, 0), when_true, when_false));
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
                To::Skip(count) => from + 1 + usize::from(count),
                To::OtherWay => self.other_way,
                To::Own => end,
                To::Other => end + 1,
            };
            // The bounds of addresses and ports keep the whole below 256 instructions.
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

/// Where things are in a packet.
struct Layout {
    network: u32,
    source: u32,
    destination: u32,
    /// How ports are loaded: behind an IPv4 header, whose length is in X, or at a fixed place.
    port_mode: u16,
    source_port: u32,
    destination_port: u32,
}

impl Layout {
    fn new(link_type: LinkType, family: Family) -> Self {
        let network = match link_type {
            LinkType::Ethernet => 14,
            LinkType::Raw => 0,
        };
        let (source, destination, port_mode, ports) = match family {
            Family::Ipv4 => (12, 16, IND, 0),
            Family::Ipv6 => (8, 24, ABS, 40),
        };
        Self {
            network,
            source: network + source,
            destination: network + destination,
            port_mode,
            source_port: network + ports,
            destination_port: network + ports + 2,
        }
    }
}

/// The instructions that reject own packets of a family; none when there are no such.
fn rejecting(own: &OwnTraffic, link_type: LinkType, family: Family) -> Vec<Instruction> {
    let is_of_family = |address: &IpAddr| address.is_ipv4() == (family == Family::Ipv4);
    let most = match family {
        Family::Ipv4 => MAX_IPV4_SERVERS,
        Family::Ipv6 => MAX_IPV6_SERVERS,
    };
    let of_family = own.servers.iter().copied().filter(is_of_family);
    let servers: Vec<IpAddr> = of_family.take(most).collect();
    let client = own.client.filter(|client| is_of_family(&client.ip()));
    let ports = &own.ports[..own.ports.len().min(MAX_PORTS)];
    if ports.is_empty() || (servers.is_empty() && client.is_none()) {
        return Vec::new();
    }
    let layout = Layout::new(link_type, family);
    let mut assembly = Assembly::default();
    find_ports(&mut assembly, &layout, link_type, family);

    let from_us = Direction {
        our_port: layout.source_port,
        their_port: layout.destination_port,
        us: layout.source,
        them: layout.destination,
        otherwise: To::OtherWay,
    };
    let to_us = Direction {
        our_port: layout.destination_port,
        their_port: layout.source_port,
        us: layout.destination,
        them: layout.source,
        otherwise: To::Other,
    };
    from_us.reject(&mut assembly, &layout, ports, &servers, client);
    assembly.other_way = assembly.steps.len();
    to_us.reject(&mut assembly, &layout, ports, &servers, client);
    assembly.finish()
}

/// Lets TCP go on, with what is needed to load its ports.
fn find_ports(assembly: &mut Assembly, layout: &Layout, link_type: LinkType, family: Family) {
    let (ethertype, version, protocol, header_len) = match family {
        Family::Ipv4 => (0x0800, 0x40, 9, 20),
        Family::Ipv6 => (0x86dd, 0x60, 6, 40),
    };
    let network = layout.network;
    // A load beyond the packet's end would reject it.
    assembly.load(LEN, 0);
    assembly.jump(JGE, network + header_len + PORTS_LEN, To::Next, To::Other);
    match link_type {
        LinkType::Ethernet => {
            assembly.load(H | ABS, 12);
            assembly.expect(ethertype, To::Other);
        }
        LinkType::Raw => {
            assembly.load(B | ABS, 0);
            assembly.compute(ALU | AND | K, 0xf0);
            assembly.expect(version, To::Other);
        }
    }
    assembly.load(B | ABS, network + protocol);
    assembly.expect(IPPROTO_TCP, To::Other);
    if family == Family::Ipv4 {
        // What follows the first fragment has no ports; X is the length of the header.
        assembly.load(H | ABS, network + 6);
        assembly.jump(JSET, 0x1fff, To::Other, To::Next);
        assembly.compute(LDX | B | MSH, network);
        assembly.load(LEN, 0);
        assembly.compute(ALU | SUB | K, network + PORTS_LEN);
        assembly.jump_x(JGE, To::Next, To::Other);
    }
}

/// Packets that the service sends, or that are sent to it.
struct Direction {
    our_port: u32,
    their_port: u32,
    us: u32,
    them: u32,
    otherwise: To,
}

impl Direction {
    fn reject(
        &self,
        assembly: &mut Assembly,
        layout: &Layout,
        ports: &[u16],
        servers: &[IpAddr],
        client: Option<SocketAddr>,
    ) {
        assembly.load(H | layout.port_mode, self.our_port);
        for (index, port) in ports.iter().enumerate() {
            let after = (ports.len() - 1 - index) as u8;
            let when_false = if after == 0 { self.otherwise } else { To::Next };
            assembly.jump(JEQ, (*port).into(), To::Skip(after), when_false);
        }
        for server in servers {
            compare_address(assembly, self.us, *server, To::Own, None);
        }
        match client {
            Some(client) => {
                assembly.load(H | layout.port_mode, self.their_port);
                assembly.expect(client.port().into(), self.otherwise);
                compare_address(assembly, self.them, client.ip(), To::Own, Some(self.otherwise));
            }
            // Nothing is left to compare with: a comparison that goes the same way whatever it finds.
            None => assembly.jump(JEQ, 0, self.otherwise, self.otherwise),
        }
    }
}

/// Goes to `when_same` if the address at `at` is this one, else to `otherwise`, or on.
fn compare_address(assembly: &mut Assembly, at: u32, address: IpAddr, when_same: To, otherwise: Option<To>) {
    let words = words(address);
    for (index, word) in words.iter().enumerate() {
        // Each word takes two instructions.
        let left = 2 * (words.len() - 1 - index) as u8;
        let when_false = otherwise.unwrap_or(To::Skip(left));
        let when_true = if left == 0 { when_same } else { To::Next };
        assembly.load(W | ABS, at + 4 * index as u32);
        assembly.jump(JEQ, *word, when_true, when_false);
    }
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
            let own_client = OwnTraffic {
                ports: vec![5001, 30_001],
                servers: Vec::new(),
                client: Some(client),
            };
            let other_client = SocketAddr::new(client.ip(), 40_001);
            let other_server = SocketAddr::new(server.ip(), 80);
            for (link_type, ethertype) in [(LinkType::Ethernet, true), (LinkType::Raw, false)] {
                let program = without_own(std::slice::from_ref(&own_client), link_type, None);
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
    fn all_that_the_service_says_and_hears_is_left_out() {
        let servers: Vec<IpAddr> = (0..100u8)
            .flat_map(|host| {
                [
                    format!("10.0.0.{host}").parse().unwrap(),
                    format!("2001:db8::{host:x}").parse().unwrap(),
                ]
            })
            .collect();
        let client: SocketAddr = "10.9.9.9:1234".parse().unwrap();
        for client in [None, Some(client)] {
            let own = OwnTraffic {
                ports: vec![1, 2, 3, 5001, 5],
                servers: servers.clone(),
                client,
            };
            let program = without_own(std::slice::from_ref(&own), LinkType::Raw, None);
            classic::check(&program).unwrap();
            translate(&program).unwrap();
            for (server, other, ours) in [
                ("10.0.0.0:5001", "10.9.9.8:77", true),
                ("10.0.0.31:1", "10.9.9.8:77", true),
                ("10.0.0.31:5001", "10.0.0.30:5001", true),
                ("10.0.0.32:5001", "10.9.9.8:77", false),
                ("10.0.0.1:5", "10.9.9.8:77", false),
                ("10.9.9.8:5001", "10.0.0.1:77", false),
                ("10.9.9.8:5001", "10.9.9.9:1234", client.is_some()),
                ("[2001:db8::7]:5001", "[2001:db8::99]:77", true),
                ("[2001:db8::8]:5001", "[2001:db8::99]:77", false),
                ("[2001:db9::7]:5001", "[2001:db8::99]:77", false),
            ] {
                let (from, to) = (server.parse().unwrap(), other.parse().unwrap());
                for packet in [segment(from, to, 0), segment(to, from, 0)] {
                    assert_eq!(!accepts(&program, &packet), ours, "{server} {other}");
                }
            }
        }
    }

    #[test]
    fn a_port_is_ours_only_at_the_addresses_that_it_has() {
        let at = |port, server: &str| OwnTraffic {
            ports: vec![port],
            servers: vec![server.parse().unwrap()],
            client: None,
        };
        let own = [at(5001, "10.0.0.1"), at(30_001, "10.0.0.2")];
        let program = without_own(&own, LinkType::Raw, None);
        classic::check(&program).unwrap();
        for (server, ours) in [
            ("10.0.0.1:5001", true),
            ("10.0.0.2:30001", true),
            ("10.0.0.1:30001", false),
            ("10.0.0.2:5001", false),
        ] {
            let (server, other) = (server.parse().unwrap(), "10.9.9.9:77".parse().unwrap());
            for packet in [segment(server, other, 0), segment(other, server, 0)] {
                assert_eq!(!accepts(&program, &packet), ours, "{server}");
            }
        }
    }

    #[test]
    fn packets_that_are_too_short_for_it_are_not_own() {
        let [client, server]: [SocketAddr; 2] =
            ["10.0.0.5:40000", "10.0.0.6:5001"].map(|text| text.parse().unwrap());
        let own = OwnTraffic {
            ports: vec![5001],
            servers: vec![server.ip()],
            client: Some(client),
        };
        for options in [0, 1, 10] {
            let whole = segment(client, server, options);
            let ports_end = 24 + 4 * usize::from(options);
            for len in 0..whole.len() {
                let program = without_own(std::slice::from_ref(&own), LinkType::Raw, None);
                assert_eq!(accepts(&program, &whole[..len]), len < ports_end, "{len}");
            }
        }
    }

    #[test]
    fn what_is_not_own_is_left_to_the_filter() {
        let own = OwnTraffic {
            ports: vec![5001],
            servers: Vec::new(),
            client: Some("10.0.0.5:40000".parse().unwrap()),
        };
        let reject = [Instruction::new(RET | K, 0)];
        let program = without_own(std::slice::from_ref(&own), LinkType::Ethernet, Some(&reject));
        assert!(!accepts(&program, &[0; 64]));
        assert!(accepts(
            &without_own(std::slice::from_ref(&own), LinkType::Ethernet, None),
            &[0; 64]
        ));
        let none = OwnTraffic { ports: vec![], ..own };
        assert_eq!(without_own(&[none], LinkType::Raw, Some(&reject)), reject);
    }
}
