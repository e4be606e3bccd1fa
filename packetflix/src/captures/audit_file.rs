//! The file of the account of captures: each line is written whole or not at all, as far as the file system allows, and one
//! that is not written is told.

use std::{
    fs::{File, Metadata, OpenOptions},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::{errno::Errno, libc};

use serde::{Deserialize, Serialize};
use tokio::task::block_in_place;

use crate::{
    channel::{self, Broken, Control, Kind, Line, Served},
    line_writer::write_line,
};

/// Stands for standard output.
const OUTPUT: &str = "-";

/// Permissions of the file: what it holds is for the operator alone.
const MODE: u32 = 0o600;

/// Why the account of captures has no file. Each names the path.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum AuditFileError {
    /// The kernel does not open it.
    #[error("--audit-log {}: it cannot be opened for appending", path.display())]
    Open {
        /// Which one.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// The error of `open(2)`.
        #[serde(with = "channel::kernel_error")]
        source: io::Error,
    },
    /// It is a pipe that nobody reads.
    #[error("--audit-log {}: nobody reads the pipe", .0.display())]
    NoReader(#[serde(with = "channel::path")] PathBuf),
    /// Others may read it, or write lines of their own.
    #[error("--audit-log {}: it may be read or altered by others (mode {mode:04o}): chmod 600 it", path.display())]
    Shared {
        /// Which one.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Someone else may do as they like with it.
    #[error(
        "--audit-log {}: it belongs to the user {owner}, and not to root or to the service's user",
        path.display()
    )]
    Owner {
        /// Which one.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It is full, or may not grow, or the like.
    #[error("--audit-log {}: a line cannot be written", path.display())]
    Write {
        /// Which one.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// The error of `write(2)`, such as `ENOSPC` or `EFBIG`.
        #[serde(with = "channel::kernel_error")]
        source: io::Error,
    },
    /// Nobody is there who could write it.
    #[error(transparent)]
    #[serde(skip)]
    Broken(#[from] Broken),
}

/// Where the account is written for this process, if it has no rights to write it itself.
static WRITER: OnceLock<Arc<Control>> = OnceLock::new();

/// Has the account written by the process at the other end from now on.
pub(crate) fn write_by(control: &Arc<Control>) {
    // There is one such process.
    let _ = WRITER.set(Arc::clone(control));
}

/// What is asked of who writes the account; each is answered by `Result<(), AuditFileError>`.
#[derive(Debug, Serialize, Deserialize)]
enum AccountQuestion {
    Open,
    MakeReady,
    Write(Vec<u8>),
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    /// What a front asks that may have been taken over.
    pub(crate) fn asked(data: &[u8]) {
        let _ = crate::channel::fuzzing::message::<super::AccountQuestion>(data);
    }
}

/// The account, wherever it is written.
#[derive(Debug)]
pub(super) enum AuditFile {
    Own(OpenFile),
    Kept(Line),
}

impl AuditFile {
    /// Opens the account as [`OpenFile::open`] does.
    ///
    /// # Errors
    /// As there.
    pub(super) fn open(path: &Path) -> Result<Self, AuditFileError> {
        let Some(writer) = WRITER.get() else {
            return OpenFile::open(path).map(Self::Own);
        };
        let line = writer.open(Kind::Account)?;
        line.ask::<_, Result<(), AuditFileError>>(&AccountQuestion::Open)??;
        Ok(Self::Kept(line))
    }

    /// Sees to it that a line can be written, as [`OpenFile::make_ready`] does.
    ///
    /// # Errors
    /// As there.
    pub(super) fn make_ready(&mut self) -> Result<(), AuditFileError> {
        match self {
            Self::Own(file) => file.make_ready(),
            Self::Kept(line) => line.ask(&AccountQuestion::MakeReady)?,
        }
    }

    /// Writes a line, as [`OpenFile::write`] does.
    ///
    /// # Errors
    /// As there.
    pub(super) fn write(&mut self, text: &[u8]) -> Result<(), AuditFileError> {
        match self {
            Self::Own(file) => file.write(text),
            Self::Kept(line) => line.ask(&AccountQuestion::Write(text.to_vec()))?,
        }
    }
}

/// Writes the account, at this path, for a process that has no rights to.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn serve_account(mut line: Served, path: Option<PathBuf>) -> io::Result<()> {
    let path = path.ok_or(io::ErrorKind::PermissionDenied)?;
    let mut open: Option<OpenFile> = None;
    while let Some(question) = line.next::<AccountQuestion>().await? {
        // Lines of JSON, in which others are written otherwise.
        if let AccountQuestion::Write(text) = &question
            && text.trim_ascii_end().iter().any(u8::is_ascii_control)
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let done = block_in_place(|| match (question, &mut open) {
            (AccountQuestion::MakeReady, Some(file)) => file.make_ready(),
            (AccountQuestion::Write(text), Some(file)) => file.write(&text),
            (_, open) => OpenFile::open(&path).map(|file| *open = Some(file)),
        });
        line.say(&done).await?;
    }
    Ok(())
}

/// A file that lines are appended to.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    /// `None` while it cannot be opened.
    file: Option<File>,
    /// Whether it ends within a line.
    is_torn: bool,
}

