//! Filters in running captures: what they let through, what is refused, and that a capture does not feed on itself.

use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    str::FromStr as _,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use packetflix_tests::{
    client::{Capture, Recorder, refusal},
    hook::hooks,
    namespace::{Namespace, output_of},
    raw::{self, RawSocket, Tun},
    recording::Recording,
    server::{Server, percent_encoded},
};
use tokio::time::{Instant, timeout};

/// A query with a filter.
fn query(namespace: &Namespace, filter: &str) -> anyhow::Result<String> {
    let (netns, filter) = (namespace.inode()?, percent_encoded(filter));
    Ok(format!("netns={netns}&names=0&statistics=1s&filter={filter}"))
}

/// A UDP datagram from 10.9.1.2 to 10.9.1.1, in an Ethernet frame.
fn datagram(port: u16) -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 1, 2, 10, 9, 1, 1,
    ];
    packet.extend(1000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    raw::ethernet(0x0800, &packet)
}

fn payloads(recording: &Recording) -> Vec<&[u8]> {
    recording.packets.iter().map(|packet| &packet.data[..]).collect()
}

#[tokio::test]
async fn only_what_a_filter_accepts_is_captured_and_all_is_counted() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let hosts: Vec<String> = (0..300)
            .map(|host| format!("host 10.{}.{}.9", host / 250, host % 250))
            .collect();
        let many = format!("{} or udp port 80", hosts.join(" or "));
        for (filter, expected) in [
            ("udp port 80", vec![80]),
            ("not port 80", vec![22]),
            ("inbound and udp dst port 22", vec![22]),
            ("outbound", vec![]),
            ("vlan 5 and udp", vec![]),
            ("ip src host 10.9.1.2 and less 60", vec![80, 22]),
            (&many, vec![80]),
            ("  ", vec![80, 22]),
        ] {
            let url = server.url(&format!("{}&nif=va", query(&here, filter)?));
            let mut recorder = Recorder::start(&url).await?;
            let sender = RawSocket::open(&there, "vb")?;
            for port in [80, 22] {
                sender.send(&datagram(port))?;
            }
            // The last to arrive says that the others have.
            recorder
                .read_until(|recording| {
                    recording
                        .statistics
                        .iter()
                        .any(|statistics| statistics.received >= 2)
                })
                .await?;
            let recording = recorder.finish().await?;
            let frames: Vec<Vec<u8>> = expected.iter().map(|port| datagram(*port)).collect();
            assert_eq!(payloads(&recording), frames, "{hook} {filter}");
            let last = recording.statistics.last().copied().unwrap_or_default();
            ensure!(
                last.received >= 2 && last.accepted == expected.len() as u64,
                "{hook} {filter}: {last:?}"
            );
            let told = filter.trim();
            if !told.is_empty() {
                ensure!(
                    recording.comment.contains("capture-filter: \""),
                    "{}",
                    recording.comment
                );
                let options = &recording.interfaces[0].options;
                ensure!(
                    options.contains("IfFilter") && options.contains("va"),
                    "{options}"
                );
            }
        }
    }
    Ok(())
}

