//! From rings to batches of packets: the very code that reads the rings of a tap, for who has rings of another kind.
//!
//! [`Merge::drain`] gives the records of all rings to [`Packets::write`], in the order of their timestamps, until a
//! batch is full; [`Packets::take`] takes that.

pub use crate::{
    session::{packets::Packets, window::PacketCount},
    tap::{
        clock::{CaptureClock, ClockSource},
        rings::{Drained, Head, Merge, Ring},
    },
};
