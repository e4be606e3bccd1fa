//! A target of a capture, as our own discovery knows it.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::{
    trust::Trust,
    workload::{PodName, Workload, WorkloadKind},
};
use crate::{
    channel::path,
    description::{Aliases, MountName, TargetDescription, full_name},
    netns::Link,
};

/// A container, pod, process or bind mount with its network namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct DiscoveredTarget {
    /// Its name for people: that of the container, `NAMESPACE/NAME` of a pod, `NAME(PID)` of a process, the path of
    /// a bind mount.
    pub(crate) name: String,
    /// What it is.
    #[serde(deserialize_with = "known_kind")]
    pub(crate) kind: KindName,
    /// How far its name is trusted.
    pub(crate) trust: Trust,
    /// Names of the containers around its engine, from the outermost, joined by slashes.
    pub(crate) prefix: String,
    /// Its network namespace.
    pub(crate) namespace: Arc<Namespace>,
    /// Its first process.
    pub(crate) process: Option<FirstProcess>,
    /// What its engine tells of it.
    pub(crate) workload: Option<WorkloadFacts>,
}

/// A network namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Namespace {
    /// Inode number.
    pub(crate) inode: u64,
    /// Whether the host's first process is in it.
    pub(crate) is_host: bool,
    /// Whether it belongs to root, and nobody else may give it addresses.
    pub(crate) is_roots: bool,
    /// Its network interfaces.
    pub(crate) links: Vec<Link>,
    /// Where it is mounted, the host's own first.
    pub(crate) mounts: Vec<Mount>,
}

/// Where a network namespace is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// The path.
    #[serde(with = "path")]
    pub(crate) path: PathBuf,
    /// Whether it is in the host's mount namespace or in ours, where only root mounts.
    pub(crate) is_hosts: bool,
}

/// The first process of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FirstProcess {
    /// PID.
    pub(crate) pid: u32,
    /// Clock ticks after boot.
    pub(crate) starttime: u64,
}

/// What an engine tells of a container or pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct WorkloadFacts {
    /// The engine's identifier of it.
    pub(crate) id: String,
    /// The engine's socket.
    #[serde(with = "path")]
    pub(crate) engine: PathBuf,
    pub(crate) images: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    /// How many labels there are beside these.
    pub(crate) labels_left_out: usize,
    pub(crate) state: String,
    pub(crate) pod: Option<PodName>,
}

/// GhostWire's word for what a target is.
type KindName = &'static str;

/// What there is.
const KINDS: [&str; 5] = ["bindmount", "docker", "pod", "podman", "proc"];

fn known_kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<&'static str, D::Error> {
    let kind = String::deserialize(deserializer)?;
    let known = KINDS.into_iter().find(|known| *known == kind);
    known.ok_or_else(|| D::Error::custom("no kind of targets"))
}

/// Has targets that were told one by one share the namespaces that they are in.
pub(super) fn share_namespaces(targets: &mut [DiscoveredTarget]) {
    let mut known: HashMap<u64, Arc<Namespace>> = HashMap::new();
    for target in targets {
        let shared = known.entry(target.namespace.inode);
        target.namespace = Arc::clone(shared.or_insert_with(|| Arc::clone(&target.namespace)));
    }
}

impl DiscoveredTarget {
    /// A container that an engine of the host, with this socket, is starting, in a namespace that is mounted at `path`.
    pub(super) fn starting(workload: Workload, engine: PathBuf, netns: u64, path: &Path) -> Self {
        let (kind, name) = workload.title(true);
        Self {
            name,
            kind: kind.as_str(),
            trust: Trust::Host,
            prefix: String::new(),
            namespace: Arc::new(Namespace {
                inode: netns,
                is_host: false,
                is_roots: false,
                links: Vec::new(),
                mounts: vec![Mount {
                    path: path.to_owned(),
                    is_hosts: true,
                }],
            }),
            process: None,
            workload: Some(WorkloadFacts {
                id: workload.id,
                engine,
                images: workload.images,
                labels: workload.labels,
                labels_left_out: workload.labels_left_out,
                state: workload.state,
                pod: workload.pod,
            }),
        }
    }

    /// Its name as people write it, with its prefix.
    pub(crate) fn full_name(&self) -> String {
        full_name(&self.prefix, &self.name)
    }

    /// Namespace and name of the pod that it is, if an engine of the host runs it for Kubernetes.
    pub(crate) fn pod_of_host(&self) -> Option<(&str, &str)> {
        let pod = self.workload.as_ref()?.pod.as_ref()?;
        let is_pod = self.trust == Trust::Host && self.kind == WorkloadKind::Pod.as_str();
        (is_pod && self.prefix.is_empty()).then_some((&pod.namespace, &pod.name))
    }

    /// Its images, as its engine tells them.
    pub(crate) fn images(&self) -> &[String] {
        self.workload.as_ref().map_or(&[], |facts| &facts.images)
    }

    fn aliases(&self) -> Aliases {
        let mounts = self.namespace.mounts.iter().map(|mount| MountName {
            path: mount.path.display().to_string(),
            is_hosts: mount.is_hosts,
        });
        Aliases {
            mounts: mounts.collect(),
            id: self.workload.as_ref().map(|facts| facts.id.clone()),
            is_host: self.namespace.is_host,
        }
    }

    /// As GhostWire lists it.
    pub(crate) fn description(&self) -> TargetDescription {
        TargetDescription {
            name: self.name.clone(),
            kind: self.kind.to_owned(),
            prefix: self.prefix.clone(),
            netns: Some(self.namespace.inode),
            pid: self.process.map(|process| process.pid),
            starttime: self.process.map(|process| process.starttime),
            interfaces: self.namespace.usable_interfaces().map(str::to_owned).collect(),
            aliases: self.aliases(),
            images: self.images().to_vec(),
            ..TargetDescription::default()
        }
    }
}

impl Namespace {
    /// Names of the interfaces that are set up to be up: what the kernel says of their state comes late. The loopback
    /// device counts always, though a new namespace has it down: a list without anything would mean that nothing is known.
    pub(crate) fn usable_interfaces(&self) -> impl Iterator<Item = &str> {
        self.links
            .iter()
            .filter(|link| link.is_set_up || link.loopback)
            .map(|link| &link.name[..])
    }

    /// Addresses that mean this namespace when seen from elsewhere.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.links
            .iter()
            .flat_map(|link| &link.addresses)
            .map(|address| address.address)
            .filter(|address| !address.is_loopback() && !address.is_unspecified() && !is_link_local(*address))
    }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
