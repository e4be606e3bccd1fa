//! Requests that are the discovery service's: each goes there over a connection of its own, and its answer
//! comes back, both streamed. Upgraded connections, such as WebSockets, are joined and not looked into.

pub(super) mod error;
pub(super) mod headers;
mod right;

pub(super) use self::right::UseOfService;
use self::{
    error::{MAX_UPGRADED, MAX_UPGRADED_OF_ONE, ProxyError},
    headers::wanted_protocol,
};

use std::{
    collections::HashMap,
    error::Error,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    body::{Body, Incoming},
    client::conn::http1::{self, Connection, SendRequest},
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::copy_bidirectional,
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use warp::{
    Reply as _,
    http::{HeaderValue, Request, Response, StatusCode},
};

use super::{
    api::refusal::Refusal,
    api::refusal_log::RefusalLog,
    body::{AnswerBody, boxed},
    origin::check_origin,
    transport::connection::ClientConnection,
    transport::tcp::keep_prompt_and_alive,
};
use crate::{
    config::{Origin, ServiceAddress},
    error::chain,
    service::{add, remove},
};

/// How long the service may take to be reached, and again to begin its answer.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long an answer that is under way gets when we shut down.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Hands requests on to the discovery service.
pub(super) struct Proxy {
    service: ServiceAddress,
    /// Whose pages may upgrade.
    origins: Vec<Origin>,
    limit: Duration,
    upgrades: Arc<Upgrades>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// The client's side of an upgrade that the service has still to agree to.
struct Upgrade {
    protocol: HeaderValue,
    client: OnUpgrade,
    place: UpgradePlace,
}

/// How many upgraded connections each account has.
#[derive(Debug, Default)]
struct Upgrades(Mutex<HashMap<Arc<str>, usize>>);

/// The place of one of them; given back when dropped.
#[derive(Debug)]
struct UpgradePlace {
    upgrades: Arc<Upgrades>,
    account: Arc<str>,
}

impl Upgrades {
    fn place(self: &Arc<Self>, account: Arc<str>) -> Result<UpgradePlace, ProxyError> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.values().sum::<usize>() >= MAX_UPGRADED {
            return Err(ProxyError::TooManyUpgrades);
        }
        add(&mut counts, Arc::clone(&account), MAX_UPGRADED_OF_ONE)
            .map_err(|_| ProxyError::TooManyUpgradesOfOne(Arc::clone(&account)))?;
        let upgrades = Arc::clone(self);
        Ok(UpgradePlace { upgrades, account })
    }
}

impl Drop for UpgradePlace {
    fn drop(&mut self) {
        let mut counts = self.upgrades.0.lock().unwrap_or_else(PoisonError::into_inner);
        remove(&mut counts, &self.account);
    }
}

impl Proxy {
    /// Its tasks are among `tasks`, and end soon after `stop` is cancelled.
    pub(super) fn new(
        service: ServiceAddress,
        origins: Vec<Origin>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            service,
            origins,
            limit: SERVICE_TIMEOUT,
            upgrades: Arc::default(),
            tasks,
            stop,
        }
    }

    /// The service's answer, or a refusal that says why there is none.
    pub(super) async fn answer(
        &self,
        request: Request<Incoming>,
        client: &ClientConnection,
        right: UseOfService,
        refusals: &RefusalLog,
    ) -> Response<AnswerBody> {
        match self.forward(request, client, right).await {
            Ok(response) => response.map(boxed),
            Err(error) => {
                let refusal = Refusal::from(error);
                refusals.not_proxied(client.peer, &refusal);
                refusal.into_response().map(boxed)
            }
        }
    }

    async fn forward<B>(
        &self,
        mut request: Request<B>,
        client: &ClientConnection,
        right: UseOfService,
    ) -> Result<Response<Incoming>, ProxyError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let upgrade = self.wanted_upgrade(&mut request, right.account())?;
        let (mut parts, body) = request.into_parts();
        let protocol = upgrade.as_ref().map(|upgrade| upgrade.protocol.clone());
        let length = body.size_hint().exact();
        headers::to_service(&mut parts, &self.service, client, protocol, length);
        let mut response = self
            .exchange(Request::from_parts(parts, body), right.clone())
            .await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = upgrade.ok_or_else(|| ProxyError::UnwantedUpgrade {
                service: self.service.clone(),
            })?;
            self.join(upgrade, hyper::upgrade::on(&mut response), right);
        }
        headers::to_client(&mut response);
        Ok(response)
    }

    /// What it takes to upgrade the client's connection, if that is what the request is about.
    fn wanted_upgrade<B>(
        &self,
        request: &mut Request<B>,
        account: Arc<str>,
    ) -> Result<Option<Upgrade>, ProxyError> {
        let Some(protocol) = wanted_protocol(request) else {
            return Ok(None);
        };
        check_origin(request.headers(), &self.origins)?;
        Ok(Some(Upgrade {
            protocol,
            client: hyper::upgrade::on(request),
            place: self.upgrades.place(account)?,
        }))
    }

    /// Sends a request over a new connection, and waits for the head of the answer.
    async fn exchange<B>(
        &self,
        request: Request<B>,
        right: UseOfService,
    ) -> Result<Response<Incoming>, ProxyError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut sender = self.connect(right).await?;
        // The service may wait for the whole body, and that may take its time as long as it goes on.
        let (sent, last_sent) = watch::channel(Instant::now());
        let request = request.map(|body| {
            body.inspect_frame(move |_| {
                sent.send_replace(Instant::now());
            })
        });
        let mut answer = std::pin::pin!(sender.send_request(request));
        loop {
            let deadline = *last_sent.borrow() + self.limit;
            match timeout_at(deadline, answer.as_mut()).await {
                Ok(response) => return response.map_err(|error| self.no_answer(error)),
                Err(_) if *last_sent.borrow() + self.limit > deadline => {}
                Err(_) => {
                    return Err(ProxyError::AnswerTimeout {
                        service: self.service.clone(),
                        limit: self.limit,
                    });
                }
            }
        }
    }

    /// Connects to the service. The connection ends when its one exchange is over, either side leaves, or the right to it is
    /// lost.
    async fn connect<B>(&self, right: UseOfService) -> Result<SendRequest<B>, ProxyError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let service = || self.service.clone();
        let connecting = TcpStream::connect((&*self.service.host, self.service.port));
        let stream = timeout(self.limit, connecting)
            .await
            .map_err(|_| ProxyError::ConnectTimeout {
                service: service(),
                limit: self.limit,
            })?
            .map_err(|source| ProxyError::Unreachable {
                service: service(),
                source,
            })?;
        keep_prompt_and_alive(&stream);
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.no_answer(error))?;
        self.tasks.spawn(drive(connection, self.stop.clone(), right));
        Ok(sender)
    }

    fn no_answer(&self, source: hyper::Error) -> ProxyError {
        if source.is_user() {
            return ProxyError::RequestBody(source);
        }
        ProxyError::Answer {
            service: self.service.clone(),
            source,
        }
    }

    /// Joins the two connections, once both are upgraded, until both sides are done, one is broken, or the right to it is lost.
    fn join(&self, upgrade: Upgrade, service: OnUpgrade, right: UseOfService) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _place = upgrade.place;
            tokio::select! {
                ended = copy_both_ways(upgrade.client, service) => match ended {
                    Ok((up, down)) => tracing::debug!(up, down, "a proxied connection ended"),
                    Err(error) => tracing::debug!(%error, "a proxied connection broke"),
                },
                () = stop.cancelled() => tracing::debug!("a proxied connection ends with the service"),
                why = right.lost() => tracing::info!(reason = why, "a proxied connection loses its right"),
            }
        });
    }
}

