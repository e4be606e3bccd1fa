//! Where log lines go and what they look like.

use std::{
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::Subscriber;
use tracing_subscriber::{
    Layer,
    filter::{LevelFilter, Targets},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::line_writer::write_line;

/// What the lines of the log look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// A JSON object in each line, with a member for each field
    Json,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// What the lines look like.
    pub format: LogFormat,
    /// Whether our own debugging is logged too.
    pub debug: bool,
}

/// Sets the log up for the whole process, on standard error.
pub fn init(config: LogConfig) {
    tracing_subscriber::registry()
        .with(log(config.format).with_filter(what_is_logged(config.debug)))
        .init();
}

fn what_is_logged(debug: bool) -> Targets {
    // Our own debugging is not that of the libraries, which tell of each relocation and each frame.
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    Targets::new()
        .with_default(LevelFilter::WARN)
        // It warns when a list of interfaces is cut off because its capture ends.
        .with_target("netlink_proto", LevelFilter::ERROR)
        // It tells once more, as an error, of each request that fails, which we do with more words.
        .with_target("kube_client", LevelFilter::OFF)
        .with_target("kube_runtime", LevelFilter::OFF)
        .with_target("packetflix", level)
        .with_target("packetflix_ebpf", level)
}

fn log<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    // A line that cannot be written is told nowhere: there is but the place where it could not be.
    let layer = fmt::layer()
        .with_writer(Output::default())
        .log_internal_errors(false);
    match format {
        LogFormat::Text => layer.with_ansi(false).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

/// Standard error, which may be a file on a disk that is full.
#[derive(Default)]
struct Output {
    /// Whether the last line was written in part.
    is_torn: Mutex<bool>,
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = OutputLine<'a>;

    fn make_writer(&'a self) -> OutputLine<'a> {
        OutputLine(self.is_torn.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A line of the log, which is written at once.
struct OutputLine<'a>(MutexGuard<'a, bool>);

impl Write for OutputLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        write_line(&mut io::stderr(), &mut self.0, line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
