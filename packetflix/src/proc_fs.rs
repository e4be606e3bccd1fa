//! The few things of `/proc` that the search for namespaces and targets reads.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs,
    io::{self, BufRead},
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use crate::{error::note_want, text::readable_cut};

/// PID of the other process of the service, if there is one.
static OTHER: AtomicU32 = AtomicU32::new(0);

/// The process of this PID is one of the service, too.
pub(crate) fn set_other_process(pid: u32) {
    OTHER.store(pid, Ordering::Relaxed);
}

/// PID of the other process of the service, if there is one.
pub(crate) fn other_process() -> Option<u32> {
    Some(OTHER.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
}

/// Whether a process is one of the service: what it holds, it holds for a capture.
pub(crate) fn is_ours(pid: u32) -> bool {
    pid == process::id() || other_process() == Some(pid)
}

/// Numbers of all processes, or of all threads of a process: the folders of `folder` that are numbers.
///
/// # Errors
/// When the folder cannot be read, because the process has ended for one.
pub(crate) fn numbers_in(folder: &Path) -> io::Result<impl Iterator<Item = u32> + use<>> {
    let entries = fs::read_dir(folder).inspect_err(note_want)?;
    Ok(entries.filter_map(|entry| {
        let entry = entry.inspect_err(note_want).ok()?;
        entry.file_name().to_str()?.parse().ok()
    }))
}

/// What a namespace link of `/proc` says: its kind and inode number.
///
/// # Errors
/// `EACCES` without CAP_SYS_PTRACE over the process, `ENOENT` when it has ended.
pub(crate) fn namespace_link(path: &Path) -> io::Result<(String, u64)> {
    let target = fs::read_link(path).inspect_err(note_want)?;
    target
        .to_str()
        .and_then(parse_namespace)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no namespace link"))
}

/// Takes `net:[4026531840]` apart.
pub(crate) fn parse_namespace(text: &str) -> Option<(String, u64)> {
    let (kind, rest) = text.split_once(":[")?;
    Some((kind.to_owned(), rest.strip_suffix(']')?.parse().ok()?))
}

/// What a list of mounts may take: all of it is in the hands of those whose mounts they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MountBounds {
    /// Until when it is read.
    pub(crate) deadline: Instant,
    /// Most bytes that are read.
    pub(crate) bytes: usize,
    /// Most network namespaces that are taken from it.
    pub(crate) namespaces: usize,
    /// Most bytes of their paths.
    pub(crate) paths: usize,
}

/// Network namespaces that are mounted according to a `mountinfo`: their inode numbers, and where; and whether the list
/// was left before its end, since it is longer than it may be. It is read in pieces, whatever its length.
///
/// Source: `Documentation/filesystems/proc.rst`, section 3.5.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn namespace_mounts(
    mountinfo: impl BufRead,
    bounds: MountBounds,
) -> io::Result<(Vec<(u64, PathBuf)>, bool)> {
    /// More than the kernel writes of one mount.
    const MAX_LINE_LEN: u64 = 256 << 10;

    let mut found = Vec::new();
    let mut left = bounds;
    let mut line = Vec::new();
    let mut mountinfo = mountinfo.take(MAX_LINE_LEN);
    loop {
        line.clear();
        mountinfo.set_limit(MAX_LINE_LEN);
        let len = mountinfo.read_until(b'\n', &mut line)?;
        if len == 0 {
            return Ok((found, false));
        }
        left.bytes = left.bytes.saturating_sub(len);
        // A path may be as long as its folders are deep; what is left of it is no line of its own.
        let is_whole = len < MAX_LINE_LEN as usize;
        if !is_whole {
            return Ok((found, true));
        }
        if let Some((inode, path)) = namespace_mount(&line) {
            left.paths = left.paths.saturating_sub(path.as_os_str().len());
            left.namespaces = left.namespaces.saturating_sub(1);
            found.push((inode, path));
        }
        if left.bytes == 0 || left.paths == 0 || left.namespaces == 0 || Instant::now() >= left.deadline {
            return Ok((found, true));
        }
    }
}

/// The network namespace that is mounted according to a line of `mountinfo`, and where.
fn namespace_mount(line: &[u8]) -> Option<(u64, PathBuf)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut fields = line.split(|&byte| byte == b' ').skip(3);
    let root = fields.next()?;
    root.starts_with(b"net:[").then_some(())?;
    let (_, inode) = parse_namespace(std::str::from_utf8(root).ok()?)?;
    let path = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    Some((inode, path))
}

