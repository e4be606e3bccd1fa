//! Servers by their names, and servers that are reached by ssh.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
};

use anyhow::ensure;
use nix::sys::signal::Signal;
use packetflix_tests::{
    folder::Folder,
    namespace::Namespace,
    server::{Server, program},
};

use crate::{Capture, file_in, read, send};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

/// A user's home.
struct Home(Folder);

impl Home {
    fn new() -> anyhow::Result<Self> {
        Ok(Self(Folder::new()?))
    }

    fn command(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(program("packetflix")?);
        command
            .args(arguments)
            .env("HOME", self.0.path())
            .env_remove("XDG_CONFIG_HOME")
            .stdin(Stdio::null());
        Ok(command)
    }

    fn output(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(arguments)?.output()?)
    }

    fn printed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.output(arguments)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn refused(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = self.output(arguments)?;
        ensure!(!output.status.success(), "{output:?}");
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    }
}

#[test]
fn servers_have_names_and_tokens_of_their_own() -> anyhow::Result<()> {
    let home = Home::new()?;
    let accounts = home
        .0
        .put_secret("accounts", &format!("ann {TOKEN} discover\n"))?;
    let server = Server::start(&["--token-file", &accounts.display().to_string()])?;
    let url = format!("http://127.0.0.1:{}", server.port());
    let mut add = home
        .command(&["server", "add", "prod", &url, "--token-stdin"])?
        .stdin(Stdio::piped())
        .spawn()?;
    add.stdin.take().unwrap().write_all(TOKEN.as_bytes())?;
    assert!(add.wait()?.success());
    let kept = home.0.file(".config/packetflix/tokens/prod");
    assert_eq!(fs::metadata(&kept)?.permissions().mode() & 0o777, 0o600);
    let configuration = fs::read_to_string(home.0.file(".config/packetflix/config.json"))?;
    assert!(!configuration.contains(TOKEN), "{configuration}");

    // The first one is the default.
    for arguments in [&["list"][..], &["list", "--server", "prod"]] {
        assert!(home.printed(arguments)?.starts_with("TARGET "));
    }
    let command = format!("echo {TOKEN}");
    home.printed(&["server", "add", "other", &url, "--token-command", &command])?;
    home.printed(&["server", "add", "none", &url, "--default"])?;
    assert!(
        home.printed(&["list", "--server", "other"])?
            .starts_with("TARGET ")
    );
    let list = home.printed(&["server", "list"])?;
    let default: Vec<&str> = list.lines().filter(|line| line.contains(" yes")).collect();
    assert!(default.len() == 1 && default[0].starts_with("none "), "{list}");
    let (status, told) = home.refused(&["list"])?;
    assert_eq!(status, Some(1), "{told}");
    home.printed(&["server", "default", "prod"])?;
    home.printed(&["list"])?;

    fs::set_permissions(&kept, fs::Permissions::from_mode(0o644))?;
    let (status, told) = home.refused(&["list"])?;
    assert_eq!(status, Some(2));
    assert!(
        told.contains("others may read") && told.contains("chmod 600"),
        "{told}"
    );

    home.printed(&["server", "remove", "prod"])?;
    assert!(!kept.exists());
    for (arguments, sentence) in [
        (&["list", "--server", "prod"][..], "no server is called prod"),
        (&["server", "remove", "prod"], "no server is called prod"),
        (&["server", "add", "a/b", &url], "a/b is no name for a server"),
        (&["server", "add", "x", "nowhere"], "nowhere is no server"),
    ] {
        let (status, told) = home.refused(arguments)?;
        assert_eq!(status, Some(2));
        assert!(told.contains(sentence), "{told}");
    }
    home.printed(&["server", "add", "fails", &url, "--token-command", "exit 7"])?;
    let (_, told) = home.refused(&["list", "--server", "fails"])?;
    assert!(
        told.contains("the command for the token of fails fails (exit status: 7)"),
        "{told}"
    );
    Ok(())
}

#[test]
fn what_is_kept_is_what_was_said_last() -> anyhow::Result<()> {
    let home = Home::new()?;
    let add_token = |name: &str| -> anyhow::Result<()> {
        let arguments = ["server", "add", name, "http://127.0.0.1:1", "--token-stdin"];
        let mut add = home.command(&arguments)?.stdin(Stdio::piped()).spawn()?;
        add.stdin
            .take()
            .unwrap()
            .write_all(format!("{name}-token").as_bytes())?;
        ensure!(add.wait()?.success());
        Ok(())
    };
    let kept = |name: &str| fs::read_to_string(home.0.file(".config/packetflix/tokens").join(name));
    // What a file is called while it is written is no name of a server's.
    for name in ["prod.new", "prod", "prod.eu"] {
        add_token(name)?;
    }
    for name in ["prod.new", "prod", "prod.eu"] {
        assert_eq!(kept(name)?, format!("{name}-token\n"));
    }
    // A token that nothing leads to any more is gone.
    home.printed(&[
        "server",
        "add",
        "prod",
        "http://127.0.0.1:1",
        "--token-command",
        "echo x",
    ])?;
    assert!(kept("prod").is_err());
    let own = home
        .0
        .file(".config/packetflix/tokens/prod.eu")
        .display()
        .to_string();
    home.printed(&[
        "server",
        "add",
        "prod.eu",
        "http://127.0.0.1:1",
        "--token-file",
        &own,
    ])?;
    assert_eq!(kept("prod.eu")?, "prod.eu-token\n");

    // Some keep their configuration elsewhere, and a link to it.
    let (file, elsewhere) = (
        home.0.file(".config/packetflix/config.json"),
        home.0.file("elsewhere.json"),
    );
    fs::rename(&file, &elsewhere)?;
    std::os::unix::fs::symlink(&elsewhere, &file)?;
    home.printed(&["server", "remove", "prod"])?;
    assert!(file.symlink_metadata()?.is_symlink());
    assert!(!fs::read_to_string(&elsewhere)?.contains("\"prod\""));
    let left: Vec<_> = fs::read_dir(home.0.file(".config/packetflix"))?.collect();
    assert_eq!(left.len(), 2, "{left:?}");
    Ok(())
}

