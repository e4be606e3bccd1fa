//! The accept loops. Every connection and every capture is a task that is waited for.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::lookup_host,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    admission::{Admission, Admitted},
    capture::{App, Fixtures},
    connection::{Bounded, Client, Exchange},
    front::Front,
    listen::{Accepted, ListenError, Listener, is_reachable, leads_to, listen},
    tcp::keep_prompt_and_alive,
    tls::{Tls, TlsError},
};
use crate::{
    access::{Access, TokenFileError},
    captures::{Audit, AuditFileError},
    config::{Config, ServiceAddress},
    line_bounds::WINDOW,
    metrics::Metrics,
    service::Peer,
    service_manager::ServiceManager,
    tap::Connections,
};

/// How long a client may take for the head of its only request when the service is shutting down.
const LATE_HEADER_TIMEOUT: Duration = Duration::from_secs(1);

/// Most bytes of the head of a request.
const MAX_HEAD_LEN: usize = 64 * 1024;

/// How long to wait when no connection can be accepted, for want of descriptors for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the start waits for the address of the discovery service.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// Where clients come in: the sockets, and what is asked of those who do.
pub struct Doors {
    listeners: Vec<Listener>,
    access: Arc<Access>,
    tls: Option<Tls>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
}

/// Why clients cannot come in.
#[derive(Debug, thiserror::Error)]
pub enum DoorsError {
    /// Nobody could show a token.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// Nothing could be encrypted.
    #[error("TLS cannot be spoken")]
    Tls(#[from] TlsError),
    /// Nothing could be accounted for.
    #[error(transparent)]
    Audit(#[from] AuditFileError),
    /// Nobody could connect.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// Each question would become another.
    #[error(
        "the discovery service at {0} is this service itself, which would ask itself without end: name the port of the other \
         with --gw-port, or another with --port"
    )]
    Loop(ServiceAddress),
}

impl Doors {
    /// Reads tokens and certificates, and opens the account of captures and the listening sockets.
    ///
    /// # Errors
    /// When something cannot be used, or an address is taken or not allowed.
    pub async fn open(config: &Config) -> Result<Self, DoorsError> {
        let client_ca = config.tls.as_ref().and_then(|files| files.client_ca.as_ref());
        let access = Access::open(config.token_file.as_ref(), client_ca.is_some())?;
        let tls = config.tls.as_ref().map(Tls::open).transpose()?;
        let metrics = Arc::new(Metrics::new());
        let audit = Audit::open(
            config.audit_log.as_deref(),
            config.audit_required,
            Arc::clone(&metrics),
        )?;
        let doors = Self {
            metrics,
            audit: Arc::new(audit),
            listeners: listen(&config.listen, config.is_closed)?,
            access: Arc::new(access),
            tls,
        };
        match &config.discovery_service {
            Some(service) if doors.lead_to(service).await => Err(DoorsError::Loop(service.clone())),
            _ => Ok(doors),
        }
    }

    /// Whether a service that is to be asked is this one, as far as its name is known by now.
    async fn lead_to(&self, service: &ServiceAddress) -> bool {
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
}

/// Serves those who come in until `shutdown` is ready; then ends every capture with its statistics and a close frame, and
/// returns when all are done, after the time that is configured for that, or when `shutdown` is ready once more.
pub async fn serve(doors: Doors, config: Arc<Config>, mut shutdown: impl AsyncFnMut()) {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let patience = config.shutdown_timeout;
    let listening = doors.tcp_addresses();
    let Doors {
        listeners,
        access,
        tls,
        metrics,
        audit,
    } = doors;
    let files = access.files().into_iter().chain(tls.as_ref().map(Tls::files));
    let files = files.collect();
    let app = Arc::new(App::new(
        config,
        Fixtures {
            access,
            listening,
            files,
            metrics,
            audit,
            tasks: tasks.clone(),
            stop: stop.clone(),
        },
    ));
    let manager = ServiceManager::from_environment();
    let hall = Arc::new(Hall {
        admission: Admission::new(app.config.max_connections_per_address),
        connections: Arc::clone(app.loader.connections()),
        front: Front::new(&app),
        tls,
    });
    tokio::select! {
        () = shutdown() => {}
        () = accept_everywhere(&listeners, &hall, &app) => {}
        () = stay_ready(&listeners, &hall, &app, &manager) => {}
        () = stay_in_touch(&app, &manager) => {}
        () = hall.follow_files() => {}
        () = hall.forget_connections() => {}
        () = app.discovery.follow() => {}
        () = tell_the_rest(&app, &hall.front) => {}
    }

    tracing::info!(captures = app.captures.count(), "shutting down");
    stop.cancel();
    tasks.close();
    manager.stopping(patience, &status(&app));
    tokio::select! {
        drained = timeout(patience, tasks.wait()) => if drained.is_err() {
            tracing::warn!(tasks = tasks.len(), "not everything ended in time");
        },
        () = shutdown() => tracing::warn!(tasks = tasks.len(), "a second signal: what still runs is cut off"),
        // Whoever asks meanwhile is told that the service is not ready.
        () = accept_everywhere(&listeners, &hall, &app) => {}
        () = stay_in_touch(&app, &manager) => {}
    }
    app.tell_the_rest();
    hall.front.tell_the_rest();
}

/// Tells again and again what lines of the log were left out. Never ends.
async fn tell_the_rest(app: &App, front: &Front) {
    loop {
        sleep(WINDOW).await;
        app.tell_the_rest();
        front.tell_the_rest();
    }
}

/// What all connections share.
struct Hall {
    admission: Arc<Admission>,
    connections: Arc<Connections>,
    front: Front,
    tls: Option<Tls>,
}

impl Hall {
    /// Says where the doors are, and if they stand open.
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
        if self.front.access.is_open()
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

