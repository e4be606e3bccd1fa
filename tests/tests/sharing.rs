//! Clients that ask for the same share one capture, and none of them notices.

use std::{net::IpAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, ensure};
use futures_util::future::try_join_all;
use packetflix_tests::{
    client::{Capture, Recorder},
    hook::{self, hooks},
    namespace::Namespace,
    raw::{self, RawSocket},
    server::{Server, wait_until},
};
use tokio::time::{Instant, sleep, timeout};

fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}

/// How many times the server's programs are attached to something.
fn attached(server: &Server) -> anyhow::Result<usize> {
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.keeper()?))?;
    let links = descriptors.filter_map(|descriptor| std::fs::read_link(descriptor.ok()?.path()).ok());
    Ok(links
        .filter(|link| link.as_os_str() == "anon_inode:bpf_link")
        .count())
}

#[tokio::test]
async fn clients_that_ask_for_the_same_share_a_capture_and_others_do_not() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    // The kernel's links are counted, which packet sockets do not have.
    let Some(tcx) = hook::tcx()? else { return Ok(()) };
    let server = Server::start(&["--hook", tcx])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let same = try_join_all((0..10).map(|_| Recorder::start(&url))).await?;
    // One in each direction.
    assert_eq!(attached(&server)?, 2);
    let mut others = Vec::new();
    for different in ["&chaste", "&self=1", "&filter=ether proto 0x88b5", "/lo"] {
        others.push(Recorder::start(&format!("{url}{different}").replace(' ', "+")).await?);
    }
    assert_eq!(attached(&server)?, 2 + 2 + 2 + 2 + 3);
    // The same interfaces in other words.
    let again = Recorder::start(&url.replace("nif=va", "nif=/va/va/")).await?;
    assert_eq!(attached(&server)?, 11);

    RawSocket::open(&there, "vb")?.send(&frame(1))?;
    for mut recorder in same.into_iter().chain(others).chain([again]) {
        recorder
            .read_until(|recording| recording.count(&frame(1)) == 1)
            .await?;
        let statistics = recorder.finish().await?.final_statistics("va")?;
        assert_eq!(statistics.dropped, 0);
    }
    wait_until(Duration::from_secs(5), || Ok(attached(&server)? == 0))
}

#[tokio::test]
async fn one_who_comes_late_gets_a_whole_stream_of_what_follows() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let mut early = Recorder::start(&url).await?;
        // An interface that is gone again, so that the later ones have other numbers than in a new capture.
        here.ip(&["link", "add", "gone", "type", "bridge"])?;
        early
            .read_until(|recording| recording.interfaces.iter().any(|one| one.name == "gone"))
            .await?;
        here.ip(&["link", "del", "gone"])?;
        early
            .read_until(|recording| recording.final_statistics("gone").is_ok())
            .await?;
        here.ip(&["link", "add", "later", "type", "bridge"])?;
        here.ip(&["address", "add", "10.8.7.6/24", "dev", "va"])?;
        let socket = RawSocket::open(&there, "vb")?;
        (0..10).try_for_each(|_| socket.send(&frame(1)))?;
        early
            .read_until(|recording| {
                recording.count(&frame(1)) == 10 && recording.interfaces.iter().any(|one| one.name == "later")
            })
            .await?;

        let mut late = Recorder::start(&url).await?;
        (0..20).try_for_each(|_| socket.send(&frame(2)))?;
        for recorder in [&mut early, &mut late] {
            recorder
                .read_until(|recording| recording.count(&frame(2)) == 20)
                .await?;
        }
        // The first one's leaving ends nothing for the other.
        let early = early.finish().await?;
        (0..30).try_for_each(|_| socket.send(&frame(3)))?;
        late.read_until(|recording| recording.count(&frame(3)) == 30)
            .await?;
        let late = late.finish().await?;

        let counts = [1, 2, 3].map(|number| (early.count(&frame(number)), late.count(&frame(number))));
        assert_eq!(counts, [(10, 0), (20, 20), (0, 30)], "{hook}");
        let [early_va, late_va] = [early.final_statistics("va")?, late.final_statistics("va")?];
        assert_eq!(early_va.delivered, early.packets_of("va").len() as u64);
        assert_eq!(late_va.delivered, late.packets_of("va").len() as u64);
        assert_eq!((early_va.dropped, late_va.dropped), (0, 0));
        assert_eq!(late_va.received, late_va.accepted);
        let names = |of: &packetflix_tests::recording::Recording| -> Vec<String> {
            of.interfaces.iter().map(|one| one.name.clone()).collect()
        };
        assert_eq!(names(&early), names(&late));
        let va = late.interfaces.iter().find(|one| one.name == "va");
        let options = &va.context("no va")?.options;
        ensure!(
            options.contains("10.8.7.6") || options.contains("10, 8, 7, 6"),
            "{options}"
        );
    }
    Ok(())
}

