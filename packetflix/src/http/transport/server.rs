//! The accept loops. Every connection and every capture is a task that is waited for.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    admission::{Admission, Admitted},
    connection::{Bounded, ClientConnection, Exchange},
    listen::{Accepted, Dialer, ListenError, Listener, SocketFile, Sockets, is_reachable, leads_to, own},
    tcp::keep_prompt_and_alive,
    tls::{Tls, TlsError},
};
use crate::http::{endpoint::Endpoint, served::Served, site::Site};
use crate::{
    config::{self, ServiceAddress},
    gateway::Gateway,
    line_bounds::WINDOW,
    service::{App, Frontend, Peer},
    service_manager::ServiceManager,
    tap::Connections,
};

/// How long a client may take for the head of its only request when the service is shutting down.
const LATE_HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// Most bytes of the head of a request.
const MAX_HEAD_LEN: usize = 64 * 1024;

/// How long to wait when no connection can be accepted, for want of descriptors for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long to wait until the files are looked at once more, however often they are said to have changed.
const HINT_PAUSE: Duration = Duration::from_secs(1);

/// How long the start waits for the address of the discovery service.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a service shuts down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It was asked to, by a signal.
    Asked,
    /// Whoever has its rights does not answer.
    RightsLost,
}

/// The sockets that the service listens at, and what speaks TLS there.
pub struct Server {
    served: Arc<dyn Served>,
    listeners: Vec<Listener>,
    tls: Option<Tls>,
    manager: ServiceManager,
    /// Whether it makes the kernel's part of a capture ready before one is asked for.
    prepares: bool,
}

/// Why clients cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Nothing could be encrypted.
    #[error("TLS cannot be spoken")]
    Tls(#[from] TlsError),
    /// Nobody could connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Connections could not be waited for.
    #[error("connections cannot be waited for")]
    Accept(#[source] io::Error),
    /// Each question would become another.
    #[error(
        "the discovery service at {0} is this service itself, which would ask itself without end: name the port of the other \
         with --gw-port, or another with --port"
    )]
    Loop(ServiceAddress),
}

/// Where clients come in, and the service manager: what a process opens before it gives up its rights.
#[derive(Debug)]
pub struct Entrance {
    sockets: Sockets,
    manager: ServiceManager,
}

/// Files of sockets, which are removed when this is dropped.
#[derive(Debug)]
pub struct SocketFiles(#[expect(dead_code, reason = "removes the files when it is dropped")] Vec<SocketFile>);

impl Entrance {
    /// Opens the sockets at which a service listens.
    ///
    /// # Errors
    /// When an address is taken or not allowed.
    pub fn open(config: &config::Frontend) -> Result<Self, ServerError> {
        Ok(Self {
            sockets: Sockets::open(&config.listen, config.is_closed)?,
            manager: ServiceManager::from_environment(),
        })
    }

    /// Closes them for this process, which has but copies.
    pub fn close(&mut self) {
        self.sockets.close();
    }

    /// Leaves the files of sockets to who can remove them.
    pub fn leave_files(&mut self) -> SocketFiles {
        let files = self.sockets.files();
        self.sockets.leave_files();
        SocketFiles(files)
    }
}

impl Server {
    /// Reads the certificates. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub async fn new(app: App, entrance: Entrance) -> Result<Self, ServerError> {
        let config = Arc::clone(&app.config);
        let server = Self::open(Arc::new(app), entrance)?;
        match &config.discovery_service {
            Some(service) if server.is_reached_at(service).await => Err(ServerError::Loop(service.clone())),
            _ => Ok(server),
        }
    }

    /// A server of a gateway. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn of_gateway(gateway: Gateway, entrance: Entrance) -> Result<Self, ServerError> {
        Self::open(Arc::new(gateway), entrance)
    }

    fn open(served: Arc<dyn Served>, entrance: Entrance) -> Result<Self, ServerError> {
        let config = Arc::clone(&served.frontend().config);
        let Entrance { sockets, manager } = entrance;
        Ok(Self {
            tls: config.tls.as_ref().map(Tls::open).transpose()?,
            listeners: sockets.listeners().map_err(ServerError::Accept)?,
            served,
            manager,
            prepares: true,
        })
    }

    /// A server that is reached from within this process only, whose caller will do a thing or two, and has all rights.
    pub fn of_this_process(app: App) -> (Self, Dialer) {
        let (listener, dialer) = own();
        let server = Self {
            served: Arc::new(app),
            listeners: vec![listener],
            tls: None,
            manager: ServiceManager::default(),
            prepares: false,
        };
        (server, dialer)
    }

    /// Whether a service that is to be asked is this one, as far as its name is known by now.
    async fn is_reached_at(&self, service: &ServiceAddress) -> bool {
        let known = timeout(LOOKUP_TIMEOUT, lookup_host((&*service.host, service.port))).await;
        let Ok(Ok(addresses)) = known else {
            return false;
        };
        let ours = self.tcp_addresses();
        addresses
            .into_iter()
            .any(|address| ours.iter().any(|our| leads_to(address, *our)))
    }

    fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(Listener::tcp_address).collect()
    }

    /// Serves clients until `shutdown` is ready; then ends every capture with its statistics and a close frame, and
    /// returns when all are done, after the time that is configured for that, or when `shutdown` is ready once more.
    /// Whenever `hint` is ready, files that are followed are looked at.
    pub async fn serve(self, mut shutdown: impl AsyncFnMut() -> Shutdown, hint: impl AsyncFnMut()) {
        let listening = self.tcp_addresses();
        let Self {
            served,
            listeners,
            tls,
            manager,
            prepares,
        } = self;
        let frontend = served.frontend();
        let patience = frontend.config.shutdown_timeout;
        let certificates = tls.as_ref().map(Tls::files);
        let site = Arc::new(Site::new(Arc::clone(&served), listening, certificates));
        let paths = Arc::clone(&served).paths(&site);
        let context = Arc::new(ConnectionContext {
            admission: Admission::new(frontend.config.max_connections_per_address),
            connections: served.connections().cloned(),
            endpoint: Endpoint::new(Arc::clone(&site), paths),
            tls,
        });
        tokio::select! {
            why = shutdown() => if why == Shutdown::RightsLost {
                frontend.captures.lose_rights();
            },
            () = accept_everywhere(&listeners, &context, frontend) => {}
            () = stay_ready(&listeners, &context, &*served, &manager), if prepares => {}
            () = stay_in_touch(&*served, &manager) => {}
            () = context.follow_certificates() => {}
            () = served.maintain() => {}
            () = take_hints(frontend, hint) => {}
            () = tell_the_rest(&site, &context.endpoint) => {}
        }

        tracing::info!(captures = frontend.captures.count(), "shutting down");
        frontend.stop.cancel();
        frontend.tasks.close();
        manager.stopping(patience, &status(&*served));
        tokio::select! {
            drained = timeout(patience, frontend.tasks.wait()) => if drained.is_err() {
                tracing::warn!(tasks = frontend.tasks.len(), "not everything ended in time");
            },
            _ = shutdown() => tracing::warn!(tasks = frontend.tasks.len(), "a second signal: what still runs is cut off"),
            // Whoever asks meanwhile is told that the service is not ready.
            () = accept_everywhere(&listeners, &context, frontend) => {}
            () = stay_in_touch(&*served, &manager) => {}
        }
        served.tell_the_rest();
        site.tell_the_rest();
        context.endpoint.tell_the_rest();
    }
}

