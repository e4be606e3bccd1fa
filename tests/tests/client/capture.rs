//! `packetflix capture`: what is written, and how it ends.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, process::ExitStatusExt as _},
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use packetflix_tests::{
    folder::Folder,
    namespace::{Namespace, output_of},
    recording::Recording,
    server::{Server, program, wait_until},
};

use crate::{Capture, Mounted, file_in, is_idle, output, packetflix, read, send};

#[test]
fn files_have_what_was_asked_for() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (path, file) = file_in(&folder, "a.pcapng");
    let capture = Capture::start(
        &server,
        &[
            namespace.name(),
            "-i",
            "lo",
            "-f",
            "udp dst port 9",
            "-s",
            "20",
            "-c",
            "5",
            "-w",
            &file,
        ],
    )?;
    send(&namespace, 0..8)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("the limit of 5 packets is reached"), "{told}");
    assert!(
        told.contains("5 packets captured, 5 delivered, 0 dropped"),
        "{told}"
    );
    let recording = read(&path)?;
    recording.check_complete()?;
    assert_eq!(recording.packets.len(), 5);
    assert!(recording.packets.iter().all(|packet| packet.data.len() == 20));
    assert!(
        recording.comment.contains("udp dst port 9"),
        "{}",
        recording.comment
    );
    Ok(())
}

#[test]
fn limits_end_captures() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    for (limit, reason) in [
        ("duration:0.3", "the limit of 300ms"),
        ("packets:2", "the limit of 2 packets"),
        ("filesize:1", "the limit of 1000 bytes"),
    ] {
        let (path, file) = file_in(&folder, limit);
        let capture = Capture::start(&server, &[namespace.name(), "-a", limit, "-w", &file])?;
        send(&namespace, 0..20)?;
        let (status, told) = capture.end()?;
        assert_eq!(status, 0, "{told}");
        assert!(told.contains(reason), "{told}");
        read(&path)?.check_complete()?;
    }
    assert!(fs::metadata(folder.file("filesize:1"))?.len() <= 1000);
    Ok(())
}

#[test]
fn interrupts_end_after_the_final_statistics() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    for (signal, expected) in [
        (Signal::SIGINT, 130),
        (Signal::SIGTERM, 143),
        (Signal::SIGHUP, 129),
    ] {
        let (path, file) = file_in(&folder, signal.as_str());
        let capture = Capture::start(&server, &[namespace.name(), "-w", &file])?;
        send(&namespace, 0..3)?;
        capture.signal(signal)?;
        let (status, told) = capture.end()?;
        assert_eq!(status, expected, "{told}");
        let recording = read(&path)?;
        recording.check_complete()?;
        assert_eq!(recording.packets.len(), 3);
    }
    Ok(())
}

#[test]
fn a_second_interrupt_ends_at_once() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let capture = Capture::start(&server, &[namespace.name(), "-w", "/dev/null"])?;
    // It never answers what the first one asks for.
    server.stop()?;
    capture.signal(Signal::SIGINT)?;
    std::thread::sleep(Duration::from_millis(200));
    capture.signal(Signal::SIGINT)?;
    let (status, _) = capture.end()?;
    assert_eq!(status, 130);
    Ok(())
}

/// As timeout(1) ends a program: by a signal to it, and one to its group.
#[test]
fn a_signal_that_comes_twice_at_once_is_one() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    for round in 0..10 {
        let (path, file) = file_in(&folder, &format!("{round}.pcapng"));
        let capture = Capture::start(&server, &[namespace.name(), "-w", &file])?;
        capture.signal(Signal::SIGTERM)?;
        std::thread::sleep(Duration::from_millis(round));
        capture.signal(Signal::SIGTERM)?;
        let (status, told) = capture.end()?;
        assert_eq!(status, 143, "{told}");
        read(&path)?.check_complete()?;
    }
    Ok(())
}

#[test]
fn a_client_that_gets_nothing_answers_pings() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&["--client-timeout", "1"])?;
    let (path, file) = file_in(&folder, "a.pcapng");
    let capture = Capture::start(&server, &[namespace.name(), "-c", "1", "-w", &file])?;
    // Whoever answers none is given up by then.
    std::thread::sleep(Duration::from_secs(3));
    send(&namespace, 0..1)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert_eq!(read(&path)?.packets.len(), 1);
    Ok(())
}

