//! What breaks, and what becomes of captures then. `docs/reliability.md` tells users what these tests hold us to, with the
//! figures that they print.

mod clients;
mod clock;
mod connections;
mod engines;
mod flow;
mod inherited;
mod kernel;
mod kills;
mod malformed;
mod namespaces;
mod resources;
mod soak;

use packetflix_tests::raw;

/// A frame of which there is no other.
fn frame(number: u8) -> Vec<u8> {
    raw::ethernet(0x88b5, &[number; 46])
}
