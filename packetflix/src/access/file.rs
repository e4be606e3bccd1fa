//! Files that say who may come in: small, and those that hold secrets readable by nobody else.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use nix::libc;
use serde::{Deserialize, Serialize};
use tokio::task::block_in_place;

use super::tokens::{TokenFileError, with_digests};
use crate::{
    channel::{self, Broken, Control, Kind, Served},
    error::Told,
};

/// Most bytes of such a file.
const MAX_LEN: u64 = 1 << 20;

/// Why a file is not used. Each names it.
#[derive(Debug, Serialize, Deserialize, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// What the kernel says.
        #[serde(with = "channel::kernel_error")]
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("{} is no regular file", .0.display())]
    NotRegular(#[serde(with = "channel::path")] PathBuf),
    /// It is too long.
    #[error("{} has more than {MAX_LEN} bytes", .0.display())]
    TooLong(#[serde(with = "channel::path")] PathBuf),
    /// Its secrets are none.
    #[error(
        "{} may be read or altered by others (mode {mode:04o}): chmod 600 it; 640 will do for a file of root's that is \
         read as another user",
        path.display()
    )]
    Open {
        /// The file.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Someone else may alter it.
    #[error("{} belongs to the user {owner}, and not to root or to the service's user", path.display())]
    Owner {
        /// The file.
        #[serde(with = "channel::path")]
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Nobody is there who could read it.
    #[error(transparent)]
    #[serde(skip)]
    Broken(#[from] Broken),
}

/// What tells one state of a file from another: device, inode, size, and the times of its last changes, in nanoseconds.
/// Through links, so that those that Kubernetes makes point elsewhere are noticed; the time of the last change of the
/// inode, so that other permissions are.
pub(super) type Stamp = (u64, u64, u64, (i64, i64), (i64, i64));

/// Where files are read for this process, if it has no rights to read them itself.
static READER: OnceLock<Arc<Control>> = OnceLock::new();

/// Has files read by the process at the other end from now on.
pub(crate) fn read_by(control: &Arc<Control>) {
    // There is one such process.
    let _ = READER.set(Arc::clone(control));
}

/// What is asked of who reads files.
#[derive(Debug, Serialize, Deserialize)]
enum FilesQuestion {
    /// `Result<Vec<u8>, FileError>`
    Read {
        #[serde(with = "channel::path")]
        path: PathBuf,
        is_secret: bool,
    },
    /// `Result<String, Told>`: the token file, with digests in the place of tokens.
    Tokens(#[serde(with = "channel::path")] PathBuf),
    /// `Option<Stamp>`: the state of a file; none of one that is not there.
    Stamp(#[serde(with = "channel::path")] PathBuf),
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    /// What a front asks that may have been taken over.
    pub(crate) fn asked(data: &[u8]) {
        let _ = crate::channel::fuzzing::message::<super::FilesQuestion>(data);
    }
}

/// Which files are read for a process that has no rights to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    /// Nothing of it is handed out but digests.
    pub(crate) tokens: Option<PathBuf>,
    pub(crate) others: Vec<PathBuf>,
}

/// Reads files for a process that has no rights to: these, and no others.
///
/// # Errors
/// When what is asked cannot be understood.
pub(crate) async fn serve(mut line: Served, files: Arc<Files>) -> io::Result<()> {
    while let Some(question) = line.next::<FilesQuestion>().await? {
        match question {
            FilesQuestion::Read { path, is_secret } => {
                let answer = match files.others.contains(&path) {
                    false => Err(not_ours(path)),
                    true => block_in_place(|| read_here(&path, is_secret)),
                };
                line.say(&answer).await?;
            }
            FilesQuestion::Tokens(path) => {
                let answer = match files.tokens.as_ref() == Some(&path) {
                    false => Err(not_ours(path).into()),
                    true => block_in_place(|| {
                        let text = read_here(&path, true).map_err(TokenFileError::from);
                        text.and_then(|text| with_digests(&text))
                    }),
                };
                let answer = answer.map_err(|error: TokenFileError| Told::of(&error));
                line.say(&answer).await?;
            }
            FilesQuestion::Stamp(path) => {
                let is_known = files.tokens.as_ref() == Some(&path) || files.others.contains(&path);
                let stamp = is_known.then(|| block_in_place(|| stamp_here(&path))).flatten();
                line.say(&stamp).await?;
            }
        }
    }
    Ok(())
}

fn not_ours(path: PathBuf) -> FileError {
    FileError::Read {
        path,
        source: io::ErrorKind::PermissionDenied.into(),
    }
}

/// The state of a file; `None` of one that is not there.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    match READER.get() {
        Some(reader) => reader
            .ask(Kind::Files, &FilesQuestion::Stamp(path.to_owned()))
            .ok()?,
        None => stamp_here(path),
    }
}

fn stamp_here(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    ))
}

