//! Mount namespaces, through the processes in them: what is mounted there, and what lies there.
//!
//! Who owns one can have thousands of mounts with names of thousands of characters, and processes with as many roots: all
//! that is read is bounded, in time and in count, and what was left out is told.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{
    exhaustion::Exhaustion,
    holder::Holder,
    mount_reader::{MountReader, ReadError},
};
use crate::{
    error::{self, note_want},
    lookout::{Kind, Lookout, Missed, Owner, Place, spare},
    proc_fs::{MountBounds, namespace_link, proc_path},
    sys,
};

/// A mount namespace, and the processes in it that are in the same hands.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Its number.
    namespace: u64,
    owner: Owner,
    /// Processes in it, in the order in which they were given.
    pub(crate) pids: Vec<u32>,
}

/// Why not everything is known of a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum Unseen {
    /// It was not looked at.
    #[error(transparent)]
    Missed(#[from] Missed),
    /// It is too long, or there is too much of it.
    #[error("there is more of {0} than is looked at")]
    TooMany(Place),
    /// Something there could not be opened, for want of descriptors or memory, or so it was said.
    #[error("not everything could be opened in {0}")]
    Unopened(Place),
}

impl Unseen {
    /// What is not known of.
    pub(crate) fn place(&self) -> Place {
        match self {
            Self::Missed(missed) => missed.place(),
            Self::TooMany(place) | Self::Unopened(place) => *place,
        }
    }
}

/// The network namespaces that are mounted in one mount namespace.
#[derive(Debug, Default)]
struct Mounts {
    found: Vec<(u64, Holder)>,
    is_cut: bool,
    /// Who read it was ended, or takes too long.
    is_too_costly: bool,
    /// Nothing more of it is read.
    is_over: bool,
    exhaustion: Exhaustion,
}

/// Most roots of processes that are looked into in one mount namespace: a process sees the mounts below its root only.
const fn max_roots(owner: Owner) -> usize {
    match owner {
        Owner::Host | Owner::Container => 256,
        Owner::Namespace(_) | Owner::User(_) => 16,
    }
}

/// What the lists of mounts of one mount namespace may take.
fn bounds(owner: Owner) -> MountBounds {
    let (time, bytes, namespaces, paths) = match owner {
        // Half of what a look may take, so that what was found until then is told.
        Owner::Host | Owner::Container => (Duration::from_millis(500), 64 << 20, 16 << 10, 4 << 20),
        Owner::Namespace(_) | Owner::User(_) => (Duration::from_millis(200), 16 << 20, 1 << 10, 256 << 10),
    };
    MountBounds {
        deadline: Instant::now() + time,
        bytes,
        namespaces,
        paths,
    }
}

impl View {
    /// All mount namespaces that these processes are in: the host's first, those of ordinary containers, then others; among
    /// these, the order is that of the processes.
    pub(crate) fn all(pids: &[u32]) -> Vec<Self> {
        let mut users = Users::default();
        let mut places = HashMap::new();
        let mut views: Vec<Self> = Vec::new();
        let hosts = ["/proc/1/ns/mnt", "/proc/self/ns/mnt"];
        let hosts = hosts.map(|link| {
            namespace_link(Path::new(link))
                .ok()
                .map(|(_, namespace)| namespace)
        });
        for &pid in pids {
            let Ok((_, namespace)) = namespace_link(&proc_path(pid, "ns/mnt")) else {
                continue;
            };
            let owner = match users.owner_of(pid) {
                Owner::Host if !hosts.contains(&Some(namespace)) => Owner::Container,
                owner => owner,
            };
            let index = *places.entry((namespace, owner)).or_insert_with(|| {
                views.push(Self {
                    namespace,
                    owner,
                    pids: Vec::new(),
                });
                views.len() - 1
            });
            views[index].pids.push(pid);
        }
        // Of the rest, no one comes before another for having the lower number.
        views.sort_by_key(|view| match view.owner {
            Owner::Host => 0,
            Owner::Container => 1,
            Owner::Namespace(_) | Owner::User(_) => 2,
        });
        views
    }

    /// What of it is to be looked at.
    pub(crate) fn place(&self, kind: fn(u64) -> Kind) -> Place {
        Place {
            owner: self.owner,
            kind: kind(self.namespace),
        }
    }

    /// Does something through one process of each root that processes have in it, until that says to stop. Gives `false`
    /// when there are more roots than are looked into.
    pub(crate) fn for_each_root(&self, mut look: impl FnMut(u32) -> io::Result<()>) -> bool {
        let mut seen = HashSet::new();
        for &pid in &self.pids {
            let Ok(root) = fs::metadata(proc_path(pid, "root")).map(|root| (root.dev(), root.ino())) else {
                continue;
            };
            if seen.contains(&root) {
                continue;
            }
            if seen.len() == max_roots(self.owner) {
                return false;
            }
            // A process that ends meanwhile leaves the root to the next one that has it.
            if look(pid).is_ok() {
                seen.insert(root);
            }
        }
        true
    }

