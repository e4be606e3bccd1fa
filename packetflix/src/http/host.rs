//! Under which names the service may be reached by those who show nothing.
//!
//! A page that somebody looks at may come from a name that its owner lets lead to our address (DNS rebinding). Then the
//! browser takes us for where the page came from, and only the name in `Host` tells that it is none of ours.

use std::net::IpAddr;

use warp::http::{HeaderMap, HeaderValue, Uri, header, uri::Authority};

use super::api::request::RequestError;
use crate::config::HostName;

/// Where machines have their own names (hosts(5)).
const HOSTS: &str = "/etc/hosts";
const LOCALHOST: &str = "localhost";

/// The names that are ours.
#[derive(Clone, Debug)]
pub(super) struct OwnNames(Vec<HostName>);

impl OwnNames {
    /// `localhost`, what the machine calls itself, whole and up to the first dot, what else its own table has for that,
    /// and `more`.
    pub(super) fn of_machine(node_name: &str, more: &[HostName]) -> Self {
        let table = std::fs::read_to_string(HOSTS).unwrap_or_default();
        Self::new(node_name, &table, more)
    }

    fn new(node_name: &str, table: &str, more: &[HostName]) -> Self {
        let short = node_name.split('.').next().unwrap_or_default();
        let lines = table
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default());
        let is_ours = |name: &&str| !name.is_empty() && name.eq_ignore_ascii_case(node_name);
        let beside = lines
            .map(|line| line.split_whitespace().skip(1))
            .filter(|names| names.clone().any(|name| is_ours(&name)))
            .flatten();
        let names = [LOCALHOST, node_name, short].into_iter().chain(beside);
        let names = names.filter_map(|name| name.parse().ok());
        Self(names.chain(more.iter().cloned()).collect())
    }

    /// Whether this is one of them.
    pub(super) fn have(&self, name: &str) -> bool {
        name.parse::<HostName>().is_ok_and(|name| self.0.contains(&name))
    }

    /// Checks that a request names us by an address or one of our names. What names no host at all comes from no browser.
    ///
    /// # Errors
    /// When it names another, or what cannot be read.
    pub(super) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), RequestError> {
        let in_header = headers.get(header::HOST).map(HeaderValue::as_bytes);
        let in_line = uri.authority().map(|authority| authority.as_str().as_bytes());
        for named in in_header.into_iter().chain(in_line) {
            let text = std::str::from_utf8(named).ok();
            if !text.is_some_and(|text| self.are_meant_by(text)) {
                let host = String::from_utf8_lossy(named).into_owned();
                return Err(RequestError::ForeignHost { host });
            }
        }
        Ok(())
    }

    fn are_meant_by(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host();
        let port = authority.as_str().strip_prefix(name);
        // The crate takes names before an @, and anything for a port.
        let is_plain = port.is_some_and(|port| {
            port.is_empty()
                || port
                    .strip_prefix(':')
                    .is_some_and(|port| port.parse::<u16>().is_ok())
        });
        let address = name.trim_start_matches('[').trim_end_matches(']');
        is_plain && (address.parse::<IpAddr>().is_ok() || self.have(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str =
        "127.0.0.1 localhost\n127.0.1.1\tdesk.example.org desk # mine\n10.0.0.9 other desktop\n";

    fn names() -> OwnNames {
        OwnNames::new("Desk", TABLE, &["capture.example".parse().unwrap()])
    }

    fn check(host: &[u8]) -> Result<(), RequestError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_bytes(host).unwrap());
        names().check(&Uri::from_static("/targets"), &headers)
    }

    #[test]
    fn hosts_are_addresses_and_our_own_names() {
        for host in [
            "127.0.0.1:5001",
            "10.1.2.3",
            "[::1]:5001",
            "[fd00::1]",
            "localhost:5001",
            "LOCALHOST.",
            "desk",
            "desk.example.org:5001",
            "capture.example",
        ] {
            assert_eq!(check(host.as_bytes()), Ok(()), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:5001",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "other",
            "desktop",
            "x@127.0.0.1",
            "evil.example@localhost",
            "localhost:99999",
            "localhost:",
            "127.1",
            "0x7f000001",
            "",
            ".",
            "capture.example:x",
            "sub.capture.example",
            "\u{fc}.example",
        ] {
            let error = check(host.as_bytes()).unwrap_err();
            assert_eq!(
                error,
                RequestError::ForeignHost {
                    host: host.to_owned()
                }
            );
        }
        assert!(check(b"\xff").is_err());
        assert_eq!(names().check(&Uri::from_static("/x"), &HeaderMap::new()), Ok(()));
        let evil = Uri::from_static("http://evil.example/targets");
        assert!(names().check(&evil, &HeaderMap::new()).is_err());
    }

    #[test]
    fn a_machine_without_a_name_has_none() {
        let names = OwnNames::new("", "127.0.0.1 localhost\n::1\n", &[]);
        assert!(names.have("localhost") && !names.have("") && !names.have("desk"));
    }

    proptest! {
        #[test]
        fn takes_any_host(host in any::<Vec<u8>>()) {
            let mut headers = HeaderMap::new();
            if let Ok(host) = HeaderValue::from_bytes(&host) {
                headers.insert(header::HOST, host);
            }
            let _ = names().check(&Uri::from_static("/"), &headers);
        }
    }
}
