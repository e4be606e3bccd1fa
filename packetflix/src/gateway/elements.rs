//! What elements of lists are, as nodes send them: others would be read by nobody. Pure.

#![expect(dead_code, reason = "what can be read so is such an element")]

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::lists::{CAPTURES, CONTAINERS, TARGETS};

/// Whether this is an element of a list of this name. Members that are not known here may be anything.
pub(super) fn is_such(element: &Value, list: &str) -> bool {
    match list {
        TARGETS => Target::deserialize(element).is_ok(),
        CONTAINERS => Container::deserialize(element).is_ok(),
        CAPTURES => Capture::deserialize(element).is_ok(),
        _ => false,
    }
}

/// Whether this is an engine, which stands beside targets.
pub(super) fn is_engine(element: &Value) -> bool {
    Engine::deserialize(element).is_ok()
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Target<'a> {
    name: &'a str,
    r#type: &'a str,
    #[serde(default)]
    prefix: &'a str,
    /// It has no more bits in Linux.
    netns: u32,
    pid: Option<u32>,
    starttime: Option<u64>,
    #[serde(default)]
    host: bool,
    #[serde(borrow)]
    network_interfaces: Vec<Interface<'a>>,
    #[serde(default, borrow)]
    mounts: Vec<&'a str>,
    #[serde(borrow)]
    pod: Option<Pod<'a>>,
    #[serde(borrow)]
    container: Option<ContainerDetails<'a>>,
}

#[derive(Deserialize)]
struct Interface<'a> {
    name: &'a str,
    #[serde(default, borrow)]
    altnames: Vec<&'a str>,
    index: u32,
    state: &'a str,
    mac: Option<&'a str>,
    #[serde(borrow)]
    addresses: Vec<&'a str>,
}

#[derive(Deserialize)]
struct Pod<'a> {
    namespace: &'a str,
    name: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ContainerDetails<'a> {
    id: &'a str,
    engine: Option<&'a str>,
    state: &'a str,
    #[serde(borrow)]
    images: Vec<&'a str>,
    #[serde(borrow)]
    labels: BTreeMap<&'a str, &'a str>,
    labels_left_out: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Engine<'a> {
    socket: &'a str,
    workloads: u64,
    problem: Option<&'a str>,
    mount_namespace: Option<u64>,
}

/// One of GhostWire's list.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Container<'a> {
    name: &'a str,
    r#type: &'a str,
    netns: u32,
    #[serde(borrow)]
    network_interfaces: Vec<&'a str>,
    pid: u32,
    starttime: u64,
    prefix: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Capture<'a> {
    id: u64,
    tap: u64,
    stream: Option<u64>,
    #[serde(borrow)]
    client: Client<'a>,
    #[serde(borrow)]
    target: CaptureTarget<'a>,
    #[serde(borrow)]
    found: Option<Found<'a>>,
    #[serde(borrow)]
    network_interfaces: Option<Vec<&'a str>>,
    #[serde(default)]
    more_network_interfaces: u64,
    #[serde(default)]
    filter: &'a str,
    started_at: f64,
    duration: f64,
    packets: u64,
    bytes: u64,
    packets_per_second: f64,
    bytes_per_second: f64,
    dropped: Dropped,
}

#[derive(Deserialize)]
struct Client<'a> {
    #[serde(default)]
    name: &'a str,
    #[serde(default)]
    address: &'a str,
}

#[derive(Deserialize)]
struct CaptureTarget<'a> {
    #[serde(default)]
    name: &'a str,
    #[serde(default)]
    r#type: &'a str,
    #[serde(default)]
    prefix: &'a str,
    netns: u32,
}

