//! The client's verbs, as they stand on the command line.

use std::{
    env,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap_complete::Shell;

use crate::{
    capture::{CaptureArgs, capture},
    captures::{CapturesArgs, captures},
    dial::dial_stdio,
    error::{Failure, Status},
    extcap::{ExtcapArgs, extcap, install::LAUNCHER},
    list::{ListArgs, list, print},
    local::StartLocal,
    open::{OpenArgs, open},
    server::ServerArgs,
    servers::{ServersArgs, servers},
    terminal::say,
};

/// The program on systems that have no server.
#[derive(Clone, Debug, clap::Parser)]
#[command(
    name = "packetflix",
    version,
    about = "Captures the packets of container hosts"
)]
pub struct Program {
    /// What there is to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What a client does.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Verb {
    /// Capture the packets of a target: into a file, a pipe, or a program that reads pcapng
    Capture(Box<CaptureArgs>),
    /// List what there is to capture
    List(Box<ListArgs>),
    /// List who captures what, or end a capture
    Captures(Box<CapturesArgs>),
    /// Name servers in the configuration file
    Server(ServersArgs),
    /// Answer to Wireshark, which calls this for an interface in its list
    Extcap(Box<ExtcapArgs>),
    /// Start Wireshark on the address of a capture, as web pages give it
    Open(OpenArgs),
    /// Connect standard input and output with the server of this host, for clients that come by ssh
    DialStdio(Box<ServerArgs>),
    /// Print what a shell needs to complete this command line
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    Man {
        /// Write this page and one of each verb into a folder instead
        #[arg(long, value_name = "FOLDER")]
        out: Option<PathBuf>,
    },
}

/// The command line of this process. Where Wireshark has called it, by the name that it has there, the verb is added.
pub fn arguments() -> Vec<OsString> {
    with_verb(env::args_os().collect())
}

fn with_verb(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let name = arguments.first().map(Path::new).and_then(Path::file_stem);
    if name.is_some_and(|name| name == LAUNCHER) {
        arguments.insert(1, "extcap".into());
    }
    arguments
}

/// Does what is asked, and says why if that was not possible. `command` is the whole command line of the program, and `local`
/// starts a server in this process, where the program has one.
pub fn run(verb: &Verb, command: clap::Command, local: Option<StartLocal>) -> ExitCode {
    match follow(verb, command, local) {
        Ok(status) => status.into(),
        Err(failure) => {
            say(&failure);
            failure.status.into()
        }
    }
}

fn follow(verb: &Verb, command: clap::Command, local: Option<StartLocal>) -> Result<Status, Failure> {
    match verb {
        Verb::Capture(args) => block_on(capture(args, local)),
        Verb::List(args) => block_on(list(args, local)),
        Verb::Captures(args) => block_on(captures(args, local)),
        Verb::Server(args) => servers(args),
        Verb::Extcap(args) => block_on(extcap(args, local)),
        Verb::Open(args) => open(args),
        Verb::DialStdio(args) => block_on(dial_stdio(args, local)),
        Verb::Completions { shell } => complete(*shell, command),
        Verb::Man { out: None } => page(command),
        Verb::Man { out: Some(folder) } => pages(folder, command),
    }
}

/// Runs a verb on this thread, which may wait for disks and pipes; connections and signals have one of their own.
fn block_on(verb: impl Future<Output = Result<Status, Failure>>) -> Result<Status, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(Failure::refused)?;
    let done = runtime.block_on(verb);
    runtime.shutdown_background();
    done
}

fn complete(shell: Shell, mut command: clap::Command) -> Result<Status, Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Status::Done)
}

fn page(command: clap::Command) -> Result<Status, Failure> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command)
        .render(&mut page)
        .map_err(Failure::broken)?;
    print(&String::from_utf8_lossy(&page))?;
    Ok(Status::Done)
}

fn pages(folder: &Path, command: clap::Command) -> Result<Status, Failure> {
    let told =
        |error: io::Error| Failure::refused(format!("{} cannot be written: {error}", folder.display()));
    fs::create_dir_all(folder).map_err(told)?;
    clap_mangen::generate_to(command, folder).map_err(told)?;
    Ok(Status::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wireshark_calls_the_program_without_its_verb() {
        let words = |line: &str| -> Vec<OsString> { line.split(' ').map(OsString::from).collect() };
        let called = words("/home/me/extcap/packetflix-extcap --extcap-interfaces");
        let verb = words("/home/me/extcap/packetflix-extcap extcap --extcap-interfaces");
        assert_eq!(with_verb(called), verb);
        let typed = words("packetflix extcap install");
        assert_eq!(with_verb(typed.clone()), typed);
    }
}
