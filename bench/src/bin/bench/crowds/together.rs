//! Many targets in one stream, beside as many streams.

use std::time::Duration;

use packetflix_bench::report::{Report, Scenario};

use super::{
    contestant::{Contestant, Running},
    figures::record,
    lanes::{Lanes, RECEIVER},
    measure::measure,
    streams::Client,
    traffic::Load,
};
use crate::interrupt::check;

const LOAD: Load = Load::new(100_000, 64, Duration::from_secs(2)).numbered_over_all();

const METHOD: &str = "Each target is a namespace of its own with a pair of virtual Ethernet devices. 100,000 packets of 64 \
    bytes are sent in a second, for 2 seconds, in turn into all namespaces. CPU and memory are those of the service, which \
    uses packet sockets; \"told as dropped\" is what the streams themselves say.";

/// How targets are captured.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// Each in a stream of its own.
    Apart,
    /// All in one stream.
    Together,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Apart => APART,
            Self::Together => "one-stream",
        }
    }
}

const APART: &str = "streams-of-their-own";

pub(crate) fn run(report: &mut Report, rounds: u32, _part: &str) -> anyhow::Result<()> {
    let lanes = Lanes::new(100)?;
    for count in [1, 10, 100] {
        let title = match count {
            1 => "One target, as one of several and alone".to_owned(),
            _ => format!("{count} targets in one stream, and in streams of their own"),
        };
        let mut scenario = Scenario::new(format!("together-{count}"), title, METHOD, Some(APART));
        eprintln!("bench: {}", scenario.name);
        for round in 0..rounds {
            let ways = match round % 2 {
                0 => [Way::Apart, Way::Together],
                _ => [Way::Together, Way::Apart],
            };
            for way in ways {
                check()?;
                let running = Contestant::Packetflix("socket").start()?;
                let clients = clients(&running, &lanes, count, way)?;
                let outcome = measure(&running, &clients, || lanes.sockets(count), LOAD)?;
                record(&mut scenario, way.name(), &outcome);
            }
        }
        report.scenarios.push(scenario);
    }
    Ok(())
}

fn clients(running: &Running, lanes: &Lanes, count: usize, way: Way) -> anyhow::Result<Vec<Client>> {
    let receivers = &lanes.receivers[..count];
    if let Way::Apart = way {
        let urls = receivers.iter().map(|receiver| running.url(receiver, RECEIVER));
        return urls.map(|url| Ok(Client::fast(url?))).collect();
    }
    let described = receivers
        .iter()
        .map(|receiver| Ok(format!("{{%22netns%22:{}}}", receiver.inode()?)));
    let described: Vec<String> = described.collect::<anyhow::Result<_>>()?;
    // With one, a list is no selection.
    let follow = if count == 1 { "" } else { "&follow=0" };
    let url = format!(
        "ws://127.0.0.1:{}/capture?container=[{}]&nif={RECEIVER}&names=0{follow}",
        running.port(),
        described.join(",")
    );
    Ok(vec![Client::fast(url)])
}
