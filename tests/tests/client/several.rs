//! Several targets in one stream, whose interfaces come and go.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use packetflix_tests::{
    folder::Folder,
    namespace::{Namespace, output_of},
    recording::Packet,
    server::{Server, program, wait_until},
};
use tokio_tungstenite::tungstenite::{
    Message, accept_hdr,
    handshake::server::{ErrorResponse, Request, Response},
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{Capture, printed, read, send};

/// A server of one capture, in the place of ours: it plays what the test wants, and gives what it was asked.
struct StandIn {
    port: u16,
    served: JoinHandle<anyhow::Result<String>>,
}

impl StandIn {
    /// Plays messages of a stream, and ends it.
    #[expect(clippy::result_large_err, reason = "the library has the callback return that")]
    fn of(messages: Vec<Vec<u8>>) -> anyhow::Result<Self> {
        Self::that(|stream| {
            let (sender, asked) = mpsc::channel();
            let note = move |request: &Request, response: Response| -> Result<Response, ErrorResponse> {
                // It is waited for below.
                let _ = sender.send(request.uri().to_string());
                Ok(response)
            };
            let mut socket = accept_hdr(stream, note)?;
            for message in messages {
                socket.send(Message::binary(message))?;
            }
            socket.close(Some(CloseFrame {
                code: CloseCode::Normal,
                reason: "the targets are gone".into(),
            }))?;
            while socket.read().is_ok() {}
            Ok(asked.recv()?)
        })
    }

    /// Refuses whatever it is asked.
    fn refusing(body: &'static str) -> anyhow::Result<Self> {
        Self::that(move |mut stream| {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                head.extend(byte);
            }
            write!(
                stream,
                "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            )?;
            Ok(String::from_utf8(head)?)
        })
    }

    fn that(
        serve: impl FnOnce(TcpStream) -> anyhow::Result<String> + Send + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let served = thread::spawn(move || serve(listener.accept()?.0));
        Ok(Self { port, served })
    }

    /// Runs a capture of it to its end.
    fn capture(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let server = format!("http://127.0.0.1:{}", self.port);
        let mut command = Command::new(program("packetflix")?);
        command.args([&["capture", "--server", &server], arguments].concat());
        Ok(command.output()?)
    }

    fn asked(self) -> anyhow::Result<String> {
        self.served.join().ok().context("it has panicked")?
    }
}

/// The files that were written, in their order.
fn files(folder: &Folder) -> anyhow::Result<Vec<PathBuf>> {
    let entries: Result<Vec<_>, _> = fs::read_dir(folder.path())?.collect();
    let mut files: Vec<PathBuf> = entries?.iter().map(fs::DirEntry::path).collect();
    files.sort();
    Ok(files)
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let len = (12 + body.len() as u32).to_le_bytes();
    [&kind.to_le_bytes()[..], &len, body, &len].concat()
}

fn section() -> Vec<u8> {
    let mut body = 0x1a2b_3c4du32.to_le_bytes().to_vec();
    body.extend([1, 0, 0, 0]);
    body.extend([0xff; 8]);
    body.extend(option(1, b"---\n# capture target information"));
    body.extend([0; 4]);
    block(0x0a0d_0d0a, &body)
}

fn option(code: u16, value: &[u8]) -> Vec<u8> {
    let mut option = [code.to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
    option.extend(value);
    option.resize(option.len().next_multiple_of(4), 0);
    option
}

/// An interface of Ethernet, of this name.
fn interface(name: &str) -> Vec<u8> {
    let body = [
        &[1, 0, 0, 0, 0, 0, 4, 0][..],
        &option(2, name.as_bytes()),
        &[0; 4],
    ];
    block(1, &body.concat())
}

/// A packet of an interface, which is its number.
fn packet(interface: u32, number: u32) -> Vec<u8> {
    let words = [interface, 0x0006_0000, number, 4, 4, number.to_be()];
    block(6, &words.map(u32::to_le_bytes).concat())
}

/// The final statistics of an interface.
fn end(interface: u32, delivered: u64) -> Vec<u8> {
    let mut body = [interface, 0, 0].map(u32::to_le_bytes).concat();
    // isb_ifdrop, isb_filteraccept, isb_usrdeliv.
    for (code, count) in [(5, 0), (6, delivered), (8, delivered)] {
        body.extend(option(code, &u64::to_le_bytes(count)));
    }
    body.extend([0; 4]);
    block(5, &body)
}

#[test]
fn files_that_follow_each_other_have_the_interfaces_that_come_and_go() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let web = |numbers: std::ops::Range<u32>, interface| -> Vec<u8> {
        numbers.flat_map(|number| packet(interface, number)).collect()
    };
    // It stops, and starts again: in the same stream, as an interface more.
    let server = StandIn::of(vec![
        [section(), interface("web/eth0"), interface("db/eth0")].concat(),
        [web(0..5, 0), web(5..9, 1)].concat(),
        [web(9..11, 0), end(0, 7), web(11..13, 1)].concat(),
        [interface("web/eth0"), web(13..16, 2), web(16..21, 1)].concat(),
        [web(21..23, 2), end(1, 11), web(23..27, 2)].concat(),
        [end(2, 9)].concat(),
    ])?;
    let ring = folder.file("ring.pcapng").display().to_string();
    let output = server.capture(&["web", "db", "-w", &ring, "-b", "packets:4"])?;
    let told = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{told}");
    assert!(
        server.asked()?.contains("&target=web&target=db&nif=all"),
        "{told}"
    );
    for line in [
        "capturing web, db of http://",
        "27 packets captured, 27 delivered, 0 dropped",
        "\npacketflix: web/eth0: 16 packets captured, 16 delivered, 0 dropped\n",
        "\npacketflix: db/eth0: 11 packets captured, 11 delivered, 0 dropped\n",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }

    let files = files(&folder)?;
    assert_eq!(files.len(), 7);
    let (mut next, mut names) = (0u32, BTreeMap::new());
    for file in &files {
        let recording = read(file)?;
        recording.check_complete()?;
        for packet in &recording.packets {
            assert_eq!(packet.data, next.to_be_bytes());
            next += 1;
            let name = &recording.interfaces[packet.interface].name;
            *names.entry(name.clone()).or_insert(0) += 1;
        }
    }
    let expected = [("db/eth0", 11), ("web/eth0", 16)].map(|(name, count)| (name.to_owned(), count));
    assert_eq!((next, names), (27, BTreeMap::from(expected)));
    // Those that have gone are no longer described.
    assert_eq!(read(&files[6])?.interfaces.len(), 1);
    Ok(())
}

/// Waits until so many captures run.
fn wait_for_captures(server: &Server, wanted: usize) -> anyhow::Result<()> {
    wait_until(Duration::from_secs(60), || {
        let (_, list) = server.get("/captures")?;
        Ok(list["captures"].as_array().context("no captures")?.len() == wanted)
    })
}

#[test]
fn targets_are_followed_into_one_file_after_the_other() -> anyhow::Result<()> {
    const ROUNDS: u32 = 3;
    const PACKETS: u32 = 8;

    let folder = Folder::new()?;
    let server = Server::start(&[])?;
    let name = format!("pf-several-{}", std::process::id());
    let ring = folder.file("ring.pcapng").display().to_string();
    let pattern = format!("/run/netns/{name}*");
    let arguments = ["-f", "udp dst port 9", "-w", &ring, "-b", "packets:5"];
    let capture = Capture::start(&server, &[&[&pattern[..], "--wait"][..], &arguments].concat())?;
    let count = |wanted: usize| wait_for_captures(&server, wanted);
    let other = Namespace::named(&format!("{name}-db"))?;
    for round in 0..ROUNDS {
        // It comes again under its name, in another namespace.
        let web = Namespace::named(&format!("{name}-web"))?;
        count(2)?;
        send(&web, 0..PACKETS)?;
        send(&other, 0..PACKETS)?;
        wait_until(Duration::from_secs(10), || {
            Ok(all_packets(&folder)?.len() == (2 * PACKETS * (round + 1)) as usize)
        })?;
        drop(web);
        count(1)?;
    }
    let list = printed(&server, &["captures"])?;
    let row = list
        .lines()
        .find(|row| row.contains(&name))
        .context("no capture")?;
    let stream = row.split_whitespace().nth(1).context("no stream")?;
    printed(&server, &["captures", "stop", stream])?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    let sum = ROUNDS * PACKETS;
    for who in ["web", "db"] {
        let line = format!("{name}-{who}/lo: {sum} packets captured, {sum} delivered, 0 dropped\n");
        assert!(told.contains(&line), "{line}: {told}");
    }
    let names = all_packets(&folder)?;
    for who in ["web", "db"] {
        let end = format!("{name}-{who}/lo");
        assert_eq!(
            names.iter().filter(|name| name.ends_with(&end)).count(),
            sum as usize
        );
    }
    for file in files(&folder)? {
        read(&file)?.check_complete()?;
    }
    Ok(())
}

#[test]
fn tshark_reads_targets_live_as_they_come_and_go() -> anyhow::Result<()> {
    const ROUNDS: usize = 3;
    const PATIENCE: Duration = Duration::from_secs(30);

    let server = Server::start(&[])?;
    let name = format!("pf-live-{}", std::process::id());
    let first = Namespace::named(&format!("{name}-db"))?;
    let pattern = format!("/run/netns/{name}*");
    let mut capture = Capture::start(&server, &[&pattern, "-f", "udp dst port 9", "-w", "-"])?;
    let stream = capture.child.stdout.take().context("no stream")?;
    let mut tshark = Command::new("tshark")
        .args(["-l", "-n", "-i", "-", "-T", "fields"])
        .args([
            "-e",
            "frame.interface_name",
            "-e",
            "frame.time_epoch",
            "-e",
            "data",
        ])
        .stdin(stream)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let lines = BufReader::new(tshark.stdout.take().context("no lines")?).lines();
    let (sender, shown) = mpsc::channel();
    let lines = thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let fields: Vec<String> = line.split('\t').map(str::to_owned).collect();
            // Those that are left are not waited for.
            let _ = sender.send(fields);
        }
    });
    let mut times = Vec::new();
    let mut is_shown = |target: &str, number: u32| -> anyhow::Result<()> {
        let fields = shown.recv_timeout(PATIENCE)?;
        let [interface, time, data] = &fields[..] else {
            bail!("{fields:?}");
        };
        ensure!(
            interface.ends_with(&format!("{name}-{target}/lo")) && *data == format!("{number:08x}"),
            "{fields:?}, and not {target} {number}"
        );
        times.push(time.clone());
        Ok(())
    };
    for round in 0..ROUNDS {
        send(&first, 0..1)?;
        is_shown("db", 0)?;
        // It comes again under its name, in another namespace.
        let web = Namespace::named(&format!("{name}-web"))?;
        wait_for_captures(&server, 2)?;
        send(&web, 1..2)?;
        is_shown("web", 1).with_context(|| format!("round {round}"))?;
        drop(web);
        wait_for_captures(&server, 1)?;
    }
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    let output = tshark.wait_with_output()?;
    lines.join().ok().context("it has panicked")?;
    ensure!(output.status.success(), "{output:?}");
    assert!(times.is_sorted() && times.len() == 2 * ROUNDS, "{times:?}");
    for target in ["web", "db"] {
        let line = format!("{name}-{target}/lo: {ROUNDS} packets captured, {ROUNDS} delivered, 0 dropped\n");
        assert!(told.contains(&line), "{line}: {told}");
    }
    Ok(())
}

