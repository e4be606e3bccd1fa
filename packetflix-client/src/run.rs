//! A capture that runs, from its first packet to its end.

use std::{
    io::{self, Write as _},
    pin::Pin,
    time::{Duration, Instant},
};

use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};

use crate::{
    cluster::Meant,
    error::{Failure, Status, chain},
    http::RequestError,
    interrupts::Interrupts,
    lines::Lines,
    output::{Output, OutputError, Written},
    pcapng::{Blocks, Malformed},
    progress::{self, Progress},
    request::CaptureRequest,
    server::{Server, ServerArgs},
    stream::{CaptureStream, Close, OpenError, Piece, StreamError},
    summary::{Summary, Tally},
    terminal::say,
    watch::reader_gone,
};

/// How long it takes at first until a server is tried again, and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Where packets go.
pub enum Sink {
    /// Into files or a pipe, as pcapng.
    Output(Box<Output>),
    /// To standard output, as text.
    Lines(Lines),
}

/// How a capture is done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner<'a> {
    /// How a connection that breaks is made again, if it is.
    pub reconnection: Option<Reconnection<'a>>,
    /// Whether people are told how it goes.
    pub talks: bool,
}

/// How the server was meant: what it was shown may have expired by the time of the next connection.
#[derive(Clone, Copy, Debug)]
pub struct Reconnection<'a> {
    /// The flags.
    pub args: &'a ServerArgs,
    /// The pods.
    pub meant: &'a Meant,
}

/// A capture that runs.
pub struct Run<'a> {
    server: &'a Server,
    request: &'a CaptureRequest,
    manner: Manner<'a>,
    stream: CaptureStream,
    sink: Sink,
    gone: Pin<Box<dyn Future<Output = ()>>>,
    blocks: Blocks,
    tally: Tally,
    begun: Instant,
    progress: Progress,
    interrupts: &'a mut Interrupts,
    /// The exit status of whoever asked for the end.
    asked: Option<Status>,
    /// Whether it goes on over another connection.
    is_resumed: bool,
}

/// Why nothing more comes.
enum Ended {
    /// The server has closed.
    Closed(Close),
    /// Whoever reads what is written has had enough.
    ReaderGone,
    /// What was asked for is there.
    Enough(String),
    /// Somebody asked for the end while there was no connection.
    GivenUp,
}

/// Why a capture is broken off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error("the server has ended the capture: {} ({})", .0.reason, .0.code)]
    Closed(Close),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error("the server has ended the stream within a block")]
    Cut,
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the capture cannot go on")]
    Reopen(#[source] Box<OpenError>),
}

impl Broken {
    /// Whether another connection may do better.
    fn is_of_connection(&self) -> bool {
        matches!(self, Self::Stream(_) | Self::Closed(_))
    }

    fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Output(error) if error.is_reader_gone())
    }
}

impl Sink {
    fn write(&mut self, whole: &[u8]) -> Result<Written, OutputError> {
        match self {
            Self::Output(output) => output.write(whole),
            Self::Lines(lines) => {
                let written = lines.write(whole);
                written.map_err(|error| OutputError::Write(self.name().to_owned(), error))?;
                Ok(Written::More)
            }
        }
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        match self {
            Self::Output(output) => output.name(),
            Self::Lines(_) => "standard output",
        }
    }

    /// When a file is to be followed by the next.
    async fn due(&self) {
        let Self::Output(output) = self else {
            return std::future::pending().await;
        };
        match output.deadline() {
            Some(deadline) => sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    }

    fn follow(&mut self) -> Result<Written, OutputError> {
        match self {
            Self::Output(output) => output.follow(),
            Self::Lines(_) => Ok(Written::More),
        }
    }

    /// Of the packets that were last to be written: how many were.
    fn packets_written(&self) -> u64 {
        match self {
            Self::Output(output) => output.packets_written(),
            Self::Lines(_) => 0,
        }
    }

    fn end_broken(&mut self) -> Result<(), OutputError> {
        match self {
            Self::Output(output) => output.end_broken(),
            Self::Lines(_) => Ok(()),
        }
    }

    fn resume(&mut self, gap: String) {
        match self {
            Self::Output(output) => output.resume(gap),
            Self::Lines(_) => say(gap),
        }
    }

    fn reader_gone(&self) -> Pin<Box<dyn Future<Output = ()>>> {
        match self {
            Self::Output(output) => Box::pin(reader_gone(output.file())),
            Self::Lines(_) => match crate::output::standard_output() {
                Ok(file) => Box::pin(reader_gone(&file)),
                Err(_) => Box::pin(std::future::pending()),
            },
        }
    }
}

impl<'a> Run<'a> {
    /// Goes on with a capture that has been opened.
    pub fn new(
        server: &'a Server,
        request: &'a CaptureRequest,
        stream: CaptureStream,
        sink: Sink,
        manner: Manner<'a>,
        interrupts: &'a mut Interrupts,
    ) -> Self {
        let has_line = manner.talks && matches!(&sink, Sink::Output(output) if !output.is_piped());
        Self {
            server,
            request,
            manner,
            stream,
            gone: sink.reader_gone(),
            sink,
            blocks: Blocks::default(),
            tally: Tally::default(),
            begun: Instant::now(),
            progress: Progress::new(has_line),
            interrupts,
            asked: None,
            is_resumed: false,
        }
    }

