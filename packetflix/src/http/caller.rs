//! Who sends a request, and what they may do.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use warp::http::{HeaderMap, Request, Uri, header, uri::PathAndQuery};

use super::{connection::Client, proxy, tls::ClientCertificate};
use crate::{
    access::{Access, AccessError, Basis, Credentials, Identity, Occupants, Rights, Verdict},
    captures::ClientFacts,
};

/// The parameter of a query that may hold a token.
const TOKEN_PARAMETER: &str = "token";

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// An address.
    Tcp(SocketAddr),
    /// A process of this user, at a Unix socket.
    Unix(u32),
}

/// Who asks: all that share an address, or a connection without any. Whoever has one IPv6 address has 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ClientId {
    V4(Ipv4Addr),
    /// The /64 prefix, with zeros behind it.
    V6(Ipv6Addr),
    Local,
}

impl ClientId {
    pub(super) fn new(peer: Option<IpAddr>) -> Self {
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

/// Who sends a request: each request has one in its extensions, and each [`Handshake`](super::capture::Handshake).
#[derive(Clone, Debug)]
pub(super) struct Caller {
    identity: Identity,
    /// Nobody is asked who they are.
    is_unnamed: bool,
    peer: Option<Peer>,
    certificate: Option<ClientCertificate>,
}

/// Why a caller may not do what they want to; becomes a 403.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Forbidden {
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
    #[error("{0} may capture some targets only, and the metrics tell of all")]
    Metrics(Arc<str>),
}

/// What is said to a caller who may capture some targets only, of what is not there and of what is not theirs alike, so
/// that nothing is learned of others. `Display` is all that is to be told of it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Hidden {
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
    pub(super) fn ip(self) -> Option<IpAddr> {
        self.address().map(|address| address.ip().to_canonical())
    }

