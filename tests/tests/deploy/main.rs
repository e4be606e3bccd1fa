//! The image, the manifests and the unit, as they are deployed: without root, on a read-only file system, with the
//! capabilities that `docs/deployment.md` lists and no others.

mod chart;
mod manifests;

use std::{
    collections::BTreeSet, fs, net::TcpStream, os::unix::fs::PermissionsExt as _, path::PathBuf,
    process::Command, time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix::capabilities::Capability;
use packetflix_tests::{
    client::{Capture, Recorder, Refused},
    docker::{Docker, IMAGE},
    namespace::output_of,
    root,
    server::{keeper_of, percent_encoded, program, wait_until},
    taken_over::has_nothing_of_the_host,
};
use serde_json::{Value, json};

use crate::manifests::{container, objects};

/// Name of the image that is tested.
const PACKETFLIX: &str = "localhost/packetflix-under-test";

/// A row of the documents' table of capabilities.
struct Row {
    capability: String,
    /// What the service says without it.
    sentence: String,
}

fn read(path: &str) -> anyhow::Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

fn listed_capabilities() -> anyhow::Result<Vec<Row>> {
    let page = read("docs/deployment.md")?;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| CAP_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [name, _, without] = cells[..] else {
            bail!("three columns: {row}");
        };
        let sentence = without.split('"').nth(1).context("no sentence")?;
        Ok(Row {
            capability: format!("CAP_{name}"),
            sentence: sentence.to_owned(),
        })
    })
    .collect()
}

fn names(rows: &[Row]) -> BTreeSet<String> {
    rows.iter().map(|row| row.capability.clone()).collect()
}

/// The image in an engine, and a container that is to be captured.
struct Deployment {
    docker: Docker,
    netns: u64,
}

impl Deployment {
    fn new() -> anyhow::Result<Self> {
        let docker = Docker::start()?;
        // Debian's client has BuildKit, which others lack without a plugin.
        let path = format!("/usr/bin:{}", std::env::var("PATH")?);
        output_of(
            Command::new(program("xtask")?)
                .arg("image")
                .arg("--program")
                .arg(program("packetflix")?)
                .args(["--tag", PACKETFLIX])
                .env("PATH", path)
                .env("DOCKER_HOST", format!("unix://{}", docker.socket().display())),
        )?;
        let run = ["run", "--detach", "--name", "web", IMAGE];
        docker.run(&[&run[..], &["/bin/busybox", "sleep", "600"]].concat())?;
        let pid = docker.run(&["inspect", "--format", "{{.State.Pid}}", "web"])?;
        let netns = packetflix_tests::process::netns_of(pid.parse()?)?;
        Ok(Self { docker, netns })
    }

    /// Where the engine's socket is for a container that sees the host's processes and no folder of the host.
    fn engine_socket(&self) -> String {
        format!(
            "/proc/{}/root{}",
            self.docker.pid(),
            self.docker.socket().display()
        )
    }

    /// Runs packetflix as it is deployed, with these capabilities; `more` are options of `docker run`.
    fn run(
        &self,
        capabilities: &BTreeSet<String>,
        more: &[&str],
        arguments: &[&str],
    ) -> anyhow::Result<String> {
        let profile = format!("seccomp={}", root().join("deploy/seccomp.json").display());
        let mut options = vec!["run", "--read-only", "--pid", "host", "--cap-drop", "ALL"];
        options.extend(capabilities.iter().flat_map(|name| ["--cap-add", name]));
        options.extend(["--security-opt", &profile]);
        let socket = self.engine_socket();
        let command = [more, &[PACKETFLIX], arguments, &["--engine-socket", &socket]].concat();
        self.docker.run(&[options, command].concat())
    }

