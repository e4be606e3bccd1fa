//! The road into a cluster of Kubernetes: through its API server, by what a kubeconfig says, and by port-forward to packetflix'
//! pods there.
//!
//! That is the gateway's, or, where there is none, that on the node of the pods that are meant.

mod bounded;
mod forward;
mod kubeconfig;
mod plugin;
mod proxy;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _, api::ListParams, client::ClientBuilder};
use tokio::time::timeout;
use tokio_rustls::rustls::{self, CertificateError};

use self::forward::Broken;
pub(crate) use self::forward::Forwarded;
pub use self::{
    bounded::{Bounded, BoundedBody, Bounds, TooLong},
    forward::{ForwardError, PodPort},
    kubeconfig::KubeconfigError,
    plugin::{Plugin, PluginError},
};
use crate::{
    error::{behind, root},
    server::{ServerError, Token},
    terminal::aloud,
};

/// How pods of the gateway and of nodes are labelled.
const NAME: &str = "app.kubernetes.io/name";
const GATEWAY: &str = "packetflix-gateway";
const NODE: &str = "packetflix";

/// Port of a pod that names none.
const PORT: u16 = 5001;

/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// After how long people are told what is waited for.
pub(crate) const NOTICE: Duration = Duration::from_secs(3);

/// Pods of a page of a list, and most pages that are read.
const PAGE: u32 = 500;
const MAX_PAGES: u32 = 20;

/// What the API server is asked and may answer: a page of pods has a few MiB.
const BOUNDS: Bounds = Bounds {
    len: 32 << 20,
    burst: 2 * MAX_PAGES,
    pause: Duration::from_millis(500),
};

/// Most names that a sentence has.
const MAX_NAMED: usize = 8;

/// Most characters of a sentence of the API server's.
const MAX_SENTENCE: usize = 500;

/// Flags that say which cluster is meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct ClusterArgs {
    /// Reach packetflix in a cluster of Kubernetes through its API server, as the kubeconfig says: by port-forward to the gateway,
    /// or, where there is none, to the node of the pods that are meant
    #[arg(long, conflicts_with = "local")]
    pub kube: bool,
    /// Context of the kubeconfig, if not the current one
    #[arg(long, value_name = "CONTEXT", requires = "kube")]
    pub context: Option<String>,
    /// Namespace in which packetflix is installed
    #[arg(
        long,
        value_name = "NAMESPACE",
        requires = "kube",
        default_value = "packetflix",
        value_parser = parse_namespace
    )]
    pub kube_namespace: String,
}

/// Pods that are meant, by which the node is found where there is no gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meant {
    /// Their namespace; none is that of the context.
    pub namespace: Option<String>,
    /// What their labels have to be, as kubectl takes it.
    pub labels: Option<String>,
    /// Their names; all where there is none.
    pub names: Vec<String>,
}

/// The road into a cluster. Its copies are the same road.
#[derive(Clone)]
pub struct Road(Arc<Inner>);

struct Inner {
    client: kube::Client,
    /// The API server's URL, for people.
    url: String,
    /// Of the context.
    namespace: String,
    /// Whom the kubeconfig has log in, for people.
    user: String,
    /// Where packetflix is installed.
    installed: String,
    meant: Meant,
    /// The pod that is used, until it cannot be reached.
    place: Mutex<Option<Place>>,
    broken: Broken,
}

/// A pod, as far as it matters here.
#[derive(Debug)]
struct Found {
    name: String,
    /// Empty where it has none yet.
    node: String,
    is_ready: bool,
    port: u16,
    speaks_tls: bool,
}

/// A pod, and how it is spoken with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    pod: String,
    port: u16,
    /// The name that its certificate is for, where it speaks TLS.
    tls: Option<String>,
}

