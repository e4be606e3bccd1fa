//! The system calls that no crate of ours wraps: each in a safe function that says what it does.

#![expect(unsafe_code, reason = "this is where the remaining libc calls live")]

use std::{
    fs::File,
    io,
    mem::size_of,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd},
};

use nix::{
    errno::Errno,
    libc,
    sys::resource::{Resource, getrlimit, setrlimit},
};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use tokio::io::unix::AsyncFd;

/// What the kernel calls a kind of namespace: one of the `CLONE_NEW…` constants.
///
/// # Errors
/// `ENOTTY` when `namespace` is no namespace. Kernel 4.11, `linux/nsfs.h`.
pub(crate) fn namespace_type(namespace: BorrowedFd<'_>) -> io::Result<i32> {
    nix::ioctl_none_bad!(get_type, nix::request_code_none!(0xb7, 3));
    // SAFETY: the request takes no argument, and the descriptor is open for as long as it is borrowed.
    Ok(unsafe { get_type(namespace.as_raw_fd()) }?)
}

/// Whether a process is in a user namespace that belongs to the user `uid`, or in one below such. `false` when it
/// cannot be looked at. Kernel 4.11, `linux/nsfs.h`.
pub(crate) fn is_in_user_namespace_of(pid: u32, uid: u32) -> bool {
    /// Most levels of user namespaces that the kernel makes.
    const MAX_LEVELS: usize = 32;

    nix::ioctl_none_bad!(get_parent, nix::request_code_none!(0xb7, 2));
    nix::ioctl_read_bad!(get_owner_uid, nix::request_code_none!(0xb7, 4), libc::uid_t);

    let Ok(namespace) = File::open(format!("/proc/{pid}/ns/user")) else {
        return false;
    };
    let mut namespace = OwnedFd::from(namespace);
    for _ in 0..MAX_LEVELS {
        let mut owner = 0;
        // SAFETY: the request writes a `uid_t` to the pointer, which is that of a live one.
        if unsafe { get_owner_uid(namespace.as_raw_fd(), &raw mut owner) }.is_err() {
            return false;
        }
        // The first namespace has no parent, and no user but root.
        // SAFETY: the request takes no argument.
        let Ok(parent) = (unsafe { get_parent(namespace.as_raw_fd()) }) else {
            return false;
        };
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        namespace = unsafe { OwnedFd::from_raw_fd(parent) };
        if owner == uid {
            return true;
        }
    }
    false
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
        Err(error) => Err(error.into()),
    }
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
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: every bit pattern is a valid `sockaddr_ll`, all of whose fields are integers.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index(ifindex)?;
    // SAFETY: the storage was zeroed and then filled as a `sockaddr_ll`, whose length is given.
    let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
    socket2::SockRef::from(&socket).bind(&address)
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
pub(crate) fn interface_speed(socket: BorrowedFd<'_>, name: &str) -> Option<u64> {
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
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut command).cast(),
        },
    };
    // The last byte stays zero.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from as libc::c_char;
    }
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

/// Raises the bound of open descriptors as far as it goes: each capture takes about a dozen, and two more for
/// each interface.
///
/// # Errors
/// When the bounds cannot be read or set.
pub fn raise_descriptor_limit() -> io::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, most, most)?)
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
