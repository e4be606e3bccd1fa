//! The command line: flags as they are given. What they amount to is [`Config`](crate::config::Config).

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{
    CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ContextValue},
    value_parser,
};

use crate::{
    logging::{LogConfig, LogFormat},
    nearest::nearest,
    tap::Hook,
    units::{parse_duration, parse_size},
};

/// What the program is to do: without a verb it serves.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "packetflix",
    version,
    about = "Packet capture as a service for container hosts",
    args_conflicts_with_subcommands = true
)]
pub struct Command {
    /// What else there is to do.
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// How to serve.
    #[command(flatten)]
    pub args: Args,
}

/// What there is to do beside serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Serve, as the program does without a verb
    Serve(Box<Args>),
    /// Try what captures take on this machine, and say what works, what does not, what that costs, and what to do;
    /// ends with 1 if captures cannot work
    Check {
        /// Report as JSON
        #[arg(long)]
        json: bool,
        /// Only ask the service that runs, and was started with the same flags and variables, whether it lives; ends with 1
        /// if it does not answer
        #[arg(long, conflicts_with = "json")]
        live: bool,
        /// How the service would be started.
        #[command(flatten)]
        args: Box<Args>,
    },
    /// Serve the captures of several hosts at one address: a gateway to the packetflix of each
    Gateway(Box<GatewayArgs>),
    /// What a client does.
    #[command(flatten)]
    Client(packetflix_client::cli::Verb),
}

/// Flags, each also as an environment variable. `docs/flags.md` has a table of them, which `cargo xtask docs` makes from here.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Who is let in, and how much they may have.
    #[command(flatten)]
    pub frontend: FrontendArgs,

    /// Name of this host, as its streams and lists have it. By default it is the name that the host calls itself
    #[arg(long, env = "PACKETFLIX_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Where in the kernel packets are seen
    #[arg(long, env = "PACKETFLIX_HOOK", value_enum, default_value_t = Hook::Socket)]
    pub hook: Hook,

    /// Size of one ring, such as 4MiB: a power of two from 512 KiB to 1 GiB (KiB, MiB and GiB are understood). A capture has a ring for
    /// each CPU that is online, and one more where further CPUs may come. By default these share 64 MiB, 1 to 32 MiB each,
    /// and less when --ring-memory gets scarce
    #[arg(long, env = "PACKETFLIX_RING_SIZE", value_name = "SIZE", value_parser = parse_size)]
    pub ring_size: Option<u64>,

    /// Most memory of the rings of all captures together. A sixteenth of it is kept for callers with the scope admin. By
    /// default it is an eighth of what the machine, or the control group of this process, has
    #[arg(long, env = "PACKETFLIX_RING_MEMORY", value_name = "SIZE", value_parser = parse_size)]
    pub ring_memory: Option<u64>,

    /// How many captures of one network namespace may run at the same time
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CAPTURES_PER_TARGET",
        value_name = "COUNT",
        default_value_t = 64
    )]
    pub max_captures_per_target: u16,

    /// How many packets a capture may have in a second, on all its interfaces, and as many at once after a pause. More are
    /// dropped in the kernel, and counted as dropped. By default it is any number
    #[arg(long, env = "PACKETFLIX_MAX_PACKET_RATE", value_name = "COUNT", value_parser = value_parser!(u64).range(1..))]
    pub max_packet_rate: Option<u64>,

    /// How many bytes of packets a capture may have in a second, such as 100MiB, of what snaplen= leaves of them (KiB, MiB
    /// and GiB are understood). Packets over that are dropped in the kernel, and counted as dropped. By default it is any
    /// number
    #[arg(long, env = "PACKETFLIX_MAX_BYTE_RATE", value_name = "SIZE", value_parser = parse_size)]
    pub max_byte_rate: Option<u64>,

    /// Host of the GhostWire discovery service that knows the targets [default: 127.0.0.1]. Without this, --gw-port
    /// and --proxy-discovery, packetflix finds the targets itself
    #[arg(long, env = "PACKETFLIX_DISCOVERY_SERVICE", value_name = "HOST")]
    pub discovery_service: Option<String>,

    /// TCP port of the discovery service [default: 5000]. The service does not start where that is its own port
    #[arg(long, env = "PACKETFLIX_GW_PORT", value_name = "PORT")]
    pub gw_port: Option<u16>,

    /// Hand requests for /discover/…, and all that are not for packetflix, to the discovery service
    #[arg(long, env = "PACKETFLIX_PROXY_DISCOVERY", value_parser = parse_switch)]
    pub proxy_discovery: bool,

    /// API socket of a container engine (Docker's API or the CRI) to ask beside those at well-known places. May be
    /// given more than once; in the variable, separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_ENGINE_SOCKET",
        value_name = "PATH",
        value_delimiter = ','
    )]
    pub engine_socket: Vec<PathBuf>,

    /// Let the names of hosts, networks, ports and protocols in filters be looked up, for which clients then make the
    /// server ask its resolver
    #[arg(long, env = "PACKETFLIX_RESOLVE_FILTER_NAMES", value_parser = parse_switch)]
    pub resolve_filter_names: bool,
}