/// Looks at the files whenever they are said to be others. Never ends.
async fn take_hints(frontend: &Frontend, mut hint: impl AsyncFnMut()) {
    loop {
        hint().await;
        frontend.look_at_files();
        sleep(HINT_PAUSE).await;
    }
}

/// Tells again and again what lines of the log were left out. Never ends.
async fn tell_the_rest(site: &Site, endpoint: &Endpoint) {
    loop {
        sleep(WINDOW).await;
        site.tell_the_rest();
        endpoint.tell_the_rest();
    }
}

/// What all connections share.
struct ConnectionContext {
    admission: Arc<Admission>,
    connections: Option<Arc<Connections>>,
    endpoint: Endpoint,
    tls: Option<Tls>,
}

impl ConnectionContext {
    /// Logs where the service listens, and whether nobody is asked who they are.
    fn announce(&self, listeners: &[Listener], is_closed: bool) {
        for listener in listeners {
            let tls = self.tls.is_some() && listener.tcp_address().is_some();
            tracing::info!(address = %listener, tls, version = env!("CARGO_PKG_VERSION"), "listening");
        }
        if is_closed {
            tracing::info!(
                "only this host is let in, since nobody is asked who they are; for others, ask for tokens with --token-file \
                 or for certificates with --tls-client-ca, or let everyone in with --open-to-everyone"
            );
        }
        let mut addresses = listeners.iter().filter_map(Listener::tcp_address);
        if self.endpoint.access.is_open()
            && let Some(address) = addresses.find(|address| is_reachable(address.ip()))
        {
            tracing::warn!(
                %address,
                "NOBODY IS ASKED WHO THEY ARE: whoever reaches this address may capture all traffic of this host and of \
                 its containers; ask for tokens with --token-file or for certificates with --tls-client-ca, or listen \
                 with --listen 127.0.0.1 or --listen unix:/PATH"
            );
        }
    }

    /// Follows the certificates; never ends.
    async fn follow_certificates(&self) {
        match &self.tls {
            Some(tls) => tls.follow().await,
            None => std::future::pending().await,
        }
    }
}

/// Keeps the service ready, and tells when it is for the first time: the first capture has no longer to wait than others. Never
/// ends.
async fn stay_ready(
    listeners: &[Listener],
    context: &ConnectionContext,
    served: &dyn Served,
    manager: &ServiceManager,
) {
    served.get_ready().await;
    context.announce(listeners, served.frontend().config.is_closed);
    manager.ready(&status(served));
    served.stay_ready().await;
}

