//! Nodes of another make, or that misbehave: the stream stays one that readers take, and says nothing that is not known.

use std::{process::Command, time::Duration};

use anyhow::ensure;
use packetflix_tests::{
    client::{Capture, Recorder},
    folder::Folder,
};

use crate::{
    closed_port, gateway,
    scripted::{Beside, Script, Sends, play, said_of},
};

/// Whether a program reads a stream to its end; what it prints.
fn read_by(program: &[&str], stream: &[u8]) -> anyhow::Result<(bool, String)> {
    let folder = Folder::new()?;
    let file = folder.file("stream.pcapng");
    std::fs::write(&file, stream)?;
    let read = Command::new(program[0])
        .args(&program[1..])
        .arg("-r")
        .arg(&file)
        .output()?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&read.stdout),
        String::from_utf8_lossy(&read.stderr)
    );
    Ok((read.status.success(), said))
}

/// Stops, and gives all bytes of the stream.
async fn finished(mut recorder: Recorder) -> anyhow::Result<Vec<u8>> {
    recorder.capture().stop().await?;
    while recorder.read().await?.is_none() {}
    Ok(recorder.stream().to_vec())
}

#[tokio::test]
async fn stream_is_read_by_tcpdump_and_tshark_whatever_snapshot_lengths_nodes_have() -> anyhow::Result<()> {
    // Of a node that is gone, the stream tells as an interface.
    let gone = format!("--node=gone=http://127.0.0.1:{}", closed_port()?);
    for (told, rest, said) in [
        (
            Some(65_535),
            "",
            "of its packets there are the first 65535 bytes at most",
        ),
        (None, "&snaplen=96", "its clock is"),
        (
            Some(64),
            "&snaplen=96",
            "of its packets there are the first 64 bytes at most",
        ),
    ] {
        let script = Script {
            snaplen: told,
            ..Script::default()
        };
        let mut beside = Beside::start(script, &[&gone], rest).await?;
        beside.check_that_others_go_on().await?;
        let read = beside.recorder.read_until(|recording| {
            recording.packets_of("odd/eth0").len() >= 3
                && recording.interfaces.iter().any(|one| one.name == "gone")
        });
        read.await?;
        let recording = beside.recorder.recording()?;
        let comment = said_of(recording, "odd/eth0")?;
        ensure!(comment.contains(said), "{comment}");
        let stream = finished(beside.recorder).await?;
        for program in [&["tcpdump", "-n"][..], &["tshark", "-n"]] {
            let (is_read, text) = read_by(program, &stream)?;
            ensure!(is_read, "{program:?} {rest}: {text}");
            let packets = text.to_lowercase().matches("0x88b5").count();
            ensure!(packets >= 4, "{program:?} {rest}: {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn stream_of_nodes_with_several_link_types_says_so() -> anyhow::Result<()> {
    const SAID: &str =
        "the stream has several link types, which tcpdump and others that read with libpcap refuse";
    const RAW: u16 = 101;
    let script = Script {
        link_type: Some(RAW),
        ..Script::default()
    };
    let mut beside = Beside::start(script, &[], "").await?;
    let read = beside.recorder.read_until(|recording| {
        recording.packets_of("odd/eth0").len() >= 3
            && recording.interfaces.iter().any(|one| one.name.ends_with("/va"))
    });
    read.await?;
    let recording = beside.recorder.recording()?;
    let first = recording.interfaces[0].link_type;
    for one in &recording.interfaces {
        let says = one.options.contains(SAID);
        ensure!(says == (one.link_type != first), "{one:?}");
    }
    let stream = finished(beside.recorder).await?;
    let (is_read, text) = read_by(&["tshark", "-n"], &stream)?;
    ensure!(is_read, "{text}");
    let (is_read, text) = read_by(&["tcpdump", "-n"], &stream)?;
    ensure!(
        !is_read && text.contains("different from the type of the first interface"),
        "{text}"
    );
    Ok(())
}

/// What is said of a node comes before anything else, and makes the stream none of several link types.
#[tokio::test]
async fn sentences_have_the_link_type_of_what_is_captured() -> anyhow::Result<()> {
    // The header of cooked mode.
    const LINUX_SLL: u16 = 113;
    let script = Script {
        link_type: Some(LINUX_SLL),
        ..Script::default()
    };
    let gateway = gateway(&[
        &format!("--node=gone=http://127.0.0.1:{}", closed_port()?),
        &format!("--node=odd=http://127.0.0.1:{}", play(script)?),
    ])?;
    let url = gateway.url("target=scripted&target=none-such-*");
    let mut recorder = Recorder::start(&url).await?;
    let read = recorder.read_until(|recording| {
        recording.packets_of("odd/eth0").len() >= 3
            && recording.interfaces.iter().any(|one| one.name == "gone")
    });
    read.await?;
    let (is_read, text) = read_by(&["tcpdump", "-n"], &finished(recorder).await?)?;
    ensure!(is_read, "{text}");
    Ok(())
}

#[tokio::test]
async fn losses_of_a_node_that_does_not_tell_its_last_are_said_to_be_unknown() -> anyhow::Result<()> {
    for (sends, told) in [
        (Sends::NoEnd, "it has not told its last in time"),
        (Sends::BrokenEnd, "the server is gone without a word"),
    ] {
        let script = Script {
            sends,
            ..Script::default()
        };
        let mut beside = Beside::start(script, &[], "").await?;
        beside
            .recorder
            .read_until(|recording| recording.packets_of("odd/eth0").len() >= 3)
            .await?;
        let recording = beside.recorder.finish().await?;
        ensure!(recording.final_statistics(&beside.name)?.dropped == 0);
        let there = recording.packets_of("odd/eth0").len() as u64;
        assert_eq!(
            recording.untold_statistics("odd/eth0")?,
            (
                there,
                "how many packets were lost is not known: whoever captured has not told the last of this interface"
            )
        );
        let said = said_of(&recording, "odd")?;
        ensure!(said.contains(&format!("node odd: {told}")), "{said}");
    }
    Ok(())
}

#[tokio::test]
async fn node_that_misbehaves_is_told_and_the_others_go_on() -> anyhow::Result<()> {
    for (sends, sentence) in [
        (Sends::Garbage, "it sends what is no block of pcapng"),
        (
            Sends::PacketsBehindTheEnd,
            "it sends packets or statistics of an interface behind that interface's final statistics",
        ),
    ] {
        let script = Script {
            sends,
            ..Script::default()
        };
        let mut beside = Beside::start(script, &[], "").await?;
        beside.read_until_told(sentence).await?;
        beside.check_that_others_go_on().await?;
        let recording = beside.recorder.finish().await?;
        if sends == Sends::PacketsBehindTheEnd {
            // What came before counts.
            let of_odd = recording.packets_of("odd/eth0").len() as u64;
            assert_eq!(recording.final_statistics("odd/eth0")?.delivered, of_odd);
        }
    }
    Ok(())
}

#[tokio::test]
async fn node_that_describes_interfaces_without_end_takes_little_memory() -> anyhow::Result<()> {
    const MOST: u64 = 40 << 10;
    let script = Script {
        sends: Sends::Interfaces,
        ..Script::default()
    };
    let mut beside = Beside::start(script, &[], "").await?;
    let before = beside.gateway.status("VmHWM")?;
    let reading = async {
        beside
            .read_until_told("it describes more than 65536 interfaces that have not ended")
            .await?;
        beside.check_that_others_go_on().await
    };
    tokio::time::timeout(Duration::from_secs(120), reading).await??;
    let most = beside.gateway.status("VmHWM")?.saturating_sub(before);
    ensure!(most < MOST, "{most} KiB");
    Ok(())
}

#[tokio::test]
async fn note_of_a_node_is_cut() -> anyhow::Result<()> {
    for (len, expected) in [(700, "n".repeat(700)), (9000, "n".repeat(1024) + "...")] {
        let script = Script {
            note_len: len,
            ..Script::default()
        };
        let gateway = gateway(&[&format!("--node=odd=http://127.0.0.1:{}", play(script)?)])?;
        let capture = Capture::open(&gateway.url("target=scripted"), &[]).await?;
        assert_eq!(capture.answer("packetflix-note"), Some(&expected[..]));
    }
    Ok(())
}
