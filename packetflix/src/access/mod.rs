//! Who may use the service, and for what. Knows nothing of HTTP and TLS.

mod file;
mod pattern;
mod reload;
mod reviews;
mod rights;
mod tokens;

use std::{path::PathBuf, sync::Arc, time::Instant};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::file::fuzzing;
use self::tokens::{DIGEST_LEN, Tokens};
pub use self::{
    file::FileError,
    pattern::PatternError,
    rights::ScopeError,
    tokens::{LineError, TokenFileError},
};
pub(crate) use self::{
    file::{Files, read_by, read_public, read_secret, serve as serve_files},
    pattern::Pattern,
    reload::{FileAge, Followed, Reloaded, look_now},
    reviews::{Reviews, as_asked},
    rights::{Extent, Occupant, Occupants, Rights, Verdict},
};
use crate::capabilities::service_user;

/// What is said of who may use the service.
pub(crate) struct Access {
    tokens: Option<Arc<Reloaded<Tokens>>>,
    /// Whether a client certificate lets in.
    certificates: bool,
    /// What another service says of tokens that are not in the file, if it is asked.
    reviews: Option<Arc<Reviews>>,
}

/// One who is let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: Arc<str>,
    pub(crate) rights: Arc<Rights>,
    pub(crate) basis: Basis,
}

/// What an identity rests on, and is lost with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Basis {
    /// Nothing that could be lost.
    Nothing,
    /// The token with this digest.
    Token([u8; DIGEST_LEN]),
    /// What another service says of the token with this digest, which is asked again as long as anything rests on it.
    Review(Arc<[u8; DIGEST_LEN]>),
    /// A client certificate.
    Certificate,
}

/// What a client shows of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credentials<'a> {
    /// When it came.
    pub(crate) came: Instant,
    /// What it gives as its token.
    pub(crate) token: Option<&'a [u8]>,
    /// The name in its certificate, which is verified.
    pub(crate) certificate: Option<&'a str>,
    /// The user at the other end of a Unix socket.
    pub(crate) user: Option<u32>,
}

/// Why someone is not let in.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum AccessError {
    #[error("a token is needed: send it as Authorization: Bearer TOKEN")]
    NoToken,
    #[error("this token is not known, or no longer")]
    WrongToken,
    #[error(
        "whether this token is known cannot be told at the moment, since the service that knows does not answer: try again"
    )]
    NotReviewed,
    #[error("a client certificate is needed")]
    NoCertificate,
    #[error("this client certificate has expired, was revoked, or is not trusted any more")]
    CertificateLost,
    #[error("a token or a client certificate is needed: send a token as Authorization: Bearer TOKEN")]
    NoTokenOrCertificate,
}

impl Access {
    /// Reads the token file, if there is one; `certificates` tells whether client certificates let in.
    ///
    /// # Errors
    /// When the file cannot be used.
    pub(crate) fn open(
        token_file: Option<&PathBuf>,
        certificates: bool,
        reviews: Option<Arc<Reviews>>,
    ) -> Result<Self, TokenFileError> {
        let tokens = token_file.map(|path| {
            let file = path.clone();
            let tokens = Reloaded::open("token file", vec![path.clone()], move || Tokens::load(&file))?;
            Ok::<_, TokenFileError>(Arc::new(tokens))
        });
        Ok(Self {
            tokens: tokens.transpose()?,
            certificates,
            reviews,
        })
    }

    /// Whether nobody is asked who they are.
    pub(crate) fn is_open(&self) -> bool {
        !self.has_tokens() && !self.certificates
    }

    /// Whether tokens are asked for, so that what comes as one is none of anyone else's.
    pub(crate) fn has_tokens(&self) -> bool {
        self.tokens.is_some() || self.reviews.is_some()
    }

    /// Where it is put what another service says of tokens, if that is asked.
    pub(crate) fn reviews(&self) -> Option<&Arc<Reviews>> {
        self.reviews.as_ref()
    }

