//! Puts the program where Wireshark looks for one, for this user, and takes it away again.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::{
    error::{Failure, Status},
    list::print,
};

/// Name of the program there, by which it knows that Wireshark calls it.
pub(crate) const LAUNCHER: &str = "packetflix-extcap";

/// Why it cannot be put there.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstallError {
    #[error("there is no folder of this user's: set {HOME}")]
    Nowhere,
    #[error("this program does not know where it is")]
    Program(#[source] io::Error),
    #[error("{} cannot be made", .0.display())]
    Make(PathBuf, #[source] io::Error),
    #[error("{} cannot be taken away", .0.display())]
    Remove(PathBuf, #[source] io::Error),
}

/// Variable that names the folder of a user's programs and configuration.
pub(super) const HOME: &str = if cfg!(windows) { "APPDATA" } else { "HOME" };

/// Has Wireshark find the program, and browsers open its addresses; says what was done.
///
/// # Errors
/// When a file cannot be made.
pub(super) fn install() -> Result<Status, Failure> {
    let program = env::current_exe()
        .and_then(fs::canonicalize)
        .map_err(|error| Failure::usage(InstallError::Program(error)))?;
    for launcher in launchers().map_err(Failure::usage)? {
        put(&program, &launcher).map_err(Failure::usage)?;
        print(&format!("Wireshark finds packetflix at {}\n", launcher.display()))?;
    }
    #[cfg(target_os = "linux")]
    print(&super::handler::install(&program).map_err(Failure::usage)?)?;
    Ok(Status::Done)
}

/// Takes away what [`install`] has put somewhere; says what was done.
///
/// # Errors
/// When a file cannot be taken away.
pub(super) fn uninstall() -> Result<Status, Failure> {
    let mut files = launchers().map_err(Failure::usage)?;
    #[cfg(target_os = "linux")]
    files.push(super::handler::file().map_err(Failure::usage)?);
    files.retain(|file| file.symlink_metadata().is_ok());
    for file in &files {
        fs::remove_file(file).map_err(|error| Failure::usage(InstallError::Remove(file.clone(), error)))?;
        print(&format!("took away {}\n", file.display()))?;
    }
    if files.is_empty() {
        print("nothing was installed for this user\n")?;
    }
    Ok(Status::Done)
}

/// Whether Wireshark finds the program.
pub(crate) fn is_installed() -> bool {
    launchers().is_ok_and(|launchers| launchers.iter().any(|launcher| launcher.exists()))
}

/// Where Wireshark looks: since 4.2 beside the user's other plugins, before that beside the user's configuration. No version
/// looks at both.
fn launchers() -> Result<Vec<PathBuf>, InstallError> {
    let home = folder(HOME).ok_or(InstallError::Nowhere)?;
    let folders = if cfg!(windows) {
        vec![home.join("Wireshark")]
    } else {
        let configuration = folder("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
        vec![home.join(".local/lib/wireshark"), configuration.join("wireshark")]
    };
    let name = format!("{LAUNCHER}{}", env::consts::EXE_SUFFIX);
    Ok(folders
        .into_iter()
        .map(|folder| folder.join("extcap").join(&name))
        .collect())
}

pub(super) fn folder(variable: &str) -> Option<PathBuf> {
    env::var_os(variable)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

fn put(program: &Path, launcher: &Path) -> Result<(), InstallError> {
    let made = || {
        if let Some(folder) = launcher.parent() {
            fs::create_dir_all(folder)?;
        }
        if launcher.symlink_metadata().is_ok() {
            fs::remove_file(launcher)?;
        }
        link(program, launcher)
    };
    made().map_err(|error| InstallError::Make(launcher.to_owned(), error))
}

#[cfg(unix)]
fn link(program: &Path, launcher: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(program, launcher)
}

/// A copy: links take rights there that users do not have.
#[cfg(not(unix))]
fn link(program: &Path, launcher: &Path) -> io::Result<()> {
    fs::copy(program, launcher).map(|_| ())
}
