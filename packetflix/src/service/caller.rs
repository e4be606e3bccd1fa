//! Who asks for something, and what they may do.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use crate::{
    access::{Access, AccessError, Basis, Credentials, Identity, Occupants, Rights, Verdict},
    captures::ClientFacts,
};

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// A process of this user, at a Unix socket.
    Unix(u32),
}

/// Who asks: all that share an address, or a connection without any. Whoever has one IPv6 address has 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ClientId {
    V4(Ipv4Addr),
    /// The /64 prefix, with zeros behind it.
    V6(Ipv6Addr),
    Local,
}

impl ClientId {
    pub(crate) fn new(peer: Option<IpAddr>) -> Self {
        match peer.map(|address| address.to_canonical()) {
            Some(IpAddr::V4(address)) => Self::V4(address),
            Some(IpAddr::V6(address)) => Self::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            None => Self::Local,
        }
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(prefix) => write!(f, "{prefix}/64"),
            Self::Local => f.write_str("without an address"),
        }
    }
}

/// A certificate that a client has shown.
pub(crate) trait Certificate: fmt::Debug + Send + Sync {
    /// The name of its subject.
    fn name(&self) -> &str;

    /// Whether it is to be trusted now. A connection, and a capture, may be older than that.
    fn is_trusted(&self) -> bool;
}

/// What somebody shows of who they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown<'a> {
    /// When they came.
    pub(crate) came: Instant,
    /// Where they are.
    pub(crate) peer: Peer,
    /// Their token.
    pub(crate) token: Option<&'a [u8]>,
    /// Their certificate, which was trusted when the connection was made.
    pub(crate) certificate: Option<&'a Arc<dyn Certificate>>,
}

/// Who asks for something.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    identity: Identity,
    /// Nobody is asked who they are.
    is_unnamed: bool,
    peer: Option<Peer>,
    certificate: Option<Arc<dyn Certificate>>,
    /// What they ask for on behalf of somebody else, who may do no more than this.
    on_behalf_of: Option<Arc<Rights>>,
}

/// Why a caller may not do what they want to; becomes a 403.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Forbidden {
    #[error("{0} may not discover targets")]
    Discover(Arc<str>),
    #[error("{0} may not capture anything")]
    CaptureAnything(Arc<str>),
    #[error("{0} may not administer the service")]
    Administer(Arc<str>),
    #[error(
        "{0} may capture some targets only, and the discovery service would show all of them: ask for /targets instead"
    )]
    Unfiltered(Arc<str>),
    #[error("{0} may not capture all of this any more")]
    NotAll(Arc<str>),
    #[error("{0} may capture some targets only, and the metrics tell of all")]
    Metrics(Arc<str>),
}

/// What is said to a caller who may capture some targets only, of what is not there and of what is not theirs alike, so
/// that nothing is learned of others. `Display` is all that is to be told of it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Hidden {
    #[error("there is no {target} that {caller} may capture")]
    Nothing { caller: Arc<str>, target: String },
    #[error(
        "whether {caller} may capture {target} cannot be told at the moment, since not everything could be looked at: try \
         again"
    )]
    Unsure { caller: Arc<str>, target: String },
}

impl Peer {
    /// The address, if it has one; one of IPv4 in its own form.
    pub(crate) fn ip(self) -> Option<IpAddr> {
        self.address().map(|address| address.ip().to_canonical())
    }

    /// Address and port, as the socket has them.
    pub(crate) fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix(_) => None,
        }
    }

    /// The user, at a Unix socket.
    fn user(self) -> Option<u32> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(user) => Some(user),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => SocketAddr::new(address.ip().to_canonical(), address.port()).fmt(f),
            Self::Unix(user) => write!(f, "uid:{user}"),
        }
    }
}

impl Caller {
    /// Who it is that shows this.
    ///
    /// # Errors
    /// When they are not let in. A certificate that was trusted when the connection was made has to be so still.
    pub(crate) fn identify(access: &Access, shown: Shown<'_>) -> Result<Self, AccessError> {
        let identity = access.identify(Credentials {
            came: shown.came,
            token: shown.token,
            certificate: shown.certificate.map(|certificate| certificate.name()),
            user: shown.peer.user(),
        })?;
        let caller = Self {
            identity,
            is_unnamed: access.is_open(),
            peer: Some(shown.peer),
            certificate: shown.certificate.cloned(),
            on_behalf_of: None,
        };
        caller.check_certificate()?;
        Ok(caller)
    }

