//! The accept loop. Every connection and every capture is a task that is waited for.

use std::{
    future::Future,
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
use crate::config::Config;

/// Most connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
const BACKLOG: i32 = 1024;

/// How long a client may take for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of the head of a request.
const MAX_HEAD_LEN: usize = 64 * 1024;

/// How long captures and connections get to end when the service is shut down.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

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

/// Serves `listener` until `shutdown` is ready; then ends every capture with its statistics and a close
/// frame, and returns when all are done, or after ten seconds.
pub async fn serve(listener: TcpListener, config: Arc<Config>, shutdown: impl Future<Output = ()>) {
    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let app = Arc::new(App::new(config, tasks.clone(), stop.clone()));
    // So that the first capture has no longer to wait than others.
    app.loader.make_ready().await;
    match listener.local_addr() {
        Ok(address) => tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening"),
        Err(error) => tracing::warn!(%error, "listening, but the address is not known"),
    }

    tokio::select! {
        () = shutdown => {}
        () = accept_all(listener, &app) => {}
        () = app.discovery.follow() => {}
        () = Arc::clone(&app.loader).keep_one_ready() => {}
    }
    tracing::info!(captures = app.running_captures(), "shutting down");
    stop.cancel();
    tasks.close();
    if timeout(DRAIN_TIMEOUT, tasks.wait()).await.is_err() {
        tracing::warn!(tasks = tasks.len(), "not everything ended in time");
    }
}

async fn accept_all(listener: TcpListener, app: &Arc<App>) {
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
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_HEAD_LEN)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
    );
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%peer, error = %crate::error::chain(&error), "a connection ended with an error");
    }
}
