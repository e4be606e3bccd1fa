//! Network interfaces of a namespace: what there is, and that something has changed.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use tokio::{io::unix::AsyncFd, time::sleep_until};

use super::netlink::{
    self, ADDRESS_HEADER_LEN, Dumped, LINK_HEADER_LEN, Message, attributes, half, messages, number,
};
use crate::{allowance::Allowance, sys, text::readable};

/// Names beside the name that a link may have, in a list. Kernel 5.5, `linux/if_link.h`.
const IFLA_PROP_LIST: u16 = 52;
pub(super) const IFLA_ALT_IFNAME: u16 = 53;

/// What index it has where it was moved to: said of a link that is removed from a network namespace for that. Kernel 4.16.
const IFLA_NEW_IFINDEX: u16 = 49;

/// `IF_OPER_DOWN` of `linux/if.h`.
const OPERATIONALLY_DOWN: u8 = 2;

/// Most other names of a link that are taken: whoever has root's rights in a namespace can give one thousands.
const MAX_ALTNAMES: usize = 16;

/// How long the links of a namespace may take to be listed: who has root's rights there can have it take any time. A capture
/// that runs waits meanwhile, at first the shortest time, and twice as long after each list that did not come to its end.
const SHORTEST_PATIENCE: Duration = Duration::from_secs(1);
const LONGEST_PATIENCE: Duration = Duration::from_secs(4);
const FIRST_PATIENCE: Duration = Duration::from_secs(10);

/// What a look at links costs of the time that there is for looks, at least, and times that it took: packets wait meanwhile.
const LOOK_COST: Duration = Duration::from_millis(100);
const LOOK_SHARE: u32 = 5;

/// How much time for looks is saved up, for links that come one after the other.
const SAVED_FOR_LOOKS: Duration = Duration::from_secs(1);

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    /// Its index in the namespace.
    pub(crate) ifindex: u32,
    /// Its name as people can read it; another may have it later.
    pub(crate) name: String,
    /// Its name as the kernel has it.
    pub(crate) raw_name: Vec<u8>,
    /// Its other names, as people can read them.
    pub(crate) altnames: Vec<String>,
    /// Kind of hardware, an `ARPHRD_…` constant of `linux/if_arp.h`.
    pub(crate) hardware_type: u16,
    /// Whether whatever it sends goes to one other end (`IFF_POINTOPOINT`, and not `IFF_BROADCAST`).
    pub(crate) has_one_peer: bool,
    /// Whether it is a loopback device.
    pub(crate) loopback: bool,
    /// Whether it is a device of a VRF.
    pub(crate) is_vrf: bool,
    /// Whether it is to be up, as whoever set it up said; what it then is may come a second later.
    pub(crate) is_set_up: bool,
    /// Whether the kernel calls it down; it may come up.
    pub(crate) down: bool,
    /// Its hardware address, if that has 48 bits.
    pub(crate) mac: Option<[u8; 6]>,
    /// What the operator says of it, as people can read it.
    pub(crate) alias: String,
    /// Its addresses.
    pub(crate) addresses: Vec<LinkAddress>,
    /// Bits per second, where that was asked for and its driver tells it.
    pub(crate) speed: Option<u64>,
}

/// An address of a link, and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinkAddress {
    pub(crate) address: IpAddr,
    pub(crate) prefix_len: u8,
}

impl Link {
    /// Whether people may mean it by `name`.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        self.name == name
            || self.raw_name == name.as_bytes()
            || self.altnames.iter().any(|altname| altname == name)
    }

    /// Bytes that it takes, without its addresses.
    fn size(&self) -> usize {
        let names = self.altnames.iter().map(|name| size_of::<String>() + name.len());
        let altnames: usize = names.sum();
        size_of::<Self>() + self.name.len() + self.raw_name.len() + self.alias.len() + altnames
    }
}

/// Asks the kernel for the links of one namespace, and is told when they change.
///
/// A change is only a reason to list again. Where some are missed, what has another's index now has to be found out otherwise.
pub(crate) struct LinkWatch {
    /// Hears of changes, and is asked for nothing.
    hearing: AsyncFd<OwnedFd>,
    /// Is asked, and hears of nothing.
    asking: OwnedFd,
    /// Of the last request.
    sequence: u32,
    heard: Heard,
    looks: Allowance,
    /// How long the next look may take.
    patience: Duration,
    room: Vec<u8>,
}

