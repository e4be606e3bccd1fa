//! A capture that runs: the messages of its WebSocket, and how it ends.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use fastwebsockets::{
    Frame, OpCode, Payload, Role, WebSocket, WebSocketError, WebSocketRead, WebSocketWrite,
    handshake::generate_key,
};
use hyper::{
    Method, StatusCode,
    header::{CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::{Mutex, mpsc},
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    error::Failure,
    http::{self, RequestError},
    request::{CaptureRequest, Target},
    server::Server,
};

/// How long the server may be silent; it pings every 20 s.
const SILENCE: Duration = Duration::from_secs(70);

/// How long the server's close may take once we have closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(3);

/// Most bytes of a message. A packetflix server sends a quarter of a megabyte at most.
const MAX_MESSAGE_LEN: usize = 16 << 20;

/// Most messages that wait to be written.
const QUEUED_PIECES: usize = 8;

/// The text message that asks for the rest of the stream and its end.
const STOP: &[u8] = b"stop";

/// Close code of an end as asked (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;

/// What a server appends to the key before it hashes it (RFC 6455, section 1.3).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

type Reader = WebSocketRead<ReadHalf<TokioIo<Upgraded>>>;
type Writer = WebSocketWrite<WriteHalf<TokioIo<Upgraded>>>;

/// A capture that runs. To drop it is to break the connection, which ends it on the server too.
pub struct CaptureStream {
    pieces: mpsc::Receiver<Result<Piece, StreamError>>,
    pulse: Pulse,
    note: Option<String>,
    _reader: AbortOnDropHandle<()>,
}

/// How much of a stream is held that nobody has taken yet.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most bytes of a message.
    pub message_len: usize,
    /// Most messages that wait.
    pub pieces: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            message_len: MAX_MESSAGE_LEN,
            pieces: QUEUED_PIECES,
        }
    }
}

/// A piece of the stream, or its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of pcapng.
    Data(Data),
    /// The server has closed.
    Closed(Close),
}

/// Bytes of pcapng, as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The bytes.
    pub bytes: Bytes,
    /// When they came, where they were waited for; otherwise they have been there for a while.
    pub came: Option<Instant>,
}

/// How the server has ended a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// Close code (RFC 6455, section 7.4).
    pub code: u16,
    /// Why, for people.
    pub reason: String,
}

impl Close {
    /// Whether the capture ended as somebody had asked, or since there is nothing more to capture.
    pub fn is_as_asked(&self) -> bool {
        self.code == NORMAL
    }
}

/// Why there is no capture.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The server refuses it, or is not reached.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The server is one that captures one target at a time.
    #[error(
        "this server captures one target at a time: name one, as `packetflix list` shows it, or install a newer packetflix there"
    )]
    OneTarget,
    /// The handshake is none of a WebSocket.
    #[error("the server's handshake is none of a WebSocket: {0}")]
    Handshake(&'static str),
    /// The connection broke while it was upgraded.
    #[error("the connection broke off")]
    Upgrade(#[source] hyper::Error),
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Request(error) => error.into(),
            error => Self::refused(error),
        }
    }
}

/// Why a stream broke off.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection ended without a close frame.
    #[error("the server is gone without a word")]
    Gone,
    /// Nothing came for long.
    #[error("nothing was heard of the server for {seconds} s", seconds = SILENCE.as_secs())]
    Silent,
    /// The connection is broken.
    #[error("the connection is broken")]
    Broken(#[source] WebSocketError),
    /// The server sends what no packetflix sends.
    #[error("the server sends text: {0}")]
    Text(String),
}

impl CaptureStream {
    /// Starts a capture.
    ///
    /// # Errors
    /// When the server refuses it, or cannot be reached.
    pub async fn open(server: &Server, request: &CaptureRequest) -> Result<Self, OpenError> {
        let opened = Self::open_at(server, &request.path(), &Bounds::default()).await;
        opened.map_err(|error| match error {
            OpenError::Request(error) => refusal(error, &request.target),
            error => error,
        })
    }

