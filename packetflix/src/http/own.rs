//! What the service's own traffic is on account of a client.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use packetflix_common::MAX_OWN_ENDPOINTS;
use warp::http::{HeaderMap, header, uri::Authority};

use super::capture::{Handshake, LocalEnd};
use crate::{netns::own_addresses, session::Claimed, tap::OwnTraffic};

/// The service's own traffic.
#[derive(Debug, Default)]
pub(super) struct Own {
    pub(super) traffic: OwnTraffic,
    /// What of it we have only on the word of this client: no other client's capture is to lack that.
    pub(super) claimed: Option<Claimed>,
}

impl Own {
    /// What of the traffic in the namespace `netns` is ours, as far as it can be known: what our ports, those of
    /// `listening`, say and hear at the addresses that we have, and the port that the client asked for at the address
    /// that it asked for; and what either says to the client, whatever our address has become there. A client at a Unix
    /// socket adds nothing to what is ours anyway.
    pub(super) async fn find(handshake: &Handshake, netns: u64, listening: &[SocketAddr]) -> Self {
        if listening.is_empty() {
            return Self::default();
        }
        let local = handshake.local.map(|LocalEnd(local)| local);
        let (own_netns, addresses) = tokio::task::spawn_blocking(own_addresses)
            .await
            .unwrap_or_default();
        // The loopback device of another namespace is none of ours.
        let is_seen = |endpoint: &SocketAddr| own_netns == Some(netns) || !endpoint.ip().is_loopback();
        let asked = handshake.peer.and_then(|_| asked_endpoint(&handshake.headers));
        let asked_at = asked.and_then(|asked| Some(SocketAddr::new(asked.address?, asked.port)));
        let mut ports: Vec<u16> = listening.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        let ours = listening.iter().flat_map(|bound| reached_at(*bound, &addresses));
        let mut seen = HashSet::new();
        // The most important first: there is an end to what a capture can hold.
        let endpoints: Vec<SocketAddr> = local
            .into_iter()
            .chain(ours)
            .map(canonical)
            .filter(|endpoint| is_seen(endpoint) && seen.insert(*endpoint))
            .collect();
        let is_ours = asked_at.is_none_or(|asked| endpoints.contains(&asked) || !is_seen(&asked));
        let claimed = asked.filter(|asked| !is_ours || !ports.contains(&asked.port));
        let others = handshake
            .peer
            .into_iter()
            .chain(asked_at)
            .map(canonical)
            .filter(|endpoint| is_seen(endpoint) && seen.insert(*endpoint));
        ports.extend(claimed.map(|asked| asked.port));
        ports.sort_unstable();
        ports.dedup();
        let others: Vec<SocketAddr> = others.collect();
        Self {
            traffic: OwnTraffic {
                ports,
                endpoints: others
                    .into_iter()
                    .chain(endpoints)
                    .take(MAX_OWN_ENDPOINTS as usize)
                    .collect(),
            },
            claimed,
        }
    }
}

/// Where a listening socket is reached: at its address, or at all that we have when it has none.
fn reached_at(bound: SocketAddr, addresses: &[IpAddr]) -> Vec<SocketAddr> {
    if !bound.ip().is_unspecified() {
        return vec![bound];
    }
    let is_served = |address: &&IpAddr| bound.is_ipv6() || address.is_ipv4();
    let served = addresses.iter().filter(is_served);
    served
        .map(|address| SocketAddr::new(*address, bound.port()))
        .collect()
}

/// An address of IPv4 in its own form.
fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

/// The port that the client names as ours, and the address, if it names us by one.
fn asked_endpoint(headers: &HeaderMap) -> Option<Claimed> {
    let host: Authority = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
    let address = host.host().trim_start_matches('[').trim_end_matches(']');
    Some(Claimed {
        address: address.parse().ok().map(|address: IpAddr| address.to_canonical()),
        port: host.port_u16()?,
    })
}
