//! Configuration that was checked: what the flags amount to on this machine.

mod host;
mod listen;
mod origin;

use std::{collections::BTreeSet, fmt, path::PathBuf, sync::Arc, time::Duration};

use packetflix_common::MAX_OWN_PORTS;

pub use self::{
    host::{HostName, HostNameError},
    listen::{AddressError, ListenAddress},
    origin::{Origin, OriginError},
};
use crate::{
    cli::{Args, FrontendArgs},
    cpus::Cpus,
    kubernetes::{ApiAddress, ApiAddressError, Credentials},
    memory,
    tap::{MIN_RING_SIZE, RateLimits, RingConfig, TapConfig},
};

/// Shared among the rings of a capture, in bytes, unless a flag says otherwise.
const RING_BUDGET: u64 = 64 << 20;
/// Bounds of what a ring gets of it. The upper one holds what a TCP connection carries at 13 Gbit/s in 20 ms, for which
/// a reader may have to wait on a machine that is busy.
const DEFAULT_RING_SIZES: (u64, u64) = (1 << 20, 32 << 20);
/// All captures' rings together take at most this part of the memory, unless a flag says otherwise.
const MEMORY_SHARE: u64 = 8;
/// The kernel's own bound: ring buffers of 2 GiB and more cannot be mapped with their double data pages.
const MAX_RING_SIZE: u64 = 1 << 30;

/// A capture leaves the traffic of all our ports out, and of one more at which its client may say that it reaches us.
const MAX_PORTS: usize = MAX_OWN_PORTS - 1;

/// Name of the Unix socket of a service that nobody told where to listen.
const OWN_SOCKET: &str = "packetflix.sock";

/// How the server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who is let in, and how much they may have.
    pub frontend: Arc<Frontend>,
    /// How captures are made.
    pub tap: TapConfig,
    /// Where the targets are asked for; `None` when packetflix finds them itself.
    pub discovery_service: Option<ServiceAddress>,
    /// Whether requests that are not ours go to the discovery service.
    pub proxy_discovery: bool,
    /// API sockets of container engines beside those at well-known places.
    pub engine_sockets: Vec<PathBuf>,
    /// Whether names in filters may be looked up.
    pub resolve_filter_names: bool,
    /// The host's name, as streams and lists have it.
    pub node_name: String,
}

/// How whatever is asked over HTTP lets clients in.
#[derive(Clone, Debug)]
pub struct Frontend {
    /// Where it listens.
    pub listen: Vec<ListenAddress>,
    /// Whether nobody but this host may reach it: those who come are not asked who they are, and nobody said that this is
    /// meant.
    pub is_closed: bool,
    /// Who may use it.
    pub token_file: Option<PathBuf>,
    /// Whom to ask of tokens that are not in that file.
    pub(crate) kubernetes: Option<Kubernetes>,
    /// Whether a token may stand in the query of a WebSocket's handshake.
    pub allow_query_token: bool,
    /// What TLS is spoken with; `None` when it is not.
    pub tls: Option<TlsFiles>,
    /// Whose pages may use it from within a browser.
    pub allowed_origins: Vec<Origin>,
    /// Names under which it is reached, beside those that this machine has.
    pub allowed_hosts: Vec<HostName>,
    /// How many connections there may be from one address.
    pub max_connections_per_address: usize,
    /// How many captures may run at the same time.
    pub quotas: Quotas,
    /// How long a capture may take at most.
    pub max_duration: Option<Duration>,
    /// After how long a client is given up that takes nothing or answers no ping.
    pub client_timeout: Duration,
    /// How long captures and connections get to end when the service is shut down.
    pub shutdown_timeout: Duration,
    /// Where the account of captures goes; `-` is standard output.
    pub audit_log: Option<PathBuf>,
    /// Whether there are no captures without it.
    pub audit_required: bool,
    /// Whether each request is logged.
    pub log_requests: bool,
    /// Whether the headers of each request are logged.
    pub log_headers: bool,
    /// What the machine calls itself.
    pub host_name: String,
}

impl Frontend {
    /// Files that it is told to read, again and again, but for that of the tokens.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        if let Some(tls) = &self.tls {
            files.extend([tls.certificate.clone(), tls.key.clone()]);
            files.extend(tls.client_ca.iter().chain(&tls.client_crl).cloned());
        }
        if let Some(Kubernetes { credentials, .. }) = &self.kubernetes {
            files.extend([credentials.ca.clone(), credentials.token.clone()]);
        }
        files
    }
}

/// The API server, and what is shown to it.
#[derive(Clone, Debug)]
pub(crate) struct Kubernetes {
    pub(crate) address: ApiAddress,
    pub(crate) credentials: Credentials,
}