    /// The same caller, as they are by now.
    ///
    /// # Errors
    /// When they would not be let in any more.
    pub(crate) fn renew(&self, access: &Access) -> Result<Self, AccessError> {
        self.check_certificate()?;
        let renewed = Self {
            identity: access.renew(&self.identity)?,
            ..self.clone()
        };
        Ok(renewed.bounded())
    }

    /// The same caller, who asks on behalf of somebody with these rights.
    pub(crate) fn on_behalf(self, rights: Rights) -> Self {
        let on_behalf_of = Some(Arc::new(rights));
        Self { on_behalf_of, ..self }.bounded()
    }

    fn bounded(mut self) -> Self {
        if let Some(rights) = &self.on_behalf_of {
            self.identity.rights = Arc::new(self.identity.rights.within(rights));
        }
        self
    }

    fn check_certificate(&self) -> Result<(), AccessError> {
        let is_trusted = self
            .certificate
            .as_ref()
            .is_some_and(|certificate| certificate.is_trusted());
        let is_lost = self.identity.basis == Basis::Certificate && !is_trusted;
        if is_lost {
            Err(AccessError::CertificateLost)
        } else {
            Ok(())
        }
    }

    /// One of whom nothing is known, and who may do only what everyone may.
    pub(crate) fn nobody(peer: Option<Peer>) -> Self {
        Self {
            identity: Identity::nobody(),
            is_unnamed: true,
            peer,
            certificate: None,
            on_behalf_of: None,
        }
    }

    /// Name of the token, of the certificate's subject, or of the user as `uid:1000`.
    pub(crate) fn name(&self) -> &str {
        &self.identity.name
    }

    /// On whose account their requests go: their own, wherever they are, or that of their address where nobody is asked who
    /// they are.
    pub(crate) fn account(&self) -> Arc<str> {
        match self.peer {
            Some(peer @ Peer::Tcp(_)) if self.is_unnamed => ClientId::new(peer.ip()).to_string().into(),
            _ if self.kind().is_empty() => self.shared_name(),
            _ => format!("{} {}", self.kind(), self.name()).into(),
        }
    }

    /// What their name is that of: `token` or `certificate`, or empty.
    pub(crate) fn kind(&self) -> &'static str {
        self.identity.kind()
    }

    /// Where they are, if that is known.
    pub(crate) fn peer(&self) -> Option<Peer> {
        self.peer
    }

    /// Who they are, for the account of captures.
    pub(crate) fn facts(&self) -> ClientFacts {
        ClientFacts {
            name: self.name().to_owned(),
            kind: self.kind(),
            address: self.peer.map_or_else(String::new, |peer| peer.to_string()),
        }
    }

    /// All that they may do.
    pub(crate) fn rights(&self) -> &Arc<Rights> {
        &self.identity.rights
    }

    /// They may list targets; which of them, [`Rights::may_list`] tells.
    ///
    /// # Errors
    /// When they may not.
    pub(crate) fn may_discover(&self) -> Result<(), Forbidden> {
        allow(self.rights().may_discover(), || {
            Forbidden::Discover(self.shared_name())
        })
    }

    /// They may use the discovery service, whose answers are not restricted to what they may capture.
    ///
    /// # Errors
    /// When they may not.
    pub(crate) fn may_use_discovery_service(&self) -> Result<(), Forbidden> {
        self.may_discover()?;
        allow(!self.rights().are_bounded(), || {
            Forbidden::Unfiltered(self.shared_name())
        })
    }

    /// Their rights, where these are to some targets only: who is in a namespace of another host is known there alone.
    pub(crate) fn bounds(&self) -> Option<&Rights> {
        Some(&**self.rights()).filter(|rights| rights.are_bounded())
    }

    /// They may still have what they might when they had these rights.
    ///
    /// # Errors
    /// When they may not.
    pub(crate) fn may_still(&self, rights: &Rights) -> Result<(), Forbidden> {
        allow(self.rights().include(rights), || {
            Forbidden::NotAll(self.shared_name())
        })
    }

    /// There may be something that they may capture.
    ///
    /// # Errors
    /// When there cannot.
    pub(crate) fn may_capture_something(&self) -> Result<(), Forbidden> {
        allow(self.rights().may_capture_something(), || {
            Forbidden::CaptureAnything(self.shared_name())
        })
    }

    /// They may capture the namespace that these occupy; `asked` is what they called it. Without any, it is not there.
    ///
    /// # Errors
    /// When they may not, or it cannot be told.
    pub(crate) fn may_capture(&self, occupants: Option<&Occupants>, asked: &str) -> Result<(), Hidden> {
        let verdict = occupants.map(|occupants| self.rights().may_capture(occupants));
        match verdict {
            Some(Verdict::Allowed) => Ok(()),
            Some(Verdict::Unsure) => Err(self.is_unsure_of(asked)),
            Some(Verdict::Refused) | None => Err(self.has_no(asked)),
        }
    }

    /// They may ask for what is called so.
    ///
    /// # Errors
    /// When there cannot be anything of the name that they may capture.
    pub(crate) fn may_ask_for(&self, name: &str, asked: &str) -> Result<(), Hidden> {
        match self.rights().may_ask_for(name) {
            true => Ok(()),
            false => Err(self.has_no(asked)),
        }
    }

    /// There is nothing that is called so, or it is not theirs.
    pub(crate) fn has_no(&self, asked: &str) -> Hidden {
        let (caller, target) = (self.shared_name(), asked.to_owned());
        Hidden::Nothing { caller, target }
    }

    /// It may be theirs.
    pub(crate) fn is_unsure_of(&self, asked: &str) -> Hidden {
        let (caller, target) = (self.shared_name(), asked.to_owned());
        Hidden::Unsure { caller, target }
    }

    /// They may know how much the service does for whom.
    ///
    /// # Errors
    /// When they may capture some targets only, and administer nothing.
    pub(crate) fn may_see_metrics(&self) -> Result<(), Forbidden> {
        let rights = self.rights();
        let knows_all = match self.identity.basis {
            // Every account of a cluster has a token.
            Basis::Review(_) => rights.may_discover_all(),
            _ => !rights.are_bounded(),
        };
        allow(rights.may_administer() || knows_all, || {
            Forbidden::Metrics(self.shared_name())
        })
    }

    /// They may see and end what belongs to everyone.
    ///
    /// # Errors
    /// When they may not.
    pub(crate) fn may_administer(&self) -> Result<(), Forbidden> {
        allow(self.rights().may_administer(), || {
            Forbidden::Administer(self.shared_name())
        })
    }

    fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.identity.name)
    }
}

