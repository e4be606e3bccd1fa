//! Real container engines, and some that lie: what they run is listed, and captured by its name.

use std::{
    io::{BufRead as _, BufReader},
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use packetflix_tests::{
    client::{Recorder, refusal},
    containerd::Containerd,
    docker::Docker,
    image::IMAGE,
    namespace::{Namespace, run},
    podman::Podman,
    process::{Sleeper, capture_is_of, netns_of, starttime_of},
    recording::Recording,
    server::{Server, program, wait_until},
};
use serde_json::{Value, json};
use tokio::time::timeout;

/// A server that asks the engines at these sockets too.
fn server_with(sockets: &[&Path]) -> anyhow::Result<Server> {
    let flags: Vec<String> = sockets
        .iter()
        .map(|socket| format!("--engine-socket={}", socket.display()))
        .collect();
    Server::start(&flags.iter().map(|flag| &flag[..]).collect::<Vec<_>>())
}

/// Checks how a target is listed, and captures it by its name and prefix alone.
async fn is_listed_and_captured(
    server: &Server,
    name: &str,
    kind: &str,
    prefix: &str,
    pid: u32,
) -> anyhow::Result<()> {
    let listed = server.target(name)?;
    ensure!(
        listed["type"] == kind
            && listed["prefix"] == prefix
            && listed["netns"] == netns_of(pid)?
            && listed["pid"] == pid
            && listed["starttime"] == starttime_of(pid)?,
        "{listed}"
    );
    let by_name = json!({ "name": name, "prefix": prefix });
    for target in [&by_name, &listed] {
        let recording = capture_is_of(server, target, "", pid).await?;
        let full_name = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}:{name}")
        };
        let words = format!(
            "container-name: {}\ncontainer-type: \"{kind}\"\n",
            json!(full_name)
        );
        ensure!(recording.comment.contains(&words), "{}", recording.comment);
    }
    Ok(())
}

