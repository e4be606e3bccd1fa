//! Interfaces with names of all kinds, and what becomes of captures when interfaces change or cannot be captured.

use std::{
    ffi::OsStr,
    fmt::Write as _,
    os::unix::ffi::OsStrExt as _,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_filter::native::{self, Arithmetic, Instruction, R0};
use packetflix_tests::{
    bpf_objects::{Kind, Objects},
    bpf_run::{Place, Program, ProgramType},
    client::{Capture, Piece, Recorder, refusal},
    folder::Folder,
    namespace::{Namespace, output_of},
    pace,
    process::Sleeper,
    raw::{self, RawSocket, Tun},
    recording::{Recording, Statistics},
    server::{Server, wait_until},
};
use serde_json::{Value, json};

const HOOKS: [&str; 2] = ["tcx", "socket"];

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

/// Runs `ip` in a namespace with words that need be no text.
fn ip_bytes(namespace: &Namespace, arguments: &[&[u8]]) -> anyhow::Result<String> {
    let mut command = Command::new("ip");
    command.args(["-n", namespace.name()]);
    output_of(command.args(arguments.iter().map(|one| OsStr::from_bytes(one))))
}

fn options<'a>(recording: &'a Recording, name: &str) -> anyhow::Result<&'a str> {
    let interface = recording.interfaces.iter().rfind(|one| one.name == name);
    Ok(&interface.with_context(|| format!("no {name}"))?.options)
}

/// The interfaces that a target has in `/targets`, by its name.
fn listed(server: &Server, name: &str) -> anyhow::Result<Vec<String>> {
    let (_, list) = server.get("/targets")?;
    let targets = list["targets"].as_array().context("no list")?;
    let target = targets.iter().find(|target| target["name"] == name);
    let interfaces = target.with_context(|| format!("no {name}"))?["network-interfaces"].as_array();
    let names = interfaces.context("no interfaces")?.iter();
    Ok(names
        .filter_map(|one| one["name"].as_str().map(str::to_owned))
        .collect())
}

#[tokio::test]
async fn names_that_are_no_text_take_nothing_with_them() -> anyhow::Result<()> {
    for hook in HOOKS {
        let (here, there) = Namespace::pair()?;
        let (other, _peer) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let mut before = Recorder::start(&url).await?;
        ip_bytes(&here, &[b"link", b"set", b"va", b"alias", b"n\xe9tz"])?;
        ip_bytes(
            &here,
            &[
                b"link",
                b"property",
                b"add",
                b"dev",
                b"va",
                b"altname",
                b"alt\xff",
            ],
        )?;
        ip_bytes(&here, &[b"link", b"set", b"va", b"name", b"v\xe9\x1b"])?;
        // A capture that runs follows it, and what comes later.
        here.connect("late", &there, "peer", 2)?;
        before
            .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "late"))
            .await?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        before.read_until(|recording| recording.has(&frame(1))).await?;
        let recording = before.finish().await?;
        assert_eq!(recording.count_on("v\\xe9\\x1b", false, &frame(1)), 1, "{hook}");

        // One that begins now has it by its name, by the other one, and among all.
        for query in ["", "&nif=v%5Cxe9%5Cx1b", "&nif=alt%5Cxff"] {
            let mut recorder = Recorder::start(&format!("{url}{query}")).await?;
            RawSocket::open(&there, "vb")?.send(&frame(2))?;
            recorder.read_until(|recording| recording.has(&frame(2))).await?;
            let recording = recorder.finish().await?;
            assert_eq!(
                recording.count_on("v\\xe9\\x1b", false, &frame(2)),
                1,
                "{hook} {query}"
            );
            ensure!(
                options(&recording, "v\\xe9\\x1b")?.contains("n\\\\xe9tz"),
                "{hook}"
            );
        }
        let path = |namespace: &Namespace| namespace.path().display().to_string();
        // A list may be a second old.
        let is_listed = || Ok(listed(&server, &path(&here))? == ["lo", "v\\xe9\\x1b", "late"]);
        wait_until(Duration::from_secs(5), is_listed)?;
        assert_eq!(listed(&server, &path(&other))?, ["lo", "va"], "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn a_thousand_changes_are_no_news_for_the_log() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    let before = server.log().len();
    let lines: Vec<u8> = (0..1000)
        .flat_map(|number| {
            [
                &b"link set va alias n\xe9tz"[..],
                number.to_string().as_bytes(),
                b"\n",
            ]
            .concat()
        })
        .collect();
    let batch = std::env::temp_dir().join(format!("packetflix-aliases-{}", std::process::id()));
    std::fs::write(&batch, lines)?;
    let done = here.ip(&["-batch", batch.to_str().context("no text")?]);
    std::fs::remove_file(&batch)?;
    done?;
    recorder.finish().await?;
    let grown = server.log().len() - before;
    ensure!(grown < 2000, "{grown} bytes of log: {}", server.log());
    Ok(())
}