    /// Forgets connections of ours that have ended; never ends.
    async fn forget_connections(&self) {
        loop {
            sleep(Connections::LINGER).await;
            self.connections.sweep();
        }
    }

    /// Follows tokens and certificates; never ends.
    async fn follow_files(&self) {
        let certificates = async {
            match &self.tls {
                Some(tls) => tls.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(self.front.access.follow(), certificates);
    }
}

/// Keeps an object ready for the next capture, and tells when the first one is: the first capture has no longer to wait
/// than others. Never ends.
async fn stay_ready(listeners: &[Listener], hall: &Hall, app: &App, manager: &ServiceManager) {
    app.loader.make_ready().await;
    hall.announce(listeners, app.config.is_closed);
    manager.ready(&status(app));
    app.loader.keep_one_ready().await;
}

/// Tells the service manager again and again that all is well. Never ends.
async fn stay_in_touch(app: &App, manager: &ServiceManager) {
    loop {
        sleep(manager.interval()).await;
        manager.alive(&status(app));
    }
}

/// How the service is, in a sentence.
fn status(app: &App) -> String {
    let captures = match app.captures.count() {
        0 => "no captures".to_owned(),
        1 => "1 capture".to_owned(),
        count => format!("{count} captures"),
    };
    match app.problem() {
        // A line is all that there is room for: what the verifier has to say may be many.
        Some(problem) => format!("{captures}; {}", problem.lines().next().unwrap_or_default()),
        None => captures,
    }
}

async fn accept_everywhere(listeners: &[Listener], hall: &Arc<Hall>, app: &App) {
    join_all(listeners.iter().map(|listener| accept_all(listener, hall, app))).await;
}

async fn accept_all(listener: &Listener, hall: &Arc<Hall>, app: &App) {
    loop {
        match listener.accept().await {
            Ok((accepted, peer)) => {
                let hall = Arc::clone(hall);
                let stop = app.stop.clone();
                let exchange = Exchange::new();
                match hall.admission.admit(peer, exchange.clone()) {
                    Ok(admitted) => {
                        app.tasks.spawn(async move {
                            let place = Arc::clone(admitted.place());
                            tokio::select! {
                                () = welcome(accepted, peer, admitted, exchange, hall, stop) => {}
                                () = place.turned_out() => tracing::debug!(%peer, "a connection is turned out"),
                            }
                        });
                    }
                    Err(why) => {
                        tracing::debug!(%peer, %why, "a connection is not let in");
                        app.tasks.spawn(async move {
                            match accepted {
                                // It expects TLS, and a handshake is too much to do for those who are not let in.
                                Accepted::Tcp(_) if hall.tls.is_some() => {}
                                Accepted::Tcp(stream) => hall.admission.turn_away(stream, why).await,
                                Accepted::Unix(stream) => hall.admission.turn_away(stream, why).await,
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
async fn welcome(
    accepted: Accepted,
    peer: Peer,
    admitted: Admitted,
    exchange: Exchange,
    hall: Arc<Hall>,
    stop: CancellationToken,
) {
    let mut client = Client {
        peer,
        local: None,
        certificate: None,
        is_encrypted: false,
        place: Some(Arc::clone(admitted.place())),
    };
    let stream = match (accepted, &hall.tls) {
        (Accepted::Unix(stream), _) => Bounded::new(Box::new(stream), exchange.clone(), None),
        (Accepted::Tcp(stream), tls) => {
            keep_prompt_and_alive(&stream);
            client.local = stream.local_addr().ok();
            let ends = client.local.zip(peer.address());
            let own = ends.map(|(local, peer)| hall.connections.open(local, peer));
            if let Some(tls) = tls {
                client.is_encrypted = true;
                let shaken = tokio::select! {
                    shaken = tls.accept(stream) => shaken,
                    () = stop.cancelled() => return,
                };
                match shaken {
                    Ok((stream, certificate)) => {
                        client.certificate = certificate;
                        Bounded::new(Box::new(stream), exchange.clone(), own)
                    }
                    Err(error) => {
                        tracing::debug!(%peer, error = %crate::error::chain(&error), "a connection is closed");
                        return;
                    }
                }
            } else {
                Bounded::new(Box::new(stream), exchange.clone(), own)
            }
        }
    };
    serve_connection(stream, Arc::new(client), exchange, hall, stop).await;
    drop(admitted);
}

async fn serve_connection(
    stream: Bounded,
    client: Arc<Client>,
    exchange: Exchange,
    hall: Arc<Hall>,
    stop: CancellationToken,
) {
    let peer = client.peer;
    let service = service_fn(move |request: Request<Incoming>| {
        let (hall, client) = (Arc::clone(&hall), Arc::clone(&client));
        let answering = exchange.answer();
        async move {
            let response = hall.front.answer(request, &client).await?;
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
