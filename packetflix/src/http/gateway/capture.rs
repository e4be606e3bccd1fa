//! `/capture` of a gateway: from a handshake to a stream of nodes.

use tracing::Instrument as _;
use warp::{http::HeaderValue, reply::Response};

use super::Api;
use crate::{
    capture_end::CaptureEnd,
    captures::Attempt,
    gateway::{Gateway, StartedGatewayStream},
    http::api::{
        capture::{Handshake, LEFT_BEFORE, NOTE, Opening, Upgrade},
        refusal::Refusal,
        request, websocket,
    },
    session::ClientStream as _,
};

/// Starts a stream and answers the handshake, or says why not.
pub(super) async fn capture(api: &Api, handshake: Handshake) -> Result<Response, Refusal> {
    let mut opening = Opening::of(&api.site, &handshake);
    let mut upgrade = match opening.prepare(&api.site, &handshake) {
        Ok(upgrade) => upgrade,
        Err((refusal, upgrade)) => {
            return opening.refuse(&api.site, refusal, upgrade.map(|upgrade| *upgrade));
        }
    };
    let span = opening.span.clone();
    let started = start(api, handshake, &mut opening.attempt, &mut upgrade, span.clone());
    match started.instrument(span).await {
        Ok(()) => Ok(upgrade.answer),
        Err(refusal) => opening.refuse(&api.site, refusal, Some(upgrade)),
    }
}

/// Starts a stream, and takes the socket of `upgrade` once there is one.
async fn start(
    api: &Api,
    handshake: Handshake,
    attempt: &mut Attempt,
    upgrade: &mut Upgrade,
    span: tracing::Span,
) -> Result<(), Refusal> {
    let request = request::parse(&handshake.query, &handshake.headers)?;
    attempt.target.clone_from(&request.target);
    Gateway::may_capture(&handshake.caller)?;
    let StartedGatewayStream {
        stream,
        stop,
        permit,
        note,
    } = api.gateway.start(attempt.id, &request, &handshake.caller).await?;
    if let Some(note) = note.and_then(|note| HeaderValue::try_from(note).ok()) {
        upgrade.answer.headers_mut().insert(NOTE, note);
    }
    let upgraded = upgrade.take()?;
    let frontend = api.site.frontend();
    let patience = frontend.config.client_timeout;
    let streaming = async move {
        match upgraded.await {
            Ok(socket) => websocket::serve(socket, stream, stop, patience).await,
            Err(error) => {
                tracing::info!(%error, "ended: the client left before the stream began");
                stream.conclude(CaptureEnd::ClientGone, LEFT_BEFORE);
            }
        }
        drop(permit);
    };
    frontend.tasks.spawn(streaming.instrument(span));
    Ok(())
}
