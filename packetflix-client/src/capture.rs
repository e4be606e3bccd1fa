//! `packetflix capture`: a stream into a file or a pipe.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    error::{Failure, Status},
    interrupts::Interrupts,
    output::{self, Output, OutputError},
    pcapng::{Blocks, Malformed},
    progress::{self, Progress},
    request::{CaptureRequest, Target},
    server::{Server, ServerArgs},
    stream::{CaptureStream, Close, Piece, StreamError},
    summary::{Summary, Tally},
    units::{parse_duration, parse_size},
    watch::reader_gone,
};

/// What is to be captured, and where it goes.
#[derive(Clone, Debug, clap::Args)]
pub struct CaptureArgs {
    /// Name of a container, pod, process or mounted namespace, as listed; or netns:NUMBER, the inode number of a network
    /// namespace
    #[arg(value_name = "TARGET")]
    target: String,
    /// Network interface to capture at; may be given more than once. By default all, also those that come later
    #[arg(short, long = "interface", value_name = "INTERFACE")]
    interfaces: Vec<String>,
    /// Capture only what this expression of pcap-filter(7) accepts
    #[arg(
        short,
        long,
        value_name = "FILTER",
        default_value = "",
        hide_default_value = true
    )]
    filter: String,
    /// Most bytes that are captured of a packet; 0 is all of them
    #[arg(short, long, value_name = "BYTES")]
    snaplen: Option<u32>,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "COUNT")]
    packets: Option<u64>,
    /// Do not put interfaces into promiscuous mode
    #[arg(short = 'p', long)]
    no_promiscuous_mode: bool,
    /// File to write to, which must not be there yet; a pipe or device that is; or - for standard output. By default standard
    /// output
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "-",
        hide_default_value = true
    )]
    write: PathBuf,
    /// End after a time (duration:10), before the file is larger than so many kB (filesize:1000), or after so many packets
    /// (packets:100). Other units may be named: duration:2m, filesize:10MiB. May be given more than once
    #[arg(short = 'a', long, value_name = "LIMIT", value_parser = parse_limit)]
    autostop: Vec<Limit>,
    /// Say nothing but what is wrong
    #[arg(short, long)]
    quiet: bool,
    /// Which server.
    #[command(flatten)]
    server: ServerArgs,
}

/// What ends a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Duration(Duration),
    FileSize(u64),
    Packets(u64),
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let (what, value) = text.split_once(':').unwrap_or((text, ""));
    match what {
        "duration" => parse_duration(value).map(Limit::Duration),
        "filesize" => parse_size(value).map(Limit::FileSize),
        "packets" => match value.parse() {
            Ok(count @ 1..) => Ok(Limit::Packets(count)),
            _ => Err(format!("{value} is no number of packets")),
        },
        _ => Err("write duration:SECONDS, filesize:KB or packets:COUNT".to_owned()),
    }
}

impl CaptureArgs {
    fn request(&self) -> CaptureRequest {
        let mut request = CaptureRequest {
            interfaces: self.interfaces.clone(),
            filter: self.filter.clone(),
            snaplen: self.snaplen,
            packets: self.packets,
            promiscuous: !self.no_promiscuous_mode,
            ..CaptureRequest::new(Target::parse(&self.target))
        };
        for limit in &self.autostop {
            match *limit {
                Limit::Duration(time) => request.duration = Some(time),
                Limit::FileSize(bytes) => request.bytes = Some(bytes),
                Limit::Packets(count) => request.packets = Some(count),
            }
        }
        request
    }
}

/// Captures until the stream ends, or somebody ends it.
///
/// # Errors
/// When the server refuses it, or it breaks off.
pub(crate) async fn capture(args: &CaptureArgs) -> Result<Status, Failure> {
    let server = args.server.resolve().map_err(Failure::usage)?;
    output::check(&args.write).map_err(Failure::usage)?;
    let mut interrupts = Interrupts::listen().map_err(Failure::refused)?;
    let request = args.request();
    let stream = tokio::select! {
        opened = CaptureStream::open(&server, &request) => opened.map_err(Failure::refused)?,
        status = interrupts.first() => return Ok(status),
    };
    let output = Output::open(&args.write).map_err(Failure::usage)?;
    if !args.quiet {
        announce(args, &server, &stream, &output);
    }
    let mut run = Run {
        stream,
        output,
        blocks: Blocks::default(),
        tally: Tally::default(),
        progress: Progress::new(!args.quiet),
        interrupts,
        asked: None,
    };
    let ended = run.until_end().await;
    run.progress.clear();
    run.conclude(ended, args.quiet).await
}

