//! What rtnetlink says, taken apart attribute by attribute: names are bytes that anyone with a user namespace may choose,
//! and one that cannot be read takes nothing with it.
//!
//! Source: `linux/netlink.h`, `linux/rtnetlink.h`, `linux/if_link.h`, `linux/if_addr.h`.
//!
//! rtnetlink is spoken directly, since a library that wants text loses the whole list with one such name. Events are only a
//! reason to list again. They come through one socket, and lists through another: where the first is full of events, an answer
//! would be lost with them. All events are read after a list, and the kernel tells that an interface is gone before it lists
//! another with its index: so that one is told from the old.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    time::Instant,
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
    },
};

use super::links::{IFLA_ALT_IFNAME, Listing};

/// More than the kernel puts into a datagram, which is 32 KiB, or as much as its longest message takes: other names of a link
/// take up to 64 KiB, and what else is told of it comes on top.
const MAX_DATAGRAM_LEN: usize = 128 << 10;

/// Length of a message's header, `struct nlmsghdr`.
const HEADER_LEN: usize = 16;

/// Length of `struct ifinfomsg`, and of `struct ifaddrmsg`.
pub(super) const LINK_HEADER_LEN: usize = 16;
pub(super) const ADDRESS_HEADER_LEN: usize = 8;

/// What is asked for of links, and `RTEXT_FILTER_SKIP_STATS`: statistics are most of what the kernel would tell. Kernel 4.4.
const IFLA_EXT_MASK: u16 = 29;
const SKIP_STATISTICS: u32 = 1 << 3;

/// How often a list is asked for that changed while it was told.
const TRIES: usize = 3;

/// A message of rtnetlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    flags: u16,
    sequence: u32,
    /// What follows the header.
    pub(super) body: &'a [u8],
}

