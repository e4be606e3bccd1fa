//! Network namespaces as who serves clients has them: opened, and held, by the process that has the rights.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use serde::{Deserialize, Serialize};
use tokio::task::block_in_place;

use super::{FindError, Holder, Netns, ProcessError, ProcessIdentity};
use crate::{
    channel::{self, Broken, Control, Errno, Kind, Line, Served},
    proc_fs::namespace_link,
};

/// How a namespace is meant.
#[derive(Debug, Serialize, Deserialize)]
enum Meant {
    /// By its number, wherever it is: `Result<Opened, FindError>`.
    Number(u64),
    /// As that of a process: `Result<Opened, ProcessError>`.
    Process(ProcessIdentity),
    /// By its number, if one that the last look for targets found there holds it still, or of these a mount of the host's:
    /// `Option<Opened>`.
    Held { inode: u64, only_mounts_of_host: bool },
    /// As the host is mounting it: `Result<Opened, Errno>`.
    Arriving(#[serde(with = "channel::path")] PathBuf),
    /// One that nobody else has: `Result<Opened, Errno>`. Its descriptor comes with it. Only for the process that has the rights itself.
    Fresh,
}

/// A namespace that is open.
#[derive(Debug, Serialize, Deserialize)]
struct Opened {
    /// By which it is asked who holds it.
    id: u64,
    inode: u64,
    /// Name and kind of who holds it.
    name: String,
    is_mount: bool,
}

/// Opens namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces(Arc<Control>);

/// An open network namespace. It is held open until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenNetns {
    control: Arc<Control>,
    line: Arc<Line>,
    opened: Opened,
    /// The process that was meant, if one was.
    process: Option<OwnedFd>,
}

impl Namespaces {
    pub(crate) fn new(control: &Arc<Control>) -> Self {
        Self(Arc::clone(control))
    }

    /// Finds a namespace as [`Netns::find`] does.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn find(&self, inode: u64) -> Result<OpenNetns, FindError> {
        let (opened, descriptors, line) = self.ask::<Result<Opened, FindError>>(&Meant::Number(inode))?;
        Ok(self.opened(opened?, descriptors, line))
    }

    /// Opens that of a process as [`Netns::of_process`] does.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn of_process(&self, identity: &ProcessIdentity) -> Result<OpenNetns, ProcessError> {
        let (opened, descriptors, line) =
            self.ask::<Result<Opened, ProcessError>>(&Meant::Process(*identity))?;
        Ok(self.opened(opened?, descriptors, line))
    }

    /// Opens the namespace of this number, if one has it still whom the last look for targets found there: a mount of the host's,
    /// if `only_mounts_of_host`. Blocks, for a bounded time.
    pub(crate) fn held(&self, inode: u64, only_mounts_of_host: bool) -> Option<OpenNetns> {
        let meant = Meant::Held {
            inode,
            only_mounts_of_host,
        };
        let (opened, descriptors, line) = self.ask::<Option<Opened>>(&meant).ok()?;
        Some(self.opened(opened?, descriptors, line))
    }

    /// Opens the one that the host mounts at a path about now, as [`Netns::arriving_at`] does.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn arriving_at(&self, path: &Path) -> io::Result<OpenNetns> {
        self.or_errno(&Meant::Arriving(path.to_owned()))
    }

    /// Makes one that nobody else has, as [`Netns::fresh`] does; and gives its descriptor.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn fresh(&self) -> io::Result<(OpenNetns, OwnedFd)> {
        let mut fresh = self.or_errno(&Meant::Fresh)?;
        let namespace = fresh.process.take().ok_or(io::ErrorKind::InvalidData)?;
        Ok((fresh, namespace))
    }

    /// The number of the namespace that a process is in.
    ///
    /// # Errors
    /// When there is no such process, or we may not look at it.
    pub(crate) fn of_pid(&self, pid: u64) -> io::Result<u64> {
        let inode: Result<u64, Errno> = self.0.ask(Kind::Holders, &HoldersQuestion::Of { pid })?;
        Ok(inode?)
    }

    fn or_errno(&self, meant: &Meant) -> io::Result<OpenNetns> {
        let (opened, descriptors, line) = self.ask::<Result<Opened, Errno>>(meant)?;
        Ok(self.opened(opened?, descriptors, line))
    }

    fn ask<A: serde::de::DeserializeOwned>(&self, meant: &Meant) -> Result<(A, Vec<OwnedFd>, Line), Broken> {
        let line = self.0.open(Kind::Namespace)?;
        let (answer, descriptors) = line.ask_for_descriptors(meant)?;
        Ok((answer, descriptors, line))
    }

    fn opened(&self, opened: Opened, descriptors: Vec<OwnedFd>, line: Line) -> OpenNetns {
        OpenNetns {
            control: Arc::clone(&self.0),
            line: Arc::new(line),
            opened,
            process: descriptors.into_iter().next(),
        }
    }
}

impl OpenNetns {
    /// The process that was meant, if one was: readable once it has ended.
    pub(crate) fn take_process(&mut self) -> Option<OwnedFd> {
        self.process.take()
    }

    /// The namespace's number.
    pub(crate) fn inode(&self) -> u64 {
        self.opened.inode
    }

    /// Name and kind of who held the namespace when it was opened, as GhostWire would list it.
    pub(crate) fn name_and_type(&self) -> (String, &'static str) {
        let kind = if self.opened.is_mount { "bindmount" } else { "proc" };
        (self.opened.name.clone(), kind)
    }

    /// Where is asked what is captured there.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }

