//! A node by script: its clock is another, and its packets come late.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    mem,
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Command, Output},
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use bytes::BytesMut;
use packetflix::pcapng::{
    CaptureComment, EnhancedPacket, InterfaceDescription, InterfaceStatistics, LinkType, Offloads,
    PacketDirection, Reception, SNAPLEN, SectionHeader,
};
use packetflix_tests::{
    client::Recorder,
    http::Head,
    namespace::Namespace,
    pace,
    raw::{self, RawSocket},
    recording::Recording,
    server::{Server, percent_encoded, program},
};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::{
    self, Bytes, Message, WebSocket,
    handshake::derive_accept_key,
    protocol::{CloseFrame, Role, frame::coding::CloseCode},
};

use crate::Cluster;

/// How often it sends a packet.
const PACE: Duration = Duration::from_millis(20);

/// What a node sends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sends {
    /// Packets, and the final statistics once it is asked to stop.
    #[default]
    All,
    /// Something else than pcapng.
    Garbage,
    /// Packets, and no final statistics; the connection stays, or breaks.
    NoEnd,
    BrokenEnd,
    /// The description of its interface, and then the connection breaks.
    Breaks,
    /// Final statistics, and then packets.
    PacketsBehindTheEnd,
    /// Descriptions of interfaces without end.
    Interfaces,
    /// Statistics of its interface without end, none of which is the last.
    Statistics,
    /// Large packets, as fast as they are taken, and more that are lost meanwhile.
    Flood,
}

/// What a flood came to, to be held against what is told of it.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) delivered: AtomicU64,
    pub(crate) dropped: AtomicU64,
    /// There are to be no more packets.
    pub(crate) is_over: AtomicBool,
}

/// What it does.
#[derive(Clone, Copy, Default)]
pub(crate) struct Script {
    /// By how many nanoseconds its clock is ahead.
    pub(crate) ahead: i64,
    /// How long packets take until they are sent.
    pub(crate) late: Duration,
    /// What it sends, beside packets.
    pub(crate) sends: Sends,
    /// The snapshot length that it tells, unless that of packetflix, and the number of the link type, unless Ethernet's.
    pub(crate) snaplen: Option<u32>,
    pub(crate) link_type: Option<u16>,
    /// How long its note on a capture is.
    pub(crate) note_len: usize,
    /// The account of its flood.
    pub(crate) ledger: Option<&'static Ledger>,
    /// How many more targets it lists.
    pub(crate) more: usize,
    /// What it answers instead of its targets.
    pub(crate) answer: Option<&'static str>,
    /// Whether it has nothing of what words mean.
    pub(crate) has_no_word: bool,
    /// What it says when it refuses captures, which it then does.
    pub(crate) refusal: Option<&'static str>,
}

/// Bytes of such a target.
const TARGET_LEN: usize = 640;

/// Who answers with a long list.
static TURN: Mutex<()> = Mutex::new(());

/// Plays the script at a port, for as long as the process lives.
pub(crate) fn play(script: Script) -> anyhow::Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().take(200).flatten() {
            thread::spawn(move || answer(stream, script));
        }
    });
    Ok(port)
}

impl Script {
    /// Nanoseconds since 1970, by its clock.
    fn now(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add_signed(self.ahead)
    }
}

fn answer(mut stream: TcpStream, script: Script) -> anyhow::Result<()> {
    loop {
        // Byte by byte: what follows a handshake is the WebSocket's.
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            text.push(byte[0]);
        }
        let head = Head::read(&mut &text[..])?;
        let is_capture = head.line.contains(" /capture");
        if let Some(refusal) = script.refusal.filter(|_| is_capture) {
            write!(
                stream,
                "HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{refusal}",
                refusal.len()
            )?;
            continue;
        }
        if is_capture {
            let key = head.values("sec-websocket-key").concat();
            let accept = derive_accept_key(key.as_bytes());
            write!(
                stream,
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n{}\r\n",
                match script.note_len {
                    0 => String::new(),
                    len => format!("packetflix-note: {}\r\n", "n".repeat(len)),
                }
            )?;
            return capture(stream, script);
        }
        let body = match (head.line.contains(" /version"), script.answer) {
            (true, _) => r#"{"name": "packetflix", "version": "7.8.9"}"#.to_owned(),
            (false, _) if script.has_no_word && head.line.contains("target=") => {
                r#"{"version": 1, "targets": []}"#.to_owned()
            }
            (false, Some(answer)) => answer.to_owned(),
            (false, None) => {
                let more = format!(
                    r#",{{"name": "more", "type": "docker", "netns": 6, "network-interfaces": [], "labels": "{:TARGET_LEN$}"}}"#,
                    ""
                );
                format!(
                    r#"{{"version": 1, "targets": [{{"name": "scripted", "type": "docker", "netns": 5, "network-interfaces": []}}{}]}}"#,
                    more.repeat(script.more)
                )
            }
        };
        // However busy the machine is, a gateway does not get all of these at the same moment.
        let _turn = (script.more > 0).then(|| TURN.lock().unwrap_or_else(PoisonError::into_inner));
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\npacketflix-time: {}\r\n\r\n{body}",
            body.len(),
            script.now()
        )?;
    }
}

