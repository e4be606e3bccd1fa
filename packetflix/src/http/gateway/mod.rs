//! The routes of a gateway.

mod capture;

use std::{convert::Infallible, sync::Arc};

use bytes::Bytes;
use futures_util::stream;
use warp::{
    Reply as _,
    http::{Method, StatusCode},
    path::FullPath,
    reply::{self, Response},
};

use super::{
    api::{
        answers::Answers,
        capture::Handshake,
        captures,
        code::Code,
        health, page,
        rates::event_stream,
        refusal::Refusal,
        routes::{self, CAPTURES, PAGE},
        targets::parse_words,
    },
    served::{Served, Work},
    site::{Paths, Site},
};
use crate::{
    gateway::Gateway,
    page as files,
    service::{Caller, Frontend},
    tap::Connections,
};

/// A gateway, and what answering over HTTP takes beside it.
struct Api {
    gateway: Arc<Gateway>,
    site: Arc<Site>,
    /// Lists of all nodes that are told.
    answers: Answers,
}

impl Served for Gateway {
    fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    fn paths(self: Arc<Self>, site: &Arc<Site>) -> Paths {
        let api = Arc::new(Api {
            gateway: self,
            site: Arc::clone(site),
            answers: Answers::of_gateway(),
        });
        Paths {
            routes: routes::handing_to(move |method, path, handshake| {
                route(Arc::clone(&api), method, path, handshake)
            }),
            is_ours: |_| true,
            is_public: routes::is_public,
            proxy: None,
        }
    }

    /// It captures nothing itself, and has nothing to leave out.
    fn connections(&self) -> Option<&Arc<Connections>> {
        None
    }

    fn get_ready(&self) -> Work<'_> {
        Box::pin(self.look())
    }

    fn stay_ready(&self) -> Work<'_> {
        Box::pin(std::future::pending())
    }

    fn maintain(&self) -> Work<'_> {
        Box::pin(Self::maintain(self))
    }

    fn problem(&self) -> Option<String> {
        Self::problem(self)
    }

    fn tell_the_rest(&self) {
        self.frontend.tell_the_rest();
    }
}

async fn route(api: Arc<Api>, method: Method, path: FullPath, handshake: Handshake) -> Response {
    if let Some(id) = path.as_str().strip_prefix(CAPTURES) {
        return one_capture(&api, &method, id, &handshake).await;
    }
    if !matches!(method, Method::GET | Method::HEAD) {
        let sentence = format!("{} is read with GET, not {method}", path.as_str());
        return Refusal::new(Code::MethodNotAllowed, sentence).into_response();
    }
    let Handshake { query, caller, .. } = &handshake;
    match path.as_str() {
        "/version" => routes::version(),
        "/capture" => capture::capture(&api, handshake)
            .await
            .unwrap_or_else(Refusal::into_response),
        "/targets" => listed(&api, targets(&api, query, caller).await),
        "/mobyshark" | "/discover/mobyshark" => listed(&api, mobyshark(&api, caller).await),
        "/filter" => filter(&api, query, caller)
            .await
            .unwrap_or_else(Refusal::into_response),
        "/rates" => rates(&api, caller).unwrap_or_else(Refusal::into_response),
        PAGE => page::lead_into_folder(),
        path if let Some(file) = files::file(path) => page::show(file, &handshake.headers),
        "/captures" => listed(&api, all_captures(&api, &handshake).await),
        "/metrics" => metrics(&api, caller).await.unwrap_or_else(Refusal::into_response),
        "/healthz" => health::alive(),
        "/readyz" => health::ready(api.gateway.problem(), api.gateway.doubt()),
        unknown => {
            let sentence = format!(
                "there is nothing at {unknown} of a gateway: see /, /capture, /captures, /targets, /rates, /filter, /version, \
                 /metrics, /healthz and /readyz"
            );
            Refusal::new(Code::PathUnknown, sentence).into_response()
        }
    }
}

fn listed(api: &Api, pieces: Result<Vec<Bytes>, Refusal>) -> Response {
    pieces.map_or_else(Refusal::into_response, |pieces| api.answers.hand_out(pieces))
}

/// `/targets`: all of them, or those that the words `target` of the query select.
async fn targets(api: &Api, query: &str, caller: &Caller) -> Result<Vec<Bytes>, Refusal> {
    caller.may_discover()?;
    Ok(api.gateway.targets(parse_words(query)?, caller).await?)
}

async fn mobyshark(api: &Api, caller: &Caller) -> Result<Vec<Bytes>, Refusal> {
    caller.may_discover()?;
    Ok(api.gateway.mobyshark(caller).await?)
}

