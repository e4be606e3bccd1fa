//! Known frames between two namespaces: the stream has them as tcpdump beside it wrote them.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    client::Recorder,
    hook,
    namespace::Namespace,
    pace,
    raw::{self, RawSocket},
    recording::Packet,
    server::{Server, program, wait_until},
};
use pcap_file::pcap::PcapReader;

/// Two clocks are compared that are read at two places of the kernel's path.
const MOST_APART: Duration = Duration::from_millis(20);

#[tokio::test]
async fn tcx_captures_as_tcpdump_does() -> anyhow::Result<()> {
    match hook::tcx()? {
        Some(tcx) => captures_as_tcpdump_does(tcx).await,
        None => Ok(()),
    }
}

#[tokio::test]
async fn socket_captures_as_tcpdump_does() -> anyhow::Result<()> {
    captures_as_tcpdump_does("socket").await
}

async fn captures_as_tcpdump_does(hook: &str) -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--hook", hook])?;
    let folder = std::env::temp_dir().join(format!("packetflix-{}-{hook}", std::process::id()));
    std::fs::create_dir_all(&folder)?;

    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut tcpdump = start_tcpdump(&here, &folder.join("beside.pcap"))?;
    let tshark = start_tshark(&server, here.inode()?)?;
    let mut recorder = Recorder::start(&url).await?;
    // tshark begins before its stream does.
    wait_until(Duration::from_secs(10), || {
        Ok(server.log().matches("started netns=").count() == 2)
    })?;

    let start = nanoseconds();
    let (inbound, outbound) = send_frames(&here, &there)?;
    talk_tcp(&here, &there)?;
    talk_udp(&here, &there)?;
    let end = nanoseconds();
    recorder
        .read_until(|recording| recording.packets.iter().any(is_farewell))
        .await?;
    let beside = folder.join("beside.pcap");
    wait_until(Duration::from_secs(10), || {
        Ok(std::fs::read(&beside)?
            .windows(FAREWELL.len())
            .any(|bytes| bytes == FAREWELL))
    })?;
    kill(Pid::from_raw(i32::try_from(tcpdump.id())?), Signal::SIGINT)?;
    tcpdump.wait()?;
    let live = output_of_tshark(tshark)?;
    std::fs::write(folder.join("ours.pcapng"), recorder.stream())?;
    let recording = recorder.finish().await?;

    // The same packets, byte for byte. Two CPUs carry TCP at once, and then its order is a matter of who looks.
    // What neighbours ask each other later on, one may see that the other, which has ended, does not.
    let is_in_time = |packet: &Packet| packet.timestamp <= end;
    let mut beside = read_pcap(&beside)?;
    beside.retain(is_in_time);
    let mut ours: Vec<&Packet> = recording
        .packets
        .iter()
        .filter(|packet| is_in_time(packet))
        .collect();
    ensure!(
        ours.len() == beside.len(),
        "{} packets, tcpdump has {}",
        ours.len(),
        beside.len()
    );
    let known = inbound.len() + outbound.len();
    let by_content = |packet: &Packet| (packet.data.clone(), packet.timestamp);
    ours[known..].sort_by_key(|packet| by_content(packet));
    beside[known..].sort_by_key(by_content);
    for (ours, theirs) in ours.iter().zip(&beside) {
        let what = || format!("{:02x?}, tcpdump has {:02x?}", head(ours), head(theirs));
        ensure!(
            (ours.original_len, &ours.data) == (theirs.original_len, &theirs.data),
            what()
        );
        ensure!(start <= ours.timestamp, "{} is before {start}", ours.timestamp);
        ensure!(
            u128::from(ours.timestamp.abs_diff(theirs.timestamp)) < pace::time(MOST_APART).as_nanos(),
            what()
        );
    }
    recording.check_order()?;
    // And those that we know, in their direction.
    for (frames, is_outbound) in [(&inbound, false), (&outbound, true)] {
        for frame in frames {
            let found = recording
                .packets
                .iter()
                .filter(|packet| packet.data == *frame)
                .collect::<Vec<_>>();
            ensure!(found.len() == 1, "{} of {frame:02x?}", found.len());
            ensure!(found[0].is_outbound() == is_outbound, "{:?}", found[0]);
        }
    }
    assert_eq!(recording.interfaces[0].snaplen, 262_144);
    let statistics = recording.final_statistics("va")?;
    let whole = recording.packets.len();
    assert_eq!((statistics.received, statistics.dropped), (whole as u64, 0));
    assert!(
        recording
            .comment
            .starts_with("---\n# capture target information\ncontainer-name: ")
    );
    assert!(
        recording.interfaces[0].options.contains("IfMacAddr"),
        "{}",
        recording.interfaces[0].options
    );
    assert!(
        recording.interfaces[0].options.contains("IfIpv4Addr"),
        "{}",
        recording.interfaces[0].options
    );

    // tshark, which dissected them live, and tcpdump, which reads the file.
    ensure!(
        (ours.len()..=whole).contains(&live.len()),
        "tshark has {} packets:\n{}",
        live.len(),
        live.join("\n")
    );
    for text in [":arp", ":vlan:", ":ip:udp", ":ip:tcp", ":ipv6:udp"] {
        ensure!(
            live.iter().any(|line| line.contains(text)),
            "tshark shows no {text}:\n{}",
            live.join("\n")
        );
    }
    let reread = Command::new("tcpdump")
        .arg("-nr")
        .arg(folder.join("ours.pcapng"))
        .output()?;
    ensure!(
        reread.status.success(),
        "{}",
        String::from_utf8_lossy(&reread.stderr)
    );
    // What it cannot dissect follows in lines that are indented.
    let lines = String::from_utf8(reread.stdout)?
        .lines()
        .filter(|line| !line.starts_with('\t'))
        .count();
    ensure!((ours.len()..=whole).contains(&lines), "tcpdump reads {lines}");
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

