//! What holds for every TCP connection, a client's or to a service.

use std::{io, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// After how long a silent peer is asked by the kernel whether it is there, and how often then. One that has
/// gone without a word is known to be gone after two minutes; by its default the kernel would take two hours.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// Sends what is written at once, and notices a peer that vanishes.
pub(crate) fn keep_prompt_and_alive(stream: &TcpStream) {
    if let Err(error) = set_options(&SockRef::from(stream)) {
        tracing::debug!(%error, "an option of a connection could not be set");
    }
}

fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)
}
