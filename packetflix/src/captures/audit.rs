//! The account of captures: who captured what, and how much, and who was not let. Written where the operator wants it, and
//! nowhere else: it holds the addresses and filters of clients.

use std::{
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use tracing_subscriber::fmt::{
    format::Writer,
    time::{FormatTime as _, SystemTime},
};

use super::{AuditFileError, Capture, ClientFacts, audit_file::AuditFile};
use crate::{capture_end::CaptureEnd, description::TargetDescription, error, metrics::Metrics};

/// What all lines have as their target.
const AUDIT: &str = "packetflix::audit";

/// Most bytes that are written of anything that a client wrote.
const MAX_WRITTEN_LEN: usize = 1024;

/// Most names that are told of a namespace.
const MAX_NAMES: usize = 16;

/// The account of captures.
#[derive(Debug)]
pub(crate) struct Audit {
    book: Option<Mutex<Book>>,
    /// Whether there are no captures without it.
    is_required: bool,
    metrics: Arc<Metrics>,
}

/// The file, and what became of it.
#[derive(Debug)]
struct Book {
    file: AuditFile,
    /// Lines that could not be written since the last that could.
    lost: u64,
    /// Why not.
    problem: Option<String>,
}

/// A capture that is not accounted for, where it has to be.
#[derive(Debug, thiserror::Error)]
#[error("the account of captures cannot be written, and there are none without it (--audit-required): {0}")]
pub(crate) struct Unaccounted(String);

/// What somebody asked for, as far as it could be read.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    /// Number of the capture that might have been.
    pub(crate) id: u64,
    /// Who asked for it.
    pub(crate) client: ClientFacts,
    /// What was to be captured.
    pub(crate) target: TargetDescription,
}

/// What the discovery knows of the namespace that is captured, by a look at it once it was open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FoundNames {
    /// Name, type and prefix of the target that is meant, or of the first that is there.
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) prefix: String,
    /// Full names of all targets that are there.
    pub(crate) names: Vec<String>,
}

impl FoundNames {
    const fn nothing() -> Self {
        Self {
            name: String::new(),
            kind: String::new(),
            prefix: String::new(),
            names: Vec::new(),
        }
    }

    /// As many names as are told.
    pub(crate) fn first_names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().take(MAX_NAMES).map(|name| start_of(name))
    }
}

/// A request that was not let through.
#[derive(Debug)]
pub(crate) struct RequestRefusal<'a> {
    pub(crate) client: &'a ClientFacts,
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) status: u16,
    pub(crate) reason: &'a str,
}

#[derive(Serialize)]
struct Line<T> {
    timestamp: String,
    level: &'static str,
    target: &'static str,
    message: &'static str,
    #[serde(flatten)]
    rest: T,
}

/// Who asked.
#[derive(Serialize)]
struct Who<'a> {
    client: &'a str,
    /// What that is the name of: a token and a certificate may have the same.
    #[serde(skip_serializing_if = "str::is_empty")]
    client_type: &'static str,
    address: &'a str,
}

/// What is captured, by whom.
#[derive(Serialize)]
struct Facts<'a> {
    id: u64,
    tap: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<u64>,
    #[serde(flatten)]
    who: Who<'a>,
    /// As the discovery has it.
    name: &'a str,
    r#type: &'a str,
    prefix: &'a str,
    names: Vec<&'a str>,
    /// As the client has it.
    #[serde(flatten)]
    asked: Asked<'a>,
    netns: u64,
}

#[derive(Serialize)]
struct Asked<'a> {
    asked_name: &'a str,
    asked_type: &'a str,
    asked_prefix: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_pid: Option<u32>,
}

#[derive(Serialize)]
struct StartedLine<'a> {
    #[serde(flatten)]
    facts: Facts<'a>,
    interfaces: &'a str,
    filter: &'a str,
}

#[derive(Serialize)]
struct EndedLine<'a> {
    #[serde(flatten)]
    facts: Facts<'a>,
    seconds: f64,
    packets: u64,
    bytes: u64,
    lost_in_kernel: u64,
    lost_by_client: u64,
    end: &'a str,
    reason: &'a str,
}

#[derive(Serialize)]
struct RefusedCaptureLine<'a> {
    id: u64,
    #[serde(flatten)]
    who: Who<'a>,
    #[serde(flatten)]
    asked: Asked<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns: Option<u64>,
    status: u16,
    reason: &'a str,
}

