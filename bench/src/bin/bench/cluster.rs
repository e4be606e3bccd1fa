//! What a gateway costs before nodes that are played by a script: 10, 100 and 1,000 of them, each with as many targets as a node of
//! Kubernetes has pods at most.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, anyhow, ensure};
use bytes::BytesMut;
use futures_util::StreamExt as _;
use packetflix::pcapng::{
    CaptureComment, EnhancedPacket, InterfaceDescription, LinkType, Offloads, PacketDirection, Reception,
    SNAPLEN, SectionHeader,
};
use packetflix_tests::server::{Server, program, wait_until};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    runtime::Runtime,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Message, handshake::derive_accept_key},
};

use crate::{Args, http::get, table::Table, usage::cpu_of};

/// Pods of a node: what Kubernetes has for the most, unless it is told another.
const PODS: usize = 110;

/// How often a node sends what has come, and how many packets that is.
const PACE: Duration = Duration::from_millis(50);
const PACKETS: usize = 5;

/// Bytes of a packet.
const LEN: usize = 64;

/// For how long a stream is measured.
const TIME: Duration = Duration::from_secs(5);

/// How often each is listed, and begun.
const ROUNDS: u32 = 5;

/// How many lists are made at the same time.
const LISTS: usize = 4;

/// How long it may take until there is anything.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut table = Table::new(format!("A gateway before scripted nodes of {PODS} targets"));
    let runtime = Runtime::new()?;
    let nodes = runtime.block_on(play())?;
    for count in [10, 100, 1000] {
        eprintln!("bench: {count} nodes");
        table.column(count.to_string());
        measure(&mut table, &runtime, nodes, count, args.rounds(ROUNDS))?;
    }
    table.print();
    Ok(())
}

/// Adds the figures for so many nodes.
fn measure(
    table: &mut Table,
    runtime: &Runtime,
    nodes: SocketAddr,
    count: usize,
    rounds: u32,
) -> anyhow::Result<()> {
    let flags: Vec<String> = (0..count)
        .map(|node| format!("--node=n{node}=http://{nodes}/n{node}"))
        .collect();
    let mut flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    flags.push("--node-timeout=30");
    let gateway = Server::start_by(Command::new(program("packetflix")?).arg("gateway"), &flags)?;
    wait_until(PATIENCE, || Ok(get(gateway.port(), "/readyz").is_ok()))?;
    let memory = || anyhow::Ok(gateway.status("VmRSS")? as f64 / 1024.0);
    table.figure("memory, once it is ready", "MiB", memory()?);

    let (mut times, before) = (Vec::new(), cpu_of(&gateway.processes())?);
    let mut len = 0;
    for _ in 0..rounds {
        let began = Instant::now();
        let list = get(gateway.port(), "/targets")?;
        times.push(began.elapsed());
        check_whole(&list, count)?;
        len = list.len();
    }
    let cpu = (cpu_of(&gateway.processes())? - before) / rounds;
    table.figure(
        "all targets are listed within",
        "ms",
        milliseconds(median(&mut times)),
    );
    table.figure("CPU of that", "ms", milliseconds(cpu));
    table.figure("size of that", "kB", len as f64 / 1000.0);
    table.figure("memory after that", "MiB", memory()?);
    let most = || anyhow::Ok(gateway.status("VmHWM")? as f64 / 1024.0);
    table.figure("most memory until then", "MiB", most()?);
    thread::scope(|scope| {
        let lists = [(); LISTS].map(|()| scope.spawn(|| get(gateway.port(), "/targets")));
        for list in lists {
            let list = list.join().map_err(|_| anyhow!("panicked"))??;
            check_whole(&list, count)?;
        }
        anyhow::Ok(())
    })?;
    table.figure("most memory with four lists at once", "MiB", most()?);

    // Every second node has one of these.
    let mut firsts = Vec::new();
    for round in 0..rounds {
        let is_last = round + 1 == rounds;
        let url = format!(
            "ws://127.0.0.1:{}/capture?target=label:app%3Dweb&follow=0&names=0",
            gateway.port()
        );
        let stream = runtime.block_on(watch(&url, &gateway, is_last))?;
        firsts.push(stream.first);
        if is_last {
            table.figure("streams of nodes that are merged", "", stream.interfaces as f64);
            let packets = stream.packets as f64;
            table.figure("packets", "/s", packets / TIME.as_secs_f64());
            table.figure("CPU for a packet", "µs", stream.cpu.as_secs_f64() * 1e6 / packets);
            table.figure("memory meanwhile", "MiB", stream.memory);
        }
    }
    table.figure("first packet after", "ms", milliseconds(median(&mut firsts)));
    Ok(())
}