impl OpenFile {
    /// Opens a file, and makes it if there is none. A pipe may have no reader yet.
    ///
    /// # Errors
    /// When it cannot be opened, or is open to others.
    pub(super) fn open(path: &Path) -> Result<Self, AuditFileError> {
        let mut opened = Self {
            path: path.to_owned(),
            file: None,
            is_torn: false,
        };
        match opened.open_anew() {
            Ok(()) | Err(AuditFileError::NoReader(_)) => Ok(opened),
            Err(error) => Err(error),
        }
    }

    /// Sees to it that the file is open that its path leads to: whoever rotates logs has moved the old one away.
    ///
    /// # Errors
    /// As [`Self::open`], and when nobody reads a pipe.
    pub(super) fn make_ready(&mut self) -> Result<(), AuditFileError> {
        let is_output = self.path == Path::new(OUTPUT);
        match &self.file {
            Some(file) if is_output || self.path.metadata().is_ok_and(|now| is_same(&now, file)) => Ok(()),
            _ => self.open_anew(),
        }
    }

    /// Writes a line with its end.
    ///
    /// # Errors
    /// As [`Self::make_ready`], and when the line cannot be written whole: what follows begins a line of its own.
    pub(super) fn write(&mut self, line: &[u8]) -> Result<(), AuditFileError> {
        self.make_ready()?;
        let Some(mut file) = self.file.as_ref() else {
            return Err(AuditFileError::NoReader(self.path.clone()));
        };
        write_line(&mut file, &mut self.is_torn, line).map_err(|source| {
            self.file = None;
            let path = self.path.clone();
            match Errno::from_raw(source.raw_os_error().unwrap_or_default()) {
                Errno::EPIPE => AuditFileError::NoReader(path),
                _ => AuditFileError::Write { path, source },
            }
        })
    }

