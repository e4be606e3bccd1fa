//! The command line: flags as they are given. What they amount to is [`Config`](crate::config::Config).

use std::{path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, value_parser};

use crate::{
    logging::LogFormat,
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
    /// Try what captures take on this machine, and say what works, what does not, what that costs, and what to do;
    /// ends with 1 if captures cannot work
    Check {
        /// Tell it as JSON
        #[arg(long)]
        json: bool,
        /// How the service would be started.
        #[command(flatten)]
        args: Args,
    },
}

/// Flags, each also as an environment variable.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// TCP port to listen on, over IPv4 and IPv6: at all addresses if those who come are asked who they are
    /// (--token-file, --tls-client-ca) or --open-to-everyone says that they are not, else at those of loopback only
    #[arg(short, long, env = "PACKETFLIX_PORT", default_value_t = 5001)]
    pub port: u16,

    /// Where to listen instead: HOST:PORT, HOST (at the port of --port), [ADDRESS]:PORT, or unix:/PATH;
    /// may be given more than once, in the variable separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_LISTEN",
        value_name = "ADDRESS",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,

    /// File of those who may use the service, a line each: NAME TOKEN [SCOPE…]; followed when it changes
    #[arg(long, env = "PACKETFLIX_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Take tokens from token= in the query of a WebSocket's handshake too, for pages in browsers
    #[arg(long, env = "PACKETFLIX_ALLOW_QUERY_TOKEN")]
    pub allow_query_token: bool,

    /// Certificate with which TLS is spoken, and those between it and its CA, in PEM; followed when it changes
    #[arg(long, env = "PACKETFLIX_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Key of that certificate, in PEM
    #[arg(long, env = "PACKETFLIX_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Certificates of CAs whose clients may use the service, in PEM
    #[arg(long, env = "PACKETFLIX_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Revocation lists of these CAs, in PEM: a current one of each; followed when it changes
    #[arg(
        long,
        env = "PACKETFLIX_TLS_CLIENT_CRL",
        value_name = "FILE",
        requires = "tls_client_ca"
    )]
    pub tls_client_crl: Option<PathBuf>,

    /// Origin whose pages may use the service from within a browser, such as https://tools.example; may be given more
    /// than once, in the variable separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    pub allow_origin: Vec<String>,

    /// Name under which clients that show neither token nor certificate may reach the service, beside localhost, this
    /// machine's own names and all addresses; may be given more than once, in the variable separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_ALLOW_HOST",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub allow_host: Vec<String>,

    /// Let everyone who reaches the service capture all traffic of this host, without tokens or client certificates
    #[arg(long, env = "PACKETFLIX_OPEN_TO_EVERYONE")]
    pub open_to_everyone: bool,

    /// How many connections there may be from one address (a /64 of IPv6) at the same time, beside captures
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "NUMBER",
        default_value_t = 256,
        value_parser = clap::value_parser!(u16).range(1..)
    )]
    pub max_connections_per_address: u16,

    /// Where in the kernel packets are seen
    #[arg(long, env = "PACKETFLIX_HOOK", value_enum, default_value_t = Hook::Socket)]
    pub hook: Hook,

    /// Size of the ring of each CPU that is online, for each capture (KiB and MiB are understood); by default 64 MiB
    /// shared among these, at least 1 MiB and at most 32 MiB each, and less when --ring-memory gets scarce
    #[arg(long, env = "PACKETFLIX_RING_SIZE", value_parser = parse_size)]
    pub ring_size: Option<u64>,

    /// Most memory of the rings of all captures together; by default an eighth of what the machine, or the control
    /// group of this process, has
    #[arg(long, env = "PACKETFLIX_RING_MEMORY", value_parser = parse_size)]
    pub ring_memory: Option<u64>,

    /// How many captures may run at the same time
    #[arg(long, env = "PACKETFLIX_MAX_CAPTURES", default_value_t = 128)]
    pub max_captures: u16,

    /// How many captures one client may have at the same time; a client is an IPv4 address, or the /64 prefix of an
    /// IPv6 address
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CAPTURES_PER_CLIENT",
        value_name = "COUNT",
        default_value_t = 32
    )]
    pub max_captures_per_client: u16,

    /// How many captures of one network namespace may run at the same time
    #[arg(
        long,
        env = "PACKETFLIX_MAX_CAPTURES_PER_TARGET",
        value_name = "COUNT",
        default_value_t = 64
    )]
    pub max_captures_per_target: u16,

    /// How long a capture may take (ms, s, m and h are understood); by default for ever
    #[arg(long, env = "PACKETFLIX_MAX_DURATION", value_name = "DURATION", value_parser = parse_duration)]
    pub max_duration: Option<Duration>,

    /// How many packets a capture may have in a second, on all its interfaces; more are dropped in the kernel, and
    /// counted as dropped; by default any number
    #[arg(long, env = "PACKETFLIX_MAX_PACKET_RATE", value_name = "COUNT", value_parser = value_parser!(u64).range(1..))]
    pub max_packet_rate: Option<u64>,

    /// How many bytes of packets a capture may have in a second (KiB, MiB and GiB are understood); packets over that are
    /// dropped in the kernel, and counted as dropped; by default any number
    #[arg(long, env = "PACKETFLIX_MAX_BYTE_RATE", value_name = "SIZE", value_parser = parse_size)]
    pub max_byte_rate: Option<u64>,

    /// Seconds after which a client that takes nothing, or answers no ping, is given up
    #[arg(long, env = "PACKETFLIX_CLIENT_TIMEOUT", default_value = "120", value_parser = parse_seconds)]
    pub client_timeout: Duration,

    /// Seconds that captures and connections get to end when the service is shut down
    #[arg(long, env = "PACKETFLIX_SHUTDOWN_TIMEOUT", default_value = "10", value_parser = parse_seconds)]
    pub shutdown_timeout: Duration,

    /// Host of the GhostWire discovery service that knows the targets [default: 127.0.0.1]; without this, --gw-port
    /// and --proxy-discovery, packetflix finds the targets itself
    #[arg(long, env = "PACKETFLIX_DISCOVERY_SERVICE", value_name = "HOST")]
    pub discovery_service: Option<String>,

    /// TCP port of the discovery service [default: 5000]
    #[arg(long, env = "PACKETFLIX_GW_PORT", value_name = "PORT")]
    pub gw_port: Option<u16>,

    /// Hand requests for /discover/…, and all that are not for packetflix, to the discovery service
    #[arg(long, env = "PACKETFLIX_PROXY_DISCOVERY")]
    pub proxy_discovery: bool,

    /// API socket of a container engine (Docker's API or the CRI) to ask beside those at well-known places; may be
    /// given more than once, in the variable separated by commas
    #[arg(
        long,
        env = "PACKETFLIX_ENGINE_SOCKET",
        value_name = "PATH",
        value_delimiter = ','
    )]
    pub engine_socket: Vec<PathBuf>,

    /// Let the names of hosts, networks, ports and protocols in filters be looked up, for which clients then make the
    /// server ask its resolver
    #[arg(long, env = "PACKETFLIX_RESOLVE_FILTER_NAMES")]
    pub resolve_filter_names: bool,

    /// Log what is of use for finding faults, from the eBPF programs too
    #[arg(long, env = "PACKETFLIX_DEBUG")]
    pub debug: bool,

    /// What the lines of the log look like
    #[arg(long, env = "PACKETFLIX_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,

    /// File to append an account of every capture to, a JSON object in each line: who, what, how much; `-` is standard
    /// output
    #[arg(long, env = "PACKETFLIX_AUDIT_LOG", value_name = "FILE")]
    pub audit_log: Option<PathBuf>,

    /// Log each request
    #[arg(long, env = "PACKETFLIX_LOG_REQUESTS")]
    pub log_requests: bool,

    /// Log the headers of each request, but for those that hold secrets
    #[arg(long, env = "PACKETFLIX_LOG_HEADERS")]
    pub log_headers: bool,
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=86_400) => Ok(Duration::from_secs(seconds)),
        _ => Err("give a whole number of seconds from 1 to 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn flags_are_consistent() {
        Command::command().debug_assert();
    }
}
