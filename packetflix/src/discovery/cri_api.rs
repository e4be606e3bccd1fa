//! The messages of the Container Runtime Interface, with the fields that are of use here.
//!
//! Source: `pkg/apis/runtime/v1/api.proto` of the repository kubernetes/cri-api.

use std::fmt::Debug;

use bytes::{Buf, BufMut};
use prost::{
    DecodeError, Message,
    encoding::{DecodeContext, WireType, message, skip_field, string},
};

use super::{bounded::Labels, budget::MAX_WORKLOADS};

/// Most containers that are taken from one engine.
const MAX_CONTAINERS: usize = 4 * MAX_WORKLOADS;

/// A request, and what is known of its call.
pub(super) trait Call: Message + 'static {
    /// What it is answered with.
    type Answer: Message + Default + 'static;
    /// Its path: service and name.
    const PATH: &'static str;
    /// Whether that is a list, and not about one thing.
    const IS_LIST: bool;
}

impl Call for ListPodSandboxRequest {
    type Answer = Listed<PodSandbox, MAX_WORKLOADS>;
    const PATH: &'static str = "/runtime.v1.RuntimeService/ListPodSandbox";
    const IS_LIST: bool = true;
}

impl Call for ListContainersRequest {
    type Answer = Listed<Container, MAX_CONTAINERS>;
    const PATH: &'static str = "/runtime.v1.RuntimeService/ListContainers";
    const IS_LIST: bool = true;
}

impl Call for PodSandboxStatusRequest {
    type Answer = StatusAnswer;
    const PATH: &'static str = "/runtime.v1.RuntimeService/PodSandboxStatus";
    const IS_LIST: bool = false;
}

impl Call for ContainerStatusRequest {
    type Answer = StatusAnswer;
    const PATH: &'static str = "/runtime.v1.RuntimeService/ContainerStatus";
    const IS_LIST: bool = false;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum PodSandboxState {
    Ready = 0,
    NotReady = 1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub(super) enum ContainerState {
    Created = 0,
    Running = 1,
    Exited = 2,
    Unknown = 3,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<PodSandboxFilter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxFilter {
    #[prost(message, optional, tag = "2")]
    state: Option<PodSandboxStateValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PodSandboxStateValue {
    #[prost(enumeration = "PodSandboxState", tag = "1")]
    state: i32,
}

impl ListPodSandboxRequest {
    /// Asks for the pods of this state.
    pub(super) fn of(state: PodSandboxState) -> Self {
        let state = Some(PodSandboxStateValue { state: state.into() });
        Self {
            filter: Some(PodSandboxFilter { state }),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodSandbox {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, optional, tag = "2")]
    pub(super) metadata: Option<PodSandboxMetadata>,
    #[prost(enumeration = "PodSandboxState", tag = "3")]
    pub(super) state: i32,
    /// Nanoseconds since 1970.
    #[prost(int64, tag = "4")]
    pub(super) created_at: i64,
    /// A map, whose entries are merged into one value.
    #[prost(message, optional, tag = "5")]
    pub(super) labels: Option<Labels>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodSandboxMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListContainersRequest {
    #[prost(message, optional, tag = "1")]
    filter: Option<ContainerFilter>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerFilter {
    #[prost(message, optional, tag = "2")]
    state: Option<ContainerStateValue>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerStateValue {
    #[prost(enumeration = "ContainerState", tag = "1")]
    state: i32,
}

impl ListContainersRequest {
    /// Asks for the containers of this state.
    pub(super) fn of(state: ContainerState) -> Self {
        let state = Some(ContainerStateValue { state: state.into() });
        Self {
            filter: Some(ContainerFilter { state }),
        }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Container {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) pod_sandbox_id: String,
    #[prost(message, optional, tag = "4")]
    pub(super) image: Option<ImageSpec>,
    #[prost(enumeration = "ContainerState", tag = "6")]
    pub(super) state: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(super) image: String,
    #[prost(string, tag = "18")]
    pub(super) user_specified_image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodSandboxStatusRequest {
    #[prost(string, tag = "1")]
    pub(super) pod_sandbox_id: String,
    #[prost(bool, tag = "2")]
    pub(super) verbose: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContainerStatusRequest {
    #[prost(string, tag = "1")]
    pub(super) container_id: String,
    #[prost(bool, tag = "2")]
    pub(super) verbose: bool,
}

/// `PodSandboxStatusResponse` and `ContainerStatusResponse`, which agree in what is of use.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct StatusAnswer {
    /// A map, whose entries are merged into one value.
    #[prost(message, optional, tag = "2")]
    pub(super) info: Option<Info>,
}

/// Of a map of JSON by arbitrary keys, what containerd and CRI-O have under the one that they agree on without a standard.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Info {
    pub(super) json: String,
    /// Whether the entry that is read is the one that is wanted.
    is_wanted: bool,
}

impl Info {
    const KEY: &str = "info";

    #[cfg(test)]
    pub(super) fn new(json: &str) -> Self {
        Self {
            json: json.to_owned(),
            is_wanted: false,
        }
    }
}

impl Message for Info {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        string::encode(1, &Self::KEY.to_owned(), buf);
        string::encode(2, &self.json, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            1 => {
                let mut key = String::new();
                string::merge(wire_type, &mut key, buf, ctx)?;
                self.is_wanted = key == Self::KEY;
                Ok(())
            }
            2 if self.is_wanted => string::merge(wire_type, &mut self.json, buf, ctx),
            _ => skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        string::encoded_len(1, &Self::KEY.to_owned()) + string::encoded_len(2, &self.json)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// `ListPodSandboxResponse` and `ListContainersResponse`: a list as the first field. Of more than `MAX` elements
/// the rest is skipped, since an element that is short in the message may be long in memory.
#[derive(Clone, Debug)]
pub(super) struct Listed<T, const MAX: usize> {
    pub(super) items: Vec<T>,
    /// Whether there were more.
    pub(super) cut: bool,
}

impl<T, const MAX: usize> Default for Listed<T, MAX> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            cut: false,
        }
    }
}

impl<T: Message + Default, const MAX: usize> Message for Listed<T, MAX> {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        message::encode_repeated(1, &self.items, buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        if tag != 1 {
            return skip_field(wire_type, tag, buf, ctx);
        }
        if self.items.len() == MAX {
            self.cut = true;
            return skip_field(wire_type, tag, buf, ctx);
        }
        message::merge_repeated(wire_type, &mut self.items, buf, ctx)
    }

    fn encoded_len(&self) -> usize {
        message::encoded_len_repeated(1, &self.items)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}
