//! Where streams end although there is more to capture, how much the service captures at all, and for whom.

use std::{
    io::Write as _,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    client::{Capture, Recorder, refusal},
    hook::hooks,
    namespace::{Namespace, output_of},
    raw::{self, RawSocket, Tun},
    recording::Recording,
    server::{Server, wait_until},
};
use pcap_file::pcap::PcapReader;
use socket2::{Domain, Socket, Type};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep},
};

/// Where the running number lies in a frame.
const NUMBER_AT: usize = 14;

/// A folder of a test's own, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> anyhow::Result<Self> {
        let folder = std::env::temp_dir().join(format!("packetflix-limits-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Sends numbered frames from one CPU, which so are captured in their order.
fn send_numbered(
    there: &Namespace,
    len: usize,
    count: u64,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let socket = RawSocket::open(there, "vb")?;
    Ok(spawn_blocking(move || {
        let mut cpus = CpuSet::new();
        cpus.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &cpus)?;
        socket.flood(&raw::ethernet(0x88b5, &vec![0; len - 14]), count, NUMBER_AT)
    }))
}

fn number_of_last(recording: &Recording) -> anyhow::Result<u64> {
    let last = recording.packets.last().context("no packet")?;
    Ok(u64::from_be_bytes(
        last.data[NUMBER_AT..NUMBER_AT + 8].try_into()?,
    ))
}

/// Reads to the end, which must be a normal one and complete; gives the stream and the reason, too.
async fn read_to_limit(mut recorder: Recorder) -> anyhow::Result<(Recording, Vec<u8>, String)> {
    loop {
        if let Some((code, reason)) = recorder.read().await? {
            let recording = Recording::parse(recorder.stream())?;
            ensure!(code == 1000, "{code} {reason}");
            recording.check_complete()?;
            return Ok((recording, recorder.stream().to_vec(), reason));
        }
    }
}

/// How many packets `capinfos` and `tshark` find in a stream; they must have nothing to say against it.
fn read_by_wireshark(stream: &[u8], folder: &Path) -> anyhow::Result<[usize; 2]> {
    let file = folder.join("stream.pcapng");
    std::fs::write(&file, stream)?;
    let output = Command::new("capinfos")
        .args(["-M", "-T", "-r", "-c"])
        .arg(&file)
        .output()?;
    let (said, complaint) = (
        String::from_utf8(output.stdout)?,
        String::from_utf8(output.stderr)?,
    );
    ensure!(
        output.status.success() && complaint.is_empty(),
        "capinfos: {complaint}"
    );
    let by_capinfos = said.trim().rsplit('\t').next().context("nothing")?.parse()?;
    let output = Command::new("tshark")
        .args(["-n", "-T", "fields", "-e", "frame.number", "-r"])
        .arg(&file)
        .output()?;
    let complaint = String::from_utf8(output.stderr)?;
    let complaint: Vec<&str> = complaint
        .lines()
        .filter(|line| !line.contains("as user \"root\""))
        .collect();
    ensure!(
        output.status.success() && complaint.is_empty(),
        "tshark: {complaint:?}"
    );
    Ok([by_capinfos, String::from_utf8(output.stdout)?.lines().count()])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_one_tap_end_at_their_own_number_of_packets() -> anyhow::Result<()> {
    let folder = Folder::new("packets")?;
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let mut whole = Recorder::start(&format!("{url}&statistics=1s")).await?;
        let mut limited = Vec::new();
        for packets in [1, 7, 100, 4999] {
            let recorder = Recorder::start(&format!("{url}&packets={packets}")).await?;
            limited.push((packets, recorder));
        }
        whole.read_during(send_numbered(&there, 64, 5000)?).await?;
        for (packets, recorder) in limited {
            let (recording, stream, reason) = read_to_limit(recorder).await?;
            let words = if packets == 1 { "packet is" } else { "packets is" };
            assert_eq!(
                reason,
                format!("the limit of {packets} {words} reached"),
                "{hook}"
            );
            let statistics = recording.final_statistics("va")?;
            assert_eq!(
                (recording.packets.len() as u64, number_of_last(&recording)?),
                (packets, packets - 1)
            );
            assert_eq!(
                (statistics.delivered, statistics.dropped, statistics.accepted),
                (packets, 0, packets)
            );
            let packets = usize::try_from(packets)?;
            assert_eq!(read_by_wireshark(&stream, &folder.0)?, [packets; 2], "{hook}");
        }
        // The others' ends are nothing to this one.
        whole.read_until_statistics(|one| one.delivered == 5000).await?;
        let statistics = whole.finish().await?.final_statistics("va")?;
        assert_eq!((statistics.delivered, statistics.dropped), (5000, 0), "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn packets_that_the_filter_rejects_count_for_no_limit() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let query = format!(
        "netns={}&nif=va&packets=2&filter=ether+proto+0x88b6",
        here.inode()?
    );
    let recorder = Recorder::start(&server.url(&query)).await?;
    let socket = RawSocket::open(&there, "vb")?;
    for _ in 0..2 {
        (0..5).try_for_each(|_| socket.send(&raw::ethernet(0x88b5, &[0; 46])))?;
        socket.send(&raw::ethernet(0x88b6, &[0; 46]))?;
    }
    let statistics = read_to_limit(recorder).await?.0.final_statistics("va")?;
    assert_eq!(
        (statistics.received, statistics.accepted, statistics.delivered),
        (12, 2, 2)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_is_never_longer_than_it_may_be() -> anyhow::Result<()> {
    let folder = Folder::new("bytes")?;
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    // A packet of 200 bytes takes 244, and the final statistics of two interfaces 224.
    for (bytes, limit) in [("5000", 5000), ("100KiB", 100 << 10), ("1MiB", 1 << 20)] {
        let recorder = Recorder::start(&format!("{url}&bytes={bytes}")).await?;
        let sending = send_numbered(&there, 200, 10_000)?;
        let (recording, stream, reason) = read_to_limit(recorder).await?;
        sending.await??;
        assert_eq!(reason, format!("the limit of {limit} bytes is reached"));
        ensure!(
            (limit - 244..=limit).contains(&stream.len()),
            "{} of {limit}",
            stream.len()
        );
        let statistics = recording.final_statistics("va")?;
        assert_eq!(statistics.delivered, recording.packets.len() as u64);
        assert_eq!(
            (number_of_last(&recording)? + 1, 0),
            (statistics.accepted, statistics.dropped)
        );
        assert_eq!(
            read_by_wireshark(&stream, &folder.0)?,
            [recording.packets.len(); 2]
        );
    }

    // Interfaces that come later are described as long as there is room for them.
    let mut recorder = Recorder::start(&format!("{url}&bytes=3000")).await?;
    let add = |number| {
        here.ip(&["link", "add", &format!("later{number}"), "type", "bridge"])
            .map(drop)
    };
    (0..3).try_for_each(add)?;
    recorder
        .read_until(|recording| recording.interfaces.len() == 5)
        .await?;
    (3..20).try_for_each(add)?;
    let (recording, stream, reason) = read_to_limit(recorder).await?;
    assert_eq!(reason, "the limit of 3000 bytes is reached");
    ensure!(
        stream.len() <= 3000 && recording.interfaces.len() < 23,
        "{}",
        stream.len()
    );

    Ok(())
}

/// That counts all that stands in the interfaces' descriptions, what is known of the hook and of an interface that is left out, too.
#[tokio::test]
async fn stream_that_has_just_no_room_is_refused_before_it_begins() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let _tun = Tun::open(&here, "tun7")?;
        let server = Server::start(&["--hook", hook])?;
        for filter in ["", "ether%20proto%200x88b5"] {
            let url = server.url(&format!("netns={}&names=0&filter={filter}", here.inode()?));
            let refused = async |bytes: usize| {
                let (status, sentence) = refusal(&server, &format!("{url}&bytes={bytes}"), &[]).await?;
                let start =
                    format!("bytes={bytes} has no room for packets: the stream begins and ends with ");
                let least = sentence.strip_prefix(&start).context(sentence.clone())?;
                let least: usize = least.strip_suffix(" bytes").context(sentence.clone())?.parse()?;
                ensure!(status == 400, "{status}");
                anyhow::Ok(least)
            };
            let least = refused(100).await?;
            assert_eq!(refused(least - 1).await?, least, "{hook} {filter}");
            let recorder = Recorder::start(&format!("{url}&bytes={least}")).await?;
            RawSocket::open(&there, "vb")?.send(&raw::ethernet(0x88b5, &[0; 46]))?;
            let (recording, stream, _) = read_to_limit(recorder).await?;
            assert_eq!(recording.packets.len(), 0, "{hook} {filter}");
            ensure!(
                (least - 200..=least).contains(&stream.len()),
                "{least} {}",
                stream.len()
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn stream_ends_when_its_time_is_over() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook, "--max-duration", "1s"])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let socket = RawSocket::open(&there, "vb")?;
        let operators = "the limit of 1s that the service sets every capture is reached";
        for (query, time, reason) in [
            ("&duration=400ms", 400, "the limit of 400ms is reached"),
            ("&duration=1s", 1000, "the limit of 1s is reached"),
            ("&duration=1h", 1000, operators),
            ("", 1000, operators),
        ] {
            let asked = Instant::now();
            let mut recorder = Recorder::start(&format!("{url}{query}")).await?;
            let begun = Instant::now();
            let mut sent = 0;
            let ended = loop {
                socket.send(&raw::ethernet(0x88b5, &[0; 46]))?;
                sent += 1;
                tokio::select! {
                    ended = recorder.read() => if let Some(ended) = ended? {
                        break ended;
                    },
                    () = sleep(Duration::from_millis(10)) => {}
                }
            };
            assert_eq!(ended, (1000, reason.to_owned()), "{hook} {query}");
            ensure!(
                asked.elapsed() >= Duration::from_millis(time),
                "{:?}",
                asked.elapsed()
            );
            // The rest is the patience that a busy machine needs.
            ensure!(
                begun.elapsed() < Duration::from_millis(time + 2000),
                "{:?}",
                begun.elapsed()
            );
            let recording = Recording::parse(recorder.stream())?;
            recording.check_complete()?;
            let statistics = recording.final_statistics("va")?;
            assert_eq!(
                (statistics.delivered, statistics.dropped),
                (recording.packets.len() as u64, 0)
            );
            ensure!(
                (5..=sent).contains(&statistics.delivered),
                "{statistics:?} of {sent}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_that_stalls_does_not_outstay_its_time() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--max-duration", "500ms"])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let _stalled = Capture::open(&url, &[]).await?;
    // More than the sockets between them hold.
    send_numbered(&there, 1400, 20_000)?.await??;
    server.wait_for_log("the client is gone: it took nothing for 3 s")
}

#[tokio::test]
async fn packets_are_cut_as_tcpdump_cuts_them() -> anyhow::Result<()> {
    let folder = Folder::new("snaplen")?;
    for hook in hooks()? {
        for snaplen in ["1", "14", "60", "1000"] {
            let (here, there) = Namespace::pair()?;
            let server = Server::start(&["--hook", hook])?;
            let file = folder.0.join("beside.pcap");
            let mut tcpdump = here
                .command("tcpdump")
                .args(["-i", "va", "-n", "-U", "-Z", "root", "-s", snaplen, "-w"])
                .arg(&file)
                .stderr(std::process::Stdio::null())
                .spawn()?;
            wait_until(Duration::from_secs(10), || {
                Ok(std::fs::metadata(&file).is_ok_and(|file| file.len() >= 24))
            })?;
            let url = server.url(&format!("netns={}&nif=va&snaplen={snaplen}", here.inode()?));
            let mut recorder = Recorder::start(&url).await?;
            let socket = RawSocket::open(&there, "vb")?;
            let tagged = |len| raw::ethernet(0x8100, &raw::vlan(7, 0x88b5, &vec![7; len]));
            let plain = |len| raw::ethernet(0x88b5, &vec![1; len]);
            // Just below, at and just above the lengths at which they are cut.
            let lens = [46, 47, 50, 300, 985, 986, 987, 1400];
            let frames: Vec<Vec<u8>> = lens
                .into_iter()
                .flat_map(|len| [plain(len), tagged(len)])
                .collect();
            frames.iter().try_for_each(|frame| socket.send(frame))?;
            recorder
                .read_until(|recording| recording.packets.len() == frames.len())
                .await?;
            let recording = recorder.finish().await?;
            let len: usize = snaplen.parse()?;
            let expected = 24
                + frames
                    .iter()
                    .map(|frame| 16 + frame.len().min(len) as u64)
                    .sum::<u64>();
            wait_until(Duration::from_secs(10), || {
                Ok(std::fs::metadata(&file)?.len() >= expected)
            })?;
            kill(Pid::from_raw(i32::try_from(tcpdump.id())?), Signal::SIGINT)?;
            tcpdump.wait()?;

            let mut beside = PcapReader::new(std::fs::File::open(&file)?)?;
            assert_eq!(beside.header().snaplen, recording.interfaces[0].snaplen);
            for (packet, frame) in recording.packets.iter().zip(&frames) {
                let theirs = beside.next_raw_packet().context("too few")??;
                let what = format!("{hook} {snaplen}: {packet:?}, tcpdump has {theirs:?}");
                ensure!(
                    packet.data == *theirs.data && packet.original_len == theirs.orig_len,
                    "{what}"
                );
                ensure!(
                    frame.starts_with(&packet.data) && packet.data.len() == frame.len().min(len),
                    "{what}"
                );
            }
            ensure!(beside.next_raw_packet().is_none());
            std::fs::remove_file(&file)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn clients_of_other_snapshot_lengths_share_no_tap() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut recorders = Vec::new();
    for (query, snaplen) in [
        ("", 262_144),
        ("&snaplen=0", 262_144),
        ("&snaplen=96", 96),
        ("&snaplen=262144", 262_144),
    ] {
        recorders.push((Recorder::start(&format!("{url}{query}")).await?, snaplen));
    }
    RawSocket::open(&there, "vb")?.send(&raw::ethernet(0x88b5, &[0; 1400]))?;
    for (mut recorder, snaplen) in recorders {
        recorder
            .read_until(|recording| recording.packets.len() == 1)
            .await?;
        let recording = recorder.finish().await?;
        ensure!(
            recording
                .interfaces
                .iter()
                .all(|interface| interface.snaplen == snaplen)
        );
        let packet = &recording.packets[0];
        assert_eq!(
            (packet.original_len, packet.data.len()),
            (1414, 1414.min(snaplen as usize))
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packets_over_the_rate_are_dropped_and_told() -> anyhow::Result<()> {
    for hook in hooks()? {
        // A packet of 200 bytes counts as many as are captured of it.
        for (flags, query, per_second, words) in [
            (
                ["--max-packet-rate", "2000"],
                "",
                2000,
                "at most 2000 packets a second",
            ),
            (
                ["--max-byte-rate", "200KiB"],
                "",
                1024,
                "at most 204800 bytes a second",
            ),
            (
                ["--max-byte-rate", "200KiB"],
                "&snaplen=100",
                2048,
                "at most 204800 bytes a second",
            ),
        ] {
            let (here, there) = Namespace::pair()?;
            let server = Server::start(&[&["--hook", hook], &flags[..]].concat())?;
            let url = server.url(&format!("netns={}&nif=va{query}", here.inode()?));
            let mut one = Recorder::start(&url).await?;
            let mut other = Recorder::start(&format!("{url}&statistics=1s")).await?;
            let begun = Instant::now();
            one.read_during(send_numbered(&there, 200, 50_000)?).await?;
            let seconds = begun.elapsed().as_secs_f64();
            other.read_until_statistics(|one| one.accepted == 50_000).await?;
            for recorder in [one, other] {
                let recording = recorder.finish().await?;
                let statistics = recording.final_statistics("va")?;
                let what = format!("{hook} {flags:?}{query}: {statistics:?} in {seconds} s");
                assert_eq!(statistics.received, 50_000, "{what}");
                assert_eq!(statistics.delivered + statistics.dropped, 50_000, "{what}");
                // A second's worth at once, and then what the rate allows.
                let most = f64::from(per_second) * (1.0 + seconds) + 2.0;
                let delivered = statistics.delivered as f64;
                ensure!(delivered <= most && delivered >= f64::from(per_second), "{what}");
                let told: u64 = recording.packets.iter().map(|packet| packet.dropped_before).sum();
                ensure!(told <= statistics.dropped, "{told} told, {what}");
                ensure!(
                    recording.interfaces[0].options.contains(words),
                    "{:?}",
                    recording.interfaces
                );
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn account_is_exact_up_to_the_limit() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook, "--max-packet-rate", "1000"])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let mut whole = Recorder::start(&format!("{url}&statistics=1s")).await?;
        let limited = Recorder::start(&format!("{url}&packets=1500")).await?;
        // A second's worth comes through at once; of the rest, each packet tells how many were dropped before it.
        let sending = send_numbered(&there, 64, 4000)?;
        whole.read_during(sending).await?;
        let late = Recorder::start(&format!("{url}&packets=300")).await?;
        let socket = RawSocket::open(&there, "vb")?;
        let sending = spawn_blocking(move || {
            let mut cpus = CpuSet::new();
            cpus.set(0)?;
            sched_setaffinity(Pid::from_raw(0), &cpus)?;
            for _ in 0..1000 {
                socket.flood(&raw::ethernet(0x88b6, &[0; 50]), 3, NUMBER_AT)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            anyhow::Ok(())
        });
        whole.read_during(sending).await?;
        let limited = read_to_limit(limited).await?.0;
        let late = read_to_limit(late).await?.0;
        // Where the last packet stands among those that all have seen.
        whole.read_until_statistics(|one| one.accepted == 7000).await?;
        let all = whole.finish().await?;
        let statistics = all.final_statistics("va")?;
        assert_eq!(statistics.delivered + statistics.dropped, 7000, "{hook}");
        let up_to = |timestamp| -> u64 {
            let until = all
                .packets
                .iter()
                .take_while(|packet| packet.timestamp <= timestamp);
            until.map(|packet| 1 + packet.dropped_before).sum()
        };
        let limited_until = limited.packets.last().context("no packet")?.timestamp;
        let late_until = late.packets.last().context("no packet")?.timestamp;
        let limited = limited.final_statistics("va")?;
        assert_eq!(
            (limited.delivered, limited.accepted),
            (1500, up_to(limited_until)),
            "{hook}"
        );
        let late = late.final_statistics("va")?;
        // What was dropped before it joined is not its own, though the first packet tells of it.
        assert_eq!(
            (late.delivered, late.accepted),
            (300, up_to(late_until) - 4000),
            "{hook}"
        );
    }
    Ok(())
}

/// A connection to the server from another address of this host.
fn connect_from(address: &str, server: &Server) -> anyhow::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&format!("{address}:0").parse::<SocketAddr>()?.into())?;
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], server.port())).into())?;
    Ok(socket.into())
}

#[tokio::test]
async fn captures_are_counted_by_client_and_by_target() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--max-captures-per-client", "2", "--max-captures-per-target", "3"])?;
    let [first, second] = [here.inode()?, there.inode()?].map(|netns| server.url(&format!("netns={netns}")));
    let mut running = vec![Recorder::start(&first).await?, Recorder::start(&first).await?];
    let (status, sentence) = refusal(&server, &second, &[]).await?;
    let words = "a client may have 2 captures at the same time (--max-captures-per-client), \
                 and 127.0.0.1 has 2";
    assert_eq!((status, &sentence[..]), (429, words));

    running.push(Recorder::over(connect_from("127.0.0.2", &server)?, &first).await?);
    let refused = Recorder::over(connect_from("127.0.0.3", &server)?, &first).await;
    let words = format!(
        "a network namespace may have 3 captures at the same time (--max-captures-per-target), and {} has 3",
        here.inode()?
    );
    let refused = refused.err().context("not refused")?.to_string();
    ensure!(
        refused.starts_with("429") && refused.contains(&words),
        "{refused}"
    );
    running.push(Recorder::over(connect_from("127.0.0.3", &server)?, &second).await?);

    // All that was counted is given back.
    for recorder in running {
        recorder.finish().await?;
    }
    wait_until(Duration::from_secs(5), || {
        Ok(server.log().matches("stopped by the client").count() == 4)
    })?;
    let mut again = Recorder::start(&first).await;
    while again.is_err() {
        sleep(Duration::from_millis(10)).await;
        again = Recorder::start(&first).await;
    }
    let mut again = vec![again?, Recorder::start(&first).await?];
    again.push(Recorder::over(connect_from("127.0.0.2", &server)?, &first).await?);
    Ok(())
}

#[tokio::test]
async fn clients_that_vanish_in_the_handshake_hold_nothing() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&["--max-captures-per-client", "1"])?;
    let netns = namespace.inode()?;
    for number in 0..60u64 {
        let mut stream = TcpStream::connect(("127.0.0.1", server.port()))?;
        write!(
            stream,
            "GET /capture?netns={netns} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        // At one moment of the handshake or another.
        std::thread::sleep(Duration::from_micros(300 * number));
        if number % 2 == 0 {
            // With a reset instead of an end.
            Socket::from(stream.try_clone()?).set_linger(Some(Duration::ZERO))?;
        }
        drop(stream);
    }
    let url = server.url(&format!("netns={netns}"));
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut recorder = Recorder::start(&url).await;
    while recorder.is_err() && Instant::now() < deadline {
        sleep(Duration::from_millis(20)).await;
        recorder = Recorder::start(&url).await;
    }
    recorder?.finish().await.map(drop)
}

#[test]
fn flags_that_cannot_be_used_are_named() -> anyhow::Result<()> {
    for (flag, value, words) in [
        ("--max-duration", "10", "the unit is ms, s, m or h"),
        ("--max-packet-rate", "0", "0 is not in 1.."),
        (
            "--max-byte-rate",
            "10",
            "--max-byte-rate 10: a capture has at least 1024 bytes in a second",
        ),
        ("--max-captures-per-client", "-1", "unexpected argument"),
    ] {
        let program = packetflix_tests::server::program("packetflix")?;
        let error = output_of(Command::new(program).args([flag, value]))
            .err()
            .context("it ran")?;
        ensure!(format!("{error:#}").contains(words), "{flag} {value}: {error:#}");
    }
    Ok(())
}
