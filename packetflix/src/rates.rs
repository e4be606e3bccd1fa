//! How much traffic the interfaces of each network namespace have, from the kernel's own counters: nothing is captured for it.
//!
//! One reads for all who look, and nobody reads where nobody looks.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use crate::{
    discovery::{Discovery, Scan},
    netns::{Counters, CountersOf, LinkCounters},
};

/// How often the counters are read, at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Times that reading takes of a CPU, to rest before the next: among many namespaces it is done less often.
const REST: u32 = 100;

/// Traffic of an interface, per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rate {
    pub(crate) received_packets: f64,
    pub(crate) sent_packets: f64,
    pub(crate) received_bytes: f64,
    pub(crate) sent_bytes: f64,
}

/// What was found out at one time.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The last scan before that.
    pub(crate) scan: Arc<Scan>,
    /// Of each namespace that has any traffic, by its number: those of its interfaces that have, by their indexes.
    pub(crate) rates: HashMap<u64, HashMap<u32, Rate>>,
    /// Namespaces whose counters are not known, or not all.
    pub(crate) unseen: Vec<u64>,
}

/// The rates of all namespaces, for as long as somebody wants to know.
#[derive(Debug, Default)]
pub(crate) struct Rates {
    last: watch::Sender<Option<Arc<Reading>>>,
    wanted: Notify,
}

/// Somebody who looks.
#[derive(Debug)]
pub(crate) struct Viewer(watch::Receiver<Option<Arc<Reading>>>);

impl Viewer {
    /// What is found out next; of several since the last time, the latest. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Arc<Reading> {
        loop {
            if self.0.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(reading) = &*self.0.borrow_and_update() {
                return Arc::clone(reading);
            }
        }
    }
}

impl Rates {
    /// One more who looks.
    pub(crate) fn view(&self) -> Viewer {
        let mut looks = self.last.subscribe();
        // What there is already is news to them.
        looks.mark_changed();
        self.wanted.notify_one();
        Viewer(looks)
    }

    /// Reads again and again while somebody looks. Never ends.
    pub(crate) async fn follow(&self, discovery: &Discovery) {
        loop {
            self.wanted.notified().await;
            // For as long as this is there, targets are looked for.
            let _scans = discovery.addresses();
            let mut before = None;
            while self.last.receiver_count() > 0 {
                let cost = self.read(discovery, &mut before).await;
                sleep(INTERVAL.max(cost * REST)).await;
            }
            self.last.send_replace(None);
        }
    }

    /// Reads all counters once, and tells what became of them since `before`, if something is known of that. Gives the time of
    /// a CPU that it took.
    async fn read(&self, discovery: &Discovery, before: &mut Option<(Instant, CountersOf)>) -> Duration {
        let scan = match discovery.known() {
            Some(scan) if before.is_some() => scan,
            _ => match discovery.recent().await {
                Ok(scan) => scan,
                // The service as a whole tells that it is late.
                Err(_) => return Duration::ZERO,
            },
        };
        let Some(mut counted) = discovery.counters().await else {
            return Duration::ZERO;
        };
        let at = Instant::now();
        let rates = before
            .take()
            .map(|(then, old)| rates(&old.counters, &counted.counters, at - then));
        let reading = Reading {
            scan,
            rates: rates.unwrap_or_default(),
            unseen: std::mem::take(&mut counted.unseen),
        };
        self.last.send_replace(Some(Arc::new(reading)));
        let cost = counted.cost;
        *before = Some((at, counted));
        cost
    }
}

fn rates(
    old: &HashMap<u64, LinkCounters>,
    new: &HashMap<u64, LinkCounters>,
    time: Duration,
) -> HashMap<u64, HashMap<u32, Rate>> {
    let of_links = |old: &LinkCounters, new: &LinkCounters| {
        let links = new.iter().filter_map(|(index, counters)| {
            let rate = Rate::between(old.get(index)?, counters, time)?;
            Some((*index, rate))
        });
        links.collect::<HashMap<u32, Rate>>()
    };
    let both = new
        .iter()
        .filter_map(|(inode, counters)| Some((*inode, of_links(old.get(inode)?, counters))));
    both.filter(|(_, links)| !links.is_empty()).collect()
}

impl Rate {
    /// None without traffic, and where counters have gone back: the interface is another one.
    fn between(old: &Counters, new: &Counters, time: Duration) -> Option<Self> {
        let seconds = time.as_secs_f64();
        let grown = |old: u64, new: u64| Some(new.checked_sub(old)? as f64 / seconds);
        let rate = Self {
            received_packets: grown(old.received_packets, new.received_packets)?,
            sent_packets: grown(old.sent_packets, new.sent_packets)?,
            received_bytes: grown(old.received_bytes, new.received_bytes)?,
            sent_bytes: grown(old.sent_bytes, new.sent_bytes)?,
        };
        (old != new && seconds > 0.0).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{discovery::find_here, metrics::Metrics};

    #[test]
    fn counters_become_rates() {
        let counters = |packets, bytes| Counters {
            received_packets: packets,
            sent_packets: 0,
            received_bytes: bytes,
            sent_bytes: 0,
        };
        let old = HashMap::from([
            (
                5,
                LinkCounters::from([(1, counters(10, 1000)), (2, counters(7, 7)), (3, counters(9, 9))]),
            ),
            (6, LinkCounters::new()),
        ]);
        let new = HashMap::from([
            (
                5,
                LinkCounters::from([
                    (1, counters(20, 3000)),
                    (2, counters(7, 7)),
                    (3, counters(0, 0)),
                    (4, counters(1, 1)),
                ]),
            ),
            (7, LinkCounters::from([(1, counters(1, 1))])),
        ]);
        let rates = rates(&old, &new, Duration::from_secs(2));
        let expected = Rate {
            received_packets: 5.0,
            sent_packets: 0.0,
            received_bytes: 1000.0,
            sent_bytes: 0.0,
        };
        assert_eq!(rates, HashMap::from([(5, HashMap::from([(1, expected)]))]));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_reads_where_nobody_looks() {
        let discovery = Discovery::new(
            &find_here(Vec::new()),
            Vec::new(),
            "here".to_owned(),
            Arc::new(Metrics::new()),
        );
        let rates = Rates::default();
        let watch = async {
            assert!(discovery.known().is_none());
            let (mut first, mut second) = (rates.view(), rates.view());
            let (one, other) = tokio::join!(first.next(), second.next());
            assert!(Arc::ptr_eq(&one, &other) && one.rates.is_empty());
            drop(second);
            assert!(!Arc::ptr_eq(&one, &first.next().await));
            drop(first);
            while rates.last.borrow().is_some() {
                sleep(Duration::from_millis(10)).await;
            }
            // Whoever comes later is told from the beginning.
            assert!(rates.view().next().await.rates.is_empty());
        };
        tokio::select! {
            () = rates.follow(&discovery) => {}
            () = watch => {}
        }
    }
}
