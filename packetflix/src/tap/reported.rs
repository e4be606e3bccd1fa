//! What the side of a tap that has rights could not do, as it tells that.

use std::{error::Error, fmt};

use serde::{Deserialize, Serialize};

use super::{HookError, KernelError, LoadError, Refused};
use crate::{capabilities::Capability, error::Told};

/// What could not be done, and what that means for who asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reported {
    told: Told,
    pub(crate) cause: Cause,
    /// What is to be had for it, should the kernel have refused it for want of a right.
    pub(crate) needs: Capability,
}

/// What it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Cause {
    /// The interface is gone.
    Gone,
    /// The interface takes no more programs, or all captures no more memory.
    Exhausted,
    /// The kernel has no such hook.
    NoTcx,
    /// The filter is too long.
    Filter,
    /// A program was not loaded, and the verifier has nothing to do with it.
    Program,
    /// The verifier found fault with a program.
    Refused(Box<Refused>),
    /// Something else.
    Other,
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.told.fmt(f)
    }
}

impl Error for Reported {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.told.below()
    }
}

impl From<KernelError> for Reported {
    fn from(error: KernelError) -> Self {
        let cause = match &error {
            KernelError::RingMemory { .. }
            | KernelError::Memory { .. }
            | KernelError::Hook(HookError::Full { .. }) => Cause::Exhausted,
            KernelError::Hook(HookError::Gone { .. }) => Cause::Gone,
            KernelError::Hook(HookError::NoTcx) => Cause::NoTcx,
            KernelError::Load(LoadError::Filter(_)) => Cause::Filter,
            KernelError::Load(LoadError::Program { .. }) => Cause::Program,
            KernelError::Load(LoadError::Refused(refused))
            | KernelError::Hook(HookError::Load(LoadError::Refused(refused))) => {
                Cause::Refused(Box::new(refused.clone()))
            }
            _ => Cause::Other,
        };
        Self {
            told: Told::of(&error),
            cause,
            needs: error.needs(),
        }
    }
}
