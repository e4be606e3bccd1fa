//! Which target an address belongs to.
//!
//! A session subscribes to the address book of a scan. While anyone does, scans are repeated, with a hundred times as much rest
//! as a scan took. An address that several namespaces have is told in its own only. Wireshark takes a Name Resolution Block
//! anywhere and from its place on, so that new names are written before the packets that follow them.
//!
//! A user may give any address to a namespace of their own, and any name to what is in there. So what users say is told within
//! their own namespaces only.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use super::{scan::Scan, target::DiscoveredTarget, trust::Trust};
use crate::access::Occupants;

/// Names of the addresses of all targets. Several namespaces may have the same address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AddressBook(BTreeMap<IpAddr, Vec<Owner>>);

#[derive(Debug, PartialEq, Eq)]
struct Owner {
    netns: u64,
    name: String,
    /// Whether the address and the name are true elsewhere: they are not a user's own word.
    is_known_elsewhere: bool,
    /// All who are in the namespace.
    occupants: Arc<Occupants>,
}

impl AddressBook {
    /// Takes the addresses of a scan's targets; those of the host get the name `host`.
    pub(super) fn new(scan: &Scan, host: &str) -> Self {
        let mut book = Self::default();
        let mut seen = HashSet::new();
        // Of several targets in one namespace, a pod or container gives it its name, and the one that is trusted most.
        let mut targets: Vec<&DiscoveredTarget> = scan.targets.iter().collect();
        targets.sort_by_key(|target| (target.workload.is_none(), Reverse(target.trust)));
        for target in targets {
            let namespace = &target.namespace;
            if !seen.insert(namespace.inode) {
                continue;
            }
            let name = if namespace.is_host {
                host.to_owned()
            } else {
                target.full_name()
            };
            let is_known_elsewhere = match target.workload {
                Some(_) => target.trust > Trust::Others,
                None => namespace.is_roots,
            };
            let occupants = Arc::new(scan.occupants(namespace.inode).cloned().unwrap_or_default());
            for address in namespace.addresses() {
                book.0.entry(address).or_default().push(Owner {
                    netns: namespace.inode,
                    name: name.clone(),
                    is_known_elsewhere,
                    occupants: Arc::clone(&occupants),
                });
            }
        }
        book
    }

