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

use std::{borrow::Cow, collections::HashSet, net::IpAddr, ops::Range, sync::LazyLock};

use thiserror::Error;

use crate::{
    lookup::{Found, Kind, Known, Lookup},
    slips::slip,
};

/// Most names in an expression.
pub const MAX_NAMES: usize = 32;

/// The language of filter expressions, which has more words in later libpcaps. What is no word is looked up by libpcap as a
/// name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Language {
    libpcap: (u32, u32),
}

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

/// What libpcap takes a name to be the name of, at some place of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
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
    fn noun(self) -> &'static str {
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
    fn instead(self) -> &'static str {
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

impl Language {
    /// That of a libpcap of this version, major and minor.
    pub const fn of_libpcap(version: (u32, u32)) -> Self {
        Self { libpcap: version }
    }

    /// The expression as it is to be compiled, without names.
    ///
    /// # Errors
    /// When it holds a name that cannot be replaced, or would become a program with a loop.
    pub fn check<'a>(self, expression: &'a str, names: &Names) -> Result<Cow<'a, str>, Refused> {
        let mut out = Rewriter::new(expression);
        let are_known = matches!(names, Names::Known(_));
        walk(self, expression, |token| match (token, names) {
            (Word::Name(place), _)
                if let Some(message) = slip(self, expression, place.at, place.text, are_known) =>
            {
                Err(Refused::Unknown(message))
            }
            (Word::Protocol(at, number), _) => {
                // What is before it may end with no space.
                out.replace(at.at, at.text.len(), &format!(" {number}"));
                Ok(())
            }
            (Word::Name(place), Names::Refused) => Err(refused(self, place.name, place.meaning)),
            (Word::Name(place), Names::Known(known)) => {
                let Some(text) = place.stands_for(known).map_err(Refused::Unknown)? else {
                    return Ok(());
                };
                // A backslash may have been all that was between it and a word.
                let gap = if place.text.starts_with('\\') { " " } else { "" };
                let new = format!("{gap}{}", text.text);
                if let Some(protocol) = text.over {
                    // `tcp src port 22`: the words before it speak of this protocol, of which the name is.
                    if place.follows_head {
                        out.insert(place.head.start, &format!("{protocol} "));
                        out.replace(place.at, place.text.len(), &new);
                    } else {
                        let head = &expression[place.head.clone()];
                        let whole = format!("{gap}{protocol} {head} {}", text.text);
                        out.replace(place.at, place.text.len(), &whole);
                    }
                } else {
                    out.replace(place.at, place.text.len(), &new);
                }
                Ok(())
            }
        })?;
        Ok(out.finish())
    }

    /// The names that have to be looked up.
    ///
    /// # Errors
    /// When there are too many, or it would become a program with a loop.
    pub fn wanted(self, expression: &str) -> Result<Vec<Lookup>, Refused> {
        let mut wanted = Vec::new();
        walk(self, expression, |word| {
            if let Word::Name(place) = word {
                if let Some(message) = slip(self, expression, place.at, place.text, true) {
                    return Err(Refused::Unknown(message));
                }
                for lookup in place.lookups() {
                    if !wanted.contains(&lookup) {
                        wanted.push(lookup);
                    }
                }
            }
            match wanted.len() {
                count if count > MAX_NAMES => Err(Refused::TooMany),
                _ => Ok(()),
            }
        })?;
        Ok(wanted)
    }

    /// All words.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        let later = LATER_KEYWORDS
            .iter()
            .filter(move |(since, _)| self.libpcap >= *since);
        KEYWORDS.iter().copied().chain(later.map(|(_, word)| *word))
    }

    /// Whether this is one of them.
    pub fn has(self, word: &str) -> bool {
        static SET: LazyLock<HashSet<&str>> = LazyLock::new(|| KEYWORDS.iter().copied().collect());
        let is_later = |(since, later): &((u32, u32), &str)| self.libpcap >= *since && word == *later;
        SET.contains(word) || LATER_KEYWORDS.iter().any(is_later)
    }
}

/// What is not compiled as it is.
enum Word<'a> {
    /// A protocol in IP by the name that is a word of the language too.
    Protocol(Place<'a>, &'static str),
    /// A name that libpcap would look up.
    Name(Place<'a>),
}

/// Where a name stands.
struct Place<'a> {
    /// In the expression, in bytes.
    at: usize,
    /// As it is written, with a backslash before it or without.
    text: &'a str,
    name: &'a str,
    meaning: Meaning,
    /// The words that say what it is the name of, such as `src port`: where they are.
    head: Range<usize>,
    /// These.
    qualifiers: &'a str,
    /// It follows them at once, and not after `and` or `or`.
    follows_head: bool,
    /// It stands between parentheses that follow them.
    is_enclosed: bool,
    /// What follows it is of the same words.
    has_followers: bool,
}

