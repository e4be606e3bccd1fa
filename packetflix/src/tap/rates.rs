//! How much a capture may have in a second.
//!
//! They hold in the kernel, where a packet over them costs the host a look at the clock and no copy. A rate is the same for all
//! captures, so that a bucket for each tap is a bucket for each of its clients.

use std::fmt;

use packetflix_common::RateCosts;

/// Bounds of what is captured in a second, on all interfaces of a tap together. The programs keep to them before they
/// copy a packet, so that they protect the host; and since they are the same for all, no client of a shared tap gets more
/// or less than it would alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Most packets.
    pub packets: Option<u64>,
    /// Most bytes that are captured of them.
    pub bytes: Option<u64>,
}

impl RateLimits {
    /// The lowest bound of bytes.
    pub const MIN_BYTE_RATE: u64 = RateCosts::MIN_BYTE_RATE;

    /// As the programs reckon with them.
    pub(super) fn costs(self) -> RateCosts {
        RateCosts::new(self.packets, self.bytes)
    }
}

/// Tells clients what they are in for; nothing where nothing is bounded.
impl fmt::Display for RateLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bounds = match (self.packets, self.bytes) {
            (None, None) => return Ok(()),
            (Some(packets), None) => format!("{packets} packets"),
            (None, Some(bytes)) => format!("{bytes} bytes"),
            (Some(packets), Some(bytes)) => format!("{packets} packets and {bytes} bytes"),
        };
        write!(
            f,
            "the service captures at most {bounds} a second, and counts what is more as dropped"
        )
    }
}