/// Who comes while the last client leaves has all that comes then, be it of that one's capture or of another.
#[tokio::test]
async fn who_comes_as_the_last_one_leaves_misses_nothing() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}", here.inode()?));
        let socket = RawSocket::open(&there, "vb")?;
        let mut last = Recorder::start(&url).await?;
        for round in 0..150_u8 {
            let leaving = tokio::spawn(async move {
                match round % 2 {
                    0 => last.finish().await.map(drop),
                    _ => {
                        drop(last);
                        Ok(())
                    }
                }
            });
            // Sooner and later.
            for _ in 0..usize::from(round / 2) * 8 {
                tokio::task::yield_now().await;
            }
            let mut next = Recorder::start(&url).await?;
            (0..5).try_for_each(|_| socket.send(&frame(round)))?;
            next.read_until(|recording| recording.count(&frame(round)) == 5)
                .await
                .with_context(|| format!("{hook}, {round}"))?;
            leaving.await??;
            last = next;
        }
        last.finish().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_client_loses_alone_and_is_told_of_it_where_it_lost() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let mut slow = Recorder::start(&url).await?;
        let mut fast = Recorder::start(&format!("{url}&statistics=1s")).await?;
        let socket = Arc::new(RawSocket::open(&there, "vb")?);
        // More than the queue and the sockets hold, at a pace that a client can follow.
        let sending = Arc::clone(&socket);
        let sending = tokio::task::spawn_blocking(move || {
            for round in 0..60 {
                sending.flood(&raw::ethernet(0x88b5, &[round; 1400]), 1000, 14)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            anyhow::Ok(())
        });
        fast.read_during(sending).await?;
        fast.read_until_statistics(|statistics| statistics.delivered == 60_000)
            .await?;
        // What the slow one has not taken is gone; what comes now it takes.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(1) {
            // Interrupting a read loses nothing.
            if let Ok(read) = timeout(Duration::from_millis(100), slow.read()).await {
                ensure!(read?.is_none(), "ended");
            }
        }
        socket.flood(&raw::ethernet(0x88b5, &[60; 1400]), 100, 14)?;
        sleep(Duration::from_millis(50)).await;

        let fast = fast.finish().await?.final_statistics("va")?;
        assert_eq!((fast.delivered, fast.dropped), (60_100, 0), "{hook}");
        let recording = slow.finish().await?;
        let slow = recording.final_statistics("va")?;
        assert_eq!(slow.delivered + slow.dropped, 60_100, "{hook}: {slow:?}");
        assert_eq!(slow.delivered, recording.packets.len() as u64);
        ensure!(slow.dropped > 10_000, "{hook}: {slow:?}");
        // Where the loss was, not only at the end.
        let number = |at: usize| -> u64 {
            let data = &recording.packets[at].data;
            let number = data[14..22].try_into().map_or(0, u64::from_be_bytes);
            u64::from(data[22]) * 1000 + number
        };
        let gap = (1..recording.packets.len()).find(|at| number(*at) > number(at - 1) + 1);
        let gap = gap.context("no gap")?;
        let told = recording.packets.iter().position(|one| one.dropped_before > 0);
        assert_eq!(told, Some(gap), "{hook}");
        let told: u64 = recording.packets.iter().map(|one| one.dropped_before).sum();
        assert_eq!(told, slow.dropped, "{hook}");
        // In one place, since more would be "unknown" to Wireshark.
        let statistics = recording.statistics.iter().filter(|one| one.dropped > 0);
        assert_eq!(statistics.count(), 1, "{hook}");
    }
    Ok(())
}

