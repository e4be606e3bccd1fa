//! Loads eBPF programs and runs them on packets, attached or not.
//!
//! `BPF_PROG_TEST_RUN` (kernel 4.12) makes a packet of the bytes it is given, which must be at least an Ethernet header.
//! It hands the whole packet to a classifier, but to a socket filter what follows the Ethernet header: so that a
//! socket filter can be run on packets of any length, and of none.

#![expect(unsafe_code, reason = "no crate of ours makes these calls of bpf(2)")]

use std::{
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    sync::Once,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    errno::Errno,
    libc,
    sys::resource::{RLIM_INFINITY, Resource, setrlimit},
};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ENABLE_STATS: libc::c_int = 32;
/// `enum bpf_attach_type`
const BPF_TCX_INGRESS: u32 = 46;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
/// `enum bpf_stats_type`
const BPF_STATS_RUN_TIME: u32 = 0;
const INSTRUCTION_LEN: usize = 8;
const LICENSE: &[u8; 13] = b"Dual MIT/GPL\0";

/// Length of an Ethernet header.
const ETHERNET_LEN: usize = 14;

/// EtherType for experiments, of which the kernel has no opinion: `ETH_P_802_EX1`.
pub const EXPERIMENTAL: u16 = 0x88b5;

/// Type of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ProgramType {
    /// `BPF_PROG_TYPE_SOCKET_FILTER`
    SocketFilter = 1,
    /// `BPF_PROG_TYPE_SCHED_CLS`
    Classifier = 3,
}

/// The part of `union bpf_attr` that loads a program: `linux/bpf.h`.
#[repr(C)]
#[derive(Default)]
struct LoadAttribute {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The part of `union bpf_attr` that runs one.
#[repr(C)]
#[derive(Default)]
struct RunAttribute {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// The part of `union bpf_attr` that makes a link to TCX.
#[repr(C)]
#[derive(Default)]
struct LinkAttribute {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    unused: u32,
    expected_revision: u64,
}

/// The part of `union bpf_attr` that asks what is attached.
#[repr(C)]
#[derive(Default)]
struct QueryAttribute {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    unused: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Where in a chain of TCX programs a new one goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all others.
    First,
    /// After all others.
    Last,
}

/// A program that is attached, until this is dropped.
pub struct Attached {
    _link: OwnedFd,
}

/// As much of `struct __sk_buff` as can be set and is of interest.
#[repr(C)]
#[derive(Default)]
struct SkBuff {
    len: u32,
    pkt_type: u32,
    mark: u32,
}

/// A program in the kernel.
pub struct Program {
    descriptor: OwnedFd,
    kind: ProgramType,
}

impl Program {
    /// Loads encoded instructions.
    ///
    /// # Errors
    /// When the verifier refuses; the message has what it says.
    pub fn load(kind: ProgramType, instructions: &[u8]) -> anyhow::Result<Self> {
        let mut attribute = LoadAttribute {
            prog_type: kind as u32,
            insn_cnt: u32::try_from(instructions.len() / INSTRUCTION_LEN)?,
            insns: instructions.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            ..LoadAttribute::default()
        };
        if let Ok(descriptor) = load(&attribute) {
            return Ok(Self { descriptor, kind });
        }
        // Once more, for the log, of which the end matters.
        let mut log = vec![0; 1 << 24];
        attribute.log_level = 1;
        attribute.log_size = u32::try_from(log.len())?;
        attribute.log_buf = log.as_mut_ptr() as u64;
        match load(&attribute) {
            Ok(descriptor) => Ok(Self { descriptor, kind }),
            Err(error) => {
                log.truncate(log.iter().position(|byte| *byte == 0).unwrap_or_default());
                let end = log.len().saturating_sub(4000);
                bail!("{error}: {}", String::from_utf8_lossy(&log[end..]))
            }
        }
    }

    /// Runs it on a packet, and gives what it returns. Another EtherType than [`EXPERIMENTAL`] a socket filter does
    /// not see.
    ///
    /// # Errors
    /// When the kernel makes no packet of these bytes: a classifier's must have an Ethernet header.
    pub fn run(&self, packet: &[u8], mark: u32) -> anyhow::Result<u32> {
        Ok(self.test_run(packet, mark, 1)?.0)
    }

    /// Runs it many times on a packet, and gives the nanoseconds per run.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn measure(&self, packet: &[u8], times: u32) -> anyhow::Result<u32> {
        Ok(self.test_run(packet, 0, times)?.1)
    }

