//! The token file: who may come in, and for what. Holds no token, but what it takes to know one.

use std::{collections::HashMap, path::Path, sync::Arc};

use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq as _;

use super::{
    Basis, Identity,
    file::{self, FileError},
    rights::{Rights, ScopeError},
};
use crate::{error::Told, text::is_shown};

/// Stands before the digest of a token (SHA-256, in hexadecimal digits), in its place.
const DIGEST: &str = "sha256:";

/// Bytes of a digest.
pub(super) const DIGEST_LEN: usize = ring::digest::SHA256_OUTPUT_LEN;

/// Stands in the place of a token for the client certificate of that name.
const CERTIFICATE: &str = "cert";

/// Stands in the place of a certificate's name for all that have no line of their own.
const ALL_OTHERS: &str = "*";

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
    /// What is said of all other certificates.
    other_certificates: Option<Arc<Rights>>,
}

/// The name at the beginning of a line.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    name: String,
    is_quoted: bool,
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
    /// Whoever reads it says so.
    #[error(transparent)]
    Told(#[from] Told),
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
    /// A quotation mark has no other.
    #[error(
        "the name is no text in quotation marks with a blank behind them; \\\" and \\\\ in it stand for \" and \\"
    )]
    Quotes,
    /// Nobody would see it.
    #[error("the name is empty, or has a character that is not shown")]
    HiddenName,
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
    /// It is no digest.
    #[error("behind sha256: there are no 64 hexadecimal digits")]
    Digest,
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
        Self::parse(&file::read_tokens(path)?)
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
        if line.is_empty() || line.starts_with('#') {
            return Ok(());
        }
        let (Name { name, is_quoted }, rest) = Name::take(line)?;
        let mut words = rest.split_whitespace();
        let token = words.next().ok_or(LineError::NoToken)?;
        if name.len() > MAX_NAME_LEN {
            return Err(LineError::LongName);
        }
        if token == CERTIFICATE {
            let rights = Arc::new(Rights::parse(words)?);
            let before = match name == ALL_OTHERS && !is_quoted {
                true => self.other_certificates.replace(rights),
                false => self.certificates.insert(name.into(), rights),
            };
            return match before {
                Some(_) => Err(LineError::Repeated),
                None => Ok(()),
            };
        }
        let name: Arc<str> = name.into();
        let digest = digest_in(token)?;
        let rights = Arc::new(Rights::parse(words)?);
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
        self.holders.len() + self.certificates.len() + usize::from(self.other_certificates.is_some())
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

    /// What is said of a client certificate of this name, be it of all that have no line.
    pub(crate) fn certificate(&self, name: &str) -> Option<&Arc<Rights>> {
        let own = self.certificates.get(name);
        own.or(self.other_certificates.as_ref())
    }
}

/// What a token file says, for who needs no token of it to know one: digests stand in the place of tokens, and nothing in that of
/// comments.
///
/// # Errors
/// When the file cannot be used.
pub(super) fn with_digests(text: &[u8]) -> Result<String, TokenFileError> {
    Tokens::parse(text)?;
    let lines = text.split(|byte| *byte == b'\n').map(|line| {
        let line = str::from_utf8(line).map_err(|_| LineError::NoText)?.trim();
        if line.starts_with('#') {
            return Ok(String::new());
        }
        line_with_digest(line)
    });
    let lines = lines.enumerate().map(|(at, line)| {
        let number = at + 1;
        line.map_err(|source| TokenFileError::Line { number, source })
    });
    Ok(lines.collect::<Result<Vec<_>, _>>()?.join("\n"))
}

fn line_with_digest(line: &str) -> Result<String, LineError> {
    if line.is_empty() {
        return Ok(String::new());
    }
    let (_, rest) = Name::take(line)?;
    let (before, rest) = line.split_at(line.len() - rest.len());
    let rest = rest.trim_start();
    let (token, scopes) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let digits = match token {
        CERTIFICATE => return Ok(line.to_owned()),
        token => digest_in(token)?.map(|byte| format!("{byte:02x}")).concat(),
    };
    Ok(format!("{before} {DIGEST}{digits} {scopes}"))
}

impl Name {
    /// Takes the name from the beginning of a line: a word, or anything in quotation marks.
    fn take(line: &str) -> Result<(Self, &str), LineError> {
        let (name, rest) = match line.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
                (name.to_owned(), rest)
            }
        };
        if name.is_empty() || !name.chars().all(is_shown) {
            return Err(LineError::HiddenName);
        }
        let is_quoted = line.starts_with('"');
        Ok((Self { name, is_quoted }, rest))
    }
}

/// What stands before the next quotation mark, and behind it.
fn unquote(quoted: &str) -> Result<(String, &str), LineError> {
    let mut name = String::new();
    let mut rest = quoted.chars();
    loop {
        match rest.next().ok_or(LineError::Quotes)? {
            '"' => break,
            '\\' => match rest.next() {
                Some(escaped @ ('"' | '\\')) => name.push(escaped),
                _ => return Err(LineError::Quotes),
            },
            character => name.push(character),
        }
    }
    let rest = rest.as_str();
    match rest.is_empty() || rest.starts_with(char::is_whitespace) {
        true => Ok((name, rest)),
        false => Err(LineError::Quotes),
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

/// The digest of what stands in the place of a token.
fn digest_in(token: &str) -> Result<[u8; DIGEST_LEN], LineError> {
    let Some(digits) = token.strip_prefix(DIGEST) else {
        check(token)?;
        return Ok(digest_of(token.as_bytes()));
    };
    let is_digest = digits.len() == 2 * DIGEST_LEN && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_digest {
        return Err(LineError::Digest);
    }
    let mut digest = [0; DIGEST_LEN];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * at..][..2], 16).map_err(|_| LineError::Digest)?;
    }
    Ok(digest)
}

