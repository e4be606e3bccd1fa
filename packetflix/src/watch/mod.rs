//! What operators watch: counts of everything (`metrics.rs`), who captures what (`captures.rs`) and the account of it
//! (`audit.rs`), and what a service manager is told (`manager.rs`).

mod audit;
mod captures;
mod manager;
mod metrics;
mod process;

pub(crate) use self::{
    audit::{AUDIT, Attempt, refused},
    captures::{Amount, Capture, CaptureEnd, CaptureFacts, Captures, ClientFacts, RunningCapture},
    manager::ServiceManager,
    metrics::{Load, Metrics},
};
