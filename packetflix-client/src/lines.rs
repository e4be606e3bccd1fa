//! Packets as lines of text, as tcpdump writes them.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
};

use chrono::{DateTime, Local};
use etherparse::{
    ArpPacketSlice, EtherType, IpNumber, LaxIpPayloadSlice, LaxNetSlice, LaxSlicedPacket, TcpSlice,
    TransportSlice,
};

use crate::{
    pcapng::{Block, Direction, Kind, Packet, blocks},
    terminal::shown,
};

/// Link types, by libpcap's numbers (<https://www.tcpdump.org/linktypes.html>).
const ETHERNET: u16 = 1;
const RAW_IP: u16 = 101;

/// Bytes in a line of a dump.
const DUMPED: usize = 16;

/// How much of a packet is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detail {
    /// What stands in the headers beside addresses, ports and flags.
    pub headers: bool,
    /// The bytes.
    pub bytes: bool,
}

/// Writes lines of a stream to standard output.
pub struct Lines {
    detail: Detail,
    /// Of the section, by their numbers.
    interfaces: Vec<Interface>,
    text: String,
}

struct Interface {
    name: String,
    link_type: u16,
}

impl Lines {
    /// Lines of a stream that is to come.
    pub fn new(detail: Detail) -> Self {
        Self {
            detail,
            interfaces: Vec::new(),
            text: String::new(),
        }
    }

    /// Writes lines for whole blocks.
    ///
    /// # Errors
    /// When standard output cannot be written to.
    pub fn write(&mut self, whole: &[u8]) -> io::Result<()> {
        for block in blocks(whole) {
            self.take(&block);
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(self.text.as_bytes()).and_then(|()| out.flush());
        self.text.clear();
        written
    }

    fn take(&mut self, block: &Block<'_>) {
        match block.kind() {
            Kind::Section => self.interfaces.clear(),
            Kind::Interface(interface) => self.interfaces.push(Interface {
                name: printable(interface.name),
                link_type: interface.link_type,
            }),
            Kind::Packet(packet) => self.packet(&packet),
            _ => {}
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) {
        let Some(interface) = self.interfaces.get(packet.interface as usize) else {
            return;
        };
        let direction = match packet.direction() {
            Some(Direction::Inbound) => "In ",
            Some(Direction::Outbound) => "Out",
            None => "?  ",
        };
        let line = Line {
            link_type: interface.link_type,
            packet,
            detail: self.detail,
        };
        // Writing to a string never fails.
        let _ = writeln!(
            self.text,
            "{} {} {direction} {line}",
            clock(packet.timestamp),
            interface.name
        );
        if self.detail.bytes {
            dump(&mut self.text, packet.data);
        }
    }
}

/// The time of a day of this machine.
fn clock(nanoseconds: u64) -> impl fmt::Display {
    let time: DateTime<Local> = DateTime::from_timestamp_nanos(nanoseconds.cast_signed()).into();
    time.format("%H:%M:%S%.6f").to_string()
}

/// What a terminal may be given of a name.
fn printable(name: &[u8]) -> String {
    shown(&String::from_utf8_lossy(name)).into_owned()
}

/// Bytes as `tcpdump -x` writes them.
fn dump(text: &mut String, data: &[u8]) {
    for (line, bytes) in data.chunks(DUMPED).enumerate() {
        let _ = write!(text, "\t0x{:04x}: ", line * DUMPED);
        for pair in bytes.chunks(2) {
            let digits = pair.iter().map(|byte| format!("{byte:02x}"));
            let _ = write!(text, " {}", digits.collect::<String>());
        }
        text.push('\n');
    }
}

/// What a packet is.
struct Line<'a> {
    link_type: u16,
    packet: &'a Packet<'a>,
    detail: Detail,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = self.packet.data;
        let sliced = match self.link_type {
            ETHERNET => LaxSlicedPacket::from_ethernet(data).ok(),
            RAW_IP => LaxSlicedPacket::from_ip(data).ok(),
            _ => None,
        };
        let len = self.packet.original_len;
        match &sliced {
            Some(sliced) => self.sliced(f, sliced),
            None => write!(f, "link type {}, length {len}", self.link_type),
        }
    }
}

