//! A server in the process of a client, where no other is: the same service, without a socket that others could connect to.
//!
//! Its threads are its own, and they alone have the rights that captures take: what the client writes, it writes as its user.

use std::{
    error::Error,
    io,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
};

use clap::Parser as _;
use packetflix_client::{
    connect::Connection,
    local::{LocalServer, Serve},
};
use tokio::{runtime::Runtime, sync::oneshot};

use crate::{
    capabilities::{self, Capability},
    cli::{self, Args, Command, FrontendArgs},
    config::{Config, ConfigError},
    http::{Dialer, Server, Shutdown},
    keeper::{Keeper, KeeperError},
    service::{App, AppError},
    sys,
};

/// Most threads for what has to be done at the same time, beside those that wait for the kernel.
const MAX_WORKERS: usize = 4;

/// Why this process cannot be a server.
#[derive(Debug, thiserror::Error)]
enum LocalError {
    #[error("it lacks {0}: run it as root, as with sudo, or start a server")]
    Rights(String),
    #[error("{0}")]
    Variable(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    App(#[from] AppError),
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    #[error("its threads cannot be started")]
    Threads(#[source] io::Error),
    #[error("its thread has ended")]
    Ended,
}

/// The client's hold on it.
struct Local {
    dialer: Dialer,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Serve for Local {
    fn connect(&self) -> io::Result<Connection> {
        Ok(Box::new(self.dialer.dial()?))
    }
}

impl Drop for Local {
    /// Has it end what still runs, and account for that.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Whatever went wrong there, the client is done.
            let _ = thread.join();
        }
    }
}

/// Starts a server in this process.
///
/// # Errors
/// When the process lacks rights, or variables for the server cannot be used.
pub fn start() -> Result<LocalServer, Box<dyn Error + Send + Sync>> {
    let (sender, started) = mpsc::sync_channel(1);
    let (stop, stopped) = oneshot::channel();
    let serve = move || match prepare() {
        Ok((runtime, server, dialer)) => {
            // Whoever waits for it is told first; without anyone it ends at once.
            let _ = sender.send(Ok(dialer));
            let mut stopped = Some(stopped);
            let shutdown = async move || match stopped.take() {
                Some(stopped) => {
                    drop(stopped.await);
                    Shutdown::Asked
                }
                // There is no second time.
                None => std::future::pending().await,
            };
            runtime.block_on(server.serve(shutdown, std::future::pending));
            runtime.shutdown_background();
        }
        Err(error) => drop(sender.send(Err(error))),
    };
    let thread = thread::Builder::new().name("server".to_owned()).spawn(serve);
    let thread = thread.map_err(LocalError::Threads)?;
    let dialer = started.recv().map_err(|_| LocalError::Ended)??;
    Ok(LocalServer::new(Local {
        dialer,
        stop: Some(stop),
        thread: Some(thread),
    }))
}

/// Makes the server on the thread that is to be its own, whose rights the threads that it starts inherit.
fn prepare() -> Result<(Runtime, Server, Dialer), LocalError> {
    // What is missing is told in any case.
    let _ = capabilities::raise();
    if let Some(lacked) = capabilities::lacked(&Capability::NEEDED) {
        return Err(LocalError::Rights(lacked));
    }
    let config = Config::try_from(&args()?)?;
    // Few captures reach the bounds as they are.
    let _ = sys::raise_limits_of_captures();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(thread::available_parallelism().map_or(1, |count| count.get().min(MAX_WORKERS)))
        .enable_all()
        .build()
        .map_err(LocalError::Threads)?;
    let keeper = Keeper::within(&config, config.tap.clone())?;
    let app = runtime.block_on(async { App::build(Arc::new(config), &keeper) })?;
    let (server, dialer) = Server::of_this_process(app);
    Ok((runtime, server, dialer))
}

/// As variables say how a server captures; those that say who may reach it are not for this one.
fn args() -> Result<Args, LocalError> {
    let command = Command::try_parse_from(["packetflix"]);
    let command = command.map_err(|error| LocalError::Variable(cli::sentence_of(&error)))?;
    Ok(Args {
        frontend: FrontendArgs {
            listen: Vec::new(),
            token_file: None,
            kubernetes_auth: false,
            kubernetes_api: None,
            allow_query_token: false,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            tls_client_crl: None,
            allow_origin: Vec::new(),
            allow_host: Vec::new(),
            open_to_everyone: false,
            ..command.args.frontend
        },
        proxy_discovery: false,
        ..command.args
    })
}
