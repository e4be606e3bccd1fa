//! Certificates that a test makes, with OpenSSL, and what speaks TLS with them.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    sync::Arc,
    task::{Context, Poll},
};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use crate::namespace::output_of;

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

/// A certificate authority.
pub struct Authority {
    own: Identity,
    folder: PathBuf,
}

impl Authority {
    /// Makes one whose files are in `folder`.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn new(folder: &Path, name: &str) -> anyhow::Result<Self> {
        let own = Identity::at(folder, name);
        output_of(
            Command::new("openssl")
                .args(["req", "-x509", "-days", "2", "-newkey", "ec", "-nodes"])
                .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-subj", &format!("/CN={name}"), "-keyout"])
                .arg(&own.key)
                .arg("-out")
                .arg(&own.certificate),
        )?;
        Ok(Self {
            own,
            folder: folder.to_owned(),
        })
    }

    /// Its certificate's file.
    pub fn certificate(&self) -> &Path {
        &self.own.certificate
    }

    /// Makes a certificate for `127.0.0.1` and `localhost`, of this subject and in files of that name.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn issue(&self, file: &str, subject: &str) -> anyhow::Result<Identity> {
        self.issue_for(file, subject, "DNS:localhost,IP:127.0.0.1")
    }

    /// Makes a certificate for these names, as OpenSSL writes them.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn issue_for(&self, file: &str, subject: &str, names: &str) -> anyhow::Result<Identity> {
        let issued = Identity::at(&self.folder, file);
        let request = self.folder.join(format!("{file}.csr"));
        let extensions = self.folder.join(format!("{file}.ext"));
        std::fs::write(
            &extensions,
            format!("basicConstraints=critical,CA:FALSE\nsubjectAltName={names}\n"),
        )?;
        output_of(
            Command::new("openssl")
                .args(["req", "-newkey", "ec", "-nodes", "-utf8", "-subj", subject])
                .args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout"])
                .arg(&issued.key)
                .arg("-out")
                .arg(&request),
        )?;
        output_of(
            Command::new("openssl")
                .args(["x509", "-req", "-days", "2", "-CAcreateserial", "-in"])
                .arg(&request)
                .arg("-CA")
                .arg(&self.own.certificate)
                .arg("-CAkey")
                .arg(&self.own.key)
                .arg("-extfile")
                .arg(&extensions)
                .arg("-out")
                .arg(&issued.certificate),
        )?;
        Ok(issued)
    }
}

impl Authority {
    /// Makes a certificate that holds until `end`, as `date -u +%Y%m%d%H%M%SZ` writes it.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn issue_until(&self, file: &str, subject: &str, end: &str) -> anyhow::Result<Identity> {
        let issued = self.issue(file, subject)?;
        let request = self.folder.join(format!("{file}.csr"));
        output_of(
            self.administer()?
                .args(["-batch", "-notext", "-enddate", end, "-in"])
                .arg(&request)
                .arg("-extfile")
                .arg(self.folder.join(format!("{file}.ext")))
                .arg("-out")
                .arg(&issued.certificate),
        )?;
        Ok(issued)
    }

    /// Revokes certificates, and makes a list of all that are revoked, in a file of that name.
    ///
    /// # Errors
    /// When OpenSSL fails.
    pub fn revoke(&self, file: &str, revoked: &[&Identity]) -> anyhow::Result<PathBuf> {
        for identity in revoked {
            output_of(self.administer()?.arg("-revoke").arg(&identity.certificate))?;
        }
        let list = self.folder.join(file);
        output_of(self.administer()?.arg("-gencrl").arg("-out").arg(&list))?;
        Ok(list)
    }

    /// OpenSSL's account of what an authority has done.
    fn administer(&self) -> anyhow::Result<Command> {
        let config = self.folder.join("ca.cnf");
        if !config.exists() {
            let folder = self.folder.display();
            std::fs::write(self.folder.join("index.txt"), "")?;
            std::fs::write(
                &config,
                format!(
                    "[ca]\ndefault_ca = own\n[own]\ndatabase = {folder}/index.txt\nnew_certs_dir = {folder}\n\
                     serial = {folder}/ca.serial\ncrlnumber = {folder}/crlnumber\ndefault_md = sha256\n\
                     default_crl_days = 1\npolicy = policy\n[policy]\ncommonName = supplied\n"
                ),
            )?;
            std::fs::write(self.folder.join("ca.serial"), "1000\n")?;
            std::fs::write(self.folder.join("crlnumber"), "01\n")?;
        }
        let mut command = Command::new("openssl");
        command
            .arg("ca")
            .arg("-config")
            .arg(config)
            .arg("-cert")
            .arg(&self.own.certificate);
        command.arg("-keyfile").arg(&self.own.key);
        Ok(command)
    }
}

impl Identity {
    fn at(folder: &Path, name: &str) -> Self {
        Self {
            certificate: folder.join(format!("{name}.pem")),
            key: folder.join(format!("{name}.key")),
        }
    }
}

/// Speaks TLS with servers whose certificates are of one authority.
#[derive(Clone)]
pub struct Trust(TlsConnector);

impl Trust {
    /// Trusts the authorities in this file, and shows a certificate if one is given.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn new(authorities: &Path, own: Option<&Identity>) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(authorities)? {
            roots.add(certificate?)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let certificates: Result<_, _> = CertificateDer::pem_file_iter(&own.certificate)?.collect();
                config.with_client_auth_cert(certificates?, PrivateKeyDer::from_pem_file(&own.key)?)?
            }
        };
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Does the handshake with the server `host`.
    ///
    /// # Errors
    /// When the server is not to be trusted, or the other way round.
    pub async fn connect(&self, host: &str, stream: TcpStream) -> anyhow::Result<Transport> {
        let name = ServerName::try_from(host.to_owned()).context("no name of a server")?;
        Ok(Transport::Encrypted(Box::new(
            self.0.connect(name, stream).await?,
        )))
    }
}

/// A connection to a server.
pub enum Transport {
    /// As it is.
    Plain(TcpStream),
    /// In TLS.
    Encrypted(Box<TlsStream<TcpStream>>),
}

impl Transport {
    /// The socket below.
    pub fn tcp(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Encrypted(stream) => stream.get_mut().0,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, into),
            Self::Encrypted(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Encrypted(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Encrypted(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
