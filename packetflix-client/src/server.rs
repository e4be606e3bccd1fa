//! Which server is meant, and what is shown to it.

use std::{
    env,
    error::Error,
    ffi::OsStr,
    fmt, io,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use crate::{
    cluster::{ClusterArgs, ClusterError, Meant, Road},
    config::{Config, ConfigError, NamedServer, check_private, read_short},
    error::Failure,
    local::{LocalServer, StartLocal},
};

/// Port of a server that was not told another.
const PORT: u16 = 5001;

/// How long a server of this host may take to be there.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Variables that name the server, and what is shown to it.
const VARIABLE: &str = "PACKETFLIX_SERVER";
const TOKEN_VARIABLE: &str = "PACKETFLIX_TOKEN";
const TOKEN_FILE_VARIABLE: &str = "PACKETFLIX_CLIENT_TOKEN_FILE";

/// Unix sockets of a server on this host that was not told where to listen.
#[cfg(unix)]
const SOCKETS: [&str; 2] = ["/run/packetflix/packetflix.sock", "/run/packetflix.sock"];

/// Flags that say which server is meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Where the server is: http://HOST:PORT, https://HOST:PORT, ssh://[USER@]HOST or unix:/PATH; or its name in the
    /// configuration file. By default it is the default of that file, or else the server of this host
    #[arg(long, env = VARIABLE, value_name = "URL|NAME")]
    pub server: Option<String>,
    /// Capture in this process, without a server, which takes root on Linux. This is done, too, where no server is named, and
    /// none answers on this host
    #[arg(long)]
    pub local: bool,
    /// Token that is shown to the server. Other users of this machine see it in the list of processes: --token-file keeps it
    /// from them
    #[arg(long, env = TOKEN_VARIABLE, value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// File that has the token, and nothing else, and that others may not read
    #[arg(long, env = TOKEN_FILE_VARIABLE, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificates of the CAs that are trusted, in PEM, instead of those of this machine
    #[arg(long, env = "PACKETFLIX_CACERT", value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Certificate that is shown to the server, in PEM
    #[arg(long, env = "PACKETFLIX_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Key of that certificate, in PEM
    #[arg(long, env = "PACKETFLIX_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Or in which cluster.
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// A server, and what is shown to it.
#[derive(Clone, Debug)]
pub struct Server {
    /// Where it is.
    pub address: Address,
    /// Token that is shown to it.
    pub token: Option<Token>,
    /// With whom TLS is spoken.
    pub trust: Trust,
    /// What those may do on whose behalf it is asked, as servers tell each other, if that is less than who asks may.
    pub rights: Option<String>,
}

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At a TCP port.
    Tcp {
        /// Name or address of its host.
        host: String,
        /// TCP port.
        port: u16,
        /// Whether TLS is spoken.
        tls: bool,
        /// What its paths begin with, behind a proxy that has others: `/edge`, or nothing.
        prefix: String,
    },
    /// At a Unix socket of this host.
    Unix(PathBuf),
    /// At the Unix socket, or on loopback, of a host that is reached by ssh.
    Ssh {
        /// `HOST` or `USER@HOST`, as ssh takes it.
        destination: String,
        /// Its port, if it is not the usual one.
        port: Option<u16>,
    },
    /// In this process.
    Local(LocalServer),
    /// In a cluster of Kubernetes.
    Cluster(Road),
}

/// A token, which is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Files for TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// CAs that are trusted, instead of those of this machine.
    pub cacert: Option<PathBuf>,
    /// Certificate and key that are shown.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// For which name the server's certificate has to be, if not for that by which it is reached.
    pub name: Option<String>,
}

