//! The one image that the tests' container engines have: a static busybox.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::namespace::run;

/// Name of the image. No engine looks elsewhere for an image of this host.
pub const IMAGE: &str = "localhost/packetflix-busybox";

/// Makes the image in `folder`, as an archive that `load` of docker and podman takes, and `import` of containerd.
/// Its command sleeps.
///
/// # Errors
/// When busybox is missing.
pub fn archive(folder: &Path) -> anyhow::Result<PathBuf> {
    let root = folder.join("root");
    fs::create_dir_all(root.join("bin"))?;
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    let layer = folder.join("layer.tar");
    tar(&layer, &root, &["."])?;
    let sum = run("sha256sum", &[path(&layer)?])?;
    let sum = sum.split(' ').next().context("no sum")?;

    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no name of images' for {other}"),
    };
    let config = format!(
        r#"{{"architecture": "{architecture}", "os": "linux",
            "config": {{"Cmd": ["/bin/busybox", "sleep", "86400"]}},
            "rootfs": {{"type": "layers", "diff_ids": ["sha256:{sum}"]}}}}"#
    );
    let manifest =
        format!(r#"[{{"Config": "config.json", "RepoTags": ["{IMAGE}:latest"], "Layers": ["layer.tar"]}}]"#);
    fs::write(folder.join("config.json"), config)?;
    fs::write(folder.join("manifest.json"), manifest)?;
    let archive = folder.join("busybox.tar");
    tar(&archive, folder, &["manifest.json", "config.json", "layer.tar"])?;
    Ok(archive)
}

fn tar(archive: &Path, folder: &Path, files: &[&str]) -> anyhow::Result<()> {
    let arguments = ["-C", path(folder)?, "-cf", path(archive)?];
    run("tar", &[&arguments, files].concat()).map(drop)
}

fn path(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
