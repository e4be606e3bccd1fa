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

use std::sync::Arc;

use self::answers::Answers;
use super::site::Site;
use crate::service::App;

/// The captures of this host, and what answering over HTTP takes beside them.
pub(crate) struct Api {
    pub(crate) app: Arc<App>,
    pub(crate) site: Arc<Site>,
    /// Lists of targets that are told.
    pub(crate) answers: Answers,
}

impl Api {
    pub(crate) fn new(app: Arc<App>, site: Arc<Site>) -> Self {
        Self {
            app,
            site,
            answers: Answers::of_host(),
        }
    }
}
