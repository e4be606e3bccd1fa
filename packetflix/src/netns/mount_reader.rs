//! The process that reads lists of mounts: our own program, executed anew, which gives up its rights before it reads one.
//!
//! The kernel composes a line of a list in memory that counts as the reader's, and a path has no bound: whoever makes folders
//! a hundred thousand deep makes a line of a hundred megabytes. So the reader is what the kernel ends first for want of
//! memory, and what it has read last is then passed over. One reader is for all lists of a scan.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, BufReader, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            net::UnixStream,
            process::CommandExt as _,
        },
    },
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use nix::libc;

use crate::{
    confined::{Failure, SystemCall, begin, give_up_rights},
    proc_fs::{MountBounds, namespace_mounts},
    sys,
};

/// First argument of a process that is to read lists of mounts.
const VERB: &str = "read-mounts";

/// How long an answer may take: less than the patience of a lookout.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Bytes of memory that it may take beside what the kernel takes for it, and seconds of CPU time, for one scan.
const ROOM: u64 = 64 << 20;
const CPU_SECONDS: u64 = 60;
/// Descriptors that it may have: its standard ones, and a list.
const DESCRIPTORS: u64 = 8;

/// Most bytes of a path, of which the last one may be beyond the bound of all.
const MAX_PATH_LEN: usize = 256 << 10;

/// Bytes of an order: the bounds of a list, with the time in microseconds.
const ORDER_LEN: usize = 4 * size_of::<u64>();
/// Bytes of the head of an answer: how long it is, and the kernel's error number or 0.
const HEAD_LEN: usize = 2 * size_of::<u32>();
/// Bytes before a path: the number of the namespace that is mounted there, and how long the path is.
const MOUNT_LEN: usize = size_of::<u64>() + size_of::<u32>();

/// What the kernel does for the process after it has given up its rights, beside what it does for all such processes.
const SYSTEM_CALLS: &[libc::c_long] = &[
    libc::SYS_recvmsg,
    libc::SYS_writev,
    libc::SYS_sendto,
    libc::SYS_fcntl,
    libc::SYS_mprotect,
];

/// The network namespaces that are mounted somewhere, and whether there may be more.
pub(super) type Found = (Vec<(u64, PathBuf)>, bool);

