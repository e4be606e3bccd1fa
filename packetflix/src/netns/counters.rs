//! What the interfaces of many namespaces have counted: the kernel's own numbers, for which nothing is captured.
//!
//! Source: `linux/if_link.h`, `struct if_stats_msg` and `struct rtnl_link_stats64`. Kernel 4.7.

use std::{
    collections::HashMap,
    io,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use nix::{
    libc,
    sched::{CloneFlags, setns},
};

use serde::{Deserialize, Serialize};

use super::{
    EnterError, Holder, Users, cpu_time,
    dump::{Bounds, Cost, Spent},
    netlink::{self, Message, attributes, number},
};
use crate::{
    error::is_exhaustion,
    lookout::{Lookout, Owner},
};

const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;

/// Length of `struct if_stats_msg`, in which the index of the interface comes after four bytes.
const HEADER_LEN: usize = 12;
const INDEX_AT: usize = 4;

/// An attribute with the statistics of a link, and the bit that asks for it.
const IFLA_STATS_LINK_64: u16 = 1;
const WITH_LINK_64: u32 = 1;

/// Packets and bytes that an interface has received and sent since it is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counters {
    pub(crate) received_packets: u64,
    pub(crate) sent_packets: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
}

/// The counters of a namespace's interfaces, by their indexes.
pub(crate) type LinkCounters = HashMap<u32, Counters>;

/// The counters of many namespaces.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct CountersOf {
    /// By the number of the namespace, of each whose counters are known.
    pub(crate) counters: HashMap<u64, LinkCounters>,
    /// Numbers of namespaces that are held, and whose counters are not known, or not all.
    pub(crate) unseen: Vec<u64>,
    /// Time of a CPU that it took.
    pub(crate) cost: Duration,
}

/// What became of a visit to a namespace.
enum Visit {
    /// Who was to lead there holds it no more.
    Gone,
    /// The counters, and whether there are more than are taken.
    Counted(LinkCounters, bool),
    Failed,
}

/// The counters of these namespaces, each of which one of its `holders` leads to if it still holds it. Blocks, for a bounded
/// time.
pub(crate) fn counters_of(holders: &HashMap<u64, Vec<Holder>>) -> CountersOf {
    let began = cpu_time();
    let mut users = Users::default();
    let mut room = Vec::new();
    // On threads of its own, since they end in other namespaces than they began in.
    let mut lookout = Lookout::new(
        |(inode, holder, owner, mut room): (u64, Holder, Owner, Vec<u8>)| {
            let began = cpu_time();
            let visited = visit(inode, &holder, owner, &mut room).unwrap_or(Visit::Failed);
            (visited, cpu_time().saturating_sub(began), room)
        },
    );
    let mut spent = Spent::default();
    let mut all = CountersOf::default();
    for (&inode, holders) in holders {
        for holder in holders {
            let place = holder.place_of_links(inode, &mut users);
            if !spent.has_left(place.owner) {
                all.unseen.push(inode);
                break;
            }
            let job = (inode, holder.clone(), place.owner, std::mem::take(&mut room));
            let visited = match lookout.look(place, job) {
                Ok((visited, time, used)) => {
                    room = used;
                    all.cost += time;
                    spent.add(place.owner, Cost { time, bytes: 0 });
                    visited
                }
                Err(_) => Visit::Failed,
            };
            match visited {
                Visit::Gone => continue,
                Visit::Counted(counters, is_cut) => {
                    all.unseen.extend(is_cut.then_some(inode));
                    all.counters.insert(inode, counters);
                }
                Visit::Failed => all.unseen.push(inode),
            }
            break;
        }
    }
    all.cost += cpu_time().saturating_sub(began);
    all
}

fn visit(inode: u64, holder: &Holder, owner: Owner, room: &mut Vec<u8>) -> Result<Visit, EnterError> {
    let descriptor = match holder.open_unwatched(inode) {
        Ok(descriptor) => descriptor,
        Err(error) if is_exhaustion(&error) => return Ok(Visit::Failed),
        Err(_) => return Ok(Visit::Gone),
    };
    setns(descriptor, CloneFlags::CLONE_NEWNET).map_err(|error| EnterError::Setns(error.into()))?;
    Ok(match counters_here(Bounds::of(owner), room) {
        Ok((counters, is_cut)) => Visit::Counted(counters, is_cut),
        Err(_) => Visit::Failed,
    })
}

/// The counters of the calling thread's namespace, and whether there are more than are taken. `room` is for datagrams.
fn counters_here(bounds: Bounds, room: &mut Vec<u8>) -> io::Result<(LinkCounters, bool)> {
    let deadline = Instant::now() + bounds.time;
    let socket = netlink::open(false)?;
    let mut body = [0; HEADER_LEN];
    body[8..].copy_from_slice(&WITH_LINK_64.to_ne_bytes());
    let sequence = 1;
    let request = netlink::message(RTM_GETSTATS, libc::NLM_F_DUMP, sequence, &body);
    let mut counters = LinkCounters::new();
    let dumped = netlink::dump_each(socket.as_fd(), &request, sequence, deadline, room, |message| {
        counters.extend(counters_in(message));
        counters.len() < bounds.links
    })?;
    Ok((counters, dumped == netlink::Dumped::InPart))
}

/// The index and the counters that a message tells of.
fn counters_in(message: &Message<'_>) -> Option<(u32, Counters)> {
    if message.kind != RTM_NEWSTATS {
        return None;
    }
    let index = number(message.body, INDEX_AT)?;
    let mut told = attributes(message.body.get(HEADER_LEN..)?);
    let (_, statistics) = told.find(|(kind, _)| *kind == IFLA_STATS_LINK_64)?;
    let count = |at: usize| Some(u64::from_ne_bytes(*statistics.get(8 * at..)?.first_chunk()?));
    let counters = Counters {
        received_packets: count(0)?,
        sent_packets: count(1)?,
        received_bytes: count(2)?,
        sent_bytes: count(3)?,
    };
    Some((index, counters))
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::netns::Netns;

    #[test]
    fn packets_of_loopback_are_counted() {
        let netns = Netns::fresh().unwrap();
        let counters = || counters_here(Bounds::of(Owner::Host), &mut Vec::new()).unwrap();
        let (before, after) = netns
            .enter(|| {
                let before = counters();
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                for _ in 0..3 {
                    socket.send_to(&[0; 72], socket.local_addr().unwrap()).unwrap();
                }
                (before, counters())
            })
            .unwrap();
        let ((before, _), (after, is_cut)) = (before, after);
        let (before, after) = (before[&1], after[&1]);
        assert!(!is_cut);
        assert_eq!(after.received_packets - before.received_packets, 3);
        assert_eq!(after.sent_bytes - before.sent_bytes, 3 * (20 + 8 + 72));
    }

    #[test]
    fn who_has_left_leads_nowhere() {
        let netns = Netns::own().unwrap();
        let here = Holder::Process {
            pid: std::process::id(),
        };
        let gone = Holder::Process { pid: u32::MAX >> 1 };
        let known = counters_of(&HashMap::from([(
            netns.inode(),
            vec![gone.clone(), here.clone()],
        )]));
        assert!(known.counters[&netns.inode()].contains_key(&1) && known.unseen.is_empty());
        let none = counters_of(&HashMap::from([(netns.inode(), vec![gone]), (1, vec![here])]));
        assert!(none.counters.is_empty() && none.unseen.is_empty());
    }
}
