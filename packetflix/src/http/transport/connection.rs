//! A client's connection, and how long it may take for what.
//!
//! The bounds are in the stream below hyper, which knows by the answers whether a head is awaited, and so can say 408, which
//! hyper does not. An upgraded connection leaves these bounds for those of captures.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use warp::http::StatusCode;

use super::{
    admission::{AwaitedHead, ConnectionSlot},
    request_line::RequestLine,
};
use crate::http::api::{code::Code, plain_answer::plain_answer};
use crate::{
    service::{Certificate, Peer},
    tap::OpenConnection,
};

/// How long a client may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For the head of a request; and how long a connection may be without one.
    head: Duration,
    /// To take something of an answer. WebSockets have a time of their own.
    answer: Duration,
}

const PATIENCE: Patience = Patience {
    head: Duration::from_secs(10),
    answer: Duration::from_secs(60),
};

/// What is known of a client before it says anything.
#[derive(Clone, Debug)]
pub(crate) struct ClientConnection {
    pub(crate) peer: Peer,
    /// Our end of the connection, if that has an address.
    pub(crate) local: Option<SocketAddr>,
    /// The certificate that it has shown, which was trusted then.
    pub(crate) certificate: Option<Arc<dyn Certificate>>,
    /// Whether it speaks TLS.
    pub(crate) is_encrypted: bool,
    /// Its place among the connections that there may be, if these are bounded.
    pub(crate) place: Option<Arc<ConnectionSlot>>,
}

/// A stream of bytes, both ways.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// What a connection is about, as those know who answer its requests.
#[derive(Clone, Debug)]
pub(crate) struct Exchange(Arc<State>);

#[derive(Debug)]
struct State {
    now: AtomicU8,
    /// Who reads, to look at the clock once the request is answered: until then there is no time in which anything has to
    /// come, and hyper looks no more by itself.
    reader: AtomicWaker,
    /// What was written is not taken yet.
    is_stalled: AtomicBool,
}

/// A request is awaited, since just now.
const BEGUN: u8 = 0;
/// A request is awaited.
const AWAITED: u8 = 1;
/// A request is answered.
const ANSWERED: u8 = 2;
/// The connection speaks another protocol.
const UPGRADED: u8 = 3;

impl Exchange {
    pub(crate) fn new() -> Self {
        Self(Arc::new(State {
            now: AtomicU8::new(BEGUN),
            reader: AtomicWaker::new(),
            is_stalled: AtomicBool::new(false),
        }))
    }

    /// Whether a request is answered at the moment, to the last byte, or was with a change to another protocol.
    pub(crate) fn is_answered(&self) -> bool {
        let is_answered = matches!(self.0.now.load(Ordering::Relaxed), ANSWERED | UPGRADED);
        is_answered || self.0.is_stalled.load(Ordering::Relaxed)
    }

    /// The head of a request has come. It is answered until what this gives is dropped.
    pub(crate) fn answer(&self) -> Answering {
        self.0.now.store(ANSWERED, Ordering::Relaxed);
        Answering(self.clone())
    }
}

/// A request that is answered.
#[derive(Debug)]
pub(crate) struct Answering(Exchange);

impl Answering {
    /// The answer is one with a body, after which the next request is awaited, or the last of this protocol.
    pub(crate) fn finish_with<B>(self, status: StatusCode, body: B) -> AnswerBody<B> {
        let Self(Exchange(state)) = &self;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            state.now.store(UPGRADED, Ordering::Relaxed);
        }
        AnswerBody {
            body,
            _answering: self,
        }
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let Self(Exchange(state)) = self;
        // An upgraded connection stays so.
        let _ = state
            .now
            .compare_exchange(ANSWERED, BEGUN, Ordering::Relaxed, Ordering::Relaxed);
        state.reader.wake();
    }
}

/// The body of an answer, which is under way for as long as this is there.
pub(crate) struct AnswerBody<B> {
    body: B,
    _answering: Answering,
}

