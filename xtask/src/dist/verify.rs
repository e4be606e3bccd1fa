//! Whether what was made does on other machines what it should: unpacked and installed where nothing of this one is.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{SUMS, System, VERSION, fresh};
use crate::{
    image::revision,
    kernel::Architecture,
    setup,
    shell::{cargo, is_root, output_of},
};

/// What is in an archive for Linux, among the rest.
const ARCHIVED: [&str; 10] = [
    "CHANGELOG.md",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "completions/_packetflix",
    "completions/packetflix.bash",
    "completions/packetflix.fish",
    "man/man1/packetflix-capture.1",
    "man/man1/packetflix.1",
    "packetflix.service",
];

/// The libraries that the program may ask for: the C library with its loader, and that of the compiler.
const NEEDED: [&str; 5] = [
    "ld-linux-aarch64.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
];

/// The newest version of the C library that the program may ask for, as the Debian package says it.
pub(super) const GLIBC: (u32, u32) = (2, 34);

/// Where Debian has the program that runs those of Windows.
const WINE: &str = "/usr/lib/wine/wine64";

/// The library with random numbers that Windows 10 has, and Wine only since 9.
const RANDOM: &str = "
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length)
{
    return SystemFunction036(buffer, (ULONG)length);
}
";

/// How many packets a capture is to get.
const PACKETS: &str = "5";

/// Installs the package on top of this machine's root, of which the package manager sees a copy, and removes it again. What
/// differs then is in the folder of changes. Of what the package manager keeps for itself, no file may have the name.
const INSTALL: &str = r#"
mount -t tmpfs tmpfs "$FOLDER"
cd "$FOLDER"
mkdir changes work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$FOLDER/changes,workdir=$FOLDER/work" root
mount -t proc proc root/proc
mount -t tmpfs tmpfs root/run
mount --rbind /dev root/dev
cp "$PACKAGE" root/packetflix.deb
within() { chroot root "$@"; }
within dpkg --install /packetflix.deb >&2
rm root/packetflix.deb
within /usr/bin/packetflix --version
within systemd-analyze verify /lib/systemd/system/packetflix.service >&2
state=$(within systemctl --root=/ is-enabled packetflix || true)
test "$state" = disabled || { echo "the unit is $state" >&2; exit 1; }
for page in packetflix packetflix-capture; do test -s "root/usr/share/man/man1/$page.1.gz"; done
test -s root/usr/share/bash-completion/completions/packetflix
test -s root/usr/share/zsh/vendor-completions/_packetflix
test -s root/usr/share/fish/vendor_completions.d/packetflix.fish
test -s root/usr/share/doc/packetflix/copyright
within dpkg-query --show --showformat '${Conffiles}' packetflix | grep -q ' /etc/packetflix/environment '
echo 'alice secret discover' > root/etc/packetflix/tokens
within dpkg --remove packetflix >&2
test -s root/etc/packetflix/environment
test -s root/etc/packetflix/tokens
within dpkg --purge packetflix >&2
left=$(find changes -path changes/var/lib/dpkg -prune -o -path changes/var/log -prune -o -path changes/var/cache -prune -o \
    ! -type d -print; find changes -iname '*packetflix*')
test -z "$left" || { echo "left behind: $left" >&2; exit 1; }
"#;

/// Runs the program where nothing is but it, these libraries and what the kernel has, with a root as that of a container. What
/// was the root is put aside.
const SERVE: &str = r#"
mount --bind "$FOLDER" "$FOLDER"
cd "$FOLDER"
mkdir aside
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
pivot_root . aside
cd /
exec /packetflix serve --port "$PORT"
"#;

/// Some traffic in a namespace, for half a minute.
const TRAFFIC: &str = "for i in $(seq 300); do echo packet > /dev/udp/127.0.0.1/9; sleep 0.1; done";