/// Flags of whatever is asked over HTTP: where it listens, whom it lets in, how much these may have, and what is logged of it.
#[derive(Clone, Debug, clap::Args)]
pub struct FrontendArgs {
    /// TCP port, over IPv4 and IPv6. It is open at all addresses if callers have to show a token or a certificate
    /// (--token-file, --kubernetes-auth, --tls-client-ca), or if --open-to-everyone is given; else on loopback only. 0 takes any free port,
    /// which the log names
    #[arg(short, long, env = "PACKETFLIX_PORT", default_value_t = 5001, value_parser = parse_port)]
    pub port: u16,

    /// Where to listen instead: HOST:PORT, HOST (at --port), [ADDRESS]:PORT or unix:/PATH. [::] is all addresses. May be
    /// given more than once, with seven TCP ports at most; in the variable, separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,

    /// File of those who may use the service, a line each: NAME TOKEN [SCOPE…]. It is followed when it changes
    #[arg(long, env = "PACKETFLIX_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Ask the API server of Kubernetes whose tokens are that are not in the token file, and what these may capture. See
    /// docs/access.md
    #[arg(long, env = "PACKETFLIX_KUBERNETES_AUTH", value_parser = parse_switch)]
    pub kubernetes_auth: bool,

    /// URL of the API server, https://HOST:PORT. By default it is that of the cluster in which the service is a pod
    #[arg(long, env = "PACKETFLIX_KUBERNETES_API", value_name = "URL")]
    pub kubernetes_api: Option<String>,