impl<B: Body<Data = Bytes> + Unpin> Body for AnswerBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that ends when its client takes too long: with a 408 if the head of a request has begun, and silently
/// where there is nothing to answer.
pub(crate) struct Bounded {
    stream: Box<dyn ByteStream>,
    /// Says that its packets are our own, for as long as there may be any.
    _own: Option<OpenConnection>,
    exchange: Exchange,
    patience: Patience,
    /// Until when the head is to have come, or begun.
    head: Pin<Box<Sleep>>,
    has_head_begun: bool,
    /// The beginning of that head.
    line: RequestLine,
    /// How much of a head has come, where that is bounded for all together.
    counted: Option<AwaitedHead>,
    /// Until when something of the answer is to be taken, while nothing is.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Bounded {
    pub(crate) fn new(stream: Box<dyn ByteStream>, exchange: Exchange, own: Option<OpenConnection>) -> Self {
        Self {
            stream,
            _own: own,
            exchange,
            patience: PATIENCE,
            head: Box::pin(sleep(PATIENCE.head)),
            has_head_begun: false,
            line: RequestLine::default(),
            counted: None,
            stalled: None,
        }
    }

    /// Has its heads counted.
    pub(crate) fn counted(mut self, head: AwaitedHead) -> Self {
        self.counted = Some(head);
        self
    }

    /// No head is under way.
    fn end_head(&mut self) {
        if let Some(head) = &mut self.counted {
            head.end();
        }
    }

    fn state(&self) -> u8 {
        let Exchange(state) = &self.exchange;
        state.now.load(Ordering::Relaxed)
    }

    /// Waits anew for the head of a request, if a request was answered since the last time.
    fn await_head(&mut self) {
        let Exchange(state) = &self.exchange;
        let begun = state
            .now
            .compare_exchange(BEGUN, AWAITED, Ordering::Relaxed, Ordering::Relaxed);
        if begun.is_ok() {
            self.has_head_begun = false;
            self.line.begin_anew();
            self.end_head();
            let deadline = Instant::now() + self.patience.head;
            self.head.as_mut().reset(deadline);
        }
    }

    /// Says that the head took too long. A client that has left room for nothing is not waited for.
    fn say_too_slow(&mut self, context: &mut Context<'_>) {
        let sentence = format!(
            "the head of the request did not come within {:?}",
            self.patience.head
        );
        let answer = plain_answer(Code::HeadTimeout, &sentence);
        let _ = Pin::new(&mut self.stream).poll_write(context, &answer);
        let _ = Pin::new(&mut self.stream).poll_flush(context);
    }

