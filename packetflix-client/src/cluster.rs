//! The road into a cluster of Kubernetes: through its API server, by what a kubeconfig says, and by port-forward to packetflix'
//! pods there.
//!
//! That is the gateway's, or, where there is none, that on the node of the pods that are meant.

use std::{
    fmt,
    future::{Ready, ready},
    panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use hyper::header::{AUTHORIZATION, HeaderValue};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{ListParams, Portforwarder},
    client::{Body, ConfigExt as _},
    config::{KubeConfigOptions, KubeconfigError},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    time::timeout,
};
use tokio_rustls::rustls;
use tower_layer::Layer as _;
use tower_service::Service;

use crate::server::{ServerError, Token};

/// How pods of the gateway and of nodes are labelled.
const NAME: &str = "app.kubernetes.io/name";
const GATEWAY: &str = "packetflix-gateway";
const NODE: &str = "packetflix";

/// Port of a pod that names none.
const PORT: u16 = 5001;

/// How long the API server may take for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// Most pods that are looked at.
const MAX_PODS: u32 = 10_000;

/// Most nodes that a sentence names.
const MAX_NAMED: usize = 8;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
        default_value = "packetflix"
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
    /// Where packetflix is installed.
    installed: String,
    meant: Meant,
    /// The pod that is used, until it cannot be reached.
    place: Mutex<Option<Place>>,
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
    #[error("the kubeconfig does not lead to a cluster")]
    Config(#[source] Box<KubeconfigError>),
    /// What it shows cannot be had.
    #[error("the API server of the cluster cannot be asked")]
    Client(#[source] Box<kube::Error>),
    /// It does not let in, or not do that.
    #[error("the API server at {url} refuses ({code}): {message}")]
    Refused {
        /// Where it is.
        url: String,
        /// The status.
        code: u16,
        /// In its words.
        message: String,
    },
    /// It is not known to be the one that is meant.
    #[error(
        "the certificate of the API server at {0} is not trusted: the kubeconfig says of which CA (certificate-authority) and for which \
         name (tls-server-name) it has to be"
    )]
    Untrusted(String, #[source] rustls::Error),
    /// It does not answer.
    #[error("the API server at {0} cannot be reached")]
    Unreachable(String, #[source] Box<kube::Error>),
    /// It does not answer in time.
    #[error("the API server at {0} does not answer within {seconds} s", seconds = PATIENCE.as_secs())]
    Late(String),
    /// There is nothing to reach.
    #[error(
        "there is no packetflix in the namespace {0}: docs/cluster.md says how it is installed, and --kube-namespace names another"
    )]
    NotInstalled(String),
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
    #[error("there is no such pod in the namespace {0}, or none that runs")]
    NoPod(String),
    /// Nothing captures there.
    #[error("there is no packetflix that is ready on the node {0}")]
    NotOnNode(String),
    /// The pod refuses the connection.
    #[error("the pod {0} takes no connection")]
    Forward(String),
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
    /// What the API server would be shown is no token.
    #[error(
        "the token of the kubeconfig's user, which stands there or is what a plugin gives, has a character that no token has, such as \
         a line break"
    )]
    NotShown,
    /// There is nothing to show.
    #[error(
        "the kubeconfig shows the API server no token, but a certificate or a password, which packetflix never sees: show a token of \
         the cluster with --token-file, such as `kubectl create token NAME` prints"
    )]
    NoToken,
}

impl Road {
    /// The road into the cluster of a context, and the token with which one is known there, if it is one.
    ///
    /// # Errors
    /// When the kubeconfig does not lead there.
    pub(crate) async fn into_cluster(
        args: &ClusterArgs,
        meant: Meant,
    ) -> Result<(Self, Option<Token>), ClusterError> {
        let options = KubeConfigOptions {
            context: args.context.clone(),
            ..KubeConfigOptions::default()
        };
        let mut config = kube::Config::from_kubeconfig(&options)
            .await
            .map_err(|error| RoadError::Config(Box::new(error)))?;
        config.connect_timeout = Some(PATIENCE);
        config.default_retry = false;
        let token = bearer(&config).await?;
        let token = token
            .map(|token| Token::parse(&token, "the kubeconfig"))
            .transpose()?;
        let road = Inner {
            url: config.cluster_url.to_string().trim_end_matches('/').to_owned(),
            namespace: config.default_namespace.clone(),
            client: showing(|| config.try_into())?,
            installed: args.kube_namespace.clone(),
            meant,
            place: Mutex::default(),
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

    fn place(&self) -> std::sync::MutexGuard<'_, Option<Place>> {
        self.0.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn forward(&self, place: &Place) -> Result<Forwarded, RoadError> {
        let pods = self.pods(&self.0.installed);
        let mut forwarder = self.ask(pods.portforward(&place.pod, &[place.port])).await?;
        let stream = forwarder.take_stream(place.port);
        let stream = stream.ok_or_else(|| RoadError::Forward(place.pod.clone()))?;
        Ok(Forwarded { stream, forwarder })
    }

    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.0.client.clone(), namespace)
    }

