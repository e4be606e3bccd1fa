//! Counting on a CPU.
//!
//! Elsewhere a program runs to its end before another one starts on the same CPU, since packets pass while soft interrupts
//! are held off. With PREEMPT_RT that is a lock, which kernels since 6.18 may be built without: then a thread of higher
//! priority may take the CPU in the middle of a program, and send a packet of the same interface. User space tells by a
//! global; the verifier removes what is for the other case.

use core::arch::asm;

use crate::maps::is_preemptible;

/// Adds to a number of this CPU's.
#[inline(always)]
#[expect(unsafe_code, reason = "the place is in a map")]
pub(crate) fn add(place: *mut u64, value: u64) {
    if is_preemptible() {
        add_atomically(place, value);
    } else {
        // SAFETY: the place is aligned, valid as long as the program runs, and nobody else's meanwhile.
        unsafe { *place += value }
    }
}

/// Takes a number of this CPU's away to be told, so that it is told once.
///
/// Two programs, of which one interrupts the other just here, may both take it: the number is then below zero, and so
/// much less is told next time. No kernel before 5.12 takes an atomic exchange, not even where it is never reached.
#[inline(always)]
#[expect(unsafe_code, reason = "the place is in a map")]
pub(crate) fn take(place: *mut u64) -> u32 {
    // SAFETY: the place is aligned, and valid as long as the program runs; volatile, since others may write it.
    let taken = unsafe { place.read_volatile() };
    if taken.cast_signed() <= 0 {
        return 0;
    }
    if is_preemptible() {
        add_atomically(place, taken.wrapping_neg());
    } else {
        // SAFETY: as above.
        unsafe { place.write_volatile(0) }
    }
    taken.min(u64::from(u32::MAX)) as u32
}

/// Adds to a number that others write, too, by the one atomic operation that every kernel has, and core has not.
#[inline(always)]
#[expect(unsafe_code, reason = "the place is shared")]
pub(crate) fn add_atomically(place: *mut u64, value: u64) {
    // SAFETY: callers pass an aligned place in a map, which is valid as long as the program runs.
    unsafe {
        asm!("lock *(u64 *)({place} + 0) += {value}", place = in(reg) place, value = in(reg) value);
    }
}
