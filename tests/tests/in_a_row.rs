//! Captures in a row: each gets what the one before has left, and nothing of its packets.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use packetflix_filter::native::{self, Arithmetic, Instruction, R0};
use packetflix_tests::{
    bpf_objects::{Kind, Objects},
    bpf_run::{Place, Program, ProgramType, attached_to_ingress},
    client::Recorder,
    hook::{self, hooks},
    metrics::Metrics,
    namespace::Namespace,
    raw::{self, RawSocket},
    recording::Recording,
    server::{Server, mapped_rings, mapped_rings_at_rest, wait_until},
};
use socket2::{Domain, Socket, Type};

/// Longer than links are kept.
const PATIENCE: Duration = Duration::from_secs(5);

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

fn links(server: &Server) -> anyhow::Result<BTreeSet<u32>> {
    Ok(Objects::held_by(server.keeper()?)?.numbers(Kind::Link))
}

/// Whether no TCX program is attached to what an interface receives.
fn is_free(namespace: &Namespace, ifindex: u32) -> anyhow::Result<bool> {
    let attached = namespace.inside(|| attached_to_ingress(ifindex))?;
    Ok(attached.is_ok_and(|attached| attached.is_empty()))
}

/// Waits until what captures have left is there for the next.
fn wait_for_ends(server: &Server) -> anyhow::Result<()> {
    wait_until(4 * PATIENCE, || {
        Ok(Metrics::of(server)?.count("packetflix_taps")? == 0)
    })
}

/// Captures what is sent into `from`, and leaves.
async fn capture_one(url: &str, from: (&Namespace, &str), number: u8) -> anyhow::Result<Recording> {
    let mut recorder = Recorder::start(url).await?;
    RawSocket::open(from.0, from.1)?.send(&frame(number))?;
    recorder
        .read_until(|recording| recording.has(&frame(number)))
        .await?;
    recorder.finish().await
}

#[tokio::test]
async fn links_serve_the_next_capture_and_are_gone_after_two_seconds() -> anyhow::Result<()> {
    let Some(tcx) = hook::tcx()? else { return Ok(()) };
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--hook", tcx])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let ifindex = here.ifindex("va")?;

    capture_one(&url, (&there, "vb"), 0).await?;
    wait_for_ends(&server)?;
    let first = links(&server)?;
    assert_eq!(first.len(), 2);
    for round in 1..5 {
        let mut recorder = Recorder::start(&url).await?;
        assert_eq!(links(&server)?, first, "{round}");
        RawSocket::open(&there, "vb")?.send(&frame(round))?;
        recorder
            .read_until(|recording| recording.has(&frame(round)))
            .await?;
        let recording = recorder.finish().await?;
        ensure!(
            !recording.has(&frame(round - 1)),
            "a packet of the capture before"
        );
        assert_eq!(recording.final_statistics("va")?.received, 1, "{round}");
        wait_for_ends(&server)?;
        assert_eq!(links(&server)?, first, "{round}");
    }
    // What stays does nothing.
    let idle = Objects::held_by(server.keeper()?)?.programs("tc_idle");
    let attached = here.inside(|| attached_to_ingress(ifindex))??;
    ensure!(
        attached.len() == 1 && idle.contains(&attached[0]),
        "{attached:?}, none of {idle:?}"
    );
    let ended = Instant::now();
    wait_until(PATIENCE, || Ok(links(&server)?.is_empty()))?;
    let kept = ended.elapsed();
    ensure!(
        kept > Duration::from_secs(1) && kept < Duration::from_secs(3),
        "{kept:?}"
    );
    ensure!(is_free(&here, ifindex)?);
    Ok(())
}

/// Of what is ready for the next capture they are mapped before it, used by it, and left to the next; those of what was let go of
/// are not there any more.
#[tokio::test]
async fn rings_are_mapped_before_a_capture_and_unmapped_when_none_needs_them() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--ring-size=1MiB"])?;
    let rings = || mapped_rings(server.pid());
    let first = mapped_rings_at_rest(server.pid())?;
    // Two of each ring, and one of them at least.
    ensure!(first.len() >= 2 && first.len().is_multiple_of(2), "{first:?}");
    let url = |number: u8| {
        Ok::<_, anyhow::Error>(server.url(&format!("netns={}&filter=len%3E{number}", here.inode()?)))
    };
    let mut open = Vec::new();
    for number in 0..4 {
        let mut recorder = Recorder::start(&url(number)?).await?;
        RawSocket::open(&there, "vb")?.send(&frame(number))?;
        recorder
            .read_until(|recording| recording.has(&frame(number)))
            .await?;
        ensure!(
            rings()?.is_superset(&first),
            "{number}: {:?}, {first:?}",
            rings()?
        );
        open.push(recorder);
    }
    let most = rings()?.len();
    ensure!(most >= 4 * first.len(), "{most}");
    for recorder in open {
        let recording = recorder.finish().await?;
        let statistics = recording.final_statistics("va")?;
        assert_eq!(statistics.delivered, statistics.received);
    }
    wait_for_ends(&server)?;
    wait_until(2 * PATIENCE, || Ok(rings()?.len() == first.len()))?;
    // What is left is of use.
    let left = rings()?;
    capture_one(&url(0)?, (&there, "vb"), 7).await?;
    ensure!(rings()?.is_superset(&left));
    Ok(())
}