fn announce(args: &CaptureArgs, server: &Server, stream: &CaptureStream, output: &Output) {
    eprintln!(
        "packetflix: capturing {} of {} into {}",
        args.target,
        server.address,
        output.name()
    );
    if let Some(note) = stream.note() {
        eprintln!("packetflix: {note}");
    }
}

/// A capture that runs.
struct Run {
    stream: CaptureStream,
    output: Output,
    blocks: Blocks,
    tally: Tally,
    progress: Progress,
    interrupts: Interrupts,
    /// The exit status of whoever asked for the end.
    asked: Option<Status>,
}

/// Why nothing more comes.
enum Ended {
    /// The server has closed.
    Closed(Close),
    /// Whoever reads what is written has had enough.
    ReaderGone,
}

/// Why a capture is broken off.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Stream(#[from] StreamError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Run {
    async fn until_end(&mut self) -> Result<Ended, Broken> {
        let mut tick = interval(progress::INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut gone = std::pin::pin!(reader_gone(self.output.file()));
        loop {
            tokio::select! {
                piece = self.stream.next() => match piece? {
                    Piece::Data(data) => self.take(data)?,
                    Piece::Closed(close) => return Ok(Ended::Closed(close)),
                },
                status = self.interrupts.first() => {
                    self.asked = Some(status);
                    self.stream.stop().await?;
                }
                () = &mut gone => return Ok(Ended::ReaderGone),
                _ = tick.tick(), if self.progress.is_shown() => self.progress.show(&self.tally),
            }
        }
    }

    fn take(&mut self, data: Bytes) -> Result<(), Broken> {
        let whole = self.blocks.whole(data)?;
        self.output.write(&whole)?;
        self.tally.note(&whole);
        Ok(())
    }

    /// Says how it went, and ends what has not ended itself.
    async fn conclude(self, ended: Result<Ended, Broken>, quiet: bool) -> Result<Status, Failure> {
        let result = match ended {
            Ok(Ended::Closed(close)) if close.is_as_asked() => Ok((close.reason, self.asked)),
            Ok(Ended::Closed(close)) => Err(Failure::broken(format!(
                "the server has ended the capture: {} ({})",
                close.reason, close.code
            ))),
            Ok(Ended::ReaderGone) => Ok((self.reader_gone(), None)),
            Err(Broken::Output(error)) if error.is_reader_gone() => Ok((self.reader_gone(), None)),
            Err(error) => Err(Failure::broken(error)),
        };
        if !quiet {
            let reason = result.as_ref().ok().map(|(reason, _)| &reason[..]);
            eprintln!("{}", self.summary(reason));
        }
        self.stream.close().await;
        result.map(|(_, asked)| asked.unwrap_or(Status::Done))
    }

    fn summary<'a>(&'a self, reason: Option<&'a str>) -> Summary<'a> {
        Summary {
            tally: &self.tally,
            duration: self.progress.duration(),
            reason,
        }
    }

    fn reader_gone(&self) -> String {
        format!("nobody reads {} any more", self.output.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_those_of_dumpcap() {
        for (text, limit) in [
            ("duration:10", Limit::Duration(Duration::from_secs(10))),
            ("filesize:10", Limit::FileSize(10_000)),
            ("packets:7", Limit::Packets(7)),
        ] {
            assert_eq!(parse_limit(text), Ok(limit));
        }
        for wrong in ["", "duration", "packets:0", "packets:-1", "filesize:x", "size:1"] {
            assert!(parse_limit(wrong).is_err(), "{wrong}");
        }
    }
}