    /// Address and port, as the socket has them.
    pub(super) fn address(self) -> Option<SocketAddr> {
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
    /// Who sends this request over a connection of `client`, of which `token` came in the query.
    ///
    /// # Errors
    /// When they are not let in. A certificate that was trusted when the connection was made has to be so still.
    pub(super) fn identify(
        access: &Access,
        client: &Client,
        headers: &HeaderMap,
        token: Option<&[u8]>,
    ) -> Result<Self, AccessError> {
        let identity = access.identify(Credentials {
            token: bearer(headers).or(token),
            certificate: client.certificate.as_ref().map(ClientCertificate::name),
            user: client.peer.user(),
        })?;
        let caller = Self {
            identity,
            is_unnamed: access.is_open(),
            peer: Some(client.peer),
            certificate: client.certificate.clone(),
        };
        caller.check_certificate()?;
        Ok(caller)
    }

    /// The same caller, as they are by now.
    ///
    /// # Errors
    /// When they would not be let in any more.
    pub(super) fn renew(&self, access: &Access) -> Result<Self, AccessError> {
        self.check_certificate()?;
        Ok(Self {
            identity: access.renew(&self.identity)?,
            ..self.clone()
        })
    }

    fn check_certificate(&self) -> Result<(), AccessError> {
        let shown = self.certificate.as_ref();
        let is_lost =
            self.identity.basis == Basis::Certificate && !shown.is_some_and(ClientCertificate::is_trusted);
        if is_lost {
            Err(AccessError::CertificateLost)
        } else {
            Ok(())
        }
    }

    /// One of whom nothing is known, and who may do only what everyone may.
    pub(super) fn nobody(peer: Option<Peer>) -> Self {
        Self {
            identity: Identity::nobody(),
            is_unnamed: true,
            peer,
            certificate: None,
        }
    }

    /// Name of the token, of the certificate's subject, or of the user as `uid:1000`.
    pub(super) fn name(&self) -> &str {
        &self.identity.name
    }

    /// On whose account their requests go: their own, wherever they are, or that of their address where nobody is asked who
    /// they are.
    pub(super) fn account(&self) -> Arc<str> {
        match self.peer {
            Some(peer @ Peer::Tcp(_)) if self.is_unnamed => ClientId::new(peer.ip()).to_string().into(),
            _ => self.shared_name(),
        }
    }

    /// Where they are, if that is known.
    pub(super) fn peer(&self) -> Option<Peer> {
        self.peer
    }

    /// Who they are, for the account of captures.
    pub(super) fn facts(&self) -> ClientFacts {
        ClientFacts {
            name: self.name().to_owned(),
            address: self.peer.map_or_else(String::new, |peer| peer.to_string()),
        }
    }

    /// All that they may do.
    pub(super) fn rights(&self) -> &Arc<Rights> {
        &self.identity.rights
    }

    /// They may list targets; which of them, [`Rights::may_list`] tells.
    ///
    /// # Errors
    /// When they may not.
    pub(super) fn may_discover(&self) -> Result<(), Forbidden> {
        allow(self.rights().may_discover(), || {
            Forbidden::Discover(self.shared_name())
        })
    }

    /// They may use the discovery service, whose answers are not restricted to what they may capture.
    ///
    /// # Errors
    /// When they may not.
    pub(super) fn may_use_discovery_service(&self) -> Result<(), Forbidden> {
        self.may_discover()?;
        allow(!self.rights().are_by_pattern(), || {
            Forbidden::Unfiltered(self.shared_name())
        })
    }

    /// There may be something that they may capture.
    ///
    /// # Errors
    /// When there cannot.
    pub(super) fn may_capture_something(&self) -> Result<(), Forbidden> {
        allow(self.rights().may_capture_something(), || {
            Forbidden::CaptureAnything(self.shared_name())
        })
    }

    /// They may capture the namespace that these occupy; `asked` is what they called it. Without any, it is not there.
    ///
    /// # Errors
    /// When they may not, or it cannot be told.
    pub(super) fn may_capture(&self, occupants: Option<&Occupants>, asked: &str) -> Result<(), Hidden> {
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
    pub(super) fn may_ask_for(&self, name: &str, asked: &str) -> Result<(), Hidden> {
        match self.rights().may_ask_for(name) {
            true => Ok(()),
            false => Err(self.has_no(asked)),
        }
    }

    /// There is nothing that is called so, or it is not theirs.
    pub(super) fn has_no(&self, asked: &str) -> Hidden {
        let (caller, target) = (self.shared_name(), asked.to_owned());
        Hidden::Nothing { caller, target }
    }

    /// It may be theirs.
    pub(super) fn is_unsure_of(&self, asked: &str) -> Hidden {
        let (caller, target) = (self.shared_name(), asked.to_owned());
        Hidden::Unsure { caller, target }
    }

    /// They may know how much the service does for whom.
    ///
    /// # Errors
    /// When they may capture some targets only, and administer nothing.
    pub(super) fn may_see_metrics(&self) -> Result<(), Forbidden> {
        allow(
            self.rights().may_administer() || !self.rights().are_by_pattern(),
            || Forbidden::Metrics(self.shared_name()),
        )
    }

    /// They may see and end what belongs to everyone.
    ///
    /// # Errors
    /// When they may not.
    pub(super) fn may_administer(&self) -> Result<(), Forbidden> {
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

/// The token that a header holds (RFC 6750, section 2.1). What is there and is none, is a wrong one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then_some(token.trim_ascii())
}

/// Takes tokens out of the request's query, so that nothing that follows can pass them on or log them. Gives one if
/// there is one only, and the request is for an upgrade: browsers let a page set headers for all others.
pub(super) fn take_query_token<B>(request: &mut Request<B>) -> Option<Vec<u8>> {
    let is_upgrade = proxy::wanted_protocol(request).is_some();
    let (uri, mut tokens) = without_tokens(request.uri())?;
    *request.uri_mut() = uri;
    let token = tokens.pop()?;
    let other = if tokens.is_empty() { token } else { Vec::new() };
    is_upgrade.then_some(other)
}

/// The same without tokens, and these; `None` where there are none.
fn without_tokens(uri: &Uri) -> Option<(Uri, Vec<Vec<u8>>)> {
    let (mut kept, mut tokens) = (Vec::new(), Vec::new());
    for pair in uri.query()?.split('&') {
        match token_in(pair) {
            Some(token) => tokens.push(token.into_bytes()),
            None => kept.push(pair),
        }
    }
    if tokens.is_empty() {
        return None;
    }
    let path = uri.path();
    let path = match &kept[..] {
        [] => path.to_owned(),
        kept => format!("{path}?{}", kept.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    // Part of what was valid is valid.
    parts.path_and_query =
        Some(PathAndQuery::try_from(path).unwrap_or_else(|_| PathAndQuery::from_static("/")));
    Some((Uri::from_parts(parts).unwrap_or_default(), tokens))
}

fn token_in(pair: &str) -> Option<String> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(pair).ok()?;
    let (_, token) = pairs.into_iter().find(|(name, _)| name == TOKEN_PARAMETER)?;
    Some(token)
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    fn request(uri: &str, is_upgrade: bool) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        if is_upgrade {
            request = request
                .header("connection", "Upgrade")
                .header("upgrade", "websocket");
        }
        request.body(()).unwrap()
    }

    #[test]
    fn tokens_come_in_a_header() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer ", Some("")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearerabc", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(bearer(&headers), token.map(str::as_bytes), "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }

    #[test]
    fn tokens_in_the_query_go_no_further() {
        for (uri, rest, token) in [
            ("/capture?netns=5&token=abc", "/capture?netns=5", "abc"),
            ("/capture?token=abc", "/capture", "abc"),
            (
                "/capture?%74oken=a%2Bc&netns=%35&x",
                "/capture?netns=%35&x",
                "a+c",
            ),
            ("/capture?token=abc&token=abc", "/capture", ""),
            ("/capture?token", "/capture", ""),
            ("http://here/x?a=%zz&token=abc", "http://here/x?a=%zz", "abc"),
        ] {
            for is_upgrade in [true, false] {
                let mut request = request(uri, is_upgrade);
                let taken = take_query_token(&mut request);
                assert_eq!(request.uri().to_string(), rest, "{uri}");
                assert_eq!(taken, is_upgrade.then(|| token.as_bytes().to_vec()), "{uri}");
            }
        }
        for uri in ["/capture", "/capture?tokens=abc&Token=x", "/token=abc", "*"] {
            let mut request = request(uri, true);
            assert_eq!(take_query_token(&mut request), None);
            assert_eq!(request.uri().to_string(), uri);
        }
    }
}
