//! One look at a time, for all who want one.
//!
//! A scan is a task of its own, which nobody ends by leaving and nobody doubles. Who waits for one gets the next that began
//! after it asked. After one there is a rest of the time that it took, so that those who want scans again and again make do
//! with half of a CPU. One that takes longer than ten seconds makes the service unready.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// How long one waits for a look.
    patience: Duration,
    /// A look that takes longer than this is late.
    late: Duration,
    /// The longest rest between two looks. Else one rests for as long as the last took, so that those who want one again
    /// and again make do with half of the time.
    rest: Duration,
}

const TIMES: Times = Times {
    patience: Duration::from_secs(20),
    late: Duration::from_secs(10),
    rest: Duration::from_millis(500),
};

/// A look did not come to its end while one waited for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the look for targets has not come to its end for {} s", TIMES.patience.as_secs())]
pub(crate) struct LateScan;

/// What is looked at, for all who want to know: a task that no one of them ends by leaving, and that none doubles.
#[derive(Debug)]
pub(super) struct SharedScan<T> {
    last: watch::Sender<Option<Look<T>>>,
    running: Mutex<ScanInProgress>,
    /// Shared with each who follows.
    followers: Arc<()>,
    times: Times,
}

/// Each look that comes to its end.
#[derive(Debug)]
pub(crate) struct Follower<T> {
    looks: watch::Receiver<Option<Look<T>>>,
    _counted: Arc<()>,
}

impl<T> Follower<T> {
    /// What the next look finds; of several since the last time, the latest. May be dropped while it waits.
    pub(crate) async fn next(&mut self) -> Arc<T> {
        loop {
            if self.looks.changed().await.is_err() {
                return std::future::pending().await;
            }
            if let Some(look) = &*self.looks.borrow_and_update() {
                return Arc::clone(&look.found);
            }
        }
    }
}

/// A look that has come to its end.
#[derive(Debug)]
struct Look<T> {
    began: Instant,
    ended: Instant,
    found: Arc<T>,
}

/// The look that is under way.
#[derive(Debug, Default)]
struct ScanInProgress {
    since: Option<Instant>,
    task: Option<AbortOnDropHandle<()>>,
}

