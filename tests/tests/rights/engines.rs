//! Engines that lie about whose containers there are.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::IpAddr,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt as _, net::UnixListener},
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use packetflix_tests::{
    client::Recorder,
    engine::{FakeEngine, USER, UserFolder, as_user, program_called},
    folder::Folder,
    namespace::Namespace,
    process::{Sleeper, capture_is_of},
    server::{Server, program, wait_until},
};
use serde_json::json;

use crate::{ADMIN, Guarded, PART, container, named};

/// A container that no engine knows, with mounts of its own: root without rights over anything else. Ended when dropped.
struct Stranger(Child);

impl Stranger {
    /// Runs `script`, in which `$ENGINE` becomes an engine at Docker's place there.
    fn start(unshared: &[&str], script: &str) -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--kill-child"]).args(unshared);
        Self::start_by(command, script)
    }

    /// Does so by a command that has the mounts.
    fn start_by(mut command: Command, script: &str) -> anyhow::Result<Self> {
        let script = format!("mount -t tmpfs none /run || exit; {script}");
        let mut child = command
            .args(["sh", "-c", &script])
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

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In a PID namespace of its own, or not.
const STRANGERS: [&[&str]; 2] = [&["--pid", "--fork", "--mount-proc"], &["--fork"]];

#[tokio::test]
async fn listener_that_has_ended_speaks_of_nobody() -> anyhow::Result<()> {
    let victim = Sleeper::unshared()?;
    let netns = format!("netns={}", victim.netns()?);
    let server = Guarded::start("web", &[])?;
    for unshared in STRANGERS {
        let script = format!(
            "FAKE_ENGINE_HANDS_OVER=1 \"$ENGINE\" /run/docker.sock web {}; exec sleep 60",
            victim.pid()
        );
        let stranger = Stranger::start(unshared, &script)?;
        let (status, sentence) = server.status(PART, &netns).await?;
        ensure!(status == 404, "{status} {sentence}");
        ensure!(server.status(PART, &named("web")).await?.0 == 404);
        let details = server.details(ADMIN)?.to_string();
        ensure!(
            details.contains("who began to listen there has ended"),
            "{details}"
        );
        let targets = server.targets(ADMIN)?;
        let own_name = format!("sleep({})", victim.pid());
        ensure!(targets.contains(&(own_name, victim.netns()?)), "{targets:?}");
        ensure!(targets.iter().all(|(name, _)| name != "web"), "{targets:?}");
        drop(stranger);
    }
    Ok(())
}

#[tokio::test]
async fn root_with_mounts_of_its_own_speaks_of_none_of_the_hosts_processes() -> anyhow::Result<()> {
    let victim = Sleeper::unshared()?;
    let server = Guarded::start("web", &[])?;
    for unshared in STRANGERS {
        let script = format!("exec \"$ENGINE\" /run/docker.sock web {}", victim.pid());
        let stranger = Stranger::start(unshared, &script)?;
        let targets = server.targets(ADMIN)?;
        ensure!(targets.iter().all(|(name, _)| name != "web"), "{targets:?}");
        ensure!(
            server
                .status(PART, &format!("netns={}", victim.netns()?))
                .await?
                .0
                == 404
        );
        drop(stranger);
    }
    Ok(())
}

#[tokio::test]
async fn containers_stay_their_engines_while_that_restarts() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let (socket, other) = (folder.file("engine"), folder.file("other"));
    let victim = Sleeper::unshared()?;
    let server = Guarded::start("web", &[&socket, &other])?;
    let engine = FakeEngine::start(&socket, &[("db", victim.pid())], &[])?;
    capture_of(&server, "db", &victim).await?;
    drop(engine);
    let liar = FakeEngine::start(&other, &[("web", victim.pid())], &[])?;
    for _ in 0..2 {
        capture_of(&server, "db", &victim).await?;
        ensure!(server.status(PART, &named("web")).await?.0 != 101);
        ensure!(
            server
                .status(PART, &format!("netns={}", victim.netns()?))
                .await?
                .0
                == 404
        );
        let targets = server.targets(ADMIN)?;
        ensure!(targets.iter().all(|(name, _)| name != "web"), "{targets:?}");
        std::thread::sleep(Duration::from_millis(1100));
    }
    let _again = FakeEngine::start(&socket, &[("db", victim.pid())], &[])?;
    capture_of(&server, "db", &victim).await?;
    drop(liar);
    Ok(())
}