/// Why it cannot be told which server is meant.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The URL is none.
    #[error("{0} is no server: write http://HOST:PORT, https://HOST:PORT, ssh://[USER@]HOST or unix:/PATH")]
    Url(String),
    /// The configuration file does not help.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file of the token cannot be read.
    #[error("the token cannot be read from {}", .0.display())]
    TokenFile(PathBuf, #[source] io::Error),
    /// What is to be the token cannot stand in a header.
    #[error("the token in {0} is empty, or has spaces or characters that no token has")]
    Token(String),
    /// A token, and the file of another.
    #[error("--token is one token, and --token-file has another: leave one of them away")]
    TwoTokens,
    /// A server, and none.
    #[error("--local captures without a server: leave it away, or --server")]
    LocalAndServer,
    /// There is none in the program.
    #[error("on this system, captures take a server: leave --local away, and name one with --server")]
    NoLocal,
    /// A verb that knows no clusters.
    #[error("--kube is for capture, list, captures and stop")]
    NotByKube,
    /// A server, and a cluster.
    #[error("--kube reaches packetflix in a cluster: leave it away, or --server")]
    KubeAndServer,
    /// This process cannot be a server.
    #[error("this process cannot capture without a server")]
    Local(#[source] Box<dyn Error + Send + Sync>),
    /// There is no server, and this process cannot be one.
    #[error("no server answers at {0}, and this process cannot capture without one")]
    NoServer(Address, #[source] Box<dyn Error + Send + Sync>),
}

impl From<ServerError> for Failure {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Local(_) | ServerError::NoServer(..) => Self::refused(error),
            _ => Self::usage(error),
        }
    }
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        match error {
            ClusterError::Road(error) => Self::refused(error),
            ClusterError::Token(error) => error.into(),
            ClusterError::NoToken(_) => Self::usage(error),
        }
    }
}

/// A token, and a file that has one.
struct Tokens<'a> {
    token: Option<&'a str>,
    file: Option<&'a Path>,
}