    async fn list(&self, namespace: &str, labels: Option<&str>) -> Result<Vec<Pod>, RoadError> {
        let which = ListParams {
            label_selector: labels.map(str::to_owned),
            limit: Some(MAX_PODS),
            ..ListParams::default()
        };
        Ok(self.ask(self.pods(namespace).list(&which)).await?.items)
    }

    async fn ask<T>(&self, asking: impl Future<Output = Result<T, kube::Error>>) -> Result<T, RoadError> {
        let url = || self.0.url.clone();
        match timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(kube::Error::Api(status))) => Err(RoadError::Refused {
                url: url(),
                code: status.code,
                message: status.message,
            }),
            Ok(Err(error)) => Err(match distrust(&error) {
                Some(why) => RoadError::Untrusted(url(), why),
                None => RoadError::Unreachable(url(), Box::new(error)),
            }),
            Err(_) => Err(RoadError::Late(url())),
        }
    }

    /// The gateway, or packetflix on the node of the pods that are meant.
    async fn find(&self) -> Result<Place, RoadError> {
        let installed = &self.0.installed;
        let gateways = self.list(installed, Some(&format!("{NAME}={GATEWAY}"))).await?;
        if let Some(pod) = gateways
            .iter()
            .filter(|pod| is_ready(pod))
            .min_by_key(|pod| pod.name_any())
        {
            return Ok(place(pod, GATEWAY, installed));
        }
        let nodes = self.list(installed, Some(&format!("{NAME}={NODE}"))).await?;
        let node = match &nodes[..] {
            [] => return Err(RoadError::NotInstalled(installed.clone())),
            [only] => node_of(only).to_owned(),
            _ => self.only_node(&nodes).await?,
        };
        let there = nodes.iter().find(|pod| node_of(pod) == node && is_ready(pod));
        let pod = there.ok_or(RoadError::NotOnNode(node))?;
        Ok(place(pod, NODE, installed))
    }

    /// The node that all pods that are meant are on.
    async fn only_node(&self, nodes: &[Pod]) -> Result<String, RoadError> {
        let Meant {
            namespace,
            labels,
            names,
        } = &self.0.meant;
        let several = |mut names: Vec<&str>| {
            names.sort_unstable();
            names.dedup();
            let rest = names.len().saturating_sub(MAX_NAMED);
            let mut nodes = names[..names.len() - rest].join(", ");
            if rest > 0 {
                nodes += &format!(" and {rest} more");
            }
            RoadError::SeveralNodes {
                installed: self.0.installed.clone(),
                nodes,
            }
        };
        if namespace.is_none() && labels.is_none() && names.is_empty() {
            return Err(several(nodes.iter().map(node_of).collect()));
        }
        let namespace = namespace.as_deref().unwrap_or(&self.0.namespace);
        let mut pods = self.list(namespace, labels.as_deref()).await?;
        pods.retain(|pod| names.is_empty() || names.contains(&pod.name_any()));
        let mut meant: Vec<&str> = pods.iter().map(node_of).filter(|node| !node.is_empty()).collect();
        meant.sort_unstable();
        meant.dedup();
        match meant[..] {
            [] => Err(RoadError::NoPod(namespace.to_owned())),
            [only] => Ok(only.to_owned()),
            _ => Err(several(meant)),
        }
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

/// What is wrong with the certificate of the API server, if that is why it is not asked.
fn distrust(error: &kube::Error) -> Option<rustls::Error> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(why @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(why.clone());
        }
        cause = match error.downcast_ref::<std::io::Error>() {
            // Its source would be that of what it is about.
            Some(error) => error.get_ref().map(|error| error as _),
            None => error.source(),
        };
    }
    None
}

