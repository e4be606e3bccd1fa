//! Which words of a filter expression libpcap would have to look up somewhere.
//!
//! libpcap asks the resolver for the names of hosts, networks, ports and protocols, and `/etc/ethers` for those of
//! Ethernet addresses. An expression comes from a client, and what it can make a server ask of whom is not for
//! clients to choose. So the text is taken apart here as libpcap takes it apart, and what is neither a word of the
//! language nor a number or address is refused; or, where names may be looked up, replaced by what was found for it
//! elsewhere. This is for clear sentences: that libpcap looks nothing up, the rights of the process that compiles see to.
//!
//! The names of protocols that are words of the language too are replaced by their numbers, so that nobody has to
//! look into `/etc/protocols`, which many container images do not have.
//!
//! Source: pcap-filter(7), and the tokens of libpcap 1.10 (`scanner.l`, `grammar.y`): the longest token wins, and among
//! equally long ones a name is the last.

mod grammar;
mod language;
mod lookup;
mod replace;
mod slips;
mod tokens;

use std::borrow::Cow;

use thiserror::Error;

use self::{
    grammar::{Place, Word, Words},
    replace::Rewriter,
    slips::slip,
};
pub use self::{
    language::Language,
    lookup::{Found, Kind, Known, Lookup},
};

/// Most names in an expression.
pub const MAX_NAMES: usize = 32;

/// Why an expression is not compiled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// A name would have to be looked up.
    #[error("\"{name}\" is a name: {instead}")]
    Name {
        /// The name.
        name: String,
        /// What is to be written instead.
        instead: &'static str,
    },
    /// Following chains of headers takes a loop.
    #[error("protochain takes a loop")]
    Protochain,
    /// A word is none, or a name stands for nothing that fits; the sentence is one that libpcap could say.
    #[error("{0}")]
    Unknown(String),
    /// There are too many names.
    #[error("there are more than {MAX_NAMES} names")]
    TooMany,
}

/// What becomes of names.
#[derive(Clone, Debug)]
pub enum Names {
    /// They are refused.
    Refused,
    /// They are replaced by what was found for them.
    Known(Known),
}

impl Language {
    /// The expression as it is to be compiled, without names.
    ///
    /// # Errors
    /// When it holds a name that cannot be replaced, or would become a program with a loop.
    pub fn check<'a>(self, expression: &'a str, names: &Names) -> Result<Cow<'a, str>, Refused> {
        let mut out = Rewriter::new(expression);
        for word in Words::of(self, expression) {
            match (word?, names) {
                (Word::Protocol(place, number), _) => out.put_number(&place, number),
                (Word::Name(place), Names::Refused) => {
                    self.refuse_slip(expression, &place, false)?;
                    return Err(self.refused(&place));
                }
                (Word::Name(place), Names::Known(known)) => {
                    self.refuse_slip(expression, &place, true)?;
                    if let Some(text) = place.stands_for(known).map_err(Refused::Unknown)? {
                        out.put(&place, &text);
                    }
                }
            }
        }
        Ok(out.finish())
    }

    /// The names that have to be looked up.
    ///
    /// # Errors
    /// When there are too many, or it would become a program with a loop.
    pub fn wanted(self, expression: &str) -> Result<Vec<Lookup>, Refused> {
        let mut wanted = Vec::new();
        for word in Words::of(self, expression) {
            let Word::Name(place) = word? else { continue };
            self.refuse_slip(expression, &place, true)?;
            for lookup in place.lookups() {
                if !wanted.contains(&lookup) {
                    wanted.push(lookup);
                }
            }
            if wanted.len() > MAX_NAMES {
                return Err(Refused::TooMany);
            }
        }
        Ok(wanted)
    }

    /// # Errors
    /// When what stands there is no name.
    fn refuse_slip(self, expression: &str, place: &Place<'_>, may_be_name: bool) -> Result<(), Refused> {
        match slip(self, expression, place.at, place.text, may_be_name) {
            Some(message) => Err(Refused::Unknown(message)),
            None => Ok(()),
        }
    }

    fn refused(self, place: &Place<'_>) -> Refused {
        let name = place.name;
        let instead = if !self.has(name) && self.has(&name.to_ascii_lowercase()) {
            "the words of filters are written in small letters"
        } else {
            place.meaning.instead()
        };
        Refused::Name {
            name: name.to_owned(),
            instead,
        }
    }
}

#[cfg(test)]
mod tests;
