//! Bounds of the certificates that clients show.

use std::{fmt, sync::Arc};

use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use webpki::EndEntityCert;

/// Most certificates of a client: its own, and those between it and its CA.
const MAX_CERTIFICATES: usize = 8;
/// Most bytes of all of them.
const MAX_BYTES: usize = 16 << 10;
/// Most of those in between that are of one subject. Two are, where two CAs have issued one, or while a new one replaces it.
const MAX_OF_ONE_SUBJECT: usize = 2;

/// Why a client's certificates are not even looked at.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
enum Excess {
    #[error("a client shows at most {MAX_CERTIFICATES} certificates, and this one showed {0}")]
    Certificates(usize),
    #[error("a client's certificates have at most {MAX_BYTES} bytes together, and these have {0}")]
    Bytes(usize),
    #[error(
        "of a client's certificates at most {MAX_OF_ONE_SUBJECT} between it and its CA are of one subject"
    )]
    OneSubject,
}

/// As which it becomes part of rustls's sentence.
impl fmt::Debug for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl From<Excess> for Error {
    fn from(excess: Excess) -> Self {
        CertificateError::Other(OtherError(Arc::new(excess))).into()
    }
}

/// Verifies the certificates of clients within bounds.
///
/// Whoever reaches the port may show any certificates. webpki tries each that could have issued another, in every order, up
/// to six levels: what is beyond the bounds is refused before it begins.
#[derive(Debug)]
pub(super) struct BoundedVerifier(pub(super) Arc<dyn ClientCertVerifier>);

fn check_bounds(own: &CertificateDer<'_>, between: &[CertificateDer<'_>]) -> Result<(), Excess> {
    let count = 1 + between.len();
    if count > MAX_CERTIFICATES {
        return Err(Excess::Certificates(count));
    }
    let bytes = own.len() + between.iter().map(|one| one.len()).sum::<usize>();
    if bytes > MAX_BYTES {
        return Err(Excess::Bytes(bytes));
    }
    // webpki passes over what it cannot read.
    let read: Vec<_> = between.iter().flat_map(EndEntityCert::try_from).collect();
    let is_frequent = |one: &EndEntityCert<'_>| {
        let alike = read.iter().filter(|other| other.subject() == one.subject());
        alike.count() > MAX_OF_ONE_SUBJECT
    };
    match read.iter().any(is_frequent) {
        true => Err(Excess::OneSubject),
        false => Ok(()),
    }
}

impl ClientCertVerifier for BoundedVerifier {
    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        check_bounds(own, between)?;
        self.0.verify_client_cert(own, between, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::{Duration, Instant},
    };

    use tokio_rustls::rustls::{RootCertStore, crypto::ring, server::WebPkiClientVerifier};

    use super::*;

