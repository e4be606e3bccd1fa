//! Who captures what: the list of captures that run, what each amounts to, and the account of them (`audit.rs`).

mod audit;
mod audit_file;

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use tokio_util::sync::CancellationToken;

pub(crate) use self::audit::{Attempt, Audit, FoundNames, RequestRefusal, Unaccounted};
pub use self::audit_file::AuditFileError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::audit_file::fuzzing;
pub(crate) use self::audit_file::{serve_account, write_by};
use crate::{
    capture_end::CaptureEnd, description::TargetDescription, metrics::Metrics, tap::InterfaceSelection,
};

/// How many readings of the counts are kept for the rates, one a second.
const READINGS: usize = 5;

/// All captures that run.
#[derive(Debug)]
pub(crate) struct Captures {
    running: Mutex<BTreeMap<u64, Arc<Capture>>>,
    /// Streams of several captures, by their numbers.
    streams: Mutex<BTreeMap<u64, Arc<StreamEnd>>>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    has_lost_rights: Arc<AtomicBool>,
}

/// How a stream of several captures is ended.
#[derive(Debug)]
struct StreamEnd {
    stop: CancellationToken,
    is_ended_by_operator: AtomicBool,
}

/// A stream of several captures that can be ended by its number. When it is dropped, it cannot be any more.
#[derive(Debug)]
pub(crate) struct RunningStream {
    id: u64,
    end: Arc<StreamEnd>,
    captures: Arc<Captures>,
}

impl RunningStream {
    /// Whether the service ends since nobody answers who has its rights.
    pub(crate) fn has_lost_rights(&self) -> bool {
        self.captures.has_lost_rights.load(Ordering::Relaxed)
    }

    /// Whether an operator has ended it.
    pub(crate) fn is_ended_by_operator(&self) -> bool {
        self.end.is_ended_by_operator.load(Ordering::Relaxed)
    }
}

impl Drop for RunningStream {
    fn drop(&mut self) {
        self.captures.streams().remove(&self.id);
    }
}

/// A client's capture.
#[derive(Debug)]
pub(crate) struct Capture {
    facts: CaptureFacts,
    found: OnceLock<FoundNames>,
    begun: SystemTime,
    since: Instant,
    amounts: Amounts,
    readings: Mutex<VecDeque<Reading>>,
    /// Cancelled to end it.
    stop: CancellationToken,
    is_ended_by_operator: AtomicBool,
    revocation: OnceLock<String>,
    has_lost_rights: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

/// Who a client is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClientFacts {
    /// Name of their token, certificate or user, or empty.
    pub(crate) name: String,
    /// `token` or `certificate`, where it is the name of one, or empty.
    pub(crate) kind: &'static str,
    /// Where they come from, or empty.
    pub(crate) address: String,
}

/// What is known of a capture from its beginning.
#[derive(Clone, Debug)]
pub(crate) struct CaptureFacts {
    /// Its number, which the lines of the log have too.
    pub(crate) id: u64,
    /// Number of the capture that began the tap which this one shares.
    pub(crate) tap: u64,
    /// Number of the stream that this one shares with others, if it does.
    pub(crate) stream: Option<u64>,
    /// Who captures.
    pub(crate) client: ClientFacts,
    /// What is captured; where it was asked for by its number, with the name of who holds the namespace.
    pub(crate) target: TargetDescription,
    /// The same, in the words of the client alone.
    pub(crate) asked: TargetDescription,
    /// Inode number of the namespace.
    pub(crate) netns: u64,
    /// Which interfaces.
    pub(crate) selection: InterfaceSelection,
    /// The filter as the client wrote it, or empty.
    pub(crate) filter: String,
}

#[derive(Debug, Default)]
struct Amounts {
    packets: AtomicU64,
    bytes: AtomicU64,
    lost_in_kernel: AtomicU64,
    lost_by_client: AtomicU64,
}

