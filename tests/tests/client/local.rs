//! Captures without a server.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::{signal::Signal, stat::Mode},
    unistd::mkfifo,
};
use packetflix_tests::{
    bpf_objects::Objects,
    namespace::Namespace,
    server::{Server, program, wait_until},
    traces::{traces_before, wait_for_traces},
};

use crate::{Capture, apart::Apart, is_idle, read, send};

const NOBODY: u32 = 65534;

/// What the program says in a place where no server is.
fn output(apart: &Apart, arguments: &[&str]) -> anyhow::Result<Output> {
    Ok(apart.command(&program("packetflix")?, arguments).output()?)
}

/// The same by somebody who is not root.
fn by_nobody(apart: &Apart, program: &Path, arguments: &[&str]) -> Command {
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let program = program.display().to_string();
    apart.command("setpriv".as_ref(), &[&user[..], &[&program], arguments].concat())
}

/// A file in the folder of a user.
fn file_of(apart: &Apart, name: &str) -> (PathBuf, String) {
    crate::file_in(&apart.home, name)
}

/// Starts a capture where no server is, and waits until packets are captured.
fn start(apart: &Apart, arguments: &[&str]) -> anyhow::Result<Capture> {
    let arguments = [&["capture"], arguments].concat();
    let mut command = apart.command(&program("packetflix")?, &arguments);
    Capture::start_by(command.stdout(Stdio::piped()))
}

/// Whether a process listens anywhere.
fn listens(pid: u32) -> anyhow::Result<bool> {
    const LISTENING: &str = "0A";
    const ACCEPTS: u32 = 0x10000;

    let mut listening = BTreeSet::new();
    let table = |name: &str| fs::read_to_string(format!("/proc/{pid}/net/{name}"));
    for name in ["tcp", "tcp6"] {
        for line in table(name)?.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words[3] == LISTENING {
                listening.insert(format!("socket:[{}]", words[9]));
            }
        }
    }
    for line in table("unix")?.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if u32::from_str_radix(words[3], 16)? & ACCEPTS != 0 {
            listening.insert(format!("socket:[{}]", words[6]));
        }
    }
    for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(target) = fs::read_link(descriptor?.path()) else {
            continue;
        };
        if listening.contains(&*target.to_string_lossy()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn packets_are_captured_without_a_server_and_without_a_port() -> anyhow::Result<()> {
    const PACKETS: u32 = 2000;

    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let (path, file) = file_of(&apart, "a.pcapng");
    let capture = start(&apart, &[namespace.name(), "-f", "udp dst port 9", "-w", &file])?;
    assert!(
        capture
            .first
            .contains(" in this process, without a server, into "),
        "{}",
        capture.first
    );
    assert!(!listens(capture.child.id())?);
    send(&namespace, 0..PACKETS)?;
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    assert!(
        told.contains("2000 packets captured, 2000 delivered, 0 dropped"),
        "{told}"
    );
    let recording = read(&path)?;
    recording.check_complete()?;
    let numbers = recording.packets.iter();
    let numbers: Vec<u32> = numbers
        .map(|packet| u32::from_be_bytes(*packet.data.last_chunk().unwrap()))
        .collect();
    assert!(numbers == (0..PACKETS).collect::<Vec<_>>(), "{}", numbers.len());
    // As its user makes files, and not as the server does.
    assert_eq!(path.metadata()?.permissions().mode() & 0o777, 0o644);
    Ok(())
}

#[test]
fn several_targets_are_captured_without_a_server() -> anyhow::Result<()> {
    let (apart, one, other) = (Apart::new()?, Namespace::new()?, Namespace::new()?);
    let (path, file) = file_of(&apart, "a.pcapng");
    let capture = start(
        &apart,
        &[
            one.name(),
            other.name(),
            "--local",
            "-f",
            "udp dst port 9",
            "-c",
            "5",
            "-w",
            &file,
        ],
    )?;
    send(&one, 0..2)?;
    send(&other, 2..6)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    for (namespace, count) in [(&one, 2), (&other, 3)] {
        let line = format!(
            "{}/lo: {count} packets captured, {count} delivered",
            namespace.name()
        );
        assert!(told.contains(&line), "{told}");
    }
    let recording = read(&path)?;
    recording.check_complete()?;
    recording.check_order()?;
    assert_eq!((recording.interfaces.len(), recording.packets.len()), (2, 5));
    Ok(())
}

#[test]
fn whatever_ends_it_nothing_is_left() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let before = traces_before(None, &[&namespace])?;
    for (signal, status) in [
        (Signal::SIGKILL, None),
        (Signal::SIGTERM, Some(143)),
        (Signal::SIGINT, Some(130)),
        (Signal::SIGPIPE, Some(0)),
    ] {
        let target = [namespace.name(), "--local", "-f", "udp", "-w", "-"];
        let mut capture = start(&apart, &target)?;
        let held = Objects::held_by(capture.child.id())?;
        ensure!(!held.is_empty(), "nothing to be left");
        if signal == Signal::SIGPIPE {
            drop(capture.child.stdout.take());
        } else {
            capture.signal(signal)?;
        }
        let mut ended = None;
        wait_until(Duration::from_secs(15), || {
            ended = capture.child.try_wait()?;
            Ok(ended.is_some())
        })?;
        let ended = ended.context("it runs")?;
        assert_eq!(ended.code(), status, "{signal} {:?}", ended.signal());
        held.wait_until_gone()?;
        wait_for_traces(&before, None, &[&namespace])?;
    }
    Ok(())
}

