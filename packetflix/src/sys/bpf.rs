//! bpf(2), and what attaches its programs to sockets: what aya does only for objects that it has loaded itself.

use std::{
    ffi::CStr,
    io,
    mem::{size_of, zeroed},
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use aya_obj::generated::{bpf_insn, bpf_prog_info};
use nix::{errno::Errno, libc};

/// Commands: `enum bpf_cmd` of `linux/bpf.h`.
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_BTF_LOAD: libc::c_int = 18;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Most programs in each direction of an interface: `BPF_MPROG_MAX` of `linux/bpf_mprog.h`.
const MAX_TCX_PROGRAMS: usize = 64;

/// How often a program is loaded anew when a signal has interrupted the verifier.
const INTERRUPTIONS: u32 = 5;

/// Bytes of the verifier's log: as many as are tried first, and at most.
const LOG_LEN: usize = 64 << 10;
const MAX_LOG_LEN: usize = 16 << 20;

/// Type of a program: `enum bpf_prog_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProgramType {
    /// A filter of a socket.
    SocketFilter = 1,
    /// A program of TC.
    Classifier = 3,
}

/// A program to load.
pub(crate) struct Program<'a> {
    pub(crate) kind: ProgramType,
    /// The kernel keeps the first 15 bytes.
    pub(crate) name: &'a str,
    pub(crate) license: &'a CStr,
    pub(crate) instructions: &'a [bpf_insn],
    /// The types of its functions.
    pub(crate) functions: Option<Functions<'a>>,
}

/// The types of a program's functions, by which the verifier knows those that it may look at one by one.
#[derive(Clone, Copy)]
pub(crate) struct Functions<'a> {
    /// As [`load_types`] gives it.
    pub(crate) types: BorrowedFd<'a>,
    /// A `struct bpf_func_info` for each function.
    pub(crate) records: &'a [u8],
    /// Bytes of one of them.
    pub(crate) record_len: u32,
}

/// The kernel did not load a program.
#[derive(Debug)]
pub(crate) struct LoadFailure {
    pub(crate) error: io::Error,
    /// What the verifier said; nothing if it was not asked.
    pub(crate) log: String,
}

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_len: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    types: u32,
    function_record_len: u32,
    functions: u64,
    function_count: u32,
    padding: u32,
}

/// Calls bpf(2).
///
/// # Safety
/// `attributes` has to be laid out as the command reads it, and whatever it points to has to be valid for what that does.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    let attributes: *mut T = attributes;
    // SAFETY: the pointer and length are those of a live structure; the rest is what the caller promises.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    Ok(Errno::result(result)?)
}

/// Takes a descriptor that bpf(2) has returned.
///
/// # Safety
/// The kernel has just given it to us, and nobody else has it.
unsafe fn owned(descriptor: libc::c_long) -> OwnedFd {
    // SAFETY: as the caller promises.
    unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) }
}

/// Has the kernel verify a program and keep it until the descriptor is closed.
///
/// # Errors
/// What the kernel says, and the verifier.
pub(crate) fn load_program(program: &Program<'_>) -> Result<OwnedFd, LoadFailure> {
    // Without a log first: writing it takes longer than all the rest.
    let mut error = match load_logging(program, &mut []) {
        Ok(loaded) => return Ok(loaded),
        Err(error) => error,
    };
    let mut log = vec![0; LOG_LEN];
    loop {
        match load_logging(program, &mut log) {
            Ok(loaded) => return Ok(loaded),
            Err(again) if again.raw_os_error() == Some(libc::ENOSPC) && log.len() < MAX_LOG_LEN => {
                log.resize(4 * log.len(), 0);
            }
            Err(again) => {
                if again.raw_os_error() != Some(libc::ENOSPC) {
                    error = again;
                }
                let text = CStr::from_bytes_until_nul(&log).unwrap_or_default();
                let log = text.to_string_lossy().into_owned();
                return Err(LoadFailure { error, log });
            }
        }
    }
}

