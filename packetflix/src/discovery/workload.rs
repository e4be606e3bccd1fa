//! What container engines tell of what they run.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// A container or pod that runs, as its engine tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Workload {
    /// What it is.
    pub(super) kind: WorkloadKind,
    /// The engine's identifier, never used twice.
    pub(super) id: String,
    /// The identifier that its process was asked for by: that of one of a pod's containers, or its own.
    pub(super) key: String,
    /// The engine's name for it.
    pub(super) name: String,
    /// Its first process, or that of one of its containers, as numbered in the engine's PID namespace.
    pub(super) pid: u32,
    /// Its image, or for a pod those of its containers.
    pub(super) images: Vec<String>,
    /// Labels, of the pod itself for one.
    pub(super) labels: BTreeMap<String, String>,
    /// How many labels there are beside these, for their length or their number.
    pub(super) labels_left_out: usize,
    /// The engine's word for its state, in lower case, such as `running`.
    pub(super) state: String,
    /// The pod that it is, or belongs to.
    pub(super) pod: Option<PodName>,
}

/// What an engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum WorkloadKind {
    /// A container of Docker.
    Docker,
    /// A container of podman.
    Podman,
    /// A pod of an engine that knows nothing else.
    Pod,
}

/// A pod's name in Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodName {
    /// The Kubernetes namespace.
    pub(super) namespace: String,
    /// Name within it.
    pub(super) name: String,
}

/// Characters that separate the parts of a full name.
const SEPARATORS: [char; 2] = ['/', ':'];

impl PodName {
    /// Both, as one writes them.
    pub(super) fn full(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn is_usable(&self) -> bool {
        is_name(&self.namespace) && is_name(&self.name)
    }
}

impl Workload {
    /// What it is, and what it is called within its engine. A pod's name is none of those whom Kubernetes does not ask; and
    /// what could be read as the name of something else is none at all: the identifier stands for it.
    pub(super) fn title(&self, runs_pods: bool) -> (WorkloadKind, String) {
        match &self.pod {
            Some(pod) if runs_pods && pod.is_usable() => (WorkloadKind::Pod, pod.full()),
            _ if is_name(&self.name) => (self.kind, self.name.clone()),
            _ => (self.kind, self.id.clone()),
        }
    }
}

/// Whether a name is one part of a full name.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(SEPARATORS)
}

impl WorkloadKind {
    /// GhostWire's word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Pod => "pod",
        }
    }
}

/// PIDs that are known from an earlier time and were checked to be the same processes still, by the key of their
/// container or pod. An engine need not be asked for them.
pub(super) type KnownPids = HashMap<String, u32>;
