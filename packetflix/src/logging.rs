//! Where log lines go and what they look like.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
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

use crate::{cli::Args, watch::AUDIT};

/// What the lines of the log look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// A JSON object in each line, with a member for each field
    Json,
}

/// Why the log could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The file for the account of captures cannot be written.
    #[error("--audit-log {}: the file cannot be opened for appending", path.display())]
    AuditLog {
        /// Which one.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Sets the log up for the whole process: on standard error, and the account of captures where the flags say.
///
/// # Errors
/// When that cannot be opened.
pub fn init(args: &Args) -> Result<(), LoggingError> {
    let audit = args.audit_log.as_deref().map(AuditLog::open).transpose()?;
    let audit = audit.map(|audit| {
        let lines = json_lines(audit).with_current_span(false);
        lines.with_filter(Targets::new().with_target(AUDIT, LevelFilter::INFO))
    });
    tracing_subscriber::registry()
        .with(log(args.log_format).with_filter(what_is_logged(args.debug)))
        .with(audit)
        .init();
    Ok(())
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
        .with_target("packetflix", level)
        .with_target("packetflix_ebpf", level)
        // It holds what is not for everyone who may read the log.
        .with_target(AUDIT, LevelFilter::OFF)
}

fn log<S>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    match format {
        LogFormat::Text => fmt::layer().with_writer(io::stderr).with_ansi(false).boxed(),
        LogFormat::Json => json_lines(io::stderr).boxed(),
    }
}

fn json_lines<S, W>(
    writer: W,
) -> fmt::Layer<S, fmt::format::JsonFields, fmt::format::Format<fmt::format::Json>, W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fmt::layer()
        .with_writer(writer)
        .json()
        .flatten_event(true)
        .with_span_list(false)
        // A line that cannot be written is told of on standard error.
        .log_internal_errors(true)
}

/// The file with the account of captures, or standard output.
#[derive(Debug)]
enum AuditLog {
    Output,
    File { path: PathBuf, file: Mutex<File> },
}

impl AuditLog {
    fn open(path: &Path) -> Result<Self, LoggingError> {
        if path == Path::new("-") {
            return Ok(Self::Output);
        }
        let path = path.to_owned();
        match append_to(&path) {
            Ok(file) => Ok(Self::File {
                path,
                file: Mutex::new(file),
            }),
            Err(source) => Err(LoggingError::AuditLog { path, source }),
        }
    }
}

impl<'a> MakeWriter<'a> for AuditLog {
    type Writer = AuditLine<'a>;

    fn make_writer(&'a self) -> AuditLine<'a> {
        AuditLine(self)
    }
}

/// A line of the account of captures, which is written at once.
struct AuditLine<'a>(&'a AuditLog);

impl io::Write for AuditLine<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0 {
            AuditLog::Output => io::stdout().write_all(line)?,
            AuditLog::File { path, file } => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever rotates logs has moved the old one away. Lines are few: two for a capture.
                if !path.metadata().is_ok_and(|now| is_same(&now, &file)) {
                    *file = append_to(path)?;
                }
                file.write_all(line)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0 {
            AuditLog::Output => io::stdout().flush(),
            AuditLog::File { .. } => Ok(()),
        }
    }
}

/// What it holds is for the operator alone.
fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

fn is_same(now: &Metadata, file: &File) -> bool {
    file.metadata()
        .is_ok_and(|open| (open.dev(), open.ino()) == (now.dev(), now.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn audit_log_is_appended_to_and_opened_anew_when_it_was_moved() {
        let folder = std::env::temp_dir().join(format!("packetflix-audit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, moved) = (folder.join("log"), folder.join("log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let log = AuditLog::open(&path).unwrap();
        let write = |line: &str| log.make_writer().write_all(line.as_bytes()).unwrap();
        write("one\n");
        write("two\n");
        std::fs::rename(&path, &moved).unwrap();
        write("three\n");
        let texts = [&moved, &path].map(|path| std::fs::read_to_string(path).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(texts, ["before\none\ntwo\n", "three\n"]);
        let error = AuditLog::open(&folder.join("no/such/folder")).unwrap_err();
        assert!(error.to_string().starts_with("--audit-log /"), "{error}");
    }
}
