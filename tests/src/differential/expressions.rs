//! Filter expressions: those of `tests/data/expressions.txt`, and any number made by a grammar.

use super::packets::{ADDRESSES, ADDRESSES6, LABELS, MACS, PORTS, SESSIONS, VLANS};
use crate::random::Random;

/// A line that begins so has an expression that libpcap compiles and the kernel refuses.
const REFUSED: &str = "refused: ";

/// An expression written by hand.
pub struct Written {
    /// As it is written.
    pub text: &'static str,
    /// libpcap compiles it, and the kernel refuses what it becomes.
    pub refused: bool,
}

/// Those of the file.
pub fn written() -> Vec<Written> {
    include_str!("../../data/expressions.txt")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| match line.strip_prefix(REFUSED) {
            Some(text) => Written { text, refused: true },
            None => Written {
                text: line,
                refused: false,
            },
        })
        .collect()
}

/// Makes one. It may be one that libpcap does not compile: `icmp6 port 80`.
pub fn expression(random: &mut Random) -> String {
    let depth = random.pick(&[0, 1, 1, 2, 2, 3]);
    let inner = condition(random, depth);
    // These change what all that follows means, and so come first.
    match random.below(20) {
        0 => format!("vlan and {inner}"),
        1 => format!("vlan {} and ({inner})", random.pick(&VLANS)),
        2 => format!("mpls and {inner}"),
        3 => format!("mpls {} and ({inner})", random.pick(&LABELS)),
        4 => format!("pppoes {} and ({inner})", random.pick(&SESSIONS)),
        5 => format!("({inner}) or vlan"),
        6 => format!("vlan {} and vlan and ({inner})", random.pick(&VLANS)),
        _ => inner,
    }
}

fn condition(random: &mut Random, depth: u32) -> String {
    if depth == 0 {
        return if random.percent(65) {
            primitive(random)
        } else {
            relation(random)
        };
    }
    let (left, right) = (condition(random, depth - 1), condition(random, depth - 1));
    match random.below(10) {
        0..=3 => format!("{left} and {right}"),
        4..=6 => format!("({left} or {right})"),
        7 => format!("not ({left}) and {right}"),
        8 => format!("!({left} || {right})"),
        _ => format!("{left} && not ({right})"),
    }
}

fn primitive(random: &mut Random) -> String {
    let direction = random.pick(&["", "", "src ", "dst ", "src or dst ", "src and dst "]);
    match random.below(24) {
        0..=3 => {
            let protocol = random.pick(&["", "", "ip ", "arp ", "rarp "]);
            format!("{protocol}{direction}host {}", address(random))
        }
        4 => {
            let protocol = random.pick(&["", "ip6 "]);
            format!("{protocol}{direction}host {}", address6(random))
        }
        5 => {
            let [a, b, c, _] = random.pick(&ADDRESSES);
            let network = random.pick(&[
                format!("{a}.{b}.{c}"),
                format!("{a}.{b}"),
                format!("{a}.{b}.{c}.0/24"),
                format!("{a}.0.0.0/8"),
                format!("{a}.{b}.0.0 mask 255.255.0.0"),
            ]);
            format!("{direction}net {network}")
        }
        6 => {
            let [a, b, ..] = random.pick(&ADDRESSES6);
            format!("{direction}net {a:x}:{b:x}::/{}", random.pick(&[32, 48, 64]))
        }
        7 => {
            let [a, b, c, d, e, f] = random.pick(&MACS);
            format!("ether {direction}host {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
        }
        8..=11 => {
            let protocol = random.pick(&["", "tcp ", "udp ", "sctp "]);
            format!("{protocol}{direction}port {}", random.pick(&PORTS))
        }
        12..=13 => {
            let protocol = random.pick(&["", "tcp ", "udp "]);
            let (one, other) = (random.pick(&PORTS), random.pick(&PORTS));
            let (first, last) = (one.min(other), one.max(other));
            format!("{protocol}{direction}portrange {first}-{last}")
        }
        14..=15 => {
            let protocol = random.pick(&["ip", "ip6"]);
            format!(
                "{protocol} proto {}",
                random.pick(&[1, 2, 6, 17, 44, 47, 50, 51, 58, 89, 103, 132])
            )
        }
        16 => {
            let types = ["0x800", "0x806", "0x86dd", "0x8100", "0x88cc", "0x42", "0x1ff"];
            format!("ether proto {}", random.pick(&types))
        }
        17 => format!("{} {}", random.pick(&["less", "greater"]), random.below(160)),
        18..=19 => random
            .pick(&[
                "ether broadcast",
                "ether multicast",
                "ip multicast",
                "ip6 multicast",
                "ip broadcast",
            ])
            .to_owned(),
        _ => random
            .pick(&[
                "ip", "ip6", "arp", "rarp", "tcp", "udp", "icmp", "icmp6", "sctp", "igmp", "pim", "vrrp",
                "esp", "ah", "stp", "ipx", "netbeui", "iso", "atalk", "aarp", "decnet", "lat", "mopdl",
                "moprc", "inbound", "outbound",
            ])
            .to_owned(),
    }
}

fn address(random: &mut Random) -> String {
    let [a, b, c, d] = random.pick(&ADDRESSES);
    format!("{a}.{b}.{c}.{d}")
}

fn address6(random: &mut Random) -> String {
    random.pick(&ADDRESSES6).map(|word| format!("{word:x}")).join(":")
}

fn relation(random: &mut Random) -> String {
    if random.percent(25) {
        let flags = [
            "tcp-syn", "tcp-ack", "tcp-fin", "tcp-rst", "tcp-push", "tcp-urg", "tcp-ece", "tcp-cwr",
        ];
        let (one, other) = (random.pick(&flags), random.pick(&flags));
        return format!("tcp[tcpflags] & ({one}|{other}) {} 0", random.pick(&["=", "!="]));
    }
    let sign = random.pick(&["=", "!=", "<", ">", "<=", ">="]);
    let right = if random.percent(70) {
        number(random)
    } else {
        arithmetic(random, 1)
    };
    format!("{} {sign} {right}", arithmetic(random, 2))
}

fn arithmetic(random: &mut Random, depth: u32) -> String {
    if depth == 0 || random.percent(40) {
        return match random.below(10) {
            0 => "len".to_owned(),
            1 => number(random),
            _ => accessor(random, depth),
        };
    }
    let sign = random.pick(&["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"]);
    let left = arithmetic(random, depth - 1);
    let right = match sign {
        "<<" | ">>" => random.below(32).to_string(),
        _ if random.percent(60) => number(random),
        _ => arithmetic(random, depth - 1),
    };
    format!("({left} {sign} {right})")
}

fn accessor(random: &mut Random, depth: u32) -> String {
    let protocols = [
        "ether", "ether", "link", "ip", "ip", "ip", "ip6", "tcp", "tcp", "udp", "icmp", "icmp6", "arp",
        "sctp",
    ];
    let protocol = random.pick(&protocols);
    let size = random.pick(&["", "", ":1", ":2", ":4"]);
    let offset = if depth > 0 && random.percent(25) {
        arithmetic(random, depth - 1)
    } else {
        random.below(48).to_string()
    };
    format!("{protocol}[{offset}{size}]")
}

fn number(random: &mut Random) -> String {
    match random.below(5) {
        0 => format!("{:#x}", random.below(0x1_0000)),
        1 => random
            .pick(&[0x800_u32, 0xffff_ffff, 0x0a00_0001, 0x8000_0000, 0x0200])
            .to_string(),
        _ => random.below(70).to_string(),
    }
}
