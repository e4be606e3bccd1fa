//! Codes of refusals, for programs. Each means one thing and goes with one status; what one means never changes.

use warp::http::StatusCode;

/// Defines all codes in one table: the code, its name in answers, and its status.
macro_rules! codes {
    ($($code:ident $name:literal $status:ident,)*) => {
        /// Why something is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $($code),* }

        impl Code {
            /// All of them, as the description for programs lists them.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$code),*];

            /// The one of a name, as another service has it in its answers.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name { $($name => Some(Self::$code),)* _ => None }
            }

            /// Its name in answers.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$code => $name),* }
            }

            pub(crate) fn status(self) -> StatusCode {
                match self { $(Self::$code => StatusCode::$status),* }
            }
        }
    };
}

codes! {
    // The request itself.
    ParameterInvalid "parameter_invalid" BAD_REQUEST,
    ParameterUnknown "parameter_unknown" BAD_REQUEST,
    ParameterRepeated "parameter_repeated" BAD_REQUEST,
    ParameterMissing "parameter_missing" BAD_REQUEST,
    HeaderInvalid "header_invalid" BAD_REQUEST,
    RequestInvalid "request_invalid" BAD_REQUEST,
    LimitTooSmall "limit_too_small" BAD_REQUEST,
    UpgradeRequired "upgrade_required" UPGRADE_REQUIRED,
    MethodNotAllowed "method_not_allowed" METHOD_NOT_ALLOWED,
    PathUnknown "path_unknown" NOT_FOUND,
    UrlTooLong "url_too_long" URI_TOO_LONG,
    BodyTooLarge "body_too_large" PAYLOAD_TOO_LARGE,
    HeadTimeout "head_timeout" REQUEST_TIMEOUT,
    // Who asks.
    NotAuthenticated "not_authenticated" UNAUTHORIZED,
    NotReviewed "not_reviewed" SERVICE_UNAVAILABLE,
    Forbidden "forbidden" FORBIDDEN,
    ForeignOrigin "foreign_origin" FORBIDDEN,
    ForeignHost "foreign_host" FORBIDDEN,
    // What is asked for.
    TargetMissing "target_missing" BAD_REQUEST,
    TargetUnknown "target_unknown" NOT_FOUND,
    NodeUnknown "node_unknown" NOT_FOUND,
    TargetStopped "target_stopped" NOT_FOUND,
    TargetStale "target_stale" CONFLICT,
    TargetAmbiguous "target_ambiguous" CONFLICT,
    TargetUnsure "target_unsure" SERVICE_UNAVAILABLE,
    InterfaceUnknown "interface_unknown" NOT_FOUND,
    InterfaceUnusable "interface_unusable" BAD_REQUEST,
    FilterInvalid "filter_invalid" BAD_REQUEST,
    CaptureUnknown "capture_unknown" NOT_FOUND,
    // How much.
    QuotaExceeded "quota_exceeded" TOO_MANY_REQUESTS,
    ResourcesExhausted "resources_exhausted" TOO_MANY_REQUESTS,
    TooManyConnections "too_many_connections" TOO_MANY_REQUESTS,
    ServiceFull "service_full" SERVICE_UNAVAILABLE,
    ServiceBusy "service_busy" SERVICE_UNAVAILABLE,
    // What does not work.
    KernelRefused "kernel_refused" INTERNAL_SERVER_ERROR,
    Internal "internal" INTERNAL_SERVER_ERROR,
    DiscoveryFailed "discovery_failed" BAD_GATEWAY,
    DiscoveryTimeout "discovery_timeout" GATEWAY_TIMEOUT,
    NodeFailed "node_failed" BAD_GATEWAY,
    NodeTimeout "node_timeout" GATEWAY_TIMEOUT,
    ShuttingDown "shutting_down" SERVICE_UNAVAILABLE,
    NotReady "not_ready" SERVICE_UNAVAILABLE,
    AuditUnavailable "audit_unavailable" SERVICE_UNAVAILABLE,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::Code;

    #[test]
    fn programs_are_told_all_codes() {
        let description: Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let listed = &description["components"]["schemas"]["Code"]["enum"];
        let listed: Vec<&str> = listed
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let names: Vec<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(listed, names);
        let different: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(different.len(), names.len());
    }
}
