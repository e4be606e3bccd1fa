//! The API server, as far as it is asked for reviews.

use std::{
    fmt, io,
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{
            CertificateDer, InvalidDnsNameError, ServerName,
            pem::{self, PemObject as _},
        },
    },
};
use warp::http::Uri;

use crate::{
    access::{FileError, read_public},
    http_client::{Connection, RequestError},
};

/// Most bytes of an answer: a user has few groups, but nobody says how few.
const MAX_ANSWER_LEN: usize = 1 << 20;

/// Where the API server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiAddress {
    host: String,
    port: u16,
    is_encrypted: bool,
}

/// Why something is no address of an API server.
#[derive(Debug, thiserror::Error)]
pub enum ApiAddressError {
    /// It is no URL.
    #[error("{0} is no URL of an API server: it is https://HOST[:PORT]")]
    Url(String),
    /// Who is on the way would read tokens, and grant rights.
    #[error("{0}: an API server that is not on this host is spoken to over https only")]
    Plain(String),
    /// No pod, and no URL.
    #[error(
        "where the API server is, is not known: the service runs in no pod (KUBERNETES_SERVICE_HOST), and --kubernetes-api is \
         not given"
    )]
    Unknown,
}

impl FromStr for ApiAddress {
    type Err = ApiAddressError;

    fn from_str(text: &str) -> Result<Self, ApiAddressError> {
        let wrong = || ApiAddressError::Url(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let is_encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong());
        }
        let is_here = host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        if !is_encrypted && !is_here {
            return Err(ApiAddressError::Plain(text.to_owned()));
        }
        let usual = if is_encrypted { 443 } else { 80 };
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(usual),
            is_encrypted,
        })
    }
}

impl ApiAddress {
    /// As the kubelet tells it to each pod.
    ///
    /// # Errors
    /// When this is no pod.
    pub(crate) fn of_pod() -> Result<Self, ApiAddressError> {
        let told = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let host = told("KUBERNETES_SERVICE_HOST").ok_or(ApiAddressError::Unknown)?;
        let port = told("KUBERNETES_SERVICE_PORT").and_then(|port| port.parse().ok());
        Ok(Self {
            host,
            port: port.ok_or(ApiAddressError::Unknown)?,
            is_encrypted: true,
        })
    }

    /// Whether TLS is spoken with it.
    pub(super) fn is_encrypted(&self) -> bool {
        self.is_encrypted
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}", self.host, self.port),
            false => write!(f, "{scheme}://{}:{}", self.host, self.port),
        }
    }
}

/// What the service shows the API server, and by what it knows it. Both files are read each time: the kubelet writes new ones.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    /// CA certificates in PEM.
    pub(crate) ca: PathBuf,
    /// The service's own token.
    pub(crate) token: PathBuf,
}

/// Why the API server has said nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiServerError {
    #[error("the CA certificates in {} cannot be used", .0.display())]
    Ca(PathBuf, #[source] pem::Error),
    #[error("the service's own token cannot be read")]
    Token(#[source] FileError),
    #[error("it cannot be connected to")]
    Connect(#[source] io::Error),
    #[error("its host cannot be verified by that name")]
    Name(#[source] InvalidDnsNameError),
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(
        "it refuses the service's own request ({0}): its account needs the ClusterRole system:auth-delegator"
    )]
    Refused(u16),
    #[error("it answers with {0}")]
    Status(u16),
    #[error("its answer is not understood")]
    Answer(#[source] serde_json::Error),
    #[error("it does not answer in time")]
    Late,
    #[error("too much is to be asked of it")]
    Busy,
    #[error("which pods there are to ask it about, nobody says: no node answers")]
    NoPods,
}

/// A connection to the API server.
pub(super) struct ApiConnection {
    connection: Connection,
    token: Vec<u8>,
}

impl ApiConnection {
    /// Connects, and verifies that it is the API server.
    ///
    /// # Errors
    /// When it is not there, or another.
    pub(super) async fn open(
        address: &ApiAddress,
        credentials: &Credentials,
    ) -> Result<Self, ApiServerError> {
        let token = read_public(&credentials.token).map_err(ApiServerError::Token)?;
        let token = token.trim_ascii().to_vec();
        let place = (&address.host[..], address.port);
        let stream = TcpStream::connect(place).await.map_err(ApiServerError::Connect)?;
        let host = match address.host.contains(':') {
            true => format!("[{}]:{}", address.host, address.port),
            false => format!("{}:{}", address.host, address.port),
        };
        let connection = if address.is_encrypted {
            let name = ServerName::try_from(address.host.clone()).map_err(ApiServerError::Name)?;
            let connector = connector(&credentials.ca)?;
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(ApiServerError::Connect)?;
            Connection::open(stream, &host, MAX_ANSWER_LEN).await?
        } else {
            Connection::open(stream, &host, MAX_ANSWER_LEN).await?
        };
        Ok(Self { connection, token })
    }

    /// Has the API server make an object, which it answers with what it found.
    ///
    /// # Errors
    /// When it does not.
    pub(super) async fn create<T: DeserializeOwned>(
        &mut self,
        path: &str,
        object: &impl Serialize,
    ) -> Result<T, ApiServerError> {
        let body = serde_json::to_vec(object).map_err(ApiServerError::Answer)?;
        let answer = self.connection.post(path, &self.token, body).await?;
        match answer.status.as_u16() {
            200 | 201 => serde_json::from_slice(&answer.body).map_err(ApiServerError::Answer),
            status @ (401 | 403) => Err(ApiServerError::Refused(status)),
            status => Err(ApiServerError::Status(status)),
        }
    }
}

fn connector(ca: &Path) -> Result<TlsConnector, ApiServerError> {
    let failed = |error| ApiServerError::Ca(ca.to_owned(), error);
    let text = read_public(ca).map_err(ApiServerError::Token)?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates.map_err(failed)?);
    if roots.is_empty() {
        return Err(failed(pem::Error::NoItemsFound));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(ApiServerError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_sent_over_tls_or_on_this_host_only() {
        for (text, shown) in [
            ("https://10.96.0.1", "https://10.96.0.1:443"),
            ("https://[fd00::1]:6443/", "https://[fd00::1]:6443"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            (
                "https://kubernetes.default.svc",
                "https://kubernetes.default.svc:443",
            ),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), shown);
        }
        for wrong in [
            "http://10.96.0.1",
            "http://localhost",
            "ftp://x",
            "10.96.0.1",
            "https://x/y",
            "https://x?y",
            "",
        ] {
            assert!(wrong.parse::<ApiAddress>().is_err(), "{wrong}");
        }
    }
}
