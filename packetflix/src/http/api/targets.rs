//! The lists of targets: `/mobyshark` as GhostWire's clients expect it, and `/targets` with all that is known.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    hash::{DefaultHasher, Hasher as _},
    io,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use serde::Serialize;
use warp::reply::Response;

use super::{Api, answers::BodyKind, code::Code, refusal::Refusal};
use crate::{
    discovery::{DiscoveredTarget, Gap, PodName, Scan},
    error::chain,
    netns::Link,
    resolve::{Directory, Selection},
    service::Caller,
};

/// Version of the answer of `/targets`: raised when a program that reads it would have to be altered.
const VERSION: u32 = 1;

/// The parameter with a word of a selection; it may come several times.
const TARGET: &str = "target";

/// Most sentences on gaps of a scan: any number of namespaces may have one.
const MAX_GAPS: usize = 100;

/// The list of GhostWire.
#[derive(Serialize)]
struct MobysharkList<'a> {
    metadata: Metadata,
    containers: Vec<MobysharkTarget<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    creator: &'static str,
    creator_id: &'static str,
    creator_version: &'static str,
}

/// Each member is always there: 0 and "" are for what there is not.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct MobysharkTarget<'a> {
    name: &'a str,
    r#type: &'a str,
    netns: u64,
    network_interfaces: Vec<&'a str>,
    pid: u32,
    starttime: u64,
    prefix: &'a str,
}

/// Everything; what is not known is left out. Paths need not be UTF-8, as JSON must: what is not is replaced.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Details<'a> {
    version: u32,
    /// Seconds since 1970, UTC.
    scanned_at: f64,
    node_name: &'a str,
    engines: Vec<EngineDetails<'a>>,
    /// Sentences on what could not be looked at.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gaps: Vec<String>,
    targets: Vec<TargetDetails<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct EngineDetails<'a> {
    socket: Cow<'a, str>,
    /// Containers and pods that it told of.
    workloads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mount_namespace: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct TargetDetails<'a> {
    name: &'a str,
    r#type: &'a str,
    prefix: &'a str,
    netns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    starttime: Option<u64>,
    /// Whether this is the host's own namespace.
    host: bool,
    network_interfaces: Vec<InterfaceDetails<'a>>,
    /// Where the namespace is mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a PodName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<ContainerDetails<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct InterfaceDetails<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    altnames: &'a [String],
    index: u32,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
    /// With the length of their network prefix.
    addresses: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ContainerDetails<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<Cow<'a, str>>,
    state: &'a str,
    images: &'a [String],
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels_left_out: Option<NonZeroUsize>,
}

/// `/mobyshark`. With a discovery service beside us, the list is there.
pub(crate) async fn list(api: &Api, caller: &Caller) -> Result<Response, Refusal> {
    caller.may_discover()?;
    if let Directory::Service(_) = api.app.resolver.directory {
        let sentence =
            "the targets are known to the discovery service: ask there, or start with --proxy-discovery";
        return Err(Refusal::new(Code::PathUnknown, sentence));
    }
    let scan = api.app.discovery.recent().await?;
    tell(api, &scan, BodyKind::Mobyshark, caller, || MobysharkList {
        metadata: Metadata {
            creator: "packetflix",
            creator_id: "packetflix",
            creator_version: env!("CARGO_PKG_VERSION"),
        },
        containers: listed(&scan, caller).map(MobysharkTarget::from).collect(),
    })
}

/// `/targets`: all of them, or those that the words `target` of the query select.
pub(crate) async fn details(api: &Api, query: &str, caller: &Caller) -> Result<Response, Refusal> {
    caller.may_discover()?;
    let words = parse_words(query)?;
    let namespace_of = |pid| api.app.namespaces.of_pid(pid);
    let selection = Selection::parse(&words, caller.rights(), &namespace_of)
        .map_err(|error| Refusal::new(Code::ParameterInvalid, chain(&error)))?;
    let scan = api.app.discovery.recent().await?;
    tell(api, &scan, BodyKind::Targets(words), caller, || {
        Details::new(&scan, &selection, &api.app.config.node_name, caller)
    })
}

/// A number for what a caller may know of the targets that a scan found: another one, where that is another.
pub(crate) fn digest(scan: &Scan, node_name: &str, caller: &Caller) -> u64 {
    let mut hashed = Hashed(DefaultHasher::new());
    if let Ok(all) = Selection::parse(&[], caller.rights(), &|_| Err(io::ErrorKind::NotFound.into())) {
        let mut details = Details::new(scan, &all, node_name, caller);
        details.scanned_at = 0.0;
        // What cannot be written is not told either.
        let _ = serde_json::to_writer(&mut hashed, &details);
    }
    hashed.0.finish()
}

/// Takes in what is written for a hash.
struct Hashed(DefaultHasher);

