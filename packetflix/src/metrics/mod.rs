//! Counts of everything, for Prometheus.
//!
//! Nothing is counted by packet: readers add up what a batch or a second brought. What the kernel counted is added while
//! its tap lives, so that the sums stay when that is gone.

mod process;

use std::{sync::atomic::AtomicU64, time::Duration};

use packetflix_common::InterfaceCounters;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use self::process::ProcessCollector;
use crate::{access::FileAge, capture_end::CaptureEnd};

/// Bounds of the buckets of delays, in seconds: a lone packet takes one to two milliseconds.
const DELAYS: [f64; 13] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// Bounds of the buckets of how full rings are.
const FILLS: [f64; 9] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95, 1.0];

/// Bounds of the buckets of what a scan takes, in seconds: an engine gets one.
const SCANS: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0];

/// A metric for each value of a label.
type Labelled<V, M> = Family<[(&'static str, V); 1], M>;

/// All counts of the service.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    taps: Gauge,
    captures: Gauge,
    seen: Counter,
    seen_bytes: Counter,
    accepted: Counter,
    accepted_bytes: Counter,
    captured: Counter,
    captured_bytes: Counter,
    delivered: Counter,
    delivered_bytes: Counter,
    over_rate: Counter,
    ring_full: Counter,
    copy_failed: Counter,
    slow_client: Counter,
    delay: Histogram,
    ring_fill: Histogram,
    ring_memory: Gauge,
    ring_memory_limit: Gauge,
    keeper_descriptors: Gauge,
    keeper_max_descriptors: Gauge,
    program_time: Counter<f64, AtomicU64>,
    program_runs: Counter,
    scans: Histogram,
    engine_problems: Labelled<String, Counter>,
    requests: Labelled<u16, Counter>,
    refused: Labelled<u16, Counter>,
    ended: Labelled<&'static str, Counter>,
    audit_lines_lost: Counter,
    file_ages: Labelled<&'static str, Gauge<f64, AtomicU64>>,
    file_delays: Labelled<&'static str, Gauge<f64, AtomicU64>>,
}

/// What is in use at the moment, rather than counted.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    /// Captures of clients that run.
    pub(crate) captures: usize,
    /// Bytes of the rings of all taps, and of the one that is kept ready.
    pub(crate) ring_memory: u64,
    /// The most that may be.
    pub(crate) ring_memory_limit: u64,
    /// How many descriptors the process has open that has the service's rights, and how many it may have.
    pub(crate) keeper_descriptors: (u64, u64),
    /// The files that are followed.
    pub(crate) files: Vec<FileAge>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let registry_of_ours = registry.sub_registry_with_prefix("packetflix");
        let mut metrics = Self::register(registry_of_ours);
        metrics.registry = registry;
        metrics
    }

    /// Those of a gateway: what it hands to clients, and how they are let in.
    pub(crate) fn of_gateway() -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(ProcessCollector));
        let ours = registry.sub_registry_with_prefix("packetflix_gateway");
        // What it does not do itself is not told.
        let mut metrics = Self::register(&mut Registry::default());
        ours.register(
            "captures",
            "Streams of clients that run",
            metrics.captures.clone(),
        );
        ours.register_with_unit(
            "delivered",
            "Packets that were handed to the sockets of clients",
            Unit::Other("packets".to_owned()),
            metrics.delivered.clone(),
        );
        ours.register_with_unit(
            "delivered",
            "Bytes of pcapng that were handed to the sockets of clients",
            Unit::Bytes,
            metrics.delivered_bytes.clone(),
        );
        ours.register_with_unit(
            "delivery_delay",
            "From a packet's timestamp, by the gateway's clock, until it was handed to a client's socket, of the oldest packet of \
             each message",
            Unit::Seconds,
            metrics.delay.clone(),
        );
        ours.register(
            "http_requests",
            "Requests that were answered",
            metrics.requests.clone(),
        );
        ours.register(
            "captures_refused",
            "Requests for a capture that were refused",
            metrics.refused.clone(),
        );
        ours.register(
            "captures_ended",
            "Streams of clients that have ended",
            metrics.ended.clone(),
        );
        ours.register(
            "audit_lines_lost",
            "Lines of the account of captures (--audit-log) that could not be written",
            metrics.audit_lines_lost.clone(),
        );
        metrics.registry = registry;
        metrics
    }

    fn register(registry: &mut Registry) -> Self {
        let dropped: Labelled<&'static str, Counter> = packets(
            registry,
            "dropped",
            "Packets that were accepted and lost: by the kernel once for each tap, by slow clients for each of them",
        );
        let cause = |cause| dropped.get_or_create_owned(&[("cause", cause)]);
        let ended: Labelled<&'static str, Counter> =
            plain(registry, "captures_ended", "Captures of clients that have ended");
        for end in CaptureEnd::ALL {
            ended.get_or_create_owned(&[("reason", end.name())]);
        }
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "What this service is", version);
        Self {
            registry: Registry::default(),
            captures: plain(registry, "captures", "Captures of clients that run"),
            taps: plain(
                registry,
                "taps",
                "Captures in the kernel, each shared by all clients that ask for the same",
            ),
            seen: packets(registry, "seen", "Packets that the hooks in the kernel saw"),
            seen_bytes: bytes(registry, "seen", "Bytes of these packets"),
            accepted: packets(
                registry,
                "accepted",
                "Packets that the filters in the kernel let through",
            ),
            accepted_bytes: bytes(
                registry,
                "accepted",
                "Bytes of these packets, as long as they were",
            ),
            captured: packets(
                registry,
                "captured",
                "Packets that were taken from the rings, once for all clients of a tap",
            ),
            captured_bytes: bytes(
                registry,
                "captured",
                "Bytes of the pcapng blocks of these packets, once for all clients of a tap",
            ),
            delivered: packets(
                registry,
                "delivered",
                "Packets that were handed to the sockets of clients, for each of them",
            ),
            delivered_bytes: bytes(
                registry,
                "delivered",
                "Bytes of pcapng that were handed to the sockets of clients, for each of them",
            ),
            over_rate: cause("over_rate"),
            ring_full: cause("ring_full"),
            copy_failed: cause("copy_failed"),
            slow_client: cause("slow_client"),
            delay: histogram(
                registry,
                "delivery_delay",
                "From a packet's timestamp until it was handed to a client's socket, of the oldest packet of each message",
                Unit::Seconds,
                DELAYS,
            ),
            ring_fill: histogram(
                registry,
                "ring_fill",
                "How full the fullest ring of each tap is, looked at once a second",
                Unit::Other("ratio".to_owned()),
                FILLS,
            ),
            ring_memory: bytes(
                registry,
                "ring_memory",
                "Memory of the rings of all taps, and of one that is kept ready",
            ),
            ring_memory_limit: bytes(
                registry,
                "ring_memory_limit",
                "The most memory that rings may take (--ring-memory)",
            ),
            keeper_descriptors: plain(
                registry,
                "keeper_open_fds",
                "Open file descriptors of the process that has the service's rights",
            ),
            keeper_max_descriptors: plain(
                registry,
                "keeper_max_fds",
                "The most file descriptors that the process may have open that has the service's rights",
            ),
            program_time: with_unit(
                registry,
                "program_run",
                "Time that the eBPF programs ran, while kernel.bpf_stats_enabled is 1",
                Unit::Seconds,
            ),
            program_runs: plain(
                registry,
                "program_runs",
                "Runs of the eBPF programs, while kernel.bpf_stats_enabled is 1",
            ),
            scans: histogram(
                registry,
                "scan_duration",
                "How long it took to look for targets",
                Unit::Seconds,
                SCANS,
            ),
            engine_problems: plain(
                registry,
                "engine_problems",
                "Scans in which an engine did not say what it runs, by its socket",
            ),
            requests: plain(registry, "http_requests", "Requests that were answered"),
            refused: plain(
                registry,
                "captures_refused",
                "Requests for a capture that were refused",
            ),
            ended,
            audit_lines_lost: plain(
                registry,
                "audit_lines_lost",
                "Lines of the account of captures (--audit-log) that could not be written",
            ),
            file_ages: with_unit(
                registry,
                "file_age",
                "How long ago what is in force was read from its files, by what it is",
                Unit::Seconds,
            ),
            file_delays: with_unit(
                registry,
                "file_behind",
                "For how long the files have been others than what is in force, by what it is; it is more than a second where they \
                 cannot be used",
                Unit::Seconds,
            ),
        }
    }

    /// A line of the account of captures could not be written.
    pub(crate) fn audit_line_lost(&self) {
        self.audit_lines_lost.inc();
    }

    /// A tap begins.
    pub(crate) fn tap_begun(&self) {
        self.taps.inc();
    }

    /// A tap has ended.
    pub(crate) fn tap_ended(&self) {
        self.taps.dec();
    }

    /// The kernel counted this since the last time.
    pub(crate) fn kernel_counted(&self, counters: &InterfaceCounters) {
        self.seen.inc_by(counters.seen);
        self.seen_bytes.inc_by(counters.seen_bytes);
        self.accepted.inc_by(counters.accepted);
        self.accepted_bytes.inc_by(counters.accepted_bytes);
        self.over_rate.inc_by(counters.over_rate);
        self.ring_full.inc_by(counters.ring_full);
        self.copy_failed.inc_by(counters.copy_failed);
    }

    /// The programs of a tap ran since the last time.
    pub(crate) fn programs_ran(&self, time: Duration, runs: u64) {
        self.program_time.inc_by(time.as_secs_f64());
        self.program_runs.inc_by(runs);
    }

    /// How full the fullest ring of a tap is, from 0 to 1.
    pub(crate) fn ring_filled(&self, ratio: f64) {
        self.ring_fill.observe(ratio);
    }

    /// A batch was taken from the rings.
    pub(crate) fn captured(&self, packets: u64, bytes: usize) {
        self.captured.inc_by(packets);
        self.captured_bytes.inc_by(bytes as u64);
    }

    /// A message was handed to a client's socket, with so many packets, the oldest of which is so old.
    pub(crate) fn delivered(&self, packets: u64, bytes: usize, delay: Option<Duration>) {
        self.delivered.inc_by(packets);
        self.delivered_bytes.inc_by(bytes as u64);
        if let Some(delay) = delay {
            self.delay.observe(delay.as_secs_f64());
        }
    }

    /// A client was too slow for so many packets.
    pub(crate) fn lost_by_client(&self, packets: u64) {
        self.slow_client.inc_by(packets);
    }

    /// Targets were looked for.
    pub(crate) fn scanned(&self, took: Duration) {
        self.scans.observe(took.as_secs_f64());
    }

    /// An engine did not tell what it runs. There must be few such names, whatever others do.
    pub(crate) fn engine_failed(&self, engine: String) {
        self.engine_problems
            .get_or_create_owned(&[("engine", engine)])
            .inc();
    }

    /// A request was answered with this status.
    pub(crate) fn answered(&self, status: u16) {
        self.requests.get_or_create_owned(&[("status", status)]).inc();
    }

    /// A request for a capture was refused with this status.
    pub(crate) fn refused(&self, status: u16) {
        self.refused.get_or_create_owned(&[("status", status)]).inc();
    }

    /// A client's capture has ended.
    pub(crate) fn ended(&self, end: CaptureEnd) {
        self.ended.get_or_create_owned(&[("reason", end.name())]).inc();
    }

    /// All of it in the text format of OpenMetrics 1.0.
    pub(crate) fn render(&self, load: &Load) -> String {
        self.captures.set(load.captures as i64);
        self.ring_memory.set(load.ring_memory.cast_signed());
        self.ring_memory_limit.set(load.ring_memory_limit.cast_signed());
        let (open, most) = load.keeper_descriptors;
        self.keeper_descriptors.set(open.cast_signed());
        self.keeper_max_descriptors.set(most.cast_signed());
        for FileAge { what, age, behind } in &load.files {
            let label = [("file", *what)];
            self.file_ages.get_or_create_owned(&label).set(age.as_secs_f64());
            self.file_delays
                .get_or_create_owned(&label)
                .set(behind.as_secs_f64());
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn plain<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn with_unit<M>(registry: &mut Registry, name: &str, help: &str, unit: Unit) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    let metric = M::default();
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}

fn packets<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    with_unit(registry, name, help, Unit::Other("packets".to_owned()))
}

