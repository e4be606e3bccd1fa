//! The keeper: the process that has the service's rights, and serves no client. What faces the network, the front, has none: it asks
//! here for what takes rights, in a few words (`channel.rs`), and gets descriptors of what is no more than that.
//!
//! Both are one program, which forks at its start. The front is the process that was started. If it ends, the keeper lets go of all
//! that it has, and ends too. If the keeper ends, the front does, with an error.

use std::{
    io,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        prctl::set_name,
        signal::{SigHandler, Signal, signal},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{ForkResult, Pid, fork, geteuid, getppid},
};

use crate::{
    access,
    capabilities::Capability,
    captures,
    channel::{Control, Kind, Line, Served, open_lines, pair},
    config::Config,
    confined::{self, Failure},
    discovery::{self, Finder},
    error::chain,
    filter,
    netns::{self, Holders},
    proc_fs,
    tap::{self, Loader, TapConfig},
};

/// What the keeper is called among processes.
const NAME: &std::ffi::CStr = c"packetflix-keep";

/// Most threads of the keeper for what has to be done at the same time, beside those that wait for the kernel.
const MAX_WORKERS: usize = 4;

/// How long the keeper may take to let go of everything, and how often it is looked whether it has.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often the keeper looks whether the front is there.
const WATCH: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(2);

/// Why the service is not two processes.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// There is no second one.
    #[error("the process that is to have the service's rights cannot be started")]
    Start(#[source] io::Error),
    /// It ended before the service did, or does not end.
    #[error("the process that had the service's rights did not end as it should: {0}")]
    Ended(String),
    /// The one that faces the network would have rights.
    #[error("the process that serves clients cannot give up its rights: {0}")]
    Front(String),
}

impl From<Failure> for KeeperError {
    fn from(failure: Failure) -> Self {
        Self::Front(failure.sentence())
    }
}

/// What asks the keeper, and what tells of its end.
#[derive(Clone, Debug)]
pub struct Keeper {
    control: Arc<Control>,
    /// Its PID, if it is a process of its own.
    pid: Option<Pid>,
}

/// What the keeper has, of which it tells.
struct Kept {
    loader: Arc<Loader>,
    holders: Arc<Holders>,
    finder: Arc<Finder>,
    helpers: Arc<filter::Started>,
    files: Arc<access::Files>,
    account: Option<PathBuf>,
    /// Whether it is in the process that asks, which may do all of that itself.
    is_within: bool,
}

impl Kept {
    fn new(config: &Config, tap: TapConfig, is_within: bool) -> Arc<Self> {
        let holders = Arc::new(Holders::default());
        Arc::new(Self {
            loader: Arc::new(Loader::new(tap)),
            finder: Arc::new(Finder::new(config.engine_sockets.clone(), Arc::clone(&holders))),
            holders,
            helpers: Arc::default(),
            files: Arc::new(access::Files {
                tokens: config.frontend.token_file.clone(),
                others: config.frontend.files(),
            }),
            account: config.frontend.audit_log.clone(),
            is_within,
        })
    }
}

impl Keeper {
    /// Starts a keeper in a process of its own, and takes all rights of this one. `let_go` is done in the keeper before anything
    /// else, and `at_end` when it ends. To be called while there is one thread.
    ///
    /// # Errors
    /// When there is no second process, or this one would keep rights.
    pub fn fork(config: &Config, let_go: impl FnOnce(), at_end: impl FnOnce()) -> Result<Self, KeeperError> {
        let (ours, theirs) = pair().map_err(KeeperError::Start)?;
        #[expect(unsafe_code, reason = "the service is two processes")]
        // SAFETY: there is one thread, so that nothing is locked for good in the child.
        let forked = unsafe { fork() };
        match forked.map_err(|error| KeeperError::Start(error.into()))? {
            ForkResult::Child => {
                drop(ours);
                let front = getppid();
                proc_fs::set_other_process(front.as_raw() as u32);
                let_go();
                let ended = keep(theirs, config, front);
                at_end();
                std::process::exit(i32::from(ended.is_err()));
            }
            ForkResult::Parent { child } => {
                drop(theirs);
                // What is done at the end is done there.
                std::mem::forget(at_end);
                confined::give_up_all()?;
                proc_fs::set_other_process(child.as_raw() as u32);
                let control = Arc::new(Control::new(ours));
                access::read_by(&control);
                captures::write_by(&control);
                Ok(Self {
                    control,
                    pid: Some(child),
                })
            }
        }
    }

    /// A keeper in this process, for one who has the rights and serves nobody else. Its threads inherit the rights of the one
    /// that calls this.
    ///
    /// # Errors
    /// When there are too few descriptors or threads.
    pub(crate) fn within(config: &Config, tap: TapConfig) -> Result<Self, KeeperError> {
        let (ours, theirs) = pair().map_err(KeeperError::Start)?;
        let kept = Kept::new(config, tap, true);
        let keep = move || {
            // What lives for one client leaves nothing to the next.
            if let Err(error) = serve_on_runtime(theirs, &kept) {
                tracing::warn!(%error, "what takes rights is not done any more");
            }
        };
        let thread = thread::Builder::new().name("keeper".to_owned()).spawn(keep);
        drop(thread.map_err(KeeperError::Start)?);
        Ok(Self {
            control: Arc::new(Control::new(ours)),
            pid: None,
        })
    }

