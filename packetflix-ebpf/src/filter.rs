//! The filters of a capture: functions without a meaning of their own, in whose places user space puts what it has
//! translated before it loads the programs.

use core::arch::asm;

use aya_ebpf::{bindings::__sk_buff, programs::sk_buff::SkBuff};
use packetflix_common::InterfaceFilter;

/// Whether the interface's filter accepts the packet, which is of this type (`linux/if_packet.h`).
#[inline(always)]
pub(crate) fn accepts(skb: &SkBuff, packet_type: u32, filter: u32) -> bool {
    if filter == InterfaceFilter::Ethernet as u32 {
        filter_ethernet(skb.skb, packet_type) != 0
    } else if filter == InterfaceFilter::Raw as u32 {
        filter_raw(skb.skb, packet_type) != 0
    } else {
        true
    }
}

/// The place of a filter: what no compiler looks into. The value is another in each filter, lest two functions of one
/// body become one.
macro_rules! place {
    ($skb:ident, $packet_type:ident, $value:literal) => {{
        let accepted: u64;
        // SAFETY: the instructions alter R0 alone. What user space puts in their place may alter every register: the
        // kernel keeps R6 to R9 for the caller of a function (`linux/bpf.h`, `BPF_CALL` of `BPF_PSEUDO_CALL`), R1 to R5
        // are named here, and nothing of this function is left to be done behind them. The kernel verifies all of it.
        #[expect(unsafe_code, reason = "the compiler looks into all but assembly")]
        unsafe {
            asm!(
                concat!("r0 = ", $value),
                inout("r1") $skb => _,
                inout("r2") $packet_type => _,
                out("r0") accepted,
                out("r3") _,
                out("r4") _,
                out("r5") _,
            );
        }
        accepted
    }};
}

/// Filter for packets that begin with an Ethernet header. Takes the packet and its type, and gives 0 when it is rejected.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(unsafe_code, reason = "user space finds the function by its name")]
// SAFETY: no other symbol of the object has this name.
pub extern "C" fn filter_ethernet(skb: *mut __sk_buff, packet_type: u32) -> u64 {
    place!(skb, packet_type, "1")
}

/// Filter for packets that begin with an IP header.
#[unsafe(no_mangle)]
#[inline(never)]
#[expect(unsafe_code, reason = "user space finds the function by its name")]
// SAFETY: no other symbol of the object has this name.
pub extern "C" fn filter_raw(skb: *mut __sk_buff, packet_type: u32) -> u64 {
    place!(skb, packet_type, "2")
}