/// Reads a file that holds secrets.
///
/// It must be root's or ours, and nobody else may have a right to it; but for the group of a file of root's that is not
/// read as root, since there would be no other way to read it.
///
/// # Errors
/// When it is not so, or it is too long or cannot be read.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    read_or_ask(path, true)
}

/// Reads a token file, likewise. Whoever reads it for this process hands out digests of the tokens only.
///
/// # Errors
/// As [`read_secret`], and when it is read for this process and cannot be used.
pub(super) fn read_tokens(path: &Path) -> Result<Vec<u8>, TokenFileError> {
    let Some(reader) = READER.get() else {
        return Ok(read_secret(path)?);
    };
    let question = FilesQuestion::Tokens(path.to_owned());
    let told: Result<String, Told> = reader.ask(Kind::Files, &question).map_err(FileError::from)?;
    Ok(told?.into_bytes())
}

/// Reads a file that anyone may read.
///
/// # Errors
/// When it is too long or cannot be read.
pub(crate) fn read_public(path: &Path) -> Result<Vec<u8>, FileError> {
    read_or_ask(path, false)
}

fn read_or_ask(path: &Path, is_secret: bool) -> Result<Vec<u8>, FileError> {
    let Some(reader) = READER.get() else {
        return read_here(path, is_secret);
    };
    let path = path.to_owned();
    reader.ask(Kind::Files, &FilesQuestion::Read { path, is_secret })?
}

fn read_here(path: &Path, is_secret: bool) -> Result<Vec<u8>, FileError> {
    read(path, |metadata| {
        if !is_secret {
            return Ok(());
        }
        let owner = metadata.uid();
        let own = nix::unistd::geteuid().as_raw();
        let mode = metadata.mode() & 0o7777;
        if owner != 0 && owner != own {
            let path = path.to_owned();
            return Err(FileError::Owner { path, owner });
        }
        if mode & !allowed_mode(owner, own) & 0o777 != 0 {
            let path = path.to_owned();
            return Err(FileError::Open { path, mode });
        }
        Ok(())
    })
}

/// The permissions that a secret of `owner` may have at most, where we are `own`.
fn allowed_mode(owner: u32, own: u32) -> u32 {
    if owner == own { 0o700 } else { 0o740 }
}

fn read(path: &Path, check: impl FnOnce(&Metadata) -> Result<(), FileError>) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read {
        path: path.to_owned(),
        source,
    };
    // A pipe would make us wait for whoever writes into it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular(path.to_owned()));
    }
    check(&metadata)?;
    let mut bytes = Vec::new();
    File::take(file, MAX_LEN + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_LEN {
        return Err(FileError::TooLong(path.to_owned()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn secrets_are_read_by_nobody_else() {
        assert_eq!((allowed_mode(0, 0), allowed_mode(7, 7)), (0o700, 0o700));
        // The only way to a secret that Kubernetes mounts for a user that is not root.
        assert_eq!(allowed_mode(0, 7), 0o740);
        let path = std::env::temp_dir().join(format!("packetflix-secret-{}", std::process::id()));
        std::fs::write(&path, "secret").unwrap();
        for (mode, is_read) in [
            (0o600, true),
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o620, false),
            (0o602, false),
            (0o644, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = read_secret(&path);
            assert_eq!(read.is_ok(), is_read, "{mode:o} {read:?}");
            assert_eq!(read_public(&path).unwrap(), b"secret");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(read_secret(&path), Err(FileError::Read { .. })));
    }

    #[test]
    fn nothing_but_files_of_some_size_is_read() {
        assert!(matches!(
            read_public(Path::new("/tmp")),
            Err(FileError::NotRegular(_))
        ));
        assert!(matches!(
            read_public(Path::new("/dev/zero")),
            Err(FileError::NotRegular(_))
        ));
        let path = std::env::temp_dir().join(format!("packetflix-long-{}", std::process::id()));
        File::create(&path).unwrap().set_len(MAX_LEN + 1).unwrap();
        assert!(matches!(read_public(&path), Err(FileError::TooLong(_))));
        std::fs::remove_file(&path).unwrap();
    }
}
