//! What translated filters are compared with, libpcap and an interpreter of our own, and what they are compared on:
//! expressions and packets made from a seed.

pub mod expressions;
pub mod packets;
pub mod pcap;
pub mod reference;
