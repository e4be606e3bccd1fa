//! Network namespaces as the host mounts them: engines do so before the first process of a container runs.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    path::{Path, PathBuf},
    process,
    thread::sleep,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor},
        stat::Mode,
        statfs::{NSFS_MAGIC, fstatfs},
    },
};
use tokio::io::unix::AsyncFd;

use super::{
    Netns, RootOf,
    holder::{Holder, network_namespace_inode},
};
use crate::{
    lookout::{Kind, Lookout, Owner, Place},
    proc_fs::{namespace_link, proc_path},
    sys,
};

/// Where engines, CNI plugins and `ip netns` mount network namespaces for the most part, as the host sees it.
const DIRECTORIES: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Most directories that are watched.
const MAX_DIRECTORIES: usize = 32;

/// How long a file may be there before a namespace is mounted on it, and how often it is looked at.
const MOUNT_PATIENCE: Duration = Duration::from_millis(500);
const MOUNT_LOOK: Duration = Duration::from_millis(1);

/// Tells of files that come where the host mounts network namespaces.
#[derive(Debug)]
pub(crate) struct Arrivals {
    inotify: Inotify,
    /// The same, to be waited for.
    ready: AsyncFd<OwnedFd>,
    watched: Vec<(WatchDescriptor, PathBuf)>,
}

/// What there is of arrivals.
#[derive(Debug)]
pub(crate) enum ArrivalNews {
    /// Something may be mounted at this path of the host's soon.
    At(PathBuf),
    /// More came than the kernel keeps in mind: what that was, a look has to find.
    Missed,
}

impl Arrivals {
    /// Watches nothing yet. To be called within a runtime.
    ///
    /// # Errors
    /// When the kernel has no more of what this takes.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self {
            ready: sys::watch(inotify.as_fd().try_clone_to_owned()?)?,
            inotify,
            watched: Vec::new(),
        })
    }

    /// Watches the usual directories and these, as far as they are there. One that has gone and come back is watched anew. May
    /// wait for a while where what they lie on does not answer.
    pub(crate) async fn watch(&mut self, others: BTreeSet<PathBuf>) {
        let usual = DIRECTORIES.map(PathBuf::from);
        let directories = usual.into_iter().chain(others).take(MAX_DIRECTORIES).collect();
        let opening = tokio::task::spawn_blocking(move || open_all(directories));
        let mut watched = Vec::new();
        for (directory, handle) in opening.await.unwrap_or_default() {
            let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
            // One that is watched already has the number that it had.
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
            match self.inotify.add_watch(path.as_str(), flags) {
                Ok(watch) => watched.push((watch, directory)),
                Err(error) => tracing::debug!(directory = %directory.display(), %error, "not watched"),
            }
        }
        self.watched = watched;
    }

    /// Waits for what comes.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<ArrivalNews>> {
        loop {
            let mut ready = self.ready.readable().await?;
            let events = match self.inotify.read_events() {
                Err(Errno::EAGAIN) => {
                    ready.clear_ready();
                    continue;
                }
                events => events?,
            };
            let news = events.into_iter().filter_map(|event| {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    return Some(ArrivalNews::Missed);
                }
                let (_, directory) = self.watched.iter().find(|(watch, _)| *watch == event.wd)?;
                Some(ArrivalNews::At(directory.join(event.name?)))
            });
            return Ok(news.collect());
        }
    }
}

/// Handles of directories of the host's, as far as they are there and answer.
fn open_all(directories: Vec<PathBuf>) -> Vec<(PathBuf, OwnedFd)> {
    let Some((pid, files)) = host() else {
        return Vec::new();
    };
    let mut opening = Lookout::new(move |path: PathBuf| RootOf::process(pid)?.open_path(&path));
    let open = directories.into_iter().filter_map(|directory| {
        let handle = opening.look(files, directory.clone()).ok()?.ok()?;
        Some((directory, handle))
    });
    open.collect()
}

/// A process that sees the host's files, and these as what is to be looked at with care: the first one, or ourselves where that
/// may not be looked at.
fn host() -> Option<(u32, Place)> {
    let seen = [1, process::id()].into_iter().find_map(|pid| {
        let (_, mounts) = namespace_link(&proc_path(pid, "ns/mnt")).ok()?;
        Some((pid, mounts))
    });
    let place = |mounts| Place {
        owner: Owner::Host,
        kind: Kind::Files(mounts),
    };
    seen.map(|(pid, mounts)| (pid, place(mounts)))
}

impl Netns {
    /// Opens the namespace that the host mounts at this path about now. Blocks, for half a second at most.
    ///
    /// # Errors
    /// When none is mounted there in this time.
    pub(crate) fn arriving_at(path: &Path) -> io::Result<Self> {
        let deadline = Instant::now() + MOUNT_PATIENCE;
        let (pid, files) = host().ok_or(io::ErrorKind::NotFound)?;
        loop {
            match open_mount(pid, path) {
                Ok((descriptor, inode)) => {
                    let holder = Holder::Mount {
                        pid,
                        path: path.to_owned(),
                        files,
                    };
                    return Ok(Self::opened(descriptor, inode, holder));
                }
                Err(error) if Instant::now() >= deadline => return Err(error),
                Err(_) => sleep(MOUNT_LOOK),
            }
        }
    }
}

/// Opens what is mounted at a path of the host's, if that is a network namespace. Nothing else is opened for reading.
fn open_mount(pid: u32, path: &Path) -> io::Result<(OwnedFd, u64)> {
    let handle = RootOf::process(pid)?.open_path(path)?;
    if fstatfs(&handle)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::ErrorKind::NotFound.into());
    }
    let handle_path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let descriptor = open(handle_path.as_str(), flags, Mode::empty())?;
    let inode = network_namespace_inode(descriptor.as_fd());
    inode
        .map(|inode| (descriptor, inode))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until a path is told: elsewhere others may come, too.
    async fn told(arrivals: &mut Arrivals, path: &Path) {
        let is_told = |news: &ArrivalNews| matches!(news, ArrivalNews::At(at) if at == path);
        while !arrivals.next().await.unwrap().iter().any(is_told) {}
    }

    #[tokio::test]
    async fn directories_of_the_host_are_watched_and_what_comes_there_is_told() {
        let folder = std::env::temp_dir().join(format!("packetflix-arrivals-{}", process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut arrivals = Arrivals::new().unwrap();
        arrivals
            .watch(BTreeSet::from([folder.clone(), "/nowhere".into()]))
            .await;
        let path = folder.join("s1");
        std::fs::write(&path, []).unwrap();
        told(&mut arrivals, &path).await;
        // Nothing is mounted there, and a file is never opened for what it is not.
        let error = Netns::arriving_at(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        // It is watched still, when it is looked for again.
        arrivals.watch(BTreeSet::from([folder.clone()])).await;
        let path = folder.join("s2");
        std::fs::write(&path, []).unwrap();
        told(&mut arrivals, &path).await;
        std::fs::remove_dir_all(folder).unwrap();
    }
}
