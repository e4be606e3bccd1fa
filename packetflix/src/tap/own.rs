//! Leaves the service's own traffic out of a capture, which would feed on itself otherwise: what is own stands in maps
//! that the programs look into, and may change while they run.
//!
//! `OWN_PORTS`, an array of one list of eight ports, says what is looked at more closely. `OWN_CONNECTIONS` has the TCP
//! connections that were accepted, by both ends and in both directions: two hashes that all captures share, one for the
//! service's own network namespace and one without loopback for all others. `OWN_ENDPOINTS`, a hash of addresses with their
//! ports, is for clients whose connection does not end where they say that they reach us: addresses are translated, and what
//! they name or themselves at either end is own traffic, of their captures.
//!
//! So programs do not depend on who captures. Who needs each port and endpoint is counted here. An endpoint is added before its
//! port, and a port stays in its slot for as long as it is needed, since programs read meanwhile.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    net::SocketAddr,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData, MapError},
};
use nix::errno::Errno;
use packetflix_common::{MAX_OWN_ENDPOINTS, MAX_OWN_PORTS, OwnEndpoint, OwnPorts, connections, maps};
use serde::{Deserialize, Serialize};

use super::object::{LoadError, take_map};
use crate::error::errno;

/// What of the traffic is the service's own on account of one client: TCP from or to one of these ports, of a connection
/// that was accepted, or with one of these endpoints at either end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OwnTraffic {
    /// Ports at which the service is reached; without any, nothing is its own.
    pub(crate) ports: Vec<u16>,
    /// Where addresses are translated on the way: where the service is reached, and the client, which stands for whatever
    /// our address has become there.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// It is captured in the service's own network namespace.
    pub(crate) is_here: bool,
}

/// Why something cannot be left out as own traffic.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// There would be too many ports.
    #[error("a capture leaves out own traffic of {MAX_OWN_PORTS} ports at most")]
    TooManyPorts,
    /// There would be too many endpoints.
    #[error("a capture leaves out own traffic of {MAX_OWN_ENDPOINTS} endpoints at most")]
    TooManyEndpoints,
    /// The kernel did not take it.
    #[error("own traffic could not be made known to the eBPF programs")]
    Map(#[source] MapError),
}

/// An [`OwnPorts`], as aya wants the value of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Ports(OwnPorts);

/// An [`OwnEndpoint`], as aya wants the key of a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Key(OwnEndpoint);

#[expect(unsafe_code, reason = "aya copies map values as bytes")]
// SAFETY: `OwnPorts` is repr(C) of integers without padding, asserted where it is defined.
unsafe impl aya::Pod for Ports {}

#[expect(unsafe_code, reason = "aya copies map keys as bytes")]
// SAFETY: `OwnEndpoint` is repr(C) of integers without padding, asserted where it is defined.
unsafe impl aya::Pod for Key {}

/// The maps of a loaded object that tell its programs what is own traffic: nothing, to begin with. Which connections there
/// are, all objects share.
pub(super) struct OwnTrafficMap {
    ports: Array<MapData, Ports>,
    endpoints: HashMap<MapData, Key, u32>,
    uses: Uses,
}

impl OwnTrafficMap {
    /// Takes the maps out of the object.
    pub(super) fn take(programs: &mut Ebpf) -> Result<Self, LoadError> {
        let failed = |name| move |source| LoadError::Map { name, source };
        Ok(Self {
            ports: take_map(programs, maps::OWN_PORTS)?
                .try_into()
                .map_err(failed(maps::OWN_PORTS))?,
            endpoints: take_map(programs, maps::OWN_ENDPOINTS)?
                .try_into()
                .map_err(failed(maps::OWN_ENDPOINTS))?,
            uses: Uses::default(),
        })
    }

