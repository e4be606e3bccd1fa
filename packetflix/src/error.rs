//! Errors as sentences.

use std::{error::Error, fmt::Write as _, io};

use nix::errno::Errno;

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
    causes(error)
        .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
        .map(Errno::from_raw)
}

/// Whether `error` would not be there if this process or others held fewer descriptors, less memory or fewer threads.
pub(crate) fn is_exhaustion(error: &(dyn Error + 'static)) -> bool {
    matches!(
        errno(error),
        Some(Errno::ENOMEM | Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN)
    )
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}