/// What a capture amounts to at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Packets that were handed to the client's socket.
    pub(crate) packets: u64,
    /// Bytes of pcapng that were.
    pub(crate) bytes: u64,
    /// Packets that the kernel lost, as far as the stream has told it.
    pub(crate) lost_in_kernel: u64,
    /// Packets that the client was too slow for.
    pub(crate) lost_by_client: u64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    packets: u64,
    bytes: u64,
}

/// What is delivered in a second, on the average of the last few.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rates {
    /// Packets.
    pub(crate) packets: f64,
    /// Bytes.
    pub(crate) bytes: f64,
}

/// A capture on the list. When it is dropped, it has ended, and is on the list no more.
#[derive(Debug)]
pub(crate) struct RunningCapture {
    capture: Arc<Capture>,
    captures: Arc<Captures>,
    end: (CaptureEnd, String),
}

impl Captures {
    pub(crate) fn new(metrics: Arc<Metrics>, audit: Arc<Audit>) -> Self {
        let running = Mutex::default();
        Self {
            running,
            streams: Mutex::default(),
            metrics,
            audit,
            has_lost_rights: Arc::default(),
        }
    }

    /// Has a stream of several captures end with its number, as `stop` ends it.
    pub(crate) fn begin_stream(self: &Arc<Self>, id: u64, stop: CancellationToken) -> RunningStream {
        let end = Arc::new(StreamEnd {
            stop,
            is_ended_by_operator: AtomicBool::new(false),
        });
        self.streams().insert(id, Arc::clone(&end));
        RunningStream {
            id,
            end,
            captures: Arc::clone(self),
        }
    }

    fn streams(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<StreamEnd>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A capture that is about to begin, which `stop` will end.
    pub(crate) fn prepare(&self, facts: CaptureFacts, stop: CancellationToken) -> Arc<Capture> {
        let now = Instant::now();
        Arc::new(Capture {
            facts,
            found: OnceLock::new(),
            begun: SystemTime::now(),
            since: now,
            amounts: Amounts::default(),
            readings: Mutex::new(VecDeque::from([Reading {
                at: now,
                packets: 0,
                bytes: 0,
            }])),
            stop,
            is_ended_by_operator: AtomicBool::new(false),
            revocation: OnceLock::new(),
            has_lost_rights: Arc::clone(&self.has_lost_rights),
            metrics: Arc::clone(&self.metrics),
        })
    }

    /// Adds a capture, which begins now.
    ///
    /// # Errors
    /// When it has to be accounted for, and cannot be.
    pub(crate) fn begin(self: &Arc<Self>, capture: Arc<Capture>) -> Result<RunningCapture, Unaccounted> {
        self.audit.started(&capture)?;
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.insert(capture.facts.id, Arc::clone(&capture));
        drop(running);
        Ok(RunningCapture {
            capture,
            captures: Arc::clone(self),
            end: (CaptureEnd::CutOff, "it did not end in time".to_owned()),
        })
    }

    /// Whoever has the service's rights does not answer: that is why captures end from now on, and the service.
    pub(crate) fn lose_rights(&self) {
        self.has_lost_rights.store(true, Ordering::Relaxed);
    }

    /// All that run, in the order in which they began.
    pub(crate) fn list(&self) -> Vec<Arc<Capture>> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.values().cloned().collect()
    }

    /// How many run.
    pub(crate) fn count(&self) -> usize {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Has a capture, or a stream of several, end on behalf of an operator; tells whether it runs.
    pub(crate) fn end(&self, id: u64) -> bool {
        if let Some(stream) = self.streams().get(&id) {
            stream.is_ended_by_operator.store(true, Ordering::Relaxed);
            stream.stop.cancel();
            return true;
        }
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(capture) = running.get(&id) else {
            return false;
        };
        capture.is_ended_by_operator.store(true, Ordering::Relaxed);
        capture.stop.cancel();
        true
    }
}

impl Capture {
    /// What is known of it from its beginning.
    pub(crate) fn facts(&self) -> &CaptureFacts {
        &self.facts
    }

