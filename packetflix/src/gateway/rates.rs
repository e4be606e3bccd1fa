//! How much traffic the targets of all nodes have. Nodes are asked as long as somebody looks, once for all who do.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use packetflix_client::http::{self, Events};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::{Gateway, node::Node};
use crate::access::Rights;

/// How often those who look are told.
const INTERVAL: Duration = Duration::from_secs(1);

/// Pause before a node is asked again that told no more.
const PAUSE: Duration = Duration::from_secs(5);

/// Most nodes of which rates are told.
const MAX_NODES: usize = 256;

/// Most bytes of an event of a node.
const MAX_EVENT_LEN: usize = 4 << 20;

/// Most callers with different rights to some targets only to whom rates are told at the same time: each takes a connection to every
/// node.
const MAX_RIGHTS: usize = 8;

/// The rates as they are now; nodes tell them as long as this is held.
pub(crate) struct Rates {
    /// Of whom they are told, if of those with these rights only.
    rights: Option<Rights>,
    by_node: Mutex<BTreeMap<u32, NodeRates>>,
    /// How often nodes have told that their targets are others.
    changes: AtomicU64,
    following: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// What a node has told, by the numbers of namespaces, which have no more bits in Linux: packets and bytes that each interface, by
/// its index, has received and sent.
#[derive(Debug, Default, Deserialize, PartialEq)]
struct NodeRates {
    rates: BTreeMap<u32, BTreeMap<u32, [f64; 4]>>,
    #[serde(default)]
    unseen: Vec<u32>,
}

impl Gateway {
    /// The rates of all nodes, for as long as they are held, or what of them somebody may know who has these rights. `None` where
    /// too many others have them told.
    pub(crate) fn rates(self: &Arc<Self>, rights: Option<&Rights>) -> Option<Arc<Rates>> {
        let mut shared = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        shared.retain(|rates| rates.strong_count() > 0);
        let told: Vec<Arc<Rates>> = shared.iter().filter_map(Weak::upgrade).collect();
        if let Some(rates) = told.iter().find(|rates| rates.rights.as_ref() == rights) {
            return Some(Arc::clone(rates));
        }
        let bounded = told.iter().filter(|rates| rates.rights.is_some()).count();
        if rights.is_some() && bounded >= MAX_RIGHTS {
            return None;
        }
        let rates = Arc::new(Rates {
            rights: rights.cloned(),
            by_node: Mutex::default(),
            changes: AtomicU64::new(0),
            following: Mutex::default(),
        });
        let following = tokio::spawn(follow_all(Arc::downgrade(self), Arc::downgrade(&rates)));
        *rates.following.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(AbortOnDropHandle::new(following));
        shared.push(Arc::downgrade(&rates));
        Some(rates)
    }
}

impl Rates {
    /// The next event for one who looks, and how often targets had changed then; `told` is what that was before.
    pub(crate) async fn next(&self, told: &mut u64) -> String {
        sleep(INTERVAL).await;
        let mut events = String::new();
        let changes = self.changes.load(Ordering::Relaxed);
        if std::mem::replace(told, changes) != changes {
            events += &format!("event: targets\ndata: {changes:016x}\n\n");
        }
        events += &format!("event: rates\ndata: {}\n\n", self.told());
        events
    }

