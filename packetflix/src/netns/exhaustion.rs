//! What could not be looked at for want of descriptors or memory.

use std::{cell::Cell, io};

use nix::errno::Errno;

use crate::error::is_exhaustion;

/// Remembers that something could not be looked at for want of descriptors or memory.
#[derive(Debug, Default)]
pub(super) struct Exhaustion(Cell<Option<Errno>>);

impl Exhaustion {
    /// What a look found. Whatever else fails is gone, or nothing that we may look at.
    pub(super) fn look<T>(&self, looked: io::Result<T>) -> Option<T> {
        self.pass_on(looked).ok()
    }

    /// What a look found, or why it found nothing.
    pub(super) fn pass_on<T>(&self, looked: io::Result<T>) -> io::Result<T> {
        looked.inspect_err(|error| {
            if is_exhaustion(error) {
                self.0.set(error.raw_os_error().map(Errno::from_raw));
            }
        })
    }

    /// Remembers what another does.
    pub(super) fn take_in(&self, other: &Self) {
        self.0.set(self.0.take().or(other.0.take()));
    }

    /// The error that was met, once.
    pub(super) fn take(&self) -> Option<Errno> {
        self.0.take()
    }
}