/// Why there is no road.
#[derive(Debug, thiserror::Error)]
pub enum RoadError {
    /// There is no such cluster.
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    /// What it shows cannot be used.
    #[error("the kubeconfig cannot be used for the API server at {0}: {1}")]
    Client(String, String),
    /// It does not let in, or not do that.
    #[error("the API server at {url} refuses to {what} ({code}): {message}. {remedy}")]
    Refused {
        /// Where it is.
        url: String,
        /// What it was asked.
        what: String,
        /// The status.
        code: u16,
        /// In its words.
        message: String,
        /// What to do about it.
        remedy: String,
    },
    /// It is not known to be the one that is meant.
    #[error(
        "the certificate of the API server at {0} is not trusted: the kubeconfig says of which CA (certificate-authority) and for which \
         name (tls-server-name) it has to be"
    )]
    Untrusted(String, #[source] rustls::Error),
    /// Its certificate is too old, or too new.
    #[error(
        "the certificate of the API server at {0} is not valid today: have it renewed, or set the clock of this machine"
    )]
    Dated(String, #[source] rustls::Error),
    /// It does not answer.
    #[error(
        "the API server at {0} cannot be reached: is it that of the cluster that is meant, and does the network (a VPN?) lead there? {1}"
    )]
    Unreachable(String, String),
    /// It is another server.
    #[error(
        "what answers at {0} is no API server of Kubernetes: is that the address of the cluster in the kubeconfig? {1}"
    )]
    Other(String, String),
    /// It does not answer in time.
    #[error("the API server at {0} does not {1} within {seconds} s: try again, or look how it is", seconds = PATIENCE.as_secs())]
    Late(String, String),
    /// There is nothing to reach.
    #[error(
        "there is no packetflix in the namespace {0}: docs/cluster.md says how it is installed, and --kube-namespace names another"
    )]
    NotInstalled(String),
    /// No gateway takes requests.
    #[error(
        "the gateway in the namespace {namespace} is not ready ({pods}): `kubectl -n {namespace} describe pods -l {NAME}={GATEWAY}` tells why"
    )]
    GatewayNotReady {
        /// Where it is.
        namespace: String,
        /// Its pods.
        pods: String,
    },
    /// There is nothing to say which node is meant.
    #[error(
        "there is no gateway in the namespace {installed}, and packetflix on several nodes ({nodes}): name pods of one of them, or \
         install the gateway (docs/cluster.md)"
    )]
    SeveralNodes {
        /// Where it is looked for.
        installed: String,
        /// Their names.
        nodes: String,
    },
    /// There are no such pods.
    #[error(
        "there is no pod {which} in the namespace {namespace} that is on a node: `kubectl -n {namespace} get pods -o wide \
         --show-labels` shows those that there are, and -n names another namespace"
    )]
    NoPod {
        /// Where they are looked for.
        namespace: String,
        /// Their names and labels.
        which: String,
    },
    /// Which node is meant is not known without all of them.
    #[error(
        "the namespace {0} has more than {most} such pods, which is more than are read: have fewer of them meant by labels (-l), or install the \
         gateway (docs/cluster.md)",
        most = MAX_PAGES * PAGE
    )]
    TooManyPods(String),
    /// Nothing captures there.
    #[error(
        "packetflix is not ready on the node {node}{pods}: `kubectl -n {namespace} get pods -o wide` shows on which it is"
    )]
    NotOnNode {
        /// The node's name.
        node: String,
        /// The pods that are there.
        pods: String,
        /// Where packetflix is installed.
        namespace: String,
    },
    /// The API server names a pod as no pod is called.
    #[error("the API server at {0} names a pod {1}, which no pod can be called")]
    PodName(String, String),
    /// The pod refuses the connection.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// The pod says nothing.
    #[error(
        "{0} takes connections, and has said nothing for {1} s: look whether packetflix hangs there (kubectl logs), and whether \
         `kubectl port-forward` does better"
    )]
    Silent(PodPort, u64),
}

/// Why a cluster is not the server.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// There is no road.
    #[error(transparent)]
    Road(#[from] RoadError),
    /// What it shows is no token.
    #[error(transparent)]
    Token(#[from] ServerError),
    /// There is nothing to show.
    #[error(
        "the kubeconfig shows the API server no token{0}: show packetflix one of the cluster with --token-file, such as `kubectl create \
         token NAME` prints"
    )]
    NoToken(String),
}

/// Whether this is a label of a DNS name (RFC 1123), as names of namespaces and Services are.
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len()) && is_of_dns(text)
}

/// Whether a pod can be called so: labels of a DNS name with dots between them.
fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_of_dns)
}

fn is_of_dns(label: &str) -> bool {
    let is_of_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.bytes().all(is_of_label) && !label.starts_with('-') && !label.ends_with('-')
}