fn interfaces(target: &Value) -> Vec<&str> {
    let names = target["network-interfaces"].as_array();
    names.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Starts a container that sleeps; gives the PID of its first process.
fn docker_run(docker: &Docker, name: &str) -> anyhow::Result<u32> {
    docker.run(&["run", "--detach", "--name", name, IMAGE])?;
    docker_pid(docker, name)
}

fn docker_pid(docker: &Docker, name: &str) -> anyhow::Result<u32> {
    Ok(docker
        .run(&["inspect", "--format", "{{.State.Pid}}", name])?
        .parse()?)
}

fn podman_run(podman: &Podman, name: &str) -> anyhow::Result<u32> {
    podman.run(&["run", "--detach", "--name", name, IMAGE])?;
    Ok(podman
        .run(&["inspect", "--format", "{{.State.Pid}}", name])?
        .parse()?)
}

#[tokio::test]
async fn containers_pods_processes_and_mounts_are_listed_and_captured() -> anyhow::Result<()> {
    let (docker, podman, containerd) = (Docker::start()?, Podman::start()?, Containerd::start()?);
    let web = docker_run(&docker, "web")?;
    let db = podman_run(&podman, "db")?;
    let pod = containerd.run_pod("shop", "cart-0", &[("app", "cart")])?;
    let sleeper = Sleeper::unshared()?;
    let namespace = Namespace::new()?;
    let server = server_with(&[&docker.socket(), &podman.socket(), &containerd.socket()])?;

    is_listed_and_captured(&server, "web", "docker", "", web).await?;
    is_listed_and_captured(&server, "db", "podman", "", db).await?;
    is_listed_and_captured(&server, "shop/cart-0", "pod", "", containerd.pid(&pod.id)?).await?;
    let process = format!("sleep({})", sleeper.pid());
    is_listed_and_captured(&server, &process, "proc", "", sleeper.pid()).await?;
    for name in ["web", "db", "shop/cart-0"] {
        let target = server.target(name)?;
        let interfaces = interfaces(&target);
        ensure!(
            interfaces.contains(&"lo") && interfaces.contains(&"eth0"),
            "{target}"
        );
    }

    let mount = server.target(&namespace.path().display().to_string())?;
    ensure!(
        mount["type"] == "bindmount"
            && mount["netns"] == namespace.inode()?
            && mount["pid"] == 0
            && mount["starttime"] == 0
            && interfaces(&mount) == ["lo"],
        "{mount}"
    );
    let mut recorder = Recorder::start(&server.url_of(&json!({ "name": mount["name"] }), "")).await?;
    namespace.inside(|| std::net::UdpSocket::bind("127.0.0.1:0")?.send_to(b"hello", "127.0.0.1:9"))??;
    recorder
        .read_until(|recording| !recording.packets.is_empty())
        .await?;
    let recording = recorder.finish().await?;
    ensure!(
        recording
            .comment
            .contains(&format!("container-name: {}", mount["name"]))
    );

    more_is_told_of_each(&server, &docker)?;
    all_are_captured_in_one_stream(&server, &docker, &podman).await
}

/// Containers and pods of all engines, and those that come and go meanwhile.
async fn all_are_captured_in_one_stream(
    server: &Server,
    docker: &Docker,
    podman: &Podman,
) -> anyhow::Result<()> {
    let url = server.url("target=web&target=type:podman&target=label:app%3Dcart&names=0");
    let mut recorder = Recorder::start(&url).await?;
    let has = |recording: &Recording, name: &str| recording.interfaces.iter().any(|one| one.name == name);
    let first = ["web/eth0", "db/eth0", "shop/cart-0/eth0"];
    recorder
        .read_until(|recording| first.iter().all(|name| has(recording, name)))
        .await?;
    podman_run(podman, "later")?;
    recorder
        .read_until(|recording| has(recording, "later/eth0"))
        .await?;
    for name in ["db", "later"] {
        podman.run(&["exec", name, "/bin/busybox", "ping", "-c", "1", "127.0.0.1"])?;
    }
    docker.run(&["kill", "web"])?;
    recorder
        .read_until(|recording| recording.final_statistics("web/eth0").is_ok())
        .await?;
    docker.run(&["start", "web"])?;
    let again = |recording: &Recording| {
        recording
            .interfaces
            .iter()
            .filter(|one| one.name == "web/eth0")
            .count()
    };
    recorder.read_until(|recording| again(recording) >= 2).await?;
    let recording = recorder.finish().await?;
    recording.check_order()?;
    for name in ["db/lo", "later/lo"] {
        let statistics = recording.final_statistics(name)?;
        ensure!(
            statistics.delivered >= 2 && statistics.dropped == 0,
            "{name}: {statistics:?}"
        );
    }
    Ok(())
}

/// `/targets` has what `/mobyshark` has no place for.
fn more_is_told_of_each(server: &Server, docker: &Docker) -> anyhow::Result<()> {
    let (status, details) = server.get("/targets")?;
    ensure!(status == 200 && details["version"] == 1, "{details}");
    let find = |name: &str| {
        let mut targets = details["targets"].as_array().into_iter().flatten();
        targets
            .find(|target| target["name"] == name)
            .context("not listed")
    };
    let web = find("web")?;
    let address = docker.run(&[
        "inspect",
        "--format",
        "{{range .NetworkSettings.Networks}}{{.IPAddress}}/{{.IPPrefixLen}}{{end}}",
        "web",
    ])?;
    let eth0 = web["network-interfaces"]
        .as_array()
        .and_then(|interfaces| interfaces.iter().find(|interface| interface["name"] == "eth0"))
        .context("no eth0")?;
    ensure!(
        eth0["addresses"] == json!([address]) && eth0["state"] == "up",
        "{eth0}"
    );
    ensure!(
        web["container"]["images"] == json!([IMAGE]) && web["container"]["state"] == "running",
        "{web}"
    );
    let pod = find("shop/cart-0")?;
    ensure!(
        pod["pod"] == json!({ "namespace": "shop", "name": "cart-0" })
            && pod["container"]["labels"]["app"] == "cart"
            && pod["container"]["images"][0]
                .as_str()
                .is_some_and(|image| image.contains("busybox")),
        "{pod}"
    );
    let engines = details["engines"].as_array().context("no engines")?;
    ensure!(
        engines
            .iter()
            .all(|engine| engine["problem"].is_null() && engine["workloads"] == 1),
        "{engines:?}"
    );
    let host: Vec<_> = details["targets"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|target| target["host"] == true)
        .collect();
    ensure!(host.len() == 1 && host[0]["type"] == "proc", "{host:?}");
    Ok(())
}

#[tokio::test]
async fn container_that_restarts_is_found_by_its_name() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let before = docker_run(&docker, "web")?;
    let server = server_with(&[&docker.socket()])?;
    let listed = server.target("web")?;
    ensure!(listed["pid"] == before, "{listed}");
    docker.run(&["restart", "--time", "0", "web"])?;
    let after = docker_pid(&docker, "web")?;
    capture_is_of(&server, &listed, "", after).await?;
    is_listed_and_captured(&server, "web", "docker", "", after).await?;

    docker.run(&["kill", "web"])?;
    let (status, sentence) = refusal(&server, &server.url_of(&listed, ""), &[]).await?;
    ensure!(
        status == 409 && sentence.starts_with("the target web is stale and could not be found again: "),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn containers_of_one_name_under_two_engines_are_told_apart() -> anyhow::Result<()> {
    let (docker, podman) = (Docker::start()?, Podman::start()?);
    let (here, there) = (docker_run(&docker, "web")?, podman_run(&podman, "web")?);
    let server = server_with(&[&docker.socket(), &podman.socket()])?;
    let (status, sentence) = refusal(&server, &server.url_of(&json!({ "name": "web" }), ""), &[]).await?;
    ensure!(
        status == 409
            && sentence.contains(&format!("docker web (netns {}, pid {here})", netns_of(here)?))
            && sentence.contains(&format!("podman web (netns {}, pid {there})", netns_of(there)?)),
        "{status} {sentence}"
    );
    capture_is_of(&server, &json!({ "name": "web", "type": "docker" }), "", here).await?;
    capture_is_of(&server, &json!({ "name": "web", "type": "podman" }), "", there).await?;
    Ok(())
}

#[tokio::test]
async fn pod_that_docker_runs_for_kubernetes_is_one_target() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let labels = |name: &str| {
        [
            "--label=io.kubernetes.pod.name=cart-0".to_owned(),
            "--label=io.kubernetes.pod.namespace=shop".to_owned(),
            format!("--label=io.kubernetes.container.name={name}"),
        ]
    };
    let run = |name: &str, network: &str| -> anyhow::Result<u32> {
        let [pod, namespace, container] = labels(name);
        docker.run(&[
            "run", "--detach", "--name", name, network, &pod, &namespace, &container, IMAGE,
        ])?;
        docker_pid(&docker, name)
    };
    let sandbox = run("k8s_POD_cart-0_shop_3b5e-11_0", "--network=bridge")?;
    run(
        "k8s_app_cart-0_shop_3b5e-11_0",
        "--network=container:k8s_POD_cart-0_shop_3b5e-11_0",
    )?;
    let server = server_with(&[&docker.socket()])?;
    is_listed_and_captured(&server, "shop/cart-0", "pod", "", sandbox).await?;
    let of_docker = server
        .targets()?
        .into_iter()
        .filter(|target| target["netns"] == netns_of(sandbox).unwrap_or_default());
    assert_eq!(of_docker.count(), 1);
    Ok(())
}

#[tokio::test]
async fn engine_in_a_container_is_found_and_its_containers_have_its_name_as_prefix() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    // Another engine, with the programs of the host and folders of its own.
    let script = "mount -t proc none /proc && mount -t tmpfs none /run && mount -t tmpfs none /tmp && mkdir /tmp/data && \
                  exec dockerd --data-root /tmp/data --exec-root /run/docker --pidfile /run/pid \
                  --storage-driver vfs --host unix:///run/docker.sock --group root";
    docker.run(&[
        "run",
        "--detach",
        "--name=outer",
        "--cap-add=ALL",
        "--cap-drop=SYS_RESOURCE",
        "--security-opt=seccomp=unconfined",
        "--device-cgroup-rule=a *:* rwm",
        "--volume=/:/host",
        IMAGE,
        "/bin/busybox",
        "chroot",
        "/host",
        "sh",
        "-c",
        script,
    ])?;
    let outer = docker_pid(&docker, "outer")?;
    // A web of each engine, and the image for the inner one.
    let here = docker_run(&docker, "web")?;
    let inner = |arguments: &[&str]| {
        let socket = format!("--host=unix:///proc/{outer}/root/run/docker.sock");
        run("docker", &[&[&socket[..]], arguments].concat())
    };
    wait_until(Duration::from_secs(60), || Ok(inner(&["info"]).is_ok()))
        .with_context(|| docker.run(&["logs", "outer"]).unwrap_or_default())?;
    let archive = std::env::temp_dir().join(format!("packetflix-nested-{}.tar", std::process::id()));
    docker.run(&["save", "--output", &archive.display().to_string(), IMAGE])?;
    inner(&["load", "--input", &archive.display().to_string()])?;
    std::fs::remove_file(&archive)?;
    inner(&["run", "--detach", "--name=web", IMAGE])?;

    let server = server_with(&[&docker.socket()])?;
    let mut found = Vec::new();
    wait_until(Duration::from_secs(10), || {
        found = server.targets()?;
        found.retain(|target| target["name"] == "web");
        Ok(found.len() == 2)
    })
    .with_context(|| format!("{found:?}\n{}", server.log()))?;
    let nested = found
        .iter()
        .find(|target| target["prefix"] == "outer")
        .context("no prefix")?;
    let pid = u32::try_from(nested["pid"].as_u64().context("no pid")?)?;
    ensure!(
        nested["netns"] == netns_of(pid)? && netns_of(pid)? != netns_of(here)? && nested["type"] == "docker",
        "{nested}"
    );
    capture_is_of(&server, &json!({ "name": "web", "prefix": "outer" }), "", pid).await?;
    capture_is_of(&server, &json!({ "name": "web" }), "", here).await?;
    Ok(())
}