#[test]
fn configurations_that_cannot_be_followed_are_told_of() -> anyhow::Result<()> {
    let home = Home::new()?;
    let url = "http://127.0.0.1:1";
    home.printed(&["server", "add", "talks", url, "--token-command", "yes"])?;
    let (status, told) = home.refused(&["list"])?;
    assert_eq!(status, Some(2), "{told}");
    assert!(
        told.contains("the command for the token of talks fails"),
        "{told}"
    );

    let file = home.0.file(".config/packetflix/config.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o620))?;
    let (status, told) = home.refused(&["list"])?;
    assert_eq!(status, Some(2));
    assert!(
        told.contains("others may write") && told.contains("chmod go-w"),
        "{told}"
    );

    // A variable that is empty is none, and the default is meant.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let mut list = home.command(&["list"])?;
    let told = String::from_utf8(list.env("PACKETFLIX_SERVER", "").output()?.stderr)?;
    assert!(told.contains("the token of talks"), "{told}");

    for (text, sentence) in [
        ("", "config.json cannot be understood: EOF"),
        ("{\"servers\": []}", "config.json cannot be understood"),
        (r#"{"default": "gone"}"#, "no server is called gone"),
        (
            r#"{"default": "a", "servers": {"a": {"url": "ssh://-oProxyCommand=x"}}}"#,
            "is no server: write http://HOST:PORT",
        ),
    ] {
        fs::write(&file, text)?;
        let (status, told) = home.refused(&["list"])?;
        assert_eq!(status, Some(2), "{told}");
        assert!(told.contains(sentence), "{text}: {told}");
    }
    for (variable, arguments) in [
        ("PACKETFLIX_CONFIG", &["list"][..]),
        ("PACKETFLIX_CLIENT_TOKEN_FILE", &["list", "--server", url]),
    ] {
        // One that has no end, and that nobody else may read.
        let endless = home.0.file("endless");
        fs::File::create(&endless)?.set_len(1 << 40)?;
        fs::set_permissions(&endless, fs::Permissions::from_mode(0o600))?;
        let output = home.command(arguments)?.env(variable, &endless).output()?;
        let told = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(
            told.contains("cannot be read") && told.contains("too large"),
            "{told}"
        );
    }
    Ok(())
}

#[test]
fn sentences_that_nobody_hears_change_nothing() -> anyhow::Result<()> {
    let home = Home::new()?;
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut list = home.command(&["list", "--server", "http://127.0.0.1:1"])?;
    assert_eq!(list.stderr(writer).status()?.code(), Some(1));
    Ok(())
}

#[test]
fn hosts_are_reached_by_ssh() -> anyhow::Result<()> {
    let (home, namespace) = (Home::new()?, Namespace::new()?);
    let server = Server::start(&[])?;
    // In the place of ssh: its last word is what it runs over there, where a server listens at a place of its own.
    let ssh = home.0.file("ssh");
    let there = program("packetflix")?;
    fs::write(
        &ssh,
        format!(
            "#!/bin/sh\necho \"$@\" >> {}\n[ \"$5\" = me@nowhere ] && {{ echo 'no route to host' >&2; exit 255; }}\n\
             for last; do :; done\nPATH={}:$PATH PACKETFLIX_SERVER=http://127.0.0.1:{} exec sh -c \"$last\"\n",
            home.0.file("asked").display(),
            there.parent().unwrap().display(),
            server.port()
        ),
    )?;
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", home.0.path().display(), std::env::var("PATH")?);

    let mut list = home.command(&["list", "--server", "ssh://me@web:2222"])?;
    let output = list.env("PATH", &path).output()?;
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8(output.stdout)?.contains(namespace.name()));
    let asked = fs::read_to_string(home.0.file("asked"))?;
    assert_eq!(asked, "-p 2222 -T -- me@web packetflix dial-stdio\n");

    let (file, text) = file_in(&home.0, "a.pcapng");
    let mut command = home.command(&["capture", namespace.name(), "--server", "ssh://web", "-w", &text])?;
    let capture = Capture::start_by(command.env("PATH", &path))?;
    send(&namespace, 0..3)?;
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    let recording = read(&file)?;
    recording.check_complete()?;
    assert_eq!(recording.packets.len(), 3);

    let mut list = home.command(&["list", "--server", "ssh://me@nowhere:22"])?;
    let output = list.env("PATH", &path).output()?;
    let told = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1));
    assert!(told.starts_with("no route to host\n"), "{told}");
    assert!(
        told.contains("packetflix is not reached by ssh://me@nowhere:22"),
        "{told}"
    );
    Ok(())
}
