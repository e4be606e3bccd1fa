//! Every kind of interface that there is, and interfaces that come and go.

use std::{net::UdpSocket, time::Duration};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::Recorder,
    hook::hooks,
    namespace::Namespace,
    raw::{self, RawSocket, Tun},
    recording::Recording,
    server::{Server, wait_until},
};

#[tokio::test]
async fn loopback_packets_appear_once() -> anyhow::Result<()> {
    for hook in hooks()? {
        let namespace = Namespace::new()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", namespace.inode()?))).await?;
        namespace.inside(|| {
            let receiver = UdpSocket::bind("127.0.0.1:7000")?;
            for number in 0..10u8 {
                receiver.send_to(&[number; 20], "127.0.0.1:7000")?;
                receiver.recv(&mut [0; 20])?;
            }
            anyhow::Ok(())
        })??;
        recorder.read_until(|recording| recording.has(&[9; 20])).await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.packets.len(), 10, "{hook}");
        assert!(
            recording.packets.iter().all(|packet| !packet.is_outbound()),
            "{hook}"
        );
        assert_eq!(recording.interfaces[0].name, "lo");
        assert_eq!(recording.interfaces[0].link_type, 1);
        assert_eq!(recording.final_statistics("lo")?.received, 10, "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn tun_packets_are_raw_ip() -> anyhow::Result<()> {
    for hook in hooks()? {
        let namespace = Namespace::new()?;
        let mut tun = Tun::open(&namespace, "tun7")?;
        namespace.ip(&["address", "add", "10.9.5.1/24", "dev", "tun7"])?;
        namespace.ip(&["link", "set", "tun7", "up"])?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=tun7", namespace.inode()?));
        let mut recorder = Recorder::start(&url).await?;
        let socket = namespace.inside(|| UdpSocket::bind("10.9.5.1:0"))??;
        socket.send_to(b"out through the tunnel", "10.9.5.2:7")?;
        let sent = tun.read()?;
        let arriving = raw::ipv4_udp(b"in through the tunnel");
        tun.write(&arriving)?;
        recorder
            .read_until(|recording| recording.has(b"in through the tunnel"))
            .await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.interfaces[0].link_type, 101, "{hook}");
        assert_eq!(recording.count_on("tun7", true, &sent), 1, "{hook}");
        assert_eq!(recording.count_on("tun7", false, &arriving), 1, "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn kinds_of_hardware_that_are_not_known_are_named() -> anyhow::Result<()> {
    const INFINIBAND: u16 = 32;

    let namespace = Namespace::new()?;
    let tun = Tun::open(&namespace, "tun7")?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=tun7", namespace.inode()?));
    tun.set_hardware_type(INFINIBAND)?;
    let refused = Recorder::start(&url).await.err().context("not refused")?;
    let text = refused.to_string();
    ensure!(
        text.starts_with("400 ") && text.contains("tun7") && text.contains("hardware type 32 "),
        "{text}"
    );
    // Among all interfaces it is left out, and told; as one of the others' type, so that libpcap reads the stream.
    let recorder = Recorder::start(&server.url(&format!("netns={}", namespace.inode()?))).await?;
    let recording = recorder.finish().await?;
    let [_, tun7] = &recording.interfaces[..] else {
        anyhow::bail!("{:?}", recording.interfaces);
    };
    ensure!(
        tun7.name == "tun7" && tun7.link_type == 1 && tun7.options.contains("(hardware type 32)"),
        "{tun7:?}"
    );
    server.wait_for_log("an interface is left out interface=\"tun7\"")
}

#[tokio::test]
async fn bridge_and_its_ports_each_see_their_side() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (middle, left, right) = (Namespace::new()?, Namespace::new()?, Namespace::new()?);
        middle.ip(&["link", "add", "br7", "type", "bridge", "mcast_snooping", "0"])?;
        middle.ip(&["link", "set", "br7", "up"])?;
        for (port, end, network) in [("left", &left, 1), ("right", &right, 2)] {
            middle.connect(port, end, "eth0", network)?;
            middle.ip(&["link", "set", port, "master", "br7"])?;
        }
        let forwarding = || {
            Ok(!middle
                .command("bridge")
                .arg("link")
                .output()?
                .stdout
                .windows(8)
                .any(|w| w == b"disabled"))
        };
        wait_until(Duration::from_secs(5), forwarding)?;

        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", middle.inode()?))).await?;
        let mut broadcast = raw::ethernet(0x88b5, &[7; 46]);
        broadcast[..6].fill(0xff);
        let socket = RawSocket::open(&left, "eth0")?;
        // A port that has just joined may still be learning.
        wait_until(Duration::from_secs(5), || {
            socket.send(&broadcast)?;
            let stats = right.ip(&["-s", "link", "show", "eth0"])?;
            Ok(stats
                .lines()
                .nth(3)
                .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
                > Some(0u32))
        })?;
        recorder
            .read_until(|recording| recording.count_on("right", true, &broadcast) > 0)
            .await?;
        let recording = recorder.finish().await?;
        ensure!(
            recording.count_on("left", false, &broadcast) > 0,
            "{hook}: the port that receives"
        );
        ensure!(
            recording.count_on("br7", false, &broadcast) > 0,
            "{hook}: the bridge"
        );
        ensure!(
            recording.count_on("right", true, &broadcast) > 0,
            "{hook}: the port that sends"
        );
        ensure!(recording.count_on("right", false, &broadcast) == 0, "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn macvlan_and_its_parent_both_see_the_frame() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        here.ip(&[
            "link",
            "add",
            "mv7",
            "link",
            "va",
            "address",
            "02:00:00:00:00:52",
            "type",
            "macvlan",
        ])?;
        here.ip(&["link", "set", "mv7", "up"])?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        let frame = raw::ethernet(0x88b5, &[8; 46]);
        RawSocket::open(&there, "vb")?.send(&frame)?;
        recorder
            .read_until(|recording| recording.count_on("mv7", false, &frame) == 1)
            .await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.count_on("va", false, &frame), 1, "{hook}");
        assert_eq!(recording.count_on("mv7", false, &frame), 1, "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn interfaces_join_and_leave_a_running_capture() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = (Namespace::new()?, Namespace::new()?);
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        // Twice, the second time with the same name and index.
        for round in 0..2u8 {
            here.ip(&[
                "link",
                "add",
                "late",
                "index",
                "77",
                "type",
                "veth",
                "peer",
                "name",
                "peer",
                "netns",
                there.name(),
            ])?;
            here.ip(&["link", "set", "late", "up"])?;
            there.ip(&["link", "set", "peer", "up"])?;
            let joined = |recording: &Recording| recording.interfaces.len() == 2 + usize::from(round);
            recorder.read_until(joined).await?;
            let frame = raw::ethernet(0x88b5, &[round; 46]);
            RawSocket::open(&there, "peer")?.send(&frame)?;
            recorder
                .read_until(|recording| recording.count_on("late", false, &frame) == 1)
                .await?;
            here.ip(&["link", "delete", "late"])?;
            let left = |recording: &Recording| {
                recording.statistics.iter().filter(|one| one.last).count() == 1 + usize::from(round)
            };
            recorder.read_until(left).await?;
        }
        // The capture goes on.
        here.inside(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"still here", "127.0.0.1:9"))??;
        recorder
            .read_until(|recording| recording.has(b"still here"))
            .await?;
        let recording = recorder.finish().await?;
        let names: Vec<&str> = recording
            .interfaces
            .iter()
            .map(|interface| &interface.name[..])
            .collect();
        assert_eq!(names, ["lo", "late", "late"], "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn accounts_stay_exact_while_interfaces_come_and_go_quickly() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = (Namespace::new()?, Namespace::new()?);
        let server = Server::start(&["--hook", hook])?;
        let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        for round in 0..40u8 {
            // Three names and indexes, so that each is soon another interface's.
            let (name, index) = (format!("late{}", round % 3), format!("{}", 70 + round % 3));
            let peer = ["peer", "name", "peer", "netns", there.name()];
            here.ip(&[
                &["link", "add", &name, "index", &index, "type", "veth"][..],
                &peer,
            ]
            .concat())?;
            here.ip(&["link", "set", &name, "up"])?;
            there.ip(&["link", "set", "peer", "up"])?;
            RawSocket::open(&there, "peer")?.send(&raw::ethernet(0x88b5, &[round; 46]))?;
            here.ip(&["link", "delete", &name])?;
        }
        here.inside(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"still here", "127.0.0.1:9"))??;
        // Reading checks each count against the packets.
        let recording = recorder.finish().await?;
        ensure!(recording.has(b"still here"), "{hook}");
        ensure!(recording.interfaces.len() > 1, "{hook}: nothing joined");
        ensure!(!server.log().contains("ERROR"), "{hook}: {}", server.log());
    }
    Ok(())
}