#[tokio::test]
async fn renamed_interface_goes_on_under_its_new_name() -> anyhow::Result<()> {
    for hook in HOOKS {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = |name: &str| anyhow::Ok(server.url(&format!("netns={}&nif={name}", here.inode()?)));
        let mut recorder = Recorder::start(&url("va")?).await?;
        let socket = RawSocket::open(&there, "vb")?;
        (0..3).try_for_each(|_| socket.send(&frame(1)))?;
        recorder
            .read_until(|recording| recording.count(&frame(1)) == 3)
            .await?;
        here.ip(&["link", "set", "va", "name", "eth9"])?;
        recorder
            .read_until(|recording| recording.interfaces.len() == 2)
            .await?;
        (0..5).try_for_each(|_| socket.send(&frame(2)))?;
        recorder
            .read_until(|recording| recording.count(&frame(2)) == 5)
            .await?;

        // Who asks for the old name now does not mean that one.
        let (status, sentence) = refusal(&server, &url("va")?, &[]).await?;
        ensure!(status == 404 && sentence.contains("eth9"), "{status} {sentence}");
        let mut late = Recorder::start(&url("eth9")?).await?;
        socket.send(&frame(3))?;
        late.read_until(|recording| recording.has(&frame(3))).await?;
        assert_eq!(late.finish().await?.interfaces[0].name, "eth9", "{hook}");

        recorder.read_until(|recording| recording.has(&frame(3))).await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.count_on("va", false, &frame(1)), 3, "{hook}");
        assert_eq!(recording.count_on("eth9", false, &frame(2)), 5, "{hook}");
        let (old, new) = (
            recording.final_statistics("va")?,
            recording.final_statistics("eth9")?,
        );
        assert_eq!((old.delivered, old.dropped, old.received), (3, 0, 3), "{hook}");
        assert_eq!((new.delivered, new.dropped, new.received), (6, 0, 6), "{hook}");
        ensure!(!server.log().contains("ERROR"), "{hook}: {}", server.log());
    }
    Ok(())
}

