//! Packet filters.

mod child;
pub mod classic;
pub mod compile;
mod libpcap;
mod names;

pub use child::answer_if_asked;
