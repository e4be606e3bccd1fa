//! Fills namespaces of its own with more than anybody wants to look at, or with what cannot be looked at; then says that it
//! is ready, and stays for as long as its standard input is open:
//!
//! - `hoard mounts COUNT` has so many mounts with names of thousands of characters,
//! - `hoard namespaces COUNT` has its network namespace mounted as often, at such names,
//! - `hoard deep DEPTH` has that mounted below so many folders with names of line breaks,
//! - `hoard addresses COUNT` has so many addresses in the network namespace that it is started in, on interfaces of its own,
//! - `hoard altnames LINKS NAMES` has so many pairs of links there, each of which has so many other names,
//! - `hoard descriptors COUNT` has a file open so often, without namespaces of its own,
//! - `hoard hang PATH` has a file system at that path which never answers, until a line is read; then it has none,
//! - `hoard hang-here PATH` has it in the mount namespace that it is started in.

use std::{
    fmt::Write as _,
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

/// Each is written as four characters in a list of mounts.
const NAME_LEN: usize = 250;

/// Folders above each mount: as deep as a path may be.
const DEPTH: usize = 13;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(|argument| &argument[..]).collect();
    if !matches!(arguments.first(), Some(&"hang-here" | &"descriptors")) {
        unshare(CloneFlags::CLONE_NEWNS).context("no mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
    }
    let mut open = Vec::new();
    let hanging = match arguments[..] {
        ["descriptors", count] => {
            let file = File::open("/dev/null")?;
            for _ in 0..count.parse::<usize>()? {
                open.push(file.try_clone()?);
            }
            None
        }
        ["mounts", count] => hoard("/proc/self/ns/uts", count.parse()?).map(|()| None)?,
        ["namespaces", count] => hoard("/proc/self/ns/net", count.parse()?).map(|()| None)?,
        ["deep", depth] => deep(depth.parse()?).map(|()| None)?,
        ["addresses", count] => addresses(count.parse()?).map(|()| None)?,
        ["altnames", links, names] => altnames(links.parse()?, names.parse()?).map(|()| None)?,
        ["hang" | "hang-here", path] => Some(hang(path)?),
        _ => bail!("see the source for how this is called"),
    };
    println!("ready");
    let mut line = [0];
    let read = std::io::stdin().read(&mut line)?;
    drop(hanging);
    if read > 0 {
        println!("over");
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    }
    Ok(())
}

/// Mounts a file as often, each time on another file below the same long path.
fn hoard(what: &str, count: usize) -> anyhow::Result<()> {
    mount(
        Some("hoard"),
        "/tmp",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=256m,nr_inodes=200000"),
    )?;
    std::env::set_current_dir("/tmp")?;
    let name = " ".repeat(NAME_LEN);
    for _ in 0..DEPTH {
        std::fs::create_dir(&name)?;
        std::env::set_current_dir(&name)?;
    }
    for number in 0..count {
        let file = number.to_string();
        File::create(&file)?;
        mount(
            Some(what),
            &file[..],
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
    }
    Ok(())
}

/// Mounts a namespace at a path that is written as a line of a thousand characters for each folder.
fn deep(depth: usize) -> anyhow::Result<()> {
    let options = Some("size=2g,nr_inodes=0");
    mount(Some("hoard"), "/tmp", Some("tmpfs"), MsFlags::empty(), options)?;
    std::env::set_current_dir("/tmp")?;
    let name = "\n".repeat(255);
    for _ in 0..depth {
        std::fs::create_dir(&name)?;
        std::env::set_current_dir(&name)?;
    }
    File::create("net")?;
    mount(
        Some("/proc/self/ns/net"),
        "net",
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )?;
    Ok(())
}

/// Makes interfaces with so many addresses. They are down, so that there is no route to any of these.
fn addresses(count: u32) -> anyhow::Result<()> {
    /// Addresses of one interface: the kernel goes through all that it has for each that it is given.
    const OF_ONE: u32 = 1000;

    let name = |number: u32| format!("{}{}", ["a", "b"][number as usize % 2], number / 2);
    let mut batch = String::new();
    for pair in 0..count.div_ceil(2 * OF_ONE) {
        writeln!(batch, "link add a{pair} type veth peer name b{pair}")?;
    }
    for number in 0..count {
        let [_, high, middle, low] = number.to_be_bytes();
        let interface = name(number / OF_ONE);
        writeln!(batch, "addr add 10.{high}.{middle}.{low}/32 dev {interface}")?;
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    ip.stdin.take().context("no input")?.write_all(batch.as_bytes())?;
    ensure!(ip.wait()?.success(), "no addresses");
    Ok(())
}

/// Makes pairs of links, and gives each other names that are as long as they may be.
fn altnames(links: usize, names: usize) -> anyhow::Result<()> {
    const LEN: usize = 126;

    let mut lines = String::new();
    for link in 0..links {
        writeln!(lines, "link add a{link} type veth peer name b{link}")?;
        for (end, name) in ["a", "b"]
            .into_iter()
            .flat_map(|end| (0..names).map(move |name| (end, name)))
        {
            let name = format!("{end}{link}-{name}-");
            writeln!(lines, "link property add dev {end}{link} altname {name:x<LEN$}")?;
        }
    }
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    ip.stdin.take().context("no input")?.write_all(lines.as_bytes())?;
    ensure!(ip.wait()?.success(), "no other names");
    Ok(())
}

/// Mounts a file system that takes up its work, and then answers nothing. It ends with the descriptor.
///
/// Source: `linux/fuse.h`; "FUSE" in `Documentation/filesystems`.
fn hang(path: &str) -> anyhow::Result<File> {
    const FUSE_INIT: u32 = 26;
    const HEADER_LEN: usize = 40;

    let mut device = File::options().read(true).write(true).open("/dev/fuse")?;
    let options = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
        device.as_raw_fd()
    );
    mount(
        Some("hang"),
        Path::new(path),
        Some("fuse"),
        MsFlags::empty(),
        Some(&options[..]),
    )
    .context("no file system in user space")?;
    let mut request = vec![0; 64 << 10];
    let len = device.read(&mut request)?;
    let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap_or_default());
    if len < HEADER_LEN + 16 || word(4) != FUSE_INIT {
        bail!("not asked to begin");
    }
    // The version that is asked for, the same read-ahead, no features, and room for writes of a page.
    let mut answer = Vec::new();
    for number in [16 + 64, 0] {
        answer.extend(u32::to_ne_bytes(number));
    }
    answer.extend(&request[8..16]);
    for number in [
        word(HEADER_LEN),
        word(HEADER_LEN + 4),
        word(HEADER_LEN + 8),
        0,
        0,
        4096,
    ] {
        answer.extend(u32::to_ne_bytes(number));
    }
    answer.resize(16 + 64, 0);
    device.write_all(&answer)?;
    Ok(device)
}