/// Renames several links of a namespace all the time, each by a program of its own; gives what they are called at last.
fn rename_for(namespace: &Namespace, links: usize, time: Duration) -> anyhow::Result<Vec<String>> {
    const NAMES: usize = 2000;

    let folder = Folder::new()?;
    let end = Instant::now() + time;
    let rename = |number: usize| {
        let (first, batch) = (format!("q{number}x0"), folder.file(&number.to_string()));
        namespace.ip(&[
            "link",
            "add",
            &first,
            "type",
            "veth",
            "peer",
            "name",
            &format!("w{number}"),
        ])?;
        let mut lines = String::new();
        for name in 1..=NAMES {
            writeln!(
                lines,
                "link set q{number}x{} name q{number}x{}",
                name - 1,
                name % NAMES
            )?;
        }
        std::fs::write(&batch, lines)?;
        while Instant::now() < end {
            namespace.ip(&["-batch", batch.to_str().context("no text")?])?;
        }
        let last = format!("last{number}");
        namespace.ip(&["link", "set", &first, "name", &last])?;
        Ok(last)
    };
    thread::scope(|scope| {
        let renaming: Vec<_> = (0..links)
            .map(|number| scope.spawn(move || rename(number)))
            .collect();
        let renaming = renaming.into_iter();
        renaming
            .map(|one| {
                one.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    })
}

/// Reads until a packet comes that ends so; keeps all in `stream`.
async fn read_until_packet(capture: &mut Capture, stream: &mut Vec<u8>, end: &[u8]) -> anyhow::Result<()> {
    loop {
        match capture.next().await? {
            Piece::Data(data) => {
                stream.extend_from_slice(&data);
                if data.windows(end.len()).any(|bytes| bytes == end) {
                    return Ok(());
                }
            }
            Piece::Closed(code, reason) => anyhow::bail!("ended with {code} {reason}"),
        }
    }
}

/// Whoever has root's rights in a namespace can rename links thousands of times a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn captures_go_on_while_links_are_renamed_all_the_time() -> anyhow::Result<()> {
    const STORM: Duration = Duration::from_secs(16);
    let patience = pace::time(Duration::from_secs(10));

    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let (mut first, mut stream) = (Capture::open(&url, &[]).await?, Vec::new());
    let socket = RawSocket::open(&there, "vb")?;
    let here = Arc::new(here);
    let renamed = Arc::clone(&here);
    let storm = tokio::task::spawn_blocking(move || rename_for(&renamed, 3, STORM));
    let (mut sent, mut longest) = (0, Duration::ZERO);
    while !storm.is_finished() && sent < u8::MAX {
        // On a busy machine the server waits for a CPU, while the buffer of its socket overflows.
        server.signal(Signal::SIGSTOP)?;
        tokio::time::sleep(Duration::from_millis(150)).await;
        server.signal(Signal::SIGCONT)?;
        let begin = Instant::now();
        socket.send(&frame(sent))?;
        let end = [sent; 46];
        tokio::time::timeout(patience, read_until_packet(&mut first, &mut stream, &end))
            .await
            .with_context(|| format!("packet {sent} does not arrive"))??;
        longest = longest.max(begin.elapsed());
        if sent % 16 == 8 {
            // Whoever asks for the same meanwhile gets it in time, too.
            let joins = async {
                let mut second = Capture::open(&url, &[]).await?;
                socket.send(&frame(u8::MAX))?;
                read_until_packet(&mut second, &mut Vec::new(), &[u8::MAX; 46]).await
            };
            tokio::time::timeout(patience, joins)
                .await
                .context("a second client is not served")??;
        }
        sent += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let begin = Instant::now();
    first.stop().await?;
    while let Piece::Data(data) = first.next().await? {
        stream.extend_from_slice(&data);
    }
    let ended = begin.elapsed();
    let recording = Recording::parse(&stream)?;
    recording.check_complete()?;
    for number in 0..sent {
        assert_eq!(recording.count_on("va", false, &frame(number)), 1, "{number}");
    }
    eprintln!(
        "{sent} packets, each within {longest:.1?}, and {} descriptions; the end within {ended:.1?}",
        recording.interfaces.len(),
    );
    // Not one for each time that something was heard.
    ensure!(recording.interfaces.len() < 60, "{}", recording.interfaces.len());
    storm.await??;
    server.stop()?;
    ensure!(!server.log().contains("not everything ended in time"));
    ensure!(!server.log().contains("ERROR"), "{}", server.log());
    Ok(())
}

/// Other names of a link may take 64 KiB, and what else the kernel tells of the link comes on top.
#[tokio::test]
async fn links_are_listed_whatever_names_one_has() -> anyhow::Result<()> {
    for hook in HOOKS {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let mut before = Recorder::start(&url).await?;
        here.ip(&["link", "add", "named", "type", "bridge"])?;
        let names = (0..496).map(|number| format!("link property add dev named altname {number:0127}\n"));
        here.ip_batch(&names.collect::<String>())?;
        here.connect("late", &there, "peer", 2)?;
        before
            .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "late"))
            .await?;
        RawSocket::open(&there, "peer")?.send(&frame(1))?;
        before.read_until(|recording| recording.has(&frame(1))).await?;
        let recording = before.finish().await?;
        assert_eq!(recording.count_on("late", false, &frame(1)), 1, "{hook}");
        ensure!(
            recording.interfaces.iter().any(|one| one.name == "named"),
            "{hook}"
        );
        for query in ["", "&nif=late"] {
            let mut recorder = Recorder::start(&format!("{url}{query}")).await?;
            RawSocket::open(&there, "peer")?.send(&frame(2))?;
            recorder.read_until(|recording| recording.has(&frame(2))).await?;
        }
    }
    Ok(())
}

/// What a stream says when it may lack interfaces.
const MISSING: &[u8] = b"interfaces may be missing";

/// An interface that is there for a moment only is in no list.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_that_come_and_go_between_two_looks_are_told() -> anyhow::Result<()> {
    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&names=0&statistics=1s", here.inode()?));
    let mut all = Recorder::start(&url).await?;
    let mut one = Recorder::start(&format!("{url}&nif=va")).await?;
    let moments = (0..50).map(|number| format!("link add m{number} type bridge\nlink del m{number}\n"));
    here.ip_batch(&moments.collect::<String>())?;
    let told = async {
        while !is_told_to_miss(&all) {
            ensure!(all.read().await?.is_none());
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(pace::time(Duration::from_secs(10)), told).await??;
    // Who wants one alone lacks nothing.
    let enough = tokio::spawn(async {
        tokio::time::sleep(pace::time(Duration::from_secs(2))).await;
        Ok(())
    });
    one.read_during(enough).await?;
    ensure!(!is_told_to_miss(&one));
    Ok(())
}

fn is_told_to_miss(recorder: &Recorder) -> bool {
    let mut texts = recorder.stream().windows(MISSING.len());
    texts.any(|text| text == MISSING)
}

/// Whoever has root's rights in a namespace can make and delete links all the time, so that the kernel says of each list that
/// it may be wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interfaces_join_while_links_come_and_go_all_the_time() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let links = (0..pace::sample(1000)).map(|number| format!("link add d{number} type bridge\n"));
    here.ip_batch(&links.collect::<String>())?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let mut first = Recorder::start(&format!("{url}&statistics=1s")).await?;
    let here = Arc::new(here);
    let is_over = Arc::new(AtomicBool::new(false));
    let storm = |number: usize| {
        let (here, is_over) = (Arc::clone(&here), Arc::clone(&is_over));
        let line = format!("link add s{number} type bridge\nlink delete s{number}\n");
        tokio::task::spawn_blocking(move || {
            while !is_over.load(Ordering::Relaxed) {
                here.ip_batch(&line.repeat(20))?;
            }
            anyhow::Ok(())
        })
    };
    let storms: Vec<_> = (0..3).map(storm).collect();
    // So long that a list has failed for a second.
    while !is_told_to_miss(&first) {
        ensure!(first.read().await?.is_none());
    }
    here.connect("late", &there, "peer", 2)?;
    first
        .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "late"))
        .await?;
    let socket = RawSocket::open(&there, "peer")?;
    socket.send(&frame(1))?;
    first.read_until(|recording| recording.has(&frame(1))).await?;
    for query in ["&nif=late", "&snaplen=1000"] {
        let mut second = Recorder::start(&format!("{url}{query}")).await?;
        socket.send(&frame(2))?;
        second.read_until(|recording| recording.has(&frame(2))).await?;
    }
    is_over.store(true, Ordering::Relaxed);
    for storm in storms {
        storm.await??;
    }
    let recording = Recording::parse(first.stream())?;
    assert_eq!(recording.count_on("late", false, &frame(1)), 1);
    ensure!(!server.log().contains("ERROR"), "{}", server.log());
    Ok(())
}

