//! Names of addresses: which the stream has told, and which it has yet to tell.

use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use bytes::BytesMut;
use tokio::sync::watch;

use crate::{
    access::{Occupants, Rights, Verdict},
    discovery::AddressBook,
    pcapng::{HostName, NameResolution},
};

/// Most addresses whose names a stream tells: what it remembers of them stays within a few megabytes.
const MAX_ADDRESSES: usize = 16 * 1024;

/// The names of addresses that a client is told.
#[derive(Debug)]
pub(crate) struct KnownNames {
    /// As they are known, and then as they change.
    pub(crate) names: watch::Receiver<Arc<AddressBook>>,
    /// What the client may do by now, and so which of them it may be told.
    pub(crate) rights: watch::Receiver<Arc<Rights>>,
}

/// The names that are known, and those that a stream tells of them.
#[derive(Debug)]
pub(super) struct ToldNames {
    /// Inode numbers of the namespaces from which their addresses are seen.
    namespaces: BTreeSet<u64>,
    known: KnownNames,
    told: Names,
}

impl ToldNames {
    /// As seen from nowhere yet.
    pub(super) fn new(known: KnownNames) -> Self {
        Self {
            namespaces: BTreeSet::new(),
            known,
            told: Names::default(),
        }
    }

    /// As seen from one more namespace, by its inode number.
    pub(super) fn see_from(&mut self, netns: u64) {
        self.namespaces.insert(netns);
    }

    /// Takes what is known now; gives the names with those that are to be written.
    pub(super) fn update(&mut self) -> &mut Names {
        let KnownNames { names, rights } = &mut self.known;
        let names = Arc::clone(&names.borrow_and_update());
        let rights = Arc::clone(&rights.borrow_and_update());
        let may_capture = |occupants: &Occupants| rights.may_capture(occupants) == Verdict::Allowed;
        let may_see = |occupants: &Occupants| rights.may_list(occupants);
        for netns in &self.namespaces {
            self.told.set(names.seen_from(*netns, may_capture, may_see));
        }
        &mut self.told
    }

    /// Waits until there are other names, or other rights to know them.
    pub(super) async fn changed(&mut self) {
        let KnownNames { names, rights } = &mut self.known;
        tokio::select! {
            Ok(()) = names.changed() => {}
            Ok(()) = rights.changed() => {}
            else => std::future::pending().await,
        }
    }
}

/// The names that a stream tells.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<IpAddr, Known>,
    /// Addresses whose names are to be written, each once, in the order in which they came.
    pending: VecDeque<IpAddr>,
}

#[derive(Debug)]
struct Known {
    name: HostName,
    is_pending: bool,
}