/// An engine at Docker's place in a mount and PID namespace of its own; ended when dropped.
struct Elsewhere(Child);

impl Elsewhere {
    /// Runs `script` there, in which `$ENGINE` is the program that becomes the engine.
    fn start(script: &str) -> anyhow::Result<Self> {
        let script = format!("mount -t tmpfs none /run || exit; {script}");
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                &script,
            ])
            .env("ENGINE", program("fake-engine")?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line == "ready\n", "{line}");
        Ok(Self(child))
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn engine_in_another_pid_namespace_speaks_of_processes_there_and_no_others() -> anyhow::Result<()> {
    let victim = Sleeper::unshared()?;
    // Under the number that the victim has for us, there is nobody there; its own child has a small number.
    let script = format!(
        "unshare --net sh -c 'ip link set lo up && exec sleep 60' & exec \"$ENGINE\" /run/docker.sock honest $! liar {}",
        victim.pid()
    );
    let _engine = Elsewhere::start(&script)?;
    let server = Server::start(&[])?;
    let mut honest = Value::Null;
    wait_until(Duration::from_secs(10), || {
        honest = server.target("honest")?;
        // Its process may not have left our namespace yet.
        Ok(honest["netns"] != netns_of(std::process::id())?)
    })?;
    let pid = u32::try_from(honest["pid"].as_u64().context("no pid")?)?;
    ensure!(
        honest["type"] == "docker" && netns_of(pid)? == honest["netns"],
        "{honest}"
    );
    capture_is_of(&server, &json!({ "name": "honest" }), "", pid).await?;

    let targets = server.targets()?;
    ensure!(
        targets.iter().all(|target| target["name"] != "liar"),
        "{targets:?}"
    );
    let own_name = format!("sleep({})", victim.pid());
    ensure!(server.target(&own_name)?["pid"] == victim.pid());
    Ok(())
}