    /// CA certificates of the API server, in PEM
    #[arg(
        long,
        env = "PACKETFLIX_KUBERNETES_CA",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
    )]
    pub kubernetes_ca: PathBuf,

    /// File of the token that the service shows the API server
    #[arg(
        long,
        env = "PACKETFLIX_KUBERNETES_TOKEN_FILE",
        value_name = "FILE",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    )]
    pub kubernetes_token_file: PathBuf,

    /// Take tokens from token= in the query of a WebSocket's handshake too, for pages in browsers
    #[arg(long, env = "PACKETFLIX_ALLOW_QUERY_TOKEN", value_parser = parse_switch)]
    pub allow_query_token: bool,

    /// Certificate with which TLS is spoken, and those between it and its CA, in PEM. It is followed when it changes
    #[arg(long, env = "PACKETFLIX_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Key of that certificate, in PEM. It is followed when it changes
    #[arg(long, env = "PACKETFLIX_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificates of CAs, in PEM: let clients in that show a certificate of one of them. It is followed when it changes
    #[arg(long, env = "PACKETFLIX_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Revocation lists of these CAs, in PEM: a current one of each. It is followed when it changes
    #[arg(
        long,
        env = "PACKETFLIX_TLS_CLIENT_CRL",
        value_name = "FILE",
        requires = "tls_client_ca"
    )]
    pub tls_client_crl: Option<PathBuf>,

    /// Origin whose pages may use the service from within a browser, such as https://tools.example. May be given more
    /// than once; in the variable, separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub allow_origin: Vec<String>,

    /// Name under which clients that show neither token nor certificate may reach the service, beside localhost, this
    /// machine's own names and all addresses. May be given more than once; in the variable, separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allow_host: Vec<String>,

    /// Let everyone who reaches the service capture all traffic of this host, without tokens or client certificates
    #[arg(long, env = "PACKETFLIX_OPEN_TO_EVERYONE", value_parser = parse_switch)]
    pub open_to_everyone: bool,

    /// How many connections there may be from one address (a /64 of IPv6) at the same time, beside its captures; more are
    /// answered with 429
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "NUMBER",
        default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub max_connections_per_address: u16,

    /// How many captures may run at the same time. One of sixteen is kept for callers with the scope admin, as of those of a
    /// namespace
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CAPTURES",
        value_name = "COUNT",
        default_value_t = 128
    )]
    pub max_captures: u16,

    /// How many captures one client may have at the same time. A client is the name of a token or certificate, wherever that is;
    /// where nobody is asked for one, it is an IPv4 address, or the /64 prefix of an IPv6 address, so that all behind one proxy
    /// are one
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CAPTURES_PER_CLIENT",
        value_name = "COUNT",
        default_value_t = 32
    )]
    pub max_captures_per_client: u16,

    /// How long a capture may take, such as 8h (ms, s, m and h are understood). By default it is for ever
    #[arg(long, env = "PACKETFLIX_MAX_DURATION", value_name = "DURATION", value_parser = parse_duration)]
    pub max_duration: Option<Duration>,

    /// Seconds after which a client that takes nothing, or answers no ping, is given up
    #[arg(long, env = "PACKETFLIX_CLIENT_TIMEOUT", value_name = "SECONDS", default_value = "120", value_parser = parse_seconds)]
    pub client_timeout: Duration,

    /// Seconds that captures and connections get to end when the service is shut down
    #[arg(long, env = "PACKETFLIX_SHUTDOWN_TIMEOUT", value_name = "SECONDS", default_value = "10", value_parser = parse_seconds)]
    pub shutdown_timeout: Duration,

    /// Log what is of use for finding faults, from the eBPF programs too
    #[arg(long, env = "PACKETFLIX_DEBUG", value_parser = parse_switch)]
    pub debug: bool,

    /// What the lines of the log look like
    #[arg(long, env = "PACKETFLIX_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// File to append an account of every capture to, a JSON object in each line: who, what, how much. A - stands for
    /// standard output
    #[arg(long, env = "PACKETFLIX_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,

    /// Refuse captures that cannot be accounted for in that file, as when the disk is full
    #[arg(long, env = "PACKETFLIX_AUDIT_REQUIRED", value_parser = parse_switch)]
    pub audit_required: bool,

    /// Log each request
    #[arg(long, env = "PACKETFLIX_LOG_REQUESTS", value_parser = parse_switch)]
    pub log_requests: bool,

    /// Log the headers of each request, but for those that hold secrets
    #[arg(long, env = "PACKETFLIX_LOG_HEADERS", value_parser = parse_switch)]
    pub log_headers: bool,
}

/// Flags of a gateway.
#[derive(Clone, Debug, clap::Args)]
pub struct GatewayArgs {
    /// A host whose packetflix is asked, by the name that it has here: NAME=URL, where the URL begins with http or https. May be
    /// given more than once; in the variable, separated by commas
    #[arg(long, env = "PACKETFLIX_NODE", value_name = "NAME=URL", value_delimiter = ',')]
    pub node: Vec<String>,

    /// The nodes are those on which pods of this headless Service of Kubernetes are, and are followed as they come and go:
    /// [NAMESPACE/]NAME. By default the namespace is that of the gateway's own pod
    #[arg(
        long,
        env = "PACKETFLIX_NODES_SERVICE",
        value_name = "SERVICE",
        conflicts_with = "node"
    )]
    pub nodes_service: Option<String>,

    /// Speak http with the nodes of --nodes-service, and not https, for which their certificates have to be for the name
    /// NAME.NAMESPACE.svc of the Service
    #[arg(long, env = "PACKETFLIX_NODES_PLAIN", value_parser = parse_switch, requires = "nodes_service")]
    pub nodes_plain: bool,

    /// File with the token that is shown to the nodes, and nothing else. It is followed when it changes
    #[arg(long, env = "PACKETFLIX_NODE_TOKEN_FILE", value_name = "FILE")]
    pub node_token_file: Option<PathBuf>,

    /// Certificates of the CAs that issue the nodes' certificates, in PEM, instead of those that this machine trusts. It is
    /// followed when it changes
    #[arg(long, env = "PACKETFLIX_NODE_CACERT", value_name = "FILE")]
    pub node_cacert: Option<PathBuf>,

    /// Seconds that a node may take to answer. What all nodes are asked takes three times that at most
    #[arg(long, env = "PACKETFLIX_NODE_TIMEOUT", value_name = "SECONDS", default_value = "5", value_parser = parse_seconds)]
    pub node_timeout: Duration,

    /// Who is let in, and how much they may have.
    #[command(flatten)]
    pub frontend: FrontendArgs,
}

