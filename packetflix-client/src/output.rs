//! Where a stream of pcapng goes: into a pipe, a file, or one file after the other.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    pcapng::{Block, Kind, blocks, write::with_comment},
    section::Section,
    terminal::say,
};

/// What `-w` is given for standard output.
const STANDARD_OUTPUT: &str = "-";

/// What it is called.
const STANDARD_OUTPUT_NAME: &str = "standard output";

/// When a file is followed by the next, and how many there may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rotation {
    /// A file is no longer written to after that time.
    pub duration: Option<Duration>,
    /// A file is no larger than so many bytes, unless its beginning and one packet are.
    pub size: Option<u64>,
    /// A file has no more than so many packets.
    pub packets: Option<u64>,
    /// So many files are kept, the last ones.
    pub kept: Option<usize>,
    /// So many files are written, and then no more.
    pub written: Option<u32>,
}

/// Where a stream goes.
pub struct Output {
    name: String,
    file: File,
    /// Whether a file that grows, and can be cut where a block is not whole.
    is_regular: bool,
    /// Bytes of the file that were written, all of whole blocks.
    len: u64,
    /// Whole blocks that are to be written, and do not stand in what came.
    pending: Vec<u8>,
    section: Option<Section>,
    /// What the next section tells of those before it.
    gap: Option<String>,
    files: Option<Files>,
    /// Packets of the blocks that came last: how many stand in a file, or are about to.
    packets: u64,
    /// Those of them that are about to.
    pending_packets: u64,
}

/// Files that follow each other.
struct Files {
    path: PathBuf,
    rotation: Rotation,
    /// Those that are kept, the newest last.
    names: VecDeque<PathBuf>,
    written: u32,
    /// Of the newest.
    packets: u64,
    begun: Instant,
}

/// What became of what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// There may be more.
    More,
    /// So many files are written, and no more are wanted.
    Enough(u32),
}

