//! Refusals before the upgrade: the one place where errors of the domain become a status and a sentence.

use std::error::Error;

use serde_json::json;
use warp::{
    Reply,
    http::{HeaderValue, StatusCode, header},
    reply::{self, Response},
};

use super::request::RequestError;
use crate::http::{proxy::ProxyError, transport::admission::TurnedAway};
use crate::{
    access::AccessError,
    capabilities::Capability,
    captures::Unaccounted,
    discovery::LateScan,
    error,
    filter::{
        FilterError,
        compile::{CompileError, LookUpError, excerpt},
    },
    netns::FindError,
    resolve::{DirectoryError, ServiceProblem, TargetError},
    service::{Forbidden, Hidden, QuotaError, StartError},
    session::TooFewBytes,
    tap::{HookError, LoadError, TapError},
};

/// Most bytes of a sentence: it may name a value that is as long as a request can be.
const MAX_SENTENCE_LEN: usize = 1024;

/// An answer that says why there is no capture, or nothing else that was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) sentence: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        let mut sentence = sentence.into();
        if sentence.len() > MAX_SENTENCE_LEN {
            sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE_LEN));
            sentence.push('…');
        }
        Self { status, sentence }
    }

    /// The kernel refused something that took `capability`, or descriptors or memory that it has no more of.
    fn by_kernel(error: &(dyn Error + 'static), capability: Capability) -> Self {
        Self::for_want(error).unwrap_or_else(|| {
            let sentence = error::chain(error) + &capability.blame(error);
            Self::new(StatusCode::INTERNAL_SERVER_ERROR, sentence)
        })
    }

    /// The kernel has no more of what `error` says, if it says so.
    fn for_want(error: &(dyn Error + 'static)) -> Option<Self> {
        error::is_exhaustion(error).then(|| {
            let sentence = error::chain(error) + ": other captures, or other programs, have to end first";
            Self::new(StatusCode::TOO_MANY_REQUESTS, sentence)
        })
    }
}

/// The sentence of a refusal, in the extensions of the response that has it.
#[derive(Clone, Debug)]
pub(crate) struct Sentence(pub(crate) String);

impl Reply for Refusal {
    fn into_response(self) -> Response {
        let body = reply::json(&json!({ "error": self.sentence }));
        let mut response = reply::with_status(body, self.status).into_response();
        response.extensions_mut().insert(Sentence(self.sentence));
        if self.status == StatusCode::UPGRADE_REQUIRED {
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::PAYLOAD_TOO_LARGE {
            // What is not read would have to be, before the next request could be.
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            let headers = response.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl From<TurnedAway> for Refusal {
    fn from(error: TurnedAway) -> Self {
        Self::new(error.status(), error.to_string())
    }
}

impl From<AccessError> for Refusal {
    fn from(error: AccessError) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, error.to_string())
    }
}

impl From<Forbidden> for Refusal {
    fn from(error: Forbidden) -> Self {
        Self::new(StatusCode::FORBIDDEN, error.to_string())
    }
}

impl From<Hidden> for Refusal {
    fn from(error: Hidden) -> Self {
        let status = match error {
            Hidden::Nothing { .. } => StatusCode::NOT_FOUND,
            Hidden::Unsure { .. } => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        let status = match error {
            RequestError::ForeignOrigin { .. }
            | RequestError::ForeignHost { .. }
            | RequestError::CrossSite => StatusCode::FORBIDDEN,
            RequestError::NoUpgrade | RequestError::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            RequestError::Query(_)
            | RequestError::Header(_)
            | RequestError::Repeated(_)
            | RequestError::RepeatedHeader(_)
            | RequestError::Unknown { .. }
            | RequestError::NoTarget
            | RequestError::TwoTargets
            | RequestError::Container(_)
            | RequestError::Switch(..)
            | RequestError::Netns(_)
            | RequestError::Limit { .. }
            | RequestError::TooManyInterfaces(_)
            | RequestError::NoWebSocketKey => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<QuotaError> for Refusal {
    fn from(error: QuotaError) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string())
    }
}

impl From<Unaccounted> for Refusal {
    fn from(error: Unaccounted) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
    }
}

impl From<TooFewBytes> for Refusal {
    fn from(error: TooFewBytes) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
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
            ProxyError::TooManyUpgradesOfOne(_) => StatusCode::TOO_MANY_REQUESTS,
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
            TargetError::Unknown { .. } | TargetError::Stopped { .. } => StatusCode::NOT_FOUND,
            TargetError::Stale(_)
            | TargetError::NotFoundAgain { .. }
            | TargetError::Ambiguous { .. }
            | TargetError::Successor { .. }
            | TargetError::Ended { .. } => StatusCode::CONFLICT,
            TargetError::Unreadable(_) => return Self::by_kernel(&error, Capability::SysPtrace),
            TargetError::CutOff => StatusCode::INTERNAL_SERVER_ERROR,
            TargetError::Busy => StatusCode::SERVICE_UNAVAILABLE,
            TargetError::Directory(DirectoryError::Service(service)) => match service.problem {
                ServiceProblem::Slow(_) => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            },
            TargetError::Directory(DirectoryError::Late(_)) => StatusCode::GATEWAY_TIMEOUT,
            TargetError::Find(FindError::NotFound { .. }) => StatusCode::NOT_FOUND,
            TargetError::Find(FindError::Incomplete { .. }) => StatusCode::GATEWAY_TIMEOUT,
            TargetError::Find(FindError::Denied { .. }) => StatusCode::INTERNAL_SERVER_ERROR,
            TargetError::Find(FindError::Exhausted { .. }) => {
                return Self::by_kernel(&error, Capability::SysPtrace);
            }
        };
        Self::new(status, error::chain(&error))
    }
}

impl From<LateScan> for Refusal {
    fn from(error: LateScan) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, error.to_string())
    }
}