/// Verifies all that was made. What was not built here is packed only, and its program is not looked at.
///
/// # Errors
/// When something is missing, is not what it should be, or leaves something behind.
pub(super) fn verify(place: &Path, out: &Path, systems: &[System], is_ours: bool) -> anyhow::Result<()> {
    ensure!(is_root(), "to install and run what was made takes root");
    let has = |system| is_ours && systems.contains(&system);
    setup::verify_tools(has(System::LinuxArm64), has(System::WindowsAmd64))?;
    run(Command::new("sha256sum")
        .current_dir(out)
        .args(["--check", "--strict", "--quiet", SUMS]))?;
    let try_out = fresh(&place.join("verify"))?;
    let mut told = vec!["the checksums are right".to_owned()];
    for system in systems.iter().copied() {
        let name = system.name();
        if let Some(architecture) = system.linux() {
            let folder = unpack(system, out, &try_out)?;
            has_all(&folder)?;
            if is_ours {
                told.push(format!(
                    "{name}: {}",
                    needs_no_libpcap(&folder.join("packetflix"))?
                ));
            }
            if architecture.is_own() {
                installs(architecture, out, &try_out, is_ours)?;
                told.push(format!(
                    "{name}: the package installs, its unit is right, and a purge leaves nothing"
                ));
            }
            if is_ours {
                let files = place.join(architecture.name()).join("root/files");
                if architecture.is_own() {
                    let windows = systems.contains(&System::WindowsAmd64);
                    told.extend(captures(architecture, &folder, &files, out, &try_out, windows)?);
                } else {
                    let version = run(Command::new("qemu-aarch64")
                        .arg("-L")
                        .arg(&files)
                        .arg(folder.join("packetflix"))
                        .arg("--version"))?;
                    is_the_version(&version, Some(architecture))?;
                    told.push(format!("{name}: runs under emulation, and tells its version"));
                }
            }
        }
        if is_ours && system != System::MacosArm64 {
            told.push(format!("{name}: {}", lists_all(system, out)?));
        }
    }
    fs::remove_dir_all(&try_out)?;
    for line in told {
        eprintln!("xtask: verified: {line}");
    }
    Ok(())
}

/// Runs a program, and gives what it prints.
fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {command:?}: {said}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a script as root with mounts of its own.
fn apart(script: &str, folder: &Path) -> Command {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "--",
            "sh",
            "-eu",
            "-c",
            script,
        ])
        .env("FOLDER", folder)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn unpack(system: System, out: &Path, into: &Path) -> anyhow::Result<PathBuf> {
    let archive = out.join(format!("{}.tar.xz", system.stem()));
    run(Command::new("tar")
        .arg("--extract")
        .arg("--file")
        .arg(archive)
        .arg("--directory")
        .arg(into))?;
    Ok(into.join(system.stem()))
}

fn has_all(folder: &Path) -> anyhow::Result<()> {
    for name in ARCHIVED {
        let size = fs::metadata(folder.join(name)).map_or(0, |file| file.len());
        ensure!(size > 0, "the archive has no {name}");
    }
    Ok(())
}

/// Whether the program asks for nothing but the C library, and for none that is too new. Says for which.
fn needs_no_libpcap(program: &Path) -> anyhow::Result<String> {
    let dynamic = run(Command::new("readelf").args(["--wide", "--dynamic"]).arg(program))?;
    let needed: BTreeSet<&str> = dynamic
        .lines()
        .filter(|line| line.contains("(NEEDED)"))
        .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']')))
        .collect();
    ensure!(
        needed.contains("libc.so.6"),
        "readelf tells of no library: {dynamic}"
    );
    ensure!(
        needed.iter().all(|library| NEEDED.contains(library)),
        "the program needs {needed:?}"
    );
    let versions = run(Command::new("readelf")
        .args(["--wide", "--version-info"])
        .arg(program))?;
    let newest = newest_glibc(&versions).context("readelf tells of no version")?;
    ensure!(newest <= GLIBC, "the program needs glibc {newest:?}");
    let symbols = run(Command::new("readelf")
        .args(["--wide", "--section-headers"])
        .arg(program))?;
    ensure!(!symbols.contains(".symtab"), "the program is not stripped");
    Ok(format!(
        "stripped, needs glibc {}.{} and no libpcap",
        newest.0, newest.1
    ))
}

/// The newest of the versions `GLIBC_MAJOR.MINOR`.
fn newest_glibc(versions: &str) -> Option<(u32, u32)> {
    let words = versions.split_whitespace();
    let numbers = words.filter_map(|word| word.strip_prefix("GLIBC_")?.split_once('.'));
    numbers
        .filter_map(|(major, rest)| Some((major.parse().ok()?, rest.split('.').next()?.parse().ok()?)))
        .max()
}

/// Whether the version is told as it should be, of the program for an architecture, or of the client alone.
fn is_the_version(told: &str, architecture: Option<Architecture>) -> anyhow::Result<()> {
    let commit = revision().unwrap_or_else(|| "unknown".to_owned());
    let told = told.replace('\r', "");
    let mut expected = format!("packetflix {VERSION}\ncommit {commit}\n");
    if let Some(architecture) = architecture {
        expected += &format!("eBPF object for {}, ABI ", architecture.processor());
    }
    ensure!(told.starts_with(&expected), "{told:?} is not {expected:?}");
    Ok(())
}

