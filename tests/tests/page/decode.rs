//! What the page makes of packets.

use std::{
    cell::Cell,
    io::Read as _,
    net::{TcpListener, UdpSocket},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    browser::Browser,
    namespace::{Namespace, inside, of_process, output_of},
    process::Sleeper,
    raw::{RawSocket, arp, ethernet, ipv4_udp, ipv6_udp, vlan},
    server::Server,
};

use crate::{choose, send, url, wait_for_total, watch_here, watching};

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
        &["2", "busybox", "nslookup", "bücher.shop.example", "10.9.1.2"],
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
    for head in [
        "GET /größe HTTP/1.1\r\n\r\n".as_bytes(),
        b"GET /caf\xe9 HTTP/1.1\r\n\r\n",
    ] {
        raw.send(&ethernet(0x0800, &ipv4_tcp(1000, 0x18, head)))?;
    }
    for (filter, text) in [
        ("proto:arp", "who has 10.9.1.2? tell 10.9.1.1"),
        ("proto:icmp", "echo request, identifier"),
        ("proto:http", "GET /some/thing HTTP/1.1"),
        ("proto:http", "GET /größe HTTP/1.1"),
        // It is no UTF-8.
        ("proto:http", r"GET /caf\xe9 HTTP/1.1"),
        ("proto:tls", "client hello, server name shop.example"),
        ("proto:dns", "query A bücher.shop.example"),
        ("proto:dhcp", "discover"),
        ("proto:vlan", "12345 → 12346 len 9"),
        ("flags:syn port:443", "[SYN] seq 0"),
    ] {
        browser.type_into("//input[@type='search']", &format!("\u{e009}a\u{e000}{filter}"))?;
        browser.wait_for_text(text).with_context(|| filter.to_owned())?;
        // By which it is also seen among others.
        if let Some(colour) = filter.strip_prefix("proto:").filter(|colour| *colour != "vlan") {
            browser.wait_for(&format!("return document.querySelector('.row .colour.{colour}')"))?;
        }
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
    browser.wait_for("return document.querySelector('.row .colour.reset')")?;
    // What was sent again, and how often somebody broke off, is told of the conversation.
    browser.press("conversations")?;
    browser.wait_for(
        "const row = [...document.querySelectorAll('tr')].find(row => row.innerText.includes('10.9.9.2:80')); \
         return row && [...row.cells].slice(-2).map(cell => cell.innerText).join() === '1,1'",
    )?;
    browser.check_console()
}

/// What tshark calls the marks, where it has several of them the first of these.
const ANALYSIS: [(&str, &str); 9] = [
    ("tcp.analysis.spurious_retransmission", "spurious retransmission"),
    ("tcp.analysis.fast_retransmission", "fast retransmission"),
    ("tcp.analysis.out_of_order", "out of order"),
    ("tcp.analysis.retransmission", "retransmission"),
    ("tcp.analysis.lost_segment", "previous segment not captured"),
    ("tcp.analysis.duplicate_ack", "duplicate ACK"),
    ("tcp.analysis.zero_window", "zero window"),
    ("tcp.analysis.keep_alive", "keep-alive"),
    ("tcp.analysis.keep_alive_ack", "keep-alive ACK"),
];

