//! `cargo xtask dist`: what people install.
//!
//! The program for Linux is linked with the C library of a Debian release and with libpcap itself, so that it runs on any
//! distribution whose C library is not older, whatever the machine has that builds it.

mod libpcap;
mod sbom;
mod verify;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{
    build_ebpf::build_ebpf_for,
    image::revision,
    kernel::{Architecture, foreign},
    setup,
    shell::{cargo, execute, output_of, root},
};

const VERSION: &str = env!("CARGO_PKG_VERSION");

const SUMS: &str = "SHA256SUMS";

/// The profile of `Cargo.toml`.
const PROFILE: &str = "dist";

/// What the root has that the program is linked with.
const PACKAGES: &[&str] = &["libc6-dev", "libpcap-dev"];

/// What the unit of a package starts, and what it starts where the program was installed by hand.
const PACKAGED: &str = "ExecStart=/usr/bin/packetflix";
const BY_HAND: &str = "ExecStart=/usr/local/bin/packetflix";

/// What the program prints for shells, and what they look for.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "packetflix.bash"),
    ("zsh", "_packetflix"),
    ("fish", "packetflix.fish"),
];

/// What goes into each archive beside the program.
const DOCUMENTS: [&str; 4] = ["README.md", "CHANGELOG.md", "LICENSE-MIT", "LICENSE-APACHE"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only what is for this system; repeatable
    #[arg(long = "for", value_name = "SYSTEM")]
    systems: Vec<System>,
    /// Pack this program, which is for this machine, instead of building any
    #[arg(long, value_name = "FILE", conflicts_with = "systems")]
    program: Option<PathBuf>,
    /// Where to put it all, instead of target/packages/out
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// As root, install and run what was made
    #[arg(long)]
    verify: bool,
}

/// A system that the program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum System {
    /// Linux on 64-bit PCs
    LinuxAmd64,
    /// Linux on 64-bit ARM
    LinuxArm64,
    /// Windows on 64-bit PCs: the client
    WindowsAmd64,
    /// macOS on 64-bit ARM: the client, which elsewhere than on macOS is checked, and not linked
    MacosArm64,
}

impl System {
    const ALL: [Self; 4] = [
        Self::LinuxAmd64,
        Self::LinuxArm64,
        Self::WindowsAmd64,
        Self::MacosArm64,
    ];

    /// Linux on this machine's processor.
    fn own() -> anyhow::Result<Self> {
        Ok(match Architecture::own()? {
            Architecture::Amd64 => Self::LinuxAmd64,
            Architecture::Arm64 => Self::LinuxArm64,
        })
    }

    /// What it is called in the names of files.
    fn name(self) -> &'static str {
        match self {
            Self::LinuxAmd64 => "linux-amd64",
            Self::LinuxArm64 => "linux-arm64",
            Self::WindowsAmd64 => "windows-amd64",
            Self::MacosArm64 => "macos-arm64",
        }
    }

    /// Rust's target.
    fn target(self) -> &'static str {
        match self {
            Self::LinuxAmd64 => "x86_64-unknown-linux-gnu",
            Self::LinuxArm64 => "aarch64-unknown-linux-gnu",
            Self::WindowsAmd64 => "x86_64-pc-windows-gnu",
            Self::MacosArm64 => "aarch64-apple-darwin",
        }
    }

    /// The processor, if the system has the whole program and not the client alone.
    fn linux(self) -> Option<Architecture> {
        match self {
            Self::LinuxAmd64 => Some(Architecture::Amd64),
            Self::LinuxArm64 => Some(Architecture::Arm64),
            Self::WindowsAmd64 | Self::MacosArm64 => None,
        }
    }

    /// Where cargo puts the program.
    fn built(self) -> PathBuf {
        let suffix = if self == Self::WindowsAmd64 { ".exe" } else { "" };
        let folder = root().join("target").join(self.target()).join(PROFILE);
        folder.join(format!("packetflix{suffix}"))
    }

    /// What its files begin with.
    fn stem(self) -> String {
        format!("packetflix-{VERSION}-{}", self.name())
    }
}

/// Makes archives, packages, lists of what is in them, and checksums.
///
/// # Errors
/// When something does not build, or what was made does not do what it should.
pub(crate) fn dist(args: &Args) -> anyhow::Result<()> {
    let place = root().join("target/packages");
    let out = args.out.clone().unwrap_or_else(|| place.join("out"));
    let out = std::path::absolute(out)?;
    if out.exists() {
        // It is the caller's, and may have more in it, where it is named.
        ensure!(args.out.is_none(), "{} is there already", out.display());
        fs::remove_dir_all(&out)?;
    }
    fs::create_dir_all(&out)?;
    let systems = match (&args.program, &args.systems[..]) {
        (Some(_), _) => vec![System::own()?],
        (None, []) => System::ALL.to_vec(),
        (None, some) => some.to_vec(),
    };
    if systems.iter().any(|system| system.linux().is_some()) {
        setup::dist_tools()?;
    }
    let dist = Dist { place, out };
    // What a program prints is the same on all processors: it is asked of one that runs here.
    let prints = match &args.program {
        Some(program) => program.clone(),
        None => {
            for system in &systems {
                dist.build(*system)?;
            }
            match systems.iter().find(|system| System::own().ok() == Some(**system)) {
                Some(own) => own.built(),
                None => own_program()?,
            }
        }
    };
    dist.prepare(&prints)?;
    for system in systems.iter().copied() {
        let program = args.program.clone().unwrap_or_else(|| system.built());
        dist.pack(system, &program, args.program.is_none())?;
    }
    dist.sum()?;
    if args.verify {
        verify::verify(&dist.place, &dist.out, &systems, args.program.is_none())?;
    }
    Ok(())
}

