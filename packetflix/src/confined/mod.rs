//! Processes of ours that work on what others wrote: each is our own program, executed anew, and bounds itself and gives up its
//! rights before it reads anything.

mod front;
mod system_calls;

use std::{fs, io};

use nix::{
    sys::{prctl::set_dumpable, resource::Resource},
    unistd::{Gid, SysconfVar, Uid, setgroups, setresgid, setresuid, sysconf},
};

pub use self::front::give_up_if_asked;
pub(crate) use self::{
    front::{give_up_all, try_to_give_up},
    system_calls::SystemCall,
};
use crate::{
    capabilities::{self, Capability},
    sys,
};

/// User and group that own nothing: `nobody` and `nogroup`, which the kernel itself uses for those it cannot name.
const NOBODY: u32 = 65534;

/// A step that failed.
pub(crate) struct Failure {
    pub(crate) step: &'static str,
    pub(crate) error: io::Error,
    /// The right that it takes, if one.
    pub(crate) needs: Option<Capability>,
}

impl Failure {
    /// One that takes no right.
    pub(crate) fn of(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self {
            step,
            error,
            needs: None,
        }
    }

    /// What could not be done, and why.
    pub(crate) fn sentence(&self) -> String {
        let Self { step, error, .. } = self;
        format!("{step}: {error}")
    }

    /// One that takes a right.
    pub(crate) fn without(right: Capability, step: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self {
            step,
            error,
            needs: Some(right),
        }
    }
}

/// The first that a helper does: it has nothing but its standard descriptors, so many seconds of CPU time, with one more until it
/// is killed, and `room` bytes of memory beside what it has by now; and the kernel ends it first.
pub(crate) fn begin(room: u64, seconds: u64) -> Result<(), Failure> {
    #[expect(unsafe_code, reason = "closes what this process may have inherited")]
    // SAFETY: this is the first thing that the process does, so that nothing in it has a descriptor but the standard
    // ones, which stay open.
    let closed = unsafe { sys::close_inherited_descriptors() };
    closed.map_err(Failure::of("inherited descriptors could not be closed"))?;
    offer_to_be_ended().map_err(Failure::of(
        "the process could not be made the first to be ended for want of memory (oom_score_adj)",
    ))?;
    bound_resources(room, seconds).map_err(Failure::of("resources could not be bounded (setrlimit)"))
}

/// Leaves the process without rights, with so many descriptors that it may have at most, and with these system calls.
pub(crate) fn give_up_rights(descriptors: u64, system_calls: &[SystemCall]) -> Result<(), Failure> {
    become_user(NOBODY)?;
    for (resource, bound) in [
        (Resource::RLIMIT_NOFILE, descriptors),
        (Resource::RLIMIT_NPROC, 0),
    ] {
        sys::lower_limit(resource, bound, bound)
            .map_err(Failure::of("resources could not be bounded (setrlimit)"))?;
    }
    system_calls::allow_only(system_calls)
        .map_err(Failure::of("system calls could not be restricted (seccomp)"))
}

/// Makes the process one of this user and group alone, where it may become that, without capabilities, for good, and one that
/// nobody may trace who has none.
fn become_user(id: u32) -> Result<(), Failure> {
    // Who may not become another user, or is in a user namespace that has no such user, stays what it is.
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    let _ = setgroups(&[]);
    let _ = setresgid(group, group, group);
    let _ = setresuid(user, user, user);
    capabilities::give_up()
        .map_err(io::Error::other)
        .map_err(Failure::of("capabilities could not be dropped (capset)"))?;
    // To become another user makes the process one that may be traced by this user, unless said again.
    set_dumpable(false)
        .map_err(io::Error::from)
        .map_err(Failure::of("tracing could not be forbidden (prctl)"))
}

/// When the machine, or the control group, is out of memory, the kernel is to end this process and not the server.
///
/// Source: `Documentation/filesystems/proc.rst`, `oom_score_adj`.
fn offer_to_be_ended() -> io::Result<()> {
    // The files of a process that may not be traced, as when the program has capabilities of its own, are root's.
    set_dumpable(true)?;
    fs::write("/proc/self/oom_score_adj", "1000")
}

/// Bytes of this process's address space.
///
/// Source: `Documentation/filesystems/proc.rst`, `statm`.
fn address_space() -> io::Result<u64> {
    let told = fs::read_to_string("/proc/self/statm")?;
    let pages = told.split(' ').next().and_then(|pages| pages.parse::<u64>().ok());
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|bytes| u64::try_from(bytes).ok());
    let bytes = pages.zip(page).map(|(pages, page)| pages * page);
    bytes.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn bound_resources(room: u64, seconds: u64) -> io::Result<()> {
    let space = address_space()? + room;
    sys::lower_limit(Resource::RLIMIT_CORE, 0, 0)?;
    sys::lower_limit(Resource::RLIMIT_FSIZE, 0, 0)?;
    sys::lower_limit(Resource::RLIMIT_CPU, seconds, seconds + 1)?;
    sys::lower_limit(Resource::RLIMIT_AS, space, space)?;
    set_dumpable(false)?;
    Ok(())
}