    fn told(&self) -> Value {
        let by_node = self.lock();
        let all = by_node.iter().flat_map(|(number, of)| {
            of.rates
                .iter()
                .map(|(netns, rates)| (at_gateway(*number, *netns), rates))
        });
        let rates: BTreeMap<u64, _> = all.collect();
        let unseen = by_node
            .iter()
            .flat_map(|(number, of)| of.unseen.iter().map(|netns| at_gateway(*number, *netns)));
        json!({ "rates": rates, "unseen": unseen.collect::<Vec<u64>>() })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, NodeRates>> {
        self.by_node.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes in an event of a node.
    fn take(&self, number: u32, event: &str) {
        let of = |name: &str| {
            event
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        match (of("event:"), of("data:")) {
            (Some("targets"), _) => self.changed(),
            (Some("rates"), Some(data)) => {
                // What no node writes is none.
                let rates = serde_json::from_str(data).unwrap_or_default();
                self.lock().insert(number, rates);
            }
            _ => {}
        }
    }
}

/// The number of a namespace at a gateway: that of its node, and in the lower 32 bits what it is there. Numbers of nodes have 20
/// bits, so that what reads JSON as JavaScript does loses none.
pub(super) fn at_gateway(node: u32, netns: u32) -> u64 {
    (u64::from(node) << 32) | u64::from(netns)
}

/// The numbers of node and namespace in a number of the gateway's; `None` where it says nothing of a node.
pub(super) fn at_node(number: u64) -> Option<(u32, u64)> {
    let node = u32::try_from(number >> 32).ok().filter(|node| *node > 0)?;
    Some((node, number & u64::from(u32::MAX)))
}

/// Follows all nodes, those that come too, until nobody looks.
async fn follow_all(gateway: Weak<Gateway>, rates: Weak<Rates>) {
    let mut followed: HashMap<u32, (Arc<Node>, AbortOnDropHandle<()>)> = HashMap::new();
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (Some(gateway), Some(shared)) = (gateway.upgrade(), rates.upgrade()) else {
            return;
        };
        let mut nodes = gateway.nodes.all();
        nodes.truncate(MAX_NODES);
        let is_there = |node: &Arc<Node>| nodes.iter().any(|other| Arc::ptr_eq(node, other));
        let before = followed.len();
        followed.retain(|_, (node, _)| is_there(node));
        let has_lost_some = followed.len() < before;
        shared
            .lock()
            .retain(|number, _| nodes.iter().any(|node| node.number == *number));
        let new: Vec<&Arc<Node>> = nodes
            .iter()
            .filter(|node| !followed.contains_key(&node.number))
            .collect();
        if before > 0 && (has_lost_some || !new.is_empty()) {
            shared.changed();
        }
        for node in new {
            let following = follow(Arc::downgrade(&gateway), Arc::clone(node), rates.clone());
            let handle = AbortOnDropHandle::new(tokio::spawn(following));
            followed.insert(node.number, (Arc::clone(node), handle));
        }
    }
}

/// Has a node tell, again when it tells no more.
async fn follow(gateway: Weak<Gateway>, node: Arc<Node>, rates: Weak<Rates>) {
    loop {
        let Some(events) = begin(&gateway, &node, &rates).await else {
            sleep(PAUSE).await;
            continue;
        };
        read(events, node.number, &rates).await;
        if let Some(rates) = rates.upgrade() {
            rates.lock().remove(&node.number);
        }
        sleep(PAUSE).await;
    }
}

async fn begin(gateway: &Weak<Gateway>, node: &Node, rates: &Weak<Rates>) -> Option<Events> {
    let gateway = gateway.upgrade()?;
    let shown = gateway.nodes.shown(rates.upgrade()?.rights.as_ref()).ok()?;
    let server = gateway.nodes.server(node, &shown);
    drop(gateway);
    http::events(&server, "/rates").await.ok()
}

/// Reads events until they end, or one is longer than any should be.
async fn read(mut events: Events, number: u32, rates: &Weak<Rates>) {
    let mut text = BytesMut::new();
    let mut searched = 0;
    while let Some(bytes) = events.next().await {
        text.extend_from_slice(&bytes);
        while let Some(event) = first_event(&mut text, &mut searched) {
            let Some(rates) = rates.upgrade() else {
                return;
            };
            rates.take(number, &String::from_utf8_lossy(&event));
        }
        if text.len() > MAX_EVENT_LEN {
            return;
        }
    }
}

/// Takes the first event off, if it is whole. In the first `searched` bytes none has its end.
fn first_event(text: &mut BytesMut, searched: &mut usize) -> Option<BytesMut> {
    const END: &[u8] = b"\n\n";
    // The end may have begun there.
    let from = searched.saturating_sub(END.len() - 1);
    let end = text[from..].windows(END.len()).position(|two| two == END);
    *searched = if end.is_some() { 0 } else { text.len() };
    end.map(|end| text.split_to(from + end + END.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_namespaces_are_those_of_their_nodes_too() {
        let number = at_gateway(3, 4_026_531_840);
        assert_eq!(at_node(number), Some((3, 4_026_531_840)));
        assert_eq!(at_node(4_026_531_840), None);
        // As JavaScript keeps them.
        assert!(at_gateway((1 << 20) - 1, u32::MAX) < 1 << 53);
    }

    fn rates() -> Rates {
        Rates {
            rights: None,
            by_node: Mutex::default(),
            changes: AtomicU64::new(0),
            following: Mutex::default(),
        }
    }

    #[test]
    fn no_node_tells_rates_of_another_or_of_another_form() {
        let good = r#"{"uptime":1.5,"rates":{"5":{"2":[1.0,0,2.5,0]}},"unseen":[6]}"#;
        let told = json!({ "rates": { "4294967301": { "2": [1.0, 0.0, 2.5, 0.0] } }, "unseen": [4_294_967_302_u64] });
        let nothing = json!({ "rates": {}, "unseen": [] });
        for (data, expected) in [
            (good, &told),
            // It is that of node 1, of whoever says so.
            (r#"{"rates":{"4294967301":{"2":[1,0,2,0]}}}"#, &nothing),
            (r#"{"rates":{},"unseen":[4294967302]}"#, &nothing),
            (r#"{"rates":{"5":[[],[],[]]}}"#, &nothing),
            (r#"{"rates":{"5":{"2":[1,2,3]}}}"#, &nothing),
            (r#"{"rates":{"5":{"2":["1",2,3,4]}}}"#, &nothing),
            (r#"{"rates":{"web":{}}}"#, &nothing),
            ("[", &nothing),
        ] {
            let rates = rates();
            for data in [good, data] {
                rates.take(1, &format!("event: rates\ndata: {data}\n\n"));
            }
            assert_eq!(&rates.told(), expected, "{data}");
        }
    }

    #[test]
    fn events_are_found_wherever_they_are_cut() {
        let stream = b"event: a\n\n\n\nevent: b\ndata: c\n\nevent";
        let expected = ["event: a\n\n", "\n\n", "event: b\ndata: c\n\n"];
        for len in 1..=stream.len() {
            let (mut text, mut searched, mut events) = (BytesMut::new(), 0, Vec::new());
            for piece in stream.chunks(len) {
                text.extend_from_slice(piece);
                while let Some(event) = first_event(&mut text, &mut searched) {
                    events.push(event);
                }
            }
            assert_eq!(
                (events, &text[..]),
                (expected.map(Into::into).to_vec(), &b"event"[..]),
                "{len}"
            );
        }
    }
}
