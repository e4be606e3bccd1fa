//! What a container engine leaves behind when it is stopped.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{namespace::run, server::wait_until};

/// Kills the processes whose command line names this folder: each process that an engine starts for a container
/// does, and nobody else knows the folder. Waits until they are gone.
pub(crate) fn kill_processes_of(folder: &Path) {
    let _ = wait_until(Duration::from_secs(5), || {
        let left = processes_of(folder);
        for pid in &left {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        Ok(left.is_empty())
    });
}

fn processes_of(folder: &Path) -> Vec<Pid> {
    // With the slash, since the name may be the beginning of another one's.
    let folder = format!("{}/", folder.display());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            String::from_utf8_lossy(&line)
                .contains(&folder)
                .then(|| Pid::from_raw(pid))
        })
        .collect()
}

/// Unmounts what is mounted in this folder.
pub(crate) fn unmount_below(folder: &Path) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|mount| Path::new(mount).starts_with(folder));
    for mount in below.collect::<Vec<_>>().into_iter().rev() {
        let _ = run("umount", &["--lazy", mount]);
    }
}

/// Removes these control groups as far as they are empty, whichever version of control groups there is.
pub(crate) fn remove_control_groups(groups: &[&str]) {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = fs::read_dir(root).into_iter().flatten().flatten();
    let folders = controllers.map(|controller| controller.path());
    for folder in folders.chain([root.to_owned()]) {
        for group in groups {
            let _ = fs::remove_dir(folder.join(group));
        }
    }
}

/// Folders that an engine makes wherever it is told to be: those that were not there before are removed again,
/// unless something is in them.
pub(crate) struct SharedFolders(Vec<PathBuf>);

impl SharedFolders {
    /// Looks which of these are not there yet; innermost first.
    pub(crate) fn look(folders: &[&str]) -> Self {
        let missing = folders.iter().map(PathBuf::from);
        Self(missing.filter(|folder| !folder.exists()).collect())
    }

    /// Removes what an engine has left in those that were not there before, by these names.
    pub(crate) fn remove_files(&self, names: &[&str]) {
        for folder in &self.0 {
            for name in names {
                let _ = fs::remove_file(folder.join(name));
            }
        }
    }
}

impl Drop for SharedFolders {
    fn drop(&mut self) {
        for folder in &self.0 {
            let _ = fs::remove_dir(folder);
        }
    }
}
