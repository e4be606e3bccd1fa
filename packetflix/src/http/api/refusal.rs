//! Refusals before the upgrade: the one place where errors of the domain become a status and a sentence.

use std::error::Error;

use packetflix_client::http::RequestError as NodeRequestError;
use serde_json::{Value, json};
use warp::{
    Reply,
    http::{HeaderValue, StatusCode, header},
    reply::{self, Response},
};

use super::{code::Code, request::RequestError};
use crate::http::{proxy::error::ProxyError, transport::admission::TurnedAway};
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
    gateway::{AskError, GatewayStartError, NodeError, ShownError},
    netns::FindError,
    resolve::{DirectoryError, ServiceProblem, TargetError},
    service::{Forbidden, Hidden, QuotaError, StartError},
    session::TooFewBytes,
    tap::{Cause, TapError},
};

/// Most bytes of a sentence: it may name a value that is as long as a request can be.
const MAX_SENTENCE_LEN: usize = 1024;

/// An answer that says why there is no capture, or nothing else that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) sentence: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, sentence: impl Into<String>) -> Self {
        let mut sentence = sentence.into();
        if sentence.len() > MAX_SENTENCE_LEN {
            sentence.truncate(sentence.floor_char_boundary(MAX_SENTENCE_LEN));
            sentence.push('…');
        }
        Self { code, sentence }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.code.status()
    }

    /// What is told to programs.
    pub(crate) fn body(&self) -> Value {
        json!({ "error": self.sentence, "code": self.code.name() })
    }

    /// The kernel refused something that took `capability`, or descriptors or memory that it has no more of.
    fn by_kernel(error: &(dyn Error + 'static), capability: Capability) -> Self {
        Self::for_want(error).unwrap_or_else(|| {
            let sentence = error::chain(error) + &capability.blame(error);
            Self::new(Code::KernelRefused, sentence)
        })
    }

    /// What takes rights could not be asked for.
    fn of_keeper(error: &(dyn Error + 'static)) -> Self {
        Self::for_want(error).unwrap_or_else(|| Self::new(Code::Internal, error::chain(error)))
    }

    /// The kernel has no more of what `error` says, if it says so.
    fn for_want(error: &(dyn Error + 'static)) -> Option<Self> {
        error::is_exhaustion(error).then(|| {
            let sentence = error::chain(error) + ": other captures, or other programs, have to end first";
            Self::new(Code::ResourcesExhausted, sentence)
        })
    }
}

impl Reply for Refusal {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = reply::json(&self.body());
        let mut response = reply::with_status(body, status).into_response();
        // Its body may have to be another one, and it may have to be accounted for.
        response.extensions_mut().insert(self);
        if status == StatusCode::UPGRADE_REQUIRED {
            let headers = response.headers_mut();
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        }
        if status == StatusCode::UNAUTHORIZED {
            let headers = response.headers_mut();
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // What is not read would have to be, before the next request could be.
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if status == StatusCode::METHOD_NOT_ALLOWED {
            let headers = response.headers_mut();
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl From<TurnedAway> for Refusal {
    fn from(error: TurnedAway) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<AccessError> for Refusal {
    fn from(error: AccessError) -> Self {
        let code = match error {
            AccessError::NotReviewed => Code::NotReviewed,
            _ => Code::NotAuthenticated,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Forbidden> for Refusal {
    fn from(error: Forbidden) -> Self {
        Self::new(Code::Forbidden, error.to_string())
    }
}

impl From<Hidden> for Refusal {
    fn from(error: Hidden) -> Self {
        let code = match error {
            Hidden::Nothing { .. } => Code::TargetUnknown,
            Hidden::Unsure { .. } => Code::TargetUnsure,
        };
        Self::new(code, error.to_string())
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        let code = match error {
            RequestError::ForeignOrigin { .. } | RequestError::CrossSite => Code::ForeignOrigin,
            RequestError::ForeignHost { .. } => Code::ForeignHost,
            RequestError::NoUpgrade | RequestError::WebSocketVersion => Code::UpgradeRequired,
            RequestError::NoWebSocketKey => Code::RequestInvalid,
            RequestError::Header(_) | RequestError::RepeatedHeader(_) => Code::HeaderInvalid,
            RequestError::Repeated(_) => Code::ParameterRepeated,
            RequestError::Unknown { .. } => Code::ParameterUnknown,
            RequestError::NoTarget => Code::TargetMissing,
            RequestError::Query(_)
            | RequestError::TwoTargets(..)
            | RequestError::OfOneTarget(_)
            | RequestError::TooManyDescribed(_)
            | RequestError::Container(_)
            | RequestError::Switch(..)
            | RequestError::Netns(_)
            | RequestError::Limit { .. }
            | RequestError::TooManyInterfaces(_) => Code::ParameterInvalid,
        };
        Self::new(code, error.to_string())
    }
}

impl From<QuotaError> for Refusal {
    fn from(error: QuotaError) -> Self {
        Self::new(Code::QuotaExceeded, error.to_string())
    }
}

impl From<Unaccounted> for Refusal {
    fn from(error: Unaccounted) -> Self {
        Self::new(Code::AuditUnavailable, error.to_string())
    }
}

impl From<TooFewBytes> for Refusal {
    fn from(error: TooFewBytes) -> Self {
        Self::new(Code::LimitTooSmall, error.to_string())
    }
}

impl From<ProxyError> for Refusal {
    fn from(error: ProxyError) -> Self {
        let code = match error {
            ProxyError::Request(error) => return error.into(),
            ProxyError::RequestBody(_) => Code::RequestInvalid,
            ProxyError::Unreachable { .. }
            | ProxyError::Answer { .. }
            | ProxyError::UnwantedUpgrade { .. } => Code::DiscoveryFailed,
            ProxyError::TooManyUpgradesOfOne(_) => Code::QuotaExceeded,
            ProxyError::TooManyUpgrades => Code::ServiceFull,
            ProxyError::ConnectTimeout { .. } | ProxyError::AnswerTimeout { .. } => Code::DiscoveryTimeout,
        };
        Self::new(code, error::chain(&error))
    }
}

impl From<TargetError> for Refusal {
    fn from(error: TargetError) -> Self {
        let code = match &error {
            TargetError::Nothing => Code::TargetMissing,
            TargetError::Unknown { .. } | TargetError::NoProcess { .. } => Code::TargetUnknown,
            TargetError::Stopped { .. } => Code::TargetStopped,
            TargetError::Ambiguous { .. } => Code::TargetAmbiguous,
            TargetError::Stale(_)
            | TargetError::NotFoundAgain { .. }
            | TargetError::Successor { .. }
            | TargetError::Ended { .. } => Code::TargetStale,
            TargetError::Unreadable(_) => return Self::by_kernel(&error, Capability::SysPtrace),
            TargetError::CutOff => Code::Internal,
            TargetError::Busy => Code::ServiceBusy,
            TargetError::Directory(DirectoryError::Service(service)) => match service.problem {
                ServiceProblem::Slow(_) => Code::DiscoveryTimeout,
                _ => Code::DiscoveryFailed,
            },
            TargetError::Directory(DirectoryError::Late(_)) => Code::DiscoveryTimeout,
            TargetError::Find(FindError::NotFound { .. }) => Code::TargetUnknown,
            TargetError::Find(FindError::Incomplete { .. }) => Code::DiscoveryTimeout,
            TargetError::Find(FindError::Denied { .. }) => Code::KernelRefused,
            TargetError::Find(FindError::Broken(_)) => return Self::of_keeper(&error),
            TargetError::Find(FindError::Exhausted { .. }) => {
                return Self::by_kernel(&error, Capability::SysPtrace);
            }
        };
        Self::new(code, error::chain(&error))
    }
}

impl From<LateScan> for Refusal {
    fn from(error: LateScan) -> Self {
        Self::new(Code::DiscoveryTimeout, error.to_string())
    }
}

impl From<FilterError> for Refusal {
    fn from(error: FilterError) -> Self {
        let code = match &error {
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
                Code::Internal
            }
            FilterError::Compile(CompileError::Busy | CompileError::Killed) => Code::ServiceBusy,
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
            | FilterError::Translate(_) => Code::FilterInvalid,
        };
        Self::new(code, error::chain(&error))
    }
}

impl From<TapError> for Refusal {
    fn from(error: TapError) -> Self {
        match &error {
            TapError::NoSuchInterface { .. } | TapError::NoInterface => {
                Self::new(Code::InterfaceUnknown, error.to_string())
            }
            TapError::UnknownLinkType { .. } | TapError::NotSeen { .. } | TapError::TooManyInterfaces => {
                Self::new(Code::InterfaceUnusable, error.to_string())
            }
            TapError::Filter { .. } => Self::new(Code::FilterInvalid, error.to_string()),
            TapError::Kernel(reported) => match reported.cause {
                Cause::Exhausted => Self::new(Code::ResourcesExhausted, error.to_string()),
                Cause::Filter => Self::new(Code::FilterInvalid, error.to_string()),
                Cause::Gone => Self::new(Code::InterfaceUnknown, error.to_string()),
                Cause::NoTcx | Cause::Program | Cause::Refused(_) | Cause::Other => {
                    Self::by_kernel(&error, error.needs())
                }
            },
            TapError::Broken(_) => Self::of_keeper(&error),
            TapError::List(_) | TapError::Rings(_) | TapError::Map { .. } | TapError::Clock(_) => {
                Self::by_kernel(&error, error.needs())
            }
        }
    }
}

impl From<StartError> for Refusal {
    fn from(error: StartError) -> Self {
        match error {
            StartError::ShuttingDown => Self::new(Code::ShuttingDown, error.to_string()),
            StartError::Unaccountable(_) => Self::new(Code::AuditUnavailable, error.to_string()),
            StartError::Unaccounted(error) => error.into(),
            StartError::Quota(error) => error.into(),
            StartError::Access(error) => error.into(),
            StartError::Forbidden(error) => error.into(),
            StartError::Hidden(error) => error.into(),
            StartError::Target(error) => error.into(),
            StartError::Late(error) => error.into(),
            StartError::Selection(_) => Self::new(Code::ParameterInvalid, error::chain(&error)),
            StartError::NothingSelected { .. } => Self::new(Code::TargetUnknown, error.to_string()),
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

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        let code = match &error {
            AskError::Busy => Code::ServiceBusy,
            AskError::Shown(ShownError::TooManyRights) => Code::Forbidden,
            AskError::Shown(_) => Code::Internal,
            AskError::NoNode { .. } => Code::NodeUnknown,
            AskError::Nobody(_) => Code::NodeFailed,
            AskError::None(failed) => return of_nodes(&error, failed.first().map(|failed| &failed.why)),
            AskError::Node(failed) => return of_nodes(&error, Some(&failed.why)),
        };
        Self::new(code, error::chain(&error))
    }
}

impl From<GatewayStartError> for Refusal {
    fn from(error: GatewayStartError) -> Self {
        let code = match error {
            GatewayStartError::Start(error) => return error.into(),
            GatewayStartError::Unaccounted(error) => return error.into(),
            GatewayStartError::TooFewBytes(error) => return error.into(),
            GatewayStartError::Ask(error) => return error.into(),
            GatewayStartError::Word(_) | GatewayStartError::NoNodeSaid => Code::ParameterInvalid,
            GatewayStartError::NoNodeChosen(_) | GatewayStartError::NoNodeNumbered => Code::NodeUnknown,
            GatewayStartError::Nowhere { .. } => Code::TargetUnknown,
            GatewayStartError::Ambiguous { .. } => Code::TargetAmbiguous,
        };
        Self::new(code, error::chain(&error))
    }
}

/// The refusal for what a node has said, or not: in its own words, where they are about what was asked for. What it says of who
/// asks is of the gateway.
fn of_nodes(problem: &AskError, why: Option<&NodeError>) -> Refusal {
    let code = match why {
        Some(NodeError::Late(_) | NodeError::NoTime) => Code::NodeTimeout,
        Some(NodeError::Request(error)) => match &**error {
            NodeRequestError::Refused(refusal) => match Code::named(&refusal.code) {
                None | Some(Code::NotAuthenticated | Code::Forbidden) => Code::NodeFailed,
                Some(code) => code,
            },
            _ => Code::NodeFailed,
        },
        _ => Code::NodeFailed,
    };
    Refusal::new(code, error::chain(problem))
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