impl Tokens<'_> {
    /// The one that there is, if there is one.
    fn read(self) -> Result<Option<Token>, ServerError> {
        match (self.token, self.file) {
            (Some(_), Some(_)) => Err(ServerError::TwoTokens),
            (Some(token), None) => Token::parse(token, "--token").map(Some),
            (None, Some(file)) => Token::read(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl ServerArgs {
    /// The server that is meant. Where none is named, and none answers on this host, it is one in this process, if that can be
    /// started.
    ///
    /// # Errors
    /// When these flags name none, or what is to be shown to it cannot be had.
    pub fn resolve(&self, local: Option<StartLocal>) -> Result<Server, ServerError> {
        if self.cluster.kube {
            return Err(ServerError::NotByKube);
        }
        if self.local {
            return self.unnamed(self.start(local)?);
        }
        // A variable that is empty names none.
        match self.server.as_deref().filter(|server| !server.is_empty()) {
            Some(url) if is_url(url) => self.unnamed(url.parse()?),
            Some(name) => self.named(name, Config::read()?.named(name)?),
            None => {
                let config = Config::read()?;
                match &config.default {
                    Some(name) => self.named(name, config.named(name)?),
                    None => self.unnamed(Address::of_this_host(local)?),
                }
            }
        }
    }

    /// A server in this process, since that was asked for; the variable may name another for other times.
    fn start(&self, local: Option<StartLocal>) -> Result<Address, ServerError> {
        if self.server.is_some() && self.server != env::var(VARIABLE).ok() {
            return Err(ServerError::LocalAndServer);
        }
        let start = local.ok_or(ServerError::NoLocal)?;
        start().map(Address::Local).map_err(ServerError::Local)
    }

    /// The server that is meant, also where that is one in a cluster: that of these pods, where there is no gateway.
    ///
    /// # Errors
    /// As those of [`Self::resolve`], or when there is no road into the cluster.
    pub(crate) async fn reach(&self, local: Option<StartLocal>, meant: Meant) -> Result<Server, Failure> {
        if !self.cluster.kube {
            return Ok(self.resolve(local)?);
        }
        if self.server.is_some() && self.server != env::var(VARIABLE).ok() {
            return Err(ServerError::KubeAndServer.into());
        }
        let (road, token) = Road::into_cluster(&self.cluster, meant).await?;
        // Variables have that of the server that another variable names, whose neither API server nor gateway is to see.
        let token = match self.tokens_of_flags().read()? {
            Some(token) => token,
            None => token.map_err(ClusterError::NoToken)?,
        };
        Ok(Server {
            address: Address::Cluster(road),
            token: Some(token),
            trust: self.trust(),
            rights: None,
        })
    }

    /// The same server, with what is to be shown to it by now: files, commands and kubeconfigs are asked anew.
    ///
    /// # Errors
    /// When it cannot be had.
    pub(crate) async fn renew(&self, server: &Server, meant: &Meant) -> Result<Server, Failure> {
        match &server.address {
            Address::Local(_) => Ok(server.clone()),
            Address::Cluster(_) => self.reach(None, meant.clone()).await,
            address => Ok(Server {
                address: address.clone(),
                ..self.resolve(None)?
            }),
        }
    }

    /// Whether the server that is meant can be reached without a word: ssh, and a command for a token, may ask for a password.
    pub(crate) fn asks_nobody(&self) -> bool {
        let config = Config::read().unwrap_or_default();
        let named = self.server.as_ref().filter(|server| !server.is_empty());
        let name = named.or(config.default.as_ref());
        let is_ssh = |url: &str| url.starts_with("ssh:");
        self.local
            || name.is_none_or(|name| match config.servers.get(name) {
                Some(server) => server.token_command.is_none() && !is_ssh(&server.url),
                None => !is_ssh(name),
            })
    }

    fn unnamed(&self, address: Address) -> Result<Server, ServerError> {
        Ok(Server {
            address,
            token: self.token()?,
            trust: self.trust(),
            rights: None,
        })
    }

    /// A server of the configuration file; flags go before what stands there.
    fn named(&self, name: &str, server: &NamedServer) -> Result<Server, ServerError> {
        let token = match self.token()? {
            Some(token) => Some(token),
            None => server.token(name)?,
        };
        let Trust {
            cacert,
            identity,
            name: _,
        } = self.trust();
        Ok(Server {
            address: server.url.parse()?,
            token,
            trust: Trust {
                cacert: cacert.or_else(|| server.cacert.clone()),
                identity: identity.or_else(|| server.cert.clone().zip(server.key.clone())),
                name: None,
            },
            rights: None,
        })
    }

    /// That of a flag, or else that of a variable.
    fn token(&self) -> Result<Option<Token>, ServerError> {
        match self.tokens_of_flags().read()? {
            Some(token) => Ok(Some(token)),
            None => self.tokens().read(),
        }
    }

    fn tokens(&self) -> Tokens<'_> {
        Tokens {
            token: self.token.as_deref(),
            file: self.token_file.as_deref(),
        }
    }

    /// Those that no variable has.
    fn tokens_of_flags(&self) -> Tokens<'_> {
        let Tokens { token, file } = self.tokens();
        let is_of = |variable: &str, value: &OsStr| env::var_os(variable).is_some_and(|set| set == value);
        Tokens {
            token: token.filter(|token| !is_of(TOKEN_VARIABLE, token.as_ref())),
            file: file.filter(|file| !is_of(TOKEN_FILE_VARIABLE, file.as_ref())),
        }
    }

    fn trust(&self) -> Trust {
        Trust {
            cacert: self.cacert.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
            name: None,
        }
    }
}

impl Server {
    /// The server at an address that somebody else gives. It is shown what the configuration file has for it, and nothing else:
    /// not what the user means for another.
    ///
    /// # Errors
    /// When the configuration file cannot be read, or what is to be shown cannot be had.
    pub fn at(address: Address) -> Result<Self, ServerError> {
        let config = Config::read()?;
        let is_it = |server: &NamedServer| server.url.parse().is_ok_and(|known: Address| known == address);
        let known = config.servers.iter().find(|(_, server)| is_it(server));
        let nothing = ServerArgs::default();
        match known {
            Some((name, server)) => nothing.named(name, server),
            None => nothing.unnamed(address),
        }
    }
}

/// Whether this is a URL, and no name.
fn is_url(text: &str) -> bool {
    text.contains(':')
}

impl Address {
    /// The server of this host: at its Unix socket, which asks for no token, where that is open to this user; else on loopback.
    /// Where none answers it is one in this process, if there can be one.
    fn of_this_host(local: Option<StartLocal>) -> Result<Self, ServerError> {
        #[cfg(unix)]
        for socket in SOCKETS {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Ok(Self::Unix(socket.into()));
            }
        }
        let loopback = Self::Tcp {
            host: "127.0.0.1".to_owned(),
            port: PORT,
            tls: false,
            prefix: String::new(),
        };
        let place = (Ipv4Addr::LOCALHOST, PORT).into();
        match local {
            Some(start) if TcpStream::connect_timeout(&place, AT_ONCE).is_err() => start()
                .map(Self::Local)
                .map_err(|error| ServerError::NoServer(loopback, error)),
            _ => Ok(loopback),
        }
    }

    /// What stands in the header `Host`.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) | Self::Ssh { .. } | Self::Local(_) | Self::Cluster(_) => "localhost".to_owned(),
        }
    }

    /// What its paths begin with.
    pub(crate) fn prefix(&self) -> &str {
        match self {
            Self::Tcp { prefix, .. } => prefix,
            Self::Unix(_) | Self::Ssh { .. } | Self::Local(_) | Self::Cluster(_) => "",
        }
    }
}

