//! The network interfaces of the calling thread's namespace, listed at once and without a runtime.

use std::{
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::libc;

use super::{
    links::{Link, Listing},
    netlink::{self, Dumped},
};
use crate::lookout::Owner;

/// What a list may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    links: usize,
    addresses: usize,
    time: Duration,
}

impl Bounds {
    /// Those of a namespace that is in these hands: whoever has root's rights in one can give it any number of either.
    pub(super) const fn of(owner: Owner) -> Self {
        match owner {
            Owner::Host | Owner::Container => Self {
                links: 16 << 10,
                addresses: 64 << 10,
                time: Duration::from_millis(500),
            },
            Owner::Namespace(_) | Owner::User(_) => Self {
                links: 1 << 10,
                addresses: 1 << 10,
                time: Duration::from_millis(100),
            },
        }
    }
}

/// The links of a namespace.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// With their addresses, in the order of their indexes.
    pub(super) links: Vec<Link>,
    /// Whether there are more links or addresses than are taken.
    pub(super) is_cut: bool,
}

/// All links with their addresses; their speed is not asked for.
///
/// # Errors
/// When the kernel does not answer as it should.
pub(super) fn links_here(bounds: Bounds) -> io::Result<Links> {
    let deadline = Instant::now() + bounds.time;
    let socket = netlink::open(false)?;
    let mut listing = Listing::default();
    let has_room = |listing: &Listing| {
        let (links, addresses) = listing.len();
        links <= bounds.links && addresses <= bounds.addresses
    };
    let mut is_cut = false;
    // A list that is left before its end ends with its socket, so that it must be the last.
    for (sequence, kind) in (1..).zip([libc::RTM_GETLINK, libc::RTM_GETADDR]) {
        if !is_cut {
            let dumped = netlink::dump(
                socket.as_fd(),
                kind,
                sequence,
                &mut listing,
                deadline,
                has_room,
            )?;
            is_cut = dumped == Dumped::InPart;
        }
    }
    let links = listing.finish();
    Ok(Links { links, is_cut })
}
