//! What stands in a filter where a name could, and is none: a misspelt word, or the language of display filters.

use strsim::osa_distance;

use super::Language;

/// Words that have a name behind them.
const BEFORE_NAMES: [&str; 9] = [
    "host",
    "net",
    "mask",
    "port",
    "portrange",
    "proto",
    "src",
    "dst",
    "gateway",
];

/// Protocols of display filters that filters here have no word for.
const OTHER_PROTOCOLS: [&str; 9] = [
    "eth", "frame", "http", "http2", "dns", "tls", "ssl", "icmpv6", "dhcp",
];

/// What may follow a field of a display filter.
const BEHIND_FIELDS: [&str; 15] = [
    "==",
    "!=",
    ">",
    "<",
    "=",
    "eq ",
    "ne ",
    "contains ",
    "matches ",
    "in ",
    "and",
    "or",
    "&&",
    "||",
    ")",
];

/// What is wrong with a word of an expression that stands at this place and is no word of the language, if it is no name
/// either, which it may be where names are looked up; in words that libpcap could have.
pub(super) fn slip(
    language: Language,
    expression: &str,
    at: usize,
    word: &str,
    may_be_name: bool,
) -> Option<String> {
    let (before, after) = (&expression[..at], &expression[at + word.len()..]);
    let before = before.trim_end().rsplit([' ', '\t', '\n', '(', '!']).next();
    // Whoever writes a name says what it is the name of.
    if BEFORE_NAMES.contains(&before.unwrap_or_default()) {
        return None;
    }
    if is_display_field(language, word, after.trim_start()) {
        return Some(format!(
            "syntax error at {word}: this is the language of tcpdump, pcap-filter(7), and not that of Wireshark's display \
             filters; write \"tcp port 80\" where these have \"tcp.port == 80\""
        ));
    }
    if may_be_name || word.contains('.') || language.has(&word.to_ascii_lowercase()) {
        return None;
    }
    meant_by(language, word)
        .map(|meant| format!("syntax error at {word}, of which {meant} is the nearest word"))
}

/// The word of the language that took one slip to become this: a letter more, less, or another, or two exchanged.
fn meant_by(language: Language, word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let is_near =
        |keyword: &&str| keyword.len().abs_diff(word.len()) <= 1 && osa_distance(keyword, &word) <= 1;
    // Of those that are as near, one with the same letters: they were exchanged.
    let letters = |word: &str| {
        let mut letters = word.as_bytes().to_vec();
        letters.sort_unstable();
        letters
    };
    let near = language.words().filter(is_near);
    near.min_by_key(|keyword| (letters(keyword) != letters(&word), *keyword))
}

/// Whether this is a protocol and what it has, joined by a dot, that is compared with something or stands alone.
fn is_display_field(language: Language, word: &str, after: &str) -> bool {
    let Some((protocol, field)) = word.split_once('.') else {
        return false;
    };
    (language.has(protocol) || OTHER_PROTOCOLS.contains(&protocol))
        && !field.is_empty()
        && (after.is_empty() || BEHIND_FIELDS.iter().any(|next| after.starts_with(next)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANGUAGE: Language = Language::of_libpcap((1, 10));

    fn slip_at(expression: &str, word: &str) -> Option<String> {
        slip(LANGUAGE, expression, expression.find(word).unwrap(), word, false)
    }

    #[test]
    fn slips_of_the_hand_and_another_language_are_told_as_such() {
        for (expression, wrong, meant) in [
            ("tcp portt 80", "portt", "port"),
            ("tpc", "tpc", "tcp"),
            ("udp and (hots 10.0.0.1)", "hots", "host"),
        ] {
            let words = format!("syntax error at {wrong}, of which {meant} is the nearest word");
            assert_eq!(slip_at(expression, wrong), Some(words), "{expression}");
        }
        for (expression, field) in [
            ("tcp.port == 80", "tcp.port"),
            ("ip.addr==10.0.0.1 && udp", "ip.addr"),
            ("udp or http.request", "http.request"),
            ("(frame.len > 5)", "frame.len"),
            ("dns.qry.name contains foo", "dns.qry.name"),
        ] {
            let slip = slip_at(expression, field).unwrap();
            assert!(slip.contains("display filters"), "{expression}: {slip}");
        }
        assert_eq!(slip(LANGUAGE, "tpc", 0, "tpc", true), None);
        for (expression, name) in [
            ("host tcp.example.org", "tcp.example.org"),
            ("port htp", "htp"),
            ("src hots", "hots"),
            ("ip.", "ip."),
            ("TCP", "TCP"),
            ("www", "www"),
            ("tcp-foo", "tcp-foo"),
        ] {
            assert_eq!(slip_at(expression, name), None, "{expression}");
        }
    }
}
