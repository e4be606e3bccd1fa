//! The process that serves clients, without rights: it speaks to anybody, and another has the rights of the service.

use std::{
    collections::BTreeMap,
    env::consts::ARCH,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::process::CommandExt as _,
    process::{Command, ExitCode, Stdio},
};

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _};
use nix::libc::{self, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter, sock_filter,
};

use super::{Failure, become_user};
use crate::capabilities;

/// Its user and group: those of the image, which no other program has. `nobody` is somebody where many are.
const USER: u32 = 75001;

/// What it never does, whatever the arguments.
const NEVER: &[c_long] = &[
    // Other programs, and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    // Namespaces and mounts.
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Rights.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // The kernel's own.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_fanotify_init,
    libc::SYS_syslog,
    libc::SYS_personality,
    // What others have, too.
    libc::SYS_shmget,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // The machine's clock and names.
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Takes all rights of the calling process, which has one thread, for good: it is a user of its own, where it may become that, has no
/// capabilities and can get none, may not be traced, starts no process, and makes sockets of IP only. What the service may do is
/// remembered, to be told.
pub(crate) fn give_up_all() -> Result<(), Failure> {
    capabilities::remember_service();
    become_user(USER)?;
    write_nothing().map_err(Failure::of("files could not be put out of reach (Landlock)"))?;
    restrict().map_err(Failure::of("system calls could not be restricted (seccomp)"))
}

/// From now on no file is written, made, removed or executed, whoever may. What is open stays so. Linux 5.13; before that, or
/// where it is not switched on, nothing changes.
fn write_nothing() -> io::Result<()> {
    let ruleset = Ruleset::default().handle_access(AccessFs::from_write(ABI::V5) | AccessFs::Execute);
    let created = ruleset.and_then(Ruleset::create).map_err(io::Error::other)?;
    created.restrict_self().map(drop).map_err(io::Error::other)
}

/// First argument of a process that is to show what is left of its rights.
const VERB: &str = "give-up-rights";

/// Gives up all rights, and tells what is left of them, when the arguments say that this is what the process is for: to be called
/// first of all.
pub fn give_up_if_asked(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let is_asked = arguments.nth(1).as_deref() == Some(OsStr::new(VERB)) && arguments.next().is_none();
    is_asked.then(|| {
        let said = match give_up_all() {
            Ok(()) => left(),
            Err(failure) => Err(io::Error::other(failure.sentence())),
        };
        let (said, status) = match said {
            Ok(left) => (left, ExitCode::SUCCESS),
            Err(error) => (error.to_string(), ExitCode::FAILURE),
        };
        println!("{said}");
        status
    })
}

/// What is left of the rights of a process that gives up all, in a sentence: tried in one that is started for that.
///
/// # Errors
/// With the sentence that it says instead.
pub(crate) fn try_to_give_up() -> Result<String, String> {
    let process = Command::new("/proc/self/exe")
        .arg0("packetflix")
        .arg(VERB)
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let output = process.map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
    match output.status.success() {
        true => Ok(said),
        false => Err(said),
    }
}

/// What the kernel says of the rights of this process, in a sentence.
fn left() -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let word = |name: &str| {
        let mut lines = status.lines();
        let line = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next())
            .unwrap_or_default()
    };
    let sets = ["CapInh", "CapPrm", "CapEff", "CapAmb"].map(word);
    if sets.iter().any(|set| !set.trim_start_matches('0').is_empty()) || word("Seccomp") != "2" {
        return Err(io::Error::other(format!(
            "it keeps rights: {sets:?}, seccomp {}",
            word("Seccomp")
        )));
    }
    let files = match fs::File::create("/dev/null") {
        Ok(_) => "it may write files that its user may, since there is no Landlock",
        Err(_) => "writes no file (Landlock)",
    };
    Ok(format!(
        "user {}, no capabilities and none to be had, system calls restricted (seccomp), {files}",
        word("Uid")
    ))
}

fn restrict() -> io::Result<()> {
    #[cfg(target_arch = "x86_64")]
    forbid(&OTHER_NUMBERS.map(|(code, jt, jf, k)| sock_filter { code, jt, jf, k }))?;
    // glibc then starts threads by the other call, whose flags can be looked at.
    let unknown = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    for (refused, error) in [
        (unknown, libc::ENOSYS),
        (refused().map_err(io::Error::other)?, libc::EPERM),
    ] {
        let filter = SeccompFilter::new(
            refused,
            SeccompAction::Allow,
            SeccompAction::Errno(error as u32),
            ARCH.try_into().map_err(io::Error::other)?,
        );
        let program: BpfProgram = filter.and_then(TryInto::try_into).map_err(io::Error::other)?;
        forbid(&program)?;
    }
    Ok(())
}