    /// The names as they are right within the namespace `netns`: an address of its own is its own, and one that
    /// several others have is nobody's, for a wrong name is worse than none. Others are those only that are no user's, and that
    /// `may_see` allows, which is told who is in each: the rest neither give names nor take them away. The namespace's own name
    /// is one that whoever `may_capture` it may know: it may have become another's meanwhile.
    pub(crate) fn seen_from(
        &self,
        netns: u64,
        may_capture: impl Fn(&Occupants) -> bool,
        may_see: impl Fn(&Occupants) -> bool,
    ) -> impl Iterator<Item = (IpAddr, &str)> {
        self.0.iter().filter_map(move |(address, owners)| {
            let only = || {
                let others = owners.iter().filter(|owner| owner.is_known_elsewhere);
                let mut seen = others.filter(|owner| may_see(&owner.occupants));
                seen.next().filter(|_| seen.next().is_none())
            };
            let owner = match owners.iter().find(|owner| owner.netns == netns) {
                Some(own) => may_capture(&own.occupants).then_some(own),
                None => only(),
            };
            Some((*address, &owner?.name[..]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        access::Occupant,
        discovery::target::Namespace,
        netns::{Link, LinkAddress},
    };

    /// A namespace that is a user's own.
    const USERS: u64 = 5;

    fn target(name: &str, netns: u64, is_host: bool, addresses: &[&str]) -> DiscoveredTarget {
        let addresses = addresses
            .iter()
            .map(|address| LinkAddress {
                address: address.parse().unwrap(),
                prefix_len: 24,
            })
            .collect();
        let link = Link {
            ifindex: 2,
            name: "eth0".to_owned(),
            hardware_type: 1,
            addresses,
            ..Link::default()
        };
        DiscoveredTarget {
            name: name.to_owned(),
            kind: "proc",
            trust: Trust::Others,
            prefix: String::new(),
            namespace: Arc::new(Namespace {
                inode: netns,
                is_host,
                is_roots: netns != USERS,
                links: vec![link],
                mounts: Vec::new(),
            }),
            process: None,
            workload: None,
        }
    }

    #[test]
    fn an_address_that_several_have_is_nobodys_but_ones_own() {
        let targets = [
            target("init(1)", 1, true, &["192.0.2.1", "127.0.0.1", "fe80::1"]),
            target("web", 2, false, &["10.0.0.2", "10.9.9.9"]),
            target(
                "db",
                3,
                false,
                &["10.0.0.3", "10.0.0.4", "10.9.9.9", "2001:db8::3"],
            ),
            target("db-too", 3, false, &["10.0.0.3"]),
            target("hidden", 4, false, &["10.0.0.4"]),
            target("users", USERS, false, &["10.0.0.2", "93.184.216.34"]),
        ];
        let occupants = |names: &[&str]| {
            let occupant = |name: &&str| Occupant {
                name: (*name).to_owned(),
                is_self_chosen: false,
                is_pod: false,
            };
            Occupants::new(names.iter().map(occupant), true)
        };
        let in_each = [
            (1, occupants(&["init(1)"])),
            (2, occupants(&["web"])),
            (3, occupants(&["db", "db-too"])),
        ];
        let scan = Scan::of(targets.to_vec(), in_each.into());
        let book = AddressBook::new(&scan, "node");
        let seen = |netns| -> Vec<(String, &str)> {
            book.seen_from(netns, |_| true, |_| true)
                .map(|(address, name)| (address.to_string(), name))
                .collect()
        };
        let common = [("10.0.0.2", "web"), ("10.0.0.3", "db")];
        let further = [("192.0.2.1", "node"), ("2001:db8::3", "db")];
        let expected = |own: &[(&'static str, &'static str)]| -> Vec<(String, &str)> {
            common
                .iter()
                .chain(own)
                .chain(&further)
                .map(|(address, name)| ((*address).to_owned(), *name))
                .collect()
        };
        assert_eq!(seen(1), expected(&[]));
        assert_eq!(seen(2), expected(&[("10.9.9.9", "web")]));
        assert_eq!(seen(3), expected(&[("10.0.0.4", "db"), ("10.9.9.9", "db")]));
        // What a user says is told to nobody else, and takes nothing away.
        let users = seen(USERS);
        for named in [
            ("10.0.0.2", "users"),
            ("93.184.216.34", "users"),
            ("10.0.0.3", "db"),
        ] {
            assert!(users.contains(&(named.0.to_owned(), named.1)), "{users:?}");
        }
        // Who may see `db` alone sees nothing of what is called by that name and another.
        let seen: Vec<_> = book
            .seen_from(2, |_| true, |inside| *inside == occupants(&["db"]))
            .collect();
        let own = ["10.0.0.2", "10.9.9.9"].map(|address| (address.parse().unwrap(), "web"));
        assert_eq!(seen, own);
        let seen = book.seen_from(2, |_| true, |inside| *inside == occupants(&["db", "db-too"]));
        // Nor does it show whether what is hidden has an address that is seen.
        let names: Vec<_> = seen.map(|(address, name)| (address.to_string(), name)).collect();
        assert_eq!(
            names[1..3],
            [("10.0.0.3".to_owned(), "db"), ("10.0.0.4".to_owned(), "db")]
        );
        assert_eq!(names.len(), 5);
        // What is captured may have become another's: it is not named, and nor does another give its name to the address.
        let seen: Vec<_> = book.seen_from(2, |_| false, |_| true).collect();
        assert!(
            !seen.is_empty() && seen.iter().all(|(_, name)| *name != "web"),
            "{seen:?}"
        );
        let own: Vec<IpAddr> = own.iter().map(|(address, _)| *address).collect();
        assert!(seen.iter().all(|(address, _)| !own.contains(address)), "{seen:?}");
    }
}