fn installs(architecture: Architecture, out: &Path, try_out: &Path, is_ours: bool) -> anyhow::Result<()> {
    let package = format!("packetflix_{VERSION}-1_{}.deb", architecture.name());
    let told = run(apart(INSTALL, &fresh(&try_out.join("installed"))?).env("PACKAGE", out.join(package)))?;
    if is_ours {
        is_the_version(&told, Some(architecture))?;
    }
    Ok(())
}

/// A child that does not outlive us.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace to be captured, in which there is some traffic.
struct Namespace(String);

impl Namespace {
    fn new() -> anyhow::Result<Self> {
        let namespace = Self(format!("packetflix-dist-{}", std::process::id()));
        run(Command::new("ip").args(["netns", "add", &namespace.0]))?;
        run(Command::new("ip").args(["-netns", &namespace.0, "link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    fn traffic(&self) -> anyhow::Result<Running> {
        let mut traffic = Command::new("ip");
        traffic.args(["netns", "exec", &self.0, "bash", "-c", TRAFFIC]);
        Ok(Running(traffic.stderr(Stdio::null()).spawn()?))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run(Command::new("ip").args(["netns", "delete", &self.0]));
    }
}

/// Serves and captures with the program in a root that has nothing but its libraries, and captures with the client for
/// Windows.
fn captures(
    architecture: Architecture,
    folder: &Path,
    libraries: &Path,
    out: &Path,
    try_out: &Path,
    windows: bool,
) -> anyhow::Result<Vec<String>> {
    let bare = bare_root(architecture, folder, libraries, &try_out.join("bare"))?;
    let program = |arguments: &[&str]| {
        run(Command::new("chroot")
            .arg(&bare)
            .arg("/packetflix")
            .args(arguments))
    };
    is_the_version(&program(&["--version"])?, Some(architecture))?;
    let namespace = Namespace::new()?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let url = format!("http://127.0.0.1:{port}");
    let log = fs::File::create(try_out.join("server.log"))?;
    let mut serve = apart(SERVE, &bare);
    serve.env("PORT", &port).stdin(Stdio::null());
    let _server = Running(serve.stdout(log.try_clone()?).stderr(log).spawn()?);
    let deadline = Instant::now() + Duration::from_secs(60);
    let list = loop {
        match program(&["list", "--server", &url]) {
            Ok(list) => break list,
            Err(error) if Instant::now() > deadline => {
                let log = fs::read_to_string(try_out.join("server.log"))?;
                return Err(error.context(log));
            }
            Err(_) => thread::sleep(Duration::from_millis(200)),
        }
    };
    ensure!(
        list.contains(&namespace.0),
        "{} is not listed: {list}",
        namespace.0
    );
    let capture = [
        "capture",
        &namespace.0,
        "--server",
        &url,
        "-f",
        "udp port 9",
        "-c",
        PACKETS,
    ];
    let traffic = namespace.traffic()?;
    program(&[&capture[..], &["-w", "/capture.pcapng"]].concat())?;
    drop(traffic);
    let captured = packets(&bare.join("capture.pcapng"))?;
    ensure!(captured == PACKETS, "{captured} packets were captured");
    let mut told = vec![format!(
        "{}: serves, filters and captures in a root with the C library alone",
        folder.file_name().unwrap_or_default().display()
    )];
    if windows {
        let place = fresh(&try_out.join("windows"))?;
        let stem = System::WindowsAmd64.stem();
        run(Command::new("unzip")
            .arg("-q")
            .arg(out.join(format!("{stem}.zip")))
            .arg("-d")
            .arg(&place))?;
        fs::write(place.join("random.c"), RANDOM)?;
        run(Command::new("x86_64-w64-mingw32-gcc")
            .current_dir(place.join(&stem))
            .args([
                "-shared",
                "-o",
                "bcryptprimitives.dll",
                "../random.c",
                "-ladvapi32",
            ]))?;
        let wine = |arguments: &[&str]| {
            run(Command::new(WINE)
                .arg(place.join(&stem).join("packetflix.exe"))
                .args(arguments)
                .current_dir(&place)
                .env("WINEPREFIX", place.join("wine"))
                .env("WINEDEBUG", "-all"))
        };
        is_the_version(&wine(&["--version"])?, None)?;
        let list = wine(&["list", "--server", &url])?;
        ensure!(
            list.contains(&namespace.0),
            "{} is not listed: {list}",
            namespace.0
        );
        let traffic = namespace.traffic()?;
        wine(&[&capture[..], &["-w", "capture.pcapng"]].concat())?;
        drop(traffic);
        let captured = packets(&place.join("capture.pcapng"))?;
        ensure!(
            captured == PACKETS,
            "{captured} packets were captured by Windows' client"
        );
        told.push("windows-amd64: lists and captures under wine".to_owned());
    }
    Ok(told)
}

/// A root of the program, the C library and the folders that systems have.
fn bare_root(
    architecture: Architecture,
    folder: &Path,
    libraries: &Path,
    bare: &Path,
) -> anyhow::Result<PathBuf> {
    let bare = fresh(bare)?;
    for name in ["dev", "lib64", "proc", "run", "sys", "tmp"] {
        fs::create_dir(bare.join(name))?;
    }
    super::copy(&folder.join("packetflix"), &bare.join("packetflix"))?;
    let gnu = architecture.gnu();
    let to = bare.join("lib").join(&gnu);
    fs::create_dir_all(&to)?;
    for library in NEEDED {
        let places = ["lib", "usr/lib"].map(|place| libraries.join(place).join(&gnu).join(library));
        // The loader of another processor is not there.
        let Some(file) = places.iter().find(|file| file.exists()) else {
            continue;
        };
        super::copy(file, &to.join(library))?;
        if library.starts_with("ld-linux") {
            let place = if architecture == Architecture::Amd64 {
                "lib64"
            } else {
                "lib"
            };
            super::copy(file, &bare.join(place).join(library))?;
        }
    }
    Ok(bare)
}

/// How many packets are in a file, as capinfos counts them.
fn packets(file: &Path) -> anyhow::Result<String> {
    let told = run(Command::new("capinfos").args(["-T", "-r", "-M", "-c"]).arg(file))?;
    let count = told.trim().rsplit('\t').next();
    Ok(count.context("capinfos says nothing")?.to_owned())
}

/// Whether the list of what is in a program has every crate that is built for it. Says how many.
fn lists_all(system: System, out: &Path) -> anyhow::Result<String> {
    let listed = fs::read_to_string(out.join(format!("{}.cdx.json", system.stem())))?;
    let listed: Value = serde_json::from_str(&listed)?;
    let components = listed["components"].as_array().context("no components")?;
    let named: BTreeSet<(&str, &str)> = components
        .iter()
        .filter_map(|component| Some((component["name"].as_str()?, component["version"].as_str()?)))
        .collect();
    let tree = output_of(
        cargo()
            .args(["tree", "--locked", "--package=packetflix", "--prefix=none"])
            .args(["--edges=normal,build", "--format={p}"])
            .arg(format!("--target={}", system.target())),
    )
    .context("cargo tree fails")?;
    let crates: BTreeSet<(&str, &str)> = tree.lines().filter_map(of_tree).collect();
    ensure!(crates.len() > 50, "cargo tree has no crates: {tree}");
    let missing: Vec<_> = crates
        .iter()
        .filter(|(name, version)| *name != "packetflix" && !named.contains(&(name, version)))
        .collect();
    if !missing.is_empty() {
        bail!("the list of {} lacks {missing:?}", system.name());
    }
    let libpcap = components.iter().any(|component| component["name"] == "libpcap");
    ensure!(
        libpcap == system.linux().is_some(),
        "libpcap is listed: {libpcap}"
    );
    Ok(format!(
        "{} crates are listed, as many as are built",
        crates.len()
    ))
}

/// Name and version of a line: `NAME vVERSION …`.
fn of_tree(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split(' ');
    Some((words.next()?, words.next()?.strip_prefix('v')?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_version_of_the_c_library_is_found() {
        let versions =
            "  0x0010:   Name: GLIBC_2.9  Flags: none\n  0x20:   Name: GLIBC_2.34  Flags\n Name: GCC_3.3";
        assert_eq!(newest_glibc(versions), Some((2, 34)));
        assert_eq!(newest_glibc("Name: GLIBC_2.2.5"), Some((2, 2)));
        assert_eq!(newest_glibc("Name: GLIBC_PRIVATE"), None);
    }

    #[test]
    fn crates_are_read_off_a_tree() {
        assert_eq!(of_tree("aya v0.14.0 (*)"), Some(("aya", "0.14.0")));
        assert_eq!(of_tree(""), None);
    }
}
