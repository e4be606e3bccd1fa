//! `cargo xtask image`

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};

use crate::{
    build_ebpf::build_ebpf,
    run::build_programs,
    setup,
    shell::{execute, output_of, root},
};

/// What the program file gives to the user that it runs as. Permitted, and not effective: so the program starts where a
/// container may have fewer, and says which is missing.
const CAPABILITIES: &str = "cap_sys_admin,cap_net_raw,cap_sys_ptrace,cap_dac_override,cap_net_admin=p";

/// Where the image's libraries come from, for those who look for faults in them.
const RELEASE: &str = "/etc/os-release";

/// Where scanners look for the packages of an image that has no package manager, a file for each.
const PACKAGES: &str = "/var/lib/dpkg/status.d";

/// What libpcap looks names up in, for `--resolve-filter-names`; left out where it is missing.
const NAMES: [&str; 2] = ["/etc/protocols", "/etc/services"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the image, which also gets the version as a tag unless it has one
    #[arg(long, default_value = "packetflix")]
    tag: String,
    /// Take this program, instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Put the files of the image into this folder, and make no image
    #[arg(long, value_name = "FOLDER")]
    root: Option<PathBuf>,
}

/// Makes the image of this machine's own files: the program, the libraries that it is linked with, and no more. No
/// registry is asked for anything.
///
/// # Errors
/// When something does not build, or may not be done: giving capabilities to a file takes root.
pub(crate) fn image(args: &Args) -> anyhow::Result<()> {
    setup::image_tools()?;
    if args.root.is_none() {
        setup::image_builder()?;
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => {
            build_ebpf()?;
            build_programs()?;
            root().join("target/release/packetflix")
        }
    };
    if let Some(folder) = &args.root {
        return gather(&program, folder);
    }
    let context = root().join("target/image");
    if context.exists() {
        fs::remove_dir_all(&context)?;
    }
    let files = context.join("root");
    gather(&program, &files)?;
    // A folder would lose the capabilities on its way to the engine.
    execute(
        Command::new("tar")
            .args([
                "--xattrs",
                "--xattrs-include=security.capability",
                "--owner=0",
                "--group=0",
            ])
            .arg("--directory")
            .arg(&files)
            .arg("--create")
            .arg("--file")
            .arg(context.join("root.tar"))
            .arg("."),
    )?;
    fs::write(context.join(".dockerignore"), "root\n")?;
    let mut build = Command::new("docker");
    build
        .env("DOCKER_BUILDKIT", "1")
        .args(["build", "--build-arg", "ROOT=prebuilt"]);
    build.args(["--build-arg", concat!("VERSION=", env!("CARGO_PKG_VERSION"))]);
    if let Some(revision) = revision() {
        build.arg("--build-arg").arg(format!("REVISION={revision}"));
    }
    if let Some(source) = source() {
        build.arg("--build-arg").arg(format!("SOURCE={source}"));
    }
    for tag in tags(&args.tag) {
        build.arg("--tag").arg(tag);
    }
    execute(
        build
            .arg("--file")
            .arg(root().join("deploy/Dockerfile"))
            .arg(&context),
    )
}

/// The names of the image: one with the version, and as it is; or just the one that was asked for, where that has a tag.
fn tags(name: &str) -> Vec<String> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') {
        return vec![name.to_owned()];
    }
    vec![
        format!("{name}:{}", env!("CARGO_PKG_VERSION")),
        format!("{name}:latest"),
    ]
}

/// Where the source comes from, if that is a public address, and has no name or password in it.
fn source() -> Option<String> {
    let remote = output_of(
        Command::new("git")
            .current_dir(root())
            .args(["remote", "get-url", "origin"]),
    )?;
    let address = remote.trim();
    (address.starts_with("https://") && !address.contains('@')).then(|| address.to_owned())
}

/// The commit that is checked out, and whether files differ from it; or what the variable says that the program is told it by.
pub(crate) fn revision() -> Option<String> {
    if let Ok(told) = env::var("PACKETFLIX_COMMIT") {
        return Some(told);
    }
    let git = |arguments: &[&str]| output_of(Command::new("git").current_dir(root()).args(arguments));
    let commit = git(&["rev-parse", "HEAD"])?;
    let is_altered = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let mark = if is_altered.is_empty() { "" } else { "-altered" };
    Some(format!("{}{mark}", commit.trim()))
}

/// Copies the program and what it needs below `folder`, each to its place.
fn gather(program: &Path, folder: &Path) -> anyhow::Result<()> {
    let copy = |from: &Path, to: &Path| {
        let to = folder.join(to.strip_prefix("/").unwrap_or(to));
        fs::create_dir_all(to.parent().context("a file without a folder")?)?;
        fs::copy(from, &to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        anyhow::Ok(to)
    };
    let copied = copy(program, Path::new("/packetflix"))?;
    // Four fifths of it are for who debugs.
    execute(Command::new("strip").arg(&copied))?;
    let mut packages = BTreeSet::new();
    for library in libraries(program)? {
        copy(&library, &library)?;
        packages.extend(package_of(&library));
    }
    if packages.is_empty() {
        eprintln!(
            "xtask: nobody knows the packages of the libraries: scanners will not see them in the image"
        );
    } else {
        copy(Path::new(RELEASE), Path::new(RELEASE))?;
    }
    for package in packages {
        let status = output_of(Command::new("dpkg-query").args(["--status", &package]))
            .with_context(|| format!("dpkg knows nothing of {package}"))?;
        let name = package.split(':').next().unwrap_or(&package);
        let file = folder.join(PACKAGES.trim_start_matches('/')).join(name);
        fs::create_dir_all(file.parent().context("a file without a folder")?)?;
        fs::write(file, status)?;
        let terms = Path::new("/usr/share/doc").join(name).join("copyright");
        if terms.exists() {
            copy(&terms, &terms)?;
        }
    }
    for file in NAMES.map(Path::new).into_iter().filter(|file| file.exists()) {
        copy(file, file)?;
    }
    execute(Command::new("setcap").arg(CAPABILITIES).arg(copied))
        .context("the program file could not be given its capabilities, which takes root")
}

/// The libraries that the loader would take, and the loader itself.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let printed = output_of(Command::new("ldd").arg(program))
        .with_context(|| format!("ldd does not take {} apart", program.display()))?;
    ensure!(!printed.contains("not found"), "libraries are missing: {printed}");
    // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)`; what has no path is no file.
    let paths = printed.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(paths.map(PathBuf::from).collect())
}

/// The Debian package that a library comes from, if it does; with its architecture where there are several.
fn package_of(library: &Path) -> Option<String> {
    let owner = |path: &Path| output_of(Command::new("dpkg-query").arg("--search").arg(path));
    let whole = library.canonicalize().ok()?;
    // It is in the list as it was packed: in `/lib`, or in `/usr/lib`, which by now are one.
    let without = |path: &Path| {
        path.strip_prefix("/usr")
            .ok()
            .map(|rest| Path::new("/").join(rest))
    };
    let printed = owner(&whole)
        .or_else(|| owner(library))
        .or_else(|| owner(&without(&whole)?))?;
    printed.split_once(": ").map(|(package, _)| package.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_a_tag_with_the_version_unless_they_have_one() {
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            tags("host:5000/packetflix"),
            [
                format!("host:5000/packetflix:{version}"),
                "host:5000/packetflix:latest".to_owned()
            ]
        );
        assert_eq!(tags("host:5000/packetflix:7"), ["host:5000/packetflix:7"]);
    }
}
