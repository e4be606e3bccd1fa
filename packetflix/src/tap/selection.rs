//! Which interfaces are captured, and what their packets begin with.

use nix::libc;

use super::TapError;
use crate::{netns::Link, pcapng::LinkType};

/// Which interfaces a capture wants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum InterfaceSelection {
    /// Each there is, and each that comes.
    All,
    /// Those of these names.
    Named(Vec<String>),
}

impl InterfaceSelection {
    pub(super) fn wants(&self, link: &Link) -> bool {
        link_type(link.hardware_type).is_some()
            && match self {
                Self::All => true,
                Self::Named(names) => names.contains(&link.name),
            }
    }
}

/// The links to begin with. An interface that was asked for and cannot be captured is an error; among all,
/// it is left out with a line in the log.
pub(super) fn select(present: &[Link], selection: &InterfaceSelection) -> Result<Vec<Link>, TapError> {
    if let InterfaceSelection::Named(names) = selection {
        let missing: Vec<String> = names
            .iter()
            .filter(|name| !present.iter().any(|link| link.name == **name))
            .cloned()
            .collect();
        if !missing.is_empty() {
            let present = present.iter().map(|link| link.name.clone()).collect();
            return Err(TapError::NoSuchInterface { missing, present });
        }
    }
    for link in present
        .iter()
        .filter(|link| link_type(link.hardware_type).is_none())
    {
        match selection {
            InterfaceSelection::All => tracing::warn!(
                interface = link.name,
                hardware_type = link.hardware_type,
                "an interface is left out: its hardware type is not known"
            ),
            InterfaceSelection::Named(names) if names.contains(&link.name) => {
                return Err(TapError::UnknownLinkType {
                    name: link.name.clone(),
                    hardware_type: link.hardware_type,
                });
            }
            InterfaceSelection::Named(_) => {}
        }
    }
    let wanted: Vec<Link> = present
        .iter()
        .filter(|link| selection.wants(link))
        .cloned()
        .collect();
    if wanted.is_empty() {
        Err(TapError::NoInterface)
    } else {
        Ok(wanted)
    }
}

/// `linux/if_arp.h`: cellular modems.
const ARPHRD_RAWIP: u16 = 519;

/// What the packets of a kind of hardware (`linux/if_arp.h`) begin with, as libpcap has it; `None` for kinds
/// that libpcap captures without their link-layer header, or that we cannot test.
pub(super) fn link_type(hardware_type: u16) -> Option<LinkType> {
    match hardware_type {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(LinkType::Ethernet),
        libc::ARPHRD_NONE | ARPHRD_RAWIP | libc::ARPHRD_PPP => Some(LinkType::Raw),
        libc::ARPHRD_TUNNEL | libc::ARPHRD_TUNNEL6 | libc::ARPHRD_SIT => Some(LinkType::Raw),
        _ => None,
    }
}

/// Where the network header begins in packets of a link type.
pub(super) fn network_offset(link_type: LinkType) -> u16 {
    match link_type {
        LinkType::Ethernet => 14,
        LinkType::Raw => 0,
    }
}