/// The link of a TCX program goes with its interface, wherever that is moved to.
#[tokio::test]
async fn interface_that_moves_shows_nothing_of_another_namespace() -> anyhow::Result<()> {
    for (hook, is_deleted_at_last) in [("tcx", false), ("tcx", true), ("socket", false)] {
        let (here, there) = Namespace::pair()?;
        let other = Namespace::new()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        recorder.read_until(|recording| recording.has(&frame(1))).await?;
        // So that it hears of nothing before all has happened.
        server.signal(Signal::SIGSTOP)?;
        here.ip(&["link", "set", "va", "netns", other.name()])?;
        other.ip(&["link", "set", "va", "up"])?;
        RawSocket::open(&there, "vb")?.send(&frame(2))?;
        RawSocket::open(&other, "va")?.send(&frame(2))?;
        if is_deleted_at_last {
            other.ip(&["link", "delete", "va"])?;
        }
        server.signal(Signal::SIGCONT)?;
        recorder
            .read_until(|recording| {
                let of_va = |one: &Statistics| recording.interfaces[one.interface].name == "va";
                recording.statistics.iter().any(|one| one.last && of_va(one))
            })
            .await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.count_on("va", false, &frame(1)), 1, "{hook}");
        ensure!(!recording.has(&frame(2)), "{hook} {is_deleted_at_last}");
        ensure!(!server.log().contains("ERROR"), "{hook}: {}", server.log());
    }
    Ok(())
}

#[tokio::test]
async fn last_packets_of_an_interface_that_is_deleted_are_shown() -> anyhow::Result<()> {
    for hook in HOOKS {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        server.signal(Signal::SIGSTOP)?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        here.ip(&["link", "delete", "va"])?;
        server.signal(Signal::SIGCONT)?;
        recorder.read_until(|recording| recording.has(&frame(1))).await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.final_statistics("va")?.delivered, 1, "{hook}");
    }
    Ok(())
}

/// Each name is a description that is kept for as long as the capture runs.
#[tokio::test]
async fn names_that_change_all_the_time_are_told_now_and_then_and_the_last_always() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    let socket = RawSocket::open(&there, "vb")?;
    let mut name = "va".to_owned();
    let mut rename = |next: &str| {
        let done = here.ip(&["link", "set", &name, "name", next]);
        next.clone_into(&mut name);
        done
    };
    for number in 0..60 {
        rename(&format!("x{number}"))?;
        socket.send(&frame(number))?;
        // Each is seen for itself.
        tokio::time::sleep(Duration::from_millis(110)).await;
    }
    let told = |name: &'static str| {
        move |recording: &Recording| recording.interfaces.iter().any(|one| one.name == name)
    };
    // Who joins now would have it under a wrong name, and so gets a capture of its own.
    let late = Recorder::start(&url).await?.finish().await?;
    ensure!(told("x59")(&late), "{:?}", late.interfaces);

    let limit = pace::time(Duration::from_secs(25));
    tokio::time::timeout(limit, recorder.read_until(told("x59"))).await??;
    rename("last")?;
    socket.send(&frame(60))?;
    recorder.read_until(|recording| recording.has(&frame(60))).await?;
    let recording = recorder.finish().await?;
    let names: Vec<&str> = recording.interfaces.iter().map(|one| &one.name[..]).collect();
    // Those at the beginning, eight at once, and one in ten seconds.
    ensure!(names.len() <= 2 + 8 + 5, "{names:?}");
    assert_eq!(names.last(), Some(&"last"));
    for number in 0..=60 {
        assert_eq!(recording.count(&frame(number)), 1, "{number}");
    }
    ensure!(!server.log().contains("ERROR"), "{}", server.log());
    Ok(())
}

