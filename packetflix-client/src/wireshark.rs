//! Wireshark, started on a stream.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Where Wireshark is installed without being found by its name.
const PLACES: &[&str] = if cfg!(target_os = "macos") {
    &["/Applications/Wireshark.app/Contents/MacOS/Wireshark"]
} else if cfg!(windows) {
    &[
        r"C:\Program Files\Wireshark\Wireshark.exe",
        r"C:\Program Files (x86)\Wireshark\Wireshark.exe",
    ]
} else {
    &[]
};

/// Why Wireshark does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WiresharkError {
    /// It is not installed.
    #[error("Wireshark is not found: install it, or have it in PATH")]
    Missing,
    /// It cannot be started.
    #[error("{} cannot be started", .0.display())]
    Start(PathBuf, #[source] io::Error),
}

/// Starts Wireshark, which captures from its standard input at once. Ctrl-C is not for it.
///
/// # Errors
/// When it is not installed, or does not start.
pub(crate) fn start() -> Result<Child, WiresharkError> {
    spawn(&["-k", "-i", "-"], Stdio::piped())
}

/// Starts Wireshark, which captures at once from what it knows by a name, with one of its preferences.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_on(interface: &str, preference: &str) -> Result<Child, WiresharkError> {
    spawn(&["-k", "-i", interface, "-o", preference], Stdio::null())
}

fn spawn(arguments: &[&str], input: Stdio) -> Result<Child, WiresharkError> {
    let program = find(env::var_os("PATH")).ok_or(WiresharkError::Missing)?;
    let mut command = Command::new(&program);
    command.args(arguments).stdin(input);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    command
        .spawn()
        .map_err(|error| WiresharkError::Start(program, error))
}

fn find(path: Option<OsString>) -> Option<PathBuf> {
    let name = format!("wireshark{}", env::consts::EXE_SUFFIX);
    let path = path.unwrap_or_default();
    let named = env::split_paths(&path).map(|folder| folder.join(&name));
    let known = PLACES.iter().map(|place| Path::new(place).to_owned());
    named.chain(known).find(|program| program.is_file())
}
