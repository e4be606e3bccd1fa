//! Whether anybody but us still holds a namespace.
//!
//! Our own descriptors keep it alive, so that its end is not an event. Once a second it is looked up whether the process,
//! thread, bind mount, descriptor or socket through which it was found still holds it. That searches anew when it is gone.

use std::sync::Arc;

use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};

use crate::netns::Netns;

/// Looks for who still holds a namespace, at the same time: each may have to search the whole host.
const SEARCHES: usize = 4;

/// The places of the looks of all taps.
#[derive(Clone, Debug)]
pub(super) struct Searches(Arc<Semaphore>);

impl Default for Searches {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(SEARCHES)))
    }
}

/// The look whether the namespace is still held: beside the reader, since it may have to search the whole host, where places
/// may not answer.
#[derive(Debug)]
pub(super) struct HeldLook {
    searches: Searches,
    under_way: Option<(Instant, JoinHandle<bool>)>,
    /// When it is time for the next: one that took long rests for long.
    next: Option<Instant>,
}

impl HeldLook {
    /// Times that a look took, to rest before the next.
    const REST: u32 = 10;

    /// None yet.
    pub(super) fn new(searches: Searches) -> Self {
        Self {
            searches,
            under_way: None,
            next: None,
        }
    }

    /// Looks once more, unless a look is under way or rests. While the process holds the namespace through which it was
    /// found, that is one look into `/proc`.
    pub(super) fn look(&mut self, netns: &Arc<Netns>) {
        let now = Instant::now();
        if self.under_way.is_some() || self.next.is_some_and(|next| now < next) || netns.is_held_by_process()
        {
            return;
        }
        let netns = Arc::clone(netns);
        let Searches(searches) = self.searches.clone();
        let look = tokio::spawn(async move {
            let _turn = searches.acquire().await;
            let looked = tokio::task::spawn_blocking(move || netns.is_held());
            looked.await.unwrap_or(true)
        });
        self.under_way = Some((now, look));
    }

    /// What the look that is under way has found; waits for the next one while none is.
    pub(super) async fn found(&mut self) -> bool {
        let Some((began, look)) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let is_held = look.await.unwrap_or(true);
        let now = Instant::now();
        self.next = Some(now + (now - *began) * Self::REST);
        self.under_way = None;
        is_held
    }
}