fn bytes<M>(registry: &mut Registry, name: &str, help: &str) -> M
where
    M: prometheus_client::registry::Metric + Clone + Default,
{
    with_unit(registry, name, help, Unit::Bytes)
}

fn histogram(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Unit,
    bounds: impl IntoIterator<Item = f64>,
) -> Histogram {
    let metric = Histogram::new(bounds);
    registry.register_with_unit(name, help, unit, metric.clone());
    metric
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents;

    /// Something of each kind.
    fn counted() -> String {
        let metrics = Metrics::new();
        metrics.tap_begun();
        metrics.kernel_counted(&InterfaceCounters {
            seen: 14,
            accepted: 12,
            delivered: 5,
            over_rate: 4,
            ring_full: 2,
            copy_failed: 1,
            seen_bytes: 1000,
            accepted_bytes: 800,
        });
        metrics.captured(5, 700);
        metrics.delivered(4, 800, Some(Duration::from_micros(1500)));
        metrics.delivered(0, 100, None);
        metrics.lost_by_client(1);
        metrics.ring_filled(0.03);
        metrics.programs_ran(Duration::from_nanos(1500), 10);
        metrics.scanned(Duration::from_millis(7));
        metrics.engine_failed("/run/docker.sock".to_owned());
        metrics.answered(200);
        metrics.refused(404);
        metrics.ended(CaptureEnd::Operator);
        metrics.audit_line_lost();
        metrics.render(&Load {
            captures: 3,
            ring_memory: 1 << 20,
            ring_memory_limit: 1 << 30,
            keeper_descriptors: (34, 1024),
            files: vec![FileAge {
                what: "token file",
                age: Duration::from_millis(1500),
                behind: Duration::from_secs(7),
            }],
        })
    }

    #[test]
    fn tells_what_was_counted() {
        let text = counted();
        for line in [
            "packetflix_captures 3",
            "packetflix_taps 1",
            "packetflix_seen_packets_total 14",
            "packetflix_seen_bytes_total 1000",
            "packetflix_accepted_packets_total 12",
            "packetflix_accepted_bytes_total 800",
            "packetflix_captured_packets_total 5",
            "packetflix_captured_bytes_total 700",
            "packetflix_delivered_packets_total 4",
            "packetflix_delivered_bytes_total 900",
            "packetflix_dropped_packets_total{cause=\"over_rate\"} 4",
            "packetflix_dropped_packets_total{cause=\"ring_full\"} 2",
            "packetflix_dropped_packets_total{cause=\"copy_failed\"} 1",
            "packetflix_dropped_packets_total{cause=\"slow_client\"} 1",
            "packetflix_delivery_delay_seconds_bucket{le=\"0.001\"} 0",
            "packetflix_delivery_delay_seconds_bucket{le=\"0.002\"} 1",
            "packetflix_delivery_delay_seconds_count 1",
            "packetflix_ring_fill_ratio_bucket{le=\"0.05\"} 1",
            "packetflix_ring_memory_bytes 1048576",
            "packetflix_ring_memory_limit_bytes 1073741824",
            "packetflix_keeper_open_fds 34",
            "packetflix_keeper_max_fds 1024",
            "packetflix_program_run_seconds_total 0.0000015",
            "packetflix_program_runs_total 10",
            "packetflix_scan_duration_seconds_count 1",
            "packetflix_engine_problems_total{engine=\"/run/docker.sock\"} 1",
            "packetflix_http_requests_total{status=\"200\"} 1",
            "packetflix_captures_refused_total{status=\"404\"} 1",
            "packetflix_captures_ended_total{reason=\"operator\"} 1",
            "packetflix_captures_ended_total{reason=\"failed\"} 0",
            "packetflix_audit_lines_lost_total 1",
            "packetflix_file_age_seconds{file=\"token file\"} 1.5",
            "packetflix_file_behind_seconds{file=\"token file\"} 7.0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(text.ends_with("# EOF\n"));
        assert!(text.contains("\nprocess_resident_memory_bytes "), "{text}");
    }

    #[test]
    fn documents_have_all_metrics() {
        // As one of two processes has them.
        crate::proc_fs::set_other_process(std::process::id());
        let text = counted();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["#", "HELP", name, help] => {
                    rows.push(vec![
                        name.to_owned(),
                        String::new(),
                        String::new(),
                        help.to_owned(),
                    ]);
                }
                ["#", "TYPE", _, kind] => {
                    let row = rows.last_mut().unwrap();
                    row[1] = kind.to_owned();
                    row[0].push_str(match kind {
                        "counter" => "_total",
                        "info" => "_info",
                        _ => "",
                    });
                }
                ["#", ..] => {}
                _ => rows.last_mut().unwrap()[2] = labels(line),
            }
        }
        rows.sort_by_key(|row| row[0].starts_with("process_"));
        for row in &mut rows {
            row[0] = format!("`{}`", row[0]);
            row[3] = row[3].trim_end_matches('.').to_owned();
        }
        let head = ["metric", "type", "label", "meaning"];
        documents::check("metrics.md", "metrics", &head, &rows);
    }

    /// Names of the labels of a sample, but for the bounds of buckets.
    fn labels(sample: &str) -> String {
        let names = sample
            .split(['{', ','])
            .skip(1)
            .filter_map(|label| label.split_once("=\""));
        let names = names.map(|(name, _)| name).filter(|&name| name != "le");
        names
            .map(|name| format!("`{name}`"))
            .collect::<Vec<_>>()
            .join(", ")
    }
}
