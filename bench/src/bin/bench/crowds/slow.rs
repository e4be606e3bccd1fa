//! What a client that reads slowly does to others of the same capture.

use std::time::Duration;

use packetflix_bench::report::{FigureKind, Report, Scenario};

use super::{
    contestant,
    figures::{less, more, plain, record},
    in_turns,
    lanes::{Lanes, RECEIVER},
    measure::{Stream, measure},
    streams::Client,
    traffic::Load,
};

/// About 20 MB in a second.
const LOAD: Load = Load::new(14_000, 1400, Duration::from_secs(5));

/// Bytes that the slow client reads in a second.
const PACE: u64 = 1_000_000;

const FAST: usize = 4;

const METHOD: &str = "Four clients read as fast as they can, and one reads 1 MB in a second, while 14,000 packets of 1400 \
    bytes are sent in a second (about 20 MB), for 5 seconds; then it reads as fast as the others. \"Accounted for\" is \
    what a client got, and what its own stream tells as dropped, of what was sent.";

const FAST_LOST: FigureKind = less("lost by the fast client that lost most", "%");
const FAST_TOLD: FigureKind = plain("told as dropped to that client", "packets");
const SLOW_LOST: FigureKind = less("lost by the slow client", "%");
const SLOW_TOLD: FigureKind = plain("told as dropped to the slow client", "packets");
const SLOW_ACCOUNTED: FigureKind = more("accounted for to the slow client", "%");

pub(crate) fn run(report: &mut Report, rounds: u32, _part: &str) -> anyhow::Result<()> {
    let lanes = Lanes::new(1)?;
    let scenario = Scenario::new(
        "slow",
        "A slow client beside four fast ones",
        METHOD,
        Some(contestant::REFERENCE),
    );
    in_turns(report, scenario, rounds, |scenario, contestant| {
        let running = contestant.start()?;
        let client = Client::fast(running.url(&lanes.receivers[0], RECEIVER)?);
        let mut clients = vec![client.clone(); FAST];
        clients.push(Client {
            pace: Some(PACE),
            ..client
        });
        let outcome = measure(&running, &clients, || lanes.sockets(1), LOAD)?;
        record(scenario, contestant.name(), &outcome);
        let (fast, slow) = outcome.streams.split_at(FAST);
        let worst = fast.iter().max_by(|a, b| a.lost().total_cmp(&b.lost()));
        let told = |stream: &Stream| {
            stream
                .analysis
                .found()
                .reported_drops
                .map_or(f64::NAN, |drops| drops as f64)
        };
        for (stream, [lost, dropped]) in worst
            .into_iter()
            .zip([[FAST_LOST, FAST_TOLD]])
            .chain(slow.iter().zip([[SLOW_LOST, SLOW_TOLD]]))
        {
            scenario.record(contestant.name(), &lost, stream.lost());
            scenario.record(contestant.name(), &dropped, told(stream));
        }
        for stream in slow {
            let all = stream.analysis.found().delivered as f64 + told(stream);
            let accounted = all * 100.0 / stream.expected as f64;
            scenario.record(contestant.name(), &SLOW_ACCOUNTED, accounted);
        }
        Ok(())
    })
}
