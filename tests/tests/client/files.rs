//! Files that follow each other (`-b`).

use std::{fs, path::PathBuf, process::Command, time::Duration};

use anyhow::ensure;
use nix::sys::signal::Signal;
use packetflix_tests::{
    folder::Folder,
    namespace::{Namespace, output_of},
    recording::Packet,
    server::{Server, wait_until},
};

use crate::{Capture, Mounted, file_in, is_idle, read, send};

/// The files that follow each other, in their order.
fn files(folder: &Folder) -> anyhow::Result<Vec<PathBuf>> {
    let entries: Result<Vec<_>, _> = fs::read_dir(folder.path())?.collect();
    let mut files: Vec<PathBuf> = entries?.iter().map(fs::DirEntry::path).collect();
    files.retain(|file| file.to_string_lossy().contains("/ring_"));
    files.sort();
    Ok(files)
}

/// Checks that files are whole, each by itself, and gives their packets in a row.
fn packets(files: &[PathBuf]) -> anyhow::Result<Vec<(String, Packet)>> {
    let mut packets = Vec::new();
    for file in files {
        let recording = read(file)?;
        recording.check_complete()?;
        for packet in recording.packets {
            let name = recording.interfaces[packet.interface].name.clone();
            packets.push((
                name,
                Packet {
                    interface: 0,
                    ..packet
                },
            ));
        }
    }
    Ok(packets)
}

/// How many packets Wireshark's own reader finds in each file.
fn counted(files: &[PathBuf]) -> anyhow::Result<Vec<u64>> {
    let table = output_of(
        Command::new("capinfos")
            .args(["-T", "-r", "-M", "-c"])
            .args(files),
    )?;
    table
        .lines()
        .map(|line| Ok(line.split('\t').nth(1).unwrap_or_default().parse()?))
        .collect()
}

#[test]
fn a_hundred_files_under_load_have_the_packets_of_one() -> anyhow::Result<()> {
    const PACKETS: u32 = 50_000;
    const IN_A_FILE: usize = 500;

    let (here, there) = Namespace::pair()?;
    let folder = Folder::new()?;
    let server = Server::start(&[])?;
    let (one, file) = file_in(&folder, "one.pcapng");
    let (_, ring) = file_in(&folder, "ring.pcapng");
    let target = [here.name(), "-f", "udp dst port 9"];
    let whole = Capture::start(&server, &[&target[..], &["-w", &file]].concat())?;
    let limit = format!("packets:{IN_A_FILE}");
    let parts = Capture::start(&server, &[&target[..], &["-w", &ring, "-b", &limit]].concat())?;
    // On two interfaces at a time, so that each file needs both descriptions.
    std::thread::scope(|scope| {
        let others = scope.spawn(|| send(&here, 0..PACKETS / 2));
        here.inside(|| {
            let socket = std::net::UdpSocket::bind("10.9.1.1:0")?;
            for number in 0..PACKETS / 2 {
                socket.send_to(&number.to_be_bytes(), "10.9.1.2:9")?;
            }
            anyhow::Ok(())
        })??;
        others.join().unwrap()
    })?;
    for capture in [whole, parts] {
        capture.signal(Signal::SIGINT)?;
        let (status, told) = capture.end()?;
        assert_eq!(status, 130, "{told}");
        ensure!(told.contains(" 0 dropped"), "{told}");
    }
    drop(there);

    let files = files(&folder)?;
    assert_eq!(files.len(), PACKETS as usize / IN_A_FILE);
    let whole = packets(&[one])?;
    assert_eq!(whole.len(), PACKETS as usize);
    assert!(
        ["lo", "va"]
            .iter()
            .all(|name| whole.iter().any(|(of, _)| of == name))
    );
    assert!(packets(&files)? == whole, "the files have other packets");
    assert_eq!(counted(&files)?, vec![IN_A_FILE as u64; files.len()]);
    Ok(())
}