/// The links that there are, as far as they could be listed.
pub(crate) struct Links {
    /// In the order of their indexes.
    pub(crate) links: Vec<Link>,
    /// Whether there are no others.
    pub(crate) is_whole: bool,
}

/// The links as they are, and what was heard before.
pub(crate) struct Look {
    /// As far as they could be listed, or why not.
    pub(crate) listed: io::Result<Links>,
    /// Indexes of interfaces that were removed since the last look: a link of that index is another one.
    pub(crate) removed: Vec<u32>,
    /// Of these, those that were moved into another network namespace.
    pub(crate) moved: Vec<u32>,
    /// Whether others may have been removed, of which nothing was heard.
    pub(crate) has_missed: bool,
}

/// What was said of links since the last time.
#[derive(Default)]
struct Heard {
    /// Whether one was added, removed or altered.
    has_changed: bool,
    /// Whether something was said that could not be heard.
    has_missed: bool,
    /// Indexes of interfaces that were removed: another may have taken the index before we list again.
    removed: Vec<u32>,
    /// Of these, those that were moved into another network namespace.
    moved: Vec<u32>,
}

/// Netlink sockets of one namespace.
pub(crate) struct LinkSockets {
    hearing: OwnedFd,
    asking: OwnedFd,
}

impl LinkSockets {
    /// Opens them in the calling thread's network namespace, where they stay.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub(crate) fn open() -> io::Result<Self> {
        Ok(Self {
            hearing: netlink::open(true)?,
            asking: netlink::open(false)?,
        })
    }

    /// As [`LinkWatch::of`] takes them.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.hearing.as_fd(), self.asking.as_fd()]
    }
}

impl LinkWatch {
    /// Asks and hears by these sockets, whoever has opened them. Must be called within a tokio runtime, on which one of them is
    /// served.
    ///
    /// # Errors
    /// When one cannot be waited for.
    pub(crate) fn of([hearing, asking]: [OwnedFd; 2]) -> io::Result<Self> {
        Ok(Self {
            hearing: sys::watch(hearing)?,
            asking,
            sequence: 0,
            heard: Heard::default(),
            looks: Allowance::new(SAVED_FOR_LOOKS),
            patience: SHORTEST_PATIENCE,
            room: Vec::new(),
        })
    }

    /// Waits until a link was added, removed or altered since the last time, and until it is time for a look where links
    /// keep changing. May be dropped while it waits.
    pub(crate) async fn changed(&mut self) {
        loop {
            let due = self.looks.due();
            if self.heard.has_changed && due <= Instant::now() {
                self.heard.has_changed = false;
                return;
            }
            tokio::select! {
                () = sleep_until(due.into()), if self.heard.has_changed => {}
                ready = self.hearing.readable() => {
                    let Ok(mut ready) = ready else {
                        // Without a runtime nothing will ever change.
                        return std::future::pending().await;
                    };
                    match netlink::receive(ready.get_inner().as_fd(), &mut self.room) {
                        Ok(Some(datagram)) => {
                            messages(datagram).for_each(|message| self.heard.take_in(&Ok(message)));
                        }
                        Ok(None) => ready.clear_ready(),
                        Err(error) => self.heard.take_in(&Err(error)),
                    }
                }
            }
        }
    }

    /// The links as they are now, and what was heard since the last look, whether they could be listed or not.
    pub(crate) fn look(&mut self) -> Look {
        let began = Instant::now();
        let listed = self.list_between();
        self.looks.spend(LOOK_COST.max(began.elapsed() * LOOK_SHARE));
        Look {
            listed,
            removed: std::mem::take(&mut self.heard.removed),
            moved: std::mem::take(&mut self.heard.moved),
            has_missed: std::mem::take(&mut self.heard.has_missed),
        }
    }

    /// Whether an interface was moved into another network namespace since the last look; `None` where something was missed.
    /// The kernel tells of that before a packet passes there.
    pub(crate) fn has_moved(&mut self, ifindex: u32) -> Option<bool> {
        let is_known = self.hear().is_ok() && !self.heard.has_missed;
        is_known.then(|| self.heard.moved.contains(&ifindex))
    }

