//! What is asked of a server besides packets, and how refusals are told.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    certificates::Authority,
    folder::Folder,
    namespace::{Namespace, output_of},
    server::{Server, program, wait_until},
};
use serde_json::Value;

use crate::{Capture, is_idle, output, packetflix, printed};

#[test]
fn the_version_tells_what_the_program_was_made_of() -> anyhow::Result<()> {
    let told = output_of(Command::new(program("packetflix")?).arg("--version"))?;
    let lines: Vec<&str> = told.lines().collect();
    let [program, commit, object] = lines[..] else {
        panic!("{told}");
    };
    assert_eq!(program, concat!("packetflix ", env!("CARGO_PKG_VERSION")));
    assert!(commit.starts_with("commit "), "{told}");
    let (of, abi) = object.split_once(", ABI ").unwrap();
    assert_eq!(of, format!("eBPF object for {}", std::env::consts::ARCH));
    abi.parse::<u32>()?;
    Ok(())
}

/// Whoever waits is told for what.
#[test]
fn a_server_that_says_nothing_is_named_before_it_is_given_up() -> anyhow::Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", silent.local_addr()?);
    for verb in [
        &["list"][..],
        &["list", "--json"],
        &["captures"],
        &["capture", "web", "-P"],
    ] {
        let mut client = Command::new(program("packetflix")?)
            .args(verb)
            .args(["--server", &address])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut said = String::new();
        let stderr = client.stderr.take().context("no log")?;
        BufReader::new(stderr).read_line(&mut said)?;
        client.kill()?;
        client.wait()?;
        assert_eq!(
            said,
            format!("packetflix: waiting for an answer of {address}\n"),
            "{verb:?}"
        );
    }
    Ok(())
}

#[test]
fn targets_are_listed() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let list = printed(&server, &["list"])?;
    let row = list.lines().find(|row| row.contains(namespace.name())).unwrap();
    let inode = namespace.inode()?.to_string();
    assert!(list.starts_with("TARGET "), "{list}");
    for part in ["bindmount", &inode, "lo 127.0.0.1/8"] {
        assert!(row.contains(part), "{row}");
    }
    let json: Value = serde_json::from_str(&printed(&server, &["list", "--json"])?)?;
    assert_eq!(json["version"], 1);
    // Names have no pattern's characters of their own.
    let left_out = format!("!{}", namespace.name());
    let path = format!("/run/netns/{}", namespace.name());
    for (words, is_listed) in [
        (&["/run/netns/*"][..], true),
        (&["type:pod", &path], true),
        (&["/run/netns/*", &left_out], false),
        (&["host"], false),
    ] {
        let list = printed(&server, &[&["list"], words].concat())?;
        assert_eq!(list.contains(&inode), is_listed, "{words:?}: {list}");
    }
    let list = printed(&server, &["list", "nobody-is-called-so"])?;
    assert!(list.ends_with("there is none\n"), "{list}");
    let refused = output(&server, &["list", "label:"])?;
    let sentence = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && sentence.contains("is empty"),
        "{sentence}"
    );
    Ok(())
}

#[test]
fn lists_are_watched() -> anyhow::Result<()> {
    let first = Namespace::new()?;
    let server = Server::start(&[])?;
    let watch = || -> anyhow::Result<(Child, mpsc::Receiver<String>)> {
        let mut command = packetflix(&server, &["list", "--watch"])?;
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, printed) = mpsc::sync_channel(0);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                // Who has had enough reads no more.
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok((child, printed))
    };
    let wait_for = |printed: &mpsc::Receiver<String>, name: &str| -> anyhow::Result<()> {
        while !printed.recv_timeout(Duration::from_secs(20))?.starts_with(name) {}
        Ok(())
    };
    let (mut child, printed) = watch()?;
    wait_for(&printed, &first.path().display().to_string())?;
    let second = Namespace::new()?;
    wait_for(&printed, &second.path().display().to_string())?;
    kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGINT)?;
    while printed.recv_timeout(Duration::from_secs(20)).is_ok() {}
    assert_eq!(child.wait()?.code(), Some(0));

    // Who reads no more is noticed while nothing changes.
    let (mut child, printed) = watch()?;
    wait_for(&printed, "TARGET")?;
    drop(printed);
    let mut status = None;
    wait_until(Duration::from_secs(20), || {
        status = child.try_wait()?;
        Ok(status.is_some())
    })?;
    assert_eq!(status.and_then(|status| status.code()), Some(0));
    Ok(())
}

