//! `/metrics`, `/healthz` and `/readyz`: what monitors and orchestrators ask.

use serde_json::json;
use warp::{
    Reply as _,
    http::header,
    reply::{self, Response},
};

use super::{Api, code::Code, refusal::Refusal};
use crate::service::Caller;

/// Media type of OpenMetrics (its specification 1.0, section 4.1).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All counts.
pub(crate) fn metrics(api: &Api, caller: &Caller) -> Response {
    if let Err(forbidden) = caller.may_see_metrics() {
        return Refusal::from(forbidden).into_response();
    }
    let mut load = api.app.load();
    let certificates = api.site.certificates.as_ref();
    load.files.extend(certificates.map(|files| files.age()));
    open_metrics(api.app.metrics.render(&load))
}

/// An answer with metrics.
pub(crate) fn open_metrics(text: String) -> Response {
    reply::with_header(text, header::CONTENT_TYPE, OPEN_METRICS).into_response()
}

/// That there is an answer says that the service lives.
pub(crate) fn alive() -> Response {
    reply::json(&json!({ "status": "alive" })).into_response()
}

/// Whether captures can begin, or the problem that there is. A doubt is told, and keeps nobody away.
pub(crate) fn ready(problem: Option<String>, doubt: Option<String>) -> Response {
    match (problem, doubt) {
        (Some(problem), _) => Refusal::new(Code::NotReady, problem).into_response(),
        (None, None) => reply::json(&json!({ "status": "ready" })).into_response(),
        (None, Some(doubt)) => reply::json(&json!({ "status": "ready", "doubt": doubt })).into_response(),
    }
}
