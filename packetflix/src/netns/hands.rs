//! Network namespaces that no process, thread or mount is in, but that somebody has in their hands: as an open descriptor, or
//! by a socket that was made there.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    time::Instant,
};

use super::holder::{Holder, network_namespace_inode};
use crate::{
    capabilities::Capability,
    proc_fs::{is_ours, namespace_link, numbers_in, parse_namespace, proc_path},
    sys,
};

/// Looks through the descriptors of all processes but ours until the deadline; tells what was found, and whether that was
/// all of them. Sockets are looked at as far as we may.
pub(super) fn find(pids: &[u32], inode: u64, deadline: Instant) -> (Option<(Holder, OwnedFd)>, bool) {
    let knows_sockets = Capability::NetAdmin.is_effective();
    for &pid in pids.iter().filter(|pid| !is_ours(**pid)) {
        // Where it cannot be listed, the process has ended, or is not ours to look at.
        for fd in numbers_in(&proc_path(pid, "fd")).into_iter().flatten() {
            if Instant::now() >= deadline {
                return (None, false);
            }
            let Some(holder) = holder(pid, fd, inode, knows_sockets) else {
                continue;
            };
            if let Ok(namespace) = holder.open_unwatched(inode) {
                return (Some((holder, namespace)), true);
            }
        }
    }
    (None, true)
}

/// Who holds the namespace by this descriptor, if it does.
fn holder(pid: u32, fd: u32, inode: u64, knows_sockets: bool) -> Option<Holder> {
    let path = proc_path(pid, &format!("fd/{fd}"));
    let link = fs::read_link(path).ok()?;
    let Some((kind, number)) = link.to_str().and_then(parse_namespace) else {
        // Where it was mounted when it was opened, its link is the path.
        let is_its = is_open(pid, fd, inode).ok()?;
        return is_its.then_some(Holder::Descriptor { pid, fd });
    };
    match &kind[..] {
        "net" if number == inode => Some(Holder::Descriptor { pid, fd }),
        "socket" if knows_sockets => {
            let namespace = namespace_of_socket(pid, fd).ok()?;
            let socket = number;
            let is_its = network_namespace_inode(namespace.as_fd()) == Some(inode);
            is_its.then_some(Holder::Socket { pid, fd, socket })
        }
        _ => None,
    }
}

/// Whether a descriptor of a process is of a file with this inode number, which no file outside of the kernel's own file
/// system of namespaces is likely to have. What it lies on is not asked, which may not answer. Kernel 5.14.
pub(super) fn is_open(pid: u32, fd: u32, inode: u64) -> io::Result<bool> {
    let told = fs::read_to_string(proc_path(pid, &format!("fdinfo/{fd}")))?;
    let numbers = told.lines().filter_map(|line| line.strip_prefix("ino:"));
    Ok(numbers.map(str::trim).any(|number| number.parse() == Ok(inode)))
}

/// Whether a descriptor of a process still is this socket, which stays in the namespace in which it was made.
pub(super) fn is_socket(pid: u32, fd: u32, socket: u64) -> io::Result<bool> {
    let path = proc_path(pid, &format!("fd/{fd}"));
    Ok(namespace_link(Path::new(&path))? == ("socket".to_owned(), socket))
}

/// The network namespace in which a socket of a process was made.
///
/// # Errors
/// When the process has no such socket, or we may not look: it takes CAP_SYS_PTRACE over the process (kernel 5.6), and
/// CAP_NET_ADMIN in the namespace.
pub(super) fn namespace_of_socket(pid: u32, fd: u32) -> io::Result<OwnedFd> {
    let process = sys::pidfd(pid)?.ok_or(io::ErrorKind::Unsupported)?;
    let socket = sys::descriptor_of(process.as_fd(), fd)?;
    sys::namespace_of_socket(socket.as_fd())
}