impl Line<'_> {
    fn sliced(&self, f: &mut fmt::Formatter<'_>, packet: &LaxSlicedPacket<'_>) -> fmt::Result {
        for id in packet.vlan_ids() {
            write!(f, "vlan {}, ", id.value())?;
        }
        match &packet.net {
            Some(LaxNetSlice::Arp(arp)) => self.arp(f, arp),
            Some(LaxNetSlice::Ipv4(ip)) => {
                let header = ip.header();
                f.write_str("IP ")?;
                if self.detail.headers {
                    let (ttl, id, proto) = (header.ttl(), header.identification(), header.protocol());
                    write!(
                        f,
                        "(tos 0x{:x}, ttl {ttl}, id {id}, proto {}, length {}) ",
                        header.dcp().value() << 2 | header.ecn().value(),
                        protocol(proto),
                        header.total_len()
                    )?;
                }
                let ends = (header.source_addr(), header.destination_addr());
                payload(f, ends, ip.payload(), packet.transport.as_ref(), self.cut())
            }
            Some(LaxNetSlice::Ipv6(ip)) => {
                let header = ip.header();
                f.write_str("IP6 ")?;
                if self.detail.headers {
                    let (label, hops, next) = (
                        header.flow_label().value(),
                        header.hop_limit(),
                        header.next_header(),
                    );
                    write!(
                        f,
                        "(flowlabel 0x{label:05x}, hlim {hops}, next-header {}, payload length {}) ",
                        protocol(next),
                        header.payload_length()
                    )?;
                }
                let ends = (header.source_addr(), header.destination_addr());
                payload(f, ends, ip.payload(), packet.transport.as_ref(), self.cut())
            }
            None => {
                let len = self.packet.original_len;
                match packet.ether_payload() {
                    Some(payload) => write!(f, "ethertype 0x{:04x}, length {len}", payload.ether_type.0),
                    None => write!(f, "length {len}"),
                }
            }
        }
    }

    /// Bytes that the packet had beyond those that were captured.
    fn cut(&self) -> usize {
        (self.packet.original_len as usize).saturating_sub(self.packet.data.len())
    }

    /// Source: RFC 826.
    fn arp(&self, f: &mut fmt::Formatter<'_>, arp: &ArpPacketSlice<'_>) -> fmt::Result {
        const REQUEST: u16 = 1;
        const REPLY: u16 = 2;

        let len = self.packet.original_len;
        let addresses = (
            <[u8; 4]>::try_from(arp.sender_protocol_addr()),
            <[u8; 4]>::try_from(arp.target_protocol_addr()),
        );
        let (Ok(sender), Ok(target), EtherType::IPV4) = (addresses.0, addresses.1, arp.proto_addr_type())
        else {
            return write!(f, "ARP, length {len}");
        };
        let (sender, target) = (Ipv4Addr::from(sender), Ipv4Addr::from(target));
        match arp.operation().0 {
            REQUEST => write!(f, "ARP, Request who-has {target} tell {sender}, length {len}"),
            REPLY => {
                let hardware: Vec<String> = arp
                    .sender_hw_addr()
                    .iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect();
                write!(
                    f,
                    "ARP, Reply {sender} is-at {}, length {len}",
                    hardware.join(":")
                )
            }
            operation => write!(f, "ARP, operation {operation}, length {len}"),
        }
    }
}

