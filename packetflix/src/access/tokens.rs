//! The token file: who may come in, and for what. Holds no token, but what it takes to know one.

use std::{collections::HashMap, path::Path, sync::Arc};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use super::{
    Basis, Identity,
    file::{self, FileError},
    rights::{Rights, ScopeError},
};

/// Bytes of a digest.
pub(super) const DIGEST_LEN: usize = ring::digest::SHA256_OUTPUT_LEN;

/// Stands in the place of a token for the client certificate of that name.
const CERTIFICATE: &str = "cert";

/// Most lines that say something.
const MAX_LINES: usize = 4096;
/// Most bytes of a name.
const MAX_NAME_LEN: usize = 64;
/// Fewer characters can be guessed.
const MIN_TOKEN_LEN: usize = 16;
/// Most characters of a token.
const MAX_TOKEN_LEN: usize = 1024;

/// Who may come in, and for what.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    holders: Vec<Holder>,
    certificates: HashMap<Arc<str>, Arc<Rights>>,
}

/// One who has a token.
#[derive(Debug)]
struct Holder {
    /// Of the token, so that no comparison depends on its length, and none is left in memory.
    digest: [u8; DIGEST_LEN],
    identity: Identity,
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read.
    #[error("the token file cannot be used")]
    File(#[from] FileError),
    /// It says nothing, which is rather a file that is being written than what anyone wants.
    #[error("the token file has no line that says who may come in")]
    Empty,
    /// It says too much.
    #[error("the token file has more than {MAX_LINES} lines")]
    TooManyLines,
    /// A line is wrong.
    #[error("line {number} of the token file cannot be used")]
    Line {
        /// Its number, from 1.
        number: usize,
        /// What is wrong with it.
        source: LineError,
    },
}

/// What is wrong with a line. Never names the token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LineError {
    /// Not UTF-8.
    #[error("it is no text")]
    NoText,
    /// There is only a name.
    #[error("it has no token: a line is NAME TOKEN [SCOPE…]")]
    NoToken,
    /// Names are for logs.
    #[error("the name has more than {MAX_NAME_LEN} bytes")]
    LongName,
    /// It could be guessed.
    #[error("the token has fewer than {MIN_TOKEN_LEN} characters")]
    ShortToken,
    /// It would not fit.
    #[error("the token has more than {MAX_TOKEN_LEN} characters")]
    LongToken,
    /// No client could send it.
    #[error("the token has a character that is none of A-Z a-z 0-9 - . _ ~ + / =")]
    TokenCharacter,
    /// Nobody could tell whose it is.
    #[error("the token, or the certificate's name, is that of an earlier line")]
    Repeated,
    /// A scope is wrong.
    #[error(transparent)]
    Scope(#[from] ScopeError),
}

impl Tokens {
    /// Reads a token file.
    ///
    /// # Errors
    /// When others may read it, or it has anything that cannot be used.
    pub(crate) fn load(path: &Path) -> Result<Self, TokenFileError> {
        Self::parse(&file::read_secret(path)?)
    }

    fn parse(text: &[u8]) -> Result<Self, TokenFileError> {
        let mut tokens = Self::default();
        for (at, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let number = at + 1;
            tokens
                .take_line(line)
                .map_err(|source| TokenFileError::Line { number, source })?;
            if tokens.len() > MAX_LINES {
                return Err(TokenFileError::TooManyLines);
            }
        }
        match tokens.len() {
            0 => Err(TokenFileError::Empty),
            _ => Ok(tokens),
        }
    }

    fn take_line(&mut self, line: &[u8]) -> Result<(), LineError> {
        let line = std::str::from_utf8(line).map_err(|_| LineError::NoText)?.trim();
        let mut words = line.split_whitespace();
        let Some(name) = words.next().filter(|name| !name.starts_with('#')) else {
            return Ok(());
        };
        let token = words.next().ok_or(LineError::NoToken)?;
        if name.len() > MAX_NAME_LEN {
            return Err(LineError::LongName);
        }
        let name: Arc<str> = name.into();
        if token == CERTIFICATE {
            let rights = Arc::new(Rights::parse(words)?);
            return match self.certificates.insert(name, rights) {
                Some(_) => Err(LineError::Repeated),
                None => Ok(()),
            };
        }
        check(token)?;
        let rights = Arc::new(Rights::parse(words)?);
        let digest = digest_of(token.as_bytes());
        if self.holders.iter().any(|holder| holder.digest == digest) {
            return Err(LineError::Repeated);
        }
        let basis = Basis::Token(digest);
        let identity = Identity { name, rights, basis };
        self.holders.push(Holder { digest, identity });
        Ok(())
    }

    /// How many lines say something.
    pub(crate) fn len(&self) -> usize {
        self.holders.len() + self.certificates.len()
    }

