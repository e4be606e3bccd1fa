//! Which words of an expression are names, and what of: libpcap's `grammar.y` as far as that goes.

use std::ops::Range;

use super::{Refused, language::Language, tokens::Token};

/// What libpcap takes a name to be the name of, at some place of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A host's, as it is without any word before it.
    Host,
    EthernetAddress,
    Network,
    Port,
    PortRange,
    /// A protocol in IP.
    Protocol,
    /// A protocol below IP: libpcap itself knows all there are.
    OtherProtocol,
}

impl Meaning {
    /// What it is the name of, in libpcap's words.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::EthernetAddress => "ether host",
            Self::Network => "network",
            Self::Port => "port",
            Self::PortRange => "port in range",
            Self::Protocol | Self::OtherProtocol => "ip proto",
        }
    }

    /// What is to be written in place of the name.
    pub(super) fn instead(self) -> &'static str {
        match self {
            Self::Host => "write the address",
            Self::EthernetAddress => "write the Ethernet address",
            Self::Network => "write the network's address",
            Self::Port => "write the port's number",
            Self::PortRange => "write the numbers of the first and the last port, as in 80-90",
            Self::Protocol | Self::OtherProtocol => "write the protocol's number",
        }
    }
}

/// What is not compiled as it is.
pub(super) enum Word<'a> {
    /// A protocol in IP by the name that is a word of the language too.
    Protocol(Place<'a>, &'static str),
    /// A name that libpcap would look up.
    Name(Place<'a>),
}

/// Where a name stands.
pub(super) struct Place<'a> {
    /// In the expression, in bytes.
    pub(super) at: usize,
    /// As it is written, with a backslash before it or without.
    pub(super) text: &'a str,
    pub(super) name: &'a str,
    pub(super) meaning: Meaning,
    /// The words that say what it is the name of, such as `src port`, and where they begin.
    pub(super) qualifiers: &'a str,
    pub(super) qualifiers_at: usize,
    /// It follows them at once, and not after `and` or `or`.
    pub(super) follows_qualifiers: bool,
    /// It stands between parentheses that follow them.
    pub(super) is_enclosed: bool,
    /// What follows it is of the same words.
    pub(super) has_followers: bool,
}

/// The words of an expression that are not compiled as they are, in their order.
pub(super) struct Words<'a> {
    language: Language,
    expression: &'a str,
    /// How much of it has been read, in bytes.
    at: usize,
    context: Context,
    /// That before each parenthesis that is open, which is that behind it again.
    around: Vec<Context>,
    /// The last token, and the one before that.
    before: &'a str,
    before_that: &'a str,
}

/// What the words before a name make of it.
#[derive(Clone)]
struct Context {
    meaning: Meaning,
    /// Where they are.
    qualifiers: Range<usize>,
    /// The name stands between parentheses that follow them.
    is_enclosed: bool,
}

impl<'a> Words<'a> {
    pub(super) fn of(language: Language, expression: &'a str) -> Self {
        Self {
            language,
            expression,
            at: 0,
            context: Context {
                meaning: Meaning::Host,
                qualifiers: 0..0,
                is_enclosed: false,
            },
            around: Vec::new(),
            before: "",
            before_that: "",
        }
    }

    fn take(&mut self, token: Token, text: &'a str) -> Result<Option<Word<'a>>, Refused> {
        match token {
            Token::Keyword(_) if text == "protochain" => return Err(Refused::Protochain),
            Token::Keyword(_) => self.take_keyword(text),
            Token::Name(_) if !is_known(self.before, text, self.context.meaning) => {
                return Ok(Some(Word::Name(self.place(text, text))));
            }
            Token::Escaped(_) => return Ok(self.escaped(text)),
            Token::Other(_) if text == "(" => {
                self.around.push(self.context.clone());
                self.context.is_enclosed |= is_qualifier(self.before);
            }
            Token::Other(_) if text == ")" => {
                if let Some(outside) = self.around.pop() {
                    self.context = outside;
                }
            }
            Token::Space(_) | Token::Name(_) | Token::Other(_) | Token::Wrong => {}
        }
        Ok(None)
    }

    fn take_keyword(&mut self, word: &str) {
        let context = &mut self.context;
        context.meaning = meaning_after(self.before, word, context.meaning);
        if is_qualifier(word) {
            let is_between = matches!(self.before, "and" | "or") && matches!(self.before_that, "src" | "dst");
            let goes_on = is_qualifier(self.before) || is_between && matches!(word, "src" | "dst");
            let start = if goes_on {
                context.qualifiers.start
            } else {
                self.at
            };
            context.qualifiers = start..self.at + word.len();
        }
    }

    /// What a backslash and a word are, if libpcap does not know that.
    fn escaped(&self, text: &'a str) -> Option<Word<'a>> {
        let name = &text[1..];
        let meaning = self.context.meaning;
        let number = PROTOCOLS.iter().find(|(protocol, _)| *protocol == name);
        if let (Meaning::Protocol, Some((_, number))) = (meaning, number) {
            return Some(Word::Protocol(self.place(text, name), number));
        }
        let is_name = meaning != Meaning::OtherProtocol && !is_known(self.before, name, meaning);
        is_name.then(|| Word::Name(self.place(text, name)))
    }

    /// That of a name which is the next token.
    fn place(&self, text: &'a str, name: &'a str) -> Place<'a> {
        let Context {
            meaning,
            ref qualifiers,
            is_enclosed,
        } = self.context;
        Place {
            at: self.at,
            text,
            name,
            meaning,
            qualifiers_at: qualifiers.start,
            qualifiers: &self.expression[qualifiers.clone()],
            follows_qualifiers: is_qualifier(self.before),
            is_enclosed,
            has_followers: is_followed(self.language, &self.expression[self.at + text.len()..]),
        }
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Result<Word<'a>, Refused>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = &self.expression[self.at..];
            let token = Token::first_of(self.language, rest)?;
            if token == Token::Wrong {
                // libpcap itself refuses what begins like this.
                return None;
            }
            let text = &rest[..token.len()];
            let word = self.take(token, text);
            if !matches!(token, Token::Space(_)) {
                self.before_that = self.before;
                self.before = text;
            }
            self.at += text.len();
            if let Some(word) = word.transpose() {
                return Some(word);
            }
        }
    }
}
/// Whether a word is one of those that say what follows them, or of which protocol it is.
fn is_qualifier(word: &str) -> bool {
    const QUALIFIERS: [&str; 22] = [
        "src",
        "dst",
        "host",
        "net",
        "port",
        "portrange",
        "proto",
        "gateway",
        "link",
        "ether",
        "ppp",
        "slip",
        "fddi",
        "tr",
        "wlan",
        "ip",
        "ip6",
        "arp",
        "rarp",
        "tcp",
        "udp",
        "sctp",
    ];
    QUALIFIERS.contains(&word)
}

