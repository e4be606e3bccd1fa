//! Mounts, namespaces and addresses by the thousand, of a user without rights.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use packetflix_tests::{
    client::{Capture, Refused},
    control_group::ControlGroup,
    engine::{FakeEngine, UserFolder, as_user, program_called},
    folder::Folder,
    hoard::Hoard,
    namespace::Namespace,
    pace,
    process::{Sleeper, capture_is_of, netns_of},
    server::{Server, program},
};
use serde_json::json;

use crate::{gaps, has_gap, has_not_panicked};

/// A number that no namespace has.
const NOWHERE: &str = "netns=4026000001";

/// Waits for a refusal; gives its status, its sentence, and how long it took.
async fn refused(server: &Server, query: &str) -> anyhow::Result<(u16, String, Duration)> {
    let begin = Instant::now();
    match Capture::open(&server.url(query), &[]).await {
        Ok(_) => anyhow::bail!("{query} was not refused"),
        Err(error) => {
            let refused: Refused = error.downcast()?;
            Ok((refused.status, refused.body, begin.elapsed()))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_of_a_user_take_neither_memory_nor_time_from_others() -> anyhow::Result<()> {
    let hoard = Hoard::of_user(&["mounts", "18000"])?;
    let sleeper = Sleeper::unshared()?;
    let group = ControlGroup::with_memory(128 << 20)?;
    let server = Server::start_by(&mut group.server()?, &[])?;
    let begin = Instant::now();
    let (status, details) = server.get("/targets")?;
    let scan = begin.elapsed();
    ensure!(status == 200, "{status} {details}");
    ensure!(
        has_gap(&details, "mounts") && has_gap(&details, "65533"),
        "{:?}",
        gaps(&details)
    );

    let searches = try_join_all((0..8).map(|_| refused(&server, NOWHERE))).await?;
    let slowest = searches.iter().map(|(_, _, took)| *took).max().context("none")?;
    for (status, sentence, _) in &searches {
        // Not everything was looked at, so that it is not known to be nowhere.
        ensure!(
            *status == 504 && sentence.contains("may be there all the same"),
            "{status} {sentence}"
        );
    }
    capture_is_of(&server, &sleeper.identity()?, "", sleeper.pid()).await?;
    let peak = group.peak()? >> 20;
    eprintln!(
        "18,000 mounts: a scan took {scan:.1?}, eight searches at most {slowest:.1?}, and all {peak} MiB"
    );
    ensure!(peak < 64, "{peak} MiB");
    ensure!(
        scan < Duration::from_secs(5) && slowest < Duration::from_secs(8),
        "{scan:?} {slowest:?}"
    );
    drop(hoard);
    // The list is complete again.
    let (status, sentence, took) = refused(&server, NOWHERE).await?;
    ensure!(status == 404, "{status} {sentence} {took:?}");
    has_not_panicked(&server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_of_a_user_below_many_folders_takes_no_memory_from_the_service() -> anyhow::Result<()> {
    let hoard = Hoard::of_user(&["deep", "140000"])?;
    let namespace = Namespace::new()?;
    let group = ControlGroup::with_memory(128 << 20)?;
    let mut server = Server::start_by(&mut group.server()?, &[])?;
    for scan in 0..3 {
        let (status, details) = server.get("/targets")?;
        ensure!(status == 200, "{scan}: {status} {details}");
        ensure!(
            has_gap(&details, "too much memory") && has_gap(&details, "65533"),
            "{scan}: {:?}",
            gaps(&details)
        );
        // Others' mounts are all there.
        let path = namespace.path().display().to_string();
        ensure!(details.to_string().contains(&path), "{scan}: {details}");
        std::thread::sleep(Duration::from_millis(1100));
    }
    // Nobody knows what is there.
    let (status, sentence, _) = refused(&server, NOWHERE).await?;
    ensure!(
        status == 504 && sentence.contains("too much memory"),
        "{status} {sentence}"
    );
    let log = server.log();
    let lines = log.lines().filter(|line| line.contains("it is passed over for"));
    assert_eq!(lines.count(), 1, "{log}");
    drop(hoard);
    has_not_panicked(&server)?;
    server.signal(Signal::SIGTERM)?;
    ensure!(server.wait()?.success());
    Ok(())
}

/// A user's open files make each search take its time, and one account has many.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn searches_of_one_account_keep_no_other_waiting() -> anyhow::Result<()> {
    const GREEDY: &str = "greedy-0123456789abcdef";
    const OTHER: &str = "other-0123456789abcdef";

    let hoards = (0..24)
        .map(|_| {
            let mut command = as_user("setpriv");
            command.args(["prlimit", "--nofile=18100"]).arg(program("hoard")?);
            Hoard::start(&mut command, &["descriptors", "18000"])
        })
        .collect::<Result<Vec<_>, _>>()?;
    let namespace = Namespace::new()?;
    let folder = Folder::new()?;
    let lines = format!("greedy {GREEDY} discover capture\nother {OTHER}\n");
    let tokens = folder.put_secret("tokens", &lines)?;
    let server = Server::start(&["--token-file", tokens.to_str().context("no text")?])?;
    let open = |url: String, token: &'static str| async move {
        let begin = Instant::now();
        let authorization = format!("Bearer {token}");
        let opened = Capture::open(&url, &[("authorization", &authorization)]).await;
        (opened, begin.elapsed())
    };
    let greedy: Vec<_> = (0..24)
        .map(|number| {
            let url = server.url(&format!("netns={}", 4_026_000_001_u64 + number));
            tokio::spawn(async move { open(url, GREEDY).await.1 })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let by_name = server.url_of(&json!({ "name": namespace.path() }), "");
    let (named, by_name) = open(by_name, OTHER).await;
    named?;
    let (searched, by_number) = open(server.url(NOWHERE), OTHER).await;
    let refused: Refused = searched.err().context("not refused")?.downcast()?;
    ensure!(refused.status == 504, "{refused}");
    ensure!(
        greedy.iter().any(|one| !one.is_finished()),
        "all of the other searches came first"
    );
    for one in &greedy {
        one.abort();
    }
    eprintln!("beside 24 searches: by name after {by_name:.1?}, a search of its own {by_number:.1?}");
    ensure!(by_name < pace::time(Duration::from_secs(3)), "{by_name:?}");
    ensure!(by_number < pace::time(Duration::from_secs(5)), "{by_number:?}");
    drop(hoards);
    has_not_panicked(&server)
}

#[test]
fn a_namespace_that_is_mounted_everywhere_is_told_in_few_words() -> anyhow::Result<()> {
    let hoard = Hoard::of_user(&["namespaces", "9000"])?;
    let namespace = Namespace::new()?;
    let group = ControlGroup::with_memory(128 << 20)?;
    let server = Server::start_by(&mut group.server()?, &[])?;
    let (_, details) = server.get("/targets")?;
    let theirs = netns_of(hoard.pid())?;
    let targets = details["targets"].as_array().context("no list")?;
    let mounts = |netns: u64| {
        let of_it = targets.iter().filter(move |target| target["netns"] == netns);
        of_it.filter_map(|target| target["mounts"].as_array())
    };
    ensure!(mounts(theirs).all(|mounts| mounts.len() <= 16), "too many places");
    // Others' mounts are all there.
    ensure!(mounts(namespace.inode()?).any(|mounts| mounts[0] == namespace.path().display().to_string()));
    ensure!(has_gap(&details, "mounts"), "{:?}", gaps(&details));
    ensure!(details.to_string().len() < 1 << 20);
    let peak = group.peak()? >> 20;
    eprintln!("9,000 mounts of a namespace: {peak} MiB");
    ensure!(peak < 64, "{peak} MiB");
    has_not_panicked(&server)
}

#[test]
fn namespaces_of_a_user_are_told_together() -> anyhow::Result<()> {
    let hoards: Vec<Hoard> = (0..4)
        .map(|_| Hoard::of_user(&["addresses", "1500"]))
        .collect::<Result<_, _>>()?;
    let server = Server::start(&[])?;
    let told = |details: &serde_json::Value| -> Vec<String> {
        let gaps = gaps(details).into_iter();
        gaps.filter(|gap| gap.contains("of user 65533"))
            .map(str::to_owned)
            .collect()
    };
    let (_, details) = server.get("/targets")?;
    let gaps = told(&details);
    ensure!(
        gaps.len() == 1
            && gaps[0].starts_with("the interfaces of network namespace ")
            && gaps[0].ends_with("; and 3 more of user 65533"),
        "{gaps:?}"
    );
    // Others come and go.
    drop(hoards);
    for _ in 0..3 {
        let _other = Hoard::of_user(&["addresses", "1500"])?;
        std::thread::sleep(Duration::from_millis(1100));
        let (_, details) = server.get("/targets")?;
        ensure!(told(&details).len() == 1, "{details}");
    }
    let log = server.log();
    let lines = log.lines().filter(|line| line.contains("of user 65533"));
    assert_eq!(lines.count(), 1, "{log}");
    has_not_panicked(&server)
}

#[test]
fn addresses_of_a_user_are_listed_up_to_a_bound() -> anyhow::Result<()> {
    let hoard = Hoard::of_user(&["addresses", "46000"])?;
    let server = Server::start(&[])?;
    let begin = Instant::now();
    let (_, details) = server.get("/targets")?;
    let took = begin.elapsed();
    let theirs = netns_of(hoard.pid())?;
    let targets = details["targets"].as_array().context("no list")?;
    let target = targets.iter().find(|target| target["netns"] == theirs);
    let interfaces = target.and_then(|target| target["network-interfaces"].as_array());
    let addresses: usize = interfaces
        .context("the namespace is not listed")?
        .iter()
        .filter_map(|interface| Some(interface["addresses"].as_array()?.len()))
        .sum();
    eprintln!("46,000 addresses: a scan took {took:.1?} and has {addresses}");
    ensure!((1000..3000).contains(&addresses), "{addresses}");
    ensure!(has_gap(&details, &theirs.to_string()), "{:?}", gaps(&details));
    ensure!(took < Duration::from_secs(3), "{took:?}");
    // Those of others are all there.
    let own = json!("127.0.0.1/8");
    ensure!(
        targets
            .iter()
            .any(|target| target["network-interfaces"][0]["addresses"][0] == own)
    );
    has_not_panicked(&server)
}

#[test]
fn other_names_of_links_of_a_user_are_listed_up_to_a_bound() -> anyhow::Result<()> {
    const NAMESPACES: usize = 10;
    const TAKEN: usize = 16;

    let hoards: Vec<Hoard> = std::thread::scope(|scope| {
        let making: Vec<_> = (0..NAMESPACES)
            .map(|_| scope.spawn(|| Hoard::of_user(&["altnames", "40", "80"])))
            .collect();
        let made = making.into_iter();
        made.map(|one| {
            one.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .collect::<Result<_, _>>()
    })?;
    let sleeper = Sleeper::unshared()?;
    let group = ControlGroup::with_memory(128 << 20)?;
    let server = Server::start_by(&mut group.server()?, &[])?;
    let begin = Instant::now();
    let (_, details) = server.get("/targets")?;
    let took = begin.elapsed();
    let targets = details["targets"].as_array().context("no list")?;
    let theirs = hoards
        .iter()
        .map(|hoard| netns_of(hoard.pid()))
        .collect::<Result<Vec<_>, _>>()?;
    let (mut names, mut looked_at) = (0, 0);
    for target in targets {
        if !theirs.iter().any(|netns| target["netns"] == *netns) {
            continue;
        }
        let interfaces = target["network-interfaces"].as_array().context("no interfaces")?;
        looked_at += usize::from(!interfaces.is_empty());
        for interface in interfaces {
            let altnames = interface["altnames"].as_array().map_or(0, Vec::len);
            ensure!(altnames <= TAKEN, "{interface}");
            names += altnames;
        }
    }
    let peak = group.peak()? >> 20;
    eprintln!(
        "{NAMESPACES} namespaces with 80 links and 6,400 other names each: a scan took {took:.1?} and has {names} of \
         {looked_at} namespaces, and {peak} MiB"
    );
    ensure!(looked_at > 0 && names >= TAKEN);
    let all_but_one = format!("{} more of user 65533", NAMESPACES - 1);
    ensure!(has_gap(&details, &all_but_one), "{:?}", gaps(&details));
    ensure!(peak < 64, "{peak} MiB");
    ensure!(took < Duration::from_secs(3), "{took:?}");
    // Those of others are all there.
    let netns = sleeper.netns()?;
    let other = targets.iter().find(|target| target["netns"] == netns);
    let other = other.context("another's namespace is not listed")?;
    assert_eq!(other["network-interfaces"][0]["name"], "lo");
    has_not_panicked(&server)
}

#[test]
fn engines_of_a_user_are_asked_up_to_a_bound_wherever_they_listen() -> anyhow::Result<()> {
    let (folder, users) = (Folder::new()?, UserFolder::new()?);
    let sleeper = Sleeper::unshared()?;
    let dockerd = program_called("dockerd", users.path())?;
    let start = |number: usize| {
        let mut command = as_user("setpriv");
        command.arg(&dockerd);
        let socket = users.file(&format!("odd{number}"));
        FakeEngine::start_by(command, &socket, &[], &[("FAKE_ENGINE_SOCKETS", "30")])
    };
    let _crowd = (0..40).map(start).collect::<Result<Vec<_>, _>>()?;
    // One that comes after all of them.
    let engine = FakeEngine::start_by(
        Command::new(program_called("dockerd", folder.path())?),
        &folder.file("odd"),
        &[("web", sleeper.pid())],
        &[],
    )?;
    let server = Server::start(&[])?;
    let begin = Instant::now();
    let (status, details) = server.get("/targets")?;
    let scan = begin.elapsed();
    ensure!(
        status == 200 && scan < Duration::from_secs(5),
        "{scan:?} {details}"
    );
    let engines = details["engines"].as_array().context("no engines")?;
    let of_user = |engine: &&serde_json::Value| {
        let socket = engine["socket"].as_str();
        socket.is_some_and(|socket| socket.starts_with(&users.path().display().to_string()))
    };
    let asked = engines.iter().filter(of_user).count();
    ensure!(asked == 4, "{engines:?}");
    for words in ["more engines were found than are asked", "there is more of"] {
        ensure!(has_gap(&details, words), "{:?}", gaps(&details));
    }
    let targets = details["targets"].as_array().context("no targets")?;
    ensure!(
        targets
            .iter()
            .any(|target| target["name"] == "web" && target["pid"] == sleeper.pid()),
        "{targets:?}"
    );
    drop(engine);
    has_not_panicked(&server)
}
