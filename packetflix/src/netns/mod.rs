//! A network namespace: found once, held as an open descriptor, entered by short-lived threads only.

mod dump;
mod find;
mod links;
mod process;

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::IpAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Mutex,
    thread,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::stat::fstat,
};

pub use find::FindError;
pub(crate) use find::{Holder, RootOf, look_into_views, mounts};
#[cfg(test)]
pub(crate) use links::LinkAddress;
pub(crate) use links::{Link, LinkWatch};
pub use process::{ProcessError, ProcessIdentity};

use crate::{proc_fs::namespace_link, sys};

/// An open network namespace.
///
/// The descriptor keeps the namespace alive, so whether it has ended for everyone else is asked through
/// [`Self::is_held`].
#[derive(Debug)]
pub struct Netns {
    descriptor: OwnedFd,
    inode: u64,
    holder: Mutex<Holder>,
}

/// Why a namespace could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// No thread could be started.
    #[error("no thread could be started to enter the network namespace")]
    Thread(#[source] io::Error),
    /// `setns` failed; without CAP_SYS_ADMIN it does with `EPERM`.
    #[error("the network namespace could not be entered (setns)")]
    Setns(#[source] io::Error),
    /// There can be no new one; without CAP_SYS_ADMIN there is not, with `EPERM`.
    #[error("a network namespace could not be made (unshare)")]
    Unshare(#[source] io::Error),
}

impl Netns {
    /// Finds the namespace with the inode number `inode` through processes, bind mounts and threads, in this
    /// order, and opens it. Blocks for as long as reading `/proc` takes.
    ///
    /// # Errors
    /// When there is none, or not all places could be looked at.
    pub fn find(inode: u64) -> Result<Self, FindError> {
        let (holder, descriptor) = find::find(inode)?;
        Ok(Self {
            descriptor,
            inode,
            holder: Mutex::new(holder),
        })
    }

    /// Opens the namespace of a process, if that is the process that was meant, and is where it was meant to be.
    ///
    /// # Errors
    /// When it is not, or we may not look at it.
    pub fn of_process(identity: &ProcessIdentity) -> Result<Self, ProcessError> {
        let (inode, descriptor) = identity.open_namespace(|_| ())?;
        let holder = Holder::Process { pid: identity.pid };
        Ok(Self {
            descriptor,
            inode,
            holder: Mutex::new(holder),
        })
    }

    /// Makes one that nobody else has, and that ends with this. Its loopback device is up if we may set it up.
    ///
    /// # Errors
    /// When the kernel makes none.
    pub(crate) fn fresh() -> Result<Self, EnterError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // Without the right to do so it stays down.
            let _ = sys::set_interface_up(c"lo");
            let descriptor = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
            let inode = fstat(&descriptor)?.st_ino;
            Ok((descriptor, inode))
        };
        let (descriptor, inode) = thread::scope(|scope| {
            let maker = thread::Builder::new().spawn_scoped(scope, make);
            maker
                .map_err(EnterError::Thread)?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(EnterError::Unshare)
        })?;
        let holder = Holder::Process {
            pid: std::process::id(),
        };
        Ok(Self {
            descriptor,
            inode,
            holder: Mutex::new(holder),
        })
    }

    /// The namespace's number.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Name and kind of who holds the namespace, as GhostWire would list it.
    pub(crate) fn name_and_type(&self) -> (String, &'static str) {
        self.holder
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .name_and_type()
    }

    /// Whether the process or thread through which the namespace was found still holds it. One look into `/proc`; a
    /// mount may lie behind a file system that does not answer.
    pub(crate) fn is_held_by_process(&self) -> bool {
        let holder = self
            .holder
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        !matches!(*holder, Holder::Mount { .. }) && holder.holds(self.inode)
    }

    /// Whether a process, a thread or a bind mount other than our descriptor still holds the namespace.
    /// Blocks; costs one look while the holder that is known remains, and a whole search when it is gone.
    pub(crate) fn is_held(&self) -> bool {
        let mut holder = self
            .holder
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if holder.holds(self.inode) {
            return true;
        }
        match find::find(self.inode) {
            Ok((next, _)) => {
                *holder = next;
                true
            }
            Err(FindError::Denied { .. } | FindError::Exhausted { .. }) => true,
            Err(FindError::NotFound { .. }) => false,
        }
    }

    /// Does `work` inside the namespace, on a thread of its own, and waits for it.
    ///
    /// # Errors
    /// When there can be no such thread, or it may not enter.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, EnterError> {
        thread::scope(|scope| {
            let inside = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET)
                        .map_err(|error| EnterError::Setns(error.into()))?;
                    Ok(work())
                })
                .map_err(EnterError::Thread)?;
            inside
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Number of the namespace that this process is in, and its addresses there. Blocks for a moment.
pub(crate) fn own_addresses() -> (Option<u64>, Vec<IpAddr>) {
    let inode = namespace_link(Path::new("/proc/self/ns/net"))
        .ok()
        .map(|(_, inode)| inode);
    let links = dump::links_here().unwrap_or_else(|error| {
        tracing::warn!(%error, "our own addresses are not known");
        Vec::new()
    });
    let addresses = links.iter().flat_map(|link| &link.addresses);
    (inode, addresses.map(|address| address.address).collect())
}

/// The links of many namespaces, by their numbers: of each that `holders` still hold.
///
/// # Errors
/// When no thread can be started, or it may not enter a namespace.
pub(crate) fn links_of(holders: &HashMap<u64, Holder>) -> Result<HashMap<u64, Vec<Link>>, EnterError> {
    // A thread of its own, since it ends in another namespace than it began in.
    thread::scope(|scope| {
        let visitor = thread::Builder::new()
            .name("netns-visitor".to_owned())
            .spawn_scoped(scope, || holders.iter().filter_map(visit).collect())
            .map_err(EnterError::Thread)?;
        visitor
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The links of one namespace; `None` when it is gone, or does not tell.
fn visit((&inode, holder): (&u64, &Holder)) -> Option<Result<(u64, Vec<Link>), EnterError>> {
    let descriptor = holder.open(inode)?;
    if let Err(error) = setns(descriptor, CloneFlags::CLONE_NEWNET) {
        return Some(Err(EnterError::Setns(error.into())));
    }
    match dump::links_here() {
        Ok(links) => Some(Ok((inode, links))),
        Err(error) => {
            tracing::warn!(netns = inode, %error, "the interfaces of a namespace could not be listed");
            None
        }
    }
}