/// Addresses, ports, and what is between them; of the packet, so many bytes were not captured.
fn payload<A: Address>(
    f: &mut fmt::Formatter<'_>,
    (source, destination): (A, A),
    payload: &LaxIpPayloadSlice<'_>,
    transport: Option<&TransportSlice<'_>>,
    cut: usize,
) -> fmt::Result {
    // What stands behind the payload is no part of it.
    let cut = if payload.incomplete { cut } else { 0 };
    match transport {
        Some(TransportSlice::Tcp(tcp)) => {
            let (from, to) = (tcp.source_port(), tcp.destination_port());
            write!(f, "{source}.{from} > {destination}.{to}: {}", Tcp(tcp, cut))
        }
        Some(TransportSlice::Udp(udp)) => {
            let (from, to) = (udp.source_port(), udp.destination_port());
            let len = udp.length().saturating_sub(8);
            write!(f, "{source}.{from} > {destination}.{to}: UDP, length {len}")
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            let told = icmp4(icmp.type_u8(), icmp.code_u8());
            let echo = echo(matches!(icmp.type_u8(), 0 | 8), icmp.bytes5to8());
            let len = icmp.slice().len() + cut;
            write!(f, "{source} > {destination}: ICMP {told}{echo}, length {len}")
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let told = icmp6(icmp.type_u8());
            let echo = echo(matches!(icmp.type_u8(), 128 | 129), icmp.bytes5to8());
            let len = icmp.slice().len() + cut;
            write!(f, "{source} > {destination}: ICMP6, {told}{echo}, length {len}")
        }
        Some(TransportSlice::Igmp(_)) => write!(f, "{source} > {destination}: igmp"),
        None => {
            let (what, len) = (protocol(payload.ip_number), payload.payload.len() + cut);
            write!(f, "{source} > {destination}: {what}, length {len}")
        }
    }
}

/// An address of IP.
trait Address: fmt::Display {}
impl Address for Ipv4Addr {}
impl Address for Ipv6Addr {}

/// A protocol's name, or its number.
fn protocol(number: IpNumber) -> String {
    match number.keyword_str() {
        Some(name) => name.to_owned(),
        None => format!("ip-proto-{}", number.0),
    }
}

/// What tells an echo from others, in bytes 5 to 8 of its header.
fn echo(is_echo: bool, [a, b, c, d]: [u8; 4]) -> String {
    let (id, sequence) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    match is_echo {
        true => format!(", id {id}, seq {sequence}"),
        false => String::new(),
    }
}

/// A segment of TCP, of which so many bytes were not captured.
struct Tcp<'a>(&'a TcpSlice<'a>, usize);

impl fmt::Display for Tcp<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(tcp, cut) = self;
        let flags = [
            (tcp.syn(), 'S'),
            (tcp.fin(), 'F'),
            (tcp.rst(), 'R'),
            (tcp.psh(), 'P'),
            (tcp.urg(), 'U'),
            (tcp.cwr(), 'W'),
            (tcp.ece(), 'E'),
            (tcp.ack(), '.'),
        ];
        let set: String = flags
            .iter()
            .filter(|(is_set, _)| *is_set)
            .map(|(_, flag)| flag)
            .collect();
        let set = if set.is_empty() { "none" } else { &set };
        let (sequence, len) = (tcp.sequence_number(), tcp.payload().len() + cut);
        write!(f, "Flags [{set}], seq {sequence}")?;
        if len > 0 {
            write!(f, ":{}", sequence.wrapping_add(len as u32))?;
        }
        if tcp.ack() {
            write!(f, ", ack {}", tcp.acknowledgment_number())?;
        }
        write!(f, ", win {}, length {len}", tcp.window_size())
    }
}

/// Source: IANA, "ICMP Type Numbers".
fn icmp4(kind: u8, code: u8) -> String {
    match (kind, code) {
        (0, _) => "echo reply".to_owned(),
        (3, 0) => "net unreachable".to_owned(),
        (3, 1) => "host unreachable".to_owned(),
        (3, 3) => "port unreachable".to_owned(),
        (3, 4) => "unreachable - need to frag".to_owned(),
        (5, _) => "redirect".to_owned(),
        (8, _) => "echo request".to_owned(),
        (11, _) => "time exceeded".to_owned(),
        _ => format!("type {kind}, code {code}"),
    }
}

