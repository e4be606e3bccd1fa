//! Errors as sentences.

use std::{
    error::Error,
    fmt::{self, Write as _},
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    maps::MapError,
    programs::{ProgramError, tc::TcError},
};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// An error of another process: its sentences, and the error number of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    sentence: String,
    errno: Option<i32>,
    source: Option<Box<Self>>,
}

impl Told {
    /// An error as it is told.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Self {
        Self {
            sentence: error.to_string(),
            errno: number_of(error),
            source: error.source().map(|source| Box::new(Self::of(source))),
        }
    }
}

impl Told {
    /// What caused it; itself, where it has the error number and nothing else does.
    pub(crate) fn below(&self) -> Option<&(dyn Error + 'static)> {
        match self.errno {
            Some(_) => Some(self),
            None => self.source(),
        }
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl Error for Told {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.source.as_ref()?)
    }
}

/// `error` and all that caused it, in one sentence.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut sentence = error.to_string();
    for cause in causes(error).skip(1) {
        let cause = cause.to_string();
        // Some crates repeat their cause.
        if !sentence.ends_with(&cause) {
            let _ = write!(sentence, ": {cause}");
        }
    }
    sentence
}

/// The error number of the kernel behind `error`, if one is.
pub(crate) fn errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    causes(error).find_map(number_of).map(Errno::from_raw)
}

/// The error number that an error itself has.
fn number_of(error: &(dyn Error + 'static)) -> Option<i32> {
    match error.downcast_ref::<Told>() {
        Some(told) => told.errno,
        None => io_error(error)?.raw_os_error(),
    }
}

/// The error of the kernel that an error is, or that it stands for without telling that this is its cause, as some of aya's
/// do.
fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    fn of_map(error: &MapError) -> Option<&io::Error> {
        match error {
            MapError::IoError(error) => Some(error),
            _ => None,
        }
    }
    fn of_program(error: &ProgramError) -> Option<&io::Error> {
        match error {
            ProgramError::IOError(error) | ProgramError::TcError(TcError::IoError(error)) => Some(error),
            ProgramError::MapError(error) => of_map(error),
            _ => None,
        }
    }
    error
        .downcast_ref::<io::Error>()
        .or_else(|| error.downcast_ref().and_then(of_map))
        .or_else(|| {
            error
                .downcast_ref::<Box<ProgramError>>()
                .and_then(|error| of_program(error))
        })
        .or_else(|| error.downcast_ref().and_then(of_program))
}

/// Whether `error` would not be there if this process or others held fewer descriptors, less memory or fewer threads.
pub(crate) fn is_exhaustion(error: &(dyn Error + 'static)) -> bool {
    matches!(
        errno(error),
        Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN)
    )
}

/// How often descriptors or memory were wanting, where that is no error of the whole.
static WANTS: AtomicU64 = AtomicU64::new(0);

/// Notes when a look into `/proc` failed for want of descriptors or memory: whoever looks at many things passes over what is
/// gone, and must not take this for that. Nobody but the kernel may have a say in it.
pub(crate) fn note_want(error: &io::Error) {
    if is_exhaustion(error) {
        WANTS.fetch_add(1, Ordering::Relaxed);
    }
}

/// How often that was noted, by anyone.
pub(crate) fn wants() -> u64 {
    WANTS.load(Ordering::Relaxed)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

#[cfg(test)]
mod tests {
    use aya::EbpfError;

    use super::*;
    use crate::tap::{HookError, LoadError};

    #[test]
    fn error_numbers_are_found_behind_whatever_wraps_them() {
        let kernel = || io::Error::from(Errno::ENODEV);
        let attach = |source| HookError::Attach {
            program: "p",
            interface: "eth0".to_owned(),
            source,
        };
        let query = |source| HookError::Query(Box::new(source));
        let map = |source| LoadError::Map { name: "m", source };
        let errors: [Box<dyn Error>; 7] = [
            Box::new(kernel()),
            Box::new(attach(kernel())),
            Box::new(query(ProgramError::TcError(TcError::IoError(kernel())))),
            Box::new(query(ProgramError::IOError(kernel()))),
            Box::new(HookError::Loopback(kernel())),
            Box::new(map(MapError::IoError(kernel()))),
            Box::new(LoadError::Object(Box::new(EbpfError::MapError(
                MapError::IoError(kernel()),
            )))),
        ];
        for error in &errors {
            assert_eq!(errno(&**error), Some(Errno::ENODEV), "{error:?}");
        }
        assert_eq!(errno(&LoadError::Missing("m")), None);
        // Nor is anything lost where they are told by another process.
        for error in &errors {
            let told = Told::of(&**error);
            assert_eq!(errno(&told), Some(Errno::ENODEV), "{error:?}");
            assert_eq!(chain(&told), chain(&**error));
        }
    }
}
