//! Many captures at once, each of a namespace of its own.

use std::time::Duration;

use packetflix_bench::report::{Report, Scenario};

use super::{
    contestant::{self, Running},
    figures::record,
    in_turns,
    lanes::{Lanes, RECEIVER},
    measure::measure,
    streams::Client,
    traffic::Load,
};

const LOAD: Load = Load::new(100_000, 64, Duration::from_secs(2));

const METHOD: &str = "Each capture is of a namespace of its own with a pair of virtual Ethernet devices. 100,000 packets \
    of 64 bytes are sent in a second, for 2 seconds, in turn into all namespaces. CPU and memory are those of all \
    processes of the contestant; \"told as dropped\" is what the streams themselves say.";

pub(crate) fn run(report: &mut Report, rounds: u32, _part: &str) -> anyhow::Result<()> {
    let lanes = Lanes::new(100)?;
    for count in [1, 10, 100] {
        let title = match count {
            1 => "One capture".to_owned(),
            _ => format!("{count} captures at once, of as many namespaces"),
        };
        let scenario = Scenario::new(
            format!("captures-{count}"),
            title,
            METHOD,
            Some(contestant::REFERENCE),
        );
        in_turns(report, scenario, rounds, |scenario, contestant| {
            let running = contestant.start()?;
            let clients = clients(&running, &lanes, count)?;
            let outcome = measure(&running, &clients, || lanes.sockets(count), LOAD)?;
            record(scenario, contestant.name(), &outcome);
            Ok(())
        })?;
    }
    Ok(())
}

fn clients(running: &Running, lanes: &Lanes, count: usize) -> anyhow::Result<Vec<Client>> {
    lanes.receivers[..count]
        .iter()
        .map(|receiver| Ok(Client::fast(running.url(receiver, RECEIVER)?)))
        .collect()
}