/// Works on a connection to the service until all is exchanged, the right to it is lost, or we shut down.
async fn drive<B>(connection: Connection<TokioIo<TcpStream>, B>, stop: CancellationToken, right: UseOfService)
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let stopped = async {
        stop.cancelled().await;
        sleep(STOP_TIMEOUT).await;
    };
    tokio::select! {
        ended = connection.with_upgrades() => if let Err(error) = ended {
            let error = chain(&error);
            tracing::debug!(%error, "a connection to the discovery service ended with an error");
        },
        () = stopped => {}
        why = right.lost() => tracing::info!(reason = why, "a proxied answer loses its right"),
    }
}

/// Bytes that went up to the service, and down from it.
async fn copy_both_ways(client: OnUpgrade, service: OnUpgrade) -> io::Result<(u64, u64)> {
    let (client, service) = tokio::try_join!(client, service).map_err(io::Error::other)?;
    copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(service)).await
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};

    use futures_util::stream;
    use http_body_util::{Empty, Full, StreamBody};
    use hyper::body::Frame;
    use socket2::{Domain, Socket, Type};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use warp::http::HeaderMap;

    use crate::{access::Access, http::credentials::identify, service::Peer};

    const CLIENT: ClientConnection = ClientConnection {
        peer: Peer::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 7)),
        local: None,
        certificate: None,
        is_encrypted: false,
        place: None,
    };

    fn proxy(port: u16, limit: Duration) -> Proxy {
        let service = ServiceAddress {
            host: "127.0.0.1".to_owned(),
            port,
        };
        let mut proxy = Proxy::new(service, Vec::new(), TaskTracker::new(), CancellationToken::new());
        proxy.limit = limit;
        proxy
    }

    fn anybody() -> UseOfService {
        let access = Access::open(None, false, None).unwrap();
        let caller = identify(
            &access,
            std::time::Instant::now(),
            &CLIENT,
            &HeaderMap::new(),
            None,
        )
        .unwrap();
        UseOfService::new(caller, Arc::new(access))
    }

    async fn listen() -> (TcpListener, u16) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    fn websocket() -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        let headers = request.headers_mut();
        headers.insert("connection", HeaderValue::from_static("Upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("websocket"));
        request
    }

    #[tokio::test]
    async fn service_that_does_not_answer_is_given_up() {
        let (_listener, port) = listen().await;
        let proxy = proxy(port, Duration::from_millis(50));
        let error = proxy
            .forward(Request::new(Empty::<Bytes>::new()), &CLIENT, anybody())
            .await;
        let refusal = Refusal::from(error.unwrap_err());
        assert_eq!(refusal.status(), StatusCode::GATEWAY_TIMEOUT);
        assert!(
            refusal.sentence.contains(&format!("127.0.0.1:{port}")),
            "{refusal:?}"
        );
        assert!(refusal.sentence.contains("50ms"), "{refusal:?}");
        proxy.tasks.close();
        timeout(Duration::from_secs(5), proxy.tasks.wait())
            .await
            .expect("its connection goes on");
    }

    #[tokio::test]
    async fn service_that_cannot_be_reached_is_given_up() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
            queued.push(stream);
        }
        let proxy = proxy(address.port(), Duration::from_millis(50));
        let error = proxy
            .forward(Request::new(Empty::<Bytes>::new()), &CLIENT, anybody())
            .await;
        let refusal = Refusal::from(error.unwrap_err());
        assert_eq!(refusal.status(), StatusCode::GATEWAY_TIMEOUT, "{refusal:?}");
        assert!(
            refusal.sentence.contains("was not reached within 50ms"),
            "{refusal:?}"
        );
    }

    #[tokio::test]
    async fn body_may_take_longer_than_the_answer() {
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut received = Vec::new();
            while !received.ends_with(b"0\r\n\r\n") {
                stream.read_buf(&mut received).await.unwrap();
            }
            stream
                .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
                .await
                .unwrap();
        });
        let frames = stream::unfold(0, |count| async move {
            sleep(Duration::from_millis(100)).await;
            (count < 8).then(|| {
                (
                    Ok::<_, io::Error>(Frame::data(Bytes::from_static(b"x"))),
                    count + 1,
                )
            })
        });
        let mut request = Request::new(StreamBody::new(Box::pin(frames)));
        *request.method_mut() = hyper::Method::POST;
        let proxy = proxy(port, Duration::from_millis(400));
        let response = proxy.forward(request, &CLIENT, anybody()).await.unwrap();
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
    }

    #[tokio::test]
    async fn what_is_no_http_is_no_answer() {
        for said in [
            "",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        ] {
            let (listener, port) = listen().await;
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.read_buf(&mut Vec::new()).await.unwrap();
                stream.write_all(said.as_bytes()).await.unwrap();
            });
            let request = Request::new(Full::new(Bytes::new()));
            let error = proxy(port, SERVICE_TIMEOUT)
                .forward(request, &CLIENT, anybody())
                .await
                .unwrap_err();
            assert!(matches!(error, ProxyError::Answer { .. }), "{said}: {error}");
            assert_eq!(Refusal::from(error).status(), StatusCode::BAD_GATEWAY);
        }
    }

    #[tokio::test]
    async fn unwanted_upgrade_is_no_answer() {
        let (listener, port) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_buf(&mut Vec::new()).await.unwrap();
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
        });
        let request = Request::new(Empty::<Bytes>::new());
        let error = proxy(port, SERVICE_TIMEOUT)
            .forward(request, &CLIENT, anybody())
            .await
            .unwrap_err();
        assert!(matches!(error, ProxyError::UnwantedUpgrade { .. }), "{error}");
    }

    #[tokio::test]
    async fn upgraded_connections_are_bounded() {
        let (_listener, port) = listen().await;
        let proxy = proxy(port, Duration::from_millis(10));
        let places = |account: &str, count| {
            let account: Arc<str> = account.into();
            let place = || proxy.upgrades.place(Arc::clone(&account)).unwrap();
            std::iter::repeat_with(place).take(count).collect::<Vec<_>>()
        };
        let own = places("127.0.0.1", MAX_UPGRADED_OF_ONE);
        let error = proxy.forward(websocket(), &CLIENT, anybody()).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "one account may have 32 upgraded connections proxied at the same time, and 127.0.0.1 has as many"
        );
        assert_eq!(Refusal::from(error).status(), StatusCode::TOO_MANY_REQUESTS);
        drop(own);
        let all: Vec<_> = (0..MAX_UPGRADED / MAX_UPGRADED_OF_ONE)
            .map(|n| places(&n.to_string(), MAX_UPGRADED_OF_ONE))
            .collect();
        let error = proxy.forward(websocket(), &CLIENT, anybody()).await.unwrap_err();
        assert!(matches!(error, ProxyError::TooManyUpgrades), "{error}");
        assert_eq!(Refusal::from(error).status(), StatusCode::SERVICE_UNAVAILABLE);
        drop(all);
        let error = proxy.forward(websocket(), &CLIENT, anybody()).await.unwrap_err();
        assert!(matches!(error, ProxyError::AnswerTimeout { .. }), "{error}");
        assert!(proxy.upgrades.0.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn foreign_pages_upgrade_nothing() {
        let proxy = proxy(1, Duration::from_millis(10));
        let mut request = websocket();
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("here"));
        request
            .headers_mut()
            .insert("origin", HeaderValue::from_static("http://evil.example"));
        let error = proxy.forward(request, &CLIENT, anybody()).await.unwrap_err();
        assert_eq!(Refusal::from(error).status(), StatusCode::FORBIDDEN);
    }
}
