//! Patterns of targets' names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Most characters of a pattern.
const MAX_LEN: usize = 256;

/// Most characters of one that another service of ours tells: the names of a namespace and a pod.
const MAX_TOLD_LEN: usize = 1024;

/// A pattern that a whole name has to match: `?` is any character but `/` and `:`, `*` any number of these, and `**`
/// any number of any characters. The two that are left out separate the parts of a name, so that `shop/*` is no pattern
/// of what is called `shop/web:db`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Piece>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Exactly(char),
    One,
    Part,
    Anything,
}

/// Why something is no pattern.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatternError {
    /// Nothing would match.
    #[error("the pattern is empty")]
    Empty,
    /// It takes long to match.
    #[error("the pattern has more than {MAX_LEN} characters")]
    TooLong,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::read(text, MAX_LEN)
    }
}

/// As it is written. What only looks like a pattern ([`Pattern::exactly`]) becomes one.
impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::read(&text, MAX_TOLD_LEN).map_err(D::Error::custom)
    }
}

impl Pattern {
    fn read(text: &str, max_len: usize) -> Result<Self, PatternError> {
        let mut pieces = Vec::new();
        for character in text.chars() {
            match (character, pieces.last()) {
                ('*', Some(Piece::Part)) => {
                    pieces.pop();
                    pieces.push(Piece::Anything);
                }
                ('*', Some(Piece::Anything)) => {}
                ('*', _) => pieces.push(Piece::Part),
                ('?', _) => pieces.push(Piece::One),
                (character, _) => pieces.push(Piece::Exactly(character)),
            }
        }
        match pieces.len() {
            0 => Err(PatternError::Empty),
            len if len > max_len => Err(PatternError::TooLong),
            _ => Ok(Self(pieces)),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Exactly(character) => write!(f, "{character}"),
            Piece::One => f.write_str("?"),
            Piece::Part => f.write_str("*"),
            Piece::Anything => f.write_str("**"),
        })
    }
}

impl Pattern {
    /// What is called so and nothing else, whatever characters that has.
    pub(crate) fn exactly(name: &str) -> Self {
        Self(name.chars().map(Piece::Exactly).collect())
    }

    /// What is called `WHOLE/PART`, whatever the part.
    pub(crate) fn parts_of(whole: &str) -> Self {
        let whole = whole.chars().map(Piece::Exactly);
        Self(whole.chain([Piece::Exactly('/'), Piece::Part]).collect())
    }

    /// What is called `WHOLE/PART`, whatever that is.
    pub(crate) fn parts() -> Self {
        Self(vec![Piece::Part, Piece::Exactly('/'), Piece::Part])
    }

    /// Whether the whole name matches. Takes time in proportion to both lengths, whatever they hold.
    pub(crate) fn matches(&self, name: &str) -> bool {
        // How many pieces may have been used up by what was read of the name.
        let mut used = vec![false; self.0.len() + 1];
        used[0] = true;
        self.skip_runs(&mut used);
        for character in name.chars() {
            let mut next = vec![false; used.len()];
            for (at, piece) in self.0.iter().enumerate().filter(|(at, _)| used[*at]) {
                match piece {
                    Piece::Exactly(wanted) => next[at + 1] |= *wanted == character,
                    Piece::One => next[at + 1] |= !separates(character),
                    Piece::Part => next[at] |= !separates(character),
                    Piece::Anything => next[at] = true,
                }
            }
            self.skip_runs(&mut next);
            used = next;
        }
        used[self.0.len()]
    }

    /// Whether it is known to match all that another matches. A `*` in a name of the other is a character as others are.
    pub(crate) fn includes(&self, other: &Self) -> bool {
        let is_plain = !self.0.contains(&Piece::One) && !other.0.contains(&Piece::Anything);
        self == other || (is_plain && self.matches(&other.to_string()))
    }