/// A connection on which much goes wrong is told as tshark tells it, whichever way its packets fell in time.
#[test]
fn segments_are_marked_as_tshark_marks_them() -> anyhow::Result<()> {
    const SYN: u8 = 2;
    const ACK: u8 = 16;
    const PSH: u8 = 24;
    const FIN: u8 = 17;
    const WINDOW: u16 = 500;
    /// Longer than the handshake takes, but for a busy machine.
    const LATE: u64 = 400;
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    browser.resize(1400, 1600)?;
    let raw = RawSocket::open(&here, "va")?;
    let count = Cell::new(0);
    let send = |milliseconds: u64, segment: Segment| {
        thread::sleep(Duration::from_millis(milliseconds));
        count.set(count.get() + 1);
        raw.send(&ethernet(0x0800, &segment.packet()))
    };
    // By their distances from the first numbers, which are 1000 and 5000.
    let asks = |pause, sequence: u32, flags, payload| {
        let acknowledged = if flags == SYN { 0 } else { 5001 };
        send(
            pause,
            Segment {
                is_answer: false,
                sequence: 1000 + sequence,
                acknowledged,
                flags,
                window: WINDOW,
                payload,
            },
        )
    };
    let answers = |pause, sequence: u32, acknowledged: u32, flags, window| {
        let (sequence, acknowledged) = (5000 + sequence, 1000 + acknowledged);
        send(
            pause,
            Segment {
                is_answer: true,
                sequence,
                acknowledged,
                flags,
                window,
                payload: b"",
            },
        )
    };
    // Nobody hears the first SYN.
    asks(0, 0, SYN, b"")?;
    asks(50, 0, SYN, b"")?;
    answers(50, 0, 1, SYN | ACK, WINDOW)?;
    answers(50, 0, 1, SYN | ACK, WINDOW)?;
    asks(100, 1, ACK, b"")?;
    asks(0, 1, PSH, b"hello")?;
    answers(0, 1, 6, ACK, WINDOW)?;
    // One is missing, is asked for, and comes; then one comes that was there.
    asks(0, 6, PSH, b"again")?;
    asks(0, 16, PSH, b"world")?;
    answers(0, 1, 11, ACK, WINDOW)?;
    for _ in 0..3 {
        answers(0, 1, 11, ACK, WINDOW)?;
    }
    asks(0, 11, PSH, b"there")?;
    answers(0, 1, 21, ACK, WINDOW)?;
    asks(0, 1, PSH, b"hello")?;
    // One overtakes another, which comes a second time after a while: tshark calls it out of order where that is short.
    asks(LATE, 21, PSH, b"a b c")?;
    asks(0, 31, PSH, b"g h i")?;
    asks(0, 26, PSH, b"d e f")?;
    asks(LATE, 26, PSH, b"d e f")?;
    answers(0, 1, 36, ACK, WINDOW)?;
    // Nobody says anything for a while.
    asks(0, 35, ACK, b"")?;
    answers(0, 1, 36, ACK, WINDOW)?;
    asks(0, 35, ACK, b"i")?;
    answers(0, 1, 36, ACK, WINDOW)?;
    // There is no room, and there is.
    answers(0, 1, 36, ACK, 0)?;
    answers(0, 1, 36, ACK, WINDOW)?;
    // One is missing, and comes when nobody waits for it any more.
    asks(0, 36, PSH, b"j k l")?;
    asks(0, 46, PSH, b"p q r")?;
    asks(LATE, 41, PSH, b"m n o")?;
    answers(0, 1, 51, ACK, WINDOW)?;
    asks(0, 51, FIN, b"")?;
    asks(LATE, 51, FIN, b"")?;
    answers(0, 1, 52, 4 | ACK, WINDOW)?;
    // The port is used again.
    asks(LATE, 900, SYN, b"")?;

    browser.type_into("//input[@type='search']", "proto:tcp")?;
    browser.wait_for_text(&format!("{} shown", count.get()))?;
    let rows = format!(
        "const rows = [...document.querySelectorAll('.row .summary')]; return rows.length >= {} && rows.map(row => row.innerText)",
        count.get()
    );
    let rows: Vec<String> = serde_json::from_value(browser.wait_for(&rows)?)?;
    let mark = |row: &String| Some(row.strip_prefix('[')?.split_once("] ")?.0.to_owned());
    let marks: Vec<String> = rows.iter().map(|row| mark(row).unwrap_or_default()).collect();

    browser.press("Save what is here")?;
    let saved = browser.downloaded()?;
    let mut tshark = Command::new("tshark");
    tshark
        .arg("-r")
        .arg(saved)
        .args(["-Y", "tcp", "-T", "fields", "-E", "separator=,"]);
    tshark.args(ANALYSIS.iter().flat_map(|(field, _)| ["-e", field]));
    let told = output_of(&mut tshark)?;
    let called = |line: &str| {
        let mut fields = line.split(',').zip(ANALYSIS);
        fields
            .find(|(told, _)| !told.is_empty())
            .map_or("", |(_, (_, mark))| mark)
            .to_owned()
    };
    let expected: Vec<String> = told.lines().map(called).collect();
    let beside: Vec<String> = rows
        .iter()
        .zip(&expected)
        .map(|(row, mark)| format!("{mark:30} {row}"))
        .collect();
    assert_eq!(marks, expected, "{beside:#?}");
    // The numbers of the first connection are its own, also when there is another.
    ensure!(rows[5].contains("seq 1 ack 1 "), "{beside:#?}");
    // Whatever the machine's pace, these are there.
    for mark in [
        "spurious retransmission",
        "retransmission",
        "duplicate ACK",
        "keep-alive",
        "keep-alive ACK",
        "zero window",
        "previous segment not captured",
    ] {
        ensure!(marks.iter().any(|found| found == mark), "{mark}: {beside:#?}");
    }
    browser.check_console()
}

