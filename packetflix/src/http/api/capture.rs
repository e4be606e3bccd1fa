//! `/capture`: from a handshake to a stream.

use std::{net::SocketAddr, sync::Arc};

use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use hyper::upgrade::OnUpgrade;
use tracing::Instrument as _;
use warp::{
    Reply,
    http::{HeaderMap, HeaderName, HeaderValue, Request},
    reply::Response,
};

use super::{Api, claimed::claimed_by, refusal::Refusal, request, request::RequestError, websocket};
use crate::http::origin::check_origin;
use crate::{
    capture_end::CaptureEnd,
    captures::Attempt,
    description::TargetDescription,
    service::{Asker, Caller},
    session::{SEVERAL_LINK_TYPES, SingleStream},
};

/// Header of an answer, for people: what there is to know of a capture that begins.
const NOTE: HeaderName = HeaderName::from_static("packetflix-note");

/// Why a capture has ended whose client did not wait for it.
const LEFT_BEFORE: &str = "it left before the stream began";

/// Our end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalEnd(pub(crate) SocketAddr);

/// A request for a capture, as it came.
pub(crate) struct Handshake {
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) on_upgrade: Option<OnUpgrade>,
    pub(crate) local: Option<LocalEnd>,
    /// Who asks, and what they may do.
    pub(crate) caller: Caller,
}

/// Starts a capture and answers the handshake, or says why not.
pub(crate) async fn capture(api: &Api, handshake: Handshake) -> Result<Response, Refusal> {
    let id = api.app.next_id();
    let span = tracing::info_span!("capture", id);
    let mut attempt = Attempt {
        id,
        client: handshake.caller.facts(),
        target: TargetDescription::default(),
    };
    let (peer, account) = (handshake.caller.peer(), handshake.caller.account());
    let started = start(api, handshake, &mut attempt, span.clone());
    let started = started.instrument(span.clone()).await;
    if let Err(refusal) = &started {
        span.in_scope(|| api.refusals.refused(peer, refusal));
        let status = refusal.status().as_u16();
        api.app.refused(&attempt, &account, status, &refusal.sentence);
    }
    started
}

async fn start(
    api: &Api,
    handshake: Handshake,
    attempt: &mut Attempt,
    span: tracing::Span,
) -> Result<Response, Refusal> {
    tracing::debug!(peer = ?handshake.caller.peer(), query = handshake.query, "asked for a capture");
    check_origin(&handshake.headers, &api.app.config.allowed_origins)?;
    handshake.caller.may_capture_something()?;
    let (mut switching, upgraded) = accept_upgrade(&handshake)?;
    let mut request = request::parse(&handshake.query, &handshake.headers)?;
    attempt.target.clone_from(&request.target);
    let Handshake {
        headers,
        local,
        caller,
        ..
    } = handshake;
    let asker = Asker {
        caller,
        listening: Arc::clone(&api.listening),
        claimed: local.and_then(|LocalEnd(local)| claimed_by(&headers, local, &api.names)),
    };
    let patience = api.app.config.client_timeout;
    if let Some(several) = request.several.take() {
        let started = api.app.start_several(attempt.id, request, several, asker).await?;
        let streaming = started.deliver(async move |session, stop| match upgraded.await {
            Ok(socket) => websocket::serve(socket, session, stop, patience).await,
            Err(error) => {
                tracing::info!(%error, "ended: the client left before the stream began");
                session.conclude(CaptureEnd::ClientGone, LEFT_BEFORE);
            }
        });
        api.app.tasks.spawn(streaming.instrument(span));
        return Ok(switching);
    }
    let started = api.app.start(attempt.id, request, asker).await?;
    if started.has_several_link_types {
        let note = HeaderValue::from_static(SEVERAL_LINK_TYPES);
        switching.headers_mut().insert(NOTE, note);
    }
    let streaming = started.deliver(async move |session, running, stop| match upgraded.await {
        Ok(socket) => {
            let stream = SingleStream { session, running };
            websocket::serve(socket, stream, stop, patience).await;
        }
        Err(error) => {
            tracing::info!(%error, "ended: the client left before the stream began");
            running.end(CaptureEnd::ClientGone, LEFT_BEFORE);
        }
    });
    api.app.tasks.spawn(streaming.instrument(span));
    Ok(switching)
}

/// Checks the WebSocket handshake and prepares its answer.
fn accept_upgrade(handshake: &Handshake) -> Result<(Response, UpgradeFut), RequestError> {
    let mut request = Request::new(());
    *request.headers_mut() = handshake.headers.clone();
    if !is_upgrade_request(&request) {
        return Err(RequestError::NoUpgrade);
    }
    // Only a request of HTTP/1.1 can be upgraded.
    let on_upgrade = handshake.on_upgrade.clone().ok_or(RequestError::NoUpgrade)?;
    request.extensions_mut().insert(on_upgrade);
    let (response, upgraded) = upgrade(&mut request).map_err(|error| match error {
        fastwebsockets::WebSocketError::InvalidSecWebsocketVersion => RequestError::WebSocketVersion,
        _ => RequestError::NoWebSocketKey,
    })?;
    Ok((response.map(|_| "").into_response(), upgraded))
}