/// Packets that the kernel sends as an answer, and those of a packet socket, do not say at TC egress that they are outgoing.
#[tokio::test]
async fn filters_know_which_way_a_packet_goes() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let sent = [raw::ethernet(0x88b5, b"from a packet socket")];
        for (filter, requests, replies, frames) in [
            ("inbound and (icmp or ether proto 0x88b5)", 3, 0, 0),
            ("outbound and (icmp or ether proto 0x88b5)", 0, 3, 1),
            ("not inbound and icmp", 0, 3, 0),
            ("icmp and not outbound", 3, 0, 0),
        ] {
            let url = server.url(&format!("{}&nif=va", query(&here, filter)?));
            let mut recorder = Recorder::start(&url).await?;
            let mut ping = there.command("busybox");
            output_of(ping.args(["ping", "-c", "3", "-i", "0.1", "-W", "5", "10.9.1.1"]))?;
            RawSocket::open(&here, "va")?.send(&sent[0])?;
            let seen = |recording: &Recording| {
                let last = recording.statistics.last();
                last.is_some_and(|statistics| statistics.received >= 7)
            };
            recorder.read_until(seen).await?;
            let recording = recorder.finish().await?;
            // The type of the ICMP message behind a header without options; 8 asks, 0 answers.
            let of_type = |message: u8| {
                let packets = recording.packets.iter();
                let is_one = |data: &[u8]| data[12..14] == [8, 0] && data[34] == message;
                packets.filter(|packet| is_one(&packet.data)).count()
            };
            let counts = (of_type(8), of_type(0), recording.count(&sent[0]));
            assert_eq!(counts, (requests, replies, frames), "{hook} {filter}");
            let outbound = recording.packets.iter().filter(|packet| packet.is_outbound());
            assert_eq!(outbound.count(), replies + frames, "{hook} {filter}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn vlan_tags_beside_the_packet_are_filtered_by() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("{}&nif=va", query(&here, "vlan 5 and udp port 80")?));
        let mut recorder = Recorder::start(&url).await?;
        let sender = RawSocket::open(&there, "vb")?;
        let tagged = |vlan: u16| {
            let plain = datagram(80);
            [&plain[..12], &[0x81, 0], &vlan.to_be_bytes(), &plain[12..]].concat()
        };
        for frame in [tagged(6), datagram(80), tagged(5)] {
            sender.send(&frame)?;
        }
        recorder
            .read_until(|recording| !recording.packets.is_empty())
            .await?;
        let recording = recorder.finish().await?;
        assert_eq!(payloads(&recording), [tagged(5)], "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn filter_that_means_nothing_for_an_interface_excludes_it() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let _tun = Tun::open(&here, "tun7")?;
    let server = Server::start(&[])?;
    let filter = "ether host 02:00:00:00:00:01 or udp port 80";
    let mut recorder = Recorder::start(&server.url(&query(&here, filter)?)).await?;
    RawSocket::open(&there, "vb")?.send(&datagram(80))?;
    recorder
        .read_until(|recording| !recording.packets.is_empty())
        .await?;
    let recording = recorder.finish().await?;
    // A kernel that has tunnels puts some into each namespace.
    for (name, expected) in [("lo", false), ("va", false), ("tun7", true)] {
        let mut interfaces = recording.interfaces.iter();
        let interface = interfaces
            .find(|interface| interface.name == name)
            .context(name)?;
        let noted = interface.options.contains("nothing is captured here");
        assert_eq!(noted, expected, "{}", interface.options);
    }
    let url = server.url(&format!(
        "{}&nif=tun7",
        query(&here, "ether host 02:00:00:00:00:01")?
    ));
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(
        status == 400 && sentence.starts_with("the filter cannot be applied to tun7: "),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn filters_that_cannot_be_are_refused_in_the_words_of_libpcap() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let large: Vec<String> = (0..1500).map(|at| format!("ether[{at}:4]={}", at + 1)).collect();
    for (filter, words) in [
        (
            "tcp port",
            "filter \"tcp port\": can't parse filter expression: syntax error",
        ),
        ("ip host 300.1.1.1.1", "\"300.1.1.1.1\" in the filter is a name"),
        ("ether[0:3] = 1", "filter \"ether[0:3] = 1\": "),
        ("host www.example.org", "--resolve-filter-names"),
        ("ip6 protochain 6", "protochain"),
        (
            &large.join(" or "),
            "the filter becomes 4374 instructions, and the kernel takes 4096",
        ),
    ] {
        let url = server.url(&query(&namespace, filter)?);
        // A header may be longer than a query, once that is escaped.
        let (status, sentence) = if filter.len() > 10_000 {
            let url = server.url(&format!("netns={}", namespace.inode()?));
            refusal(&server, &url, &[("clustershark-filter", filter)]).await?
        } else {
            refusal(&server, &url, &[]).await?
        };
        ensure!(
            status == 400 && sentence.contains(words),
            "{filter}: {status} {sentence}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn capture_of_ones_own_namespace_stays_finite() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (house, desk) = Namespace::pair()?;
        let mut inside = house.command("env");
        inside.arg(packetflix_tests::server::program("packetflix")?);
        let server = Server::start_by(&mut inside, &["--open-to-everyone", "--hook", hook])?;
        let connect = || std::net::TcpStream::connect(("10.9.1.1", server.port()));
        // Two of them would feed on each other.
        let mut recorders = Vec::new();
        for rest in ["", "", "&self=1"] {
            let stream = desk.inside(connect)??;
            let url = format!(
                "ws://10.9.1.1:{}/capture?netns={}{rest}",
                server.port(),
                house.inode()?
            );
            if rest.is_empty() {
                recorders.push(Recorder::over(stream, &url).await?);
            } else {
                // With its own traffic it does feed on itself: the packets do not end.
                let mut fed = Recorder::over(stream, &url).await?;
                RawSocket::open(&desk, "vb")?.send(&datagram(80))?;
                fed.read_until(|recording| recording.packets.len() > 50).await?;
                fed.finish().await?;
            }
        }
        let noise = RawSocket::open(&desk, "vb")?;
        for _ in 0..20 {
            noise.send(&datagram(99))?;
        }
        for mut recorder in recorders {
            recorder
                .read_until(|recording| recording.count_on("va", false, &datagram(99)) == 20)
                .await?;
            // Only statistics come, and no packet any more.
            let before = Recording::parse(recorder.stream())?.packets.len();
            let until = Instant::now() + Duration::from_secs(2);
            while Instant::now() < until {
                let _ = timeout(Duration::from_millis(200), recorder.read()).await;
            }
            let recording = recorder.finish().await?;
            assert_eq!(recording.packets.len(), before, "{hook}");
            assert_eq!(said_by(&recording, server.port()), 0, "{hook}");
        }
    }
    Ok(())
}

/// Frames in which TCP from a port says something. Of connections that come while a capture runs, it has what was said
/// before they were accepted: handshakes, and what clients ask.
fn said_by(recording: &Recording, port: u16) -> usize {
    let says = |frame: &[u8]| {
        let header = match frame.get(12..14) {
            Some([0x08, 0x00]) if frame.get(23) == Some(&6) => 34,
            Some([0x86, 0xdd]) if frame.get(20) == Some(&6) => 54,
            _ => return false,
        };
        let len = frame.len().min(match header {
            34 => 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]])),
            _ => 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]])),
        });
        let Some(tcp) = frame.get(header..len).filter(|tcp| tcp.len() >= 20) else {
            return false;
        };
        tcp[..2] == port.to_be_bytes() && tcp.len() > 4 * usize::from(tcp[12] >> 4)
    };
    recording
        .packets
        .iter()
        .filter(|packet| says(&packet.data))
        .count()
}

