//! packetflix' eBPF programs: each copies the packets of an interface into the ring of the CPU it runs on,
//! and none of them changes a packet's fate.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "the macro `classifier` makes undocumented public functions, and passes contexts by value"
)]

mod capture;
mod counting;
mod filter;
mod maps;
mod own;
mod packet;
mod rate;

use aya_ebpf::{
    bindings::{__sk_buff, tcx_action_base::TCX_NEXT},
    macros::classifier,
    programs::{SkBuffContext, TcContext},
};
use packetflix_common::Direction;

use crate::{capture::capture, maps::SOCKET_PROGRAM};

/// What the object was built against, for whoever has nothing but the object.
// SAFETY: no other symbol of the object has this name, and nobody else looks for a section of this one.
#[used]
#[unsafe(no_mangle)]
#[unsafe(link_section = "packetflix.abi")]
#[expect(unsafe_code, reason = "user space finds the number by its section")]
pub static ABI: u32 = packetflix_common::ABI;

/// TCX ingress: what the interface receives, from the link-layer header on.
#[classifier]
pub fn tc_ingress(context: TcContext) -> i32 {
    capture(&context, &context.skb, Direction::Inbound);
    TCX_NEXT
}

/// TCX egress: what the interface is about to send, from the link-layer header on.
#[classifier]
pub fn tc_egress(context: TcContext) -> i32 {
    capture(&context, &context.skb, Direction::Outbound);
    TCX_NEXT
}

/// Keeps the place of the other two between two captures of an interface, and does nothing.
#[classifier]
pub fn tc_idle(_context: TcContext) -> i32 {
    TCX_NEXT
}

/// Filter of an AF_PACKET socket. It keeps nothing for the socket itself: its verdict is always 0.
///
/// Written out, since the macro `socket_filter` names the section as we name the program, and the linker then
/// takes the two for one symbol.
// SAFETY: no other symbol of the object has this name; the section's prefix tells the loader the type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket/capture")]
#[expect(
    unsafe_code,
    reason = "the loader finds the program by its symbol and section"
)]
pub extern "C" fn socket(skb: *mut __sk_buff) -> i64 {
    let context = SkBuffContext::new(skb);
    let skb = &context.skb;
    capture(&context, skb, packet::direction(skb));
    0
}

/// Goes on in [`socket`], for kernels on which that is too large to be attached: to a packet socket they attach no program
/// that is longer than `net.core.optmem_max`, 20 KiB before Linux 6.7, and what is called by a tail call does not count.
///
/// Written out for the same reason.
// SAFETY: no other symbol of the object has this name; the section's prefix tells the loader the type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "socket/entry")]
#[expect(
    unsafe_code,
    reason = "the loader finds the program by its symbol and section, and a tail call never returns"
)]
pub extern "C" fn socket_entry(skb: *mut __sk_buff) -> i64 {
    // SAFETY: nothing of this function is to be dropped.
    unsafe { SOCKET_PROGRAM.tail_call(&SkBuffContext::new(skb), 0) };
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The licence that the kernel asks for.
#[expect(
    unsafe_code,
    reason = "the kernel reads the licence from a section of this name"
)]
// SAFETY: no other symbol of the object has this name, and the section holds nothing else.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