#[tokio::test]
async fn links_that_are_kept_are_gone_with_the_server() -> anyhow::Result<()> {
    let Some(tcx) = hook::tcx()? else { return Ok(()) };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let (here, there) = Namespace::pair()?;
        let mut server = Server::start(&["--hook", tcx])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        capture_one(&url, (&there, "vb"), 1).await?;
        wait_for_ends(&server)?;
        let held = Objects::held_by(server.keeper()?)?;
        // One side of the loopback device, two of the other.
        assert_eq!(held.numbers(Kind::Link).len(), 3);
        server.signal(signal)?;
        server.wait()?;
        held.wait_until_gone()?;
        let ifindex = here.ifindex("va")?;
        ensure!(is_free(&here, ifindex)?);
    }
    Ok(())
}

/// Between two captures an interface goes to another namespace, with its links, and another takes its name and index.
#[tokio::test]
async fn links_of_an_interface_that_has_moved_are_not_taken_for_anothers() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let other = Namespace::new()?;
        let server = Server::start(&["--hook", hook])?;
        let [url, url_of_other] = [&here, &other]
            .map(|netns| Ok::<_, anyhow::Error>(server.url(&format!("netns={}", netns.inode()?))));
        let (url, url_of_other) = (url?, url_of_other?);
        capture_one(&url, (&there, "vb"), 1).await?;
        wait_for_ends(&server)?;

        let index = here.ifindex("va")?.to_string();
        here.ip(&["link", "set", "va", "netns", other.name()])?;
        other.ip(&["link", "set", "va", "up"])?;
        let peer = ["type", "veth", "peer", "name", "vc", "netns", there.name()];
        here.ip(&[&["link", "add", "va", "index", &index][..], &peer].concat())?;
        here.ip(&["link", "set", "va", "up"])?;
        there.ip(&["link", "set", "vc", "up"])?;
        assert_eq!(here.ifindex("va")?, other.ifindex("va")?);

        let mut recorder = Recorder::start(&url).await?;
        RawSocket::open(&there, "vb")?.send(&frame(2))?;
        RawSocket::open(&there, "vc")?.send(&frame(3))?;
        recorder.read_until(|recording| recording.has(&frame(3))).await?;
        let recording = recorder.finish().await?;
        ensure!(!recording.has(&frame(2)), "{hook}: a packet of another namespace");
        assert_eq!(recording.count_on("va", false, &frame(3)), 1, "{hook}");

        // Nor is the one that has moved missed where it is now.
        let recording = capture_one(&url_of_other, (&there, "vb"), 4).await?;
        assert_eq!(recording.count_on("va", false, &frame(4)), 1, "{hook}");
        ensure!(!server.log().contains("ERROR"), "{hook}: {}", server.log());
    }
    Ok(())
}

#[tokio::test]
async fn interface_that_replaced_another_is_captured() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let index = here.ifindex("va")?.to_string();
        for round in 0..4 {
            let recording = capture_one(&url, (&there, "vb"), round).await?;
            assert_eq!(recording.count_on("va", false, &frame(round)), 1, "{hook}");
            here.ip(&["link", "delete", "va"])?;
            let peer = ["type", "veth", "peer", "name", "vb", "netns", there.name()];
            here.ip(&[&["link", "add", "va", "index", &index][..], &peer].concat())?;
            here.ip(&["link", "set", "va", "up"])?;
            there.ip(&["link", "set", "vb", "up"])?;
        }
    }
    Ok(())
}

/// A program of TC that does nothing but give a verdict.
fn returning(verdict: i32) -> anyhow::Result<Program> {
    let instructions = [
        Instruction::alu64_imm(Arithmetic::Move, R0, verdict),
        Instruction::exit(),
    ];
    Program::load(ProgramType::Classifier, &native::encode(&instructions))
}

