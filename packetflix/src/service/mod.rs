//! The service, however it is asked: what it is made of, who asks it, what they may have and how much of that, and how a
//! capture begins.

mod caller;
mod error;
mod follow;
mod judge;
mod own;
mod quotas;
mod request;
mod several;
mod start;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use self::{
    caller::{Caller, Certificate, ClientId, Forbidden, Hidden, Peer, Shown},
    error::StartError,
    own::Claimed,
    quotas::{Permit, Permits, QuotaError, add, remove},
    request::{CaptureRequest, Several, TooManyInterfaces, select},
    start::Asker,
};
use crate::{
    access::{self, Access, TokenFileError},
    captures::{Attempt, Audit, AuditFileError, Captures},
    config::Config,
    discovery::Discovery,
    filter::compile::{Compiler, Options},
    line_bounds::{LineBounds, WINDOW},
    metrics::{Load, Metrics},
    rates::Rates,
    resolve::{Directory, DiscoveryService, Resolver},
    session::Feeds,
    tap::{Connections, Loader},
};

/// Lines of the account, in a while, for captures that are refused to one account of callers.
const ACCOUNTED_LINES: u64 = 50;

/// The whole service but for the sockets at which it is asked. Everything is built here, from the configuration.
pub struct App {
    pub(crate) config: Arc<Config>,
    /// Who may come in, and for what.
    pub(crate) access: Arc<Access>,
    /// What there is on this host.
    pub(crate) discovery: Arc<Discovery>,
    /// Finds the namespace of a target.
    pub(crate) resolver: Resolver,
    /// Connections and captures, to wait for at the end.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the service shuts down.
    pub(crate) stop: CancellationToken,
    /// Makes the kernel's part of captures.
    pub(crate) loader: Arc<Loader>,
    /// Those that run.
    pub(crate) captures: Arc<Captures>,
    pub(crate) metrics: Arc<Metrics>,
    /// Accounts for captures.
    pub(crate) audit: Arc<Audit>,
    /// Compiles filters.
    pub(crate) compiler: Compiler,
    /// Lines of the account for captures that are refused, of each account of callers.
    accounted: LineBounds<Arc<str>>,
    /// How much traffic there is.
    pub(crate) rates: Rates,
    feeds: Feeds,
    permits: Arc<Permits>,
    next_id: AtomicU64,
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Nobody could show a token.
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    /// Nothing could be accounted for.
    #[error(transparent)]
    Audit(#[from] AuditFileError),
}

impl App {
    /// Reads the tokens, opens the account of captures, and makes all that captures take. Must be called within a tokio
    /// runtime.
    ///
    /// # Errors
    /// When the tokens or the account cannot be used.
    pub fn build(config: Arc<Config>) -> Result<Self, AppError> {
        let client_ca = config.tls.as_ref().and_then(|files| files.client_ca.as_ref());
        let access = Access::open(config.token_file.as_ref(), client_ca.is_some())?;
        let metrics = Arc::new(Metrics::new());
        let audit = Arc::new(Audit::open(
            config.audit_log.as_deref(),
            config.audit_required,
            Arc::clone(&metrics),
        )?);
        let discovery = Arc::new(Discovery::new(
            config.engine_sockets.clone(),
            config.node_name.clone(),
            Arc::clone(&metrics),
        ));
        let directory = match &config.discovery_service {
            Some(address) => Directory::Service(DiscoveryService::new(address.clone())),
            None => Directory::Own(Arc::clone(&discovery)),
        };
        let tasks = TaskTracker::new();
        Ok(Self {
            access: Arc::new(access),
            discovery,
            rates: Rates::default(),
            resolver: Resolver::new(directory),
            compiler: Compiler::new(Options {
                resolve_names: config.resolve_filter_names,
                ..Options::default()
            }),
            loader: Arc::new(Loader::new(config.tap.clone())),
            feeds: Feeds::new(tasks.clone(), Arc::clone(&metrics)),
            captures: Arc::new(Captures::new(Arc::clone(&metrics), Arc::clone(&audit))),
            accounted: LineBounds::new(ACCOUNTED_LINES),
            permits: Permits::new(config.quotas),
            next_id: AtomicU64::new(1),
            stop: CancellationToken::new(),
            config,
            tasks,
            metrics,
            audit,
        })
    }

    /// Does again and again what is to be done beside captures. Never ends.
    pub(crate) async fn maintain(&self) {
        let lines = async {
            loop {
                sleep(WINDOW).await;
                self.tell_the_rest();
            }
        };
        let connections = async {
            loop {
                sleep(Connections::LINGER).await;
                self.loader.connections().sweep();
            }
        };
        let rates = self.rates.follow(&self.discovery);
        tokio::join!(
            lines,
            connections,
            self.access.follow(),
            self.discovery.follow(),
            rates
        );
    }

    /// Looks at all files now that are followed, and at that of the account.
    pub(crate) fn look_at_files(&self) {
        tracing::debug!("the files are looked at, as they are said to be others");
        access::look_now();
        self.audit.look_now();
    }

    /// Logs, where lines are bounded, what had none since the last time.
    pub(crate) fn tell_the_rest(&self) {
        for (account, count) in self.accounted.take_the_rest() {
            let account = account.as_deref().unwrap_or("others");
            self.audit.more_refused(account, count, WINDOW.as_secs());
        }
        self.discovery.tell_the_rest();
    }

    /// What is in use at the moment.
    pub(crate) fn load(&self) -> Load {
        let (ring_memory, ring_memory_limit) = self.loader.ring_memory();
        Load {
            captures: self.captures.count(),
            ring_memory,
            ring_memory_limit,
            files: self.access.files().iter().map(|files| files.age()).collect(),
        }
    }

    /// Why captures cannot begin, if so.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some(StartError::ShuttingDown.to_string());
        }
        self.loader
            .problem()
            .or_else(|| self.discovery.problem())
            .or_else(|| self.audit.problem())
    }

    /// The number of the next capture.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a capture that was refused with a status and a sentence, and accounts for it unless enough is said of its
    /// account already.
    pub(crate) fn refused(&self, attempt: &Attempt, account: &Arc<str>, status: u16, sentence: &str) {
        self.metrics.refused(status);
        if self.accounted.allow(account) {
            self.audit.refused(attempt, status, sentence);
        }
    }
}
