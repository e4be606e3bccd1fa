//! Who speaks at the other end of an engine's socket.

use std::{
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use tokio::net::UnixStream;

use super::processes::users_of;
use crate::{
    netns::has_ended,
    proc_fs::{Stat, namespace_link, proc_path},
    sys,
};

/// The process that began to listen at a socket. Its PID means it for as long as [`Self::is_alive`] says so.
#[derive(Debug)]
pub(super) struct SocketPeer {
    /// In our PID namespace.
    pub(super) pid: u32,
    /// Its user, when it began to listen.
    pub(super) uid: u32,
    held: Held,
}

/// What a process is known again by.
#[derive(Debug)]
enum Held {
    /// A descriptor of it.
    Descriptor(OwnedFd),
    /// When it began, in clock ticks after boot, where the kernel gives no descriptor.
    Since(u64),
    /// One that a test made up, which never ends.
    #[cfg(test)]
    Scripted,
}

impl Held {
    /// Of the process that has this PID now.
    fn take(pid: u32) -> Result<Self, PeerError> {
        if let Some(held) = sys::pidfd(pid).map_err(|_| PeerError::Ended)? {
            return Ok(Self::Descriptor(held));
        }
        let stat = Stat::read(pid).map_err(|_| PeerError::Ended)?;
        Ok(Self::Since(stat.starttime))
    }
}

/// Why nobody is known to speak: others may have the socket by now, and what they say is nobody's word.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error("who listens there cannot be asked for")]
    Unknown(#[source] io::Error),
    #[error("who began to listen there has ended")]
    Ended,
    #[error("who listens there is in none of the PID namespaces that are seen from here")]
    Elsewhere,
}

impl SocketPeer {
    /// The process at the other end of a connection.
    ///
    /// # Errors
    /// When it has ended, or cannot be looked at.
    pub(super) fn of(stream: &UnixStream) -> Result<Self, PeerError> {
        let credentials = stream.peer_cred().map_err(PeerError::Unknown)?;
        let (pid, held) = match sys::peer_pidfd(stream.as_fd()).map_err(|_| PeerError::Ended)? {
            Some(held) => (pid_of(&held)?, Held::Descriptor(held)),
            None => {
                let pid = pid_in(credentials.pid())?;
                (pid, Held::take(pid)?)
            }
        };
        let uid = credentials.uid();
        let peer = Self { pid, uid, held };
        if peer.is_alive() {
            Ok(peer)
        } else {
            Err(PeerError::Ended)
        }
    }

    /// A process by its PID, which acts for one user.
    ///
    /// # Errors
    /// When it has ended, or acts for several.
    pub(super) fn process(pid: u32) -> Result<Self, PeerError> {
        let held = Held::take(pid)?;
        let uid = users_of(pid).ok_or(PeerError::Ended)?;
        Ok(Self { pid, uid, held })
    }

    /// Whether this is the same process as one that was held before, and still lives.
    pub(super) fn is_still(&self, before: &Self) -> bool {
        self.pid == before.pid && before.is_alive()
    }

    /// Whether it sees what the host has mounted where the host sees it.
    pub(super) fn has_mounts_of_host(&self) -> bool {
        let mounts = |pid: u32| namespace_link(&proc_path(pid, "ns/mnt")).ok();
        let theirs = mounts(self.pid);
        let hosts = [1, std::process::id()].map(mounts);
        theirs.is_some() && hosts.contains(&theirs) && self.is_alive()
    }

    /// Whether it has not ended since, so that nobody else has had its PID.
    pub(super) fn is_alive(&self) -> bool {
        match &self.held {
            Held::Descriptor(held) => !has_ended(held),
            Held::Since(begin) => Stat::read(self.pid).is_ok_and(|stat| stat.starttime == *begin),
            #[cfg(test)]
            Held::Scripted => true,
        }
    }
}

/// The PID that a socket reports; 0 where it has none that we see.
fn pid_in(reported: Option<i32>) -> Result<u32, PeerError> {
    let pid = reported.and_then(|pid| u32::try_from(pid).ok());
    pid.filter(|pid| *pid != 0).ok_or(PeerError::Elsewhere)
}

/// The PID that a descriptor means.
///
/// Source: `Documentation/filesystems/proc.rst`, section 3.8: -1 once it has ended, and 0 where it has none that we see.
fn pid_of(held: &OwnedFd) -> Result<u32, PeerError> {
    let info =
        fs::read_to_string(format!("/proc/self/fdinfo/{}", held.as_raw_fd())).map_err(PeerError::Unknown)?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    match pid.and_then(|pid| pid.trim().parse::<i64>().ok()) {
        Some(0) => Err(PeerError::Elsewhere),
        Some(pid) => u32::try_from(pid).map_err(|_| PeerError::Ended),
        None => Err(PeerError::Ended),
    }
}

#[cfg(test)]
impl SocketPeer {
    /// One that nobody looks at.
    pub(super) fn scripted(pid: u32, uid: u32) -> Self {
        let held = Held::Scripted;
        Self { pid, uid, held }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_listen_are_known() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = SocketPeer::of(&ours).unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, nix::unistd::getuid().as_raw());
        assert!(peer.is_alive());
        let begin = Stat::read(peer.pid).unwrap().starttime;
        for (begin, is_alive) in [(begin, true), (begin + 1, false)] {
            let held = Held::Since(begin);
            assert_eq!(
                SocketPeer {
                    held,
                    pid: peer.pid,
                    uid: peer.uid
                }
                .is_alive(),
                is_alive
            );
        }
        let ourselves = SocketPeer::process(std::process::id()).unwrap();
        assert_eq!(ourselves.uid, peer.uid);
        assert!(peer.is_still(&ourselves) && !SocketPeer::process(1).unwrap().is_still(&ourselves));
    }
}
