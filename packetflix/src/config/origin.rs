//! Origins of pages that may use the service from within a browser.

use std::{fmt, str::FromStr};

use warp::http::uri::Authority;

/// Where a page comes from, such as `https://tools.example:8443` (RFC 6454).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: Scheme,
    host: String,
    port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
}

/// Why something is no origin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OriginError {
    /// Pages of everyone could do what whoever looks at them may do.
    #[error("* would let the pages of everyone in: name each origin")]
    Any,
    /// It is written otherwise.
    #[error("{0} is no origin: write http://HOST, https://HOST, or with a port")]
    Form(String),
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        if text == "*" {
            return Err(OriginError::Any);
        }
        let form = || OriginError::Form(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(form)?;
        let scheme = match &scheme.to_ascii_lowercase()[..] {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return Err(form()),
        };
        let (host, port) = host_and_port(rest, scheme).ok_or_else(form)?;
        Ok(Self { scheme, host, port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, default_port) = match self.scheme {
            Scheme::Http => ("http", 80),
            Scheme::Https => ("https", 443),
        };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == default_port {
            return Ok(());
        }
        write!(f, ":{}", self.port)
    }
}

impl Origin {
    /// Whether what a client calls us by, in `Host`, is the host and port of this origin.
    pub(crate) fn is_at(&self, host: &str) -> bool {
        host_and_port(host, self.scheme).is_some_and(|(host, port)| host == self.host && port == self.port)
    }
}

fn host_and_port(text: &str, scheme: Scheme) -> Option<(String, u16)> {
    let authority: Authority = text.parse().ok()?;
    let host = authority.host();
    // The crate takes a port that is none for none, and names before an @.
    let port = match authority.as_str().strip_prefix(host)?.strip_prefix(':') {
        Some(port) => port.parse().ok()?,
        None => match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        },
    };
    (!host.is_empty()).then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_named_one_by_one() {
        assert_eq!("*".parse::<Origin>(), Err(OriginError::Any));
        for wrong in [
            "",
            "null",
            "tools",
            "ftp://tools",
            "http://",
            "http://a/b",
            "http://a:99999",
            "http://*",
        ] {
            let parsed = wrong.parse::<Origin>();
            // A star within a host is a host of that name, which there is none of.
            assert!(
                matches!(parsed, Err(OriginError::Form(_))) || wrong.contains('*'),
                "{wrong} {parsed:?}"
            );
        }
    }
}