/// Of a name of a port: the number over TCP, and over UDP.
type PortNumbers = (Option<u16>, Option<u16>);

/// What is put in the place of a name.
struct Text {
    text: String,
    /// The protocol that it is of alone.
    over: Option<&'static str>,
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self { text, over: None }
    }
}

impl Place<'_> {
    fn lookups(&self) -> Vec<Lookup> {
        let of = |kind, name: &str| Lookup {
            kind,
            name: name.to_owned(),
        };
        match (self.meaning, self.name.split_once('-')) {
            (Meaning::PortRange, Some((first, last))) => vec![of(Kind::Port, first), of(Kind::Port, last)],
            (Meaning::PortRange, None) => Vec::new(),
            (Meaning::Port, _) => vec![of(Kind::Port, self.name)],
            (Meaning::Host, _) => vec![of(Kind::Host, self.name)],
            (Meaning::EthernetAddress, _) => vec![of(Kind::EthernetAddress, self.name)],
            (Meaning::Network, _) => vec![of(Kind::Network, self.name)],
            (Meaning::Protocol, _) => vec![of(Kind::Protocol, self.name)],
            (Meaning::OtherProtocol, _) => Vec::new(),
        }
    }

    fn speaks_of(&self, qualifier: &str) -> bool {
        self.qualifiers.split_whitespace().any(|word| word == qualifier)
    }

    /// What is to stand in its place; `None` when that is for libpcap to say.
    ///
    /// # Errors
    /// A sentence.
    fn stands_for(&self, known: &Known) -> Result<Option<Text>, String> {
        let name = self.name;
        if self.speaks_of("gateway") {
            return Err(format!(
                "gateway cannot be used here: write ether host ADDRESS and not host {name}"
            ));
        }
        let lookups = self.lookups();
        let found: Vec<&Found> = lookups.iter().filter_map(|lookup| known.get(lookup)).collect();
        let text = match (self.meaning, &found[..]) {
            (Meaning::Host, [Found::Addresses(addresses)]) => self.addresses(addresses)?,
            (Meaning::EthernetAddress, [Found::EthernetAddress(octets)]) => {
                octets.map(|octet| format!("{octet:02x}")).join(":")
            }
            (Meaning::Network, [Found::Network(octets)]) => {
                // As many bytes as say something make the mask.
                let len = octets
                    .iter()
                    .rposition(|octet| *octet != 0)
                    .map_or(1, |last| last + 1);
                octets[..len]
                    .iter()
                    .map(u8::to_string)
                    .collect::<Vec<_>>()
                    .join(".")
            }
            (Meaning::Protocol, [Found::Protocol(number)]) => number.to_string(),
            (Meaning::Port, [Found::Port { tcp, udp }]) => return self.ports(&[(*tcp, *udp)]).map(Some),
            (Meaning::PortRange, [Found::Port { tcp, udp }, Found::Port { tcp: tcp2, udp: udp2 }]) => {
                return self.ports(&[(*tcp, *udp), (*tcp2, *udp2)]).map(Some);
            }
            (Meaning::OtherProtocol, _) => return Ok(None),
            (Meaning::PortRange, []) => return Ok(None),
            _ => return Err(format!("unknown {} '{name}'", self.meaning.noun())),
        };
        Ok(Some(text.into()))
    }

    fn addresses(&self, addresses: &[IpAddr]) -> Result<String, String> {
        let only_v4 = ["ip", "arp", "rarp"].iter().any(|word| self.speaks_of(word));
        let only_v6 = self.speaks_of("ip6");
        let fits = |address: &&IpAddr| match address {
            IpAddr::V4(_) => !only_v6,
            IpAddr::V6(_) => !only_v4,
        };
        let texts: Vec<String> = addresses.iter().filter(fits).map(IpAddr::to_string).collect();
        match &texts[..] {
            [] => Err(format!(
                "unknown host '{}' for specified address family",
                self.name
            )),
            [one] => Ok(one.clone()),
            all => Ok(format!("({})", all.join(" or "))),
        }
    }

    /// One port, or the first and the last: those of both protocols where they are the same, else those of the one that
    /// has them.
    fn ports(&self, ports: &[PortNumbers]) -> Result<Text, String> {
        let over = |get: fn(&PortNumbers) -> Option<u16>| {
            let numbers: Option<Vec<u16>> = ports.iter().map(get).collect();
            numbers.map(|numbers| numbers.iter().map(u16::to_string).collect::<Vec<_>>().join("-"))
        };
        let said = ["tcp", "udp", "sctp"]
            .into_iter()
            .find(|protocol| self.speaks_of(protocol));
        let (text, known) = match (over(|(tcp, _)| *tcp), over(|(_, udp)| *udp)) {
            (Some(tcp), Some(udp)) if tcp == udp => return Ok(tcp.into()),
            (Some(_), Some(udp)) if said == Some("udp") => (udp, "udp"),
            (Some(tcp), _) => (tcp, "tcp"),
            (None, Some(udp)) => (udp, "udp"),
            (None, None) => return Err(format!("unknown {} '{}'", self.meaning.noun(), self.name)),
        };
        match said {
            Some(said) if said == known => Ok(text.into()),
            Some(_) => Err(format!("port '{}' is {known}", self.name)),
            // Those beside it would be of that protocol, too.
            None if self.is_enclosed || self.has_followers => Err(format!(
                "port '{}' is {known}, and others stand beside it: write its number, {text}",
                self.name
            )),
            None => Ok(Text {
                text,
                over: Some(known),
            }),
        }
    }
}

