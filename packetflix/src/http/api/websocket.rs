//! The WebSocket of a running capture: batches out, the client's control frames in, and a proper end.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use fastwebsockets::{Frame, OpCode, Payload, WebSocket, WebSocketError, WebSocketRead, WebSocketWrite};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, ReadBuf, ReadHalf, WriteHalf},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::refusal::Refusal;
use crate::{
    capture_end::CaptureEnd,
    session::{ClientStream, Ended},
};

/// Most bytes of a frame that a client may send; all that it has to say are control frames.
const MAX_CLIENT_FRAME_LEN: usize = 64 * 1024;

/// Most bytes that are read of a client at once.
const MAX_READ: usize = 4 * 1024;

/// Most control frames of the client that wait to be answered.
const QUEUED_EVENTS: usize = 8;

/// How often a client is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// How long the last frames may take, and then the client's close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The text message with which a client asks for the rest of the stream and its end.
const STOP: &[u8] = b"stop";

/// Most bytes of a control frame (RFC 6455, section 5.5), and so of a close frame's reason.
const MAX_CONTROL_LEN: usize = 125;
const MAX_REASON_LEN: usize = MAX_CONTROL_LEN - 2;

/// Why a stream has ended whose client closed.
const CLOSED_BY_CLIENT: &str = "closed by the client";

const NORMAL: u16 = 1000;
const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const NOT_TEXT: u16 = 1007;
const NOT_ALLOWED: u16 = 1008;
const FAILED: u16 = 1011;

type Reader = WebSocketRead<BoundedReads<ReadHalf<TokioIo<Upgraded>>>>;
type Writer = WebSocketWrite<WriteHalf<TokioIo<Upgraded>>>;

/// What the client says.
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Ping(Bytes),
    Pong,
    /// It wants what was captured until now, the final statistics, and then the end.
    Stop,
    Close,
    /// It broke the protocol.
    Garbage(Fault),
    /// The connection is gone; holds how.
    Gone(String),
}

/// Why the client's side ended the capture.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ClientEnd {
    Closed,
    Garbage(Fault),
    Gone(String),
}

/// How a client broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fault {
    /// The close code for that.
    code: u16,
    what: String,
}

/// The connection.
struct Client {
    writer: Writer,
    peer: Peer,
    timeout: Duration,
}

/// What is known of the client.
struct Peer {
    events: mpsc::Receiver<Event>,
    last_heard: Instant,
    /// A ping of the client's that is still to be answered.
    pong_due: Option<Bytes>,
    /// Whether it has asked for the end of the stream.
    has_stopped: bool,
    end: Option<ClientEnd>,
    /// Ends the session, which then sends its last batches.
    stop: CancellationToken,
}

/// Sends what `session` has to say until either side ends it, of which `stop` tells the session; then closes the
/// connection.
pub(crate) async fn serve(
    socket: WebSocket<TokioIo<Upgraded>>,
    mut session: impl ClientStream,
    stop: CancellationToken,
    client_timeout: Duration,
) {
    let (reader, writer) = split(socket);
    let (sender, events) = mpsc::channel(QUEUED_EVENTS);
    let _reader = AbortOnDropHandle::new(tokio::spawn(read(reader, sender)));
    let peer = Peer {
        events,
        last_heard: Instant::now(),
        pong_due: None,
        has_stopped: false,
        end: None,
        stop,
    };
    let mut client = Client {
        writer,
        peer,
        timeout: client_timeout,
    };
    client.send_all(&mut session).await;
    if client.peer.end == Some(ClientEnd::Closed) {
        // At once: its reader may be gone already. The account comes after it.
        let closed = client.close(NORMAL, CLOSED_BY_CLIENT);
        let _ = timeout(CLOSE_TIMEOUT, closed).await;
    }
    if client.peer.end.is_some() {
        session.settle_account().await;
    }

    let (ended, totals) = session.end();
    let (code, end, reason) = close_reason(&client.peer, &ended);
    tracing::info!(
        code,
        reason,
        delivered = totals.delivered,
        dropped = totals.dropped,
        "ended"
    );
    session.conclude(end, &reason);
    // Of a failed write nobody knows how much went out: what follows it could not be read.
    if !matches!(client.peer.end, Some(ClientEnd::Gone(_) | ClientEnd::Closed)) {
        // A client that does not take the frame in time has had its chance.
        let _ = timeout(CLOSE_TIMEOUT, client.close(code, &reason)).await;
    }
}