#[tokio::test]
async fn engine_of_a_user_speaks_of_that_users_processes_only() -> anyhow::Result<()> {
    let victim = Sleeper::unshared()?;
    let folder = std::env::temp_dir().join(format!("packetflix-user-engine-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    std::os::unix::fs::chown(&folder, Some(65_534), Some(65_534))?;
    let socket = folder.join("socket");
    let mut engine = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program("fake-engine")?)
        .arg(&socket)
        .args(["liar", &victim.pid().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    wait_until(Duration::from_secs(5), || Ok(socket.exists()))?;
    let server = server_with(&[&socket])?;
    let targets = server.targets()?;
    engine.kill()?;
    engine.wait()?;
    std::fs::remove_dir_all(&folder)?;
    ensure!(
        targets.iter().all(|target| target["name"] != "liar"),
        "{targets:?}"
    );
    ensure!(
        server.log().contains("an engine tells what it runs"),
        "{}",
        server.log()
    );
    Ok(())
}

#[tokio::test]
async fn engine_that_hangs_costs_its_own_targets_alone() -> anyhow::Result<()> {
    let docker = Docker::start()?;
    let web = docker_run(&docker, "web")?;
    let folder = std::env::temp_dir().join(format!("packetflix-hanging-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let silent = folder.join("silent");
    let mut engine = Command::new(program("fake-engine")?)
        .arg(&silent)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    wait_until(Duration::from_secs(5), || Ok(silent.exists()))?;
    let missing = folder.join("missing");
    let server = server_with(&[&silent, &missing, &docker.socket()])?;
    is_listed_and_captured(&server, "web", "docker", "", web).await?;
    let (_, details) = server.get("/targets")?;
    engine.kill()?;
    engine.wait()?;
    std::fs::remove_dir_all(&folder)?;

    let problem = |socket: &Path| {
        let mut engines = details["engines"].as_array().into_iter().flatten();
        let engine = engines.find(|engine| engine["socket"] == socket.display().to_string());
        engine
            .and_then(|engine| engine["problem"].as_str())
            .unwrap_or_default()
            .to_owned()
    };
    assert_eq!(problem(&silent), "it did not tell everything within 1 s");
    ensure!(
        problem(&missing).starts_with("it cannot be opened: No such file"),
        "{details}"
    );
    assert_eq!(problem(&docker.socket()), "");
    let logged = |words: &str| server.log().matches(words).count();
    // Once, and not with every scan.
    assert_eq!(logged("an engine does not tell what it runs"), 2);
    Ok(())
}

/// Several mount namespaces have something at the same path: which is meant, is told.
#[test]
fn a_socket_is_told_with_the_mount_namespace_that_has_it() -> anyhow::Result<()> {
    let script = "mount -t tmpfs none /run && exec \"$0\" /run/docker.sock";
    let mut engine = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(program("fake-engine")?)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()?;
    let socket = format!("/proc/{}/root/run/docker.sock", engine.id());
    wait_until(Duration::from_secs(5), || Ok(Path::new(&socket).exists()))?;
    let namespace = std::fs::metadata(format!("/proc/{}/ns/mnt", engine.id()))?.ino();
    let server = Server::start(&[])?;
    let (_, details) = server.get("/targets")?;
    engine.kill()?;
    engine.wait()?;
    let engines = details["engines"].as_array().context("no engines")?;
    ensure!(
        engines
            .iter()
            .any(|one| one["socket"] == "/run/docker.sock" && one["mount-namespace"] == namespace),
        "{details}"
    );
    let whose = format!(
        "as process {} sees it in mount namespace {namespace}",
        engine.id()
    );
    ensure!(details["gaps"].to_string().contains(&whose), "{details}");
    server.wait_for_log(&whose)
}

#[test]
fn pod_of_containerd_survives_a_restart_of_its_engine() -> anyhow::Result<()> {
    let mut containerd = Containerd::start()?;
    let pod = containerd.run_pod("shop", "web-0", &[])?;
    let server = server_with(&[&containerd.socket()])?;
    let before = server.target("shop/web-0")?;
    containerd.restart()?;
    assert_eq!(server.target("shop/web-0")?, before);
    containerd.stop_pod(&pod.id)?;
    wait_until(Duration::from_secs(5), || {
        Ok(server
            .targets()?
            .iter()
            .all(|target| target["name"] != "shop/web-0"))
    })
}

#[tokio::test]
async fn engines_are_found_wherever_they_listen() -> anyhow::Result<()> {
    let (docker, podman, containerd) = (Docker::start()?, Podman::start()?, Containerd::start()?);
    let web = docker_run(&docker, "web")?;
    let pod = containerd.run_pod("shop", "cart-0", &[])?;
    let db = podman_run(&podman, "db")?;
    let server = Server::start(&[])?;
    is_listed_and_captured(&server, "web", "docker", "", web).await?;
    is_listed_and_captured(&server, "shop/cart-0", "pod", "", containerd.pid(&pod.id)?).await?;
    // This engine has mounts of its own, like root in a container: it is asked, and not believed.
    let targets = server.targets()?;
    let of_db: Vec<_> = targets
        .iter()
        .filter(|target| target["netns"] == netns_of(db).unwrap_or_default())
        .collect();
    ensure!(of_db.len() == 1 && of_db[0]["type"] == "proc", "{of_db:?}");

    // Their sockets for other purposes are no engines.
    let (_, details) = server.get("/targets")?;
    let engines = details["engines"].as_array().context("no engines")?;
    let mut sockets: Vec<_> = engines
        .iter()
        .filter_map(|engine| engine["socket"].as_str())
        .collect();
    sockets.sort_unstable();
    let mut expected =
        [docker.socket(), podman.socket(), containerd.socket()].map(|path| path.display().to_string());
    expected.sort_unstable();
    assert_eq!(sockets, expected);
    ensure!(
        engines
            .iter()
            .all(|engine| engine["workloads"] == 1 && engine["problem"].is_null()),
        "{details}"
    );
    ensure!(details["gaps"].as_array().is_none_or(Vec::is_empty), "{details}");
    Ok(())
}

/// How many containers are started that end at once.
const STARTS: u16 = 20;

/// How many of them are caught at least: where others leave an engine no time, it may not tell in those milliseconds.
const LEAST: u16 = 15;

/// Starts containers, by their names and what they run, that connect as soon as they run and then end, and counts how many are in
/// the stream with the first packet of that.
async fn caught_at_their_start(
    server: &Server,
    label: &str,
    address: &str,
    names: impl Fn(&str) -> String,
    start: impl Fn(&str, &[&str]) -> anyhow::Result<()>,
) -> anyhow::Result<u16> {
    const PATIENCE: Duration = Duration::from_secs(5);

    let mut recorder = Recorder::start(&server.url(&format!("target=label:{label}&names=0"))).await?;
    recorder
        .read_until(|recording| {
            recording
                .interfaces
                .iter()
                .any(|one| one.name == format!("{}/eth0", names("first")))
        })
        .await?;
    let mut caught = 0;
    for number in 0..STARTS {
        let (name, port) = (format!("web-{number}"), 2000 + number);
        // It is refused, and so ends within milliseconds of its start.
        start(
            &name,
            &["/bin/busybox", "nc", "-w", "1", address, &port.to_string()],
        )?;
        let came = recorder.read_until(|recording| recording.connections_of(&names(&name), port) == 1);
        let is_caught = timeout(PATIENCE, came).await.is_ok();
        caught += u16::from(is_caught);
    }
    println!("{caught} of {STARTS} first packets");
    let recording = recorder.finish().await?;
    // What came in stands beside what went out.
    for number in 0..STARTS {
        assert_eq!(recording.connections_of(&names("first"), 2000 + number), 1);
    }
    Ok(caught)
}

#[tokio::test]
async fn containers_of_podman_that_end_at_once_are_in_a_stream_with_their_first_packet() -> anyhow::Result<()>
{
    let podman = Podman::start_with_mounts_of_host()?;
    // Other engines of this host may have an app of the same name.
    let label = format!("app=web-{}", std::process::id());
    podman.run(&["run", "--detach", "--name", "first", "--label", &label, IMAGE])?;
    let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
    let address = podman.run(&["inspect", "--format", format, "first"])?;
    let server = server_with(&[&podman.socket()])?;
    let start = |name: &str, command: &[&str]| {
        let run = ["run", "--rm", "--name", name, "--label", &label, IMAGE];
        match podman.run(&[&run[..], command].concat()) {
            Err(refused) if refused.to_string().contains("refused") => Ok(()),
            other => bail!("{other:?}"),
        }
    };
    let caught = caught_at_their_start(&server, &label, &address, str::to_owned, start).await?;
    ensure!(caught >= LEAST, "{caught} of {STARTS} first packets");
    Ok(())
}

#[tokio::test]
async fn pods_that_end_at_once_are_in_a_stream_with_their_first_packet() -> anyhow::Result<()> {
    let containerd = Containerd::start()?;
    let app = format!("web-{}", std::process::id());
    let labels = [("app", &app[..])];
    let first = containerd.run_pod("shop", "first", &labels)?;
    let server = server_with(&[&containerd.socket()])?;
    let start = |name: &str, command: &[&str]| {
        let pod = containerd.run_pod_with("shop", name, &labels, command)?;
        containerd.wait_for_end(&pod)?;
        // containerd refuses while it tidies up after the container.
        wait_until(Duration::from_secs(10), || {
            Ok(containerd.stop_pod(&pod.id).is_ok())
        })
    };
    let names = |name: &str| format!("shop/{name}");
    let label = format!("app=web-{}", std::process::id());
    let caught = caught_at_their_start(&server, &label, &first.address, names, start).await?;
    ensure!(caught >= LEAST, "{caught} of {STARTS} first packets");
    Ok(())
}