#[tokio::test]
async fn own_traffic_is_known_behind_translated_addresses() -> anyhow::Result<()> {
    for masquerade in [false, true] {
        let (house, router, desk) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        router.connect("rh", &house, "vh", 1)?;
        router.connect("rd", &desk, "vd", 2)?;
        house.ip(&["route", "add", "default", "via", "10.9.1.1"])?;
        let mut inside = house.command("env");
        inside.arg(packetflix_tests::server::program("packetflix")?);
        let server = Server::start_by(&mut inside, &["--open-to-everyone"])?;
        router.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        let to = format!("10.9.1.2:{}", server.port());
        let translate = [
            "PREROUTING",
            "-p",
            "tcp",
            "--dport",
            "30001",
            "-j",
            "DNAT",
            "--to-destination",
            &to,
        ];
        let mut rules = vec![&translate[..]];
        if masquerade {
            rules.push(&["POSTROUTING", "-o", "rh", "-j", "MASQUERADE"]);
        }
        for rule in rules {
            output_of(router.command("iptables").args(["-t", "nat", "-A"]).args(rule))?;
        }
        let stream = desk.inside(|| std::net::TcpStream::connect("10.9.2.1:30001"))??;
        let url = format!("ws://10.9.2.1:30001/capture?netns={}", router.inode()?);
        let mut recorder = Recorder::over(stream, &url).await?;
        RawSocket::open(&desk, "vd")?.send(&datagram(99))?;
        // What only passes for it is not hidden: the right port of an address that nobody named.
        let other = ipv4(6, 0x4000, 0, "10.9.2.2:4000".parse()?, "10.9.2.1:5001".parse()?);
        let other = raw::ethernet(0x0800, &other);
        let hidden = ipv4(6, 0x4000, 0, "10.9.2.2:4000".parse()?, "10.9.2.1:30001".parse()?);
        RawSocket::open(&desk, "vd")?.send(&other)?;
        RawSocket::open(&desk, "vd")?.send(&raw::ethernet(0x0800, &hidden))?;
        RawSocket::open(&desk, "vd")?.send(&datagram(99))?;
        recorder
            .read_until(|recording| recording.count_on("rd", false, &datagram(99)) == 2)
            .await?;
        let mut recording = recorder.finish().await?;
        assert_eq!(recording.count_on("rd", false, &other), 1);
        recording.packets.retain(|packet| packet.data != other);
        // And whoever reads the stream is told.
        let described = recording
            .interfaces
            .iter()
            .find(|interface| interface.name == "rd");
        let told = &described.context("rd is not described")?.options;
        ensure!(
            told.contains("since addresses are translated") && told.contains("10.9.2.1:30001"),
            "{told}"
        );
        let tcp = recording
            .packets
            .iter()
            .filter(|packet| packet.data.len() > 34 && packet.data[12..14] == [8, 0] && packet.data[23] == 6);
        assert_eq!(tcp.count(), 0, "{masquerade}");
    }
    Ok(())
}