/// However often the same ports are used, each connection keeps its own numbers, and is a conversation of its own.
#[test]
fn ports_that_are_used_again_begin_another_conversation() -> anyhow::Result<()> {
    const CONNECTIONS: u32 = 24;
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    browser.resize(1400, 1600)?;
    let raw = RawSocket::open(&here, "va")?;
    for connection in 0..CONNECTIONS {
        let first = 1_000_000 - 5000 * connection;
        raw.send(&ethernet(0x0800, &ipv4_tcp(first, 0x02, b"")))?;
        raw.send(&ethernet(0x0800, &ipv4_tcp(first + 1, 0x18, b"hello")))?;
    }
    browser.type_into("//input[@type='search']", "flags:psh")?;
    browser.wait_for_text(&format!("{CONNECTIONS} shown"))?;
    let rows = browser.wait_for(&format!(
        "const rows = [...document.querySelectorAll('.row .summary')]; return rows.length === {CONNECTIONS} && rows.map(row => row.innerText)"
    ))?;
    let rows: Vec<String> = serde_json::from_value(rows)?;
    ensure!(
        rows.iter()
            .all(|row| row.contains("[PSH, ACK] seq 1 ") && !row.contains("retransmission")),
        "{rows:#?}"
    );
    browser.press("conversations")?;
    browser.wait_for(&format!(
        "return [...document.querySelectorAll('tr')].filter(row => row.innerText.includes('10.9.9.2:80')).length === {CONNECTIONS}"
    ))?;
    browser.check_console()
}

/// A segment of TCP from 10.9.9.1 to 10.9.9.2, or of the answer.
struct Segment<'a> {
    is_answer: bool,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    window: u16,
    payload: &'a [u8],
}

impl Segment<'_> {
    /// It in a packet of IPv4.
    fn packet(&self) -> Vec<u8> {
        let mut ends = [([10, 9, 9, 1], 40_000_u16), ([10, 9, 9, 2], 80)];
        if self.is_answer {
            ends.reverse();
        }
        let len = u16::try_from(40 + self.payload.len()).unwrap_or(u16::MAX);
        let mut packet = vec![0x45, 0];
        packet.extend(len.to_be_bytes());
        packet.extend([0, 1, 0, 0, 64, 6, 0, 0]);
        packet.extend(ends.iter().flat_map(|(address, _)| address));
        packet.extend(ends.iter().flat_map(|(_, port)| port.to_be_bytes()));
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(self.acknowledged.to_be_bytes());
        packet.extend([0x50, self.flags]);
        packet.extend(self.window.to_be_bytes());
        packet.extend([0; 4]);
        packet.extend(self.payload);
        packet
    }
}

/// An IPv4 packet with a segment of TCP that acknowledges nothing.
fn ipv4_tcp(sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let segment = Segment {
        is_answer: false,
        sequence,
        acknowledged: 0,
        flags,
        window: 256,
        payload,
    };
    segment.packet()
}

/// A client hello that goes on in further records of its segment is read as a whole, wherever it is cut.
#[test]
fn a_client_hello_in_several_records_is_told() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    let raw = RawSocket::open(&here, "va")?;
    let mut sequence = 1;
    for cut in [1, 3, 30, 70] {
        let hello = client_hello(&format!("cut-{cut}.example"));
        let (one, two) = hello.split_at(cut);
        let segment = [record(22, one), record(22, two)].concat();
        raw.send(&ethernet(0x0800, &ipv4_tcp(sequence, 0x18, &segment)))?;
        sequence += u32::try_from(segment.len())?;
    }
    browser.type_into("//input[@type='search']", "proto:tls")?;
    browser.wait_for_text("4 shown")?;
    for cut in [1, 3, 30, 70] {
        browser.wait_for_text(&format!("client hello, server name cut-{cut}.example"))?;
    }
    browser.check_console()
}

