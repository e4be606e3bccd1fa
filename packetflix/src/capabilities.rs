//! The capabilities that captures take, and sentences that name the one that is missing.
//!
//! Found by trying, as a user who is not root: the kernel asks for no others. CAP_SYS_ADMIN, without which no namespace
//! can be entered, includes what CAP_BPF and CAP_PERFMON allow.

use std::{error::Error, fmt, sync::OnceLock};

use caps::{CapSet, errors::CapsError};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::error;

/// The rights of the service, and its user, where this process has given them up.
static SERVICE: OnceLock<(Vec<Capability>, u32)> = OnceLock::new();

/// Remembers what the service may do, and as whom: another process does that for this one from now on.
pub(crate) fn remember_service() {
    let effective = Capability::ALL.into_iter().filter(|one| one.is_effective());
    let service = (effective.collect(), nix::unistd::geteuid().as_raw());
    // There is one service.
    let _ = SERVICE.set(service);
}

/// The user as whom the service was started.
pub(crate) fn service_user() -> u32 {
    match SERVICE.get() {
        Some((_, user)) => *user,
        None => nix::unistd::geteuid().as_raw(),
    }
}

/// A right of a process.
///
/// Source: `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capability {
    /// Entering namespaces (`setns`), and loading eBPF programs.
    SysAdmin,
    /// Packet sockets.
    NetRaw,
    /// Looking at the namespaces and files of other processes.
    SysPtrace,
    /// Sockets and folders that belong to others.
    DacOverride,
    /// Setting up the interface that filters with `vlan` are compiled for.
    NetAdmin,
}

impl Capability {
    /// Without which there are no captures at all.
    pub(crate) const NEEDED: [Self; 2] = [Self::SysAdmin, Self::NetRaw];

    /// All of them, the most needed first.
    pub const ALL: [Self; 5] = [
        Self::SysAdmin,
        Self::NetRaw,
        Self::SysPtrace,
        Self::DacOverride,
        Self::NetAdmin,
    ];

    /// Its name, as the kernel's header has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::DacOverride => "CAP_DAC_OVERRIDE",
            Self::NetAdmin => "CAP_NET_ADMIN",
        }
    }

    /// Whether the service has it, or else the calling thread, in its own user namespace at least.
    pub(crate) fn is_effective(self) -> bool {
        if let Some((capabilities, _)) = SERVICE.get() {
            return capabilities.contains(&self);
        }
        let capability = match self {
            Self::DacOverride => caps::Capability::CAP_DAC_OVERRIDE,
            Self::NetAdmin => caps::Capability::CAP_NET_ADMIN,
            Self::NetRaw => caps::Capability::CAP_NET_RAW,
            Self::SysPtrace => caps::Capability::CAP_SYS_PTRACE,
            Self::SysAdmin => caps::Capability::CAP_SYS_ADMIN,
        };
        caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
    }

    /// What an error that comes from the kernel says of this capability, to be put behind the error; nothing when the
    /// error is not about rights.
    pub(crate) fn blame(self, error: &(dyn Error + 'static)) -> String {
        if !matches!(error::errno(error), Some(Errno::EPERM | Errno::EACCES)) {
            return String::new();
        }
        if self.is_effective() {
            format!(
                ": the service has {self}, but a seccomp profile, a security module, a user namespace or, before Linux 5.11, \
                 the bound of locked memory stands against it"
            )
        } else {
            format!(": the service lacks {self}")
        }
    }
}

/// Which of these the service lacks, as a sentence; `None` when it has all.
pub(crate) fn missing(wanted: &[Capability]) -> Option<String> {
    lacked(wanted).map(|names| format!("the service lacks {names}"))
}

/// The names of those of these that the calling thread lacks; `None` when it has all.
pub(crate) fn lacked(wanted: &[Capability]) -> Option<String> {
    let lacked: Vec<&str> = wanted
        .iter()
        .filter(|one| !one.is_effective())
        .map(|one| one.name())
        .collect();
    let (last, others) = lacked.split_last()?;
    Some(match others {
        [] => (*last).to_owned(),
        others => format!("{} and {last}", others.join(", ")),
    })
}

/// What to do about capabilities that are missing.
pub(crate) fn remedy() -> String {
    // Root has all that its container has.
    let by_root = if service_user() == 0 {
        ""
    } else {
        "run the service as root, or "
    };
    format!(
        "{by_root}give it what it lacks (AmbientCapabilities in systemd, cap_add in compose, capabilities.add in Kubernetes), \
         and in containers allow new privileges, since the program file gives it"
    )
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes all capabilities effective that this process may have. A program file that gives capabilities gives them as
/// permitted only, so that the program starts, and says what is missing, where the container may not have them all.
///
/// To be called before other threads exist.
///
/// # Errors
/// Never on a kernel that has capabilities.
pub fn raise() -> Result<(), CapsError> {
    let permitted = caps::read(None, CapSet::Permitted)?;
    caps::set(None, CapSet::Effective, &permitted)
}

/// Gives up all capabilities of the calling thread, for good unless it executes a program.
///
/// # Errors
/// Never on a kernel that has capabilities.
pub(crate) fn give_up() -> Result<(), CapsError> {
    // With what is permitted goes what is effective.
    caps::clear(None, CapSet::Permitted)?;
    caps::clear(None, CapSet::Inheritable)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn blames_for_want_of_rights_only() {
        let missing = io::Error::from_raw_os_error(nix::libc::ENOENT);
        assert_eq!(Capability::NetRaw.blame(&missing), "");
        let denied = io::Error::from_raw_os_error(nix::libc::EPERM);
        let blamed = Capability::NetRaw.blame(&denied);
        let expected = if Capability::NetRaw.is_effective() {
            ": the service has CAP_NET_RAW, but "
        } else {
            ": the service lacks CAP_NET_RAW"
        };
        assert!(blamed.starts_with(expected), "{blamed}");
    }

    /// The capabilities of one set of this thread, as `/proc` has them: bit by number.
    fn told(set: &str) -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let told = status.lines().find_map(|line| line.strip_prefix(set));
        u64::from_str_radix(told.unwrap().trim(), 16).unwrap()
    }

    #[test]
    fn effective_are_those_that_the_kernel_tells() {
        // `linux/capability.h`
        for (capability, number) in [
            (Capability::DacOverride, 1),
            (Capability::NetAdmin, 12),
            (Capability::NetRaw, 13),
            (Capability::SysPtrace, 19),
            (Capability::SysAdmin, 21),
        ] {
            let is_told = told("CapEff:") & 1 << number != 0;
            assert_eq!(capability.is_effective(), is_told, "{capability}");
        }
    }

    #[test]
    fn what_is_permitted_is_raised_and_then_given_up() {
        // Capabilities are a thread's own.
        let of_a_thread = || {
            let permitted = told("CapPrm:");
            caps::clear(None, CapSet::Effective).unwrap();
            assert_eq!((told("CapEff:"), told("CapPrm:")), (0, permitted));
            raise().unwrap();
            assert_eq!((told("CapEff:"), told("CapPrm:")), (permitted, permitted));
            give_up().unwrap();
            assert_eq!(["CapEff:", "CapPrm:", "CapInh:"].map(told), [0; 3]);
            assert!(raise().is_ok() && told("CapEff:") == 0);
        };
        std::thread::spawn(of_a_thread).join().unwrap();
    }
}
