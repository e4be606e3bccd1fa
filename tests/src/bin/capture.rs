//! Streams a capture to standard output: `capture ws://HOST:PORT/capture?netns=NUMBER`. `PACKETFLIX_TOKEN` is sent as
//! the token; with `wss://`, `PACKETFLIX_CACERT` names the file of the CA that is trusted.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use packetflix_tests::{
    certificates::Trust,
    client::{Capture, Piece},
};
use tokio::{
    io::AsyncWriteExt as _,
    signal::ctrl_c,
    sync::mpsc::{Receiver, channel},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("capture: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn open(url: &str) -> anyhow::Result<Capture> {
    let token = std::env::var("PACKETFLIX_TOKEN").ok();
    let bearer = token.map(|token| format!("Bearer {token}"));
    let headers: Vec<(&str, &str)> = bearer
        .iter()
        .map(|bearer| ("authorization", bearer.as_str()))
        .collect();
    if !url.starts_with("wss://") {
        return Capture::open(url, &headers).await;
    }
    let authorities = std::env::var_os("PACKETFLIX_CACERT").context("name the CA with PACKETFLIX_CACERT")?;
    Capture::open_encrypted(url, &Trust::new(authorities.as_ref(), None)?, &headers).await
}

/// Each Ctrl-C. One that comes while a piece is written is not lost.
fn interrupts() -> Receiver<()> {
    let (sender, interrupts) = channel(1);
    tokio::spawn(async move { while ctrl_c().await.is_ok() && sender.send(()).await.is_ok() {} });
    interrupts
}

/// Ctrl-C asks for the rest of the stream, which is written; once more, and nothing else is waited for.
async fn run() -> anyhow::Result<()> {
    let url = std::env::args()
        .nth(1)
        .context("usage: capture ws://HOST:PORT/capture?netns=NUMBER")?;
    let mut capture = open(&url).await?;
    if let Some(note) = capture.answer("packetflix-note") {
        eprintln!("capture: {note}");
    }
    let mut out = tokio::io::stdout();
    let mut has_stopped = false;
    let mut interrupts = interrupts();
    loop {
        let piece = tokio::select! {
            piece = capture.next() => piece?,
            Some(()) = interrupts.recv() => {
                if has_stopped {
                    capture.close().await?;
                } else {
                    capture.stop().await?;
                }
                has_stopped = true;
                continue;
            }
        };
        match piece {
            Piece::Data(data) => {
                out.write_all(&data).await?;
                out.flush().await?;
            }
            Piece::Closed(1000, reason) => {
                eprintln!("capture: {reason}");
                return Ok(());
            }
            Piece::Closed(code, reason) => bail!("{reason} ({code})"),
        }
    }
}
