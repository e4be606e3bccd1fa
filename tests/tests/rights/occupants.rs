//! Whoever is in a namespace is judged, whether an engine tells of them or not.

use std::time::Duration;

use anyhow::ensure;
use packetflix_tests::{
    engine::{FakeEngine, USER},
    folder::Folder,
    namespace::Namespace,
    process::{Sleeper, capture_is_of, script_in},
    server::{Server, program, wait_until},
};
use serde_json::json;

use crate::{ADMIN, Guarded, PART, container, named};

/// What a token for `web` may not capture, until `other` has ended.
async fn is_judged_with(server: &Guarded, namespace: &Namespace, other: &mut Sleeper) -> anyhow::Result<()> {
    // There may be a `web` elsewhere.
    let netns = format!("netns={}", namespace.inode()?);
    for (query, wanted) in [(&netns, 404), (&named("web"), 503)] {
        let (status, sentence) = server.status(PART, query).await?;
        ensure!(status == wanted, "{query}: {status} {sentence}");
    }
    ensure!(server.targets(PART)?.is_empty());
    other.end()?;
    std::thread::sleep(Duration::from_millis(1100));
    let (status, sentence) = server.status(PART, &named("web")).await?;
    ensure!(status == 101, "{status} {sentence}");
    Ok(())
}

#[tokio::test]
async fn container_of_which_the_engine_does_not_tell_is_judged() -> anyhow::Result<()> {
    for variable in ["FAKE_ENGINE_HANGS_FOR", "FAKE_ENGINE_FAILS_FOR"] {
        let (folder, namespace) = (Folder::new()?, Namespace::new()?);
        let (web, mut db) = (Sleeper::inside(&namespace)?, Sleeper::inside(&namespace)?);
        let containers = [("web", web.pid()), ("db", db.pid())];
        let engine = FakeEngine::start(&folder.file("engine"), &containers, &[(variable, "db")])?;
        let server = Guarded::start("web", &[engine.socket()])?;
        is_judged_with(&server, &namespace, &mut db).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_may_be_a_container_that_is_not_told_of_is_not_granted_by_its_own_name() -> anyhow::Result<()> {
    let folder = Folder::new()?;
    let (web, mut db) = (Sleeper::unshared_as("web", &[])?, Sleeper::unshared()?);
    let containers = [("db", db.pid())];
    let engine = FakeEngine::start(
        &folder.file("engine"),
        &containers,
        &[("FAKE_ENGINE_FAILS_FOR", "db")],
    )?;
    let server = Guarded::start("web(*)", &[engine.socket()])?;
    let netns = format!("netns={}", web.netns()?);
    let name = format!("web({})", web.pid());
    for query in [&netns, &named(&name)] {
        let (status, sentence) = server.status(PART, query).await?;
        ensure!(
            status == 503
                && sentence.contains("cannot be told at the moment")
                && !sentence.contains("engine"),
            "{status} {sentence}"
        );
    }
    ensure!(server.targets(PART)?.is_empty());
    ensure!(server.status(ADMIN, &netns).await?.0 == 101);
    // Of what is not theirs, they learn not even that.
    ensure!(server.status(PART, &format!("netns={}", db.netns()?)).await?.0 == 404);
    db.end()?;
    drop(engine);
    let _whole = FakeEngine::start(&folder.file("engine"), &[("cart", web.pid())], &[])?;
    std::thread::sleep(Duration::from_millis(1100));
    ensure!(server.status(PART, &netns).await?.0 == 404);
    Ok(())
}

#[tokio::test]
async fn process_whose_first_thread_has_ended_is_found_and_judged() -> anyhow::Result<()> {
    let (folder, namespace) = (Folder::new()?, Namespace::new()?);
    let web = Sleeper::inside(&namespace)?;
    let path = format!("--net={}", namespace.path().display());
    let mut db = std::process::Command::new("nsenter")
        .args([&path[..], program("leaderless")?.to_str().unwrap_or_default()])
        .spawn()?;
    let result = async {
        let stat = format!("/proc/{}/stat", db.id());
        wait_until(Duration::from_secs(5), || {
            Ok(std::fs::read_to_string(&stat)?.contains("(leaderless) Z"))
        })?;
        let containers = [("web", web.pid()), ("db", db.id())];
        let engine = FakeEngine::start(&folder.file("engine"), &containers, &[])?;
        let server = Guarded::start("web", &[engine.socket()])?;
        let netns = format!("netns={}", namespace.inode()?);
        for query in [&netns, &named("web")] {
            let (status, sentence) = server.status(PART, query).await?;
            ensure!(status == 404, "{query}: {status} {sentence}");
        }
        // It is found by its name, and by its PID, too.
        let identity =
            json!({ "pid": db.id(), "starttime": packetflix_tests::process::starttime_of(db.id())? });
        for query in [named("db"), container(&identity)] {
            let (status, sentence) = server.status(ADMIN, &query).await?;
            ensure!(status == 101, "{query}: {status} {sentence}");
        }
        // Without an engine, too.
        drop(engine);
        let server = Guarded::start("sleep(*)", &[])?;
        ensure!(server.status(PART, &netns).await?.0 == 404);
        Ok(())
    };
    let result = result.await;
    db.kill()?;
    db.wait()?;
    result
}

#[tokio::test]
async fn all_of_many_processes_are_judged() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let webs: Vec<Sleeper> = (0..20)
        .map(|_| Sleeper::inside_as(&namespace, "web", &[]))
        .collect::<Result<_, _>>()?;
    let server = Guarded::start("web(*)", &[])?;
    let netns = format!("netns={}", namespace.inode()?);
    ensure!(server.status(PART, &netns).await?.0 == 101);
    let mut db = Sleeper::inside_as(&namespace, "db", &[])?;
    ensure!(server.status(PART, &netns).await?.0 == 404);
    db.end()?;
    ensure!(server.status(PART, &netns).await?.0 == 101);
    drop(webs);
    Ok(())
}

#[tokio::test]
async fn nobody_names_himself_in_a_namespace_of_roots() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let user = [
        "setpriv",
        &format!("--reuid={USER}"),
        &format!("--regid={USER}"),
        "--clear-groups",
    ];
    let web = Sleeper::inside_as(&namespace, "web", &user)?;
    // Where it is the user's own, the name is as good as any.
    let own = [&user[..], &["unshare", "--user", "--net", "--map-root-user"]].concat();
    let own = Sleeper::unshared_as("web", &own)?;
    let server = Guarded::start("web(*)", &[])?;
    let netns = format!("netns={}", namespace.inode()?);
    let name = format!("web({})", web.pid());
    for query in [&netns, &named(&name), &container(&web.identity()?)] {
        let (status, sentence) = server.status(PART, query).await?;
        ensure!(status == 404, "{query}: {status} {sentence}");
    }
    let (status, sentence) = server.status(PART, &format!("netns={}", own.netns()?)).await?;
    ensure!(status == 101, "{status} {sentence}");

    // In PID and mount namespaces of its own, whoever is root there is no better than that.
    let script = format!(
        "mount -t tmpfs none /mnt && cp /bin/sleep /mnt/web && exec nsenter --net={} /mnt/web 60",
        namespace.path().display()
    );
    drop(web);
    let script = format!("({script}) & echo ready; wait");
    let (mut stranger, _) = script_in(&["--mount", "--pid", "--fork", "--kill-child"], &script)?;
    let is_there = || {
        Ok(server
            .targets(ADMIN)?
            .iter()
            .any(|(name, _)| name.starts_with("web(")))
    };
    let result = wait_until(Duration::from_secs(5), is_there);
    let status = server.status(PART, &netns).await;
    stranger.kill()?;
    stranger.wait()?;
    result?;
    ensure!(status?.0 == 404);
    Ok(())
}

