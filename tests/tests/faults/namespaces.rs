//! What is captured vanishes at whatever moment of a capture. `namespaces.rs` and `interfaces.rs` beside this have the
//! moments that can be chosen.

use std::{collections::BTreeMap, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, bail, ensure};
use futures_util::future::try_join_all;
use packetflix_tests::{
    client::{Recorder, Refused},
    docker::{Docker, IMAGE},
    namespace::Namespace,
    process::Sleeper,
    random::Random,
    server::{RESTING_THREADS, Server, program, wait_until},
    traces::{traces_before, wait_for_traces},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::flow::Flow;

/// Longer than any capture may take to begin, and then to end when there is nothing left to capture.
const BOUND: Duration = Duration::from_secs(10);

/// How captures ended, and how often.
type Ends = BTreeMap<String, usize>;

/// Opens a capture, and reads it until it ends, or is ended after a while.
async fn capture(url: &str, close_after: Option<Duration>) -> anyhow::Result<String> {
    let mut recorder = match Recorder::start(url).await {
        Ok(recorder) => recorder,
        Err(error) => {
            let refused: Refused = error.downcast()?;
            ensure!([404, 409].contains(&refused.status), "{refused}");
            return Ok(format!("refused with {}", refused.status));
        }
    };
    if let Some(after) = close_after {
        sleep(after).await;
        // The server may have been the first to end.
        let _ = recorder.capture().stop().await;
    }
    let (recording, code, reason) = recorder.read_to_end().await?;
    recording.check_complete()?;
    ensure!(code == 1000, "{code} {reason}");
    let words = ["has ended", "stopped by the client"]
        .into_iter()
        .find(|words| reason.contains(words));
    Ok(format!("1000, {}", words.context(reason)?))
}

fn count(ends: &mut Ends, found: Vec<String>) {
    for end in found {
        *ends.entry(end).or_default() += 1;
    }
}

/// A namespace that is about to vanish.
enum Doomed {
    Mounted(Namespace),
    OfProcess(Sleeper),
}

impl Doomed {
    fn new(random: &mut Random) -> anyhow::Result<Self> {
        Ok(if random.percent(50) {
            Self::Mounted(Namespace::new()?)
        } else {
            Self::OfProcess(Sleeper::unshared()?)
        })
    }

    fn url(&self, server: &Server) -> anyhow::Result<String> {
        Ok(match self {
            Self::Mounted(namespace) => server.url(&format!("netns={}", namespace.inode()?)),
            Self::OfProcess(process) => server.url_of(&process.identity()?, ""),
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_vanish_at_any_moment_of_a_capture() -> anyhow::Result<()> {
    let mut random = Random::new(5);
    let server = Arc::new(Server::start(&[])?);
    let before = traces_before(Some(&*server), &[])?;
    let mut ends = Ends::new();
    for _ in 0..6 {
        let mut captures = Vec::new();
        for number in 0..10 {
            let doomed = Doomed::new(&mut random)?;
            let url = doomed.url(&server)?;
            // A capture begins within milliseconds: some are asked for at about the time of the end.
            let most = if number % 3 == 0 { 20 } else { 250 };
            let [lives, begins] = [(); 2].map(|()| Duration::from_millis(random.below(most).into()));
            let closes = random
                .percent(30)
                .then(|| Duration::from_millis(random.below(200).into()));
            captures.push(async move {
                let vanishing = tokio::spawn(async move {
                    sleep(lives).await;
                    tokio::task::spawn_blocking(move || drop(doomed)).await
                });
                sleep(begins).await;
                let end = timeout(BOUND, capture(&url, closes)).await.context("it hangs")?;
                vanishing.await??;
                end
            });
        }
        count(&mut ends, try_join_all(captures).await?);
    }
    eprintln!("namespaces that vanished: {ends:?}");
    ensure!(ends.len() >= 3, "always at the same moment: {ends:?}");
    nothing_is_left(&server, &before, &[])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_vanish_at_any_moment_of_a_capture_under_load() -> anyhow::Result<()> {
    let mut random = Random::new(6);
    let (here, there) = (Namespace::new()?, Namespace::new()?);
    let server = Server::start(&[])?;
    let before = traces_before(Some(&server), &[&here])?;
    let mut ends = Ends::new();
    for round in 0..25 {
        // Of one name, and by turns of one index.
        let index = if round % 2 == 0 { "71" } else { "72" };
        let peer = ["peer", "name", "peer", "netns", there.name()];
        here.ip(&[
            &["link", "add", "eth7", "index", index, "type", "veth"][..],
            &peer,
        ]
        .concat())?;
        here.ip(&["link", "set", "eth7", "up"])?;
        there.ip(&["link", "set", "peer", "up"])?;
        let flow = Flow::start(&there, "peer", 100, 3)?;
        let url = server.url(&format!("netns={}&nif=eth7", here.inode()?));
        // A capture begins within milliseconds: every other time it is asked for at about the time of the end.
        let most = if round % 2 == 0 { 200 } else { 15 };
        let [lives, begins] = [(); 2].map(|()| Duration::from_millis(random.below(most).into()));
        let closes = Duration::from_millis(random.below(200).into());
        let vanishing = async {
            sleep(lives).await;
            here.ip(&["link", "delete", "eth7"])
        };
        let capturing = async {
            sleep(begins).await;
            timeout(BOUND, capture(&url, Some(closes))).await
        };
        let (end, deleted) = tokio::join!(capturing, vanishing);
        deleted?;
        count(&mut ends, vec![end.context("it hangs")??]);
        flow.stop()?;
    }
    eprintln!("interfaces that vanished: {ends:?}");
    ensure!(ends.len() >= 2, "always at the same moment: {ends:?}");
    nothing_is_left(&server, &before, &[&here])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_vanish_at_any_moment_of_a_capture() -> anyhow::Result<()> {
    let mut random = Random::new(7);
    let docker = Arc::new(Docker::start()?);
    let server = Server::start(&[&format!("--engine-socket={}", docker.socket().display())])?;
    let before = traces_before(Some(&server), &[])?;
    let mut ends = Ends::new();
    for _ in 0..8 {
        docker.run(&["run", "--rm", "--detach", "--name=web", IMAGE])?;
        let url = server.url_of(&json!({ "name": "web", "type": "docker" }), "");
        let [lives, begins] = [(); 2].map(|()| Duration::from_millis(random.below(200).into()));
        let docker = Arc::clone(&docker);
        let killing = tokio::task::spawn_blocking(move || {
            std::thread::sleep(lives);
            docker.run(&["rm", "--force", "web"])
        });
        sleep(begins).await;
        let end = timeout(BOUND, capture(&url, None)).await;
        killing.await??;
        count(&mut ends, vec![end.context("it hangs")??]);
    }
    eprintln!("containers that vanished: {ends:?}");
    ensure!(ends.len() >= 2, "always at the same moment: {ends:?}");
    nothing_is_left(&server, &before, &[])
}

fn nothing_is_left(server: &Server, before: &str, namespaces: &[&Namespace]) -> anyhow::Result<()> {
    wait_for_traces(before, Some(server), namespaces)?;
    wait_until(Duration::from_secs(15), || {
        Ok(server.status("Threads")? <= RESTING_THREADS)
    })?;
    let log = server.log();
    if let Some(line) = log
        .lines()
        .find(|line| line.contains("ERROR") || line.contains("panicked"))
    {
        bail!("{line}");
    }
    Ok(())
}

#[test]
fn namespaces_that_cannot_be_entered_are_told_and_hide_no_others() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    // Root in a user namespace of its own has no rights over what the host has mounted, but over its own children.
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    command
        .arg("unshare --net sh -c 'ip link set lo up; exec setpriv --pdeathsig KILL sleep 60' & exec \"$@\"");
    command.arg("sh").arg(program("packetflix")?);
    let server = Server::start_by(&mut command, &[])?;
    let mut details = Value::Null;
    wait_until(Duration::from_secs(10), || {
        details = server.get("/targets")?.1;
        let targets = details["targets"].as_array().context("no targets")?;
        Ok(targets.iter().any(|target| {
            let lo = &target["network-interfaces"][0];
            target["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("sleep("))
                && lo["state"] == "up"
        }))
    })
    .with_context(|| format!("{details}"))?;
    // What cannot be entered is listed with what is known of it, and that it is not all is told.
    let targets = details["targets"].as_array().context("no targets")?;
    let path = namespace.path().display().to_string();
    let mounted = targets
        .iter()
        .find(|target| target["name"] == path)
        .context("not listed")?;
    assert_eq!(mounted["netns"], namespace.inode()?);
    assert_eq!(mounted["network-interfaces"], json!([]));
    let gap = format!(
        "the interfaces of network namespace {}: the network namespace could not be entered (setns): Operation not permitted",
        namespace.inode()?
    );
    let told = details["gaps"].as_array().context("no gaps")?;
    ensure!(
        told.iter()
            .any(|told| told.as_str().is_some_and(|told| told.starts_with(&gap))),
        "{details}"
    );
    server.wait_for_log(&gap)
}