/// How many captures may run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quotas {
    /// In all.
    pub total: usize,
    /// Of one client.
    pub per_client: usize,
    /// Of one network namespace.
    pub per_target: usize,
}

/// The files that TLS takes, all in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The server's certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// Certificates of CAs whose clients are let in.
    pub client_ca: Option<PathBuf>,
    /// Revocation lists of these CAs.
    pub client_crl: Option<PathBuf>,
}

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAddress {
    /// Name or address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for ServiceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why the flags cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no such place to listen at.
    #[error("--listen")]
    Listen(#[from] AddressError),
    /// A capture could not leave all of them out.
    #[error("--listen: there may be {MAX_PORTS} TCP ports, and not {0}")]
    TooManyPorts(usize),
    /// TLS takes a certificate and its key.
    #[error("--tls-cert and --tls-key belong together, and --tls-client-ca takes both")]
    Tls,
    /// Either everyone is let in, or it is asked who they are.
    #[error(
        "--open-to-everyone asks nobody who they are: it goes with none of --token-file, --kubernetes-auth and --tls-client-ca"
    )]
    Open,
    /// Nobody could be asked.
    #[error("--kubernetes-auth")]
    Kubernetes(#[from] ApiAddressError),
    /// There is no such name.
    #[error("--allow-host")]
    Host(#[from] HostNameError),
    /// There is no token that could stand there.
    #[error("--allow-query-token takes a --token-file or --kubernetes-auth")]
    QueryToken,
    /// There is nothing to write it to.
    #[error("--audit-required takes an --audit-log")]
    AuditRequired,
    /// There is no such origin.
    #[error("--allow-origin")]
    Origin(#[from] OriginError),
    /// A ring cannot have that size.
    #[error(
        "--ring-size {0}: a ring has from {MIN_RING_SIZE} to {MAX_RING_SIZE} bytes, and a power of two of them"
    )]
    RingSize(u64),
    /// No capture could have its rings.
    #[error(
        "--ring-memory {memory}: the rings of one capture take {least} bytes at least, {} for each of {rings}",
        least / rings
    )]
    RingMemory {
        /// Bytes that all rings may take.
        memory: u64,
        /// What those of one capture take.
        least: u64,
        /// How many there are: one for each CPU that is online, and one if more may come.
        rings: u64,
    },
    /// No packet would be worth its place.
    #[error("--max-byte-rate {0}: a capture has at least {least} bytes in a second", least = RateLimits::MIN_BYTE_RATE)]
    ByteRate(u64),
    /// The number of CPUs is not known.
    #[error("the number of CPUs could not be read")]
    Cpus(#[source] std::io::Error),
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        let cpus = Cpus::look().map_err(ConfigError::Cpus)?;
        let frontend = Frontend::new(&args.frontend, usize::from(args.max_captures_per_target))?;
        Ok(Self {
            tap: TapConfig {
                hook: args.hook,
                rings: rings(args, cpus.rings())?,
                rates: rates(args)?,
                log_programs: args.frontend.debug,
            },
            discovery_service: discovery_service(args),
            proxy_discovery: args.proxy_discovery,
            engine_sockets: args.engine_socket.clone(),
            resolve_filter_names: args.resolve_filter_names,
            node_name: match &args.node_name {
                Some(name) => name.clone(),
                None => frontend.host_name.clone(),
            },
            frontend: Arc::new(frontend),
        })
    }
}

impl Frontend {
    /// What these flags amount to, where so many captures may be of one target.
    ///
    /// # Errors
    /// When they cannot be used.
    pub(crate) fn new(args: &FrontendArgs, per_target: usize) -> Result<Self, ConfigError> {
        Ok(Self {
            listen: listen(args)?,
            is_closed: is_closed(args)?,
            token_file: args.token_file.clone(),
            kubernetes: kubernetes(args)?,
            allow_query_token: allow_query_token(args)?,
            tls: tls(args)?,
            allowed_origins: args
                .allow_origin
                .iter()
                .map(|origin| origin.parse())
                .collect::<Result<_, _>>()?,
            allowed_hosts: args
                .allow_host
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()?,
            max_connections_per_address: usize::from(args.max_connections_per_address),
            quotas: Quotas {
                total: usize::from(args.max_captures),
                per_client: usize::from(args.max_captures_per_client),
                per_target,
            },
            max_duration: args.max_duration,
            client_timeout: args.client_timeout,
            shutdown_timeout: args.shutdown_timeout,
            audit_log: args.audit_log.clone(),
            audit_required: audit_required(args)?,
            log_requests: args.log_requests,
            log_headers: args.log_headers,
            host_name: nix::unistd::gethostname()
                .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()),
        })
    }
}

fn is_closed(args: &FrontendArgs) -> Result<bool, ConfigError> {
    let asks = args.token_file.is_some() || args.kubernetes_auth || args.tls_client_ca.is_some();
    match (asks, args.open_to_everyone) {
        (true, true) => Err(ConfigError::Open),
        (asks, open) => Ok(!asks && !open),
    }
}

