//! From a socket to a request: who may connect, TLS, and how long each may take.

pub(crate) mod admission;
pub(crate) mod chain;
pub(crate) mod connection;
pub(crate) mod listen;
pub(crate) mod live;
pub(crate) mod request_line;
pub(crate) mod server;
pub(crate) mod tcp;
pub(crate) mod tls;
