//! The system calls that no crate of ours wraps: each in a safe function that says what it does.

#![expect(unsafe_code, reason = "this is where the remaining libc calls live")]

pub(crate) mod bpf;
pub(crate) mod ring;

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut},
    mem::size_of,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        signal::{self, SigHandler, SigSet, Signal},
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        stat::{Mode, fstat, umask},
    },
};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use tokio::io::unix::AsyncFd;

use crate::error::note_want;

/// What the kernel calls a kind of namespace: one of the `CLONE_NEW…` constants.
///
/// # Errors
/// `ENOTTY` when `namespace` is no namespace. Kernel 4.11, `linux/nsfs.h`.
pub(crate) fn namespace_type(namespace: BorrowedFd<'_>) -> io::Result<i32> {
    nix::ioctl_none_bad!(get_type, nix::request_code_none!(0xb7, 3));
    // SAFETY: the request takes no argument, and the descriptor is open for as long as it is borrowed.
    Ok(unsafe { get_type(namespace.as_raw_fd()) }?)
}

nix::ioctl_none_bad!(get_parent_namespace, nix::request_code_none!(0xb7, 2));
nix::ioctl_read_bad!(get_owner_uid, nix::request_code_none!(0xb7, 4), libc::uid_t);

/// The users that the user namespace of a process, and those around it, belong to, from the innermost, with the numbers of
/// these namespaces; without our own and those around that. Kernel 4.11, `linux/nsfs.h`.
///
/// # Errors
/// When the process cannot be looked at, or on the way.
fn users_of_namespaces_around(pid: u32) -> io::Result<Vec<(u32, u64)>> {
    /// Most levels of user namespaces that the kernel makes.
    const MAX_LEVELS: usize = 34;

    let opened = File::open(format!("/proc/{pid}/ns/user")).inspect_err(note_want);
    let mut namespace = OwnedFd::from(opened?);
    let mut users = Vec::new();
    for _ in 0..MAX_LEVELS {
        // Of our own namespace, the kernel tells no parent.
        // SAFETY: the request takes no argument, and the descriptor is open.
        let parent = match unsafe { get_parent_namespace(namespace.as_raw_fd()) } {
            Ok(parent) => parent,
            Err(Errno::EPERM) => break,
            Err(error) => return Err(io::Error::from(error)).inspect_err(note_want),
        };
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        let parent = unsafe { OwnedFd::from_raw_fd(parent) };
        let mut owner = 0;
        // SAFETY: the request writes a `uid_t` to the pointer, which is that of a live one.
        unsafe { get_owner_uid(namespace.as_raw_fd(), &raw mut owner) }?;
        users.push((owner, fstat(&namespace)?.st_ino));
        namespace = parent;
    }
    Ok(users)
}

/// The users that the user namespaces around a process belong to, up to our own. Kernel 4.11.
///
/// # Errors
/// When the process cannot be looked at.
pub(crate) fn users_around(pid: u32) -> io::Result<Vec<u32>> {
    let users = users_of_namespaces_around(pid)?;
    Ok(users.into_iter().map(|(user, _)| user).collect())
}

/// The user that has made the outermost user namespace around a process that is not ours, and its number: whoever makes
/// others within it may give these to further users. `None` when the process is in our own. Kernel 4.11.
///
/// # Errors
/// When the process cannot be looked at.
pub(crate) fn user_beside_us(pid: u32) -> io::Result<Option<(u32, u64)>> {
    Ok(users_of_namespaces_around(pid)?.pop())
}

/// A descriptor of a process, which keeps meaning that one when its PID has passed to another; `None` where the
/// kernel has none or may not give it. Kernel 5.3.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub(crate) fn pidfd(pid: u32) -> io::Result<Option<OwnedFd>> {
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
    // SAFETY: the call takes two integers.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(descriptor) {
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        Ok(descriptor) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })),
        Err(Errno::ENOSYS | Errno::EPERM) => Ok(None),
        Err(error) => Err(io::Error::from(error)).inspect_err(note_want),
    }
}

/// The user to whom the user namespace belongs that a namespace is part of: nobody in it has rights over others' but for
/// that user's leave. Root's, for those of the first user namespace. Kernel 4.11, `linux/nsfs.h`.
///
/// # Errors
/// `EPERM` when that user namespace is none of ours nor below it.
pub(crate) fn owner_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<u32> {
    nix::ioctl_none_bad!(get_user_namespace, nix::request_code_none!(0xb7, 1));
    nix::ioctl_read_bad!(get_owner_uid, nix::request_code_none!(0xb7, 4), libc::uid_t);

    // SAFETY: the request takes no argument, and the descriptor is open for as long as it is borrowed.
    let user_namespace = unsafe { get_user_namespace(namespace.as_raw_fd()) }?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    let user_namespace = unsafe { OwnedFd::from_raw_fd(user_namespace) };
    let mut owner = 0;
    // SAFETY: the request writes a `uid_t` to the pointer, which is that of a live one.
    unsafe { get_owner_uid(user_namespace.as_raw_fd(), &raw mut owner) }?;
    Ok(owner)
}