/// Source: IANA, "ICMPv6 type numbers".
fn icmp6(kind: u8) -> String {
    let name = match kind {
        1 => "destination unreachable",
        2 => "packet too big",
        3 => "time exceeded",
        128 => "echo request",
        129 => "echo reply",
        133 => "router solicitation",
        134 => "router advertisement",
        135 => "neighbor solicitation",
        136 => "neighbor advertisement",
        143 => "multicast listener report v2",
        _ => return format!("type {kind}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcapng::{ENHANCED_PACKET, INTERFACE_DESCRIPTION, SECTION_HEADER, write};

    /// The line of a packet, without its time.
    fn line(link_type: u16, data: &[u8], detail: Detail) -> String {
        line_of(link_type, data, data.len(), detail)
    }

    /// The line of one that had so many bytes.
    fn line_of(link_type: u16, data: &[u8], original: usize, detail: Detail) -> String {
        let mut stream = Vec::new();
        write::block(&mut stream, SECTION_HEADER, &[0; 16]);
        let description = [
            &link_type.to_le_bytes()[..],
            &[0; 6],
            &[2, 0, 4, 0],
            b"eth0",
            &[0; 4],
        ]
        .concat();
        write::block(&mut stream, INTERFACE_DESCRIPTION, &description);
        let (len, original) = (data.len() as u32, original as u32);
        let mut packet = [0, 0, 0, len, original].map(u32::to_le_bytes).concat();
        packet.extend(data);
        packet.resize(packet.len().next_multiple_of(4), 0);
        packet.extend([2, 0, 4, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        write::block(&mut stream, ENHANCED_PACKET, &packet);
        let mut lines = Lines::new(detail);
        blocks(&stream).for_each(|block| lines.take(&block));
        let (_, rest) = lines.text.split_once(' ').unwrap();
        rest.to_owned()
    }

    fn tcp() -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(40000, 80, 1000, 1024)
            .psh()
            .ack(7);
        let mut packet = Vec::new();
        builder.write(&mut packet, b"hello").unwrap();
        packet
    }

    #[test]
    fn lines_are_those_of_tcpdump() {
        let ethernet = |ether_type: &[u8], payload: &[u8]| [&[0; 12][..], ether_type, payload].concat();
        let short = Detail::default();
        for (data, expected) in [
            (
                ethernet(&[8, 0], &tcp()),
                "IP 10.0.0.1.40000 > 10.0.0.2.80: Flags [P.], seq 1000:1005, ack 7, win 1024, length 5",
            ),
            (
                ethernet(&[0x81, 0, 0, 5, 8, 0], &tcp()),
                "vlan 5, IP 10.0.0.1.40000 > 10.0.0.2.80: Flags [P.], seq 1000:1005, ack 7, win 1024, length 5",
            ),
            (
                ethernet(
                    &[8, 6],
                    &[
                        0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
                    ],
                ),
                "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 42",
            ),
            (ethernet(&[0x88, 0xcc], &[0; 4]), "ethertype 0x88cc, length 18"),
            (vec![1, 2, 3], "link type 1, length 3"),
        ] {
            assert_eq!(line(ETHERNET, &data, short), format!("eth0 In  {expected}\n"));
        }
        let raw = line(RAW_IP, &tcp(), short);
        assert!(raw.starts_with("eth0 In  IP 10.0.0.1.40000 > "), "{raw}");
        let mut echo = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder
            .icmpv4_echo_request(7, 9)
            .write(&mut echo, &[0; 56])
            .unwrap();
        let raw = line(RAW_IP, &echo, short);
        let told = "10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 9, length 64\n";
        assert!(raw.ends_with(told), "{raw}");
    }

    /// As they were, whatever is left of them.
    #[test]
    fn lengths_are_those_of_whole_packets() {
        let whole = tcp();
        for left in [44, 42, 40] {
            let cut = line_of(RAW_IP, &whole[..left], whole.len(), Detail::default());
            assert!(
                cut.ends_with("seq 1000:1005, ack 7, win 1024, length 5\n"),
                "{cut}"
            );
        }
        // Behind the packet stands what fills the frame.
        let frame = [&[0; 12][..], &[8, 0], &whole, &[0; 9]].concat();
        let cut = line_of(ETHERNET, &frame[..60], frame.len(), Detail::default());
        assert!(cut.ends_with("length 5\n"), "{cut}");
    }

    #[test]
    fn headers_and_bytes_are_shown_when_asked_for() {
        let detail = Detail {
            headers: true,
            bytes: true,
        };
        let told = line(RAW_IP, &tcp(), detail);
        let lines: Vec<&str> = told.lines().collect();
        assert!(
            lines[0].contains("IP (tos 0x0, ttl 64, id 0, proto TCP, length 45) 10.0.0.1"),
            "{told}"
        );
        assert!(lines[1].starts_with("\t0x0000:  4500 002d 0000 "), "{told}");
        assert_eq!(lines.len(), 4);
    }
}