#[test]
fn a_reader_that_goes_is_noticed_while_nothing_is_captured() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;

    let mut capture = Capture::start(&server, &[namespace.name(), "-w", "-"])?;
    let mut stream = capture.child.stdout.take().unwrap();
    stream.read_exact(&mut [0; 4])?;
    drop(stream);
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("nobody reads standard output any more"), "{told}");

    let (path, fifo) = file_in(&folder, "fifo");
    mkfifo(&path, Mode::S_IRWXU)?;
    let mut client = packetflix(&server, &["capture", namespace.name(), "-q", "-w", &fifo])?.spawn()?;
    let mut stream = File::open(&path)?;
    stream.read_exact(&mut [0; 4])?;
    drop(stream);
    let status = client.wait()?;
    assert_eq!((status.code(), status.signal()), (Some(0), None));
    wait_until(Duration::from_secs(5), || is_idle(&server))
}

#[test]
fn a_server_that_ends_or_vanishes_breaks_a_capture_off() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    for (signal, reason) in [
        (Signal::SIGTERM, "the service is shutting down (1001)"),
        (Signal::SIGKILL, "the server is gone without a word"),
    ] {
        let server = Server::start(&[])?;
        let (path, file) = file_in(&folder, signal.as_str());
        let capture = Capture::start(&server, &[namespace.name(), "-w", &file])?;
        wait_until(Duration::from_secs(5), || Ok(fs::metadata(&path)?.len() > 0))?;
        server.signal(signal)?;
        let (status, told) = capture.end()?;
        assert_eq!(status, 3, "{told}");
        assert!(told.contains(reason), "{told}");
        read(&path)?;
    }
    Ok(())
}

#[test]
fn tshark_reads_from_the_pipe() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let mut capture = Capture::start(&server, &[namespace.name(), "-c", "3", "-w", "-"])?;
    let tshark = Command::new("tshark")
        .args(["-n", "-T", "fields", "-e", "udp.dstport", "-i", "-"])
        .stdin(Stdio::from(capture.child.stdout.take().unwrap()))
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    send(&namespace, 0..3)?;
    assert_eq!(capture.end()?.0, 0);
    assert_eq!(tshark.wait_with_output()?.stdout, b"9\n9\n9\n");
    Ok(())
}

#[test]
fn packets_are_not_written_to_a_terminal() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let client = program("packetflix")?;
    let line = format!(
        "{} capture {} --server http://127.0.0.1:{} -w -",
        client.display(),
        namespace.name(),
        server.port()
    );
    // It gives its command a terminal.
    let output = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::null())
        .output()?;
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stdout)?;
    assert!(told.contains("packets are no text"), "{told}");
    Ok(())
}

/// A program that gets the packets may write to the same terminal.
#[test]
fn how_it_goes_is_told_where_no_other_program_writes() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let client = program("packetflix")?;
    let (_, file) = file_in(&folder, "a.pcapng");
    for (output, is_told) in [(&*format!("-w {file}"), true), ("| cat > /dev/null", false)] {
        let line = format!(
            "{} capture {} --server http://127.0.0.1:{} -a duration:3 {output}",
            client.display(),
            namespace.name(),
            server.port()
        );
        let said = Command::new("script")
            .args(["--quiet", "--return", "--command", &line, "/dev/null"])
            .stdin(Stdio::null())
            .output()?;
        let told = String::from_utf8(said.stdout)?;
        assert_eq!(told.contains(" packets/s, "), is_told, "{told}");
        assert!(told.contains("0 dropped"), "{told}");
    }
    Ok(())
}

#[test]
fn a_terminal_that_is_closed_ends_a_capture_after_the_final_statistics() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (path, file) = file_in(&folder, "a.pcapng");
    let client = packetflix(&server, &["capture", namespace.name(), "-w", &file])?;
    let words = std::iter::once(client.get_program()).chain(client.get_args());
    let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    // It gives its command a terminal, which is gone when it is killed.
    let mut terminal = Command::new("script");
    terminal
        .args(["--quiet", "--command", &words.join(" "), "/dev/null"])
        .envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    let mut terminal = terminal.spawn()?;
    wait_until(
        Duration::from_secs(10),
        || Ok(path.exists() && !is_idle(&server)?),
    )?;
    // The line that tells how it goes is written to nobody, too.
    send(&namespace, 0..3)?;
    terminal.kill()?;
    terminal.wait()?;
    wait_until(Duration::from_secs(10), || is_idle(&server))?;
    wait_until(Duration::from_secs(5), || {
        Ok(read(&path).is_ok_and(|recording| recording.check_complete().is_ok()))
    })?;
    assert_eq!(read(&path)?.packets.len(), 3);
    Ok(())
}