#[derive(Serialize)]
struct RefusedRequestLine<'a> {
    #[serde(flatten)]
    who: Who<'a>,
    method: &'a str,
    path: &'a str,
    status: u16,
    reason: &'a str,
}

/// What the client takes for the number of a capture.
#[derive(Serialize)]
#[serde(untagged)]
enum Id<'a> {
    Number(u64),
    Text(&'a str),
}

#[derive(Serialize)]
struct EndAskedLine<'a> {
    id: Id<'a>,
    #[serde(flatten)]
    who: Who<'a>,
    status: u16,
}

#[derive(Serialize)]
struct MoreLine<'a> {
    account: &'a str,
    count: u64,
    seconds: u64,
}

#[derive(Serialize)]
struct LostLine {
    lost: u64,
}

impl Audit {
    /// Opens the file, where there is to be one.
    ///
    /// # Errors
    /// When it cannot be opened, or others may open it. That a pipe has no reader yet is none.
    pub(crate) fn open(
        path: Option<&Path>,
        is_required: bool,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AuditFileError> {
        let file = path.map(AuditFile::open).transpose()?;
        let book = file.map(|file| Book {
            file,
            lost: 0,
            problem: None,
        });
        let audit = Self {
            book: book.map(Mutex::new),
            is_required,
            metrics,
        };
        audit.try_again();
        Ok(audit)
    }

    /// Whether there is one.
    pub(crate) fn is_kept(&self) -> bool {
        self.book.is_some()
    }

    /// Why no capture can begin, if so: none may without a line, and none can be written.
    pub(crate) fn problem(&self) -> Option<String> {
        let problem = self.is_required.then(|| self.try_again())??;
        Some(Unaccounted(problem).to_string())
    }

    /// A capture is about to begin.
    ///
    /// # Errors
    /// When it has to be accounted for, and cannot be.
    pub(super) fn started(&self, capture: &Capture) -> Result<(), Unaccounted> {
        let of = capture.facts();
        let names = of.selection.names().map(|names| names.join("/"));
        let interfaces = names.unwrap_or_else(|| "all".to_owned());
        let started = StartedLine {
            facts: Facts::of(capture),
            interfaces: start_of(&interfaces),
            filter: start_of(&of.filter),
        };
        match self.write("capture started", started) {
            Err(problem) if self.is_required => Err(Unaccounted(problem)),
            _ => Ok(()),
        }
    }

    /// A capture has ended.
    pub(super) fn ended(&self, capture: &Capture, end: CaptureEnd, reason: &str) {
        let amount = capture.amount();
        let ended = EndedLine {
            facts: Facts::of(capture),
            seconds: capture.duration().as_secs_f64(),
            packets: amount.packets,
            bytes: amount.bytes,
            lost_in_kernel: amount.lost_in_kernel,
            lost_by_client: amount.lost_by_client,
            end: end.name(),
            reason: start_of(reason),
        };
        self.note("capture ended", ended);
    }

    /// A capture was refused.
    pub(crate) fn refused(&self, attempt: &Attempt, status: u16, reason: &str) {
        let refused = RefusedCaptureLine {
            id: attempt.id,
            who: Who::of(&attempt.client),
            asked: Asked::of(&attempt.target),
            netns: attempt.target.netns,
            status,
            reason: start_of(reason),
        };
        self.note("capture refused", refused);
    }

    /// A request was refused for want of a right, or of somebody who is known.
    pub(crate) fn not_let_in(&self, refused: &RequestRefusal<'_>) {
        let RequestRefusal {
            client,
            method,
            path,
            status,
            reason,
        } = refused;
        let refused = RefusedRequestLine {
            who: Who::of(client),
            method: start_of(method),
            path: start_of(path),
            status: *status,
            reason: start_of(reason),
        };
        self.note("request refused", refused);
    }

    /// More requests were refused on this account, or from this address, than have lines.
    pub(crate) fn more_refused(&self, account: &str, count: u64, seconds: u64) {
        let more = MoreLine {
            account: start_of(account),
            count,
            seconds,
        };
        self.note("more refused than have lines", more);
    }

    /// An operator has asked for the end of a capture, which was answered with this status.
    pub(crate) fn end_asked(&self, id: &str, client: &ClientFacts, status: u16) {
        let asked = EndAskedLine {
            id: id.parse().map_or_else(|_| Id::Text(start_of(id)), Id::Number),
            who: Who::of(client),
            status,
        };
        self.note("end of a capture asked for", asked);
    }

    /// Sees to it that the file is open that its path leads to, and the one that was moved away no longer.
    pub(crate) fn look_now(&self) {
        // What does not work is told.
        let _ = self.try_again();
    }

    /// Tries to write again, where it failed the last time; gives why it still does.
    fn try_again(&self) -> Option<String> {
        let mut book = self.book()?;
        let was_broken = book.problem.take().is_some();
        let ready = book.file.make_ready().and_then(|()| book.tell_what_is_lost());
        self.settle(&mut book, was_broken, ready).err()
    }

    /// Writes a line, if that can be done.
    fn note(&self, message: &'static str, rest: impl Serialize) {
        // What is lost is told.
        let _ = self.write(message, rest);
    }

    /// Writes a line; gives why it could not be.
    fn write(&self, message: &'static str, rest: impl Serialize) -> Result<(), String> {
        let Some(mut book) = self.book() else {
            return Ok(());
        };
        let was_broken = book.problem.take().is_some();
        let line = line(message, rest);
        let written = book.tell_what_is_lost().and_then(|()| book.file.write(&line));
        if written.is_err() {
            book.lost += 1;
            self.metrics.audit_line_lost();
        }
        self.settle(&mut book, was_broken, written)
    }

    /// Keeps what became of the file, and logs when it has changed.
    fn settle(
        &self,
        book: &mut Book,
        was_broken: bool,
        done: Result<(), AuditFileError>,
    ) -> Result<(), String> {
        match done {
            Ok(()) => {
                if was_broken {
                    tracing::info!("the account of captures is written again");
                }
                Ok(())
            }
            Err(error) => {
                let problem = error::chain(&error);
                if !was_broken {
                    let refused = self.is_required;
                    tracing::warn!(problem, refused, "the account of captures cannot be written");
                }
                book.problem = Some(problem.clone());
                Err(problem)
            }
        }
    }

    fn book(&self) -> Option<MutexGuard<'_, Book>> {
        let book = self.book.as_ref()?;
        Some(book.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Book {
    /// Whoever reads the account has to know where it has gaps.
    fn tell_what_is_lost(&mut self) -> Result<(), AuditFileError> {
        if self.lost > 0 {
            self.file
                .write(&line("lines are missing", LostLine { lost: self.lost }))?;
            self.lost = 0;
        }
        Ok(())
    }
}

impl<'a> Facts<'a> {
    fn of(capture: &'a Capture) -> Self {
        static NOTHING: FoundNames = FoundNames::nothing();

        let of = capture.facts();
        let found = capture.found().unwrap_or(&NOTHING);
        Self {
            id: of.id,
            tap: of.tap,
            stream: of.stream,
            who: Who::of(&of.client),
            name: start_of(&found.name),
            r#type: start_of(&found.kind),
            prefix: start_of(&found.prefix),
            names: found.first_names().collect(),
            asked: Asked::of(&of.asked),
            netns: of.netns,
        }
    }
}

impl<'a> Who<'a> {
    fn of(client: &'a ClientFacts) -> Self {
        Self {
            client: start_of(&client.name),
            client_type: client.kind,
            address: &client.address,
        }
    }
}

impl<'a> Asked<'a> {
    fn of(target: &'a TargetDescription) -> Self {
        Self {
            asked_name: start_of(&target.name),
            asked_type: start_of(&target.kind),
            asked_prefix: start_of(&target.prefix),
            asked_pid: target.pid,
        }
    }
}

/// A line with its end.
fn line(message: &'static str, rest: impl Serialize) -> Vec<u8> {
    let mut timestamp = String::new();
    // Writing to a string does not fail, nor does what is written of strings and numbers.
    let _ = SystemTime.format_time(&mut Writer::new(&mut timestamp));
    let line = Line {
        timestamp,
        level: "INFO",
        target: AUDIT,
        message,
        rest,
    };
    let mut line = serde_json::to_vec(&line).unwrap_or_default();
    line.push(b'\n');
    line
}

/// As much of what a client wrote as the account has room for.
fn start_of(written: &str) -> &str {
    &written[..written.floor_char_boundary(MAX_WRITTEN_LEN)]
}
