//! Judges captures that run: rights end with their reason, and captures with their rights.
//!
//! A capture is judged for as long as it runs: by each scan, at once when the process ends by which its namespace was found,
//! and each second by what its caller rests on: the token's digest, or the certificate, which is verified anew.

use std::{os::fd::OwnedFd, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

use super::{App, Caller};
use crate::{
    access::{Rights, Verdict},
    captures::Capture,
    discovery::{Follower, Scan},
    sys,
};

/// How often it is looked whether a caller would still be let in.
const INTERVAL: Duration = Duration::from_secs(1);

/// A capture that runs, and on whose behalf.
pub(crate) struct Judge {
    app: Arc<App>,
    caller: Caller,
    /// What the caller may do by now, for those who act on it.
    rights: watch::Sender<Arc<Rights>>,
    netns: u64,
    capture: Arc<Capture>,
    /// Scans, where it takes the names of targets to judge.
    scans: Option<Follower<Scan>>,
    /// The process by which the namespace was found. With it may end what gave the right to it.
    process: Option<OwnedFd>,
}

impl Judge {
    /// Judges a capture of the namespace `netns`, which was found by process `pid` if by any; `rights` follow the caller's.
    pub(crate) fn new(
        app: Arc<App>,
        caller: Caller,
        rights: watch::Sender<Arc<Rights>>,
        netns: u64,
        pid: Option<u32>,
        capture: Arc<Capture>,
    ) -> Self {
        Self {
            scans: caller.rights().are_by_pattern().then(|| app.discovery.scans()),
            process: pid.and_then(|pid| sys::pidfd(pid).ok().flatten()),
            app,
            caller,
            rights,
            netns,
            capture,
        }
    }

    /// Ends the capture as soon as its caller may not have it any more; never ends before that.
    pub(crate) async fn watch(mut self) {
        let why = self.reason().await;
        tracing::info!(reason = why, "a capture loses its right");
        self.capture.revoke(why);
        // Its stream comes to its end by itself.
        std::future::pending::<()>().await;
    }

    /// Waits until the caller may not capture this any more; says why.
    async fn reason(&mut self) -> String {
        let mut looks = interval(INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut end = self.process.take().and_then(|process| sys::watch(process).ok());
        loop {
            let judged = tokio::select! {
                _ = looks.tick() => self.renew().await,
                scan = next(&mut self.scans) => self.judge(&scan),
                _ = ended(end.as_ref()) => {
                    end = None;
                    self.look().await
                }
            };
            if let Err(why) = judged {
                return why;
            }
        }
    }

    /// Looks whether the caller would be let in now, and for what.
    async fn renew(&mut self) -> Result<(), String> {
        let renewed = self
            .caller
            .renew(&self.app.access)
            .map_err(|error| error.to_string())?;
        let is_same = renewed.rights() == self.caller.rights();
        self.caller = renewed;
        if is_same {
            return Ok(());
        }
        self.rights.send_replace(Arc::clone(self.caller.rights()));
        let is_by_pattern = self.caller.rights().are_by_pattern();
        self.scans = is_by_pattern.then(|| self.app.discovery.scans());
        if is_by_pattern {
            return self.look().await;
        }
        let may_capture = self.caller.may_capture_something();
        may_capture.map_err(|error| error.to_string())
    }

    /// Judges by what there is now, where that matters.
    async fn look(&self) -> Result<(), String> {
        if self.scans.is_none() {
            return Ok(());
        }
        match self.app.discovery.scan_now().await {
            Ok(scan) => self.judge(&scan),
            Err(late) => Err(late.to_string()),
        }
    }

    fn judge(&self, scan: &Scan) -> Result<(), String> {
        let name = self.caller.name();
        let verdict = match scan.occupants(self.netns) {
            Some(occupants) => self.caller.rights().may_capture(occupants),
            None if scan.is_cut => Verdict::Unsure,
            // Where nobody is any more, the capture ends by itself.
            None => Verdict::Allowed,
        };
        match verdict {
            Verdict::Allowed => Ok(()),
            Verdict::Refused => Err(format!(
                "{name} may not capture all that is in the network namespace by now"
            )),
            Verdict::Unsure => Err(format!(
                "whether {name} may capture all that is in the network namespace cannot be told any more"
            )),
        }
    }
}

/// The next scan; waits for ever where none are wanted.
async fn next(scans: &mut Option<Follower<Scan>>) -> Arc<Scan> {
    match scans {
        Some(scans) => scans.next().await,
        None => std::future::pending().await,
    }
}

/// Waits until a process has ended; for ever where none is known.
async fn ended(process: Option<&tokio::io::unix::AsyncFd<OwnedFd>>) {
    match process {
        Some(process) => drop(process.readable().await),
        None => std::future::pending().await,
    }
}