    /// Starts the capture that a path with its query asks for, within bounds.
    ///
    /// # Errors
    /// When the server refuses it, or cannot be reached.
    pub async fn open_at(server: &Server, path: &str, bounds: &Bounds) -> Result<Self, OpenError> {
        let key = generate_key();
        let answer = http::send(server, Method::GET, path, upgrade_headers(&key)).await?;
        if answer.response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(answer.into_error(&server.address).await.into());
        }
        if answer.header("sec-websocket-accept") != Some(accept_of(&key)) {
            return Err(OpenError::Handshake("it does not know the key"));
        }
        let note = answer.header("packetflix-note");
        let upgraded = hyper::upgrade::on(answer.response)
            .await
            .map_err(OpenError::Upgrade)?;
        let socket = WebSocket::after_handshake(TokioIo::new(upgraded), Role::Client);
        let (mut reader, writer) = socket.split(tokio::io::split);
        reader.set_max_message_size(bounds.message_len);
        // A ping is heard of the server, and so has to be seen.
        reader.set_auto_pong(false);
        let pulse = Pulse {
            writer: Arc::new(Mutex::new(writer)),
            begun: Instant::now(),
            heard: Arc::default(),
        };
        let (sender, pieces) = mpsc::channel(bounds.pieces);
        let reading = tokio::spawn(read(reader, pulse.clone(), sender));
        Ok(Self {
            pieces,
            pulse,
            note,
            _reader: AbortOnDropHandle::new(reading),
        })
    }

    /// What the server says of this capture to people.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// The next piece of the stream. May be dropped while it waits.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn next(&mut self) -> Result<Piece, StreamError> {
        self.pieces.recv().await.unwrap_or(Err(StreamError::Gone))
    }

    /// Asks for what was captured until now, the final statistics, and the server's close.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn stop(&self) -> Result<(), StreamError> {
        self.write(Frame::text(Payload::Borrowed(STOP))).await
    }

    /// Ends the capture at once, and waits a little for the server to have taken note.
    pub async fn close(mut self) {
        if self.write(Frame::close(NORMAL, &[])).await.is_err() {
            return;
        }
        let closed = async { while let Ok(Piece::Data(_)) = self.next().await {} };
        // A server that does not answer is told by the connection's end.
        let _ = timeout(CLOSE_PATIENCE, closed).await;
    }

    async fn write(&self, frame: Frame<'_>) -> Result<(), StreamError> {
        let written = write(&self.pulse.writer, frame).await;
        written.map_err(StreamError::Broken)
    }

    /// Whether the server answers, to be asked beside it.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

/// Whether the server of a stream answers.
#[derive(Clone)]
pub struct Pulse {
    writer: Arc<Mutex<Writer>>,
    begun: Instant,
    /// Milliseconds from then until it was last heard.
    heard: Arc<AtomicU64>,
}

impl Pulse {
    /// Asks whether it is there; the answer is heard.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn ping(&self) -> Result<(), StreamError> {
        let ping = Frame::new(true, OpCode::Ping, None, Payload::Borrowed(&[]));
        write(&self.writer, ping).await.map_err(StreamError::Broken)
    }

    /// When it was last heard, as far as what it says is read.
    pub fn heard(&self) -> Instant {
        self.begun + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    fn note(&self) {
        let elapsed = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(elapsed, Ordering::Relaxed);
    }
}

async fn write(writer: &Mutex<Writer>, frame: Frame<'_>) -> Result<(), WebSocketError> {
    // What the frame borrows does not live as long as the writer.
    let frame = Frame::new(
        frame.fin,
        frame.opcode,
        None,
        Payload::Owned(frame.payload.to_vec()),
    );
    let mut writer = writer.lock().await;
    writer.write_frame(frame).await?;
    writer.flush().await
}

