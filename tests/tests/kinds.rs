//! Kinds of interfaces that Debian's kernels have: what the stream has of each is what tcpdump beside it wrote.
//!
//! A kernel without a kind must refuse to make one, and then that is what is tested.

use std::{
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    os::fd::AsRawFd as _,
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::BindToDevice,
        },
    },
    unistd::Pid,
};
use packetflix_tests::{
    client::Recorder,
    folder::Folder,
    hook::{hooks, tcx},
    namespace::{Namespace, output_of, run},
    pace,
    raw::{self, Tun},
    recording::Recording,
    server::{Server, wait_until},
};
use pcap_file::pcap::PcapReader;

/// What is in each packet that matters: as much as a CAN frame holds. Others, such as of ARP, come when they like.
const MARK: &[u8] = b"packetfl";

/// How often it is sent.
const TIMES: usize = 5;

/// Two hosts that are connected: `va` with 10.9.1.1 and fd09::1 here, `vb` with .2 and ::2 there.
struct Hosts {
    here: Namespace,
    there: Namespace,
}

/// Where packets are looked for.
type Place<'a> = (&'a Namespace, &'a str);

impl Hosts {
    fn new() -> anyhow::Result<Self> {
        let (here, there) = Namespace::pair()?;
        for (host, interface, address) in [(&here, "va", "fd09::1/64"), (&there, "vb", "fd09::2/64")] {
            host.inside(|| {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "0")
            })??;
            host.ip(&["address", "add", address, "dev", interface, "nodad"])?;
        }
        Ok(Self { here, there })
    }

    /// Makes an interface at both ends, `here` and `there` being what differs, with 10.8.0.1 and .2.
    fn add(&self, name: &str, here: &str, there: &str) -> anyhow::Result<Option<()>> {
        for (host, arguments, address) in [
            (&self.here, here, "10.8.0.1/24"),
            (&self.there, there, "10.8.0.2/24"),
        ] {
            if made(host, &format!("link add {name} {arguments}"))?.is_none() {
                return Ok(None);
            }
            host.ip(&["address", "add", address, "dev", name])?;
            host.ip(&["link", "set", name, "up"])?;
        }
        Ok(Some(()))
    }

    /// Sends the mark both ways.
    fn talk(&self) -> anyhow::Result<()> {
        let [ours, theirs] = [(&self.here, "10.8.0.1:700"), (&self.there, "10.8.0.2:700")]
            .map(|(host, address)| host.inside(|| UdpSocket::bind(address)));
        Self::talk_by(&ours??, &theirs??)
    }

    /// Sends the mark from one to the other and back.
    fn talk_by(ours: &UdpSocket, theirs: &UdpSocket) -> anyhow::Result<()> {
        for socket in [ours, theirs] {
            socket.set_read_timeout(Some(pace::time(Duration::from_secs(5))))?;
        }
        let mut mark = [0; MARK.len()];
        for _ in 0..TIMES {
            ours.send_to(MARK, "10.8.0.2:700")?;
            theirs.recv(&mut mark)?;
            theirs.send_to(MARK, "10.8.0.1:700")?;
            ours.recv(&mut mark)?;
        }
        Ok(())
    }
}

/// Makes an interface by a line of `ip`'s; `None` when the kernel has none of its kind, which it says itself.
fn made(namespace: &Namespace, line: &str) -> anyhow::Result<Option<()>> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let Err(error) = namespace.ip(&words) else {
        return Ok(Some(()));
    };
    let said = error.to_string();
    let kind = words
        .iter()
        .skip_while(|word| **word != "type")
        .nth(1)
        .unwrap_or(&"?");
    // `rtnl_newlink`: no module answers to this kind.
    if ["Unknown device type", "Operation not supported"]
        .iter()
        .any(|refusal| said.contains(refusal))
    {
        eprintln!("this kernel has no {kind}");
        return Ok(None);
    }
    bail!("{line}: {said}")
}

/// A packet as it is compared: its length, and its bytes.
type Seen = (u32, Vec<u8>);

fn marked(packets: impl Iterator<Item = Seen>) -> Vec<Seen> {
    let mut marked: Vec<Seen> = packets
        .filter(|(_, data)| data.windows(MARK.len()).any(|bytes| bytes == MARK))
        .collect();
    marked.sort();
    marked
}

