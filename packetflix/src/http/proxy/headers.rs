//! What a proxy changes in the heads of requests and responses. Touches nothing of the system.

use warp::http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header, request,
    uri::PathAndQuery,
};

use crate::{config::ServiceAddress, http::transport::connection::ClientConnection};

/// Where the discovery service is to be found here.
const PREFIX: &str = "/discover";

/// Tells GhostWire to show its capture buttons.
const ENABLE_MONOLITH: (HeaderName, HeaderValue) = (
    HeaderName::from_static("enable-monolith"),
    HeaderValue::from_static("Affirmative, Dave"),
);

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Headers that speak of one connection only, beside those that `Connection` names (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The protocol that a request wants to change to, if it does. HTTP/1.0 has no such thing.
pub(in crate::http) fn wanted_protocol<B>(request: &Request<B>) -> Option<HeaderValue> {
    let wanted =
        request.version() == Version::HTTP_11 && has_token(request.headers(), &header::CONNECTION, "upgrade");
    request.headers().get(header::UPGRADE).filter(|_| wanted).cloned()
}

/// Makes of a request of `client` that to the service; `protocol` is the one to change to, `length` that of the
/// body, if it is known.
pub(super) fn to_service(
    parts: &mut request::Parts,
    service: &ServiceAddress,
    client: &ClientConnection,
    protocol: Option<HeaderValue>,
    length: Option<u64>,
) {
    let takes_trailers = has_token(&parts.headers, &header::TE, "trailers");
    drop_hop_by_hop(&mut parts.headers);
    if takes_trailers {
        let trailers = HeaderValue::from_static("trailers");
        parts.headers.insert(header::TE, trailers);
    }
    if let Some(protocol) = protocol {
        set_upgrade(&mut parts.headers, protocol);
    }
    if length.is_none() {
        // Otherwise nothing would say that a GET has a body.
        let chunked = HeaderValue::from_static("chunked");
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::TRANSFER_ENCODING, chunked);
    }
    let (path, stripped) = service_path(&parts.uri);
    tell_origin(parts, client, stripped);
    let (name, value) = ENABLE_MONOLITH;
    parts.headers.insert(name, value);
    if let Ok(host) = HeaderValue::try_from(service.to_string()) {
        parts.headers.insert(header::HOST, host);
    }
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
}

/// Makes of the service's response that to the client.
pub(super) fn to_client<B>(response: &mut Response<B>) {
    let names_protocol = matches!(
        response.status(),
        StatusCode::SWITCHING_PROTOCOLS | StatusCode::UPGRADE_REQUIRED
    );
    let protocol = response.headers().get(header::UPGRADE).cloned();
    drop_hop_by_hop(response.headers_mut());
    if let Some(protocol) = protocol.filter(|_| names_protocol) {
        set_upgrade(response.headers_mut(), protocol);
    }
    *response.version_mut() = Version::HTTP_11;
}

/// Path and query at the service, byte for byte, and whether the prefix was taken off.
fn service_path(uri: &Uri) -> (PathAndQuery, bool) {
    let whole = uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let rest = match whole.as_str().strip_prefix(PREFIX) {
        Some(rest) if rest.starts_with('/') => PathAndQuery::try_from(rest),
        Some(rest) if rest.is_empty() || rest.starts_with('?') => PathAndQuery::try_from(format!("/{rest}")),
        _ => return (whole, false),
    };
    // The rest of a valid path is a valid path.
    rest.map_or((whole, false), |rest| (rest, true))
}

/// Tells the service where the request comes from. What a proxy before us said stays; only the list of
/// addresses, and the prefix, become longer.
fn tell_origin(parts: &mut request::Parts, client: &ClientConnection, stripped: bool) {
    // An authority in the request line wins over the header (RFC 9112, section 3.2.2).
    let host = parts
        .uri
        .authority()
        .and_then(|authority| HeaderValue::try_from(authority.as_str()).ok())
        .or_else(|| parts.headers.get(header::HOST).cloned());
    let headers = &mut parts.headers;
    if let Some(address) = client.peer.ip() {
        append(headers, X_FORWARDED_FOR, ", ", &address.to_string());
    }
    if let Some(host) = host {
        headers.entry(X_FORWARDED_HOST).or_insert(host);
    }
    headers
        .entry(X_FORWARDED_PROTO)
        .or_insert(HeaderValue::from_static(if client.is_encrypted {
            "https"
        } else {
            "http"
        }));
    if stripped {
        append(headers, X_FORWARDED_PREFIX, "", PREFIX);
    }
}

