//! A process that is taken over: it makes the system calls that it is told to make, with all that it may do and no more.

use std::{ffi::CString, fs, io};

use anyhow::{Context as _, ensure};
use nix::{
    errno::Errno,
    libc::{self, c_long, c_void, user_regs_struct},
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

/// The instruction of a system call, and one that stops behind it.
#[cfg(target_arch = "x86_64")]
const CALL: [u8; 8] = [0x0f, 0x05, 0xcc, 0, 0, 0, 0, 0];
#[cfg(target_arch = "aarch64")]
const CALL: [u8; 8] = [0x01, 0, 0, 0xd4, 0, 0, 0x20, 0xd4];

/// Bytes below the stack that are written, which nobody uses.
const ROOM: u64 = 8192;

/// An argument of a system call.
#[derive(Clone, Debug)]
pub enum Argument {
    /// A number.
    Number(u64),
    /// The address of a text.
    Text(String),
    /// The address of so many zero bytes.
    Zeros(usize),
}

/// The main thread of a process, stopped.
pub struct TakenOver {
    pid: Pid,
    before: user_regs_struct,
    /// What is at the place of the instructions.
    code: c_long,
    at: u64,
    stack: u64,
}

impl TakenOver {
    /// Stops the main thread of a process.
    ///
    /// # Errors
    /// When it cannot be traced.
    pub fn new(pid: u32) -> anyhow::Result<Self> {
        let pid = Pid::from_raw(i32::try_from(pid)?);
        ptrace::attach(pid).context("attach")?;
        waitpid(pid, Some(WaitPidFlag::__WALL))?;
        let before = ptrace::getregs(pid)?;
        let (at, stack) = (entry_of(pid)?.next_multiple_of(8), stack_of(&before));
        let code = ptrace::read(pid, at as *mut c_void)?;
        ptrace::write(pid, at as *mut c_void, c_long::from_ne_bytes(CALL))?;
        Ok(Self {
            pid,
            before,
            code,
            at,
            stack: (stack - ROOM) & !15,
        })
    }

    /// Has it make a system call.
    ///
    /// # Errors
    /// Those that the kernel gives it.
    pub fn call(&self, number: c_long, arguments: &[Argument]) -> io::Result<u64> {
        let mut free = self.stack;
        let mut values = [0; 6];
        for (value, argument) in values.iter_mut().zip(arguments) {
            let bytes = match argument {
                Argument::Number(number) => {
                    *value = *number;
                    continue;
                }
                Argument::Text(text) => CString::new(&text[..])?.into_bytes_with_nul(),
                Argument::Zeros(count) => vec![0; *count],
            };
            *value = free;
            free += self.write(free, &bytes)?;
        }
        let mut registers = self.before;
        set_call(&mut registers, self.at, number, values);
        ptrace::setregs(self.pid, registers)?;
        ptrace::cont(self.pid, None)?;
        match waitpid(self.pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            other => return Err(io::Error::other(format!("{other:?}"))),
        }
        let result = result_of(&ptrace::getregs(self.pid)?);
        match -result {
            errno @ 1..=4095 => Err(Errno::from_raw(errno as i32).into()),
            _ => Ok(result as u64),
        }
    }

    /// Writes bytes into its memory; gives how many it took.
    fn write(&self, at: u64, bytes: &[u8]) -> io::Result<u64> {
        for (place, word) in (at..).step_by(8).zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..word.len()].copy_from_slice(word);
            ptrace::write(self.pid, place as *mut c_void, c_long::from_ne_bytes(padded))?;
        }
        Ok((bytes.len() as u64).next_multiple_of(16))
    }

    /// Lets it go on where it was stopped.
    ///
    /// # Errors
    /// When it has ended.
    pub fn let_go(self) -> anyhow::Result<()> {
        ptrace::write(self.pid, self.at as *mut c_void, self.code)?;
        ptrace::setregs(self.pid, self.before)?;
        ensure!(ptrace::detach(self.pid, None).is_ok(), "it has ended");
        Ok(())
    }
}

/// Where it began: code that none of its threads will come to again.
fn entry_of(pid: Pid) -> anyhow::Result<u64> {
    const AT_ENTRY: u64 = 9;

    let auxiliary = fs::read(format!("/proc/{pid}/auxv"))?;
    let words: Vec<u64> = auxiliary
        .chunks_exact(8)
        .map(|word| {
            word.iter()
                .rev()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        })
        .collect();
    let mut pairs = words.chunks_exact(2);
    let entry = pairs.find_map(|pair| (pair[0] == AT_ENTRY).then_some(pair[1]));
    entry.context("no entry")
}