/// A text of which parts are replaced, from its beginning to its end.
struct Rewriter<'a> {
    text: &'a str,
    out: String,
    copied: usize,
}

impl<'a> Rewriter<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            out: String::new(),
            copied: 0,
        }
    }

    fn insert(&mut self, at: usize, new: &str) {
        self.replace(at, 0, new);
    }

    /// Nothing that is at `at` or behind it has been replaced yet.
    fn replace(&mut self, at: usize, len: usize, new: &str) {
        self.out += &self.text[self.copied..at];
        self.out += new;
        self.copied = at + len;
    }

    fn finish(self) -> Cow<'a, str> {
        match self.copied {
            0 if self.out.is_empty() => Cow::Borrowed(self.text),
            copied => Cow::Owned(self.out + &self.text[copied..]),
        }
    }
}

/// Calls `visit` with each word that is not compiled as it is.
fn walk<'a>(
    language: Language,
    expression: &'a str,
    mut visit: impl FnMut(Word<'a>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let mut meaning = Meaning::Host;
    let mut head = 0..0;
    // What names meant before each parenthesis that is open, which is what they mean behind it again; and whether one before
    // stands for a name.
    let mut around: Vec<(Meaning, Range<usize>, bool)> = Vec::new();
    let mut is_enclosed = false;
    let mut before = "";
    let mut before_that = "";
    let mut at = 0;
    while let Some(token) = Token::first_of(language, &expression[at..]) {
        let text = &expression[at..at + token.len()];
        let place = |name: &'a str, meaning, head: &Range<usize>, is_enclosed| Place {
            at,
            text,
            name,
            meaning,
            qualifiers: &expression[head.clone()],
            follows_head: is_qualifier(before),
            head: head.clone(),
            is_enclosed,
            has_followers: is_followed(language, &expression[at + text.len()..]),
        };
        match token {
            Token::Keyword(_) => {
                if text == "protochain" {
                    return Err(Refused::Protochain);
                }
                meaning = meaning_after(before, text, meaning);
                if is_qualifier(text) {
                    let is_between = matches!(before, "and" | "or") && matches!(before_that, "src" | "dst");
                    let goes_on = is_qualifier(before) || is_between && matches!(text, "src" | "dst");
                    head = if goes_on { head.start } else { at }..at + text.len();
                }
            }
            Token::Name(_) if !is_known(before, text, meaning) => {
                visit(Word::Name(place(text, meaning, &head, is_enclosed)))?;
            }
            Token::Escaped(_) => {
                let name = &text[1..];
                let number = PROTOCOLS.iter().find(|(protocol, _)| *protocol == name);
                if let (Meaning::Protocol, Some((_, number))) = (meaning, number) {
                    visit(Word::Protocol(place(name, meaning, &head, is_enclosed), number))?;
                } else if meaning != Meaning::OtherProtocol && !is_known(before, name, meaning) {
                    visit(Word::Name(place(name, meaning, &head, is_enclosed)))?;
                }
            }
            Token::Other(_) if text == "(" => {
                around.push((meaning, head.clone(), is_enclosed));
                is_enclosed |= is_qualifier(before);
            }
            Token::Other(_) if text == ")" => {
                if let Some(outside) = around.pop() {
                    (meaning, head, is_enclosed) = outside;
                }
            }
            Token::Space(_) | Token::Name(_) | Token::Other(_) => {}
            // libpcap itself refuses what begins like this.
            Token::Wrong => break,
        }
        if !matches!(token, Token::Space(_)) {
            before_that = before;
            before = text;
        }
        at += text.len();
    }
    Ok(())
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

