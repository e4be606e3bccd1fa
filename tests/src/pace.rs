//! How fast the machine is: `PACKETFLIX_TEST_SLOWNESS` says how many times slower than a machine of today. Emulated ones
//! are. Waits get longer by that, and samples smaller, and nothing else changes.

use std::time::Duration;

/// How many times slower the machine is.
fn slowness() -> u32 {
    let told = std::env::var("PACKETFLIX_TEST_SLOWNESS").ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(1).max(1)
}

/// Whether it is no machine of today: how soon its programs get a CPU is up to others.
pub fn is_slow() -> bool {
    slowness() > 1
}

/// As long as `time` on a machine of today: the limit of a wait for what the machine does.
pub fn time(time: Duration) -> Duration {
    time * slowness()
}

/// A sample that takes as long as one of `count` on a machine of today.
pub fn sample(count: usize) -> usize {
    (count / slowness() as usize).max(1)
}
