//! The few things of `/proc` that a search for namespaces reads.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
};

/// Numbers of all processes, or of all threads of a process: the folders of `folder` that are numbers.
///
/// # Errors
/// When the folder cannot be read, because the process has ended for one.
pub(super) fn numbers_in(folder: &Path) -> io::Result<impl Iterator<Item = u32> + use<>> {
    Ok(fs::read_dir(folder)?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()))
}

/// What a namespace link of `/proc` says: its kind and inode number.
///
/// # Errors
/// `EACCES` without CAP_SYS_PTRACE over the process, `ENOENT` when it has ended.
pub(super) fn namespace_link(path: &Path) -> io::Result<(String, u64)> {
    let target = fs::read_link(path)?;
    target
        .to_str()
        .and_then(parse_namespace)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no namespace link"))
}

/// Whether this process has CAP_SYS_PTRACE, with which it may look at the namespaces of all others.
pub(super) fn may_look_at_all() -> bool {
    const CAP_SYS_PTRACE: u32 = 19;
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        capabilities
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .is_some_and(|bits| bits & 1 << CAP_SYS_PTRACE != 0)
    })
}

/// Takes `net:[4026531840]` apart.
pub(super) fn parse_namespace(text: &str) -> Option<(String, u64)> {
    let (kind, rest) = text.split_once(":[")?;
    Some((kind.to_owned(), rest.strip_suffix(']')?.parse().ok()?))
}

/// Paths of `mountinfo` at which the namespace `net:[inode]` is mounted.
///
/// Source: `Documentation/filesystems/proc.rst`, section 3.5.
pub(super) fn namespace_mounts(mountinfo: &[u8], inode: u64) -> impl Iterator<Item = PathBuf> {
    let root = format!("net:[{inode}]");
    mountinfo.split(|&byte| byte == b'\n').filter_map(move |line| {
        let mut fields = line.split(|&byte| byte == b' ').skip(3);
        (fields.next()? == root.as_bytes()).then_some(())?;
        Some(PathBuf::from(OsString::from_vec(unescape(fields.next()?))))
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_namespaces_among_mounts() {
        let mountinfo = b"\
22 28 0:21 / /proc rw,relatime shared:5 - proc proc rw
400 23 0:4 net:[4026532300] /run/netns/a\\040b rw shared:9 - nsfs nsfs rw
401 23 0:4 net:[4026532301] /run/netns/c rw shared:9 - nsfs nsfs rw
402 23 0:4 mnt:[4026532300] /run/snapd/ns/x.mnt rw - nsfs nsfs rw
";
        let found: Vec<_> = namespace_mounts(mountinfo, 4_026_532_300).collect();
        assert_eq!(found, [PathBuf::from("/run/netns/a b")]);
        assert_eq!(namespace_mounts(b"", 1).count(), 0);
        assert_eq!(namespace_mounts(b"1 2 3\n\n1 2 3 net:[1]", 1).count(), 0);
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
    fn unescapes_only_what_is_escaped() {
        assert_eq!(unescape(br"a\040b\134c\"), br"a b\c\");
        assert_eq!(unescape(br"\9\04"), br"\9\04");
    }
}