/// A namespace as the command line has it.
pub(crate) fn parse_namespace(text: &str) -> Result<String, String> {
    match is_label(text) {
        true => Ok(text.to_owned()),
        false => Err(
            "a namespace has small letters, digits and dashes between them, and 63 of these at most"
                .to_owned(),
        ),
    }
}

impl Road {
    /// The road into the cluster of a context, and the token with which one is known there, or what there is instead.
    ///
    /// # Errors
    /// When the kubeconfig does not lead there.
    pub(crate) async fn into_cluster(
        args: &ClusterArgs,
        meant: Meant,
    ) -> Result<(Self, Result<Token, String>), ClusterError> {
        let login = kubeconfig::read(args.context.as_deref()).await;
        let login = login.map_err(RoadError::from)?;
        let mut config = login.config;
        config.connect_timeout = Some(PATIENCE);
        config.default_retry = false;
        let token = match login.token {
            Ok(token) => Ok(Token::parse(&token, "the kubeconfig")?),
            Err(instead) => Err(instead),
        };
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = config.default_namespace.clone();
        let client = ClientBuilder::try_from(config)
            .map_err(|error| RoadError::Client(url.clone(), kubeconfig::why(&error)))?;
        let road = Inner {
            url,
            namespace,
            user: login.user,
            client: client.with_layer(&BOUNDS).build(),
            installed: args.kube_namespace.clone(),
            meant,
            place: Mutex::default(),
            broken: Broken::default(),
        };
        Ok((Self(Arc::new(road)), token))
    }

    /// The namespace of the context.
    pub(crate) fn namespace(&self) -> &str {
        &self.0.namespace
    }

    /// A connection to packetflix there, and the name that its certificate is for where it speaks TLS.
    pub(crate) async fn connect(&self) -> Result<(Forwarded, Option<String>), RoadError> {
        let known = self.place().clone();
        let place = match known {
            Some(place) => place,
            None => self.find().await?,
        };
        match self.forward(&place).await {
            Ok(stream) => {
                *self.place() = Some(place.clone());
                Ok((stream, place.tls))
            }
            Err(error) => {
                // It may be another by now.
                *self.place() = None;
                Err(error)
            }
        }
    }

    /// The port that is reached, once one was.
    pub(crate) fn port(&self) -> Option<PodPort> {
        let place = self.place();
        place.as_ref().map(|place| self.port_of(place))
    }

