//! The HTTP side: the listening sockets, who comes in, the routes and the proxy, requests and refusals, and the WebSocket.

mod admission;
mod answers;
mod api;
mod capture;
mod captures;
mod chain;
mod claimed;
mod connection;
mod credentials;
mod endpoint;
mod filter;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod host;
mod listen;
mod live;
mod log;
mod origin;
mod plain_answer;
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
    server::{Server, ServerError},
    tls::TlsError,
};