type Frames = Vec<Vec<u8>>;

/// Sends known frames both ways, and returns them as they are captured at `here`.
fn send_frames(here: &Namespace, there: &Namespace) -> anyhow::Result<(Frames, Frames)> {
    let frames = |mark: u8| {
        let payload = [mark; 33];
        let tagged = raw::vlan(0x6005, 0x0800, &raw::ipv4_udp(&payload));
        vec![
            raw::ethernet(0x0806, &[raw::arp(), vec![mark; 18]].concat()),
            raw::ethernet(0x0800, &raw::ipv4_udp(&payload)),
            raw::ethernet(0x86dd, &raw::ipv6_udp(&payload)),
            raw::ethernet(0x8100, &tagged),
            raw::ethernet(0x88a8, &raw::vlan(7, 0x8100, &tagged)),
            raw::ethernet(0x0800, &raw::ipv4_udp(&[mark; 1400])),
            raw::ethernet(0x88b5, &[mark; 46]),
        ]
    };
    let (inbound, outbound) = (frames(1), frames(2));
    let (from_there, from_here) = (RawSocket::open(there, "vb")?, RawSocket::open(here, "va")?);
    for (inbound, outbound) in inbound.iter().zip(&outbound) {
        from_there.send(inbound)?;
        from_here.send(outbound)?;
    }
    Ok((inbound, outbound))
}

/// A megabyte over TCP, which segmentation offload carries in super-packets.
fn talk_tcp(here: &Namespace, there: &Namespace) -> anyhow::Result<()> {
    let listener = there.inside(|| TcpListener::bind("10.9.1.2:80"))??;
    let mut client = here.inside(|| TcpStream::connect("10.9.1.2:80"))??;
    let (mut server, _) = listener.accept()?;
    let writer = std::thread::spawn(move || {
        client.write_all(&vec![0x61; 1_000_000])?;
        client.shutdown(std::net::Shutdown::Write)?;
        client.read_to_end(&mut Vec::new())
    });
    let mut received = Vec::new();
    server.read_to_end(&mut received)?;
    drop(server);
    writer.join().ok().context("the writer panicked")??;
    ensure!(received.len() == 1_000_000);
    Ok(())
}

