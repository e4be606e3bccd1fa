//! What a request shows of who sends it: a token in a header, as a subprotocol or in the query, beside what its connection shows.

use std::{fmt::Display, time::Instant};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use warp::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, header, uri::PathAndQuery};

use super::{
    api::{code::Code, refusal::Refusal},
    proxy::headers::wanted_protocol,
    transport::connection::ClientConnection,
};
use crate::{
    access::{Access, AccessError, Rights},
    service::{Caller, Shown},
};

/// The parameter of a query that may hold a token.
const TOKEN_PARAMETER: &str = "token";

/// What a subprotocol begins with that is a token, in base64url without padding (RFC 4648, section 5).
const TOKEN_PROTOCOL: &[u8] = b"bearer.";

/// Who sent a request at that time with these headers over a connection of `client`; `token` came in its query or as a subprotocol.
///
/// # Errors
/// When they are not let in.
pub(super) fn identify(
    access: &Access,
    came: Instant,
    client: &ClientConnection,
    headers: &HeaderMap,
    token: Option<&[u8]>,
) -> Result<Caller, AccessError> {
    let shown = Shown {
        came,
        peer: client.peer,
        token: shown_token(headers, token),
        certificate: client.certificate.as_ref(),
    };
    Caller::identify(access, shown)
}

/// Says on whose behalf a request is sent: what these may do, as JSON. It bounds what its sender may do, and is in the answer
/// of whoever heeds it.
pub(super) const RIGHTS: HeaderName = HeaderName::from_static("packetflix-rights");

/// The rights of whom a request is sent on behalf of, if it is.
///
/// # Errors
/// When they cannot be read.
pub(super) fn rights_shown(headers: &HeaderMap) -> Result<Option<Rights>, Refusal> {
    let mut shown = headers.get_all(RIGHTS).iter();
    let Some(rights) = shown.next() else {
        return Ok(None);
    };
    let wrong =
        |why: &dyn Display| Refusal::new(Code::RequestInvalid, format!("{RIGHTS} has no rights: {why}"));
    if shown.next().is_some() {
        return Err(wrong(&"it is there more than once"));
    }
    let rights = serde_json::from_slice(rights.as_bytes()).map_err(|error| wrong(&error))?;
    Ok(Some(rights))
}

/// The token that a request shows: in a header, else the one that came in its query or as a subprotocol.
pub(super) fn shown_token<'a>(headers: &'a HeaderMap, token: Option<&'a [u8]>) -> Option<&'a [u8]> {
    bearer(headers).or(token)
}

/// The token that a header holds (RFC 6750, section 2.1). What is there and is none, is a wrong one.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then_some(token.trim_ascii())
}

/// Takes tokens out of the subprotocols that a handshake offers, in which a page of a browser can send one: it may set no
/// header there. Gives one if the request is for an upgrade; what is there and is none, or not the only one, is a wrong one.
pub(super) fn take_protocol_token<B>(request: &mut Request<B>) -> Option<Vec<u8>> {
    let headers = request.headers_mut();
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<Vec<u8>> = offered
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .map(|protocol| protocol.trim_ascii().to_owned())
        .collect();
    let (mut tokens, kept): (Vec<_>, Vec<_>) = offered
        .into_iter()
        .partition(|protocol| protocol.starts_with(TOKEN_PROTOCOL));
    let token = tokens.pop()?;
    headers.remove(header::SEC_WEBSOCKET_PROTOCOL);
    // Part of what was valid is valid.
    if let Ok(value) = HeaderValue::from_bytes(&kept.join(&b", "[..]))
        && !kept.is_empty()
    {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, value);
    }
    let is_upgrade = wanted_protocol(request).is_some();
    let decoded = BASE64_URL_SAFE_NO_PAD.decode(&token[TOKEN_PROTOCOL.len()..]);
    let token = decoded.ok().filter(|_| tokens.is_empty());
    is_upgrade.then(|| token.unwrap_or_default())
}

/// Takes tokens out of the request's query, so that nothing that follows can pass them on or log them. Gives one if
/// there is one only, and the request is for an upgrade: browsers let a page set headers for all others.
pub(super) fn take_query_token<B>(request: &mut Request<B>) -> Option<Vec<u8>> {
    let is_upgrade = wanted_protocol(request).is_some();
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
    fn tokens_come_as_subprotocols_and_go_no_further() {
        for (offered, rest, token) in [
            (
                &["packetflix.v1, bearer.YWJj"][..],
                Some("packetflix.v1"),
                Some("abc"),
            ),
            (
                &["bearer.YWJjZA,packetflix.v1", "x"],
                Some("packetflix.v1, x"),
                Some("abcd"),
            ),
            (
                &["packetflix.v1", "bearer.YWJjZGU"],
                Some("packetflix.v1"),
                Some("abcde"),
            ),
            (&["bearer.Pj8_"], None, Some(">??")),
            (&["bearer.YWJj, bearer.YWJj"], None, Some("")),
            (&["bearer."], None, Some("")),
            (&["bearer.YWI"], None, Some("ab")),
            (&["bearer.YWJ"], None, Some("")),
            (&["bearer.YWJj="], None, Some("")),
            (&["bearer.Y"], None, Some("")),
            (&["bearer.Pj8/"], None, Some("")),
            (&["packetflix.v1"], Some("packetflix.v1"), None),
            (&["Bearer.YWJj"], Some("Bearer.YWJj"), None),
            (&[], None, None),
        ] {
            let mut request = request("/capture", true);
            for value in offered {
                let value = HeaderValue::from_static(value);
                request
                    .headers_mut()
                    .append(header::SEC_WEBSOCKET_PROTOCOL, value);
            }
            let taken = take_protocol_token(&mut request);
            assert_eq!(taken.as_deref(), token.map(str::as_bytes), "{offered:?}");
            let kept = request.headers().get(header::SEC_WEBSOCKET_PROTOCOL);
            assert_eq!(kept.map(|value| value.to_str().unwrap()), rest, "{offered:?}");
        }
        let mut request = request("/targets", false);
        let value = HeaderValue::from_static("bearer.YWJj");
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, value);
        assert_eq!(take_protocol_token(&mut request), None);
        assert!(request.headers().is_empty());
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
