//! Which server is meant, and what is shown to it.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr,
};

/// Port of a server that was not told another.
const PORT: u16 = 5001;

/// Unix sockets of a server on this host that was not told where to listen.
#[cfg(unix)]
const SOCKETS: [&str; 2] = ["/run/packetflix/packetflix.sock", "/run/packetflix.sock"];

/// Flags that say which server is meant.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Where the server is: http://HOST:PORT, https://HOST:PORT or unix:/PATH. By default it is the one of this host
    #[arg(long, env = "PACKETFLIX_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Token that is shown to the server. Other users of this machine see it in the list of processes: --token-file keeps it
    /// from them
    #[arg(
        long,
        env = "PACKETFLIX_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub token: Option<String>,
    /// File that has the token, and nothing else
    #[arg(long, env = "PACKETFLIX_CLIENT_TOKEN_FILE", value_name = "FILE")]
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
    },
    /// At a Unix socket of this host.
    Unix(PathBuf),
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
}

/// Why it cannot be told which server is meant.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The URL is none.
    #[error("{0} is no server: write http://HOST:PORT, https://HOST:PORT or unix:/PATH")]
    Url(String),
    /// The file of the token cannot be read.
    #[error("the token cannot be read from {}", .0.display())]
    TokenFile(PathBuf, #[source] io::Error),
    /// What is to be the token cannot stand in a header.
    #[error("the token in {0} is empty, or has spaces or characters that no token has")]
    Token(String),
}

impl ServerArgs {
    /// The server that is meant.
    ///
    /// # Errors
    /// When these flags name none.
    pub fn resolve(&self) -> Result<Server, ServerError> {
        let address = match &self.server {
            Some(url) => url.parse()?,
            None => Address::of_this_host(),
        };
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(Token::parse(token, "--token")?),
            (None, Some(file)) => Some(Token::read(file)?),
            (None, None) => None,
        };
        let trust = Trust {
            cacert: self.cacert.clone(),
            identity: self.cert.clone().zip(self.key.clone()),
        };
        Ok(Server {
            address,
            token,
            trust,
        })
    }
}

impl Address {
    /// The server of this host: at its Unix socket, which asks for no token, where that is open to this user; else on loopback.
    fn of_this_host() -> Self {
        #[cfg(unix)]
        for socket in SOCKETS {
            if std::os::unix::net::UnixStream::connect(socket).is_ok() {
                return Self::Unix(socket.into());
            }
        }
        Self::Tcp {
            host: "127.0.0.1".to_owned(),
            port: PORT,
            tls: false,
        }
    }

    /// What stands in the header `Host`.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tcp { host, port, .. } => format!("{host}:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl FromStr for Address {
    type Err = ServerError;

    fn from_str(url: &str) -> Result<Self, ServerError> {
        let wrong = || ServerError::Url(url.to_owned());
        if let Some(path) = url.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match Path::new(path).is_absolute() {
                true => Ok(Self::Unix(path.into())),
                false => Err(wrong()),
            };
        }
        let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
        let (tls, default_port) = match scheme {
            "http" | "ws" => (false, 80),
            "https" | "wss" => (true, 443),
            _ => return Err(wrong()),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = split_port(authority).ok_or_else(wrong)?;
        let is_name = |host: &str| !host.is_empty() && !host.contains(['/', '@', '?', '#', ' ']);
        if !is_name(host) {
            return Err(wrong());
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port: port.unwrap_or(default_port),
            tls,
        })
    }
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
            Self::Tcp { tls, .. } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{}", self.authority())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
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

    fn read(file: &Path) -> Result<Self, ServerError> {
        let text =
            fs::read_to_string(file).map_err(|error| ServerError::TokenFile(file.to_owned(), error))?;
        Self::parse(&text, &file.display().to_string())
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
        for wrong in [
            "web:5001",
            "ftp://web",
            "http://",
            "http://web:x",
            "http://web/path",
            "http://me@web",
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
