//! What the page makes of packets.

use std::{io::Read as _, net::TcpListener, process::Stdio, thread};

use anyhow::Context as _;
use packetflix_tests::{
    namespace::Namespace,
    raw::{RawSocket, arp, ethernet, ipv4_udp, ipv6_udp, vlan},
    server::Server,
};

use crate::{wait_for_total, watching};

/// What programs really say to each other, as the page tells it.
#[test]
fn protocols_are_told_as_people_know_them() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    // It takes whatever comes, so that whoever asks goes on to say what they want.
    let listener = there.inside(|| TcpListener::bind("10.9.1.2:443"))??;
    let serving = thread::spawn(move || {
        for _ in 0..2 {
            let (mut stream, _) = listener.accept()?;
            let _ = stream.read(&mut [0; 4096])?;
        }
        anyhow::Ok(())
    });
    let run = |program: &str, arguments: &[&str]| {
        // They hear of no good answer, which is no matter here.
        let mut command = here.command(program);
        let command = command.args(arguments).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).status()
    };
    run("busybox", &["ping", "-c", "1", "-W", "1", "10.9.1.2"])?;
    run(
        "curl",
        &["--silent", "--max-time", "2", "http://10.9.1.2:443/some/thing"],
    )?;
    run(
        "timeout",
        &[
            "2",
            "openssl",
            "s_client",
            "-connect",
            "10.9.1.2:443",
            "-servername",
            "shop.example",
        ],
    )?;
    run(
        "timeout",
        &["2", "busybox", "nslookup", "db.shop.example", "10.9.1.2"],
    )?;
    run(
        "busybox",
        &[
            "udhcpc",
            "-i",
            "va",
            "-n",
            "-q",
            "-t",
            "1",
            "-T",
            "1",
            "-s",
            "/bin/true",
        ],
    )?;
    serving.join().map_err(|_| anyhow::anyhow!("nobody served"))??;
    let raw = RawSocket::open(&here, "va")?;
    raw.send(&ethernet(0x8100, &vlan(42, 0x0800, &ipv4_udp(b"in a VLAN"))))?;
    for (filter, text) in [
        ("proto:arp", "who has 10.9.1.2? tell 10.9.1.1"),
        ("proto:icmp", "echo request, identifier"),
        ("proto:http", "GET /some/thing HTTP/1.1"),
        ("proto:tls", "client hello, server name shop.example"),
        ("proto:dns", "query A db.shop.example"),
        ("proto:dhcp", "discover"),
        ("proto:vlan", "12345 → 12346 len 9"),
        ("flags:syn port:443", "[SYN] seq 0"),
    ] {
        browser.type_into("//input[@type='search']", &format!("\u{e009}a\u{e000}{filter}"))?;
        browser.wait_for_text(text).with_context(|| filter.to_owned())?;
    }
    browser.press("conversations")?;
    // The kernel answered a SYN, which has taken a time.
    browser.wait_for(
        "return [...document.querySelectorAll('tr')].some(row => row.innerText.includes(':443') && / ms/.test(row.innerText))",
    )?;
    browser.check_console()
}

/// A segment that is sent twice is told as such.
#[test]
fn segments_that_are_sent_again_are_marked() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    let raw = RawSocket::open(&here, "va")?;
    for (sequence, flags, payload) in [
        (1000_u32, 0x02, &b""[..]),
        (1001, 0x18, b"hello"),
        (1006, 0x18, b"world"),
        (1001, 0x18, b"hello"),
        (1010, 0x10, b"d"),
        (1011, 0x04, b""),
    ] {
        raw.send(&ethernet(0x0800, &ipv4_tcp(sequence, flags, payload)))?;
    }
    wait_for_total(&browser, 6)?;
    browser.type_into("//input[@type='search']", "mark:retransmission")?;
    browser.wait_for_text("1 shown")?;
    browser.wait_for_text("[retransmission] 40000 → 80 [PSH, ACK] seq 1")?;
    browser.type_into("//input[@type='search']", "\u{e009}a\u{e000}mark:keep-alive")?;
    browser.wait_for_text("[keep-alive] 40000 → 80 [ACK] seq 10")?;
    browser.type_into("//input[@type='search']", "\u{e009}a\u{e000}flags:rst")?;
    browser.wait_for_text("seq 11 win")?;
    browser.check_console()
}

/// An IPv4 packet with a segment of TCP, from 10.9.9.1 to 10.9.9.2.
fn ipv4_tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut tcp = [&40_000_u16.to_be_bytes()[..], &80_u16.to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    tcp.extend(payload);
    let len = u16::try_from(20 + tcp.len()).unwrap_or(u16::MAX);
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 6, 0, 0, 10, 9, 9, 1, 10, 9, 9, 2]);
    packet.extend(tcp);
    packet
}

/// Packets of which nothing can be relied on are each told, and keep nothing else from it.
#[test]
fn packets_that_are_wrong_are_told_like_others() -> anyhow::Result<()> {
    const COUNT: u64 = 3000;
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    let raw = RawSocket::open(&here, "va")?;
    let good = [
        ethernet(0x0800, &ipv4_udp(b"payload")),
        ethernet(0x86dd, &ipv6_udp(b"payload")),
        ethernet(0x0806, &arp()),
        ethernet(0x8100, &vlan(1, 0x86dd, &ipv6_udp(b""))),
        ethernet(0x0800, &ipv4_tcp(1, 0x18, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03\x03")),
        ethernet(0x0800, &ipv4_tcp(1, 0x18, b"GET / HTTP/1.1\r\nHost: \xff\r\n\r\n")),
        ethernet(0x0800, &udp_of(53, b"\x12\x34\x81\x80\0\x01\0\x02\0\0\0\0\x01a\xc0\x0c\0\x01\0\x01\xc0\x0c\0\x05\0\x01\0\0\0\x01\0\x02\xc0\x0c")),
        ethernet(0x0800, &udp_of(67, &[1; 300])),
    ];
    // The same each time: Marsaglia's xorshift.
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    for _ in 0..COUNT {
        let mut frame = good[next(good.len())].clone();
        for _ in 0..next(4) {
            // The addresses stay, without which the kernel sends nothing.
            let at = 12 + next(frame.len() - 12);
            frame[at] = next(256) as u8;
        }
        frame.truncate(14 + next(frame.len()));
        raw.send(&frame)?;
    }
    wait_for_total(&browser, COUNT)?;
    // Each is held against a filter that all pass, and so is decoded.
    browser.type_into("//input[@type='search']", "!no-packet-says-this")?;
    browser.wait_for(&format!(
        "return Number(document.querySelector('.rows').getAttribute('aria-rowcount')) > {COUNT}"
    ))?;
    browser.wait_for("return document.querySelectorAll('.row .summary').length > 5")?;
    browser.check_console()
}

/// An IPv4 packet with UDP for a port.
fn udp_of(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = ipv4_udp(payload);
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    if port == 67 {
        packet[20..22].copy_from_slice(&68_u16.to_be_bytes());
    }
    packet
}