pub(super) fn digest_of(token: &[u8]) -> [u8; DIGEST_LEN] {
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
    fn any_name_of_a_certificate_can_have_a_line() {
        let text = "\"Alice Example\" cert admin\n\"#root\"\tcert discover\r\n\"a \\\" \\\\\" cert capture\n\
                    \"*\" cert none\n* cert capture:shop/*\n";
        let tokens = Tokens::parse(text.as_bytes()).unwrap();
        assert_eq!(tokens.len(), 5);
        let rights = |scopes: &str| Rights::parse(scopes.split_whitespace()).unwrap();
        for (name, scopes) in [
            ("Alice Example", "admin"),
            ("#root", "discover"),
            (r#"a " \"#, "capture"),
            ("*", "none"),
            ("Alice", "capture:shop/*"),
            ("", "capture:shop/*"),
        ] {
            assert_eq!(**tokens.certificate(name).unwrap(), rights(scopes), "{name}");
        }
        // A comment is none the less.
        let tokens = Tokens::parse(b"#root cert admin\n\"alice\" cert none\n").unwrap();
        assert!(tokens.certificate("#root").is_none() && tokens.certificate("alice").is_some());
    }

    #[test]
    fn digests_stand_for_tokens() {
        let text = format!(
            "# old: {TOKEN}old\n\n \"a \\\" b\"\t{TOKEN}  capture:x/* discover\r\nbob {TOKEN}bob\n\"carol\" cert admin\n* cert none"
        );
        let told = with_digests(text.as_bytes()).unwrap();
        assert!(!told.contains(TOKEN) && told.lines().count() == 6, "{told}");
        let (said, read) = (
            Tokens::parse(told.as_bytes()).unwrap(),
            Tokens::parse(text.as_bytes()).unwrap(),
        );
        for token in [TOKEN.to_owned(), format!("{TOKEN}bob"), format!("{TOKEN}old")] {
            assert_eq!(said.holder_of(token.as_bytes()), read.holder_of(token.as_bytes()));
        }
        assert_eq!(
            (said.certificates, said.other_certificates),
            (read.certificates, read.other_certificates)
        );
        // Again, and as people write them.
        assert_eq!(with_digests(told.as_bytes()).unwrap(), told);
        let upper = told
            .replace("sha256:", "sha256\u{0}")
            .to_uppercase()
            .replace("SHA256\u{0}", "sha256:");
        let tokens = Tokens::parse(upper.split('\n').nth(3).unwrap().as_bytes()).unwrap();
        assert!(tokens.holder_of(format!("{TOKEN}bob").as_bytes()).is_some());
    }

    #[test]
    fn lines_that_cannot_be_used_are_named() {
        for (line, error) in [
            ("alice sha256:", LineError::Digest),
            (&format!("alice sha256:{}", "0".repeat(63)), LineError::Digest),
            (&format!("alice sha256:{}g", "0".repeat(63)), LineError::Digest),
            (&format!("alice sha256:{}é", "0".repeat(62)), LineError::Digest),
            ("alice", LineError::NoToken),
            ("alice short", LineError::ShortToken),
            ("alice =================", LineError::TokenCharacter),
            (&format!("alice {}", "x".repeat(1025)), LineError::LongToken),
            (&format!("{} {TOKEN}", "x".repeat(65)), LineError::LongName),
            (&format!("alice {TOKEN}%"), LineError::TokenCharacter),
            (&format!("\"Alice Example {TOKEN}"), LineError::Quotes),
            (&format!("\"Alice\"Example {TOKEN}"), LineError::Quotes),
            (&format!(r#""Alice\x20Example" {TOKEN}"#), LineError::Quotes),
            ("\"Alice Example\"", LineError::NoToken),
            (&format!("\"\" {TOKEN}"), LineError::HiddenName),
            (&format!("eve\u{202e}x {TOKEN}"), LineError::HiddenName),
            (
                &format!("alice {TOKEN} none capture"),
                LineError::Scope(ScopeError::NoneBesideOthers),
            ),
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
            "* cert\n* cert admin".to_owned(),
            "a cert\n\"a\" cert admin".to_owned(),
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
        fn any_file_means_the_same_with_digests(text in "([a-z\"# ]{0,6}[ \t]{0,2}(cert|[a-z0-9]{16,20})[ \t]?(admin|discover|x)?\r?\n){0,5}") {
            let told = with_digests(text.as_bytes());
            match (Tokens::parse(text.as_bytes()), told) {
                (Ok(read), Ok(told)) => {
                    let said = Tokens::parse(told.as_bytes()).unwrap();
                    prop_assert_eq!(said.len(), read.len());
                    for (said, read) in said.holders.iter().zip(&read.holders) {
                        prop_assert_eq!((&said.digest, &said.identity), (&read.digest, &read.identity));
                    }
                }
                (read, told) => prop_assert!(read.is_err() && told.is_err()),
            }
        }

        #[test]
        fn no_error_tells_a_token(token in "[A-Za-z0-9]{8,15}|[A-Za-z0-9]{20}[%&]") {
            let text = format!("alice {token}");
            let error = Tokens::parse(text.as_bytes()).unwrap_err();
            prop_assert!(!crate::error::chain(&error).contains(&token));
        }
    }
}
