//! The HTTP side. `transport` is from the listening sockets to a request; `endpoint.rs` asks whose it is and passes it to
//! `api`, our routes, or `proxy`, the discovery service.

mod api;
mod body;
mod credentials;
mod endpoint;
mod gateway;
mod host;
mod log;
mod origin;
mod proxy;
mod served;
mod site;
mod transport;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::api::fuzzing;
pub use self::transport::{
    listen::{Dialer, ListenError},
    live::{NotLive, live},
    server::{Entrance, Server, ServerError, Shutdown, SocketFiles},
    tls::TlsError,
};