    /// Passes on what a write came to, unless it has come to nothing for too long.
    fn bound<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if self.state() != AWAITED {
            self.end_head();
        }
        let Exchange(state) = &self.exchange;
        state.is_stalled.store(written.is_pending(), Ordering::Relaxed);
        if written.is_ready() || self.state() == UPGRADED {
            self.stalled = None;
            return written;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(self.patience.answer)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Exchange(state) = &self.exchange;
        state.reader.register(context.waker());
        self.await_head();
        let before = into.filled().len();
        let Self { stream, line, .. } = &mut *self;
        let read = line.poll_read(Pin::new(stream), context, into);
        if self.state() != AWAITED {
            self.end_head();
            return read;
        }
        if read.is_ready() {
            if let Some(head) = &mut self.counted {
                head.grow(into.filled().len() - before);
            }
            if into.filled().len() > before && !self.has_head_begun {
                self.has_head_begun = true;
                let deadline = Instant::now() + self.patience.head;
                self.head.as_mut().reset(deadline);
            }
            return read;
        }
        ready!(self.head.as_mut().poll(context));
        if self.has_head_begun {
            self.say_too_slow(context);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.bound(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.bound(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.bound(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.bound(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Patience = Patience {
        head: Duration::from_millis(100),
        answer: Duration::from_millis(200),
    };

    fn bounded() -> (Bounded, tokio::io::DuplexStream, Exchange) {
        let (ours, theirs) = tokio::io::duplex(1024);
        let exchange = Exchange::new();
        let mut bounded = Bounded::new(Box::new(ours), exchange.clone(), None);
        bounded.patience = PATIENCE;
        (bounded, theirs, exchange)
    }

    async fn has_ended(bounded: &mut Bounded) -> bool {
        bounded.read(&mut [0; 64]).await.is_ok_and(|read| read == 0)
    }

    #[tokio::test]
    async fn nothing_is_answered_where_nothing_was_asked() {
        let (mut bounded, mut theirs, _) = bounded();
        let begun = Instant::now();
        assert!(has_ended(&mut bounded).await);
        assert!(begun.elapsed() >= PATIENCE.head);
        drop(bounded);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert!(said.is_empty());
    }

    #[tokio::test]
    async fn slow_heads_are_answered_however_they_trickle() {
        let (mut bounded, mut theirs, _) = bounded();
        let begun = Instant::now();
        let trickle = tokio::spawn(async move {
            let mut said = Vec::new();
            for _ in 0..100 {
                let _ = theirs.write_all(b"x").await;
                sleep(PATIENCE.head / 10).await;
            }
            theirs.read_to_end(&mut said).await.unwrap();
            String::from_utf8(said).unwrap()
        });
        while !has_ended(&mut bounded).await {}
        assert!(begun.elapsed() >= PATIENCE.head);
        drop(bounded);
        let said = trickle.await.unwrap();
        assert!(said.starts_with("HTTP/1.1 408 Request Timeout\r\n"), "{said}");
        assert!(said.contains("did not come within 100ms"), "{said}");
    }

    #[tokio::test]
    async fn answers_and_upgraded_connections_take_their_time() {
        let (mut bounded, mut theirs, exchange) = bounded();
        let first = exchange.answer();
        tokio::spawn(async move {
            sleep(5 * PATIENCE.head).await;
            theirs.write_all(b"GET").await.unwrap();
            sleep(5 * PATIENCE.head).await;
            theirs.write_all(b"frame").await.unwrap();
            sleep(PATIENCE.head).await;
        });
        assert!(!has_ended(&mut bounded).await);
        drop(first);
        let second = exchange.answer();
        let body = second.finish_with(StatusCode::SWITCHING_PROTOCOLS, ());
        drop(body);
        assert!(!has_ended(&mut bounded).await);
    }

    #[tokio::test]
    async fn the_next_request_is_awaited_anew() {
        let (mut bounded, mut theirs, exchange) = bounded();
        theirs.write_all(b"GET").await.unwrap();
        assert!(!has_ended(&mut bounded).await);
        let answering = exchange.answer();
        sleep(5 * PATIENCE.head).await;
        drop(answering.finish_with(StatusCode::OK, ()));
        let begun = Instant::now();
        assert!(has_ended(&mut bounded).await);
        assert!(begun.elapsed() >= PATIENCE.head);
        drop(bounded);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    }

    #[tokio::test]
    async fn who_reads_while_a_request_is_answered_waits_no_longer_than_allowed_for_the_next() {
        let (mut bounded, _theirs, exchange) = bounded();
        let answering = exchange.answer();
        let end = async {
            sleep(PATIENCE.head).await;
            drop(answering);
        };
        let (has_ended, ()) = tokio::join!(has_ended(&mut bounded), end);
        assert!(has_ended);
    }

    #[tokio::test]
    async fn answers_that_nobody_takes_are_given_up() {
        let (mut bounded, _theirs, exchange) = bounded();
        let _answering = exchange.answer();
        let begun = Instant::now();
        let error = bounded.write_all(&[0; 4096]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() >= PATIENCE.answer);
    }
}
