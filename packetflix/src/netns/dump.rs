//! The network interfaces of the calling thread's namespace, listed at once and without a runtime.

use std::io;

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

/// More than the kernel puts into a datagram, which is 32 KiB, or one message that is longer.
const MAX_DATAGRAM_LEN: usize = 64 << 10;

/// All links with their addresses, in the order of their indexes; their speed is not asked for.
///
/// # Errors
/// When the kernel does not answer as it should.
pub(super) fn links_here() -> io::Result<Vec<Link>> {
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut listing = Listing::default();
    dump(
        &socket,
        RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        &mut listing,
    )?;
    // Statistics are most of what the kernel would tell of a link. Kernel 4.4.
    let mut links = LinkMessage::default();
    links.attributes = vec![LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])];
    dump(&socket, RouteNetlinkMessage::GetLink(links), &mut listing)?;
    Ok(listing.finish())
}

/// Asks for all objects of a kind, and takes them in.
fn dump(socket: &Socket, request: RouteNetlinkMessage, listing: &mut Listing) -> io::Result<()> {
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
            return Ok(());
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