fn refused(language: Language, name: &str, meaning: Meaning) -> Refused {
    let instead = if !language.has(name) && language.has(&name.to_ascii_lowercase()) {
        "the words of filters are written in small letters"
    } else {
        meaning.instead()
    };
    Refused::Name {
        name: name.to_owned(),
        instead,
    }
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

/// A token and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Space(usize),
    Keyword(usize),
    /// A word that is nothing else.
    Name(usize),
    /// A backslash and the word after it, which so is no keyword.
    Escaped(usize),
    /// A number, an address or an operator.
    Other(usize),
    /// None.
    Wrong,
}

impl Token {
    fn len(self) -> usize {
        match self {
            Self::Space(len)
            | Self::Keyword(len)
            | Self::Name(len)
            | Self::Escaped(len)
            | Self::Other(len) => len,
            Self::Wrong => 0,
        }
    }

    /// The token with which a text begins; `None` when there is no text.
    fn first_of(language: Language, text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        Some(match bytes.first()? {
            b' ' | b'\r' | b'\n' | b'\t' => Self::Space(1),
            b'\\' => match run(&bytes[1..], |byte| !b" !()\n\t".contains(&byte)) {
                0 => Self::Wrong,
                len => Self::Escaped(1 + len),
            },
            b'&' | b'|' | b'<' | b'>' | b'=' | b'!' => Self::Other(operator(bytes)),
            b'$' => match run(&bytes[1..], is_hex).min(2) {
                0 => Self::Wrong,
                len => Self::Other(1 + len),
            },
            // An IPv6 address may begin with two, and the operator is one.
            b':' => Self::Other(ipv6(bytes).unwrap_or(1)),
            byte if b"+-*/%[]()^".contains(byte) => Self::Other(1),
            byte if byte.is_ascii_alphanumeric() => Self::word(language, text),
            _ => Self::Wrong,
        })
    }

    /// A word, number or address.
    fn word(language: Language, text: &str) -> Self {
        let bytes = text.as_bytes();
        if broken_ethernet_address(bytes) {
            return Self::Wrong;
        }
        let name = name(bytes);
        let known = [number(bytes), dotted(bytes), ethernet_address(bytes), ipv6(bytes)];
        let known = known.into_iter().flatten().max().unwrap_or(0);
        if known >= name {
            Self::Other(known)
        } else if language.has(&text[..name]) {
            Self::Keyword(name)
        } else {
            Self::Name(name)
        }
    }
}

/// How many bytes from the beginning on are such.
fn run(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| is(**byte)).count()
}

fn is_hex(byte: u8) -> bool {
    byte.is_ascii_hexdigit()
}

fn operator(bytes: &[u8]) -> usize {
    const LONG: [&[u8]; 7] = [b"&&", b"||", b">=", b"<=", b"!=", b"<<", b">>"];
    let long = LONG.iter().any(|operator| bytes.starts_with(operator)) || bytes.starts_with(b"==");
    1 + usize::from(long)
}

/// A name begins with a letter or digit, and ends with one or with a dot.
fn name(bytes: &[u8]) -> usize {
    let is_inside = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let longest = &bytes[..run(bytes, is_inside)];
    longest.len()
        - longest
            .iter()
            .rev()
            .take_while(|byte| b"-_".contains(byte))
            .count()
}

/// Decimal, octal or hexadecimal.
fn number(bytes: &[u8]) -> Option<usize> {
    if let [b'0', b'x' | b'X', digits @ ..] = bytes {
        let digits = run(digits, is_hex);
        if digits > 0 {
            return Some(2 + digits);
        }
    }
    Some(run(bytes, |byte| byte.is_ascii_digit())).filter(|len| *len > 0)
}

/// Two to four numbers with dots between them: an IPv4 address, or as much of one as a network takes.
fn dotted(bytes: &[u8]) -> Option<usize> {
    (2..=4).rev().find_map(|count| numbers(bytes, count))
}

fn numbers(bytes: &[u8], count: usize) -> Option<usize> {
    let mut at = number(bytes)?;
    for _ in 1..count {
        if bytes.get(at) != Some(&b'.') {
            return None;
        }
        at += 1 + number(&bytes[at + 1..])?;
    }
    Some(at)
}