/// Sends packets of one interface until it is asked to stop.
fn capture(stream: TcpStream, script: Script) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PACE))?;
    let mut socket = WebSocket::from_raw_socket(stream, Role::Server, None);
    let mut blocks = BytesMut::new();
    let since = script.now();
    SectionHeader {
        hardware: "",
        os: "",
        application: "",
        comment: CaptureComment {
            container_name: "scripted",
            container_type: "docker",
            node_name: "odd",
            cluster_uid: "",
            filter: "",
            chaste: false,
        },
    }
    .encode(&mut blocks);
    let mut description = BytesMut::new();
    InterfaceDescription {
        link_type: LinkType::Ethernet,
        snaplen: script.snaplen.unwrap_or(SNAPLEN),
        name: "eth0",
        description: "",
        addresses: &[],
        mac: None,
        speed: None,
        filter: "",
        comment: "",
        os: "",
    }
    .encode(&mut description);
    if let Some(link_type) = script.link_type {
        // Behind type and length of the block.
        description[8..10].copy_from_slice(&link_type.to_le_bytes());
    }
    blocks.extend_from_slice(&description);
    let (mut delivered, mut dropped, mut waited) = (0, 0, Duration::ZERO);
    loop {
        match script.sends {
            Sends::Garbage => blocks.extend_from_slice(&[7; 64]),
            Sends::Interfaces => blocks.extend_from_slice(&description.repeat(1000)),
            Sends::Statistics => {
                let mut statistics = BytesMut::new();
                encode_statistics(script, since, None, (delivered, dropped), &mut statistics);
                blocks.extend_from_slice(&statistics.repeat(2000));
            }
            Sends::PacketsBehindTheEnd if delivered == 3 => {
                let end = Some(script.now());
                encode_statistics(script, since, end, (delivered, dropped), &mut blocks);
            }
            Sends::Flood => flood(script, waited, (&mut delivered, &mut dropped), &mut blocks),
            Sends::All | Sends::NoEnd | Sends::BrokenEnd | Sends::Breaks | Sends::PacketsBehindTheEnd => {}
        }
        let begun = Instant::now();
        socket.send(Message::Binary(Bytes::from(blocks.split().to_vec())))?;
        waited = begun.elapsed();
        if script.sends == Sends::Breaks {
            return Ok(());
        }
        if ![Sends::Interfaces, Sends::Statistics].contains(&script.sends)
            && let Ok(Message::Text(_) | Message::Close(_)) = socket.read()
        {
            break;
        }
        if ![Sends::Flood, Sends::Statistics].contains(&script.sends) {
            delivered += 1;
            packet(script.now() - u64::try_from(script.late.as_nanos())?, 46, 0).encode(&mut blocks);
        }
    }
    if script.sends == Sends::BrokenEnd {
        return Ok(());
    }
    if script.sends != Sends::NoEnd {
        let end = Some(script.now());
        encode_statistics(script, since, end, (delivered, dropped), &mut blocks);
        socket.send(Message::Binary(Bytes::from(blocks.to_vec())))?;
        socket.close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "stopped by the client".into(),
        }))?;
    }
    // Until the gateway leaves.
    loop {
        match socket.read() {
            Err(tungstenite::Error::Io(error)) if error.kind() == ErrorKind::WouldBlock => {}
            read => drop(read?),
        }
    }
}

