//! The slices of a Service, as far as they are needed and within bounds: what answers as the API server may tell of any number and
//! size.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        core::v1::ObjectReference,
        discovery::v1::{Endpoint, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::ResourceExt as _;

/// Most slices that are kept, and most bytes of all of them. 5,000 nodes, which is as many as a cluster has, take 3 MiB.
const MAX_SLICES: usize = 4096;
const MAX_LEN: usize = 32 << 20;

/// What an endpoint takes beside its text.
const ENDPOINT_LEN: usize = size_of::<Endpoint>();

/// Most bytes of a name, as of any object.
const MAX_NAME_LEN: usize = 253;

/// The slices that are known.
#[derive(Default)]
pub(super) struct Slices {
    /// With the bytes that they take.
    known: BTreeMap<String, (EndpointSlice, usize)>,
    /// Names of those for which there is no room.
    beyond: BTreeSet<String>,
    len: usize,
}

impl Slices {
    /// Puts one there, or in the place of that of its name.
    pub(super) fn put(&mut self, slice: EndpointSlice) {
        self.remove(&slice);
        let name = name_of(&slice);
        let slice = slim(slice);
        let len = slice.endpoints.iter().map(len_of).sum();
        let has_room = self.known.len() < MAX_SLICES && self.len + len <= MAX_LEN;
        // None of those has a name of its own whose name is cut.
        if has_room && name.len() <= MAX_NAME_LEN {
            self.len += len;
            self.known.insert(name, (slice, len));
        } else if self.beyond.len() < MAX_SLICES {
            self.beyond.insert(name);
        }
    }

    /// Takes one away, if it is there.
    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        let name = name_of(slice);
        if let Some((_, len)) = self.known.remove(&name) {
            self.len -= len;
        }
        self.beyond.remove(&name);
    }

    /// Those that are known.
    pub(super) fn known(&self) -> impl Iterator<Item = &EndpointSlice> {
        self.known.values().map(|(slice, _)| slice)
    }

    /// The names of those that are left out.
    pub(super) fn beyond(&self) -> impl Iterator<Item = &str> {
        self.beyond.iter().map(String::as_str)
    }
}

/// The name of a slice, or the first bytes of one that is longer than names are, and what stands for the others.
fn name_of(slice: &EndpointSlice) -> String {
    let mut name = slice.name_any();
    if name.len() > MAX_NAME_LEN {
        name.truncate(name.floor_char_boundary(MAX_NAME_LEN));
        name.push('…');
    }
    name
}

/// What is needed of a slice.
fn slim(slice: EndpointSlice) -> EndpointSlice {
    let needed = |mut endpoint: Endpoint| Endpoint {
        // Of several the first is meant (the API says so).
        addresses: endpoint.addresses.drain(..).take(1).collect(),
        conditions: endpoint.conditions,
        node_name: endpoint.node_name,
        target_ref: endpoint.target_ref.map(|of| ObjectReference {
            name: of.name,
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    };
    EndpointSlice {
        metadata: ObjectMeta {
            name: slice.metadata.name,
            ..ObjectMeta::default()
        },
        address_type: slice.address_type,
        endpoints: slice.endpoints.into_iter().map(needed).collect(),
        ports: slice.ports.map(|mut ports| {
            ports.truncate(MAX_PORTS);
            ports
        }),
    }
}

/// Most ports of a slice, as the API has it.
const MAX_PORTS: usize = 100;

/// How many bytes an endpoint takes.
fn len_of(endpoint: &Endpoint) -> usize {
    let of = endpoint.target_ref.as_ref();
    let texts = [
        endpoint.addresses.first(),
        endpoint.node_name.as_ref(),
        of.and_then(|of| of.name.as_ref()),
    ];
    let texts = texts.into_iter().flatten().map(String::len);
    ENDPOINT_LEN + texts.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, count: usize, node: &str) -> EndpointSlice {
        let endpoint =
            json!({ "addresses": ["10.0.0.1", "10.0.0.2"], "nodeName": node, "zone": "z".repeat(1000) });
        let slice = json!({ "metadata": { "name": name, "annotations": { "x": "y" } }, "addressType": "IPv4",
            "endpoints": vec![endpoint; count] });
        serde_json::from_value(slice).unwrap()
    }

    #[test]
    fn slices_take_so_much_room_at_most() {
        let mut slices = Slices::default();
        for _ in 0..3 {
            // The same one again.
            slices.put(slice("a", 10_000, &"n".repeat(2000)));
        }
        slices.put(slice("b", 10_000, &"n".repeat(2000)));
        assert_eq!(slices.beyond().collect::<Vec<_>>(), ["b"]);
        slices.remove(&slice("unknown", 0, ""));
        slices.remove(&slice("a", 0, ""));
        slices.put(slice("b", 10, "n1"));
        slices.put(slice(&"x".repeat(254), 1, "n1"));
        assert_eq!((slices.known().count(), slices.beyond().count()), (1, 1));
        slices.remove(&slice(&"x".repeat(254), 1, "n1"));
        assert_eq!((slices.known().count(), slices.beyond().count()), (1, 0));
        assert!(slices.len < 10 * 1000, "{}", slices.len);
        for number in 0..2 * MAX_SLICES {
            slices.put(slice(&format!("s{number}"), 0, ""));
        }
        assert_eq!(
            (slices.known().count(), slices.beyond().count()),
            (MAX_SLICES, MAX_SLICES)
        );
    }
}
