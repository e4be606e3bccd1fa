//! The client's side of packetflix: captures of a server into files, pipes, Wireshark and the terminal.
//!
//! [`server`] says which server is meant, [`connect`] reaches it, [`http`] asks it, and [`stream`] is a capture that runs:
//! messages of whole blocks of [`pcapng`]. [`run`] brings it to its end: into an [`output`], or
//! as [`lines`]. On these stand the verbs of the command line ([`cli`]).

mod address;
mod capture;
mod captures;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod connect;
mod dial;
pub mod error;
mod extcap;
pub mod http;
pub mod interrupts;
pub mod lines;
mod list;
pub mod local;
mod open;
pub mod output;
pub mod pcapng;
mod pods;
mod progress;
pub mod request;
pub mod run;
mod section;
pub mod server;
mod servers;
pub mod stream;
pub mod summary;
mod table;
mod terminal;
mod units;
pub mod watch;
mod wireshark;