fn listen(args: &FrontendArgs) -> Result<Vec<ListenAddress>, ConfigError> {
    if args.listen.is_empty() {
        return Ok(match is_closed(args)? {
            true => vec![
                ListenAddress::Loopback(args.port),
                ListenAddress::OwnSocket(own_socket()),
            ],
            false => vec![ListenAddress::All(args.port)],
        });
    }
    let parse = |text: &String| ListenAddress::parse(text, args.port);
    let addresses: Vec<ListenAddress> = args.listen.iter().map(parse).collect::<Result<_, _>>()?;
    let ports = || addresses.iter().filter_map(ListenAddress::port);
    let known: BTreeSet<u16> = ports().filter(|port| *port != 0).collect();
    // Each 0 becomes a port of its own.
    match known.len() + ports().filter(|port| *port == 0).count() {
        count if count > MAX_PORTS => Err(ConfigError::TooManyPorts(count)),
        _ => Ok(addresses),
    }
}

/// The Unix socket of a service that nobody told where to listen: in the folder that its service manager has made for it
/// (`RuntimeDirectory=`, systemd.exec(5)), else in `/run`.
fn own_socket() -> PathBuf {
    let folders = std::env::var_os("RUNTIME_DIRECTORY").unwrap_or_default();
    let first = std::env::split_paths(&folders).next();
    let folder = first.filter(|folder| folder.is_absolute());
    folder.unwrap_or_else(|| PathBuf::from("/run")).join(OWN_SOCKET)
}

fn kubernetes(args: &FrontendArgs) -> Result<Option<Kubernetes>, ConfigError> {
    let is_asked = args.kubernetes_auth;
    Ok(is_asked.then(|| Kubernetes::of(args)).transpose()?)
}

impl Kubernetes {
    /// The API server that is named, or that of the cluster in which this is a pod.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(args: &FrontendArgs) -> Result<Self, ApiAddressError> {
        let address = match &args.kubernetes_api {
            Some(url) => url.parse()?,
            None => ApiAddress::of_pod()?,
        };
        Ok(Self {
            address,
            credentials: Credentials {
                ca: args.kubernetes_ca.clone(),
                token: args.kubernetes_token_file.clone(),
            },
        })
    }
}

fn allow_query_token(args: &FrontendArgs) -> Result<bool, ConfigError> {
    if args.allow_query_token && args.token_file.is_none() && !args.kubernetes_auth {
        return Err(ConfigError::QueryToken);
    }
    Ok(args.allow_query_token)
}

fn audit_required(args: &FrontendArgs) -> Result<bool, ConfigError> {
    if args.audit_required && args.audit_log.is_none() {
        return Err(ConfigError::AuditRequired);
    }
    Ok(args.audit_required)
}

fn tls(args: &FrontendArgs) -> Result<Option<TlsFiles>, ConfigError> {
    match (&args.tls_cert, &args.tls_key, &args.tls_client_ca) {
        (None, None, None) => Ok(None),
        (Some(certificate), Some(key), client_ca) => Ok(Some(TlsFiles {
            certificate: certificate.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
            client_crl: args.tls_client_crl.clone(),
        })),
        _ => Err(ConfigError::Tls),
    }
}

fn discovery_service(args: &Args) -> Option<ServiceAddress> {
    let wanted = args.discovery_service.is_some() || args.gw_port.is_some() || args.proxy_discovery;
    wanted.then(|| {
        let host = args.discovery_service.as_deref().unwrap_or("127.0.0.1");
        ServiceAddress {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: args.gw_port.unwrap_or(5000),
        }
    })
}

fn rates(args: &Args) -> Result<RateLimits, ConfigError> {
    match args.max_byte_rate {
        Some(bytes) if bytes < RateLimits::MIN_BYTE_RATE => Err(ConfigError::ByteRate(bytes)),
        bytes => Ok(RateLimits {
            packets: args.max_packet_rate,
            bytes,
        }),
    }
}

/// For captures of so many rings.
fn rings(args: &Args, rings: u32) -> Result<RingConfig, ConfigError> {
    let rings = u64::from(rings);
    let size = ring_size(args.ring_size, rings)?;
    let is_fixed = args.ring_size.is_some();
    let least = rings * if is_fixed { size.into() } else { MIN_RING_SIZE };
    let memory = match args.ring_memory {
        Some(memory) if memory < least => return Err(ConfigError::RingMemory { memory, least, rings }),
        Some(memory) => memory,
        // One that is running, and the one that is kept ready for the next.
        None => (memory::usable() / MEMORY_SHARE).max(2 * least),
    };
    Ok(RingConfig {
        size,
        is_fixed,
        memory,
    })
}