    fn open_anew(&mut self) -> Result<(), AuditFileError> {
        self.file = None;
        let failed = |source| AuditFileError::Open {
            path: self.path.clone(),
            source,
        };
        let file = if self.path == Path::new(OUTPUT) {
            io::stdout().as_fd().try_clone_to_owned().map_err(failed)?.into()
        } else {
            self.open_file()?
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_file() {
            self.is_torn = ends_within_a_line(&file, &metadata);
        }
        self.file = Some(file);
        Ok(())
    }

    fn open_file(&self) -> Result<File, AuditFileError> {
        let path = || self.path.clone();
        let failed = |source| AuditFileError::Open { path: path(), source };
        let opened = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            // Neither the start nor a capture waits for whoever is to read a pipe.
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(&self.path);
        let file = match opened {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_pipe(&self.path) => {
                return Err(AuditFileError::NoReader(path()));
            }
            opened => opened.map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        let holds_lines = metadata.is_file() || metadata.file_type().is_fifo();
        if holds_lines && mode & 0o077 != 0 {
            return Err(AuditFileError::Shared { path: path(), mode });
        }
        if holds_lines && owner != 0 && owner != nix::unistd::geteuid().as_raw() {
            return Err(AuditFileError::Owner { path: path(), owner });
        }
        Ok(file)
    }
}

/// Whether a file has something behind the end of its last line, as one who was interrupted has left it.
fn ends_within_a_line(file: &File, metadata: &Metadata) -> bool {
    let Some(at) = metadata.size().checked_sub(1) else {
        return false;
    };
    let last = || {
        // It is open for appending only.
        let again = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let mut last = [0];
        again.read_exact_at(&mut last, at)?;
        io::Result::Ok(last)
    };
    last().is_ok_and(|last| last != *b"\n")
}

fn is_pipe(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|metadata| metadata.file_type().is_fifo())
}

fn is_same(now: &Metadata, file: &File) -> bool {
    file.metadata()
        .is_ok_and(|open| (open.dev(), open.ino()) == (now.dev(), now.ino()))
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _, os::unix::fs::PermissionsExt as _};

    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    /// A folder for one test, deleted when dropped.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("packetflix-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// Who has taken over the process that serves clients writes lines at most.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_no_line_is_not_written_for_another() {
        let folder = Folder::new("audit-no-line");
        let file = folder.0.join("audit");
        for (text, is_line) in [
            ("{\"a\": 1}\n", true),
            ("{}\n{}\n", false),
            ("\x1b[2J\n", false),
            ("{}\0\n", false),
            ("{}\r{}\n", false),
        ] {
            let _ = fs::remove_file(&file);
            let (ours, theirs) = channel::pair().unwrap();
            let serving = tokio::spawn(serve_account(Served::new(theirs).unwrap(), Some(file.clone())));
            let line = Line::new(ours);
            let ask = |question| block_in_place(|| line.ask::<_, Result<(), AuditFileError>>(&question));
            ask(AccountQuestion::Open).unwrap().unwrap();
            let written = ask(AccountQuestion::Write(text.as_bytes().to_vec()));
            assert_eq!(written.is_ok_and(|written| written.is_ok()), is_line, "{text:?}");
            assert_eq!(
                fs::read_to_string(&file).unwrap(),
                if is_line { text } else { "" }
            );
            drop(line);
            assert_eq!(serving.await.unwrap().is_ok(), is_line);
        }
    }

    #[test]
    fn lines_are_appended_and_the_file_is_made_anew_when_it_was_moved() {
        let folder = Folder::new("audit");
        let (path, moved) = (folder.0.join("log"), folder.0.join("log.1"));
        fs::write(&path, "before\ntorn").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mut log = OpenFile::open(&path).unwrap();
        log.write(b"one\n").unwrap();
        log.write(b"two\n").unwrap();
        fs::rename(&path, &moved).unwrap();
        log.write(b"three\n").unwrap();
        let texts = [&moved, &path].map(|path| fs::read_to_string(path).unwrap());
        assert_eq!(texts, ["before\ntorn\none\ntwo\n", "three\n"]);
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let error = OpenFile::open(&folder.0.join("no/such/folder")).unwrap_err();
        assert!(error.to_string().starts_with("--audit-log /"), "{error}");
    }

    #[test]
    fn what_others_may_open_is_refused() {
        let folder = Folder::new("audit-shared");
        let path = folder.0.join("log");
        fs::write(&path, "").unwrap();
        for (mode, is_taken) in [
            (0o600, true),
            (0o644, false),
            (0o640, false),
            (0o620, false),
            (0o602, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(OpenFile::open(&path).is_ok(), is_taken, "{mode:o}");
        }
        // Neither does one that was put in its place later.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mut log = OpenFile::open(&path).unwrap();
        let next = folder.0.join("next");
        fs::write(&next, "").unwrap();
        fs::set_permissions(&next, fs::Permissions::from_mode(0o644)).unwrap();
        fs::rename(&next, &path).unwrap();
        assert!(matches!(
            log.write(b"line\n"),
            Err(AuditFileError::Shared { mode: 0o644, .. })
        ));
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_pipe_without_a_reader_is_waited_for_by_nobody() {
        let folder = Folder::new("audit-pipe");
        let path = folder.0.join("pipe");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        let mut log = OpenFile::open(&path).unwrap();
        assert!(matches!(log.write(b"lost\n"), Err(AuditFileError::NoReader(_))));
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .unwrap();
        log.write(b"one\n").unwrap();
        let mut read = [0; 16];
        let len = (&reader).read(&mut read).unwrap();
        assert_eq!(&read[..len], b"one\n");
        drop(reader);
        assert!(matches!(log.write(b"lost\n"), Err(AuditFileError::NoReader(_))));
    }
}
