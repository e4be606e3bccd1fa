//! `/capture`: from a handshake to a stream.

use std::{net::SocketAddr, sync::Arc};

use fastwebsockets::upgrade::{UpgradeFut, is_upgrade_request, upgrade};
use hyper::upgrade::OnUpgrade;
use tracing::Instrument as _;
use warp::{
    Reply,
    http::{HeaderMap, HeaderName, HeaderValue, Request, header},
    reply::Response,
};

use super::{Api, claimed::claimed_by, refusal::Refusal, request, request::RequestError, websocket};
use crate::http::{origin::check_origin, site::Site};
use crate::{
    capture_end::CaptureEnd,
    captures::Attempt,
    description::TargetDescription,
    pcapng::SEVERAL_LINK_TYPES,
    service::{Asker, Caller},
    session::SingleStream,
};

/// Header of an answer, for people: what there is to know of a capture that begins.
pub(crate) const NOTE: HeaderName = HeaderName::from_static("packetflix-note");

/// Why a capture has ended whose client did not wait for it.
pub(crate) const LEFT_BEFORE: &str = "it left before the stream began";

/// The subprotocol of a stream. A browser that offers any takes no answer without one of them.
const PROTOCOL: &str = "packetflix.v1";

/// What whoever offers it beside that is told by a message and a close: a browser shows a page no answer but the upgrade, and so
/// no refusal. Nothing else is refused otherwise for its sake: neither those who are not known, nor pages of other sites.
const TELLS_REFUSALS: &str = "refusals.packetflix.v1";

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

/// An upgrade to a WebSocket that is accepted.
pub(crate) struct Upgrade {
    pub(crate) answer: Response,
    /// What follows the answer, until somebody takes it.
    socket: Option<UpgradeFut>,
}

impl Upgrade {
    pub(crate) fn take(&mut self) -> Result<UpgradeFut, RequestError> {
        self.socket.take().ok_or(RequestError::NoUpgrade)
    }
}

/// A request for a capture that is being answered.
pub(crate) struct Opening {
    pub(crate) attempt: Attempt,
    /// Of its log.
    pub(crate) span: tracing::Span,
    caller: Caller,
    tells_refusals: bool,
}

impl Opening {
    pub(crate) fn of(site: &Site, handshake: &Handshake) -> Self {
        let id = site.frontend().next_id();
        Self {
            attempt: Attempt {
                id,
                client: handshake.caller.facts(),
                target: TargetDescription::default(),
            },
            span: tracing::info_span!("capture", id),
            caller: handshake.caller.clone(),
            tells_refusals: offers(&handshake.headers, TELLS_REFUSALS),
        }
    }

    /// What comes before everything else: whether a page may ask for this at all, and whether this is a WebSocket. Refuses with
    /// that, where whoever asks is known and may be told by it.
    pub(crate) fn prepare(
        &self,
        site: &Site,
        handshake: &Handshake,
    ) -> Result<Upgrade, (Refusal, Option<Box<Upgrade>>)> {
        let _entered = self.span.enter();
        tracing::debug!(peer = ?handshake.caller.peer(), query = handshake.query, "asked for a capture");
        check_origin(&handshake.headers, &site.frontend().config.allowed_origins)
            .map_err(|error| (error.into(), None))?;
        let upgrade = accept_upgrade(handshake);
        match handshake.caller.may_capture_something() {
            Ok(()) => upgrade.map_err(|error| (error.into(), None)),
            Err(error) => Err((error.into(), upgrade.ok().map(Box::new))),
        }
    }

    /// Refuses it: by the answer, or, where a browser would show its page no other answer than the upgrade, by a message.
    pub(crate) fn refuse(
        self,
        site: &Site,
        refusal: Refusal,
        upgrade: Option<Upgrade>,
    ) -> Result<Response, Refusal> {
        let frontend = site.frontend();
        self.span
            .in_scope(|| site.refusals.refused(self.caller.peer(), &refusal));
        let status = refusal.status().as_u16();
        frontend.refused(&self.attempt, &self.caller.account(), status, &refusal.sentence);
        let Some(Upgrade {
            answer,
            socket: Some(upgraded),
        }) = upgrade.filter(|_| self.tells_refusals)
        else {
            return Err(refusal);
        };
        let told = async move {
            if let Ok(socket) = upgraded.await {
                websocket::refuse(socket, &refusal).await;
            }
        };
        frontend.tasks.spawn(told.instrument(self.span));
        Ok(answer)
    }
}

/// Starts a capture and answers the handshake, or says why not.
pub(crate) async fn capture(api: &Api, handshake: Handshake) -> Result<Response, Refusal> {
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

/// Starts a capture, and takes the socket of `upgrade` once there is one.
async fn start(
    api: &Api,
    handshake: Handshake,
    attempt: &mut Attempt,
    upgrade: &mut Upgrade,
    span: tracing::Span,
) -> Result<(), Refusal> {
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
        listening: Arc::clone(&api.site.listening),
        claimed: local.and_then(|LocalEnd(local)| claimed_by(&headers, local, &api.site.names)),
    };
    let patience = api.app.frontend.config.client_timeout;
    if let Some(several) = request.several.take() {
        let started = api.app.start_several(attempt.id, request, several, asker).await?;
        let upgraded = upgrade.take()?;
        let streaming = started.deliver(async move |session, stop| match upgraded.await {
            Ok(socket) => websocket::serve(socket, session, stop, patience).await,
            Err(error) => {
                tracing::info!(%error, "ended: the client left before the stream began");
                session.conclude(CaptureEnd::ClientGone, LEFT_BEFORE);
            }
        });
        api.app.tasks.spawn(streaming.instrument(span));
        return Ok(());
    }
    let started = api.app.start(attempt.id, request, asker).await?;
    if started.has_several_link_types {
        let note = HeaderValue::from_static(SEVERAL_LINK_TYPES);
        upgrade.answer.headers_mut().insert(NOTE, note);
    }
    let upgraded = upgrade.take()?;
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
    Ok(())
}

/// Checks the WebSocket handshake and prepares its answer.
fn accept_upgrade(handshake: &Handshake) -> Result<Upgrade, RequestError> {
    let mut request = Request::new(());
    *request.headers_mut() = handshake.headers.clone();
    if !is_upgrade_request(&request) {
        return Err(RequestError::NoUpgrade);
    }
    // Only a request of HTTP/1.1 can be upgraded.
    let on_upgrade = handshake.on_upgrade.clone().ok_or(RequestError::NoUpgrade)?;
    request.extensions_mut().insert(on_upgrade);
    let (mut response, upgraded) = upgrade(&mut request).map_err(|error| match error {
        fastwebsockets::WebSocketError::InvalidSecWebsocketVersion => RequestError::WebSocketVersion,
        _ => RequestError::NoWebSocketKey,
    })?;
    if offers(&handshake.headers, PROTOCOL) {
        let headers = response.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    }
    Ok(Upgrade {
        answer: response.map(|_| "").into_response(),
        socket: Some(upgraded),
    })
}

/// Whether a handshake offers a subprotocol (RFC 6455, section 1.9).
fn offers(headers: &HeaderMap, wanted: &str) -> bool {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let mut offered = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    offered.any(|protocol| protocol.trim_ascii() == wanted.as_bytes())
}