    /// Lists the links, and hears of all that happened before that.
    fn list_between(&mut self) -> io::Result<Links> {
        self.hear()?;
        // What is heard from here on may have happened after the list.
        self.heard.has_changed = false;
        let began = Instant::now();
        let links = self.list_until(began + self.patience)?;
        self.patience = if began.elapsed() < self.patience {
            SHORTEST_PATIENCE
        } else {
            LONGEST_PATIENCE.min(2 * self.patience)
        };
        // The kernel tells that a link was removed before it lists another, or none, in its place.
        self.hear()?;
        Ok(links)
    }

    fn hear(&mut self) -> io::Result<()> {
        let Self { hearing, heard, .. } = self;
        let deadline = Instant::now() + SHORTEST_PATIENCE;
        let hearing = hearing.get_ref().as_fd();
        heard.has_missed |= !netlink::drain(hearing, deadline, |said| heard.take_in(said))?;
        Ok(())
    }

    /// The links with their addresses.
    ///
    /// # Errors
    /// When the kernel does not answer as it should, or names none in time.
    pub(crate) fn list(&mut self) -> io::Result<Links> {
        let links = self.list_until(Instant::now() + FIRST_PATIENCE)?;
        if links.links.is_empty() && !links.is_whole {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What is missing is looked for again.
        self.heard.has_changed |= !links.is_whole;
        Ok(links)
    }

    /// Adds links that a list which is not whole does not have, for as long as they have these names.
    ///
    /// # Errors
    /// When the kernel does not answer as it should, or in time.
    pub(crate) fn find(&mut self, names: &[String], links: &mut Vec<Link>) -> io::Result<()> {
        let deadline = Instant::now() + FIRST_PATIENCE;
        let mut found = Listing::default();
        for name in names {
            if !links.iter().any(|link| link.is_called(name)) {
                let Self { asking, sequence, .. } = self;
                netlink::find(asking.as_fd(), name.as_bytes(), sequence, deadline, &mut found)?;
            }
        }
        links.extend(found.finish());
        keep_last(links);
        Ok(())
    }

    fn list_until(&mut self, deadline: Instant) -> io::Result<Links> {
        let (listing, dumped) = netlink::list(self.asking.as_fd(), &mut self.sequence, deadline)?;
        let mut links = listing.finish();
        // Each asks the driver, for which the kernel may have one wait.
        for link in links.iter_mut().take_while(|_| Instant::now() < deadline) {
            link.speed = sys::interface_speed(self.asking.as_fd(), &link.raw_name);
        }
        Ok(Links {
            links,
            is_whole: dumped == Dumped::AsOfOneTime,
        })
    }
}

impl Heard {
    /// Takes in what was said. A bridge tells of its ports with the same messages, in a family of its own.
    fn take_in(&mut self, said: &io::Result<Message<'_>>) {
        let Ok(message) = said else {
            // The socket's buffer was too small for all that happened: a look at everything is due.
            self.has_changed = true;
            self.has_missed = true;
            return;
        };
        let is_of_link = message.body.first() == Some(&(libc::AF_UNSPEC as u8));
        match message.kind {
            libc::RTM_NEWLINK if is_of_link => self.has_changed = true,
            libc::RTM_DELLINK if is_of_link => {
                let index = number(message.body, 4);
                self.removed.extend(index);
                let said = message.body.get(LINK_HEADER_LEN..).unwrap_or_default();
                if attributes(said).any(|(kind, _)| kind == IFLA_NEW_IFINDEX) {
                    self.moved.extend(index);
                }
                self.has_changed = true;
            }
            _ => {}
        }
    }
}

/// Links and addresses as the kernel tells them, put together.
#[derive(Debug, Default)]
pub(super) struct Listing {
    links: Vec<Link>,
    addresses: HashMap<u32, Vec<LinkAddress>>,
    /// What the links take.
    bytes: usize,
    /// Whether a link has more names than are taken.
    pub(super) is_cut: bool,
}

impl Listing {
    /// Takes in what the kernel says of a link or an address.
    pub(super) fn add(&mut self, message: &Message<'_>) {
        match message.kind {
            libc::RTM_NEWLINK => {
                if let Some(mut link) = link_of(message.body) {
                    self.is_cut |= link.altnames.len() > MAX_ALTNAMES;
                    link.altnames.truncate(MAX_ALTNAMES);
                    self.bytes += link.size();
                    self.links.push(link);
                }
            }
            libc::RTM_NEWADDR => {
                if let Some((ifindex, address)) = address_of(message.body) {
                    self.addresses.entry(ifindex).or_default().push(address);
                }
            }
            _ => {}
        }
    }

