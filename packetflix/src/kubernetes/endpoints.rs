//! Which nodes there are: the pods behind a Service, as its EndpointSlices have them.
//!
//! A list, and then a watch from where the list was. Whatever fails, an expired watch too, both begin anew; what was known until
//! then stays what is known. What it answers, and how often it is asked, has bounds: it may be anything that answers at its address.
//!
//! Source: the API `discovery.k8s.io/v1` (EndpointSlice).

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use kube::{
    Api,
    client::ClientBuilder,
    runtime::watcher::{self, Event, watcher},
};
use packetflix_client::cluster::{Bounds, is_label};
use tokio::time::{Instant, sleep, timeout};
use warp::http::Uri;

use super::{
    api::{ApiAddress, Credentials},
    slices::Slices,
};
use crate::{error::chain, text::shortened};

/// By this label a slice says which Service it is of.
const SERVICE: &str = "kubernetes.io/service-name";

/// Slices of a page of the list. The controller puts 100 endpoints into each, and 1,000 at most.
const PAGE: u32 = 50;

/// What the API server may answer, and how often it is asked: for whole lists at once, and for watches that end at once each second.
const BOUNDS: Bounds = Bounds {
    len: 32 << 20,
    burst: 96,
    pause: Duration::from_secs(1),
};

/// For how many seconds a watch is asked for.
const WATCH: u32 = 60;

/// After how long without a byte the API server is given up, which is more than a watch without changes takes.
const SILENT: Duration = Duration::from_secs(WATCH as u64 + 15);

/// How long a page of the list may take, and a connection.
const LIST: Duration = Duration::from_secs(15);

/// How long the whole list may take.
const WHOLE_LIST: Duration = Duration::from_secs(30);

/// How often it is told what has changed.
const SETTLE: Duration = Duration::from_millis(100);

/// Bounds of the pause before the list is asked for anew.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// After how long a watch was no failure right from the start.
const GOOD_WHILE: Duration = Duration::from_secs(60);

/// Most bytes of a sentence of the API server's.
const MAX_SENTENCE_LEN: usize = 500;

/// Most bytes of what one endpoint is called that is left out.
const MAX_NAME_LEN: usize = 100;

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceName {
    /// `None` is the namespace of the own pod.
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
}

/// It is no name of a Service.
#[derive(Debug, thiserror::Error)]
#[error("{0} is no Service: write NAME or NAMESPACE/NAME, each of letters, digits and dashes")]
pub struct ServiceNameError(String);

/// A node, and where its pod is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundNode {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// What is found out of nodes.
#[derive(Debug)]
pub(crate) enum Finding {
    /// These are all of them, in the order of their names, and what is left out.
    Nodes(Vec<FoundNode>, LeftOut),
    /// Nothing is found out, and why.
    Problem(String),
}

/// Why something of a Service is no node to ask. That an endpoint is not ready, or ends, is no reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Unfit {
    Nodeless,
    Name,
    Address,
    Port,
    Second,
    Beyond,
    Slice,
}

/// What is left out of the nodes of a Service: how many for each reason, and one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeftOut(BTreeMap<Unfit, (usize, String)>);

impl LeftOut {
    /// Leaves out something that is called so.
    pub(crate) fn note(&mut self, why: Unfit, name: &str) {
        let first = || (0, shortened(name, MAX_NAME_LEN).into_owned());
        self.0.entry(why).or_insert_with(first).0 += 1;
    }

    /// How much that is.
    pub(crate) fn count(&self) -> usize {
        self.0.values().map(|(count, _)| count).sum()
    }

    /// What there is to say of it, if anything.
    pub(crate) fn sentence(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| format!("not all of the Service is asked: {self}"))
    }
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (why, (count, name))) in self.0.iter().enumerate() {
            let (one, several) = match why {
                Unfit::Nodeless => ("endpoint has no nodeName", "endpoints have no nodeName"),
                Unfit::Name => (
                    "node has a name that none may have here",
                    "nodes have names that none may have here",
                ),
                Unfit::Address => ("endpoint has no IP address", "endpoints have no IP addresses"),
                Unfit::Port => ("endpoint has no port of TCP", "endpoints have no port of TCP"),
                Unfit::Second => (
                    "endpoint is another ready one of its node",
                    "endpoints are other ready ones of their nodes",
                ),
                Unfit::Beyond => (
                    "node is more than there may be",
                    "nodes are more than there may be",
                ),
                Unfit::Slice => (
                    "EndpointSlice is more than are kept",
                    "EndpointSlices are more than are kept",
                ),
            };
            let separator = if place > 0 { ", " } else { "" };
            match count {
                1 => write!(f, "{separator}1 {one} ({name})")?,
                count => write!(f, "{separator}{count} {several} ({name} is one)")?,
            }
        }
        Ok(())
    }
}