    /// Makes it the filter of a socket. Kernel 3.19.
    ///
    /// # Errors
    /// When it is no socket filter.
    pub fn attach(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        let descriptor = self.descriptor.as_raw_fd();
        // SAFETY: the pointer and length are those of a live descriptor's number, which this option takes.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_BPF,
                (&raw const descriptor).cast(),
                size_of::<RawFd>() as libc::socklen_t,
            )
        };
        Errno::result(result)?;
        Ok(())
    }

    /// Attaches it to what an interface of this thread's network namespace receives. Kernel 6.6.
    ///
    /// # Errors
    /// When it is no classifier, or the kernel has no TCX.
    pub fn attach_to_ingress(&self, ifindex: u32, place: Place) -> io::Result<Attached> {
        let attribute = LinkAttribute {
            prog_fd: self.descriptor.as_raw_fd() as u32,
            target_ifindex: ifindex,
            attach_type: BPF_TCX_INGRESS,
            flags: match place {
                Place::First => BPF_F_BEFORE,
                Place::Last => BPF_F_AFTER,
            },
            ..LinkAttribute::default()
        };
        // SAFETY: the attribute has the layout and size of this command's for TCX; the kernel reads it and nothing else.
        let link = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_LINK_CREATE,
                &raw const attribute,
                size_of::<LinkAttribute>(),
            )
        };
        let link = Errno::result(link)?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        let link = unsafe { OwnedFd::from_raw_fd(link as RawFd) };
        Ok(Attached { _link: link })
    }

    /// How often it has run while the kernel took the times of runs: see [`take_run_times`].
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn runs(&self) -> anyhow::Result<u64> {
        let descriptor = self.descriptor.as_raw_fd();
        let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
        let runs = told.lines().find_map(|line| line.strip_prefix("run_cnt:"));
        Ok(runs.context("no run_cnt")?.trim().parse()?)
    }

    fn test_run(&self, packet: &[u8], mark: u32, repeat: u32) -> anyhow::Result<(u32, u32)> {
        const ROOM: usize = 4096;

        let mut storage = [0; ROOM];
        let packet = match self.kind {
            ProgramType::Classifier => packet,
            ProgramType::SocketFilter => {
                let whole = ETHERNET_LEN + packet.len();
                ensure!(whole <= ROOM, "a packet of {} bytes", packet.len());
                storage[12..ETHERNET_LEN].copy_from_slice(&EXPERIMENTAL.to_be_bytes());
                storage[ETHERNET_LEN..whole].copy_from_slice(packet);
                &storage[..whole]
            }
        };
        let context = SkBuff {
            mark,
            ..SkBuff::default()
        };
        let mut attribute = RunAttribute {
            prog_fd: u32::try_from(self.descriptor.as_raw_fd())?,
            data_size_in: u32::try_from(packet.len())?,
            data_in: packet.as_ptr() as u64,
            repeat,
            ..RunAttribute::default()
        };
        if mark != 0 {
            attribute.ctx_in = (&raw const context) as u64;
            attribute.ctx_size_in = size_of::<SkBuff>() as u32;
        }
        // SAFETY: the attribute has the layout and size of this command's; the kernel reads `packet` and
        // `context` of the given lengths, which live until the call returns, and writes to the attribute only.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attribute,
                size_of::<RunAttribute>(),
            )
        };
        Errno::result(result).with_context(|| format!("cannot run on {packet:02x?}"))?;
        Ok((attribute.retval, attribute.duration))
    }
}

/// Numbers of the programs that are attached to what an interface of this thread's network namespace receives, in the
/// order in which they run. Kernel 6.6.
///
/// # Errors
/// When there is no such interface.
pub fn attached_to_ingress(ifindex: u32) -> io::Result<Vec<u32>> {
    /// More than the kernel lets be attached.
    const ROOM: usize = 100;

    let mut numbers = vec![0u32; ROOM];
    let mut attribute = QueryAttribute {
        target_ifindex: ifindex,
        attach_type: BPF_TCX_INGRESS,
        prog_ids: numbers.as_mut_ptr() as u64,
        count: ROOM as u32,
        ..QueryAttribute::default()
    };
    // SAFETY: the attribute has the layout and size of this command's; the kernel writes to it, and as many numbers as
    // it says there is room for, which live until the call returns.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut attribute,
            size_of::<QueryAttribute>(),
        )
    };
    Errno::result(result)?;
    numbers.truncate(attribute.count as usize);
    Ok(numbers)
}

/// Has the kernel take the time of each run of every program, until the descriptor is closed: `run_time_ns` and
/// `run_cnt` of a program's descriptor in `/proc/PID/fdinfo`. Kernel 5.8.
///
/// # Errors
/// Without CAP_SYS_ADMIN.
pub fn take_run_times() -> io::Result<OwnedFd> {
    let kind = BPF_STATS_RUN_TIME;
    // SAFETY: this command's attribute is the kind alone, of the given size; the kernel reads it and nothing else.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_ENABLE_STATS,
            &raw const kind,
            size_of_val(&kind),
        )
    };
    let descriptor = Errno::result(descriptor)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// Lets a UDP socket send zero for a checksum.
///
/// # Errors
/// When it is no such socket.
pub fn send_no_checksums(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and length are those of a live number, which this option takes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NO_CHECK,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

fn load(attribute: &LoadAttribute) -> io::Result<OwnedFd> {
    // Kernels before 5.11 count programs as locked memory. Where that may not be, they have no need of it.
    static UNBOUNDED: Once = Once::new();
    UNBOUNDED.call_once(|| {
        let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    });
    // SAFETY: the attribute has the layout and size of this command's; the kernel reads the instructions and the
    // licence, and writes the log, all of which the caller keeps alive, and whose lengths it has given.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            std::ptr::from_ref(attribute),
            size_of::<LoadAttribute>(),
        )
    };
    let descriptor = Errno::result(descriptor)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}