#[cfg(target_arch = "x86_64")]
fn stack_of(registers: &user_regs_struct) -> u64 {
    registers.rsp
}

#[cfg(target_arch = "x86_64")]
fn set_call(registers: &mut user_regs_struct, at: u64, number: c_long, values: [u64; 6]) {
    registers.rip = at;
    registers.rax = number as u64;
    // Nothing is begun anew that was under way.
    registers.orig_rax = u64::MAX;
    [
        registers.rdi,
        registers.rsi,
        registers.rdx,
        registers.r10,
        registers.r8,
        registers.r9,
    ] = values;
}

#[cfg(target_arch = "x86_64")]
fn result_of(registers: &user_regs_struct) -> i64 {
    registers.rax as i64
}

#[cfg(target_arch = "aarch64")]
fn stack_of(registers: &user_regs_struct) -> u64 {
    registers.sp
}

#[cfg(target_arch = "aarch64")]
fn set_call(registers: &mut user_regs_struct, at: u64, number: c_long, values: [u64; 6]) {
    registers.pc = at;
    registers.regs[8] = number as u64;
    registers.regs[..6].copy_from_slice(&values);
}

#[cfg(target_arch = "aarch64")]
fn result_of(registers: &user_regs_struct) -> i64 {
    registers.regs[0] as i64
}

/// The words of a line of `/proc/PID/status`.
///
/// # Errors
/// When there is no such process, or no such line.
pub fn status(pid: u32, name: &str) -> anyhow::Result<Vec<String>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let words = line.with_context(|| format!("no {name}"))?.split_whitespace();
    Ok(words.map(str::to_owned).collect())
}

/// What it has is nobody's, and cannot become more.
///
/// # Errors
/// When it has any capability, or could gain one.
pub fn has_no_rights(pid: u32) -> anyhow::Result<()> {
    let none = "0".repeat(16);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        ensure!(status(pid, set)? == [&none[..]], "{set}: {:?}", status(pid, set)?);
    }
    assert_eq!(status(pid, "NoNewPrivs")?, ["1"]);
    assert_eq!(status(pid, "Seccomp")?, ["2"]);
    // All its threads alike.
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        ensure!(
            status.contains(&format!("CapEff:\t{none}")) && status.contains("Seccomp:\t2"),
            "{status}"
        );
    }
    Ok(())
}

