//! What comes into being, told to all who follow it: watched once, and only while somebody does.

use std::{io, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, broadcast},
    time::sleep,
};

use crate::channel::{Control, Kind, Line, Served, path};

/// Most that waits for one who follows. What is beyond that, a scan has to find.
const QUEUED: usize = 256;

/// How often it is looked whether anybody follows still, and watched again where that failed.
const AGAIN: Duration = Duration::from_secs(2);

/// Something has come into being.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Arrived {
    /// A file at this path of the host's, where namespaces are mounted.
    Mount(#[serde(with = "path")] PathBuf),
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

    /// Has it watched while somebody follows. Never ends.
    pub(super) async fn run(&self, control: &Control) {
        loop {
            self.wanted.notified().await;
            let line = control.open(Kind::Arrivals).map_err(io::Error::from);
            let followed = match line.and_then(Line::into_served) {
                Ok(line) => self.follow_line(line).await,
                Err(error) => Err(error),
            };
            if let Err(error) = followed {
                tracing::warn!(%error, "what comes is found by looks for it, and so later");
                sleep(AGAIN).await;
            }
        }
    }

    async fn follow_line(&self, mut line: Served) -> io::Result<()> {
        while self.sender.receiver_count() > 0 {
            tokio::select! {
                () = line.is_left() => {}
                () = sleep(AGAIN) => continue,
            }
            let arrived = line.next::<Arrived>().await?;
            let arrived = arrived.ok_or(io::ErrorKind::UnexpectedEof)?;
            // That nobody follows any more is seen soon.
            let _ = self.sender.send(arrived);
        }
        Ok(())
    }
}
