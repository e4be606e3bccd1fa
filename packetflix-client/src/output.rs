//! Where a stream goes.

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::pcapng::blocks;

/// What `-w` is given for standard output.
const STANDARD_OUTPUT: &str = "-";

/// Where a stream goes.
pub(crate) struct Output {
    name: String,
    file: File,
    /// Whether a file that grows, and can be cut where a block is not whole.
    is_regular: bool,
    /// Bytes that were written whole.
    len: u64,
}

/// Why there is nowhere to go.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutputError {
    /// A terminal.
    #[error(
        "packets are no text, and are not written to a terminal: write them to a file with -w FILE, or to a program, as in -w - | tshark -i -"
    )]
    Terminal,
    /// There is such a file already.
    #[error("{} exists: give another name, or take it away", .0.display())]
    Exists(PathBuf),
    /// It cannot be made.
    #[error("{} cannot be written", .0.display())]
    Create(PathBuf, #[source] io::Error),
    /// It cannot be written to any more.
    #[error("{0} could not be written to its end")]
    Write(String, #[source] io::Error),
}

impl OutputError {
    /// Whether whoever reads has had enough.
    pub(crate) fn is_reader_gone(&self) -> bool {
        matches!(self, Self::Write(_, error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What is wrong with an output, before anything is captured for it.
///
/// # Errors
/// When it is a terminal, or there is such a file already.
pub(crate) fn check(path: &Path) -> Result<(), OutputError> {
    if path == Path::new(STANDARD_OUTPUT) {
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

impl Output {
    /// Opens what `-w` names: a new file, a pipe or device that is there, or standard output.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) fn open(path: &Path) -> Result<Self, OutputError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::AlreadyExists => OutputError::Exists(path.to_owned()),
            _ => OutputError::Create(path.to_owned(), error),
        };
        if path == Path::new(STANDARD_OUTPUT) {
            let file = standard_output().map_err(failed)?;
            return Ok(Self {
                name: "standard output".to_owned(),
                file,
                is_regular: false,
                len: 0,
            });
        }
        let is_regular = path.metadata().map_or(true, |metadata| metadata.is_file());
        let file = OpenOptions::new()
            .write(true)
            .create_new(is_regular)
            .open(path)
            .map_err(failed)?;
        Ok(Self {
            name: path.display().to_string(),
            file,
            is_regular,
            len: 0,
        })
    }

    /// Writes whole blocks. Of a file that has no room for them, what is not whole is cut off.
    ///
    /// # Errors
    /// When there is no room, or nobody reads.
    pub(crate) fn write(&mut self, whole: &Bytes) -> Result<(), OutputError> {
        let written = self.file.write_all(whole);
        if written.is_err() && self.is_regular {
            // Of no use to whoever cannot write it, and in the way of all readers.
            let _ = self.cut(whole);
        }
        written.map_err(|error| OutputError::Write(self.name.clone(), error))?;
        self.len += whole.len() as u64;
        Ok(())
    }

    /// Cuts off what is left of a block of which only the beginning has been written.
    fn cut(&mut self, last: &Bytes) -> io::Result<()> {
        let written = usize::try_from(self.file.metadata()?.len() - self.len).unwrap_or_default();
        let written = last.slice(..written.min(last.len()));
        let kept: usize = blocks(written).map(|block| block.bytes().len()).sum();
        self.len += kept as u64;
        self.file.set_len(self.len)
    }

    /// What is written to.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Its name, for people.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Standard output without its buffer, which looks for lines.
fn standard_output() -> io::Result<File> {
    #[cfg(unix)]
    let output = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned()?;
    #[cfg(windows)]
    let output = std::os::windows::io::AsHandle::as_handle(&io::stdout()).try_clone_to_owned()?;
    Ok(output.into())
}