/// A descriptor of the process that began to listen at the other end of a Unix socket, which means no other, even once it
/// has ended. `None` where the kernel has none: kernel 6.5, `SO_PEERPIDFD` of `asm-generic/socket.h`.
///
/// # Errors
/// When that process has ended, on some kernels; on others the descriptor tells.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    const SO_PEERPIDFD: libc::c_int = 77;

    let mut descriptor: RawFd = -1;
    let mut len = size_of::<RawFd>() as libc::socklen_t;
    // SAFETY: the pointers are those of a live integer and of its length, and the kernel writes no more than that.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut descriptor).cast(),
            &raw mut len,
        )
    };
    match Errno::result(got) {
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        Ok(_) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends bytes, few enough for the kernel to take them at once, over a Unix socket, and a descriptor with them.
///
/// # Errors
/// When there is no room at the moment, or nobody at the other end.
pub(crate) fn send_with(socket: impl AsFd, bytes: &[u8], descriptor: Option<&impl AsFd>) -> io::Result<()> {
    let descriptors: Vec<RawFd> = descriptor
        .iter()
        .map(|descriptor| descriptor.as_fd().as_raw_fd())
        .collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights = if descriptors.is_empty() { &[] } else { &rights[..] };
    let parts = [IoSlice::new(bytes)];
    let sent = sendmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &parts,
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent != bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(())
}

/// Receives from a Unix socket what was sent by [`send_with`]: how many bytes, and the descriptor that came with them.
///
/// # Errors
/// When there is nothing at the moment, or the descriptor cannot be had.
pub(crate) fn receive_with(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut parts = [IoSliceMut::new(bytes)];
    let mut space = cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_WAITALL;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let descriptor = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    let descriptor = descriptor.map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok((received.bytes, descriptor))
}

/// Receives from a Unix socket what was sent there at once, with at most so many descriptors: how many bytes, and the descriptors,
/// as many as this process may have. Waits until all of the room is full, or there is no more.
///
/// # Errors
/// When nothing can be received.
pub(crate) fn receive_all_with(
    socket: BorrowedFd<'_>,
    room: &mut [u8],
    most: usize,
) -> io::Result<(usize, Vec<OwnedFd>)> {
    // SAFETY: computes a length.
    let space = unsafe { libc::CMSG_SPACE((most * size_of::<RawFd>()) as u32) } as usize;
    // Aligned as the kernel writes its headers there.
    let mut control = vec![0_u64; space.div_ceil(size_of::<u64>())];
    let mut parts = libc::iovec {
        iov_base: room.as_mut_ptr().cast(),
        iov_len: room.len(),
    };
    // SAFETY: all of its fields may be zero.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut parts;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = space as _;
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_WAITALL;
    let len = loop {
        // SAFETY: the pointers are those of live memory, with its lengths.
        match Errno::result(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, flags) }) {
            Err(Errno::EINTR) => {}
            received => break received?,
        }
    };
    let mut descriptors = Vec::new();
    // SAFETY: the header is as the kernel has filled it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    // SAFETY: it is null, or a header within `control`.
    while let Some(message) = unsafe { next.as_ref() } {
        if (message.cmsg_level, message.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: computes a length.
            let bytes = message.cmsg_len - unsafe { libc::CMSG_LEN(0) } as usize;
            // SAFETY: so many bytes follow this header.
            let first = unsafe { libc::CMSG_DATA(next) }.cast::<RawFd>();
            for index in 0..bytes / size_of::<RawFd>() {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
                descriptors.push(unsafe { OwnedFd::from_raw_fd(first.add(index).read_unaligned()) });
            }
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok((len as usize, descriptors))
}

/// A descriptor of another process, as one of ours. Kernel 5.6.
///
/// # Errors
/// `EBADF` when it has none of this number, `EPERM` without CAP_SYS_PTRACE over it.
pub(crate) fn descriptor_of(process: BorrowedFd<'_>, fd: u32) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // SAFETY: the call takes three integers, the first of which is an open descriptor.
    let descriptor =
        Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

/// The network namespace of a socket. Kernel 4.9, `linux/sockios.h`.
///
/// # Errors
/// `EPERM` without CAP_NET_ADMIN in that namespace, `ENOTTY` when it is no socket.
pub(crate) fn namespace_of_socket(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCGSKNS: u64 = 0x894c;

    nix::ioctl_none_bad!(get_namespace, SIOCGSKNS);
    // SAFETY: the request takes no argument, and the descriptor is open for as long as it is borrowed.
    let namespace = unsafe { get_namespace(socket.as_raw_fd()) }?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

/// A packet socket of the calling thread's network namespace that receives nothing until it is bound.
///
/// # Errors
/// `EPERM` without CAP_NET_RAW in the namespace's user namespace.
pub(crate) fn packet_socket() -> io::Result<OwnedFd> {
    Ok(Socket::new(Domain::PACKET, Type::RAW, None)?.into())
}

/// Lets a packet socket see every packet of one interface, up or down.
///
/// # Errors
/// `ENODEV` when there is no such interface.
pub(crate) fn bind_packet_socket(socket: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    bind_to(socket, libc::ETH_P_ALL as u16, ifindex)
}

/// A packet socket of the calling thread's network namespace that sees nothing, and knows whether an interface is in it.
///
/// # Errors
/// `ENODEV` when there is no such interface.
pub(crate) fn packet_socket_beside(ifindex: u32) -> io::Result<OwnedFd> {
    let socket = packet_socket()?;
    bind_to(socket.as_fd(), 0, ifindex)?;
    Ok(socket)
}

fn bind_to(socket: BorrowedFd<'_>, protocol: u16, ifindex: u32) -> io::Result<()> {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: every bit pattern is a valid `sockaddr_ll`, all of whose fields are integers.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol.to_be();
    address.sll_ifindex = index(ifindex)?;
    // SAFETY: the storage was zeroed and then filled as a `sockaddr_ll`, whose length is given.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket2::SockRef::from(&socket).bind(&address)
}

/// The index of the interface to which a packet socket is bound; -1 when that was removed from the
/// socket's network namespace, whoever has the index then.
///
/// # Errors
/// When it is no packet socket.
pub(crate) fn index_of_packet_socket(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let address = socket2::SockRef::from(&socket).local_addr()?;
    if i32::from(address.family()) != libc::AF_PACKET {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut storage = address.as_storage();
    // SAFETY: all bit patterns are valid for a `sockaddr_ll`, as which the kernel has filled it by its family.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    Ok(address.sll_ifindex)
}

/// Switches an interface to promiscuous mode, for as long as `socket` is open.
///
/// # Errors
/// `ENODEV` when there is no such interface.
pub(crate) fn add_promiscuous_membership(socket: BorrowedFd<'_>, ifindex: u32) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: index(ifindex)?,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    // SAFETY: the pointer and length are those of a live `packet_mreq`, which this option takes.
    Errno::result(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// Speed of an interface in bits per second; `None` where its driver tells none.
///
/// `socket` belongs to the interface's network namespace. `linux/ethtool.h`, `ETHTOOL_GSET`.
pub(crate) fn interface_speed(socket: BorrowedFd<'_>, name: &[u8]) -> Option<u64> {
    const ETHTOOL_GSET: u32 = 1;
    const SPEED_UNKNOWN: u32 = u32::MAX;

    #[repr(C)]
    #[derive(Default)]
    struct EthtoolCommand {
        command: u32,
        supported: u32,
        advertising: u32,
        speed: u16,
        ports: [u8; 6],
        max_packets: [u32; 2],
        speed_high: u16,
        mdix: [u8; 2],
        link_partner_advertising: u32,
        reserved: [u32; 2],
    }
    const { assert!(size_of::<EthtoolCommand>() == 44) };

    nix::ioctl_readwrite_bad!(siocethtool, libc::SIOCETHTOOL, libc::ifreq);

    let mut command = EthtoolCommand {
        command: ETHTOOL_GSET,
        ..EthtoolCommand::default()
    };
    let mut request = libc::ifreq {
        ifr_name: interface_name(name),
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut command).cast(),
        },
    };
    // SAFETY: the request's name ends with a zero, and its data points to an `ethtool_cmd`, which this
    // command fills.
    unsafe { siocethtool(socket.as_raw_fd(), &raw mut request) }.ok()?;
    let megabits = u32::from(command.speed_high) << 16 | u32::from(command.speed);
    // Drivers that know nothing say -1, in 32 or in 16 bits, or 0.
    let known = megabits != SPEED_UNKNOWN && megabits != u32::from(u16::MAX) && megabits != 0;
    known.then(|| u64::from(megabits) * 1_000_000)
}

/// Registers a descriptor with the runtime that the caller is in.
///
/// # Errors
/// When it cannot be polled, or the process has too many watches.
pub(crate) fn watch(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` gives the same descriptor each time, which stays open until the `AsyncFd`, that now
    // owns it, is dropped.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

fn index(ifindex: u32) -> io::Result<libc::c_int> {
    libc::c_int::try_from(ifindex).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))
}

/// Raises the bounds of resources as far as they go: each capture takes about a dozen descriptors, and two more for each
/// interface, and its rings are mapped.
///
/// # Errors
/// When the bounds cannot be read or set.
pub fn raise_limits() -> io::Result<()> {
    raise(&[
        Resource::RLIMIT_NOFILE,
        Resource::RLIMIT_AS,
        Resource::RLIMIT_DATA,
        Resource::RLIMIT_FSIZE,
        Resource::RLIMIT_CPU,
        Resource::RLIMIT_MEMLOCK,
    ])
}

/// Raises those bounds that a user sets for no reason of theirs, and that captures reach.
///
/// # Errors
/// As [`raise_limits`].
pub(crate) fn raise_limits_of_captures() -> io::Result<()> {
    raise(&[Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK])
}

fn raise(resources: &[Resource]) -> io::Result<()> {
    for &resource in resources {
        let (_, most) = getrlimit(resource)?;
        setrlimit(resource, most, most)?;
    }
    Ok(())
}

/// Lowers the bounds of a resource to these, the second of which cannot be raised again; they stay as they are where they are
/// lower already.
///
/// # Errors
/// When the bounds cannot be read or set.
pub(crate) fn lower_limit(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let (_, most) = getrlimit(resource)?;
    Ok(setrlimit(resource, soft.min(most), hard.min(most))?)
}

/// How many descriptors this process has open, and how many it may have. `None` if that cannot be read.
pub(crate) fn own_descriptors() -> Option<(u64, u64)> {
    // One of them is open for the count.
    let open = (fs::read_dir("/proc/self/fd").ok()?.count() as u64).saturating_sub(1);
    Some((open, getrlimit(Resource::RLIMIT_NOFILE).ok()?.0))
}

/// Undoes what whoever started this process may have left it: signals that are blocked, children that nobody may wait for, and
/// permissions that files would lack or have too many of. And has a file that may not grow any more be an error, which is
/// told, and no reason to be ended.
///
/// To be called before other threads exist.
///
/// # Errors
/// Never on Linux.
pub fn settle_inherited_state() -> io::Result<()> {
    settle_inherited_signals()?;
    set_disposition(Signal::SIGXFSZ, SigHandler::SigIgn)?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    Ok(())
}

/// Undoes what whoever started this process may have left it: signals that are blocked, and children that nobody may wait for.
///
/// To be called before other threads exist.
///
/// # Errors
/// Never on Linux.
pub fn settle_inherited_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask()?;
    set_disposition(Signal::SIGCHLD, SigHandler::SigDfl)
}

/// Sets what a signal does, to one of the dispositions that run no code.
fn set_disposition(signal: Signal, handler: SigHandler) -> io::Result<()> {
    debug_assert!(matches!(handler, SigHandler::SigDfl | SigHandler::SigIgn));
    // SAFETY: neither disposition runs any code of ours, and there is no other thread that could rely on another.
    unsafe { signal::signal(signal, handler) }?;
    Ok(())
}

/// Lets the allocator keep few arenas. The threads that enter namespaces are many and short-lived, and each
/// would leave an arena behind that holds tens of megabytes of what it freed.
pub fn limit_allocator_arenas() {
    const ARENAS: libc::c_int = 2;
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator; called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
    }
}

/// Closes all descriptors but the three standard ones. Kernel 5.9; an older one closes none.
///
/// # Errors
/// When the kernel cannot.
///
/// # Safety
/// Nothing in this process owns or uses any of them: it is to be called before anything has opened one.
pub unsafe fn close_inherited_descriptors() -> io::Result<()> {
    // SAFETY: the call takes integers; whose descriptors are closed is what the caller promises.
    match Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) }) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Sets an interface of the calling thread's network namespace up.
///
/// # Errors
/// `ENODEV` when there is none of that name, `EPERM` without CAP_NET_ADMIN.
pub(crate) fn set_interface_up(name: &CStr) -> io::Result<()> {
    nix::ioctl_readwrite_bad!(siocgifflags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(siocsifflags, libc::SIOCSIFFLAGS, libc::ifreq);

    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut request = libc::ifreq {
        ifr_name: interface_name(name.to_bytes()),
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 },
    };
    // SAFETY: the request's name ends with a zero, and the kernel writes the flags into the request.
    unsafe { siocgifflags(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has just set the flags, so that they are the field that was written last.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: the request's name ends with a zero, and its flags are set.
    unsafe { siocsifflags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// A name as requests have it: with at least one zero at its end.
fn interface_name(name: &[u8]) -> [libc::c_char; libc::IFNAMSIZ] {
    let mut field = [0; libc::IFNAMSIZ];
    for (to, from) in field[..libc::IFNAMSIZ - 1].iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    field
}