/// An administrator captures a name, which is this process's.
async fn capture_of(server: &Guarded, name: &str, sleeper: &Sleeper) -> anyhow::Result<()> {
    let targets = server.targets(ADMIN)?;
    let is_listed = targets.contains(&(name.to_owned(), sleeper.netns()?));
    ensure!(is_listed, "{name} is not {}: {targets:?}", sleeper.pid());
    let (status, sentence) = server.status(ADMIN, &named(name)).await?;
    ensure!(status == 101, "{name}: {status} {sentence}");
    Ok(())
}

/// A command that runs another behind this script, by a user without rights, in a network namespace of that user's own.
fn in_a_namespace_of_a_user(script: &str) -> [&str; 12] {
    [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "unshare",
        "--user",
        "--net",
        "--map-root-user",
        "sh",
        "-c",
        script,
        "sh",
    ]
}

#[tokio::test]
async fn names_are_those_of_the_host_before_those_of_users() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let users = UserFolder::new()?;
    let as_user = in_a_namespace_of_a_user("ip link set lo up && exec \"$@\"");
    let [own, pod] = [(); 2].map(|()| Sleeper::unshared_as("own", &as_user));
    let (own, pod) = (own?, pod?);
    let mut real = Sleeper::unshared()?;
    let engine = FakeEngine::start(&folder.file("engine"), &[("web", real.pid())], &[])?;
    let labels = json!({ "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop" });
    let liar = FakeEngine::start_of_user(
        &users.file("engine"),
        &[("web", own.pid()), ("k8s_POD_web-0_shop_1_0", pod.pid())],
        &[("FAKE_ENGINE_LABELS", &labels.to_string())],
    )?;
    let sockets =
        [liar.socket(), engine.socket()].map(|socket| format!("--engine-socket={}", socket.display()));
    let server = Server::start(&[&sockets[0], &sockets[1]])?;

    // Both are there, and the name is root's.
    let listed = |server: &Server| -> anyhow::Result<Vec<u64>> {
        let mut targets = server.targets()?;
        targets.retain(|target| target["name"] == "web" && target["type"] == "docker");
        Ok(targets
            .iter()
            .filter_map(|target| target["pid"].as_u64())
            .collect())
    };
    let both = [own.pid(), real.pid()].map(u64::from);
    wait_until(Duration::from_secs(5), || {
        let found = listed(&server)?;
        Ok(both.iter().all(|pid| found.contains(pid)))
    })
    .with_context(|| format!("{:?} {}", server.targets(), server.log()))?;
    capture_is_of(&server, &json!({ "name": "web" }), "", real.pid()).await?;
    capture_is_of(
        &server,
        &json!({ "name": "web", "type": "docker" }),
        "",
        real.pid(),
    )
    .await?;
    // A pod is Kubernetes', not a user's.
    let targets = server.targets()?;
    ensure!(
        targets
            .iter()
            .all(|target| target["type"] != "pod" && target["name"] != "shop/web-0"),
        "{targets:?}"
    );

    // Once the real one is gone, nobody takes its place,
    let mut stale = real.identity()?;
    stale["name"] = json!("web");
    real.end()?;
    for target in [&json!({ "name": "web" }), &stale] {
        let (status, sentence) =
            packetflix_tests::client::refusal(&server, &server.url_of(target, ""), &[]).await?;
        ensure!(
            status == 409 && sentence.contains("was not started by an engine of the host"),
            "{status} {sentence}"
        );
    }
    // but who is meant may be captured.
    let mut meant = own.identity()?;
    meant["name"] = json!("web");
    capture_is_of(&server, &meant, "", own.pid()).await?;
    Ok(())
}