/// Six times one or two hexadecimal digits, three times four, or twelve.
fn ethernet_address(bytes: &[u8]) -> Option<usize> {
    let short = b":-.".iter().filter_map(|separator| {
        let mut at = run(bytes, is_hex).min(2);
        for _ in 1..6 {
            let digits = bytes.get(at + 1..).map_or(0, |rest| run(rest, is_hex).min(2));
            if bytes.get(at) != Some(separator) || digits == 0 {
                return None;
            }
            at += 1 + digits;
        }
        Some(at)
    });
    let long = [Some(b'.'), None].into_iter().filter_map(|separator| {
        let mut at = 0;
        for part in 0..3 {
            if part > 0
                && let Some(separator) = separator
            {
                (bytes.get(at) == Some(&separator)).then(|| at += 1)?;
            }
            let digits = bytes.get(at..at + 4)?;
            digits.iter().all(|byte| is_hex(*byte)).then(|| at += 4)?;
        }
        Some(at)
    });
    short.chain(long).max()
}

/// The longest IPv6 address with which the text begins: eight groups, or fewer around two colons, of which the last two
/// may be an IPv4 address.
fn ipv6(bytes: &[u8]) -> Option<usize> {
    let mut groups = 0;
    let mut compressed = bytes.starts_with(b"::");
    let mut at = if compressed { 2 } else { 0 };
    let mut longest = compressed.then_some(at);
    loop {
        if if compressed { groups <= 5 } else { groups == 6 }
            && let Some(len) = numbers(&bytes[at..], 4)
        {
            longest = longest.max(Some(at + len));
        }
        let digits = run(&bytes[at..], is_hex).min(4);
        if digits == 0 {
            return longest;
        }
        at += digits;
        groups += 1;
        if groups == if compressed { 7 } else { 8 } {
            return Some(at);
        }
        if compressed {
            // What ends with an IPv4 address may be longer.
            longest = longest.max(Some(at));
        }
        let rest = &bytes[at..];
        if !compressed && rest.starts_with(b"::") {
            compressed = true;
            at += 2;
            longest = Some(at);
            if groups == 7 {
                return longest;
            }
        } else if rest.starts_with(b":") {
            at += 1;
        } else {
            return longest;
        }
    }
}