    /// Whether there is no name that does not match.
    pub(crate) fn matches_everything(&self) -> bool {
        self.0 == [Piece::Anything]
    }

    /// Runs may be of nothing.
    fn skip_runs(&self, used: &mut [bool]) {
        for (at, piece) in self.0.iter().enumerate() {
            used[at + 1] |= used[at] && matches!(piece, Piece::Part | Piece::Anything);
        }
    }
}

fn separates(character: char) -> bool {
    matches!(character, '/' | ':')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_are_no_patterns() {
        let shop = Pattern::parts_of("shop");
        assert!(shop.matches("shop/web") && !shop.matches("shop/web/x") && !shop.matches("shops/web"));
        let star = Pattern::exactly("shop/*");
        assert!(star.matches("shop/*") && !star.matches("shop/web"));
        assert!(!Pattern::parts_of("*").matches("shop/web"));
        assert!(Pattern::parts().matches("shop/web") && !Pattern::parts().matches("shop"));
    }

    #[test]
    fn patterns_match_whole_names() {
        for (pattern, names, others) in [
            (
                "web",
                &["web"][..],
                &["", "we", "webs", "a:web", "web:a", "Web"][..],
            ),
            (
                "web-*",
                &["web-", "web-1"],
                &["web", "web-1/x", "web-1:db", "xweb-1"],
            ),
            (
                "shop/*",
                &["shop/a", "shop/"],
                &["shop", "shop/a/b", "shop/a:b", "other/a"],
            ),
            ("*/*", &["a/b"], &["a", "a/b/c", "x:a/b"]),
            ("kind:**", &["kind:a", "kind:shop/a"], &["kind", "a:kind:b"]),
            ("**", &["", "a", "a/b:c"], &[]),
            ("*", &["", "a"], &["a/b", "a:b", "/run/netns/x"]),
            (
                "/run/netns/*",
                &["/run/netns/x"],
                &["/run/netns/x/y", "run/netns/x"],
            ),
            ("a?c", &["abc", "aüc"], &["ac", "a/c", "abbc"]),
            ("a**c*e", &["ace", "a/c/cde"], &["ac/e"]),
            ("***", &["a/b"], &[]),
        ] {
            let parsed: Pattern = pattern.parse().unwrap();
            for name in names {
                assert!(parsed.matches(name), "{pattern} {name}");
            }
            assert_eq!(parsed.matches_everything(), others.is_empty(), "{pattern}");
            for name in others {
                assert!(!parsed.matches(name), "{pattern} {name}");
            }
        }
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        assert_eq!("a".repeat(257).parse::<Pattern>(), Err(PatternError::TooLong));
    }

    #[test]
    fn no_name_takes_long() {
        let pattern: Pattern = "*a".repeat(128).parse().unwrap();
        assert!(!pattern.matches(&"a".repeat(4096).replace("aaaa", "aaab")));
    }

    proptest! {
        #[test]
        fn what_has_no_wildcards_matches_itself_alone(text in "[^*?]{1,40}", other in "[^*?]{0,40}") {
            let pattern: Pattern = text.parse().unwrap();
            prop_assert!(pattern.matches(&text));
            prop_assert_eq!(pattern.matches(&other), text == other);
            prop_assert_eq!(pattern.to_string(), text);
        }

        #[test]
        fn pieces_of_a_name_may_be_left_out(name in "[a-z/:]{1,20}", from in 0usize..20, to in 0usize..20) {
            let (from, to) = (from.min(name.len()), to.min(name.len()));
            let (from, to) = (from.min(to), from.max(to));
            let pattern: Pattern = format!("{}**{}", &name[..from], &name[to..]).parse().unwrap();
            prop_assert!(pattern.matches(&name));
            let pattern: Pattern = format!("{}*{}", &name[..from], &name[to..]).parse().unwrap();
            prop_assert_eq!(pattern.matches(&name), !name[from..to].contains(['/', ':']));
        }
    }
}