/// Refuses the numbers by which x86-64 has the same calls once more (x32).
#[cfg(target_arch = "x86_64")]
const OTHER_NUMBERS: [(u16, u8, u8, u32); 4] = [
    ((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, 0),
    (
        (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16,
        0,
        1,
        0x4000_0000,
    ),
    (
        (libc::BPF_RET | libc::BPF_K) as u16,
        0,
        0,
        libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
    ),
    (
        (libc::BPF_RET | libc::BPF_K) as u16,
        0,
        0,
        libc::SECCOMP_RET_ALLOW,
    ),
];

fn forbid(program: &[sock_filter]) -> io::Result<()> {
    apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        error => io::Error::other(error),
    })
}

/// What is refused, with which arguments.
fn refused() -> Result<BTreeMap<c_long, Vec<SeccompRule>>, BackendError> {
    const FAMILIES: [i32; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    const KINDS: u64 = 0xf;
    const F_SETSIG: i32 = 10;
    const F_SETOWN_EX: i32 = 15;

    let condition = |argument, operator, value: i32| {
        SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            operator,
            u64::from(value as u32),
        )
    };
    let only = |argument, value| SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, value)?]);
    let mut refused: BTreeMap<_, _> = NEVER.iter().map(|number| (*number, Vec::new())).collect();
    // Nothing is typed for whoever has the terminal, and nobody is told by signals.
    let no_input = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| only(1, request as i32));
    refused.insert(libc::SYS_ioctl, no_input.into_iter().collect::<Result<_, _>>()?);
    let no_owner = [libc::F_SETOWN, F_SETSIG, F_SETOWN_EX].map(|command| only(1, command));
    refused.insert(libc::SYS_fcntl, no_owner.into_iter().collect::<Result<_, _>>()?);
    // Only this process is sent signals, and has bounds set.
    let own = std::process::id() as i32;
    let others = condition(0, SeccompCmpOp::Ne, own)?;
    refused.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![others.clone()])?]);
    let others = vec![others, condition(0, SeccompCmpOp::Ne, 0)?];
    refused.insert(libc::SYS_prlimit64, vec![SeccompRule::new(others)?]);
    // Threads are started, and no process.
    let thread = SeccompCmpOp::MaskedEq(libc::CLONE_THREAD as u64);
    refused.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![condition(0, thread, 0)?])?],
    );
    let others = FAMILIES.map(|family| condition(0, SeccompCmpOp::Ne, family));
    let others = others.into_iter().collect::<Result<_, _>>()?;
    let of_netlink = vec![
        condition(0, SeccompCmpOp::Eq, libc::AF_NETLINK)?,
        condition(2, SeccompCmpOp::Ne, libc::NETLINK_ROUTE)?,
    ];
    let sockets = vec![SeccompRule::new(others)?, SeccompRule::new(of_netlink)?];
    refused.insert(libc::SYS_socket, sockets);
    // Pairs of streams lead nowhere else.
    let pairs = [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_SEQPACKET]
        .map(|kind| SeccompRule::new(vec![condition(1, SeccompCmpOp::MaskedEq(KINDS), kind)?]));
    refused.insert(libc::SYS_socketpair, pairs.into_iter().collect::<Result<_, _>>()?);
    Ok(refused)
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, os::unix::net::UnixStream, thread};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

    use super::*;

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn calls_have_no_other_numbers() {
        let confined = || {
            restrict().unwrap();
            #[expect(unsafe_code, reason = "nothing else makes such a call")]
            // SAFETY: it takes nothing.
            let asked = unsafe { libc::syscall(0x4000_0000 | libc::SYS_getpid) };
            nix::errno::Errno::result(asked)
        };
        let asked = thread::spawn(confined).join().unwrap();
        assert_eq!(asked, Err(nix::errno::Errno::EPERM));
    }

    #[test]
    fn threads_and_sockets_of_ip_are_all_that_is_made() {
        let confined = || {
            restrict().unwrap();
            thread::spawn(|| ()).join().unwrap();
            UdpSocket::bind("127.0.0.1:0").unwrap();
            UnixStream::pair().unwrap();
            let none = SockFlag::empty();
            let families = [AddressFamily::Unix, AddressFamily::Packet, AddressFamily::Vsock];
            let sockets = families.map(|family| socket(family, SockType::Datagram, none, None).map(drop));
            let pair = socketpair(AddressFamily::Unix, SockType::Datagram, None, none).map(drop);
            let process = Command::new("true").spawn().map(drop);
            let process = process.map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap()));
            sockets.into_iter().chain([pair, process]).collect::<Vec<_>>()
        };
        let refused = thread::spawn(confined).join().unwrap();
        assert_eq!(refused, vec![Err(nix::errno::Errno::EPERM); 5]);
    }
}
