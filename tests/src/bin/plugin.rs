//! An extcap program that behaves as Wireshark's plugin cshargextcap does: it writes the stream of the URL in the variable
//! `PLUGIN_URL` into Wireshark's pipe, closes the WebSocket once the pipe is broken, and then takes nothing but a close. For
//! anything else it prints an error, which Wireshark shows, and lingers for ten seconds.
//!
//! Source: cshargextcap, `capturestream.go` and `pipe/`; csharg, `capture.go` and `websock/`.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    os::fd::AsFd as _,
    time::Duration,
};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use packetflix_tests::client::{Capture, Piece};

/// How long the plugin waits for a close.
const LINGER: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |flag: &str| arguments.iter().any(|argument| argument == flag);
    if has("--extcap-interfaces") {
        println!("extcap {{version=1}}\ninterface {{value=plugin}}{{display=Captures by the tests}}");
        return Ok(());
    }
    if has("--extcap-dlts") {
        println!("dlt {{number=147}}{{name=remote}}{{display=remote container capture}}");
        return Ok(());
    }
    if !has("--capture") {
        return Ok(());
    }
    let mut fifo = arguments.iter().skip_while(|argument| *argument != "--fifo");
    let fifo = OpenOptions::new()
        .write(true)
        .open(fifo.nth(1).context("no pipe")?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(capture(fifo))
}

async fn capture(mut fifo: File) -> anyhow::Result<()> {
    let mut capture = Capture::open(&std::env::var("PLUGIN_URL")?, &[]).await?;
    let watched = fifo.try_clone()?;
    let mut broken = tokio::task::spawn_blocking(move || {
        let mut polled = [PollFd::new(watched.as_fd(), PollFlags::empty())];
        poll(&mut polled, PollTimeout::NONE)
    });
    loop {
        tokio::select! {
            _ = &mut broken => break,
            piece = capture.next() => match piece? {
                Piece::Data(data) => if fifo.write_all(&data).is_err() {
                    break;
                },
                Piece::Closed(..) => std::process::exit(0),
            },
        }
    }
    capture.close().await?;
    let piece = tokio::time::timeout(LINGER, capture.next()).await;
    if !matches!(piece, Ok(Ok(Piece::Closed(1000, _)))) {
        eprintln!("after the close there came {piece:?}");
        tokio::time::sleep(LINGER).await;
    }
    std::process::exit(0)
}