#[test]
fn a_full_disk_leaves_whole_blocks() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let mounted = Mounted::new(&folder, "64k")?;
    let path = folder.file("small/a.pcapng");
    let capture = Capture::start(&server, &[namespace.name(), "-w", &path.display().to_string()])?;
    send(&namespace, 0..2000)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 3, "{told}");
    assert!(
        told.contains("a.pcapng could not be written to its end: No space left"),
        "{told}"
    );
    let packets = read(&path)?.packets.len();
    assert!(packets > 100);
    assert!(
        told.contains(&format!(" {packets} delivered, ")),
        "{packets}: {told}"
    );
    drop(mounted);
    wait_until(Duration::from_secs(5), || is_idle(&server))
}

#[test]
fn a_file_that_may_not_be_larger_has_whole_blocks() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (path, file) = file_in(&folder, "a.pcapng");
    let client = packetflix(&server, &["capture", namespace.name(), "-w", &file])?;
    let mut bounded = Command::new("prlimit");
    bounded
        .arg("--fsize=16384")
        .arg(client.get_program())
        .args(client.get_args());
    bounded.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let capture = Capture::start_by(&mut bounded)?;
    send(&namespace, 0..1000)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 3, "{told}");
    let packets = read(&path)?.packets.len();
    assert!(
        packets > 10 && told.contains(&format!(" {packets} delivered, ")),
        "{packets}: {told}"
    );
    Ok(())
}

#[test]
fn a_pipe_that_nobody_reads_yet_is_given_up() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (path, pipe) = file_in(&folder, "pipe");
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    let mut client = packetflix(&server, &["capture", namespace.name(), "-w", &pipe])?.spawn()?;
    wait_until(Duration::from_secs(5), || Ok(!is_idle(&server)?))?;
    kill(Pid::from_raw(i32::try_from(client.id())?), Signal::SIGINT)?;
    let mut status = None;
    wait_until(Duration::from_secs(5), || {
        status = client.try_wait()?;
        Ok(status.is_some())
    })?;
    assert_eq!(status.and_then(|status| status.code()), Some(130));
    wait_until(Duration::from_secs(5), || is_idle(&server))
}

#[test]
fn names_are_not_obeyed_by_terminals() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let refused = output(&server, &["capture", "a\x1b[31mb\u{202e}c", "-w", "-"])?;
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8(refused.stderr)?;
    assert!(told.contains(r"a\u{1b}[31mb\u{202e}c"), "{told:?}");
    Ok(())
}

#[test]
fn a_connection_that_breaks_is_made_again() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    let (path, file) = file_in(&folder, "a.pcapng");
    let address = format!("127.0.0.1:{}", server.port());
    let capture = Capture::start(
        &server,
        &[namespace.name(), "-w", &file, "-c", "5", "--reconnect"],
    )?;
    send(&namespace, 0..3)?;
    wait_until(Duration::from_secs(5), || {
        Ok(read(&path).is_ok_and(|recording| recording.packets.len() == 3))
    })?;
    // It says nothing for a while before it is gone.
    server.stop()?;
    let heard = output_of(Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"]))?;
    std::thread::sleep(Duration::from_secs(2));
    server.signal(Signal::SIGKILL)?;
    drop(server);
    let server = Server::start(&["--listen", &address])?;
    wait_until(Duration::from_secs(10), || Ok(!is_idle(&server)?))?;
    send(&namespace, 3..9)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(
        told.contains("the server is gone without a word; connecting again"),
        "{told}"
    );
    assert!(
        told.contains("5 packets captured, 5 delivered, 0 dropped, and how many more were lost is not known"),
        "{told}"
    );

    assert!(
        told.contains("the limit is reached, over all connections"),
        "{told}"
    );
    let comments =
        output_of(Command::new("tshark").args(["-r", &file, "-T", "fields", "-e", "frame.number"]))?;
    assert_eq!(comments.lines().count(), 5);
    let sections = output_of(Command::new("capinfos").arg(&file))?;
    let stream = fs::read(&path)?;
    let text = String::from_utf8_lossy(&stream);
    let said =
        " are missing, and those before that were still on their way: the server is gone without a word";
    assert!(text.contains(said), "{sections}");
    let from = text
        .split_once("packets from ")
        .map(|(_, rest)| &rest[..heard.trim().len()]);
    assert!(from.is_some_and(|from| from <= heard.trim()), "{from:?}, {heard}");
    // Both sections have their final statistics, of which those of the first cannot tell how many were lost.
    let begins = stream
        .windows(4)
        .rposition(|bytes| bytes == [0x0a, 0x0d, 0x0d, 0x0a])
        .unwrap();
    for (section, is_told) in [(&stream[..begins], false), (&stream[begins..], true)] {
        let recording = Recording::parse(section)?;
        recording.check_complete()?;
        assert!(recording.statistics.iter().all(|one| one.is_told == is_told));
    }
    Ok(())
}