    /// What is captured, as the discovery has it, once that is known.
    pub(crate) fn found(&self) -> Option<&FoundNames> {
        self.found.get()
    }

    /// The discovery has found this in the namespace; the first time counts.
    pub(crate) fn set_found(&self, found: FoundNames) {
        let _ = self.found.set(found);
    }

    /// When it began.
    pub(crate) fn begun(&self) -> SystemTime {
        self.begun
    }

    /// How long it has been running.
    pub(crate) fn duration(&self) -> Duration {
        self.since.elapsed()
    }

    /// What it amounts to.
    pub(crate) fn amount(&self) -> Amount {
        let Amounts {
            packets,
            bytes,
            lost_in_kernel,
            lost_by_client,
        } = &self.amounts;
        Amount {
            packets: packets.load(Ordering::Relaxed),
            bytes: bytes.load(Ordering::Relaxed),
            lost_in_kernel: lost_in_kernel.load(Ordering::Relaxed),
            lost_by_client: lost_by_client.load(Ordering::Relaxed),
        }
    }

    /// What is delivered in a second.
    pub(crate) fn rates(&self) -> Rates {
        let Amount { packets, bytes, .. } = self.amount();
        let readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        readings
            .front()
            .map(|reading| reading.rates_until(Instant::now(), packets, bytes))
            .unwrap_or_default()
    }

    /// Whether an operator has ended it.
    pub(crate) fn is_ended_by_operator(&self) -> bool {
        self.is_ended_by_operator.load(Ordering::Relaxed)
    }

    /// Whether the service ends since nobody answers who has its rights.
    pub(crate) fn has_lost_rights(&self) -> bool {
        self.has_lost_rights.load(Ordering::Relaxed)
    }

    /// Has it end, since whoever captures may do so no more.
    pub(crate) fn revoke(&self, why: String) {
        let _ = self.revocation.set(why);
        self.stop.cancel();
    }

    /// Why whoever captures may do so no more, if so.
    pub(crate) fn revocation(&self) -> Option<&str> {
        self.revocation.get().map(String::as_str)
    }

    /// A message was handed to the client's socket, with so many packets, the oldest of which is so old.
    pub(crate) fn delivered(&self, packets: u64, bytes: usize, delay: Option<Duration>) {
        self.amounts.packets.fetch_add(packets, Ordering::Relaxed);
        self.amounts.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.metrics.delivered(packets, bytes, delay);
    }

    /// The client was too slow for so many packets.
    pub(crate) fn lost_by_client(&self, packets: u64) {
        self.amounts.lost_by_client.fetch_add(packets, Ordering::Relaxed);
        self.metrics.lost_by_client(packets);
    }

    /// The kernel has lost so many packets in all; told once a second.
    pub(crate) fn lost_in_kernel(&self, packets: u64) {
        self.amounts.lost_in_kernel.store(packets, Ordering::Relaxed);
        let Amount { packets, bytes, .. } = self.amount();
        let at = Instant::now();
        let mut readings = self.readings.lock().unwrap_or_else(PoisonError::into_inner);
        if readings.len() >= READINGS {
            readings.pop_front();
        }
        readings.push_back(Reading { at, packets, bytes });
    }
}

impl Reading {
    fn rates_until(&self, now: Instant, packets: u64, bytes: u64) -> Rates {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        let rate = |now: u64, then: u64| {
            if seconds > 0.0 {
                now.saturating_sub(then) as f64 / seconds
            } else {
                0.0
            }
        };
        Rates {
            packets: rate(packets, self.packets),
            bytes: rate(bytes, self.bytes),
        }
    }
}

impl RunningCapture {
    /// The capture, to count what it delivers.
    pub(crate) fn capture(&self) -> Arc<Capture> {
        Arc::clone(&self.capture)
    }

