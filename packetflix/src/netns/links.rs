//! Network interfaces of a namespace: what there is, and that something has changed.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use nix::libc;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::NetlinkPayload,
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressAttribute,
        link::{LinkAttribute, LinkFlags, LinkMessage},
    },
};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::{pcapng::InterfaceAddress, sys};

/// A network interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    /// Its index in the namespace.
    pub(crate) ifindex: u32,
    /// Its name; another may have it later.
    pub(crate) name: String,
    /// Kind of hardware, an `ARPHRD_…` constant of `linux/if_arp.h`.
    pub(crate) hardware_type: u16,
    /// Whether it is a loopback device.
    pub(crate) loopback: bool,
    /// Its hardware address, if that has 48 bits.
    pub(crate) mac: Option<[u8; 6]>,
    /// What the operator says of it.
    pub(crate) alias: String,
    /// Its addresses.
    pub(crate) addresses: Vec<InterfaceAddress>,
    /// Bits per second.
    pub(crate) speed: Option<u64>,
}

/// Asks the kernel for the links of one namespace, and is told when they change.
///
/// A change is only a reason to list again, so that none that is missed does harm.
pub(crate) struct LinkWatch {
    handle: Handle,
    changes: Arc<Changes>,
    _connection: AbortOnDropHandle<()>,
    _reader: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Changes {
    happened: Notify,
    /// Indexes of interfaces that were removed: another may have taken the index before we list again.
    removed: Mutex<Vec<u32>>,
}

/// Most removed interfaces that are remembered between two lists; an index that recurs while so many vanish
/// would be taken for the old interface.
const MAX_REMOVED: usize = 65_536;

impl LinkWatch {
    /// Opens the netlink socket in the calling thread's network namespace, where it stays. The thread must
    /// be in the context of a tokio runtime, on which the socket is served.
    ///
    /// # Errors
    /// When the socket cannot be opened.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        let changes = Arc::new(Changes::default());
        let reader = {
            let changes = Arc::clone(&changes);
            async move {
                while let Some((message, _)) = messages.next().await {
                    if let NetlinkPayload::InnerMessage(message) = &message.payload {
                        changes.note(message);
                    }
                }
            }
        };
        Ok(Self {
            handle,
            changes,
            _connection: AbortOnDropHandle::new(tokio::spawn(connection)),
            _reader: AbortOnDropHandle::new(tokio::spawn(reader)),
        })
    }

    /// Waits until a link was added, removed or altered since the last time.
    pub(crate) async fn changed(&self) {
        self.changes.happened.notified().await;
    }

    /// Indexes of the interfaces that were removed since the last call.
    pub(crate) fn take_removed(&self) -> Vec<u32> {
        std::mem::take(&mut *self.changes.removed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All links with their addresses, in the order of their indexes. `socket` is any socket of the
    /// namespace.
    ///
    /// # Errors
    /// When the kernel does not answer as it should.
    pub(crate) async fn list(&self, socket: BorrowedFd<'_>) -> Result<Vec<Link>, rtnetlink::Error> {
        let mut addresses: HashMap<u32, Vec<InterfaceAddress>> = HashMap::new();
        let mut stream = self.handle.address().get().execute();
        while let Some(message) = stream.try_next().await? {
            // Of a link between two points, the local address is ours and the other the peer's.
            let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
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
                addresses
                    .entry(message.header.index)
                    .or_default()
                    .push(InterfaceAddress { address, prefix_len });
            }
        }
        let mut links = Vec::new();
        let mut stream = self.handle.link().get().execute();
        while let Some(message) = stream.try_next().await? {
            if let Some(mut link) = link_of(&message) {
                link.addresses = addresses.remove(&link.ifindex).unwrap_or_default();
                link.speed = sys::interface_speed(socket, &link.name);
                links.push(link);
            }
        }
        links.sort_by_key(|link| link.ifindex);
        Ok(links)
    }
}

impl Changes {
    fn note(&self, message: &RouteNetlinkMessage) {
        match message {
            // A bridge tells of a port that leaves it with the same message in its own family.
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Unspec => {
                let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
                if removed.len() < MAX_REMOVED {
                    removed.push(link.header.index);
                }
            }
            RouteNetlinkMessage::NewLink(_) => {}
            _ => return,
        }
        self.happened.notify_one();
    }
}

fn link_of(message: &LinkMessage) -> Option<Link> {
    let mut link = Link {
        ifindex: message.header.index,
        name: String::new(),
        hardware_type: message.header.link_layer_type.into(),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        mac: None,
        alias: String::new(),
        addresses: Vec::new(),
        speed: None,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Address(address) if link.hardware_type == libc::ARPHRD_ETHER => {
                link.mac = address.as_slice().try_into().ok();
            }
            _ => {}
        }
    }
    (!link.name.is_empty()).then_some(link)
}
