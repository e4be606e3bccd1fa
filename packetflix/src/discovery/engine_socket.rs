//! A socket that may be an engine's, held as it was found.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    libc,
    sys::{
        stat::fstat,
        statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC, fstatfs},
    },
};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::UnixStream;

use super::peer::SocketPeer;
use crate::lookout::{Place, look_aside};

/// File systems on which the kernel alone decides who may do what.
const KERNELS_OWN: [FsType; 4] = [TMPFS_MAGIC, EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC];

/// What an engine speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// Docker's HTTP API, that podman speaks too.
    Docker,
    /// The Container Runtime Interface of Kubernetes.
    Cri,
}

/// Where a socket was found, and so whose word is to be had there at the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// At a path that the operator named.
    Named,
    /// At a well-known place of the host's mount namespace, or of our own, or where a process of root's listens there, and the
    /// socket is root's.
    Host,
    /// In the folder of this user, whose socket it is.
    User(u32),
    /// Where processes see it that have other mounts than the host, or where it is not its owner's.
    Elsewhere,
}

/// A socket that may be an engine's.
#[derive(Debug)]
pub(super) struct EngineSocket {
    /// Where it lies, as those see it who have it.
    pub(super) path: PathBuf,
    /// What is spoken there; `None` when that must be tried.
    pub(super) api: Option<Api>,
    /// Where it was found.
    pub(super) origin: Origin,
    /// A process that sees it there.
    pub(super) seen_by: u32,
    /// Device and inode number.
    pub(super) id: (u64, u64),
    /// Where it was found, and in whose hands that is.
    pub(super) place: Place,
    /// The process by which it was found, and which alone may answer there.
    pub(super) found_by: Option<Arc<SocketPeer>>,
    handle: Arc<OwnedFd>,
    /// Whether connecting asks nobody but the kernel.
    is_of_kernel: bool,
}

impl EngineSocket {
    /// Takes a handle (`O_PATH`), if it is a socket's.
    pub(super) fn new(
        path: &Path,
        api: Option<Api>,
        handle: OwnedFd,
        place: Place,
        origin: Origin,
    ) -> io::Result<Self> {
        let stat = fstat(&handle)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
        }
        let is_owners = match origin {
            Origin::Host => stat.st_uid == 0,
            Origin::User(user) => stat.st_uid == user,
            Origin::Named | Origin::Elsewhere => true,
        };
        Ok(Self {
            path: path.to_owned(),
            api,
            origin: if is_owners { origin } else { Origin::Elsewhere },
            seen_by: std::process::id(),
            id: (stat.st_dev, stat.st_ino),
            place,
            found_by: None,
            is_of_kernel: KERNELS_OWN.contains(&fstatfs(&handle)?.filesystem_type()),
            handle: Arc::new(handle),
        })
    }

    /// The same, as this process sees it.
    pub(super) fn seen_by(self, pid: u32) -> Self {
        Self { seen_by: pid, ..self }
    }

    /// The same, found by this process, which alone may answer there.
    pub(super) fn found_by(self, process: Arc<SocketPeer>) -> Self {
        let found_by = Some(process);
        Self { found_by, ..self }
    }

    /// Connects to the very socket that was found.
    ///
    /// # Errors
    /// When nobody listens, or too many wait already, or the file system that it lies on does not answer.
    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        if self.is_of_kernel {
            return connect(&self.handle).and_then(UnixStream::from_std);
        }
        // May be asked for leave, and take as long as it likes.
        let handle = Arc::clone(&self.handle);
        look_aside(self.place, move || connect(&handle))
            .await
            .map_err(|missed| io::Error::new(io::ErrorKind::TimedOut, missed))?
            .and_then(UnixStream::from_std)
    }
}

/// Connects without waiting for a place in the listener's queue.
fn connect(handle: &OwnedFd) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(format!("/proc/self/fd/{}", handle.as_raw_fd()))?)?;
    Ok(OwnedFd::from(socket).into())
}
