//! Packet filters: expressions of pcap-filter(7), which libpcap compiles to classic BPF in a process of its own
//! (`compile.rs`), and which become eBPF (`translate.rs`) that goes into the programs that capture.
//!
//! The translation is pure: of Linux it knows the numbers of the two instruction sets and of `struct __sk_buff`.

mod child;
pub mod classic;
pub mod compile;
mod libpcap;
mod names;
pub mod native;
mod own;
mod translate;

pub use child::answer_if_asked;
pub use own::{OwnTraffic, without_own};
pub use translate::{TranslateError, translate};
