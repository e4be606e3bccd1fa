//! The HTTP side: the listening socket, the routes, requests and refusals, and the
//! WebSocket.

mod capture;
mod front;
mod log;
mod refusal;
mod request;
mod routes;
mod server;
mod tcp;
mod websocket;

pub use server::{listen, serve};