impl Names {
    /// Takes names; those that are new or have changed are to be written. Of addresses beyond the bound, nothing
    /// is told.
    pub(super) fn set<'a>(&mut self, names: impl IntoIterator<Item = (IpAddr, &'a str)>) {
        let mut left_out = 0;
        for (address, name) in names {
            let Some(name) = HostName::new(name) else {
                continue;
            };
            let is_full = self.known.len() >= MAX_ADDRESSES;
            match self.known.entry(address) {
                Entry::Vacant(_) if is_full => left_out += 1,
                Entry::Vacant(entry) => {
                    entry.insert(Known {
                        name,
                        is_pending: true,
                    });
                    self.pending.push_back(address);
                }
                Entry::Occupied(mut entry) if entry.get().name != name => {
                    let known = entry.get_mut();
                    known.name = name;
                    if !std::mem::replace(&mut known.is_pending, true) {
                        self.pending.push_back(address);
                    }
                }
                Entry::Occupied(_) => {}
            }
        }
        if left_out > 0 {
            tracing::debug!(
                left_out,
                "there are more addresses with names than a stream tells"
            );
        }
    }

    /// Writes names that wait, in blocks of at most `max_len` bytes in all, and tells whether none waits any
    /// longer.
    pub(super) fn write(&mut self, max_len: usize, batch: &mut BytesMut) -> bool {
        let Self { known, pending } = self;
        let names = pending.iter().filter_map(|address| {
            Some(NameResolution {
                address: *address,
                name: &known.get(address)?.name,
            })
        });
        let written = NameResolution::encode_all(names, max_len, batch);
        for address in pending.drain(..written) {
            if let Some(known) = known.get_mut(&address) {
                known.is_pending = false;
            }
        }
        pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MAX_LEN: usize = 256 * 1024;

    fn address(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(n as u32).into()
    }

    /// What is written, taking as many batches as it needs.
    fn written(names: &mut Names, max_len: usize) -> Vec<BytesMut> {
        let mut batches = Vec::new();
        loop {
            let mut batch = BytesMut::new();
            let is_done = names.write(max_len, &mut batch);
            assert!(batch.len() <= max_len);
            if !batch.is_empty() {
                batches.push(batch);
            }
            if is_done {
                return batches;
            }
        }
    }

    /// What is written in one batch.
    fn encoded(names: &[(IpAddr, &str)]) -> Vec<BytesMut> {
        let names: Vec<(IpAddr, HostName)> = names
            .iter()
            .map(|(address, name)| (*address, HostName::new(name).unwrap()))
            .collect();
        let mut out = BytesMut::new();
        let resolutions = names.iter().map(|(address, name)| NameResolution {
            address: *address,
            name,
        });
        assert_eq!(
            NameResolution::encode_all(resolutions, MAX_LEN, &mut out),
            names.len()
        );
        vec![out]
    }

    #[test]
    fn a_name_is_written_once_and_when_it_changes() {
        let mut names = Names::default();
        assert!(written(&mut names, MAX_LEN).is_empty());
        names.set([(address(1), "a"), (address(2), "b"), (address(3), "")]);
        assert_eq!(
            written(&mut names, MAX_LEN),
            encoded(&[(address(1), "a"), (address(2), "b")])
        );
        names.set([(address(1), "a"), (address(2), "b")]);
        assert!(written(&mut names, MAX_LEN).is_empty());
        names.set([(address(1), "a"), (address(2), "c"), (address(4), "d")]);
        assert_eq!(
            written(&mut names, MAX_LEN),
            encoded(&[(address(2), "c"), (address(4), "d")])
        );
        // An address that is back with its old name has changed once more.
        names.set([(address(2), "b")]);
        assert_eq!(written(&mut names, MAX_LEN), encoded(&[(address(2), "b")]));
    }

    #[test]
    fn a_name_that_changes_before_it_is_written_is_written_once() {
        let mut names = Names::default();
        names.set([(address(1), "a"), (address(2), "b")]);
        names.set([(address(1), "c")]);
        assert_eq!(
            written(&mut names, MAX_LEN),
            encoded(&[(address(1), "c"), (address(2), "b")])
        );
    }

    #[test]
    fn no_name_is_written_where_there_is_no_room() {
        let mut names = Names::default();
        names.set([(address(1), "a")]);
        let mut batch = BytesMut::new();
        assert!(!names.write(27, &mut batch));
        assert!(batch.is_empty());
        assert!(names.write(28, &mut batch));
        assert_eq!(vec![batch], encoded(&[(address(1), "a")]));
    }

    #[test]
    fn many_names_are_bounded_and_take_several_batches() {
        let mut names = Names::default();
        let long = "x".repeat(300);
        names.set((0..MAX_ADDRESSES + 10).map(|n| (address(n), long.as_str())));
        let batches = written(&mut names, MAX_LEN);
        // 4 bytes of header and address each, and 256 of name.
        let least = MAX_ADDRESSES * 264;
        let len: usize = batches.iter().map(BytesMut::len).sum();
        assert!((least..least + 20 * 4 * 16).contains(&len), "{len} bytes");
        assert_eq!(batches.len(), least.div_ceil(MAX_LEN));
        // Those that are known may still change.
        names.set([(address(5), "new"), (address(MAX_ADDRESSES), "left out")]);
        assert_eq!(written(&mut names, MAX_LEN), encoded(&[(address(5), "new")]));
    }
}