    /// What a connection has ended by that is used no more.
    pub(crate) fn broken(&self) -> Option<ForwardError> {
        self.0
            .broken
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn port_of(&self, place: &Place) -> PodPort {
        PodPort {
            namespace: self.0.installed.clone(),
            pod: place.pod.clone(),
            port: place.port,
            url: self.0.url.clone(),
        }
    }

    fn place(&self) -> std::sync::MutexGuard<'_, Option<Place>> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forward(&self, place: &Place) -> Result<Forwarded, RoadError> {
        let pods = self.pods(&self.0.installed);
        let what = format!(
            "forward to the pod {} in the namespace {}",
            place.pod, self.0.installed
        );
        let forwarder = self
            .ask(&what, pods.portforward(&place.pod, &[place.port]))
            .await?;
        let to = self.port_of(place);
        let refused = || ForwardError::Refused(to.clone(), "it opened nothing".to_owned());
        let broken = Arc::clone(&self.0.broken);
        Ok(Forwarded::new(forwarder, to.clone(), broken).ok_or_else(refused)?)
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.0.client.clone(), namespace)
    }

    async fn list(&self, namespace: &str, labels: Option<&str>) -> Result<Vec<Found>, RoadError> {
        let pods = self.pods(namespace);
        let what = format!("list pods in the namespace {namespace}");
        let mut which = ListParams {
            label_selector: labels.map(str::to_owned),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut found = Vec::new();
        for _ in 0..MAX_PAGES {
            let page = self.ask(&what, pods.list(&which)).await?;
            found.extend(page.items.iter().map(Found::of));
            which.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if which.continue_token.is_none() {
                return Ok(found);
            }
        }
        // Those that are not known may be on another node.
        Err(RoadError::TooManyPods(namespace.to_owned()))
    }

    async fn ask<T>(
        &self,
        what: &str,
        asking: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, RoadError> {
        let url = || self.0.url.clone();
        let whom = format!("the API server at {} to {what}", self.0.url);
        match timeout(PATIENCE, aloud(&whom, PATIENCE, asking)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.refusal(what, &error)),
            Err(_) => Err(RoadError::Late(url(), what.to_owned())),
        }
    }

    /// Why the API server does not do what it was asked.
    fn refusal(&self, what: &str, error: &kube::Error) -> RoadError {
        let url = self.0.url.clone();
        let why = root(error);
        match error {
            kube::Error::Api(status) => {
                let words: Vec<&str> = status.message.split_whitespace().collect();
                let message: String = words.join(" ").chars().take(MAX_SENTENCE).collect();
                RoadError::Refused {
                    url,
                    what: what.to_owned(),
                    code: status.code,
                    message: message.trim_end_matches('.').to_owned(),
                    remedy: self.remedy(what, status.code),
                }
            }
            kube::Error::SerdeError(_) | kube::Error::FromUtf8(_) | kube::Error::UpgradeConnection(_) => {
                RoadError::Other(url, why)
            }
            error if behind::<TooLong>(error).is_some() => RoadError::Other(url, why),
            error => match behind(error).cloned() {
                Some(
                    why @ rustls::Error::InvalidCertificate(
                        CertificateError::Expired
                        | CertificateError::ExpiredContext { .. }
                        | CertificateError::NotValidYet
                        | CertificateError::NotValidYetContext { .. },
                    ),
                ) => RoadError::Dated(url, why),
                Some(why @ rustls::Error::InvalidCertificate(_)) => RoadError::Untrusted(url, why),
                Some(rustls::Error::InvalidMessage(_)) => {
                    RoadError::Other(url, "it does not speak TLS".to_owned())
                }
                _ => RoadError::Unreachable(url, why),
            },
        }
    }

    /// What to do about a refusal.
    fn remedy(&self, what: &str, code: u16) -> String {
        match code {
            401 => format!(
                "It does not know what the user {} of the kubeconfig shows, or no longer: log in again, until `kubectl get pods` works",
                self.0.user
            ),
            403 if what.ends_with(&format!("in the namespace {}", self.0.installed)) => format!(
                "The Role packetflix-desk of that namespace gives the right to the user {}: docs/cluster.md says how it is bound",
                self.0.user
            ),
            403 => "Where there is no gateway, that right is needed to find the node".to_owned(),
            404 => "It is gone, or that is no API server of Kubernetes: try again".to_owned(),
            _ => "Try again; `kubectl get --raw /readyz` tells how it is".to_owned(),
        }
    }

    /// The gateway, or packetflix on the node of the pods that are meant.
    async fn find(&self) -> Result<Place, RoadError> {
        let installed = &self.0.installed;
        let gateways = self.list(installed, Some(&format!("{NAME}={GATEWAY}"))).await?;
        if let Some(pod) = gateways
            .iter()
            .filter(|pod| pod.is_ready)
            .min_by_key(|pod| &pod.name)
        {
            return self.place_of(pod, GATEWAY);
        }
        if !gateways.is_empty() {
            return Err(RoadError::GatewayNotReady {
                namespace: installed.clone(),
                pods: some_of(gateways.iter().map(|pod| &pod.name[..]).collect()),
            });
        }
        let nodes = self.list(installed, Some(&format!("{NAME}={NODE}"))).await?;
        let node = match &nodes[..] {
            [] => return Err(RoadError::NotInstalled(installed.clone())),
            [only] => only.node.clone(),
            _ => self.only_node(&nodes).await?,
        };
        let there: Vec<&Found> = nodes.iter().filter(|pod| pod.node == node).collect();
        match there.iter().find(|pod| pod.is_ready) {
            Some(pod) => self.place_of(pod, NODE),
            None => Err(RoadError::NotOnNode {
                node,
                pods: match there.is_empty() {
                    true => String::new(),
                    false => format!(" ({})", some_of(there.iter().map(|pod| &pod.name[..]).collect())),
                },
                namespace: installed.clone(),
            }),
        }
    }

    /// How a pod is spoken with.
    fn place_of(&self, pod: &Found, service: &str) -> Result<Place, RoadError> {
        // It becomes a part of a path, and of a sentence.
        if !is_subdomain(&pod.name) {
            let name: String = pod.name.chars().take(MAX_SENTENCE).collect();
            return Err(RoadError::PodName(self.0.url.clone(), name));
        }
        Ok(Place {
            pod: pod.name.clone(),
            port: pod.port,
            tls: pod
                .speaks_tls
                .then(|| format!("{service}.{}.svc", self.0.installed)),
        })
    }

    /// The node that all pods that are meant are on.
    async fn only_node(&self, nodes: &[Found]) -> Result<String, RoadError> {
        let Meant {
            namespace,
            labels,
            names,
        } = &self.0.meant;
        let several = |names: Vec<&str>| RoadError::SeveralNodes {
            installed: self.0.installed.clone(),
            nodes: some_of(names),
        };
        if namespace.is_none() && labels.is_none() && names.is_empty() {
            return Err(several(nodes.iter().map(|pod| &pod.node[..]).collect()));
        }
        let namespace = namespace.as_deref().unwrap_or(&self.0.namespace);
        let mut pods = self.list(namespace, labels.as_deref()).await?;
        pods.retain(|pod| names.is_empty() || names.contains(&pod.name));
        let mut meant: Vec<&str> = pods.iter().map(|pod| &pod.node[..]).collect();
        meant.retain(|node| !node.is_empty());
        meant.sort_unstable();
        meant.dedup();
        match meant[..] {
            [] => {
                let labels = labels.iter().map(|labels| format!("with the labels {labels}"));
                let names = names.iter().map(String::as_str).collect::<Vec<_>>();
                let names = (!names.is_empty()).then(|| some_of(names));
                let which: Vec<String> = names.into_iter().chain(labels).collect();
                Err(RoadError::NoPod {
                    namespace: namespace.to_owned(),
                    which: which.join(" "),
                })
            }
            [only] => Ok(only.to_owned()),
            _ => Err(several(meant)),
        }
    }
}

