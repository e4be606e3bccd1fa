//! What comes into being, told to all who follow it: watched once, and only while somebody does.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use tokio::{
    sync::{Notify, broadcast},
    time::sleep,
};

use crate::netns::{ArrivalNews, Arrivals};

/// Most that waits for one who follows. What is beyond that, a scan has to find.
const QUEUED: usize = 256;

/// How often directories are looked for that were not there, and whether anybody follows still.
const AGAIN: Duration = Duration::from_secs(2);

/// Something has come into being.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Arrived {
    /// A file at this path of the host's, where namespaces are mounted.
    Mount(PathBuf),
    /// Something that a scan has to find.
    Something,
}

/// Tells of what comes.
#[derive(Debug)]
pub(super) struct ArrivalWatch {
    sender: broadcast::Sender<Arrived>,
    wanted: Notify,
}

impl ArrivalWatch {
    pub(super) fn new() -> Self {
        Self {
            sender: broadcast::Sender::new(QUEUED),
            wanted: Notify::new(),
        }
    }

    /// What comes from now on, as long as [`Self::run`] runs.
    pub(super) fn follow(&self) -> broadcast::Receiver<Arrived> {
        let receiver = self.sender.subscribe();
        self.wanted.notify_one();
        receiver
    }

    /// Watches while somebody follows, beside the usual directories those that `others` gives by then. Never ends.
    pub(super) async fn run(&self, others: impl Fn() -> BTreeSet<PathBuf>) {
        loop {
            self.wanted.notified().await;
            match Arrivals::new() {
                Ok(arrivals) => self.watch(arrivals, &others).await,
                Err(error) => {
                    tracing::warn!(%error, "what comes is found by looks for it, and so later");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn watch(&self, mut arrivals: Arrivals, others: &impl Fn() -> BTreeSet<PathBuf>) {
        arrivals.watch(others()).await;
        while self.sender.receiver_count() > 0 {
            let news = tokio::select! {
                news = arrivals.next() => news,
                () = sleep(AGAIN) => {
                    arrivals.watch(others()).await;
                    continue;
                }
            };
            match news {
                Ok(news) => news.into_iter().for_each(|news| self.tell(news)),
                Err(error) => {
                    tracing::warn!(%error, "it is not told any more what comes");
                    return;
                }
            }
        }
    }

    fn tell(&self, news: ArrivalNews) {
        let arrived = match news {
            ArrivalNews::At(path) => Arrived::Mount(path),
            ArrivalNews::Missed => Arrived::Something,
        };
        // That nobody follows any more is seen soon.
        let _ = self.sender.send(arrived);
    }
}