    /// Whether another service has to be asked of a token before its holder can be told.
    pub(crate) fn wants_review(&self, token: &[u8]) -> bool {
        let is_in_file = |tokens: &Arc<Reloaded<Tokens>>| tokens.current().holder_of(token).is_some();
        self.reviews.is_some() && !self.tokens.as_ref().is_some_and(is_in_file)
    }

    /// The token file, if there is one, to tell how old what was read of it is.
    pub(crate) fn files(&self) -> Option<Arc<dyn Followed>> {
        let tokens = Arc::clone(self.tokens.as_ref()?);
        Some(tokens as Arc<dyn Followed>)
    }

    /// Follows the token file; never ends.
    pub(crate) async fn follow(&self) {
        match &self.tokens {
            Some(tokens) => Arc::clone(tokens).follow().await,
            None => std::future::pending().await,
        }
    }

    /// Who it is that shows these credentials. A token is judged wherever there is one, so that a wrong one is never
    /// overlooked; then comes the certificate, then the user.
    ///
    /// # Errors
    /// When they are not let in.
    pub(crate) fn identify(&self, credentials: Credentials<'_>) -> Result<Identity, AccessError> {
        let tokens = self.tokens.as_ref().map(|tokens| tokens.current());
        if let Some(token) = credentials.token.filter(|_| self.has_tokens()) {
            if let Some(holder) = tokens.as_ref().and_then(|tokens| tokens.holder_of(token)) {
                return Ok(holder.clone());
            }
            let reviews = self.reviews.as_ref().ok_or(AccessError::WrongToken)?;
            return reviews.holder_of(token, credentials.came);
        }
        if let Some(name) = credentials.certificate.filter(|_| self.certificates) {
            return Ok(Identity::of_certificate(name, tokens.as_deref()));
        }
        if let Some(user) = credentials.user {
            return Ok(Identity::of_user(user));
        }
        match (self.has_tokens(), self.certificates) {
            (false, false) => Ok(Identity {
                name: "anyone".into(),
                rights: Arc::new(Rights::ALL),
                basis: Basis::Nothing,
            }),
            (true, false) => Err(AccessError::NoToken),
            (false, true) => Err(AccessError::NoCertificate),
            (true, true) => Err(AccessError::NoTokenOrCertificate),
        }
    }
}

impl Access {
    /// The same identity as it is by now.
    ///
    /// # Errors
    /// When its token is not known any more. Whether a certificate is still to be trusted is for those to say who know it.
    pub(crate) fn renew(&self, identity: &Identity) -> Result<Identity, AccessError> {
        let tokens = self.tokens.as_ref().map(|tokens| tokens.current());
        match &identity.basis {
            Basis::Nothing => Ok(identity.clone()),
            Basis::Token(digest) => tokens
                .and_then(|tokens| tokens.holder_by(digest).cloned())
                .ok_or(AccessError::WrongToken),
            Basis::Review(digest) => {
                let reviews = self.reviews.as_ref().ok_or(AccessError::WrongToken)?;
                reviews.holder_by(digest)
            }
            Basis::Certificate => Ok(Identity::of_certificate(&identity.name, tokens.as_deref())),
        }
    }
}

impl Identity {
    /// Whoever a client certificate names.
    fn of_certificate(name: &str, tokens: Option<&Tokens>) -> Self {
        let rights = tokens.and_then(|tokens| tokens.certificate(name));
        Self {
            name: name.into(),
            rights: rights.map_or_else(|| Arc::new(Rights::ORDINARY), Arc::clone),
            basis: Basis::Certificate,
        }
    }

    /// One who could open our Unix socket. Root and our own user could as well end the service.
    fn of_user(user: u32) -> Self {
        let is_trusted = user == 0 || user == service_user();
        Self {
            name: format!("uid:{user}").into(),
            rights: Arc::new(if is_trusted { Rights::ALL } else { Rights::ORDINARY }),
            basis: Basis::Nothing,
        }
    }