/// What Wireshark takes for the same packet sent again is the one packet at both ends of the link.
#[test]
fn wireshark_judges_a_capture_of_both_ends_by_one_of_them() -> anyhow::Result<()> {
    let ((here, there), folder) = (Namespace::pair()?, Folder::new()?);
    let server = Server::start(&[])?;
    let [both, one] = ["both.pcapng", "one.pcapng"].map(|name| folder.file(name).display().to_string());
    let capture = Capture::start(&server, &[here.name(), there.name(), "-f", "tcp", "-w", &both])?;
    wait_for_captures(&server, 2)?;
    let listener = there.inside(|| TcpListener::bind("10.9.1.2:7000"))??;
    let sending = thread::spawn(move || -> anyhow::Result<Vec<u8>> {
        let mut received = Vec::new();
        listener.accept()?.0.read_to_end(&mut received)?;
        Ok(received)
    });
    let mut stream = here.inside(|| TcpStream::connect("10.9.1.2:7000"))??;
    stream.write_all(&[7; 100])?;
    drop(stream);
    let received = sending.join().ok().context("it has panicked")??;
    assert_eq!(received.len(), 100);
    capture.signal(Signal::SIGINT)?;
    assert_eq!(capture.end()?.0, 130);
    let flagged = |file: &str| -> anyhow::Result<usize> {
        let printed = output_of(Command::new("tshark").args(["-r", file, "-Y", "tcp.analysis.flags"]))?;
        Ok(printed.lines().count())
    };
    ensure!(flagged(&both)? > 0);
    let here = format!("frame.interface_name == \"{}/va\"", here.path().display());
    output_of(Command::new("tshark").args(["-r", &both, "-Y", &here, "-w", &one]))?;
    ensure!(read(Path::new(&one))?.packets.len() >= 7);
    assert_eq!(flagged(&one)?, 0);
    Ok(())
}