#[test]
fn a_ring_keeps_the_last_files_and_their_losses() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    // So few a second, that most are lost.
    let server = Server::start(&["--max-packet-rate", "20"])?;
    let (_, ring) = file_in(&folder, "ring.pcapng");
    let capture = Capture::start(
        &server,
        &[
            namespace.name(),
            "-w",
            &ring,
            "-b",
            "packets:10",
            "-b",
            "files:2",
            "-a",
            "packets:35",
        ],
    )?;
    for _ in 0..30 {
        send(&namespace, 0..20)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    let files = files(&folder)?;
    let names: Vec<String> = files
        .iter()
        .map(|file| file.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files.len(), 2, "{names:?}");
    assert!(
        names[0].starts_with("ring_00003_20") && names[1].starts_with("ring_00004_20"),
        "{names:?}"
    );
    assert_eq!(packets(&files)?.len(), 15);
    for file in &files {
        let recording = read(file)?;
        let told: u64 = recording.packets.iter().map(|packet| packet.dropped_before).sum();
        let statistics = recording.final_statistics("lo")?;
        assert_eq!(statistics.delivered, recording.packets.len() as u64);
        assert!(statistics.dropped >= told && told > 0, "{statistics:?} {told}");
    }
    Ok(())
}

#[test]
fn files_have_the_size_and_number_that_was_asked_for() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (_, ring) = file_in(&folder, "ring.pcapng");
    let capture = Capture::start(
        &server,
        &[namespace.name(), "-w", &ring, "-b", "filesize:4", "-a", "files:3"],
    )?;
    send(&namespace, 0..500)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("the limit of 3 files is reached"), "{told}");
    let files = files(&folder)?;
    assert_eq!(files.len(), 3);
    for file in &files {
        let len = fs::metadata(file)?.len();
        assert!((3500..=4000).contains(&len), "{len}");
    }
    let numbers: Vec<u32> = packets(&files)?
        .iter()
        .filter_map(|(_, packet)| Some(u32::from_be_bytes(*packet.data.last_chunk()?)))
        .collect();
    assert_eq!(numbers, (0..numbers.len() as u32).collect::<Vec<_>>());
    wait_until(Duration::from_secs(5), || is_idle(&server))
}

#[test]
fn files_follow_each_other_by_time_alone() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (_, ring) = file_in(&folder, "ring.pcapng");
    let capture = Capture::start(
        &server,
        &[
            namespace.name(),
            "-w",
            &ring,
            "-b",
            "duration:0.3",
            "-a",
            "files:3",
        ],
    )?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    let files = files(&folder)?;
    assert_eq!(files.len(), 3);
    assert!(packets(&files)?.is_empty());
    assert_eq!(counted(&files)?, [0, 0, 0]);
    Ok(())
}

#[test]
fn a_disk_that_is_full_between_two_files_loses_nothing_that_was_written() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let small = Mounted::new(&folder, "64k")?;
    let ring = folder.file("small/ring.pcapng").display().to_string();
    let capture = Capture::start(&server, &[namespace.name(), "-w", &ring, "-b", "filesize:16"])?;
    send(&namespace, 0..2000)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 3, "{told}");
    assert!(
        told.contains("could not be written to its end: No space left")
            || told.contains("cannot be made: No space left"),
        "{told}"
    );
    let entries: Result<Vec<_>, _> = fs::read_dir(folder.file("small"))?.collect();
    let mut files: Vec<PathBuf> = entries?.iter().map(fs::DirEntry::path).collect();
    files.sort();
    assert!(files.len() >= 3, "{files:?}");
    let mut next = 0;
    for file in &files {
        for packet in read(file)?.packets {
            assert_eq!(packet.data.last_chunk(), Some(&u32::to_be_bytes(next)));
            next += 1;
        }
    }
    // All files but the last have their final statistics.
    packets(&files[..files.len() - 1])?;
    assert!(next > 300, "{next}");
    assert!(told.contains(&format!(" {next} delivered, ")), "{next}: {told}");
    drop(small);
    Ok(())
}

#[test]
fn mistakes_are_told_before_anything_is_captured() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    for (arguments, sentence) in [
        (
            &["-b", "files:3", "-w", "a"][..],
            "-b files: takes a limit of each file",
        ),
        (
            &["-b", "duration:1", "-w", "-"],
            "only files follow each other (-b)",
        ),
        (&["-b", "duration:1"], "--write"),
        (
            &["-b", "duration:1", "-a", "filesize:1", "-w", "a"],
            "with -b, say -b filesize:",
        ),
    ] {
        let output = crate::output(&server, &[&["capture", "web"], arguments].concat())?;
        let told = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(sentence), "{told}");
    }
    Ok(())
}
