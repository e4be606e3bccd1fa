//! What the service's own traffic is on account of a client.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use crate::{proc_fs::namespace_link, tap::OwnTraffic};

/// The service's own traffic.
#[derive(Debug, Default)]
pub(crate) struct Own {
    pub(crate) traffic: OwnTraffic,
    /// Some of it we have only on the word of this client: no other client's capture is to lack that.
    pub(crate) is_claimed: bool,
    /// What the stream says of that, or nothing.
    pub(crate) comment: String,
}

/// Where a client says that it reaches us, if that is not where its connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// The address, if it names one.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

impl Own {
    /// What of the traffic in the namespace `netns` is ours: the connections that were accepted at our ports, those of
    /// `listening`. Where addresses are translated on the way here, packets of a connection have other addresses than those
    /// that we know. That shows where the client names another place for us than that at which its connection ends; then
    /// it is also what the place that it names says and hears at its port, and what either says to the client, whatever
    /// our address has become there.
    pub(crate) fn find(
        netns: u64,
        listening: &[SocketAddr],
        peer: Option<SocketAddr>,
        claimed: Option<Claimed>,
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
        if let Some(claimed) = claimed {
            traffic.ports.push(claimed.port);
            let asked = claimed
                .address
                .map(|address| SocketAddr::new(address, claimed.port));
            // The loopback device of another namespace is none of ours.
            let is_seen = |endpoint: &SocketAddr| is_here || !endpoint.ip().is_loopback();
            let ends = peer.into_iter().chain(asked).map(canonical);
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

/// An address of IPv4 in its own form.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(claimed: Option<(Option<&str>, u16)>) -> Own {
        let claimed = claimed.map(|(address, port)| Claimed {
            address: address.map(|address| address.parse().unwrap()),
            port,
        });
        let listening = ["[::]:5001", "[::1]:5002"].map(|address| address.parse().unwrap());
        let peer = "[::ffff:10.0.0.9]:4000".parse().ok();
        Own::find(0, &listening, peer, claimed)
    }

    #[test]
    fn connections_are_enough_where_nothing_is_translated() {
        let own = find(None);
        assert_eq!((own.is_claimed, &own.comment[..]), (false, ""));
        assert_eq!(
            (own.traffic.ports, own.traffic.endpoints.len()),
            (vec![5001, 5002], 0)
        );
    }

    #[test]
    fn what_the_client_names_counts_where_addresses_are_translated() {
        let own = find(Some((Some("192.0.2.1"), 30_001)));
        assert_eq!(own.traffic.ports, [5001, 5002, 30_001]);
        let ends = ["10.0.0.9:4000", "192.0.2.1:30001"].map(|end| end.parse().unwrap());
        assert_eq!(own.traffic.endpoints, ends);
        assert_eq!(
            own.comment,
            "left out as the service's own traffic, since addresses are translated on the way to it: all TCP of \
             10.0.0.9:4000 and 192.0.2.1:30001, and of others who reach it there, at port 5001 and 5002 and 30001"
        );
        for (address, ends) in [
            (Some("192.0.2.1"), 2),
            (None, 1),
            // Loopback is another's in another namespace.
            (Some("127.0.0.1"), 1),
        ] {
            let own = find(Some((address, 5001)));
            assert!(own.is_claimed && !own.comment.is_empty(), "{address:?}");
            assert_eq!(own.traffic.endpoints.len(), ends, "{address:?}");
        }
    }
}
