//! Finding a network namespace by its inode number.

use std::{
    cell::Cell,
    collections::HashSet,
    fmt,
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    process,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sched::CloneFlags,
    sys::{
        stat::{Mode, fstat},
        statfs::{NSFS_MAGIC, fstatfs},
    },
};

use crate::{
    capabilities::Capability,
    error::is_exhaustion,
    proc_fs::{namespace_link, namespace_mounts, numbers_in, proc_path},
    sys,
};

/// Who keeps a network namespace in existence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process in it.
    Process { pid: u32 },
    /// A thread that left its process's namespace for it.
    Thread { pid: u32, tid: u32 },
    /// A bind mount, at a path of the mount namespace of process `pid`.
    Mount { pid: u32, path: PathBuf },
}

/// Why a namespace was not found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// There is none with this number.
    #[error("{}", not_found(*inode, *kind))]
    NotFound {
        /// The number that was looked for.
        inode: u64,
        /// Kind of the namespace of ours that has this number.
        kind: Option<&'static str>,
    },
    /// It was not found, but not every process could be looked at, since we lack CAP_SYS_PTRACE.
    #[error(
        "network namespace {inode} was not found, and {processes} processes could not be looked at: \
         the service lacks CAP_SYS_PTRACE"
    )]
    Denied {
        /// The number that was looked for.
        inode: u64,
        /// How many processes could not be looked at.
        processes: usize,
    },
    /// It was not found, but not every place could be looked at, for want of descriptors or memory.
    #[error("network namespace {inode} could not be looked for everywhere")]
    Exhausted {
        /// The number that was looked for.
        inode: u64,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Remembers that something could not be looked at for want of descriptors or memory.
#[derive(Default)]
struct Exhaustion(Cell<Option<Errno>>);

impl Exhaustion {
    /// What a look found. Whatever else fails is gone, or nothing that we may look at.
    fn look<T>(&self, looked: io::Result<T>) -> Option<T> {
        looked
            .inspect_err(|error| {
                if is_exhaustion(error) {
                    self.0.set(error.raw_os_error().map(Errno::from_raw));
                }
            })
            .ok()
    }
}

fn not_found(inode: u64, kind: Option<&str>) -> String {
    match kind {
        Some(kind) => format!("{inode} is no network namespace but a namespace of type {kind}"),
        None => format!("no process, thread or bind mount holds a network namespace {inode}"),
    }
}

/// Finds and opens the namespace.
pub(super) fn find(inode: u64) -> Result<(Holder, OwnedFd), FindError> {
    let mut denied = 0;
    let exhaustion = Exhaustion::default();
    let numbers = exhaustion.look(numbers_in(Path::new("/proc")));
    let pids: Vec<u32> = numbers.into_iter().flatten().collect();
    let candidates = holding_processes(&pids, inode, &mut denied)
        .chain(holding_mounts(&pids, inode, &exhaustion))
        .chain(holding_threads(&pids, inode, &exhaustion));
    for holder in candidates {
        if let Some(descriptor) = exhaustion.look(holder.try_open(inode)) {
            return Ok((holder, descriptor));
        }
    }
    if let Some(errno) = exhaustion.0.take() {
        let source = errno.into();
        return Err(FindError::Exhausted { inode, source });
    }
    let kind = other_kind(inode);
    // Some hosts hide a process from everyone: that is not for us to complain about.
    if denied > 0 && kind.is_none() && !Capability::SysPtrace.is_effective() {
        return Err(FindError::Denied {
            inode,
            processes: denied,
        });
    }
    Err(FindError::NotFound { inode, kind })
}

fn holding_processes(pids: &[u32], inode: u64, denied: &mut usize) -> impl Iterator<Item = Holder> {
    pids.iter()
        .map(|&pid| Holder::Process { pid })
        .filter(move |holder| match holder.namespace() {
            Ok(found) => found == inode,
            Err(error) => {
                *denied += usize::from(error.kind() == io::ErrorKind::PermissionDenied);
                false
            }
        })
}

fn holding_mounts(pids: &[u32], inode: u64, exhaustion: &Exhaustion) -> impl Iterator<Item = Holder> {
    let mut read = mounts_reader();
    look_into_views(pids, move |pid| exhaustion.look(read(pid)))
        .flatten()
        .filter(move |(mounted, _)| *mounted == inode)
        .map(|(_, holder)| holder)
}

/// All network namespaces that are mounted somewhere, as often as they are.
pub(crate) fn mounts(pids: &[u32]) -> impl Iterator<Item = (u64, Holder)> {
    let mut read = mounts_reader();
    look_into_views(pids, move |pid| read(pid).ok()).flatten()
}

/// Reads which network namespaces are mounted where a process sees it.
fn mounts_reader() -> impl FnMut(u32) -> io::Result<Vec<(u64, Holder)>> {
    // With room from the start, two reads do instead of eight.
    let mut mountinfo = Vec::with_capacity(64 << 10);
    move |pid| {
        mountinfo.clear();
        File::open(proc_path(pid, "mountinfo"))?.read_to_end(&mut mountinfo)?;
        let mounts = namespace_mounts(&mountinfo).map(|(inode, path)| (inode, Holder::Mount { pid, path }));
        Ok(mounts.collect())
    }
}

/// Looks into each mount namespace once, through a process in it, and once more for each root that processes
/// have in it: a process sees the mounts below its root only. What fails is left out.
pub(crate) fn look_into_views<T>(
    pids: &[u32],
    mut look: impl FnMut(u32) -> Option<T>,
) -> impl Iterator<Item = T> {
    let mut seen = HashSet::new();
    pids.iter().filter_map(move |&pid| {
        let view = view_of_mounts(pid).ok().filter(|view| !seen.contains(view))?;
        let found = look(pid)?;
        // A process that ends meanwhile leaves the view to the next one that has it.
        seen.insert(view);
        Some(found)
    })
}

/// What decides which mounts a process sees: its mount namespace, and device and inode number of its root.
fn view_of_mounts(pid: u32) -> io::Result<(u64, u64, u64)> {
    let (_, namespace) = namespace_link(&proc_path(pid, "ns/mnt"))?;
    let root = fs::metadata(proc_path(pid, "root"))?;
    Ok((namespace, root.dev(), root.ino()))
}

/// Looks at the threads of every process but ours: ours enter a namespace for a moment, to work on it.
fn holding_threads(pids: &[u32], inode: u64, exhaustion: &Exhaustion) -> impl Iterator<Item = Holder> {
    pids.iter()
        .filter(|&&pid| pid != process::id())
        .flat_map(move |&pid| {
            exhaustion
                .look(numbers_in(&proc_path(pid, "task")))
                .into_iter()
                .flatten()
                .map(move |tid| Holder::Thread { pid, tid })
                .filter(move |holder| holder.namespace().is_ok_and(|found| found == inode))
        })
}

/// Kind of the namespace of this process that has the number.
fn other_kind(inode: u64) -> Option<&'static str> {
    ["cgroup", "ipc", "mnt", "pid", "time", "user", "uts"]
        .into_iter()
        .find(|kind| {
            namespace_link(&Path::new("/proc/self/ns").join(kind)).is_ok_and(|(_, found)| found == inode)
        })
}

