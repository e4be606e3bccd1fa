//! A service as HTTP has it, whichever it is: what it is called, where it listens, and who was refused.

use std::{net::SocketAddr, sync::Arc};

use warp::{filters::BoxedFilter, reply::Response};

use super::{api::refusal_log::RefusalLog, host::OwnNames, proxy::Proxy, served::Served};
use crate::{access::Followed, service::Frontend};

/// What answering over HTTP takes beside what answers.
pub(crate) struct Site {
    served: Arc<dyn Served>,
    /// What the service may be called.
    pub(crate) names: OwnNames,
    /// The TCP addresses that are listened at.
    pub(crate) listening: Arc<[SocketAddr]>,
    /// The files of TLS, which are followed.
    pub(crate) certificates: Option<Arc<dyn Followed>>,
    /// Tells of those who are refused.
    pub(crate) refusals: RefusalLog,
}

/// All routes of a service, as a filter that never rejects.
pub(crate) type Routes = BoxedFilter<(Response,)>;

/// What there is at a service, and at which paths.
pub(super) struct Paths {
    pub(super) routes: Routes,
    /// Whether a path is the service's in any case. The rest is the discovery service's, if that is proxied.
    pub(super) is_ours: fn(&str) -> bool,
    /// Whether everyone may know what is at a path.
    pub(super) is_public: fn(&str) -> bool,
    /// The discovery service, if that is proxied.
    pub(super) proxy: Option<Proxy>,
}

impl Site {
    pub(super) fn new(
        served: Arc<dyn Served>,
        listening: Vec<SocketAddr>,
        certificates: Option<Arc<dyn Followed>>,
    ) -> Self {
        let config = &served.frontend().config;
        Self {
            names: OwnNames::of_machine(&config.host_name, &config.allowed_hosts),
            listening: listening.into(),
            certificates,
            refusals: RefusalLog::new(),
            served,
        }
    }

    /// Who comes in, and what they have.
    pub(crate) fn frontend(&self) -> &Frontend {
        self.served.frontend()
    }

    /// Logs, where lines are bounded, what had none since the last time.
    pub(crate) fn tell_the_rest(&self) {
        self.refusals.tell_the_rest();
    }
}