    /// Captures until the stream ends, or somebody ends it, and says how it went.
    ///
    /// # Errors
    /// When it is broken off.
    pub async fn to_end(mut self) -> Result<Status, Failure> {
        let ended = self.capture().await;
        self.progress.clear();
        let result = self.conclude(ended);
        if self.manner.talks {
            let reason = result.as_ref().ok().map(|(reason, _)| &reason[..]);
            let summary = Summary {
                tally: &self.tally,
                duration: self.begun.elapsed(),
                reason,
            };
            // Nobody reads it where it cannot be written.
            let _ = writeln!(io::stderr(), "{summary}");
        }
        self.stream.close().await;
        result.map(|(_, status)| status)
    }

    /// Why it ended, and with which status.
    fn conclude(&mut self, ended: Result<Ended, Broken>) -> Result<(String, Status), Failure> {
        let asked = self.asked.unwrap_or(Status::Done);
        match ended {
            Ok(Ended::Closed(close)) if close.reason.is_empty() => {
                Ok(("the server has ended the capture".to_owned(), asked))
            }
            // The last connection was asked for the rest of them only.
            Ok(Ended::Closed(_)) if self.is_resumed && self.rest().is_none() => {
                Ok(("the limit is reached, over all connections".to_owned(), asked))
            }
            Ok(Ended::Closed(close)) => Ok((close.reason, asked)),
            Ok(Ended::Enough(limit)) => Ok((limit, asked)),
            Ok(Ended::GivenUp) => Ok(("stopped without a connection".to_owned(), asked)),
            Ok(Ended::ReaderGone) => Ok((self.without_reader(), Status::Done)),
            Err(error) if error.is_reader_gone() => Ok((self.without_reader(), Status::Done)),
            Err(error) => Err(Failure::broken(error)),
        }
    }

    fn without_reader(&self) -> String {
        format!("nobody reads {} any more", self.sink.name())
    }

    /// Captures over one connection after the other.
    async fn capture(&mut self) -> Result<Ended, Broken> {
        loop {
            let ended = self.until_end().await;
            let Err(error) = &ended else {
                return ended;
            };
            if !error.is_of_connection() {
                return ended;
            }
            self.tally.note_break();
            self.sink.end_broken()?;
            let Some(reconnection) = self.manner.reconnection.filter(|_| self.asked.is_none()) else {
                return ended;
            };
            if let Some(ended) = self.reconnect(reconnection, &chain(error)).await? {
                return Ok(ended);
            }
        }
    }

    /// Captures over one connection.
    async fn until_end(&mut self) -> Result<Ended, Broken> {
        let mut tick = interval(progress::INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let written = tokio::select! {
                piece = self.stream.next() => match piece? {
                    Piece::Data(data) => self.take(data.bytes)?,
                    Piece::Closed(_) if self.blocks.is_within_one() => return Err(Broken::Cut),
                    Piece::Closed(close) if close.is_as_asked() => return Ok(Ended::Closed(close)),
                    Piece::Closed(close) => return Err(Broken::Closed(close)),
                },
                status = self.interrupts.first() => {
                    self.asked = Some(status);
                    self.stream.stop().await?;
                    continue;
                }
                () = &mut self.gone => return Ok(Ended::ReaderGone),
                () = self.sink.due() => self.sink.follow()?,
                _ = tick.tick(), if self.progress.is_shown() => {
                    self.progress.show(&self.tally, self.begun.elapsed());
                    continue;
                }
            };
            if let Written::Enough(count) = written {
                return Ok(Ended::Enough(format!("the limit of {count} files is reached")));
            }
        }
    }