/// Why a connection fails is told by options, by errors of ICMP, and by alerts.
#[test]
fn what_tells_of_failures_is_told_in_words() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let browser = watching(&server, &here)?;
    let raw = RawSocket::open(&here, "va")?;
    // A SYN with all its options, one of which is too short.
    let mut syn = ipv4_tcp(1, 0x02, b"");
    let options = b"\x02\x04\x05\xb4\x04\x02\x08\x0a\0\0\0\x07\0\0\0\x09\x01\x03\x03\x07\x02\x03\x01\0";
    syn[3] += options.len() as u8;
    syn[32] = 0xb0;
    syn.extend(options);
    raw.send(&ethernet(0x0800, &syn))?;
    let mut sack = ipv4_tcp(2, 0x10, b"");
    let options = b"\x01\x01\x05\x0a\0\0\0\x64\0\0\0\xc8\xfd\0";
    sack[3] += 16;
    sack[32] = 0x90;
    sack.extend(options);
    sack.extend([0; 2]);
    raw.send(&ethernet(0x0800, &sack))?;
    let icmp = |type_: u8, code, rest: [u8; 4]| {
        let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 1, 0, 0, 10, 9, 9, 9, 10, 9, 9, 1];
        packet.extend([type_, code, 0, 0]);
        packet.extend(rest);
        packet.extend(&ipv4_tcp(7, 0x10, b"")[..28]);
        packet[3] = packet.len() as u8;
        ethernet(0x0800, &packet)
    };
    raw.send(&icmp(3, 4, [0, 0, 0x05, 0x14]))?;
    raw.send(&icmp(3, 1, [0; 4]))?;
    for (at, content) in [&[2, 48][..], &[1, 0], &[7; 20]].into_iter().enumerate() {
        let sequence = 100 * (u32::try_from(at)? + 1);
        raw.send(&ethernet(0x0800, &ipv4_tcp(sequence, 0x18, &record(21, content))))?;
    }
    wait_for_total(&browser, 7)?;
    let filter =
        |words: &str| browser.type_into("//input[@type='search']", &format!("\u{e009}a\u{e000}{words}"));
    filter("proto:icmp")?;
    browser.wait_for_text(
        "destination unreachable: fragmentation is needed, MTU 1300, of TCP 10.9.9.1 40000 → 10.9.9.2 80",
    )?;
    browser.wait_for_text("destination unreachable: host, of TCP 10.9.9.1 40000 → 10.9.9.2 80")?;
    filter("proto:tls")?;
    for text in [
        "alert, fatal: unknown CA",
        "alert, warning: close notify",
        "encrypted alert",
    ] {
        browser.wait_for_text(text)?;
    }
    filter("flags:syn")?;
    browser.wait_for_text("1 shown")?;
    browser.click("//div[@id='packets-0']")?;
    for text in [
        "maximum segment size: 1460 bytes",
        "selective acknowledgements: permitted",
        "timestamps: 7, echo of 9",
        "window scale: 7 (multiply by 128)",
        "maximum segment size: 3 bytes, which",
    ] {
        browser.wait_for_text(text)?;
    }
    filter("!proto:tls !flags:syn proto:tcp !proto:icmp")?;
    // One was shown before, too.
    browser.wait_for(
        "const rows = [...document.querySelectorAll('.row .summary')]; return rows.length === 1 && !rows[0].innerText.includes('SYN')",
    )?;
    browser.click("//div[@id='packets-0']")?;
    browser.wait_for_text("selective acknowledgement: 100-200")?;
    browser.wait_for_text("options: cannot be read from here on")?;
    browser.check_console()
}

/// A record of TLS 1.2 (RFC 5246, section 6.2.1).
fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let len = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind, 3, 3][..], &len, content].concat()
}

/// A client hello that asks for a server.
fn client_hello(server: &str) -> Vec<u8> {
    let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let name = [&[0][..], &short(server.len()), server.as_bytes()].concat();
    let names = [&short(name.len())[..], &name].concat();
    let extension = [&[0, 0][..], &short(names.len()), &names].concat();
    let head = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
    let body = [&head[..], &short(extension.len()), &extension].concat();
    [&[1, 0][..], &short(body.len()), &body].concat()
}