fn split(socket: WebSocket<TokioIo<Upgraded>>) -> (Reader, Writer) {
    socket.split(|stream| {
        let (reader, writer) = tokio::io::split(stream);
        (BoundedReads(reader), writer)
    })
}

/// Tells a refusal, as a message that is text with what the body of an answer would be, and closes.
pub(crate) async fn refuse(socket: WebSocket<TokioIo<Upgraded>>, refusal: &Refusal) {
    let (reader, mut writer) = split(socket);
    let (sender, mut events) = mpsc::channel(QUEUED_EVENTS);
    let _reader = AbortOnDropHandle::new(tokio::spawn(read(reader, sender)));
    let text = refusal.body().to_string();
    let reason = &refusal.sentence[..refusal.sentence.floor_char_boundary(MAX_REASON_LEN)];
    let told = async {
        let text = Frame::text(Payload::Borrowed(text.as_bytes()));
        writer.write_frame(text).await?;
        writer
            .write_frame(Frame::close(NOT_ALLOWED, reason.as_bytes()))
            .await?;
        writer.flush().await?;
        // Then its close, or whatever else is the last that it says.
        while !matches!(
            events.recv().await,
            None | Some(Event::Close | Event::Gone(_) | Event::Garbage(_))
        ) {}
        Ok::<_, WebSocketError>(())
    };
    // Whoever does not take it in time has had the chance.
    let _ = timeout(CLOSE_TIMEOUT, told).await;
}

impl Client {
    /// Sends until the session has no more to say, or the client does not take it any more.
    async fn send_all(&mut self, session: &mut impl ClientStream) {
        let mut ping = interval(PING_INTERVAL.min(self.timeout / 3));
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ping.reset();
        while self.peer.end.is_none() {
            // In no order, so that whoever pings without end does not keep himself from packets, or us from ending.
            let written = tokio::select! {
                event = self.peer.events.recv() => {
                    self.peer.note(event);
                    Ok(())
                }
                _ = ping.tick() => self.ping().await,
                message = session.next() => match message {
                    // What it has said meanwhile counts: nothing may follow its close.
                    Some(_) if self.peer.has_ended() => return,
                    Some(message) => {
                        let frame = Frame::binary(Payload::Borrowed(message.as_ref()));
                        let written = self.write(frame).await;
                        if written.is_ok() {
                            session.sent(message);
                        }
                        written
                    }
                    None => return,
                }
            };
            let written = match (written, self.peer.pong_due.take()) {
                (Ok(()), Some(payload)) if self.peer.end.is_none() => {
                    self.write(Frame::pong(Payload::Borrowed(&payload))).await
                }
                (written, _) => written,
            };
            if let Err(reason) = written {
                self.peer.end = Some(ClientEnd::Gone(reason));
            }
        }
    }

    /// Asks the client whether it is there, unless it has been silent for too long.
    async fn ping(&mut self) -> Result<(), String> {
        if self.peer.last_heard.elapsed() >= self.timeout {
            return Err(format!("it answered no ping for {} s", self.timeout.as_secs()));
        }
        self.write(Frame::new(true, OpCode::Ping, None, Payload::Borrowed(&[])))
            .await
    }