    /// From now on this is own traffic.
    ///
    /// # Errors
    /// When there is no room for it, or the kernel refuses; all is as before then.
    pub(super) fn add(&mut self, own: &OwnTraffic) -> Result<(), OwnError> {
        let new = self.uses.add(own)?;
        // Endpoints of a port that is not known are not looked at.
        let added = new
            .iter()
            .try_for_each(|endpoint| self.endpoints.insert(Key(*endpoint), 0, 0))
            .and_then(|()| self.write_ports());
        added.map_err(|error| {
            self.remove(own);
            OwnError::Map(error)
        })
    }

    /// What was added for one client is no longer own traffic, as far as no other needs it.
    pub(super) fn remove(&mut self, own: &OwnTraffic) {
        let unused = self.uses.remove(own);
        if let Err(error) = self.write_ports() {
            tracing::error!(%error, "ports of own traffic could not be removed");
        }
        for endpoint in unused {
            // One that could not be added is not there.
            if let Err(error) = self.endpoints.remove(&Key(endpoint))
                && errno(&error) != Some(Errno::ENOENT)
            {
                tracing::error!(?endpoint, %error, "an endpoint of own traffic could not be removed");
            }
        }
    }

    /// Nothing is own traffic any more, as in the beginning.
    ///
    /// # Errors
    /// When the kernel refuses; something may be left then.
    pub(super) fn clear(&mut self) -> Result<(), OwnError> {
        self.uses = Uses::default();
        self.write_ports().map_err(OwnError::Map)?;
        let endpoints: Result<Vec<Key>, MapError> = self.endpoints.keys().collect();
        for endpoint in endpoints.map_err(OwnError::Map)? {
            self.endpoints.remove(&endpoint).map_err(OwnError::Map)?;
        }
        Ok(())
    }

    fn write_ports(&mut self) -> Result<(), MapError> {
        self.ports.set(0, Ports(self.uses.ports()), 0)
    }
}

/// How many clients need each port and endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Uses {
    /// A port stays in its slot for as long as it is needed: programs read while the slots are written.
    ports: [Option<(u16, u32)>; MAX_OWN_PORTS],
    endpoints: BTreeMap<OwnEndpoint, u32>,
    /// All clients capture the same namespace.
    is_here: bool,
}

impl Uses {
    /// Counts a client in, and gives the endpoints that nobody has needed before. Changes nothing if it fails.
    fn add(&mut self, own: &OwnTraffic) -> Result<Vec<OwnEndpoint>, OwnError> {
        let (wanted_ports, wanted) = distinct(own);
        let new: Vec<OwnEndpoint> = wanted
            .iter()
            .filter(|endpoint| !self.endpoints.contains_key(endpoint))
            .copied()
            .collect();
        if self.endpoints.len() + new.len() > MAX_OWN_ENDPOINTS as usize {
            return Err(OwnError::TooManyEndpoints);
        }
        let mut ports = self.ports;
        for port in wanted_ports {
            let at = slot_of(&ports, port)
                .or_else(|| ports.iter().position(Option::is_none))
                .ok_or(OwnError::TooManyPorts)?;
            ports[at] = Some((port, count(ports[at]) + 1));
        }
        self.ports = ports;
        self.is_here = own.is_here;
        for endpoint in wanted {
            *self.endpoints.entry(endpoint).or_default() += 1;
        }
        Ok(new)
    }

    /// Counts a client out that was counted in, and gives the endpoints that nobody needs any more.
    fn remove(&mut self, own: &OwnTraffic) -> Vec<OwnEndpoint> {
        let (ports, endpoints) = distinct(own);
        for at in ports
            .into_iter()
            .filter_map(|port| slot_of(&self.ports, port))
            .collect::<Vec<_>>()
        {
            self.ports[at] = self.ports[at].and_then(|(port, count)| Some((port, left(count)?)));
        }
        let is_unused = |endpoint: &OwnEndpoint| match self.endpoints.entry(*endpoint) {
            btree_map::Entry::Occupied(mut entry) => match left(*entry.get()) {
                Some(count) => {
                    entry.insert(count);
                    false
                }
                None => {
                    entry.remove();
                    true
                }
            },
            btree_map::Entry::Vacant(_) => false,
        };
        endpoints.into_iter().filter(is_unused).collect()
    }

