//! What the service's own traffic is on account of a client.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use warp::http::{HeaderMap, header, uri::Authority};

use super::{
    capture::{Handshake, LocalEnd},
    host::OwnNames,
};
use crate::{proc_fs::namespace_link, tap::OwnTraffic};

/// The service's own traffic.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) traffic: OwnTraffic,
    /// Some of it we have only on the word of this client: no other client's capture is to lack that.
    pub(super) is_claimed: bool,
    /// What the stream says of that, or nothing.
    pub(super) comment: String,
}

/// Where a client says that it reaches us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claimed {
    /// The address, if it names one.
    address: Option<IpAddr>,
    port: u16,
}

impl Own {
    /// What of the traffic in the namespace `netns` is ours: the connections that were accepted at our ports, those of
    /// `listening`. Where addresses are translated on the way here, packets of a connection have other addresses than those
    /// that we know. That shows where the client names another place for us than that at which its connection ends; then
    /// it is also what the place that it names says and hears at its port, and what either says to the client, whatever
    /// our address has become there.
    pub(super) fn find(
        handshake: &Handshake,
        netns: u64,
        listening: &[SocketAddr],
        names: &OwnNames,
    ) -> Self {
        if listening.is_empty() {
            return Self::default();
        }
        let home = namespace_link(Path::new("/proc/self/ns/net"));
        let is_here = home.is_ok_and(|(_, inode)| inode == netns);
        let mut traffic = OwnTraffic {
            ports: listening.iter().map(SocketAddr::port).collect(),
            endpoints: Vec::new(),
            is_here,
        };
        let mut comment = String::new();
        let claimed = claimed_by(handshake, names);
        if let Some(claimed) = claimed {
            traffic.ports.push(claimed.port);
            let asked = claimed
                .address
                .map(|address| SocketAddr::new(address, claimed.port));
            // The loopback device of another namespace is none of ours.
            let is_seen = |endpoint: &SocketAddr| is_here || !endpoint.ip().is_loopback();
            let ends = handshake.peer.into_iter().chain(asked).map(canonical);
            traffic.endpoints = ends.filter(is_seen).collect();
        }
        traffic.ports.sort_unstable();
        traffic.ports.dedup();
        if !traffic.endpoints.is_empty() {
            comment = told(&traffic);
        }
        Self {
            traffic,
            is_claimed: claimed.is_some(),
            comment,
        }
    }
}

/// What is left out beyond connections that are known, in a sentence.
fn told(traffic: &OwnTraffic) -> String {
    let mut text =
        "left out as the service's own traffic, since addresses are translated on the way to it: all TCP of"
            .to_owned();
    let list = |text: &mut String, all: &[String]| {
        for (number, one) in all.iter().enumerate() {
            let before = if number == 0 { " " } else { " and " };
            // Writing to a string does not fail.
            let _ = write!(text, "{before}{one}");
        }
    };
    let endpoints: Vec<String> = traffic.endpoints.iter().map(SocketAddr::to_string).collect();
    let ports: Vec<String> = traffic.ports.iter().map(u16::to_string).collect();
    list(&mut text, &endpoints);
    text += ", and of others who reach it there, at port";
    list(&mut text, &ports);
    text
}

/// Where the client says that it reaches us, if that is not where its connection ends. A name that is our own is no other
/// place; of others it is not known where they lead.
fn claimed_by(handshake: &Handshake, names: &OwnNames) -> Option<Claimed> {
    let LocalEnd(local) = handshake.local?;
    let local = canonical(local);
    let (host, asked) = asked_endpoint(&handshake.headers)?;
    let is_direct = asked.port == local.port()
        && match asked.address {
            Some(address) => address == local.ip(),
            None if host.eq_ignore_ascii_case("localhost") => local.ip().is_loopback(),
            None => names.have(&host),
        };
    (!is_direct).then_some(asked)
}

/// An address of IPv4 in its own form.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
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
    use crate::service::Caller;

    fn handshake(host: &str, local: &str) -> Handshake {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        Handshake {
            query: String::new(),
            headers,
            on_upgrade: None,
            peer: Some("[::ffff:10.0.0.9]:4000".parse().unwrap()),
            local: Some(LocalEnd(local.parse().unwrap())),
            caller: Caller::nobody(None),
        }
    }

    fn find(host: &str, local: &str) -> Own {
        let names = OwnNames::of_machine("desk", &["capture.example".parse().unwrap()]);
        let listening = ["[::]:5001".parse().unwrap(), "[::1]:5002".parse().unwrap()];
        Own::find(&handshake(host, local), 0, &listening, &names)
    }

    #[test]
    fn connections_are_enough_where_nothing_is_translated() {
        for (host, local) in [
            ("10.0.0.1:5001", "10.0.0.1:5001"),
            ("10.0.0.1:5001", "[::ffff:10.0.0.1]:5001"),
            ("[fd00::1]:5001", "[fd00::1]:5001"),
            ("localhost:5001", "127.0.0.1:5001"),
            ("desk:5001", "10.0.0.1:5001"),
            // What names no port says nothing of where it was.
            ("10.0.0.1", "10.0.0.1:5001"),
        ] {
            let own = find(host, local);
            assert_eq!((own.is_claimed, &own.comment[..]), (false, ""), "{host} {local}");
            assert_eq!(
                (own.traffic.ports, own.traffic.endpoints.len()),
                (vec![5001, 5002], 0)
            );
        }
    }

    #[test]
    fn what_the_client_names_counts_where_addresses_are_translated() {
        let own = find("192.0.2.1:30001", "10.0.0.1:5001");
        assert_eq!(own.traffic.ports, [5001, 5002, 30_001]);
        let ends = ["10.0.0.9:4000", "192.0.2.1:30001"].map(|end| end.parse().unwrap());
        assert_eq!(own.traffic.endpoints, ends);
        assert_eq!(
            own.comment,
            "left out as the service's own traffic, since addresses are translated on the way to it: all TCP of \
             10.0.0.9:4000 and 192.0.2.1:30001, and of others who reach it there, at port 5001 and 5002 and 30001"
        );
        for (host, local, ends) in [
            ("192.0.2.1:5001", "10.0.0.1:5001", 2),
            ("elsewhere.example:5001", "10.0.0.1:5001", 1),
            ("localhost:5001", "10.0.0.1:5001", 1),
            ("desk:80", "10.0.0.1:5001", 1),
            // Loopback is another's in another namespace.
            ("127.0.0.1:5001", "10.0.0.1:5001", 1),
        ] {
            let own = find(host, local);
            assert!(own.is_claimed && !own.comment.is_empty(), "{host} {local}");
            assert_eq!(own.traffic.endpoints.len(), ends, "{host} {local}");
        }
    }
}
