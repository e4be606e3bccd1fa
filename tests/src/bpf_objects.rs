//! The eBPF objects that one process holds, whatever others have loaded beside it.
//!
//! `/proc/PID/fdinfo` has the numbers of those it has descriptors of. What these hold in turn is asked of the kernel: the
//! maps of a program, and the maps in a map. Numbers are given out in turn, so that one which is gone does not soon come
//! to mean another object.

#![expect(unsafe_code, reason = "no crate of ours makes these calls of bpf(2)")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    mem::size_of,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::Context as _;
use nix::{errno::Errno, libc};
use socket2::{Domain, SockRef};

use crate::server::wait_until;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
/// `enum bpf_map_type`
const ARRAY_OF_MAPS: u32 = 12;

/// Kind of an object: each has numbers of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A program.
    Program,
    /// A map, of whatever type.
    Map,
    /// What keeps a program attached. Kernel 5.8.
    Link,
    /// Types that programs or maps are described with.
    Btf,
}

impl Kind {
    /// The command that opens an object by its number, of `enum bpf_cmd`. It takes CAP_SYS_ADMIN.
    fn open_command(self) -> libc::c_int {
        match self {
            Self::Program => 13,
            Self::Map => 14,
            Self::Btf => 19,
            Self::Link => 30,
        }
    }

    /// The command that tells the next number that an object has, of `enum bpf_cmd`. It takes CAP_SYS_ADMIN.
    fn next_command(self) -> libc::c_int {
        match self {
            Self::Program => 11,
            Self::Map => 12,
            Self::Btf => 23,
            Self::Link => 31,
        }
    }