    /// Whether somebody else holds the namespace, or may do so, as [`Netns::is_held`] tells.
    pub(crate) fn is_held(&self) -> bool {
        let question = HoldersQuestion::IsHeld(self.opened.id);
        self.control.ask(Kind::Holders, &question).unwrap_or(true)
    }
}

/// What is asked of who holds namespaces.
#[derive(Debug, Serialize, Deserialize)]
enum HoldersQuestion {
    /// `bool`: whether somebody else holds one that is open, or may do so, by the number that it was given.
    IsHeld(u64),
    /// `Result<u64, Errno>`: the number of the namespace that a process is in.
    Of { pid: u64 },
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use super::*;
    use crate::channel::fuzzing::message;

    /// What a front asks that may have been taken over.
    pub(crate) fn asked(data: &[u8]) {
        let _ = message::<Meant>(data);
        let _ = message::<HoldersQuestion>(data);
    }
}

/// Namespaces that are open, and who holds which by the last look for targets.
#[derive(Debug, Default)]
pub(crate) struct Holders {
    open: Mutex<HashMap<u64, Weak<Netns>>>,
    next: AtomicU64,
    /// By the number of the namespace.
    known: Mutex<HashMap<u64, Vec<Holder>>>,
}

/// A namespace that is open, until this is dropped.
pub(crate) struct HeldOpen {
    pub(crate) netns: Arc<Netns>,
    id: u64,
    holders: Arc<Holders>,
}

impl Drop for HeldOpen {
    fn drop(&mut self) {
        self.holders.open().remove(&self.id);
    }
}

impl Holders {
    /// Remembers who holds which.
    pub(crate) fn set(&self, known: HashMap<u64, Vec<Holder>>) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// Who holds which.
    pub(crate) fn known(&self) -> HashMap<u64, Vec<Holder>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn known_of(&self, inode: u64) -> Vec<Holder> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&inode).cloned().unwrap_or_default()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<u64, Weak<Netns>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hold(self: &Arc<Self>, netns: Netns) -> HeldOpen {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let netns = Arc::new(netns);
        self.open().insert(id, Arc::downgrade(&netns));
        HeldOpen {
            netns,
            id,
            holders: Arc::clone(self),
        }
    }
}

impl HeldOpen {
    fn told(&self) -> Opened {
        let (name, kind) = self.netns.name_and_type();
        Opened {
            id: self.id,
            inode: self.netns.inode(),
            name,
            is_mount: kind == "bindmount",
        }
    }
}

/// Opens the namespace that is asked for first, if it can be had.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn open_for(
    line: &mut Served,
    holders: &Arc<Holders>,
    is_within: bool,
) -> io::Result<Option<HeldOpen>> {
    let Some(meant) = line.next::<Meant>().await? else {
        return Ok(None);
    };
    let hold = |netns| holders.hold(netns);
    match meant {
        Meant::Number(inode) => {
            let opened = block_in_place(|| Netns::find(inode)).map(hold);
            say(line, opened.as_ref().map(HeldOpen::told), &opened).await?;
            Ok(opened.ok())
        }
        Meant::Process(identity) => {
            let opened = block_in_place(|| Netns::of_process(&identity)).map(hold);
            say(line, opened.as_ref().map(HeldOpen::told), &opened).await?;
            Ok(opened.ok())
        }
        Meant::Held {
            inode,
            only_mounts_of_host,
        } => {
            let mut known = holders.known_of(inode);
            known.retain(|holder| !only_mounts_of_host || holder.is_mount_of_host());
            let opened = block_in_place(|| Netns::held_by(known, inode)).map(hold);
            line.say(&opened.as_ref().map(HeldOpen::told)).await?;
            Ok(opened)
        }
        Meant::Arriving(path) => {
            let opened = block_in_place(|| Netns::arriving_at(&path)).map(hold);
            say(line, opened.as_ref().map(HeldOpen::told).map_err(errno), &opened).await?;
            Ok(opened.ok())
        }
        Meant::Fresh => {
            let made = match is_within {
                true => block_in_place(Netns::fresh).map_err(io::Error::other),
                false => Err(io::ErrorKind::PermissionDenied.into()),
            };
            let made = made.map(hold);
            let told = made.as_ref().map(HeldOpen::told).map_err(errno);
            let namespace: Vec<_> = made.iter().map(|made| made.netns.descriptor.as_fd()).collect();
            line.say_with(&told, &namespace).await?;
            Ok(made.ok())
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => io::Error::new(error.kind(), error.to_string()),
    }
    .into()
}

/// Tells what became of opening a namespace, with the process that was meant, if one was.
async fn say<E: Serialize, F>(
    line: &mut Served,
    told: Result<Opened, E>,
    opened: &Result<HeldOpen, F>,
) -> io::Result<()> {
    let process = opened
        .as_ref()
        .ok()
        .and_then(|opened| opened.netns.process.as_ref());
    let descriptors: Vec<_> = process.map(|process| process.as_fd()).into_iter().collect();
    line.say_with(&told, &descriptors).await
}

/// Tells who holds namespaces.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn serve_holders(mut line: Served, holders: Arc<Holders>) -> io::Result<()> {
    while let Some(question) = line.next::<HoldersQuestion>().await? {
        match question {
            HoldersQuestion::IsHeld(id) => {
                let netns = holders.open().get(&id).and_then(Weak::upgrade);
                let is_held = netns.is_some_and(|netns| block_in_place(|| netns.is_held()));
                line.say(&is_held).await?;
            }
            HoldersQuestion::Of { pid } => {
                let link = namespace_link(Path::new(&format!("/proc/{pid}/ns/net")));
                let inode = link.map(|(_, inode)| inode).map_err(Errno::from);
                line.say(&inode).await?;
            }
        }
    }
    Ok(())
}