/// What has the colons of an Ethernet address and is none, nor an IPv6 address: libpcap has a sentence for it.
fn broken_ethernet_address(bytes: &[u8]) -> bool {
    let mut at = 0;
    let mut parts = 0;
    loop {
        let digits = run(&bytes[at..], is_hex);
        let colons = run(bytes.get(at + digits..).unwrap_or_default(), |byte| byte == b':');
        if !(1..=2).contains(&digits) || colons == 0 {
            break;
        }
        at += digits + colons;
        parts += 1;
    }
    let whole = ethernet_address(bytes).max(ipv6(bytes)).unwrap_or(0);
    parts > 1 && at > whole
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

/// All words of the language.
#[rustfmt::skip]
const KEYWORDS: &[&str] = &[
    // Directions, kinds and protocols.
    "src", "dst", "host", "net", "mask", "port", "portrange", "proto", "protochain", "gateway",
    "link", "ether", "ppp", "slip", "fddi", "tr", "wlan", "arp", "rarp", "ip", "ip6", "sctp", "tcp", "udp", "icmp",
    "icmp6", "igmp", "igrp", "pim", "vrrp", "carp", "radio", "ah", "esp", "atalk", "aarp", "decnet", "lat", "sca",
    "moprc", "mopdl", "iso", "esis", "es-is", "isis", "is-is", "clnp", "l1", "l2", "iih", "lsp", "snp", "csnp", "psnp",
    "stp", "ipx", "netbeui", "llc",
    // IEEE 802.11.
    "type", "subtype", "direction", "dir", "address1", "addr1", "address2", "addr2", "address3", "addr3", "address4",
    "addr4", "ra", "ta",
    // Others.
    "and", "or", "not", "less", "greater", "byte", "broadcast", "multicast", "len", "length", "inbound", "outbound",
    "ifindex", "vlan", "mpls", "pppoed", "pppoes", "geneve",
    // ATM.
    "lane", "metac", "bcc", "oam", "oamf4", "oamf4ec", "oamf4sc", "sc", "ilmic", "vpi", "vci", "connectmsg",
    "metaconnect",
    // The logs of pf.
    "on", "ifname", "rset", "ruleset", "rnr", "rulenum", "srnr", "subrulenum", "reason", "action",
    // SS7.
    "fisu", "lssu", "lsu", "msu", "hfisu", "hlssu", "hmsu", "sio", "opc", "dpc", "sls", "hsio", "hopc", "hdpc", "hsls",
    // Offsets and values of fields.
    "icmptype", "icmpcode", "icmp-echoreply", "icmp-unreach", "icmp-sourcequench", "icmp-redirect", "icmp-echo",
    "icmp-routeradvert", "icmp-routersolicit", "icmp-timxceed", "icmp-paramprob", "icmp-tstamp", "icmp-tstampreply",
    "icmp-ireq", "icmp-ireqreply", "icmp-maskreq", "icmp-maskreply",
    "icmp6type", "icmp6code", "icmp6-destinationunreach", "icmp6-packettoobig", "icmp6-timeexceeded",
    "icmp6-parameterproblem", "icmp6-echo", "icmp6-echoreply", "icmp6-multicastlistenerquery",
    "icmp6-multicastlistenerreportv1", "icmp6-multicastlistenerdone", "icmp6-routersolicit", "icmp6-routeradvert",
    "icmp6-neighborsolicit", "icmp6-neighboradvert", "icmp6-redirect", "icmp6-routerrenum",
    "icmp6-nodeinformationquery", "icmp6-nodeinformationresponse", "icmp6-ineighbordiscoverysolicit",
    "icmp6-ineighbordiscoveryadvert", "icmp6-multicastlistenerreportv2", "icmp6-homeagentdiscoveryrequest",
    "icmp6-homeagentdiscoveryreply", "icmp6-mobileprefixsolicit", "icmp6-mobileprefixadvert", "icmp6-certpathsolicit",
    "icmp6-certpathadvert", "icmp6-multicastrouteradvert", "icmp6-multicastroutersolicit",
    "icmp6-multicastrouterterm",
    "tcpflags", "tcp-fin", "tcp-syn", "tcp-rst", "tcp-push", "tcp-ack", "tcp-urg", "tcp-ece", "tcp-cwr",
];

/// Words that came later, and since which libpcap.
const LATER_KEYWORDS: [((u32, u32), &str); 2] = [((1, 11), "vxlan"), ((1, 11), "batadv")];

#[cfg(test)]
mod tests {
    use super::*;

    const LANGUAGE: Language = Language::of_libpcap((1, 10));

    /// How `check` answers: the expression as it is to be compiled, or the name that is in the way.
    fn checked(expression: &str) -> Result<String, String> {
        match LANGUAGE.check(expression, &Names::Refused) {
            Ok(expression) => Ok(expression.into_owned()),
            Err(Refused::Name { name, .. }) => Err(name),
            Err(other) => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn takes_what_needs_no_look_up() {
        for expression in [
            "",
            " \t\r\n",
            "tcp port 80 and not host 10.0.0.1",
            "host 1.2.3.4 or 0x0a.0.0.1",
            "net 10 or net 10.1 or net 192.168.1 or net 10/8 or net 10.0.0.0 mask 255.0.0.0",
            "host fe80::1 or ::1 or :: or 2001:db8:: or ::ffff:1.2.3.4 or 1:2:3:4:5:6:7:8 or 1:2:3:4:5:6:1.2.3.4",
            "ip6 net 2001:db8::/32 or dst net fd00::/8",
            "ether host 0:1:2:a:b:c or 00-11-22-33-44-55 or 0.1.2.3.4.5 or 0011.2233.4455 or aabbccddeeff",
            "port 0x50 or 0120 or portrange 80-90 or 100-200 or (1-2)",
            "portrange 1-2 and (port 80) or 443-445",
            "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0 && icmp[icmptype] = icmp-echo",
            "icmp6[icmp6type] == icmp6-neighborsolicit || ip[2:2]>>2 <= 5 or ether[0]&1=0",
            "ether proto \\ip or \\arp or loopback or 0x800",
            "iso proto \\clnp or es-is",
            "decnet host 10.15 or atalk host $AA",
            "llc ui or llc rnr or llc",
            "wlan type mgt subtype beacon or dir nods",
            "on en0 and reason match or ruleset \\abc",
            "vlan 5 and mpls 3 and geneve 0xb and pppoes 1",
            "len>5 and(greater 6)or!less 9",
        ] {
            assert_eq!(checked(expression), Ok(expression.to_owned()));
        }
    }

    #[test]
    fn words_of_later_libpcaps_are_words_there() {
        let [ten, eleven, two] = [(1, 10), (1, 11), (2, 0)].map(Language::of_libpcap);
        for word in ["vxlan", "batadv"] {
            assert!(!ten.has(word) && !Language::of_libpcap((0, 0)).has(word));
            assert!(eleven.has(word) && two.has(word));
            assert!(eleven.words().any(|known| known == word));
            assert!(ten.words().all(|known| known != word));
        }
        for word in ["geneve", "pppoes", "vlan", "inbound", "ifindex"] {
            assert!(ten.has(word) && eleven.has(word));
        }
        assert!(!eleven.has("localhost"));
        // A libpcap that does not know a word takes it for a name.
        let expression = "vxlan 7 and tcp";
        assert!(ten.check(expression, &Names::Refused).is_err());
        assert!(eleven.check(expression, &Names::Refused).is_ok());
    }

    #[test]
    fn refuses_names() {
        for (expression, name) in [
            ("host example.com", "example.com"),
            ("host localhost", "localhost"),
            ("tcp port http", "http"),
            ("port 80 or https", "https"),
            ("portrange ftp-ssh", "ftp-ssh"),
            ("portrange 0x50-90", "0x50-90"),
            ("host 80-90", "80-90"),
            ("portrange 80-90 and host 1-2", "1-2"),
            ("port 5 and (portrange 80-90) or 443-445", "443-445"),
            ("port 5 and not (host 1.2.3.4 and (net 10)) or http", "http"),
            ("net loopback", "loopback"),
            ("ether host gateway.local", "gateway.local"),
            ("ip proto ospf", "ospf"),
            ("proto loopback", "loopback"),
            ("ip proto \\ospf", "ospf"),
            ("host \\tcp", "tcp"),
            ("host \\10.0.0.1", "10.0.0.1"),
            ("port\\http", "http"),
            ("TCP", "TCP"),
            ("tcp-foo", "tcp-foo"),
            ("ip.", "ip."),
            ("1.2.3.4.5", "1.2.3.4.5"),
            ("host 1.2.3.4x", "1.2.3.4x"),
            ("gateway router", "router"),
            ("face", "face"),
            ("host 0x", "0x"),
            ("not foo", "foo"),
            ("(foo)", "foo"),
            ("aabbccddeeff0", "aabbccddeeff0"),
            ("host fe80::1:10.0.0.2 or foo", "foo"),
            ("host ::10.0.0.2 or fe80::1:2:12345.0.0.2 or foo", "foo"),
        ] {
            assert_eq!(checked(expression), Err(name.to_owned()), "{expression}");
        }
    }

    #[test]
    fn says_what_to_write_instead() {
        for (expression, hint) in [
            ("port http", "write the port's number"),
            ("net home", "write the network's address"),
            ("ether src host foo", "write the Ethernet address"),
            ("ip proto gre", "write the protocol's number"),
            ("Tcp", "the words of filters are written in small letters"),
            ("foo", "write the address"),
        ] {
            match LANGUAGE.check(expression, &Names::Refused) {
                Err(Refused::Name { instead, .. }) => assert_eq!(instead, hint, "{expression}"),
                other => panic!("{expression}: {other:?}"),
            }
        }
    }

    #[test]
    fn refuses_loops() {
        for expression in ["protochain 6", "ip6 protochain \\tcp", "tcp or(ip protochain 51)"] {
            for names in [Names::Refused, Names::Known(Known::new())] {
                assert_eq!(LANGUAGE.check(expression, &names), Err(Refused::Protochain));
            }
            assert_eq!(LANGUAGE.wanted(expression), Err(Refused::Protochain));
        }
    }

    /// What a machine knows on which there are these names.
    fn known() -> Known {
        let address = |text: &str| text.parse().unwrap();
        [
            (
                Kind::Host,
                "www",
                Found::Addresses(vec![address("10.0.0.1"), address("fd00::1")]),
            ),
            (Kind::Host, "one", Found::Addresses(vec![address("10.0.0.2")])),
            (Kind::Host, "nobody", Found::Nothing),
            (
                Kind::EthernetAddress,
                "desk",
                Found::EthernetAddress([2, 0, 0, 0, 0, 0xa]),
            ),
            (Kind::Network, "home", Found::Network(vec![10, 1, 0, 0])),
            (Kind::Network, "none", Found::Network(vec![0])),
            (
                Kind::Port,
                "domain",
                Found::Port {
                    tcp: Some(53),
                    udp: Some(53),
                },
            ),
            (
                Kind::Port,
                "ssh",
                Found::Port {
                    tcp: Some(22),
                    udp: None,
                },
            ),
            (
                Kind::Port,
                "http",
                Found::Port {
                    tcp: Some(80),
                    udp: None,
                },
            ),
            (
                Kind::Port,
                "both",
                Found::Port {
                    tcp: Some(1),
                    udp: Some(2),
                },
            ),
            (Kind::Protocol, "gre", Found::Protocol(47)),
        ]
        .into_iter()
        .map(|(kind, name, found)| {
            let name = name.to_owned();
            (Lookup { kind, name }, found)
        })
        .collect()
    }

    #[test]
    fn names_become_what_they_stand_for() {
        let names = Names::Known(known());
        for (expression, becomes) in [
            ("host www", "host (10.0.0.1 or fd00::1)"),
            (
                "not src host www or one",
                "not src host (10.0.0.1 or fd00::1) or 10.0.0.2",
            ),
            (
                "ip host www and ip6 host www",
                "ip host 10.0.0.1 and ip6 host fd00::1",
            ),
            ("arp src www", "arp src 10.0.0.1"),
            ("www", "(10.0.0.1 or fd00::1)"),
            ("host (www or 1.2.3.4)", "host ((10.0.0.1 or fd00::1) or 1.2.3.4)"),
            ("ether src desk", "ether src 02:00:00:00:00:0a"),
            ("net home or none", "net 10.1 or 0"),
            ("port domain or 80", "port 53 or 80"),
            ("tcp port ssh", "tcp port 22"),
            ("port ssh", "tcp port 22"),
            (
                "not src or dst port ssh and host one",
                "not tcp src or dst port 22 and host 10.0.0.2",
            ),
            ("port 80 or ssh", "port 80 or tcp port 22"),
            (
                "dst port 80 or ssh and tcp",
                "dst port 80 or tcp dst port 22 and tcp",
            ),
            ("port domain and udp port both", "port 53 and udp port 2"),
            ("portrange ssh-http", "tcp portrange 22-80"),
            ("port\\ssh", "tcp port 22"),
            (
                "host one and proto \\tcp and port ssh",
                "host 10.0.0.2 and proto  6 and tcp port 22",
            ),
            ("ip proto gre or \\tcp", "ip proto 47 or  6"),
            ("(port ssh) or (port domain)", "(tcp port 22) or (port 53)"),
            ("ether proto nonsense", "ether proto nonsense"),
        ] {
            assert_eq!(
                LANGUAGE.check(expression, &names),
                Ok(becomes.into()),
                "{expression}"
            );
        }
        for (expression, sentence) in [
            ("host nobody", "unknown host 'nobody'"),
            ("host forgotten", "unknown host 'forgotten'"),
            ("ip6 host one", "unknown host 'one' for specified address family"),
            ("port nonsense", "unknown port 'nonsense'"),
            ("udp port ssh", "port 'ssh' is tcp"),
            ("port ssh or 80", "write its number, 22"),
            ("port (ssh or 80)", "write its number, 22"),
            ("gateway www", "gateway cannot be used here"),
        ] {
            let error = LANGUAGE.check(expression, &names).unwrap_err();
            assert!(
                matches!(&error, Refused::Unknown(message) if message.contains(sentence)),
                "{expression}: {error:?}"
            );
        }
        let many: Vec<String> = (0..=MAX_NAMES).map(|n| format!("h{n}")).collect();
        assert_eq!(LANGUAGE.wanted(&many.join(" or ")), Err(Refused::TooMany));
        assert_eq!(LANGUAGE.wanted(&"host www or ".repeat(100)).unwrap().len(), 1);
    }

    #[test]
    fn protocols_become_numbers() {
        for (expression, becomes) in [
            ("ip proto \\tcp", "ip proto  6"),
            ("ip6 proto(\\udp or \\sctp)", "ip6 proto( 17 or  132)"),
            ("proto\\esp and port 5", "proto 50 and port 5"),
            ("not proto ! \\ip", "not proto !  0"),
            (
                "ip proto \\tcp or ether proto \\ip",
                "ip proto  6 or ether proto \\ip",
            ),
        ] {
            assert_eq!(checked(expression), Ok(becomes.to_owned()));
        }
    }

    #[test]
    fn long_expressions_take_no_time() {
        for part in [
            "a", "1", "1.", "a-", ":", "1:", "::1", "\\", "tcp ", "f", "1-", "aabb.", "0x", "$a",
        ] {
            let expression = part.repeat(65_536 / part.len());
            let start = std::time::Instant::now();
            let _ = LANGUAGE.check(&expression, &Names::Refused);
            let _ = LANGUAGE.wanted(&expression);
            let took = start.elapsed();
            assert!(took < std::time::Duration::from_millis(500), "{part}: {took:?}");
        }
    }
}
