//! Asks a running service whether it lives, as one who watches it does.

use std::{fmt, io, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        self, ClientConfig, DigitallySignedStruct, SignatureScheme,
        client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, ServerName, UnixTime},
    },
};

use crate::{
    config::{Config, ListenAddress},
    error::chain,
    http_client::{Connection, RequestError},
};

/// How long one of its places may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Most bytes of the answer.
const MAX_LEN: usize = 4096;

/// Why a service is not taken to live: what was found at each of its places.
#[derive(Debug, thiserror::Error)]
#[error("no service answers: {0}")]
pub struct NotLive(String);

/// Why one of its places does not answer.
#[derive(Debug, thiserror::Error)]
enum Silent {
    #[error("it cannot be connected to")]
    Connect(#[source] io::Error),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("it answers with {0}")]
    Status(u16),
    #[error("it does not answer in {} s", PATIENCE.as_secs())]
    Late,
}

/// Whether a service answers that was started with these settings: at one of the places where it listens.
///
/// # Errors
/// When it does not.
pub async fn live(config: &Config) -> Result<(), NotLive> {
    let mut found = Vec::new();
    // The socket that nobody asked for may be another service's.
    let is_asked_for = |address: &&ListenAddress| !matches!(address, ListenAddress::OwnSocket(_));
    for address in config.frontend.listen.iter().filter(is_asked_for) {
        let answered = timeout(PATIENCE, ask(address, config.frontend.tls.is_some())).await;
        match answered.unwrap_or(Err(Silent::Late)) {
            Ok(()) => return Ok(()),
            Err(error) => found.push(format!("{address}: {}", chain(&error))),
        }
    }
    Err(NotLive(found.join("; ")))
}

async fn ask(address: &ListenAddress, is_encrypted: bool) -> Result<(), Silent> {
    let (host, port) = match address {
        ListenAddress::Unix(path) | ListenAddress::OwnSocket(path) => {
            return healthz(UnixStream::connect(path).await.map_err(Silent::Connect)?).await;
        }
        ListenAddress::All(port) | ListenAddress::Loopback(port) => ("127.0.0.1", *port),
        ListenAddress::Host(host, port) => (&**host, *port),
    };
    let stream = TcpStream::connect((host, port)).await.map_err(Silent::Connect)?;
    if !is_encrypted {
        return healthz(stream).await;
    }
    let name = ServerName::try_from("localhost").map_err(|error| Silent::Connect(io::Error::other(error)))?;
    let encrypted = connector().map_err(|error| Silent::Connect(io::Error::other(error)))?;
    let encrypted = encrypted.connect(name, stream).await.map_err(Silent::Connect)?;
    healthz(encrypted).await
}

async fn healthz(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), Silent> {
    let mut connection = Connection::open(stream, "localhost", MAX_LEN).await?;
    match connection.get("/healthz").await?.status.as_u16() {
        200 => Ok(()),
        status => Err(Silent::Status(status)),
    }
}

fn connector() -> Result<TlsConnector, rustls::Error> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes any certificate: nothing is told to whoever shows it, nor believed but that it answers.
struct Anyone(Arc<CryptoProvider>);

impl fmt::Debug for Anyone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Anyone")
    }
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
