//! What is pure of packetflix' filters, on both sides of libpcap, which compiles an expression to classic BPF.
//!
//! Before it, a [`Language`] says which words of an expression are names, and puts in their places what they stand for.
//! After it, [`classic::check`] and [`translate`] make eBPF of the program.
//!
//! Nothing here asks a system for anything: what is known of Linux is numbers, those of the two instruction sets and of
//! `struct __sk_buff`; what is known of libpcap is its version, which the caller tells.

#![forbid(unsafe_code)]

pub mod classic;
mod names;
pub mod native;
mod translate;

pub use names::{Found, Kind, Known, Language, Lookup, MAX_NAMES, Names, Refused};
pub use translate::{TranslateError, translate, translate_to_function};
