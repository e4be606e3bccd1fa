//! TCX links, which outlive their captures for a moment.
//!
//! To attach and to detach, the kernel waits for a grace period, with the lock of all network configuration held. To put
//! another program into a link it waits for nothing. So when a capture ends, its links get a program that does nothing, and are
//! kept for two seconds for the next one.
//!
//! Which interface a kept link is attached to is asked of the kernel, in the namespace and for the interface that is to be
//! captured. A number that we had noted could have passed to another interface, and the interface to another namespace.

use std::{
    collections::{BTreeSet, VecDeque},
    io, mem,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use nix::errno::Errno;

use crate::sys::bpf::{self, TcxSide};

/// For how long a link is kept.
const KEPT: Duration = Duration::from_secs(2);

/// Most links that are kept: those of 128 interfaces.
const MAX_KEPT: usize = 256;

/// The TCX links of this service.
#[derive(Default)]
pub(super) struct TcxLinks {
    ours: Arc<Numbers>,
    /// Those of captures that have ended, the longest first.
    kept: Mutex<VecDeque<KeptLink>>,
}

/// What keeps a program attached to one side of an interface. To drop it is to detach.
pub(super) struct TcxLink {
    descriptor: OwnedFd,
    number: u32,
    ours: Arc<Numbers>,
}

struct KeptLink {
    link: TcxLink,
    since: Instant,
}

/// By which the kernel knows links.
#[derive(Default)]
struct Numbers(Mutex<BTreeSet<u32>>);

impl TcxLinks {
    /// Attaches a program at the head of those at a side of an interface in the calling thread's network namespace.
    ///
    /// # Errors
    /// As [`bpf::attach_tcx`].
    pub(super) fn attach(&self, program: BorrowedFd<'_>, ifindex: u32, side: TcxSide) -> io::Result<TcxLink> {
        if let Some(kept) = self.take_kept(ifindex, side)
            && bpf::update_link(kept.as_fd(), program).is_ok()
        {
            return Ok(kept);
        }
        let attached = match bpf::attach_tcx(program, ifindex, side) {
            // What is kept there behind another's program takes room.
            Err(error) if error.raw_os_error() == Some(Errno::ERANGE as i32) => {
                self.let_go_of_those_at(ifindex, side);
                bpf::attach_tcx(program, ifindex, side)
            }
            attached => attached,
        };
        TcxLink::new(attached?, &self.ours)
    }

    /// Has a link run nothing of its capture any more, whoever has copies of its descriptor, and keeps it for the next capture.
    /// The capture's program, which was there until now, may still be running.
    ///
    /// # Errors
    /// When the kernel refuses; the program may still be attached then.
    pub(super) fn keep(&self, link: TcxLink, idle: BorrowedFd<'_>) -> io::Result<()> {
        if bpf::update_link(link.as_fd(), idle).is_err() {
            return link.detach();
        }
        let mut kept = self.kept();
        if kept.len() < MAX_KEPT {
            let since = Instant::now();
            kept.push_back(KeptLink { link, since });
            return Ok(());
        }
        drop(kept);
        link.detach()
    }

    /// Until when the link is kept that goes first.
    pub(super) fn kept_until(&self) -> Option<Instant> {
        self.kept().front().map(|first| first.since + KEPT)
    }

    /// Detaches the one that was kept longest, if that was long enough. Blocks for a grace period.
    pub(super) fn let_go_of_one(&self) {
        let old = self.kept().pop_front_if(|first| first.since.elapsed() >= KEPT);
        if let Some(old) = old {
            old.let_go();
        }
    }

    /// Detaches those at one side of an interface. Blocks for a grace period for each.
    fn let_go_of_those_at(&self, ifindex: u32, side: TcxSide) {
        let chain = bpf::tcx_links(ifindex, side).unwrap_or_default();
        let is_there = |one: &KeptLink| chain.contains(&one.link.number);
        let there = {
            let mut kept = self.kept();
            let (there, elsewhere) = mem::take(&mut *kept).into_iter().partition(is_there);
            *kept = elsewhere;
            there
        };
        there.into_iter().for_each(KeptLink::let_go);
    }

    /// A link that is kept and attached there. Before it there are none but ours: others' programs may end the chain.
    fn take_kept(&self, ifindex: u32, side: TcxSide) -> Option<TcxLink> {
        if self.kept().is_empty() {
            return None;
        }
        let chain = bpf::tcx_links(ifindex, side).ok()?;
        let ours = self.ours.leading(&chain);
        let mut kept = self.kept();
        let place = kept.iter().position(|one| ours.contains(&one.link.number))?;
        kept.remove(place).map(|one| one.link)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<KeptLink>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KeptLink {
    fn let_go(self) {
        if let Err(error) = self.link.detach() {
            tracing::debug!(%error, "a link was detached by closing its descriptor alone");
        }
    }
}

impl TcxLink {
    fn new(descriptor: OwnedFd, ours: &Arc<Numbers>) -> io::Result<Self> {
        let number = bpf::tcx_link_info(descriptor.as_fd())?.id;
        ours.lock().insert(number);
        Ok(Self {
            descriptor,
            number,
            ours: Arc::clone(ours),
        })
    }

    /// Detaches, whoever has copies of the descriptor, and waits until no program of it runs.
    ///
    /// # Errors
    /// When the kernel refuses; it may still be attached then.
    pub(super) fn detach(self) -> io::Result<()> {
        bpf::detach_link(self.as_fd())
    }

    /// Whether the interface is there that it was attached to, in whatever network namespace.
    pub(super) fn is_attached(&self) -> bool {
        bpf::tcx_link_info(self.as_fd()).map(|info| info.ifindex).ok() != Some(0)
    }
}

impl AsFd for TcxLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for TcxLink {
    fn drop(&mut self) {
        self.ours.lock().remove(&self.number);
    }
}

impl Numbers {
    /// Those at the head of a chain, up to the first that is another's.
    fn leading<'a>(&self, chain: &'a [u32]) -> &'a [u32] {
        let ours = self.lock();
        let count = chain.iter().take_while(|number| ours.contains(number)).count();
        &chain[..count]
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_behind_anothers_program_is_not_taken() {
        let ours = Numbers(Mutex::new(BTreeSet::from([3, 5, 8])));
        assert_eq!(ours.leading(&[5, 3, 7, 8]), [5, 3]);
        assert_eq!(ours.leading(&[8, 0, 5]), [8]);
        assert!(ours.leading(&[0, 5]).is_empty() && ours.leading(&[]).is_empty());
    }
}
