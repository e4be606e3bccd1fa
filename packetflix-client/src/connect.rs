//! A connection to a server.

use std::{
    io,
    path::PathBuf,
    pin::Pin,
    process::Stdio,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Join, ReadBuf, join},
    net::TcpStream,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer, ServerName,
            pem::{self, PemObject as _},
        },
    },
};

use crate::{
    cluster::{ForwardError, Road, RoadError},
    error::behind,
    server::{Address, Server, Trust},
    terminal::aloud,
};

/// How long a connection may take until it stands.
const PATIENCE: Duration = Duration::from_secs(10);

/// What bytes go over.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection that stands.
pub type Connection = Box<dyn Transport>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody is there.
    #[error("no server answers at {0}: is it running, and is that its address?")]
    Unreachable(Address, #[source] io::Error),
    /// Nobody answers.
    #[error("no server answers at {0} within {seconds} s", seconds = PATIENCE.as_secs())]
    Late(Address),
    /// It does not speak TLS.
    #[error("the server at {0} does not speak TLS")]
    Plain(Address),
    /// Its certificate is not trusted.
    #[error("the certificate of {0} is not trusted")]
    Untrusted(Address, #[source] rustls::Error),
    /// Its certificate is another's.
    #[error("the certificate of {0} is for another name")]
    OtherName(Address, #[source] rustls::Error),
    /// Its certificate is too old, or too new.
    #[error("the certificate of {0} is not valid today: have it renewed, or set the clock of this machine")]
    Dated(Address, #[source] rustls::Error),
    /// TLS fails otherwise.
    #[error("TLS with {0} fails")]
    Tls(Address, #[source] io::Error),
    /// A file for TLS cannot be used.
    #[error("{} cannot be used", .0.display())]
    File(PathBuf, #[source] pem::Error),
    /// The key does not fit the certificate.
    #[error("the certificate and key of --cert and --key cannot be used")]
    Identity(#[source] rustls::Error),
    /// There is no CA in a file, or on this machine.
    #[error("there is no CA to trust in {0}")]
    NoAuthority(String),
    /// It cannot have a certificate.
    #[error("{0} is no name that a certificate could have")]
    Name(String),
    /// There is no ssh.
    #[error("ssh cannot be started")]
    Ssh(#[source] io::Error),
    /// There is no road into the cluster.
    #[error(transparent)]
    Road(#[from] RoadError),
    /// This system has no Unix sockets.
    #[error("this system reaches no Unix sockets: name the server by http:// or https://")]
    NoUnixSockets,
}

impl ConnectError {
    /// What to do about it at the command line of a client.
    pub(crate) fn remedy(&self) -> Option<&'static str> {
        let is_pod = |address: &Address| matches!(address, Address::Cluster(_));
        Some(match self {
            Self::Plain(address) if is_pod(address) => {
                "The pod's readiness probe says that it does (scheme: HTTPS): have it say HTTP, or packetflix speak TLS there"
            }
            Self::Plain(_) => "Try http:// in the place of https://",
            Self::Untrusted(..) => "--cacert names the file of the CA that issued it",
            Self::OtherName(address, _) if is_pod(address) => {
                "That of a pod has to be for the name of its Service, as packetflix-gateway.NAMESPACE.svc"
            }
            Self::OtherName(..) => "Call the server by one that it has",
            _ => return None,
        })
    }
}

/// Connects to a server, and speaks TLS with it where its address says so.
///
/// # Errors
/// When it cannot be reached or is not to be trusted.
pub async fn connect(server: &Server) -> Result<Connection, ConnectError> {
    let address = &server.address;
    // It takes several steps, each of which has its time, and a sentence of its own.
    if let Address::Cluster(road) = address {
        return open_in_cluster(road, server).await;
    }
    timeout(PATIENCE, open(server))
        .await
        .unwrap_or_else(|_| Err(ConnectError::Late(address.clone())))
}

async fn open_in_cluster(road: &Road, server: &Server) -> Result<Connection, ConnectError> {
    let (stream, name) = road.connect().await?;
    let Some(name) = name else {
        return Ok(Box::new(stream));
    };
    let port = stream.port().clone();
    let encrypting = aloud(&port, PATIENCE, encrypt(stream, &name, server));
    timeout(PATIENCE, encrypting)
        .await
        .unwrap_or_else(|_| Err(RoadError::Silent(port.clone(), PATIENCE.as_secs()).into()))
}

async fn open(server: &Server) -> Result<Connection, ConnectError> {
    let address = &server.address;
    let unreachable = |error| ConnectError::Unreachable(address.clone(), error);
    match address {
        Address::Tcp { host, port, tls, .. } => {
            let stream = TcpStream::connect((&host[..], *port))
                .await
                .map_err(unreachable)?;
            // Requests and close frames are small, and wait for nothing.
            stream.set_nodelay(true).map_err(unreachable)?;
            match tls {
                true => encrypt(stream, host, server).await,
                false => Ok(Box::new(stream)),
            }
        }
        #[cfg(unix)]
        Address::Unix(path) => {
            let stream = tokio::net::UnixStream::connect(path).await.map_err(unreachable)?;
            Ok(Box::new(stream))
        }
        Address::Ssh { destination, port } => dial_by_ssh(destination, *port),
        Address::Local(server) => server.connect().map_err(unreachable),
        Address::Cluster(road) => open_in_cluster(road, server).await,
        #[cfg(not(unix))]
        Address::Unix(_) => Err(ConnectError::NoUnixSockets),
    }
}

/// Has the system's ssh reach the server of another host. What it asks and says goes to people, by the terminal.
fn dial_by_ssh(destination: &str, port: Option<u16>) -> Result<Connection, ConnectError> {
    let mut ssh = ssh();
    if let Some(port) = port {
        ssh.args(["-p", &port.to_string()]);
    }
    ssh.args(["-T", "--", destination, "packetflix dial-stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    let mut ssh = ssh.spawn().map_err(ConnectError::Ssh)?;
    match (ssh.stdout.take(), ssh.stdin.take()) {
        (Some(output), Some(input)) => Ok(Box::new(Dialed {
            stream: join(output, input),
            _ssh: ssh,
        })),
        _ => Err(ConnectError::Ssh(io::ErrorKind::BrokenPipe.into())),
    }
}

/// The system's ssh. What ends a capture is not for it: that asks for the rest of the stream, which comes by ssh. It ends when
/// its standard input does.
fn ssh() -> Command {
    if cfg!(windows) {
        return Command::new("ssh");
    }
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' INT TERM HUP; exec ssh \"$@\"", "ssh"]);
    shell
}

/// A connection by ssh, which ends with it.
struct Dialed {
    stream: Join<ChildStdout, ChildStdin>,
    _ssh: Child,
}

impl AsyncRead for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

async fn encrypt(
    stream: impl Transport + 'static,
    host: &str,
    server: &Server,
) -> Result<Connection, ConnectError> {
    let name = server.trust.name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name.clone()).map_err(|_| ConnectError::Name(name))?;
    let connector = TlsConnector::from(Arc::new(config(&server.trust)?));
    let stream = connector
        .connect(name, stream)
        .await
        .map_err(|error| tls_error(&server.address, error))?;
    Ok(Box::new(stream))
}

/// What the failure of a handshake means.
fn tls_error(address: &Address, error: io::Error) -> ConnectError {
    use rustls::CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
    };

    if let Some(error) = behind::<ForwardError>(&error) {
        return RoadError::from(error.clone()).into();
    }
    let address = address.clone();
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::Plain(address),
        Some(cause @ rustls::Error::InvalidCertificate(why)) => match why {
            NotValidForName | NotValidForNameContext { .. } => {
                ConnectError::OtherName(address, cause.clone())
            }
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. } => {
                ConnectError::Dated(address, cause.clone())
            }
            _ => ConnectError::Untrusted(address, cause.clone()),
        },
        _ => ConnectError::Tls(address, error),
    }
}

fn config(trust: &Trust) -> Result<ClientConfig, ConnectError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(ConnectError::Identity)?
        .with_root_certificates(authorities(trust)?);
    let Some((certificate, key)) = &trust.identity else {
        return Ok(builder.with_no_client_auth());
    };
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| ConnectError::File(key.clone(), error))?;
    builder
        .with_client_auth_cert(certificates(certificate)?, key)
        .map_err(ConnectError::Identity)
}

/// The CAs that are trusted.
fn authorities(trust: &Trust) -> Result<RootCertStore, ConnectError> {
    let (certificates, origin) = match &trust.cacert {
        Some(file) => (certificates(file)?, file.display().to_string()),
        None => (
            rustls_native_certs::load_native_certs().certs,
            "the store of this machine: --cacert names a file of some".to_owned(),
        ),
    };
    let mut authorities = RootCertStore::empty();
    authorities.add_parsable_certificates(certificates);
    match authorities.is_empty() {
        true => Err(ConnectError::NoAuthority(origin)),
        false => Ok(authorities),
    }
}

fn certificates(file: &PathBuf) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| ConnectError::File(file.clone(), error))
}
