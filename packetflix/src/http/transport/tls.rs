//! TLS: certificates, and the names in those of clients.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{
            CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem, pem::PemObject as _,
        },
        server::{VerifierBuilderError, WebPkiClientVerifier, danger::ClientCertVerifier},
    },
    server::TlsStream,
};
use webpki::EndEntityCert;

use super::chain::BoundedVerifier;
use crate::{
    access::{FileError, Followed, Reloaded, read_public, read_secret},
    config::TlsFiles,
    service::Certificate,
    text::is_shown,
};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The only protocol that is spoken behind it (RFC 7301).
const PROTOCOL: &[u8] = b"http/1.1";

/// Name of a client whose certificate has none.
const UNNAMED: &str = "unnamed";
/// Most bytes of a client's name.
const MAX_NAME_LEN: usize = 64;

/// Why TLS cannot be spoken with these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file has something else than PEM.
    #[error("{} is no PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pem::Error,
    },
    /// A file has no certificate.
    #[error("{} has no certificate", .0.display())]
    NoCertificate(PathBuf),
    /// The certificate of a CA cannot be used.
    #[error("{} has a certificate that no CA can have", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// A file has no revocation list.
    #[error("{} has no revocation list", .0.display())]
    NoRevocationList(PathBuf),
    /// Clients cannot be verified.
    #[error("client certificates cannot be verified")]
    Verifier(#[from] VerifierBuilderError),
    /// The certificate and its key do not go together, or are of an unknown kind.
    #[error("the certificate and its key cannot be used")]
    Certificate(#[from] rustls::Error),
}

/// What speaks TLS with clients.
pub(crate) struct Tls(Arc<Reloaded<Setup>>);

/// What the files amount to.
struct Setup {
    config: Arc<ServerConfig>,
    /// Judges the certificates of clients.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// A certificate that a client has shown, with those between it and its CA.
struct ClientCertificate {
    name: Arc<str>,
    chain: Arc<[CertificateDer<'static>]>,
    setup: Arc<Reloaded<Setup>>,
}

impl Certificate for ClientCertificate {
    fn name(&self) -> &str {
        &self.name
    }

    /// By the files as they are now.
    fn is_trusted(&self) -> bool {
        let setup = self.setup.current();
        let (Some(verifier), Some((own, between))) = (&setup.verifier, self.chain.split_first()) else {
            return false;
        };
        let verified = verifier.verify_client_cert(own, between, UnixTime::now());
        verified
            .inspect_err(
                |error| tracing::debug!(name = &*self.name, %error, "a client certificate is not trusted"),
            )
            .is_ok()
    }
}

impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ClientCertificate").field(&self.name).finish()
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Slow(#[from] Elapsed),
    #[error("the TLS handshake failed")]
    Failed(#[from] std::io::Error),
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When TLS cannot be spoken with them.
    pub(crate) fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        let paths = [&files.certificate, &files.key]
            .into_iter()
            .chain(&files.client_ca)
            .chain(&files.client_crl);
        let paths = paths.cloned().collect();
        let files = files.clone();
        let load = move || Setup::load(&files);
        Ok(Self(Arc::new(Reloaded::open("TLS certificate", paths, load)?)))
    }

    /// The files, to tell how old what was read of them is.
    pub(crate) fn files(&self) -> Arc<dyn Followed> {
        Arc::clone(&self.0) as Arc<dyn Followed>
    }

    /// Follows the files; never ends.
    pub(crate) async fn follow(&self) {
        Arc::clone(&self.0).follow().await;
    }

    /// Does the server's part of a handshake; gives the client's certificate, if it has shown one.
    ///
    /// # Errors
    /// When it fails, or takes too long.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Arc<dyn Certificate>>), HandshakeError> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0.current().config));
        let stream = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
        let (_, connection) = stream.get_ref();
        let certificates = connection.peer_certificates().unwrap_or_default();
        let certificate = certificates.first().map(|own| -> Arc<dyn Certificate> {
            Arc::new(ClientCertificate {
                name: name_in(own),
                chain: certificates.iter().map(|one| one.clone().into_owned()).collect(),
                setup: Arc::clone(&self.0),
            })
        });
        Ok((stream, certificate))
    }
}

impl Setup {
    fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let certificates = certificates(&files.certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(&read_secret(&files.key)?).map_err(|source| TlsError::Pem {
                path: files.key.clone(),
                source,
            })?;
        let verifier = match &files.client_ca {
            None => None,
            Some(path) => Some(client_verifier(path, files.client_crl.as_deref(), &provider)?),
        };
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match &verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        };
        let mut config = builder.with_single_cert(certificates, key)?;
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        let config = Arc::new(config);
        Ok(Self { config, verifier })
    }
}

/// What judges the certificates of clients. With revocation lists, there has to be a current one of each CA that has issued
/// a certificate between the client's and its own: where none is, nobody can tell that the client's was not revoked.
fn client_verifier(
    ca: &Path,
    crl: Option<&Path>,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let roots = Arc::new(roots(ca)?);
    // Those who show no certificate may have a token, or ask for what everyone may.
    let mut builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider))
        .allow_unauthenticated()
        .enforce_revocation_expiration();
    if let Some(path) = crl {
        builder = builder.with_crls(revocation_lists(path)?);
    }
    Ok(Arc::new(BoundedVerifier(builder.build()?)))
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&read_public(path)?)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            path: path.to_owned(),
            source,
        })?;
    if lists.is_empty() {
        return Err(TlsError::NoRevocationList(path.to_owned()));
    }
    Ok(lists)
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots.add(certificate).map_err(|source| TlsError::ClientCa {
            path: path.to_owned(),
            source,
        })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&read_public(path)?)
        .collect::<Result<_, _>>()
        .map_err(|source| TlsError::Pem {
            path: path.to_owned(),
            source,
        })?;
    if certificates.is_empty() {
        return Err(TlsError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

/// The common name of a certificate's subject, or else the first DNS name that it is for.
fn name_in(certificate: &CertificateDer<'_>) -> Arc<str> {
    let Ok(certificate) = EndEntityCert::try_from(certificate) else {
        return UNNAMED.into();
    };
    let is_usable = |name: &&str| (1..=MAX_NAME_LEN).contains(&name.len()) && name.chars().all(is_shown);
    let subject = common_name(certificate.subject());
    let name = subject.or_else(|| certificate.valid_dns_names().next());
    name.filter(is_usable).unwrap_or(UNNAMED).into()
}

/// The last common name in a subject's DER, of which the outermost tag was taken off: a name is a sequence of sets of
/// pairs of a type and a value (X.501, section 9.2; X.520, section 6.2.2).
fn common_name(mut subject: &[u8]) -> Option<&str> {
    const SEQUENCE: u8 = 0x30;
    const SET: u8 = 0x31;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    /// UTF8String, PrintableString and IA5String.
    const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];

    let mut found = None;
    while !subject.is_empty() {
        let (SET, mut pairs, rest) = element(subject)? else {
            return None;
        };
        subject = rest;
        while !pairs.is_empty() {
            let (SEQUENCE, pair, rest) = element(pairs)? else {
                return None;
            };
            pairs = rest;
            let (OBJECT_IDENTIFIER, kind, value) = element(pair)? else {
                return None;
            };
            let (tag, value, _) = element(value)?;
            if kind == COMMON_NAME && TEXTS.contains(&tag) {
                found = std::str::from_utf8(value).ok();
            }
        }
    }
    found
}

/// The first element of DER: its tag, its content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81 => {
            let (length, rest) = rest.split_first()?;
            (usize::from(*length), rest)
        }
        0x82 => {
            let (length, rest) = rest.split_first_chunk()?;
            (usize::from(u16::from_be_bytes(*length)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `C=DE, CN=alice`, and `O=x + CN=bob`.
    const SUBJECTS: [(&[u8], &str); 2] = [
        (b"\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02DE\x31\x0e\x30\x0c\x06\x03\x55\x04\x03\x0c\x05alice", "alice"),
        (b"\x31\x16\x30\x08\x06\x03\x55\x04\x0a\x0c\x01x\x30\x0a\x06\x03\x55\x04\x03\x13\x03bob", "bob"),
    ];

    #[test]
    fn subjects_have_common_names() {
        for (subject, name) in SUBJECTS {
            assert_eq!(common_name(subject), Some(name));
            let both = [subject, SUBJECTS[0].0].concat();
            assert_eq!(common_name(&both), Some("alice"));
            for cut in 1..subject.len() {
                assert!(common_name(&subject[..cut]).is_none_or(|found| found != name));
            }
        }
        assert_eq!(common_name(b""), None);
        let long = [b"\x31\x81\x0b\x30\x09\x06\x03\x55\x04\x03\x13\x02", &b"DE"[..]].concat();
        assert_eq!(common_name(&long), Some("DE"));
        assert_eq!(&*name_in(&CertificateDer::from(vec![0x30, 0x00])), UNNAMED);
    }

    proptest! {
        #[test]
        fn takes_any_subject(subject in any::<Vec<u8>>()) {
            let _ = common_name(&subject);
        }

        #[test]
        fn takes_any_change_of_a_subject(at in 0usize..20, byte in any::<u8>()) {
            let mut subject = SUBJECTS[0].0.to_vec();
            subject[at] = byte;
            let _ = common_name(&subject);
        }
    }
}
