//! What every request passes first: it goes to our routes or to the discovery service, and is logged.

use std::{convert::Infallible, error::Error, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http_body_util::{BodyExt as _, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
    service::Service as _,
};
use hyper_util::service::TowerToHyperService;
use warp::{
    Reply as _,
    http::{Method, StatusCode, Uri},
};

use super::{
    capture::App,
    log::RequestLog,
    proxy::Proxy,
    refusal::Refusal,
    routes::{Routes, is_ours, routes},
};

/// Body of any answer, ours or the discovery service's.
pub(super) type AnswerBody = BoxBody<Bytes, Box<dyn Error + Send + Sync>>;

/// The service behind every connection.
pub(super) struct Front {
    app: Arc<App>,
    routes: Routes,
    proxy: Option<Proxy>,
}

impl Front {
    pub(super) fn new(app: &Arc<App>) -> Self {
        let service = app.config.discovery_service.clone();
        let proxy = service
            .filter(|_| app.config.proxy_discovery)
            .map(|service| Proxy::new(service, app.tasks.clone(), app.stop.clone()));
        Self {
            app: Arc::clone(app),
            routes: routes(Arc::clone(app)),
            proxy,
        }
    }

    /// Answers a request of `peer`; each has an answer, if only a refusal.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let log = RequestLog::begin(&self.app.config, &request);
        let proxy = self.proxy.as_ref().filter(|_| !is_ours(request.uri().path()));
        let response = match proxy {
            _ if request.method() == Method::CONNECT => no_tunnel(request.uri()),
            _ if request.uri().path_and_query().is_none() => no_path(request.uri()),
            Some(proxy) => proxy.answer(request, peer).await,
            None => self.route(request, peer).await?,
        };
        if let Some(log) = log {
            log.end(response.status());
        }
        Ok(response)
    }

    async fn route(
        &self,
        mut request: Request<Incoming>,
        peer: SocketAddr,
    ) -> Result<Response<AnswerBody>, Infallible> {
        request.extensions_mut().insert(peer);
        let service = TowerToHyperService::new(warp::service(self.routes.clone()));
        Ok(service.call(request).await?.map(boxed))
    }
}

/// The refusal of a CONNECT: it has no path that could be ours or the service's, and warp cannot take it.
fn no_tunnel(to: &Uri) -> Response<AnswerBody> {
    let sentence = format!("no tunnel is opened to {to}, nor to anywhere else");
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence)
        .into_response()
        .map(boxed)
}

/// The refusal of a request for a host and port, which is what a CONNECT asks for. warp panics without a path.
fn no_path(uri: &Uri) -> Response<AnswerBody> {
    let sentence = format!("{uri} has no path that could be asked for");
    Refusal::new(StatusCode::BAD_REQUEST, sentence)
        .into_response()
        .map(boxed)
}

/// The body as one that any answer may have.
pub(super) fn boxed<B>(body: B) -> AnswerBody
where
    B: Body<Data = Bytes> + Send + Sync + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    body.map_err(Into::into).boxed()
}