/// A program that was put before a link that is kept would have the capture see nothing.
#[tokio::test]
async fn captures_stand_before_what_came_meanwhile() -> anyhow::Result<()> {
    /// `TC_ACT_SHOT` of `linux/pkt_cls.h`
    const DROP: i32 = 2;

    let Some(tcx) = hook::tcx()? else { return Ok(()) };
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--hook", tcx])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    capture_one(&url, (&there, "vb"), 1).await?;
    wait_for_ends(&server)?;
    let dropping = returning(DROP)?;
    let ifindex = here.ifindex("va")?;
    let _attached = here.inside(|| dropping.attach_to_ingress(ifindex, Place::First))??;
    capture_one(&url, (&there, "vb"), 2).await?;
    Ok(())
}

/// Where others' programs stand before what is kept, and take all other places.
#[tokio::test]
async fn links_that_are_kept_make_room_where_it_is_lacking_and_stay_elsewhere() -> anyhow::Result<()> {
    /// `TCX_NEXT` of `linux/bpf.h`
    const NEXT: i32 = -1;
    /// One less than there are places beside a capture's.
    const OTHERS: usize = 61;

    let Some(tcx) = hook::tcx()? else { return Ok(()) };
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&["--hook", tcx])?;
    let ifindex = here.ifindex("va")?;
    let attach = |place| {
        let program = returning(NEXT)?;
        anyhow::Ok(here.inside(|| program.attach_to_ingress(ifindex, place))??)
    };
    let _others: Vec<_> = (0..OTHERS)
        .map(|_| attach(Place::Last))
        .collect::<anyhow::Result<_>>()?;

    let all = server.url(&format!("netns={}", here.inode()?));
    capture_one(&all, (&there, "vb"), 1).await?;
    wait_for_ends(&server)?;
    let kept = links(&server)?;
    // One side of the loopback device, two of the other.
    assert_eq!(kept.len(), 3);
    let _last = attach(Place::First)?;
    ensure!(attach(Place::First).is_err(), "there is more room");
    for (rest, number) in [("&nif=va", 2), ("", 3)] {
        capture_one(&format!("{all}{rest}"), (&there, "vb"), number).await?;
        wait_for_ends(&server)?;
        // But for what stood behind the others.
        assert_eq!(links(&server)?.intersection(&kept).count(), 2, "{rest}");
    }
    Ok(())
}

#[tokio::test]
async fn four_of_many_captures_leave_what_they_have_loaded_and_one_for_good() -> anyhow::Result<()> {
    for hook in hooks()? {
        let here = Namespace::new()?;
        let server = Server::start(&["--hook", hook])?;
        let inode = here.inode()?;
        let recorders = try_join_all((0..8).map(|number| {
            // Each is a capture of its own.
            let url = server.url(&format!("netns={inode}&snaplen={}", 100 + number));
            async move { Recorder::start(&url).await }
        }))
        .await?;
        for recorder in recorders {
            recorder.finish().await?;
        }
        wait_for_ends(&server)?;
        let loaded = || {
            Ok::<_, anyhow::Error>(
                Objects::held_by(server.keeper()?)?
                    .kinds()
                    .matches(" PAID ")
                    .count(),
            )
        };
        let left = loaded()?;
        ensure!((2..=5).contains(&left), "{hook}: {left} objects");
        wait_until(PATIENCE, || Ok(loaded()? == 1)).with_context(|| hook.to_owned())?;
    }
    Ok(())
}

/// Those of 140 interfaces.
#[tokio::test]
async fn links_that_are_kept_are_bounded() -> anyhow::Result<()> {
    let Some(tcx) = hook::tcx()? else { return Ok(()) };
    let here = Namespace::new()?;
    let server = Server::start(&["--hook", tcx])?;
    let pairs = (0..70).map(|number| {
        format!(
            "link add a{number} type veth peer name b{number}\nlink set a{number} up\nlink set b{number} up\n"
        )
    });
    here.ip_batch(&pairs.collect::<String>())?;
    let recorder = Recorder::start(&server.url(&format!("netns={}", here.inode()?))).await?;
    assert_eq!(links(&server)?.len(), 281);
    drop(recorder);
    wait_for_ends(&server)?;
    let kept = links(&server)?.len();
    ensure!(kept > 0 && kept <= 256, "{kept} links are kept");
    wait_until(3 * PATIENCE, || Ok(links(&server)?.is_empty()))
}