/// Whether a text goes on with something that needs no words of its own, since those before it speak of it.
fn is_followed(language: Language, mut text: &str) -> bool {
    let mut has_operator = false;
    while let Some(token) = Token::first_of(language, text) {
        let word = &text[..token.len()];
        match token {
            Token::Space(_) => {}
            Token::Keyword(_) if matches!(word, "and" | "or") => has_operator = true,
            Token::Other(_) if matches!(word, "&&" | "||") => has_operator = true,
            Token::Keyword(_) if word == "not" => {}
            Token::Other(_) if matches!(word, "!" | "(") => {}
            Token::Keyword(_) | Token::Wrong => return false,
            Token::Name(_) | Token::Escaped(_) => return has_operator,
            Token::Other(_) => return has_operator && word.as_bytes()[0].is_ascii_hexdigit(),
        }
        text = &text[token.len()..];
    }
    false
}

/// What a name means after this keyword. Most keywords begin something new, after which a name is a host's.
fn meaning_after(before: &str, keyword: &str, meaning: Meaning) -> Meaning {
    const LINK: [&str; 7] = ["link", "ether", "ppp", "slip", "fddi", "tr", "wlan"];
    match keyword {
        // Names that follow these mean what the last one meant.
        "and" | "or" | "not" => meaning,
        "net" | "mask" => Meaning::Network,
        "port" => Meaning::Port,
        "portrange" => Meaning::PortRange,
        "proto" => match before {
            "ip" | "ip6" | "" | "(" | "and" | "or" | "not" | "&&" | "||" | "!" => Meaning::Protocol,
            _ => Meaning::OtherProtocol,
        },
        "src" | "dst" | "host"
            if meaning == Meaning::EthernetAddress
                && (LINK.contains(&before) || ["src", "dst"].contains(&before)) =>
        {
            meaning
        }
        _ if LINK.contains(&keyword) => Meaning::EthernetAddress,
        _ => Meaning::Host,
    }
}

/// Whether libpcap itself knows what this means.
fn is_known(before: &str, name: &str, meaning: Meaning) -> bool {
    /// After these come names that libpcap has a table of, or that it only compares.
    const NAMED: [&str; 11] = [
        "llc",
        "type",
        "subtype",
        "dir",
        "direction",
        "on",
        "ifname",
        "rset",
        "ruleset",
        "reason",
        "action",
    ];
    NAMED.contains(&before)
        || match meaning {
            Meaning::PortRange => name.split_once('-').is_some_and(|(first, last)| {
                let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                is_number(first) && is_number(last)
            }),
            // The one that is no keyword as well.
            Meaning::OtherProtocol => name == "loopback",
            _ => false,
        }
}

/// Keywords that are names of protocols in IP too, and the numbers that IANA has given these.
///
/// Source: <https://www.iana.org/assignments/protocol-numbers>; `ip` is a name of 0 in `/etc/protocols`.
const PROTOCOLS: [(&str, &str); 10] = [
    ("ip", "0"),
    ("icmp", "1"),
    ("igmp", "2"),
    ("tcp", "6"),
    ("udp", "17"),
    ("esp", "50"),
    ("ah", "51"),
    ("pim", "103"),
    ("vrrp", "112"),
    ("sctp", "132"),
];