/// A program that runs here, whatever it was built for.
fn own_program() -> anyhow::Result<PathBuf> {
    build_ebpf_for(env::consts::ARCH)?;
    setup::libraries()?;
    execute(cargo().args(["build", "--package=packetflix"]))?;
    Ok(root().join("target/debug/packetflix"))
}

/// The folders that it is all made in.
struct Dist {
    /// What is not given to anybody.
    place: PathBuf,
    out: PathBuf,
}

impl Dist {
    fn build(&self, system: System) -> anyhow::Result<()> {
        setup::rust_target(system.target())?;
        if let Some(architecture) = system.linux() {
            setup::linux_compiler(architecture)?;
            let place = self.place.join(architecture.name());
            let files = foreign::root_of(architecture, &place.join("root"), PACKAGES, |_| Ok(()))?;
            let libpcap = libpcap::alone(architecture, &files, &place.join("libpcap"))?;
            build_ebpf_for(architecture.processor())?;
            return build(
                &mut foreign::cargo(architecture, &files, &[&libpcap]),
                "build",
                system,
            );
        }
        if system == System::MacosArm64 && env::consts::OS != "macos" {
            // What is written in C cannot be compiled without Apple's headers, and only linking would need it.
            let mut check = cargo();
            for tool in ["CC", "AR"] {
                check.env(format!("{tool}_aarch64_apple_darwin"), "true");
            }
            return build(&mut check, "check", system);
        }
        if system == System::WindowsAmd64 {
            setup::windows_compiler()?;
        }
        build(&mut cargo(), "build", system)
    }

    /// Lays out what is the same for all: what the program prints for shells and as manual pages.
    fn prepare(&self, program: &Path) -> anyhow::Result<()> {
        let shells = fresh(&self.place.join("completions"))?;
        for (shell, file) in COMPLETIONS {
            let script = output_of(Command::new(program).args(["completions", shell]))
                .with_context(|| format!("{} has no completions for {shell}", program.display()))?;
            fs::write(shells.join(file), script)?;
        }
        let pages = fresh(&self.place.join("man"))?;
        execute(Command::new(program).args(["man", "--out"]).arg(pages))
    }

    /// Packs a program. One that was built here is packed with the list of what is in it.
    fn pack(&self, system: System, program: &Path, is_ours: bool) -> anyhow::Result<()> {
        if !program.exists() {
            ensure!(system == System::MacosArm64, "{} is missing", program.display());
            eprintln!("xtask: the client was checked for macOS, and is linked there only");
            return Ok(());
        }
        let stem = system.stem();
        let folder = fresh(&self.place.join("archives").join(&stem))?;
        let name = program.file_name().context("a program without a name")?;
        copy(program, &folder.join(name))?;
        if !is_ours {
            execute(Command::new("strip").arg(folder.join(name)))?;
        }
        for document in DOCUMENTS {
            copy(&root().join(document), &folder.join(document))?;
        }
        let libpcap = match system.linux().filter(|_| is_ours) {
            Some(architecture) => Some(libpcap::origin(
                &self.place.join(architecture.name()).join("root/files"),
            )?),
            None => None,
        };
        if is_ours {
            let list = self.out.join(format!("{stem}.cdx.json"));
            sbom::write(system, &list, libpcap.as_ref())?;
        }
        if system == System::WindowsAmd64 {
            return self.zip(&stem);
        }
        copy_all(&self.place.join("completions"), &folder.join("completions"))?;
        copy_all(&self.place.join("man"), &folder.join("man/man1"))?;
        if system.linux().is_some() {
            let unit = fs::read_to_string(root().join("deploy/systemd/packetflix.service"))?;
            fs::write(folder.join("packetflix.service"), &unit)?;
            let terms = libpcap.map(|origin| origin.terms).unwrap_or_default();
            if !terms.is_empty() {
                fs::write(folder.join("LICENSE-libpcap"), &terms)?;
            }
            self.package(system, &folder.join(name), &unit, &terms, is_ours)?;
            return self.tar(&stem, is_ours);
        }
        self.zip(&stem)
    }

    fn zip(&self, stem: &str) -> anyhow::Result<()> {
        let mut zip = Command::new("zip");
        zip.current_dir(self.place.join("archives"))
            .args(["-9", "-q", "-r", "-X"])
            .arg(self.out.join(format!("{stem}.zip")))
            .arg(stem);
        execute(&mut zip)
    }

