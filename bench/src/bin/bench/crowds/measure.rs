//! One measurement of captures with traffic.

use std::{thread, time::Duration};

use packetflix_bench::analysis::{Analysis, Delays};
use packetflix_tests::raw::RawSocket;

use super::{
    account::{self, Runs},
    contestant::Running,
    streams::{Client, Streams},
    traffic::{Load, Sent, Traffic},
};
use crate::usage::{Memory, cpu_of, tree};

/// What comes first after a pause is slower: so long is it not counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) sent: Sent,
    /// In the order of clients.
    pub(crate) streams: Vec<Stream>,
    /// CPU seconds of the contestant, from the first packet until a moment after the last.
    pub(crate) cpu: f64,
    /// Of its eBPF programs in the same time.
    pub(crate) runs: Runs,
    /// MiB that it has at the end.
    pub(crate) resident: f64,
}

/// What a client had.
pub(crate) struct Stream {
    /// Packets that it should have had.
    pub(crate) expected: u64,
    pub(crate) analysis: Analysis,
}

impl Outcome {
    /// Of all packets of all clients.
    pub(crate) fn delays(&self) -> Delays {
        let mut delays = Delays::default();
        for stream in &self.streams {
            delays.add(stream.analysis.delays());
        }
        delays
    }
}

impl Stream {
    /// Percentage of packets that did not come.
    pub(crate) fn lost(&self) -> f64 {
        let missing = self.expected.saturating_sub(self.analysis.found().delivered);
        missing as f64 * 100.0 / self.expected as f64
    }
}

/// Sends packets on links while clients capture: each its own link, all the one that there is, or one all links.
pub(crate) fn measure(
    running: &Running,
    clients: &[Client],
    sockets: impl Fn() -> anyhow::Result<Vec<RawSocket>>,
    load: Load,
) -> anyhow::Result<Outcome> {
    let (warm, links) = (sockets()?, sockets()?);
    let streams = Streams::open(clients, load.most(links.len()))?;
    Traffic::start(warm, load.unnumbered(WARM_UP)).finish()?;
    thread::sleep(WARM_UP);

    let pids = tree(running.pid())?;
    let cpu = cpu_of(&pids)?;
    let runs = account::runs(&pids)?;
    let sent = Traffic::start(links, load).finish()?;
    streams.release();
    streams.wait_until_quiet()?;
    let cpu = cpu_of(&pids)?.saturating_sub(cpu);
    let runs = account::runs(&pids)?.since(runs);
    let resident = Memory::of(&pids)?.resident;

    let analyses = streams.finish()?;
    // One client alone has what is sent on all links.
    let each = match clients {
        [_] => vec![sent.each.iter().sum()],
        _ => sent.each.clone(),
    };
    let each = each.into_iter().cycle();
    let streams = analyses
        .into_iter()
        .zip(each)
        .map(|(analysis, expected)| Stream { expected, analysis })
        .collect();
    Ok(Outcome {
        sent,
        streams,
        cpu: cpu.as_secs_f64(),
        runs,
        resident,
    })
}
