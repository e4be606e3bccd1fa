//! The server is killed, either of its processes, at whatever moment.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use packetflix_tests::{
    bpf_objects::Objects,
    client::Recorder,
    hook::hooks,
    namespace::Namespace,
    random::Random,
    server::{Server, has_ended, wait_until},
    traces::{traces_before, wait_for_traces},
};
use tokio::time::sleep;

use crate::flow::Flow;

const KILLS: usize = 100;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_a_hundred_times_under_load_and_back_within_a_second() -> anyhow::Result<()> {
    let mut random = Random::new(12);
    let (here, there) = Namespace::pair()?;
    let before = traces_before(None, &[&here])?;
    let flow = Flow::start(&there, "vb", 1000, 10)?;
    let mut starts = Vec::new();
    let mut streams = 0;
    let hooks = hooks()?;
    for round in 0..KILLS {
        let hook = hooks[round % hooks.len()];
        let begin = Instant::now();
        let mut server = Server::start(&["--hook", hook])?;
        starts.push(begin.elapsed());
        let query = format!("netns={}", here.inode()?);
        let clients: Vec<_> = ["", "&nif=va", "&nif=va&filter=len+%3E+5"]
            .map(|rest| server.url(&format!("{query}{rest}")))
            .map(|url| {
                tokio::spawn(async move {
                    let mut recorder = Recorder::start(&url).await.ok()?;
                    // Until the connection breaks.
                    while recorder.read().await.is_ok_and(|ended| ended.is_none()) {}
                    Some(())
                })
            })
            .into();
        sleep(Duration::from_millis(random.below(200).into())).await;
        // What it holds is known to the last by turns: once it is stopped, none of its threads gets anything more.
        if round % 4 < 2 {
            server.stop()?;
        }
        let held = Objects::held_by(server.keeper()?)?;
        ensure!(!held.is_empty(), "nothing to be left");
        let [front, keeper] = server.processes()[..] else {
            bail!("the server is not two processes");
        };
        let killed = if round % 8 < 4 { front } else { keeper };
        kill(Pid::from_raw(i32::try_from(killed)?), Signal::SIGKILL)?;
        server.go_on();
        // The other ends by itself.
        wait_until(Duration::from_secs(10), || Ok(has_ended(keeper)))?;
        if killed == keeper {
            ensure!(server.wait()?.code() == Some(1), "{}", server.log());
        }
        drop(server);
        for client in clients {
            streams += usize::from(client.await?.is_some());
        }
        held.wait_until_gone().with_context(|| format!("kill {round}"))?;
        wait_for_traces(&before, None, &[&here]).with_context(|| format!("kill {round}"))?;
    }
    flow.stop()?;
    starts.sort_unstable();
    let (median, slowest) = (starts[KILLS / 2], starts[KILLS - 1]);
    eprintln!(
        "{KILLS} kills, {streams} of {} streams under way: back after {median:.0?}, at most {slowest:.0?}",
        3 * KILLS
    );
    ensure!(slowest < Duration::from_secs(1), "{slowest:?}");
    ensure!(streams > 0 && streams < 3 * KILLS, "always at the same moment");
    Ok(())
}
