//! What is put in the place of a name, and how.

use std::{borrow::Cow, net::IpAddr};

use super::{
    grammar::{Meaning, Place},
    lookup::{Found, Kind, Known, Lookup},
};

/// Of a name of a port: the number over TCP, and over UDP.
type PortNumbers = (Option<u16>, Option<u16>);

/// What is put in the place of a name.
pub(super) struct Text {
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
    pub(super) fn lookups(&self) -> Vec<Lookup> {
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
    pub(super) fn stands_for(&self, known: &Known) -> Result<Option<Text>, String> {
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
pub(super) struct Rewriter<'a> {
    text: &'a str,
    out: String,
    copied: usize,
}

impl<'a> Rewriter<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            out: String::new(),
            copied: 0,
        }
    }

    /// Puts its number into the place of a protocol.
    pub(super) fn put_number(&mut self, place: &Place<'_>, number: &str) {
        // What is before it may end with no space.
        self.replace(place.at, place.text.len(), &format!(" {number}"));
    }

    /// Puts into the place of a name what it stands for.
    pub(super) fn put(&mut self, place: &Place<'_>, text: &Text) {
        // A backslash may have been all that was between it and a word.
        let gap = if place.text.starts_with('\\') { " " } else { "" };
        let mut new = format!("{gap}{}", text.text);
        match text.over {
            // `tcp src port 22`: the words before it speak of this protocol, of which the name is.
            Some(protocol) if place.follows_qualifiers => {
                self.replace(place.qualifiers_at, 0, &format!("{protocol} "));
            }
            Some(protocol) => new = format!("{gap}{protocol} {} {}", place.qualifiers, text.text),
            None => {}
        }
        self.replace(place.at, place.text.len(), &new);
    }

    /// Nothing that is at `at` or behind it has been replaced yet.
    fn replace(&mut self, at: usize, len: usize, new: &str) {
        self.out += &self.text[self.copied..at];
        self.out += new;
        self.copied = at + len;
    }

    pub(super) fn finish(self) -> Cow<'a, str> {
        match self.copied {
            0 if self.out.is_empty() => Cow::Borrowed(self.text),
            copied => Cow::Owned(self.out + &self.text[copied..]),
        }
    }
}
