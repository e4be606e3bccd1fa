//! The accept loop. Every connection and every capture is a task that is waited for.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    capture::{App, LocalEnd},
    front::Front,
    tcp::keep_prompt_and_alive,
};
use crate::{config::Config, watch::ServiceManager};

/// Most connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
const BACKLOG: i32 = 1024;

/// How long a client may take for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long for that of its only request when the service is shutting down.
const LATE_HEADER_TIMEOUT: Duration = Duration::from_secs(1);
/// Most bytes of the head of a request.
const MAX_HEAD_LEN: usize = 64 * 1024;

/// How long to wait when no connection can be accepted, for want of descriptors for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the listening socket, for IPv4 and IPv6; for IPv4 alone where there is no IPv6.
///
/// # Errors
/// When the port is taken or not allowed. Must be called within a tokio runtime.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let dual = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    bind(dual).or_else(|error| match error.raw_os_error() {
        Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL) => {
            bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
        }
        _ => Err(error),
    })
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves `listener` until `shutdown` is ready; then ends every capture with its statistics and a close frame, and
/// returns when all are done, after the time that is configured for that, or when `shutdown` is ready once more.
pub async fn serve(listener: TcpListener, config: Arc<Config>, mut shutdown: impl AsyncFnMut()) {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let patience = config.shutdown_timeout;
    let app = Arc::new(App::new(config, tasks.clone(), stop.clone()));
    let manager = ServiceManager::from_environment();
    tokio::select! {
        () = shutdown() => {}
        () = accept_all(&listener, &app) => {}
        () = stay_ready(&listener, &app, &manager) => {}
        () = stay_in_touch(&app, &manager) => {}
        () = app.discovery.follow() => {}
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
        () = accept_all(&listener, &app) => {}
        () = stay_in_touch(&app, &manager) => {}
    }
}

/// Keeps an object ready for the next capture, and tells when the first one is: the first capture has no longer to wait
/// than others. Never ends.
async fn stay_ready(listener: &TcpListener, app: &App, manager: &ServiceManager) {
    app.loader.make_ready().await;
    match listener.local_addr() {
        Ok(address) => tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening"),
        Err(error) => tracing::warn!(%error, "listening, but the address is not known"),
    }
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

async fn accept_all(listener: &TcpListener, app: &Arc<App>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let front = Arc::new(Front::new(app));
    loop {
        let permit = Arc::clone(&connections).acquire_owned().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                let front = Arc::clone(&front);
                let stop = app.stop.clone();
                app.tasks.spawn(async move {
                    serve_connection(stream, peer, front, stop).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, front: Arc<Front>, stop: CancellationToken) {
    keep_prompt_and_alive(&stream);
    let local = stream.local_addr().ok().map(LocalEnd);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let front = Arc::clone(&front);
        if let Some(local) = local {
            request.extensions_mut().insert(local);
        }
        async move { front.answer(request, peer).await }
    });
    // hyper would close one that is to be shut down before it has read anything.
    let is_late = stop.is_cancelled();
    let header_timeout = if is_late {
        LATE_HEADER_TIMEOUT
    } else {
        HEADER_TIMEOUT
    };
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .keep_alive(!is_late)
            .header_read_timeout(header_timeout)
            .max_buf_size(MAX_HEAD_LEN)
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
