//! From a packet to a record in the ring of this CPU.
//!
//! The interface is looked up by its index in a per-CPU hash, where its entry has all that depends on the request: the number
//! of the interface in the capture, where the network header of its packets begins, its filter, the snapshot length, what its
//! packets cost of the rates, and the counters. So one loaded object serves any request, and an interface without an entry is
//! not captured, whatever a program is attached to.
//!
//! A packet is counted as seen; own traffic is rejected; the filter is asked; it is counted as accepted; the rates are asked;
//! the time is taken; its facts are read; the smallest of fourteen size classes is reserved in the ring of this CPU (the
//! verifier wants a constant); and `bpf_skb_load_bytes` writes the packet into it: one copy. Loss is told in the counters and
//! in the next record of the same interface and CPU.

use core::{arch::asm, ffi::c_void, mem::MaybeUninit};

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_boot_ns, bpf_ktime_get_tai_ns, bpf_skb_load_bytes},
    programs::sk_buff::SkBuff,
};
use aya_log_ebpf::debug;
use packetflix_common::{
    Direction, InterfaceSettings, MAX_CAPTURED_LEN, RecordHeader, SPARE_RING, clock, ring_of,
};

use crate::{
    counting, filter,
    maps::{INTERFACES, RINGS, Ring, clock},
    own, packet, rate,
};

/// Why an accepted packet does not reach user space.
enum Lost {
    /// The capture has as many packets, or as much of them, as it may have in the time.
    OverRate,
    /// The ring has no room: user space is too slow, or its client is.
    RingFull,
    /// The kernel could not copy the packet; holds its length and the helper's error.
    Copy(u32, i64),
    /// There is no ring for this CPU, which user space rules out: it creates one for each CPU that is online, and one for
    /// those that may come.
    NoRing,
}

/// Captures one packet, and counts what became of it.
#[inline(always)]
pub(crate) fn capture(context: &impl EbpfContext, skb: &SkBuff, direction: Direction) {
    let ifindex = packet::ifindex(skb);
    let Some(interface) = INTERFACES.get_ptr_mut(ifindex) else {
        return;
    };
    // SAFETY: the entry is this CPU's own, and user space removes it only after the programs were detached from its
    // interface. What is referred to is never written.
    #[expect(unsafe_code, reason = "a map hands out raw pointers")]
    let settings = unsafe { &(*interface).settings };
    // SAFETY: as above; these are written through their pointers alone.
    #[expect(unsafe_code, reason = "a map hands out raw pointers")]
    let (counters, unreported) = unsafe {
        (
            &raw mut (*interface).counters,
            &raw mut (*interface).dropped_unreported,
        )
    };
    /// Adds to a counter of the interface.
    macro_rules! count {
        ($counter:ident, $value:expr) => {{
            // SAFETY: the place of a field, of which no reference is made.
            #[expect(unsafe_code, reason = "a map hands out raw pointers")]
            let place = unsafe { &raw mut (*counters).$counter };
            counting::add(place, $value);
        }};
    }

    if settings.hands_back != 0 && matches!(direction, Direction::Outbound) {
        return;
    }
    let len = u64::from(packet::len(skb));
    count!(seen, 1);
    count!(seen_bytes, len);
    let packet_type = packet::packet_type(skb, direction);
    if own::is_own(skb, settings.network_offset) || !filter::accepts(skb, packet_type, settings.filter) {
        return;
    }
    count!(accepted, 1);
    count!(accepted_bytes, len);

    let dropped_before = counting::take(unreported);
    /// Counts the packet as lost for a reason, and what was to be told before it, too.
    macro_rules! lose {
        ($counter:ident) => {{
            count!($counter, 1);
            counting::add(unreported, u64::from(dropped_before) + 1);
        }};
    }
    // In one place: verifiers before Linux 6.3 take no copy of a reason of which only some bytes mean something.
    match deliver(skb, settings, ifindex, (direction, packet_type), dropped_before) {
        Ok(()) => count!(delivered, 1),
        Err(Lost::OverRate) => lose!(over_rate),
        Err(Lost::RingFull) => lose!(ring_full),
        Err(Lost::Copy(len, error)) => {
            lose!(copy_failed);
            debug!(
                context,
                "interface {}: cannot copy a packet of {} bytes: error {}", ifindex, len, error
            );
        }
        Err(Lost::NoRing) => {
            lose!(copy_failed);
            debug!(context, "interface {}: this CPU has no ring", ifindex);
        }
    }
}

