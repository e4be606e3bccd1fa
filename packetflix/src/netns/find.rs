//! Finding a network namespace by its inode number.

use std::{
    borrow::Cow,
    fmt, io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{
        stat::Mode,
        statfs::{NSFS_MAGIC, fstatfs},
    },
};

use serde::{Deserialize, Serialize};

use super::{
    exhaustion::Exhaustion,
    hands,
    holder::{Holder, network_namespace_inode},
    views::{MountLists, Unseen, View},
};
use crate::{
    capabilities::Capability,
    channel::{Broken, kernel_error},
    error::{is_exhaustion, note_want},
    lookout::{Lookout, Missed},
    proc_fs::{is_ours, namespace_link, numbers_in, proc_path, program_name},
};

/// How long a namespace is looked for among the threads of processes: a user may have many.
const THREADS_PATIENCE: Duration = Duration::from_secs(2);

/// How long a namespace is looked for among what processes have open.
const HANDS_PATIENCE: Duration = Duration::from_secs(2);

/// Most that is said of what could not be looked at.
const MAX_TOLD: usize = 3;

/// Why a namespace was not found.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum FindError {
    /// There is none with this number.
    #[error("{}", not_found(*inode, kind.as_deref()))]
    NotFound {
        /// The number that was looked for.
        inode: u64,
        /// Kind of the namespace of ours that has this number.
        kind: Option<Cow<'static, str>>,
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
    /// It was not found, but not everything that others have was looked at, or to its end.
    #[error(
        "network namespace {inode} was not found, but may be there all the same: {}",
        some_of(unseen)
    )]
    Incomplete {
        /// The number that was looked for.
        inode: u64,
        /// What was not looked at.
        unseen: Vec<String>,
    },
    /// It was not found, but not every place could be looked at, for want of descriptors or memory.
    #[error("network namespace {inode} could not be looked for everywhere")]
    Exhausted {
        /// The number that was looked for.
        inode: u64,
        /// `EMFILE`, `ENFILE` or `ENOMEM`.
        #[source]
        #[serde(with = "kernel_error")]
        source: io::Error,
    },
    /// Nobody is there who could look.
    #[error(transparent)]
    #[serde(skip)]
    Broken(#[from] Broken),
}

/// The beginning of a list of what was not looked at.
fn some_of(unseen: &[String]) -> String {
    let mut told = unseen[..unseen.len().min(MAX_TOLD)].join("; ");
    if unseen.len() > MAX_TOLD {
        told = format!("{told}; and {} more", unseen.len() - MAX_TOLD);
    }
    told
}

fn not_found(inode: u64, kind: Option<&str>) -> String {
    match kind {
        Some(kind) => format!("{inode} is no network namespace but a namespace of type {kind}"),
        None => format!("no process, thread, bind mount or open file holds a network namespace {inode}"),
    }
}

/// Finds and opens the namespace. Blocks, for a bounded time.
pub(super) fn find(inode: u64) -> Result<(Holder, OwnedFd), FindError> {
    let mut denied = 0;
    let exhaustion = Exhaustion::default();
    let mut unseen = Vec::new();
    let numbers = exhaustion.look(numbers_in(Path::new("/proc")));
    let pids: Vec<u32> = numbers.into_iter().flatten().collect();
    for holder in holding_processes(&pids, inode, &mut denied) {
        if let Some(descriptor) = exhaustion.look(holder.open_link(inode)) {
            return Ok((holder, descriptor));
        }
    }
    if let Some(found) = find_mounted(&pids, inode, &exhaustion, &mut unseen) {
        return Ok(found);
    }
    let deadline = Instant::now() + THREADS_PATIENCE;
    for holder in holding_threads(&pids, inode, &exhaustion)
        .take_while(|_| Instant::now() < deadline)
        .flatten()
    {
        if let Some(descriptor) = exhaustion.look(holder.open_link(inode)) {
            return Ok((holder, descriptor));
        }
    }
    if Instant::now() >= deadline {
        unseen.push("there are more threads than are looked at".to_owned());
    }
    match hands::find(&pids, inode, Instant::now() + HANDS_PATIENCE) {
        (Some(found), _) => return Ok(found),
        (None, true) => {}
        (None, false) => unseen.push("processes have more open files than are looked at".to_owned()),
    }
    if let Some(errno) = exhaustion.take() {
        let source = errno.into();
        return Err(FindError::Exhausted { inode, source });
    }
    let kind = other_kind(inode);
    if kind.is_none() && !unseen.is_empty() {
        return Err(FindError::Incomplete { inode, unseen });
    }
    // Some hosts hide a process from everyone: that is not for us to complain about.
    if denied > 0 && kind.is_none() && !Capability::SysPtrace.is_effective() {
        return Err(FindError::Denied {
            inode,
            processes: denied,
        });
    }
    let kind = kind.map(Cow::Borrowed);
    Err(FindError::NotFound { inode, kind })
}

