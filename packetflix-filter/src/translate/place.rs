//! Where a load finds what it loads.

use crate::classic::{Ancillary, LINK_OFFSET, NETWORK_OFFSET, Size};

/// Where an absolute load finds what it loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the packet, before this offset.
    Packet { end: u32 },
    /// After one of the headers: 0 for the link layer's, 1 for the network's.
    Header { which: i32, offset: i32 },
    /// Beside the packet.
    Ancillary(Ancillary),
    /// Nowhere: no packet is so long.
    Nowhere,
}

impl Place {
    pub(super) fn of(size: Size, k: u32) -> Self {
        Ancillary::at(k).map_or_else(|| Self::in_packet(size, k), Self::Ancillary)
    }

    pub(super) fn in_packet(size: Size, k: u32) -> Self {
        /// The helper takes no larger offset, and the kernel's own load finds nothing there either: it looks
        /// at the linear part of the packet only.
        const MAX_RELATIVE: u32 = 0xffff;

        let (which, offset) = match k {
            NETWORK_OFFSET.. => (1, k - NETWORK_OFFSET),
            LINK_OFFSET.. => (0, k - LINK_OFFSET),
            _ => {
                return match k.checked_add(size.bytes()) {
                    Some(end) if i32::try_from(end).is_ok() => Self::Packet { end },
                    _ => Self::Nowhere,
                };
            }
        };
        if offset <= MAX_RELATIVE {
            Self::Header {
                which,
                offset: offset as i32,
            }
        } else {
            Self::Nowhere
        }
    }
}