    /// What the name is that of, where others may have chosen it: a token and a certificate of one name are two.
    pub(crate) fn kind(&self) -> &'static str {
        match self.basis {
            Basis::Nothing => "",
            Basis::Token(_) => "token",
            Basis::Review(_) => "kubernetes",
            Basis::Certificate => "certificate",
        }
    }

    /// One of whom nothing is known.
    pub(crate) fn nobody() -> Self {
        Self {
            name: "nobody".into(),
            rights: Arc::new(Rights::NONE),
            basis: Basis::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const TOKEN: &[u8] = b"0123456789abcdef";

    fn identify(
        access: &Access,
        token: Option<&[u8]>,
        certificate: Option<&str>,
        user: Option<u32>,
    ) -> Result<(String, Rights), AccessError> {
        let found = access.identify(Credentials {
            came: Instant::now(),
            token,
            certificate,
            user,
        })?;
        Ok((found.name.to_string(), Rights::clone(&found.rights)))
    }

    fn known(name: &str, rights: Rights) -> Result<(String, Rights), AccessError> {
        Ok((name.to_owned(), rights))
    }

    #[test]
    fn nobody_is_asked_unless_there_is_something_to_ask_for() {
        let open = Access::open(None, false, None).unwrap();
        assert!(open.is_open());
        assert_eq!(identify(&open, None, None, None), known("anyone", Rights::ALL));
        // Clients may be configured to send a token wherever they go.
        assert_eq!(
            identify(&open, Some(b"x"), None, None),
            known("anyone", Rights::ALL)
        );
        assert_eq!(
            identify(&open, None, Some("eve"), None),
            known("anyone", Rights::ALL)
        );
        let certificates = Access::open(None, true, None).unwrap();
        assert!(!certificates.is_open());
        assert_eq!(
            identify(&certificates, Some(TOKEN), None, None),
            Err(AccessError::NoCertificate)
        );
        assert_eq!(
            identify(&certificates, None, Some("eve"), None),
            known("eve", Rights::ORDINARY)
        );
        assert_eq!(
            identify(&certificates, None, None, Some(0)),
            known("uid:0", Rights::ALL)
        );
        assert_eq!(
            identify(&certificates, None, None, Some(u32::MAX)),
            known("uid:4294967295", Rights::ORDINARY)
        );
    }

    #[test]
    fn a_wrong_token_is_never_overlooked() {
        let path = std::env::temp_dir().join(format!("packetflix-access-{}", std::process::id()));
        std::fs::write(&path, "alice 0123456789abcdef discover\neve cert capture\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        let discover = Rights::parse(["discover"]).unwrap();
        let capture = Rights::parse(["capture"]).unwrap();
        for certificates in [false, true] {
            let access = Access::open(Some(&path), certificates, None).unwrap();
            let none = if certificates {
                AccessError::NoTokenOrCertificate
            } else {
                AccessError::NoToken
            };
            assert_eq!(identify(&access, None, None, None), Err(none));
            assert_eq!(
                identify(&access, Some(TOKEN), None, None),
                known("alice", discover.clone())
            );
            assert_eq!(
                identify(&access, Some(TOKEN), Some("eve"), Some(0)),
                known("alice", discover.clone())
            );
            assert_eq!(
                identify(&access, Some(b"x"), Some("eve"), Some(0)),
                Err(AccessError::WrongToken)
            );
            assert_eq!(
                identify(&access, Some(b""), None, None),
                Err(AccessError::WrongToken)
            );
            assert_eq!(
                identify(&access, None, None, Some(0)),
                known("uid:0", Rights::ALL)
            );
            let by_certificate = identify(&access, None, Some("eve"), None);
            assert_eq!(
                by_certificate,
                if certificates {
                    known("eve", capture.clone())
                } else {
                    Err(none)
                }
            );
        }
        std::fs::remove_file(&path).unwrap();
    }
}