#[test]
fn captures_are_listed_and_stopped() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let capture = Capture::start(&server, &[namespace.name(), "-f", "udp", "-w", "/dev/null"])?;
    let list = printed(&server, &["captures"])?;
    let row = list.lines().nth(1).unwrap();
    assert!(row.contains(namespace.name()) && row.ends_with("udp"), "{list}");
    let id = row.split(' ').next().unwrap();
    printed(&server, &["captures", "stop", id])?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0);
    assert!(told.contains("ended by the operator"), "{told}");
    assert!(is_idle(&server)?);

    let again = output(&server, &["captures", "stop", id])?;
    assert_eq!(again.status.code(), Some(1));
    let told = String::from_utf8(again.stderr)?;
    assert!(told.contains(&format!("no capture {id} is running")), "{told}");
    Ok(())
}

#[test]
fn refusals_are_sentences_with_a_status() -> anyhow::Result<()> {
    let (server, namespace) = (Server::start(&[])?, Namespace::new()?);
    let taken = format!("https://127.0.0.1:{}", server.port());
    let [long, longer, longest] = [62_000, 65_400, 70_000].map(|len| "x".repeat(len));
    for (arguments, status, sentence) in [
        (
            &["capture", "nosuch", "-w", "-"][..],
            1,
            "there is no target nosuch",
        ),
        (
            &["capture", namespace.name(), "-w", "-", "-f", "tcp prot 80"],
            1,
            "tcp prot 80",
        ),
        (
            &["list", "--server", "http://127.0.0.1:1"],
            1,
            "no server answers at http://127.0.0.1:1: is it running, and is that its address?",
        ),
        (
            &["list", "--server", &taken],
            1,
            "does not speak TLS. Try http:// in the place of https://",
        ),
        (
            &["list", "--server", "127.0.0.1:5001"],
            2,
            "127.0.0.1:5001 is no server: write http://HOST:PORT",
        ),
        (
            &["capture", "x", "-w", "-", "-f", &long],
            2,
            "and 61440 is the most",
        ),
        (
            &["capture", "x", "-w", "-", "-f", &longer],
            2,
            "what is asked for is too long",
        ),
        (
            &["capture", "x", "-w", "-", "-f", &longest],
            2,
            "the request cannot be made",
        ),
        (&["capture"], 2, "TARGET"),
        (&["capture", "x", "-a", "time:1"], 2, "write duration:SECONDS"),
        (&["capture", "x", "-w", "/etc/passwd"], 2, "/etc/passwd exists"),
    ] {
        let output = output(&server, arguments)?;
        let told = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {told}");
        assert!(told.contains(sentence), "{arguments:?}: {told}");
        assert!(output.stdout.is_empty());
    }
    Ok(())
}

#[test]
fn tokens_come_from_files_and_variables() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let accounts = folder.put_secret(
        "accounts",
        "ann 0123456789abcdef0123456789abcdef discover admin\n",
    )?;
    let token = folder.put_secret("token", "0123456789abcdef0123456789abcdef\n")?;
    let wrong = folder.put_secret("wrong", "0123456789abcdef0123456789abcdee\n")?;
    let shared = folder.put_secret("shared", "0123456789abcdef0123456789abcdef\n")?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o640))?;
    let server = Server::start(&["--token-file", &accounts.display().to_string()])?;
    for (file, status, sentence) in [
        (Some(&token), 0, ""),
        (Some(&wrong), 1, "token"),
        (None, 1, "Show a token with --token-file"),
        (Some(&shared), 2, "others may read"),
    ] {
        let mut command = packetflix(&server, &["list"])?;
        if let Some(file) = file {
            command.arg("--token-file").arg(file);
        }
        let output = command.output()?;
        let told = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(status), "{told}");
        assert!(told.contains(sentence), "{told}");
    }
    let mut by_variable = packetflix(&server, &["captures"])?;
    by_variable.env("PACKETFLIX_TOKEN", "0123456789abcdef0123456789abcdef");
    assert!(by_variable.status()?.success());
    Ok(())
}

