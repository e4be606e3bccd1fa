use super::*;

const LANGUAGE: Language = Language::of_libpcap((1, 10));

/// How `check` answers: the expression as it is to be compiled, or the name that is in the way.
fn checked(expression: &str) -> Result<String, String> {
    match LANGUAGE.check(expression, &Names::Refused) {
        Ok(expression) => Ok(expression.into_owned()),
        Err(Refused::Name { name, .. }) => Err(name),
        Err(other) => Err(format!("{other:?}")),
    }
}

#[test]
fn takes_what_needs_no_look_up() {
    for expression in [
        "",
        " \t\r\n",
        "tcp port 80 and not host 10.0.0.1",
        "host 1.2.3.4 or 0x0a.0.0.1",
        "net 10 or net 10.1 or net 192.168.1 or net 10/8 or net 10.0.0.0 mask 255.0.0.0",
        "host fe80::1 or ::1 or :: or 2001:db8:: or ::ffff:1.2.3.4 or 1:2:3:4:5:6:7:8 or 1:2:3:4:5:6:1.2.3.4",
        "ip6 net 2001:db8::/32 or dst net fd00::/8",
        "ether host 0:1:2:a:b:c or 00-11-22-33-44-55 or 0.1.2.3.4.5 or 0011.2233.4455 or aabbccddeeff",
        "port 0x50 or 0120 or portrange 80-90 or 100-200 or (1-2)",
        "portrange 1-2 and (port 80) or 443-445",
        "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 && icmp[icmptype] = icmp-echo",
        "icmp6[icmp6type] == icmp6-neighborsolicit || ip[2:2]>>2 <= 5 or ether[0]&1=0",
        "ether proto \\ip or \\arp or loopback or 0x800",
        "iso proto \\clnp or es-is",
        "decnet host 10.15 or atalk host $AA",
        "llc ui or llc rnr or llc",
        "wlan type mgt subtype beacon or dir nods",
        "on en0 and reason match or ruleset \\abc",
        "vlan 5 and mpls 3 and geneve 0xb and pppoes 1",
        "len>5 and(greater 6)or!less 9",
    ] {
        assert_eq!(checked(expression), Ok(expression.to_owned()));
    }
}

#[test]
fn words_that_a_libpcap_does_not_know_are_names_there() {
    let check = |version| Language::of_libpcap(version).check("vxlan 7 and tcp", &Names::Refused);
    assert!(check((1, 10)).is_err() && check((1, 11)).is_ok());
}

#[test]
fn refuses_names() {
    for (expression, name) in [
        ("host example.com", "example.com"),
        ("host localhost", "localhost"),
        ("tcp port http", "http"),
        ("port 80 or https", "https"),
        ("portrange ftp-ssh", "ftp-ssh"),
        ("portrange 0x50-90", "0x50-90"),
        ("host 80-90", "80-90"),
        ("portrange 80-90 and host 1-2", "1-2"),
        ("port 5 and (portrange 80-90) or 443-445", "443-445"),
        ("port 5 and not (host 1.2.3.4 and (net 10)) or http", "http"),
        ("net loopback", "loopback"),
        ("ether host gateway.local", "gateway.local"),
        ("ip proto ospf", "ospf"),
        ("proto loopback", "loopback"),
        ("ip proto \\ospf", "ospf"),
        ("host \\tcp", "tcp"),
        ("host \\10.0.0.1", "10.0.0.1"),
        ("port\\http", "http"),
        ("TCP", "TCP"),
        ("tcp-foo", "tcp-foo"),
        ("ip.", "ip."),
        ("1.2.3.4.5", "1.2.3.4.5"),
        ("host 1.2.3.4x", "1.2.3.4x"),
        ("gateway router", "router"),
        ("face", "face"),
        ("host 0x", "0x"),
        ("not foo", "foo"),
        ("(foo)", "foo"),
        ("aabbccddeeff0", "aabbccddeeff0"),
        ("host fe80::1:10.0.0.2 or foo", "foo"),
        ("host ::10.0.0.2 or fe80::1:2:12345.0.0.2 or foo", "foo"),
    ] {
        assert_eq!(checked(expression), Err(name.to_owned()), "{expression}");
    }
}

#[test]
fn says_what_to_write_instead() {
    for (expression, hint) in [
        ("port http", "write the port's number"),
        ("net home", "write the network's address"),
        ("ether src host foo", "write the Ethernet address"),
        ("ip proto gre", "write the protocol's number"),
        ("Tcp", "the words of filters are written in small letters"),
        ("foo", "write the address"),
    ] {
        match LANGUAGE.check(expression, &Names::Refused) {
            Err(Refused::Name { instead, .. }) => assert_eq!(instead, hint, "{expression}"),
            other => panic!("{expression}: {other:?}"),
        }
    }
}

#[test]
fn refuses_loops() {
    for expression in ["protochain 6", "ip6 protochain \\tcp", "tcp or(ip protochain 51)"] {
        for names in [Names::Refused, Names::Known(Known::new())] {
            assert_eq!(LANGUAGE.check(expression, &names), Err(Refused::Protochain));
        }
        assert_eq!(LANGUAGE.wanted(expression), Err(Refused::Protochain));
    }
}