/// Makes links, waits until all clients are told of them, deletes them, and waits until all have their final statistics.
async fn come_and_go(
    namespace: &Namespace,
    clients: &mut [Recorder],
    links: usize,
    batch: &str,
    packet: &[u8],
) -> anyhow::Result<()> {
    let known: Vec<usize> = clients
        .iter()
        .map(|one| blocks(one.stream(), DESCRIPTION))
        .collect();
    namespace.ip(&["-batch", batch])?;
    for (client, known) in clients.iter_mut().zip(known) {
        read_until_blocks(client, DESCRIPTION, known + links).await?;
    }
    namespace.ip(&["link", "set", "w0", "up"])?;
    namespace.ip(&["link", "set", "q0", "up"])?;
    RawSocket::open(namespace, "q0")?.send(packet)?;
    namespace.ip(&["link", "delete", "group", "7"])?;
    for client in clients {
        let described = blocks(client.stream(), DESCRIPTION);
        // All but those of the interfaces that stay.
        read_until_blocks(client, STATISTICS, described - 2).await?;
    }
    Ok(())
}

const DESCRIPTION: u32 = 1;
const STATISTICS: u32 = 5;

/// How many blocks of a type a stream has.
fn blocks(mut stream: &[u8], kind: u32) -> usize {
    let mut count = 0;
    while let Some((head, _)) = stream.split_first_chunk::<8>() {
        let [kind_here, len] = [0, 4].map(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| head[at + byte])));
        count += usize::from(kind_here == kind);
        stream = &stream[len as usize..];
    }
    count
}

async fn read_until_blocks(client: &mut Recorder, kind: u32, count: usize) -> anyhow::Result<()> {
    while blocks(client.stream(), kind) < count {
        let come = blocks(client.stream(), kind);
        let piece = client.read().await;
        if let Some((code, reason)) =
            piece.with_context(|| format!("{come} of {count} blocks of type {kind}"))?
        {
            anyhow::bail!("ended with {code} {reason}");
        }
    }
    Ok(())
}

/// Whoever has root's rights in a namespace can make and delete links by the thousand, for as long as a capture runs.
#[tokio::test]
async fn what_is_gone_is_forgotten_once_all_clients_have_its_statistics() -> anyhow::Result<()> {
    const PAIRS: usize = 100;
    let rounds = pace::sample(12) as u8;

    let (here, _there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&statistics=end", here.inode()?));
    let mut clients = [Recorder::start(&url).await?, Recorder::start(&url).await?];
    let folder = Folder::new()?;
    let batch = folder.file("links");
    let lines = (0..PAIRS).map(|one| format!("link add q{one} group 7 type veth peer name w{one} group 7\n"));
    std::fs::write(&batch, lines.collect::<String>())?;
    let batch = batch.to_str().context("no text")?;
    let mut before = 0;
    for round in 0..rounds {
        // What the allocator keeps for what comes at once is there after some.
        if round == rounds / 4 {
            before = server.status("RssAnon")?;
        }
        come_and_go(&here, &mut clients, 2 * PAIRS, batch, &frame(round))
            .await
            .with_context(|| server.log())?;
    }
    let grown = server.status("RssAnon")?.saturating_sub(before);
    let gone = usize::from(rounds - rounds / 4) * 2 * PAIRS;
    eprintln!("{grown} KiB more after {gone} links");
    for client in clients {
        let recording = client.finish().await?;
        for round in 0..rounds {
            assert_eq!(recording.count_on("q0", true, &frame(round)), 1, "{round}");
            assert_eq!(recording.count_on("w0", false, &frame(round)), 1, "{round}");
        }
    }
    // Who comes late is not told of all that.
    let late = Recorder::start(&url).await?.finish().await?;
    assert_eq!(late.interfaces.len(), 2);
    ensure!(!server.log().contains("ERROR"), "{}", server.log());
    // To keep each took 1560 bytes.
    ensure!(
        grown * 1024 < gone as u64 * 400,
        "{grown} KiB more after {gone} links"
    );
    Ok(())
}

/// Where the buffer of the socket that hears of changes is full, the kernel does not tell that an interface was removed.
#[tokio::test]
async fn interface_that_has_anothers_index_is_told_apart_though_nothing_was_heard() -> anyhow::Result<()> {
    for hook in HOOKS {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        recorder.read_until(|recording| recording.has(&frame(1))).await?;
        let index = here.ifindex("va")?.to_string();
        server.signal(Signal::SIGSTOP)?;
        let lines = (0..5000).map(|number| format!("link set lo alias {number:0200}\n"));
        here.ip_batch(&lines.collect::<String>())?;
        here.ip(&["link", "delete", "va"])?;
        let peer = ["type", "veth", "peer", "name", "vb", "netns", there.name()];
        here.ip(&[&["link", "add", "va", "index", &index][..], &peer].concat())?;
        here.ip(&["link", "set", "va", "up"])?;
        there.ip(&["link", "set", "vb", "up"])?;
        server.signal(Signal::SIGCONT)?;
        recorder
            .read_until(|recording| recording.interfaces.len() == 3)
            .await
            .with_context(|| hook.to_owned())?;
        RawSocket::open(&there, "vb")?.send(&frame(2))?;
        recorder.read_until(|recording| recording.has(&frame(2))).await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.interfaces[2].name, "va", "{hook}");
        let packets = recording.packets.iter().filter(|one| one.data.len() == 60);
        let of: Vec<usize> = packets.map(|packet| packet.interface).collect();
        assert_eq!(of, [1, 2], "{hook}");
        assert_eq!(recording.final_statistics("va")?.delivered, 1, "{hook}");
    }
    Ok(())
}

