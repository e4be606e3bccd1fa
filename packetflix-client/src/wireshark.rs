//! Wireshark, started on a stream.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use tokio::time::{sleep, timeout};

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
    /// It ends by itself.
    #[error(
        "Wireshark has failed ({0}): what it says stands above. It takes a display (DISPLAY or WAYLAND_DISPLAY); without one, write a file \
         with -w"
    )]
    Failed(ExitStatus),
}

/// Starts Wireshark, which captures from its standard input at once. Ctrl-C is not for it.
///
/// # Errors
/// When it is not installed, or does not start.
pub(crate) fn start() -> Result<Child, WiresharkError> {
    spawn(&["-k", "-i", "-"], Stdio::piped())
}

/// How long Wireshark may take to end that reads nothing any more.
const END_PATIENCE: Duration = Duration::from_millis(500);
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Waits a little for the end of Wireshark, which need not end with the capture, and tells whether it has failed.
///
/// # Errors
/// When it has.
pub(crate) async fn end_of(mut wireshark: Child) -> Result<(), WiresharkError> {
    let ended = timeout(END_PATIENCE, async {
        loop {
            if let Some(status) = wireshark.try_wait().ok().flatten() {
                return status;
            }
            sleep(LOOK_INTERVAL).await;
        }
    });
    match ended.await {
        Ok(status) if !status.success() => Err(WiresharkError::Failed(status)),
        _ => Ok(()),
    }
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
