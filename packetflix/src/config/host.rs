//! Names under which the service may be reached.

use std::{fmt, str::FromStr};

/// A name of a host, in small letters and without the dot of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(String);

/// Why something is no name of a host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0} is no name of a host: write each name alone, without scheme, port or *")]
pub struct HostNameError(String);

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let is_usable = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty() || !name.bytes().all(is_usable) {
            return Err(HostNameError(text.to_owned()));
        }
        Ok(Self(name.to_ascii_lowercase()))
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_named_one_by_one() {
        for wrong in ["", "*", "*.example", "http://x", "x:80", "a b", "."] {
            assert!(wrong.parse::<HostName>().is_err(), "{wrong}");
        }
    }
}