/// Checks that a list has the targets of so many nodes.
fn check_whole(list: &[u8], nodes: usize) -> anyhow::Result<()> {
    let found = String::from_utf8_lossy(list).matches("\"starttime\":").count();
    ensure!(found == nodes * PODS, "{found} targets of {nodes} nodes");
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// What was seen of a stream.
#[derive(Default)]
struct Seen {
    first: Duration,
    interfaces: usize,
    packets: u64,
    cpu: Duration,
    memory: f64,
}

/// Takes a stream until its first packet, or for so long as is measured.
async fn watch(url: &str, gateway: &Server, is_long: bool) -> anyhow::Result<Seen> {
    let began = Instant::now();
    let (mut socket, _) = connect_async(url).await?;
    let mut seen = Seen::default();
    let mut since: Option<(Instant, Duration)> = None;
    let mut blocks = Vec::new();
    while since.is_none_or(|(since, _)| is_long && since.elapsed() < TIME) {
        let message = timeout(PATIENCE, socket.next())
            .await?
            .context("it has ended")??;
        let Message::Binary(bytes) = message else {
            continue;
        };
        blocks.extend_from_slice(&bytes);
        let (interfaces, packets) = take(&mut blocks)?;
        seen.interfaces += interfaces;
        match &since {
            None if packets > 0 => {
                seen.first = began.elapsed();
                since = Some((Instant::now(), cpu_of(&gateway.processes())?));
            }
            None => {}
            Some(_) => seen.packets += packets,
        }
    }
    if let Some((_, before)) = since {
        seen.cpu = cpu_of(&gateway.processes())? - before;
        seen.memory = gateway.status("VmRSS")? as f64 / 1024.0;
    }
    socket.close(None).await?;
    while timeout(PATIENCE, socket.next()).await?.is_some() {}
    Ok(seen)
}

/// Takes whole blocks; gives how many interfaces and packets they are.
fn take(blocks: &mut Vec<u8>) -> anyhow::Result<(usize, u64)> {
    const INTERFACE: u32 = 1;
    const PACKET: u32 = 6;
    let (mut at, mut interfaces, mut packets) = (0, 0, 0);
    let number = |bytes: &[u8]| bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
    while let Some(head) = blocks.get(at..at + 8) {
        let (kind, len) = (number(head), number(&head[4..]) as usize);
        ensure!(len >= 12, "no block");
        if at + len > blocks.len() {
            break;
        }
        interfaces += usize::from(kind == INTERFACE);
        packets += u64::from(kind == PACKET);
        at += len;
    }
    blocks.drain(..at);
    Ok((interfaces, packets))
}

/// Plays all nodes at one address: which one is asked stands before the path.
async fn play() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let targets = Arc::new(targets());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let targets = Arc::clone(&targets);
            tokio::spawn(async move {
                // Whoever leaves is gone.
                let _ = answer(stream, &targets).await;
            });
        }
    });
    Ok(address)
}

/// What a node lists: all, and what is called `web` there.
fn targets() -> [String; 2] {
    let target = |number: usize| {
        json!({
            "name": format!("shop/web-7d4b9c6f5d-{number:05}"), "type": "pod", "prefix": "", "netns": 4_026_532_000 + number,
            "pid": 1000 + number, "starttime": 100_000 + number, "host": false, "mounts": [],
            "pod": { "namespace": "shop", "name": format!("web-7d4b9c6f5d-{number:05}") },
            "network-interfaces": [
                { "name": "lo", "index": 1, "state": "up", "addresses": ["127.0.0.1/8", "::1/128"] },
                { "name": "eth0", "index": 2, "state": "up", "mac": "02:42:ac:11:00:02", "addresses": ["10.244.1.7/24"] },
            ],
            "container": { "id": format!("{number:064x}"), "engine": "/run/containerd/containerd.sock", "state": "running",
                "images": ["registry.example/shop/web:1.2.3"],
                "labels": { "app": "web", "tier": "front", "pod-template-hash": "7d4b9c6f5d" } },
        })
    };
    let list = |count| {
        let targets: Vec<_> = (0..count).map(target).collect();
        json!({ "version": 1, "scanned-at": 1.0, "node-name": "n", "engines": [], "targets": targets })
            .to_string()
    };
    [list(PODS), list(1)]
}