fn load_logging(program: &Program<'_>, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        kind: program.kind as u32,
        instruction_count: program.instructions.len() as u32,
        instructions: program.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_len: log.len() as u32,
        ..ProgramLoad::default()
    };
    if !log.is_empty() {
        attributes.log = log.as_mut_ptr() as u64;
    }
    let [kept @ .., _] = &mut attributes.name;
    for (to, from) in kept.iter_mut().zip(program.name.bytes()) {
        *to = from;
    }
    if let Some(functions) = program.functions {
        attributes.types = functions.types.as_raw_fd() as u32;
        attributes.function_record_len = functions.record_len;
        attributes.functions = functions.records.as_ptr() as u64;
        attributes.function_count = functions.records.len() as u32 / functions.record_len.max(1);
    }
    let mut interruptions = 0;
    loop {
        // SAFETY: the attributes are laid out as the kernel reads them; it reads the instructions, the licence, which ends
        // with a zero, and the records, and writes the log, all of which live until the call returns, and of each as many
        // bytes as the attributes say.
        match unsafe { bpf(BPF_PROG_LOAD, &mut attributes) } {
            // SAFETY: the command returns a new descriptor.
            Ok(descriptor) => return Ok(unsafe { owned(descriptor) }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && interruptions < INTERRUPTIONS => {
                interruptions += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Has the kernel keep types (BTF) for programs. Kernel 4.18.
///
/// # Errors
/// When the kernel does not take them.
pub(crate) fn load_types(types: &[u8]) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that this command reads.
    #[repr(C)]
    #[derive(Default)]
    struct TypesLoad {
        types: u64,
        log: u64,
        len: u32,
        log_len: u32,
        log_level: u32,
        padding: u32,
    }

    let mut attributes = TypesLoad {
        types: types.as_ptr() as u64,
        len: types.len() as u32,
        ..TypesLoad::default()
    };
    // SAFETY: the attributes are laid out as the kernel reads them, and point to so many bytes, which it reads.
    let descriptor = unsafe { bpf(BPF_BTF_LOAD, &mut attributes) }?;
    // SAFETY: the command returns a new descriptor.
    Ok(unsafe { owned(descriptor) })
}

/// How long a program has run, and how often, as far as the kernel keeps account of that. Kernel 5.1.
///
/// # Errors
/// When `program` is none.
pub(crate) fn program_use(program: BorrowedFd<'_>) -> io::Result<(Duration, u64)> {
    // SAFETY: all fields are integers, for which zero is a value.
    let mut info: bpf_prog_info = unsafe { zeroed() };
    // SAFETY: the pointers of the information are null, and the kernel writes nothing through those.
    unsafe { information(program, &mut info) }?;
    Ok((Duration::from_nanos(info.run_time_ns), info.run_cnt))
}

/// What the kernel tells of a link of TCX: the beginning of its `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcxLinkInfo {
    kind: u32,
    /// Its number, which no other link has while there is this one.
    pub(crate) id: u32,
    program: u32,
    padding: u32,
    /// The index of the interface that it is attached to; 0 when that was removed.
    pub(crate) ifindex: u32,
    attach_type: u32,
}

/// What the kernel tells of a link of TCX. Kernel 6.6.
///
/// # Errors
/// When `link` is none.
pub(crate) fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<TcxLinkInfo> {
    let mut info = TcxLinkInfo::default();
    // SAFETY: all of it are integers.
    unsafe { information(link, &mut info) }?;
    Ok(info)
}

/// Has the kernel tell what it knows of a program or link.
///
/// # Safety
/// `info` is laid out as the beginning of what the kernel has for such a descriptor, and any pointers in it may be written through.
unsafe fn information<T>(of: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    /// The part of `union bpf_attr` that this command reads.
    #[repr(C)]
    struct InfoByFd {
        descriptor: u32,
        len: u32,
        info: u64,
    }

    let mut attributes = InfoByFd {
        descriptor: of.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        info: (&raw mut *info) as u64,
    };
    // SAFETY: the attributes are laid out as the kernel reads them, and point to so many bytes, which it writes; the rest is
    // what the caller promises.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(())
}

/// Puts a program into an array of programs, or a map into an array of maps.
///
/// # Errors
/// When `array` is none, is too short, or is for others.
pub(crate) fn set_descriptor(
    array: BorrowedFd<'_>,
    index: u32,
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    /// The part of `union bpf_attr` that this command reads.
    #[repr(C)]
    struct UpdateElement {
        map: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }

    let value = descriptor.as_raw_fd() as u32;
    let mut attributes = UpdateElement {
        map: array.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const index) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    // SAFETY: the attributes are laid out as the kernel reads them; keys and values of such an array are four bytes.
    unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attributes) }?;
    Ok(())
}

/// A side of an interface at which TCX programs run. The numbers are `BPF_TCX_…` of `linux/bpf.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TcxSide {
    /// What it receives.
    Ingress = 46,
    /// What it sends.
    Egress = 47,
}