/// Whether a pod is ready, and is not ending.
fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_of(pod: &Pod) -> &str {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    node.unwrap_or_default()
}

/// How a pod is spoken with: as its kubelet does to look whether it is ready.
fn place(pod: &Pod, service: &str, namespace: &str) -> Place {
    let containers = pod
        .spec
        .as_ref()
        .map(|spec| &spec.containers[..])
        .unwrap_or_default();
    let ours = containers
        .iter()
        .find(|one| one.ports.as_ref().is_some_and(|ports| !ports.is_empty()));
    let port = ours.and_then(|one| one.ports.as_ref()?.first());
    let port = port.and_then(|port| u16::try_from(port.container_port).ok());
    let probe = ours.and_then(|one| one.readiness_probe.as_ref()?.http_get.as_ref());
    let is_encrypted = probe.is_some_and(|probe| probe.scheme.as_deref() == Some("HTTPS"));
    Place {
        pod: pod.name_any(),
        port: port.unwrap_or(PORT),
        tls: is_encrypted.then(|| format!("{service}.{namespace}.svc")),
    }
}

fn not_asked(error: kube::Error) -> RoadError {
    RoadError::Client(Box::new(error))
}

/// Makes what shows a token to the API server. `tower_http` panics there where the token cannot stand in a header, and what a plugin
/// gives is known nowhere before.
fn showing<T>(make: impl FnOnce() -> Result<T, kube::Error>) -> Result<T, ClusterError> {
    let hook = take_hook();
    set_hook(Box::new(|_| {}));
    let made = catch_unwind(AssertUnwindSafe(make));
    set_hook(hook);
    Ok(made.map_err(|_| ClusterError::NotShown)?.map_err(not_asked)?)
}

/// The token that a request to the API server would show: that of the kubeconfig, of a file or of a plugin that it names.
async fn bearer(config: &kube::Config) -> Result<Option<String>, ClusterError> {
    /// Gives what a request would show.
    #[derive(Clone)]
    struct Show;

    impl Service<hyper::Request<Body>> for Show {
        type Response = hyper::Response<Body>;
        type Error = BoxError;
        type Future = Ready<Result<Self::Response, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: hyper::Request<Body>) -> Self::Future {
            let mut shown = hyper::Response::new(Body::empty());
            *shown.headers_mut() = request.headers().clone();
            ready(Ok(shown))
        }
    }

    let said = serde_json::to_value(&config.auth_info).unwrap_or_default();
    if said["token"]
        .as_str()
        .is_some_and(|token| HeaderValue::from_str(token).is_err())
    {
        return Err(ClusterError::NotShown);
    }
    let Some(layer) = showing(|| config.auth_layer())? else {
        return Ok(None);
    };
    let request = hyper::Request::new(Body::empty());
    let shown = layer
        .layer(Show)
        .call(request)
        .await
        .map_err(|error| not_asked(kube::Error::Service(error)))?;
    let token = shown
        .headers()
        .get(AUTHORIZATION)
        .and_then(|shown| shown.to_str().ok());
    Ok(token
        .and_then(|shown| shown.strip_prefix("Bearer "))
        .map(str::to_owned))
}

/// A connection by port-forward.
pub(crate) struct Forwarded {
    stream: DuplexStream,
    forwarder: Portforwarder,
}

impl Drop for Forwarded {
    fn drop(&mut self) {
        self.forwarder.abort();
    }
}

impl AsyncRead for Forwarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Forwarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn token_that_is_none_is_refused() {
        let plugin = |token: &str| {
            let said = json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": { "token": token } });
            json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": "echo", "args": [said.to_string()] } })
        };
        for (user, expected) in [
            (json!({ "token": "abc" }), Some("abc")),
            (plugin("abc"), Some("abc")),
            (json!({ "token": "a\u{1}c" }), None),
            (json!({ "token": "abc\n" }), None),
            (plugin("a\u{1}c"), None),
        ] {
            let mut config = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
            config.auth_info = serde_json::from_value(user.clone()).unwrap();
            let shown = bearer(&config).await;
            match expected {
                Some(token) => assert_eq!(shown.unwrap().as_deref(), Some(token), "{user}"),
                None => assert_eq!(
                    shown.unwrap_err().to_string(),
                    "the token of the kubeconfig's user, which stands there or is what a plugin gives, has a character that no \
                     token has, such as a line break",
                    "{user}"
                ),
            }
        }
    }
}
