//! A WebSocket client of a stack that is not the server's.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{
        self, Bytes, Message,
        client::IntoClientRequest as _,
        http::{HeaderMap, HeaderName, HeaderValue},
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use crate::{
    certificates::{Transport, Trust},
    pace,
    recording::{Reader, Recording, Statistics},
    server::Server,
};

/// Longer than any server may take to answer.
fn patience() -> Duration {
    pace::time(Duration::from_secs(20))
}

/// An open capture.
pub struct Capture {
    socket: WebSocketStream<Transport>,
    answer: HeaderMap,
}

/// The server's refusal of a handshake.
#[derive(Debug)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// Body of the answer.
    pub body: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.body)
    }
}

impl std::error::Error for Refused {}

/// Opens a capture that must be refused; gives the status and the sentence, which the server has logged too.
///
/// # Errors
/// When it is not refused, or otherwise than refusals are.
pub async fn refusal(
    server: &Server,
    url: &str,
    headers: &[(&'static str, &str)],
) -> anyhow::Result<(u16, String)> {
    match Capture::open(url, headers).await {
        Ok(_) => bail!("{url} was not refused"),
        Err(error) => {
            let refused: Refused = error.downcast()?;
            let body: serde_json::Value = serde_json::from_str(&refused.body)?;
            let sentence = body["error"].as_str().context("no error in the body")?.to_owned();
            server.wait_for_log(&format!("reason={sentence:?}"))?;
            Ok((refused.status, sentence))
        }
    }
}

/// A piece of the stream, or its end.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of pcapng.
    Data(Bytes),
    /// The server's close frame: code and reason.
    Closed(u16, String),
}

impl Capture {
    /// Opens `url`, which begins with `ws://`. On a slow machine, whoever is told that a look for the namespace was late asks again,
    /// as the sentence says: the service's limit of two seconds is not for programs that get a CPU now and then.
    ///
    /// # Errors
    /// [`Refused`] when the server answers with anything but an upgrade.
    pub async fn open(url: &str, headers: &[(&'static str, &str)]) -> anyhow::Result<Self> {
        const LATE: u16 = 504;
        let mut opened = Self::open_once(url, headers).await;
        for _ in 0..if pace::is_slow() { 20 } else { 0 } {
            let refused = opened.as_ref().err().and_then(|error| error.downcast_ref());
            if refused.is_none_or(|refused: &Refused| refused.status != LATE) {
                break;
            }
            // What was late is left alone for a while.
            tokio::time::sleep(Duration::from_secs(2)).await;
            opened = Self::open_once(url, headers).await;
        }
        opened
    }

    async fn open_once(url: &str, headers: &[(&'static str, &str)]) -> anyhow::Result<Self> {
        let server = url
            .strip_prefix("ws://")
            .and_then(|rest| rest.split('/').next())
            .context("no ws:// URL")?;
        let stream = TcpStream::connect(server)
            .await
            .with_context(|| format!("cannot connect to {server}"))?;
        Self::handshake(Transport::Plain(stream), url, headers).await
    }

    /// Opens `url`, which begins with `wss://`, at a server that is trusted.
    ///
    /// # Errors
    /// As [`Self::open`], and when the server is not to be trusted.
    pub async fn open_encrypted(
        url: &str,
        trust: &Trust,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Self> {
        let server = url
            .strip_prefix("wss://")
            .and_then(|rest| rest.split('/').next())
            .context("no wss:// URL")?;
        let (host, _) = server.rsplit_once(':').context("no port")?;
        let stream = TcpStream::connect(server)
            .await
            .with_context(|| format!("cannot connect to {server}"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let stream = timeout(patience(), trust.connect(host, stream)).await??;
        Self::handshake(stream, url, headers).await
    }

    /// Opens `url` over a connection that was made elsewhere.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn over(
        stream: std::net::TcpStream,
        url: &str,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Transport::Plain(TcpStream::from_std(stream)?);
        Self::handshake(stream, url, headers).await
    }

    async fn handshake(
        stream: Transport,
        url: &str,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Self> {
        let mut request = url.into_client_request()?;
        for (name, value) in headers {
            request
                .headers_mut()
                .insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        }
        match timeout(patience(), client_async(request, stream))
            .await
            .context("no answer")?
        {
            Ok((socket, answer)) => Ok(Self {
                socket,
                answer: answer.headers().clone(),
            }),
            Err(tungstenite::Error::Http(response)) => {
                let status = response.status().as_u16();
                let body = response.body().as_deref().unwrap_or_default();
                bail!(Refused {
                    status,
                    body: String::from_utf8_lossy(body).into_owned()
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A header of the server's answer to the handshake.
    pub fn answer(&self, name: &str) -> Option<&str> {
        self.answer.get(name)?.to_str().ok()
    }

    /// The next piece of the stream. May be dropped while it waits.
    ///
    /// # Errors
    /// When the connection breaks, or the server sends text.
    pub async fn next(&mut self) -> anyhow::Result<Piece> {
        loop {
            match self
                .socket
                .next()
                .await
                .context("the connection ended without a close frame")??
            {
                Message::Binary(data) => return Ok(Piece::Data(data)),
                Message::Close(Some(CloseFrame { code, reason })) => {
                    // The answer to the close is written with the next call that works on the socket.
                    let _ = self.socket.flush().await;
                    return Ok(Piece::Closed(code.into(), reason.as_str().to_owned()));
                }
                Message::Close(None) => bail!("a close frame without a code"),
                Message::Text(text) => bail!("a text frame: {text}"),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// The next message, which has to be text.
    ///
    /// # Errors
    /// When it is another, or the connection breaks.
    pub async fn text(&mut self) -> anyhow::Result<String> {
        match self.socket.next().await.context("the connection ended")?? {
            Message::Text(text) => Ok(text.as_str().to_owned()),
            other => bail!("no text: {other}"),
        }
    }

    /// Asks for what was captured until now, the final statistics, and the server's close.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text("stop")).await?)
    }

    /// Closes: nothing but the server's close is to follow.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn close(&mut self) -> anyhow::Result<()> {
        self.socket
            .close(Some(CloseFrame {
                code: CloseCode::Normal,
                reason: "".into(),
            }))
            .await?;
        Ok(())
    }

    /// Sends data, which means nothing to the server.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn talk(&mut self) -> anyhow::Result<()> {
        self.socket.send(Message::text("hello")).await?;
        Ok(self.socket.send(Message::binary(vec![0; 1000])).await?)
    }

    /// Sends a ping and waits for its answer.
    ///
    /// # Errors
    /// When something else comes than data and the answer.
    pub async fn ping(&mut self) -> anyhow::Result<()> {
        self.socket
            .send(Message::Ping(Bytes::from_static(b"there?")))
            .await?;
        loop {
            match timeout(patience(), self.socket.next())
                .await?
                .context("the connection ended")??
            {
                Message::Pong(payload) if payload == b"there?"[..] => return Ok(()),
                Message::Binary(_) => {}
                other => bail!("{other}"),
            }
        }
    }

    /// Whether nothing comes for a moment.
    pub async fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        timeout(Duration::from_millis(20), self.tcp().peek(&mut byte))
            .await
            .is_err()
    }

    /// The socket below, for what no decent client does.
    pub fn tcp(&mut self) -> &mut TcpStream {
        self.socket.get_mut().tcp()
    }
}

/// A capture whose stream is kept.
pub struct Recorder {
    capture: Capture,
    stream: Vec<u8>,
    reader: Reader,
    /// So much of the stream has been read.
    read: usize,
}

impl Recorder {
    /// Opens `url` and waits for the first piece: from then on packets are captured.
    ///
    /// # Errors
    /// As [`Capture::open`], and when the first piece is not the section header.
    pub async fn start(url: &str) -> anyhow::Result<Self> {
        Self::of(Capture::open(url, &[]).await?).await
    }

    /// The same over a connection that was made elsewhere.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn over(stream: std::net::TcpStream, url: &str) -> anyhow::Result<Self> {
        Self::of(Capture::over(stream, url, &[]).await?).await
    }

    /// The same of a capture that was opened elsewhere.
    ///
    /// # Errors
    /// When the first piece is not the section header.
    pub async fn of(capture: Capture) -> anyhow::Result<Self> {
        let mut recorder = Self {
            capture,
            stream: Vec::new(),
            reader: Reader::default(),
            read: 0,
        };
        recorder.read().await?;
        ensure!(
            recorder.stream.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]),
            "no section header first"
        );
        Ok(recorder)
    }

    /// Takes in the next piece; tells the close frame when that is it.
    ///
    /// # Errors
    /// When nothing comes for a long time.
    pub async fn read(&mut self) -> anyhow::Result<Option<(u16, String)>> {
        match timeout(patience(), self.capture.next())
            .await
            .context("nothing comes")??
        {
            Piece::Data(data) => {
                ensure!(data.len() <= 262_144, "a message of {} bytes", data.len());
                self.stream.extend_from_slice(&data);
                Ok(None)
            }
            Piece::Closed(code, reason) => Ok(Some((code, reason))),
        }
    }

    /// Reads until what came so far is `enough`.
    ///
    /// # Errors
    /// When the stream ends before that.
    pub async fn read_until(&mut self, mut enough: impl FnMut(&Recording) -> bool) -> anyhow::Result<()> {
        while !enough(self.recording()?) {
            if let Some((code, reason)) = self.read().await? {
                bail!("ended with {code} {reason}");
            }
        }
        Ok(())
    }

    /// Reads for as long as `work` goes on.
    ///
    /// # Errors
    /// When the stream ends before that, or the work fails.
    pub async fn read_during<T>(&mut self, mut work: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
        loop {
            tokio::select! {
                done = &mut work => return done?,
                ended = self.read() => if let Some((code, reason)) = ended? {
                    bail!("ended with {code} {reason}");
                }
            }
        }
    }

    /// Reads until there are statistics that are `enough`, which the URL has to ask for; looks only when nothing comes for a moment, since the
    /// stream may be large.
    ///
    /// # Errors
    /// When the stream ends before that.
    pub async fn read_until_statistics(
        &mut self,
        mut enough: impl FnMut(&Statistics) -> bool,
    ) -> anyhow::Result<()> {
        loop {
            if let Some((code, reason)) = self.read().await? {
                bail!("ended with {code} {reason}");
            }
            if self.capture.is_quiet().await && self.recording()?.statistics.iter().any(&mut enough) {
                return Ok(());
            }
        }
    }

    /// Waits until the server ends the stream; gives code and reason.
    ///
    /// # Errors
    /// When it goes on and on, or the connection breaks.
    pub async fn end(&mut self) -> anyhow::Result<(u16, String)> {
        let read = async {
            loop {
                if let Some(end) = self.read().await? {
                    return anyhow::Ok(end);
                }
            }
        };
        let ended = timeout(pace::time(Duration::from_secs(30)), read).await;
        ended.context("the stream goes on")?
    }

    /// Reads until the server ends the stream.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn read_to_end(mut self) -> anyhow::Result<(Recording, u16, String)> {
        loop {
            if let Some((code, reason)) = self.read().await? {
                return Ok((Recording::parse(&self.stream)?, code, reason));
            }
        }
    }

    /// Stops, and reads what still comes.
    ///
    /// # Errors
    /// When the stream does not end with the final statistics and the code of a normal end.
    pub async fn finish(mut self) -> anyhow::Result<Recording> {
        self.capture.stop().await?;
        let (recording, code, reason) = self.read_to_end().await?;
        ensure!(code == 1000, "{code} {reason}");
        recording.check_complete()?;
        ensure!(
            recording
                .statistics
                .iter()
                .all(|one| one.has_received || !one.is_told),
            "statistics without isb_ifrecv"
        );
        Ok(recording)
    }

    /// What came so far, as it is read.
    ///
    /// # Errors
    /// As [`Recording::parse`].
    pub fn recording(&mut self) -> anyhow::Result<&Recording> {
        let piece = &self.stream[self.read..];
        self.read = self.stream.len();
        if piece.is_empty() {
            return Ok(self.reader.recording());
        }
        self.reader.read(piece)
    }

    /// What came so far.
    pub fn stream(&self) -> &[u8] {
        &self.stream
    }

    /// The client below.
    pub fn capture(&mut self) -> &mut Capture {
        &mut self.capture
    }
}
