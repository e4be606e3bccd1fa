//! Wireshark's own list of interfaces: the program as tshark and Wireshark call it.

use std::{
    fs,
    io::Read as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use packetflix_tests::{
    folder::Folder,
    namespace::Namespace,
    recording::Recording,
    server::{Server, percent_encoded, program, wait_until},
};

use crate::{is_idle, send};

/// Wireshark's window may take its time to open on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A user's home in which the program is installed for Wireshark.
pub(crate) struct Desk {
    pub(crate) home: Folder,
    pub(crate) server: Server,
}

impl Desk {
    pub(crate) fn new(flags: &[&str]) -> anyhow::Result<Self> {
        let desk = Self {
            home: Folder::new()?,
            server: Server::start(flags)?,
        };
        let output = desk
            .command(&program("packetflix")?, &["extcap", "install"])
            .output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(desk)
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.server.port())
    }

    pub(crate) fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HOME", self.home.path())
            .env("TMPDIR", self.home.path())
            .env("PACKETFLIX_SERVER", self.url())
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn launcher(&self) -> PathBuf {
        self.home.file(".config/wireshark/extcap/packetflix-extcap")
    }

    /// What the program answers to Wireshark.
    fn answer(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.command(&self.launcher(), arguments).output()?)
    }

    fn printed(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.answer(arguments)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts tshark on our interface, with preferences of it.
    fn tshark(&self, preferences: &[(&str, &str)], arguments: &[&str]) -> anyhow::Result<Tshark> {
        let mut command = self.command("tshark".as_ref(), &["-i", "packetflix"]);
        for (name, value) in preferences {
            command.args(["-o", &format!("extcap.packetflix.{name}:{value}")]);
        }
        Ok(Tshark(command.args(arguments).process_group(0).spawn()?))
    }

    /// Waits until there is a capture, or none.
    pub(crate) fn wait_for_captures(&self, count: usize) -> anyhow::Result<()> {
        wait_until(PATIENCE, || {
            let (_, list) = self.server.get("/captures")?;
            Ok(list["captures"].as_array().map(Vec::len) == Some(count))
        })
    }
}

/// A tshark that runs, and what it has started.
struct Tshark(Child);

impl Tshark {
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }

    /// Waits for its end; gives its status, and what it has printed and said.
    fn end(mut self) -> anyhow::Result<(i32, String, String)> {
        let mut status = None;
        wait_until(Duration::from_secs(20), || {
            status = self.0.try_wait()?;
            Ok(status.is_some())
        })?;
        let (mut printed, mut told) = (String::new(), String::new());
        self.0
            .stdout
            .take()
            .context("no output")?
            .read_to_string(&mut printed)?;
        self.0
            .stderr
            .take()
            .context("no log")?
            .read_to_string(&mut told)?;
        let code = status
            .and_then(|status| status.code())
            .context("a signal ended it")?;
        Ok((code, printed, told))
    }
}