    /// What `packetflix check` finds with these capabilities.
    fn check(&self, capabilities: &BTreeSet<String>, more: &[&str]) -> anyhow::Result<Value> {
        let name = "check";
        // Its status is not the engine's: what it prints is what counts.
        let ran = self.run(
            capabilities,
            &[more, &["--name", name, "--detach"]].concat(),
            &["check", "--json"],
        );
        ran?;
        let status = self.docker.run(&["wait", name])?;
        let printed = self.docker.run(&["logs", name])?;
        self.docker.run(&["rm", name])?;
        let report: Value = serde_json::from_str(&printed).with_context(|| printed.clone())?;
        ensure!(report["captures"] == (status == "0"), "{status}: {printed}");
        Ok(report)
    }

    /// Starts the service with these capabilities, and gives its address once it answers.
    fn serve(&self, capabilities: &BTreeSet<String>, more: &[&str]) -> anyhow::Result<String> {
        self.run(
            capabilities,
            &[more, &["--detach", "--name", "pf"]].concat(),
            &["--open-to-everyone"],
        )?;
        let address = ["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "pf"];
        let address = format!("{}:5001", self.docker.run(&address)?);
        wait_until(Duration::from_secs(10), || Ok(self.connect(&address).is_ok()))
            .with_context(|| self.docker.run(&["logs", "pf"]).unwrap_or_default())?;
        Ok(address)
    }

    fn connect(&self, address: &str) -> anyhow::Result<TcpStream> {
        Ok(self.docker.namespace().inside(|| TcpStream::connect(address))??)
    }

    fn stop(&self) -> anyhow::Result<()> {
        self.docker.run(&["rm", "--force", "pf"]).map(drop)
    }

    fn by_name(&self) -> String {
        let target = json!({ "name": "web", "type": "docker" });
        format!("container={}", percent_encoded(&target.to_string()))
    }

    /// What the service says to a capture; `None` when it begins.
    async fn ask(&self, address: &str, query: &str) -> anyhow::Result<Option<String>> {
        let url = format!("ws://{address}/capture?{query}");
        match Capture::over(self.connect(address)?, &url, &[]).await {
            Ok(_) => Ok(None),
            Err(error) => Ok(Some(error.downcast::<Refused>()?.body)),
        }
    }
}

fn finding<'a>(report: &'a Value, subject: &str) -> anyhow::Result<&'a Value> {
    let findings = report["findings"].as_array().context("no findings")?;
    let found = findings.iter().find(|finding| finding["subject"] == subject);
    found.with_context(|| format!("nothing of {subject}: {report:#}"))
}

#[tokio::test]
async fn the_image_needs_the_listed_capabilities_and_no_others() -> anyhow::Result<()> {
    let rows = listed_capabilities()?;
    let all = names(&rows);
    assert_eq!(all, Capability::ALL.map(|one| one.name().to_owned()).into());
    let deployment = Deployment::new()?;

    // With all of them, everything works.
    let report = deployment.check(&all, &[])?;
    for finding in report["findings"].as_array().context("no findings")? {
        ensure!(finding["state"] == "works", "{finding:#}");
    }
    captures_another_container(&deployment, &all, &[]).await?;
    the_image_tells_what_it_is(&deployment)?;
    its_health_is_looked_at(&deployment, &all)?;
    lets_nobody_in_from_outside(&deployment, &all)?;
    who_takes_it_over_has_nothing_of_the_host(&deployment, &all)?;

    for Row { capability, sentence } in &rows {
        let mut without = all.clone();
        without.remove(capability);
        let report = deployment.check(&without, &[])?;
        let missing = finding(&report, capability)?;
        assert_ne!(missing["state"], "works");
        assert!(
            missing["cost"].is_string() && missing["remedy"].is_string(),
            "{missing}"
        );
        ensure!(report.to_string().contains(sentence), "{capability}: {report:#}");
        let needed = ["CAP_SYS_ADMIN", "CAP_NET_RAW"].contains(&&capability[..]);
        assert_eq!(report["captures"], !needed, "{capability}");

        let address = deployment.serve(&without, &[])?;
        let netns = format!("netns={}", deployment.netns);
        let vlan = format!("{netns}&filter=vlan%205");
        // What it costs is what the table says, and no more.
        let unseen = needed || capability == "CAP_SYS_PTRACE";
        for (query, refused) in [
            (&netns, unseen),
            (&deployment.by_name(), capability != "CAP_NET_ADMIN"),
            (&vlan, unseen || capability == "CAP_NET_ADMIN"),
        ] {
            let said = deployment.ask(&address, query).await?;
            assert_eq!(said.is_some(), refused, "{capability}: {query}: {said:?}");
            let Some(said) = said else { continue };
            ensure!(
                said.contains(sentence) || (query == &vlan && said.contains(&format!("lacks {capability}"))),
                "{capability}: {said}"
            );
        }
        let log = deployment.log()?;
        ensure!(log.contains(&format!("the service lacks {capability}")), "{log}");
        deployment.stop()?;
    }

    // A group does instead of one of them.
    let mut without = all.clone();
    without.remove("CAP_DAC_OVERRIDE");
    captures_another_container(&deployment, &without, &["--group-add", "0"]).await?;

    // Where new privileges are forbidden, the program's file gives none.
    let report = deployment.check(&all, &["--security-opt", "no-new-privileges"])?;
    assert_eq!(report["captures"], false);
    for name in &all {
        assert_ne!(finding(&report, name)?["state"], "works", "{name}");
    }

    the_profile_allows_no_other_namespaces(&deployment)
}

