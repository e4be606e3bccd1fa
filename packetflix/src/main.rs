//! The program: server and client; on systems other than Linux the client alone.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    linux::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    use clap::{CommandFactory as _, FromArgMatches as _};
    use packetflix_client::cli::{Program, arguments, run};

    let command = Program::command();
    let given = command
        .clone()
        .long_version(version(""))
        .get_matches_from(arguments());
    let program = Program::from_arg_matches(&given).unwrap_or_else(|error| error.exit());
    run(&program.verb, command, None)
}

/// What is said of this program for `--version`, beside its name.
fn version(object: &str) -> &'static str {
    let program = concat!(env!("CARGO_PKG_VERSION"), "\ncommit ", env!("PACKETFLIX_COMMIT"));
    (program.to_owned() + object).leak()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{
        ffi::OsString,
        io::{self, Write as _},
        process::ExitCode,
        sync::Arc,
    };

    use clap::{CommandFactory as _, FromArgMatches as _, Subcommand as _};
    use packetflix::{
        check,
        cli::{self, Args, Command, FrontendArgs, GatewayArgs, Verb},
        config::Config,
        gateway::{Gateway, GatewayConfig},
        http,
        keeper::Keeper,
        local,
        logging::{self, LogFormat},
        service::App,
        tap,
    };
    use packetflix_client::cli as client;
    use tokio::signal::unix::{SignalKind, signal};

    /// Exit status of a program that was called with flags that there are not.
    const USAGE: u8 = 2;

    pub(super) fn main() -> ExitCode {
        let arguments = client::arguments();
        let first = arguments.get(1).and_then(|word| word.to_str());
        if first.is_some_and(client::Verb::has_subcommand) {
            settle_client();
        } else if first == Some("gateway") {
            settle_gateway();
        } else {
            settle();
            let helped = packetflix::filter::answer_if_asked(std::env::args_os())
                .or_else(|| packetflix::netns::read_mounts_if_asked(std::env::args_os()))
                .or_else(|| packetflix::ask_engine_if_asked(std::env::args_os()))
                .or_else(|| packetflix::give_up_if_asked(std::env::args_os()));
            if let Some(status) = helped {
                return status;
            }
        }
        packetflix::limit_allocator_arenas();
        let Command { verb, args } = match parse(arguments) {
            Ok(command) => command,
            // What was asked for: the flags, or the version.
            Err(told) if !told.use_stderr() => {
                return told.print().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
            }
            Err(error) => {
                complain(&cli::sentence_of(&error));
                return ExitCode::from(USAGE);
            }
        };
        let done = match verb {
            Some(Verb::Client(verb)) => Ok(client::run(&verb, Command::command(), Some(local::start))),
            Some(Verb::Check { live: true, args, .. }) => ask(&args),
            Some(Verb::Check { json, args, .. }) => report(&args, json),
            Some(Verb::Gateway(args)) => {
                let GatewayArgs { frontend, .. } = &*args;
                logged(frontend, || run_gateway(&args))
            }
            Some(Verb::Serve(args)) => logged(&args.frontend, || run(&args)),
            None => logged(&args.frontend, || run(&args)),
        };
        done.unwrap_or_else(|error| {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        })
    }

    fn parse(arguments: Vec<OsString>) -> Result<Command, clap::Error> {
        let abi = tap::object_abi().map_or_else(|| "unknown".to_owned(), |abi| abi.to_string());
        let architecture = std::env::consts::ARCH;
        let object = format!("\neBPF object for {architecture}, ABI {abi}");
        let mut command = Command::command().long_version(super::version(&object));
        let given = command.try_get_matches_from_mut(arguments)?;
        Command::from_arg_matches(&given).map_err(|error| error.format(&mut command))
    }

    /// Prepares the process of a client. It stays as its user has started it, but for what would keep it from starting others,
    /// and has no rights of its own.
    fn settle_client() {
        if let Err(error) = packetflix::settle_inherited_signals() {
            complain(&format!("signals are as they were inherited: {error}"));
        }
    }

    /// Prepares the process of a gateway, which takes no rights of the kernel.
    fn settle_gateway() {
        if let Err(error) = packetflix::settle_inherited_state() {
            complain(&format!(
                "signals and permissions are as they were inherited: {error}"
            ));
        }
    }

    /// Prepares the process of a server.
    fn settle() {
        if let Err(error) = packetflix::settle_inherited_state() {
            complain(&format!(
                "signals and permissions are as they were inherited: {error}"
            ));
        }
        if let Err(error) = packetflix::capabilities::raise() {
            complain(&format!(
                "the capabilities of this process could not be made effective: {error}"
            ));
        }
    }

    /// Says why the program does not do what it was to do.
    fn complain(sentence: &str) {
        // Nobody reads it where it cannot be written.
        let _ = writeln!(io::stderr(), "packetflix: {sentence}");
    }

    /// Says what works on this machine.
    fn report(args: &Args, json: bool) -> anyhow::Result<ExitCode> {
        if args.frontend.debug {
            logging::init(args.frontend.log());
        }
        let config = Config::try_from(args)?;
        let _ = packetflix::raise_limits();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let report = runtime.block_on(check::run(&config));
        let text = if json {
            serde_json::to_string_pretty(&report)? + "\n"
        } else {
            report.to_string()
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(ExitCode::from(u8::from(!report.captures)))
    }

    /// Asks the service that runs whether it lives.
    fn ask(args: &Args) -> anyhow::Result<ExitCode> {
        let config = Config::try_from(args)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(http::live(&config))?;
        Ok(ExitCode::SUCCESS)
    }

    /// Serves. What stops the start is told to people as all that is wrong with flags is, and to programs that read the log as
    /// a line of that.
    fn logged(args: &FrontendArgs, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<ExitCode> {
        #[expect(unsafe_code, reason = "whoever started this may have left it descriptors")]
        // SAFETY: nothing has been opened yet.
        unsafe { packetflix::close_inherited_descriptors() }?;
        logging::init(args.log());
        match run() {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) if args.log_format == LogFormat::Json => {
                tracing::error!("{error:#}");
                Ok(ExitCode::FAILURE)
            }
            Err(error) => Err(error),
        }
    }

    fn run(args: &Args) -> anyhow::Result<()> {
        let config = Config::try_from(args)?;
        if let Err(error) = packetflix::raise_limits() {
            tracing::warn!(%error, "the bounds of resources could not be raised");
        }
        check::log_what_does_not_work(&config);
        let mut entrance = http::Entrance::open(&config.frontend)?;
        let files = entrance.leave_files();
        let keeper = Keeper::fork(&config, || entrance.close(), || drop(files))?;
        let config = Arc::new(config);
        let build = async || {
            let server = http::Server::new(App::build(config, &keeper)?, entrance).await?;
            keeper.log();
            Ok(server)
        };
        serve(build, keeper.ended())?;
        Ok(keeper.end()?)
    }

    fn run_gateway(args: &GatewayArgs) -> anyhow::Result<()> {
        let config = GatewayConfig::try_from(args)?;
        if let Err(error) = packetflix::raise_limits() {
            tracing::warn!(%error, "the bounds of resources could not be raised");
        }
        let entrance = http::Entrance::open(&config.frontend)?;
        let build = async || Ok(http::Server::of_gateway(Gateway::build(config)?, entrance)?);
        serve(build, std::future::pending())
    }

    /// Makes a server, and serves until signals end it, or it cannot go on.
    fn serve(
        make: impl AsyncFnOnce() -> anyhow::Result<http::Server>,
        is_broken: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            // It ends nothing from here on, not even the start.
            let mut hangup = signal(SignalKind::hangup())?;
            let server = make().await?;
            let mut terminate = signal(SignalKind::terminate())?;
            let mut interrupt = signal(SignalKind::interrupt())?;
            tokio::pin!(is_broken);
            let mut has_broken = false;
            let shutdown = async move || {
                tokio::select! {
                    () = &mut is_broken, if !has_broken => {
                        has_broken = true;
                        http::Shutdown::RightsLost
                    }
                    _ = terminate.recv() => http::Shutdown::Asked,
                    _ = interrupt.recv() => http::Shutdown::Asked,
                }
            };
            let hint = async move || {
                hangup.recv().await;
            };
            server.serve(shutdown, hint).await;
            anyhow::Ok(())
        })?;
        // Whatever still blocks a thread after the drain is not waited for.
        runtime.shutdown_background();
        Ok(())
    }
}
