//! What operators watch: counts of everything (`metrics.rs`), who captures what (`captures.rs`) and the account of it
//! (`audit.rs`), and what a service manager is told (`manager.rs`).

mod audit;
mod audit_file;
mod captures;
mod manager;
mod metrics;
mod process;

pub use self::audit_file::AuditFileError;
pub(crate) use self::{
    audit::{Attempt, Audit, Found, Refused, Unaccounted},
    captures::{Amount, Capture, CaptureEnd, CaptureFacts, Captures, ClientFacts, RunningCapture},
    manager::ServiceManager,
    metrics::{Load, Metrics},
};
