//! A process that stands for its network namespace, and the proof that it is the one that was meant.
//!
//! PIDs and the inode numbers of namespaces are used again soon. What is used again never has the same start time,
//! and an open descriptor keeps its namespace's number from being given away.
//!
//! So the process is held with a pidfd; its start time and the link of its namespace are checked, the namespace is opened, the
//! descriptor's number is checked, start time and link are checked again, and at last that the process has not ended. Then one
//! and the same process was in that namespace before and after it was opened.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
};

use serde::{Deserialize, Serialize};

use super::holder::network_namespace_inode;
use crate::{
    channel::{Broken, kernel_error},
    proc_fs::{Stat, live_namespace, namespace_path},
    sys,
};

/// What is known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its PID.
    pub pid: u32,
    /// When it began, in clock ticks after boot: field 22 of `/proc/PID/stat`.
    pub starttime: Option<u64>,
    /// Inode number of its network namespace.
    pub netns: Option<u64>,
}

/// Why a process does not lead to the namespace that was meant.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum ProcessError {
    /// It has ended.
    #[error("process {pid} has ended")]
    Ended {
        /// The PID.
        pid: u32,
    },
    /// Another process has its PID.
    #[error(
        "process {pid} began at {found} clock ticks after boot and not at {starttime}: it is another one"
    )]
    Another {
        /// The PID.
        pid: u32,
        /// Start time that was meant.
        starttime: u64,
        /// Start time of the process that has the PID.
        found: u64,
    },
    /// It is in another namespace.
    #[error("process {pid} is in network namespace {found} and not in {netns}")]
    Elsewhere {
        /// The PID.
        pid: u32,
        /// The namespace that was meant.
        netns: u64,
        /// The namespace in which the process is.
        found: u64,
    },
    /// The kernel does not let us look at it; without CAP_SYS_PTRACE it does not.
    #[error("the network namespace of process {pid} could not be looked at")]
    Unreadable {
        /// The PID.
        pid: u32,
        /// The error of opening it, such as `EACCES`.
        #[source]
        #[serde(with = "kernel_error")]
        source: io::Error,
    },
    /// Nobody is there who could look.
    #[error(transparent)]
    #[serde(skip)]
    Broken(#[from] Broken),
}

/// What has been done on the way to the namespace; a test does something in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// The process is held.
    Held,
    /// It is the one that was meant.
    Checked,
    /// Its namespace is open.
    Opened,
    /// It still is the one that was meant, and in the namespace that is open.
    CheckedAgain,
}

/// The namespace of a process.
#[derive(Debug)]
pub(super) struct OpenNamespace {
    pub(super) inode: u64,
    pub(super) namespace: OwnedFd,
    /// The process, where the kernel can hold it.
    pub(super) process: Option<OwnedFd>,
}

impl ProcessIdentity {
    /// Opens the namespace of the process, whose number comes with it. When this succeeds, one and the same process
    /// of this identity was in the namespace before and after it was opened.
    pub(super) fn open_namespace(&self, mut after: impl FnMut(Step)) -> Result<OpenNamespace, ProcessError> {
        let held = sys::pidfd(self.pid).map_err(|error| self.unreadable(error))?;
        after(Step::Held);
        self.check()?;
        after(Step::Checked);
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let (thread, _) = live_namespace(self.pid, "net").map_err(|error| self.unreadable(error))?;
        let path = namespace_path(self.pid, thread, "net");
        let namespace = open(&path, flags, Mode::empty()).map_err(|error| self.unreadable(error.into()))?;
        after(Step::Opened);
        let inode =
            network_namespace_inode(namespace.as_fd()).ok_or(ProcessError::Ended { pid: self.pid })?;
        self.check_namespace(inode)?;
        Self {
            netns: Some(inode),
            ..*self
        }
        .check()?;
        after(Step::CheckedAgain);
        // As long as it lives, nobody else has had its PID.
        if held.as_ref().is_some_and(has_ended) {
            return Err(ProcessError::Ended { pid: self.pid });
        }
        Ok(OpenNamespace {
            inode,
            namespace,
            process: held,
        })
    }