/// The paths, as they were bound, at which streams are listened for with these sockets, given by their inode numbers, according
/// to a `/proc/PID/net/unix`. Whoever binds a socket may choose a path with line ends in it, so that a line may say
/// anything of any socket.
///
/// # Errors
/// When it cannot be read, or not to its end by the deadline (`TimedOut`).
pub(crate) fn listening_paths(
    list: impl BufRead,
    sockets: &HashSet<u64>,
    deadline: Instant,
) -> io::Result<Vec<PathBuf>> {
    /// More than the kernel writes of one socket.
    const MAX_LINE_LEN: u64 = 512;

    let mut found = Vec::new();
    let mut line = Vec::new();
    let mut list = list.take(MAX_LINE_LEN);
    loop {
        line.clear();
        list.set_limit(MAX_LINE_LEN);
        if list.read_until(b'\n', &mut line)? == 0 {
            return Ok(found);
        }
        let listening = listening_path(line.strip_suffix(b"\n").unwrap_or(&line));
        found.extend(listening.and_then(|(inode, path)| sockets.contains(&inode).then_some(path)));
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

/// Inode number and absolute path of a socket that listens for streams, according to a line of `net/unix`.
///
/// Source: Linux, `unix_seq_show`: address, references, protocol, flags (`__SO_ACCEPTCON`), type, state, inode, and path.
fn listening_path(line: &[u8]) -> Option<(u64, PathBuf)> {
    const LISTENS: u64 = 1 << 16;
    const STREAM: u64 = 1;

    let mut rest = line;
    let mut field = || {
        rest = rest.trim_ascii_start();
        let (field, path) = rest.split_at_checked(rest.iter().position(|byte| *byte == b' ')?)?;
        rest = path;
        std::str::from_utf8(field).ok()
    };
    let number = |field: Option<&str>, radix| u64::from_str_radix(field?, radix).ok();
    let [_, _, _] = [field()?, field()?, field()?];
    let (flags, kind) = (number(field(), 16)?, number(field(), 16)?);
    field()?;
    let inode = number(field(), 10)?;
    let path = rest.strip_prefix(b" ")?;
    let is_meant = flags & LISTENS != 0 && kind == STREAM && path.starts_with(b"/");
    is_meant.then(|| (inode, PathBuf::from(OsString::from_vec(path.to_vec()))))
}

/// Inode numbers of the sockets that a process has, among so many descriptors; and whether it has more of these.
///
/// # Errors
/// When its descriptors may not be listed, or it has ended.
pub(crate) fn sockets_of(pid: u32, max_descriptors: usize) -> io::Result<(HashSet<u64>, bool)> {
    let mut descriptors = fs::read_dir(proc_path(pid, "fd"))?;
    let inode = |entry: io::Result<fs::DirEntry>| {
        let (kind, inode) = parse_namespace(fs::read_link(entry.ok()?.path()).ok()?.to_str()?)?;
        (kind == "socket").then_some(inode)
    };
    let sockets = descriptors
        .by_ref()
        .take(max_descriptors)
        .filter_map(inode)
        .collect();
    Ok((sockets, descriptors.next().is_some()))
}

/// Name of the file that a process executes; `None` when it may not be looked at, has ended, or is the kernel's.
pub(crate) fn executable(pid: u32) -> Option<OsString> {
    let path = fs::read_link(proc_path(pid, "exe")).ok()?;
    let name = path.file_name()?.as_bytes();
    // So the kernel says that the file is gone, as after an upgrade.
    let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
    Some(OsString::from_vec(name.to_vec()))
}

/// Name of a process's program as people can read it, or nothing when it has ended.
pub(crate) fn program_name(pid: u32) -> String {
    let name = fs::read(proc_path(pid, "comm")).unwrap_or_default();
    readable_cut(name.strip_suffix(b"\n").unwrap_or(&name))
}

/// Path of something that `/proc` has of a process.
pub(crate) fn proc_path(pid: u32, rest: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(rest)
}

/// A namespace of a process: its number, and the thread through which it is reached where the first has ended. The process
/// goes on without that one, and has its namespaces.
///
/// # Errors
/// Those of the process's own link, when none of its threads has one.
pub(crate) fn live_namespace(pid: u32, kind: &str) -> io::Result<(Option<u32>, u64)> {
    /// Most threads that are looked at of a process whose first has ended.
    const MAX_THREADS: usize = 64;

    let error = match namespace_link(&namespace_path(pid, None, kind)) {
        Ok((_, inode)) => return Ok((None, inode)),
        Err(error) => error,
    };
    let threads = numbers_in(&proc_path(pid, "task")).into_iter().flatten();
    threads
        .filter(|tid| *tid != pid)
        .take(MAX_THREADS)
        .find_map(|tid| {
            let (_, inode) = namespace_link(&namespace_path(pid, Some(tid), kind)).ok()?;
            Some((Some(tid), inode))
        })
        .ok_or(error)
}

/// Path of the link to a namespace of a process, or of one of its threads.
pub(crate) fn namespace_path(pid: u32, thread: Option<u32>, kind: &str) -> PathBuf {
    match thread {
        None => proc_path(pid, &format!("ns/{kind}")),
        Some(thread) => proc_path(pid, &format!("task/{thread}/ns/{kind}")),
    }
}

/// Some of what `/proc/PID/stat` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// Name of the program, at most 15 bytes, as people can read it; the process may give itself any.
    pub(crate) name: String,
    /// Its parent.
    pub(crate) ppid: u32,
    /// When it began, in clock ticks after boot: no other process of this PID has it.
    pub(crate) starttime: u64,
}

impl Stat {
    /// Reads it.
    ///
    /// # Errors
    /// `ENOENT` or `ESRCH` when the process has ended.
    pub(crate) fn read(pid: u32) -> io::Result<Self> {
        let line = fs::read(proc_path(pid, "stat")).inspect_err(note_want)?;
        Self::parse(&line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no stat line"))
    }

    /// The name stands in parentheses, and may hold spaces and parentheses itself: it ends at the last.
    ///
    /// Source: proc_pid_stat(5): fields 2, 4 and 22.
    fn parse(line: &[u8]) -> Option<Self> {
        let begin = line.iter().position(|byte| *byte == b'(')? + 1;
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let name = line.get(begin..end)?;
        // The first of these is field 3.
        let mut fields = std::str::from_utf8(&line[end + 1..])
            .ok()?
            .split_ascii_whitespace();
        Some(Self {
            name: readable_cut(name),
            ppid: fields.nth(4 - 3)?.parse().ok()?,
            starttime: fields.nth(22 - 5)?.parse().ok()?,
        })
    }
}

/// Space, tab, newline and backslash stand as a backslash with three octal digits.
fn unescape(mut field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    while let [first, rest @ ..] = field {
        let code = (*first == b'\\')
            .then(|| std::str::from_utf8(rest.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        out.push(code.unwrap_or(*first));
        field = if code.is_some() { &rest[3..] } else { rest };
    }
    out
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing {
    use std::time::Duration;

    use super::*;

    pub(crate) fn bounds() -> MountBounds {
        MountBounds {
            deadline: Instant::now() + Duration::from_secs(60),
            bytes: 1 << 20,
            namespaces: 100,
            paths: 64 << 10,
        }
    }

    /// What `/proc` has of processes, which choose their names and their mounts.
    pub fn proc(data: &[u8]) {
        let bounds = bounds();
        let (mounts, is_cut) = namespace_mounts(data, bounds).unwrap_or_default();
        assert!(mounts.len() <= bounds.namespaces);
        assert!(
            is_cut
                || mounts
                    .iter()
                    .all(|(_, path)| path.as_os_str().len() <= data.len())
        );
        if let Some(stat) = Stat::parse(data) {
            // What is no text becomes four characters.
            assert!(stat.name.len() <= 4 * data.len());
        }
        if let Ok(text) = std::str::from_utf8(data) {
            let _ = parse_namespace(text);
        }
        let listening = listening_paths(data, &HashSet::from([4711]), bounds.deadline).unwrap_or_default();
        assert!(listening.iter().all(|path| path.is_absolute()));
    }
}

#[cfg(test)]
mod tests {
    use super::{fuzzing::bounds, *};

    #[test]
    fn finds_namespaces_among_mounts() {
        let mountinfo = b"\
22 28 0:21 / /proc rw,relatime shared:5 - proc proc rw
400 23 0:4 net:[4026532300] /run/netns/a\\040b rw shared:9 - nsfs nsfs rw
401 23 0:4 net:[4026532301] /run/netns/c rw shared:9 - nsfs nsfs rw
402 23 0:4 mnt:[4026532300] /run/snapd/ns/x.mnt rw - nsfs nsfs rw
";
        let read = |mountinfo: &[u8], bounds| namespace_mounts(mountinfo, bounds).unwrap();
        let (found, is_cut) = read(mountinfo, bounds());
        assert_eq!(
            found,
            [
                (4_026_532_300, PathBuf::from("/run/netns/a b")),
                (4_026_532_301, PathBuf::from("/run/netns/c"))
            ]
        );
        assert!(!is_cut);
        assert_eq!(read(b"", bounds()), (Vec::new(), false));
        let wrong = b"1 2 3\n\n1 2 3 net:[1]\n1 2 3 net:[x] /a";
        assert_eq!(read(wrong, bounds()), (Vec::new(), false));

        let first = vec![found[0].clone()];
        let too_long = [
            MountBounds {
                bytes: 100,
                ..bounds()
            },
            MountBounds {
                namespaces: 1,
                ..bounds()
            },
            MountBounds { paths: 5, ..bounds() },
        ];
        for bounds in too_long {
            assert_eq!(read(mountinfo, bounds), (first.clone(), true), "{bounds:?}");
        }
        let no_time = MountBounds {
            deadline: Instant::now(),
            ..bounds()
        };
        assert_eq!(read(mountinfo, no_time), (Vec::new(), true));
    }

    #[test]
    fn finds_where_these_sockets_are_listened_at() {
        let list = b"\
Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00010000 0001 01  4711 /run/a b.sock
0000000000000000: 00000003 00000000 00000000 0001 03  4711 /run/connected.sock
0000000000000000: 00000002 00000000 00010000 0005 01  4711 /run/packets.sock
0000000000000000: 00000002 00000000 00010000 0001 01  4711 @abstract
0000000000000000: 00000002 00000000 00010000 0001 01  4711 relative.sock
0000000000000000: 00000002 00000000 00010000 0001 01  4711
0000000000000000: 00000002 00000000 00010000 0001 01 1234567 /run/another.sock
0000000000000000: 00000002 00000000 00010000 0001 01 47111 /run/\xff.sock
4711
";
        let read = |list: &[u8], sockets: &[u64], secs| {
            let deadline = Instant::now() + std::time::Duration::from_secs(secs);
            let found = listening_paths(list, &sockets.iter().copied().collect(), deadline);
            found.map_err(|error| error.kind())
        };
        assert_eq!(read(list, &[4711], 60), Ok(vec!["/run/a b.sock".into()]));
        let bytes = OsString::from_vec(b"/run/\xff.sock".to_vec());
        assert_eq!(
            read(list, &[47_111, 1_234_567], 60),
            Ok(vec!["/run/another.sock".into(), bytes.into()])
        );
        assert_eq!(read(list, &[], 60), Ok(Vec::new()));
        assert_eq!(read(list, &[4711], 0), Err(io::ErrorKind::TimedOut));
        // What is too long is taken for several lines, and has no end.
        let long = [&[b'x'; 4096][..], b"\n", list].concat();
        assert_eq!(read(&long, &[4711], 60), Ok(vec!["/run/a b.sock".into()]));
    }

    #[test]
    fn our_own_sockets_are_found() {
        let path = std::env::temp_dir().join(format!("packetflix-own-{}.sock", process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own = process::id();
        let (sockets, _) = sockets_of(own, usize::MAX).unwrap();
        let list = fs::read(proc_path(own, "net/unix")).unwrap();
        let found = listening_paths(&list[..], &sockets, bounds().deadline).unwrap();
        assert!(found.contains(&path), "{found:?}");
        drop(listener);
        fs::remove_file(&path).unwrap();
        assert!(sockets_of(own, 1).unwrap().1);
        let name = std::env::current_exe().unwrap();
        assert_eq!(executable(own).as_deref(), name.file_name());
        assert_eq!(executable(0), None);
    }

    #[test]
    fn takes_links_apart() {
        assert_eq!(
            parse_namespace("net:[4026531840]"),
            Some(("net".to_owned(), 4_026_531_840))
        );
        for wrong in ["", "net", "net:[", "net:[]", "net:[x]", "net:[1"] {
            assert_eq!(parse_namespace(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_processes_may_hold_anything() {
        let rest = "S 7 1 1 0 -1 4194560 2 0 0 0 0 0 0 0 20 0 1 0 4711 8192 1 18446744073709551615";
        for name in ["sleep", "a b", ") S 1 (", "(", "tmux: server", ""] {
            let stat = Stat::parse(format!("42 ({name}) {rest}\n").as_bytes()).unwrap();
            assert_eq!(
                stat,
                Stat {
                    name: name.to_owned(),
                    ppid: 7,
                    starttime: 4711
                }
            );
        }
        for wrong in ["", "42", "42 (sleep", "42 (sleep) S 7", "42 (sleep) S x 1"] {
            assert_eq!(Stat::parse(wrong.as_bytes()), None, "{wrong}");
        }
        let own = Stat::read(process::id()).unwrap();
        assert!(own.starttime > 0);
    }

    #[test]
    fn unescapes_only_what_is_escaped() {
        assert_eq!(unescape(br"a\040b\134c\"), br"a b\c\");
        assert_eq!(unescape(br"\9\04"), br"\9\04");
    }
}