#[test]
fn a_server_that_was_named_is_not_done_without() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let told = |output: Output| -> anyhow::Result<(Option<i32>, String)> {
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let sentence = "no server answers at http://127.0.0.1:5001: is it running";
    let named = ["--server", "http://127.0.0.1:5001"];
    let capture = ["capture", namespace.name(), "-w", "-"];
    let (status, by_flag) = told(output(&apart, &[&capture[..], &named].concat())?)?;
    assert_eq!(status, Some(1));
    assert!(by_flag.contains(sentence), "{by_flag}");

    let mut command = apart.command(&program("packetflix")?, &["list"]);
    command.env("PACKETFLIX_SERVER", "http://127.0.0.1:5001");
    let (status, by_variable) = told(command.output()?)?;
    assert_eq!(status, Some(1));
    assert!(by_variable.contains(sentence), "{by_variable}");
    // What is said with it goes before the variable.
    assert!(command.arg("--local").output()?.status.success());

    output(&apart, &["server", "add", "prod", "http://127.0.0.1:5001"])?;
    let (status, by_default) = told(output(&apart, &["list"])?)?;
    assert_eq!(status, Some(1));
    assert!(by_default.contains(sentence), "{by_default}");
    assert!(output(&apart, &["list", "--local"])?.status.success());

    let both = [&["list", "--local"][..], &named].concat();
    let (status, refused) = told(output(&apart, &both)?)?;
    assert_eq!(status, Some(2));
    assert!(refused.contains("--local captures without a server"), "{refused}");
    Ok(())
}

#[test]
fn a_server_of_the_host_goes_first() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let list = output(&apart, &["list"])?;
    assert!(list.status.success(), "{list:?}");
    assert!(String::from_utf8(list.stdout)?.contains(namespace.name()));
    let told = String::from_utf8(list.stderr)?;
    assert!(told.contains("no server answers on this host"), "{told}");
    // Nobody else captures in this process.
    let captures = output(&apart, &["captures"])?;
    assert_eq!(captures.status.code(), Some(1));
    let captures = output(&apart, &["captures", "--local"])?;
    assert_eq!(String::from_utf8(captures.stdout)?.lines().count(), 1);

    let server = Server::start_by(&mut apart.command(&program("packetflix")?, &[]), &[])?;
    let list = output(&apart, &["list"])?;
    assert!(list.status.success() && list.stderr.is_empty(), "{list:?}");
    let capture = start(&apart, &[namespace.name(), "-w", "-"])?;
    assert!(
        capture.first.contains(" of unix:/run/packetflix.sock into "),
        "{}",
        capture.first
    );
    let captures = output(&apart, &["captures"])?;
    assert_eq!(String::from_utf8(captures.stdout)?.lines().count(), 2);
    drop(server);
    assert_eq!(capture.end()?.0, 3);
    Ok(())
}

