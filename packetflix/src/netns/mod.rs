//! A network namespace: found once, held as an open descriptor, entered by short-lived threads only.

mod arrivals;
mod counters;
mod dump;
mod exhaustion;
mod find;
mod hands;
mod holder;
mod links;
mod mount_reader;
mod netlink;
mod open;
mod process;
mod views;

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::stat::fstat,
    time::{ClockId, clock_gettime},
};

pub(crate) use arrivals::{ArrivalNews, Arrivals};
pub(crate) use counters::{Counters, CountersOf, LinkCounters, counters_of};
pub use find::FindError;
pub(crate) use find::RootOf;
pub(crate) use holder::Holder;
#[cfg(test)]
pub(crate) use links::LinkAddress;
pub(crate) use links::{Link, LinkSockets, LinkWatch, Links, Look};
pub use mount_reader::read_mounts_if_asked;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use open::fuzzing;
pub(crate) use open::{HeldOpen, Holders, Namespaces, OpenNetns, open_for, serve_holders};
use process::OpenNamespace;
pub(crate) use process::has_ended;
pub use process::{ProcessError, ProcessIdentity};
pub(crate) use views::{MountLists, Unseen, Users, View};

use crate::{
    error::{chain, is_exhaustion},
    lookout::{Kind, Lookout, Owner, Place},
    sys,
};

