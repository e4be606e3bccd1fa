//! Packets as lines of text.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use packetflix_tests::{
    namespace::Namespace,
    server::{Server, program, wait_until},
};

use crate::{Capture, is_idle, send};

#[test]
fn packets_are_lines_as_tcpdump_writes_them() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let arguments = [namespace.name(), "-c", "2", "-P", "-x", "-f", "udp dst port 9"];
    let mut capture = Capture::start(&server, &arguments)?;
    send(&namespace, 0..2)?;
    let mut lines = String::new();
    let mut out = capture.child.stdout.take().unwrap();
    out.read_to_string(&mut lines)?;
    assert_eq!(capture.end()?.0, 0);
    let lines: Vec<&str> = lines.lines().collect();
    let words: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(words[0].len(), "12:34:56.123456".len(), "{lines:?}");
    assert_eq!(words[1], "lo");
    assert_eq!(&words[3..6], ["IP", words[4], ">"], "{lines:?}");
    assert_eq!(&words[6..], ["127.0.0.1.9:", "UDP,", "length", "4"], "{lines:?}");
    assert!(words[4].starts_with("127.0.0.1."), "{lines:?}");
    assert!(lines[1].starts_with("\t0x0000:  0000 0000 0000 "), "{lines:?}");
    // Two packets of 46 bytes, each with three lines of bytes.
    assert_eq!(lines.len(), 8, "{lines:?}");
    Ok(())
}

#[test]
fn a_terminal_gets_lines_without_being_asked() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let line = format!(
        "{} capture {} --server http://127.0.0.1:{} -c 1 --quiet",
        program("packetflix")?.display(),
        namespace.name(),
        server.port()
    );
    // It gives its command a terminal.
    let terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    wait_until(Duration::from_secs(10), || Ok(!is_idle(&server)?))?;
    send(&namespace, 7..8)?;
    let output = terminal.wait_with_output()?;
    let told = String::from_utf8(output.stdout)?;
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(
        told.contains(" lo ") && told.contains("127.0.0.1.9: UDP, length 4"),
        "{told}"
    );
    Ok(())
}