/// A message of large packets, out of order, the first of which tells how many were lost while the last message was waited for. Once
/// it is over, the statistics alone tell that.
fn flood(
    script: Script,
    waited: Duration,
    (delivered, dropped): (&mut u64, &mut u64),
    blocks: &mut BytesMut,
) {
    const PACKETS: u64 = 30;
    const LEN: usize = 8000;
    const LOST_IN_A_MILLISECOND: u32 = 10;
    let Some(ledger) = script.ledger else {
        return;
    };
    let mut lost = u32::try_from(waited.as_millis()).unwrap_or_default() * LOST_IN_A_MILLISECOND;
    *dropped += u64::from(lost);
    ledger.dropped.store(*dropped, Ordering::Relaxed);
    if ledger.is_over.load(Ordering::Relaxed) {
        return;
    }
    let now = script.now() - u64::try_from(script.late.as_nanos()).unwrap_or_default();
    for number in 0..PACKETS {
        let time = now - (number * 7 % PACKETS) * 1_000_000;
        packet(time, LEN, mem::take(&mut lost)).encode(blocks);
    }
    *delivered += PACKETS;
    ledger.delivered.store(*delivered, Ordering::Relaxed);
}

fn packet(timestamp: u64, len: usize, dropped_before: u32) -> EnhancedPacket<'static> {
    static FRAME: LazyLock<Vec<u8>> = LazyLock::new(|| raw::ethernet(0x88b5, &[0xaa; 9000]));
    let len = raw::ethernet(0x88b5, &[]).len() + len;
    EnhancedPacket {
        interface_id: 0,
        timestamp,
        original_len: len as u32,
        cooked: None,
        data: &FRAME[..len],
        snaplen: SNAPLEN,
        vlan: None,
        direction: PacketDirection::Inbound,
        reception: Reception::Unicast,
        offloads: Offloads::default(),
        dropped_before,
    }
}

/// Statistics of its interface, which are the last where they have an end.
fn encode_statistics(
    script: Script,
    start: u64,
    end: Option<u64>,
    (delivered, dropped): (u64, u64),
    blocks: &mut BytesMut,
) {
    InterfaceStatistics {
        interface_id: 0,
        timestamp: script.now(),
        start,
        end,
        received: Some(delivered + dropped),
        accepted: Some(delivered + dropped),
        delivered,
        dropped: Some(dropped),
        comment: "",
    }
    .encode(blocks);
}

/// A stream of everything that is called so on a real node, `one`, and on a scripted one, `odd`.
pub(crate) struct Beside {
    pub(crate) gateway: Server,
    pub(crate) recorder: Recorder,
    /// The interface of the real node, and what sends to it.
    pub(crate) name: String,
    pub(crate) socket: RawSocket,
    _cluster: Cluster,
    _ends: (Namespace, Namespace),
}

impl Beside {
    /// Starts it, and waits until the interface of the real node is described. `flags` are more of the gateway's, and `rest` is more
    /// of what is asked for.
    pub(crate) async fn start(script: Script, flags: &[&str], rest: &str) -> anyhow::Result<Self> {
        let cluster = Cluster::start(&["one"])?;
        let odd = format!("--node=odd=http://127.0.0.1:{}", play(script)?);
        let gateway = cluster.gateway(&[&[&odd[..]], flags].concat())?;
        let (here, there) = Namespace::pair()?;
        let path = here.path().display().to_string();
        let query = format!(
            "target={}&target=none-such-*&filter=ether+proto+0x88b5{rest}",
            percent_encoded(&path)
        );
        let mut recorder = Recorder::start(&gateway.url(&query)).await?;
        let name = format!("one/{path}/va");
        let begun = recorder.read_until(|recording| is_described(recording, &name));
        timeout(pace::time(Duration::from_secs(60)), begun).await??;
        Ok(Self {
            gateway,
            recorder,
            name,
            socket: RawSocket::open(&there, "vb")?,
            _cluster: cluster,
            _ends: (here, there),
        })
    }

    /// Reads until this is said of the scripted node.
    pub(crate) async fn read_until_told(&mut self, sentence: &str) -> anyhow::Result<()> {
        let told = format!("node odd: {sentence}");
        let is_told = |recording: &Recording| {
            let mut of_odd = recording.interfaces.iter().filter(|one| one.name == "odd");
            of_odd.any(|one| one.options.contains(&told))
        };
        let read = self.recorder.read_until(is_told);
        timeout(pace::time(Duration::from_secs(60)), read).await?
    }

