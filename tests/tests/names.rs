//! Wireshark shows names of containers instead of their addresses.

use std::{net::IpAddr, process::Command};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::Recorder,
    docker::Docker,
    image::IMAGE,
    process::{Sleeper, speak_in},
    server::Server,
};
use serde_json::json;

/// Starts a container that sleeps; gives its address.
fn start(docker: &Docker, name: &str) -> anyhow::Result<IpAddr> {
    docker.run(&["run", "--detach", "--name", name, IMAGE])?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    Ok(docker.run(&["inspect", "--format", format, name])?.parse()?)
}

fn ping(docker: &Docker, from: &str, to: IpAddr) -> anyhow::Result<()> {
    docker.run(&["exec", from, "/bin/busybox", "ping", "-c", "1", &to.to_string()])?;
    Ok(())
}

/// Sources and destinations as tshark shows them to people.
fn shown(stream: &[u8]) -> anyhow::Result<String> {
    let file = std::env::temp_dir().join(format!("packetflix-names-{}.pcapng", std::process::id()));
    std::fs::write(&file, stream)?;
    let columns = ["_ws.col.Source", "_ws.col.Destination", "_ws.col.Protocol"];
    let output = Command::new("tshark")
        .args(["-n", "-N", "n", "-T", "fields"])
        .args(columns.iter().flat_map(|column| ["-e", column]))
        .arg("-r")
        .arg(&file)
        .output()?;
    std::fs::remove_file(&file)?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn containers_are_named_those_that_come_later_too() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let (web, db) = (start(&docker, "web")?, start(&docker, "db")?);
    let server = Server::start(&["--engine-socket", &docker.socket().display().to_string()])?;
    let mut recorder = Recorder::start(&server.url_of(&json!({ "name": "web" }), "&nif=eth0")).await?;
    ping(&docker, "web", db)?;
    recorder
        .read_until(|recording| !recording.packets.is_empty())
        .await?;

    let late = start(&docker, "late")?;
    // While it starts, it is known by the process that starts it.
    recorder
        .read_until(|recording| {
            let mut names = recording.names.iter();
            names.any(|name| name.address == late && name.name == "late")
        })
        .await?;
    ping(&docker, "web", late)?;
    let to_late = |packet: &[u8]| match late {
        IpAddr::V4(address) => packet.get(30..34) == Some(&address.octets()),
        IpAddr::V6(_) => false,
    };
    recorder
        .read_until(|recording| recording.packets.iter().any(|packet| to_late(&packet.data)))
        .await?;
    let stream = recorder.stream().to_vec();
    let recording = recorder.finish().await?;
    for (address, name) in [(web, "web"), (db, "db")] {
        assert_eq!(recording.name_of(address, 0), Some(name), "{:?}", recording.names);
    }
    let first = recording.packets.iter().position(|packet| to_late(&packet.data));
    assert_eq!(recording.name_of(late, first.context("no packet")?), Some("late"));

    let shown = shown(&stream)?;
    for line in ["web\tdb\tICMP", "db\tweb\tICMP", "web\tlate\tICMP"] {
        ensure!(shown.contains(line), "{shown}");
    }
    Ok(())
}

#[tokio::test]
async fn names_are_left_out_when_that_is_asked_for() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let web = start(&docker, "web")?;
    let server = Server::start(&["--engine-socket", &docker.socket().display().to_string()])?;
    let sleeper = Sleeper::unshared()?;
    for (rest, named) in [("", true), ("&names=1", true), ("&names=0", false)] {
        let mut recorder = Recorder::start(&server.url_of(&sleeper.identity()?, rest)).await?;
        speak_in(sleeper.pid())?;
        recorder
            .read_until(|recording| !recording.packets.is_empty())
            .await?;
        if named {
            recorder
                .read_until(|recording| recording.names.iter().any(|name| name.address == web))
                .await?;
        }
        let recording = recorder.finish().await?;
        assert_eq!(
            !recording.names.is_empty(),
            named,
            "{rest}: {:?}",
            recording.names
        );
    }
    Ok(())
}