#[tokio::test]
async fn labels_of_an_image_make_no_pod() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let (container, pod) = (Sleeper::unshared()?, Sleeper::unshared()?);
    // Both have the labels that an image can give to all its containers; one has a kubelet's name.
    let labels = json!({ "io.kubernetes.pod.name": "web-1", "io.kubernetes.pod.namespace": "shop" });
    let containers = [
        ("db", container.pid()),
        ("k8s_POD_web-1_shop_3b5e-11_0", pod.pid()),
    ];
    let labels = [("FAKE_ENGINE_LABELS", &labels.to_string()[..])];
    let engine = FakeEngine::start(&folder.file("engine"), &containers, &labels)?;
    let server = Guarded::start("shop/*", &[engine.socket()])?;
    capture_of(&server, "db", &container).await?;
    capture_of(&server, "shop/web-1", &pod).await?;
    ensure!(server.targets(PART)? == [("shop/web-1".to_owned(), pod.netns()?)]);
    ensure!(server.status(PART, &named("shop/web-1")).await?.0 == 101);
    for query in [named("db"), format!("netns={}", container.netns()?)] {
        let (status, sentence) = server.status(PART, &query).await?;
        ensure!(status == 404, "{query}: {status} {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn users_name_addresses_in_their_own_namespaces_only() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let users = UserFolder::new()?;
    // A user has the address of root's container, and one of somebody in the network.
    let (here, there) = Namespace::pair()?;
    let real = Sleeper::inside(&there)?;
    let addresses = "ip link set lo up && ip link add br0 type bridge && ip address add 10.9.1.2/32 dev br0 && \
                     ip address add 203.0.113.7/32 dev br0 && exec \"$@\"";
    let as_user = in_a_namespace_of_a_user(addresses);
    let own = Sleeper::unshared_as("own", &as_user)?;
    let engine = FakeEngine::start(&folder.file("engine"), &[("shop-db", real.pid())], &[])?;
    let liar = FakeEngine::start_of_user(&users.file("engine"), &[("payroll-db", own.pid())], &[])?;
    let sockets =
        [engine.socket(), liar.socket()].map(|socket| format!("--engine-socket={}", socket.display()));
    let server = Server::start(&[&sockets[0], &sockets[1]])?;
    server.target("payroll-db")?;
    for (netns, known, unknown) in [
        (here.inode()?, ("10.9.1.2", "shop-db"), Some("203.0.113.7")),
        (own.netns()?, ("203.0.113.7", "payroll-db"), None),
    ] {
        let mut recorder = Recorder::start(&server.url(&format!("netns={netns}"))).await?;
        let known: (IpAddr, &str) = (known.0.parse()?, known.1);
        recorder
            .read_until(|recording| {
                recording
                    .names
                    .iter()
                    .any(|name| (name.address, &name.name[..]) == known)
            })
            .await?;
        let recording = recorder.finish().await?;
        let is_named = |address| recording.name_of(address, usize::MAX).is_some();
        let unknown: Option<IpAddr> = unknown.map(str::parse).transpose()?;
        ensure!(!unknown.is_some_and(is_named), "{:?}", recording.names);
    }
    Ok(())
}

#[test]
fn one_container_crowds_out_no_engine_of_another() -> anyhow::Result<()> {
    // Silent sockets at all well-known places below five roots.
    let crowd = "cd /run && for root in 1 2 3 4 5; do \
                   mkdir -p $root/run $root/usr && mount --bind /usr $root/usr || exit; \
                   for link in bin lib lib64; do ln -s usr/$link $root/$link; done; \
                   for place in docker podman/podman containerd/containerd k3s/containerd/containerd k0s/containerd \
                       crio/crio cri-dockerd; do \
                     mkdir -p $(dirname $root/run/$place) && \"$ENGINE\" $root/run/$place.sock >&2 & \
                   done; chroot $root sleep 60 & done; sleep 1; echo ready; wait";
    let unshared = ["--net", "--pid", "--fork", "--mount-proc"];
    let _crowd = Stranger::start(&unshared, crowd)?;
    let engine = "unshare --net sleep 60 & sleep 1; exec \"$ENGINE\" /run/docker.sock inner $!";
    let _engine = Stranger::start(&unshared, engine)?;
    let server = Server::start(&[])?;
    // At once, and again.
    for _ in 0..2 {
        let (_, details) = server.get("/targets")?;
        let targets = details["targets"].as_array().context("no targets")?;
        let engines = details["engines"].as_array().context("no engines")?;
        ensure!(
            targets.iter().any(|target| target["name"] == "inner"),
            "{details}"
        );
        let silent = engines.iter().filter(|engine| engine["problem"].is_string());
        ensure!((1..=4).contains(&silent.count()), "{details}");
        ensure!(
            details["gaps"]
                .to_string()
                .contains("more engines were found than are asked")
        );
        std::thread::sleep(Duration::from_millis(1100));
    }
    Ok(())
}

#[test]
fn paths_of_users_are_told_without_what_controls_a_terminal() -> anyhow::Result<()> {
    let users = UserFolder::new()?;
    let program = program_called("dockerd", users.path())?;
    let forged = users.file("a\r2026-01-01T00:00:00Z  INFO all is well \u{1b}]0;owned\u{7}\u{202e}");
    let mut command = as_user("setpriv");
    command.arg(program);
    let _engine = FakeEngine::start_by(command, &forged, &[], &[])?;
    let server = Server::start(&[])?;
    let (_, details) = server.get("/targets")?;
    server.wait_for_log("a\\x0d2026-01-01T00:00:00Z  INFO all is well \\x1b]0;owned\\x07\\xe2\\x80\\xae")?;
    let is_raw = |text: &str| text.contains(['\r', '\u{1b}', '\u{7}', '\u{202e}']);
    let lines = server.log();
    ensure!(
        !lines
            .lines()
            .any(|line| line.contains("all is well") && is_raw(line)),
        "{lines:?}"
    );
    let gaps = details["gaps"].as_array().context("no gaps")?;
    ensure!(
        gaps.iter()
            .any(|gap| gap.as_str().is_some_and(|gap| gap.contains("\\x1b]0;owned"))),
        "{gaps:?}"
    );
    Ok(())
}

#[tokio::test]
async fn words_for_what_is_the_hosts_mean_nothing_of_users() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let users = UserFolder::new()?;
    let as_users = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let unshared = ["unshare", "--user", "--net", "--map-root-user", "sh", "-c"];
    let script = ["ip link set lo up && exec \"$@\"", "sh"];
    let by = [&["setpriv"], &as_users[..], &unshared, &script].concat();
    let own = [(); 3].map(|()| Sleeper::unshared_as("own", &by));
    let own: Vec<Sleeper> = own.into_iter().collect::<Result<_, _>>()?;
    // Root's: a container whose identifier begins with `beef0`, and a namespace that is mounted and has a process in it.
    let mut real = Sleeper::unshared()?;
    let namespace = Namespace::new()?;
    let inside = Sleeper::inside(&namespace)?;
    let engine = FakeEngine::start(&folder.file("engine"), &[("beef", real.pid())], &[])?;
    // The user's engine and mounts have all of that for names.
    let path = namespace.path().display().to_string();
    let name = namespace.name().to_owned();
    let words = ["host", "beef0", &name[..], &path[..]];
    let containers: Vec<(&str, u32)> = words.into_iter().zip(own.iter().map(Sleeper::pid)).collect();
    let liar = FakeEngine::start_of_user(&users.file("engine"), &containers, &[])?;
    let mut mounts = as_user("setpriv");
    mounts.args(["unshare", "--user", "--map-root-user", "--mount", "--net"]);
    let mount = format!(
        "mkdir /run/netns && : >{path} && mount --bind /proc/self/ns/net {path} && echo ready && \
         exec unshare --net sleep 60"
    );
    let _mounts = Stranger::start_by(mounts, &mount)?;
    let sockets =
        [liar.socket(), engine.socket()].map(|socket| format!("--engine-socket={}", socket.display()));
    let server = Server::start(&[&sockets[0], &sockets[1]])?;

    let meant = [std::process::id(), real.pid(), inside.pid(), inside.pid()];
    for (word, pid) in words.into_iter().zip(meant) {
        let query = "&nif=lo&filter=udp+port+9";
        capture_is_of(&server, &json!({ "name": word }), query, pid)
            .await
            .with_context(|| format!("{word}: {:?}", server.targets()))?;
    }
    // Nor do they once what they meant is gone.
    real.end()?;
    drop(inside);
    drop(namespace);
    for word in &words[1..] {
        let url = server.url_of(&json!({ "name": word }), "");
        let (status, sentence) = packetflix_tests::client::refusal(&server, &url, &[]).await?;
        ensure!(
            status == 409 && sentence.contains("was not started by an engine of the host"),
            "{word}: {status} {sentence}"
        );
    }
    Ok(())
}