/// Why there is nowhere to go.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A terminal.
    #[error(
        "packets are no text, and are not written to a terminal: leave -w away to read lines, or write to a file or a program, as in \
         -w - | tshark -i -"
    )]
    Terminal,
    /// There is such a file already.
    #[error("{} exists: give another name, or take it away", .0.display())]
    Exists(PathBuf),
    /// It cannot be made.
    #[error("{} cannot be made", .0.display())]
    Create(PathBuf, #[source] io::Error),
    /// It cannot be written to any more.
    #[error("{0} could not be written to its end")]
    Write(String, #[source] io::Error),
    /// It is no file.
    #[error("only files follow each other (-b): name one with -w")]
    NoFile,
}

impl OutputError {
    /// Whether whoever reads has had enough.
    pub fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Write(_, error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What is wrong with an output, before anything is captured for it.
///
/// # Errors
/// When it is a terminal, or there is such a file already.
pub(crate) fn check(path: &Path) -> Result<(), OutputError> {
    if is_standard_output(path) {
        return match io::stdout().is_terminal() {
            true => Err(OutputError::Terminal),
            false => Ok(()),
        };
    }
    match path.metadata() {
        Ok(metadata) if metadata.is_file() => Err(OutputError::Exists(path.to_owned())),
        _ => Ok(()),
    }
}

/// Whether this is what `-w` is given for standard output.
pub(crate) fn is_standard_output(path: &Path) -> bool {
    path == Path::new(STANDARD_OUTPUT)
}

impl Output {
    /// Opens what `-w` names: a new file, a pipe or device that is there, or standard output.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn open(path: &Path) -> Result<Self, OutputError> {
        let failed = |error| failure(path, error);
        if is_standard_output(path) {
            return Ok(Self::to(standard_output().map_err(failed)?, STANDARD_OUTPUT_NAME));
        }
        let is_regular = path.metadata().map_or(true, |metadata| metadata.is_file());
        let mut options = OpenOptions::new();
        let file = options
            .write(true)
            .create_new(is_regular)
            .open(path)
            .map_err(failed)?;
        Ok(Self {
            is_regular,
            ..Self::to(file, &path.display().to_string())
        })
    }

    /// A pipe that somebody reads.
    pub fn to(file: File, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            file,
            is_regular: false,
            len: 0,
            pending: Vec::new(),
            section: None,
            gap: None,
            files: None,
            packets: 0,
            pending_packets: 0,
        }
    }

    /// Makes the first of files that follow each other. Each is called as `path`, with its number and time behind the stem, as
    /// dumpcap does it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn rotating(path: &Path, rotation: Rotation) -> Result<Self, OutputError> {
        if is_standard_output(path) {
            return Err(OutputError::NoFile);
        }
        let mut files = Files {
            path: path.to_owned(),
            rotation,
            names: VecDeque::new(),
            written: 0,
            packets: 0,
            begun: Instant::now(),
        };
        let (name, file) = files.next()?;
        Ok(Self {
            is_regular: true,
            files: Some(files),
            ..Self::to(file, &name)
        })
    }

    /// Whether a program gets it by standard output, which may write to the same terminal.
    pub(crate) fn is_piped(&self) -> bool {
        let is_file = self.file.metadata().is_ok_and(|metadata| metadata.is_file());
        self.name == STANDARD_OUTPUT_NAME && !is_file
    }

    /// Writes whole blocks. Those in front stand in the file as they came, and are written in one piece; from the first one
    /// on that does not, all are copied.
    ///
    /// # Errors
    /// When there is no room, or nobody reads. Of a file, what is not whole is cut off then.
    pub fn write(&mut self, whole: &[u8]) -> Result<Written, OutputError> {
        self.packets = 0;
        let (mut from, mut to) = (0, 0);
        let mut at = 0;
        for block in blocks(whole) {
            let len = block.bytes().len();
            let kind = block.kind();
            let is_packet = matches!(kind, Kind::Packet(_));
            if is_packet && self.is_full_with(to - from + len) {
                self.flush(&whole[from..to])?;
                (from, to) = (at, at);
                if let Written::Enough(count) = self.follow()? {
                    return Ok(Written::Enough(count));
                }
            }
            let is_as_it_came = match (&kind, &mut self.section) {
                (Kind::Section, _) => self.begin_section(&block),
                (kind, Some(section)) => section.takes(&block, kind, &mut self.pending),
                (_, None) => true,
            };
            at += len;
            match is_as_it_came {
                true if self.pending.is_empty() && at - len == to => to = at,
                true => self.pending.extend_from_slice(block.bytes()),
                false => {}
            }
            if is_packet {
                self.packets += 1;
                self.pending_packets += 1;
                self.files.iter_mut().for_each(|files| files.packets += 1);
            }
        }
        self.flush(&whole[from..to])?;
        Ok(Written::More)
    }

    /// Whether the file has all that it may have, when it would get so many bytes more, what is pending, and its end.
    fn is_full_with(&self, len: usize) -> bool {
        let Some(files) = &self.files else {
            return false;
        };
        let end = self.section.as_ref().map_or(0, Section::end_len);
        files.is_full(self.len + (len + self.pending.len()) as u64 + end)
    }

    /// When the file is to be followed by the next, whether or not something comes.
    pub fn deadline(&self) -> Option<Instant> {
        let files = self.files.as_ref()?;
        Some(files.begun + files.rotation.duration?)
    }

    /// Ends the file, and begins the next.
    ///
    /// # Errors
    /// As [`Self::write`], and when the next cannot be made.
    pub fn follow(&mut self) -> Result<Written, OutputError> {
        self.end_file(false)?;
        let Some(files) = &mut self.files else {
            return Ok(Written::More);
        };
        if files.rotation.written == Some(files.written) {
            return Ok(Written::Enough(files.written));
        }
        let (name, file) = files.next()?;
        (self.name, self.file, self.len) = (name, file, 0);
        if let Some(section) = &mut self.section {
            section.begin_file(&mut self.pending);
        }
        let begun = self.flush(&[]);
        if begun.is_err() && self.len == 0 {
            // Nothing could open it.
            self.files.iter_mut().for_each(Files::discard_newest);
        }
        begun.map(|()| Written::More)
    }

    /// Ends what a broken stream has left: interfaces that have no final statistics get some, which do not tell how many packets were
    /// lost.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn end_broken(&mut self) -> Result<(), OutputError> {
        self.end_file(true)
    }

    fn end_file(&mut self, is_broken: bool) -> Result<(), OutputError> {
        if let Some(section) = &mut self.section {
            section.end_file(is_broken, &mut self.pending);
        }
        self.flush(&[])
    }

    /// Has the next section tell why packets between it and the one before are missing.
    pub fn resume(&mut self, gap: String) {
        self.section = None;
        self.gap = Some(gap);
    }

    fn begin_section(&mut self, header: &Block<'_>) -> bool {
        let header = match self.gap.take() {
            Some(gap) => with_comment(header, &gap),
            None => Bytes::copy_from_slice(header.bytes()),
        };
        self.section = Some(Section::begin(header, &mut self.pending));
        false
    }

    /// Of the packets that [`Self::write`] was given last: how many stand in a file, whole.
    pub(crate) fn packets_written(&self) -> u64 {
        self.packets.saturating_sub(self.pending_packets)
    }

    /// Writes whole blocks, and those that are pending behind them.
    fn flush(&mut self, front: &[u8]) -> Result<(), OutputError> {
        let written = self
            .file
            .write_all(front)
            .and_then(|()| self.file.write_all(&self.pending));
        if written.is_ok() {
            self.len += (front.len() + self.pending.len()) as u64;
            self.pending_packets = 0;
        } else if self.is_regular {
            // What is not whole is of no use to whoever cannot write it, and in the way of all readers.
            let _ = self.cut(front);
        }
        self.pending.clear();
        written.map_err(|error| OutputError::Write(self.name.clone(), error))
    }

    /// Cuts off what is left of a block of which only the beginning could be written.
    fn cut(&mut self, front: &[u8]) -> io::Result<()> {
        let end = self.file.metadata()?.len();
        for block in blocks(front).chain(blocks(&self.pending)) {
            let len = self.len + block.bytes().len() as u64;
            if len > end {
                break;
            }
            self.len = len;
            if matches!(block.kind(), Kind::Packet(_)) {
                self.pending_packets = self.pending_packets.saturating_sub(1);
            }
        }
        self.file.set_len(self.len)
    }

    /// What is written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Files {
    /// Whether the newest has had all that it may have, when it would be `len` bytes long with the next packet.
    fn is_full(&self, len: u64) -> bool {
        let Rotation { size, packets, .. } = self.rotation;
        self.packets > 0 && (size.is_some_and(|size| len > size) || packets == Some(self.packets))
    }

    /// Takes away a file that has no beginning.
    fn discard_newest(&mut self) {
        if let Some(newest) = self.names.pop_back() {
            // It is told of in any case that it could not be written.
            let _ = fs::remove_file(newest);
        }
    }

    /// Makes the next file, and deletes those that are too many.
    fn next(&mut self) -> Result<(String, File), OutputError> {
        let path = numbered(&self.path, self.written + 1, &chrono::Local::now());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|error| failure(&path, error))?;
        let name = path.display().to_string();
        self.written += 1;
        self.packets = 0;
        self.begun = Instant::now();
        self.names.push_back(path);
        while self.rotation.kept.is_some_and(|kept| self.names.len() > kept)
            && let Some(oldest) = self.names.pop_front()
        {
            match fs::remove_file(&oldest) {
                // Somebody has moved it elsewhere.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => say(format_args!("{} stays: {error}", oldest.display())),
                Ok(()) => {}
            }
        }
        Ok((name, file))
    }
}

/// The name of one of the files that follow each other.
fn numbered(path: &Path, number: u32, time: &chrono::DateTime<chrono::Local>) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("_{number:05}_{}", time.format("%Y%m%d%H%M%S")));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

fn failure(path: &Path, error: io::Error) -> OutputError {
    match error.kind() {
        io::ErrorKind::AlreadyExists => OutputError::Exists(path.to_owned()),
        _ => OutputError::Create(path.to_owned(), error),
    }
}

/// Standard output without its buffer, which looks for lines.
pub(crate) fn standard_output() -> io::Result<File> {
    #[cfg(unix)]
    let output = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?;
    #[cfg(windows)]
    let output = std::os::windows::io::AsHandle::as_handle(&io::stdout()).try_clone_to_owned()?;
    Ok(output.into())
}
