//! What is behind the transport: the captures of this host, or a gateway to those of others.

use std::{pin::Pin, sync::Arc};

use super::{
    api::{Api, routes},
    proxy::Proxy,
    site::{Paths, Site},
};
use crate::{
    service::{App, Frontend},
    tap::Connections,
};

/// Something that is done beside requests, by the task of the server.
pub(super) type Work<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// A service that is asked over HTTP.
pub(super) trait Served: Send + Sync {
    fn frontend(&self) -> &Frontend;

    /// What there is at its paths.
    fn paths(self: Arc<Self>, site: &Arc<Site>) -> Paths;

    /// Where captures of this host are told of connections, which they leave out.
    fn connections(&self) -> Option<&Arc<Connections>>;

    /// Waits until it can do what it is asked for.
    fn get_ready(&self) -> Work<'_>;

    /// Keeps it so. Never ends.
    fn stay_ready(&self) -> Work<'_>;

    /// Does again and again what is to be done beside requests. Never ends.
    fn maintain(&self) -> Work<'_>;

    /// Why it cannot do what it is asked for, if so.
    fn problem(&self) -> Option<String>;

    /// Logs, where lines are bounded, what had none since the last time.
    fn tell_the_rest(&self);
}

impl Served for App {
    fn frontend(&self) -> &Frontend {
        &self.frontend
    }

    fn paths(self: Arc<Self>, site: &Arc<Site>) -> Paths {
        let service = self.config.discovery_service.clone();
        let origins = self.frontend.config.allowed_origins.clone();
        let proxy = service
            .filter(|_| self.config.proxy_discovery)
            .map(|service| Proxy::new(service, origins, self.tasks.clone(), self.stop.clone()));
        Paths {
            routes: routes::routes(Arc::new(Api::new(self, Arc::clone(site)))),
            is_ours: routes::is_ours,
            is_public: routes::is_public,
            proxy,
        }
    }

    fn connections(&self) -> Option<&Arc<Connections>> {
        Some(self.taps.connections())
    }

    fn get_ready(&self) -> Work<'_> {
        Box::pin(self.taps.get_ready())
    }

    fn stay_ready(&self) -> Work<'_> {
        // The keeper does that.
        Box::pin(std::future::pending())
    }

    fn maintain(&self) -> Work<'_> {
        Box::pin(Self::maintain(self))
    }

    fn problem(&self) -> Option<String> {
        Self::problem(self)
    }

    fn tell_the_rest(&self) {
        Self::tell_the_rest(self);
    }
}