#[tokio::test]
async fn interface_that_is_down_is_captured_when_it_comes_up() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        here.ip(&["link", "set", "va", "down"])?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
        here.ip(&["link", "set", "va", "up"])?;
        let frame = raw::ethernet(0x88b5, &[5; 46]);
        let socket = RawSocket::open(&there, "vb")?;
        wait_until(Duration::from_secs(5), || Ok(socket.send(&frame).is_ok()))?;
        recorder
            .read_until(|recording| recording.count_on("va", false, &frame) == 1)
            .await?;
        recorder.finish().await?;
    }
    Ok(())
}

#[tokio::test]
async fn promiscuous_mode_goes_with_the_capture() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, _there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let is_promiscuous =
            || anyhow::Ok(!here.ip(&["-d", "link", "show", "va"])?.contains("promiscuity 0"));
        let inode = here.inode()?;
        let recorder = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
        ensure!(is_promiscuous()?, "{hook}: not switched on");
        recorder.finish().await?;
        wait_until(Duration::from_secs(5), || Ok(!is_promiscuous()?)).context("left on")?;
        let recorder = Recorder::start(&server.url(&format!("netns={inode}&chaste"))).await?;
        ensure!(!is_promiscuous()?, "{hook}: switched on although chaste");
        let recording = recorder.finish().await?;
        ensure!(
            recording.comment.contains("no-promiscuous-mode: true"),
            "{}",
            recording.comment
        );
    }
    Ok(())
}