/// Last of all a datagram that marks the end.
fn talk_udp(here: &Namespace, there: &Namespace) -> anyhow::Result<()> {
    let receiver = there.inside(|| UdpSocket::bind("10.9.1.2:99"))??;
    let sender = here.inside(|| UdpSocket::bind("10.9.1.1:0"))??;
    sender.send_to(FAREWELL, "10.9.1.2:99")?;
    receiver.recv(&mut [0; 32])?;
    Ok(())
}

const FAREWELL: &[u8] = b"packetflix: that is all";

fn is_farewell(packet: &Packet) -> bool {
    packet.data.ends_with(FAREWELL)
}

fn start_tcpdump(namespace: &Namespace, file: &Path) -> anyhow::Result<Child> {
    let mut tcpdump = namespace
        .command("tcpdump")
        .args([
            "-i",
            "va",
            "-n",
            "-U",
            "-Z",
            "root",
            "--immediate-mode",
            "-B",
            "65536",
            "--time-stamp-precision=nano",
            "-w",
        ])
        .arg(file)
        .stderr(Stdio::piped())
        .spawn()?;
    wait_for_line(&mut tcpdump, "listening on")?;
    Ok(tcpdump)
}

/// Waits until a program says `text` on standard error.
fn wait_for_line(program: &mut Child, text: &str) -> anyhow::Result<()> {
    let mut line = String::new();
    let mut log = BufReader::new(program.stderr.take().context("no log")?);
    while !line.contains(text) {
        line.clear();
        ensure!(log.read_line(&mut line)? > 0, "it ended without: {text}");
    }
    // What it still says goes nowhere, but must not stop it.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Ok(())
}

/// The command-line client, piped into tshark: what somebody at a desk runs.
fn start_tshark(server: &Server, inode: u64) -> anyhow::Result<(Child, Child)> {
    let mut client = Command::new(program("packetflix")?)
        .args([
            "capture",
            &format!("netns:{inode}"),
            "-i",
            "va",
            "-w",
            "-",
            "--server",
        ])
        .arg(format!("http://127.0.0.1:{}", server.port()))
        .stdout(Stdio::piped())
        .spawn()?;
    let stream = client.stdout.take().context("no stream")?;
    let mut tshark = Command::new("tshark")
        .args(["-l", "-n", "-T", "fields", "-e", "frame.protocols", "-i", "-"])
        .stdin(stream)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    wait_for_line(&mut tshark, "Capturing on")?;
    Ok((client, tshark))
}

/// Ends the client, upon which tshark ends too, and gives tshark's lines.
fn output_of_tshark((mut client, tshark): (Child, Child)) -> anyhow::Result<Vec<String>> {
    kill(Pid::from_raw(i32::try_from(client.id())?), Signal::SIGINT)?;
    client.wait()?;
    let output = tshark.wait_with_output()?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(str::to_owned)
        .collect())
}

/// What tells a packet from others, for messages.
fn head(packet: &Packet) -> (u64, u32, &[u8]) {
    (
        packet.timestamp,
        packet.original_len,
        &packet.data[..packet.data.len().min(60)],
    )
}

fn read_pcap(file: &Path) -> anyhow::Result<Vec<Packet>> {
    let mut reader = PcapReader::new(std::fs::File::open(file)?)?;
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet?;
        packets.push(Packet {
            interface: 0,
            timestamp: u64::try_from(packet.timestamp.as_nanos())?,
            original_len: packet.orig_len,
            data: packet.data.into_owned(),
            flags: 0,
            dropped_before: 0,
        });
    }
    Ok(packets)
}

fn nanoseconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
}