    fn take(&mut self, data: Bytes) -> Result<Written, Broken> {
        let whole = self.blocks.whole(data)?;
        let written = self.sink.write(&whole);
        match &written {
            Ok(_) => self.tally.note(&whole),
            Err(_) => self.tally.note_first(&whole, self.sink.packets_written()),
        }
        for sentence in self.tally.take_sentences() {
            self.say(&sentence);
        }
        Ok(written?)
    }

    /// Opens the capture again, as often as it takes; tells why that is not to be, if it is not.
    async fn reconnect(
        &mut self,
        Reconnection { args, meant }: Reconnection<'a>,
        why: &str,
    ) -> Result<Option<Ended>, Broken> {
        // What came after it was not read, or is not known to have come.
        let since = Utc::now() - self.stream.pulse().heard().elapsed();
        let mut told = None;
        self.say(&format!("{why}; connecting again"));
        let mut pause = FIRST_PAUSE;
        loop {
            let left = self
                .request
                .duration
                .map(|limit| limit.saturating_sub(self.begun.elapsed()));
            let waited = self.unless_ended(sleep(left.unwrap_or(pause).min(pause))).await;
            if let Err(ended) = waited {
                return Ok(Some(ended));
            }
            let Some(request) = self.rest() else {
                return Ok(Some(Ended::Enough("the limit is reached".to_owned())));
            };
            let server = self.server;
            let server = match self.unless_ended(args.renew(server, meant)).await {
                Ok(Ok(server)) => server,
                Ok(Err(failure)) => {
                    if told.as_ref() != Some(&failure) {
                        self.say(&format!("not connected: {failure}"));
                        told = Some(failure);
                    }
                    pause = LONGEST_PAUSE.min(pause * 2);
                    continue;
                }
                Err(ended) => return Ok(Some(ended)),
            };
            // It may take its time to refuse.
            let opened = match self.unless_ended(CaptureStream::open(&server, &request)).await {
                Ok(opened) => opened,
                Err(ended) => return Ok(Some(ended)),
            };
            match opened {
                Ok(stream) => {
                    self.stream = stream;
                    self.is_resumed = true;
                    self.blocks = Blocks::default();
                    let [from, to] =
                        [since, Utc::now()].map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true));
                    self.sink
                        .resume(format!("packets from {from} to {to} are missing, and those before that were still on their way: {why}"));
                    self.say("connected again");
                    return Ok(None);
                }
                Err(error) if is_lasting(&error) => return Err(Broken::Reopen(error.into())),
                Err(_) => pause = LONGEST_PAUSE.min(pause * 2),
            }
        }
    }

    /// Waits for something, unless somebody asks for the end before.
    async fn unless_ended<T>(&mut self, awaited: impl Future<Output = T>) -> Result<T, Ended> {
        tokio::select! {
            done = awaited => Ok(done),
            status = self.interrupts.first() => {
                self.asked = Some(status);
                Err(Ended::GivenUp)
            }
            () = &mut self.gone => Err(Ended::ReaderGone),
        }
    }

    /// What is still to be captured, if anything.
    fn rest(&self) -> Option<CaptureRequest> {
        let less = |limit: Option<u64>, had: u64| match limit {
            Some(limit) => limit.checked_sub(had).filter(|rest| *rest > 0).map(Some),
            None => Some(None),
        };
        let duration = match self.request.duration {
            Some(limit) => Some(limit.checked_sub(self.begun.elapsed())?),
            None => None,
        };
        Some(CaptureRequest {
            packets: less(self.request.packets, self.tally.packets)?,
            bytes: less(self.request.bytes, self.tally.bytes)?,
            duration,
            ..self.request.clone()
        })
    }

    fn say(&self, sentence: &str) {
        self.progress.clear();
        if self.manner.talks {
            say(sentence);
        }
    }
}

/// Whether a server that refuses will always do so: what was asked cannot be, or not by this caller.
fn is_lasting(error: &OpenError) -> bool {
    match error {
        OpenError::OneTarget => true,
        OpenError::Request(RequestError::Refused(refusal)) => [400, 401, 403].contains(&refusal.status),
        _ => false,
    }
}