#[test]
fn certificates_are_checked_and_shown() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let authority = Authority::new(folder.path(), "ours")?;
    let strange = Authority::new(folder.path(), "strange")?;
    let [own, mine] =
        [("server", "/CN=server"), ("me", "/CN=me")].map(|(file, subject)| authority.issue(file, subject));
    let [own, mine] = [own?, mine?];
    let text = |path: &std::path::Path| path.display().to_string();
    let server = Server::start(&[
        "--tls-cert",
        &text(&own.certificate),
        "--tls-key",
        &text(&own.key),
        "--tls-client-ca",
        &text(authority.certificate()),
    ])?;
    let ours = text(authority.certificate());
    let url = format!("https://localhost:{}", server.port());
    let plain = format!("http://127.0.0.1:{}", server.port());
    let other_name = format!("https://127.0.0.2:{}", server.port());
    let shown = [text(&mine.certificate), text(&mine.key)];
    let identity = ["--cert", &shown[0], "--key", &shown[1]];
    for (arguments, status, sentence) in [
        (
            [&["--server", &url, "--cacert", &ours][..], &identity].concat(),
            0,
            "",
        ),
        (
            vec!["--server", &url, "--cacert", &text(strange.certificate())],
            1,
            "UnknownIssuer. --cacert names the file of the CA that issued it",
        ),
        (
            vec!["--server", &url, "--cacert", &ours],
            1,
            "with --cert and --key",
        ),
        (
            vec!["--server", &other_name, "--cacert", &ours],
            1,
            ". Call the server by one that it has",
        ),
        (
            vec!["--server", &plain],
            1,
            ". Try https:// in the place of http://",
        ),
        (
            vec!["--server", &url, "--cacert", "/nowhere.pem"],
            1,
            "/nowhere.pem cannot be used",
        ),
    ] {
        let output = output(&server, &[&["list"][..], &arguments].concat())?;
        let told = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {told}");
        assert!(told.contains(sentence), "{arguments:?}: {told}");
    }
    Ok(())
}

#[test]
fn shells_and_manuals_know_each_verb() -> anyhow::Result<()> {
    let packetflix = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(program("packetflix")?).args(arguments).output()?;
        anyhow::ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let folder = Folder::new()?;
    packetflix(&["man", "--out", &folder.path().display().to_string()])?;
    let (script, page) = (packetflix(&["completions", "bash"])?, packetflix(&["man"])?);
    for verb in ["serve", "check", "capture", "list", "captures"] {
        assert!(script.contains(verb) && page.contains(verb), "{verb}");
        assert!(folder.file(&format!("packetflix-{verb}.1")).is_file(), "{verb}");
    }
    Ok(())
}

#[test]
fn clients_have_no_rights_of_their_own() -> anyhow::Result<()> {
    // As an installed program that may be started by anyone has them: to be made effective by the server alone.
    let folder = Folder::new()?;
    let installed = folder.file("packetflix");
    fs::copy(program("packetflix")?, &installed)?;
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
    let status = Command::new("setcap")
        .arg("cap_net_raw,cap_sys_admin,cap_sys_ptrace,cap_dac_override,cap_net_admin+p")
        .arg(&installed)
        .status()?;
    assert!(status.success());
    let secret = folder.put_secret("token", "0123456789abcdef0123456789abcdef\n")?;
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&installed)
        .args(["list", "--server", "http://127.0.0.1:1", "--token-file"])
        .arg(&secret)
        .output()?;
    let told = String::from_utf8(output.stderr)?;
    assert!(told.contains("Permission denied"), "{told}");
    assert_eq!(output.status.code(), Some(2));
    Ok(())
}
