//! Which nodes there are: the pods behind a Service, as its EndpointSlices have them.
//!
//! A list, and then a watch from where the list was. Whatever fails, an expired watch too, both begin anew; what was known until
//! then stays what is known.
//!
//! Source: the API `discovery.k8s.io/v1` (EndpointSlice).

use std::{collections::BTreeMap, net::IpAddr, str::FromStr, time::Duration};

use futures_util::StreamExt as _;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};
use kube::{
    Api, ResourceExt as _,
    runtime::watcher::{self, Event, watcher},
};
use tokio::time::{Instant, sleep, timeout};
use warp::http::Uri;

use super::api::{ApiAddress, Credentials};
use crate::error::chain;

/// By this label a slice says which Service it is of.
const SERVICE: &str = "kubernetes.io/service-name";

/// Slices of a page of the list. The controller puts 100 endpoints into each.
const PAGE: u32 = 100;

/// For how many seconds a watch is asked for.
const WATCH: u32 = 60;

/// After how long without a byte the API server is given up, which is more than a watch without changes takes.
const SILENT: Duration = Duration::from_secs(WATCH as u64 + 15);

/// How long a page of the list may take, and a connection.
const LIST: Duration = Duration::from_secs(15);

/// Bounds of the pause before the list is asked for anew.
const MIN_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// After how long a watch was no failure right from the start.
const GOOD_WHILE: Duration = Duration::from_secs(60);

/// Most slices that are kept.
const MAX_SLICES: usize = 4096;

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
    /// These are all of them, in the order of their names.
    Nodes(Vec<FoundNode>),
    /// Nothing is found out, and why.
    Problem(String),
}

/// Why it is not known what nodes there are.
#[derive(Debug, thiserror::Error)]
enum FindError {
    #[error("the API server cannot be asked")]
    Client(#[from] kube::Error),
    #[error("the API server refuses ({code}): {message}")]
    Refused { code: u16, message: String },
    #[error("the API server does not answer")]
    Watch(#[source] watcher::Error),
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

/// Whether this is a label of a DNS name (RFC 1123), as names of namespaces and Services are.
fn is_label(text: &str) -> bool {
    let is_of_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len())
        && text.bytes().all(is_of_label)
        && !text.starts_with('-')
        && !text.ends_with('-')
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
        let slices = Api::<EndpointSlice>::namespaced(self.client()?, &self.namespace);
        let which = watcher::Config::default()
            .labels(&format!("{SERVICE}={}", self.service))
            .page_size(PAGE)
            .timeout(WATCH);
        let mut events = std::pin::pin!(watcher(slices, which));
        let mut known = BTreeMap::new();
        let mut is_whole = false;
        loop {
            // A watch may be silent for long, but a list may not.
            let patience = if is_whole { Duration::MAX } else { LIST };
            let next = timeout(patience, events.next()).await;
            let Some(event) = next.map_err(|_| FindError::Late)? else {
                return Ok(());
            };
            match event? {
                Event::Init => {
                    known.clear();
                    is_whole = false;
                }
                Event::InitDone => is_whole = true,
                Event::InitApply(slice) | Event::Apply(slice) => {
                    if known.len() < MAX_SLICES {
                        known.insert(slice.name_any(), slice);
                    }
                }
                Event::Delete(slice) => {
                    known.remove(&slice.name_any());
                }
            }
            if is_whole {
                tell(Finding::Nodes(nodes(known.values())));
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
        config.try_into()
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
            Some(status) => Self::Refused {
                code: status.code,
                message: status.message.clone(),
            },
            None => Self::Watch(error),
        }
    }
}

/// How much is to be said for an endpoint: the ready one of several on a node is asked.
type Rank = (bool, bool, IpAddr);

/// The nodes of slices. One that is not ready is a node, too: what is wrong with it is told, and not hidden.
fn nodes<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Vec<FoundNode> {
    let mut best: BTreeMap<String, (Rank, u16)> = BTreeMap::new();
    for slice in slices {
        let Some(port) = port_of(slice) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let Some((name, rank)) = endpoint.node_name.clone().zip(rank(endpoint)) else {
                continue;
            };
            let found = best.entry(name).or_insert((rank, port));
            *found = (*found).min((rank, port));
        }
    }
    let found = best
        .into_iter()
        .map(|(name, ((_, _, address), port))| FoundNode { name, address, port });
    found.collect()
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

    fn found(slices: &[EndpointSlice]) -> Vec<String> {
        let nodes = nodes(slices.iter());
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
        assert!(found(&[without_port]).is_empty());
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
