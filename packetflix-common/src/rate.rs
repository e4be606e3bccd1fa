//! What bounds the rates of a capture: packets and their bytes cost time, and who has none to spend is over the rate.

use core::mem::{offset_of, size_of};

/// Nanoseconds of a second: what can be saved, and then be spent at once.
const SECOND: u64 = 1_000_000_000;

/// What packets cost, in nanoseconds; 0 where nothing is bounded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateCosts {
    /// What a packet costs, whatever its length.
    pub packet: u64,
    /// What 2^20 captured bytes cost.
    pub mebibyte: u64,
}

/// How far into the time of CLOCK_MONOTONIC, in nanoseconds, a capture has spent it, on all CPUs together.
///
/// A capture may go on when that lies not in the future; if it lies more than a second in the past, the rest is forfeit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paid {
    /// For packets.
    pub packets: u64,
    /// For bytes.
    pub bytes: u64,
}

const _: () = {
    assert!(size_of::<RateCosts>() == 16);
    assert!(offset_of!(RateCosts, packet) == 0);
    assert!(offset_of!(RateCosts, mebibyte) == 8);
    assert!(size_of::<Paid>() == 16);
    assert!(offset_of!(Paid, packets) == 0);
    assert!(offset_of!(Paid, bytes) == 8);
};

impl RateCosts {
    /// The lowest bound of bytes in a second: what the largest packet costs then can be counted.
    pub const MIN_BYTE_RATE: u64 = 1024;

    /// For at most so many packets and bytes in a second, `None` being any number. Rounded up, so that never more pass.
    pub const fn new(packets: Option<u64>, bytes: Option<u64>) -> Self {
        Self {
            packet: cost(packets, 1),
            mebibyte: cost(bytes, 1 << 20),
        }
    }

    /// What so many captured bytes cost.
    #[inline(always)]
    pub const fn of_bytes(mebibyte: u64, len: u32) -> u64 {
        (len as u64).wrapping_mul(mebibyte) >> 20
    }

    /// From when on a capture can spend, which has paid until `paid`; `None` when it has nothing to spend yet.
    #[inline(always)]
    pub const fn spendable(paid: u64, now: u64) -> Option<u64> {
        let earliest = now.saturating_sub(SECOND);
        if paid > now {
            None
        } else if paid < earliest {
            Some(earliest)
        } else {
            Some(paid)
        }
    }
}

const fn cost(rate: Option<u64>, of: u64) -> u64 {
    match rate {
        None => 0,
        // Nothing is for nothing where there is a bound, however high.
        Some(rate) => (SECOND * of).div_ceil(if rate == 0 { 1 } else { rate }),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use proptest::prelude::*;

    use super::*;
    use crate::MAX_CAPTURED_LEN;

    proptest! {
        /// However packets come, no more pass than a second's worth at once and the rate from then on.
        #[test]
        fn no_more_pass_than_the_rate_allows(
            rate in 1u64..1_000_000, gaps in proptest::collection::vec(0u64..20_000_000, 1..400),
        ) {
            let costs = RateCosts::new(Some(rate), None);
            let (mut now, mut paid, mut passed) = (5 * SECOND, 0, 0u128);
            let start = now;
            // What was saved before the first is a second's worth.
            for gap in std::iter::once(0).chain(gaps) {
                now += gap;
                // As many as pass at this moment.
                while let Some(from) = RateCosts::spendable(paid, now) {
                    paid = from + costs.packet;
                    passed += 1;
                }
                let time = u128::from(now - start + SECOND);
                prop_assert!(passed <= time * u128::from(rate) / u128::from(SECOND) + 1, "{passed} in {time} ns");
                // Nor fewer: the next one could not be paid for.
                prop_assert!(passed * u128::from(costs.packet) > time, "{passed} in {time} ns");
            }
        }

        #[test]
        fn bytes_cost_their_share_of_a_second(rate in RateCosts::MIN_BYTE_RATE..1 << 40, len in 0..=MAX_CAPTURED_LEN) {
            let costs = RateCosts::new(None, Some(rate));
            let cost = RateCosts::of_bytes(costs.mebibyte, len);
            let exact = u128::from(len) * u128::from(SECOND) / u128::from(rate);
            prop_assert!(u128::from(cost) >= exact.saturating_sub(1) && u128::from(cost) <= exact + 1);
        }
    }

    #[test]
    fn nothing_costs_where_nothing_is_bounded() {
        assert_eq!(RateCosts::new(None, None), RateCosts::default());
        let costs = RateCosts::new(Some(u64::MAX), Some(u64::MAX));
        assert_eq!(
            costs,
            RateCosts {
                packet: 1,
                mebibyte: 1
            }
        );
    }
}