#[test]
fn a_server_that_is_killed_again_and_again_is_met_again() -> anyhow::Result<()> {
    const TIMES: u32 = 4;

    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let mut server = Server::start(&[])?;
    let address = format!("127.0.0.1:{}", server.port());
    let (_, ring) = file_in(&folder, "ring.pcapng");
    let capture = Capture::start(
        &server,
        &[
            namespace.name(),
            "-f",
            "udp dst port 9",
            "-w",
            &ring,
            "-b",
            "packets:4",
            "--reconnect",
        ],
    )?;
    let written = || -> anyhow::Result<Vec<u32>> {
        let entries: Result<Vec<_>, _> = fs::read_dir(folder.path())?.collect();
        let mut files: Vec<_> = entries?.iter().map(fs::DirEntry::path).collect();
        files.sort();
        let mut numbers = Vec::new();
        for file in files {
            let text = file.display().to_string();
            // Each opens by itself, whatever it has of which section.
            let fields = ["-r", &text, "-T", "fields", "-e", "udp.payload"];
            for line in output_of(Command::new("tshark").args(fields))?.lines() {
                numbers.push(u32::from_str_radix(line, 16)?);
            }
        }
        Ok(numbers)
    };
    for time in 0..TIMES {
        send(&namespace, 3 * time..3 * time + 3)?;
        wait_until(Duration::from_secs(20), || {
            // It may be read in the midst of a block.
            Ok(written().is_ok_and(|numbers| numbers.len() == 3 * (time as usize + 1)))
        })?;
        server.signal(Signal::SIGKILL)?;
        server.wait()?;
        server = Server::start(&["--listen", &address])?;
        wait_until(Duration::from_secs(20), || Ok(!is_idle(&server)?))?;
    }
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    assert!(
        told.contains("12 packets captured, 12 delivered, 0 dropped"),
        "{told}"
    );
    assert_eq!(told.matches("connected again").count(), TIMES as usize, "{told}");
    assert_eq!(written()?, (0..3 * TIMES).collect::<Vec<_>>());
    Ok(())
}

#[test]
fn a_server_that_does_not_answer_again_is_given_up() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let mut server = Server::start(&[])?;
    let capture = Capture::start(&server, &[namespace.name(), "-w", "/dev/null", "--reconnect"])?;
    let address = ("127.0.0.1", server.port());
    server.signal(Signal::SIGKILL)?;
    server.wait()?;
    // Whoever has its port now says nothing.
    let silent = std::net::TcpListener::bind(address)?;
    let (_connection, _) = silent.accept()?;
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    assert!(told.contains("stopped without a connection"), "{told}");
    Ok(())
}

#[test]
fn wireshark_is_started_on_it() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    // In its place: it takes what it is given until it has had enough.
    let wireshark = folder.file("wireshark");
    let stream = folder.file("stream");
    let script = format!(
        "#!/bin/sh\n[ \"$*\" = '-k -i -' ] && exec head -c 200 > {}\n",
        stream.display()
    );
    fs::write(&wireshark, script)?;
    fs::set_permissions(&wireshark, fs::Permissions::from_mode(0o755))?;
    let mut command = packetflix(&server, &["capture", namespace.name(), "--wireshark"])?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let capture = Capture::start_by(command.env("PATH", path))?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("nobody reads Wireshark any more"), "{told}");
    assert!(fs::read(&stream)?.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));

    let mut command = packetflix(&server, &["capture", namespace.name(), "--wireshark"])?;
    let output = command.env("PATH", folder.file("nowhere")).output()?;
    let told = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2));
    assert!(told.contains("Wireshark is not found"), "{told}");
    wait_until(Duration::from_secs(5), || is_idle(&server))
}
