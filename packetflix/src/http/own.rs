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
    /// What of the traffic in the namespace `netns` is ours, as far as it can be known: what our port says and hears at
    /// the addresses that we have, and the port that the client asked for at the address that it asked for; and what
    /// either says to the client, whatever our address has become there.
    pub(super) async fn find(handshake: &Handshake, netns: u64) -> Self {
        let (Some(peer), Some(LocalEnd(local))) = (handshake.peer, handshake.local) else {
            return Self::default();
        };
        let (own_netns, addresses) = tokio::task::spawn_blocking(own_addresses)
            .await
            .unwrap_or_default();
        // The loopback device of another namespace is none of ours.
        let is_seen = |endpoint: &SocketAddr| own_netns == Some(netns) || !endpoint.ip().is_loopback();
        let asked = asked_endpoint(&handshake.headers);
        let asked_at = asked.and_then(|asked| Some(SocketAddr::new(asked.address?, asked.port)));
        let ours = addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, local.port()));
        let mut seen = HashSet::new();
        // The most important first: there is an end to what a capture can hold.
        let endpoints: Vec<SocketAddr> = [local]
            .into_iter()
            .chain(ours)
            .map(canonical)
            .filter(|endpoint| is_seen(endpoint) && seen.insert(*endpoint))
            .collect();
        let is_ours = asked_at.is_none_or(|asked| endpoints.contains(&asked) || !is_seen(&asked));
        let claimed = asked.filter(|asked| !is_ours || asked.port != local.port());
        let others = [peer]
            .into_iter()
            .chain(asked_at)
            .map(canonical)
            .filter(|endpoint| is_seen(endpoint) && seen.insert(*endpoint));
        let mut ports = vec![local.port()];
        ports.extend(asked.map(|asked| asked.port).filter(|port| *port != local.port()));
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