/// A packet may be as long as it likes, and have as many parts: so many are told as can be drawn for each.
#[test]
fn packets_of_many_parts_are_told_in_part() -> anyhow::Result<()> {
    let web = Sleeper::unshared_as("web", &[])?;
    let server = Server::start(&[])?;
    let browser = Browser::start()?;
    browser.go(&url(&server))?;
    choose(&browser, &format!("web({})", web.pid()))?;
    browser.type_into(
        "//label[@class='filter']/input",
        "udp dst port 67 or udp dst port 53",
    )?;
    watch_here(&browser)?;
    // The cookie of DHCP, and host names of one letter.
    let begin = [&[1; 236][..], b"\x63\x82\x53\x63"].concat();
    let options = [&begin[..], &b"\x0c\x01a".repeat(20_000)].concat();
    inside(&of_process(web.pid()), || {
        // As a client of DHCP has it.
        UdpSocket::bind("127.0.0.1:68")?.send_to(&options, "127.0.0.1:67")
    })??;
    // Of DNS: a name, and ten thousand more questions that point to it.
    let name = [
        &[63][..],
        &[b'a'; 63],
        &[63],
        &[b'b'; 63],
        &[63],
        &[b'c'; 63],
        &[0],
    ]
    .concat();
    let head = b"\x12\x34\x01\0\x27\x11\0\0\0\0\0\0";
    let points = b"\xc0\x0c\0\x01\0\x01".repeat(10_000);
    send(
        web.pid(),
        53,
        1,
        &[&head[..], &name, b"\0\x01\0\x01", &points].concat(),
    )?;
    wait_for_total(&browser, 2)?;
    for (row, protocol) in [(0, "DHCP"), (1, "DNS")] {
        browser.click(&format!("//div[@id='packets-{row}']"))?;
        browser.wait_for(&format!(
            "return [...document.querySelectorAll('.layers summary')].some(layer => layer.innerText === '{protocol}')"
        ))?;
        let fields = browser.script("return document.querySelectorAll('.field').length")?;
        ensure!(fields.as_u64() < Some(100), "{fields} of {protocol}");
        if protocol == "DHCP" {
            browser.wait_for_text("options: more, which are not shown")?;
        }
    }
    let longest = browser.script("return Math.max(...[...document.querySelectorAll('.row .summary')].map(one => one.innerText.length))")?;
    assert_eq!(longest, 1001);
    browser.check_console()
}

/// Packets of which nothing can be relied on are each told, and keep nothing else from it.
#[test]
fn packets_that_are_wrong_are_told_like_others() -> anyhow::Result<()> {
    const COUNT: u64 = 3000;
    /// Bytes of the longest.
    const LONG: usize = 65_000;
    let (here, there) = Namespace::pair()?;
    here.ip(&["link", "set", "va", "mtu", "65535"])?;
    there.ip(&["link", "set", "vb", "mtu", "65535"])?;
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
    // And those with as much in each other, or in one name, as there is room for.
    let tags = [0, 1, 0x81, 0].repeat(LONG / 4);
    let mut tunnel = ipv4_udp(b"")[..20].to_vec();
    tunnel[2..4].fill(0);
    tunnel[9] = 4;
    let hello = record(22, &client_hello(&"a".repeat(LONG - 1000)));
    let many = [
        ethernet(0x8100, &tags),
        ethernet(0x0800, &tunnel.repeat(LONG / 20)),
        ethernet(0x0800, &ipv4_tcp(1, 0x18, &hello)),
    ];
    for frame in &many {
        raw.send(frame)?;
    }
    let count = COUNT + many.len() as u64;
    wait_for_total(&browser, count)?;
    // Each is held against a filter that all pass, and so is decoded.
    browser.type_into("//input[@type='search']", "!no-packet-says-this")?;
    browser.wait_for(&format!(
        "return Number(document.querySelector('.rows').getAttribute('aria-rowcount')) > {count}"
    ))?;
    for told in ["more layers", "server name aaaaaaaaaa"] {
        browser.wait_for(&format!(
            "return [...document.querySelectorAll('.row .summary')].some(one => one.innerText.includes('{told}'))"
        ))?;
    }
    browser.type_into(
        "//input[@type='search']",
        "\u{e009}a\u{e000}proto:vlan len:>60000",
    )?;
    browser.wait_for_text(", 1 shown")?;
    browser.click("//div[@id='packets-0']")?;
    browser.wait_for_text("identifier: 1")?;
    let layers = browser.script("return document.querySelectorAll('.layers details').length")?;
    ensure!(layers.as_u64() < Some(50), "{layers} layers");
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