#[tokio::test]
async fn big_tcp_packets_are_cut_with_their_true_length() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        for (namespace, interface, address) in [(&here, "va", "fd00::1/64"), (&there, "vb", "fd00::2/64")] {
            // Of IPv4, iproute2 can set this from 6.3 on only.
            namespace.ip(&[
                "link",
                "set",
                interface,
                "gso_max_size",
                "500000",
                "gro_max_size",
                "500000",
            ])?;
            let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            namespace.inside(|| std::fs::write(switch, "0"))??;
            namespace.ip(&["address", "add", address, "dev", interface, "nodad"])?;
            namespace
                .inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_wmem", "4096 16000000 16000000"))??;
            namespace
                .inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_rmem", "4096 16000000 16000000"))??;
        }
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=va", here.inode()?))).await?;
        let talk = {
            let listener = there.inside(|| std::net::TcpListener::bind("[fd00::2]:80"))??;
            let stream = here.inside(|| std::net::TcpStream::connect("[fd00::2]:80"))??;
            tokio::task::spawn_blocking(move || {
                let (mut incoming, _) = listener.accept()?;
                let reader = std::thread::spawn(move || std::io::copy(&mut incoming, &mut std::io::sink()));
                std::io::Write::write_all(&mut &stream, &vec![0x62; 64 << 20])?;
                drop(stream);
                reader.join().ok().context("the reader panicked")??;
                anyhow::Ok(())
            })
        };
        recorder.read_during(talk).await?;
        let recording = recorder.finish().await?;
        let largest = recording
            .packets
            .iter()
            .max_by_key(|packet| packet.original_len)
            .context("no packet")?;
        ensure!(
            largest.original_len > 262_144,
            "{hook}: the largest has {} bytes",
            largest.original_len
        );
        ensure!(
            largest.data.len() == 262_072,
            "{hook}: {} bytes of it were kept",
            largest.data.len()
        );
        let statistics = recording.final_statistics("va")?;
        ensure!(
            statistics.dropped == 0 || recording.packets.len() as u64 == statistics.delivered,
            "{statistics:?}"
        );
    }
    Ok(())
}
