//! Where a token of an expression ends. The longest wins, and among equally long ones a name is the last.

use super::language::Language;

/// A token and its length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
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
    pub(super) fn len(self) -> usize {
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
    pub(super) fn first_of(language: Language, text: &str) -> Option<Self> {
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
