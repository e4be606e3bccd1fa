//! The packetflix server.

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;
use packetflix::{
    check,
    cli::{Args, Command, Verb},
    config::Config,
    http, logging,
};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    if let Err(error) = packetflix::capabilities::raise() {
        eprintln!("packetflix: the capabilities of this process could not be made effective: {error}");
    }
    if let Some(status) = packetflix::filter::answer_if_asked(std::env::args_os()) {
        return status;
    }
    packetflix::limit_allocator_arenas();
    let Command { verb, args } = Command::parse();
    let done = match verb {
        Some(Verb::Check { json, args }) => report(&args, json),
        None => serve(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("packetflix: {error:#}");
        ExitCode::FAILURE
    })
}

/// Says what works on this machine.
fn report(args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    if args.debug {
        logging::init(args)?;
    }
    let config = Config::try_from(args)?;
    let _ = packetflix::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(check::run(&config));
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(ExitCode::from(u8::from(!report.captures)))
}

/// Serves, with a log from the first error on.
fn serve(args: &Args) -> anyhow::Result<ExitCode> {
    logging::init(args)?;
    Ok(run(args).map_or_else(
        |error| {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    ))
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    if let Err(error) = packetflix::raise_descriptor_limit() {
        tracing::warn!(%error, "the bound of open descriptors could not be raised");
    }
    check::log_what_does_not_work(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let doors = http::Doors::open(&config)?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        http::serve(doors, Arc::new(config), shutdown).await;
        anyhow::Ok(())
    })?;
    // Whatever still blocks a thread after the drain is not waited for.
    runtime.shutdown_background();
    Ok(())
}
