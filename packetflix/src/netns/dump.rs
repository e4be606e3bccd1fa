//! The network interfaces of the calling thread's namespace, listed at once and without a runtime.

use std::{
    io,
    time::{Duration, Instant},
};

use nix::libc;
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkExtentMask, LinkMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::links::{Link, Listing};
use crate::lookout::Owner;

/// More than the kernel puts into a datagram, which is 32 KiB, or one message that is longer.
const MAX_DATAGRAM_LEN: usize = 64 << 10;

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
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut listing = Listing::default();
    let has_room = |listing: &Listing| {
        let (links, addresses) = listing.len();
        links <= bounds.links && addresses <= bounds.addresses && Instant::now() < deadline
    };
    // Statistics are most of what the kernel would tell of a link. Kernel 4.4.
    let mut links = LinkMessage::default();
    links.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    // A list that is left before its end ends with its socket, so that it must be the last.
    let mut is_cut = !dump(
        &socket,
        RouteNetlinkMessage::GetLink(links),
        &mut listing,
        has_room,
    )?;
    if !is_cut {
        let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        is_cut = !dump(&socket, addresses, &mut listing, has_room)?;
    }
    let links = listing.finish();
    Ok(Links { links, is_cut })
}

/// Asks for all objects of a kind, and takes them in, as long as there is room; `false` when that was not for all.
fn dump(
    socket: &Socket,
    request: RouteNetlinkMessage,
    listing: &mut Listing,
    has_room: impl Fn(&Listing) -> bool,
) -> io::Result<bool> {
    let mut request = NetlinkMessage::from(request);
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut datagram = Vec::with_capacity(MAX_DATAGRAM_LEN);
    loop {
        datagram.clear();
        // With this flag, the length is the datagram's own even where it did not fit.
        if socket.recv(&mut datagram, libc::MSG_TRUNC)? > MAX_DATAGRAM_LEN {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a datagram is too long",
            ));
        }
        if !take_in(&datagram, listing)? {
            return Ok(true);
        }
        if !has_room(listing) {
            return Ok(false);
        }
    }
}

/// Takes in the messages of a datagram; `false` when they end the list.
fn take_in(mut datagram: &[u8], listing: &mut Listing) -> io::Result<bool> {
    while !datagram.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        match message.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => listing.add_link(&link),
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) => {
                listing.add_address(&address);
            }
            NetlinkPayload::Error(error) => return Err(error.to_io()),
            NetlinkPayload::Done(_) => return Ok(false),
            _ => {}
        }
        // Messages begin at multiples of four; a length of nothing would never end.
        let len = (message.header.length as usize).next_multiple_of(4).max(16);
        datagram = datagram.get(len..).unwrap_or_default();
    }
    Ok(true)
}
