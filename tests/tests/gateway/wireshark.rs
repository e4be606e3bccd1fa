//! Wireshark's own list of interfaces, with a gateway behind it.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    folder::Folder,
    namespace::Namespace,
    raw::{self, RawSocket},
    recording::Recording,
    server::{program, wait_until},
};

use crate::Cluster;

/// The targets of both nodes are there, each with its node, and what is chosen is captured on it.
#[test]
fn wireshark_lists_and_captures_what_all_nodes_have() -> anyhow::Result<()> {
    let cluster = Cluster::start(&["one", "two"])?;
    let gateway = cluster.gateway(&[])?;
    let (here, there) = Namespace::pair()?;
    let path = here.path().display().to_string();
    let home = Folder::new()?;
    let address = format!("http://127.0.0.1:{}", gateway.port());
    let command = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("HOME", home.path())
            .env("PACKETFLIX_SERVER", &address)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .stdin(Stdio::null());
        command
    };
    let installed = command(
        &program("packetflix")?.display().to_string(),
        &["extcap", "install"],
    )
    .output()?;
    ensure!(installed.status.success(), "{installed:?}");
    let launcher = home.file(".config/wireshark/extcap/packetflix-extcap");
    let asked = [
        "--extcap-interface",
        "packetflix",
        "--extcap-config",
        "--extcap-reload-option",
        "target",
    ];
    let mut lines = Vec::new();
    wait_until(Duration::from_secs(20), || {
        let list = command(&launcher.display().to_string(), &asked).output()?;
        let list = String::from_utf8(list.stdout)?;
        lines = list
            .lines()
            .filter(|line| line.contains(&path))
            .map(str::to_owned)
            .collect();
        Ok(lines.len() == 2)
    })
    .with_context(|| format!("{lines:?}"))?;
    for node in ["one", "two"] {
        let display = format!("{{display={path} (bindmount, {node})}}");
        ensure!(lines.iter().any(|line| line.ends_with(&display)), "{lines:?}");
    }
    let of_two = lines.iter().find(|line| line.contains(", two)"));
    let value = of_two.and_then(|line| line.split_once("{value=")?.1.split_once('}'));
    let (value, _) = value.context("no value")?;

    let file = home.file("file.pcapng").display().to_string();
    let target = format!("extcap.packetflix.target:{value}");
    let tshark = [
        "-i",
        "packetflix",
        "-o",
        &target,
        "-f",
        "ether proto 0x88b5",
        "-c",
        "3",
        "-w",
        &file,
    ];
    let mut tshark = command("tshark", &tshark).stderr(Stdio::piped()).spawn()?;
    let socket = RawSocket::open(&there, "vb")?;
    wait_until(Duration::from_secs(60), || {
        socket.send(&raw::ethernet(0x88b5, &[1; 46]))?;
        Ok(tshark.try_wait()?.is_some())
    })?;
    let said = tshark.wait_with_output()?;
    ensure!(said.status.success(), "{said:?}");
    let recording = Recording::parse(&std::fs::read(&file)?)?;
    assert_eq!(recording.packets.len(), 3);
    let told = &recording.interfaces[0];
    ensure!(told.options.contains("node two"), "{}", told.options);
    Ok(())
}