/// Reads until the server ends, or nobody takes what is read.
async fn read(mut reader: Reader, pulse: Pulse, pieces: mpsc::Sender<Result<Piece, StreamError>>) {
    // What has no place is not read: there are no more pieces than wait.
    while let Ok(place) = pieces.reserve().await {
        let piece = next_piece(&mut reader, &pulse).await;
        let is_last = !matches!(piece, Ok(Piece::Data(_)));
        place.send(piece);
        if is_last {
            return;
        }
    }
}

async fn next_piece(reader: &mut Reader, pulse: &Pulse) -> Result<Piece, StreamError> {
    let writer = &*pulse.writer;
    loop {
        let mut answer = async |frame| write(writer, frame).await;
        let mut reading = pin!(timeout(SILENCE, reader.read_frame(&mut answer)));
        let mut was_waited_for = false;
        let frame = poll_fn(|context| {
            let polled = reading.as_mut().poll(context);
            was_waited_for |= polled.is_pending();
            polled
        });
        let frame = frame.await.map_err(|_| StreamError::Silent)?;
        let frame = match frame {
            Ok(frame) => {
                pulse.note();
                frame
            }
            Err(WebSocketError::UnexpectedEOF) => return Err(StreamError::Gone),
            Err(error) => return Err(StreamError::Broken(error)),
        };
        match frame.opcode {
            OpCode::Binary | OpCode::Continuation => {
                return Ok(Piece::Data(Data {
                    bytes: bytes_of(frame.payload),
                    came: was_waited_for.then(Instant::now),
                }));
            }
            OpCode::Text => {
                let text = String::from_utf8_lossy(&frame.payload).into_owned();
                return Err(StreamError::Text(text));
            }
            OpCode::Close => return Ok(Piece::Closed(close_of(&frame.payload))),
            OpCode::Ping => {
                let pong = timeout(SILENCE, write(writer, Frame::pong(frame.payload)));
                // One that takes none is as good as silent.
                pong.await
                    .map_err(|_| StreamError::Silent)?
                    .map_err(StreamError::Broken)?;
            }
            OpCode::Pong => {}
        }
    }
}

fn bytes_of(payload: Payload<'_>) -> Bytes {
    match payload {
        Payload::Bytes(bytes) => bytes.freeze(),
        other => Bytes::copy_from_slice(&other),
    }
}

/// What a close frame says; one without a code stands for 1005 (RFC 6455, section 7.1.5).
fn close_of(payload: &[u8]) -> Close {
    const NO_CODE: u16 = 1005;
    match payload.split_first_chunk() {
        Some((code, reason)) => Close {
            code: u16::from_be_bytes(*code),
            reason: String::from_utf8_lossy(reason).into_owned(),
        },
        None => Close {
            code: NO_CODE,
            reason: "the server closed without a reason".to_owned(),
        },
    }
}

/// A server that does not know how several targets are asked for says so in its own words, which help nobody here.
fn refusal(error: RequestError, target: &Target) -> OpenError {
    const NOT_UNDERSTOOD: [&str; 2] = ["parameter_unknown", "target_missing"];
    match (&error, target) {
        (RequestError::Refused(refusal), Target::Selection(_))
            if NOT_UNDERSTOOD.contains(&&refusal.code[..]) =>
        {
            OpenError::OneTarget
        }
        _ => error.into(),
    }
}

fn upgrade_headers(key: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(key) = HeaderValue::from_str(key) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    headers
}

/// What a server answers to a key (RFC 6455, section 4.2.2).
fn accept_of(key: &str) -> String {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{KEY_SUFFIX}").as_bytes());
    STANDARD.encode(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_answered_as_in_the_specification() {
        // The example of RFC 6455, section 1.3.
        assert_eq!(
            accept_of("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }

    #[test]
    fn closes_have_codes_and_reasons() {
        let close = close_of(b"\x03\xe8the limit is reached");
        assert_eq!((close.code, &close.reason[..]), (1000, "the limit is reached"));
        assert!(close.is_as_asked());
        for odd in [&b""[..], b"\x03"] {
            assert_eq!(close_of(odd).code, 1005);
            assert!(!close_of(odd).is_as_asked());
        }
    }
}