    /// Whether the process is the one that is meant, and where it is meant to be, as far as that is known.
    fn check(&self) -> Result<(), ProcessError> {
        let stat = Stat::read(self.pid).map_err(|error| self.unreadable(error))?;
        if let Some(starttime) = self.starttime.filter(|starttime| *starttime != stat.starttime) {
            return Err(ProcessError::Another {
                pid: self.pid,
                starttime,
                found: stat.starttime,
            });
        }
        let (_, inode) = live_namespace(self.pid, "net").map_err(|error| self.unreadable(error))?;
        self.check_namespace(inode)
    }

    fn check_namespace(&self, found: u64) -> Result<(), ProcessError> {
        match self.netns {
            Some(netns) if netns != found => Err(ProcessError::Elsewhere {
                pid: self.pid,
                netns,
                found,
            }),
            _ => Ok(()),
        }
    }

    /// A process that has ended is not to be found, or has left its namespaces.
    fn unreadable(&self, source: io::Error) -> ProcessError {
        match source.raw_os_error().map(Errno::from_raw) {
            // `EINVAL` when the PID is that of a thread by now.
            Some(Errno::ENOENT | Errno::ESRCH | Errno::EINVAL) => ProcessError::Ended { pid: self.pid },
            _ => ProcessError::Unreadable {
                pid: self.pid,
                source,
            },
        }
    }
}

/// Whether the process has ended, with all its threads. Its descriptor is readable then.
pub(crate) fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use crate::proc_fs::{namespace_link, proc_path};

    use super::*;

    fn sleeper() -> (Child, ProcessIdentity) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let identity = ProcessIdentity {
            pid,
            starttime: Some(Stat::read(pid).unwrap().starttime),
            netns: Some(namespace_link(&proc_path(pid, "ns/net")).unwrap().1),
        };
        (child, identity)
    }

    #[test]
    fn process_that_is_meant_leads_to_its_namespace() {
        let (mut child, identity) = sleeper();
        let mut steps = Vec::new();
        let OpenNamespace { inode, process, .. } = identity.open_namespace(|step| steps.push(step)).unwrap();
        assert!(process.is_some());
        assert_eq!(Some(inode), identity.netns);
        assert_eq!(
            steps,
            [Step::Held, Step::Checked, Step::Opened, Step::CheckedAgain]
        );
        for vague in [
            ProcessIdentity {
                starttime: None,
                ..identity
            },
            ProcessIdentity {
                netns: None,
                ..identity
            },
        ] {
            assert_eq!(vague.open_namespace(|_| ()).unwrap().inode, inode);
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn process_that_ends_at_any_step_is_noticed() {
        for fatal in [Step::Held, Step::Checked, Step::Opened, Step::CheckedAgain] {
            for reap in [true, false] {
                let (mut child, identity) = sleeper();
                let mut end = |step| {
                    if step == fatal {
                        child.kill().unwrap();
                        wait_until_ended(child.id());
                        if reap {
                            child.wait().unwrap();
                        }
                    }
                };
                let error = identity.open_namespace(&mut end).unwrap_err();
                assert!(matches!(error, ProcessError::Ended { .. }), "{fatal:?}: {error}");
                child.wait().unwrap();
            }
        }
    }

    /// Waits until it is a zombie.
    fn wait_until_ended(pid: u32) {
        while std::fs::read_link(proc_path(pid, "ns/net")).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    #[test]
    fn another_process_or_namespace_is_refused() {
        let (mut child, identity) = sleeper();
        let another = ProcessIdentity {
            starttime: identity.starttime.map(|time| time - 1),
            ..identity
        };
        assert!(matches!(
            another.open_namespace(|_| ()),
            Err(ProcessError::Another { .. })
        ));
        let elsewhere = ProcessIdentity {
            netns: Some(1),
            ..identity
        };
        assert!(matches!(
            elsewhere.open_namespace(|_| ()),
            Err(ProcessError::Elsewhere { netns: 1, .. })
        ));
        child.kill().unwrap();
        child.wait().unwrap();
        for gone in [identity.pid, 0, u32::MAX] {
            let gone = ProcessIdentity {
                pid: gone,
                ..identity
            };
            assert!(gone.open_namespace(|_| ()).is_err());
        }
    }
}
