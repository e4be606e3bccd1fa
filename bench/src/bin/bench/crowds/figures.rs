//! What is told of captures with traffic.

use packetflix_bench::report::{FigureKind, Scenario};

use super::measure::Outcome;

const fn figure(name: &'static str, unit: &'static str, is_less_better: Option<bool>) -> FigureKind {
    FigureKind {
        name,
        unit,
        is_less_better,
        is_ratio_told: false,
    }
}

/// A figure of which less is better, and whose ratio is told.
pub(crate) const fn compared(name: &'static str, unit: &'static str) -> FigureKind {
    FigureKind {
        name,
        unit,
        is_less_better: Some(true),
        is_ratio_told: true,
    }
}

/// A figure of which less is better.
pub(crate) const fn less(name: &'static str, unit: &'static str) -> FigureKind {
    figure(name, unit, Some(true))
}

/// A figure of which more is better.
pub(crate) const fn more(name: &'static str, unit: &'static str) -> FigureKind {
    figure(name, unit, Some(false))
}

/// A figure that is neither good nor bad.
pub(crate) const fn plain(name: &'static str, unit: &'static str) -> FigureKind {
    figure(name, unit, None)
}

const SENT: FigureKind = plain("packets sent", "");
/// The load is paced: only a sender that cannot keep the pace is slower.
const SPEED: FigureKind = more("speed of the sender", "packets/s");
const SENDER_CPU: FigureKind = less("CPU of the sender per million packets", "s");
const EXPECTED: FigureKind = plain("packets expected by all clients", "");
const DELIVERED: FigureKind = plain("packets delivered to all clients", "");
const LOST: FigureKind = less("lost", "%");
const LOST_MOST: FigureKind = less("lost by the client that lost most", "%");
const REPORTED: FigureKind = plain("packets told as dropped", "");
const CPU: FigureKind = compared("CPU of the capture per million packets delivered", "s");
const CPU_BYTES: FigureKind = compared("CPU per GB sent to clients", "s");
const RUNS: FigureKind = less("program runs per packet sent", "");
const RUN_TIME: FigureKind = less("time of programs per packet sent", "ns");
const MEMORY: FigureKind = less("memory (VmRSS)", "MiB");
const DELAY_P50: FigureKind = less("delay, p50", "ms");
const DELAY_P99: FigureKind = less("delay, p99", "ms");

/// Takes in one round of one contestant.
pub(crate) fn record(scenario: &mut Scenario, contestant: &str, outcome: &Outcome) {
    let sent = outcome.sent.packets as f64;
    let found = || outcome.streams.iter().map(|stream| stream.analysis.found());
    let delivered = found().map(|found| found.delivered).sum::<u64>() as f64;
    let expected = outcome.streams.iter().map(|stream| stream.expected).sum::<u64>() as f64;
    let bytes = found().map(|found| found.stream_bytes).sum::<u64>() as f64;
    let reported: u64 = found().filter_map(|found| found.reported_drops).sum();
    let most = outcome
        .streams
        .iter()
        .map(super::measure::Stream::lost)
        .fold(0.0, f64::max);
    let delays = outcome.delays();
    let runs = match outcome.runs.count {
        // There are no eBPF programs.
        0 => [f64::NAN; 2],
        count => [count as f64 / sent, outcome.runs.nanoseconds as f64 / sent],
    };
    for (figure, value) in [
        (SENT, sent),
        (SPEED, sent / outcome.sent.seconds),
        (SENDER_CPU, outcome.sent.cpu * 1e6 / sent),
        (EXPECTED, expected),
        (DELIVERED, delivered),
        (LOST, (expected - delivered) * 100.0 / expected),
        (LOST_MOST, most),
        (REPORTED, reported as f64),
        (CPU, outcome.cpu * 1e6 / delivered),
        (CPU_BYTES, outcome.cpu * 1e9 / bytes),
        (RUNS, runs[0]),
        (RUN_TIME, runs[1]),
        (MEMORY, outcome.resident),
        (DELAY_P50, delays.quantile(0.5) * 1e3),
        (DELAY_P99, delays.quantile(0.99) * 1e3),
    ] {
        scenario.record(contestant, &figure, value);
    }
}
