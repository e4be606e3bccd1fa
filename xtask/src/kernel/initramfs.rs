//! What a kernel starts with: busybox and the modules by which it reaches its root, which the host shares with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, ensure};

use super::fetch::Unpacked;

/// Modules that reach the shares of the host. What they need is found by `modules.dep`.
const MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// The shares, by their tags.
pub(crate) const ROOT_SHARE: &str = "root";
pub(crate) const MODULES_SHARE: &str = "modules";
pub(crate) const WORKSPACE_SHARE: &str = "workspace";
pub(crate) const RESULTS_SHARE: &str = "results";

/// Where the guest finds the folder that it shares with the host, and writes what came of the tests.
pub(crate) const RESULTS: &str = "/run/results";

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

/// An archive of files, as the kernel unpacks it: `cpio`'s "new ASCII" format
/// (`Documentation/driver-api/early-userspace/buffer-format.rst` of the kernel).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> anyhow::Result<()> {
        self.entries += 1;
        let (inode, links, size) = (self.entries, 1, u32::try_from(content.len())?);
        let name_size = u32::try_from(name.len() + 1)?;
        let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> anyhow::Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

/// Writes the initramfs. `command` is what the guest does in the end, in its root.
///
/// # Errors
/// When a module is not to be found, or busybox is no static program.
pub(crate) fn write(
    file: &Path,
    kernel: &Unpacked,
    busybox: &Path,
    workspace: &Path,
    command: &str,
) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "modules", "lower", "upper", "root"] {
        archive.add(folder, FOLDER, &[])?;
    }
    let program = fs::read(busybox).with_context(|| format!("cannot read {}", busybox.display()))?;
    archive.add("bin/busybox", PROGRAM, &program)?;
    for (number, module) in modules_in_order(&kernel.modules)?.iter().enumerate() {
        let content = read_module(&kernel.modules.join(module))?;
        archive.add(&format!("modules/{number:03}.ko"), PROGRAM, &content)?;
    }
    let release = kernel.modules.file_name().context("modules of no release")?;
    let init = init(&release.to_string_lossy(), workspace, command);
    archive.add("init", PROGRAM, init.as_bytes())?;
    fs::write(file, archive.finish()?).with_context(|| format!("cannot write {}", file.display()))
}

/// The first process. The root cannot be written to, and neither it nor the host notices what the guest writes: that is
/// in memory.
fn init(release: &str, workspace: &Path, command: &str) -> String {
    let workspace = workspace.display();
    format!(
        r#"#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
# Each stands before those that need it.
for module in /modules/*; do insmod $module || echo "insmod $module failed"; done
share() {{ mkdir -p "$2" && mount -t 9p -o "trans=virtio,version=9p2000.L,msize=262144,$3" "$1" "$2"; }}
share {ROOT_SHARE} /lower ro,cache=loose
mount -t tmpfs none /upper
mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work none /root
for folder in run tmp mnt; do mkdir -p /root/$folder && mount -t tmpfs none /root/$folder; done
share {WORKSPACE_SHARE} "/root{workspace}" ro,cache=loose
share {MODULES_SHARE} "/root/lib/modules/{release}" ro,cache=loose
share {RESULTS_SHARE} /root{RESULTS} rw,cache=none
for folder in proc sys dev; do mkdir -p /root/$folder && mount --move /$folder /root/$folder; done
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
exec switch_root /root /bin/sh -c 'ulimit -n 65536; ulimit -l unlimited; {command}; sync; echo o >/proc/sysrq-trigger; sleep 60'
"#
    )
}

/// Files of the modules, each behind those that it needs.
fn modules_in_order(modules: &Path) -> anyhow::Result<Vec<String>> {
    let read = |name| fs::read_to_string(modules.join(name)).with_context(|| format!("cannot read {name}"));
    in_order(&read("modules.dep")?, &read("modules.builtin")?)
}

/// `modules.dep` has lines of a module's file, a colon, and all that it needs, of which the last is to be loaded first.
fn in_order(dependencies: &str, built_in: &str) -> anyhow::Result<Vec<String>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let known: BTreeMap<String, (&str, &str)> = lines
        .map(|(file, needs)| (name_of(file), (file, needs)))
        .collect();
    let built_in: BTreeSet<String> = built_in.lines().map(name_of).collect();
    let mut order: Vec<String> = Vec::new();
    for module in MODULES {
        let Some((file, needs)) = known.get(module) else {
            ensure!(
                built_in.contains(module),
                "the kernel has no {module}, by which the guest reaches the host"
            );
            continue;
        };
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !order.iter().any(|present| present == file) {
                order.push(file.to_owned());
            }
        }
    }
    Ok(order)
}

/// A module's name, by its file.
fn name_of(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name).replace('-', "_")
}

/// A module as the kernel takes it.
fn read_module(file: &Path) -> anyhow::Result<Vec<u8>> {
    if file.extension().is_none_or(|end| end != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context("cannot start xz")?;
    ensure!(output.status.success(), "xz cannot unpack {}", file.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::{Archive, in_order};

    #[test]
    fn modules_come_behind_what_they_need() -> anyhow::Result<()> {
        let dependencies = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko
kernel/fs/overlayfs/overlay.ko:
kernel/drivers/net/dummy.ko:
kernel/drivers/virtio/virtio-mem.ko:
";
        let built_in = "kernel/drivers/virtio/virtio_pci.ko\n";
        assert_eq!(
            in_order(dependencies, built_in)?,
            [
                "kernel/drivers/virtio/virtio.ko",
                "kernel/net/9p/9pnet.ko",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs/netfs.ko",
                "kernel/fs/9p/9p.ko",
                "kernel/fs/overlayfs/overlay.ko",
            ]
        );
        let missing = in_order(dependencies, "").map_err(|error| error.to_string());
        assert_eq!(
            missing,
            Err("the kernel has no virtio_pci, by which the guest reaches the host".to_owned())
        );
        Ok(())
    }

    #[test]
    fn archives_are_aligned() -> anyhow::Result<()> {
        let mut archive = Archive::default();
        archive.add("init", 0o100_755, b"hello")?;
        let bytes = archive.finish()?;
        let text = String::from_utf8(bytes)?;
        assert_eq!(text.len() % 4, 0);
        assert_eq!(
            &text[..124],
            "070701000000010000\
             81ed00000000000000000000000100000000000000050000000000000000000000000000000000000005\
             00000000init\0\0hello\0\0\0"
        );
        Ok(())
    }
}