impl From<FilterError> for Refusal {
    fn from(error: FilterError) -> Self {
        let status = match &error {
            FilterError::Compile(CompileError::Setup {
                needs: Some(needs), ..
            }) => {
                return Self::by_kernel(&error, *needs);
            }
            FilterError::Compile(
                CompileError::Setup { .. }
                | CompileError::Child(_)
                | CompileError::LookUp(LookUpError::Setup(_) | LookUpError::Process(_)),
            ) => {
                if let Some(refusal) = Self::for_want(&error) {
                    return refusal;
                }
                StatusCode::INTERNAL_SERVER_ERROR
            }
            FilterError::Compile(CompileError::Busy | CompileError::Killed) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            FilterError::Compile(
                CompileError::TooLong(_)
                | CompileError::Syntax { .. }
                | CompileError::Name { .. }
                | CompileError::Protochain
                | CompileError::LookUp(LookUpError::TooMany | LookUpError::Timeout)
                | CompileError::TooManyInstructions(_)
                | CompileError::Timeout
                | CompileError::Memory(_),
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
            | TapError::NotSeen { .. }
            | TapError::TooManyInterfaces
            | TapError::Filter { .. }
            | TapError::Load(LoadError::Filter(_)) => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            TapError::Hook(HookError::Gone { .. }) => Self::new(StatusCode::NOT_FOUND, error.to_string()),
            TapError::Enter(_)
            | TapError::Socket { .. }
            | TapError::List(_)
            | TapError::Load(_)
            | TapError::Hook(_)
            | TapError::Rings(_)
            | TapError::Entry { .. }
            | TapError::Own(_)
            | TapError::Clock(_) => Self::by_kernel(&error, error.needs()),
        }
    }
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        match error {
            StartError::ShuttingDown | StartError::Unaccountable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            StartError::Unaccounted(error) => error.into(),
            StartError::Quota(error) => error.into(),
            StartError::Hidden(error) => error.into(),
            StartError::Target(error) => error.into(),
            StartError::Late(error) => error.into(),
            StartError::Interfaces(error) => RequestError::from(error).into(),
            StartError::TooFewBytes(error) => error.into(),
            StartError::Filter(error) => error.into(),
            StartError::Tap(error) => error.into(),
            StartError::AboutFilter {
                expression,
                instructions,
                source,
            } => about_filter((*source).into(), &expression, instructions),
        }
    }
}

/// A refusal that may be owed to the filter: it names the expression, and how large that became.
fn about_filter(mut refusal: Refusal, expression: &str, instructions: Option<usize>) -> Refusal {
    let excerpt = excerpt(expression);
    if !refusal.sentence.contains(&*excerpt) {
        refusal.sentence = format!("filter \"{excerpt}\": {}", refusal.sentence);
    }
    if let Some(instructions) = instructions {
        refusal.sentence = format!(
            "{} (the filter has {instructions} eBPF instructions)",
            refusal.sentence
        );
    }
    refusal
}