fn of_stream(recording: &Recording) -> Vec<Seen> {
    marked(
        recording
            .packets
            .iter()
            .map(|packet| (packet.original_len, packet.data.clone())),
    )
}

/// What tcpdump has written so far: the link type, and the packets.
fn of_file(file: &Path) -> anyhow::Result<(u32, Vec<Seen>)> {
    let mut reader = PcapReader::new(std::fs::File::open(file)?)?;
    let link_type = reader.header().datalink.into();
    let mut packets = Vec::new();
    // It may be in the middle of writing one.
    while let Some(Ok(packet)) = reader.next_packet() {
        packets.push((packet.orig_len, packet.data.into_owned()));
    }
    Ok((link_type, marked(packets.into_iter())))
}

/// tcpdump on an interface.
struct Tcpdump(Child);

impl Tcpdump {
    fn start((namespace, interface): Place<'_>, file: &Path) -> anyhow::Result<Self> {
        let mut child = namespace
            .command("tcpdump")
            .args([
                "-i",
                interface,
                "-n",
                "-U",
                "-Z",
                "root",
                "--immediate-mode",
                // Of its own accord it has room for seven packets of an interface that is not Ethernet.
                "-B",
                "32768",
                "-w",
            ])
            .arg(file)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("no log")?);
        let tcpdump = Self(child);
        let mut said = String::new();
        while !said.contains("listening on") {
            ensure!(log.read_line(&mut said)? > 0, "tcpdump says: {said}");
        }
        // It would end for want of who reads.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Ok(tcpdump)
    }
}

