//! The client for Windows, as Wine runs it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use packetflix_tests::{
    folder::Folder,
    namespace::{Namespace, output_of},
    recording::Recording,
    server::{Server, program, wait_until},
};

use crate::{Capture, read, send};

/// Where Debian has the programs that run those of Windows.
const WINE: &str = "/usr/lib/wine/wine64";
const WINE_SERVER: &str = "/usr/lib/wine/wineserver64";

/// The library with random numbers that Windows 10 has, and Wine only since 9.
const RANDOM: &str = "
#include <windows.h>
BOOLEAN NTAPI SystemFunction036(PVOID buffer, ULONG length);
__declspec(dllexport) BOOL WINAPI ProcessPrng(PBYTE buffer, SIZE_T length)
{
    return SystemFunction036(buffer, (ULONG)length);
}
";

/// A Windows with the client in the folder where it is started. What runs of it ends when dropped.
struct Windows {
    folder: Folder,
    url: String,
}

impl Windows {
    fn new(server: &Server) -> anyhow::Result<Self> {
        let folder = Folder::new()?;
        let client = program("x86_64-pc-windows-gnu/debug/packetflix.exe")?;
        fs::copy(client, folder.file("packetflix.exe"))?;
        fs::write(folder.file("random.c"), RANDOM)?;
        output_of(
            Command::new("x86_64-w64-mingw32-gcc")
                .current_dir(folder.path())
                .args(["-shared", "-o", "bcryptprimitives.dll", "random.c", "-ladvapi32"]),
        )?;
        let url = format!("http://127.0.0.1:{}", server.port());
        Ok(Self { folder, url })
    }

    /// A command line of the client.
    fn packetflix(&self, arguments: &[&str]) -> Command {
        let mut command = self.wine(WINE);
        command
            .arg("packetflix.exe")
            .args(arguments)
            .env("PACKETFLIX_SERVER", &self.url);
        command
    }

    fn wine(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(self.folder.path())
            .env("WINEPREFIX", self.folder.file("wine"))
            .env("WINEDEBUG", "-all")
            // It may have a window nowhere.
            .env_remove("DISPLAY")
            .stdin(Stdio::null());
        command
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.file(name)
    }

    /// Runs the client to its end, and gives its status and what it has said.
    fn told(&self, arguments: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = self.packetflix(arguments).output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        // It waits until all of it has ended.
        let _ = self.wine(WINE_SERVER).arg("--kill").status();
        let _ = self.wine(WINE_SERVER).arg("--wait").status();
    }
}

/// How many packets a file has, with all that belongs to it.
fn packets(file: &Path) -> anyhow::Result<usize> {
    let recording = read(file)?;
    recording.check_complete()?;
    Ok(recording.packets.len())
}

// One test, since to make a Windows takes ten seconds.
#[test]
fn the_client_for_windows_lists_captures_and_is_refused() -> anyhow::Result<()> {
    let namespace = Namespace::new()?;
    let server = Server::start(&[])?;
    let windows = Windows::new(&server)?;

    let list = output_of(&mut windows.packetflix(&["list"]))?;
    let row = list.lines().find(|row| row.contains(namespace.name()));
    let row = row.with_context(|| list.clone())?;
    for part in ["bindmount", &namespace.inode()?.to_string(), "lo 127.0.0.1/8"] {
        ensure!(row.contains(part), "{part}: {row}");
    }

    let limited = [
        "capture",
        namespace.name(),
        "-f",
        "udp dst port 9",
        "-c",
        "3",
        "-w",
        "limited.pcapng",
    ];
    let capture = Capture::start_by(&mut windows.packetflix(&limited))?;
    send(&namespace, 0..5)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 0, "{told}");
    assert!(told.contains("the limit of 3 packets is reached"), "{told}");
    assert!(
        told.contains("3 packets captured, 3 delivered, 0 dropped"),
        "{told}"
    );
    assert_eq!(packets(&windows.file("limited.pcapng"))?, 3);

    // Into a pipe, which nobody takes for a terminal.
    let piped = ["capture", namespace.name(), "-q", "-c", "2", "-w", "-"];
    let capture = windows.packetflix(&piped).stdout(Stdio::piped()).spawn()?;
    wait_until(Duration::from_secs(20), || {
        let (_, list) = server.get("/captures")?;
        Ok(list["captures"].as_array().is_some_and(|list| !list.is_empty()))
    })?;
    send(&namespace, 0..2)?;
    let output = capture.wait_with_output()?;
    let recording = Recording::parse(&output.stdout)?;
    recording.check_complete()?;
    assert_eq!((output.status.code(), recording.packets.len()), (Some(0), 2));

    // Ctrl-C, of which Wine tells its programs so.
    let capture =
        Capture::start_by(&mut windows.packetflix(&["capture", namespace.name(), "-w", "ended.pcapng"]))?;
    send(&namespace, 0..3)?;
    capture.signal(Signal::SIGINT)?;
    let (status, told) = capture.end()?;
    assert_eq!(status, 130, "{told}");
    assert!(
        told.contains("3 packets captured, 3 delivered, 0 dropped"),
        "{told}"
    );
    assert_eq!(packets(&windows.file("ended.pcapng"))?, 3);

    for (arguments, expected, sentence) in [
        (
            &["capture", "nobody", "-w", "refused.pcapng"][..],
            1,
            "there is no target nobody",
        ),
        (
            &[
                "capture",
                namespace.name(),
                "-f",
                "tcp tcp",
                "-w",
                "refused.pcapng",
            ],
            1,
            "can't parse filter expression",
        ),
        (
            &["list", "--server", "http://127.0.0.1:1"],
            1,
            "no server answers at http://127.0.0.1:1",
        ),
        (
            &["capture", namespace.name(), "-w", "limited.pcapng"],
            2,
            "limited.pcapng exists",
        ),
        (
            &["list", "--server", "unix:/run/packetflix.sock"],
            1,
            "reaches no Unix sockets",
        ),
    ] {
        let (status, told) = windows.told(arguments)?;
        assert!(
            status == Some(expected) && told.contains(sentence),
            "{arguments:?}: {status:?}: {told}"
        );
    }
    assert!(!windows.file("refused.pcapng").exists());
    Ok(())
}