#[derive(Deserialize)]
struct Found<'a> {
    name: &'a str,
    r#type: &'a str,
    #[serde(default)]
    prefix: &'a str,
    #[serde(borrow)]
    names: Vec<&'a str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Dropped {
    kernel: u64,
    slow_client: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn target() -> Value {
        json!({
            "name": "web", "type": "docker", "prefix": "", "netns": 5, "pid": 7, "starttime": 8, "host": false,
            "network-interfaces": [{ "name": "eth0", "altnames": ["lan"], "index": 2, "state": "up", "mac": "02:00:00:00:00:01",
                "addresses": ["10.0.0.7/24"] }],
            "mounts": ["/run/netns/web"],
            "pod": { "namespace": "shop", "name": "web" },
            "container": { "id": "ab", "engine": "/run/docker.sock", "state": "running", "images": ["nginx"],
                "labels": { "app": "web" }, "labels-left-out": 1 },
            "new": [7],
        })
    }

    fn capture() -> Value {
        json!({
            "id": 3, "tap": 1, "stream": 2, "client": { "name": "ann" }, "target": { "netns": 5 },
            "found": { "name": "web", "type": "docker", "names": ["web"] }, "network-interfaces": ["eth0"], "filter": "tcp",
            "started-at": 1.5, "duration": 2, "packets": 10, "bytes": 1500, "packets-per-second": 1.0, "bytes-per-second": 0.5,
            "dropped": { "kernel": 1, "slow-client": 2 },
        })
    }

    fn container() -> Value {
        json!({ "name": "web", "type": "docker", "netns": 5, "network-interfaces": ["eth0"], "pid": 0, "starttime": 0, "prefix": "" })
    }

    #[test]
    fn elements_are_those_that_nodes_send() {
        let engine = json!({ "socket": "/run/docker.sock", "workloads": 3, "problem": "gone" });
        assert!(is_engine(&engine) && !is_engine(&json!({ "socket": 7, "workloads": 3 })));
        let least = json!({ "name": "web", "type": "docker", "prefix": "", "netns": 5, "host": false, "network-interfaces": [] });
        assert!(is_such(&least, TARGETS));
        for (list, element, changes) in [
            (
                TARGETS,
                target(),
                &[
                    ("/name", json!(5)),
                    ("/name", Value::Null),
                    ("/type", Value::Null),
                    ("/prefix", json!(1)),
                    ("/netns", json!("x")),
                    // It would be that of another node.
                    ("/netns", json!(1_u64 << 32)),
                    ("/pid", json!(-1)),
                    ("/starttime", json!("x")),
                    ("/host", json!("x")),
                    ("/network-interfaces", json!({})),
                    ("/network-interfaces/0", json!("eth0")),
                    ("/network-interfaces/0/addresses", json!([5])),
                    ("/network-interfaces/0/addresses", Value::Null),
                    ("/network-interfaces/0/mac", json!(7)),
                    ("/network-interfaces/0/index", json!(-1)),
                    ("/mounts", json!([7])),
                    ("/pod", json!("shop/web")),
                    ("/container/images", Value::Null),
                    ("/container/labels", json!({ "app": 7 })),
                    ("/container/engine", json!(7)),
                ][..],
            ),
            (
                CAPTURES,
                capture(),
                &[
                    ("/id", json!("1")),
                    ("/id", json!(-1)),
                    ("/client", json!("ann")),
                    ("/client/name", json!(7)),
                    ("/target", Value::Null),
                    ("/found", json!(7)),
                    ("/filter", json!(7)),
                    ("/duration", json!("x")),
                    ("/dropped", json!(3)),
                    ("/network-interfaces", json!("eth0")),
                ],
            ),
            (
                CONTAINERS,
                container(),
                &[
                    ("/name", json!(5)),
                    ("/netns", json!("x")),
                    ("/pid", json!(-1)),
                    ("/network-interfaces", json!("eth0")),
                ],
            ),
        ] {
            assert!(is_such(&element, list), "{element}");
            for (at, value) in changes {
                let mut changed = element.clone();
                *changed.pointer_mut(at).unwrap() = value.clone();
                assert!(!is_such(&changed, list), "{at} {value}");
            }
        }
        for (at, member) in [
            ("", "name"),
            ("", "network-interfaces"),
            ("/network-interfaces/0", "addresses"),
            ("/container", "images"),
        ] {
            let mut changed = target();
            let object = changed.pointer_mut(at).unwrap().as_object_mut().unwrap();
            object.remove(member).unwrap();
            assert!(!is_such(&changed, TARGETS), "without {member}");
        }
        for element in [json!(7), json!([]), json!({}), Value::Null] {
            for list in [TARGETS, CONTAINERS, CAPTURES] {
                assert!(!is_such(&element, list), "{element}");
            }
        }
    }
}
