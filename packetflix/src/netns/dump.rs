//! The network interfaces of the calling thread's namespace, listed at once and without a runtime.

use std::{
    collections::HashMap,
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
    pub(super) links: usize,
    addresses: usize,
    bytes: usize,
    pub(super) time: Duration,
}

impl Bounds {
    /// Those of a namespace that is in these hands: whoever has root's rights in one can give it any number of either.
    pub(super) const fn of(owner: Owner) -> Self {
        match owner {
            Owner::Host | Owner::Container => Self {
                links: 16 << 10,
                addresses: 64 << 10,
                bytes: 8 << 20,
                time: Duration::from_millis(500),
            },
            Owner::Namespace(_) | Owner::User(_) => Self {
                links: 1 << 10,
                addresses: 1 << 10,
                bytes: 512 << 10,
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
    /// Whether there are more links, addresses or names than are taken.
    pub(super) is_cut: bool,
    /// Bytes that they take.
    pub(super) bytes: usize,
}

/// What the links of all namespaces in the same hands have taken in a round.
#[derive(Debug, Default)]
pub(super) struct Spent(HashMap<Owner, Cost>);

/// Time of a CPU and memory that links take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) time: Duration,
    pub(super) bytes: usize,
}

impl Spent {
    /// Whether what is in these hands may take more.
    pub(super) fn has_left(&self, owner: Owner) -> bool {
        let most = match owner {
            Owner::Host => return true,
            Owner::Container => Cost {
                time: Duration::from_secs(2),
                bytes: 32 << 20,
            },
            Owner::Namespace(_) | Owner::User(_) => Cost {
                time: Duration::from_millis(200),
                bytes: 4 << 20,
            },
        };
        let spent = self.0.get(&owner).copied().unwrap_or_default();
        spent.time < most.time && spent.bytes < most.bytes
    }

    /// Takes account of what one namespace took.
    pub(super) fn add(&mut self, owner: Owner, cost: Cost) {
        let spent = self.0.entry(owner).or_default();
        spent.time += cost.time;
        spent.bytes += cost.bytes;
    }
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
        let (links, addresses, bytes) = listing.size();
        links <= bounds.links && addresses <= bounds.addresses && bytes <= bounds.bytes
    };
    let mut is_cut = false;
    // A list that is left before its end ends with its socket, so that it must be the last.
    for (sequence, kind) in (1..).zip([libc::RTM_GETLINK, libc::RTM_GETADDR]) {
        if !is_cut {
            let dumped = netlink::dump(socket.as_fd(), kind, sequence, &mut listing, deadline, has_room)?;
            is_cut = dumped == Dumped::InPart;
        }
    }
    let (_, _, bytes) = listing.size();
    is_cut |= listing.is_cut;
    Ok(Links {
        links: listing.finish(),
        is_cut,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_namespaces_of_a_user_share_what_one_may_take() {
        let mut spent = Spent::default();
        let (user, other) = (Owner::User(1000), Owner::User(1001));
        let cost = Cost {
            time: Duration::from_millis(1),
            bytes: 512 << 10,
        };
        let mut looked_at = 0;
        while spent.has_left(user) {
            spent.add(user, cost);
            looked_at += 1;
        }
        assert_eq!(looked_at, 8);
        spent.add(
            other,
            Cost {
                time: Duration::from_millis(200),
                bytes: 0,
            },
        );
        assert!(!spent.has_left(other));
        assert!(
            [Owner::User(1002), Owner::Container, Owner::Host]
                .into_iter()
                .all(|one| spent.has_left(one))
        );
    }
}