/// Why a list was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// There is nobody to read it.
    #[error("the process that reads lists of mounts cannot be started")]
    Start(#[source] io::Error),
    /// The kernel has ended who read it, or has no memory for it, or takes too long.
    #[error("the process that read the list was ended")]
    Ended(#[source] io::Error),
    /// The kernel does not tell it.
    #[error("the list cannot be read")]
    List(#[source] io::Error),
}

/// A process that reads lists of mounts, ended when dropped.
pub(super) struct MountReader {
    child: Child,
    socket: UnixStream,
}

impl MountReader {
    /// Reads a list by a process that there is, or by a new one.
    ///
    /// # Errors
    /// As the kinds of errors say. There is no process then.
    pub(super) fn read(
        reader: &mut Option<Self>,
        list: File,
        bounds: MountBounds,
    ) -> Result<Found, ReadError> {
        let mut own = match reader.take() {
            Some(own) => own,
            None => Self::start().map_err(ReadError::Start)?,
        };
        let answer = own.ask(list, bounds).map_err(ReadError::Ended)?;
        *reader = Some(own);
        answer.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory => ReadError::Ended(error),
            _ => ReadError::List(error),
        })
    }

    fn start() -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let child = Command::new("/proc/self/exe")
            .arg0("packetflix")
            .arg(VERB)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// Hands over a list; gives what it says of that.
    fn ask(&mut self, list: File, bounds: MountBounds) -> io::Result<io::Result<Found>> {
        sys::send_with(&self.socket, &order(bounds), Some(&list))?;
        // What the kernel has composed ends with the last who has it open.
        drop(list);
        let mut head = [0; HEAD_LEN];
        self.socket.read_exact(&mut head)?;
        let [len, errno] = numbers(&head);
        if errno != 0 {
            return Ok(Err(io::Error::from_raw_os_error(errno as i32)));
        }
        let most = 1 + bounds.paths + MAX_PATH_LEN + bounds.namespaces * MOUNT_LEN;
        if len as usize > most {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut answer = vec![0; len as usize];
        self.socket.read_exact(&mut answer)?;
        decode(&answer)
            .map(Ok)
            .ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for MountReader {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn numbers([a, b, c, d, e, f, g, h]: &[u8; HEAD_LEN]) -> [u32; 2] {
    [[*a, *b, *c, *d], [*e, *f, *g, *h]].map(u32::from_ne_bytes)
}

fn order(bounds: MountBounds) -> [u8; ORDER_LEN] {
    let time = bounds.deadline.saturating_duration_since(Instant::now());
    let mut order = [0; ORDER_LEN];
    let numbers = [
        time.as_micros() as u64,
        bounds.bytes as u64,
        bounds.namespaces as u64,
        bounds.paths as u64,
    ];
    for (place, number) in order.chunks_exact_mut(size_of::<u64>()).zip(numbers) {
        place.copy_from_slice(&number.to_ne_bytes());
    }
    order
}

fn bounds(order: &[u8; ORDER_LEN]) -> MountBounds {
    let mut numbers = order.as_chunks().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
    let mut number = || numbers.next().unwrap_or_default();
    MountBounds {
        deadline: Instant::now() + Duration::from_micros(number()),
        bytes: number() as usize,
        namespaces: number() as usize,
        paths: number() as usize,
    }
}

fn encode((found, is_cut): &Found) -> Vec<u8> {
    let mut answer = vec![u8::from(*is_cut)];
    for (inode, path) in found {
        let path = path.as_os_str().as_bytes();
        answer.extend(inode.to_ne_bytes());
        answer.extend((path.len() as u32).to_ne_bytes());
        answer.extend(path);
    }
    answer
}

fn decode(answer: &[u8]) -> Option<Found> {
    let (is_cut, mut rest) = answer.split_first()?;
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (inode, after) = rest.split_first_chunk()?;
        let (len, after) = after.split_first_chunk()?;
        let (path, after) = after.split_at_checked(u32::from_ne_bytes(*len) as usize)?;
        let path = PathBuf::from(OsString::from_vec(path.to_vec()));
        found.push((u64::from_ne_bytes(*inode), path));
        rest = after;
    }
    Some((found, *is_cut != 0))
}

/// Reads lists of mounts, and tells how the process is to end, when its arguments say that this is what it is for: to be called
/// before anything was opened and while there is one thread.
pub fn read_mounts_if_asked(mut arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let is_asked = arguments.nth(1).as_deref() == Some(OsStr::new(VERB)) && arguments.next().is_none();
    is_asked.then(|| serve().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
}

fn serve() -> Result<(), Failure> {
    begin(ROOM, CPU_SECONDS)?;
    let socket = io::stdin().as_fd().try_clone_to_owned();
    let mut socket = UnixStream::from(socket.map_err(Failure::of("there is nobody to answer"))?);
    give_up_rights(DESCRIPTORS, &SystemCall::of_all(SYSTEM_CALLS))?;
    answer_all(&mut socket).map_err(Failure::of("an answer could not be given"))
}

/// Answers one order after the other.
fn answer_all(socket: &mut UnixStream) -> io::Result<()> {
    while let Some((list, bounds)) = next_order(socket)? {
        let read = namespace_mounts(BufReader::with_capacity(64 << 10, list), bounds);
        let (errno, answer) = match &read {
            Ok(found) => (0, encode(found)),
            Err(error) => (error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
        };
        let mut whole = Vec::with_capacity(HEAD_LEN + answer.len());
        whole.extend((answer.len() as u32).to_ne_bytes());
        whole.extend(errno.to_ne_bytes());
        whole.extend(answer);
        socket.write_all(&whole)?;
    }
    Ok(())
}

/// A list and its bounds; `None` when there are no more.
fn next_order(socket: &UnixStream) -> io::Result<Option<(File, MountBounds)>> {
    let mut order = [0; ORDER_LEN];
    let (len, list) = sys::receive_with(socket, &mut order)?;
    let Some(list) = list.filter(|_| len == ORDER_LEN) else {
        return Ok(None);
    };
    Ok(Some((list.into(), bounds(&order))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_way() {
        for found in [
            (Vec::new(), false),
            (
                vec![
                    (7, PathBuf::from("/run/netns/a")),
                    (4_026_531_840, PathBuf::from("/\n \u{fc}")),
                ],
                true,
            ),
        ] {
            let answer = encode(&found);
            assert_eq!(decode(&answer), Some(found.clone()));
            if !found.0.is_empty() {
                assert_eq!(decode(&answer[..answer.len() - 1]), None);
            }
        }
        assert_eq!(decode(&[]), None);
    }

    #[test]
    fn lists_are_read_within_their_bounds() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let answering = std::thread::spawn(move || answer_all(&mut theirs));
        let child = Command::new("true").spawn().unwrap();
        let mut reader = Some(MountReader { child, socket: ours });
        let bounds = crate::proc_fs::fuzzing::bounds();
        let mut read = |path: &str, bounds| MountReader::read(&mut reader, File::open(path).unwrap(), bounds);
        let (_, is_cut) = read("/proc/self/mountinfo", bounds).unwrap();
        assert!(!is_cut);
        let (_, is_cut) = read("/proc/self/mountinfo", MountBounds { bytes: 1, ..bounds }).unwrap();
        assert!(is_cut);
        assert!(matches!(read("/proc/self", bounds), Err(ReadError::List(_))));
        drop(reader);
        answering.join().unwrap().unwrap();
    }
}
