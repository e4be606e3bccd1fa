//! The HTTP side: the listening socket, the routes, requests and refusals, and the WebSocket.

mod capture;
mod refusal;
mod request;
mod routes;
mod server;
mod targets;
mod websocket;

pub use server::{listen, serve};