fn ring_size(wanted: Option<u64>, rings: u64) -> Result<u32, ConfigError> {
    let (least, most) = DEFAULT_RING_SIZES;
    let share = RING_BUDGET / rings;
    let size = wanted.unwrap_or_else(|| share.clamp(least, most).next_power_of_two().min(most));
    let fits = (MIN_RING_SIZE..=MAX_RING_SIZE).contains(&size) && size.is_power_of_two();
    u32::try_from(size)
        .ok()
        .filter(|_| fits)
        .ok_or(ConfigError::RingSize(size))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Command;

    fn config(flags: &[&str]) -> Result<Arc<Frontend>, ConfigError> {
        let args = Command::try_parse_from([&["packetflix"], flags].concat())
            .unwrap()
            .args;
        Config::try_from(&args).map(|config| config.frontend)
    }

    #[test]
    fn listens_for_this_host_only_unless_it_is_told_whom_to_let_in() {
        let closed = config(&["--port", "7"]).unwrap();
        assert!(closed.is_closed);
        let socket = ListenAddress::OwnSocket("/run/packetflix.sock".into());
        assert_eq!(closed.listen, [ListenAddress::Loopback(7), socket]);
        for flags in [
            &["--open-to-everyone"][..],
            &["--token-file=/t"],
            &["--tls-cert=/c", "--tls-key=/k", "--tls-client-ca=/a"],
        ] {
            let open = config(&[flags, &["--port=7"]].concat()).unwrap();
            assert_eq!(
                (open.is_closed, &open.listen[..]),
                (false, &[ListenAddress::All(7)][..])
            );
        }
        // Encryption alone asks nobody who they are.
        assert!(config(&["--tls-cert=/c", "--tls-key=/k"]).unwrap().is_closed);
        assert!(config(&["--listen=127.0.0.1"]).unwrap().is_closed);
        for asks in [
            &["--token-file=/t"][..],
            &["--tls-cert=/c", "--tls-key=/k", "--tls-client-ca=/a"],
        ] {
            let both = config(&[asks, &["--open-to-everyone"]].concat());
            assert!(matches!(both, Err(ConfigError::Open)));
        }
    }

    #[test]
    fn listens_where_it_is_told() {
        let listen = config(&["--port", "7", "--listen", "127.0.0.1", "--listen", "unix:/x"]);
        let host = ListenAddress::Host("127.0.0.1".to_owned(), 7);
        assert_eq!(listen.unwrap().listen, [host, ListenAddress::Unix("/x".into())]);
        let many = |ports: u16| {
            let listen: Vec<String> = (0..ports).map(|port| format!("--listen=[::]:{port}")).collect();
            let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
            config(&[&listen[..], &["--listen=127.0.0.1:1", "--listen=/x"]].concat())
        };
        assert_eq!(many(7).unwrap().listen.len(), 9);
        assert!(matches!(many(8), Err(ConfigError::TooManyPorts(8))));
    }

    #[test]
    fn what_belongs_together_is_given_together() {
        for flags in [
            &["--tls-cert=/c"][..],
            &["--tls-key=/k"],
            &["--tls-client-ca=/a"],
            &["--tls-cert=/c", "--tls-client-ca=/a"],
        ] {
            assert!(matches!(config(flags), Err(ConfigError::Tls)), "{flags:?}");
        }
        assert!(config(&["--tls-cert=/c", "--tls-key=/k"]).unwrap().tls.is_some());
        assert!(matches!(
            config(&["--allow-query-token"]),
            Err(ConfigError::QueryToken)
        ));
        assert!(matches!(
            config(&["--audit-required"]),
            Err(ConfigError::AuditRequired)
        ));
        assert!(matches!(
            config(&["--allow-origin=*"]),
            Err(ConfigError::Origin(OriginError::Any))
        ));
        assert!(matches!(config(&["--listen=x/y"]), Err(ConfigError::Listen(_))));
        assert!(matches!(config(&["--allow-host=*"]), Err(ConfigError::Host(_))));
    }

    #[test]
    fn rings_follow_the_number_of_cpus() {
        for (rings, size) in [
            (1, 32 << 20),
            (2, 32 << 20),
            (8, 8 << 20),
            (12, 8 << 20),
            (64, 1 << 20),
            (512, 1 << 20),
        ] {
            assert_eq!(ring_size(None, rings).unwrap(), size, "{rings} rings");
        }
    }

    #[test]
    fn refuses_rings_that_the_kernel_would() {
        assert_eq!(ring_size(Some(1 << 20), 4).unwrap(), 1 << 20);
        for wrong in [0, 4096, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 32, u64::MAX] {
            assert!(ring_size(Some(wrong), 4).is_err(), "{wrong}");
        }
    }
}