impl Deployment {
    /// All that the service has logged.
    fn log(&self) -> anyhow::Result<String> {
        let host = format!("--host=unix://{}", self.docker.socket().display());
        output_of(Command::new("sh").args(["-c", "docker \"$0\" logs pf 2>&1", &host]))
    }
}

/// To people, to registries, and to those who look for known faults in libraries.
fn the_image_tells_what_it_is(deployment: &Deployment) -> anyhow::Result<()> {
    let inspect = |image: &str, what: &str| {
        deployment
            .docker
            .run(&["image", "inspect", "--format", what, image])
    };
    let labels: Value = serde_json::from_str(&inspect(PACKETFLIX, "{{json .Config.Labels}}")?)?;
    let label = |name: &str| {
        labels[format!("org.opencontainers.image.{name}")]
            .as_str()
            .unwrap_or_default()
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((label("title"), label("version")), ("packetflix", version));
    assert_eq!(label("licenses"), "MIT OR Apache-2.0");
    ensure!(!label("description").is_empty(), "{labels}");
    let revision = output_of(
        Command::new("git")
            .args(["rev-parse", "HEAD"])
            .current_dir(root()),
    )?;
    ensure!(label("revision").starts_with(revision.trim()), "{labels}");
    let tagged = inspect(&format!("{PACKETFLIX}:{version}"), "{{.Id}}")?;
    assert_eq!(tagged, inspect(PACKETFLIX, "{{.Id}}")?);

    let folder = std::env::temp_dir().join(format!("packetflix-image-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    deployment
        .docker
        .run(&["create", "--name", "files", PACKETFLIX])?;
    for file in ["/packetflix", "/etc/os-release", "/var/lib/dpkg/status.d"] {
        let copy = ["cp", &format!("files:{file}"), &folder.display().to_string()];
        deployment.docker.run(&copy)?;
    }
    deployment.docker.run(&["rm", "files"])?;
    for package in ["libc6", "libpcap0.8"] {
        let status = fs::read_to_string(folder.join("status.d").join(package)).context(package)?;
        for line in [
            &format!("Package: {package}\n"),
            "\nVersion: ",
            "\nArchitecture: ",
        ] {
            ensure!(status.contains(line), "{package}: {status}");
        }
    }
    ensure!(fs::read_to_string(folder.join("os-release"))?.contains("VERSION_ID="));
    let sections = output_of(
        Command::new("readelf")
            .arg("--sections")
            .arg(folder.join("packetflix")),
    )?;
    ensure!(
        !sections.contains(".debug_info") && !sections.contains(".symtab"),
        "{sections}"
    );
    Ok(fs::remove_dir_all(&folder)?)
}

/// The engine tells a service that answers from one that does not.
fn its_health_is_looked_at(deployment: &Deployment, capabilities: &BTreeSet<String>) -> anyhow::Result<()> {
    let often = [
        "--health-interval",
        "1s",
        "--health-retries",
        "1",
        "--health-start-period",
        "0s",
    ];
    deployment.serve(capabilities, &often)?;
    let becomes = |state: &str| {
        let health = ["inspect", "--format", "{{.State.Health.Status}}", "pf"];
        wait_until(Duration::from_secs(40), || {
            Ok(deployment.docker.run(&health)? == state)
        })
        .with_context(|| {
            deployment
                .docker
                .run(&["inspect", "--format", "{{json .State.Health}}", "pf"])
                .unwrap_or_default()
        })
    };
    becomes("healthy")?;
    let pid = deployment
        .docker
        .run(&["inspect", "--format", "{{.State.Pid}}", "pf"])?;
    let pid = Pid::from_raw(pid.parse()?);
    kill(pid, Signal::SIGSTOP)?;
    becomes("unhealthy")?;
    kill(pid, Signal::SIGCONT)?;
    becomes("healthy")?;
    deployment.stop()
}

/// A port that is published, if only on loopback, is one that all containers reach: so nothing is there by itself.
fn lets_nobody_in_from_outside(
    deployment: &Deployment,
    capabilities: &BTreeSet<String>,
) -> anyhow::Result<()> {
    deployment.run(capabilities, &["--detach", "--name", "pf"], &[])?;
    wait_until(Duration::from_secs(10), || {
        Ok(deployment.log()?.contains("only this host is let in"))
    })?;
    let address = ["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "pf"];
    let address = format!("{}:5001", deployment.docker.run(&address)?);
    let connected = deployment.connect(&address);
    ensure!(connected.is_err(), "{address}: {}", deployment.log()?);
    deployment.stop()
}

fn who_takes_it_over_has_nothing_of_the_host(
    deployment: &Deployment,
    capabilities: &BTreeSet<String>,
) -> anyhow::Result<()> {
    deployment.serve(capabilities, &[])?;
    let state = ["inspect", "--format", "{{.State.Pid}}", "pf"];
    let pid = deployment.docker.run(&state)?.parse()?;
    let keeper = keeper_of(pid).context("no keeper")?;
    let files = [
        ("/proc/1/root/etc/shadow", libc::O_RDONLY),
        ("/dev/shm/new", libc::O_CREAT | libc::O_WRONLY),
    ];
    has_nothing_of_the_host(pid, keeper, &files)?;
    deployment.stop()
}

async fn captures_another_container(
    deployment: &Deployment,
    capabilities: &BTreeSet<String>,
    more: &[&str],
) -> anyhow::Result<()> {
    let address = deployment.serve(capabilities, more)?;
    let pid = deployment
        .docker
        .run(&["inspect", "--format", "{{.State.Pid}}", "pf"])?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    ensure!(
        status.contains("\nUid:\t75001\t75001\t75001\t75001\n"),
        "{status}"
    );
    ensure!(status.contains("\nSeccomp:\t2\n"), "{status}");

    let url = format!("ws://{address}/capture?{}", deployment.by_name());
    let mut recorder = Recorder::over(deployment.connect(&address)?, &url).await?;
    let web = deployment
        .docker
        .run(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", "web"])?;
    let ping = ["/bin/busybox", "ping", "-c", "2", "-s", "555", &web];
    deployment
        .docker
        .run(&[&["run", "--rm", IMAGE], &ping[..]].concat())?;
    recorder
        .read_until(|recording| {
            let packets = recording.packets_of("eth0");
            let length = 14 + 20 + 8 + 555;
            packets
                .iter()
                .filter(|packet| packet.data.len() == length)
                .count()
                == 4
        })
        .await?;
    recorder.finish().await?;

    // SIGTERM ends it in time.
    deployment.docker.run(&["stop", "--time", "15", "pf"])?;
    let status = ["inspect", "--format", "{{.State.ExitCode}}", "pf"];
    assert_eq!(deployment.docker.run(&status)?, "0", "{}", deployment.log()?);
    deployment.stop()
}

fn the_profile_allows_no_other_namespaces(deployment: &Deployment) -> anyhow::Result<()> {
    let profile = format!("seccomp={}", root().join("deploy/seccomp.json").display());
    let unshare = |profile: &str, kind: &str| {
        let options = [
            "run",
            "--rm",
            "--cap-add",
            "SYS_ADMIN",
            "--security-opt",
            profile,
            IMAGE,
        ];
        let command = ["/bin/busybox", "unshare", kind, "/bin/busybox", "true"];
        deployment.docker.run(&[&options[..], &command].concat())
    };
    unshare("seccomp=unconfined", "--uts")?;
    unshare(&profile, "--net")?;
    for kind in ["--uts", "--mount", "--ipc"] {
        let error = unshare(&profile, kind).expect_err("a namespace that is not allowed");
        ensure!(error.to_string().contains("Operation not permitted"), "{error}");
    }
    Ok(())
}

#[test]
fn ambient_capabilities_do_as_well_where_new_privileges_are_forbidden() -> anyhow::Result<()> {
    let rows = listed_capabilities()?;
    let capabilities: String = rows
        .iter()
        .map(|row| row.capability.replace("CAP_", ",+").to_lowercase())
        .collect();
    let capabilities = format!("-all{capabilities}");
    // A folder that this user may enter.
    let folder = PathBuf::from(format!("/tmp/packetflix-ambient-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let copy = folder.join("packetflix");
    fs::copy(program("packetflix")?, &copy)?;
    let ran = Command::new("setpriv")
        .args([
            "--reuid=75001",
            "--regid=75001",
            "--clear-groups",
            "--no-new-privs",
        ])
        .arg(format!("--bounding-set={capabilities}"))
        .arg(format!("--inh-caps={capabilities}"))
        .arg(format!("--ambient-caps={capabilities}"))
        .arg(&copy)
        .args(["check", "--json"])
        .output();
    fs::remove_dir_all(&folder)?;
    let ran = ran?;
    let report: Value = serde_json::from_slice(&ran.stdout)?;
    ensure!(ran.status.success() && report["captures"] == true, "{report:#}");
    for subject in [
        "hook tcx",
        "hook socket",
        "filters",
        "filters with vlan",
        "other processes",
    ] {
        assert_eq!(finding(&report, subject)?["state"], "works", "{subject}");
    }
    Ok(())
}

#[test]
fn every_way_of_deployment_gives_the_capabilities_of_the_table() -> anyhow::Result<()> {
    let all = names(&listed_capabilities()?);
    let unit = read("deploy/systemd/packetflix.service")?;
    for setting in ["AmbientCapabilities=", "CapabilityBoundingSet="] {
        let line = unit.lines().find_map(|line| line.strip_prefix(setting));
        let given: BTreeSet<String> = line.context(setting)?.split(' ').map(str::to_owned).collect();
        assert_eq!(given, all, "{setting}");
    }
    let compose = read("deploy/compose.yaml")?;
    let (_, added) = compose.split_once("cap_add:").context("no cap_add")?;
    let given = added
        .lines()
        .skip(1)
        .map_while(|line| line.trim().strip_prefix("- "));
    let given: BTreeSet<String> = given.map(|name| format!("CAP_{name}")).collect();
    assert_eq!(given, all, "compose.yaml");
    Ok(())
}

#[test]
fn every_way_of_deployment_starts_closed_or_asks_for_tokens() -> anyhow::Result<()> {
    let unit = read("deploy/systemd/packetflix.service")?;
    let compose = read("deploy/compose.yaml")?;
    let image = read("deploy/Dockerfile")?;
    for (what, text) in [
        ("unit", &unit),
        ("compose.yaml", &compose),
        ("Dockerfile", &image),
    ] {
        for open in ["OPEN_TO_EVERYONE", "open-to-everyone", "_LISTEN", "--listen"] {
            ensure!(!text.contains(open), "{what}: {open}");
        }
        // Which is `nonroot` in many images: what is trusted would be trusted in all of them.
        ensure!(!text.contains("65532"), "{what}");
    }
    ensure!(unit.contains("\nRuntimeDirectory=packetflix\n"));
    ensure!(compose.contains("PACKETFLIX_TOKEN_FILE: /run/secrets/tokens\n"));
    for folder in [
        "base",
        "overlays/runtime-default",
        "overlays/ghostwire",
        "overlays/kubernetes-auth",
        "overlays/gateway",
    ] {
        let objects = objects(folder, "1.37")?;
        ensure!(!json!(objects).to_string().contains("65532"), "{folder}");
        let packetflix = container(&objects, "packetflix")?;
        let tokens = json!({ "name": "PACKETFLIX_TOKEN_FILE", "value": "/etc/packetflix/tokens" });
        let env = packetflix["env"].as_array().context("no env")?;
        ensure!(
            env.contains(&tokens) && !json!(env).to_string().contains("OPEN"),
            "{folder}"
        );
    }
    Ok(())
}

#[test]
fn a_docker_without_its_plugin_for_builds_is_told_before_anything_is_built() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("packetflix-buildx-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let docker = folder.join("docker");
    fs::write(
        &docker,
        "#!/bin/sh\n[ \"$1\" = version ] && echo 28.2.2\nexit 1\n",
    )?;
    fs::set_permissions(&docker, fs::Permissions::from_mode(0o700))?;
    let ran = Command::new(program("xtask")?)
        .args(["image", "--tag", PACKETFLIX])
        .env("PATH", format!("{}:{}", folder.display(), std::env::var("PATH")?))
        .output()?;
    fs::remove_dir_all(&folder)?;
    let said = String::from_utf8(ran.stderr)?;
    ensure!(
        !ran.status.success() && said.contains("apt-get install docker-buildx-plugin"),
        "{said}"
    );
    ensure!(!said.contains("cargo"), "{said}");
    Ok(())
}

#[test]
fn the_unit_is_valid_and_confines_the_service() -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("packetflix-unit-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let unit = folder.join("packetflix.service");
    let program = program("packetflix")?.display().to_string();
    let text = read("deploy/systemd/packetflix.service")?;
    ensure!(text.contains("ExecStart=/usr/local/bin/packetflix\n"));
    fs::write(&unit, text.replace("/usr/local/bin/packetflix", &program))?;

    let verified = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&unit)
        .output()?;
    // Of 100: how much a service without any settings is exposed.
    let rated = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=35"])
        .arg(&unit)
        .output()?;
    fs::remove_dir_all(&folder)?;
    let said = String::from_utf8_lossy(&verified.stderr);
    ensure!(
        verified.status.success() && !said.contains("packetflix.service"),
        "{said}"
    );
    ensure!(
        rated.status.success(),
        "{}",
        String::from_utf8_lossy(&rated.stdout)
    );
    Ok(())
}

/// Of the system calls that do the same, arm64 has the newer only: `asm-generic/unistd.h` of the kernel.
#[test]
fn profile_allows_on_arm64_what_it_allows_on_amd64() -> anyhow::Result<()> {
    const NEWER: [(&str, &str); 12] = [
        ("access", "faccessat"),
        ("chmod", "fchmodat"),
        ("dup2", "dup3"),
        ("epoll_wait", "epoll_pwait"),
        ("getpgrp", "getpgid"),
        ("lstat", "newfstatat"),
        ("pipe", "pipe2"),
        ("poll", "ppoll"),
        ("readlink", "readlinkat"),
        ("stat", "newfstatat"),
        ("unlink", "unlinkat"),
        ("vfork", "clone"),
    ];

    let profile: Value = serde_json::from_str(&read("deploy/seccomp.json")?)?;
    let rules = profile["syscalls"].as_array().context("no rules")?;
    let allowed: BTreeSet<&str> = rules
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        .flat_map(|rule| rule["names"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    for (older, newer) in NEWER {
        ensure!(allowed.contains(older), "{older} is not allowed");
        ensure!(allowed.contains(newer), "{newer} is not allowed, and {older} is");
    }
    Ok(())
}