impl Drop for Tshark {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            // It is the leader of a group of its own.
            let _ = self.signal(Signal::SIGTERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn tshark_lists_the_interface_while_it_is_installed() -> anyhow::Result<()> {
    let desk = Desk::new(&[])?;
    let list = || -> anyhow::Result<String> {
        let output = desk.command("tshark".as_ref(), &["-D"]).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let shown = "packetflix (packetflix: containers and namespaces)";
    assert!(list()?.contains(shown), "{}", list()?);
    // Once more does no harm.
    let packetflix = program("packetflix")?;
    let said = |verb: &str| -> anyhow::Result<String> {
        let output = desk.command(&packetflix, &["extcap", verb]).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let launcher = desk.launcher().display().to_string();
    assert!(said("install")?.contains(&format!("Wireshark finds packetflix at {launcher}\n")));
    let newer = desk.home.file(".local/lib/wireshark/extcap/packetflix-extcap");
    assert!(newer.is_file());

    assert!(said("uninstall")?.contains(&format!("took away {launcher}\n")));
    assert!(!list()?.contains("packetflix"));
    for gone in [
        newer,
        desk.home.file(".local/share/applications/packetflix.desktop"),
    ] {
        assert!(!gone.exists(), "{}", gone.display());
    }
    assert_eq!(said("uninstall")?, "nothing was installed for this user\n");
    Ok(())
}

#[test]
fn tshark_captures_by_the_interface() -> anyhow::Result<()> {
    let (desk, namespace) = (Desk::new(&[])?, Namespace::new()?);
    let url = desk.url();
    let preferences = [
        ("server", &url[..]),
        ("target", namespace.name()),
        ("interfaces", "lo"),
        ("snaplen", "30"),
    ];
    let arguments = ["-f", "udp dst port 9", "-c", "4", "-T", "fields"];
    let fields = [
        "-e",
        "udp.dstport",
        "-e",
        "frame.cap_len",
        "-e",
        "frame.interface_name",
    ];
    let tshark = desk.tshark(&preferences, &[&arguments[..], &fields].concat())?;
    desk.wait_for_captures(1)?;
    let (_, list) = desk.server.get("/captures")?;
    assert_eq!(list["captures"][0]["filter"], "udp dst port 9");
    send(&namespace, 0..8)?;
    let (status, printed, told) = tshark.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(!told.contains("Error"), "{told}");
    assert_eq!(printed.lines().count(), 4, "{printed}");
    assert!(printed.lines().all(|line| line.contains("\t30\tlo")), "{printed}");
    desk.wait_for_captures(0)
}

#[test]
fn captures_end_with_whoever_asked_for_them() -> anyhow::Result<()> {
    let (desk, namespace) = (Desk::new(&[])?, Namespace::new()?);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut tshark = desk.tshark(&[("target", namespace.name())], &[])?;
        desk.wait_for_captures(1)?;
        tshark.signal(signal)?;
        tshark.0.wait()?;
        desk.wait_for_captures(0)?;
    }

    // As Wireshark stops it.
    let fifo = desk.home.file("fifo");
    mkfifo(&fifo, Mode::S_IRWXU)?;
    let place = fifo.display().to_string();
    let capture = ["--capture", "--extcap-interface", "packetflix", "--fifo", &place];
    let arguments = [&capture[..], &["--target", namespace.name()]].concat();
    let child = Tshark(desk.command(&desk.launcher(), &arguments).spawn()?);
    let mut stream = fs::File::open(&fifo)?;
    desk.wait_for_captures(1)?;
    child.signal(Signal::SIGTERM)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    drop(stream);
    Recording::parse(&bytes)?.check_complete()?;
    let (status, _, told) = child.end()?;
    assert_eq!((status, &told[..]), (0, ""));

    // As Wireshark's end stops it.
    let child = Tshark(desk.command(&desk.launcher(), &arguments).spawn()?);
    let stream = fs::File::open(&fifo)?;
    desk.wait_for_captures(1)?;
    drop(stream);
    assert_eq!(child.end()?.0, 0);
    desk.wait_for_captures(0)?;

    // Before Wireshark has opened its end, too.
    let child = Tshark(desk.command(&desk.launcher(), &arguments).spawn()?);
    std::thread::sleep(Duration::from_millis(300));
    child.signal(Signal::SIGTERM)?;
    assert_eq!(child.end()?.0, 0);
    assert!(is_idle(&desk.server)?);
    Ok(())
}

#[test]
fn refusals_are_seen() -> anyhow::Result<()> {
    let desk = Desk::new(&[])?;
    for (preferences, sentence) in [
        (&[("target", "nosuch")][..], "there is no target nosuch"),
        (&[][..], "no target is chosen"),
        (
            &[("target", "x"), ("server", "http://127.0.0.1:1")],
            "no server answers at http://127.0.0.1:1",
        ),
        (
            &[("target", "x"), ("server", "nosuch")],
            "no server is called nosuch",
        ),
    ] {
        let (status, printed, told) = desk.tshark(preferences, &["-c", "1"])?.end()?;
        assert_ne!(status, 0);
        assert!(told.contains("Error by extcap pipe: packetflix: "), "{told}");
        assert!(told.contains(sentence), "{told}");
        assert_eq!(printed, "");
    }
    Ok(())
}

#[test]
fn refusals_are_messages_where_wireshark_takes_some() -> anyhow::Result<()> {
    let desk = Desk::new(&[])?;
    let [fifo, messages] = ["fifo", "messages"].map(|name| desk.home.file(name));
    for pipe in [&fifo, &messages] {
        mkfifo(pipe, Mode::S_IRWXU)?;
    }
    let [place, control] = [&fifo, &messages].map(|pipe| pipe.display().to_string());
    // As Wireshark opens it.
    let mut reader = fs::OpenOptions::new().read(true).write(true).open(&messages)?;
    let child = Tshark(
        desk.command(
            &desk.launcher(),
            &[
                "--capture",
                "--extcap-interface",
                "packetflix",
                "--fifo",
                &place,
                "--extcap-control-in",
                "/dev/null",
                "--extcap-control-out",
                &control,
                "--target",
                "nosuch",
            ],
        )
        .spawn()?,
    );
    let mut stream = fs::File::open(&fifo)?;
    let (status, _, told) = child.end()?;
    assert_eq!(status, 1);
    let sentence = told.trim_end().strip_prefix("packetflix: ").unwrap();
    let mut head = [0; 6];
    reader.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[1], head[2], head[3]]) as usize - 2;
    assert_eq!([head[0], head[4], head[5]], [b'T', 255, 9]);
    let mut text = vec![0; length];
    reader.read_exact(&mut text)?;
    assert_eq!(String::from_utf8(text)?, sentence);
    assert_eq!(stream.read(&mut [0])?, 0);
    Ok(())
}

#[test]
fn wireshark_is_told_what_it_asks_for() -> anyhow::Result<()> {
    let (desk, namespace) = (Desk::new(&[])?, Namespace::new()?);
    let of = |arguments: &[&str]| desk.printed(&[arguments, &["--extcap-interface", "packetflix"]].concat());
    let list = desk.printed(&["--extcap-interfaces", "--extcap-version=4.4"])?;
    assert!(
        list.contains("\ninterface {value=packetflix}{display=packetflix: "),
        "{list}"
    );
    assert!(of(&["--extcap-dlts"])?.starts_with("dlt {number=1}"));
    for option in [
        "server",
        "target",
        "more-targets",
        "follow",
        "wait",
        "interfaces",
        "snaplen",
        "token-file",
        "cacert",
    ] {
        let config = of(&["--extcap-config"])?;
        assert!(config.contains(&format!("{{call=--{option}}}")), "{config}");
    }

    let name = namespace.path().display().to_string();
    let value = format!("value {{arg=1}}{{value={name}}}{{display={name} (bindmount)}}\n");
    let config = of(&["--extcap-config"])?;
    assert!(config.contains(&value), "{config}");
    // Who may ask for a password is asked by the button alone.
    desk.command(
        &program("packetflix")?,
        &[
            "server",
            "add",
            "asks",
            &desk.url(),
            "--token-command",
            "touch $HOME/asked",
        ],
    )
    .output()?;
    let config = of(&["--extcap-config", "--server", "asks"])?;
    assert!(!config.contains("value {arg=1}"), "{config}");
    assert!(!desk.home.file("asked").exists());

    let reload = ["--extcap-config", "--extcap-reload-option", "target"];
    let targets = of(&reload)?;
    assert!(targets.contains(&value), "{targets}");
    let nowhere = of(&[&reload[..], &["--server", "http://127.0.0.1:1"]].concat())?;
    assert!(
        nowhere.starts_with("value {arg=1}{value=}{display=no server answers at http://127.0.0.1:1"),
        "{nowhere}"
    );
    Ok(())
}

#[test]
fn filters_are_checked_by_the_server() -> anyhow::Result<()> {
    let desk = Desk::new(&[])?;
    let check = |filter: &str| {
        desk.printed(&[
            "--extcap-interface",
            "packetflix",
            "--extcap-capture-filter",
            filter,
        ])
    };
    for right in ["tcp port 80 and host 10.0.0.1", ""] {
        assert_eq!(check(right)?, "");
    }
    let told = check("tcp prot 80")?;
    assert!(told.contains("prot") && told.lines().count() == 1, "{told}");
    // Not for each letter.
    let by_ssh = desk.answer(&["--extcap-capture-filter", "tcp", "--server", "ssh://nowhere"])?;
    assert_eq!(by_ssh.status.code(), Some(1));
    let told = String::from_utf8(by_ssh.stderr)?;
    assert!(told.contains("checked once the capture starts"), "{told}");
    Ok(())
}

#[test]
fn addresses_of_captures_are_opened() -> anyhow::Result<()> {
    let (desk, namespace) = (Desk::new(&[])?, Namespace::new()?);
    let container = percent_encoded(&format!(r#"{{"name": "{}"}}"#, namespace.name()));
    let port = desk.server.port();
    let address = format!("packetflix:ws://127.0.0.1:{port}/capture?container={container}&nif=lo&filter=udp");

    // In the place of Wireshark: it tells what it was called with.
    let (wireshark, called) = (desk.home.file("wireshark"), desk.home.file("called"));
    fs::write(
        &wireshark,
        format!(
            "#!/bin/sh\nprintf '%s\\n' \"$@\" > {0}.new; mv {0}.new {0}\n",
            called.display()
        ),
    )?;
    fs::set_permissions(&wireshark, fs::Permissions::from_mode(0o755))?;
    let path = format!("{}:{}", desk.home.path().display(), std::env::var("PATH")?);
    let open = |address: &str| -> anyhow::Result<Output> {
        let mut command = desk.command(&program("packetflix")?, &["open", address]);
        Ok(command.env("PATH", &path).output()?)
    };
    let opened = open(&address)?;
    assert!(opened.status.success(), "{opened:?}");
    wait_until(Duration::from_secs(5), || Ok(called.exists()))?;
    let preference = format!("extcap.packetflix.target:{address}");
    assert_eq!(
        fs::read_to_string(&called)?,
        format!("-k\n-i\npacketflix\n-o\n{preference}\n")
    );

    let tshark = desk.tshark(
        &[("target", &address), ("server", "http://127.0.0.1:1")],
        &["-c", "2"],
    )?;
    desk.wait_for_captures(1)?;
    send(&namespace, 0..4)?;
    let (status, printed, told) = tshark.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(
        printed.lines().count() == 2 && printed.contains("UDP"),
        "{printed}"
    );

    let refused = open("packetflix:ssh://web/capture?netns=5")?;
    assert_eq!(refused.status.code(), Some(2));
    let told = String::from_utf8(refused.stderr)?;
    assert!(told.contains("write packetflix:ws://HOST:PORT/capture"), "{told}");

    let handler = fs::read_to_string(desk.home.file(".local/share/applications/packetflix.desktop"))?;
    let exec = format!("Exec=\"{}\" open %u\n", program("packetflix")?.display());
    assert!(handler.contains(&exec), "{handler}");
    let query = ["query", "default", "x-scheme-handler/packetflix"];
    let by = desk.command("xdg-mime".as_ref(), &query).output()?;
    assert_eq!(String::from_utf8(by.stdout)?, "packetflix.desktop\n");
    Ok(())
}

#[test]
fn addresses_are_shown_no_token_that_is_for_another_server() -> anyhow::Result<()> {
    const TOKEN: &str = "0123456789abcdef0123456789abcdef";
    let (folder, namespace) = (Folder::new()?, Namespace::new()?);
    let accounts = folder.put_secret("accounts", &format!("ann {TOKEN} capture discover admin\n"))?;
    let desk = Desk::new(&["--token-file", &accounts.display().to_string()])?;
    let inode = namespace.inode()?;
    let address = format!(
        "packetflix:ws://127.0.0.1:{}/capture?netns={inode}",
        desk.server.port()
    );
    let arguments = [
        "--capture",
        "--extcap-interface",
        "packetflix",
        "--target",
        &address,
    ];
    let capture = || -> anyhow::Result<(i32, String)> {
        let fifo = desk.home.file("fifo");
        let _ = fs::remove_file(&fifo);
        mkfifo(&fifo, Mode::S_IRWXU)?;
        let place = fifo.display().to_string();
        let mut command = desk.command(&desk.launcher(), &[&arguments[..], &["--fifo", &place]].concat());
        let child = Tshark(command.env("PACKETFLIX_TOKEN", TOKEN).spawn()?);
        let mut stream = fs::File::open(&fifo)?;
        if stream.read(&mut [0; 4])? > 0 {
            child.signal(Signal::SIGTERM)?;
            stream.read_to_end(&mut Vec::new())?;
        }
        let (status, _, told) = child.end()?;
        Ok((status, told))
    };
    let (status, told) = capture()?;
    assert_eq!(status, 1);
    assert!(told.contains("Show a token"), "{told}");

    let command = format!("echo {TOKEN}");
    let add = ["server", "add", "here", &desk.url(), "--token-command", &command];
    assert!(
        desk.command(&program("packetflix")?, &add)
            .output()?
            .status
            .success()
    );
    assert_eq!(capture()?, (0, String::new()));
    Ok(())
}