/// An interface that got the name is what is meant from then on.
#[tokio::test]
async fn name_means_whoever_has_it_now() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let mut first = Recorder::start(&url).await?;
    here.ip(&["link", "set", "va", "name", "old"])?;
    first
        .read_until(|recording| recording.interfaces.len() == 2)
        .await?;
    here.connect("va", &there, "vc", 2)?;
    let mut second = Recorder::start(&url).await?;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    RawSocket::open(&there, "vc")?.send(&frame(2))?;
    second.read_until(|recording| recording.has(&frame(2))).await?;
    let second = second.finish().await?;
    assert_eq!((second.count(&frame(1)), second.count(&frame(2))), (0, 1));
    first
        .read_until(|recording| recording.has(&frame(1)) && recording.has(&frame(2)))
        .await?;
    let first = first.finish().await?;
    assert_eq!(first.count_on("old", false, &frame(1)), 1);
    assert_eq!(first.count_on("va", false, &frame(2)), 1);
    Ok(())
}

#[tokio::test]
async fn interface_of_another_type_is_described_anew() -> anyhow::Result<()> {
    const ETHERNET: u16 = 1;
    for hook in HOOKS {
        let here = Namespace::new()?;
        let mut tun = Tun::open(&here, "tun7")?;
        here.ip(&["link", "set", "tun7", "up"])?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        tun.write(&raw::ipv4_udp(b"without a header"))?;
        recorder
            .read_until(|recording| recording.has(b"without a header"))
            .await?;
        here.ip(&["link", "set", "tun7", "down"])?;
        tun.set_hardware_type(ETHERNET)?;
        here.ip(&["link", "set", "tun7", "up"])?;
        recorder
            .read_until(|recording| recording.interfaces.len() == 3)
            .await?;
        // The device goes by the first byte still.
        let packet = raw::ipv4_udp(b"with a header");
        wait_until(Duration::from_secs(5), || Ok(tun.write(&packet).is_ok()))?;
        recorder
            .read_until(|recording| recording.has(b"with a header"))
            .await?;
        let recording = recorder.finish().await?;
        let types: Vec<u32> = recording.interfaces.iter().map(|one| one.link_type).collect();
        assert_eq!(types, [1, 101, 1], "{hook}");
        let last = recording.packets.last().context("no packet")?;
        assert_eq!(last.interface, 2, "{hook}");
    }
    Ok(())
}

#[tokio::test]
async fn several_link_types_are_told_to_those_who_cannot_read_them() -> anyhow::Result<()> {
    const WORDS: &str = "several link types";
    let here = Namespace::new()?;
    let _tun = Tun::open(&here, "tun7")?;
    here.ip(&["link", "set", "tun7", "up"])?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let all = Capture::open(&url, &[]).await?;
    let note = all.answer("packetflix-note").unwrap_or_default().to_owned();
    ensure!(note.contains(WORDS) && note.contains("nif="), "{note}");
    let recording = Recorder::of(all).await?.finish().await?;
    ensure!(
        options(&recording, "tun7")?.contains(WORDS),
        "{:?}",
        recording.interfaces
    );
    ensure!(
        !options(&recording, "lo")?.contains(WORDS),
        "{:?}",
        recording.interfaces
    );
    for one in ["lo", "tun7"] {
        let one = Capture::open(&format!("{url}&nif={one}"), &[]).await?;
        ensure!(one.answer("packetflix-note").is_none());
        let recording = Recorder::of(one).await?.finish().await?;
        ensure!(!recording.interfaces[0].options.contains(WORDS));
    }
    Ok(())
}