/// How all variables begin that stand for a flag.
const PREFIX: &str = "PACKETFLIX_";

/// The verb of a gateway.
const GATEWAY: &str = "gateway";

/// A variable that looks like one of ours and is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownVariable {
    pub(crate) name: String,
    /// The one that may be meant.
    pub(crate) nearest: Option<String>,
}

/// The variables among these that look like ours and are none, in their order. Those that Kubernetes sets for a Service are
/// nobody's mistake.
pub(crate) fn unknown_variables(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<UnknownVariable> {
    let known: Vec<String> = variables().collect();
    let mut unknown: Vec<UnknownVariable> = environment
        .into_iter()
        .filter_map(|(name, value)| {
            let name = name.to_string_lossy().into_owned();
            let rest = name.strip_prefix(PREFIX)?;
            if known.contains(&name) || is_of_service(&name, &value.to_string_lossy()) {
                return None;
            }
            let names = || known.iter().filter_map(|known| known.strip_prefix(PREFIX));
            let begun = |name: &&str| name.strip_prefix(rest).is_some_and(|more| more.starts_with('_'));
            let near = names()
                .find(begun)
                .or_else(|| nearest(rest, names(), 1).first().copied());
            let nearest = near.map(|name| format!("{PREFIX}{name}"));
            Some(UnknownVariable { name, nearest })
        })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown
}

/// The variables that stand for flags.
fn variables() -> impl Iterator<Item = String> {
    let command = Command::command();
    let gateway = command.find_subcommand(GATEWAY);
    let names: Vec<String> = gateway
        .into_iter()
        .chain([&command])
        .flat_map(clap::Command::get_arguments)
        .filter_map(|flag| Some(flag.get_env()?.to_string_lossy().into_owned()))
        .collect();
    names.into_iter()
}

/// Whether Kubernetes sets a variable for a Service whose name begins with ours.
///
/// Source: Kubernetes, "Service", "Environment variables".
fn is_of_service(name: &str, value: &str) -> bool {
    let is_of_port = |port: &str| port.starts_with(|first: char| first.is_ascii_digit());
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.split("_PORT_").skip(1).any(is_of_port)
        || ["tcp://", "udp://", "sctp://"]
            .iter()
            .any(|scheme| value.starts_with(scheme))
}

impl FrontendArgs {
    /// What is logged, and how.
    #[must_use]
    pub fn log(&self) -> LogConfig {
        LogConfig {
            format: self.log_format,
            debug: self.debug,
        }
    }
}

/// What is wrong with the flags, as a sentence that begins with the variable that says so, if one does.
pub fn sentence_of(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    match variable_of(error) {
        Some(variable) => format!("{variable}: {text}"),
        None => text.to_owned(),
    }
}

/// The variable that has the value which cannot be used.
fn variable_of(error: &clap::Error) -> Option<String> {
    let context = |kind| match error.get(kind)? {
        ContextValue::String(text) => Some(text),
        _ => None,
    };
    let (flag, value) = (
        context(ContextKind::InvalidArg)?,
        context(ContextKind::InvalidValue)?,
    );
    let mut command = Command::command();
    // Its flags have no names before.
    command.build();
    let flag = command.get_arguments().find(|known| known.to_string() == *flag)?;
    let variable = flag.get_env()?;
    let set = std::env::var_os(variable)?;
    let set = set.to_string_lossy();
    // Of a list, the value is one.
    (set == **value || set.split(',').any(|one| one == value))
        .then(|| variable.to_string_lossy().into_owned())
}

/// A flag without a value, whose variable has one.
fn parse_switch(text: &str) -> Result<bool, String> {
    match &*text.to_ascii_lowercase() {
        "1" | "true" | "yes" | "on" | "y" | "t" => Ok(true),
        "" | "0" | "false" | "no" | "off" | "n" | "f" => Ok(false),
        _ => Err("write 1, true, yes or on; or 0, false, no, off or nothing".to_owned()),
    }
}

fn parse_port(text: &str) -> Result<u16, String> {
    if text.starts_with("tcp://") {
        return Err(
            "Kubernetes sets this variable for a Service that is called packetflix: say enableServiceLinks: false in the \
             pod, or --port"
                .to_owned(),
        );
    }
    text.parse()
        .map_err(|_| "a port is a number from 0 to 65535".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("give a whole number of seconds from 1 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents;

    #[test]
    fn switches_are_written_in_many_ways() {
        for (texts, is_on) in [
            (&["1", "true", "yes", "on", "On", "TRUE", "y"][..], true),
            (&["", "0", "false", "no", "off", "No", "n"], false),
        ] {
            for text in texts {
                assert_eq!(parse_switch(text), Ok(is_on), "{text}");
            }
        }
        for text in ["2", "ja", " ", "tru"] {
            assert!(parse_switch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn variables_that_are_none_are_told_with_the_nearest() {
        let unknown = |name: &str, value: &str| {
            let found = unknown_variables([(name.into(), value.into())]);
            found
                .into_iter()
                .next()
                .map(|one| one.nearest.unwrap_or_default())
        };
        for (name, nearest) in [
            ("PACKETFLIX_DEBGU", "PACKETFLIX_DEBUG"),
            ("PACKETFLIX_TOKENFILE", "PACKETFLIX_TOKEN_FILE"),
            ("PACKETFLIX_TOKEN", "PACKETFLIX_TOKEN_FILE"),
            ("PACKETFLIX_ZZZZZZ", ""),
        ] {
            assert_eq!(unknown(name, "1").as_deref(), Some(nearest), "{name}");
        }
        for (name, value) in [
            ("PACKETFLIX_DEBUG", "1"),
            ("PACKETFLIX_PORT", "tcp://10.0.0.1:5001"),
            ("PACKETFLIX_SERVICE_HOST", "10.0.0.1"),
            ("PACKETFLIX_SERVICE_PORT_HTTP", "5001"),
            ("PACKETFLIX_PORT_5001_TCP_ADDR", "10.0.0.1"),
            ("PACKETFLIX_WEB_PORT", "tcp://10.0.0.1:5001"),
            ("PATH", "/bin"),
        ] {
            assert_eq!(unknown(name, value), None, "{name}");
        }
    }

    #[test]
    fn flags_are_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn documents_have_all_flags() {
        let mut command = Command::command();
        command.build();
        let head = ["flag", "variable", "default", "meaning"];
        documents::check("flags.md", "flags", &head, &rows(&command));
        let check = command.find_subcommand("check").unwrap();
        let of_check: Vec<Vec<String>> = rows(check)
            .into_iter()
            .filter(|row| row[1].is_empty() && !row[0].contains("--help"))
            .map(|row| vec![row[0].clone(), row[3].clone()])
            .collect();
        documents::check("flags.md", "check", &["flag", "meaning"], &of_check);
        let known = rows(&command);
        let of_gateway: Vec<Vec<String>> = rows(command.find_subcommand(GATEWAY).unwrap())
            .into_iter()
            .filter(|row| !row[0].contains("--help") && known.iter().all(|known| known[0] != row[0]))
            .collect();
        documents::check("flags.md", "gateway", &head, &of_gateway);
    }

    /// A row for each flag of a command.
    fn rows(command: &clap::Command) -> Vec<Vec<String>> {
        let flags = command.get_arguments().filter(|flag| !flag.is_positional());
        flags.map(row).collect()
    }

    fn row(flag: &clap::Arg) -> Vec<String> {
        let takes_value = flag.get_action().takes_values();
        let code = |text: String| format!("`{text}`");
        let short = flag.get_short().map(|letter| format!("-{letter}"));
        let value = flag.get_value_names().filter(|_| takes_value);
        let long = flag.get_long().map(|name| match value {
            Some(value) => format!("--{name} {}", value[0]),
            None => format!("--{name}"),
        });
        let names: Vec<String> = short.into_iter().chain(long).map(code).collect();
        let variable = flag
            .get_env()
            .map(|name| code(name.to_string_lossy().into_owned()));
        let default = flag.get_default_values().first().filter(|_| takes_value);
        let mut meaning = flag.get_help().unwrap_or_default().to_string();
        for value in flag.get_possible_values().iter().filter(|_| takes_value) {
            let said = value.get_help().unwrap_or_default();
            meaning.push_str(&format!("<br>`{}`: {said}", value.get_name()));
        }
        vec![
            names.join(", "),
            variable.unwrap_or_default(),
            default
                .map(|value| code(value.to_string_lossy().into_owned()))
                .unwrap_or_default(),
            meaning,
        ]
    }
}
