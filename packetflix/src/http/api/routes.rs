//! Which request goes where.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use hyper::upgrade::OnUpgrade;
use serde_json::json;
use warp::{
    Filter as _, Reply,
    http::{Method, header},
    path::FullPath,
    reply::Response,
};

use super::{
    Api,
    capture::{self, Handshake, LocalEnd},
    captures,
    code::Code,
    filter, health, page as pages, rates,
    refusal::Refusal,
    targets,
};
use crate::{http::site::Routes, page, service::Caller};

/// Paths that are ours, whether there is something at them in this configuration or not.
const PATHS: [&str; 10] = [
    "/capture",
    "/captures",
    "/filter",
    "/healthz",
    "/metrics",
    "/openapi.json",
    "/rates",
    "/readyz",
    "/targets",
    "/version",
];

/// Below this, each capture that runs has its number.
pub(crate) const CAPTURES: &str = "/captures/";

/// Header of the answer with the version: nanoseconds since 1970, UTC.
const TIME: &str = "packetflix-time";

/// Where the page is, whoever has `/`.
pub(crate) const PAGE: &str = "/ui";

/// Paths at which nobody is asked who they are.
const PUBLIC: [&str; 3] = ["/version", "/healthz", "/readyz"];

/// Whether a path is ours in any case. The rest is the discovery service's, if that is proxied.
pub(crate) fn is_ours(path: &str) -> bool {
    PATHS.contains(&path) || path.starts_with(CAPTURES) || page::has(path)
}

/// Whether everyone may know what is at a path.
pub(crate) fn is_public(path: &str) -> bool {
    PUBLIC.contains(&path) || page::file(path).is_some() || path == PAGE
}

/// All routes, with every answer, the refusals too, as a response.
pub(crate) fn routes(api: Arc<Api>) -> Routes {
    handing_to(move |method, path, handshake| route(Arc::clone(&api), method, path, handshake))
}

/// Has everything answered by `answer`.
pub(crate) fn handing_to<A: Future<Output = Response> + Send + 'static>(
    answer: impl Fn(Method, FullPath, Handshake) -> A + Clone + Send + Sync + 'static,
) -> Routes {
    let query = warp::query::raw().or_else(|_| async { Ok::<_, Infallible>((String::new(),)) });
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::optional::<OnUpgrade>())
        .and(warp::ext::optional::<LocalEnd>())
        .and(warp::ext::optional::<Caller>())
        .then(
            move |method: Method,
                  path,
                  query,
                  headers,
                  on_upgrade: Option<OnUpgrade>,
                  local,
                  caller: Option<Caller>| {
                // A HEAD is answered without what a GET would begin.
                let on_upgrade = on_upgrade.filter(|_| method == Method::GET);
                let handshake = Handshake {
                    query,
                    headers,
                    on_upgrade,
                    local,
                    caller: caller.unwrap_or_else(|| Caller::nobody(None)),
                };
                answer(method, path, handshake)
            },
        )
        .boxed()
}

async fn route(api: Arc<Api>, method: Method, path: FullPath, handshake: Handshake) -> Response {
    if let Some(id) = path.as_str().strip_prefix(CAPTURES) {
        return captures::one(&api.site, &method, id, &handshake);
    }
    if !matches!(method, Method::GET | Method::HEAD) {
        let sentence = format!("{} is read with GET, not {method}", path.as_str());
        return Refusal::new(Code::MethodNotAllowed, sentence).into_response();
    }
    match path.as_str() {
        "/version" => version(),
        "/targets" => targets::details(&api, &handshake.query, &handshake.caller)
            .await
            .unwrap_or_else(Reply::into_response),
        "/mobyshark" | "/discover/mobyshark" => targets::list(&api, &handshake.caller)
            .await
            .unwrap_or_else(Reply::into_response),
        "/filter" => filter::show(&api, &handshake.query, &handshake.caller)
            .await
            .unwrap_or_else(Reply::into_response),
        "/rates" => rates::follow(&api, &handshake.caller).unwrap_or_else(Reply::into_response),
        "/captures" => captures::list(&api.site, &handshake),
        "/metrics" => health::metrics(&api, &handshake.caller),
        "/healthz" => health::alive(),
        "/readyz" => health::ready(api.app.problem(), None),
        "/openapi.json" => openapi(),
        "/capture" => capture::capture(&api, handshake)
            .await
            .unwrap_or_else(Reply::into_response),
        PAGE => pages::lead_into_folder(),
        path if let Some(file) = page::file(path) => pages::show(file, &handshake.headers),
        unknown => {
            let sentence = format!(
                "there is nothing at {unknown}: see /, /capture, /captures, /targets, /rates, /filter, /version, /metrics, \
                 /healthz, /readyz and /openapi.json"
            );
            Refusal::new(Code::PathUnknown, sentence).into_response()
        }
    }
}

/// The version, and beside it the time, by which a gateway knows how our clock stands to its own.
pub(crate) fn version() -> Response {
    let version = json!({ "name": "packetflix", "version": env!("CARGO_PKG_VERSION") });
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    warp::reply::with_header(
        warp::reply::json(&version),
        TIME,
        since_1970.as_nanos().to_string(),
    )
    .into_response()
}

/// The description of all this for programs.
fn openapi() -> Response {
    let body = include_str!("openapi.json");
    warp::reply::with_header(body, header::CONTENT_TYPE, "application/json").into_response()
}