/// Takes all the room for TCX programs that an interface has.
fn fill(namespace: &Namespace, interface: &str) -> anyhow::Result<Vec<packetflix_tests::bpf_run::Attached>> {
    let passing = [
        Instruction::alu64_imm(Arithmetic::Move, R0, -1),
        Instruction::exit(),
    ];
    let ifindex = namespace.ifindex(interface)?;
    let mut attached = Vec::new();
    loop {
        let program = Program::load(ProgramType::Classifier, &native::encode(&passing))?;
        match namespace.inside(|| program.attach_to_ingress(ifindex, Place::Last))? {
            Ok(one) => attached.push(one),
            Err(_) => return Ok(attached),
        }
    }
}

#[tokio::test]
async fn interface_that_cannot_be_attached_to_is_left_out_told_and_tried_again() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let theirs = fill(&here, "va")?;
    ensure!(theirs.len() > 60, "{}", theirs.len());
    let server = Server::start(&["--hook", "tcx"])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let mut recorder = Recorder::start(&url).await?;
    recorder
        .read_until(|recording| recording.interfaces.len() == 2)
        .await?;
    let recording = Recording::parse(recorder.stream())?;
    let told = options(&recording, "va")?;
    ensure!(
        told.contains("nothing is captured here") && told.contains("63 TCX programs"),
        "{told}"
    );
    drop(theirs);
    recorder
        .read_until(|recording| recording.interfaces.len() == 3)
        .await?;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    recorder.read_until(|recording| recording.has(&frame(1))).await?;
    let recording = recorder.finish().await?;
    assert_eq!(recording.packets[0].interface, 2);
    ensure!(!options(&recording, "va")?.contains("nothing is captured"));

    // Of one that was asked for, that is a refusal. Links that are kept for the next capture would be let go of for it.
    wait_until(Duration::from_secs(5), || {
        Ok(Objects::held_by(server.keeper()?)?.numbers(Kind::Link).is_empty())
    })?;
    let theirs = fill(&here, "va")?;
    let (status, sentence) = refusal(&server, &format!("{url}&nif=va"), &[]).await?;
    ensure!(status == 429 && sentence.contains("va"), "{status} {sentence}");
    drop(theirs);
    Ok(())
}

/// In the middle of a capture, with the service short of descriptors.
#[tokio::test]
async fn interface_that_cannot_join_ends_nobodys_stream() -> anyhow::Result<()> {
    for hook in HOOKS {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let mut recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
        let mut before = 0;
        wait_until(Duration::from_secs(5), || {
            let now = server.descriptors()?;
            thread::sleep(Duration::from_millis(300));
            Ok(std::mem::replace(&mut before, now) == now)
        })?;
        let bound = |most: u64| server.limit(&format!("--nofile={most}:20000"));
        bound(3)?;
        here.connect("late", &there, "peer", 2)?;
        // What was there before goes on, and the others learn what is missing.
        RawSocket::open(&there, "vb")?.send(&frame(1))?;
        recorder
            .read_until(|recording| recording.has(&frame(1)) && recording.interfaces.len() == 3)
            .await?;
        let recording = Recording::parse(recorder.stream())?;
        let told = options(&recording, "late")?;
        ensure!(
            told.contains("nothing is captured here, until it works"),
            "{hook}: {told}"
        );
        ensure!(told.contains("Too many open files"), "{hook}: {told}");
        bound(10_000)?;
        recorder
            .read_until(|recording| recording.interfaces.len() == 4)
            .await?;
        RawSocket::open(&there, "peer")?.send(&frame(2))?;
        recorder.read_until(|recording| recording.has(&frame(2))).await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.count_on("late", false, &frame(2)), 1, "{hook}");
    }
    Ok(())
}

fn target(namespace: &Namespace, sleeper: &Sleeper, interfaces: &[&str]) -> anyhow::Result<Value> {
    let mut target = sleeper.identity()?;
    target["name"] = json!("web");
    target["type"] = json!("docker");
    target["network-interfaces"] = json!(interfaces);
    ensure!(target["netns"] == namespace.inode()?);
    Ok(target)
}