    /// Addresses are told once more, all of them.
    pub(super) fn forget_addresses(&mut self) {
        self.addresses.clear();
    }

    /// How many links and addresses there are so far, and how many bytes that is.
    pub(super) fn size(&self) -> (usize, usize, usize) {
        let addresses = self.addresses.values().map(Vec::len).sum();
        let bytes = self.bytes + addresses * size_of::<LinkAddress>();
        (self.links.len(), addresses, bytes)
    }

    /// All links with their addresses, in the order of their indexes.
    pub(super) fn finish(mut self) -> Vec<Link> {
        for link in &mut self.links {
            link.addresses = self.addresses.get(&link.ifindex).cloned().unwrap_or_default();
        }
        keep_last(&mut self.links);
        self.links
    }
}

/// Puts links in the order of their indexes; of several with one index, the last is as it is now.
fn keep_last(links: &mut Vec<Link>) {
    links.reverse();
    links.sort_by_key(|link| link.ifindex);
    links.dedup_by_key(|link| link.ifindex);
}

/// From `struct ifaddrmsg` and what follows: the index of the link, and its address.
fn address_of(body: &[u8]) -> Option<(u32, LinkAddress)> {
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(body.get(ADDRESS_HEADER_LEN..)?) {
        match kind {
            libc::IFA_LOCAL => local = ip_address(value),
            libc::IFA_ADDRESS => address = ip_address(value),
            _ => {}
        }
    }
    let address = LinkAddress {
        // Of a link between two points, the local address is ours and the other the peer's.
        address: local.or(address)?,
        prefix_len: *body.get(1)?,
    };
    Some((number(body, 4)?, address))
}

fn ip_address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// From `struct ifinfomsg` and what follows.
fn link_of(body: &[u8]) -> Option<Link> {
    let flags = number(body, 8)?;
    let mut link = Link {
        ifindex: number(body, 4)?,
        hardware_type: half(body, 2)?,
        has_one_peer: flags & (libc::IFF_POINTOPOINT | libc::IFF_BROADCAST) as u32
            == libc::IFF_POINTOPOINT as u32,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        is_set_up: flags & libc::IFF_UP as u32 != 0,
        ..Link::default()
    };
    for (kind, value) in attributes(body.get(LINK_HEADER_LEN..)?) {
        match kind {
            libc::IFLA_IFNAME => link.raw_name = until_zero(value).to_vec(),
            libc::IFLA_OPERSTATE => link.down = value == [OPERATIONALLY_DOWN],
            libc::IFLA_IFALIAS => link.alias = readable(until_zero(value)),
            libc::IFLA_ADDRESS if link.hardware_type == libc::ARPHRD_ETHER => {
                link.mac = value.try_into().ok();
            }
            libc::IFLA_LINKINFO => {
                let is_vrf = |(kind, name)| kind == libc::IFLA_INFO_KIND && until_zero(name) == b"vrf";
                link.is_vrf = attributes(value).any(is_vrf);
            }
            IFLA_PROP_LIST => {
                let names = attributes(value).filter(|(kind, _)| *kind == IFLA_ALT_IFNAME);
                let names = names.map(|(_, name)| readable(until_zero(name)));
                // One more, which tells that there are.
                link.altnames.extend(names.take(MAX_ALTNAMES + 1));
            }
            _ => {}
        }
    }
    link.name = readable(&link.raw_name);
    (!link.name.is_empty()).then_some(link)
}

/// A string of the kernel without the zero at its end.
fn until_zero(value: &[u8]) -> &[u8] {
    value.split(|byte| *byte == 0).next().unwrap_or_default()
}