/// Why it is not known what nodes there are.
#[derive(Debug, thiserror::Error)]
enum FindError {
    #[error("the API server cannot be asked")]
    Client(#[from] kube::Error),
    #[error("the API server refuses ({code}): {message}")]
    Refused { code: u16, message: String },
    #[error("the API server cannot be followed")]
    Watch(#[source] watcher::Error),
    #[error("the API server tells what is no event of an EndpointSlice")]
    Odd,
    #[error("the API server does not come to the end of its list within {} s", WHOLE_LIST.as_secs())]
    Endless,
    #[error("the API server does not answer within {} s", LIST.as_secs())]
    Late,
}

/// Follows the nodes of a Service.
#[derive(Clone, Debug)]
pub(crate) struct Finder {
    pub(crate) address: ApiAddress,
    pub(crate) credentials: Credentials,
    pub(crate) namespace: String,
    pub(crate) service: String,
}

impl FromStr for ServiceName {
    type Err = ServiceNameError;

    fn from_str(text: &str) -> Result<Self, ServiceNameError> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if !is_label(name) || !namespace.is_none_or(is_label) {
            return Err(ServiceNameError(text.to_owned()));
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
        })
    }
}

impl Finder {
    /// The name of the Service in the cluster's DNS, which certificates of its pods have.
    pub(crate) fn dns_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Tells again and again what is found. Never ends.
    pub(crate) async fn follow(&self, tell: impl Fn(Finding) + Send + Sync) {
        let mut pause = MIN_PAUSE;
        loop {
            let begun = Instant::now();
            let why = match self.watch(&tell).await {
                Ok(()) => "the watch has ended".to_owned(),
                Err(error) => chain(&error),
            };
            tell(Finding::Problem(why));
            if begun.elapsed() >= GOOD_WHILE {
                pause = MIN_PAUSE;
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    /// Lists, and watches until that fails.
    async fn watch(&self, tell: &(impl Fn(Finding) + Sync)) -> Result<(), FindError> {
        let api = Api::<EndpointSlice>::namespaced(self.client()?, &self.namespace);
        let which = watcher::Config::default()
            .labels(&format!("{SERVICE}={}", self.service))
            .page_size(PAGE)
            .timeout(WATCH);
        let mut events = std::pin::pin!(watcher(api, which));
        let mut slices = Slices::default();
        let mut is_whole = false;
        let until = Instant::now() + WHOLE_LIST;
        let mut told: Option<Instant> = None;
        let mut is_told = true;
        loop {
            // A watch may be silent for long, but a list may not.
            let patience = match (is_whole, is_told) {
                (false, _) => LIST.min(until.saturating_duration_since(Instant::now())),
                (true, false) => SETTLE,
                (true, true) => Duration::MAX,
            };
            match timeout(patience, events.next()).await {
                Ok(None) => return Ok(()),
                Ok(Some(event)) => {
                    match event? {
                        Event::Init => {}
                        Event::InitDone => is_whole = true,
                        Event::InitApply(slice) | Event::Apply(slice) => slices.put(slice),
                        Event::Delete(slice) => slices.remove(&slice),
                    }
                    is_told = !is_whole;
                }
                Err(_) if is_whole => {}
                Err(_) if Instant::now() < until => return Err(FindError::Late),
                Err(_) => return Err(FindError::Endless),
            }
            if !is_whole && Instant::now() >= until {
                return Err(FindError::Endless);
            }
            // Many changes at once are one.
            if !is_told && told.is_none_or(|told| told.elapsed() >= SETTLE) {
                let (nodes, mut left_out) = nodes(slices.known());
                slices.beyond().for_each(|name| left_out.note(Unfit::Slice, name));
                tell(Finding::Nodes(nodes, left_out));
                (told, is_told) = (Some(Instant::now()), true);
            }
        }
    }

    /// A client, which reads token and CA anew when they change.
    fn client(&self) -> Result<kube::Client, kube::Error> {
        let url = Uri::try_from(self.address.to_string());
        let mut config = kube::Config::new(url.map_err(|error| kube::Error::HttpError(error.into()))?);
        if self.address.is_encrypted() {
            // Those of the file stand in their place. Without any, those of the system are looked for, which an image need not have.
            config.root_cert = Some(Vec::new());
            config.root_cert_file = Some(self.credentials.ca.clone());
        }
        config.auth_info.token_file = Some(self.credentials.token.display().to_string());
        config.connect_timeout = Some(LIST);
        config.read_timeout = Some(SILENT);
        config.reset_reader_on_write = true;
        config.default_retry = false;
        Ok(ClientBuilder::try_from(config)?.with_layer(&BOUNDS).build())
    }
}

impl From<watcher::Error> for FindError {
    fn from(error: watcher::Error) -> Self {
        use watcher::Error::{InitialListFailed, WatchError, WatchFailed, WatchStartFailed};

        let refused = match &error {
            WatchError(status) => Some(status),
            InitialListFailed(kube::Error::Api(status))
            | WatchStartFailed(kube::Error::Api(status))
            | WatchFailed(kube::Error::Api(status)) => Some(status),
            _ => None,
        };
        match refused {
            // kube takes whatever it does not understand for a status.
            Some(status) if status.code == 0 => Self::Odd,
            Some(status) => Self::Refused {
                code: status.code,
                message: shortened(&status.message, MAX_SENTENCE_LEN).into_owned(),
            },
            None => Self::Watch(error),
        }
    }
}

/// How much is to be said for an endpoint: the ready one of several on a node is asked.
type Rank = (bool, bool, IpAddr);

/// The nodes of slices, and what else is in them. One that is not ready is a node, too: what is wrong with it is told, and not hidden.
fn nodes<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> (Vec<FoundNode>, LeftOut) {
    let mut left_out = LeftOut::default();
    let mut by_node: BTreeMap<&str, BTreeMap<(Rank, u16), &Endpoint>> = BTreeMap::new();
    for slice in slices {
        let port = port_of(slice);
        for endpoint in &slice.endpoints {
            match (endpoint.node_name.as_deref(), rank(endpoint), port) {
                (Some(node), Some(rank), Some(port)) => {
                    by_node.entry(node).or_default().insert((rank, port), endpoint);
                }
                (None, ..) => left_out.note(Unfit::Nodeless, called(endpoint)),
                (_, None, _) => left_out.note(Unfit::Address, called(endpoint)),
                (.., None) => left_out.note(Unfit::Port, called(endpoint)),
            }
        }
    }
    let mut found = Vec::new();
    for (name, of_node) in by_node {
        let mut of_node = of_node.into_iter();
        let Some((((_, _, address), port), best)) = of_node.next() else {
            continue;
        };
        for (((is_ending, is_unready, other), _), endpoint) in of_node {
            // A pod may have an address of each family, and one that comes or goes is beside the one that is asked.
            let is_same = other.is_ipv4() != address.is_ipv4() && is_of_same_pod(endpoint, best);
            if !is_same && !is_ending && !is_unready {
                left_out.note(Unfit::Second, called(endpoint));
            }
        }
        let name = name.to_owned();
        found.push(FoundNode { name, address, port });
    }
    (found, left_out)
}

/// What people call an endpoint: by its pod, or by its address.
fn called(endpoint: &Endpoint) -> &str {
    let pod = endpoint.target_ref.as_ref().and_then(|pod| pod.name.as_deref());
    pod.or(endpoint.addresses.first().map(String::as_str))
        .unwrap_or("without an address")
}

/// Whether two endpoints are of one pod, as far as they say of which they are.
fn is_of_same_pod(one: &Endpoint, other: &Endpoint) -> bool {
    match (&one.target_ref, &other.target_ref) {
        (Some(one), Some(other)) => one.name == other.name,
        _ => true,
    }
}

/// The lower, the better: not ending, ready, and the lowest address, which is of IPv4 where there is one.
fn rank(endpoint: &Endpoint) -> Option<Rank> {
    // Of several addresses the first is meant (the API says so).
    let address = endpoint.addresses.first()?.parse().ok()?;
    let EndpointConditions {
        ready, terminating, ..
    } = endpoint.conditions.clone().unwrap_or_default();
    // What is not said is to be taken for ready, and for not ending.
    Some((terminating.unwrap_or(false), !ready.unwrap_or(true), address))
}

/// The port of TCP of a slice; of several the one that is called `http` or `https`.
fn port_of(slice: &EndpointSlice) -> Option<u16> {
    let ports = slice.ports.as_deref().unwrap_or_default();
    let is_ours = |name: Option<&str>| name.is_some_and(|name| name.starts_with("http"));
    let of_tcp = || {
        ports
            .iter()
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
    };
    let named = of_tcp().find(|port| is_ours(port.name.as_deref()));
    let port = named.or_else(|| of_tcp().next())?.port?;
    u16::try_from(port).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(kind: &str, endpoints: &serde_json::Value) -> EndpointSlice {
        let slice = json!({
            "metadata": { "name": "x" },
            "addressType": kind,
            "ports": [{ "name": "metrics", "port": 9 }, { "name": "https", "port": 5001, "protocol": "TCP" }],
            "endpoints": endpoints,
        });
        serde_json::from_value(slice).unwrap()
    }

    fn left_out(slices: &[EndpointSlice]) -> String {
        nodes(slices.iter()).1.to_string()
    }

    fn found(slices: &[EndpointSlice]) -> Vec<String> {
        let (nodes, _) = nodes(slices.iter());
        nodes
            .iter()
            .map(|node| format!("{} {}:{}", node.name, node.address, node.port))
            .collect()
    }

    #[test]
    fn each_node_is_found_once_by_its_best_endpoint() {
        let slices = [
            slice(
                "IPv4",
                &json!([
                    { "addresses": ["10.0.0.9"], "nodeName": "n1", "conditions": { "ready": false, "serving": true, "terminating": true } },
                    { "addresses": ["10.0.0.7", "10.0.0.1"], "nodeName": "n1" },
                    { "addresses": ["10.0.0.8"], "nodeName": "n2", "conditions": { "ready": false } },
                    { "addresses": ["10.0.0.5"] },
                    { "addresses": [], "nodeName": "n3" },
                ]),
            ),
            slice("IPv6", &json!([{ "addresses": ["fd00::1"], "nodeName": "n1" }])),
            slice("IPv6", &json!([{ "addresses": ["fd00::4"], "nodeName": "n4" }])),
            slice(
                "FQDN",
                &json!([{ "addresses": ["web.example"], "nodeName": "n5" }]),
            ),
        ];
        assert_eq!(
            found(&slices),
            ["n1 10.0.0.7:5001", "n2 10.0.0.8:5001", "n4 fd00::4:5001"]
        );
        let mut without_port = slices[0].clone();
        without_port.ports = None;
        assert!(found(&[without_port.clone()]).is_empty());
        assert_eq!(
            left_out(&slices),
            "1 endpoint has no nodeName (10.0.0.5), 2 endpoints have no IP addresses (without an address is one)"
        );
        assert_eq!(
            left_out(&[without_port]),
            "1 endpoint has no nodeName (10.0.0.5), 1 endpoint has no IP address (without an address), 3 endpoints have no \
             port of TCP (10.0.0.9 is one)"
        );
    }

    #[test]
    fn what_is_left_out_is_counted_and_what_comes_and_goes_is_not() {
        let of = |address: &str, pod: &str, conditions: serde_json::Value| {
            json!({ "addresses": [address], "nodeName": "n1", "conditions": conditions,
                "targetRef": { "kind": "Pod", "name": pod } })
        };
        let ready = || json!({ "ready": true });
        // The pod that goes, one that comes, an address of the other family, and the same in a second slice.
        let slices = [
            slice(
                "IPv4",
                &json!([
                    of("10.0.0.7", "a", ready()),
                    of("10.0.0.6", "b", json!({ "ready": true, "terminating": true })),
                    of("10.0.0.5", "c", json!({ "ready": false })),
                ]),
            ),
            slice("IPv4", &json!([of("10.0.0.7", "a", ready())])),
            slice("IPv6", &json!([of("fd00::7", "a", ready())])),
        ];
        assert_eq!(found(&slices), ["n1 10.0.0.7:5001"]);
        assert_eq!(nodes(slices.iter()).1.sentence(), None);
        let others = slice(
            "IPv6",
            &json!([of("fd00::8", "d", ready()), of("fd00::9", "e", ready())]),
        );
        let (_, mut left_out) = nodes(slices.iter().chain([&others]));
        left_out.note(Unfit::Name, "n 1");
        left_out.note(Unfit::Beyond, "z");
        left_out.note(Unfit::Beyond, "zz");
        left_out.note(Unfit::Slice, &"s".repeat(1000));
        assert_eq!(left_out.count(), 6);
        let cut = format!("{}…", "s".repeat(MAX_NAME_LEN));
        assert_eq!(
            left_out.sentence().unwrap(),
            format!(
                "not all of the Service is asked: 1 node has a name that none may have here (n 1), 2 endpoints are other ready \
                 ones of their nodes (d is one), 2 nodes are more than there may be (z is one), 1 EndpointSlice is more than are \
                 kept ({cut})"
            )
        );
    }

    #[test]
    fn services_have_names_of_dns() {
        for (text, namespace, name) in [("nodes", None, "nodes"), ("a-1/b2", Some("a-1"), "b2")] {
            let service: ServiceName = text.parse().unwrap();
            assert_eq!(
                (service.namespace.as_deref(), &service.name[..]),
                (namespace, name)
            );
        }
        for wrong in ["", "/", "a/", "/b", "a/b/c", "A", "a b", "-a", &"x".repeat(64)] {
            assert!(wrong.parse::<ServiceName>().is_err(), "{wrong}");
        }
    }
}
