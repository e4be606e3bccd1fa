//! What names in filters stand for, by the machine's tables and its resolver.

use std::{fs::File, io::Read as _, net::ToSocketAddrs as _};

use packetflix_filter::{Found, Kind, Lookup};

/// Most bytes that are read of a table.
const MAX_TABLE: u64 = 4 << 20;

/// Looks a name up. Blocks for as long as the resolver does.
pub(super) fn look_up(lookup: &Lookup) -> Found {
    let name = &*lookup.name;
    match lookup.kind {
        Kind::Host => host(name),
        Kind::EthernetAddress => ethernet_address(name, &table("/etc/ethers")),
        Kind::Network => network(name, &table("/etc/networks")),
        Kind::Port => port(name, &table("/etc/services")),
        Kind::Protocol => protocol(name, &table("/etc/protocols")),
    }
}

fn host(name: &str) -> Found {
    /// More of them make no filter that anyone wants.
    const MOST: usize = 64;

    let mut addresses = Vec::new();
    for found in (name, 0).to_socket_addrs().into_iter().flatten() {
        if !addresses.contains(&found.ip()) && addresses.len() < MOST {
            addresses.push(found.ip());
        }
    }
    match addresses[..] {
        [] => Found::Nothing,
        _ => Found::Addresses(addresses),
    }
}

/// A table of the machine, or nothing where there is none.
fn table(path: &str) -> String {
    let mut text = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(MAX_TABLE).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The lines of a table that say something, as words.
fn lines(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = table
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default());
    lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() >= 2)
}

/// What stands beside a name, or one of its others, in a table of names and numbers (services(5), protocols(5)).
fn named<'a>(name: &'a str, table: &'a str) -> impl Iterator<Item = &'a str> {
    lines(table)
        .filter(move |words| words[0] == name || words[2..].contains(&name))
        .map(|words| words[1])
}

/// ethers(5)
fn ethernet_address(name: &str, table: &str) -> Found {
    let found = lines(table).find(|words| words[1] == name).and_then(|words| {
        let octets = words[0].split(':').map(|octet| u8::from_str_radix(octet, 16));
        octets.collect::<Result<Vec<_>, _>>().ok()?.try_into().ok()
    });
    found.map_or(Found::Nothing, Found::EthernetAddress)
}

/// networks(5)
fn network(name: &str, table: &str) -> Found {
    let found = named(name, table).find_map(|number| {
        let octets = number.split('.').map(str::parse).collect::<Result<Vec<u8>, _>>();
        octets.ok().filter(|octets| (1..=4).contains(&octets.len()))
    });
    found.map_or(Found::Nothing, Found::Network)
}

fn port(name: &str, table: &str) -> Found {
    let over = |protocol: &str| {
        named(name, table).find_map(|number| {
            let (port, found) = number.split_once('/')?;
            port.parse().ok().filter(|_| found == protocol)
        })
    };
    match (over("tcp"), over("udp")) {
        (None, None) => Found::Nothing,
        (tcp, udp) => Found::Port { tcp, udp },
    }
}

fn protocol(name: &str, table: &str) -> Found {
    let found = named(name, table).find_map(|number| number.parse().ok());
    found.map_or(Found::Nothing, Found::Protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_read() {
        let services = "# who\nssh 22/tcp # secure\ndomain 53/tcp\ndomain 53/udp dns\nx\nbad y/tcp\n";
        for (name, found) in [
            (
                "ssh",
                Found::Port {
                    tcp: Some(22),
                    udp: None,
                },
            ),
            (
                "domain",
                Found::Port {
                    tcp: Some(53),
                    udp: Some(53),
                },
            ),
            (
                "dns",
                Found::Port {
                    tcp: None,
                    udp: Some(53),
                },
            ),
            ("bad", Found::Nothing),
            ("secure", Found::Nothing),
            ("22/tcp", Found::Nothing),
        ] {
            assert_eq!(port(name, services), found, "{name}");
        }
        assert_eq!(protocol("GRE", "gre 47 GRE\n"), Found::Protocol(47));
        assert_eq!(protocol("gre", "gre 999\n"), Found::Nothing);
        assert_eq!(
            network("loopback", "loopback 127.0.0.0\n"),
            Found::Network(vec![127, 0, 0, 0])
        );
        assert_eq!(network("x", "y 10.1 x\n"), Found::Network(vec![10, 1]));
        assert_eq!(network("x", "x 1.2.3.4.5\n"), Found::Nothing);
        let ethers = "08:00:20:0:61:Ca desk\n1:2:3 short\n";
        let desk = [0x08, 0, 0x20, 0, 0x61, 0xca];
        assert_eq!(ethernet_address("desk", ethers), Found::EthernetAddress(desk));
        assert_eq!(ethernet_address("short", ethers), Found::Nothing);
    }
}
