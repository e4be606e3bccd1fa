//! Files that say who may come in: small, and those that hold secrets readable by nobody else.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::libc;

/// Most bytes of such a file.
const MAX_LEN: u64 = 1 << 20;

/// Why a file is not used. Each names it.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// It is a folder, a pipe or the like.
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// It is too long.
    #[error("{} has more than {MAX_LEN} bytes", .0.display())]
    TooLong(PathBuf),
    /// Its secrets are none.
    #[error(
        "{} may be read or altered by others (mode {mode:04o}): chmod 600 it; 640 will do for a file of root's that is \
         read as another user",
        path.display()
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Someone else may alter it.
    #[error("{} belongs to the user {owner}, and not to root or to the service's user", path.display())]
    Owner {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

/// Reads a file that holds secrets.
///
/// It must be root's or ours, and nobody else may have a right to it; but for the group of a file of root's that is not
/// read as root, since there would be no other way to read it.
///
/// # Errors
/// When it is not so, or it is too long or cannot be read.
pub(crate) fn read_secret(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, |metadata| {
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

/// Reads a file that anyone may read.
///
/// # Errors
/// When it is too long or cannot be read.
pub(crate) fn read_public(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, |_| Ok(()))
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
