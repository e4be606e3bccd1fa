//! `packetflix capture`: a stream into files, a pipe, Wireshark or lines of text.

use std::{
    fs::File,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::Child,
    time::Duration,
};

use crate::{
    error::{Failure, Status},
    interrupts::Interrupts,
    lines::{Detail, Lines},
    local::StartLocal,
    output::{self, Output, OutputError, Rotation, is_standard_output},
    pods::PodArgs,
    request::{CaptureRequest, Selection, Target},
    run::{Manner, Reconnection, Run, Sink},
    server::{Address, Server, ServerArgs},
    stream::CaptureStream,
    terminal::{answered, say},
    units::{parse_duration, parse_size},
    wireshark,
};

/// What is to be captured, and where it goes.
#[derive(Clone, Debug, clap::Args)]
pub struct CaptureArgs {
    /// Name of a container, pod, process or mounted namespace, as listed; or netns:NUMBER, the inode number of a network
    /// namespace. Several of them, or a pattern such as `shop-*`, label:KEY=VALUE, compose:PROJECT, image:PATTERN, type:TYPE or
    /// pod:PATTERN, are captured into one stream; `!` before a word leaves out what it means
    #[arg(value_name = "TARGET", required_unless_present_any = ["namespace", "selector"])]
    targets: Vec<String>,
    #[command(flatten)]
    pods: PodArgs,
    /// Go on with targets that start again, and with those that come later; the default for patterns
    #[arg(long, overrides_with = "no_follow")]
    follow: bool,
    /// Capture only what is there at the start
    #[arg(long, overrides_with = "follow")]
    no_follow: bool,
    /// Wait for targets that are not there yet
    #[arg(long)]
    wait: bool,
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
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(..=262_144))]
    snaplen: Option<u32>,
    /// End after so many packets
    #[arg(short = 'c', long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    packets: Option<u64>,
    /// Do not put interfaces into promiscuous mode
    #[arg(short = 'p', long)]
    no_promiscuous_mode: bool,
    /// File to write to, which must not be there yet; a pipe or device that is; or - for standard output. Without it, a terminal
    /// gets a line for each packet, and a pipe or file behind standard output the packets
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after a time (duration:10), before the file is larger than so many kB (filesize:1000), after so many packets
    /// (packets:100), or after so many files (files:5, with -b). Other units may be named: duration:2m, filesize:10MiB. May be
    /// given more than once
    #[arg(short = 'a', long, value_name = "LIMIT", value_parser = parse_limit)]
    autostop: Vec<Limit>,
    /// Write one file after the other, each of which opens by itself: the next after a time (duration:60), before a file is
    /// larger than so many kB (filesize:1000), or after so many packets (packets:1000); files:10 keeps the last ten. May be
    /// given more than once
    #[arg(short = 'b', long, value_name = "LIMIT", value_parser = parse_limit, requires = "write")]
    ring_buffer: Vec<Limit>,
    /// Start Wireshark on it
    #[arg(long, conflicts_with_all = ["write", "print"])]
    wireshark: bool,
    /// Write a line for each packet, also where standard output is no terminal
    #[arg(short = 'P', long, conflicts_with = "write")]
    print: bool,
    /// Tell in these lines more of the headers
    #[arg(short, long, conflicts_with_all = ["write", "wireshark"])]
    verbose: bool,
    /// Write the bytes of each packet below its line
    #[arg(short = 'x', long, conflicts_with_all = ["write", "wireshark"])]
    hex: bool,
    /// Go on when the connection breaks, with a section that tells which time is missing
    #[arg(long)]
    reconnect: bool,
    /// Say nothing, unless the capture fails
    #[arg(short, long)]
    quiet: bool,
    /// Which server.
    #[command(flatten)]
    server: ServerArgs,
}

/// Words with which filters begin, and which hardly anything is called.
const WORDS_OF_FILTERS: [&str; 22] = [
    "and",
    "arp",
    "dst",
    "ether",
    "greater",
    "icmp",
    "icmp6",
    "igmp",
    "inbound",
    "ip",
    "ip6",
    "less",
    "net",
    "not",
    "or",
    "outbound",
    "port",
    "portrange",
    "src",
    "tcp",
    "udp",
    "vlan",
];

/// What ends a capture, or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    Duration(Duration),
    FileSize(u64),
    Packets(u64),
    Files(u32),
}

