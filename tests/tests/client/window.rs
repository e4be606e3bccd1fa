//! Wireshark's window, on a display that nobody sees.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::UdpSocket,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use packetflix_tests::{
    namespace::{Namespace, output_of},
    server::wait_until,
};

use crate::extcap::Desk;

/// Has the picture in the documents made anew.
const UPDATE: &str = "UPDATE_DOCS";

/// Columns of the window: the interface is not one of those that Wireshark has by itself.
const COLUMNS: &str = "gui.column.format:\"No.\",\"%m\",\"Time\",\"%t\",\"Interface\",\"%Cus:frame.interface_name:0:R\",\
    \"Source\",\"%s\",\"Destination\",\"%d\",\"Protocol\",\"%p\",\"Info\",\"%i\"";

/// How wide they are, as Wireshark keeps it.
const WIDTHS: &str =
    "column.width: %m, 50, %t, 100, %Cus:frame.interface_name, 160, %s, 90, %d, 90, %p, 70\n";

/// A program with all that it has started.
struct Group(Child);

impl Group {
    fn start(command: &mut Command) -> anyhow::Result<Self> {
        Ok(Self(command.process_group(0).spawn()?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Ok(group) = i32::try_from(self.0.id()) {
            let _ = killpg(Pid::from_raw(group), Signal::SIGTERM);
        }
        let _ = self.0.wait();
    }
}

/// A display, by its number.
fn display() -> anyhow::Result<(Group, String)> {
    let mut xvfb = Command::new("Xvfb");
    xvfb.args([
        "-displayfd",
        "1",
        "-screen",
        "0",
        "1000x560x24",
        "-nolisten",
        "tcp",
    ])
    .stdout(Stdio::piped())
    .stderr(Stdio::null());
    let mut xvfb = Group::start(&mut xvfb)?;
    let mut number = String::new();
    BufReader::new(xvfb.0.stdout.take().context("no output")?).read_line(&mut number)?;
    Ok((xvfb, format!(":{}", number.trim())))
}

/// The interfaces of the packets that Wireshark has taken by now.
fn captured(folder: &Path) -> anyhow::Result<Vec<String>> {
    let files = fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_capture = |file: &PathBuf| file.extension().is_some_and(|end| end == "pcapng");
    let Some(file) = files.filter(is_capture).last() else {
        return Ok(Vec::new());
    };
    // It may end within a block.
    let read = Command::new("tshark")
        .args(["-n", "-T", "fields", "-e", "frame.interface_name", "-r"])
        .arg(file)
        .stderr(Stdio::null())
        .output()?;
    let printed = String::from_utf8(read.stdout)?;
    Ok(printed.lines().map(str::to_owned).collect())
}

#[test]
fn the_window_of_wireshark_has_packets_of_several_targets() -> anyhow::Result<()> {
    let update = std::env::var_os(UPDATE).is_some();
    let (web, db) = match update {
        true => (Namespace::named("web")?, Namespace::named("db")?),
        false => (Namespace::new()?, Namespace::new()?),
    };
    web.connect("eth0", &db, "eth0", 1)?;
    let desk = Desk::new(&[])?;
    fs::create_dir_all(desk.home.file(".config/wireshark"))?;
    fs::write(desk.home.file(".config/wireshark/recent"), WIDTHS)?;
    let (_display, number) = display()?;
    let more = format!("extcap.packetflix.moretargets:{}", db.name());
    let target = format!("extcap.packetflix.target:{}", web.name());
    let mut wireshark = desk.command("wireshark".as_ref(), &["-k", "-i", "packetflix", "-f", "udp"]);
    for preference in [
        &target,
        &more,
        COLUMNS,
        "gui.ask_unsaved:FALSE",
        "gui.update.enabled:FALSE",
    ] {
        wireshark.args(["-o", preference]);
    }
    wireshark
        .env("DISPLAY", &number)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut wireshark = Group::start(&mut wireshark)?;
    desk.wait_for_captures(2)?;

    let _receiver = db.inside(|| UdpSocket::bind("10.9.1.2:7000"))??;
    let socket = web.inside(|| UdpSocket::bind("10.9.1.1:0"))??;
    for number in 0u64..6 {
        socket.send_to(&number.to_be_bytes(), "10.9.1.2:7000")?;
    }
    let names = [&web, &db].map(|namespace| format!("{}/eth0", namespace.name()));
    wait_until(Duration::from_secs(60), || {
        let captured = captured(desk.home.path())?;
        Ok(names
            .iter()
            .all(|name| captured.iter().filter(|of| of.ends_with(name.as_str())).count() == 6))
    })?;

    let xdotool = |words: &[&str]| {
        let mut command = Command::new("xdotool");
        output_of(command.args(words).env("DISPLAY", &number).stderr(Stdio::null()))
    };
    let mut window = String::new();
    wait_until(Duration::from_secs(60), || {
        window = xdotool(&["search", "--name", "^Capturing from packetflix"]).unwrap_or_default();
        Ok(!window.is_empty())
    })?;
    if update {
        let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/wireshark-several.png");
        let window = window.lines().next().context("no window")?;
        xdotool(&[
            "windowsize",
            window,
            "1000",
            "560",
            "windowmove",
            window,
            "0",
            "0",
        ])?;
        std::thread::sleep(Duration::from_secs(3));
        output_of(
            Command::new("import")
                .args(["-window", "root", "+dither", "-colors", "32"])
                .arg(format!("png8:{}", picture.display()))
                .env("DISPLAY", &number),
        )?;
    }

    // As whoever closes it.
    let window = window.lines().next().context("no window")?;
    xdotool(&["windowfocus", "--sync", window, "key", "ctrl+q"])?;
    wait_until(Duration::from_secs(60), || Ok(wireshark.0.try_wait()?.is_some()))?;
    desk.wait_for_captures(0)
}
