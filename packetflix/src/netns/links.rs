//! Network interfaces of a namespace: what there is, and that something has changed.

use std::{collections::HashMap, io, net::IpAddr, os::fd::BorrowedFd};

use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::libc;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressMessage},
        link::{LinkAttribute, LinkFlags, LinkMessage, State},
    },
    sys::SocketAddr,
};
use tokio_util::task::AbortOnDropHandle;

use crate::sys;

/// A network interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Its index in the namespace.
    pub(crate) ifindex: u32,
    /// Its name; another may have it later.
    pub(crate) name: String,
    /// Kind of hardware, an `ARPHRD_…` constant of `linux/if_arp.h`.
    pub(crate) hardware_type: u16,
    /// Whether whatever it sends goes to one other end (`IFF_POINTOPOINT`, and not `IFF_BROADCAST`).
    pub(crate) has_one_peer: bool,
    /// Whether it is a loopback device.
    pub(crate) loopback: bool,
    /// Whether the kernel calls it down; it may come up.
    pub(crate) down: bool,
    /// Its hardware address, if that has 48 bits.
    pub(crate) mac: Option<[u8; 6]>,
    /// What the operator says of it.
    pub(crate) alias: String,
    /// Its addresses.
    pub(crate) addresses: Vec<LinkAddress>,
    /// Bits per second, where that was asked for and its driver tells it.
    pub(crate) speed: Option<u64>,
}

/// An address of a link, and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkAddress {
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
}

/// Asks the kernel for the links of one namespace, and is told when they change.
///
/// A change is only a reason to list again, so that none that is missed does harm.
pub(crate) struct LinkWatch {
    handle: Handle,
    messages: Messages,
    /// Indexes of interfaces that were removed: another may have taken the index before we list again.
    removed: Vec<u32>,
    _connection: AbortOnDropHandle<()>,
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

impl LinkWatch {
    /// Opens the netlink socket in the calling thread's network namespace, where it stays. The thread must
    /// be in the context of a tokio runtime, on which the socket is served.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        let connection = AbortOnDropHandle::new(tokio::spawn(connection));
        Ok(Self {
            handle,
            messages,
            removed: Vec::new(),
            _connection: connection,
        })
    }

    /// Waits until a link was added, removed or altered since the last time.
    pub(crate) async fn changed(&mut self) {
        while let Some((message, _)) = self.messages.next().await {
            if self.note(&message) {
                self.note_all();
                return;
            }
        }
        // Without a connection nothing will ever change.
        std::future::pending::<()>().await;
    }

    /// All links as they are now, and the indexes of the interfaces that were removed since the last call:
    /// a link of that index is another one.
    ///
    /// # Errors
    /// When the kernel does not answer as it should.
    pub(crate) async fn list_with_removed(
        &mut self,
        socket: BorrowedFd<'_>,
    ) -> Result<(Vec<Link>, Vec<u32>), rtnetlink::Error> {
        let links = self.list(socket).await?;
        // The kernel's answer and its messages come through one socket in the order in which they were sent:
        // whatever was removed before the links were listed has been told by now.
        self.note_all();
        Ok((links, std::mem::take(&mut self.removed)))
    }

    /// Takes in all messages that wait.
    fn note_all(&mut self) {
        while let Ok((message, _)) = self.messages.try_recv() {
            self.note(&message);
        }
    }

    /// Whether the message is of a link. A bridge tells of its ports with the same messages, in a family of
    /// its own.
    fn note(&mut self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let message = match &message.payload {
            NetlinkPayload::InnerMessage(message) => message,
            // The socket's buffer was too small for all that happened: a look at everything is due.
            NetlinkPayload::Overrun(_) => return true,
            _ => return false,
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => link.header.interface_family == AddressFamily::Unspec,
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                self.removed.push(link.header.index);
                true
            }
            _ => false,
        }
    }

    /// All links with their addresses, in the order of their indexes. `socket` is any socket of the
    /// namespace.
    ///
    /// # Errors
    /// When the kernel does not answer as it should.
    pub(crate) async fn list(&self, socket: BorrowedFd<'_>) -> Result<Vec<Link>, rtnetlink::Error> {
        let mut listing = Listing::default();
        let mut stream = self.handle.address().get().execute();
        while let Some(message) = stream.try_next().await? {
            listing.add_address(&message);
        }
        let mut stream = self.handle.link().get().execute();
        while let Some(message) = stream.try_next().await? {
            listing.add_link(&message);
        }
        let mut links = listing.finish();
        for link in &mut links {
            link.speed = sys::interface_speed(socket, &link.name);
        }
        Ok(links)
    }
}

/// Links and addresses as the kernel tells them, put together.
#[derive(Debug, Default)]
pub(super) struct Listing {
    links: Vec<Link>,
    addresses: HashMap<u32, Vec<LinkAddress>>,
}

impl Listing {
    pub(super) fn add_address(&mut self, message: &AddressMessage) {
        let find =
            |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
        // Of a link between two points, the local address is ours and the other the peer's.
        let address = find(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        })
        .or_else(|| {
            find(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        if let Some(address) = address {
            let prefix_len = message.header.prefix_len;
            self.addresses
                .entry(message.header.index)
                .or_default()
                .push(LinkAddress { address, prefix_len });
        }
    }

    pub(super) fn add_link(&mut self, message: &LinkMessage) {
        self.links.extend(link_of(message));
    }

    /// How many links and addresses there are so far.
    pub(super) fn len(&self) -> (usize, usize) {
        (self.links.len(), self.addresses.values().map(Vec::len).sum())
    }

    /// All links with their addresses, in the order of their indexes.
    pub(super) fn finish(mut self) -> Vec<Link> {
        for link in &mut self.links {
            link.addresses = self.addresses.remove(&link.ifindex).unwrap_or_default();
        }
        self.links.sort_by_key(|link| link.ifindex);
        self.links
    }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        hardware_type: message.header.link_layer_type.into(),
        has_one_peer: message.header.flags.contains(LinkFlags::Pointopoint)
            && !message.header.flags.contains(LinkFlags::Broadcast),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        down: false,
        mac: None,
        alias: String::new(),
        addresses: Vec::new(),
        speed: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::OperState(state) => link.down = *state == State::Down,
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Address(address) if link.hardware_type == libc::ARPHRD_ETHER => {
                link.mac = address.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}
