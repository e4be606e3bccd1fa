//! Port-forward as the API server does it over WebSocket: each port has a channel for its bytes and one for what is wrong, which
//! a byte before each message tells.
//!
//! Source: the subprotocol `v4.channel.k8s.io` of the public API.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    thread,
};

use anyhow::Context as _;
use tokio_tungstenite::tungstenite::{Message, WebSocket, handshake::derive_accept_key, protocol::Role};

use crate::http::Head;

/// The subprotocol that is spoken.
const PROTOCOL: &str = "v4.channel.k8s.io";

const DATA: u8 = 0;
const ERROR: u8 = 1;

/// Forwards a connection to a port of this host, as port `port` of a pod; to nowhere where there is none.
pub(super) fn forward(mut stream: TcpStream, head: &Head, port: u16, to: Option<u16>) -> anyhow::Result<()> {
    let key = head.values("sec-websocket-key");
    let accept = derive_accept_key(key.first().context("no key")?.as_bytes());
    write!(
        stream,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\
         Sec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n"
    )?;
    let mut sender = WebSocket::from_raw_socket(stream.try_clone()?, Role::Server, None);
    for channel in [DATA, ERROR] {
        let [low, high] = port.to_le_bytes();
        sender.send(Message::binary(vec![channel, low, high]))?;
    }
    let Some(Ok(target)) = to.map(|to| TcpStream::connect(("127.0.0.1", to))) else {
        let mut told = vec![ERROR];
        told.extend(format!("an error occurred forwarding {port}: connection refused").bytes());
        sender.send(Message::binary(told))?;
        return Ok(sender.close(None)?);
    };
    let from_target = target.try_clone()?;
    thread::spawn(move || {
        // Whoever leaves, the other side is told.
        let _ = tell(from_target, &mut sender);
        let _ = sender.close(None);
        let _ = sender.get_ref().shutdown(Shutdown::Both);
    });
    let mut receiver = WebSocket::from_raw_socket(stream, Role::Server, None);
    let carried = carry(&mut receiver, &target);
    let _ = target.shutdown(Shutdown::Both);
    carried
}

fn tell(mut target: TcpStream, sender: &mut WebSocket<TcpStream>) -> anyhow::Result<()> {
    let mut bytes = vec![0; 32 << 10];
    loop {
        let read = target.read(&mut bytes[1..])?;
        if read == 0 {
            return Ok(());
        }
        bytes[0] = DATA;
        sender.send(Message::binary(bytes[..=read].to_vec()))?;
    }
}

fn carry(receiver: &mut WebSocket<TcpStream>, mut target: &TcpStream) -> anyhow::Result<()> {
    loop {
        match receiver.read()? {
            Message::Binary(bytes) if bytes.first() == Some(&DATA) => target.write_all(&bytes[1..])?,
            Message::Close(_) => return Ok(()),
            _ => {}
        }
    }
}