/// What nobody takes stays in the rings. It is of those who were there, and holds up nobody who comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_joins_one_that_stalls_gets_what_follows_and_nothing_of_before() -> anyhow::Result<()> {
    for hook in hooks()? {
        let (here, there) = Namespace::pair()?;
        let server = Server::start(&["--hook", hook])?;
        let url = server.url(&format!("netns={}&nif=va", here.inode()?));
        let stalled = Recorder::start(&url).await?;
        let socket = RawSocket::open(&there, "vb")?;
        let flood = |number: u8, rounds: u64| {
            for _ in 0..rounds {
                socket.flood(&raw::ethernet(0x88b5, &[number; 1400]), 1000, 14)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            anyhow::Ok(())
        };
        flood(1, 40)?;
        let mut late = Recorder::start(&url).await?;
        flood(2, 3)?;
        late.read_until(|recording| recording.packets.len() >= 3000)
            .await?;
        let recording = late.finish().await?;
        let numbers = recording.packets.iter().map(|packet| packet.data[22]);
        assert_eq!(numbers.filter(|number| *number != 2).count(), 0, "{hook}");
        let statistics = recording.final_statistics("va")?;
        assert_eq!(
            (statistics.received, statistics.delivered, statistics.dropped),
            (3000, 3000, 0),
            "{hook}"
        );
        // Nor does a packet tell of what was lost before.
        let told: u64 = recording.packets.iter().map(|packet| packet.dropped_before).sum();
        assert_eq!(told, 0, "{hook}");
        let recording = stalled.finish().await?;
        let statistics = recording.final_statistics("va")?;
        assert_eq!(statistics.delivered + statistics.dropped, 43_000, "{hook}");
        assert_eq!(statistics.delivered, recording.packets.len() as u64, "{hook}");
        recording.check_order()?;
    }
    Ok(())
}

#[tokio::test]
async fn one_client_cannot_hide_traffic_from_others() -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Server::start(&[])?;
    let url = server.url(&format!("netns={}&nif=va", here.inode()?));
    let claiming = [("host", "10.9.1.1:8080")];
    let mut liar = Capture::open(&url, &claiming).await?;
    liar.next().await?;
    let mut honest = Recorder::start(&url).await?;
    let address: IpAddr = "10.9.1.1".parse()?;
    let listener = here.inside(|| std::net::TcpListener::bind((address, 8080)))??;
    let stream = there.inside(|| std::net::TcpStream::connect((address, 8080)))??;
    drop((stream, listener));
    let port = 8080u16.to_be_bytes();
    honest
        .read_until(|recording| {
            let mut packets = recording.packets.iter();
            packets.any(|packet| packet.data.get(36..38) == Some(&port))
        })
        .await?;
    honest.finish().await?;
    Ok(())
}

/// How many packet sockets there are in a namespace.
fn packet_sockets(namespace: &Namespace) -> anyhow::Result<usize> {
    let table = namespace.inside(|| std::fs::read_to_string("/proc/thread-self/net/packet"))??;
    Ok(table.lines().skip(1).count())
}

#[tokio::test]
async fn nobody_waits_for_a_capture_that_is_ending() -> anyhow::Result<()> {
    // The kernel takes some milliseconds to let go of each.
    const COUNT: usize = 400;

    let here = Namespace::new()?;
    let links = (0..COUNT).map(|number| format!("link add d{number} type bridge\n"));
    here.ip_batch(&links.collect::<String>())?;
    let server = Server::start(&["--hook", "socket"])?;
    let url = server.url(&format!("netns={}", here.inode()?));
    let first = Recorder::start(&url).await?;
    let attached = packet_sockets(&here)?;
    ensure!(attached > COUNT, "{attached}");
    let first = tokio::spawn(first.finish());
    while packet_sockets(&here)? >= attached {
        sleep(Duration::from_millis(1)).await;
    }
    // It is ending, and another begins beside it.
    let second = Recorder::start(&url).await?;
    let both = packet_sockets(&here)?;
    first.await??;
    second.finish().await?;
    ensure!(both > attached, "it began once the first had ended: {both}");
    Ok(())
}
