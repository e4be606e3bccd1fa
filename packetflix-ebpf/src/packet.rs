//! Facts about the packet, read from its `__sk_buff`. None of these reads needs packet memory.

use aya_ebpf::{bindings::__sk_buff, programs::sk_buff::SkBuff};
use packetflix_common::Direction;

/// `linux/if_packet.h`
const PACKET_HOST: u32 = 0;
const PACKET_OUTGOING: u32 = 4;

/// What a record tells about a packet beside its bytes.
pub(crate) struct Facts {
    pub(crate) len: u32,
    pub(crate) vlan_tci: u16,
    pub(crate) vlan_protocol: u16,
    pub(crate) gso_size: u16,
    pub(crate) gso_segs: u16,
}

#[inline(always)]
fn fields(skb: &SkBuff) -> &__sk_buff {
    // SAFETY: the kernel hands the program a valid `__sk_buff` for as long as it runs, and rewrites each
    // load of a field into a load from its own structure.
    #[expect(unsafe_code, reason = "the context is a raw pointer")]
    unsafe {
        &*skb.skb
    }
}

/// Index of the interface the packet is seen on.
#[inline(always)]
pub(crate) fn ifindex(skb: &SkBuff) -> u32 {
    fields(skb).ifindex
}

/// Bytes of the packet.
#[inline(always)]
pub(crate) fn len(skb: &SkBuff) -> u32 {
    fields(skb).len
}

/// Direction as a packet socket sees it.
#[inline(always)]
pub(crate) fn direction(skb: &SkBuff) -> Direction {
    if fields(skb).pkt_type == PACKET_OUTGOING {
        Direction::Outbound
    } else {
        Direction::Inbound
    }
}

/// Type of a packet (`linux/if_packet.h`) that goes this way.
///
/// At TC egress a packet does not say yet that it is outgoing, and after a redirection it may say so while it comes in.
#[inline(always)]
pub(crate) fn packet_type(skb: &SkBuff, direction: Direction) -> u32 {
    match (direction, fields(skb).pkt_type) {
        (Direction::Outbound, _) => PACKET_OUTGOING,
        (Direction::Inbound, PACKET_OUTGOING) => PACKET_HOST,
        (Direction::Inbound, packet_type) => packet_type,
    }
}

/// EtherType of the packet, behind a tag that the kernel keeps beside it. Packets without a link-layer header have one,
/// too, given by their device.
#[inline(always)]
pub(crate) fn protocol(skb: &SkBuff) -> u16 {
    u16::from_be(fields(skb).protocol as u16)
}

/// Reads all that a record tells.
#[inline(always)]
pub(crate) fn facts(skb: &SkBuff) -> Facts {
    let skb = fields(skb);
    let (vlan_tci, vlan_protocol) = if skb.vlan_present != 0 {
        (skb.vlan_tci as u16, u16::from_be(skb.vlan_proto as u16))
    } else {
        (0, 0)
    };
    Facts {
        len: skb.len,
        vlan_tci,
        vlan_protocol,
        gso_size: skb.gso_size as u16,
        gso_segs: skb.gso_segs as u16,
    }
}