/// Has the process without rights, which is taken over for that, try what would give it something of the host, of the keeper, or of
/// these files, each opened with flags.
///
/// # Errors
/// When it gets anything, or may not do what it needs.
pub fn has_nothing_of_the_host(front: u32, keeper: u32, files: &[(&str, i32)]) -> anyhow::Result<()> {
    has_no_rights(front)?;
    let front = TakenOver::new(front)?;
    let number = |number: i64| Argument::Number(number as u64);
    let text = |text: &str| Argument::Text(text.to_owned());
    let here = number(libc::AT_FDCWD.into());
    // What is its own it may do.
    let own = front.call(
        libc::SYS_openat,
        &[here.clone(), text("/proc/self/status"), number(0)],
    )?;
    let namespace = front.call(
        libc::SYS_openat,
        &[here.clone(), text("/proc/self/ns/net"), number(0)],
    )?;
    ensure!(namespace > own);
    let keepers = |file: &str| text(&format!("/proc/{keeper}/{file}"));
    let kept = i64::from(keeper);
    let refused: &[(&str, c_long, Vec<Argument>, &[Errno])] = &[
        (
            "setns",
            libc::SYS_setns,
            vec![Argument::Number(namespace), number(0)],
            &[Errno::EPERM],
        ),
        (
            "unshare",
            libc::SYS_unshare,
            vec![number(libc::CLONE_NEWUSER.into())],
            &[Errno::EPERM],
        ),
        (
            "bpf",
            libc::SYS_bpf,
            vec![number(0), Argument::Zeros(128), number(128)],
            &[Errno::EPERM],
        ),
        (
            "ptrace",
            libc::SYS_ptrace,
            vec![number(16), number(kept)],
            &[Errno::EPERM],
        ),
        (
            "process_vm_readv",
            libc::SYS_process_vm_readv,
            vec![number(kept)],
            &[Errno::EPERM],
        ),
        (
            "pidfd_open",
            libc::SYS_pidfd_open,
            vec![number(kept), number(0)],
            &[Errno::EPERM],
        ),
        (
            "kill",
            libc::SYS_kill,
            vec![number(kept), number(9)],
            &[Errno::EPERM],
        ),
        (
            "tgkill",
            libc::SYS_tgkill,
            vec![number(kept), number(kept), number(0)],
            &[Errno::EPERM],
        ),
        (
            "prlimit64",
            libc::SYS_prlimit64,
            vec![number(kept), number(0), Argument::Zeros(16)],
            &[Errno::EPERM],
        ),
        (
            "F_SETOWN",
            libc::SYS_fcntl,
            vec![number(0), number(libc::F_SETOWN.into()), number(kept)],
            &[Errno::EPERM],
        ),
        (
            "TIOCSTI",
            libc::SYS_ioctl,
            vec![number(0), Argument::Number(libc::TIOCSTI), text("x")],
            &[Errno::EPERM],
        ),
        (
            "clone",
            libc::SYS_clone,
            vec![number(libc::SIGCHLD.into())],
            &[Errno::EPERM],
        ),
        (
            "clone3",
            libc::SYS_clone3,
            vec![Argument::Zeros(88), number(88)],
            &[Errno::ENOSYS],
        ),
        (
            "execve",
            libc::SYS_execve,
            vec![text("/bin/true"), number(0), number(0)],
            &[Errno::EPERM],
        ),
        (
            "setresuid",
            libc::SYS_setresuid,
            vec![number(0), number(0), number(0)],
            &[Errno::EPERM],
        ),
        (
            "mount",
            libc::SYS_mount,
            vec![text("none"), text("/mnt"), text("tmpfs")],
            &[Errno::EPERM],
        ),
        (
            "chroot",
            libc::SYS_chroot,
            vec![text("/proc/1/root")],
            &[Errno::EPERM],
        ),
        (
            "io_uring_setup",
            libc::SYS_io_uring_setup,
            vec![number(8), Argument::Zeros(120)],
            &[Errno::EPERM],
        ),
        // With one it could have Docker start containers.
        (
            "socket of Unix",
            libc::SYS_socket,
            vec![number(libc::AF_UNIX.into()), number(1)],
            &[Errno::EPERM],
        ),
        (
            "pair of datagrams",
            libc::SYS_socketpair,
            vec![number(1), number(2), number(0), Argument::Zeros(8)],
            &[Errno::EPERM],
        ),
        (
            "packet socket",
            libc::SYS_socket,
            vec![number(libc::AF_PACKET.into()), number(3)],
            &[Errno::EPERM],
        ),
        (
            "raw socket",
            libc::SYS_socket,
            vec![number(libc::AF_INET.into()), number(3), number(1)],
            &[Errno::EPERM],
        ),
        (
            "other netlink",
            libc::SYS_socket,
            vec![number(libc::AF_NETLINK.into()), number(3), number(12)],
            &[Errno::EPERM],
        ),
        (
            "vsock",
            libc::SYS_socket,
            vec![number(libc::AF_VSOCK.into()), number(1)],
            &[Errno::EPERM],
        ),
        (
            "the host's root",
            libc::SYS_openat,
            vec![here.clone(), text("/proc/1/root/etc"), number(0)],
            &[Errno::EACCES, Errno::EPERM],
        ),
        (
            "the keeper's memory",
            libc::SYS_openat,
            vec![here.clone(), keepers("mem"), number(2)],
            &[Errno::EACCES],
        ),
        (
            "the keeper's namespace",
            libc::SYS_openat,
            vec![here.clone(), keepers("ns/net"), number(0)],
            &[Errno::EACCES, Errno::EPERM],
        ),
        (
            "the keeper's descriptors",
            libc::SYS_openat,
            vec![here.clone(), keepers("fd"), number(0)],
            &[Errno::EACCES],
        ),
    ];
    for (what, call, arguments, errors) in refused {
        let done = front.call(*call, arguments);
        let errno = done
            .as_ref()
            .err()
            .and_then(io::Error::raw_os_error)
            .map(Errno::from_raw);
        ensure!(
            errno.is_some_and(|errno| errors.contains(&errno)),
            "{what}: {done:?}"
        );
    }
    for (file, flags) in files {
        let arguments = [here.clone(), text(file), number((*flags).into()), number(0o600)];
        let opened = front.call(libc::SYS_openat, &arguments);
        let errno = opened.as_ref().err().and_then(io::Error::raw_os_error);
        ensure!(errno == Some(libc::EACCES), "{file}: {opened:?}");
    }
    front.let_go()
}