/// The interface of each packet, in the order of the files.
fn all_packets(folder: &Folder) -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in files(folder)? {
        // The last one may just have been begun.
        let Ok(recording) = read(&file) else { continue };
        let of = |packet: &Packet| recording.interfaces[packet.interface].name.clone();
        names.extend(recording.packets.iter().map(of));
    }
    Ok(names)
}

#[test]
fn lines_name_the_target_of_each_packet() -> anyhow::Result<()> {
    let server = StandIn::of(vec![
        [section(), interface("web/eth0"), interface("db/eth0")].concat(),
        [packet(1, 0), packet(0, 1), end(0, 1), end(1, 1)].concat(),
    ])?;
    let output = server.capture(&["label:app=web", "--no-follow", "--wait", "-P"])?;
    ensure!(output.status.success(), "{output:?}");
    assert!(
        server
            .asked()?
            .contains("&target=label%3Aapp%3Dweb&follow=0&wait=1&")
    );
    let printed = String::from_utf8(output.stdout)?;
    let names: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .collect();
    assert_eq!(names, ["db/eth0", "web/eth0"]);
    Ok(())
}

#[test]
fn wireshark_asks_for_several_targets() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let fifo = folder.file("fifo");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let pipe = fifo.display().to_string();
    let extcap = |server: &str, arguments: &[&str]| -> anyhow::Result<Output> {
        let reader = thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo)
        });
        let mut command = Command::new(program("packetflix")?);
        command
            .args([
                "extcap",
                "--capture",
                "--extcap-interface",
                "packetflix",
                "--fifo",
                &pipe,
            ])
            .args(["--server", server])
            .args(arguments);
        let output = command.output()?;
        reader.join().ok().context("it has panicked")??;
        Ok(output)
    };
    for (arguments, asked) in [
        (
            &["--target", "-", "--more-targets", "web, !db", "--wait"][..],
            "&target=web&target=%21db&wait=1&",
        ),
        (
            &["--target", "web", "--more-targets", "compose:shop", "--follow"],
            "&target=web&target=compose%3Ashop&follow=1&",
        ),
        (&["--target", "shop-*"], "&target=shop-*&nif="),
    ] {
        let server = StandIn::of(vec![section()])?;
        let output = extcap(&format!("http://127.0.0.1:{}", server.port), arguments)?;
        assert!(output.status.success(), "{output:?}");
        let path = server.asked()?;
        assert!(path.contains(asked), "{path}");
    }
    let server = StandIn::of(vec![section()])?;
    let url = format!("ws://127.0.0.1:{}", server.port);
    let address = format!("packetflix:{url}/capture?target=web&target=!db&follow=0");
    let mixed = extcap(
        "http://127.0.0.1:1",
        &["--target", &address, "--more-targets", "x"],
    )?;
    assert_eq!(mixed.status.code(), Some(2), "{mixed:?}");
    let output = extcap("http://127.0.0.1:1", &["--target", &address])?;
    assert!(output.status.success(), "{output:?}");
    assert!(server.asked()?.contains("&target=web&target=%21db&follow=0&"));
    Ok(())
}

#[test]
fn servers_that_know_one_target_only_are_told_of() -> anyhow::Result<()> {
    for body in [
        r#"{"error": "there is no parameter target", "code": "parameter_unknown"}"#,
        r#"{"error": "no target is given", "code": "target_missing"}"#,
    ] {
        let refused = StandIn::refusing(body)?.capture(&["web", "db", "-w", "-"])?;
        let told = String::from_utf8(refused.stderr)?;
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("captures one target at a time"), "{told}");
        // Of one name, it is the server that knows what is wrong.
        let server = StandIn::refusing(body)?;
        let refused = server.capture(&["web", "-w", "-"])?;
        let told = String::from_utf8(refused.stderr)?;
        assert!(!told.contains("one target at a time"), "{told}");
        assert!(
            server
                .asked()?
                .contains("&container=%7B%22name%22%3A%22web%22%7D&")
        );
    }
    Ok(())
}
