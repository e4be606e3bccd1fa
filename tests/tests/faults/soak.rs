//! One capture for as long as everything else happens: beside hundreds of others, clients that break off, scans, floods and
//! interfaces that come and go, each packet is delivered or told as dropped.

use std::{
    io::Write as _,
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::ensure;
use packetflix_tests::{client::Recorder, hook::hooks, namespace::Namespace, random::Random, server::Server};

use crate::flow::{Flow, numbers};

/// How long the rest goes on.
const DURATION: Duration = Duration::from_secs(8);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capture_beside_everything_else_accounts_for_each_packet() -> anyhow::Result<()> {
    for hook in hooks()? {
        accounts_for_each_packet(hook).await?;
    }
    Ok(())
}

async fn accounts_for_each_packet(hook: &str) -> anyhow::Result<()> {
    let (here, there) = Namespace::pair()?;
    let server = Arc::new(Server::start(&["--hook", hook, "--client-timeout", "2"])?);
    let inode = here.inode()?;
    let mut steady = Recorder::start(&server.url(&format!("netns={inode}"))).await?;
    let flow = Flow::start(&there, "vb", 400, 4)?;
    let busy = tokio::spawn(everything_else(Arc::clone(&server), inode, here.path()));
    let mut done = 0;
    let counted = tokio::spawn(async move { busy.await? });
    let (sender, receiver) = tokio::sync::oneshot::channel();
    steady
        .read_during(tokio::spawn(async move {
            let _ = sender.send(counted.await??);
            Ok(())
        }))
        .await?;
    done += receiver.await?;
    let sent = flow.stop()?;
    let recording = steady.finish().await?;
    let statistics = recording.final_statistics("va")?;
    eprintln!("{hook}: beside {done} other captures, {sent} packets sent: {statistics:?}");
    assert_eq!(numbers(&recording, "va").len() as u64 + statistics.dropped, sent);
    assert_eq!(statistics.received, sent);
    assert_eq!(statistics.delivered + statistics.dropped, sent);
    ensure!(numbers(&recording, "va").is_sorted());
    ensure!(done >= 50, "{done} captures only");
    for words in ["ERROR", "panicked"] {
        ensure!(!server.log().contains(words), "{}", server.log());
    }
    Ok(())
}

/// What clients do, and worse; gives the number of captures that were begun.
async fn everything_else(
    server: Arc<Server>,
    inode: u64,
    namespace: std::path::PathBuf,
) -> anyhow::Result<usize> {
    let mut random = Random::new(15);
    let begin = Instant::now();
    let mut begun = 0;
    let mut stalled = Vec::new();
    while begin.elapsed() < DURATION {
        let query = random.pick(&[
            "",
            "&nif=va",
            "&nif=lo",
            "&chaste",
            "&filter=udp",
            "&self=1",
            "&nif=va&filter=len+%3E+60",
        ]);
        let url = server.url(&format!("netns={inode}{query}"));
        let mut recorder = Recorder::start(&url).await?;
        begun += 1;
        match random.below(6) {
            0 => drop(recorder.finish().await?),
            // Without a word.
            1 => drop(recorder),
            2 => stalled.push(recorder),
            3 => {
                let _ = tokio::io::AsyncWriteExt::write_all(recorder.capture().tcp(), &[0xff; 100]).await;
                let _ = recorder.read_to_end().await;
            }
            4 => {
                server.get("/targets")?;
                let mut stream = TcpStream::connect(("127.0.0.1", server.port()))?;
                stream.write_all(b"GET /capture HTTP/1.1\r\nnonsense\r\n\r\n")?;
            }
            _ => {
                let file = namespace.display().to_string();
                let script = "ip link add tmp7 type bridge && ip link set tmp7 up && ip link delete tmp7";
                packetflix_tests::namespace::run("nsenter", &[&format!("--net={file}"), "sh", "-c", script])?;
            }
        }
        if stalled.len() > 8 {
            stalled.remove(0);
        }
    }
    Ok(begun)
}
