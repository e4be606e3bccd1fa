//! Packets as libpcap has them, where that is not as the kernel has them.

use std::borrow::Cow;

use packetflix_common::RecordHeader;

use crate::pcapng::{CookedHeader, LinkType};

/// What becomes of an interface's packets, beside the block around them, to be as libpcap has them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Framing {
    /// They are written as they are, with the VLAN tag that is kept beside them.
    #[default]
    AsTheyAre,
    /// They have no header, and get that of cooked mode.
    Cooked {
        /// `ARPHRD_…` of the interface.
        hardware_type: u16,
    },
    /// They are CAN frames, whose header has the byte order of this machine.
    Can,
}

impl Framing {
    /// That of an interface.
    pub(super) fn of(link_type: LinkType, hardware_type: u16) -> Self {
        match link_type {
            LinkType::LinuxSll | LinkType::Netlink => Self::Cooked { hardware_type },
            LinkType::CanSocketcan => Self::Can,
            _ => Self::AsTheyAre,
        }
    }

    /// The header that goes before a packet.
    pub(super) fn cooked(self, header: &RecordHeader) -> Option<CookedHeader> {
        match self {
            Self::Cooked { hardware_type } => Some(CookedHeader {
                packet_type: header.packet_type.into(),
                hardware_type,
                protocol: header.protocol,
            }),
            Self::AsTheyAre | Self::Can => None,
        }
    }

    /// A packet as it is written.
    pub(super) fn data<'a>(self, header: &RecordHeader, data: &'a [u8]) -> Cow<'a, [u8]> {
        match self {
            Self::Can => can_frame(header.protocol, data).map_or(Cow::Borrowed(data), Cow::Owned),
            Self::AsTheyAre | Self::Cooked { .. } => Cow::Borrowed(data),
        }
    }
}

/// A CAN frame as libpcap has it: the identifier in network byte order, and flags that tell the kind of frame, whatever the
/// sender wrote there. `None` when it was cut within these.
///
/// Source: <https://www.tcpdump.org/linktypes/LINKTYPE_CAN_SOCKETCAN.html>, `linux/can.h`; `linux/if_ether.h` for the kinds.
fn can_frame(kind: u16, data: &[u8]) -> Option<Vec<u8>> {
    const ETH_P_CAN: u16 = 0x000c;
    const ETH_P_CANFD: u16 = 0x000d;
    const CANFD_FDF: u8 = 0x04;
    const FLAGS: usize = 5;

    let mut frame = data.to_vec();
    let id = frame.first_chunk_mut::<4>()?;
    *id = u32::from_ne_bytes(*id).to_be_bytes();
    let flags = frame.get_mut(FLAGS)?;
    match kind {
        ETH_P_CAN => *flags &= !CANFD_FDF,
        ETH_P_CANFD => *flags |= CANFD_FDF,
        _ => {}
    }
    Some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn can_frames_are_as_in_files() {
        let id = 0x123_u32.to_ne_bytes();
        let frame = |flags: u8| [&id[..], &[8, flags, 0, 0], b"12345678"].concat();
        for (kind, sent, written) in [(0x0c, 4, 0), (0x0d, 1, 5), (0x0e, 2, 2)] {
            let expected = [&[0, 0, 1, 0x23, 8, written, 0, 0][..], b"12345678"].concat();
            assert_eq!(can_frame(kind, &frame(sent)), Some(expected), "{kind}");
        }
        assert_eq!(can_frame(0x0c, &frame(0)[..5]), None);
    }

    #[test]
    fn link_types_say_how_packets_are_framed() {
        let cooked = Framing::Cooked { hardware_type: 778 };
        assert_eq!(Framing::of(LinkType::LinuxSll, 778), cooked);
        assert_eq!(Framing::of(LinkType::Netlink, 778), cooked);
        assert_eq!(Framing::of(LinkType::CanSocketcan, 280), Framing::Can);
        assert_eq!(Framing::of(LinkType::Ethernet, 1), Framing::AsTheyAre);
        let header = RecordHeader {
            packet_type: 4,
            protocol: 0x86dd,
            ..RecordHeader::default()
        };
        let head = CookedHeader {
            packet_type: 4,
            hardware_type: 778,
            protocol: 0x86dd,
        };
        assert_eq!(cooked.cooked(&header), Some(head));
        assert_eq!(Framing::Can.cooked(&header), None);
    }
}
