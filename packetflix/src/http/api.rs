//! What all requests share.

use std::{net::SocketAddr, sync::Arc};

use super::{answers::Answers, host::OwnNames, refusal_log::RefusalLog};
use crate::{access::Followed, service::App};

/// The service, and what answering over HTTP takes beside it.
pub(super) struct Api {
    pub(super) app: Arc<App>,
    /// What the service may be called.
    pub(super) names: OwnNames,
    /// The TCP addresses that are listened at.
    pub(super) listening: Arc<[SocketAddr]>,
    /// The files of TLS, which are followed.
    pub(super) certificates: Option<Arc<dyn Followed>>,
    /// Tells of those who are refused.
    pub(super) refusals: RefusalLog,
    /// Lists of targets that are told.
    pub(super) answers: Answers,
}

impl Api {
    pub(super) fn new(
        app: Arc<App>,
        listening: Vec<SocketAddr>,
        certificates: Option<Arc<dyn Followed>>,
    ) -> Self {
        Self {
            names: OwnNames::of_machine(&app.config.node_name, &app.config.allowed_hosts),
            listening: listening.into(),
            certificates,
            refusals: RefusalLog::new(),
            answers: Answers::new(),
            app,
        }
    }

    /// Logs, where lines are bounded, what had none since the last time.
    pub(super) fn tell_the_rest(&self) {
        self.refusals.tell_the_rest();
    }
}