/// `/filter`: what becomes of an expression, on a node.
async fn filter(api: &Api, query: &str, caller: &Caller) -> Result<Response, Refusal> {
    caller
        .may_discover()
        .or_else(|_| caller.may_capture_something())?;
    let told = api.gateway.filter(query).await?;
    Ok(reply::json(&told).into_response())
}

/// `/rates`: those of all nodes, as server-sent events, until the caller would not be let in any more, or the gateway ends.
fn rates(api: &Api, caller: &Caller) -> Result<Response, Refusal> {
    caller.may_discover()?;
    let rates = api.gateway.rates(caller.bounds()).ok_or_else(|| {
        let sentence = "too many callers with other rights look at traffic: try again";
        Refusal::new(Code::ServiceBusy, sentence)
    })?;
    let begun = (Arc::clone(&api.gateway), rates, caller.clone(), 0);
    let events = stream::unfold(begun, |(gateway, rates, caller, mut told)| async move {
        let frontend = &gateway.frontend;
        let events = tokio::select! {
            () = frontend.stop.cancelled() => return None,
            events = rates.next(&mut told) => events,
        };
        let renewed = caller.renew(&frontend.access).ok()?;
        renewed.may_discover().ok()?;
        // Who may know of more, or less, has it told anew.
        if renewed.bounds() != caller.bounds() {
            return None;
        }
        Some((
            Ok::<_, Infallible>(Bytes::from(events)),
            (gateway, rates, caller, told),
        ))
    });
    Ok(event_stream(events))
}

async fn all_captures(api: &Api, handshake: &Handshake) -> Result<Vec<Bytes>, Refusal> {
    captures::check_right(&api.site, handshake)?;
    Ok(api.gateway.captures(&captures::listed(&api.site)).await)
}

/// `/captures/ID` is one of the gateway's clients, and `/captures/NODE/ID` one of a node.
async fn one_capture(api: &Arc<Api>, method: &Method, id: &str, handshake: &Handshake) -> Response {
    let Some((node, id)) = id.split_once('/') else {
        return captures::one(&api.site, method, id, handshake);
    };
    end_on_node(api, method, node, id, handshake)
        .await
        .unwrap_or_else(Refusal::into_response)
}

async fn end_on_node(
    api: &Arc<Api>,
    method: &Method,
    node: &str,
    id: &str,
    handshake: &Handshake,
) -> Result<Response, Refusal> {
    if *method != Method::DELETE {
        let sentence =
            format!("a capture of a node is ended with DELETE, not {method}, and listed in /captures");
        return Err(Refusal::new(Code::MethodNotAllowed, sentence));
    }
    captures::check_right(&api.site, handshake)?;
    let caller = handshake.caller.clone();
    // By a task of its own, so that there is a line of it, too, where whoever asks leaves meanwhile.
    let ending = end_and_account(Arc::clone(api), node.to_owned(), id.to_owned(), caller);
    let ended = api.site.frontend().tasks.spawn(ending).await;
    ended.map_err(|error| Refusal::new(Code::Internal, error.to_string()))??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn end_and_account(api: Arc<Api>, node: String, id: String, caller: Caller) -> Result<(), Refusal> {
    let ended = end_number_on(&api.gateway, &node, &id).await;
    let status = ended
        .as_ref()
        .map_or_else(Refusal::status, |()| StatusCode::NO_CONTENT);
    let audit = &api.site.frontend().audit;
    audit.end_asked(&format!("{node}/{id}"), &caller.facts(), status.as_u16());
    if ended.is_ok() {
        tracing::info!(
            node,
            id,
            caller = caller.name(),
            caller_type = caller.kind(),
            "a capture of a node is ended by the operator"
        );
    }
    ended
}

async fn end_number_on(gateway: &Gateway, node: &str, id: &str) -> Result<(), Refusal> {
    let number = id.parse().map_err(|_| {
        let sentence = format!("no capture {id} is running on {node}: see /captures");
        Refusal::new(Code::CaptureUnknown, sentence)
    })?;
    Ok(gateway.end_on(node, number).await?)
}

async fn metrics(api: &Api, caller: &Caller) -> Result<Response, Refusal> {
    caller.may_see_metrics()?;
    let mut load = api.gateway.load();
    let certificates = api.site.certificates.as_ref();
    load.files.extend(certificates.map(|files| files.age()));
    Ok(health::open_metrics(api.gateway.metrics(&load).await))
}
