//! A client of WebSockets that hands on what it reads, and copies nothing: it should not be what is measured.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    ops::Range,
};

use anyhow::{Context as _, bail, ensure};

/// What is read at once, at most.
const ROOM: usize = 256 * 1024;

/// Kinds of frames: RFC 6455, section 5.2. All others are data.
const TEXT: u8 = 1;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

pub(crate) struct WebSocket {
    stream: TcpStream,
    buffer: Vec<u8>,
    unread: Range<usize>,
    /// Bytes of data that the frame still has.
    left: usize,
}

impl WebSocket {
    /// Opens what a server of this host has at a path.
    ///
    /// # Errors
    /// When it refuses.
    pub(crate) fn open(port: u16, path: &str) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            ensure!(stream.read(&mut byte)? == 1, "no answer");
            head.extend(byte);
        }
        ensure!(
            head.starts_with(b"HTTP/1.1 101 "),
            "{path}: {}",
            String::from_utf8_lossy(&head)
        );
        Ok(Self {
            stream,
            buffer: vec![0; ROOM],
            unread: 0..0,
            left: 0,
        })
    }

    /// For asking the server to end, while another thread reads.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub(crate) fn closer(&self) -> anyhow::Result<Closer> {
        Ok(Closer(self.stream.try_clone()?))
    }

    /// The next piece of data, or none after the server's close.
    ///
    /// # Errors
    /// When the connection breaks, or the server says that something failed.
    pub(crate) fn next(&mut self) -> anyhow::Result<Option<&[u8]>> {
        loop {
            let unread = &self.buffer[self.unread.clone()];
            if self.left > 0 && !unread.is_empty() {
                let now = self.left.min(unread.len());
                let begin = self.unread.start;
                self.left -= now;
                self.unread.start += now;
                return Ok(Some(&self.buffer[begin..begin + now]));
            }
            match head(unread).filter(|_| self.left == 0) {
                Some((kind, at, len)) if kind < CLOSE => {
                    self.unread.start += at;
                    self.left = len;
                }
                Some((kind, at, len)) if at + len <= unread.len() => {
                    let payload = unread[at..at + len].to_vec();
                    self.unread.start += at + len;
                    match kind {
                        PING => send(&mut self.stream, PONG, &payload)?,
                        CLOSE => return end(&payload).map(|()| None),
                        _ => {}
                    }
                }
                _ => self.fill()?,
            }
        }
    }

    /// Reads more, behind what is not read yet: a part of a frame's head, at most.
    fn fill(&mut self) -> anyhow::Result<()> {
        let len = self.unread.len();
        self.buffer.copy_within(self.unread.clone(), 0);
        let more = self.stream.read(&mut self.buffer[len..])?;
        ensure!(more > 0, "the connection ended without a close frame");
        self.unread = 0..len + more;
        Ok(())
    }
}

/// Asks the server for the rest of the stream.
pub(crate) struct Closer(TcpStream);

impl Closer {
    /// # Errors
    /// When the connection is broken.
    pub(crate) fn stop(mut self) -> anyhow::Result<()> {
        send(&mut self.0, TEXT, b"stop")
    }
}

/// Kind of a frame, length of its head, and of its payload: as servers send them, without a mask.
fn head(frame: &[u8]) -> Option<(u8, usize, usize)> {
    let (kind, len) = (frame.first()? & 0xf, frame.get(1)? & 0x7f);
    Some(match len {
        126 => (
            kind,
            4,
            usize::from(u16::from_be_bytes(*frame.get(2..)?.first_chunk()?)),
        ),
        127 => (
            kind,
            10,
            u64::from_be_bytes(*frame.get(2..)?.first_chunk()?) as usize,
        ),
        len => (kind, 2, usize::from(len)),
    })
}

/// A frame as clients send it, with a mask, which is of zeros.
fn send(stream: &mut TcpStream, kind: u8, payload: &[u8]) -> anyhow::Result<()> {
    let head = [0x80 | kind, 0x80 | payload.len() as u8, 0, 0, 0, 0];
    Ok(stream.write_all(&[&head, payload].concat())?)
}

/// What a server's close says.
fn end(payload: &[u8]) -> anyhow::Result<()> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return Ok(());
    };
    match u16::from_be_bytes(*code) {
        1000 => Ok(()),
        code => bail!(
            "ended with {code} {}",
            std::str::from_utf8(reason).context("no text")?
        ),
    }
}