/// The messages of a datagram, as far as they are whole.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = number(datagram, 0)? as usize;
        let body = datagram.get(HEADER_LEN..len)?;
        let message = Message {
            kind: half(datagram, 4)?,
            flags: half(datagram, 6)?,
            sequence: number(datagram, 8)?,
            body,
        };
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Types and values of attributes, as far as they are whole.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    /// Bits of the type that say how the value is written.
    const FLAGS: u16 = 0xc000;

    std::iter::from_fn(move || {
        let len = usize::from(half(bytes, 0)?);
        let attribute = (half(bytes, 2)? & !FLAGS, bytes.get(4..len)?);
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The 16 bits at a place, in the machine's order.
pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// The 32 bits at a place, in the machine's order.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Opens a socket of rtnetlink in the calling thread's network namespace, where it stays, and waits for nothing; it hears of
/// what happens to links if `hears_of_links`.
///
/// # Errors
/// When there can be none.
pub(super) fn open(hears_of_links: bool) -> io::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    let groups = if hears_of_links {
        libc::RTMGRP_LINK as u32
    } else {
        0
    };
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
    Ok(socket)
}

/// Receives a datagram into `room`; `None` when there is none.
///
/// # Errors
/// `ENOBUFS` when some were lost, and `EMSGSIZE` when this one was too long; the next may be received.
pub(super) fn receive<'a>(socket: BorrowedFd<'_>, room: &'a mut Vec<u8>) -> io::Result<Option<&'a [u8]>> {
    room.resize(MAX_DATAGRAM_LEN, 0);
    // With this flag, the length is the datagram's own even where it did not fit.
    match recv(socket.as_raw_fd(), room, MsgFlags::MSG_TRUNC) {
        Ok(len) if len > MAX_DATAGRAM_LEN => Err(Errno::EMSGSIZE.into()),
        Ok(len) => Ok(Some(&room[..len])),
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether something that was said is lost, and what comes next is not.
fn is_loss(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EMSGSIZE))
}

/// All links with their addresses, of a socket that hears of nothing: where its buffer is full of what happens, the kernel
/// refuses what is asked of it, and has no room to say so. `sequence` counts the requests.
///
/// Tells how far it came, too. Where links come and go all the time, the kernel has no list that is whole: each is good for
/// what is in it, and never for what is not.
///
/// # Errors
/// When the kernel does not answer as it should.
pub(super) fn list(
    socket: BorrowedFd<'_>,
    sequence: &mut u32,
    deadline: Instant,
) -> io::Result<(Listing, Dumped)> {
    let mut listing = Listing::default();
    // There is no new list before the end of one that was given up, which has what that did not come to.
    let is_drained = drain(socket, deadline, |said| {
        if let Ok(message) = said {
            listing.add(message);
        }
    })?;
    if !is_drained {
        return Ok((listing, Dumped::InPart));
    }
    let mut dump_all = |kind, listing: &mut Listing| {
        *sequence += 1;
        dump(socket, kind, *sequence, listing, deadline, |_| true)
    };
    let mut dumped = Dumped::Changing;
    for _ in 0..TRIES {
        dumped = dump_all(libc::RTM_GETLINK, &mut listing)?;
        // Whoever changes addresses all the time gets those of about that time.
        listing.forget_addresses();
        if dumped == Dumped::InPart || dump_all(libc::RTM_GETADDR, &mut listing)? == Dumped::InPart {
            return Ok((listing, Dumped::InPart));
        }
        if dumped == Dumped::AsOfOneTime {
            break;
        }
    }
    Ok((listing, dumped))
}

/// Asks for one link by any of its names; there is none if nothing comes of it.
///
/// # Errors
/// When the kernel cannot be asked.
pub(super) fn find(
    socket: BorrowedFd<'_>,
    name: &[u8],
    sequence: &mut u32,
    deadline: Instant,
    listing: &mut Listing,
) -> io::Result<()> {
    *sequence += 1;
    send(
        socket.as_raw_fd(),
        &request_for_one(name, *sequence),
        MsgFlags::empty(),
    )?;
    let mut room = Vec::new();
    while Instant::now() < deadline {
        let Some(datagram) = receive(socket, &mut room)? else {
            wait(socket, deadline)?;
            continue;
        };
        let mut is_answered = false;
        for message in messages(datagram) {
            listing.add(&message);
            is_answered |= message.sequence == *sequence;
        }
        if is_answered {
            return Ok(());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// Receives all that there is, and hands it to `hear`; tells whether it came to the end before the deadline.
///
/// # Errors
/// When the kernel does not say what there is.
pub(super) fn drain(
    socket: BorrowedFd<'_>,
    deadline: Instant,
    mut hear: impl FnMut(&io::Result<Message<'_>>),
) -> io::Result<bool> {
    let mut room = Vec::new();
    loop {
        match receive(socket, &mut room) {
            Ok(Some(datagram)) => messages(datagram).for_each(|message| hear(&Ok(message))),
            Ok(None) => return Ok(true),
            Err(error) if is_loss(&error) => hear(&Err(error)),
            Err(error) => return Err(error),
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// What a list amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dumped {
    /// It has all.
    AsOfOneTime,
    /// Some may be missing or twice in it, since something changed meanwhile, or was too long.
    Changing,
    /// There was no room or no time for more.
    InPart,
}

/// Asks for all objects of a kind, and takes them in for as long as there is room, and until the deadline.
///
/// # Errors
/// When the kernel does not answer as it should.
pub(super) fn dump(
    socket: BorrowedFd<'_>,
    kind: u16,
    sequence: u32,
    listing: &mut Listing,
    deadline: Instant,
    has_room: impl Fn(&Listing) -> bool,
) -> io::Result<Dumped> {
    let mut room = Vec::new();
    if !has_room(listing) {
        return Ok(Dumped::InPart);
    }
    dump_each(
        socket,
        &request(kind, sequence),
        sequence,
        deadline,
        &mut room,
        |message| {
            listing.add(message);
            has_room(listing)
        },
    )
}

/// Sends a request for a list, and hands each of its messages to `take`, for as long as that wants more, and until the
/// deadline. `room` is for datagrams.
///
/// # Errors
/// When the kernel does not answer as it should.
pub(super) fn dump_each(
    socket: BorrowedFd<'_>,
    request: &[u8],
    sequence: u32,
    deadline: Instant,
    room: &mut Vec<u8>,
    mut take: impl FnMut(&Message<'_>) -> bool,
) -> io::Result<Dumped> {
    send(socket.as_raw_fd(), request, MsgFlags::empty())?;
    let mut dumped = Dumped::AsOfOneTime;
    let mut wants_more = true;
    while wants_more && Instant::now() < deadline {
        let datagram = match receive(socket, room) {
            Ok(Some(datagram)) => datagram,
            Ok(None) => {
                wait(socket, deadline)?;
                continue;
            }
            Err(error) if is_loss(&error) => {
                dumped = Dumped::Changing;
                continue;
            }
            Err(error) => return Err(error),
        };
        // Others are the end of a list that was given up.
        for message in messages(datagram).filter(|message| message.sequence == sequence) {
            if message.flags & libc::NLM_F_DUMP_INTR as u16 != 0 {
                dumped = Dumped::Changing;
            }
            match i32::from(message.kind) {
                libc::NLMSG_DONE => return Ok(dumped),
                libc::NLMSG_ERROR => return Err(refusal(message.body)),
                _ => wants_more = take(&message),
            }
        }
    }
    Ok(Dumped::InPart)
}

/// Waits until there is something to receive, until the deadline at most.
fn wait(socket: BorrowedFd<'_>, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let mut polled = [PollFd::new(socket, PollFlags::POLLIN)];
    match poll(
        &mut polled,
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
    ) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A request for all objects of a kind.
fn request(kind: u16, sequence: u32) -> Vec<u8> {
    let header_len = if kind == libc::RTM_GETLINK {
        LINK_HEADER_LEN
    } else {
        ADDRESS_HEADER_LEN
    };
    let mut body = vec![0; header_len];
    if kind == libc::RTM_GETLINK {
        append(&mut body, IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes());
    }
    message(kind, libc::NLM_F_DUMP, sequence, &body)
}

/// A request for the link that has the name, be it as another one, which kernels find alike from 5.5 on.
fn request_for_one(name: &[u8], sequence: u32) -> Vec<u8> {
    let mut body = vec![0; LINK_HEADER_LEN];
    append(&mut body, IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes());
    append(&mut body, IFLA_ALT_IFNAME, &[name, &[0]].concat());
    message(libc::RTM_GETLINK, 0, sequence, &body)
}

fn append(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let len = 4 + value.len();
    body.extend((len as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// A message with a header.
pub(super) fn message(kind: u16, flags: i32, sequence: u32, body: &[u8]) -> Vec<u8> {
    let len = (HEADER_LEN + body.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | flags) as u16;
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    // The port, which the kernel knows.
    message.extend([0; 4]);
    message.extend(body);
    message
}

/// Why the kernel gives no list: `struct nlmsgerr` begins with the negative number of the error.
fn refusal(body: &[u8]) -> io::Error {
    let errno = number(body, 0).map_or(0, |number| -(number as i32));
    io::Error::from_raw_os_error(errno)
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd as _, time::Duration};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_the_links_of_this_namespace() {
        let socket = open(false).unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let (all, _) = list(socket.as_fd(), &mut 0, deadline).unwrap();
        let mut one = Listing::default();
        find(socket.as_fd(), b"lo", &mut 9, deadline, &mut one).unwrap();
        for links in [all.finish(), one.finish()] {
            let loopback = links.iter().find(|link| link.name == "lo").unwrap();
            assert!(loopback.loopback && loopback.ifindex == 1);
        }
        let mut none = Listing::default();
        for name in [&b"no-such-link"[..], &[b'x'; 1000]] {
            find(socket.as_fd(), name, &mut 19, deadline, &mut none).unwrap();
        }
        assert!(none.finish().is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_apart(bytes in any::<Vec<u8>>(), lens in proptest::collection::vec(0u32..64, 0..4)) {
            let mut datagram = Vec::new();
            for len in lens {
                datagram.extend(len.to_ne_bytes());
                datagram.extend_from_slice(&bytes);
            }
            let mut listing = Listing::default();
            for message in messages(&datagram) {
                prop_assert!(message.body.len() <= datagram.len());
                for kind in [libc::RTM_NEWLINK, libc::RTM_NEWADDR] {
                    listing.add(&Message { kind, ..message });
                }
            }
            for (_, value) in attributes(&bytes) {
                prop_assert!(value.len() <= bytes.len());
            }
            listing.finish();
        }
    }
}