/// Names for a sentence, in their order.
fn some_of(mut names: Vec<&str>) -> String {
    names.sort_unstable();
    names.dedup();
    let rest = names.len().saturating_sub(MAX_NAMED);
    let shown = names[..names.len() - rest].join(", ");
    match rest {
        0 => shown,
        rest => format!("{shown} and {rest} more"),
    }
}

impl fmt::Debug for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Road").field(&self.0.url).finish()
    }
}

impl fmt::Display for Road {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.place() {
            Some(place) => write!(f, "{}/{} by {}", self.0.installed, place.pod, self.0.url),
            None => write!(f, "the cluster at {}", self.0.url),
        }
    }
}

impl PartialEq for Road {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Road {}

impl Found {
    fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let containers = spec.map(|spec| &spec.containers[..]).unwrap_or_default();
        let ours = containers
            .iter()
            .find(|one| one.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
        let port = ours.and_then(|one| one.ports.as_ref()?.first());
        let port = port.and_then(|port| u16::try_from(port.container_port).ok());
        // As its kubelet looks whether it is ready.
        let probe = ours.and_then(|one| one.readiness_probe.as_ref()?.http_get.as_ref());
        let node = spec.and_then(|spec| spec.node_name.as_deref());
        Self {
            name: pod.name_any(),
            node: node.unwrap_or_default().to_owned(),
            is_ready: is_ready(pod),
            port: port.unwrap_or(PORT),
            speaks_tls: probe.is_some_and(|probe| probe.scheme.as_deref() == Some("HTTPS")),
        }
    }
}

/// Whether a pod is ready, and is not ending.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_no_other_path() {
        for name in ["web-1", "a", "0.b-c.d"] {
            assert!(is_subdomain(name), "{name}");
        }
        for name in [
            "", ".", "..", "a/b", "a/../b", "a?x", "a%2fb", "A", "-a", "a-", "a..b", "a b", "é",
        ] {
            assert!(!is_subdomain(name) && parse_namespace(name).is_err(), "{name}");
        }
        assert!(!is_subdomain(&"x.".repeat(200)));
        assert!(parse_namespace("shop-1").is_ok() && parse_namespace("a.b").is_err());
        assert!(parse_namespace(&"x".repeat(64)).is_err());
    }

    #[test]
    fn sentences_name_some() {
        let names: Vec<String> = (0..10).map(|number| format!("n{number}")).collect();
        let all = names.iter().map(String::as_str).collect();
        assert_eq!(some_of(all), "n0, n1, n2, n3, n4, n5, n6, n7 and 2 more");
        assert_eq!(some_of(vec!["b", "a", "b"]), "a, b");
    }
}
