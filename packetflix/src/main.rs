//! The packetflix server.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser as _;
use packetflix::{cli::Args, config::Config, http, logging};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    if let Some(status) = packetflix::filter::answer_if_asked(std::env::args_os()) {
        return status;
    }
    packetflix::limit_allocator_arenas();
    let args = Args::parse();
    if let Err(error) = logging::init(&args) {
        eprintln!("{:#}", anyhow::Error::from(error));
        return ExitCode::FAILURE;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    if let Err(error) = packetflix::raise_descriptor_limit() {
        tracing::warn!(%error, "the bound of open descriptors could not be raised");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            http::listen(args.port).with_context(|| format!("cannot listen on port {}", args.port))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        http::serve(listener, Arc::new(config), shutdown).await;
        anyhow::Ok(())
    })?;
    // Whatever still blocks a thread after the drain is not waited for.
    runtime.shutdown_background();
    Ok(())
}
