//! The account of captures: who captured what, and how much. Written where the operator wants it, and nowhere else: it
//! holds the addresses and filters of clients.

use super::{Capture, CaptureEnd, ClientFacts};
use crate::{tap::InterfaceSelection, target::TargetDescription};

/// The target of the events.
pub(crate) const AUDIT: &str = "packetflix::audit";

/// Most bytes that are written of anything that a client wrote.
const MAX_WRITTEN_LEN: usize = 1024;

/// What somebody asked for, as far as it could be read.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// Number of the capture that might have been.
    pub(crate) id: u64,
    /// Who asked for it.
    pub(crate) client: ClientFacts,
    /// What was to be captured.
    pub(crate) target: TargetDescription,
}

/// A capture begins.
pub(super) fn started(capture: &Capture) {
    let facts = capture.facts();
    tracing::info!(
        target: AUDIT,
        id = facts.id,
        tap = facts.tap,
        client = facts.client.name,
        address = facts.client.address,
        name = start_of(&facts.target.name),
        "type" = start_of(&facts.target.kind),
        prefix = start_of(&facts.target.prefix),
        netns = facts.netns,
        interfaces = interfaces(&facts.selection),
        filter = start_of(&facts.filter),
        "capture started"
    );
}

/// A capture has ended.
pub(super) fn ended(capture: &Capture, end: CaptureEnd, reason: &str) {
    let facts = capture.facts();
    let amount = capture.amount();
    tracing::info!(
        target: AUDIT,
        id = facts.id,
        tap = facts.tap,
        client = facts.client.name,
        address = facts.client.address,
        name = start_of(&facts.target.name),
        "type" = start_of(&facts.target.kind),
        prefix = start_of(&facts.target.prefix),
        netns = facts.netns,
        seconds = capture.duration().as_secs_f64(),
        packets = amount.packets,
        bytes = amount.bytes,
        lost_in_kernel = amount.lost_in_kernel,
        lost_by_client = amount.lost_by_client,
        end = end.name(),
        reason,
        "capture ended"
    );
}

/// A capture was refused.
pub(crate) fn refused(attempt: &Attempt, status: u16, reason: &str) {
    let target = &attempt.target;
    tracing::info!(
        target: AUDIT,
        id = attempt.id,
        client = attempt.client.name,
        address = attempt.client.address,
        name = start_of(&target.name),
        "type" = start_of(&target.kind),
        prefix = start_of(&target.prefix),
        netns = target.netns,
        status,
        reason = start_of(reason),
        "capture refused"
    );
}

/// Interfaces in the words of `nif`.
fn interfaces(selection: &InterfaceSelection) -> String {
    let names = selection.names().map(|names| names.join("/"));
    names.unwrap_or_else(|| "all".to_owned())
}

/// As much of what a client wrote as the account has room for.
fn start_of(written: &str) -> &str {
    &written[..written.floor_char_boundary(MAX_WRITTEN_LEN)]
}
