//! The bounds of a capture's rates. They hold before a packet is copied, and so protect the host.
//!
//! The time is that of CLOCK_MONOTONIC, which never steps. A tap keeps until when it has paid, one for all its CPUs and
//! interfaces, and can spend what it saved in the last second. Paying is an atomic addition, which every kernel has: what
//! several CPUs let pass in the same moment is made up for by what passes later.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use packetflix_common::{Paid, RateCosts};

use crate::{counting::add_atomically, maps::PAID};

/// Whether a packet of which so many bytes would be copied is too much; if not, it is paid for.
#[inline(always)]
pub(crate) fn is_over(costs: &RateCosts, captured_len: u32) -> bool {
    if costs.packet == 0 && costs.mebibyte == 0 {
        return false;
    }
    let Some(paid) = PAID.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: the helper has no precondition.
    #[expect(unsafe_code, reason = "every helper is declared unsafe")]
    let now = unsafe { bpf_ktime_get_ns() };
    let (packets, bytes) = places(paid);
    if (costs.packet != 0 && !can_spend(packets, now)) || (costs.mebibyte != 0 && !can_spend(bytes, now)) {
        return true;
    }
    // What several CPUs let pass in the same moment is paid for by all of them, and so made up for by what passes later.
    if costs.packet != 0 {
        add_atomically(packets, costs.packet);
    }
    if costs.mebibyte != 0 {
        add_atomically(bytes, RateCosts::of_bytes(costs.mebibyte, captured_len));
    }
    false
}

/// The fields, which other CPUs write too: no reference may be made to them.
#[inline(always)]
#[expect(unsafe_code, reason = "a map hands out raw pointers")]
fn places(paid: *mut Paid) -> (*mut u64, *mut u64) {
    // SAFETY: `paid` points to a whole `Paid` in the map, which lives as long as the program.
    unsafe { (&raw mut (*paid).packets, &raw mut (*paid).bytes) }
}

/// Whether there is time to spend. What was saved for more than a second is forfeit; should several CPUs find so in the
/// same moment, one may forget what another has just paid: a packet each, once in a pause.
#[inline(always)]
#[expect(unsafe_code, reason = "the place is shared among CPUs")]
fn can_spend(place: *mut u64, now: u64) -> bool {
    // SAFETY: the place is aligned, and valid as long as the program runs; volatile, since other CPUs write it.
    unsafe {
        let paid = place.read_volatile();
        let Some(from) = RateCosts::spendable(paid, now) else {
            return false;
        };
        if from != paid {
            place.write_volatile(from);
        }
    }
    true
}
