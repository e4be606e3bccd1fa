//! Ctrl-C and its like: the first asks for the end, the second is the end.

use std::{io, process::exit};

use tokio::sync::mpsc;

use crate::error::Status;

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
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};

        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) -> Status {
        tokio::select! {
            _ = self.interrupt.recv() => Status::Interrupted,
            _ = self.terminate.recv() => Status::Terminated,
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
