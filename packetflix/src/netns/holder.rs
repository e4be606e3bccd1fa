//! Who keeps a namespace in existence, and which namespace is open.

use std::{os::fd::BorrowedFd, path::PathBuf, process};

use nix::{sched::CloneFlags, sys::stat::fstat};

use super::Users;
use crate::{
    lookout::{Kind, Place},
    sys,
};

/// Who keeps a network namespace in existence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// A process in it.
    Process { pid: u32 },
    /// A thread that left its process's namespace for it.
    Thread { pid: u32, tid: u32 },
    /// A bind mount, at a path of the mount namespace of process `pid`, whose files are to be looked at with care.
    Mount { pid: u32, path: PathBuf, files: Place },
    /// A process that has it open.
    Descriptor { pid: u32, fd: u32 },
    /// A process that has a socket there, which has this inode number.
    Socket { pid: u32, fd: u32, socket: u64 },
}

impl Holder {
    /// Whether it is a mount that the host has.
    pub(crate) fn is_mount_of_host(&self) -> bool {
        matches!(self, Self::Mount { pid, .. } if [1, process::id()].contains(pid))
    }

    /// Where the interfaces of the namespace of this number are looked at through it, and in whose hands that is.
    pub(super) fn place_of_links(&self, inode: u64, users: &mut Users) -> Place {
        match self {
            Self::Process { pid }
            | Self::Thread { pid, .. }
            | Self::Descriptor { pid, .. }
            | Self::Socket { pid, .. } => Place {
                owner: users.owner_of(*pid),
                kind: Kind::Interfaces(inode),
            },
            Self::Mount { files, .. } => *files,
        }
    }
}

/// Number of the network namespace that is open; `None` when it is something else.
pub(super) fn network_namespace_inode(descriptor: BorrowedFd<'_>) -> Option<u64> {
    let kind = sys::namespace_type(descriptor).ok()?;
    let inode = fstat(descriptor).ok()?.st_ino;
    (kind == CloneFlags::CLONE_NEWNET.bits()).then_some(inode)
}
