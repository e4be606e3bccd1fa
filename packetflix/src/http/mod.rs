//! The HTTP side: the listening socket, the routes and the proxy, requests and refusals, and the WebSocket.

mod capture;
mod filter;
mod front;
mod log;
mod own;
mod proxy;
mod refusal;
mod request;
mod routes;
mod server;
mod targets;
mod tcp;
mod websocket;

pub use server::{listen, serve};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use request::fuzzing;
