//! What every service of ours has that is asked over HTTP, whatever it serves: whom it lets in, how much these may have, and
//! what is told of that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Caller, Permit, Permits, StartError};
use crate::{
    access::{self, Access, Reviews, TokenFileError},
    captures::{Attempt, Audit, AuditFileError, Captures},
    config,
    kubernetes::{FindPods, Reviewer},
    line_bounds::{LineBounds, WINDOW},
    metrics::Metrics,
};

/// Lines of the account, in a while, for captures that are refused to one account of callers.
const ACCOUNTED_LINES: u64 = 50;

/// Who comes in, what they have, and what is told of it.
pub struct Frontend {
    pub(crate) config: Arc<config::Frontend>,
    /// Who may come in, and for what.
    pub(crate) access: Arc<Access>,
    /// Asks of tokens that the service does not know itself.
    reviewer: Option<Reviewer>,
    /// Connections and captures, to wait for at the end.
    pub(crate) tasks: TaskTracker,
    /// Cancelled when the service shuts down.
    pub(crate) stop: CancellationToken,
    /// Those that run.
    pub(crate) captures: Arc<Captures>,
    pub(crate) metrics: Arc<Metrics>,
    /// Accounts for captures.
    pub(crate) audit: Arc<Audit>,
    /// Lines of the account for captures that are refused, of each account of callers.
    accounted: LineBounds<Arc<str>>,
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

impl Frontend {
    /// Reads the tokens, and opens the account of captures. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the tokens or the account cannot be used.
    pub(crate) fn open(config: Arc<config::Frontend>, metrics: Metrics) -> Result<Self, AppError> {
        let client_ca = config.tls.as_ref().and_then(|files| files.client_ca.as_ref());
        let reviews = config.kubernetes.as_ref().map(|_| Arc::new(Reviews::default()));
        let access = Access::open(config.token_file.as_ref(), client_ca.is_some(), reviews)?;
        let access = Arc::new(access);
        let metrics = Arc::new(metrics);
        let audit = Arc::new(Audit::open(
            config.audit_log.as_deref(),
            config.audit_required,
            Arc::clone(&metrics),
        )?);
        Ok(Self {
            access,
            reviewer: None,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            captures: Arc::new(Captures::new(Arc::clone(&metrics), Arc::clone(&audit))),
            accounted: LineBounds::new(ACCOUNTED_LINES),
            permits: Permits::new(config.quotas),
            next_id: AtomicU64::new(1),
            config,
            metrics,
            audit,
        })
    }

    /// Follows the tokens, and tells again and again what lines were left out. Never ends.
    pub(crate) async fn maintain(&self) {
        let lines = async {
            loop {
                sleep(WINDOW).await;
                self.tell_the_rest();
            }
        };
        let reviews = async {
            match &self.reviewer {
                Some(reviewer) => reviewer.follow().await,
                None => std::future::pending().await,
            }
        };
        tokio::join!(lines, reviews, self.access.follow());
    }

    /// Has Kubernetes asked of tokens, where that is wanted: on rights to this node, or to all where that has no name, and to the
    /// pods that are found.
    pub(crate) fn ask_kubernetes(&mut self, node: &str, find_pods: FindPods) {
        let kubernetes = self.config.kubernetes.clone().zip(self.access.reviews().cloned());
        self.reviewer = kubernetes.map(|(config::Kubernetes { address, credentials }, reviews)| {
            Reviewer::new(address, credentials, node.to_owned(), find_pods, reviews)
        });
    }

    /// Sees to it that whose a token is with which somebody came then, is known, where somebody else has to be asked.
    pub(crate) async fn review(&self, token: &[u8], came: Instant) {
        if let Some(reviewer) = self.reviewer.as_ref().filter(|_| self.access.wants_review(token)) {
            reviewer.review(token, came).await;
        }
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

    /// Checks that captures can be accounted for, where they have to be.
    ///
    /// # Errors
    /// When they cannot.
    pub(crate) fn check_account(&self) -> Result<(), StartError> {
        match self.audit.problem() {
            Some(problem) => Err(StartError::Unaccountable(problem)),
            None => Ok(()),
        }
    }

    /// A place for one more capture of a caller.
    ///
    /// # Errors
    /// When they have too many, or the service shuts down.
    pub(crate) fn permit(&self, caller: &Caller) -> Result<Permit, StartError> {
        if self.stop.is_cancelled() {
            return Err(StartError::ShuttingDown);
        }
        let is_admin = caller.rights().may_administer();
        Ok(self.permits.permit(caller.account(), is_admin)?)
    }
}