    /// Whether there is an object of this number. It is not opened: an array of programs that is opened and closed while the
    /// kernel lets it go is cleared twice, and one of two that wait to be cleared is never let go (`prog_array_map_clear` of
    /// `kernel/bpf/arraymap.c`).
    fn is_there(self, number: u32) -> io::Result<bool> {
        let mut attribute = OpenAttribute {
            number: number.saturating_sub(1),
            ..OpenAttribute::default()
        };
        match bpf(self.next_command(), &mut attribute) {
            Ok(_) => Ok(attribute.next == number),
            Err(Errno::ENOENT) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the object of this number, if there is one.
    fn open(self, number: u32) -> io::Result<Option<OwnedFd>> {
        let mut attribute = OpenAttribute {
            number,
            ..OpenAttribute::default()
        };
        match bpf(self.open_command(), &mut attribute) {
            // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
            Ok(descriptor) => Ok(Some(unsafe { OwnedFd::from_raw_fd(descriptor) })),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The object that a descriptor's `fdinfo` speaks of. A link's names its program, too, and so comes first.
    fn in_fdinfo(text: &str) -> Option<(Self, u32)> {
        [
            (Self::Link, "link_id:"),
            (Self::Program, "prog_id:"),
            (Self::Map, "map_id:"),
            (Self::Btf, "btf_id:"),
        ]
        .into_iter()
        .find_map(|(kind, name)| Some((kind, number_after(text, name)?)))
    }
}

/// Objects by their kinds and numbers, each with what it is besides.
#[derive(Clone, Debug, Default)]
pub struct Objects(BTreeMap<(Kind, u32), String>);

impl Objects {
    /// All that this process holds, directly or not.
    ///
    /// # Errors
    /// When it has ended, or without CAP_SYS_ADMIN.
    pub fn held_by(pid: u32) -> anyhow::Result<Self> {
        let mut held = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
            // A descriptor may just have been closed.
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            if let Some((kind, number)) = Kind::in_fdinfo(&text) {
                held.add(kind, number, &text)?;
            }
        }
        Ok(held)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The numbers of those of a kind.
    pub fn numbers(&self, kind: Kind) -> BTreeSet<u32> {
        let all = self.0.keys();
        all.filter(|(of, _)| *of == kind)
            .map(|(_, number)| *number)
            .collect()
    }

    /// The numbers of the programs of this name.
    pub fn programs(&self, name: &str) -> BTreeSet<u32> {
        let programs = self.0.iter().filter(|((kind, _), _)| *kind == Kind::Program);
        let named = programs.filter(|(_, what)| what.split_whitespace().next_back() == Some(name));
        named.map(|((_, number), _)| *number).collect()
    }

    /// What they are, without their numbers: one per line, sorted.
    pub fn kinds(&self) -> String {
        let mut kinds: Vec<_> = self
            .0
            .iter()
            .map(|((kind, _), what)| format!("{kind:?} {what}\n"))
            .collect();
        kinds.sort_unstable();
        kinds.concat()
    }

    /// Waits until none of them is in the kernel any more.
    ///
    /// # Errors
    /// When one still is after five seconds, which is told.
    pub fn wait_until_gone(&self) -> anyhow::Result<()> {
        let mut left = String::new();
        wait_until(Duration::from_secs(5), || {
            left = self.left()?;
            Ok(left.is_empty())
        })
        .map_err(|error| anyhow::anyhow!("{error}; left in the kernel:\n{left}"))
    }

    /// Those that are still in the kernel: one per line.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn left(&self) -> anyhow::Result<String> {
        let mut left = String::new();
        for ((kind, number), what) in &self.0 {
            if kind.is_there(*number)? {
                left += &format!("{kind:?} {number} {what}\n");
            }
        }
        Ok(left)
    }

    /// Adds an object and what it holds. `fdinfo` is what a link's descriptor tells.
    fn add(&mut self, kind: Kind, number: u32, fdinfo: &str) -> anyhow::Result<()> {
        if self.0.contains_key(&(kind, number)) {
            return Ok(());
        }
        // It may just have been closed.
        let Some(descriptor) = kind.open(number)? else {
            return Ok(());
        };
        match kind {
            Kind::Program => {
                let (program, maps) = program_info(&descriptor)?;
                let what = format!("type {} {}", program.kind, text_of(&program.name));
                self.0.insert((kind, number), what);
                for map in maps {
                    self.add(Kind::Map, map, "")?;
                }
            }
            Kind::Map => {
                let map: MapInfo = info(&descriptor, MapInfo::default())?;
                let what = format!(
                    "type {} {} key {} value {} entries {}",
                    map.kind,
                    text_of(&map.name),
                    map.key_size,
                    map.value_size,
                    map.max_entries
                );
                self.0.insert((kind, number), what);
                if map.kind == ARRAY_OF_MAPS {
                    for index in 0..map.max_entries {
                        if let Some(inner) = inner_map(&descriptor, index)? {
                            self.add(Kind::Map, inner, "")?;
                        }
                    }
                }
            }
            Kind::Link => {
                let what = number_after(fdinfo, "ifindex:").map(|ifindex| format!("to interface {ifindex}"));
                self.0.insert((kind, number), what.unwrap_or_default());
                if let Some(program) = number_after(fdinfo, "prog_id:") {
                    self.add(Kind::Program, program, "")?;
                }
            }
            Kind::Btf => drop(self.0.insert((kind, number), String::new())),
        }
        Ok(())
    }
}

/// How many packet sockets a process has: each may hold a program of which there is no descriptor. Kernel 5.6.
///
/// # Errors
/// When it has ended, or without CAP_SYS_PTRACE.
pub fn packet_sockets_of(pid: u32) -> anyhow::Result<usize> {
    let process = descriptor_of(libc::SYS_pidfd_open, [i64::from(pid), 0, 0])?;
    let mut count = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let entry = entry?;
        // It may just have been closed.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if !target.to_string_lossy().starts_with("socket:") {
            continue;
        }
        let number: i64 = entry.file_name().to_string_lossy().parse()?;
        let arguments = [i64::from(process.as_raw_fd()), number, 0];
        match descriptor_of(libc::SYS_pidfd_getfd, arguments) {
            Ok(socket) => count += usize::from(SockRef::from(&socket).domain()? == Domain::PACKET),
            Err(Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}

/// Private: those who call it give a system call that makes a descriptor, and takes numbers alone.
fn descriptor_of(call: libc::c_long, [first, second, third]: [i64; 3]) -> Result<OwnedFd, Errno> {
    // SAFETY: neither `pidfd_open` nor `pidfd_getfd`, the calls that `packet_sockets_of` makes, takes an address.
    let descriptor = Errno::result(unsafe { libc::syscall(call, first, second, third) })?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) })
}

fn number_after(text: &str, name: &str) -> Option<u32> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// A name of the kernel's, which ends with a zero.
fn text_of(name: &[u8; 16]) -> String {
    let len = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..len]).into_owned()
}

