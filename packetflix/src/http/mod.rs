//! The HTTP side: the listening sockets, who comes in, the routes and the proxy, requests and refusals, and the WebSocket.

mod admission;
mod answers;
mod capture;
mod captures;
mod chain;
mod connection;
mod credentials;
mod filter;
mod front;
mod health;
mod host;
mod judge;
mod listen;
mod live;
mod log;
mod origin;
mod own;
mod proxy;
mod refusal;
mod refusal_log;
mod request;
mod request_line;
mod routes;
mod server;
mod targets;
mod tcp;
mod tls;
mod websocket;

pub use self::{
    listen::ListenError,
    live::{NotLive, live},
    server::{Doors, DoorsError, serve},
    tls::TlsError,
};

pub use crate::captures::AuditFileError;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use request::fuzzing;
