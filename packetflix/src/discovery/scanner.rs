//! Makes one scan after the other, and logs and counts what has changed.

use std::{
    os::unix::ffi::OsStrExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::Instant};

use super::{
    addresses::AddressBook,
    call::TargetsQuestion,
    formerly::Formerly,
    gap::Gap,
    problem::Problem,
    report::EngineReport,
    scan::{Found, Scan, blocking},
    sockets,
    target::share_namespaces,
};
use crate::{
    channel::{Control, Kind},
    line_bounds::LineBounds,
    lookout::Owner,
    metrics::Metrics,
    text::readable,
};

/// Lines of the log in a while about what is in the hands of one user, or of containers.
const LINES: u64 = 10;

/// Has scans made, and tells what has changed.
#[derive(Debug)]
pub(super) struct Scanner {
    control: Arc<Control>,
    engine_sockets: Vec<PathBuf>,
    /// Name of the host.
    node_name: String,
    last: Mutex<Last>,
    /// Lines of the log about what is in others' hands, who can change it as often as they like.
    pub(super) lines: LineBounds<Owner>,
    pub(super) addresses: watch::Sender<Arc<AddressBook>>,
    metrics: Arc<Metrics>,
}

/// What is kept of the last scan, for the next.
#[derive(Debug, Default)]
struct Last {
    /// Words that mean what is the host's.
    formerly: Arc<Formerly>,
    engines: Vec<EngineReport>,
    gaps: Vec<Gap>,
}

impl Scanner {
    /// Asks the engines at `engine_sockets` beside those at well-known places.
    pub(super) fn new(
        control: &Arc<Control>,
        engine_sockets: Vec<PathBuf>,
        node_name: String,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            control: Arc::clone(control),
            engine_sockets,
            node_name,
            last: Mutex::default(),
            lines: LineBounds::new(LINES),
            addresses: watch::Sender::default(),
            metrics,
        }
    }

    /// Asks the engines that the operator named before anybody asks for targets, so that a name that is wrong is told at once.
    pub(super) async fn look_at_named(&self) {
        if self.engine_sockets.is_empty() {
            return;
        }
        let Some(now) = self.ask::<Vec<EngineReport>>(TargetsQuestion::Named).await else {
            return;
        };
        let mut last = self.last();
        self.report_engines(&last.engines, &now);
        // Unless there was a scan meanwhile, which knows all.
        if last.engines.is_empty() {
            last.engines = now;
        }
    }

    /// What is answered to a question; nothing where nobody answers, of which the service as a whole tells.
    pub(super) async fn ask<A: DeserializeOwned + Send + 'static>(
        &self,
        question: TargetsQuestion,
    ) -> Option<A> {
        let control = Arc::clone(&self.control);
        blocking(move || control.ask(Kind::Targets, &question)).await.ok()
    }

    /// Has a scan made, and tells those who follow.
    pub(super) async fn scan(&self) -> Scan {
        let began = Instant::now();
        let found = self.ask::<Found>(TargetsQuestion::Scan).await;
        let mut found = found.unwrap_or_else(Found::nothing);
        share_namespaces(&mut found.targets);
        let mut formerly = Arc::clone(&self.last().formerly);
        Arc::make_mut(&mut formerly).look_at(&found.targets);
        let scan = Scan {
            began,
            found,
            formerly: Arc::clone(&formerly),
        };
        let before = std::mem::replace(
            &mut *self.last(),
            Last {
                formerly,
                engines: scan.engines.clone(),
                gaps: scan.gaps.clone(),
            },
        );
        self.report_gaps(&before.gaps, &scan.gaps);
        self.report_engines(&before.engines, &scan.engines);
        self.count(&scan, began.elapsed());
        tracing::debug!(
            targets = scan.targets.len(),
            elapsed_ms = began.elapsed().as_millis(),
            "looked for targets"
        );
        let addresses = AddressBook::new(&scan, &self.node_name);
        self.addresses.send_if_modified(|known| {
            let changed = **known != addresses;
            if changed {
                *known = Arc::new(addresses);
            }
            changed
        });
        scan
    }

    /// Logs what newly could not be looked at.
    fn report_gaps(&self, before: &[Gap], now: &[Gap]) {
        for gap in now {
            let is_told =
                matches!(gap, Gap::Engine { .. }) || before.iter().any(|before| gap.is_like(before));
            if !is_told && self.is_worth_a_line(gap.owner()) {
                tracing::warn!(%gap, "not all targets can be found");
            }
        }
    }

    /// Logs engines whose state is another than before.
    fn report_engines(&self, before: &[EngineReport], now: &[EngineReport]) {
        for report in now {
            let is_told = before.iter().any(|before| report.is_like(before));
            if is_told || !self.is_worth_a_line(report.owner()) {
                continue;
            }
            let (engine, whose) = (readable(report.path.as_os_str().as_bytes()), report.whose());
            match &report.problem {
                Some(Problem { sentence, remedy }) => tracing::warn!(
                    %engine,
                    whose,
                    problem = sentence,
                    remedy = &**remedy,
                    "an engine does not tell what it runs"
                ),
                None => tracing::info!(
                    %engine,
                    whose,
                    containers = report.workloads,
                    "an engine tells what it runs"
                ),
            }
        }
    }

    fn is_worth_a_line(&self, owner: Owner) -> bool {
        owner == Owner::Host || self.lines.allow(&owner)
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the metrics of a scan. Engines are named by where their sockets are, which for containers and users may be
    /// anywhere: these are taken together.
    fn count(&self, scan: &Scan, took: Duration) {
        self.metrics.scanned(took);
        for engine in scan.engines.iter().filter(|engine| engine.problem.is_some()) {
            let is_known = self.engine_sockets.contains(&engine.path) || sockets::is_well_known(&engine.path);
            let name = if is_known {
                engine.path.display().to_string()
            } else {
                "other".to_owned()
            };
            self.metrics.engine_failed(name);
        }
    }
}
