//! Why there is no capture.

use super::{Forbidden, Hidden, QuotaError, TooManyInterfaces};
use crate::{
    access::AccessError,
    captures::Unaccounted,
    discovery::LateScan,
    filter::FilterError,
    resolve::{SelectionError, TargetError, of_which},
    session::TooFewBytes,
    tap::TapError,
};

/// Why a capture was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The account of captures is required, and cannot be written: why.
    #[error("{0}")]
    Unaccountable(String),
    #[error(transparent)]
    Unaccounted(#[from] Unaccounted),
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    #[error(transparent)]
    Hidden(#[from] Hidden),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// The words of a selection mean nothing that there is.
    #[error(
        "{words} means none of the {looked_at} targets that there are{}; with wait=1 (--wait) the stream begins, and waits for them",
        of_which(nearest)
    )]
    NothingSelected {
        words: String,
        looked_at: usize,
        /// Those that may be meant, of those that the caller may know.
        nearest: Vec<String>,
    },
    #[error(transparent)]
    Late(#[from] LateScan),
    #[error(transparent)]
    Interfaces(#[from] TooManyInterfaces),
    #[error(transparent)]
    TooFewBytes(#[from] TooFewBytes),
    #[error(transparent)]
    Filter(#[from] FilterError),
    #[error(transparent)]
    Tap(#[from] TapError),
    /// It may be owed to the filter.
    #[error("filter \"{expression}\"")]
    AboutFilter {
        /// As the client wrote it.
        expression: String,
        /// Those of eBPF that it became, where it may be their number.
        instructions: Option<usize>,
        source: Box<Self>,
    },
}

impl StartError {
    /// The same, owed to a filter, if there is one.
    pub(super) fn about_filter(self, expression: &str, instructions: Option<usize>) -> Self {
        if expression.is_empty() {
            return self;
        }
        Self::AboutFilter {
            expression: expression.to_owned(),
            instructions,
            source: Box::new(self),
        }
    }
}