    fn tar(&self, stem: &str, is_ours: bool) -> anyhow::Result<()> {
        let xz = if is_ours { "xz -9" } else { "xz -0" };
        let mut tar = Command::new("tar");
        tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner"])
            .arg(format!("--mtime=@{}", time_of_source()))
            .arg("--directory")
            .arg(self.place.join("archives"))
            .args(["--use-compress-program", xz, "--create", "--file"])
            .arg(self.out.join(format!("{stem}.tar.xz")))
            .arg(stem);
        execute(&mut tar)
    }

    /// The Debian package, as `packetflix/Cargo.toml` describes it. It takes all from one folder.
    fn package(
        &self,
        system: System,
        program: &Path,
        unit: &str,
        libpcap: &str,
        is_ours: bool,
    ) -> anyhow::Result<()> {
        let deb = fresh(&self.place.join("deb"))?;
        copy(program, &deb.join("packetflix"))?;
        let (_, settings) = unit.split_once("[Unit]\n").context("a unit without its name")?;
        ensure!(settings.contains(BY_HAND), "the unit starts something else");
        fs::write(
            deb.join("packetflix.service"),
            format!("[Unit]\n{}", settings.replace(BY_HAND, PACKAGED)),
        )?;
        let mut terms = String::new();
        for file in ["LICENSE-MIT", "LICENSE-APACHE"] {
            terms += &fs::read_to_string(root().join(file))?;
            terms += "\n";
        }
        fs::write(deb.join("copyright"), terms + libpcap)?;
        let mut package = Command::new(setup::cargo_deb()?);
        package
            .current_dir(root())
            .env("SOURCE_DATE_EPOCH", time_of_source())
            .args(["--package=packetflix", "--no-build", "--no-strip", "--locked"])
            // What was not built here is packed to be tried.
            .args((!is_ours).then_some("--fast"))
            .arg(format!("--target={}", system.target()))
            .arg("--output")
            .arg(&self.out);
        execute(&mut package)
    }

    /// Writes the checksums, and says how large everything is.
    fn sum(&self) -> anyhow::Result<()> {
        let names = names(&self.out)?;
        ensure!(!names.is_empty(), "nothing was made");
        let sum = |program: &[&str]| {
            output_of(
                Command::new(program[0])
                    .args(&program[1..])
                    .current_dir(&self.out)
                    .args(&names),
            )
        };
        // The latter on macOS.
        let sums = sum(&["sha256sum"]).or_else(|| sum(&["shasum", "-a", "256"]));
        let sums = sums.context("sha256sum fails")?;
        fs::write(self.out.join(SUMS), sums)?;
        for name in &names {
            let size = fs::metadata(self.out.join(name))?.len();
            eprintln!("xtask: {size:>9} bytes  {name}");
        }
        eprintln!("xtask: {}", self.out.display());
        Ok(())
    }
}

fn build(cargo: &mut Command, verb: &str, system: System) -> anyhow::Result<()> {
    if let Some(commit) = revision() {
        cargo.env("PACKETFLIX_COMMIT", commit);
    }
    execute(
        cargo
            .args([verb, "--locked", "--package=packetflix", "--bin=packetflix"])
            .arg(format!("--profile={PROFILE}"))
            .arg(format!("--target={}", system.target())),
    )
}

/// When the commit was made that is checked out, in seconds of Unix: what is in an archive is as old.
fn time_of_source() -> String {
    let told = output_of(
        Command::new("git")
            .current_dir(root())
            .args(["log", "-1", "--format=%ct"]),
    );
    told.map_or_else(|| "0".to_owned(), |time| time.trim().to_owned())
}

/// A folder with nothing in it.
fn fresh(folder: &Path) -> anyhow::Result<PathBuf> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    Ok(folder.to_owned())
}

/// The names of the files in a folder, in their order.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<String> = entries
        .iter()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn copy_all(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for name in names(from)? {
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_name_the_files_as_they_are_made() {
        let architecture = Architecture::Amd64.name();
        let package = format!("packetflix_{VERSION}-1_{architecture}.deb");
        for page in ["README.md", "docs/install.md"] {
            let text = fs::read_to_string(root().join(page)).unwrap();
            let made = [System::LinuxAmd64, System::WindowsAmd64].map(System::stem);
            for name in made.iter().chain([&package]) {
                assert!(text.contains(name.as_str()), "{page}: {name}");
            }
        }
        let described = fs::read_to_string(root().join("packetflix/Cargo.toml")).unwrap();
        let (major, minor) = verify::GLIBC;
        assert!(described.contains(&format!("libc6 (>= {major}.{minor})")));
    }

    #[test]
    fn the_package_starts_the_program_where_it_puts_it() {
        let unit = fs::read_to_string(root().join("deploy/systemd/packetflix.service")).unwrap();
        assert_eq!(unit.matches("ExecStart=").count(), 1);
        assert!(unit.contains(&format!("{BY_HAND}\n")), "{unit}");
        let described = fs::read_to_string(root().join("packetflix/Cargo.toml")).unwrap();
        assert!(described.contains("\"usr/bin/\", \"755\""), "{described}");
        assert_eq!(PACKAGED, "ExecStart=/usr/bin/packetflix");
    }
}
