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
pub(crate) struct BoundedVerifier(pub(crate) Arc<dyn ClientCertVerifier>);

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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio_rustls::rustls::{
        RootCertStore,
        crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring},
        pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm},
        server::WebPkiClientVerifier,
    };

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

    /// `ecdsa-with-SHA256`, for keys too: there are none.
    const ECDSA_WITH_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

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
        let algorithm = sequence(&[ECDSA_WITH_SHA256]);
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

    /// So many, of which those that follow one another are of one subject, as many as that may be, and could all be issued by
    /// each of the next.
    fn alike(count: usize, extensions: usize) -> Vec<CertificateDer<'static>> {
        let certificates = (0..count).map(|at| {
            let subject = at / MAX_OF_ONE_SUBJECT;
            let next = (subject + 1) % count.div_ceil(MAX_OF_ONE_SUBJECT);
            certificate(&subject.to_string(), &next.to_string(), at as u8, extensions)
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
            (alike(8, 0), Excess::Certificates(9)),
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
        for between in [vec![], same[..2].to_vec(), alike(7, 0), vec![unreadable; 7]] {
            verify(&own(), &between).unwrap();
        }
        assert_eq!(inner.0.load(Ordering::Relaxed), 4);
    }

    /// Finds each signature wrong, and counts them.
    #[derive(Debug)]
    struct Wrong(AtomicUsize);

    impl SignatureVerificationAlgorithm for Wrong {
        fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Err(InvalidSignature)
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(ECDSA_WITH_SHA256)
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            AlgorithmIdentifier::from_slice(ECDSA_WITH_SHA256)
        }
    }

    /// How many beginnings of chains webpki tries where none of them holds: there is a root for each subject, so that each
    /// beginning has a signature to check.
    fn beginnings(between: &[CertificateDer<'_>]) -> usize {
        static WRONG: Wrong = Wrong(AtomicUsize::new(0));
        static ONLY: WebPkiSupportedAlgorithms = WebPkiSupportedAlgorithms {
            all: &[&WRONG],
            mapping: &[(SignatureScheme::ECDSA_NISTP256_SHA256, &[&WRONG])],
        };
        let mut roots = RootCertStore::empty();
        for subject in 0..MAX_CERTIFICATES {
            let subject = subject.to_string();
            roots.add(certificate(&subject, &subject, 0, 0)).unwrap();
        }
        let provider = Arc::new(CryptoProvider {
            signature_verification_algorithms: ONLY,
            ..ring::default_provider()
        });
        let inner = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = BoundedVerifier(inner.build().unwrap());
        let before = WRONG.0.load(Ordering::Relaxed);
        let verified = verifier.verify_client_cert(&own(), between, UnixTime::now());
        assert!(verified.is_err());
        WRONG.0.load(Ordering::Relaxed) - before
    }

    #[test]
    fn few_chains_are_tried_of_what_is_taken() {
        assert_eq!(beginnings(&[]), 1);
        let alike = alike(MAX_CERTIFICATES - 1, 290);
        let bytes: usize = alike.iter().map(|one| one.len()).sum();
        assert!((MAX_BYTES * 9 / 10..MAX_BYTES).contains(&bytes), "{bytes}");
        assert_eq!(beginnings(&alike), 39);
    }
}