impl<T: Send + Sync + 'static> SharedScan<T> {
    pub(super) fn new() -> Arc<Self> {
        Self::with(TIMES)
    }

    fn with(times: Times) -> Arc<Self> {
        Arc::new(Self {
            last: watch::Sender::new(None),
            running: Mutex::default(),
            followers: Arc::default(),
            times,
        })
    }

    /// What was found by a look that began at `earliest` or later. `look` is how one is taken, if one is to be taken.
    ///
    /// # Errors
    /// When that takes too long.
    pub(super) async fn since<F>(
        self: &Arc<Self>,
        earliest: Instant,
        look: impl Fn() -> F,
    ) -> Result<Arc<T>, LateScan>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let deadline = Instant::now() + self.times.patience;
        let mut last = self.last.subscribe();
        loop {
            if let Some(look) = last
                .borrow_and_update()
                .as_ref()
                .filter(|look| look.began >= earliest)
            {
                return Ok(Arc::clone(&look.found));
            }
            self.run(&look);
            // The sender is ours, so that it only can be too late.
            let _ = timeout_at(deadline, last.changed()).await.map_err(|_| LateScan)?;
        }
    }

    /// All looks that end from now on.
    pub(super) fn follow(&self) -> Follower<T> {
        Follower {
            looks: self.last.subscribe(),
            _counted: Arc::clone(&self.followers),
        }
    }

    /// Whether anyone follows.
    pub(super) fn is_followed(&self) -> bool {
        Arc::strong_count(&self.followers) > 1
    }

    /// What the last look has found, however long that is ago.
    pub(super) fn last(&self) -> Option<Arc<T>> {
        let last = self.last.borrow();
        last.as_ref().map(|look| Arc::clone(&look.found))
    }

    /// For how long the look that is under way has been late, if it is.
    pub(super) fn late(&self) -> Option<Duration> {
        let since = self.running().since?;
        Some(since.elapsed()).filter(|elapsed| *elapsed >= self.times.late)
    }

    /// Begins a look, unless one is under way.
    fn run<F>(self: &Arc<Self>, look: impl FnOnce() -> F)
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut running = self.running();
        if running.task.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let look = look();
        // Not kept alive by itself: whoever drops it ends the task.
        let shared = Arc::downgrade(self);
        let rest_until = self.last.borrow().as_ref().map(|last| {
            let took = last.ended - last.began;
            last.ended + took.min(self.times.rest)
        });
        running.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            if let Some(until) = rest_until {
                sleep_until(until).await;
            }
            let began = Instant::now();
            if let Some(shared) = shared.upgrade() {
                shared.running().since = Some(began);
            }
            let found = look.await;
            if let Some(shared) = shared.upgrade() {
                shared.end(began, found);
            }
        })));
    }

    fn end(&self, began: Instant, found: T) {
        let mut running = self.running();
        running.since = None;
        // Who is told of the end may want the next at once. This one has nothing left to do that could be aborted.
        drop(running.task.take());
        drop(running);
        self.last.send_replace(Some(Look {
            began,
            ended: Instant::now(),
            found: Arc::new(found),
        }));
    }

    fn running(&self) -> MutexGuard<'_, ScanInProgress> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::{BoxFuture, join_all};
    use tokio::time::{sleep, timeout};

    use super::*;

    const TAKES: Duration = Duration::from_millis(100);

    /// Looks that take a while, and are counted.
    fn looks(count: &Arc<AtomicUsize>) -> impl Fn() -> BoxFuture<'static, usize> + use<> {
        let count = Arc::clone(count);
        move || {
            let count = Arc::clone(&count);
            Box::pin(async move {
                sleep(TAKES).await;
                count.fetch_add(1, Ordering::Relaxed) + 1
            })
        }
    }

    #[tokio::test]
    async fn those_who_leave_neither_end_a_look_nor_double_it() {
        let shared = SharedScan::new();
        let count = Arc::default();
        let begun = Instant::now();
        for _ in 0..100 {
            let look = shared.since(Instant::now(), looks(&count));
            assert!(timeout(TAKES / 50, look).await.is_err());
        }
        let found = shared.since(Instant::now(), looks(&count)).await.unwrap();
        assert_eq!(*found, count.load(Ordering::Relaxed));
        // Half of the time at most is spent on looks.
        let most = begun.elapsed().as_millis() / TAKES.as_millis() / 2 + 1;
        assert!(*found as u128 <= most, "{found} in {:?}", begun.elapsed());
        assert!(*found >= 2, "{found}");
    }

    #[tokio::test]
    async fn those_who_wait_share_a_look_that_began_after_they_asked() {
        let shared = SharedScan::new();
        let count = Arc::default();
        let first = shared.since(Instant::now(), looks(&count));
        let later = async {
            sleep(TAKES / 2).await;
            let now = Instant::now();
            join_all((0..5).map(|_| shared.since(now, looks(&count)))).await
        };
        let (first, later) = tokio::join!(first, later);
        assert_eq!(*first.unwrap(), 1);
        assert!(later.iter().all(|found| **found.as_ref().unwrap() == 2));
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_late_and_keeps_nobody_waiting_for_ever() {
        let times = Times {
            patience: 4 * TAKES,
            late: TAKES,
            ..TIMES
        };
        let shared = SharedScan::<usize>::with(times);
        let begun = Instant::now();
        let look = shared.since(begun, pending::<usize>);
        let watched = async {
            assert_eq!(shared.late(), None);
            sleep(times.late * 2).await;
            assert!(shared.late().is_some());
        };
        let (look, ()) = tokio::join!(look, watched);
        assert_eq!(look, Err(LateScan));
        assert!(begun.elapsed() >= times.patience);
    }
}