#[test]
fn whoever_lacks_rights_is_told_what_to_do() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    apart.open_home()?;
    let packetflix = apart.home.file("packetflix");
    fs::copy(program("packetflix")?, &packetflix)?;
    for (arguments, begin) in [
        (
            &["capture", namespace.name(), "-w", "-"][..],
            "packetflix: no server answers at http://127.0.0.1:5001, and this process cannot capture without one: ",
        ),
        (
            &["list", "--local"],
            "packetflix: this process cannot capture without a server: ",
        ),
        (
            &["dial-stdio"],
            "packetflix: no server answers at http://127.0.0.1:5001, and ",
        ),
    ] {
        let refused = by_nobody(&apart, &packetflix, arguments).output()?;
        assert_eq!(refused.status.code(), Some(1));
        let told = String::from_utf8(refused.stderr)?;
        assert!(told.starts_with(begin) && told.lines().count() == 1, "{told}");
        assert!(
            told.ends_with(
                "it lacks CAP_SYS_ADMIN and CAP_NET_RAW: run it as root, as with sudo, or start a server\n"
            ),
            "{told}"
        );
        assert!(refused.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn rights_of_the_program_are_for_captures_alone() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    apart.open_home()?;
    let packetflix = apart.home.file("packetflix");
    fs::copy(program("packetflix")?, &packetflix)?;
    let given = Command::new("setcap")
        .arg("cap_net_raw,cap_sys_admin,cap_sys_ptrace,cap_dac_override,cap_net_admin+p")
        .arg(&packetflix)
        .status()?;
    assert!(given.success());

    let (path, file) = file_of(&apart, "a.pcapng");
    let arguments = [
        "capture",
        namespace.name(),
        "--local",
        "-c",
        "3",
        "-f",
        "udp",
        "-w",
        &file,
    ];
    let capture = Capture::start_by(by_nobody(&apart, &packetflix, &arguments).stdout(Stdio::null()))?;
    send(&namespace, 0..3)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert_eq!(read(&path)?.packets.len(), 3);
    assert_eq!(path.metadata()?.uid(), NOBODY);

    // A folder of root's, and a secret of root's.
    let folder = apart.home.file("private");
    fs::create_dir(&folder)?;
    let secret = apart
        .home
        .put_secret("secret", "0123456789abcdef0123456789abcdef\n")?;
    let [inside, secret] = [folder.join("b.pcapng"), secret].map(|path| path.display().to_string());
    for (more, status) in [(["-w", &inside], 2), (["--token-file", &secret], 2)] {
        let arguments = [&arguments[..7], &more, &["-a", "duration:1"]].concat();
        let refused = by_nobody(&apart, &packetflix, &arguments).output()?;
        assert_eq!(refused.status.code(), Some(status), "{refused:?}");
        let told = String::from_utf8(refused.stderr)?;
        assert!(told.contains("Permission denied"), "{told}");
    }
    Ok(())
}

#[test]
fn refusals_are_those_of_a_server() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    for (arguments, sentence) in [
        (&["nosuch"][..], "there is no target nosuch"),
        (&[namespace.name(), "-f", "tcp prot 80"], "tcp prot 80"),
    ] {
        let refused = output(&apart, &[&["capture", "--local", "-w", "-"], arguments].concat())?;
        assert_eq!(refused.status.code(), Some(1));
        let told = String::from_utf8(refused.stderr)?;
        assert!(told.contains(sentence), "{told}");
    }
    let mut command = apart.command(&program("packetflix")?, &["list", "--local"]);
    let refused = command.env("PACKETFLIX_RING_SIZE", "much").output()?;
    let told = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(2));
    assert!(told.contains("PACKETFLIX_RING_SIZE: "), "{told}");
    Ok(())
}