    /// Trusts everything, and counts how often.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    impl ClientCertVerifier for Counting {
        fn verify_client_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: UnixTime,
        ) -> Result<ClientCertVerified, Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(ClientCertVerified::assertion())
        }

        fn root_hint_subjects(&self) -> &[DistinguishedName] {
            &[]
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            unreachable!("nothing is signed here")
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            unreachable!("nothing is signed here")
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            Vec::new()
        }
    }

    /// An element of DER.
    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = match content.len() {
            len @ 0..0x80 => vec![len as u8],
            len @ 0x80..0x100 => vec![0x81, len as u8],
            len => [&[0x82][..], &(len as u16).to_be_bytes()].concat(),
        };
        [&[tag], &length[..], content].concat()
    }

    fn sequence(parts: &[&[u8]]) -> Vec<u8> {
        element(0x30, &parts.concat())
    }

    /// A name that has a common name only.
    fn name(name: &str) -> Vec<u8> {
        let pair = sequence(&[b"\x06\x03\x55\x04\x03", &element(0x0c, name.as_bytes())]);
        sequence(&[&element(0x31, &pair)])
    }

    /// A certificate of a CA, with so many extensions that mean nothing, signed by nobody.
    fn certificate(subject: &str, issuer: &str, key: u8, extensions: usize) -> CertificateDer<'static> {
        let is_ca = sequence(&[b"\x06\x03\x55\x1d\x13", &element(0x04, b"\x30\x03\x01\x01\xff")]);
        let padding = sequence(&[b"\x06\x01\x2a", &element(0x04, b"")]).repeat(extensions);
        with_extensions(subject, issuer, key, &[is_ca, padding].concat())
    }

    fn with_extensions(subject: &str, issuer: &str, key: u8, extensions: &[u8]) -> CertificateDer<'static> {
        // `ecdsa-with-SHA256`
        let algorithm = sequence(&[b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02"]);
        let bits = element(0x03, &[0, key]);
        let key = sequence(&[&algorithm, &bits]);
        let until = |text: &str| element(0x17, text.as_bytes());
        let validity = sequence(&[&until("200101000000Z"), &until("491231235959Z")]);
        let signed = sequence(&[
            b"\xa0\x03\x02\x01\x02\x02\x01\x01",
            &algorithm,
            &name(issuer),
            &validity,
            &name(subject),
            &key,
            &element(0xa3, &sequence(&[extensions])),
        ]);
        CertificateDer::from(sequence(&[&signed, &algorithm, &bits]))
    }

    fn own() -> CertificateDer<'static> {
        with_extensions("own", "0", 0, b"")
    }

    /// So many, of which each two that follow one another are of one subject, and could both be issued by both of the next.
    fn twins(count: usize, extensions: usize) -> Vec<CertificateDer<'static>> {
        let certificates = (0..count).map(|at| {
            let next = ((at / 2 + 1) % count.div_ceil(2)).to_string();
            certificate(&(at / 2).to_string(), &next, at as u8, extensions)
        });
        certificates.collect()
    }

    #[test]
    fn too_much_is_refused_before_it_is_verified() {
        let inner = Arc::new(Counting::default());
        let verifier = BoundedVerifier(Arc::clone(&inner) as Arc<dyn ClientCertVerifier>);
        let verify = |own: &CertificateDer<'_>, between: &[CertificateDer<'_>]| {
            verifier.verify_client_cert(own, between, UnixTime::now())
        };
        let unreadable = CertificateDer::from(vec![0; 100]);
        let same: Vec<_> = (0..3).map(|key| certificate("x", "x", key, 0)).collect();
        for (between, excess) in [
            (twins(8, 0), Excess::Certificates(9)),
            (vec![unreadable.clone(); 200], Excess::Certificates(201)),
            (
                vec![CertificateDer::from(vec![0; MAX_BYTES])],
                Excess::Bytes(MAX_BYTES + own().len()),
            ),
            (same.clone(), Excess::OneSubject),
            (vec![same[0].clone(); 3], Excess::OneSubject),
        ] {
            let error = verify(&own(), &between).unwrap_err();
            assert!(error.to_string().contains(&format!("{excess:?}")), "{error}");
        }
        let large = CertificateDer::from(vec![0; MAX_BYTES + 1]);
        assert!(verify(&large, &[]).is_err());
        assert_eq!(inner.0.load(Ordering::Relaxed), 0);
        for between in [vec![], same[..2].to_vec(), twins(7, 0), vec![unreadable; 7]] {
            verify(&own(), &between).unwrap();
        }
        assert_eq!(inner.0.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn what_is_taken_is_verified_in_moments() {
        let mut roots = RootCertStore::empty();
        roots.add(certificate("root", "root", 0, 0)).unwrap();
        let provider = Arc::new(ring::default_provider());
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = BoundedVerifier(inner.build().unwrap());
        let between = twins(7, 290);
        let bytes: usize = between.iter().map(|one| one.len()).sum();
        assert!((MAX_BYTES * 9 / 10..MAX_BYTES).contains(&bytes), "{bytes}");
        let begun = Instant::now();
        let verified = verifier.verify_client_cert(&own(), &between, UnixTime::now());
        let took = begun.elapsed();
        assert!(verified.is_err());
        assert!(took < Duration::from_secs(1), "{took:?}");
        eprintln!("the worst that is taken: {took:?}");
    }
}