/// Whoever is let in under a translated name chooses what passes for own traffic there.
#[tokio::test]
async fn own_traffic_of_one_is_hidden_from_no_other() -> anyhow::Result<()> {
    let (house, desk) = Namespace::pair()?;
    let (here, there) = Namespace::pair()?;
    let mut inside = house.command("env");
    inside.arg(packetflix_tests::server::program("packetflix")?);
    let server = Server::start_by(&mut inside, &["--open-to-everyone"])?;
    let connect = || desk.inside(|| std::net::TcpStream::connect(("10.9.1.1", server.port())));
    let (others, own) = (connect()??, connect()??);
    let SocketAddr::V4(from) = own.local_addr()? else {
        anyhow::bail!("no address of IPv4");
    };
    let url = format!("ws://10.99.0.9:443/capture?netns={}&nif=va", here.inode()?);
    let mut others = Recorder::over(others, &url).await?;
    let mut own = Recorder::over(own, &url).await?;
    let hidden = ipv4(6, 0x4000, 0, from, "10.77.0.1:443".parse()?);
    let hidden = raw::ethernet(0x0800, &hidden);
    let socket = RawSocket::open(&there, "vb")?;
    socket.send(&hidden)?;
    socket.send(&datagram(99))?;
    for (recorder, count) in [(&mut others, 1), (&mut own, 0)] {
        let mut seen = 0;
        recorder
            .read_until(|recording| {
                seen = recording.count_on("va", false, &hidden);
                recording.count_on("va", false, &datagram(99)) == 1
            })
            .await?;
        assert_eq!(seen, count);
    }
    Ok(())
}

/// A TCP segment, or what passes for one, with as many words of IPv4 options.
fn ipv4(protocol: u8, fragment: u16, options: u8, from: SocketAddrV4, to: SocketAddrV4) -> Vec<u8> {
    let payload = segment(from.port(), to.port());
    let len = 20 + 4 * usize::from(options);
    let mut packet = vec![0x45 + options, 0];
    packet.extend(((len + payload.len()) as u16).to_be_bytes());
    packet.extend([0, 7]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.resize(len, 1);
    [packet, payload].concat()
}

/// A TCP segment behind these extension headers.
fn ipv6(next_header: u8, extensions: &[u8], from: SocketAddrV6, to: SocketAddrV6) -> Vec<u8> {
    let payload = [extensions, &segment(from.port(), to.port())].concat();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    [packet, payload].concat()
}

fn segment(from: u16, to: u16) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0]);
    segment.extend(b"who owns this?");
    segment
}