/// An open network namespace.
///
/// The descriptor keeps the namespace alive, so whether it has ended for everyone else is asked through
/// [`Self::is_held`].
#[derive(Debug)]
pub struct Netns {
    descriptor: OwnedFd,
    inode: u64,
    /// The process that was meant, if one was.
    process: Option<OwnedFd>,
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
            process: None,
            holder: Mutex::new(holder),
        })
    }

    /// Opens the namespace of this number, if one of these has it still. Blocks, for a bounded time.
    pub(crate) fn held_by(holders: Vec<Holder>, inode: u64) -> Option<Self> {
        let opened = |holder: Holder| Some((holder.open(inode).ok()?.ok()?, holder));
        let (descriptor, holder) = holders.into_iter().find_map(opened)?;
        Some(Self {
            descriptor,
            inode,
            process: None,
            holder: Mutex::new(holder),
        })
    }

    /// Opens the namespace of a process, if that is the process that was meant, and is where it was meant to be.
    ///
    /// # Errors
    /// When it is not, or we may not look at it.
    pub fn of_process(identity: &ProcessIdentity) -> Result<Self, ProcessError> {
        let OpenNamespace {
            inode,
            namespace,
            process,
        } = identity.open_namespace(|_| ())?;
        let holder = Holder::Process { pid: identity.pid };
        Ok(Self {
            descriptor: namespace,
            inode,
            process,
            holder: Mutex::new(holder),
        })
    }

    fn opened(descriptor: OwnedFd, inode: u64, holder: Holder) -> Self {
        Self {
            descriptor,
            inode,
            process: None,
            holder: Mutex::new(holder),
        }
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
            Self::of_thread()
        };
        thread::scope(|scope| {
            let maker = thread::Builder::new().spawn_scoped(scope, make);
            maker
                .map_err(EnterError::Thread)?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(EnterError::Unshare)
        })
    }

    /// The one that the calling thread is in.
    ///
    /// # Errors
    /// When `/proc` does not show it.
    pub(crate) fn own() -> Result<Self, EnterError> {
        Self::of_thread().map_err(EnterError::Setns)
    }

    fn of_thread() -> io::Result<Self> {
        let descriptor = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        let holder = Holder::Process {
            pid: std::process::id(),
        };
        Ok(Self {
            inode: fstat(&descriptor)?.st_ino,
            descriptor,
            process: None,
            holder: Mutex::new(holder),
        })
    }

    /// The namespace's number.
    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// Name and kind of who holds the namespace, as GhostWire would list it.
    pub(crate) fn name_and_type(&self) -> (String, &'static str) {
        self.holder().name_and_type()
    }

    /// Who is known to hold it. Whoever looks for another does that without keeping this locked.
    fn holder(&self) -> Holder {
        let holder = self.holder.lock();
        holder.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the process or thread through which the namespace was found still holds it. One look into `/proc`; a
    /// mount may lie behind a file system that does not answer.
    pub(crate) fn is_held_by_process(&self) -> bool {
        let holder = self.holder();
        !matches!(holder, Holder::Mount { .. }) && holder.holds(self.inode) == Some(true)
    }

    /// Whether a process, a thread or a bind mount other than our descriptor still holds the namespace, or may do so.
    /// Blocks, for a bounded time; costs one look while the holder that is known remains, and a whole search when it is
    /// gone.
    pub(crate) fn is_held(&self) -> bool {
        if self.holder().holds(self.inode) == Some(true) {
            return true;
        }
        match find::find(self.inode) {
            Ok((next, _)) => {
                *self.holder.lock().unwrap_or_else(PoisonError::into_inner) = next;
                true
            }
            Err(FindError::Denied { .. } | FindError::Exhausted { .. } | FindError::Incomplete { .. }) => {
                true
            }
            Err(FindError::NotFound { .. }) => false,
            // It is here that is looked.
            Err(FindError::Broken(_)) => true,
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

/// The links of many namespaces.
#[derive(Debug, Default)]
pub(crate) struct LinksOf {
    /// By the number of the namespace, of each that is still held.
    pub(crate) visited: HashMap<u64, Visited>,
    /// Of which namespaces they are not known, or not all, and why.
    pub(crate) unseen: Vec<(Place, String)>,
}

/// What a visit to a namespace has found.
#[derive(Debug, Default)]
pub(crate) struct Visited {
    /// None where they could not be listed.
    pub(crate) links: Vec<Link>,
    /// Whether it belongs to root, and nobody else may give it addresses.
    pub(crate) is_roots: bool,
}

/// What became of a visit to a namespace.
enum Visit {
    /// Who was to lead there holds it no more.
    Gone,
    Listed {
        links: dump::Links,
        is_roots: bool,
    },
    Failed(io::Error),
}

/// The links of many namespaces, by their numbers: of each that one of its `holders` still holds. Blocks, for a bounded time.
///
/// # Errors
/// When no namespace may be entered.
pub(crate) fn links_of(holders: &HashMap<u64, Vec<Holder>>) -> Result<LinksOf, EnterError> {
    let mut users = Users::default();
    // On threads of its own, since they end in other namespaces than they began in.
    let mut lookout = Lookout::new(|(inode, holder, owner)| {
        let began = cpu_time();
        (visit(inode, &holder, owner), cpu_time().saturating_sub(began))
    });
    let mut spent = dump::Spent::default();
    let mut all = LinksOf::default();
    // One that cannot be entered says nothing of the others.
    let mut not_entered = None;
    for (&inode, holders) in holders {
        let visits = holders.iter().map(|holder| {
            let place = holder.place_of_links(inode, &mut users);
            if !spent.has_left(place.owner) {
                let why = "others in the same hands are too many, or took too long";
                return (place.owner, Ok(Ok(Visit::Failed(io::Error::other(why)))));
            }
            let looked = lookout.look(place, (inode, holder.clone(), place.owner));
            let looked = looked.map(|(visited, time)| {
                let bytes = match &visited {
                    Ok(Visit::Listed { links, .. }) => links.bytes,
                    _ => 0,
                };
                spent.add(place.owner, dump::Cost { time, bytes });
                visited
            });
            (place.owner, looked)
        });
        // One may have left meanwhile, and others not.
        let Some((owner, looked)) = visits
            .into_iter()
            .find(|(_, looked)| !matches!(looked, Ok(Ok(Visit::Gone))))
        else {
            continue;
        };
        let (visited, unseen) = match looked {
            Ok(Err(error)) => {
                let unseen = (Visited::default(), Some(chain(&error)));
                not_entered.get_or_insert(error);
                unseen
            }
            Ok(Ok(visited)) => match visited {
                Visit::Gone => continue,
                Visit::Listed {
                    links: dump::Links { links, is_cut, .. },
                    is_roots,
                } => {
                    let unseen = is_cut.then(|| "there are more than are taken".to_owned());
                    (Visited { links, is_roots }, unseen)
                }
                Visit::Failed(error) => (Visited::default(), Some(error.to_string())),
            },
            Err(missed) => (Visited::default(), Some(missed.to_string())),
        };
        all.visited.insert(inode, visited);
        let place = Place {
            owner,
            kind: Kind::Interfaces(inode),
        };
        all.unseen.extend(unseen.map(|unseen| (place, unseen)));
    }
    match not_entered {
        Some(error) if all.unseen.len() == all.visited.len() => Err(error),
        _ => Ok(all),
    }
}

/// What the calling thread has taken of the time of CPUs, which others that run have no part in.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Lists the links of one namespace.
fn visit(inode: u64, holder: &Holder, owner: Owner) -> Result<Visit, EnterError> {
    let descriptor = match holder.open_unwatched(inode) {
        Ok(descriptor) => descriptor,
        Err(error) if is_exhaustion(&error) => return Ok(Visit::Failed(error)),
        Err(_) => return Ok(Visit::Gone),
    };
    let is_roots = sys::owner_of_namespace(descriptor.as_fd()).is_ok_and(|user| user == 0);
    setns(descriptor, CloneFlags::CLONE_NEWNET).map_err(|error| EnterError::Setns(error.into()))?;
    Ok(match dump::links_here(dump::Bounds::of(owner)) {
        Ok(links) => Visit::Listed { links, is_roots },
        Err(error) => Visit::Failed(error),
    })
}