/// Makes one line of all of that name, with `last` at its end.
fn append(headers: &mut HeaderMap, name: HeaderName, separator: &str, last: &str) {
    let mut values: Vec<&[u8]> = headers.get_all(&name).iter().map(HeaderValue::as_bytes).collect();
    values.retain(|value| !value.is_empty());
    values.push(last.as_bytes());
    if let Ok(value) = HeaderValue::from_bytes(&values.join(separator.as_bytes())) {
        headers.insert(name, value);
    }
}

fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        // It wins over the length, which must not go on then (RFC 9112, section 6.3).
        headers.remove(header::CONTENT_LENGTH);
    }
    let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
        .filter_map(|token| token.parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

fn has_token(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    tokens(headers, name).any(|token| token.eq_ignore_ascii_case(wanted))
}

/// The members of a list, over all lines of that name. What is no text is no token.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::service::Peer;

    fn client(address: &str) -> ClientConnection {
        ClientConnection {
            peer: Peer::Tcp((address.parse::<std::net::IpAddr>().unwrap(), 7).into()),
            local: None,
            certificate: None,
            is_encrypted: false,
            place: None,
        }
    }

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    /// What the service gets, each header as a line.
    fn served(request: Request<()>) -> (String, Vec<String>) {
        let protocol = wanted_protocol(&request);
        let service = ServiceAddress {
            host: "::1".to_owned(),
            port: 5000,
        };
        let (mut parts, ()) = request.into_parts();
        to_service(&mut parts, &service, &client("192.0.2.7"), protocol, Some(0));
        (parts.uri.to_string(), lines(&parts.headers))
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<String> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn prefix_is_taken_off_and_nothing_else_changed() {
        for (asked, served, stripped) in [
            ("/discover", "/", true),
            ("/discover/", "/", true),
            ("/discover?a=b", "/?a=b", true),
            ("/discover/mobyshark?a=%2F&b=%zz", "/mobyshark?a=%2F&b=%zz", true),
            ("/discover//x/../y", "//x/../y", true),
            ("/discover/discover/x", "/discover/x", true),
            ("/discover/a%20b?", "/a%20b?", true),
            ("/discovery/x", "/discovery/x", false),
            ("/x/discover/y", "/x/discover/y", false),
            ("/Discover/x", "/Discover/x", false),
            ("/?a=/discover", "/?a=/discover", false),
            ("http://host/discover/x", "/x", true),
            ("http://host", "/", false),
            ("*", "*", false),
        ] {
            let (path, found) = service_path(&asked.parse().unwrap());
            assert_eq!((path.as_str(), found), (served, stripped), "{asked}");
        }
    }

    #[test]
    fn hop_by_hop_headers_end_here() {
        let (_, headers) = served(request(
            "/x",
            &[
                ("host", "here"),
                ("connection", "close, X-Mine"),
                ("connection", "x-too"),
                ("x-mine", "1"),
                ("x-too", "1"),
                ("x-other", "1"),
                ("x-other", "2"),
                ("keep-alive", "timeout=5"),
                ("proxy-connection", "keep-alive"),
                ("proxy-authenticate", "Basic"),
                ("proxy-authorization", "Basic abc"),
                ("te", "gzip, Trailers"),
                ("trailer", "x-sum"),
                ("upgrade", "websocket"),
                ("authorization", "Bearer abc"),
            ],
        ));
        assert_eq!(
            headers,
            [
                "authorization: Bearer abc",
                "enable-monolith: Affirmative, Dave",
                "host: [::1]:5000",
                "te: trailers",
                "x-forwarded-for: 192.0.2.7",
                "x-forwarded-host: here",
                "x-forwarded-proto: http",
                "x-other: 1",
                "x-other: 2",
            ]
        );
    }

    #[test]
    fn proxies_in_front_are_believed() {
        let (uri, headers) = served(request(
            "http://line/discover/x",
            &[
                ("host", "here"),
                ("x-forwarded-for", "198.51.100.1"),
                ("x-forwarded-for", "198.51.100.2, 198.51.100.3"),
                ("x-forwarded-host", "public"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-prefix", "/node"),
                ("enable-monolith", "no"),
            ],
        ));
        assert_eq!(uri, "/x");
        assert_eq!(
            headers,
            [
                "enable-monolith: Affirmative, Dave",
                "host: [::1]:5000",
                "x-forwarded-for: 198.51.100.1, 198.51.100.2, 198.51.100.3, 192.0.2.7",
                "x-forwarded-host: public",
                "x-forwarded-prefix: /node/discover",
                "x-forwarded-proto: https",
            ]
        );
        let (_, headers) = served(request("http://line/x", &[("host", "here")]));
        assert!(headers.contains(&"x-forwarded-host: line".to_owned()));
    }

    #[test]
    fn mapped_addresses_of_peers_are_ipv4() {
        let (mut parts, ()) = request("/", &[]).into_parts();
        tell_origin(&mut parts, &client("::ffff:192.0.2.7"), false);
        assert_eq!(parts.headers[X_FORWARDED_FOR], "192.0.2.7");
        assert!(!parts.headers.contains_key(X_FORWARDED_PREFIX));
    }

    #[test]
    fn what_the_connection_is_like_is_told() {
        let (mut parts, ()) = request("/", &[]).into_parts();
        let client = ClientConnection {
            peer: Peer::Unix(1000),
            is_encrypted: true,
            place: None,
            ..client("192.0.2.7")
        };
        tell_origin(&mut parts, &client, false);
        assert_eq!(parts.headers[X_FORWARDED_PROTO], "https");
        assert!(!parts.headers.contains_key(X_FORWARDED_FOR));
    }

    #[test]
    fn upgrades_are_wanted_by_two_headers() {
        for (connection, upgrade, version, wanted) in [
            ("keep-alive, UPGRADE", "websocket", Version::HTTP_11, true),
            ("upgrade", "websocket", Version::HTTP_10, false),
            ("keep-alive", "websocket", Version::HTTP_11, false),
            ("upgrades", "websocket", Version::HTTP_11, false),
        ] {
            let mut request = request("/", &[("connection", connection), ("upgrade", upgrade)]);
            *request.version_mut() = version;
            assert_eq!(wanted_protocol(&request).is_some(), wanted, "{connection}");
            let (_, headers) = served(request);
            let goes_on = headers.contains(&"upgrade: websocket".to_owned());
            assert_eq!(goes_on, wanted, "{headers:?}");
            assert_eq!(headers.contains(&"connection: Upgrade".to_owned()), wanted);
        }
        assert!(wanted_protocol(&request("/", &[("connection", "upgrade")])).is_none());
    }

    #[test]
    fn only_one_header_says_where_a_body_ends() {
        let service = ServiceAddress {
            host: "host".to_owned(),
            port: 80,
        };
        let both = [("content-length", "5"), ("transfer-encoding", "chunked")];
        let (mut parts, ()) = request("/", &both).into_parts();
        to_service(&mut parts, &service, &client("192.0.2.7"), None, None);
        assert_eq!(parts.headers[header::TRANSFER_ENCODING], "chunked");
        assert!(!parts.headers.contains_key(header::CONTENT_LENGTH));

        let (mut parts, ()) = request("/", &both[..1]).into_parts();
        to_service(&mut parts, &service, &client("192.0.2.7"), None, Some(5));
        assert_eq!(parts.headers[header::CONTENT_LENGTH], "5");
        assert!(!parts.headers.contains_key(header::TRANSFER_ENCODING));
    }

    #[test]
    fn responses_name_a_protocol_when_they_must() {
        for (status, named) in [(101, true), (426, true), (200, false), (404, false)] {
            let mut response = Response::builder()
                .status(status)
                .header("connection", "upgrade, x-mine")
                .header("upgrade", "websocket")
                .header("x-mine", "1")
                .header("set-cookie", "a=1")
                .header("set-cookie", "b=2")
                .body(())
                .unwrap();
            to_client(&mut response);
            let mut expected = vec!["set-cookie: a=1", "set-cookie: b=2"];
            if named {
                expected.extend(["connection: Upgrade", "upgrade: websocket"]);
                expected.sort_unstable();
            }
            assert_eq!(lines(response.headers()), expected, "{status}");
        }
    }

    proptest! {
        #[test]
        fn takes_any_headers(values in proptest::collection::vec((0..HOP_BY_HOP.len(), any::<Vec<u8>>()), 0..8)) {
            let mut request = request("/discover/x", &[]);
            for (name, value) in values {
                if let Ok(value) = HeaderValue::from_bytes(&value) {
                    request.headers_mut().append(&HOP_BY_HOP[name], value);
                }
            }
            let protocol = wanted_protocol(&request);
            let is_upgrade = protocol.is_some();
            let service = ServiceAddress { host: "host".to_owned(), port: 80 };
            let (mut parts, ()) = request.into_parts();
            to_service(&mut parts, &service, &client("192.0.2.7"), protocol, Some(0));
            prop_assert_eq!(parts.headers.contains_key(header::UPGRADE), is_upgrade);
            prop_assert!(!parts.headers.contains_key(header::PROXY_AUTHORIZATION));
        }
    }
}
