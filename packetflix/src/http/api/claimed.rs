//! Where a client says that it reaches us.

use std::net::{IpAddr, SocketAddr};

use warp::http::{HeaderMap, header, uri::Authority};

use crate::http::host::OwnNames;
use crate::service::Claimed;

/// Where the client says that it reaches us, if that is not where its connection ends. A name that is our own is no other
/// place; of others it is not known where they lead.
pub(crate) fn claimed_by(headers: &HeaderMap, local: SocketAddr, names: &OwnNames) -> Option<Claimed> {
    let (host, asked) = asked_endpoint(headers)?;
    let ip = local.ip().to_canonical();
    let is_direct = asked.port == local.port()
        && match asked.address {
            Some(address) => address == ip,
            None if host.eq_ignore_ascii_case("localhost") => ip.is_loopback(),
            None => names.have(&host),
        };
    (!is_direct).then_some(asked)
}

/// What the client calls us, with the port that it names as ours, and the address, if it names us by one.
fn asked_endpoint(headers: &HeaderMap) -> Option<(String, Claimed)> {
    let host: Authority = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    let address = host.host().trim_start_matches('[').trim_end_matches(']');
    let claimed = Claimed {
        address: address.parse().ok().map(|address: IpAddr| address.to_canonical()),
        port: host.port_u16()?,
    };
    Some((host.host().to_owned(), claimed))
}

#[cfg(test)]
mod tests {
    use warp::http::HeaderValue;

    use super::*;

    fn claimed(host: &str, local: &str) -> Option<Claimed> {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let names = OwnNames::of_machine("desk", &["capture.example".parse().unwrap()]);
        claimed_by(&headers, local.parse().unwrap(), &names)
    }

    #[test]
    fn nothing_is_claimed_where_connections_end_at_the_place_that_is_named() {
        for (host, local) in [
            ("10.0.0.1:5001", "10.0.0.1:5001"),
            ("10.0.0.1:5001", "[::ffff:10.0.0.1]:5001"),
            ("[fd00::1]:5001", "[fd00::1]:5001"),
            ("localhost:5001", "127.0.0.1:5001"),
            ("desk:5001", "10.0.0.1:5001"),
            // What names no port says nothing of where it was.
            ("10.0.0.1", "10.0.0.1:5001"),
        ] {
            assert_eq!(claimed(host, local), None, "{host} {local}");
        }
    }

    #[test]
    fn another_place_is_claimed_where_addresses_are_translated() {
        for (host, local, address, port) in [
            ("192.0.2.1:30001", "10.0.0.1:5001", Some("192.0.2.1"), 30_001),
            ("192.0.2.1:5001", "10.0.0.1:5001", Some("192.0.2.1"), 5001),
            ("elsewhere.example:5001", "10.0.0.1:5001", None, 5001),
            ("localhost:5001", "10.0.0.1:5001", None, 5001),
            ("desk:80", "10.0.0.1:5001", None, 80),
            ("127.0.0.1:5001", "10.0.0.1:5001", Some("127.0.0.1"), 5001),
        ] {
            let address = address.map(|address| address.parse().unwrap());
            assert_eq!(
                claimed(host, local),
                Some(Claimed { address, port }),
                "{host} {local}"
            );
        }
    }
}
