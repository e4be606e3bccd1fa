//! Whether anybody but us still holds a namespace.
//!
//! Our own descriptors keep it alive, so that its end is not an event. Once a second it is looked up whether the process,
//! thread, bind mount, descriptor or socket through which it was found still holds it. That searches anew when it is gone.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};

use crate::netns::OpenNetns;

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
    under_way: Option<JoinHandle<Looked>>,
    /// When it is time for the next: one that took long itself rests for long.
    next: Option<Instant>,
}

/// What a look has found, and how long it took, without the time that it waited for others.
#[derive(Debug)]
struct Looked {
    is_held: bool,
    took: Duration,
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

    /// Looks once more, unless a look is under way or rests, or the process still holds the namespace through which it was found.
    pub(super) fn look(&mut self, netns: &Arc<OpenNetns>, is_held_by_process: bool) {
        let now = Instant::now();
        if self.under_way.is_some() || self.next.is_some_and(|next| now < next) || is_held_by_process {
            return;
        }
        let netns = Arc::clone(netns);
        self.begin(move || netns.is_held());
    }

    fn begin(&mut self, is_held: impl FnOnce() -> bool + Send + 'static) {
        let Searches(searches) = self.searches.clone();
        self.under_way = Some(tokio::spawn(async move {
            let _turn = searches.acquire().await;
            let began = Instant::now();
            let looked = tokio::task::spawn_blocking(is_held);
            Looked {
                is_held: looked.await.unwrap_or(true),
                took: began.elapsed(),
            }
        }));
    }

    /// What the look that is under way has found; waits for the next one while none is.
    pub(super) async fn found(&mut self) -> bool {
        let Some(look) = &mut self.under_way else {
            return std::future::pending().await;
        };
        // One that failed has found nothing.
        let Looked { is_held, took } = look.await.unwrap_or(Looked {
            is_held: true,
            took: Duration::ZERO,
        });
        self.next = Some(Instant::now() + took * Self::REST);
        self.under_way = None;
        is_held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where many namespaces end at the same time, each waits for others, and is a capture for as long as it does.
    #[tokio::test]
    async fn a_look_that_waited_for_others_does_not_rest_for_that() {
        const WAITED: Duration = Duration::from_secs(2);

        let searches = Searches::default();
        let others = searches.0.acquire_many(SEARCHES as u32).await.unwrap();
        let mut look = HeldLook::new(searches.clone());
        look.begin(|| true);
        tokio::time::sleep(WAITED).await;
        drop(others);
        assert!(look.found().await);
        let rest = look.next.unwrap().saturating_duration_since(Instant::now());
        assert!(rest < WAITED * HeldLook::REST / 2, "{rest:?}");
    }
}