    /// Writes a frame whole, and listens meanwhile: a client that stalls may close, or vanish. Once the end
    /// has begun, it gets little time to take the frame.
    async fn write(&mut self, frame: Frame<'_>) -> Result<(), String> {
        let Self {
            writer,
            peer,
            timeout,
        } = self;
        let mut write = std::pin::pin!(async {
            writer.write_frame(frame).await?;
            writer.flush().await
        });
        let stop = peer.stop.clone();
        let mut ending = stop.is_cancelled();
        let mut deadline = Instant::now() + if ending { CLOSE_TIMEOUT } else { *timeout };
        loop {
            tokio::select! {
                biased;
                written = write.as_mut() => return written.map_err(|error| error.to_string()),
                event = peer.events.recv(), if peer.end.is_none() => {
                    peer.note(event);
                    if let Some(ClientEnd::Gone(reason)) = &peer.end {
                        return Err(reason.clone());
                    }
                }
                () = stop.cancelled(), if !ending => {
                    ending = true;
                    deadline = Instant::now() + CLOSE_TIMEOUT;
                }
                () = sleep_until(deadline) => {
                    let patience = if ending { CLOSE_TIMEOUT } else { *timeout };
                    return Err(format!("it took nothing for {} s", patience.as_secs()));
                }
            }
        }
    }

    /// Says goodbye, and waits for the client to do so.
    async fn close(&mut self, code: u16, reason: &str) -> Result<(), WebSocketError> {
        self.writer
            .write_frame(Frame::close(code, reason.as_bytes()))
            .await?;
        self.writer.flush().await?;
        while self.peer.end.is_none() {
            let event = self.peer.events.recv().await;
            self.peer.note(event);
        }
        Ok(())
    }
}

impl Peer {
    /// Takes in what waits to be taken in, which is bounded; tells whether the client has ended.
    fn has_ended(&mut self) -> bool {
        while self.end.is_none()
            && let Ok(event) = self.events.try_recv()
        {
            self.note(Some(event));
        }
        self.end.is_some()
    }

    /// Takes in what the client said; `None` when it will say no more.
    fn note(&mut self, event: Option<Event>) {
        self.last_heard = Instant::now();
        self.end = match event {
            Some(Event::Pong) => None,
            Some(Event::Ping(payload)) => {
                self.pong_due = Some(payload);
                None
            }
            Some(Event::Stop) => {
                self.has_stopped = true;
                None
            }
            Some(Event::Close) => Some(ClientEnd::Closed),
            Some(Event::Garbage(fault)) => Some(ClientEnd::Garbage(fault)),
            Some(Event::Gone(how)) => Some(ClientEnd::Gone(how)),
            None => Some(ClientEnd::Gone("the connection is gone".to_owned())),
        };
        if self.end.is_some() || self.has_stopped {
            self.stop.cancel();
        }
    }
}

/// Reads little at a time: the library's buffer grows with what a read gives, and a flood of frames gives megabytes.
struct BoundedReads<R>(R);

impl<R: AsyncRead + Unpin> AsyncRead for BoundedReads<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = into.remaining().min(MAX_READ);
        let mut part = ReadBuf::new(into.initialize_unfilled_to(len));
        ready!(Pin::new(&mut self.0).poll_read(context, &mut part))?;
        let len = part.filled().len();
        into.advance(len);
        Poll::Ready(Ok(()))
    }
}

