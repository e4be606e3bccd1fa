//! The packetflix server.

use std::{process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::Parser as _;
use packetflix::{
    cli::{Args, Command, Verb},
    config::Config,
    http,
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

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
        Some(Verb::Check { json, args }) => check(&args, json),
        None => {
            init_logging(args.debug);
            run(&args).map(|()| ExitCode::SUCCESS)
        }
    };
    match done {
        Ok(status) => status,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init_logging(debug: bool) {
    // Our own debugging is not that of the libraries, which tell of each relocation and each frame.
    let level = if debug {
        LevelFilter::DEBUG
    } else {
        LevelFilter::INFO
    };
    let targets = Targets::new()
        .with_default(LevelFilter::WARN)
        // It warns when a list of interfaces is cut off because its capture ends.
        .with_target("netlink_proto", LevelFilter::ERROR)
        .with_target("packetflix", level)
        .with_target("packetflix_ebpf", level);
    let output = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry()
        .with(output.with_filter(targets))
        .init();
}

/// Says what works on this machine.
fn check(args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    if args.debug {
        init_logging(true);
    }
    let config = Config::try_from(args)?;
    let _ = packetflix::raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(packetflix::check::run(&config));
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{report}");
    }
    Ok(if report.captures {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    if let Err(error) = packetflix::raise_descriptor_limit() {
        tracing::warn!(%error, "the bound of open descriptors could not be raised");
    }
    packetflix::check::log_what_does_not_work(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener =
            http::listen(args.port).with_context(|| format!("cannot listen on port {}", args.port))?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        http::serve(listener, Arc::new(config), shutdown).await;
        Ok(())
    })
}
