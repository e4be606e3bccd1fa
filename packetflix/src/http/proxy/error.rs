//! Why the discovery service's answer is none.

use std::{io, sync::Arc, time::Duration};

use crate::{config::ServiceAddress, http::api::request::RequestError};

/// Most upgraded connections at a time: they do not count as connections of ours any more.
pub(super) const MAX_UPGRADED: usize = 256;

/// Most of them on one account.
pub(super) const MAX_UPGRADED_OF_ONE: usize = 32;

/// Why a request was not handed on, or its answer not handed back.
#[derive(Debug, thiserror::Error)]
pub(in crate::http) enum ProxyError {
    #[error("the discovery service at {service} cannot be reached")]
    Unreachable {
        service: ServiceAddress,
        source: io::Error,
    },
    #[error("the discovery service at {service} was not reached within {limit:?}")]
    ConnectTimeout {
        service: ServiceAddress,
        limit: Duration,
    },
    #[error("the discovery service at {service} did not begin its answer within {limit:?}")]
    AnswerTimeout {
        service: ServiceAddress,
        limit: Duration,
    },
    #[error("the discovery service at {service} gave no proper answer")]
    Answer {
        service: ServiceAddress,
        source: hyper::Error,
    },
    #[error("the discovery service at {service} changed to another protocol without being asked")]
    UnwantedUpgrade { service: ServiceAddress },
    #[error("the body of the request cannot be read")]
    RequestBody(#[source] hyper::Error),
    #[error("no more upgraded connections may be proxied at the same time than {MAX_UPGRADED}")]
    TooManyUpgrades,
    #[error(
        "one account may have {MAX_UPGRADED_OF_ONE} upgraded connections proxied at the same time, and {0} has as many"
    )]
    TooManyUpgradesOfOne(Arc<str>),
    #[error(transparent)]
    Request(#[from] RequestError),
}