/// The part of `union bpf_attr` that opens an object, or asks for the next number: `linux/bpf.h`.
#[repr(C)]
#[derive(Default)]
struct OpenAttribute {
    number: u32,
    next: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that asks what an object is.
#[repr(C)]
#[derive(Default)]
struct InfoAttribute {
    descriptor: u32,
    len: u32,
    info: u64,
}

/// The part of `union bpf_attr` that looks up an element.
#[repr(C)]
#[derive(Default)]
struct ElementAttribute {
    map: u32,
    unused: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// The first members of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ProgramInfo {
    kind: u32,
    number: u32,
    tag: [u8; 8],
    native_len: u32,
    translated_len: u32,
    native: u64,
    translated: u64,
    load_time: u64,
    created_by: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// The first members of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MapInfo {
    kind: u32,
    number: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    name: [u8; 16],
}

/// A structure that `BPF_OBJ_GET_INFO_BY_FD` fills.
///
/// # Safety
/// It is the beginning of the kernel's structure for this kind of object, any bytes make a valid one, and what
/// addresses in it point to has the room that the counts beside them tell.
unsafe trait Info: Copy {}

// SAFETY: `struct bpf_map_info` of `linux/bpf.h` begins so; it is integers alone, none of them an address.
unsafe impl Info for MapInfo {}

// SAFETY: `struct bpf_prog_info` of `linux/bpf.h` begins so; it is integers alone, and `program_info`, which alone makes
// one, sets the address of maps to room for as many as `map_count` says, and leaves the other lengths at zero.
unsafe impl Info for ProgramInfo {}

/// What an object is. `asked` says how much room there is for what is variable.
fn info<T: Info>(descriptor: &OwnedFd, mut asked: T) -> io::Result<T> {
    let mut attribute = InfoAttribute {
        descriptor: descriptor.as_raw_fd() as u32,
        len: size_of::<T>() as u32,
        info: (&raw mut asked) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute)?;
    Ok(asked)
}

/// What a program is, and the numbers of its maps.
fn program_info(descriptor: &OwnedFd) -> anyhow::Result<(ProgramInfo, Vec<u32>)> {
    let mut maps = [0u32; 64];
    let asked = ProgramInfo {
        map_count: maps.len() as u32,
        maps: maps.as_mut_ptr() as u64,
        ..ProgramInfo::default()
    };
    let program = info(descriptor, asked)?;
    let maps = maps
        .get(..program.map_count as usize)
        .context("more maps than room")?;
    Ok((program, maps.to_vec()))
}

/// Number of the map at this place of an array of maps, if there is one.
fn inner_map(array: &OwnedFd, index: u32) -> io::Result<Option<u32>> {
    let mut number = 0u32;
    let mut attribute = ElementAttribute {
        map: array.as_raw_fd() as u32,
        key: (&raw const index) as u64,
        value: (&raw mut number) as u64,
        ..ElementAttribute::default()
    };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attribute) {
        Ok(_) => Ok(Some(number)),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Private: those who call it give the command its own attribute, with addresses of what lives until it returns.
fn bpf<T>(command: libc::c_int, attribute: &mut T) -> Result<RawFd, Errno> {
    // SAFETY: the attribute is valid for its size, has the layout of this command's, and the addresses in it are those of
    // live variables of the lengths that the kernel expects: each caller in this file makes them so.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    Errno::result(result).map(|value| value as RawFd)
}