/// Reads what the client says until it ends. Data frames other than the one that asks for the end mean nothing here.
async fn read(mut reader: Reader, events: mpsc::Sender<Event>) {
    reader.set_auto_close(false);
    reader.set_auto_pong(false);
    reader.set_max_message_size(MAX_CLIENT_FRAME_LEN);
    let mut grammar = Grammar::default();
    loop {
        // Nothing is sent on the client's behalf: both automatisms are off.
        let frame = reader
            .read_frame(&mut |_| async { Ok::<_, WebSocketError>(()) })
            .await;
        let frame = frame.map(|mut frame| (grammar.check(&mut frame), frame));
        let event = match frame {
            Ok((Err(fault), _)) => Event::Garbage(fault),
            Ok((Ok(()), frame)) => match frame.opcode {
                OpCode::Ping => Event::Ping(Bytes::copy_from_slice(&frame.payload)),
                OpCode::Pong => Event::Pong,
                OpCode::Close => Event::Close,
                OpCode::Text if frame.fin && *frame.payload == *STOP => Event::Stop,
                OpCode::Text | OpCode::Binary | OpCode::Continuation => continue,
            },
            Err(WebSocketError::UnexpectedEOF) => Event::Gone("it left without a close".to_owned()),
            Err(WebSocketError::IoError(error)) => Event::Gone(error.to_string()),
            Err(error) => Event::Garbage(error.into()),
        };
        let last = !matches!(event, Event::Ping(_) | Event::Pong | Event::Stop);
        if events.send(event).await.is_err() || last {
            return;
        }
    }
}

/// What the library lets pass of what RFC 6455 forbids.
#[derive(Debug, Default)]
struct Grammar {
    /// The message whose first frame has come, and not yet its last.
    message: Option<Message>,
}

#[derive(Debug)]
enum Message {
    /// With the bytes of a character that is not complete yet.
    Text(Vec<u8>),
    Binary,
}

impl Grammar {
    /// Checks a frame of a client, whose payload is unmasked.
    fn check(&mut self, frame: &mut Frame<'_>) -> Result<(), Fault> {
        // The library tells by the head alone whether it was masked.
        let mut head = [0; 16];
        frame.fmt_head(&mut head);
        if head[1] & 0x80 == 0 {
            return Err(Fault::of("a frame is not masked"));
        }
        match frame.opcode {
            OpCode::Close | OpCode::Ping | OpCode::Pong if frame.payload.len() > MAX_CONTROL_LEN => {
                Err(Fault::of("a control frame is too large"))
            }
            OpCode::Close => check_close(&frame.payload),
            OpCode::Ping | OpCode::Pong => Ok(()),
            OpCode::Text | OpCode::Binary | OpCode::Continuation => self.check_data(frame),
        }
    }

    fn check_data(&mut self, frame: &Frame<'_>) -> Result<(), Fault> {
        let mut message = match (self.message.take(), frame.opcode) {
            (None, OpCode::Text) => Message::Text(Vec::new()),
            (None, OpCode::Binary) => Message::Binary,
            (Some(message), OpCode::Continuation) => message,
            (None, _) => return Err(Fault::of("a frame continues no message")),
            (Some(_), _) => return Err(Fault::of("a message begins within another")),
        };
        if let Message::Text(begun) = &mut message {
            begun.extend_from_slice(&frame.payload);
            let (complete, rest) = match str::from_utf8(begun) {
                Ok(_) => (begun.len(), 0),
                Err(error) => (error.valid_up_to(), error.error_len().unwrap_or(0)),
            };
            if rest > 0 || (frame.fin && complete < begun.len()) {
                return Err(Fault::of_text());
            }
            begun.drain(..complete);
        }
        self.message = (!frame.fin).then_some(message);
        Ok(())
    }
}

/// Checks what a close frame says, if anything (RFC 6455, sections 5.5.1 and 7.4; the registry of IANA has 1012 to 1014).
fn check_close(payload: &[u8]) -> Result<(), Fault> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(()),
            _ => Err(Fault::of("a close frame has half a code")),
        };
    };
    match u16::from_be_bytes(*code) {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        code => return Err(Fault::of(&format!("a close frame has the code {code}"))),
    }
    str::from_utf8(reason).map(drop).map_err(|_| Fault::of_text())
}

impl Fault {
    fn of(what: &str) -> Self {
        Self {
            code: PROTOCOL_ERROR,
            what: what.to_owned(),
        }
    }

    fn of_text() -> Self {
        WebSocketError::InvalidUTF8.into()
    }
}