#[test]
fn engines_of_users_are_reached_through_no_links_of_theirs() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let run = UserFolder::at_run_user()?;
    let victim = Sleeper::unshared()?;
    let engine = FakeEngine::start(&folder.file("engine"), &[("web", victim.pid())], &[])?;
    let place = run.file("docker.sock");
    std::os::unix::fs::symlink(engine.socket(), &place)?;
    let elsewhere = folder.file("podman");
    fs::create_dir(&elsewhere)?;
    let hidden = FakeEngine::start(&elsewhere.join("podman.sock"), &[("db", victim.pid())], &[])?;
    std::os::unix::fs::symlink(&elsewhere, run.file("podman"))?;
    let server = Guarded::start("web", &[])?;
    let details = server.details(ADMIN)?;
    ensure!(
        !details["engines"].to_string().contains("/run/user/"),
        "{details}"
    );
    let targets = server.targets(ADMIN)?;
    ensure!(
        targets.iter().all(|(name, _)| name != "web" && name != "db"),
        "{targets:?}"
    );
    fs::remove_file(&place)?;

    // Nor is a socket of root's believed there, nor one of the user's at which root listens.
    let root = FakeEngine::start(&place, &[("web", victim.pid())], &[])?;
    let targets = server.targets(ADMIN)?;
    ensure!(targets.iter().all(|(name, _)| name != "web"), "{targets:?}");
    std::os::unix::fs::chown(&place, Some(USER), Some(USER))?;
    std::thread::sleep(Duration::from_millis(1100));
    let details = server.details(ADMIN)?.to_string();
    ensure!(details.contains("is not the user 65534"), "{details}");
    drop((root, hidden, engine));

    // The user's own is.
    let own = FakeEngine::start_of_user(&place, &[("web", victim.pid())], &[])?;
    std::thread::sleep(Duration::from_millis(1100));
    let details = server.details(ADMIN)?;
    let engines = details["engines"].as_array().context("no engines")?;
    ensure!(
        engines
            .iter()
            .any(|engine| engine["socket"] == place.display().to_string() && engine["problem"].is_null()),
        "{details}"
    );
    drop(own);
    Ok(())
}

