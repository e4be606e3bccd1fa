//! What all requests share.

pub(crate) mod answers;
pub(crate) mod capture;
pub(crate) mod captures;
pub(crate) mod claimed;
pub(crate) mod code;
pub(crate) mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
pub(crate) mod health;
pub(crate) mod page;
pub(crate) mod plain_answer;
pub(crate) mod rates;
pub(crate) mod refusal;
pub(crate) mod refusal_log;
pub(crate) mod request;
pub(crate) mod routes;
pub(crate) mod targets;
pub(crate) mod websocket;

use std::{net::SocketAddr, sync::Arc};

use self::{answers::Answers, refusal_log::RefusalLog};
use crate::http::host::OwnNames;
use crate::{access::Followed, service::App};

/// The service, and what answering over HTTP takes beside it.
pub(crate) struct Api {
    pub(crate) app: Arc<App>,
    /// What the service may be called.
    pub(crate) names: OwnNames,
    /// The TCP addresses that are listened at.
    pub(crate) listening: Arc<[SocketAddr]>,
    /// The files of TLS, which are followed.
    pub(crate) certificates: Option<Arc<dyn Followed>>,
    /// Tells of those who are refused.
    pub(crate) refusals: RefusalLog,
    /// Lists of targets that are told.
    pub(crate) answers: Answers,
}

impl Api {
    pub(crate) fn new(
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
    pub(crate) fn tell_the_rest(&self) {
        self.refusals.tell_the_rest();
    }
}
