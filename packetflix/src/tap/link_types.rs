//! What the packets of an interface begin with.
//!
//! The yardstick is libpcap, `map_arphrd_to_dlt` of its `pcap-linux.c`: what it captures in cooked mode gets the header of
//! that mode, provided that packets have no header of their own. Where they have one, which cooked mode takes off, the
//! interface is left out.

use nix::libc;

use crate::{netns::Link, pcapng::LinkType};

/// `linux/if_arp.h`, which the crate libc has in parts.
mod arphrd {
    /// Controller area networks.
    pub(super) const CAN: u16 = 280;
    /// Cellular modems.
    pub(super) const RAWIP: u16 = 519;
    /// GRE over IPv6.
    pub(super) const IP6GRE: u16 = 823;
    /// What passes netlink sockets.
    pub(super) const NETLINK: u16 = 824;
    /// What passes vsock sockets.
    pub(super) const VSOCKMON: u16 = 826;
}

/// The link type of an interface; `None` for those that are left out.
pub(super) fn link_type(link: &Link) -> Option<LinkType> {
    match link.hardware_type {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(LinkType::Ethernet),
        libc::ARPHRD_NONE | libc::ARPHRD_TUNNEL | libc::ARPHRD_SIT => Some(LinkType::Raw),
        libc::ARPHRD_PPP | libc::ARPHRD_TUNNEL6 | arphrd::RAWIP => Some(LinkType::LinuxSll),
        // Without a peer, or with many, the packets of GRE begin with the outer header when they are sent.
        libc::ARPHRD_IPGRE | arphrd::IP6GRE if link.has_one_peer => Some(LinkType::LinuxSll),
        arphrd::CAN => Some(LinkType::CanSocketcan),
        arphrd::NETLINK => Some(LinkType::Netlink),
        arphrd::VSOCKMON => Some(LinkType::Vsock),
        libc::ARPHRD_IEEE80211 => Some(LinkType::Ieee80211),
        libc::ARPHRD_IEEE80211_PRISM => Some(LinkType::Prism),
        libc::ARPHRD_IEEE80211_RADIOTAP => Some(LinkType::Radiotap),
        libc::ARPHRD_IEEE802154 => Some(LinkType::Ieee802154NoFcs),
        _ => None,
    }
}

/// Whether an interface hands back what it is given, so that each packet passes twice and the receiving side sees all of
/// them: a loopback device, and CAN (libpcap's `linux_check_direction`).
pub(super) fn hands_back(link: &Link) -> bool {
    link.loopback || link.hardware_type == arphrd::CAN
}

/// Where the network header begins in packets of a link type; nobody asks where there is none.
pub(super) fn network_offset(link_type: LinkType) -> u16 {
    match link_type {
        LinkType::Ethernet => 14,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(hardware_type: u16, has_one_peer: bool) -> Link {
        Link {
            ifindex: 7,
            name: "x".to_owned(),
            hardware_type,
            has_one_peer,
            loopback: false,
            ..Link::default()
        }
    }

    #[test]
    fn link_types_are_those_of_libpcap() {
        for (hardware_type, linktype) in [
            (1, 1),
            (772, 1),
            (768, 101),
            (776, 101),
            (0xfffe, 101),
            (512, 113),
            (519, 113),
            (769, 113),
            (778, 113),
            (823, 113),
            (280, 227),
            (801, 105),
            (802, 119),
            (803, 127),
            (804, 230),
            (824, 253),
            (826, 271),
        ] {
            let found = link_type(&link(hardware_type, true)).map(|found| found as u16);
            assert_eq!(found, Some(linktype), "{hardware_type}");
        }
        // InfiniBand and others, whose headers cooked mode takes off.
        for left_out in [32, 24, 805, 825, 0xffff] {
            assert_eq!(link_type(&link(left_out, true)), None, "{left_out}");
        }
        for (hardware_type, loopback, expected) in [(772, true, true), (280, false, true), (1, false, false)]
        {
            let link = Link {
                loopback,
                ..link(hardware_type, true)
            };
            assert_eq!(hands_back(&link), expected, "{hardware_type}");
        }
        for many in [778, 823] {
            assert_eq!(link_type(&link(many, false)), None, "{many}");
        }
    }
}
