//! `packetflix server`: the servers of the configuration file.

use std::{io, path::PathBuf};

use crate::{
    config::{Config, NamedServer, check_name, forget_token, keep_token},
    error::{Failure, Status},
    list::print,
    server::{Address, Token},
    table::table,
};

/// What becomes of the servers of the configuration file.
#[derive(Clone, Debug, clap::Args)]
pub struct ServersArgs {
    #[command(subcommand)]
    verb: ServersVerb,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum ServersVerb {
    /// Give a server a name, which --server takes in the place of its URL. The first one is the default
    Add(Box<AddArgs>),
    /// List the servers that have names
    List,
    /// Have a server meant where none is named
    Default {
        /// Its name
        name: String,
    },
    /// Forget a server, and the token that was kept for it
    Remove {
        /// Its name
        name: String,
    },
}

#[derive(Clone, Debug, clap::Args)]
struct AddArgs {
    /// Its name
    name: String,
    /// Where it is: http://HOST:PORT, https://HOST:PORT, ssh://[USER@]HOST or unix:/PATH
    url: String,
    /// Read its token from standard input, and keep it in a file that only this user may read
    #[arg(long, conflicts_with_all = ["token_file", "token_command"])]
    token_stdin: bool,
    /// File that has its token
    #[arg(long, value_name = "FILE", conflicts_with = "token_command")]
    token_file: Option<PathBuf>,
    /// Command of the system's shell that prints its token
    #[arg(long, value_name = "COMMAND")]
    token_command: Option<String>,
    /// Certificates of the CAs that are trusted, in PEM
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Certificate that is shown to it, in PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of that certificate, in PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Have it meant where none is named
    #[arg(long)]
    default: bool,
}

/// Adds, lists and removes servers.
///
/// # Errors
/// When the configuration cannot be read or written, or has no such server.
pub(crate) fn servers(args: &ServersArgs) -> Result<Status, Failure> {
    let mut config = Config::read().map_err(Failure::usage)?;
    // A token of ours that no server has any more. It goes once that is written.
    let mut forgotten = None;
    match &args.verb {
        ServersVerb::List => {
            print(&shown(&config))?;
            return Ok(Status::Done);
        }
        ServersVerb::Add(args) => {
            add(&mut config, args)?;
            forgotten = (!args.token_stdin).then_some(&args.name);
        }
        ServersVerb::Default { name } => {
            config.named(name).map_err(Failure::usage)?;
            config.default = Some(name.clone());
        }
        ServersVerb::Remove { name } => {
            config.named(name).map_err(Failure::usage)?;
            config.servers.remove(name);
            config.default.take_if(|default| default == name);
            forgotten = Some(name);
        }
    }
    config.write().map_err(Failure::usage)?;
    if let Some(name) = forgotten {
        forget_token(name, &config).map_err(Failure::usage)?;
    }
    Ok(Status::Done)
}

fn add(config: &mut Config, args: &AddArgs) -> Result<(), Failure> {
    check_name(&args.name).map_err(Failure::usage)?;
    args.url.parse::<Address>().map_err(Failure::usage)?;
    let token_file = match (args.token_stdin, &args.token_file) {
        (true, _) => {
            let text = io::read_to_string(io::stdin()).map_err(Failure::usage)?;
            let token = Token::parse(&text, "standard input").map_err(Failure::usage)?;
            Some(keep_token(&args.name, &token).map_err(Failure::usage)?)
        }
        (false, file) => file.as_ref().map(absolute).transpose()?,
    };
    let server = NamedServer {
        url: args.url.clone(),
        token_file,
        token_command: args.token_command.clone(),
        cacert: args.cacert.as_ref().map(absolute).transpose()?,
        cert: args.cert.as_ref().map(absolute).transpose()?,
        key: args.key.as_ref().map(absolute).transpose()?,
    };
    config.servers.insert(args.name.clone(), server);
    if args.default || config.servers.len() == 1 {
        config.default = Some(args.name.clone());
    }
    Ok(())
}

/// A path that means the same wherever the program is started.
fn absolute(path: &PathBuf) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(Failure::usage)
}

fn shown(config: &Config) -> String {
    let rows: Vec<Vec<String>> = config
        .servers
        .iter()
        .map(|(name, server)| {
            let is_default = config.default.as_ref() == Some(name);
            let token = match (&server.token_file, &server.token_command) {
                (Some(file), _) => file.display().to_string(),
                (None, Some(command)) => format!("from: {command}"),
                (None, None) => String::new(),
            };
            let default = if is_default { "yes" } else { "" };
            vec![name.clone(), server.url.clone(), default.to_owned(), token]
        })
        .collect();
    table(&["NAME", "URL", "DEFAULT", "TOKEN"], &rows)
}
