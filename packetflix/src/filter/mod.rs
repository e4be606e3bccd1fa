//! Packet filters: classic BPF, as libpcap compiles it, becomes eBPF, which goes into the programs that capture.
//!
//! Pure: nothing here calls the kernel; of Linux it knows the numbers of the two instruction sets and of
//! `struct __sk_buff`.

pub mod classic;
pub mod native;
mod translate;

pub use translate::{TranslateError, translate};