impl FromStr for Address {
    type Err = ServerError;

    fn from_str(url: &str) -> Result<Self, ServerError> {
        let wrong = || ServerError::Url(url.to_owned());
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            // As Unix has it: Windows would say of such a path that it is not whole.
            return match path.starts_with('/') {
                true => Ok(Self::Unix(path.into())),
                false => Err(wrong()),
            };
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let rest = rest.trim_end_matches('/');
        if scheme == "ssh" {
            return ssh_destination(rest).ok_or_else(wrong);
        }
        let (authority, prefix) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let is_of_path = |byte: u8| byte.is_ascii_graphic() && !b"?#".contains(&byte);
        let (tls, default_port) = match scheme {
            "http" | "ws" => (false, 80),
            "https" | "wss" => (true, 443),
            _ => return Err(wrong()),
        };
        let (host, port) = split_port(authority).ok_or_else(wrong)?;
        let is_of_name = |c: char| !c.is_control() && !c.is_whitespace() && !"/@?#".contains(c);
        let is_name = |host: &str| !host.is_empty() && host.chars().all(is_of_name);
        if !is_name(host) || !prefix.bytes().all(is_of_path) {
            return Err(wrong());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port: port.unwrap_or(default_port),
            tls,
            prefix: prefix.to_owned(),
        })
    }
}

/// What ssh is given; nothing that it would take for an option.
fn ssh_destination(authority: &str) -> Option<Address> {
    let (user, rest) = match authority.rsplit_once('@') {
        Some((user, rest)) => (Some(user), rest),
        None => (None, authority),
    };
    let (host, port) = split_port(rest)?;
    let is_word = |word: &str| {
        !word.is_empty()
            && !word.starts_with('-')
            && word.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
    };
    let destination = match user {
        Some(user) if is_word(user) => format!("{user}@{host}"),
        Some(_) => return None,
        None => host.to_owned(),
    };
    is_word(host).then_some(Address::Ssh { destination, port })
}