    /// Sends a packet to the real node, and reads until it has come.
    pub(crate) async fn check_that_others_go_on(&mut self) -> anyhow::Result<()> {
        let before = self.recorder.recording()?.packets_of(&self.name).len();
        self.socket.send(&raw::ethernet(0x88b5, &[1; 46]))?;
        let came = |recording: &Recording| recording.packets_of(&self.name).len() == before + 1;
        timeout(
            pace::time(Duration::from_secs(60)),
            self.recorder.read_until(came),
        )
        .await?
    }
}

fn is_described(recording: &Recording, name: &str) -> bool {
    recording.interfaces.iter().any(|one| one.name == name)
}

/// A stream of a real node and a scripted one, until it is `enough`.
async fn stream_with(
    script: Script,
    mut enough: impl FnMut(&Recording) -> bool,
) -> anyhow::Result<Recording> {
    let Beside {
        gateway: _gateway,
        mut recorder,
        name,
        socket,
        _cluster,
        _ends,
    } = Beside::start(script, &[], "").await?;
    let sender = thread::spawn(move || {
        for number in 0..200 {
            let _ = socket.send(&raw::ethernet(0x88b5, &[number; 46]));
            thread::sleep(PACE);
        }
    });
    let read = recorder.read_until(|recording| enough(recording));
    timeout(pace::time(Duration::from_secs(60)), read).await??;
    let recording = recorder.finish().await?;
    sender.join().map_err(|_| anyhow::anyhow!("panicked"))?;
    for name in [&name[..], "odd/eth0"] {
        let statistics = recording.final_statistics(name)?;
        assert_eq!(
            statistics.delivered,
            recording.packets_of(name).len() as u64,
            "{name}"
        );
        assert_eq!(statistics.dropped, 0, "{name}");
    }
    Ok(recording)
}

/// What is said of an interface.
pub(crate) fn said_of<'a>(recording: &'a Recording, name: &str) -> anyhow::Result<&'a str> {
    let one = recording.interfaces.iter().find(|one| one.name == name);
    Ok(&one.with_context(|| format!("no {name}"))?.options)
}

#[tokio::test]
async fn clock_of_a_node_is_told_and_alters_no_time() -> anyhow::Result<()> {
    const AHEAD: u64 = 5_000_000_000;
    for ahead in [AHEAD.cast_signed(), -AHEAD.cast_signed()] {
        let script = Script {
            ahead,
            ..Script::default()
        };
        let recording = stream_with(script, |recording| recording.packets_of("odd/eth0").len() >= 40).await?;
        let said = said_of(&recording, "odd/eth0")?;
        let direction = if ahead > 0 { "ahead of" } else { "behind" };
        // To a second: the machine may be busy.
        let milliseconds = |said: &str| {
            let (_, rest) = said.split_once("node odd: its clock is ")?;
            let (number, rest) = rest.split_once(" ms ")?;
            rest.starts_with(direction).then(|| number.parse::<f64>().ok())?
        };
        let told = milliseconds(said).context(said.to_owned())?;
        assert!((told - 5000.0).abs() < 1000.0, "{said}");
        assert!(said.contains("it runs packetflix 7.8.9"), "{said}");
        // Packets of both stand beside each other, whatever their clocks say.
        let of_odd: Vec<bool> = recording
            .packets
            .iter()
            .map(|packet| packet.data[14] == 0xaa)
            .collect();
        let changes = of_odd.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(changes >= 10, "{changes} {of_odd:?}");
        let times = |is_odd: bool| {
            let such = recording
                .packets
                .iter()
                .zip(&of_odd)
                .filter(move |(_, odd)| **odd == is_odd);
            such.map(|(packet, _)| packet.timestamp).max().unwrap_or_default()
        };
        let apart = times(true).cast_signed() - times(false).cast_signed();
        assert!((apart - ahead).abs() < 2_000_000_000, "{apart}");
        assert!(
            !recording.interfaces.iter().any(|one| one.name == "odd"),
            "it does not lag"
        );
    }
    Ok(())
}

