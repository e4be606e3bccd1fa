//! `cargo xtask image`

use std::{
    fs,
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

/// What libpcap looks names up in, for `--resolve-filter-names`; left out where it is missing.
const NAMES: [&str; 2] = ["/etc/protocols", "/etc/services"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Name of the image
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
    execute(
        Command::new("docker")
            .env("DOCKER_BUILDKIT", "1")
            .args([
                "build",
                "--build-arg",
                "ROOT=prebuilt",
                "--tag",
                &args.tag,
                "--file",
            ])
            .arg(root().join("deploy/Dockerfile"))
            .arg(&context),
    )
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
    for library in libraries(program)? {
        copy(&library, &library)?;
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