fn allow(is_allowed: bool, why_not: impl FnOnce() -> Forbidden) -> Result<(), Forbidden> {
    if is_allowed { Ok(()) } else { Err(why_not()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_is_whoever_has_the_address() {
        let client = |address: &str| ClientId::new(Some(address.parse().unwrap()));
        assert_eq!(client("10.0.0.1"), client("::ffff:10.0.0.1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:0:0:2"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_eq!(client("2001:db8:1:2:3:4:5:6").to_string(), "2001:db8:1:2::/64");
    }

    #[test]
    fn accounts_are_of_addresses_only_where_nobody_has_a_name() {
        let account = |is_unnamed| {
            let caller = Caller {
                identity: Identity {
                    name: "alice".into(),
                    rights: Arc::new(Rights::NONE),
                    basis: Basis::Certificate,
                },
                is_unnamed,
                peer: Some(Peer::Tcp("127.0.0.1:4711".parse().unwrap())),
                certificate: None,
                on_behalf_of: None,
            };
            caller.account().to_string()
        };
        assert_eq!(
            (account(false), account(true)),
            ("certificate alice".to_owned(), "127.0.0.1".to_owned())
        );
    }

    #[test]
    fn a_token_a_certificate_and_a_user_of_one_name_have_accounts_of_their_own() {
        let account = |name: &str, basis| {
            let caller = Caller {
                identity: Identity {
                    name: name.into(),
                    rights: Arc::new(Rights::NONE),
                    basis,
                },
                is_unnamed: false,
                peer: Some(Peer::Unix(0)),
                certificate: None,
                on_behalf_of: None,
            };
            let ClientFacts { name, kind, .. } = caller.facts();
            (caller.account().to_string(), name, kind)
        };
        let token = || Basis::Token(Default::default());
        for (name, basis, expected, kind) in [
            ("alice", token(), "token alice", "token"),
            ("alice", Basis::Certificate, "certificate alice", "certificate"),
            ("uid:0", Basis::Certificate, "certificate uid:0", "certificate"),
            (
                "token alice",
                Basis::Certificate,
                "certificate token alice",
                "certificate",
            ),
            ("uid:0", Basis::Nothing, "uid:0", ""),
        ] {
            assert_eq!(account(name, basis), (expected.to_owned(), name.to_owned(), kind));
        }
    }
}
