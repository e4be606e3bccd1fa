//! What the gateway's flags amount to.

use std::{path::PathBuf, sync::Arc, time::Duration};

use packetflix_client::server::{Address, ServerError};

use super::node::MAX_NODES;
use crate::{
    access::{FileError, read_public},
    cli::GatewayArgs,
    config::{self, ConfigError, Kubernetes},
    kubernetes::{ApiAddressError, Finder, ServiceName, ServiceNameError},
};

/// Where a pod finds the namespace that it is in.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Most bytes of a node's name: that of a Kubernetes node is a DNS name.
const MAX_NAME_LEN: usize = 253;

/// How the gateway runs.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Who is let in, and how much they may have.
    pub frontend: Arc<config::Frontend>,
    pub(crate) nodes: Whereabouts,
    /// File of the token that is shown to nodes.
    pub(crate) token_file: Option<PathBuf>,
    /// Certificates of the CAs that nodes' certificates are of.
    pub(crate) cacert: Option<PathBuf>,
    /// How long a node may take to answer.
    pub(crate) timeout: Duration,
}

/// Where the nodes are.
#[derive(Clone, Debug)]
pub(crate) enum Whereabouts {
    /// By their names.
    Named(Vec<(String, Address)>),
    /// Where they are found.
    Found {
        finder: Finder,
        /// Whether TLS is spoken with them.
        is_encrypted: bool,
    },
}

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GatewayConfigError {
    /// A flag that servers have, too.
    #[error(transparent)]
    Frontend(#[from] ConfigError),
    /// There is nothing to be a gateway to.
    #[error("there are no nodes: name each with --node NAME=URL, or their Service with --nodes-service NAME")]
    NoNodes,
    /// It is no Service.
    #[error("--nodes-service")]
    Service(#[from] ServiceNameError),
    /// Nobody could be asked for the nodes of a Service.
    #[error("--nodes-service")]
    Kubernetes(#[from] ApiAddressError),
    /// Of which namespace?
    #[error("--nodes-service: this is no pod, so that the namespace has to be said: NAMESPACE/NAME")]
    Namespace(#[source] FileError),
    /// There are more than can be asked.
    #[error("--node names {0} nodes, and {MAX_NODES} is the most")]
    TooManyNodes(usize),
    /// It is not what the flag takes.
    #[error("--node {0}: write NAME=URL, as in web-1=https://10.0.0.7:5001")]
    Node(String),
    /// It cannot be a name.
    #[error("--node {0}: a name has letters, digits, dots, dashes and underscores, {MAX_NAME_LEN} at most")]
    Name(String),
    /// Whose targets would be meant?
    #[error("--node names {0} twice")]
    Twice(String),
    /// It is nowhere.
    #[error("--node {name}: it is reached by http or https")]
    Scheme {
        /// The node.
        name: String,
    },
    /// It is no URL.
    #[error("--node {name}")]
    Url {
        /// The node.
        name: String,
        /// Why.
        source: ServerError,
    },
}

impl TryFrom<&GatewayArgs> for GatewayConfig {
    type Error = GatewayConfigError;

    fn try_from(args: &GatewayArgs) -> Result<Self, GatewayConfigError> {
        let frontend = config::Frontend::new(&args.frontend, usize::from(u16::MAX))?;
        Ok(Self {
            frontend: Arc::new(frontend),
            nodes: match &args.nodes_service {
                None => Whereabouts::Named(nodes(&args.node)?),
                Some(service) => Whereabouts::Found {
                    finder: finder(args, service)?,
                    is_encrypted: !args.nodes_plain,
                },
            },
            token_file: args.node_token_file.clone(),
            cacert: args.node_cacert.clone(),
            timeout: args.node_timeout,
        })
    }
}

fn finder(args: &GatewayArgs, service: &str) -> Result<Finder, GatewayConfigError> {
    let ServiceName { namespace, name } = service.parse()?;
    let own_namespace = || {
        let text = read_public(OWN_NAMESPACE.as_ref()).map_err(GatewayConfigError::Namespace)?;
        Ok::<_, GatewayConfigError>(String::from_utf8_lossy(text.trim_ascii()).into_owned())
    };
    let Kubernetes { address, credentials } = Kubernetes::of(&args.frontend)?;
    Ok(Finder {
        address,
        credentials,
        namespace: namespace.map_or_else(own_namespace, Ok)?,
        service: name,
    })
}

fn nodes(given: &[String]) -> Result<Vec<(String, Address)>, GatewayConfigError> {
    let mut nodes: Vec<(String, Address)> = Vec::new();
    match given.len() {
        0 => return Err(GatewayConfigError::NoNodes),
        1..=MAX_NODES => {}
        count => return Err(GatewayConfigError::TooManyNodes(count)),
    }
    for text in given {
        let (name, url) = text
            .split_once('=')
            .ok_or_else(|| GatewayConfigError::Node(text.clone()))?;
        if !is_name(name) {
            return Err(GatewayConfigError::Name(name.to_owned()));
        }
        if nodes.iter().any(|(other, _)| other == name) {
            return Err(GatewayConfigError::Twice(name.to_owned()));
        }
        let name = name.to_owned();
        match url.parse() {
            Ok(address @ Address::Tcp { .. }) => nodes.push((name, address)),
            Ok(_) => return Err(GatewayConfigError::Scheme { name }),
            Err(source) => return Err(GatewayConfigError::Url { name, source }),
        }
    }
    Ok(nodes)
}

/// Whether this may be the name of a node: it stands in labels of metrics, in names of interfaces and in words of selections.
pub(super) fn is_name(name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=MAX_NAME_LEN).contains(&name.len()) && name.bytes().all(is_of_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(nodes: &[&str]) -> Result<Vec<(String, Address)>, GatewayConfigError> {
        let nodes: Vec<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
        super::nodes(&nodes)
    }

    #[test]
    fn nodes_have_names_and_addresses() {
        let nodes = given(&["web-1=http://10.0.0.7:5001", "db.example=https://[fd00::1]:5001"]).unwrap();
        let shown: Vec<String> = nodes
            .iter()
            .map(|(name, address)| format!("{name} {address}"))
            .collect();
        assert_eq!(
            shown,
            ["web-1 http://10.0.0.7:5001", "db.example https://[fd00::1]:5001"]
        );
        assert!(matches!(given(&[]), Err(GatewayConfigError::NoNodes)));
        assert!(matches!(given(&["http://x"]), Err(GatewayConfigError::Node(_))));
        for name in ["", "a b", "a/b", "a\"", "ü", &"x".repeat(254)] {
            let error = given(&[&format!("{name}=http://x")]).unwrap_err();
            assert!(matches!(error, GatewayConfigError::Name(_)), "{name}");
        }
        let twice = given(&["a=http://x", "a=http://y"]);
        assert!(matches!(twice, Err(GatewayConfigError::Twice(_))));
        assert!(matches!(
            given(&["a=unix:/x"]),
            Err(GatewayConfigError::Scheme { .. })
        ));
        assert!(matches!(given(&["a=x"]), Err(GatewayConfigError::Url { .. })));
    }
}
