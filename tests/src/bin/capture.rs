//! Streams a capture to standard output: `capture ws://HOST:PORT/capture?netns=NUMBER`.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use packetflix_tests::client::{Capture, Piece};
use tokio::{io::AsyncWriteExt as _, signal::ctrl_c};

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

/// Ctrl-C asks the server to end, and what it still sends is written.
async fn run() -> anyhow::Result<()> {
    let url = std::env::args()
        .nth(1)
        .context("usage: capture ws://HOST:PORT/capture?netns=NUMBER")?;
    let mut capture = Capture::open(&url, &[]).await?;
    let mut out = tokio::io::stdout();
    let mut closing = false;
    // Made once: a signal that comes while a piece is written is not lost.
    let mut interrupt = std::pin::pin!(ctrl_c());
    loop {
        let piece = tokio::select! {
            piece = capture.next() => piece?,
            _ = &mut interrupt, if !closing => {
                closing = true;
                capture.close().await?;
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