impl Holder {
    /// Whether it still holds the namespace, or may hold it: what cannot be looked at for want of descriptors has not
    /// ended.
    pub(super) fn holds(&self, inode: u64) -> bool {
        let looked = match self {
            Self::Process { .. } | Self::Thread { .. } => self.namespace().map(|found| found == inode),
            Self::Mount { .. } => self.try_open(inode).map(|_| true),
        };
        looked.unwrap_or_else(|error| is_exhaustion(&error))
    }

    /// Number of the namespace that the link in `/proc` names.
    fn namespace(&self) -> io::Result<u64> {
        namespace_link(&self.path()).map(|(_, inode)| inode)
    }

    /// Opens the namespace, and checks on the descriptor that it is the one that was meant.
    pub(super) fn open(&self, inode: u64) -> Option<OwnedFd> {
        self.try_open(inode).ok()
    }

    /// The same, telling why it could not be opened.
    fn try_open(&self, inode: u64) -> io::Result<OwnedFd> {
        let descriptor = match self {
            // The link of a process leads to a namespace and nowhere else.
            Self::Process { .. } | Self::Thread { .. } => {
                open(&self.path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?
            }
            Self::Mount { pid, path } => open_mounted(*pid, path)?,
        };
        if is_network_namespace(descriptor.as_fd(), inode) {
            Ok(descriptor)
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Process { pid } => proc_path(*pid, "ns/net"),
            Self::Thread { pid, tid } => proc_path(*pid, &format!("task/{tid}/ns/net")),
            Self::Mount { path, .. } => path.clone(),
        }
    }

    /// Name and type for the stream's comment.
    pub(super) fn name_and_type(&self) -> (String, &'static str) {
        match self {
            Self::Process { .. } | Self::Thread { .. } => (self.to_string(), "proc"),
            Self::Mount { .. } => (self.to_string(), "bindmount"),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid } | Self::Thread { pid, .. } => {
                let name = fs::read_to_string(proc_path(*pid, "comm")).unwrap_or_default();
                write!(f, "{}({pid})", name.trim_end())
            }
            Self::Mount { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// Opens a namespace that is mounted in another mount namespace. Nothing but a namespace is ever opened for
/// reading.
fn open_mounted(pid: u32, path: &Path) -> io::Result<OwnedFd> {
    let handle = RootOf::process(pid)?.open_path(path)?;
    if fstatfs(&handle)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::ErrorKind::NotFound.into());
    }
    let handle_path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(open(
        handle_path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?)
}

/// The root of a process, held to open files as the process sees them.
pub(crate) struct RootOf(OwnedFd);

impl RootOf {
    /// Opens the root of process `pid`.
    ///
    /// # Errors
    /// When the process has ended, or may not be looked at.
    pub(crate) fn process(pid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(open(&proc_path(pid, "root"), flags, Mode::empty())?))
    }

    /// A handle (`O_PATH`) of a file, without trusting what lies there: it may be anything by now, and whoever owns it
    /// may have put a link in the way. No link leads out of the root.
    ///
    /// # Errors
    /// When there is none, or it cannot be reached. Kernel 5.6.
    pub(crate) fn open_path(&self, path: &Path) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(&self.0, path, how)?)
    }
}

fn is_network_namespace(descriptor: BorrowedFd<'_>, inode: u64) -> bool {
    network_namespace_inode(descriptor) == Some(inode)
}

/// Number of the network namespace that is open; `None` when it is something else.
pub(super) fn network_namespace_inode(descriptor: BorrowedFd<'_>) -> Option<u64> {
    let kind = sys::namespace_type(descriptor).ok()?;
    let inode = fstat(descriptor).ok()?.st_ino;
    (kind == CloneFlags::CLONE_NEWNET.bits()).then_some(inode)
}
