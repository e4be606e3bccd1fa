//! Where to listen.

use std::{fmt, net::Ipv6Addr, path::PathBuf};

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// At all addresses, of IPv6 and IPv4.
    All(u16),
    /// At the addresses of loopback, of IPv6 and IPv4, with one port.
    Loopback(u16),
    /// At all addresses that a host's name has, or at an address.
    Host(String, u16),
    /// At a Unix socket.
    Unix(PathBuf),
    /// At a Unix socket that nobody asked for, and that is done without where it cannot be.
    OwnSocket(PathBuf),
}

/// Why something is no address to listen at.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AddressError {
    /// It is written otherwise.
    #[error("{0} is nothing to listen at: write HOST:PORT, HOST, [ADDRESS]:PORT or unix:/PATH")]
    Form(String),
    /// A socket's path is not what is meant wherever the service is started.
    #[error("{} is no absolute path of a Unix socket", .0.display())]
    Relative(PathBuf),
}

impl ListenAddress {
    /// Reads an address; `port` is the one where it has none.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str, port: u16) -> Result<Self, AddressError> {
        let path = text
            .strip_prefix("unix:")
            .or_else(|| text.contains('/').then_some(text));
        if let Some(path) = path {
            let path = PathBuf::from(path);
            return match path.is_absolute() {
                true => Ok(Self::Unix(path)),
                false => Err(AddressError::Relative(path)),
            };
        }
        let form = || AddressError::Form(text.to_owned());
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, rest) = match bracketed {
            Some((address, rest)) if address.parse::<Ipv6Addr>().is_ok() => (address, rest),
            // An address of IPv6 alone.
            None if text.parse::<Ipv6Addr>().is_ok() => (text, ""),
            None => text.split_at(text.find(':').unwrap_or(text.len())),
            Some(_) => return Err(form()),
        };
        let port = match rest.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| form())?,
            None if rest.is_empty() => port,
            None => return Err(form()),
        };
        match host {
            "" => Err(form()),
            "::" => Ok(Self::All(port)),
            host if host.contains(['[', ']']) => Err(form()),
            host => Ok(Self::Host(host.to_owned(), port)),
        }
    }

    /// The TCP port, if it has one.
    pub(crate) fn port(&self) -> Option<u16> {
        match self {
            Self::All(port) | Self::Loopback(port) | Self::Host(_, port) => Some(*port),
            Self::Unix(_) | Self::OwnSocket(_) => None,
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All(port) => write!(f, "port {port}"),
            Self::Loopback(port) => write!(f, "port {port} of loopback"),
            Self::Host(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Host(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) | Self::OwnSocket(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_ports_or_paths() {
        let host = |host: &str, port| Ok(ListenAddress::Host(host.to_owned(), port));
        let unix = |path: &str| Ok(ListenAddress::Unix(path.into()));
        for (text, address) in [
            ("[::]:8080", Ok(ListenAddress::All(8080))),
            ("[::]", Ok(ListenAddress::All(5001))),
            ("::", Ok(ListenAddress::All(5001))),
            ("0.0.0.0:1", host("0.0.0.0", 1)),
            ("127.0.0.1", host("127.0.0.1", 5001)),
            ("localhost:0", host("localhost", 0)),
            ("localhost", host("localhost", 5001)),
            ("::1", host("::1", 5001)),
            ("[::1]:7", host("::1", 7)),
            ("unix:/run/p.sock", unix("/run/p.sock")),
            ("/run/p.sock", unix("/run/p.sock")),
        ] {
            assert_eq!(ListenAddress::parse(text, 5001), address, "{text}");
        }
        for wrong in [
            "",
            ":5001",
            "host:",
            "host:99999",
            "host:x",
            "[::1",
            "::1]:7",
            "[host]:7",
            "[]:7",
            "a:b:7",
        ] {
            let parsed = ListenAddress::parse(wrong, 5001);
            assert_eq!(parsed, Err(AddressError::Form(wrong.to_owned())));
        }
        for wrong in ["unix:p.sock", "unix:", "run/p.sock"] {
            let parsed = ListenAddress::parse(wrong, 5001);
            assert!(
                matches!(parsed, Err(AddressError::Relative(_))),
                "{wrong} {parsed:?}"
            );
        }
    }
}
