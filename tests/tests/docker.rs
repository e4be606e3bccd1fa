//! A real Docker container, while another one talks to it.

use std::os::unix::fs::MetadataExt as _;

use anyhow::ensure;
use packetflix_tests::{
    client::Recorder,
    docker::{Docker, IMAGE},
    server::Server,
};

#[tokio::test]
async fn captures_a_container_that_another_talks_to() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    docker.run(&[
        "run",
        "--detach",
        "--name",
        "quiet",
        IMAGE,
        "/bin/busybox",
        "sleep",
        "600",
    ])?;
    let pid = docker.run(&["inspect", "--format", "{{.State.Pid}}", "quiet"])?;
    let address = docker.run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "quiet"])?;
    let inode = std::fs::metadata(format!("/proc/{pid}/ns/net"))?.ino();

    let server = Server::start(&[])?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
    docker.run(&[
        "run",
        "--rm",
        IMAGE,
        "/bin/busybox",
        "ping",
        "-c",
        "3",
        "-s",
        "777",
        &address,
    ])?;
    // ICMP of IPv4: three requests in, three replies out.
    let echoes = |recording: &packetflix_tests::recording::Recording, kind: u8, outbound: bool| {
        recording
            .packets_of("eth0")
            .iter()
            .filter(|packet| packet.data.len() == 14 + 20 + 8 + 777)
            .filter(|packet| packet.data[12..14] == [8, 0] && packet.data[23] == 1 && packet.data[34] == kind)
            .filter(|packet| packet.is_outbound() == outbound)
            .count()
    };
    recorder
        .read_until(|recording| echoes(recording, 0, true) == 3)
        .await?;

    docker.run(&["kill", "quiet"])?;
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    assert_eq!(echoes(&recording, 8, false), 3);
    assert_eq!(echoes(&recording, 0, true), 3);
    ensure!(code == 1000 && reason.contains("has ended"), "{code} {reason}");
    let names: Vec<&str> = recording
        .interfaces
        .iter()
        .map(|interface| &interface.name[..])
        .collect();
    assert_eq!(names, ["lo", "eth0"]);
    let octets = address.replace('.', ", ");
    assert!(
        recording.interfaces[1].options.contains(&octets),
        "{}",
        recording.interfaces[1].options
    );
    Ok(())
}
