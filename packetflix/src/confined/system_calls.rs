//! The system calls that a process may still make.

use std::{collections::BTreeMap, env::consts::ARCH, io};

use nix::libc::{self, EPERM, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

/// A system call that may be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SystemCall {
    number: c_long,
    arguments: Arguments,
}

/// With which arguments, counted from 0: of each, the lower 32 bits are looked at.
#[derive(Clone, Copy, Debug)]
enum Arguments {
    Any,
    OneOf(u8, &'static [u32]),
    NoneOf(u8, u32),
}

/// What such a process takes whatever it is for: memory, locks, the clock, signals, what it has open, and its end.
const OF_ALL: [c_long; 17] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

impl SystemCall {
    /// Those that each process takes, and these, with any arguments.
    pub(crate) fn of_all(others: &[c_long]) -> Vec<Self> {
        let all = OF_ALL.iter().chain(others);
        all.copied().map(Self::any).collect()
    }

    /// With whatever arguments.
    pub(crate) const fn any(number: c_long) -> Self {
        Self {
            number,
            arguments: Arguments::Any,
        }
    }

    /// With one of these as its argument of that number, from 0.
    pub(crate) const fn with(number: c_long, argument: u8, values: &'static [u32]) -> Self {
        assert!(
            !values.is_empty(),
            "a call without rules is allowed with any arguments"
        );
        Self {
            number,
            arguments: Arguments::OneOf(argument, values),
        }
    }

    /// With none of these bits in its argument of that number, from 0.
    pub(crate) const fn without(number: c_long, argument: u8, bits: u32) -> Self {
        Self {
            number,
            arguments: Arguments::NoneOf(argument, bits),
        }
    }

    /// One of which has to hold, if there are any.
    fn rules(&self) -> Result<Vec<SeccompRule>, BackendError> {
        let rule = |argument, operator, value: u32| {
            let len = SeccompCmpArgLen::Dword;
            SeccompRule::new(vec![SeccompCondition::new(
                argument,
                len,
                operator,
                value.into(),
            )?])
        };
        match self.arguments {
            Arguments::Any => Ok(Vec::new()),
            Arguments::OneOf(argument, values) => {
                let rules = values
                    .iter()
                    .map(|value| rule(argument, SeccompCmpOp::Eq, *value));
                rules.collect()
            }
            Arguments::NoneOf(argument, bits) => {
                Ok(vec![rule(argument, SeccompCmpOp::MaskedEq(bits.into()), 0)?])
            }
        }
    }
}

/// Lets the calling thread make these system calls only; all others fail with `EPERM`, and the kernel ends a process that
/// makes one of another architecture. It cannot be taken back. The thread may gain no privileges by executing programs any
/// more, which the kernel wants as a condition.
///
/// Source: `Documentation/userspace-api/seccomp_filter.rst`.
///
/// # Errors
/// `EINVAL` when the kernel knows no such filters, and what else forbids them.
pub(super) fn allow_only(allowed: &[SystemCall]) -> io::Result<()> {
    let program = program(allowed).map_err(io::Error::other)?;
    apply_filter(&program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    })
}

fn program(allowed: &[SystemCall]) -> Result<BpfProgram, BackendError> {
    let rules = allowed
        .iter()
        .map(|call| Ok((call.number, call.rules()?)))
        .collect::<Result<BTreeMap<_, _>, BackendError>>()?;
    let refuse = SeccompAction::Errno(EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, ARCH.try_into()?)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::{fs::OpenOptions, os::fd::AsRawFd as _, thread};

    use nix::{
        errno::Errno,
        fcntl::{FcntlArg, fcntl},
        libc,
        sys::socket::{AddressFamily, SockFlag, SockType, socket},
        unistd::{getpid, getppid},
    };

    use super::*;

    /// What a thread takes to do nothing and to end.
    const LIFE: [c_long; 11] = [
        libc::SYS_brk,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_futex,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_munmap,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_write,
    ];

    /// What `work` gives on a thread that may make these calls, and those that every thread makes.
    fn confined<T: Send + 'static>(calls: &[SystemCall], work: impl FnOnce() -> T + Send + 'static) -> T {
        let calls = [&LIFE.map(SystemCall::any), calls].concat();
        let thread = thread::spawn(move || {
            allow_only(&calls).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    #[test]
    fn calls_that_are_not_named_are_refused() {
        let parent = getppid();
        let (allowed, refused) = confined(&[SystemCall::any(libc::SYS_getppid)], || {
            (getppid(), fcntl(io::stdin(), FcntlArg::F_GETFD))
        });
        assert_eq!((allowed, refused), (parent, Err(Errno::EPERM)));
        // The others go on as before.
        assert!(getpid().as_raw() > 0 && fcntl(io::stdin(), FcntlArg::F_GETFD) != Err(Errno::EPERM));
    }

    #[test]
    fn an_argument_is_one_of_those_that_are_named() {
        const FAMILIES: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32];
        let calls = [SystemCall::with(libc::SYS_socket, 0, FAMILIES)];
        let made = confined(&calls, || {
            [AddressFamily::Inet, AddressFamily::Inet6, AddressFamily::Unix]
                .map(|family| socket(family, SockType::Datagram, SockFlag::empty(), None).map(drop))
        });
        assert_eq!(made[..1], [Ok(())]);
        // A machine may have no IPv6.
        assert_ne!(made[1], Err(Errno::EPERM));
        assert_eq!(made[2], Err(Errno::EPERM));
    }

    #[test]
    fn an_argument_has_none_of_the_bits_that_are_named() {
        const WRITING: u32 = (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT) as u32;
        let opened = confined(&[SystemCall::without(libc::SYS_openat, 2, WRITING)], || {
            let errno = |write, read| {
                let opened = OpenOptions::new().read(read).write(write).open("/dev/null");
                opened
                    .map(|file| file.as_raw_fd() >= 0)
                    .map_err(|error| error.raw_os_error())
            };
            [errno(false, true), errno(true, false), errno(true, true)]
        });
        let refused = Err(Some(EPERM));
        assert_eq!(opened, [Ok(true), refused, refused]);
    }
}