#[tokio::test]
async fn whoever_may_capture_everything_is_not_asked_for_names() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let _db = Sleeper::inside(&namespace)?;
    let server = Guarded::start("**", &[])?;
    let (status, sentence) = server
        .status(PART, &format!("netns={}", namespace.inode()?))
        .await?;
    ensure!(status == 101, "{status} {sentence}");
    Ok(())
}

#[tokio::test]
async fn processes_that_were_started_in_a_container_from_outside_are_its_own() -> anyhow::Result<()> {
    let docker = packetflix_tests::docker::Docker::start()?;
    let image = packetflix_tests::image::IMAGE;
    docker.run(&["run", "--detach", "--name", "web", image])?;
    docker.run(&["run", "--detach", "--name", "agent", "--pid=host", image])?;
    for name in ["web", "agent"] {
        docker.run(&["exec", "--detach", name, "/bin/busybox", "sleep", "60"])?;
        let pid: u32 = docker
            .run(&["inspect", "--format", "{{.State.Pid}}", name])?
            .parse()?;
        let server = Guarded::start(name, &[&docker.socket()])?;
        let netns = format!("netns={}", packetflix_tests::process::netns_of(pid)?);
        let (status, sentence) = server.status(PART, &netns).await?;
        ensure!(status == 101, "{name}: {status} {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn containers_of_a_pod_are_the_pods() -> anyhow::Result<()> {
    let containerd = packetflix_tests::containerd::Containerd::start()?;
    let pod = containerd.run_pod("shop", "cart-0", &[])?;
    let netns = packetflix_tests::process::netns_of(containerd.pid(&pod.id)?)?;
    let server = Guarded::start("shop/*", &[&containerd.socket()])?;
    for query in [named("shop/cart-0"), format!("netns={netns}")] {
        let (status, sentence) = server.status(PART, &query).await?;
        ensure!(status == 101, "{status} {sentence}");
    }
    assert_eq!(server.targets(PART)?, [("shop/cart-0".to_owned(), netns)]);
    // Beside another, they are not alone.
    let path = format!("/proc/{}/ns/net", containerd.pid(&pod.id)?);
    let mut other = std::process::Command::new("nsenter")
        .args([&format!("--net={path}")[..], "sleep", "60"])
        .spawn()?;
    let found = wait_until(Duration::from_secs(5), || {
        Ok(packetflix_tests::process::netns_of(other.id())? == netns)
    });
    let status = server.status(PART, &format!("netns={netns}")).await;
    other.kill()?;
    other.wait()?;
    found?;
    ensure!(status?.0 == 404);
    let plain = Server::start(&[&format!("--engine-socket={}", containerd.socket().display())])?;
    capture_is_of(
        &plain,
        &json!({ "name": "shop/cart-0" }),
        "",
        containerd.pid(&pod.id)?,
    )
    .await?;
    Ok(())
}