    /// Logs which process may do what.
    pub fn log(&self) {
        let rights = Capability::ALL.iter().filter(|one| one.is_effective());
        let rights: Vec<&str> = rights.map(|one| one.name()).collect();
        tracing::info!(
            keeper = self.pid.map(Pid::as_raw),
            rights = rights.join(" "),
            user = geteuid().as_raw(),
            "what takes rights is done by a process of its own; the one that serves clients has none"
        );
    }

    /// Waits until the keeper has ended, or answers no more.
    pub async fn ended(&self) {
        let line = self.control.open(Kind::Holders).map_err(io::Error::from);
        if let Ok(mut line) = line.and_then(Line::into_served) {
            // It says nothing that it is not asked for.
            tokio::select! {
                _ = line.next::<()>() => {}
                () = self.control.is_broken() => {}
            }
        }
    }

    /// Has the keeper end, and waits for that.
    ///
    /// # Errors
    /// When it had ended before, or does not in time.
    pub fn end(self) -> Result<(), KeeperError> {
        let was_there = self.control.open(Kind::Holders).is_ok();
        self.control.close();
        let Some(pid) = self.pid else {
            return Ok(());
        };
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) if Instant::now() < deadline => thread::sleep(LOOK),
                status => break status,
            }
        };
        match status {
            Ok(WaitStatus::Exited(_, 0)) if was_there => Ok(()),
            Ok(status) => Err(KeeperError::Ended(format!("{status:?}"))),
            Err(error) => Err(KeeperError::Ended(error.to_string())),
        }
    }

    /// Where the keeper is asked.
    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }
}

/// The keeper's life.
fn keep(control: UnixStream, config: &Config, front: Pid) -> io::Result<()> {
    // It ends with the front, which a service manager or a terminal tells.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        #[expect(unsafe_code, reason = "signals are ignored")]
        // SAFETY: to ignore runs no code of ours.
        unsafe { signal(ignored, SigHandler::SigIgn) }?;
    }
    set_name(NAME)?;
    end_with(front)?;
    let kept = Kept::new(config, config.tap.clone(), false);
    serve_on_runtime(control, &kept).inspect_err(|error| tracing::error!(%error, "the keeper cannot go on"))
}

/// Ends this process a while after the front has ended, should whatever is in its way.
fn end_with(front: Pid) -> io::Result<()> {
    let watch = move || {
        while getppid() == front {
            thread::sleep(WATCH);
        }
        thread::sleep(PATIENCE);
        #[expect(unsafe_code, reason = "nothing is waited for")]
        // SAFETY: ends the process, and runs nothing of it.
        unsafe {
            nix::libc::_exit(1)
        }
    };
    let watching = thread::Builder::new()
        .name("end".to_owned())
        .stack_size(1 << 16)
        .spawn(watch);
    watching.map(drop)
}

/// Serves until nobody is at the other end any more, and tends to what the next captures will take, if there may be several.
fn serve_on_runtime(control: UnixStream, kept: &Arc<Kept>) -> io::Result<()> {
    let workers = thread::available_parallelism().map_or(1, |count| count.get().min(MAX_WORKERS));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let tending = tokio::spawn({
            let kept = Arc::clone(kept);
            async move {
                if !kept.is_within {
                    kept.loader.keep_one_ready().await;
                }
            }
        });
        let begin = |kind, line| {
            tokio::spawn(serve_line(kind, line, Arc::clone(kept)));
        };
        let served = open_lines(Served::new(control)?, begin).await;
        tending.abort();
        served
    });
    // Captures are let go of with the descriptors that they are.
    runtime.shutdown_background();
    ended
}

async fn serve_line(kind: Kind, mut line: Served, kept: Arc<Kept>) {
    let served = match kind {
        Kind::Namespace => match netns::open_for(&mut line, &kept.holders, kept.is_within).await {
            Ok(Some(open)) => tap::serve(line, open, Arc::clone(&kept.loader)).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        },
        Kind::Holders => netns::serve_holders(line, Arc::clone(&kept.holders)).await,
        Kind::Taps => tap::serve_all(line, Arc::clone(&kept.loader)).await,
        Kind::Rings => tap::serve_rings(line, Arc::clone(&kept.loader)).await,
        Kind::Connections => tap::serve_connections(line, Arc::clone(&kept.loader)).await,
        Kind::Targets => discovery::serve(line, Arc::clone(&kept.finder)).await,
        Kind::Arrivals => discovery::serve_arrivals(line, Arc::clone(&kept.finder)).await,
        Kind::Helpers => filter::serve(line, Arc::clone(&kept.helpers)).await,
        Kind::Files => access::serve_files(line, Arc::clone(&kept.files)).await,
        Kind::Account => captures::serve_account(line, kept.account.clone()).await,
    };
    // Who has left cannot be answered.
    let is_left = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        )
    };
    if let Err(error) = served.as_ref()
        && !is_left(error)
    {
        tracing::warn!(
            ?kind,
            error = chain(error),
            "what was asked could not be answered"
        );
    }
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;
    use crate::channel::fuzzing::message;

    /// What a front asks that may have been taken over.
    pub fn asked(data: &[u8]) {
        let _ = message::<Kind>(data);
        tap::fuzzing::asked(data);
        netns::fuzzing::asked(data);
        discovery::fuzzing::asked(data);
        filter::fuzzing::asked(data);
        access::fuzzing::asked(data);
        captures::fuzzing::asked(data);
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn counts_that_no_message_has_take_no_memory() {
            // A list of 2^60 interfaces, and a text of as many bytes.
            let count = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
            for kind in 0..16 {
                asked(&[&[kind][..], &count].concat());
                asked(&[&[kind, 1][..], &count].concat());
            }
        }
    }
}
