//! Many clients that all ask for the same capture.

use std::time::Duration;

use packetflix_bench::report::{Report, Scenario};

use super::{
    contestant,
    figures::record,
    in_turns,
    lanes::{Lanes, RECEIVER},
    measure::measure,
    streams::Client,
    traffic::Load,
};

const LOAD: Load = Load::new(10_000, 64, Duration::from_secs(3));

const METHOD: &str = "All clients send the same request for one interface of one namespace, into which 10,000 packets of \
    64 bytes are sent in a second, for 3 seconds. Each client should have each packet. The number of program runs per \
    packet tells whether the kernel works once for all clients, or once for each.";

pub(crate) fn run(report: &mut Report, rounds: u32, _part: &str) -> anyhow::Result<()> {
    let lanes = Lanes::new(1)?;
    for count in [1, 10, 100] {
        let title = match count {
            1 => "One client of a capture".to_owned(),
            _ => format!("{count} clients of the same capture"),
        };
        let scenario = Scenario::new(
            format!("clients-{count}"),
            title,
            METHOD,
            Some(contestant::REFERENCE),
        );
        in_turns(report, scenario, rounds, |scenario, contestant| {
            let running = contestant.start()?;
            let client = Client::fast(running.url(&lanes.receivers[0], RECEIVER)?);
            let outcome = measure(&running, &vec![client; count], || lanes.sockets(1), LOAD)?;
            record(scenario, contestant.name(), &outcome);
            Ok(())
        })?;
    }
    Ok(())
}