    /// It has ended, for this reason.
    pub(crate) fn end(mut self, end: CaptureEnd, reason: &str) {
        self.end = (end, reason.to_owned());
    }
}

impl Deref for RunningCapture {
    type Target = Capture;

    fn deref(&self) -> &Capture {
        &self.capture
    }
}

impl Drop for RunningCapture {
    fn drop(&mut self) {
        let mut running = self
            .captures
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        running.remove(&self.capture.facts.id);
        drop(running);
        let (end, reason) = &self.end;
        self.capture.metrics.ended(*end);
        self.captures.audit.ended(&self.capture, *end, reason);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts(id: u64) -> CaptureFacts {
        CaptureFacts {
            id,
            tap: 1,
            stream: None,
            client: ClientFacts::default(),
            target: TargetDescription::namespace(5),
            asked: TargetDescription::namespace(5),
            netns: 5,
            selection: InterfaceSelection::All,
            filter: String::new(),
        }
    }

    pub(crate) fn captures() -> Arc<Captures> {
        let metrics = Arc::new(Metrics::new());
        let audit = Audit::open(None, false, Arc::clone(&metrics)).unwrap();
        Arc::new(Captures::new(metrics, Arc::new(audit)))
    }

    fn begin(captures: &Arc<Captures>, facts: CaptureFacts, stop: CancellationToken) -> RunningCapture {
        captures.begin(captures.prepare(facts, stop)).unwrap()
    }

    #[test]
    fn lists_what_runs() {
        let captures = captures();
        let first = begin(&captures, facts(1), CancellationToken::new());
        let second = begin(&captures, facts(2), CancellationToken::new());
        let ids = || -> Vec<u64> { captures.list().iter().map(|one| one.facts().id).collect() };
        assert_eq!((ids(), captures.count()), (vec![1, 2], 2));
        first.end(CaptureEnd::Closed, "closed by the client");
        assert_eq!(ids(), [2]);
        drop(second);
        assert_eq!(captures.count(), 0);
    }

    #[test]
    fn operator_ends_only_what_runs() {
        let captures = captures();
        let (stop, other) = (CancellationToken::new(), CancellationToken::new());
        let capture = begin(&captures, facts(1), stop.clone());
        let _other = begin(&captures, facts(2), other.clone());
        assert!(!captures.end(7) && !stop.is_cancelled());
        assert!(captures.end(1));
        assert!(stop.is_cancelled() && capture.is_ended_by_operator());
        assert!(!other.is_cancelled());
        capture.end(CaptureEnd::Operator, "ended by the operator");
        assert!(!captures.end(1));
    }

    #[test]
    fn counts_what_is_delivered_and_lost() {
        let captures = captures();
        let capture = begin(&captures, facts(1), CancellationToken::new());
        capture.delivered(3, 400, None);
        capture.delivered(2, 300, Some(Duration::from_millis(1)));
        capture.lost_by_client(4);
        capture.lost_in_kernel(5);
        capture.lost_in_kernel(6);
        let amount = Amount {
            packets: 5,
            bytes: 700,
            lost_in_kernel: 6,
            lost_by_client: 4,
        };
        assert_eq!(capture.amount(), amount);
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let at = Instant::now();
        let reading = Reading {
            at,
            packets: 100,
            bytes: 1000,
        };
        let later = at + Duration::from_secs(4);
        let rates = reading.rates_until(later, 140, 9000);
        assert_eq!((rates.packets, rates.bytes), (10.0, 2000.0));
        assert_eq!(reading.rates_until(at, 140, 9000), Rates::default());

        let captures = captures();
        let capture = begin(&captures, facts(1), CancellationToken::new());
        (0..20).for_each(|_| capture.lost_in_kernel(0));
        assert_eq!(capture.readings.lock().unwrap().len(), READINGS);
    }
}