/// Tells the service manager again and again that all is well. Never ends.
async fn stay_in_touch(served: &dyn Served, manager: &ServiceManager) {
    loop {
        sleep(manager.interval()).await;
        manager.alive(&status(served));
    }
}

/// How the service is, in a sentence.
fn status(served: &dyn Served) -> String {
    let captures = match served.frontend().captures.count() {
        0 => "no captures".to_owned(),
        1 => "1 capture".to_owned(),
        count => format!("{count} captures"),
    };
    match served.problem() {
        // A line is all that there is room for: what the verifier has to say may be many.
        Some(problem) => format!("{captures}; {}", problem.lines().next().unwrap_or_default()),
        None => captures,
    }
}

async fn accept_everywhere(listeners: &[Listener], context: &Arc<ConnectionContext>, frontend: &Frontend) {
    join_all(
        listeners
            .iter()
            .map(|listener| accept_all(listener, context, frontend)),
    )
    .await;
}

async fn accept_all(listener: &Listener, context: &Arc<ConnectionContext>, frontend: &Frontend) {
    loop {
        match listener.accept().await {
            Ok((accepted, peer)) => {
                let context = Arc::clone(context);
                let stop = frontend.stop.clone();
                let exchange = Exchange::new();
                match context.admission.admit(peer, exchange.clone()) {
                    Ok(admitted) => {
                        frontend.tasks.spawn(async move {
                            let place = Arc::clone(admitted.place());
                            tokio::select! {
                                () = serve_accepted(accepted, peer, admitted, exchange, context, stop) => {}
                                () = place.turned_out() => tracing::debug!(%peer, "a connection is turned out"),
                            }
                        });
                    }
                    Err(why) => {
                        tracing::debug!(%peer, %why, "a connection is not let in");
                        frontend.tasks.spawn(async move {
                            match accepted {
                                // It expects TLS, and a handshake is too much to do for those who are not let in.
                                Accepted::Tcp(_) if context.tls.is_some() => {}
                                Accepted::Tcp(stream) => context.admission.turn_away(stream, why).await,
                                Accepted::Unix(stream) => context.admission.turn_away(stream, why).await,
                            }
                        });
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one connection, after the handshake if it speaks TLS.
async fn serve_accepted(
    accepted: Accepted,
    peer: Peer,
    admitted: Admitted,
    exchange: Exchange,
    context: Arc<ConnectionContext>,
    stop: CancellationToken,
) {
    let mut client = ClientConnection {
        peer,
        local: None,
        certificate: None,
        is_encrypted: false,
        place: Some(Arc::clone(admitted.place())),
    };
    let stream = match (accepted, &context.tls) {
        (Accepted::Unix(stream), _) => {
            Bounded::new(Box::new(stream), exchange.clone(), None).counted(admitted.head())
        }
        (Accepted::Tcp(stream), tls) => {
            keep_prompt_and_alive(&stream);
            client.local = stream.local_addr().ok();
            let ends = client.local.zip(peer.address());
            let connections = context.connections.as_ref();
            let own = connections
                .zip(ends)
                .map(|(connections, (local, peer))| connections.open(local, peer));
            if let Some(tls) = tls {
                client.is_encrypted = true;
                let shaken = tokio::select! {
                    shaken = tls.accept(stream) => shaken,
                    () = stop.cancelled() => return,
                };
                match shaken {
                    Ok((stream, certificate)) => {
                        client.certificate = certificate;
                        Bounded::new(Box::new(stream), exchange.clone(), own).counted(admitted.head())
                    }
                    Err(error) => {
                        tracing::debug!(%peer, error = %crate::error::chain(&error), "a connection is closed");
                        return;
                    }
                }
            } else {
                Bounded::new(Box::new(stream), exchange.clone(), own).counted(admitted.head())
            }
        }
    };
    serve_connection(stream, Arc::new(client), exchange, context, stop).await;
    drop(admitted);
}

async fn serve_connection(
    stream: Bounded,
    client: Arc<ClientConnection>,
    exchange: Exchange,
    context: Arc<ConnectionContext>,
    stop: CancellationToken,
) {
    let peer = client.peer;
    let service = service_fn(move |request: Request<Incoming>| {
        let (context, client) = (Arc::clone(&context), Arc::clone(&client));
        let answering = exchange.answer();
        async move {
            let response = context.endpoint.answer(request, &client).await?;
            let status = response.status();
            Ok::<_, std::convert::Infallible>(response.map(|body| answering.finish_with(status, body)))
        }
    });
    // hyper would close one that is to be shut down before it has read anything.
    let is_late = stop.is_cancelled();
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(!is_late)
            // The stream has bounds of its own, and an answer for those who reach them.
            .header_read_timeout(is_late.then_some(LATE_HEADER_TIMEOUT))
            // What is read at once may be more than the buffer is said to hold.
            .max_buf_size(MAX_HEAD_LEN)
            .max_header_size(MAX_HEAD_LEN)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled(), if !is_late => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, error = %crate::error::chain(&error), "a connection ended with an error");
    }
}