/// What a machine knows on which there are these names.
fn known() -> Known {
    let address = |text: &str| text.parse().unwrap();
    [
        (
            Kind::Host,
            "www",
            Found::Addresses(vec![address("10.0.0.1"), address("fd00::1")]),
        ),
        (Kind::Host, "one", Found::Addresses(vec![address("10.0.0.2")])),
        (Kind::Host, "nobody", Found::Nothing),
        (
            Kind::EthernetAddress,
            "desk",
            Found::EthernetAddress([2, 0, 0, 0, 0, 0xa]),
        ),
        (Kind::Network, "home", Found::Network(vec![10, 1, 0, 0])),
        (Kind::Network, "none", Found::Network(vec![0])),
        (
            Kind::Port,
            "domain",
            Found::Port {
                tcp: Some(53),
                udp: Some(53),
            },
        ),
        (
            Kind::Port,
            "ssh",
            Found::Port {
                tcp: Some(22),
                udp: None,
            },
        ),
        (
            Kind::Port,
            "http",
            Found::Port {
                tcp: Some(80),
                udp: None,
            },
        ),
        (
            Kind::Port,
            "both",
            Found::Port {
                tcp: Some(1),
                udp: Some(2),
            },
        ),
        (Kind::Protocol, "gre", Found::Protocol(47)),
    ]
    .into_iter()
    .map(|(kind, name, found)| {
        let name = name.to_owned();
        (Lookup { kind, name }, found)
    })
    .collect()
}

#[test]
fn names_become_what_they_stand_for() {
    let names = Names::Known(known());
    for (expression, becomes) in [
        ("host www", "host (10.0.0.1 or fd00::1)"),
        (
            "not src host www or one",
            "not src host (10.0.0.1 or fd00::1) or 10.0.0.2",
        ),
        (
            "ip host www and ip6 host www",
            "ip host 10.0.0.1 and ip6 host fd00::1",
        ),
        ("arp src www", "arp src 10.0.0.1"),
        ("www", "(10.0.0.1 or fd00::1)"),
        ("host (www or 1.2.3.4)", "host ((10.0.0.1 or fd00::1) or 1.2.3.4)"),
        ("ether src desk", "ether src 02:00:00:00:00:0a"),
        ("net home or none", "net 10.1 or 0"),
        ("port domain or 80", "port 53 or 80"),
        ("tcp port ssh", "tcp port 22"),
        ("port ssh", "tcp port 22"),
        (
            "not src or dst port ssh and host one",
            "not tcp src or dst port 22 and host 10.0.0.2",
        ),
        ("port 80 or ssh", "port 80 or tcp port 22"),
        (
            "dst port 80 or ssh and tcp",
            "dst port 80 or tcp dst port 22 and tcp",
        ),
        ("port domain and udp port both", "port 53 and udp port 2"),
        ("portrange ssh-http", "tcp portrange 22-80"),
        ("port\\ssh", "tcp port 22"),
        (
            "host one and proto \\tcp and port ssh",
            "host 10.0.0.2 and proto  6 and tcp port 22",
        ),
        ("ip proto gre or \\tcp", "ip proto 47 or  6"),
        ("(port ssh) or (port domain)", "(tcp port 22) or (port 53)"),
        ("ether proto nonsense", "ether proto nonsense"),
    ] {
        assert_eq!(
            LANGUAGE.check(expression, &names),
            Ok(becomes.into()),
            "{expression}"
        );
    }
    for (expression, sentence) in [
        ("host nobody", "unknown host 'nobody'"),
        ("host forgotten", "unknown host 'forgotten'"),
        ("ip6 host one", "unknown host 'one' for specified address family"),
        ("port nonsense", "unknown port 'nonsense'"),
        ("udp port ssh", "port 'ssh' is tcp"),
        ("port ssh or 80", "write its number, 22"),
        ("port (ssh or 80)", "write its number, 22"),
        ("gateway www", "gateway cannot be used here"),
    ] {
        let error = LANGUAGE.check(expression, &names).unwrap_err();
        assert!(
            matches!(&error, Refused::Unknown(message) if message.contains(sentence)),
            "{expression}: {error:?}"
        );
    }
    let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("h{n}")).collect();
    assert_eq!(LANGUAGE.wanted(&many.join(" or ")), Err(Refused::TooMany));
    assert_eq!(LANGUAGE.wanted(&"host www or ".repeat(100)).unwrap().len(), 1);
}

#[test]
fn protocols_become_numbers() {
    for (expression, becomes) in [
        ("ip proto \\tcp", "ip proto  6"),
        ("ip6 proto(\\udp or \\sctp)", "ip6 proto( 17 or  132)"),
        ("proto\\esp and port 5", "proto 50 and port 5"),
        ("not proto ! \\ip", "not proto !  0"),
        (
            "ip proto \\tcp or ether proto \\ip",
            "ip proto  6 or ether proto \\ip",
        ),
    ] {
        assert_eq!(checked(expression), Ok(becomes.to_owned()));
    }
}

#[test]
fn long_expressions_take_no_time() {
    for part in [
        "a", "1", "1.", "a-", ":", "1:", "::1", "\\", "tcp ", "f", "1-", "aabb.", "0x", "$a",
    ] {
        let expression = part.repeat(65_536 / part.len());
        let start = std::time::Instant::now();
        let _ = LANGUAGE.check(&expression, &Names::Refused);
        let _ = LANGUAGE.wanted(&expression);
        let took = start.elapsed();
        assert!(took < std::time::Duration::from_millis(500), "{part}: {took:?}");
    }
}