fn parse_limit(text: &str) -> Result<Limit, String> {
    let (what, value) = text.split_once(':').unwrap_or((text, ""));
    let wrong = || format!("{value} is no number of {what}");
    match what {
        "duration" => parse_duration(value).map(Limit::Duration),
        "filesize" => parse_size(value).map(Limit::FileSize),
        "packets" => match value.parse() {
            Ok(count @ 1..) => Ok(Limit::Packets(count)),
            _ => Err(wrong()),
        },
        "files" => match value.parse() {
            Ok(count @ 1..) => Ok(Limit::Files(count)),
            _ => Err(wrong()),
        },
        _ => Err("write duration:SECONDS, filesize:KB, packets:COUNT or files:COUNT".to_owned()),
    }
}

/// Where packets are to go.
enum Destination {
    Lines,
    Wireshark,
    Path(PathBuf),
    Files(PathBuf, Rotation),
}

impl CaptureArgs {
    /// That a word seems to be meant as a part of a filter, if one does.
    fn hint(&self) -> Option<String> {
        let rest = self.targets.get(1..).filter(|_| self.filter.is_empty())?;
        let first = rest
            .iter()
            .position(|word| WORDS_OF_FILTERS.contains(&&word[..]))?;
        let filter = rest[first..].join(" ");
        let word = &rest[first];
        Some(format!(
            "{word} is taken for a target. A filter goes behind -f: -f '{filter}'"
        ))
    }

    /// What is asked for, with these words.
    fn request(&self, words: Vec<String>) -> CaptureRequest {
        let mut request = CaptureRequest {
            interfaces: self.interfaces.clone(),
            filter: self.filter.clone(),
            snaplen: self.snaplen,
            packets: self.packets,
            promiscuous: !self.no_promiscuous_mode,
            ..CaptureRequest::new(self.target(words))
        };
        for limit in &self.autostop {
            match *limit {
                Limit::Duration(time) => request.duration = Some(time),
                Limit::FileSize(bytes) => request.bytes = Some(bytes),
                Limit::Packets(count) => request.packets = Some(count),
                Limit::Files(_) => {}
            }
        }
        request
    }

    fn target(&self, words: Vec<String>) -> Target {
        Target::select(Selection {
            words,
            follows: (self.follow || self.no_follow).then_some(self.follow),
            waits: self.wait,
        })
    }

    fn destination(&self) -> Result<Destination, Failure> {
        if self.wireshark {
            return Ok(Destination::Wireshark);
        }
        let path = || self.write.clone().unwrap_or_else(|| PathBuf::from("-"));
        if let Some(rotation) = self.rotation()? {
            return Ok(Destination::Files(path(), rotation));
        }
        let is_read_by_people = self.write.is_none() && io::stdout().is_terminal();
        match self.print || self.verbose || self.hex || is_read_by_people {
            true => Ok(Destination::Lines),
            false => Ok(Destination::Path(path())),
        }
    }

    /// When one file follows the other, if they do.
    fn rotation(&self) -> Result<Option<Rotation>, Failure> {
        let mut rotation = Rotation::default();
        for limit in &self.ring_buffer {
            match *limit {
                Limit::Duration(time) => rotation.duration = Some(time),
                Limit::FileSize(bytes) => rotation.size = Some(bytes),
                Limit::Packets(count) => rotation.packets = Some(count),
                Limit::Files(count) => rotation.kept = Some(count as usize),
            }
        }
        for limit in &self.autostop {
            match *limit {
                Limit::Files(count) => rotation.written = Some(count),
                Limit::FileSize(_) if !self.ring_buffer.is_empty() => {
                    return Err(Failure::usage(
                        "with -b, say -b filesize: in the place of -a filesize:",
                    ));
                }
                _ => {}
            }
        }
        let Rotation {
            duration,
            size,
            packets,
            ..
        } = rotation;
        let rotates = duration.is_some() || size.is_some() || packets.is_some();
        match rotates {
            true => Ok(Some(rotation)),
            false if rotation == Rotation::default() => Ok(None),
            false => Err(Failure::usage(
                "-b files: takes a limit of each file beside it: -b duration:, -b filesize: or -b packets:",
            )),
        }
    }
}

impl Destination {
    /// What is wrong with it, before anything is captured for it.
    fn check(&self) -> Result<(), Failure> {
        match self {
            Self::Path(path) => output::check(path).map_err(Failure::usage),
            Self::Files(path, _) if is_standard_output(path) => Err(Failure::usage(
                "only files follow each other (-b): name one with -w",
            )),
            Self::Lines | Self::Wireshark | Self::Files(..) => Ok(()),
        }
    }