#[tokio::test]
async fn own_traffic_is_what_goes_to_and_from_our_endpoints() -> anyhow::Result<()> {
    const TCP: u8 = 6;
    const UDP: u8 = 17;

    for hook in hooks()? {
        let (house, desk) = Namespace::pair()?;
        for (namespace, interface, address) in [(&house, "va", "fd09::1/64"), (&desk, "vb", "fd09::2/64")] {
            namespace.inside(|| {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0")
            })??;
            namespace.ip(&["address", "add", address, "dev", interface, "nodad"])?;
        }
        let mut tun = Tun::open(&house, "tun7")?;
        house.ip(&["link", "set", "tun7", "up"])?;
        let mut inside = house.command("env");
        inside.arg(packetflix_tests::server::program("packetflix")?);
        let server = Server::start_by(&mut inside, &["--open-to-everyone", "--hook", hook])?;
        let port = server.port();
        let house_inode = house.inode()?;

        let stream = desk.inside(|| {
            std::net::TcpStream::connect((Ipv6Addr::from_str("fd09::1")?, port)).map_err(anyhow::Error::from)
        })??;
        let client = stream.local_addr()?;
        // Another connection that the service has, though nobody says anything.
        let idle = desk.inside(|| std::net::TcpStream::connect(("10.9.1.1", port)))??;
        let SocketAddr::V4(idle_end) = idle.local_addr()? else {
            bail!("{idle:?} is not of IPv4")
        };
        let url = format!("ws://[fd09::1]:{port}/capture?netns={house_inode}&names=0");
        let mut recorder = Recorder::over(stream, &url).await?;

        let v4 = |text: &str| -> anyhow::Result<SocketAddrV4> {
            Ok(text.replace("PORT", &port.to_string()).parse()?)
        };
        let v6 = |text: &str| -> anyhow::Result<SocketAddrV6> {
            Ok(text.replace("PORT", &port.to_string()).parse()?)
        };
        let (us, them) = (v4("10.9.1.1:PORT")?, v4("10.9.1.77:4000")?);
        let (us6, them6) = (v6("[fd09::1]:PORT")?, v6("[fd09::77]:4000")?);
        let SocketAddr::V6(client) = client else {
            bail!("{client} is not of IPv6")
        };
        // Pads to eight bytes, and goes on with TCP.
        let hop_by_hop = [TCP, 0, 1, 4, 0, 0, 0, 0];
        let mut cases = Vec::new();
        for (what, is_own, from, to) in [
            ("of an accepted connection to us", true, idle_end, us),
            ("of an accepted connection from us", true, us, idle_end),
            ("to us, without a connection", false, them, us),
            ("from us, without a connection", false, us, them),
            (
                "from another port of the client",
                false,
                SocketAddrV4::new(*idle_end.ip(), idle_end.port() ^ 1),
                us,
            ),
            (
                "from the client's port of another",
                false,
                SocketAddrV4::new([10, 9, 1, 77].into(), idle_end.port()),
                us,
            ),
            ("the wrong way round", false, v4("10.9.1.1:1")?, idle_end),
            ("to another of the same port", false, them, v4("10.9.1.78:PORT")?),
            (
                "from another of the same port",
                false,
                v4("10.9.1.78:PORT")?,
                them,
            ),
            ("to another port of ours", false, them, v4("10.9.1.1:1")?),
            (
                "from our port's number to our address",
                false,
                v4("10.9.1.77:PORT")?,
                v4("10.9.1.1:4000")?,
            ),
        ] {
            for options in [0, 1, 10] {
                cases.push((
                    format!("{what}, {options} options"),
                    is_own,
                    0x0800,
                    ipv4(TCP, 0x4000, options, from, to),
                ));
            }
            cases.push((
                format!("{what}, first fragment"),
                is_own,
                0x0800,
                ipv4(TCP, 0x2000, 0, from, to),
            ));
            cases.push((
                format!("{what}, later fragment"),
                false,
                0x0800,
                ipv4(TCP, 0x2001, 0, from, to),
            ));
            cases.push((
                format!("{what}, last fragment"),
                false,
                0x0800,
                ipv4(TCP, 0x1fff, 1, from, to),
            ));
            cases.push((
                format!("{what}, UDP"),
                false,
                0x0800,
                ipv4(UDP, 0x4000, 0, from, to),
            ));
        }
        for (what, is_own, from, to) in [
            ("of the capture's connection to us", true, client, us6),
            ("of the capture's connection from us", true, us6, client),
            ("to us, without a connection", false, them6, us6),
            ("from us, without a connection", false, us6, them6),
            (
                "from the client to what we are not called",
                false,
                client,
                v6("[fd10::5]:PORT")?,
            ),
            (
                "to the client from what we are not called",
                false,
                v6("[fd10::5]:PORT")?,
                client,
            ),
            (
                "from the client to another port",
                false,
                client,
                v6("[fd10::5]:80")?,
            ),
            (
                "to another of the same port",
                false,
                them6,
                v6("[fd09::1:1]:PORT")?,
            ),
            (
                "from another of the same port",
                false,
                v6("[fd09::1:1]:PORT")?,
                them6,
            ),
        ] {
            cases.push((format!("{what}, IPv6"), is_own, 0x86dd, ipv6(TCP, &[], from, to)));
            cases.push((
                format!("{what}, IPv6, UDP"),
                false,
                0x86dd,
                ipv6(UDP, &[], from, to),
            ));
            cases.push((
                format!("{what}, IPv6, extended"),
                false,
                0x86dd,
                ipv6(0, &hop_by_hop, from, to),
            ));
        }
        // Too short for what they say.
        let whole = ipv4(TCP, 0x4000, 10, idle_end, us);
        for len in [20, 23, 24, 60, 63] {
            cases.push((format!("{len} bytes"), false, 0x0800, whole[..len].to_vec()));
        }
        let whole = ipv6(TCP, &[], client, us6);
        for len in [40, 43] {
            cases.push((format!("{len} bytes, IPv6"), false, 0x86dd, whole[..len].to_vec()));
        }
        let mut header_too_short = ipv4(TCP, 0x4000, 0, idle_end, us);
        header_too_short[0] = 0x44;
        cases.push(("header of four words".to_owned(), false, 0x0800, header_too_short));

        let sender = RawSocket::open(&desk, "vb")?;
        for (_, _, ether_type, packet) in &cases {
            sender.send(&raw::ethernet(*ether_type, packet))?;
            tun.write(packet)?;
        }
        let last = datagram(99);
        sender.send(&last)?;
        tun.write(&last[14..])?;
        recorder
            .read_until(|recording| {
                recording.count_on("va", false, &last) == 1
                    && recording.count_on("tun7", false, &last[14..]) == 1
            })
            .await?;
        let recording = recorder.finish().await?;
        for (what, is_own, ether_type, packet) in &cases {
            let frame = raw::ethernet(*ether_type, packet);
            let counts = (
                recording.count_on("va", false, &frame),
                recording.count_on("tun7", false, packet),
            );
            let expected = usize::from(!is_own);
            assert_eq!(counts, (expected, expected), "{hook}: {what}");
        }
        drop(idle);
        // Nor is there anything of the capture's own stream.
        let is_tcp = |frame: &[u8]| frame[12..14] == [0x86, 0xdd] && frame.get(20) == Some(&TCP);
        let captured = recording.packets_of("va");
        let captured = captured.iter().filter(|packet| is_tcp(&packet.data)).count();
        let sent = cases
            .iter()
            .filter(|(_, is_own, ether_type, packet)| !is_own && is_tcp(&raw::ethernet(*ether_type, packet)));
        assert_eq!(captured, sent.count(), "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn own_traffic_on_loopback_is_left_out() -> anyhow::Result<()> {
    for hook in hooks()? {
        let house = Namespace::new()?;
        let mut inside = house.command("env");
        inside.arg(packetflix_tests::server::program("packetflix")?);
        let server = Server::start_by(&mut inside, &["--hook", hook])?;
        let stream = house.inside(|| std::net::TcpStream::connect(("127.0.0.1", server.port())))??;
        let (port, netns) = (server.port(), house.inode()?);
        let url = format!("ws://127.0.0.1:{port}/capture?netns={netns}&nif=lo");
        let mut recorder = Recorder::over(stream, &url).await?;
        RawSocket::open(&house, "lo")?.send(&datagram(99))?;
        recorder
            .read_until(|recording| recording.count_on("lo", false, &datagram(99)) == 1)
            .await?;
        let recording = recorder.finish().await?;
        assert_eq!(payloads(&recording), [datagram(99)], "{hook}");
    }
    Ok(())
}

#[test]
fn what_becomes_of_an_expression_is_shown() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let (status, programs) = server.get("/filter?expr=tcp%20port%2080")?;
    ensure!(status == 200 && programs["linktype"] == "ethernet", "{programs}");
    let count = |name: &str| programs[name].as_array().map_or(0, Vec::len);
    ensure!(count("classic") > 5 && count("native") > 5, "{programs}");
    ensure!(
        programs["classic"][0]
            .as_str()
            .is_some_and(|line| line.contains("ldh")),
        "{programs}"
    );
    for (query, words) in [
        ("", "no expression is given"),
        ("expr=tcp&linktype=7", "linktype=7 is neither"),
        ("expr=tcp%20port", "syntax error"),
        (
            "expr=ether%20host%2002:00:00:00:00:01&linktype=raw",
            "filter \"ether host",
        ),
    ] {
        let (status, answer) = server.get(&format!("/filter?{query}"))?;
        let sentence = answer["error"].as_str().unwrap_or_default();
        ensure!(
            status == 400 && sentence.contains(words),
            "{query}: {status} {answer}"
        );
    }
    let (status, raw) = server.get("/filter?expr=ip&linktype=101")?;
    ensure!(status == 200 && raw["linktype"] == "raw", "{raw}");
    Ok(())
}

/// The largest filters that fit, and those whose paths give the verifier the most to do, with all that makes programs
/// longer: each hook takes them, whatever the kernel. libpcap is done with these at once, on slow machines too.
#[tokio::test]
async fn filters_of_any_size_are_taken() -> anyhow::Result<()> {
    let loads: Vec<String> = (0..350).map(|at| format!("ether[{at}:4]={}", at + 1)).collect();
    let computed: Vec<String> = (0..50)
        .map(|at| format!("tcp[((tcp[12:1] & 0xf0) >> 2) + {at}:4] = tcp[4:4] * {at} / (udp[2:2] | 1)"))
        .collect();
    let paths: Vec<String> = (0..100)
        .map(|at| format!("(ip[{}] & {} = 0 or ip6[{at}] > 3)", at % 20, 1 << (at % 8)))
        .collect();
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let flags = [
            "--hook",
            hook,
            "--debug",
            "--max-packet-rate",
            "100000",
            "--max-byte-rate",
            "100MiB",
        ];
        let server = Server::start(&flags)?;
        for filter in [loads.join(" or "), computed.join(" or "), paths.join(" and ")] {
            let url = server.url(&format!("netns={}&names=0&nif=va&snaplen=60", here.inode()?));
            let filter = format!("udp port 80 or ({filter})");
            let capture = Capture::open(&url, &[("clustershark-filter", &filter)]).await?;
            let mut recorder = Recorder::of(capture).await?;
            RawSocket::open(&there, "vb")?.send(&datagram(80))?;
            recorder
                .read_until(|recording| !recording.packets.is_empty())
                .await?;
        }
    }
    Ok(())
}
