//! What the log says of those who are refused: so much of each, and how many more there were.

use super::refusal::Refusal;
use crate::{
    line_bounds::{LineBounds, WINDOW},
    service::{ClientId, Peer},
};

/// Lines of each client in a while.
const LINES: u64 = 50;

/// Logs refusals, and bounds how many lines that takes.
#[derive(Debug)]
pub(crate) struct RefusalLog(LineBounds<ClientId>);

impl RefusalLog {
    pub(crate) fn new() -> Self {
        Self(LineBounds::new(LINES))
    }

    /// Logs that `peer` was not let in, unless enough is said of it already.
    pub(crate) fn not_let_in(&self, peer: Peer, refusal: &Refusal) {
        if self.is_worth_a_line(Some(peer)) {
            let status = refusal.status().as_u16();
            tracing::info!(%peer, status, reason = refusal.sentence, "not let in");
        }
    }

    /// Logs in the current span that a capture of `peer` was refused, unless enough is said of it already. The address of
    /// one who was let in is for the account of captures only.
    pub(crate) fn refused(&self, peer: Option<Peer>, refusal: &Refusal) {
        if self.is_worth_a_line(peer) {
            let status = refusal.status().as_u16();
            tracing::info!(status, reason = refusal.sentence, "refused");
        }
    }

    /// Logs that the discovery service has not answered a request of `peer`, unless enough is said of it already.
    pub(crate) fn not_proxied(&self, peer: Peer, refusal: &Refusal) {
        if self.is_worth_a_line(Some(peer)) {
            let status = refusal.status().as_u16();
            tracing::info!(status, reason = refusal.sentence, "not proxied");
        }
    }

    fn is_worth_a_line(&self, peer: Option<Peer>) -> bool {
        self.0.allow(&ClientId::new(peer.and_then(Peer::ip)))
    }

    /// Logs how many refusals had no line since the last time.
    pub(crate) fn tell_the_rest(&self) {
        for (client, count) in self.0.take_the_rest() {
            let client = client.map_or_else(|| "others".to_owned(), |client| client.to_string());
            tracing::info!(
                client,
                count,
                seconds = WINDOW.as_secs(),
                "more were refused than are logged"
            );
        }
    }
}
