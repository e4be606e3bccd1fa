//! Ctrl-C and its like: the first asks for the end, the second is the end.

use std::{io, process::exit, time::Duration};

use tokio::{sync::mpsc, time::timeout};

use crate::error::Status;

/// What follows a signal this closely is not another one: nobody is so quick.
const SAME_MOMENT: Duration = Duration::from_millis(100);

/// The first time that the end is asked for.
pub struct Interrupts(mpsc::Receiver<Status>);

impl Interrupts {
    /// Listens from now on. To be called within a runtime that has a thread of its own for this, so that the second one ends
    /// the program whatever the others wait for.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub fn listen() -> io::Result<Self> {
        let (sender, first) = mpsc::channel(1);
        let mut signals = Signals::listen()?;
        tokio::spawn(async move {
            let status = signals.next().await;
            // Where nobody waits for the first one, everything has ended.
            let _ = sender.send(status).await;
            // timeout(1) signals the program, and then the group of processes that it is in: that is once.
            let copies = async {
                loop {
                    signals.next().await;
                }
            };
            let _ = timeout(SAME_MOMENT, copies).await;
            exit(signals.next().await as i32);
        });
        Ok(Self(first))
    }

    /// Waits for the first one, and tells which exit status it stands for. Never ends once that was told.
    pub async fn first(&mut self) -> Status {
        match self.0.recv().await {
            Some(status) => status,
            None => std::future::pending().await,
        }
    }
}

#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    /// That the terminal is gone, unless whoever started the program has it ignored, as nohup does.
    hangup: Option<tokio::signal::unix::Signal>,
    /// That a file may not be larger: what is written then fails, instead of ending the program.
    _too_large: tokio::signal::unix::Signal,
}

/// SIGXFSZ, on Linux and macOS.
#[cfg(unix)]
const FILE_SIZE: i32 = 25;

#[cfg(unix)]
const HANGUP: u32 = 1;

/// Whether a signal is ignored, as far as the system tells: Linux does, in `/proc/self/status` (proc_pid_status(5)).
#[cfg(unix)]
fn is_ignored(signal: u32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0)
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: match is_ignored(HANGUP) {
                true => None,
                false => Some(signal(SignalKind::hangup())?),
            },
            _too_large: signal(SignalKind::from_raw(FILE_SIZE))?,
        })
    }

    async fn next(&mut self) -> Status {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => Status::Interrupted,
            _ = self.terminate.recv() => Status::Terminated,
            _ = hangup => Status::HungUp,
        }
    }
}

#[cfg(windows)]
struct Signals {
    interrupt: tokio::signal::windows::CtrlC,
    close: tokio::signal::windows::CtrlClose,
}

#[cfg(windows)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::windows::{ctrl_c, ctrl_close};

        Ok(Self {
            interrupt: ctrl_c()?,
            close: ctrl_close()?,
        })
    }

    async fn next(&mut self) -> Status {
        tokio::select! {
            _ = self.interrupt.recv() => Status::Interrupted,
            _ = self.close.recv() => Status::Terminated,
        }
    }
}