/// Host and port of an authority (RFC 3986, section 3.2); `None` if the port is no number, or an address of IPv6 has no brackets.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        return match port.strip_prefix(':') {
            Some(port) => Some((address, Some(port.parse().ok()?))),
            None => port.is_empty().then_some((address, None)),
        };
    }
    match authority.split_once(':') {
        Some((host, port)) => Some((host, Some(port.parse().ok()?))),
        None => Some((authority, None)),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { tls, prefix, .. } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{}{prefix}", self.authority())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Ssh { destination, port } => {
                write!(f, "ssh://{destination}")?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
            Self::Local(_) => f.write_str("this process"),
            Self::Cluster(road) => write!(f, "{road}"),
        }
    }
}

impl Token {
    /// Takes what `origin` has to say.
    ///
    /// # Errors
    /// When it cannot stand in a header (RFC 6750, section 2.1).
    pub fn parse(text: &str, origin: &str) -> Result<Self, ServerError> {
        let token = text.trim_end();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServerError::Token(origin.to_owned()));
        }
        Ok(Self(token.to_owned()))
    }

    /// What a file has.
    ///
    /// # Errors
    /// When others may read it, it cannot be read, or has no token.
    pub(crate) fn read(file: &Path) -> Result<Self, ServerError> {
        check_private(file)?;
        let text = read_short(file).map_err(|error| ServerError::TokenFile(file.to_owned(), error))?;
        Self::parse(&String::from_utf8_lossy(&text), &file.display().to_string())
    }

    /// What a file of it has.
    pub(crate) fn line(&self) -> String {
        format!("{}\n", self.0)
    }

    /// The value of the header `Authorization`.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, tls: bool) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
            tls,
            prefix: String::new(),
        }
    }

    #[test]
    fn urls_are_addresses() {
        for (url, address, shown) in [
            ("http://web:5001", tcp("web", 5001, false), "http://web:5001"),
            ("http://web/", tcp("web", 80, false), "http://web:80"),
            ("https://web", tcp("web", 443, true), "https://web:443"),
            ("https://[::1]:5001", tcp("::1", 5001, true), "https://[::1]:5001"),
            (
                "unix:/run/p.sock",
                Address::Unix("/run/p.sock".into()),
                "unix:/run/p.sock",
            ),
            (
                "unix:///run/p.sock",
                Address::Unix("/run/p.sock".into()),
                "unix:/run/p.sock",
            ),
        ] {
            assert_eq!(url.parse::<Address>().unwrap(), address, "{url}");
            assert_eq!(address.to_string(), shown);
        }
        for url in ["https://web:5001/edge", "http://[::1]:80/a/b"] {
            assert_eq!(url.parse::<Address>().unwrap().to_string(), url);
        }
        let edge: Address = "wss://web/edge/".parse().unwrap();
        assert_eq!((edge.prefix(), &edge.authority()[..]), ("/edge", "web:443"));
        let ssh = |destination: &str, port| Address::Ssh {
            destination: destination.to_owned(),
            port,
        };
        for (url, address) in [
            ("ssh://web", ssh("web", None)),
            ("ssh://me@web:2222", ssh("me@web", Some(2222))),
        ] {
            assert_eq!(url.parse::<Address>().unwrap(), address);
            assert_eq!(address.to_string(), url);
        }
        for wrong in [
            "ssh://",
            "ssh://-oProxyCommand=x",
            "ssh://-x@web",
            "ssh://web/path",
            "web:5001",
            "ftp://web",
            "http://",
            "http://web:x",
            "http://web/path?x",
            "http://web/a b",
            "http:///path",
            "http://me@web",
            "http://we\x1bb",
            "http://we\u{a0}b:80",
            "http://web\r\nX: y",
            "http://::1:5001",
            "http://[::1]5001",
            "unix:p.sock",
            "",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn tokens_stand_in_headers_and_are_not_printed() {
        let token = Token::parse("s3cret\n", "the test").unwrap();
        assert_eq!(token.bearer(), "Bearer s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
        for wrong in ["", "\n", "a b", "a\nb", "ü"] {
            assert!(Token::parse(wrong, "the test").is_err(), "{wrong:?}");
        }
    }
}
