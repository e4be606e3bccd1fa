//! What people are told who do not know the program yet.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::ensure;
use packetflix_tests::{
    engine::as_user,
    folder::Folder,
    namespace::Namespace,
    server::{Server, program, wait_until},
};

use crate::packetflix;

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn script(folder: &Folder, name: &str, text: &str) -> anyhow::Result<()> {
    let file = folder.file(name);
    fs::write(&file, format!("#!/bin/sh\n{text}\n"))?;
    Ok(fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?)
}

#[test]
fn words_that_mean_something_else_are_told_of() -> anyhow::Result<()> {
    let server = Server::start(&[])?;
    let namespace = Namespace::new()?;
    for (words, expected) in [
        (
            &["icmp"][..],
            "packetflix: icmp is taken for a target. A filter goes behind -f: -f 'icmp'\n",
        ),
        (
            &["tcp", "port", "80"],
            "packetflix: tcp is taken for a target. A filter goes behind -f: -f 'tcp port 80'\n",
        ),
    ] {
        let arguments = [
            &["capture", namespace.name(), "-w", "-", "-a", "duration:1"],
            words,
        ]
        .concat();
        let output = packetflix(&server, &arguments)?.stdout(Stdio::null()).output()?;
        ensure!(told(&output).contains(expected), "{}", told(&output));
    }
    let arguments = [
        "capture",
        namespace.name(),
        "-w",
        "-",
        "-a",
        "duration:1",
        "-f",
        "icmp",
    ];
    let output = packetflix(&server, &arguments)?.stdout(Stdio::null()).output()?;
    ensure!(!told(&output).contains("taken for a target"), "{}", told(&output));
    for (verb, flags, expected) in [
        (
            "capture",
            ["-n", "shop"],
            "packetflix: -n is for pods of a cluster: say --kube with it. A server has namespaces in names: pod:shop/*\n",
        ),
        (
            "list",
            ["-l", "app=web"],
            "packetflix: -l is for pods of a cluster: say --kube with it. At a server, label:KEY=VALUE chooses targets\n",
        ),
    ] {
        let output = packetflix(&server, &[&[verb, "web"][..], &flags].concat())?.output()?;
        ensure!(
            output.status.code() == Some(2) && told(&output) == expected,
            "{}",
            told(&output)
        );
    }
    Ok(())
}

#[test]
fn wireshark_that_fails_is_no_success() -> anyhow::Result<()> {
    let (namespace, folder) = (Namespace::new()?, Folder::new()?);
    let server = Server::start(&[])?;
    script(
        &folder,
        "wireshark",
        "echo 'could not connect to display' >&2; exit 1",
    )?;
    let mut command = packetflix(&server, &["capture", namespace.name(), "--wireshark"])?;
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH")?);
    let output = command.env("PATH", path).output()?;
    let told = told(&output);
    ensure!(
        output.status.code() == Some(3)
            && told.contains("could not connect to display\n")
            && told.ends_with(
                "packetflix: Wireshark has failed (exit status: 1): what it says stands above. It takes a display (DISPLAY or \
                 WAYLAND_DISPLAY); without one, write a file with -w\n"
            ),
        "{:?}: {told}",
        output.status
    );
    Ok(())
}

/// Whoever has no rights is told that, and not that the machine is at fault.
#[test]
fn check_without_root_says_that_it_is_without_root() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let copy = folder.file("packetflix");
    fs::copy(program("packetflix")?, &copy)?;
    for file in [folder.path(), &copy] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    }
    let output = as_user("setpriv").arg(&copy).arg("check").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = said
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with("packetflix"));
    let line = line.unwrap_or_default();
    ensure!(
        line.starts_with("limited  user               this check runs as the user ")
            && line.ends_with(", without the rights of a service"),
        "{said}"
    );
    for expected in [
        "cost: what follows holds for a service of this user: others' processes, engines and namespaces could not be looked at\n",
        "do:   run it as root, as the service: sudo packetflix check\n",
        "\nCaptures cannot work for this user. Whether they can for root, `sudo packetflix check` says.\n",
    ] {
        ensure!(said.contains(expected), "{said}");
    }
    ensure!(!said.contains("threads and descriptors"), "{said}");
    let output = Command::new(&copy).arg("check").output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!said.contains("this check runs as"), "{said}");
    Ok(())
}

#[test]
fn check_says_how_podman_is_asked() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    // In place of what podman leaves with each container.
    script(&folder, "conmon", "read line")?;
    let mut monitor = Command::new(folder.file("conmon"))
        .args(["--exit-command", "/usr/bin/podman"])
        .stdin(Stdio::piped())
        .spawn()?;
    let is_there = wait_until(Duration::from_secs(5), || {
        Ok(fs::read(format!("/proc/{}/comm", monitor.id()))? == b"conmon\n")
    });
    let output = Command::new(program("packetflix")?).arg("check").output();
    monitor.kill()?;
    monitor.wait()?;
    is_there?;
    let said = String::from_utf8_lossy(&output?.stdout).into_owned();
    for expected in [
        "podman runs containers, and its API socket is not there\n",
        "cost: they are listed as processes, without their names\n",
        "do:   systemctl enable --now podman.socket; for containers of a user: systemctl --user enable --now podman.socket\n",
    ] {
        ensure!(said.contains(expected), "{said}");
    }
    Ok(())
}