impl From<WebSocketError> for Fault {
    fn from(error: WebSocketError) -> Self {
        let code = match error {
            WebSocketError::InvalidUTF8 => NOT_TEXT,
            _ => PROTOCOL_ERROR,
        };
        Self {
            code,
            what: error.to_string(),
        }
    }
}

/// The close code, kind and reason of an end: the client's own comes first, since the session ends in its wake.
fn close_reason(client: &Peer, session: &Ended) -> (u16, CaptureEnd, String) {
    let (code, end, mut reason) = match (client.end.as_ref(), session) {
        (Some(ClientEnd::Closed), _) => (NORMAL, CaptureEnd::Closed, CLOSED_BY_CLIENT.to_owned()),
        (Some(ClientEnd::Garbage(Fault { code, what })), _) => {
            (*code, CaptureEnd::ProtocolError, format!("not WebSocket: {what}"))
        }
        (Some(ClientEnd::Gone(how)), _) => (
            NORMAL,
            CaptureEnd::ClientGone,
            format!("the client is gone: {how}"),
        ),
        (None, Ended::Stopped) if client.has_stopped => {
            (NORMAL, CaptureEnd::Closed, "stopped by the client".to_owned())
        }
        (None, session) => {
            let (end, reason) = session.told();
            let code = match end {
                CaptureEnd::Shutdown => GOING_AWAY,
                CaptureEnd::Revoked => NOT_ALLOWED,
                CaptureEnd::Failed => FAILED,
                _ => NORMAL,
            };
            (code, end, reason)
        }
    };
    reason.truncate(reason.floor_char_boundary(MAX_REASON_LEN));
    (code, end, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Limit;

    fn peer(end: Option<ClientEnd>, has_stopped: bool) -> Peer {
        Peer {
            events: mpsc::channel(1).1,
            last_heard: Instant::now(),
            pong_due: None,
            has_stopped,
            end,
            stop: CancellationToken::new(),
        }
    }

    #[test]
    fn every_end_has_a_code_that_may_be_sent() {
        let clients = [
            None,
            Some(ClientEnd::Closed),
            Some(ClientEnd::Garbage(Fault::of(&"ü".repeat(200)))),
            Some(ClientEnd::Garbage(Fault::of_text())),
            Some(ClientEnd::Gone("x".repeat(200))),
        ];
        let sessions = [
            Ended::Stopped,
            Ended::ByOperator,
            Ended::NamespaceGone(5),
            Ended::TargetGone("ü".repeat(200)),
            Ended::Limit(Limit::MaxDuration(Duration::MAX)),
            Ended::Failed("y".repeat(200)),
        ];
        for end in &clients {
            for session in &sessions {
                let (code, _, reason) = close_reason(&peer(end.clone(), false), session);
                assert!([1000, 1001, 1002, 1007, 1011].contains(&code));
                assert!(!reason.is_empty() && reason.len() <= MAX_REASON_LEN);
            }
        }
        assert_eq!(close_reason(&peer(None, false), &Ended::Stopped).0, GOING_AWAY);
        let stopped = "stopped by the client".to_owned();
        assert_eq!(
            close_reason(&peer(None, true), &Ended::Stopped),
            (NORMAL, CaptureEnd::Closed, stopped)
        );
        assert_eq!(close_reason(&peer(None, false), &Ended::ByOperator).0, NORMAL);
        assert_eq!(
            close_reason(&peer(None, false), &Ended::NamespaceGone(5)).0,
            NORMAL
        );
        let limit = Ended::Limit(Limit::Packets(100));
        let reason = "the limit of 100 packets is reached".to_owned();
        assert_eq!(
            close_reason(&peer(None, false), &limit),
            (NORMAL, CaptureEnd::Limit, reason)
        );
        assert_eq!(
            close_reason(&peer(None, false), &Ended::Failed(String::new())).0,
            FAILED
        );
    }
}