/// Puts the packet into this CPU's ring, or the one for CPUs that have none, in the smallest size class that holds it.
#[inline(always)]
fn deliver(
    skb: &SkBuff,
    settings: &InterfaceSettings,
    ifindex: u32,
    (direction, packet_type): (Direction, u32),
    dropped_before: u32,
) -> Result<(), Lost> {
    let facts = packet::facts(skb);
    let captured_len = facts.len.min(settings.snaplen);
    if rate::is_over(&settings.costs, captured_len) {
        return Err(Lost::OverRate);
    }
    // Before room is reserved: a ring's records then are in the order of their timestamps, unless another program came
    // between.
    let timestamp = now();
    let header = RecordHeader {
        timestamp,
        interface_id: settings.interface_id,
        ifindex,
        original_len: facts.len,
        captured_len,
        dropped_before,
        gso_size: facts.gso_size,
        gso_segs: facts.gso_segs,
        vlan_tci: facts.vlan_tci,
        vlan_protocol: facts.vlan_protocol,
        direction: direction as u8,
        packet_type: packet_type as u8,
        protocol: packet::protocol(skb),
    };
    // SAFETY: the helper has no precondition.
    #[expect(unsafe_code, reason = "every helper is declared unsafe")]
    let cpu = unsafe { bpf_get_smp_processor_id() } as u32;
    let ring = RINGS.get(ring_of(cpu)).or_else(|| RINGS.get(SPARE_RING));
    let ring = ring.ok_or(Lost::NoRing)?;

    // The verifier wants a constant size to reserve; what is reserved beyond the packet is lost room.
    macro_rules! smallest_of {
        ($($class:expr),+) => {
            match captured_len {
                $(len if len <= $class => store::<{ $class as usize }>(skb, ring, &header),)+
                len => Err(Lost::Copy(len, 0)),
            }
        };
    }
    smallest_of!(
        64,
        128,
        256,
        512,
        1024,
        1520,
        2048,
        4096,
        9216,
        18_432,
        36_864,
        69_632,
        139_264,
        MAX_CAPTURED_LEN
    )
}

/// A record of one size class.
#[repr(C)]
struct Record<const CLASS: usize> {
    header: RecordHeader,
    packet: [u8; CLASS],
}

#[inline(always)]
#[expect(unsafe_code, reason = "the record is filled in place, by a helper")]
fn store<const CLASS: usize>(skb: &SkBuff, ring: &Ring, header: &RecordHeader) -> Result<(), Lost> {
    let mut entry = ring.reserve_untyped::<Record<CLASS>>(0).ok_or(Lost::RingFull)?;
    let record: *mut Record<CLASS> = MaybeUninit::as_mut_ptr(&mut entry);
    // SAFETY: `record` points to a whole `Record<CLASS>` that is this program's alone until it is submitted,
    // and at most `CLASS` bytes are written to its packet.
    let result = unsafe {
        (&raw mut (*record).header).write(*header);
        load::<CLASS>(skb, (&raw mut (*record).packet).cast(), header.captured_len)
    };
    if result == 0 {
        entry.submit(0);
        Ok(())
    } else {
        entry.discard(0);
        Err(Lost::Copy(header.original_len, result))
    }
}

/// Copies the first `len` bytes of the packet to `to`, and gives 0, or the helper's error.
///
/// The helper takes no length of zero, and verifiers before Linux 6.8 learn nothing from `len != 0`. So it is the
/// offset of the last byte that is compared: without a sign, one comparison bounds the length on both sides.
///
/// # Safety
/// `to` must be valid for writes of `CLASS` bytes.
#[inline(always)]
#[expect(unsafe_code, reason = "a helper writes to raw memory")]
unsafe fn load<const CLASS: usize>(skb: &SkBuff, to: *mut c_void, len: u32) -> i64 {
    let mut last = u64::from(len);
    // SAFETY: subtracts one from the register, and nothing else. In assembly, so that the compiler does not see that the
    // length comes back below, and the verifier is left with a length that it has not seen compared.
    unsafe { asm!("{last} += -1", last = inout(reg) last, options(pure, nomem, nostack, preserves_flags)) };
    if last >= CLASS as u64 {
        return if len == 0 { 0 } else { -1 };
    }
    // SAFETY: at most `CLASS` bytes are written, for which `to` is valid.
    unsafe { bpf_skb_load_bytes(skb.skb.cast(), 0, to, last as u32 + 1) }
}

/// Nanoseconds of the clock that user space chose.
#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helpers have no precondition.
    #[expect(unsafe_code, reason = "every helper is declared unsafe")]
    unsafe {
        if clock() == clock::TAI {
            bpf_ktime_get_tai_ns()
        } else {
            bpf_ktime_get_boot_ns()
        }
    }
}