    /// Opens it, and tells of the Wireshark that was started.
    fn open(&self, detail: Detail) -> Result<(Sink, Option<Child>), Failure> {
        let sink = match self {
            Self::Lines => Ok(Sink::Lines(Lines::new(detail))),
            Self::Wireshark => {
                let mut wireshark = wireshark::start().map_err(Failure::usage)?;
                let pipe = wireshark
                    .stdin
                    .take()
                    .ok_or_else(|| Failure::usage("Wireshark reads nothing"))?;
                #[cfg(unix)]
                let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
                #[cfg(windows)]
                let pipe = File::from(std::os::windows::io::OwnedHandle::from(pipe));
                let sink = Sink::Output(Box::new(Output::to(pipe, "Wireshark")));
                return Ok((sink, Some(wireshark)));
            }
            Self::Path(path) => into_file(Output::open(path)),
            Self::Files(path, rotation) => into_file(Output::rotating(path, *rotation)),
        };
        Ok((sink?, None))
    }
}

fn into_file(output: Result<Output, OutputError>) -> Result<Sink, Failure> {
    output
        .map(|output| Sink::Output(Box::new(output)))
        .map_err(Failure::usage)
}

/// Captures until the stream ends, or somebody ends it.
///
/// # Errors
/// When the server refuses it, or it breaks off.
pub(crate) async fn capture(args: &CaptureArgs, local: Option<StartLocal>) -> Result<Status, Failure> {
    let destination = args.destination()?;
    destination.check()?;
    args.pods.check(&args.server)?;
    if let Some(hint) = args.hint() {
        say(hint);
    }
    let meant = args.pods.meant(&args.targets);
    let server = args.server.reach(local, meant.clone()).await?;
    let mut interrupts = Interrupts::listen().map_err(Failure::refused)?;
    let request = args.request(args.pods.words(&args.targets, &server));
    let stream = tokio::select! {
        opened = answered(&server, CaptureStream::open(&server, &request)) => opened?,
        status = interrupts.first() => return Ok(status),
    };
    let detail = Detail {
        headers: args.verbose,
        bytes: args.hex,
    };
    // A pipe is opened once somebody reads it.
    let opening = tokio::task::spawn_blocking(move || destination.open(detail));
    let (sink, wireshark) = tokio::select! {
        opened = opening => opened.map_err(Failure::broken)??,
        status = interrupts.first() => return Ok(status),
    };
    if !args.quiet {
        announce(args, &server, &stream, &sink);
    }
    let manner = Manner {
        reconnection: args.reconnect.then_some(Reconnection {
            args: &args.server,
            meant: &meant,
        }),
        talks: !args.quiet,
    };
    let run = Run::new(&server, &request, stream, sink, manner, &mut interrupts);
    let status = run.to_end().await?;
    match wireshark {
        Some(wireshark) if status == Status::Done => wireshark::end_of(wireshark)
            .await
            .map_err(Failure::broken)
            .map(|()| status),
        _ => Ok(status),
    }
}

fn announce(args: &CaptureArgs, server: &Server, stream: &CaptureStream, sink: &Sink) {
    let place = match &server.address {
        Address::Local(_) => "in this process, without a server,".to_owned(),
        address => format!("of {address}"),
    };
    say(format_args!(
        "capturing {} {place} into {}",
        args.pods.words(&args.targets, server).join(", "),
        sink.name()
    ));
    if let Some(note) = stream.note() {
        say(note);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: CaptureArgs,
    }

    fn args(line: &[&str]) -> CaptureArgs {
        Line::parse_from([&["capture", "web"], line].concat()).args
    }

    #[test]
    fn limits_are_those_of_dumpcap() {
        for (text, limit) in [
            ("duration:10", Limit::Duration(Duration::from_secs(10))),
            ("filesize:10", Limit::FileSize(10_000)),
            ("packets:7", Limit::Packets(7)),
            ("files:3", Limit::Files(3)),
        ] {
            assert_eq!(parse_limit(text), Ok(limit));
        }
        for wrong in [
            "",
            "duration",
            "packets:0",
            "packets:-1",
            "filesize:x",
            "size:1",
            "files:0",
        ] {
            assert!(parse_limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_follow_each_other_by_a_limit() {
        let line = args(&[
            "-w",
            "a",
            "-b",
            "filesize:10",
            "-b",
            "files:3",
            "-a",
            "files:9",
            "-a",
            "packets:5",
        ]);
        let expected = Rotation {
            size: Some(10_000),
            kept: Some(3),
            written: Some(9),
            ..Rotation::default()
        };
        assert_eq!(line.rotation(), Ok(Some(expected)));
        assert_eq!(line.request(Vec::new()).packets, Some(5));
        assert_eq!(args(&["-w", "a", "-a", "filesize:1"]).rotation(), Ok(None));
        for wrong in [
            &["-w", "a", "-b", "files:3"][..],
            &["-w", "a", "-a", "files:3"],
            &["-w", "a", "-b", "duration:1", "-a", "filesize:1"],
        ] {
            assert!(args(wrong).rotation().is_err(), "{wrong:?}");
        }
    }
}