/// Attaches a program at the head of those of an interface in the calling thread's network namespace, until the descriptor
/// is closed. Kernel 6.6.
///
/// # Errors
/// `ENODEV` when there is no such interface, `ERANGE` when it takes no more programs.
pub(crate) fn attach_tcx(program: BorrowedFd<'_>, ifindex: u32, side: TcxSide) -> io::Result<OwnedFd> {
    /// Before the program that is named, which is the first where none is.
    const BPF_F_BEFORE: u32 = 1 << 3;

    /// The part of `union bpf_attr` that this command reads of a TCX link.
    #[repr(C)]
    #[derive(Default)]
    struct LinkCreate {
        program: u32,
        ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        padding: u32,
        expected_revision: u64,
    }

    let mut attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        ifindex,
        attach_type: side as u32,
        flags: BPF_F_BEFORE,
        ..LinkCreate::default()
    };
    // SAFETY: the attributes are laid out as the kernel reads them, and have no pointers.
    let descriptor = unsafe { bpf(BPF_LINK_CREATE, &mut attributes) }?;
    // SAFETY: the command returns a new descriptor.
    Ok(unsafe { owned(descriptor) })
}

/// The numbers of the links at one side of an interface in the calling thread's network namespace, in the order in which their
/// programs run; 0 stands for a program that is attached without one. Kernel 6.6.
///
/// # Errors
/// `ENODEV` when there is no such interface, `ENOENT` when nothing is attached there.
pub(crate) fn tcx_links(ifindex: u32, side: TcxSide) -> io::Result<Vec<u32>> {
    /// The part of `union bpf_attr` that this command reads of TCX.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        programs: u64,
        count: u32,
        padding: u32,
        program_flags: u64,
        links: u64,
        link_flags: u64,
        revision: u64,
    }

    let mut programs = [0u32; MAX_TCX_PROGRAMS];
    let mut links = programs;
    let mut attributes = Query {
        ifindex,
        attach_type: side as u32,
        programs: programs.as_mut_ptr() as u64,
        links: links.as_mut_ptr() as u64,
        count: links.len() as u32,
        ..Query::default()
    };
    // SAFETY: the attributes are laid out as the kernel reads them, and point to two arrays, of which it writes as many numbers
    // as the attributes say.
    unsafe { bpf(BPF_PROG_QUERY, &mut attributes) }?;
    let known = links.get(..attributes.count as usize).unwrap_or(&links);
    Ok(known.to_vec())
}

/// Puts another program into a link in the place of its own, which may still be running. The kernel waits for nothing.
/// Kernel 5.7, for a link of TCX 6.6.
///
/// # Errors
/// `ENOLINK` when what it was attached to is gone.
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    /// The part of `union bpf_attr` that this command reads.
    #[repr(C)]
    struct LinkUpdate {
        link: u32,
        program: u32,
        flags: u32,
        old_program: u32,
    }

    let mut attributes = LinkUpdate {
        link: link.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the attributes are laid out as the kernel reads them, and have no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attributes) }?;
    Ok(())
}

/// Detaches what a link keeps attached, whoever else has a descriptor of it, as a process that is being started has for a
/// moment. Kernel 5.9.
///
/// # Errors
/// When `link` is none.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut descriptor = link.as_raw_fd() as u32;
    // SAFETY: the command reads the descriptor, and nothing else.
    unsafe { bpf(BPF_LINK_DETACH, &mut descriptor) }?;
    Ok(())
}

/// Has a program decide what of its packets a socket gets, and see them. Kernel 3.19.
///
/// # Errors
/// `ENOMEM` when the program is longer than `net.core.optmem_max` allows.
pub(crate) fn attach_to_socket(program: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    set_option(socket, libc::SO_ATTACH_BPF, &program.as_raw_fd())
}

/// Puts a filter that rejects everything in the place of a socket's program, whoever else has a descriptor of it, as a
/// process that is being started has for a moment. The program may still be running.
///
/// # Errors
/// When there is no memory.
pub(crate) fn silence(socket: BorrowedFd<'_>) -> io::Result<()> {
    /// `BPF_RET | BPF_K`: so many bytes of the packet are accepted.
    const RETURN: u16 = 0x06;
    let mut none = libc::sock_filter {
        code: RETURN,
        jt: 0,
        jf: 0,
        k: 0,
    };
    let filter = libc::sock_fprog {
        len: 1,
        filter: &raw mut none,
    };
    set_option(socket, libc::SO_ATTACH_FILTER, &filter)
}

fn set_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and length are those of a live value, of the type that the option takes.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    })?;
    Ok(())
}