    /// Whose token this is. Takes the same time for any token of that length, known or not.
    pub(crate) fn holder_of(&self, token: &[u8]) -> Option<&Identity> {
        self.holder_by(&digest_of(token))
    }

    /// Whose token has this digest, likewise.
    pub(crate) fn holder_by(&self, digest: &[u8; DIGEST_LEN]) -> Option<&Identity> {
        let mut found = None;
        for holder in &self.holders {
            if bool::from(holder.digest.ct_eq(digest)) {
                found = Some(&holder.identity);
            }
        }
        found
    }

    /// What is said of a client certificate of this name.
    pub(crate) fn certificate(&self, name: &str) -> Option<&Arc<Rights>> {
        self.certificates.get(name)
    }
}

/// A token is what RFC 6750, section 2.1, lets a client send.
fn check(token: &str) -> Result<(), LineError> {
    let is_usable = |character: char| {
        character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_' | '~' | '+' | '/')
    };
    let characters = token.trim_end_matches('=');
    if characters.is_empty() || !characters.chars().all(is_usable) {
        return Err(LineError::TokenCharacter);
    }
    match token.len() {
        len if len < MIN_TOKEN_LEN => Err(LineError::ShortToken),
        len if len > MAX_TOKEN_LEN => Err(LineError::LongToken),
        _ => Ok(()),
    }
}

fn digest_of(token: &[u8]) -> [u8; DIGEST_LEN] {
    let mut bytes = [0; DIGEST_LEN];
    bytes.copy_from_slice(digest(&SHA256, token).as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    fn line_error(line: &str) -> LineError {
        match Tokens::parse(format!("# first\n{line}\n").as_bytes()) {
            Err(TokenFileError::Line { number: 2, source }) => source,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn lines_are_names_tokens_and_scopes() {
        let text = format!(
            "# who\n\n  alice {TOKEN}  \r\nalice\t{TOKEN}+new== discover capture:shop/*\n #x y\nbob cert admin\n"
        );
        let tokens = Tokens::parse(text.as_bytes()).unwrap();
        assert_eq!(tokens.len(), 3);
        let alice = tokens.holder_of(TOKEN.as_bytes()).unwrap();
        assert_eq!((&*alice.name, &*alice.rights), ("alice", &Rights::ORDINARY));
        let new = tokens.holder_of(format!("{TOKEN}+new==").as_bytes()).unwrap();
        assert_eq!(&*new.name, "alice");
        assert!(new.rights.may_ask_for("shop/a") && !new.rights.may_ask_for("a"));
        assert!(tokens.certificate("bob").unwrap().may_administer());
        for other in [
            "",
            "cert",
            "0123456789abcdeF",
            "0123456789abcde",
            "0123456789abcdef ",
        ] {
            assert!(tokens.holder_of(other.as_bytes()).is_none(), "{other}");
        }
        assert!(tokens.certificate("alice").is_none());
    }

    #[test]
    fn lines_that_cannot_be_used_are_named() {
        for (line, error) in [
            ("alice", LineError::NoToken),
            ("alice short", LineError::ShortToken),
            ("alice =================", LineError::TokenCharacter),
            (&format!("alice {}", "x".repeat(1025)), LineError::LongToken),
            (&format!("{} {TOKEN}", "x".repeat(65)), LineError::LongName),
            (&format!("alice {TOKEN}%"), LineError::TokenCharacter),
            (&format!("alice {TOKEN}=x"), LineError::TokenCharacter),
            (
                &format!("alice {TOKEN} read"),
                LineError::Scope(ScopeError::Unknown("read".into())),
            ),
        ] {
            assert_eq!(line_error(line), error, "{line}");
        }
        for repeated in [
            format!("a {TOKEN}\nb {TOKEN} admin"),
            "a cert\na cert admin".to_owned(),
        ] {
            let error = Tokens::parse(repeated.as_bytes()).unwrap_err();
            assert!(
                matches!(
                    error,
                    TokenFileError::Line {
                        number: 2,
                        source: LineError::Repeated
                    }
                ),
                "{error}"
            );
        }
        assert!(matches!(Tokens::parse(b"# none\n\n"), Err(TokenFileError::Empty)));
        let many: String = (0..=MAX_LINES).map(|n| format!("n{n} cert\n")).collect();
        assert!(matches!(
            Tokens::parse(many.as_bytes()),
            Err(TokenFileError::TooManyLines)
        ));
    }

    proptest! {
        #[test]
        fn takes_any_file(text in any::<Vec<u8>>()) {
            let _ = Tokens::parse(&text);
        }

        #[test]
        fn no_error_tells_a_token(token in "[A-Za-z0-9]{8,15}|[A-Za-z0-9]{20}[%&]") {
            let text = format!("alice {token}");
            let error = Tokens::parse(text.as_bytes()).unwrap_err();
            prop_assert!(!crate::error::chain(&error).contains(&token));
        }
    }
}
