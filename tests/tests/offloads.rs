//! What was left to a device when a packet was captured: each packet says it.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use anyhow::ensure;
use packetflix_tests::{
    client::Recorder,
    hook::hooks,
    namespace::{Namespace, output_of},
    recording::{Packet, Recording},
    server::Server,
};

/// Bits of `epb_flags`.
const CHECKSUM_NOT_READY: u32 = 1 << 9;
const SEGMENTATION: u32 = 1 << 11;

/// Bytes that a connection sends.
const SENT: usize = 300_000;

/// Bytes of the largest frame of a veth's usual MTU, and of the headers in it: Ethernet, IPv4, TCP with its timestamps.
const FRAME: u32 = 14 + 1500;
const HEADERS: usize = 14 + 20 + 32;

/// Sends a stream from `from` to `to`, and gives what the sending interface shows of it: outgoing packets with data.
async fn sent_on(hook: &str, to: &Namespace, from: &Namespace) -> anyhow::Result<Vec<Packet>> {
    let server = Server::start(&["--hook", hook])?;
    let url = server.url(&format!("netns={}&names=0&nif=vb&filter=tcp", from.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    let listener = to.inside(|| TcpListener::bind("10.9.1.1:0"))??;
    let address = listener.local_addr()?;
    let receiver = thread::spawn(move || -> anyhow::Result<usize> {
        let mut received = Vec::new();
        listener.accept()?.0.read_to_end(&mut received)?;
        Ok(received.len())
    });
    let mut sender = from.inside(|| TcpStream::connect(address))??;
    sender.write_all(&vec![7; SENT])?;
    drop(sender);
    ensure!(receiver.join().expect("no panic")? == SENT);
    // Both ends have said that they are done.
    let is_done = |recording: &Recording| {
        let ends = recording.packets.iter().filter(|packet| packet.data[47] & 1 != 0);
        ends.count() >= 2
    };
    recorder.read_until(is_done).await?;
    let packets = recorder.finish().await?.packets.into_iter();
    let has_data = |packet: &Packet| packet.is_outbound() && packet.data.len() > HEADERS;
    Ok(packets.filter(has_data).collect())
}

#[tokio::test]
async fn packets_say_what_was_left_to_the_device() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (to, from) = Namespace::pair()?;
        let packets = sent_on(hook, &to, &from).await?;
        let is_whole = |packet: &Packet| packet.original_len > FRAME;
        ensure!(packets.iter().any(is_whole), "{hook}: no super-packets");
        for packet in &packets {
            let flags = packet.flags;
            assert_eq!(flags & SEGMENTATION != 0, is_whole(packet), "{hook} {flags:#x}");
            ensure!(flags & CHECKSUM_NOT_READY != 0, "{hook} {flags:#x}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn interfaces_that_tcx_shows_say_so() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (namespace, _other) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&names=0", namespace.inode()?));
        let recording = Recorder::start(&url).await?.finish().await?;
        assert_eq!(recording.interfaces.len(), 2);
        for interface in recording.interfaces {
            let (name, options) = (interface.name, interface.options);
            let says = |words: &str| options.contains(words);
            assert_eq!(says(&format!(": {name} (TCX)")), hook == "tcx", "{options}");
            assert_eq!(
                says("also where the device offloads nothing"),
                hook == "tcx",
                "{options}"
            );
        }
    }
    Ok(())
}

/// Without offloads the kernel does it all before a packet reaches the device, which is where packet sockets look. TCX looks
/// before that.
#[tokio::test]
async fn hooks_differ_where_the_device_offloads_nothing() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (to, from) = Namespace::pair()?;
        let mut ethtool = from.command("ethtool");
        output_of(ethtool.args(["-K", "vb", "tx", "off"]))?;
        let packets = sent_on(hook, &to, &from).await?;
        let whole = packets.iter().filter(|packet| packet.original_len > FRAME);
        let left = |packet: &&Packet| packet.flags & (CHECKSUM_NOT_READY | SEGMENTATION) != 0;
        let left = packets.iter().filter(left).count();
        if hook == "socket" {
            assert_eq!(whole.count(), 0);
            // One in 65,536 by chance.
            ensure!(left <= 2, "{left} of {}", packets.len());
            let bytes: usize = packets.iter().map(|packet| packet.data.len() - HEADERS).sum();
            ensure!(bytes >= SENT, "{bytes}");
        } else {
            ensure!(whole.count() > 0);
            assert_eq!(left, packets.len());
        }
    }
    Ok(())
}
