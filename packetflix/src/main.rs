//! The packetflix server.

use std::{process::ExitCode, sync::Arc};

use clap::Parser as _;
use packetflix::{cli::Args, config::Config, http};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::{
    Layer as _,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

fn main() -> ExitCode {
    if let Some(status) = packetflix::filter::answer_if_asked(std::env::args_os()) {
        return status;
    }
    packetflix::limit_allocator_arenas();
    let args = Args::parse();
    init_logging(args.debug);
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
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

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::try_from(args)?;
    if let Err(error) = packetflix::raise_descriptor_limit() {
        tracing::warn!(%error, "the bound of open descriptors could not be raised");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let doors = http::Doors::open(&config)?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        http::serve(doors, Arc::new(config), shutdown).await;
        Ok(())
    })
}
