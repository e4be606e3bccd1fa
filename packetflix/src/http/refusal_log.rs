//! What the log says of those who are refused: so much of each, and how many more there were.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::sleep;

use super::{
    caller::{ClientId, Peer},
    refusal::Refusal,
};

/// For so long refusals are counted together.
const WINDOW: Duration = Duration::from_secs(10);
/// Lines of each client in that time.
const LINES: u64 = 50;
/// Clients with lines of their own in that time; the others share those of one.
const CLIENTS: usize = 32;

/// Logs refusals, and bounds how many lines that takes.
#[derive(Debug, Default)]
pub(super) struct RefusalLog {
    refused: Mutex<HashMap<Option<ClientId>, u64>>,
}

impl RefusalLog {
    /// Logs that `peer` was not let in, unless enough is said of it already.
    pub(super) fn not_let_in(&self, peer: Peer, refusal: &Refusal) {
        if self.is_worth_a_line(Some(peer)) {
            let status = refusal.status.as_u16();
            tracing::info!(%peer, status, reason = refusal.sentence, "not let in");
        }
    }

    /// Logs in the current span that a capture of `peer` was refused, unless enough is said of it already. The address of
    /// one who was let in is for the account of captures only.
    pub(super) fn refused(&self, peer: Option<Peer>, refusal: &Refusal) {
        if self.is_worth_a_line(peer) {
            let status = refusal.status.as_u16();
            tracing::info!(status, reason = refusal.sentence, "refused");
        }
    }

    /// Logs that the discovery service has not answered a request of `peer`, unless enough is said of it already.
    pub(super) fn not_proxied(&self, peer: Peer, refusal: &Refusal) {
        if self.is_worth_a_line(Some(peer)) {
            let status = refusal.status.as_u16();
            tracing::info!(status, reason = refusal.sentence, "not proxied");
        }
    }

    fn is_worth_a_line(&self, peer: Option<Peer>) -> bool {
        let client = ClientId::new(peer.and_then(Peer::ip));
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let has_room = refused.len() < CLIENTS || refused.contains_key(&Some(client));
        let count = refused.entry(has_room.then_some(client)).or_default();
        *count += 1;
        *count <= LINES
    }

    /// Says again and again how many refusals had no line. Never ends.
    pub(super) async fn tell_the_rest(&self) {
        loop {
            sleep(WINDOW).await;
            for (client, count) in self.take_the_rest() {
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

    /// How many refusals of whom had no line, and begins anew.
    fn take_the_rest(&self) -> Vec<(Option<ClientId>, u64)> {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = refused.drain().filter_map(|(client, count)| {
            let more = count.checked_sub(LINES).filter(|more| *more > 0)?;
            Some((client, more))
        });
        rest.collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn peer(n: usize) -> Option<Peer> {
        let address = [10, 0, (n >> 8) as u8, n as u8];
        Some(Peer::Tcp(SocketAddr::from((address, 7))))
    }

    #[test]
    fn lines_are_few_and_nothing_is_lost() {
        let log = RefusalLog::default();
        let lines = |n: usize, times: usize| (0..times).filter(|_| log.is_worth_a_line(peer(n))).count();
        assert_eq!(lines(1, 1000), LINES as usize);
        // Who is quiet is not drowned by who is not.
        assert_eq!(lines(2, 3), 3);
        let many: usize = (3..3000).map(|n| lines(n, 1)).sum();
        assert!(many <= CLIENTS + LINES as usize, "{many}");
        let rest = log.take_the_rest();
        assert!(
            rest.contains(&(Some(ClientId::V4([10, 0, 0, 1].into())), 1000 - LINES)),
            "{rest:?}"
        );
        let untold: u64 = rest.iter().map(|(_, count)| count).sum();
        assert_eq!(untold, 4000 - (LINES + 3 + many as u64));
        assert!(log.take_the_rest().is_empty());
        assert_eq!(lines(1, 1000), LINES as usize);
    }
}
