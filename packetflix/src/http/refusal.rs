//! Refusals before the upgrade: the one place where errors of the domain become a status and a sentence.

use std::error::Error;

use nix::errno::Errno;
use serde_json::json;
use warp::{
    Reply,
    http::{HeaderValue, StatusCode, header},
    reply::{self, Response},
};

use super::{proxy::ProxyError, request::RequestError};
use crate::{
    error,
    filter::{FilterError, compile::CompileError},
    netns::{EnterError, FindError},
    tap::{HookError, LoadError, TapError},
    target::{DirectoryError, ServiceProblem, TargetError},
};

/// Most bytes of a sentence: it may name a value that is as long as a request can be.
const MAX_SENTENCE_LEN: usize = 1024;

/// An answer that says why there is no capture, or nothing else that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) sentence: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        let mut sentence = sentence.into();
        if sentence.len() > MAX_SENTENCE_LEN {
            sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE_LEN));
            sentence.push('…');
        }
        Self { status, sentence }
    }

    /// The kernel refused something that took `capability`, or descriptors or memory that it has no more of.
    fn by_kernel(error: &(dyn Error + 'static), capability: &str) -> Self {
        let mut sentence = error::chain(error);
        if error::is_exhaustion(error) {
            sentence.push_str(": other captures, or other programs, have to end first");
            return Self::new(StatusCode::TOO_MANY_REQUESTS, sentence);
        }
        if matches!(error::errno(error), Some(Errno::EPERM | Errno::EACCES)) {
            sentence.push_str(": the service lacks ");
            sentence.push_str(capability);
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, sentence)
    }
}

impl Reply for Refusal {
    fn into_response(self) -> Response {
        let body = reply::json(&json!({ "error": self.sentence }));
        let mut response = reply::with_status(body, self.status).into_response();
        if self.status == StatusCode::UPGRADE_REQUIRED {
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            let headers = response.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        let status = match error {
            RequestError::ForeignOrigin { .. } => StatusCode::FORBIDDEN,
            RequestError::NoUpgrade | RequestError::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            RequestError::Query(_)
            | RequestError::Header(_)
            | RequestError::Repeated(_)
            | RequestError::NoTarget
            | RequestError::TwoTargets
            | RequestError::Container(_)
            | RequestError::Switch(..)
            | RequestError::Netns(_)
            | RequestError::TooManyInterfaces(_)
            | RequestError::NoWebSocketKey => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ProxyError> for Refusal {
    fn from(error: ProxyError) -> Self {
        let status = match error {
            ProxyError::Request(error) => return error.into(),
            ProxyError::RequestBody(_) => StatusCode::BAD_REQUEST,
            ProxyError::Unreachable { .. }
            | ProxyError::Answer { .. }
            | ProxyError::UnwantedUpgrade { .. } => StatusCode::BAD_GATEWAY,
            ProxyError::TooManyUpgrades => StatusCode::SERVICE_UNAVAILABLE,
            ProxyError::ConnectTimeout { .. } | ProxyError::AnswerTimeout { .. } => {
                StatusCode::GATEWAY_TIMEOUT
            }
        };
        Self::new(status, error::chain(&error))
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        let status = match &error {
            TargetError::Nothing => StatusCode::BAD_REQUEST,
            TargetError::Unknown { .. } => StatusCode::NOT_FOUND,
            TargetError::Stale(_)
            | TargetError::NotFoundAgain { .. }
            | TargetError::Ambiguous { .. }
            | TargetError::Ended { .. } => StatusCode::CONFLICT,
            TargetError::Unreadable(_) => return Self::by_kernel(&error, "CAP_SYS_PTRACE"),
            TargetError::CutOff => StatusCode::INTERNAL_SERVER_ERROR,
            TargetError::Directory(DirectoryError::Service(service)) => match service.problem {
                ServiceProblem::Slow(_) => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            },
            TargetError::Find(FindError::NotFound { .. }) => StatusCode::NOT_FOUND,
            TargetError::Find(FindError::Denied { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
            TargetError::Find(FindError::Exhausted { .. }) => {
                return Self::by_kernel(&error, "CAP_SYS_PTRACE");
            }
        };
        Self::new(status, error::chain(&error))
    }
}

impl From<FilterError> for Refusal {
    fn from(error: FilterError) -> Self {
        let status = match &error {
            FilterError::Compile(CompileError::Setup { .. }) => {
                return Self::by_kernel(&error, "CAP_SYS_ADMIN");
            }
            FilterError::Compile(CompileError::Child(_)) => return Self::by_kernel(&error, "a right"),
            FilterError::Compile(CompileError::Busy) => StatusCode::SERVICE_UNAVAILABLE,
            FilterError::Compile(
                CompileError::TooLong(_)
                | CompileError::Syntax { .. }
                | CompileError::Name { .. }
                | CompileError::Protochain
                | CompileError::TooManyInstructions(_)
                | CompileError::Timeout,
            )
            | FilterError::Translate(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error::chain(&error))
    }
}

impl From<TapError> for Refusal {
    fn from(error: TapError) -> Self {
        match &error {
            TapError::NoSuchInterface { .. } | TapError::NoInterface => {
                Self::new(StatusCode::NOT_FOUND, error.to_string())
            }
            TapError::RingMemory { .. }
            | TapError::Memory { .. }
            | TapError::Hook(HookError::Full { .. }) => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
            }
            TapError::UnknownLinkType { .. }
            | TapError::TooManyInterfaces
            | TapError::Filter { .. }
            | TapError::Load(LoadError::Filter(_)) => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            TapError::Hook(HookError::Gone { .. }) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            TapError::Enter(EnterError::Thread(_) | EnterError::Setns(_)) => {
                Self::by_kernel(&error, "CAP_SYS_ADMIN")
            }
            TapError::Socket { .. } | TapError::Hook(HookError::Socket { .. }) => {
                Self::by_kernel(&error, "CAP_NET_RAW")
            }
            TapError::Load(LoadError::Program { .. }) | TapError::Hook(HookError::Load(_)) => {
                Self::by_kernel(&error, "CAP_BPF, or CAP_NET_ADMIN for a classifier")
            }
            TapError::Load(_) | TapError::Entry { .. } | TapError::Own(_) => {
                Self::by_kernel(&error, "CAP_BPF")
            }
            TapError::Hook(
                HookError::Attach { .. } | HookError::Query(_) | HookError::Loopback(_) | HookError::NoTcx,
            ) => Self::by_kernel(&error, "CAP_NET_ADMIN"),
            TapError::List(_) | TapError::Rings(_) | TapError::Clock(_) => Self::by_kernel(&error, "a right"),
        }
    }
}