    /// The network namespaces that are mounted in it, as another process reads them. Must not be called where nobody watches
    /// over it.
    fn mounts(&self, reader: &mut Option<MountReader>) -> Mounts {
        let mut bounds = bounds(self.owner);
        let files = self.place(Kind::Files);
        let mut mounts = Mounts::default();
        let saw_all = self.for_each_root(|pid| {
            if mounts.is_over {
                return Ok(());
            }
            let opened = File::open(proc_path(pid, "mountinfo")).inspect_err(note_want);
            let list = mounts.exhaustion.pass_on(opened)?;
            let (found, is_cut) = match MountReader::read(reader, list, bounds) {
                Ok(read) => read,
                // Another process that has the same root may still be there.
                Err(ReadError::List(error)) => return mounts.exhaustion.pass_on(Err(error)),
                Err(ReadError::Start(error)) => {
                    note_want(&error);
                    (mounts.is_cut, mounts.is_over) = (true, true);
                    return mounts.exhaustion.pass_on(Err(error));
                }
                Err(error @ ReadError::Ended(_)) => {
                    tracing::debug!(error = %error::chain(&error), pid, "a list of mounts is not read");
                    (mounts.is_too_costly, mounts.is_over) = (true, true);
                    return Ok(());
                }
            };
            mounts.is_cut |= is_cut;
            let paths = found.iter().map(|(_, path)| path.as_os_str().len()).sum();
            bounds.paths = bounds.paths.saturating_sub(paths);
            bounds.namespaces = bounds.namespaces.saturating_sub(found.len());
            let holder = |(inode, path)| (inode, Holder::Mount { pid, path, files });
            mounts.found.extend(found.into_iter().map(holder));
            Ok(())
        });
        mounts.is_cut |= !saw_all;
        mounts
    }
}

/// Finds out in whose hands processes are.
#[derive(Debug, Default)]
pub(crate) struct Users(HashMap<u64, Owner>);

impl Users {
    /// Those of a process; of one that cannot be looked at, those of nobody in particular.
    pub(crate) fn owner_of(&mut self, pid: u32) -> Owner {
        let nobody = Owner::User(u32::MAX);
        let Ok((_, namespace)) = namespace_link(&proc_path(pid, "ns/user")) else {
            return nobody;
        };
        *self
            .0
            .entry(namespace)
            .or_insert_with(|| match sys::user_beside_us(pid) {
                Ok(None) => Owner::Host,
                // Root's own doing: each stands for itself.
                Ok(Some((0, outermost))) => Owner::Namespace(outermost),
                Ok(Some((uid, _))) => Owner::User(uid),
                Err(_) => nobody,
            })
    }
}

/// Looks through the lists of mounts of all mount namespaces, one after the other.
pub(crate) struct MountLists {
    views: std::vec::IntoIter<View>,
    lookout: Lookout<View, Mounts>,
    /// What was not looked at so far.
    pub(crate) unseen: Vec<Unseen>,
    pub(super) exhaustion: Exhaustion,
}

impl MountLists {
    pub(crate) fn new(views: Vec<View>) -> Self {
        let readers = Mutex::new(None);
        Self {
            views: views.into_iter(),
            lookout: Lookout::new(move |view: View| {
                // Whoever comes after a look that is lost has another.
                let reader = || readers.lock().unwrap_or_else(PoisonError::into_inner);
                let mut own = reader().take();
                let mounts = view.mounts(&mut own);
                *reader() = own;
                mounts
            }),
            unseen: Vec::new(),
            exhaustion: Exhaustion::default(),
        }
    }
}

impl Iterator for MountLists {
    /// Network namespaces, as often as they are mounted there.
    type Item = Vec<(u64, Holder)>;

    fn next(&mut self) -> Option<Self::Item> {
        let view = self.views.next()?;
        let place = view.place(Kind::Mounts);
        match self.lookout.look(place, view) {
            Ok(mounts) => {
                if mounts.is_too_costly {
                    self.unseen.push(spare(place).into());
                }
                if mounts.is_cut {
                    self.unseen.push(Unseen::TooMany(place));
                }
                self.exhaustion.take_in(&mounts.exhaustion);
                Some(mounts.found)
            }
            Err(missed) => {
                self.unseen.push(missed.into());
                Some(Vec::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_mounts_are_the_hosts() {
        let own = std::process::id();
        let views = View::all(&[own, own]);
        assert_eq!(views.len(), 1);
        assert_eq!(views[0].pids, [own, own]);
        assert_eq!(views[0].owner, Owner::Host);
        let mut roots = Vec::new();
        assert!(views[0].for_each_root(|pid| {
            roots.push(pid);
            Ok(())
        }));
        assert_eq!(roots, [own]);
    }
}