#[test]
fn filters_are_compiled_whatever_signals_were_left() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let packetflix = program("packetflix")?.display().to_string();
    let left = ["--ignore-signal=CHLD", "--block-signal=CHLD,INT", &packetflix];
    let arguments = ["capture", namespace.name(), "-f", "udp", "-w", "/dev/null"];
    let mut command = apart.command("env".as_ref(), &[&left[..], &arguments].concat());
    let capture = Capture::start_by(command.stdout(Stdio::null()))?;
    capture.signal(Signal::SIGINT)?;
    assert_eq!(capture.end()?.0, 130);
    Ok(())
}

#[test]
fn standard_input_and_output_are_joined_to_it() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let mut command = apart.command(&program("packetflix")?, &["dial-stdio"]);
    let mut dialed = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = dialed.stdin.take().context("no input")?;
    input.write_all(b"GET /targets HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    dialed
        .stdout
        .take()
        .context("no output")?
        .read_to_string(&mut answer)?;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains(namespace.name()), "{answer}");
    drop(input);
    let ended = dialed.wait_with_output()?;
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    Ok(())
}

#[test]
fn wireshark_captures_without_a_server() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let extcap = ["extcap", "--extcap-interface", "packetflix"];
    let reload = ["--extcap-config", "--extcap-reload-option", "target"];
    let list = output(&apart, &[&extcap[..], &reload].concat())?;
    assert!(list.status.success() && list.stderr.is_empty(), "{list:?}");
    assert!(String::from_utf8(list.stdout)?.contains(namespace.name()));
    let wrong = output(
        &apart,
        &[&extcap[..], &["--extcap-capture-filter", "tcp prot 80"]].concat(),
    )?;
    assert!(String::from_utf8(wrong.stdout)?.contains("prot"));

    let (fifo, place) = file_of(&apart, "fifo");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let capture = ["--capture", "--fifo", &place, "--target", namespace.name()];
    let mut command = apart.command(
        &program("packetflix")?,
        &[&extcap[..], &capture, &["--extcap-capture-filter", "udp"]].concat(),
    );
    let child = command.stderr(Stdio::piped()).spawn()?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    let mut stream = fs::File::open(&fifo)?;
    let mut bytes = vec![0; 4];
    stream.read_exact(&mut bytes)?;
    send(&namespace, 0..3)?;
    nix::sys::signal::kill(pid, Signal::SIGTERM)?;
    stream.read_to_end(&mut bytes)?;
    let ended = child.wait_with_output()?;
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let recording = packetflix_tests::recording::Recording::parse(&bytes)?;
    recording.check_complete()?;
    assert_eq!(recording.packets.len(), 3);
    Ok(())
}

#[test]
fn its_captures_are_accounted_for() -> anyhow::Result<()> {
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let (account, file) = file_of(&apart, "account");
    let arguments = ["capture", namespace.name(), "-c", "1", "-w", "/dev/null"];
    let mut command = apart.command(&program("packetflix")?, &arguments);
    command.env("PACKETFLIX_AUDIT_LOG", &file).stdout(Stdio::null());
    let capture = Capture::start_by(&mut command)?;
    send(&namespace, 0..2)?;
    assert_eq!(capture.end()?.0, 0);
    let account = fs::read_to_string(account)?;
    assert_eq!(account.lines().count(), 2, "{account}");
    assert!(account.contains("\"uid:0\""), "{account}");
    Ok(())
}

#[test]
fn servers_are_left_alone() -> anyhow::Result<()> {
    // Where one runs, --local is no client of it.
    let (apart, namespace) = (Apart::new()?, Namespace::new()?);
    let server = Server::start(&[])?;
    let capture = start(&apart, &[namespace.name(), "--local", "-w", "/dev/null"])?;
    assert!(is_idle(&server)?);
    capture.signal(Signal::SIGINT)?;
    assert_eq!(capture.end()?.0, 130);
    Ok(())
}
