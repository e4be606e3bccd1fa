//! Finds the API sockets of container engines: at well-known places of every mount namespace, so that engines in
//! containers are found too.

use std::{
    collections::HashSet,
    fs, io,
    os::fd::{AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, open},
    libc,
    sys::stat::{Mode, fstat},
};
use tokio::net::UnixStream;

use crate::netns::{RootOf, look_into_views};

/// Most sockets that are asked: a container may have put anything at a well-known place, and each takes memory.
/// Those of the host come first.
const MAX_SOCKETS: usize = 32;

/// Most users whose own engines are looked for.
const MAX_USERS: usize = 256;

/// What an engine speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Api {
    /// Docker's HTTP API, that podman speaks too.
    Docker,
    /// The Container Runtime Interface of Kubernetes.
    Cri,
}

/// Where engines have their sockets.
const WELL_KNOWN: &[(&str, Api)] = &[
    ("/run/docker.sock", Api::Docker),
    ("/var/run/docker.sock", Api::Docker),
    ("/run/podman/podman.sock", Api::Docker),
    ("/run/containerd/containerd.sock", Api::Cri),
    ("/run/k3s/containerd/containerd.sock", Api::Cri),
    ("/run/k0s/containerd.sock", Api::Cri),
    ("/var/snap/microk8s/common/run/containerd.sock", Api::Cri),
    ("/run/crio/crio.sock", Api::Cri),
    ("/run/cri-dockerd.sock", Api::Cri),
];

/// Where the engines of users have theirs, below `/run/user/UID`.
const WELL_KNOWN_OF_USERS: [&str; 2] = ["docker.sock", "podman/podman.sock"];

/// Whether engines of the host have their sockets there.
pub(super) fn is_well_known(path: &Path) -> bool {
    WELL_KNOWN.iter().any(|(place, _)| path == Path::new(place))
}

/// A socket that may be an engine's.
#[derive(Debug)]
pub(super) struct EngineSocket {
    /// Where it lies, as those see it who have it.
    pub(super) path: PathBuf,
    /// What is spoken there; `None` when that must be tried.
    pub(super) api: Option<Api>,
    /// Whether the operator named it.
    pub(super) configured: bool,
    /// Device and inode number.
    pub(super) id: (u64, u64),
    handle: OwnedFd,
}

impl EngineSocket {
    /// Takes a handle (`O_PATH`), if it is a socket's.
    fn new(path: &Path, api: Option<Api>, handle: OwnedFd) -> io::Result<Self> {
        let stat = fstat(&handle)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFSOCK {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no socket"));
        }
        Ok(Self {
            path: path.to_owned(),
            api,
            configured: false,
            id: (stat.st_dev, stat.st_ino),
            handle,
        })
    }

    /// Connects to the very socket that was found.
    ///
    /// # Errors
    /// When nobody listens, or too many wait already.
    pub(super) async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(format!("/proc/self/fd/{}", self.handle.as_raw_fd())).await
    }
}

/// All sockets that there are: first those that the operator named, then those of the host, then those of other
/// mount namespaces. One that appears at several places is one. Gives too what the named ones that cannot be
/// used lack.
pub(super) fn find(pids: &[u32], configured: &[PathBuf]) -> (Vec<EngineSocket>, Vec<(PathBuf, io::Error)>) {
    let mut sockets = Vec::new();
    let mut missing = Vec::new();
    for path in configured {
        match open_configured(path) {
            Ok(socket) => sockets.push(socket),
            Err(error) => missing.push((path.clone(), error)),
        }
    }
    for (view, found) in
        look_into_views(pids, |pid| Some(well_known(&RootOf::process(pid).ok()?))).enumerate()
    {
        sockets.extend(found);
        if view == 0 {
            sockets.extend(pids.first().into_iter().flat_map(|pid| of_users(*pid)));
        }
    }
    let mut seen = HashSet::new();
    sockets.retain(|socket| seen.insert(socket.id));
    if sockets.len() > MAX_SOCKETS {
        tracing::warn!(
            found = sockets.len(),
            asked = MAX_SOCKETS,
            "there are more engines than are asked"
        );
        sockets.truncate(MAX_SOCKETS);
    }
    (sockets, missing)
}

fn open_configured(path: &Path) -> io::Result<EngineSocket> {
    let handle = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
    let socket = EngineSocket::new(path, None, handle)?;
    Ok(EngineSocket {
        configured: true,
        ..socket
    })
}

/// Sockets at well-known places below a root.
fn well_known(root: &RootOf) -> Vec<EngineSocket> {
    let open = |&(path, api): &(&str, Api)| open_below(root, Path::new(path), api);
    WELL_KNOWN.iter().filter_map(open).collect()
}

/// Sockets of the engines that users run for themselves.
fn of_users(pid: u32) -> Vec<EngineSocket> {
    let Ok(root) = RootOf::process(pid) else {
        return Vec::new();
    };
    let Ok(folder) = root.open_path(Path::new("/run/user")) else {
        return Vec::new();
    };
    let Ok(users) = fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd())) else {
        return Vec::new();
    };
    users
        .filter_map(|user| user.ok()?.file_name().into_string().ok())
        .filter(|user| user.parse::<u32>().is_ok())
        .take(MAX_USERS)
        .flat_map(|user| WELL_KNOWN_OF_USERS.map(|socket| Path::new("/run/user").join(&user).join(socket)))
        .filter_map(|path| open_below(&root, &path, Api::Docker))
        .collect()
}

fn open_below(root: &RootOf, path: &Path, api: Api) -> Option<EngineSocket> {
    let handle = root.open_path(path).ok()?;
    EngineSocket::new(path, Some(api), handle).ok()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn named_sockets_are_opened_once_and_nothing_else_is() {
        let folder = std::env::temp_dir().join(format!("packetflix-sockets-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let [socket, link, file, missing] =
            ["socket", "link", "file", "missing"].map(|name| folder.join(name));
        let listener = UnixListener::bind(&socket).unwrap();
        std::os::unix::fs::symlink(&socket, &link).unwrap();
        fs::write(&file, "").unwrap();

        let named = [&socket, &link, &file, &missing].map(Clone::clone);
        let (sockets, unusable) = find(&[], &named);
        assert_eq!(sockets.len(), 1);
        assert!(sockets[0].configured && sockets[0].api.is_none());
        let unusable: Vec<_> = unusable.into_iter().map(|(path, _)| path).collect();
        assert_eq!(unusable, [file, missing]);

        sockets[0].connect().await.unwrap();
        listener.accept().await.unwrap();
        drop(listener);
        assert!(sockets[0].connect().await.is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