impl io::Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn parse_words(query: &str) -> Result<Vec<String>, Refusal> {
    let pairs: Vec<(String, String)> = serde_urlencoded::from_str(query).map_err(|error| {
        Refusal::new(
            Code::ParameterInvalid,
            format!("the query cannot be read: {error}"),
        )
    })?;
    let word = |(name, word): (String, String)| match name == TARGET {
        true => Ok(word),
        false => Err(Refusal::new(
            Code::ParameterUnknown,
            format!("there is no parameter {name}; there is {TARGET}"),
        )),
    };
    pairs.into_iter().map(word).collect()
}

/// Tells what a scan found to all with the same rights in the same words.
fn tell<T: Serialize>(
    api: &Api,
    scan: &Arc<Scan>,
    kind: BodyKind,
    caller: &Caller,
    make: impl FnOnce() -> T,
) -> Result<Response, Refusal> {
    api.answers
        .tell(scan, kind, caller.rights(), make)
        .map_err(|error| Refusal::new(Code::Internal, error.to_string()))
}

/// The targets that a caller may know of.
fn listed<'a>(scan: &'a Scan, caller: &Caller) -> impl Iterator<Item = &'a DiscoveredTarget> {
    let rights = Arc::clone(caller.rights());
    scan.targets.iter().filter(move |target| {
        let occupants = scan.occupants(target.namespace.inode);
        occupants.is_some_and(|occupants| rights.may_list(occupants))
    })
}

impl<'a> From<&'a DiscoveredTarget> for MobysharkTarget<'a> {
    fn from(target: &'a DiscoveredTarget) -> Self {
        Self {
            name: &target.name,
            r#type: target.kind,
            netns: target.namespace.inode,
            network_interfaces: target.namespace.usable_interfaces().collect(),
            pid: target.process.map_or(0, |process| process.pid),
            starttime: target.process.map_or(0, |process| process.starttime),
            prefix: &target.prefix,
        }
    }
}

impl<'a> Details<'a> {
    fn new(scan: &'a Scan, selection: &Selection, node_name: &'a str, caller: &Caller) -> Self {
        // Who may know of some targets only is not told what else is on the host.
        let knows_all = !caller.rights().are_bounded();
        let (engines, gaps) = match knows_all {
            true => (&scan.engines[..], &scan.gaps[..]),
            false => (&[][..], &[][..]),
        };
        let engines = engines.iter().map(|engine| EngineDetails {
            socket: engine.path.to_string_lossy(),
            workloads: engine.workloads,
            problem: engine.problem.as_ref().map(|problem| &problem.sentence[..]),
            mount_namespace: engine.mount_namespace(),
        });
        let since_1970 = scan.at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            version: VERSION,
            scanned_at: since_1970.as_secs_f64(),
            node_name,
            engines: engines.collect(),
            gaps: sentences(gaps),
            targets: listed(scan, caller)
                .filter(|target| selection.has(target))
                .map(|target| TargetDetails::of(target, knows_all))
                .collect(),
        }
    }
}

/// What could not be looked at, up to a bound.
fn sentences(gaps: &[Gap]) -> Vec<String> {
    let most = if gaps.len() > MAX_GAPS {
        MAX_GAPS - 1
    } else {
        gaps.len()
    };
    let (told, rest) = gaps.split_at(most);
    let rest = (!rest.is_empty()).then(|| format!("{} more places could not be looked at", rest.len()));
    told.iter().map(ToString::to_string).chain(rest).collect()
}

impl<'a> TargetDetails<'a> {
    /// Where engines are is told to those only who may know of all that they run.
    fn of(target: &'a DiscoveredTarget, with_engine: bool) -> Self {
        let facts = target.workload.as_ref();
        let namespace = &target.namespace;
        Self {
            name: &target.name,
            r#type: target.kind,
            prefix: &target.prefix,
            netns: namespace.inode,
            pid: target.process.map(|process| process.pid),
            starttime: target.process.map(|process| process.starttime),
            host: namespace.is_host,
            network_interfaces: namespace.links.iter().map(InterfaceDetails::from).collect(),
            mounts: namespace
                .mounts
                .iter()
                .map(|mount| mount.path.to_string_lossy())
                .collect(),
            pod: facts.and_then(|facts| facts.pod.as_ref()),
            container: facts.map(|facts| ContainerDetails {
                id: &facts.id,
                engine: with_engine.then(|| facts.engine.to_string_lossy()),
                state: &facts.state,
                images: &facts.images,
                labels: &facts.labels,
                labels_left_out: NonZeroUsize::new(facts.labels_left_out),
            }),
        }
    }
}

impl<'a> From<&'a Link> for InterfaceDetails<'a> {
    fn from(link: &'a Link) -> Self {
        let octets = |mac: [u8; 6]| mac.map(|octet| format!("{octet:02x}")).join(":");
        Self {
            name: &link.name,
            altnames: &link.altnames,
            index: link.ifindex,
            state: if link.down { "down" } else { "up" },
            mac: link.mac.map(octets),
            addresses: link
                .addresses
                .iter()
                .map(|address| format!("{}/{}", address.address, address.prefix_len))
                .collect(),
        }
    }
}
