//! What every request passes first: it is bounded, its caller is asked for, it goes to our routes or to the discovery
//! service, and is logged.

use std::{convert::Infallible, sync::Arc, time::Instant};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    service::Service as _,
};
use hyper_util::service::TowerToHyperService;
use warp::{
    Reply as _,
    http::{HeaderValue, Method, StatusCode, Uri, header},
};

use super::{
    api::capture::LocalEnd,
    api::code::Code,
    api::plain_answer::instead_of_a_list,
    api::refusal::Refusal,
    body::{AnswerBody, boxed},
    credentials::{RIGHTS, identify, rights_shown, shown_token, take_protocol_token, take_query_token},
    log::RequestLog,
    origin::{allowed_origin, answer_preflight, check_origin, check_single, check_site, let_read},
    proxy::{Proxy, UseOfService},
    site::{Paths, Site},
    transport::admission::TurnedAway,
    transport::connection::ClientConnection,
};
use crate::{
    access::Access,
    captures::{ClientFacts, RequestRefusal},
    line_bounds::{LineBounds, WINDOW},
    service::{Caller, ClientId, Peer},
};

/// Most bytes of a path with its query. The head of a request may have little more, but an answer is better than a bare
/// 431.
const MAX_URL_LEN: usize = 60 * 1024;

/// Most bytes of a body for our routes, which take none.
const MAX_BODY_LEN: u64 = 64 * 1024;

/// Lines of the account in a while for requests of one client that were refused.
const ACCOUNTED_LINES: u64 = 50;

/// Who called, in the extensions of the answer.
#[derive(Clone, Debug)]
struct IdentifiedCaller(Arc<ClientFacts>);

/// What was asked for, and when.
struct Asked {
    came: Instant,
    method: Method,
    path: String,
}

impl Asked {
    fn of<B>(request: &Request<B>) -> Self {
        Self {
            came: Instant::now(),
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
        }
    }
}

/// The service behind every connection.
pub(super) struct Endpoint {
    site: Arc<Site>,
    pub(super) access: Arc<Access>,
    paths: Paths,
    /// Lines of the account for requests of each client that were refused.
    accounted: LineBounds<ClientId>,
}

impl Endpoint {
    pub(super) fn new(site: Arc<Site>, paths: Paths) -> Self {
        Self {
            access: Arc::clone(&site.frontend().access),
            site,
            paths,
            accounted: LineBounds::new(ACCOUNTED_LINES),
        }
    }

    /// Accounts for how many refusals had no line since the last time.
    pub(super) fn tell_the_rest(&self) {
        for (client, count) in self.accounted.take_the_rest() {
            let client = client.map_or_else(|| "others".to_owned(), |client| client.to_string());
            self.site
                .frontend()
                .audit
                .more_refused(&client, count, WINDOW.as_secs());
        }
    }

    /// Answers a request of `client`; each has an answer, if only a refusal.
    pub(super) async fn answer(
        &self,
        mut request: Request<Incoming>,
        client: &ClientConnection,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let proxy = self
            .paths
            .proxy
            .as_ref()
            .filter(|_| !(self.paths.is_ours)(request.uri().path()));
        // Only where a query may have a token is it ours to take out of what is the discovery service's.
        let allows_token = self.site.frontend().config.allow_query_token;
        let token = if allows_token || proxy.is_none() {
            take_query_token(&mut request).filter(|_| allows_token)
        } else {
            None
        };
        let token = take_protocol_token(&mut request).or(token);
        let log = RequestLog::begin(&self.site.frontend().config, &request);
        let asked = Asked::of(&request);
        if let Some(token) = shown_token(request.headers(), token.as_deref()) {
            self.site.frontend().review(token, asked.came).await;
        }
        let mut response = match proxy {
            _ if let Err(error) = check_single(request.headers()) => self.refuse(error.into(), client),
            Some(proxy) => {
                self.proxied(proxy, request, asked.came, client, token.as_deref())
                    .await
            }
            None => self.own(request, asked.came, client, token.as_deref()).await?,
        };
        self.account(&asked, client, &response);
        // Wherever clients believe that the service is.
        let wants_list = asked.path.ends_with("/mobyshark");
        if wants_list && let Some(Refusal { code, sentence }) = response.extensions_mut().remove() {
            let body = instead_of_a_list(code, &sentence).to_string();
            *response.body_mut() = boxed(Full::from(body));
        }
        self.site.frontend().metrics.answered(response.status().as_u16());
        if let Some(log) = log {
            log.end(response.status());
        }
        Ok(response)
    }