#[tokio::test]
async fn node_that_lags_is_told_and_holds_nobody_up() -> anyhow::Result<()> {
    const LATE: f64 = 10.0;
    let script = Script {
        late: Duration::from_secs_f64(LATE),
        ..Script::default()
    };
    let begun = Instant::now();
    let recording = stream_with(script, |recording| {
        recording.packets_of("odd/eth0").len() >= 40 && recording.packets.len() >= 80
    })
    .await?;
    let said = said_of(&recording, "odd")?;
    let told = said.split_once("node odd lags: its packets come ");
    let told: f64 = told
        .and_then(|(_, rest)| rest.split_once(" s late")?.0.parse().ok())
        .context(said.to_owned())?;
    // A busy machine adds to it, but no more than it has had time for.
    let most = LATE + begun.elapsed().as_secs_f64();
    assert!((LATE..most).contains(&told), "{told}, and {most} at most");
    let told = recording
        .interfaces
        .iter()
        .filter(|one| one.name == "odd")
        .count();
    assert_eq!(told, 1, "once");
    Ok(())
}

/// What our client prints when it lists what a gateway has.
fn listed_by_client(gateway: &Server) -> anyhow::Result<Output> {
    let url = format!("http://127.0.0.1:{}", gateway.port());
    let mut client = Command::new(program("packetflix")?);
    Ok(client.args(["list", "--server", &url]).output()?)
}

#[test]
fn node_that_answers_nonsense_costs_its_own_answer_only() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one"])?;
    let odd = |answer| {
        play(Script {
            answer: Some(answer),
            ..Script::default()
        })
    };
    // It is asked first.
    let node = format!("--node=odd=http://127.0.0.1:{}", odd("nonsense")?);
    let flags = cluster.flags();
    let flags: Vec<&str> = [&node[..]]
        .into_iter()
        .chain(flags.iter().map(String::as_str))
        .collect();
    let gateway = crate::gateway(&flags)?;
    let (status, programs) = gateway.get("/filter?expr=tcp")?;
    assert_eq!(status, 200, "{programs}");
    // But not where it refuses.
    let (status, refused) = gateway.get("/filter?expr=tcq")?;
    assert_eq!(
        (status, &refused["code"]),
        (400, &"filter_invalid".into()),
        "{refused}"
    );

    const LIST: &str = r#"{"targets": [{"name": 5}, {"name": "web", "type": "docker", "netns": 5, "network-interfaces": []}]}"#;
    let gateway = cluster.gateway(&[&format!("--node=odd=http://127.0.0.1:{}", odd(LIST)?)])?;
    let listed = listed_by_client(&gateway)?;
    let listed = format!(
        "{}{}",
        String::from_utf8(listed.stdout)?,
        String::from_utf8(listed.stderr)?
    );
    assert!(
        listed.contains("not looked at: node odd lists 1 target that is none, and is left out"),
        "{listed}"
    );
    assert!(listed.lines().any(|line| line.starts_with("web ")), "{listed}");
    Ok(())
}

#[test]
fn long_list_of_many_nodes_is_whole_and_takes_little_memory() -> anyhow::Result<()> {
    const NODES: usize = 18;
    const MORE: usize = 5500;
    let port = play(Script {
        more: MORE,
        ..Script::default()
    })?;
    let flags: Vec<String> = (0..NODES)
        .map(|node| format!("--node=n{node}=http://127.0.0.1:{port}"))
        .collect();
    let flags: Vec<&str> = flags
        .iter()
        .map(String::as_str)
        .chain(["--node-timeout=60"])
        .collect();
    let gateway = crate::gateway(&flags)?;
    let (head, body) = gateway.ask("GET /targets HTTP/1.1")?;
    let text = String::from_utf8(body)?;
    assert_eq!(head.status()?, 200);
    assert_eq!(head.values("content-length"), [text.len().to_string()]);
    assert!(!text.contains("\"gaps\""), "{}", &text[..text.len().min(2000)]);
    assert!(text.len() > NODES * MORE * TARGET_LEN);
    for node in 0..NODES {
        let of_node = text.matches(&format!("\"node-name\":\"n{node}\"")).count();
        assert_eq!(of_node, MORE + 1, "n{node}");
    }
    // It is there once, and not as a tree.
    let most = gateway.status("VmHWM")? as usize * 1024;
    assert!(most < 3 * text.len(), "{most} bytes for {}", text.len());
    let listed = listed_by_client(&gateway)?;
    let said = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(listed.status.success(), "{said}");
    let lines = String::from_utf8(listed.stdout)?.lines().count();
    assert!(lines > NODES * MORE, "{lines}");
    Ok(())
}