#[tokio::test]
async fn users_engine_names_nothing_that_is_roots() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let users = UserFolder::new()?;
    let setpriv = as_user("setpriv");
    let mut by: Vec<&str> = vec!["setpriv"];
    by.extend(setpriv.get_args().filter_map(|argument| argument.to_str()));
    by.extend(["unshare", "--user", "--map-root-user"]);
    // In root's namespace, alone and then beside one of root's.
    let own = Sleeper::inside_as(&namespace, "own", &by)?;
    let liar = FakeEngine::start_of_user(&users.file("engine"), &[("web", own.pid())], &[])?;
    let server = Guarded::start("web", &[liar.socket()])?;
    let netns = format!("netns={}", namespace.inode()?);
    let targets = server.targets(ADMIN)?;
    ensure!(
        targets.contains(&("web".to_owned(), namespace.inode()?)),
        "{targets:?}"
    );
    let mut identity = own.identity()?;
    identity["name"] = json!("web");
    for _ in 0..2 {
        for query in [&netns, &named("web"), &container(&identity)] {
            let (status, sentence) = server.status(PART, query).await?;
            ensure!(status == 404, "{query}: {status} {sentence}");
        }
        ensure!(server.status(ADMIN, &netns).await?.0 == 101);
        let _root = Sleeper::inside(&namespace)?;
    }
    Ok(())
}