    /// The answer of our routes.
    async fn own(
        &self,
        mut request: Request<Incoming>,
        came: Instant,
        client: &ClientConnection,
        token: Option<&[u8]>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let origins = &self.site.frontend().config.allowed_origins;
        if let Some(answer) = answer_preflight::<_, Empty<Bytes>>(&request, origins) {
            return Ok(answer.map(boxed));
        }
        let reader = allowed_origin(request.headers(), origins).cloned();
        let is_on_behalf = request.headers().contains_key(RIGHTS);
        let is_public = (self.paths.is_public)(request.uri().path());
        let checked = check_bounds(&request).and_then(|()| match is_public {
            true => Ok(()),
            false => self.check_page(&request, client, false),
        });
        let caller = checked.and_then(
            |()| match self.caller(&request, came, client, token, !is_public) {
                Err(_) if is_public => Ok(Caller::nobody(Some(client.peer))),
                known => known,
            },
        );
        let mut response = match caller {
            Err(refusal) => self.refuse(refusal, client),
            Ok(_) if request.method() == Method::CONNECT => no_tunnel(request.uri()),
            Ok(_) if request.uri().path_and_query().is_none() => no_path(request.uri()),
            Ok(caller) => {
                let name = IdentifiedCaller(caller.facts().into());
                let extensions = request.extensions_mut();
                extensions.insert(caller);
                if let Some(local) = client.local {
                    extensions.insert(LocalEnd(local));
                }
                let service = TowerToHyperService::new(warp::service(self.paths.routes.clone()));
                let mut response = service.call(request).await?.map(boxed);
                response.extensions_mut().insert(name);
                response
            }
        };
        if is_on_behalf {
            let headers = response.headers_mut();
            headers.insert(RIGHTS, HeaderValue::from_static("heeded"));
        }
        if let Some(origin) = reader {
            let_read(&mut response, origin);
        }
        Ok(response)
    }

    /// The answer of the discovery service.
    async fn proxied(
        &self,
        proxy: &Proxy,
        mut request: Request<Incoming>,
        came: Instant,
        client: &ClientConnection,
        token: Option<&[u8]>,
    ) -> Response<AnswerBody> {
        let caller = check_url(request.uri())
            .and_then(|()| self.check_page(&request, client, true))
            .and_then(|()| self.caller(&request, came, client, token, true));
        let caller = match caller {
            Ok(caller) => caller,
            Err(refusal) => return self.refuse(refusal, client),
        };
        if let Err(forbidden) = caller.may_use_discovery_service() {
            let mut response = self.refuse(forbidden.into(), client);
            response
                .extensions_mut()
                .insert(IdentifiedCaller(caller.facts().into()));
            return response;
        }
        if request.method() == Method::CONNECT {
            return no_tunnel(request.uri());
        }
        if request.uri().path_and_query().is_none() {
            return no_path(request.uri());
        }
        if self.access.has_tokens() {
            // Whoever has it could come in with it.
            request.headers_mut().remove(header::AUTHORIZATION);
        }
        let right = UseOfService::new(caller, Arc::clone(&self.access));
        proxy.answer(request, client, right, &self.site.refusals).await
    }

    /// Whether a browser may be made to send this by whatever page it shows. Whoever shows a token or a certificate is no
    /// such page, wherever they think that we are: names that lead to us by way of others stay usable.
    fn check_page<B>(
        &self,
        request: &Request<B>,
        client: &ClientConnection,
        is_proxied: bool,
    ) -> Result<(), Refusal> {
        if client.place.as_ref().is_some_and(|place| place.is_reserved()) {
            return Err(TurnedAway::Full.into());
        }
        let origins = &self.site.frontend().config.allowed_origins;
        let headers = request.headers();
        if self.access.is_open() && matches!(client.peer, Peer::Tcp(_)) {
            self.site.names.check(request.uri(), headers)?;
        }
        // The discovery service has pages of its own, to which links lead.
        let is_page = is_proxied && [Method::GET, Method::HEAD].contains(request.method());
        check_site(headers, origins, is_page)?;
        // Captures that are refused for that are accounted for where they would begin.
        if is_proxied || request.uri().path() != "/capture" {
            check_origin(headers, origins)?;
        }
        Ok(())
    }