async fn answer(stream: TcpStream, [all, one]: &[String; 2]) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    loop {
        let (mut line, mut key) = (String::new(), String::new());
        ensure!(stream.read_line(&mut line).await? > 0);
        loop {
            let mut header = String::new();
            stream.read_line(&mut header).await?;
            match header.trim_end().split_once(": ") {
                Some((name, value)) if name.eq_ignore_ascii_case("sec-websocket-key") => {
                    value.clone_into(&mut key);
                }
                Some(_) => {}
                None => break,
            }
        }
        let path = line.split(' ').nth(1).context("no path")?;
        let node: usize = path
            .trim_start_matches("/n")
            .split('/')
            .next()
            .unwrap_or_default()
            .parse()?;
        if path.contains("/capture") {
            let accept = derive_accept_key(key.as_bytes());
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                 Sec-WebSocket-Accept: {accept}\r\n\r\n"
            );
            stream.get_mut().write_all(head.as_bytes()).await?;
            return capture(stream.into_inner()).await;
        }
        let body = match (path.contains("/version"), path.contains("target=")) {
            (true, _) => r#"{"name": "packetflix", "version": "0.1.0"}"#,
            (_, false) => all,
            (_, true) if node.is_multiple_of(2) => one,
            (_, true) => r#"{"version": 1, "targets": []}"#,
        };
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\npacketflix-time: {}\r\n\r\n",
            body.len(),
            now()
        );
        stream.get_mut().write_all(head.as_bytes()).await?;
        stream.get_mut().write_all(body.as_bytes()).await?;
    }
}

/// Nanoseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Sends packets of one interface until whoever takes them is gone.
async fn capture(stream: TcpStream) -> anyhow::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let gone = async {
        let mut bytes = [0; 64];
        while tokio::io::AsyncReadExt::read(&mut reader, &mut bytes)
            .await
            .is_ok_and(|read| read > 0)
        {
            // The first byte of a close frame (RFC 6455, section 5.2).
            if bytes[0] == 0x88 {
                break;
            }
        }
    };
    let sending = async {
        send(&mut writer, &beginning()).await?;
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut blocks = BytesMut::with_capacity(PACKETS * (LEN + 64));
            for number in 0..PACKETS {
                packet(now() - (PACKETS - number) as u64 * 1000, &mut blocks);
            }
            send(&mut writer, &blocks).await?;
        }
    };
    tokio::select! {
        () = gone => Ok(()),
        sent = sending => sent,
    }
}

/// A binary message (RFC 6455, section 5.2).
async fn send(writer: &mut (impl tokio::io::AsyncWrite + Unpin), payload: &[u8]) -> anyhow::Result<()> {
    let mut frame = vec![0x82, 126];
    frame.extend(u16::try_from(payload.len())?.to_be_bytes());
    frame.extend_from_slice(payload);
    Ok(writer.write_all(&frame).await?)
}

/// What a node begins with: a section header, and an Ethernet interface.
fn beginning() -> BytesMut {
    let mut blocks = BytesMut::new();
    SectionHeader {
        hardware: "",
        os: "",
        application: "",
        comment: CaptureComment {
            container_name: "",
            container_type: "",
            node_name: "",
            cluster_uid: "",
            filter: "",
            chaste: false,
        },
    }
    .encode(&mut blocks);
    InterfaceDescription {
        link_type: LinkType::Ethernet,
        snaplen: SNAPLEN,
        name: "eth0",
        description: "",
        addresses: &[],
        mac: None,
        speed: None,
        filter: "",
        comment: "",
        os: "",
    }
    .encode(&mut blocks);
    blocks
}

fn packet(timestamp: u64, blocks: &mut BytesMut) {
    EnhancedPacket {
        interface_id: 0,
        timestamp,
        original_len: LEN as u32,
        cooked: None,
        data: &[0xaa; LEN],
        snaplen: SNAPLEN,
        vlan: None,
        direction: PacketDirection::Inbound,
        reception: Reception::Unicast,
        offloads: Offloads::default(),
        dropped_before: 0,
    }
    .encode(blocks);
}