impl Drop for Tcpdump {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT);
        // What it has not written by now is not waited for.
        let ended = wait_until(Duration::from_secs(5), || Ok(self.0.try_wait()?.is_some()));
        if ended.is_err() {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

/// Captures at a place while `traffic` flows, on this hook, and compares with tcpdump beside, which sees so many packets at
/// least; gives the link type.
async fn same(
    hook: &str,
    place: Place<'_>,
    least: usize,
    traffic: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u32> {
    let (namespace, interface) = place;
    let folder = Folder::new()?;
    let file = folder.file("beside.pcap");
    let server = Server::start(&["--hook", hook])?;
    let url = server.url(&format!("netns={}&nif={interface}&names=0", namespace.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    let tcpdump = Tcpdump::start(place, &file)?;
    traffic()?;
    let mut theirs = of_file(&file)?;
    wait_until(Duration::from_secs(5), || {
        std::thread::sleep(pace::time(Duration::from_millis(200)));
        let before = std::mem::replace(&mut theirs, of_file(&file)?);
        Ok(before == theirs && theirs.1.len() >= least)
    })
    .with_context(|| {
        format!(
            "tcpdump sees {} on {interface}: {:02x?}",
            theirs.1.len(),
            theirs.1
        )
    })?;
    drop(tcpdump);
    let count = theirs.1.len();
    let reading = recorder.read_until(|recording| of_stream(recording).len() >= count);
    // Whether it is all is seen below.
    let _ = tokio::time::timeout(pace::time(Duration::from_secs(3)), reading).await;
    let recording = recorder.finish().await?;
    let ours = (recording.interfaces[0].link_type, of_stream(&recording));
    ensure!(
        ours == theirs,
        "{hook}: {interface} has {ours:02x?}, and tcpdump {theirs:02x?}"
    );
    Ok(theirs.0)
}

/// The same at several places, on each hook.
async fn same_everywhere(
    places: &[Place<'_>],
    least: usize,
    traffic: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<u32>> {
    let mut link_types = Vec::new();
    for hook in hooks()? {
        link_types.clear();
        for place in places {
            link_types.push(same(hook, *place, least, &traffic).await?);
        }
    }
    Ok(link_types)
}

/// An interface of this kind at both ends, and what it is on: both see what tcpdump sees.
async fn pair_is_seen(arguments: [&str; 2], link_type: u32) -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    if hosts.add("k7", arguments[0], arguments[1])?.is_none() {
        return Ok(());
    }
    let places = [(&hosts.here, "k7"), (&hosts.here, "va"), (&hosts.there, "k7")];
    let found = same_everywhere(&places, 2 * TIMES, || hosts.talk()).await?;
    assert_eq!(found, [link_type, 1, link_type]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vlan_and_its_parent() -> anyhow::Result<()> {
    pair_is_seen(["link va type vlan id 5", "link vb type vlan id 5"], 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vlan_of_the_provider_and_its_parent() -> anyhow::Result<()> {
    let arguments = [
        "link va type vlan protocol 802.1ad id 6",
        "link vb type vlan protocol 802.1ad id 6",
    ];
    pair_is_seen(arguments, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gre() -> anyhow::Result<()> {
    pair_is_seen(
        [
            "type gre local 10.9.1.1 remote 10.9.1.2",
            "type gre local 10.9.1.2 remote 10.9.1.1",
        ],
        113,
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gretap() -> anyhow::Result<()> {
    let arguments = [
        "type gretap local 10.9.1.1 remote 10.9.1.2",
        "type gretap local 10.9.1.2 remote 10.9.1.1",
    ];
    pair_is_seen(arguments, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ip6gre() -> anyhow::Result<()> {
    let arguments = [
        "type ip6gre local fd09::1 remote fd09::2",
        "type ip6gre local fd09::2 remote fd09::1",
    ];
    pair_is_seen(arguments, 113).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipip() -> anyhow::Result<()> {
    let arguments = [
        "type ipip local 10.9.1.1 remote 10.9.1.2",
        "type ipip local 10.9.1.2 remote 10.9.1.1",
    ];
    pair_is_seen(arguments, 101).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sit() -> anyhow::Result<()> {
    let arguments = [
        "type sit mode any local 10.9.1.1 remote 10.9.1.2",
        "type sit mode any local 10.9.1.2 remote 10.9.1.1",
    ];
    pair_is_seen(arguments, 101).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ip6tnl() -> anyhow::Result<()> {
    let arguments = [
        "type ip6tnl mode any local fd09::1 remote fd09::2",
        "type ip6tnl mode any local fd09::2 remote fd09::1",
    ];
    pair_is_seen(arguments, 113).await
}

/// Without a peer, sent packets begin with the outer header, and cooked mode takes it off: told, and left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gre_without_a_peer_is_refused_by_name() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    if made(&hosts.here, "link add k7 type gre local 10.9.1.1 key 7")?.is_none() {
        return Ok(());
    }
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=k7", hosts.here.inode()?));
    let refused = Recorder::start(&url)
        .await
        .err()
        .context("not refused")?
        .to_string();
    ensure!(
        refused.starts_with("400 ") && refused.contains("k7") && refused.contains("778"),
        "{refused}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wireguard_inside_and_outside() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    if hosts.add("k7", "type wireguard", "type wireguard")?.is_none() {
        return Ok(());
    }
    let folder = Folder::new()?;
    let keys = ["a", "b"].map(|name| {
        let key = run("wg", &["genkey"])?;
        std::fs::write(folder.file(name), &key)?;
        let script = format!("wg pubkey < {}", folder.file(name).display());
        anyhow::Ok(run("sh", &["-c", &script])?.trim().to_owned())
    });
    let [ours, theirs] = keys;
    let (ours, theirs) = (ours?, theirs?);
    for (host, key, peer, address, endpoint) in [
        (&hosts.here, "a", &theirs, "10.8.0.2/32", "10.9.1.2:5000"),
        (&hosts.there, "b", &ours, "10.8.0.1/32", "10.9.1.1:5000"),
    ] {
        let mut wg = host.command("wg");
        wg.args(["set", "k7", "listen-port", "5000", "private-key"])
            .arg(folder.file(key))
            .args(["peer", peer, "allowed-ips", address, "endpoint", endpoint]);
        output_of(&mut wg)?;
    }
    // Outside, it is encrypted, and no packet can be known by what is in it.
    let found = same_everywhere(&[(&hosts.here, "k7"), (&hosts.there, "k7")], 2 * TIMES, || {
        hosts.talk()
    })
    .await?;
    assert_eq!(found, [101, 101]);
    let server = Server::start(&[])?;
    let url = server.url(&format!(
        "netns={}&nif=va&filter=udp+port+5000",
        hosts.here.inode()?
    ));
    let mut recorder = Recorder::start(&url).await?;
    hosts.talk()?;
    recorder
        .read_until(|recording| recording.packets.len() >= 2 * TIMES)
        .await?;
    assert_eq!(of_stream(&recorder.finish().await?), []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dummy() -> anyhow::Result<()> {
    let here = Namespace::new()?;
    if made(&here, "link add k7 type dummy")?.is_none() {
        return Ok(());
    }
    here.ip(&["address", "add", "10.8.0.1/24", "dev", "k7"])?;
    here.ip(&["link", "set", "k7", "up"])?;
    here.ip(&[
        "neighbor",
        "add",
        "10.8.0.2",
        "lladdr",
        "02:00:00:00:00:02",
        "dev",
        "k7",
    ])?;
    let traffic = || {
        let socket = here.inside(|| UdpSocket::bind("10.8.0.1:700"))??;
        (0..TIMES).try_for_each(|_| socket.send_to(MARK, "10.8.0.2:700").map(drop))?;
        Ok(())
    };
    assert_eq!(same_everywhere(&[(&here, "k7")], TIMES, traffic).await?, [1]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ipvlan_is_seen() -> anyhow::Result<()> {
    let (hosts, inner) = (Hosts::new()?, Namespace::new()?);
    if made(&hosts.here, "link add k7 link va type ipvlan mode l2")?.is_none() {
        return Ok(());
    }
    hosts.here.ip(&["link", "set", "k7", "netns", inner.name()])?;
    inner.ip(&["address", "add", "10.8.0.1/24", "dev", "k7"])?;
    inner.ip(&["link", "set", "k7", "up"])?;
    hosts.there.ip(&["address", "add", "10.8.0.2/24", "dev", "vb"])?;
    let ends = Hosts {
        here: inner,
        there: hosts.there,
    };
    let places = [(&ends.here, "k7"), (&hosts.here, "va"), (&ends.there, "vb")];
    assert_eq!(
        same_everywhere(&places, 2 * TIMES, || ends.talk()).await?,
        [1, 1, 1]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn netem_that_duplicates_and_delays() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    hosts.here.ip(&["address", "add", "10.8.0.1/24", "dev", "va"])?;
    hosts.there.ip(&["address", "add", "10.8.0.2/24", "dev", "vb"])?;
    let mut tc = hosts.here.command("tc");
    tc.args([
        "qdisc",
        "add",
        "dev",
        "va",
        "root",
        "netem",
        "delay",
        "5ms",
        "duplicate",
        "50%",
    ]);
    if let Err(error) = output_of(&mut tc) {
        ensure!(error.to_string().contains("Specified qdisc"), "{error}");
        eprintln!("this kernel has no netem");
        return Ok(());
    }
    // TCX sees packets before the queueing discipline does.
    let link_type = same("socket", (&hosts.here, "va"), 2 * TIMES, || hosts.talk()).await?;
    assert_eq!(link_type, 1);
    let found = same_everywhere(&[(&hosts.there, "vb")], 2 * TIMES, || hosts.talk()).await?;
    assert_eq!(found, [1]);
    Ok(())
}

/// Both ends have the interface over two links; it and its parts are looked at.
async fn aggregate_is_seen(kind: &str) -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    hosts.here.connect("vc", &hosts.there, "vd", 2)?;
    for (host, parts) in [(&hosts.here, ["va", "vc"]), (&hosts.there, ["vb", "vd"])] {
        if made(host, &format!("link add k7 type {kind}"))?.is_none() {
            return Ok(());
        }
        for part in parts {
            host.ip(&["link", "set", part, "down"])?;
            host.ip(&["link", "set", part, "master", "k7"])?;
        }
    }
    for (host, address) in [(&hosts.here, "10.8.0.1/24"), (&hosts.there, "10.8.0.2/24")] {
        host.ip(&["address", "add", address, "dev", "k7"])?;
        host.ip(&["link", "set", "k7", "up"])?;
    }
    let places = [(&hosts.here, "k7"), (&hosts.there, "k7")];
    assert_eq!(
        same_everywhere(&places, 2 * TIMES, || hosts.talk()).await?,
        [1, 1]
    );
    // One of them may be idle.
    for hook in hooks()? {
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=va/vc/k7&names=0", hosts.here.inode()?));
        let mut recorder = Recorder::start(&url).await?;
        hosts.talk()?;
        let count = |recording: &Recording, name: &str| {
            let packets = recording.packets_of(name).into_iter();
            marked(packets.map(|packet| (packet.original_len, packet.data.clone()))).len()
        };
        recorder
            .read_until(|recording| {
                let parts = count(recording, "va") + count(recording, "vc");
                count(recording, "k7") == 2 * TIMES && parts == 2 * TIMES
            })
            .await?;
        recorder.finish().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bond_and_its_parts() -> anyhow::Result<()> {
    aggregate_is_seen("bond mode balance-rr miimon 100").await
}

/// A packet passes the VRF device as well as the interface in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vrf_and_what_is_in_it() -> anyhow::Result<()> {
    let hosts = Hosts::new()?;
    if made(&hosts.here, "link add k7 type vrf table 10")?.is_none() {
        return Ok(());
    }
    hosts.here.ip(&["link", "set", "k7", "up"])?;
    hosts.here.ip(&["link", "set", "va", "master", "k7"])?;
    hosts.here.ip(&["address", "add", "10.8.0.1/24", "dev", "va"])?;
    hosts.there.ip(&["address", "add", "10.8.0.2/24", "dev", "vb"])?;
    let traffic = || {
        let ours = hosts.here.inside(|| {
            let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), None)?;
            setsockopt(&socket, BindToDevice, &"k7".into())?;
            bind(socket.as_raw_fd(), &SockaddrIn::new(10, 8, 0, 1, 700))?;
            anyhow::Ok(UdpSocket::from(socket))
        })??;
        let theirs = hosts.there.inside(|| UdpSocket::bind("10.8.0.2:700"))??;
        Hosts::talk_by(&ours, &theirs)
    };
    let link_type = same("socket", (&hosts.here, "k7"), 2 * TIMES, traffic).await?;
    assert_eq!(link_type, 1);
    let places = [(&hosts.here, "va"), (&hosts.there, "vb")];
    assert_eq!(same_everywhere(&places, 2 * TIMES, traffic).await?, [1, 1]);
    if tcx()?.is_none() {
        return Ok(());
    }
    // Of the device itself, TCX sees nothing, and that is told.
    let server = Server::start(&["--hook", "tcx"])?;
    let url = server.url(&format!("netns={}", hosts.here.inode()?));
    let recording = Recorder::start(&url).await?.finish().await?;
    let told = recording
        .interfaces
        .iter()
        .find(|interface| interface.name == "k7");
    let told = &told.context("it is not described")?.options;
    ensure!(told.contains("the packets of a VRF do not pass TCX"), "{told}");
    let refused = Recorder::start(&format!("{url}&nif=k7")).await.err();
    let refused = refused.context("not refused")?.to_string();
    ensure!(
        refused.starts_with("400 ") && refused.contains("VRF"),
        "{refused}"
    );
    Ok(())
}

/// Frames of CAN FD are told by a flag, which tcpdump of Debian 12 takes away and later ones set.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vcan() -> anyhow::Result<()> {
    const SCRIPT: &str = "import socket as s, sys\n\
        c = s.socket(s.AF_CAN, s.SOCK_RAW, 1)\n\
        c.setsockopt(101, 5, 1)\n\
        c.bind(('k7',))\n\
        c.send(bytes.fromhex(sys.argv[1]))\n";

    let here = Namespace::new()?;
    if made(&here, "link add k7 mtu 72 type vcan")?.is_none() {
        return Ok(());
    }
    here.ip(&["link", "set", "k7", "up"])?;
    let send = |frame: &str| output_of(here.command("python3").args(["-c", SCRIPT, frame])).map(drop);
    let traffic = || send("23010000080000007061636b6574666c");
    assert_eq!(same_everywhere(&[(&here, "k7")], 1, traffic).await?, [227]);
    for hook in hooks()? {
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}&nif=k7", here.inode()?))).await?;
        let rest = "00".repeat(56);
        send(&format!("56341292080100007061636b6574666c{rest}"))?;
        recorder
            .read_until(|recording| !recording.packets.is_empty())
            .await?;
        let frames = of_stream(&recorder.finish().await?);
        let [(72, frame)] = &frames[..] else {
            bail!("{hook}: {frames:02x?}")
        };
        assert_eq!(frame[..16], *b"\x92\x12\x34\x56\x08\x05\0\0packetfl", "{hook}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nlmon() -> anyhow::Result<()> {
    let here = Namespace::new()?;
    if made(&here, "link add k7 type nlmon")?.is_none() {
        return Ok(());
    }
    here.ip(&["link", "set", "k7", "up"])?;
    // The kernel's answer has the question in it.
    let traffic = || {
        ensure!(here.ip(&["link", "show", "dev", "packetfl"]).is_err());
        Ok(())
    };
    assert_eq!(same_everywhere(&[(&here, "k7")], 2, traffic).await?, [253]);
    Ok(())
}

/// A tun device may pass for any hardware: each gets the link type that libpcap gives, or is refused by name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardware_types_have_the_link_types_of_libpcap() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut tun = Tun::open(&namespace, "tun7")?;
    for (hardware_type, link_type) in [
        (512, 113),
        (519, 113),
        (768, 101),
        (769, 113),
        (776, 101),
        (778, 113),
        (801, 105),
        (802, 119),
        (803, 127),
        (804, 230),
        (823, 113),
        (824, 253),
        (826, 271),
        (0xfffe, 101),
    ] {
        namespace.ip(&["link", "set", "tun7", "down"])?;
        tun.set_hardware_type(hardware_type)?;
        namespace.ip(&["link", "set", "tun7", "up"])?;
        for hook in hooks()? {
            let packets = [raw::ipv4_udp(MARK), raw::ipv6_udp(MARK)];
            let traffic = || packets.iter().try_for_each(|packet| Ok(tun.write(packet)?));
            let found = same(hook, (&namespace, "tun7"), 2, traffic).await;
            let found = found.with_context(|| format!("hardware type {hardware_type}"))?;
            assert_eq!(found, link_type, "{hardware_type}");
        }
    }
    Ok(())
}

/// What has a header of cooked mode in the stream has none in the kernel; a filter knows that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_of_cooked_interfaces_are_those_of_ip() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut tun = Tun::open(&namespace, "tun7")?;
    tun.set_hardware_type(778)?;
    namespace.ip(&["link", "set", "tun7", "up"])?;
    for hook in hooks()? {
        let server = Server::start(&["--hook", hook])?;
        let query = |rest: &str| {
            Ok::<_, anyhow::Error>(server.url(&format!("netns={}&names=0{rest}", namespace.inode()?)))
        };
        let mut recorder = Recorder::start(&query("&nif=tun7&filter=ip+and+udp")?).await?;
        tun.write(&raw::ipv6_udp(MARK))?;
        tun.write(&raw::ipv4_udp(MARK))?;
        recorder
            .read_until(|recording| !of_stream(recording).is_empty())
            .await?;
        let recording = recorder.finish().await?;
        let [(len, data)] = &of_stream(&recording)[..] else {
            bail!("{recording:?}")
        };
        let packet = raw::ipv4_udp(MARK);
        assert_eq!(*len as usize, 16 + packet.len());
        assert_eq!(
            data[..16],
            [0, 0, 3, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0],
            "{hook}"
        );
        assert_eq!(data[16..], packet[..]);
        // Cut where it was to be cut, with the header.
        let mut recorder = Recorder::start(&query("&nif=tun7&snaplen=20")?).await?;
        tun.write(&packet)?;
        recorder
            .read_until(|recording| !recording.packets.is_empty())
            .await?;
        assert_eq!(recorder.finish().await?.packets[0].data.len(), 20);
    }
    Ok(())
}

/// Of what no expression means anything for, nothing comes, and that is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_leave_out_what_is_neither_ethernet_nor_ip() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let tun = Tun::open(&namespace, "tun7")?;
    tun.set_hardware_type(803)?;
    namespace.ip(&["link", "set", "tun7", "up"])?;
    let server = Server::start(&[])?;
    let url = |rest: &str| Ok::<_, anyhow::Error>(server.url(&format!("netns={}{rest}", namespace.inode()?)));
    let recording = Recorder::start(&url("&filter=udp")?).await?.finish().await?;
    let told = recording
        .interfaces
        .iter()
        .find(|interface| interface.name == "tun7");
    let told = told.context("it is not described")?;
    ensure!(
        told.options
            .contains("filters are for packets that begin with an Ethernet or IP header"),
        "{}",
        told.options
    );
    let refused = Recorder::start(&url("&nif=tun7&filter=udp")?)
        .await
        .err()
        .context("not refused")?;
    ensure!(refused.to_string().starts_with("400 "), "{refused}");
    Ok(())
}