    /// Who sends a request. Where that takes a right, whoever has one has proved who they are.
    fn caller<B>(
        &self,
        request: &Request<B>,
        came: Instant,
        client: &ClientConnection,
        token: Option<&[u8]>,
        takes_right: bool,
    ) -> Result<Caller, Refusal> {
        let mut caller = identify(&self.access, came, client, request.headers(), token)?;
        if let Some(rights) = rights_shown(request.headers())? {
            caller = caller.on_behalf(rights);
        }
        if let Some(place) = client.place.as_ref().filter(|_| takes_right) {
            place.prove();
        }
        Ok(caller)
    }

    /// Accounts for a request that was refused for want of a right, or of somebody who is known, unless enough is said of its
    /// client already. A capture that was refused to somebody who is known is accounted for as such.
    fn account(&self, asked: &Asked, client: &ClientConnection, response: &Response<AnswerBody>) {
        let status = response.status();
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status);
        let (Some(Refusal { sentence: reason, .. }), true) = (response.extensions().get(), refused) else {
            return;
        };
        let known = response.extensions().get::<IdentifiedCaller>();
        let is_capture = asked.path == "/capture" && known.is_some();
        if is_capture || !self.accounted.allow(&ClientId::new(client.peer.ip())) {
            return;
        }
        let unknown = ClientFacts {
            address: client.peer.to_string(),
            ..ClientFacts::default()
        };
        self.site.frontend().audit.not_let_in(&RequestRefusal {
            client: known.map_or(&unknown, |known| &known.0),
            method: asked.method.as_str(),
            path: &asked.path,
            status: status.as_u16(),
            reason,
        });
    }

    /// Refuses what does not get as far as our routes or the discovery service.
    fn refuse(&self, refusal: Refusal, client: &ClientConnection) -> Response<AnswerBody> {
        self.site.refusals.not_let_in(client.peer, &refusal);
        refusal.into_response().map(boxed)
    }
}

fn check_url(uri: &Uri) -> Result<(), Refusal> {
    let len = uri.path_and_query().map_or(0, |path| path.as_str().len());
    if len <= MAX_URL_LEN {
        return Ok(());
    }
    let sentence = format!("the URL has {len} bytes, and {MAX_URL_LEN} is the most");
    Err(Refusal::new(Code::UrlTooLong, sentence))
}

/// What our routes take.
fn check_bounds<B: Body>(request: &Request<B>) -> Result<(), Refusal> {
    check_url(request.uri())?;
    let size = request.body().size_hint();
    match size.exact() {
        Some(len) if len <= MAX_BODY_LEN => Ok(()),
        Some(len) => {
            let sentence =
                format!("the body has {len} bytes, where none is taken, and {MAX_BODY_LEN} is the most");
            Err(Refusal::new(Code::BodyTooLarge, sentence))
        }
        None => {
            let sentence = "the body does not say how long it is, and none is taken";
            Err(Refusal::new(Code::BodyTooLarge, sentence))
        }
    }
}

/// The refusal of a CONNECT: it has no path that could be ours or the service's, and warp cannot take it.
fn no_tunnel(to: &Uri) -> Response<AnswerBody> {
    let sentence = format!("no tunnel is opened to {to}, nor to anywhere else");
    Refusal::new(Code::MethodNotAllowed, sentence)
        .into_response()
        .map(boxed)
}

/// The refusal of a request for a host and port, which is what a CONNECT asks for. warp panics without a path.
fn no_path(uri: &Uri) -> Response<AnswerBody> {
    let sentence = format!("{uri} has no path that could be asked for");
    Refusal::new(Code::RequestInvalid, sentence)
        .into_response()
        .map(boxed)
}