/// An engine at a socket that somebody else began to listen at; ended when dropped.
struct Heir(Child);

impl Heir {
    fn start(mut command: Command, listener: &UnixListener, container: (&str, u32)) -> anyhow::Result<Self> {
        let child = command
            .args(["-", container.0, &container.1.to_string()])
            .env("FAKE_ENGINE_INHERITS", std::process::id().to_string())
            .stdin(OwnedFd::from(listener.try_clone()?))
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is told of the engine at a socket, if that was asked.
fn engine_at(details: &serde_json::Value, socket: &Path) -> Option<serde_json::Value> {
    let mut engines = details["engines"].as_array()?.iter();
    let socket = socket.display().to_string();
    engines.find(|engine| engine["socket"] == socket).cloned()
}

#[tokio::test]
async fn process_that_is_called_as_an_engine_is_believed_where_it_listens_itself() -> anyhow::Result<()> {
    let (folder, users) = (Folder::new()?, UserFolder::new()?);
    let victim = Sleeper::unshared()?;
    let dockerd = program_called("dockerd", folder.path())?;
    let of_user = || -> anyhow::Result<Command> {
        let mut command = as_user("setpriv");
        command.arg(users.file("dockerd"));
        Ok(command)
    };
    program_called("dockerd", users.path())?;
    let server = Guarded::start("web", &[])?;
    let netns = format!("netns={}", victim.netns()?);
    let victim_has_its_own_name = async |server: &Guarded| -> anyhow::Result<()> {
        let targets = server.targets(ADMIN)?;
        let own_name = format!("sleep({})", victim.pid());
        ensure!(targets.contains(&(own_name, victim.netns()?)), "{targets:?}");
        ensure!(targets.iter().all(|(name, _)| name != "web"), "{targets:?}");
        let (status, sentence) = server.status(PART, &netns).await?;
        ensure!(status == 404, "{status} {sentence}");
        Ok(())
    };

    // A user's, which speaks of nothing that is root's.
    let liar = FakeEngine::start_by(of_user()?, &users.file("odd"), &[("web", victim.pid())], &[])?;
    victim_has_its_own_name(&server).await?;
    let told = engine_at(&server.details(ADMIN)?, liar.socket());
    ensure!(
        told.as_ref().is_some_and(|told| told["workloads"] == 1),
        "{told:?}"
    );
    drop(liar);

    // A user's that was given a socket of root's, as a service is by systemd: it is not asked.
    let lent = folder.file("lent");
    let listener = UnixListener::bind(&lent)?;
    let heir = Heir::start(of_user()?, &listener, ("web", victim.pid()))?;
    std::thread::sleep(Duration::from_millis(1100));
    victim_has_its_own_name(&server).await?;
    let told = engine_at(&server.details(ADMIN)?, &lent);
    ensure!(told.is_none(), "{told:?}");
    drop(heir);

    // Root's that was given one: that may be anybody's, and what to do is told.
    let heir = Heir::start(Command::new(&dockerd), &listener, ("web", victim.pid()))?;
    std::thread::sleep(Duration::from_millis(1100));
    victim_has_its_own_name(&server).await?;
    let details = server.details(ADMIN)?;
    let told = engine_at(&details, &lent);
    let problem = format!(
        "process {} listens there, and not process {} that has the socket, which may be another's",
        std::process::id(),
        heir.0.id()
    );
    ensure!(told.is_some_and(|told| told["problem"] == problem), "{details}");
    ensure!(
        server
            .server
            .log()
            .contains("name the socket with --engine-socket")
    );
    let named = Guarded::start("web", &[&lent])?;
    ensure!(
        named
            .targets(ADMIN)?
            .contains(&("web".to_owned(), victim.netns()?))
    );
    drop((named, heir));

    // Root's own.
    let engine = FakeEngine::start_by(
        Command::new(&dockerd),
        &folder.file("odd"),
        &[("web", victim.pid())],
        &[],
    )?;
    std::thread::sleep(Duration::from_millis(1100));
    let targets = server.targets(ADMIN)?;
    ensure!(
        targets.contains(&("web".to_owned(), victim.netns()?)),
        "{targets:?}"
    );
    ensure!(server.status(PART, &netns).await?.0 == 101);
    drop(engine);
    Ok(())
}

#[tokio::test]
async fn socket_whose_name_says_that_it_is_an_engines_is_not() -> anyhow::Result<()> {
    let (folder, users) = (Folder::new()?, UserFolder::new()?);
    let victim = Sleeper::unshared()?;
    let dockerd = program_called("dockerd", folder.path())?;
    let engine = FakeEngine::start_by(Command::new(&dockerd), &folder.file("odd"), &[("db", 1)], &[])?;
    // Of root's, and no engine's.
    let other = FakeEngine::start(&folder.file("other"), &[("web", victim.pid())], &[])?;

    // In the list of sockets there is a line now that says that the engine listens there.
    let inode = fs::read_to_string("/proc/net/unix")?
        .lines()
        .find(|line| line.ends_with(&engine.socket().display().to_string()))
        .and_then(|line| line.split_whitespace().nth(6).map(str::to_owned))
        .context("the engine's socket is not listed")?;
    // A user can bind there: it is a folder of theirs.
    let said = format!("x\n0: 2 0 00010000 0001 01 {inode} {}", other.socket().display());
    let (forged, folders) = said.rsplit_once('/').context("no path")?;
    let inner = users.path().join(forged);
    fs::create_dir_all(&inner)?;
    let _forger = UnixListener::bind(inner.join(folders))?;
    ensure!(fs::metadata(users.path())?.uid() == USER);
    let listed = fs::read_to_string("/proc/net/unix")?;
    ensure!(
        listed.contains(&format!(
            "\n0: 2 0 00010000 0001 01 {inode} {}\n",
            other.socket().display()
        )),
        "{listed}"
    );

    let server = Guarded::start("web", &[])?;
    let targets = server.targets(ADMIN)?;
    ensure!(targets.iter().all(|(name, _)| name != "web"), "{targets:?}");
    let (status, sentence) = server.status(PART, &format!("netns={}", victim.netns()?)).await?;
    ensure!(status == 404, "{status} {sentence}");
    let details = server.details(ADMIN)?;
    let told = engine_at(&details, other.socket()).context("it was not asked")?;
    ensure!(
        told["problem"]
            .as_str()
            .is_some_and(|problem| problem.contains("which may be another's")),
        "{told}"
    );
    let told = engine_at(&details, engine.socket()).context("the engine was not asked")?;
    ensure!(told["problem"].is_null(), "{told}");
    Ok(())
}