/// Programs of which there is one for each object, and one for each filter.
fn programs(server: &Server, hook: &str) -> anyhow::Result<BTreeSet<u32>> {
    let name = if hook == "tcx" { "tc_ingress" } else { "socket" };
    Ok(Objects::held_by(server.keeper()?)?.programs(name))
}

#[tokio::test]
async fn programs_with_a_filter_serve_who_asks_for_the_same_again_and_nobody_else() -> anyhow::Result<()> {
    // Each is an account.
    const ALICE: [u8; 4] = [127, 0, 0, 1];
    const BOB: [u8; 4] = [127, 0, 0, 2];

    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let capture = async |from: [u8; 4], filter: &str, number: u8| {
            let url = server.url(&format!("netns={}&nif=va&filter={filter}", here.inode()?));
            let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            client.bind(&SocketAddr::from((from, 0)).into())?;
            client.connect(&SocketAddr::from(([127, 0, 0, 1], server.port())).into())?;
            let before = programs(&server, hook)?;
            let mut recorder = Recorder::over(client.into(), &url).await?;
            let loaded = programs(&server, hook)?.difference(&before).count();
            let socket = RawSocket::open(&there, "vb")?;
            (0..10).try_for_each(|other| socket.send(&frame(other)))?;
            recorder
                .read_until(|recording| recording.has(&frame(number)))
                .await?;
            let recording = recorder.finish().await?;
            wait_for_ends(&server)?;
            let expected: Vec<Vec<u8>> = match filter {
                "" => (0..10).map(frame).collect(),
                _ => vec![frame(number)],
            };
            let got = recording.packets.iter().map(|packet| &packet.data);
            ensure!(got.eq(&expected), "{hook} {filter}");
            anyhow::Ok(loaded)
        };
        // From then on another object is ready.
        capture(ALICE, "", 9).await?;
        ensure!(capture(ALICE, "ether[20]=3", 3).await? > 0, "{hook}");
        // On a slow machine it may have been forgotten meanwhile.
        let mut tries = 0;
        while capture(ALICE, "ether[20]=3", 3).await? > 0 {
            tries += 1;
            ensure!(tries < 10, "{hook}: it is loaded again each time");
        }
        ensure!(
            capture(BOB, "ether[20]=3", 3).await? > 0,
            "{hook}: of another account"
        );
        for (filter, number) in [("ether[20]=5", 5), ("", 9), ("ether[20]=7", 7), ("", 9)] {
            capture(ALICE, filter, number).await?;
        }
    }
    Ok(())
}

/// Under load on both CPUs each stream begins with what was sent after it was asked for, and its account is exact.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_in_a_row_have_nothing_of_each_other_and_exact_accounts() -> anyhow::Result<()> {
    const NUMBER: std::ops::Range<usize> = 14..22;

    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let sent = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let senders: Vec<_> = (0..2)
            .map(|_| {
                let socket = RawSocket::open(&there, "vb")?;
                let (sent, stop) = (Arc::clone(&sent), Arc::clone(&stop));
                Ok(thread::spawn(move || {
                    let mut frame = raw::ethernet(0x88b5, &[0; 46]);
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..16 {
                            let number = sent.fetch_add(1, Ordering::SeqCst);
                            frame[NUMBER].copy_from_slice(&number.to_be_bytes());
                            socket.send(&frame)?;
                        }
                        // A client on a slow machine has to keep up.
                        thread::sleep(Duration::from_micros(500));
                    }
                    anyhow::Ok(())
                }))
            })
            .collect::<anyhow::Result<_>>()?;
        let in_a_row = async {
            for round in 0..30 {
                // Two may be on their way.
                let before = sent.load(Ordering::SeqCst).saturating_sub(2);
                let mut recorder = Recorder::start(&url).await?;
                recorder
                    .read_until(|recording| recording.packets.len() > 100)
                    .await?;
                let recording = if round % 3 == 0 {
                    // What it leaves in the rings is nobody's.
                    let recording = Recording::parse(recorder.stream())?;
                    drop(recorder);
                    wait_for_ends(&server)?;
                    recording
                } else {
                    recorder.finish().await?
                };
                let numbers = recording.packets.iter().map(|packet| &packet.data[NUMBER]);
                let first = numbers.min().context("no packets")?;
                let first = u64::from_be_bytes(first.try_into()?);
                ensure!(first >= before, "{hook}: {first} was sent before {before}");
            }
            anyhow::Ok(())
        }
        .await;
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        in_a_row?;
    }
    Ok(())
}
