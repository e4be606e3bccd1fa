//! The service, however it is asked: what it is made of, who asks it, what they may have and how much of that, and how a
//! capture begins.

mod caller;
mod changes;
mod error;
mod follow;
mod frontend;
mod judge;
mod own;
mod quotas;
mod request;
mod several;
mod start;

use std::{ops::Deref, sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};

pub use self::frontend::{AppError, Frontend};
pub(crate) use self::{
    caller::{Caller, Certificate, ClientId, Forbidden, Hidden, Peer, Shown},
    error::StartError,
    own::Claimed,
    quotas::{Permit, Permits, QuotaError, add, remove},
    request::{CaptureRequest, Several, TooManyInterfaces, select},
    start::Asker,
};
use crate::{
    config::Config,
    discovery::Discovery,
    filter::compile::{Compiler, Options},
    keeper::Keeper,
    kubernetes::{FindPods, Pods},
    line_bounds::WINDOW,
    metrics::{Load, Metrics},
    netns::Namespaces,
    rates::Rates,
    resolve::{Directory, DiscoveryService, Resolver},
    session::Feeds,
    tap::{KernelUse, Taps},
};

/// The whole service but for the sockets at which it is asked. Everything is built here, from the configuration.
pub struct App {
    pub(crate) config: Arc<Config>,
    pub(crate) frontend: Frontend,
    /// What there is on this host.
    pub(crate) discovery: Arc<Discovery>,
    /// Finds the namespace of a target.
    pub(crate) resolver: Resolver,
    /// Has the kernel's part of captures made.
    pub(crate) taps: Taps,
    /// Has namespaces opened.
    pub(crate) namespaces: Namespaces,
    /// Compiles filters.
    pub(crate) compiler: Compiler,
    /// How much traffic there is.
    pub(crate) rates: Rates,
    feeds: Feeds,
}

impl Deref for App {
    type Target = Frontend;

    fn deref(&self) -> &Frontend {
        &self.frontend
    }
}

impl App {
    /// Lets clients in, and makes all that captures take. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the tokens or the account cannot be used.
    pub fn build(config: Arc<Config>, keeper: &Keeper) -> Result<Self, AppError> {
        let control = keeper.control();
        let mut frontend = Frontend::open(Arc::clone(&config.frontend), Metrics::new())?;
        let discovery = Arc::new(Discovery::new(
            control,
            config.engine_sockets.clone(),
            config.node_name.clone(),
            Arc::clone(&frontend.metrics),
        ));
        frontend.ask_kubernetes(&config.node_name, pods_of(&discovery));
        let directory = match &config.discovery_service {
            Some(address) => Directory::Service(DiscoveryService::new(address.clone())),
            None => Directory::Own(Arc::clone(&discovery)),
        };
        Ok(Self {
            discovery,
            rates: Rates::default(),
            resolver: Resolver::new(directory, Namespaces::new(control)),
            compiler: Compiler::by_keeper(
                control,
                Options {
                    resolve_names: config.resolve_filter_names,
                    ..Options::default()
                },
            ),
            taps: Taps::new(control),
            namespaces: Namespaces::new(control),
            feeds: Feeds::new(frontend.tasks.clone(), Arc::clone(&frontend.metrics)),
            config,
            frontend,
        })
    }

    /// Does again and again what is to be done beside captures. Never ends.
    pub(crate) async fn maintain(&self) {
        let rates = self.rates.follow(&self.discovery);
        let lines = async {
            loop {
                sleep(WINDOW).await;
                self.discovery.tell_the_rest();
            }
        };
        let rings = self.taps.map_ahead();
        tokio::join!(
            self.frontend.maintain(),
            lines,
            self.discovery.follow(),
            rates,
            rings
        );
    }

    /// Logs, where lines are bounded, what had none since the last time.
    pub(crate) fn tell_the_rest(&self) {
        self.frontend.tell_the_rest();
        self.discovery.tell_the_rest();
    }

    /// What is in use at the moment.
    pub(crate) fn load(&self) -> Load {
        let KernelUse {
            ring_memory,
            descriptors,
        } = self.taps.kernel_use();
        Load {
            captures: self.captures.count(),
            ring_memory,
            ring_memory_limit: self.config.tap.rings.memory,
            keeper_descriptors: descriptors,
            files: self.access.files().iter().map(|files| files.age()).collect(),
        }
    }

    /// Why captures cannot begin, if so.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.stop.is_cancelled() {
            return Some(StartError::ShuttingDown.to_string());
        }
        self.taps
            .problem()
            .or_else(|| self.discovery.problem())
            .or_else(|| self.audit.problem())
    }
}

/// How long it may take to find the pods to whose namespaces somebody may have rights.
const PATIENCE_FOR_PODS: Duration = Duration::from_secs(2);

/// The pods that there are on this host.
fn pods_of(discovery: &Arc<Discovery>) -> FindPods {
    let discovery = Arc::clone(discovery);
    Box::new(move || {
        let discovery = Arc::clone(&discovery);
        Box::pin(async move {
            // On a host where a look takes long, those of the last one.
            let scan = timeout(PATIENCE_FOR_PODS, discovery.scan_now()).await;
            let scan = scan.ok().and_then(Result::ok).or_else(|| discovery.known());
            let scan = scan?;
            let mut pods = Pods::new();
            for (namespace, pod) in scan.targets.iter().filter_map(|target| target.pod_of_host()) {
                pods.entry(namespace.to_owned())
                    .or_default()
                    .insert(pod.to_owned());
            }
            Some(pods)
        })
    })
}