    /// As the programs want them.
    fn ports(&self) -> OwnPorts {
        let used = self.ports.iter().rposition(Option::is_some);
        OwnPorts {
            count: used.map_or(0, |last| last as u32 + 1),
            connections: if self.is_here {
                connections::HERE
            } else {
                connections::ELSEWHERE
            },
            endpoints: self.endpoints.len() as u32,
            ports: self.ports.map(|slot| slot.map_or(0, |(port, _)| port.to_be())),
        }
    }
}

/// Each port and endpoint once, in whatever form it is written.
fn distinct(own: &OwnTraffic) -> (BTreeSet<u16>, BTreeSet<OwnEndpoint>) {
    let endpoints = own.endpoints.iter().copied().map(OwnEndpoint::from);
    (own.ports.iter().copied().collect(), endpoints.collect())
}

fn slot_of(ports: &[Option<(u16, u32)>], port: u16) -> Option<usize> {
    ports
        .iter()
        .position(|slot| slot.is_some_and(|(used, _)| used == port))
}

fn count(slot: Option<(u16, u32)>) -> u32 {
    slot.map_or(0, |(_, count)| count)
}

/// What is left of a count when one has left.
fn left(count: u32) -> Option<u32> {
    count.checked_sub(1).filter(|count| *count > 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn own(ports: &[u16], endpoints: &[&str]) -> OwnTraffic {
        OwnTraffic {
            ports: ports.to_vec(),
            endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
            is_here: false,
        }
    }

    fn key(text: &str) -> OwnEndpoint {
        text.parse::<SocketAddr>().unwrap().into()
    }

    fn ports_of(uses: &Uses) -> BTreeSet<u16> {
        let OwnPorts { count, ports, .. } = uses.ports();
        assert!(ports[count as usize..].iter().all(|port| *port == 0));
        let used = ports.into_iter().filter(|port| *port != 0);
        used.map(u16::from_be).collect()
    }

    #[test]
    fn each_client_adds_what_is_new() {
        let mut uses = Uses::default();
        let first = own(
            &[5001, 5001],
            &["10.0.0.1:5001", "[::ffff:10.0.0.1]:5001", "10.0.0.9:4000"],
        );
        let second = own(&[5001, 30_001], &["10.0.0.1:5001", "[2001:db8::9]:4000"]);
        assert_eq!(
            uses.add(&first).unwrap(),
            [key("10.0.0.1:5001"), key("10.0.0.9:4000")]
        );
        assert_eq!(uses.add(&second).unwrap(), [key("[2001:db8::9]:4000")]);
        assert_eq!(ports_of(&uses), BTreeSet::from([5001, 30_001]));
        assert_eq!(uses.remove(&first), [key("10.0.0.9:4000")]);
        assert_eq!(ports_of(&uses), BTreeSet::from([5001, 30_001]));
        assert_eq!(
            uses.remove(&second),
            [key("10.0.0.1:5001"), key("[2001:db8::9]:4000")]
        );
        assert_eq!(uses, Uses::default());
        assert_eq!(uses.ports().count, 0);
    }

    #[test]
    fn the_namespace_says_which_connections_there_are() {
        let mut uses = Uses::default();
        uses.add(&own(&[1], &[])).unwrap();
        assert_eq!(
            (uses.ports().connections, uses.ports().endpoints),
            (connections::ELSEWHERE, 0)
        );
        let here = OwnTraffic {
            is_here: true,
            ..own(&[1], &["10.0.0.1:1"])
        };
        uses.add(&here).unwrap();
        assert_eq!(
            (uses.ports().connections, uses.ports().endpoints),
            (connections::HERE, 1)
        );
    }

    #[test]
    fn ports_keep_their_places() {
        let mut uses = Uses::default();
        for port in 1..=3 {
            uses.add(&own(&[port], &[])).unwrap();
        }
        uses.remove(&own(&[1], &[]));
        let ports = [0, 2, 3, 0, 0, 0, 0, 0].map(u16::to_be);
        assert_eq!((uses.ports().count, uses.ports().ports), (3, ports));
        uses.add(&own(&[4], &[])).unwrap();
        let ports = [4, 2, 3, 0, 0, 0, 0, 0].map(u16::to_be);
        assert_eq!((uses.ports().count, uses.ports().ports), (3, ports));
    }

    #[test]
    fn what_does_not_fit_leaves_nothing_behind() {
        let mut uses = Uses::default();
        let most = MAX_OWN_ENDPOINTS as usize;
        let endpoints: Vec<SocketAddr> = (0..=most as u32)
            .map(|host| SocketAddr::from((host.to_be_bytes(), 5001)))
            .collect();
        let ports: Vec<u16> = (1..=MAX_OWN_PORTS as u16).collect();
        let full = OwnTraffic {
            ports: ports.clone(),
            endpoints: endpoints[..most].to_vec(),
            is_here: false,
        };
        assert_eq!(uses.add(&full).unwrap().len(), most);
        let before = uses.clone();
        let too_many_ports = OwnTraffic {
            ports: vec![ports[0], 77],
            endpoints: vec![endpoints[0]],
            is_here: false,
        };
        let error = uses.add(&too_many_ports).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a capture leaves out own traffic of 8 ports at most"
        );
        let too_many_endpoints = OwnTraffic {
            ports: vec![ports[0]],
            endpoints: vec![endpoints[0], endpoints[most]],
            is_here: false,
        };
        let error = uses.add(&too_many_endpoints).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a capture leaves out own traffic of 4096 endpoints at most"
        );
        assert_eq!(uses, before);
        // There is room for what is there already.
        uses.add(&full).unwrap();
    }

    fn client() -> impl Strategy<Value = OwnTraffic> {
        let endpoint = (any::<bool>(), 1..6_u8, 1..4_u16).prop_map(|(mapped, host, port)| {
            let address = if mapped {
                format!("[::ffff:10.0.0.{host}]:{port}")
            } else {
                format!("10.0.0.{host}:{port}")
            };
            address.parse().unwrap()
        });
        (
            prop::collection::vec(1..12_u16, 0..4),
            prop::collection::vec(endpoint, 0..6),
        )
            .prop_map(|(ports, endpoints)| OwnTraffic {
                ports,
                endpoints,
                is_here: false,
            })
    }

    proptest! {
        #[test]
        fn clients_come_and_go_in_any_order(
            steps in prop::collection::vec((client(), any::<prop::sample::Index>(), any::<bool>()), 0..60)
        ) {
            let mut uses = Uses::default();
            let mut clients: Vec<OwnTraffic> = Vec::new();
            // What the maps hold.
            let mut ports = BTreeSet::new();
            let mut endpoints = BTreeSet::new();
            for (own, index, leaves) in steps {
                if leaves && !clients.is_empty() {
                    let own = clients.swap_remove(index.index(clients.len()));
                    for endpoint in uses.remove(&own) {
                        prop_assert!(endpoints.remove(&endpoint));
                    }
                } else {
                    let before = uses.clone();
                    match uses.add(&own) {
                        Ok(new) => {
                            for endpoint in new {
                                prop_assert!(endpoints.insert(endpoint));
                            }
                            clients.push(own);
                        }
                        Err(OwnError::TooManyPorts) => {
                            let both: BTreeSet<u16> = own.ports.iter().chain(&ports).copied().collect();
                            prop_assert!(both.len() > MAX_OWN_PORTS);
                            prop_assert_eq!(&uses, &before);
                        }
                        Err(error) => prop_assert!(false, "{error}"),
                    }
                }
                let needed = clients.iter().map(distinct);
                let (needed_ports, needed_endpoints): (Vec<_>, Vec<_>) = needed.unzip();
                ports = needed_ports.into_iter().flatten().collect();
                prop_assert_eq!(&ports_of(&uses), &ports);
                prop_assert_eq!(&endpoints, &needed_endpoints.into_iter().flatten().collect());
            }
            for own in clients {
                uses.remove(&own);
            }
            prop_assert_eq!(uses, Uses::default());
        }
    }
}