/// Looks for it among what is mounted; adds what could not be looked at to `unseen`.
fn find_mounted(
    pids: &[u32],
    inode: u64,
    exhaustion: &Exhaustion,
    unseen: &mut Vec<String>,
) -> Option<(Holder, OwnedFd)> {
    let mut lists = MountLists::new(View::all(pids));
    let mut opening = Lookout::new(move |(pid, path): (u32, PathBuf)| open_mounted(pid, &path, inode));
    for mounts in lists.by_ref() {
        for (_, holder) in mounts.into_iter().filter(|(mounted, _)| *mounted == inode) {
            let Holder::Mount { pid, path, files } = &holder else {
                continue;
            };
            match opening.look(*files, (*pid, path.clone())) {
                Ok(opened) => {
                    if let Some(descriptor) = exhaustion.look(opened) {
                        return Some((holder, descriptor));
                    }
                }
                Err(missed) => unseen.push(missed.to_string()),
            }
        }
    }
    unseen.extend(lists.unseen.iter().map(Unseen::to_string));
    exhaustion.take_in(&lists.exhaustion);
    None
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

/// Looks at the threads of every process but ours: ours enter a namespace for a moment, to work on it. Gives one for each
/// thread, so that whoever waits can lose patience.
fn holding_threads(
    pids: &[u32],
    inode: u64,
    exhaustion: &Exhaustion,
) -> impl Iterator<Item = Option<Holder>> {
    pids.iter().filter(|&&pid| !is_ours(pid)).flat_map(move |&pid| {
        exhaustion
            .look(numbers_in(&proc_path(pid, "task")))
            .into_iter()
            .flatten()
            .map(move |tid| Holder::Thread { pid, tid })
            .map(move |holder| {
                holder
                    .namespace()
                    .is_ok_and(|found| found == inode)
                    .then_some(holder)
            })
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
    /// Whether it still holds the namespace; `None` where that cannot be told, as for want of descriptors, or because what
    /// it lies behind does not answer.
    pub(super) fn holds(&self, inode: u64) -> Option<bool> {
        let looked = match self {
            Self::Process { .. } | Self::Thread { .. } => self.namespace().map(|found| found == inode),
            Self::Descriptor { pid, fd } => hands::is_open(*pid, *fd, inode),
            Self::Socket { pid, fd, socket } => hands::is_socket(*pid, *fd, *socket),
            Self::Mount { .. } => self.open(inode).ok()?.map(|_| true),
        };
        match looked {
            Ok(holds) => Some(holds),
            Err(error) if is_exhaustion(&error) => None,
            Err(_) => Some(false),
        }
    }

    /// Number of the namespace that the link in `/proc` names.
    fn namespace(&self) -> io::Result<u64> {
        namespace_link(&self.path()).map(|(_, inode)| inode)
    }

    /// Opens the namespace, and checks on the descriptor that it is the one that was meant. Blocks, for a bounded time.
    ///
    /// # Errors
    /// When what it lies behind does not answer.
    pub(super) fn open(&self, inode: u64) -> Result<io::Result<OwnedFd>, Missed> {
        match self {
            Self::Process { .. } | Self::Thread { .. } | Self::Descriptor { .. } | Self::Socket { .. } => {
                Ok(self.open_unwatched(inode))
            }
            Self::Mount { files, .. } => {
                let mut lookout = Lookout::new(move |holder: Self| holder.open_unwatched(inode));
                lookout.look(*files, self.clone())
            }
        }
    }

    /// The same, on a thread that somebody watches over.
    pub(super) fn open_unwatched(&self, inode: u64) -> io::Result<OwnedFd> {
        match self {
            Self::Process { .. } | Self::Thread { .. } => self.open_link(inode),
            Self::Descriptor { .. } => self.open_descriptor(inode),
            Self::Socket { pid, fd, .. } => checked(hands::namespace_of_socket(*pid, *fd)?, inode),
            Self::Mount { pid, path, .. } => open_mounted(*pid, path, inode),
        }
    }

    /// Opens that of a process or thread, whose link leads to a namespace and nowhere else.
    fn open_link(&self, inode: u64) -> io::Result<OwnedFd> {
        let descriptor = open(&self.path(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        checked(descriptor, inode)
    }

    /// Opens what another has open, once that is known to be a namespace: opening anything else may do something.
    fn open_descriptor(&self, inode: u64) -> io::Result<OwnedFd> {
        let handle = open(&self.path(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())?;
        if fstatfs(&handle)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.open_link(inode)
    }

    fn path(&self) -> PathBuf {
        match self {
            Self::Process { pid } => proc_path(*pid, "ns/net"),
            Self::Thread { pid, tid } => proc_path(*pid, &format!("task/{tid}/ns/net")),
            Self::Mount { path, .. } => path.clone(),
            Self::Descriptor { pid, fd } | Self::Socket { pid, fd, .. } => {
                proc_path(*pid, &format!("fd/{fd}"))
            }
        }
    }

    /// Name and type for the stream's comment.
    pub(super) fn name_and_type(&self) -> (String, &'static str) {
        match self {
            Self::Process { .. } | Self::Thread { .. } | Self::Descriptor { .. } | Self::Socket { .. } => {
                (self.to_string(), "proc")
            }
            Self::Mount { .. } => (self.to_string(), "bindmount"),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid }
            | Self::Thread { pid, .. }
            | Self::Descriptor { pid, .. }
            | Self::Socket { pid, .. } => {
                write!(f, "{}({pid})", program_name(*pid))
            }
            Self::Mount { path, .. } => write!(f, "{}", path.display()),
        }
    }
}

/// Opens a namespace that is mounted in another mount namespace, and checks on the descriptor that it is the one that was
/// meant. Nothing but a namespace is ever opened for reading.
fn open_mounted(pid: u32, path: &Path, inode: u64) -> io::Result<OwnedFd> {
    let handle = RootOf::process(pid)?.open_path(path)?;
    if fstatfs(&handle)?.filesystem_type() != NSFS_MAGIC {
        return Err(io::ErrorKind::NotFound.into());
    }
    let handle_path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    checked(open(handle_path.as_str(), flags, Mode::empty())?, inode)
}

fn checked(descriptor: OwnedFd, inode: u64) -> io::Result<OwnedFd> {
    if is_network_namespace(descriptor.as_fd(), inode) {
        Ok(descriptor)
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
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
        let root = open(&proc_path(pid, "root"), flags, Mode::empty()).map_err(io::Error::from);
        Ok(Self(root.inspect_err(note_want)?))
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