/// As a client has it that listed the targets a moment ago.
#[tokio::test]
async fn list_of_a_target_is_what_was_known_and_no_wish() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let sleeper = Sleeper::inside(&here)?;
    let server = Server::start(&[])?;
    let target = target(&here, &sleeper, &["lo", "va", "eth7"])?;
    for rest in ["", "&nif=lo%2Fva%2Feth7"] {
        let mut recorder = Recorder::start(&server.url_of(&target, rest)).await?;
        let recording = Recording::parse(recorder.stream())?;
        let told = options(&recording, "lo")?;
        ensure!(told.contains("that were not there: eth7"), "{rest}: {told}");
        // One that is named joins when it comes; of others is told that they are there.
        here.connect("eth7", &there, "peer", 2)?;
        here.connect("eth8", &there, "peer8", 3)?;
        recorder
            .read_until(|recording| recording.interfaces.len() == 4)
            .await?;
        RawSocket::open(&there, "peer")?.send(&frame(1))?;
        recorder.read_until(|recording| recording.has(&frame(1))).await?;
        let recording = recorder.finish().await?;
        assert_eq!(recording.count_on("eth7", false, &frame(1)), 1, "{rest}");
        ensure!(
            options(&recording, "eth8")?.contains("nothing is captured here"),
            "{rest}"
        );
        here.ip(&["link", "delete", "eth7"])?;
        here.ip(&["link", "delete", "eth8"])?;
    }
    // A wish is one, and where nothing is there of a list, there is nothing to capture.
    for (target, rest) in [
        (&target, "&nif=lo%2Feth7"),
        (&self::target(&here, &sleeper, &["eth7"])?, ""),
    ] {
        let (status, sentence) = refusal(&server, &server.url_of(target, rest), &[]).await?;
        ensure!(status == 404 && sentence.contains("eth7"), "{status} {sentence}");
    }
    Ok(())
}

#[tokio::test]
async fn target_by_name_has_all_its_interfaces_whatever_their_state() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let name = json!({ "name": here.path() });
    // Set up, and not yet up as the kernel sees it: its peer is down.
    there.ip(&["link", "set", "vb", "down"])?;
    ensure!(here.ip(&["link", "show", "va"])?.contains("NO-CARRIER"));
    assert_eq!(
        server.target(&here.path().display().to_string())?["network-interfaces"],
        json!(["lo", "va"])
    );
    here.ip(&["link", "set", "va", "down"])?;
    let mut recorder = Recorder::start(&server.url_of(&name, "")).await?;
    here.ip(&["link", "set", "va", "up"])?;
    there.ip(&["link", "set", "vb", "up"])?;
    here.connect("late", &there, "peer", 2)?;
    recorder
        .read_until(|recording| recording.interfaces.len() == 3)
        .await?;
    for (interface, number) in [("vb", 1), ("peer", 2)] {
        let socket = RawSocket::open(&there, interface)?;
        wait_until(Duration::from_secs(5), || Ok(socket.send(&frame(number)).is_ok()))?;
        recorder
            .read_until(|recording| recording.has(&frame(number)))
            .await?;
    }
    let recording = recorder.finish().await?;
    ensure!(recording.count_on("va", false, &frame(1)) > 0);
    ensure!(recording.count_on("late", false, &frame(2)) > 0);
    Ok(())
}

#[tokio::test]
async fn interfaces_have_other_names_too() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    here.ip(&["link", "property", "add", "dev", "va", "altname", "Gi0-1"])?;
    let server = Server::start(&[])?;
    let netns = here.inode()?;
    let mut recorder = Recorder::start(&server.url(&format!("netns={netns}&nif=Gi0-1"))).await?;
    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    recorder.read_until(|recording| recording.has(&frame(1))).await?;
    assert_eq!(recorder.finish().await?.interfaces[0].name, "va");
    let (_, list) = server.get("/targets")?;
    let targets = list["targets"].as_array().context("no list")?;
    let target = targets
        .iter()
        .find(|one| one["netns"] == netns)
        .context("no target")?;
    assert_eq!(
        target["network-interfaces"][1]["altnames"],
        json!(["Gi0-1"]),
        "{target}"
    );
    let url = server.url(&format!("netns={netns}&nif=Gi0-2"));
    let (status, sentence) = refusal(&server, &url, &[]).await?;
    ensure!(
        status == 404 && sentence.contains("va (Gi0-1)"),
        "{status} {sentence}"
    );
    Ok(())
}

#[tokio::test]
async fn descriptions_say_whose_interfaces_they_are() -> anyhow::Result<()> {
    // Its name is cut to fifteen bytes, within a character.
    let sleeper = Sleeper::unshared_as("konténer-größe", &[])?;
    let server = Server::start(&[])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", sleeper.netns()?))).await?;
    let recording = recorder.finish().await?;
    let name = format!("konténer-grö({})", sleeper.pid());
    ensure!(
        options(&recording, "lo")?.contains(&format!("{name} (proc)")),
        "{:?}",
        recording.interfaces
    );
    ensure!(
        recording.comment.contains(&format!("container-name: \"{name}\"")),
        "{}",
        recording.comment
    );
    // It is listed, and found, by the same name.
    let recorder = Recorder::start(&server.url_of(&json!({ "name": name }), "")).await?;
    recorder.finish().await?;

    let (here, _there) = Namespace::pair()?;
    here.ip(&["link", "set", "va", "alias", "uplink"])?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    let recording = recorder.finish().await?;
    let words = format!("{} (bindmount): va, uplink", here.path().display());
    ensure!(
        options(&recording, "va")?.contains(&words),
        "{:?}",
        recording.interfaces
    );
    Ok(())
}
