//! The process that looks names up: our own program, executed anew, and never the one that compiles.
//!
//! The machine's resolver reads what comes from the network, in C. So it is asked by a process that has given up its rights
//! first, and may read files, and speak IP, but make nothing, write nothing, execute nothing and reach no Unix socket. What
//! it answers is numbers and addresses, read as such.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use nix::libc;
use packetflix_filter::{Found, Known, Lookup, MAX_NAMES};
use serde::{Deserialize, Serialize};

use super::{
    helper::{CPU_SECONDS, Helpers},
    lookup,
};
use crate::confined::{Failure, SystemCall, begin, give_up_rights};

/// First argument of a process that is to look names up.
pub(super) const VERB: &str = "look-filter-names-up";

/// Descriptors that looking a name up may take at once.
const DESCRIPTORS: u64 = 16;
/// Bytes of memory that it may take: libraries of the resolver, and the machine's tables.
const ROOM: u64 = 64 << 20;
/// How long all of them may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// Kinds of sockets that it may make; `AF_NETLINK` tells which addresses the machine has.
const FAMILIES: &[u32] = &[
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    libc::AF_NETLINK as u32,
];
/// Flags with which no file is opened.
const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND) as u32;

/// What the resolver takes: seen in traces of glibc's and musl's, with what they do in other versions.
const SYSTEM_CALLS: &[SystemCall] = &[
    SystemCall::any(libc::SYS_read),
    SystemCall::any(libc::SYS_pread64),
    SystemCall::any(libc::SYS_write),
    SystemCall::any(libc::SYS_writev),
    SystemCall::any(libc::SYS_close),
    SystemCall::any(libc::SYS_lseek),
    SystemCall::any(libc::SYS_fstat),
    SystemCall::any(libc::SYS_newfstatat),
    SystemCall::any(libc::SYS_statx),
    SystemCall::any(libc::SYS_readlinkat),
    SystemCall::without(libc::SYS_openat, 2, WRITING),
    #[cfg(target_arch = "x86_64")]
    SystemCall::without(libc::SYS_open, 1, WRITING),
    #[cfg(target_arch = "x86_64")]
    SystemCall::any(libc::SYS_stat),
    #[cfg(target_arch = "x86_64")]
    SystemCall::any(libc::SYS_poll),
    #[cfg(target_arch = "x86_64")]
    SystemCall::any(libc::SYS_time),
    SystemCall::any(libc::SYS_ppoll),
    SystemCall::with(libc::SYS_socket, 0, FAMILIES),
    SystemCall::any(libc::SYS_connect),
    SystemCall::any(libc::SYS_bind),
    SystemCall::any(libc::SYS_getsockname),
    SystemCall::any(libc::SYS_getpeername),
    SystemCall::any(libc::SYS_setsockopt),
    SystemCall::any(libc::SYS_sendto),
    SystemCall::any(libc::SYS_sendmsg),
    SystemCall::any(libc::SYS_sendmmsg),
    SystemCall::any(libc::SYS_recvfrom),
    SystemCall::any(libc::SYS_recvmsg),
    // How much there is to read: `FIONREAD`.
    SystemCall::with(libc::SYS_ioctl, 1, &[0x541b]),
    // Locks of the process's own.
    SystemCall::any(libc::SYS_fcntl),
    SystemCall::any(libc::SYS_brk),
    SystemCall::any(libc::SYS_mmap),
    SystemCall::any(libc::SYS_munmap),
    SystemCall::any(libc::SYS_mremap),
    SystemCall::any(libc::SYS_mprotect),
    SystemCall::any(libc::SYS_madvise),
    SystemCall::any(libc::SYS_futex),
    SystemCall::any(libc::SYS_getrandom),
    SystemCall::any(libc::SYS_uname),
    SystemCall::any(libc::SYS_getpid),
    SystemCall::any(libc::SYS_gettid),
    SystemCall::any(libc::SYS_geteuid),
    SystemCall::any(libc::SYS_getuid),
    SystemCall::any(libc::SYS_getegid),
    SystemCall::any(libc::SYS_getgid),
    SystemCall::any(libc::SYS_clock_gettime),
    SystemCall::any(libc::SYS_gettimeofday),
    SystemCall::any(libc::SYS_clock_nanosleep),
    SystemCall::any(libc::SYS_rt_sigaction),
    SystemCall::any(libc::SYS_rt_sigprocmask),
    SystemCall::any(libc::SYS_rt_sigreturn),
    SystemCall::any(libc::SYS_sigaltstack),
    SystemCall::any(libc::SYS_exit),
    SystemCall::any(libc::SYS_exit_group),
];

/// Why names cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookUpError {
    /// Each may ask the network.
    #[error("the filter has more than {MAX_NAMES} names: write numbers")]
    TooMany,
    /// The resolver waits for somebody.
    #[error("looking up the names in the filter took too long")]
    Timeout,
    /// The process could not be made safe.
    #[error("names in filters cannot be looked up: {0}")]
    Setup(String),
    /// The process could not be started, or did not answer.
    #[error("the process that looks names up failed")]
    Process(#[source] io::Error),
}

/// What the process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// What each name stands for, in their order.
    Found(Vec<Found>),
    Failed(String),
}

/// Looks names up in a process of its own, of our program.
///
/// # Errors
/// When it cannot, or takes too long; that there is no such name is no error.
pub(super) async fn look_up(wanted: Vec<Lookup>, helpers: &Helpers) -> Result<Known, LookUpError> {
    if wanted.is_empty() {
        return Ok(Known::new());
    }
    let question = serde_json::to_vec(&wanted).map_err(|error| LookUpError::Process(error.into()))?;
    let helped = helpers.ask(&[VERB.to_owned()], &question, DEADLINE).await;
    let (status, answer) = helped
        .map_err(LookUpError::Process)?
        .ok_or(LookUpError::Timeout)?;
    if !status.success() {
        return Err(LookUpError::Process(io::Error::other(status.to_string())));
    }
    match serde_json::from_slice(&answer) {
        Ok(Answer::Found(found)) if found.len() == wanted.len() => {
            Ok(wanted.into_iter().zip(found).collect())
        }
        Ok(Answer::Found(_)) => Err(LookUpError::Process(io::ErrorKind::InvalidData.into())),
        Ok(Answer::Failed(sentence)) => Err(LookUpError::Setup(sentence)),
        Err(error) => Err(LookUpError::Process(error.into())),
    }
}

/// What the process says to what it is asked.
pub(super) fn answer() -> Answer {
    prepare_and_look_up().unwrap_or_else(|failure| Answer::Failed(failure.sentence()))
}

fn prepare_and_look_up() -> Result<Answer, Failure> {
    begin(ROOM, CPU_SECONDS)?;
    give_up_rights(DESCRIPTORS, SYSTEM_CALLS)?;
    let mut question = Vec::new();
    io::stdin()
        .read_to_end(&mut question)
        .map_err(Failure::of("the names could not be read"))?;
    let wanted: Vec<Lookup> = serde_json::from_slice(&question)
        .map_err(|error| Failure::of("the names could not be read")(error.into()))?;
    Ok(Answer::Found(wanted.iter().map(lookup::look_up).collect()))
}
