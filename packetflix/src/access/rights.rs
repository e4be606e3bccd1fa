//! What a caller may do.

use super::pattern::{Pattern, PatternError};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rights {
    discover: bool,
    capture: Captures,
    administer: bool,
}

/// What may be captured.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Captures {
    Nothing,
    Matching(Vec<Pattern>),
    Everything,
}

/// All who are in a network namespace, whose packets a capture of it would have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Occupants {
    occupants: Vec<Occupant>,
    is_complete: bool,
}

/// One who is in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Occupant {
    /// Full name.
    pub(crate) name: String,
    /// Whether it has the name from itself, in a namespace that is not its own, so that the name says nothing.
    pub(crate) is_self_chosen: bool,
}

/// Whether a namespace may be captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may.
    Allowed,
    /// It may not: there is someone whose packets are not the caller's, or nobody is known.
    Refused,
    /// All that are known would allow it, and there may be others.
    Unsure,
}

impl Occupants {
    /// Those who are known; `is_complete` when there can be nobody else.
    pub(crate) fn new(occupants: impl IntoIterator<Item = Occupant>, is_complete: bool) -> Self {
        Self {
            occupants: occupants.into_iter().collect(),
            is_complete,
        }
    }

    /// How many names are known.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.occupants.len()
    }
}

/// Why a word is no scope.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScopeError {
    /// There is no such scope.
    #[error("{0} is no scope: there are discover, capture, capture:PATTERN, admin and none")]
    Unknown(String),
    /// Nothing and something.
    #[error("none stands alone, or is left out where there are other scopes")]
    NoneBesideOthers,
    /// The pattern of a scope cannot be used.
    #[error("the scope {scope:?} cannot be used")]
    Pattern {
        /// The scope as it is written.
        scope: String,
        /// What is wrong with it.
        source: PatternError,
    },
}

impl Rights {
    /// Nothing that takes a right.
    pub(crate) const NONE: Self = Self {
        discover: false,
        capture: Captures::Nothing,
        administer: false,
    };

    /// Those of whom nothing else is said: to discover and to capture everything, but not to administer.
    pub(crate) const ORDINARY: Self = Self {
        discover: true,
        capture: Captures::Everything,
        administer: false,
    };

    /// Everything.
    pub(crate) const ALL: Self = Self {
        administer: true,
        ..Self::ORDINARY
    };

    /// Reads scopes; without any, these are the ordinary rights.
    pub(crate) fn parse<'a>(scopes: impl IntoIterator<Item = &'a str>) -> Result<Self, ScopeError> {
        let scopes: Vec<&str> = scopes.into_iter().collect();
        match scopes[..] {
            [] => return Ok(Self::ORDINARY),
            ["none"] => return Ok(Self::NONE),
            _ => {}
        }
        let mut rights = Self::NONE;
        for scope in scopes {
            match scope.split_once(':') {
                None if scope == "discover" => rights.discover = true,
                None if scope == "capture" => rights.capture = Captures::Everything,
                None if scope == "admin" => rights.administer = true,
                None if scope == "none" => return Err(ScopeError::NoneBesideOthers),
                Some(("capture", pattern)) => {
                    let pattern = pattern.parse().map_err(|source| ScopeError::Pattern {
                        scope: scope.to_owned(),
                        source,
                    })?;
                    rights.capture.add(pattern);
                }
                _ => return Err(ScopeError::Unknown(scope.to_owned())),
            }
        }
        Ok(rights)
    }

    /// Whether targets may be listed.
    pub(crate) fn may_discover(&self) -> bool {
        self.discover
    }

    /// Whether there can be anything that may be captured.
    pub(crate) fn may_capture_something(&self) -> bool {
        self.capture != Captures::Nothing
    }

    /// Whether all that belongs to everyone may be seen and ended.
    pub(crate) fn may_administer(&self) -> bool {
        self.administer
    }

    /// Whether it takes the names of targets to decide what may be captured.
    pub(crate) fn are_by_pattern(&self) -> bool {
        matches!(self.capture, Captures::Matching(_))
    }

    /// Whether a namespace may be captured: all who are in it. One who may not would be captured with the others. Where
    /// nobody is known, there is no telling.
    pub(crate) fn may_capture(
        &self,
        Occupants {
            occupants,
            is_complete,
        }: &Occupants,
    ) -> Verdict {
        let patterns = match &self.capture {
            Captures::Nothing => return Verdict::Refused,
            Captures::Everything => return Verdict::Allowed,
            Captures::Matching(patterns) => patterns,
        };
        let matches = |occupant: &Occupant| {
            patterns.iter().any(|pattern| match occupant.is_self_chosen {
                true => pattern.matches_everything(),
                false => pattern.matches(&occupant.name),
            })
        };
        match !occupants.is_empty() && occupants.iter().all(matches) {
            false => Verdict::Refused,
            true if *is_complete || patterns.iter().any(Pattern::matches_everything) => Verdict::Allowed,
            true => Verdict::Unsure,
        }
    }

    /// Whether there may be something of this full name that may be captured.
    pub(crate) fn may_ask_for(&self, name: &str) -> bool {
        match &self.capture {
            Captures::Nothing => false,
            Captures::Everything => true,
            Captures::Matching(patterns) => patterns.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// Whether the targets of a namespace may be listed: where captures are bound to patterns, those only that may be
    /// captured.
    pub(crate) fn may_list(&self, occupants: &Occupants) -> bool {
        self.discover && (!self.are_by_pattern() || self.may_capture(occupants) == Verdict::Allowed)
    }
}

impl Captures {
    fn add(&mut self, pattern: Pattern) {
        match self {
            Self::Nothing => *self = Self::Matching(vec![pattern]),
            Self::Matching(patterns) => patterns.push(pattern),
            Self::Everything => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn rights(scopes: &str) -> Rights {
        Rights::parse(scopes.split_whitespace()).unwrap()
    }

    #[test]
    fn scopes_are_what_one_may_do() {
        for (scopes, discover, something, administer) in [
            ("", true, true, false),
            ("discover", true, false, false),
            ("capture", false, true, false),
            ("capture:web", false, true, false),
            ("admin", false, false, true),
            ("none", false, false, false),
            ("admin discover capture", true, true, true),
        ] {
            let rights = rights(scopes);
            assert_eq!(rights.may_discover(), discover, "{scopes}");
            assert_eq!(rights.may_capture_something(), something, "{scopes}");
            assert_eq!(rights.may_administer(), administer, "{scopes}");
        }
        assert_eq!(rights("admin discover capture"), Rights::ALL);
        assert_eq!(rights("capture:a capture"), rights("capture capture:a"));
        for both in [["none", "admin"], ["capture", "none"], ["none", "none"]] {
            assert_eq!(Rights::parse(both), Err(ScopeError::NoneBesideOthers));
        }
        for wrong in [
            "Capture",
            "capture:",
            "discover:web",
            "web",
            "captures",
            ":",
            "admin:x",
        ] {
            let error = Rights::parse([wrong]).unwrap_err().to_string();
            assert!(error.contains(wrong), "{error}");
        }
        let error = Rights::parse(["capture:"]).unwrap_err();
        let sentence = "the scope \"capture:\" cannot be used: the pattern is empty";
        assert_eq!(chain(&error), sentence);
    }

    fn occupants(names: &[&str]) -> Occupants {
        let occupant = |name: &&str| Occupant {
            name: name.trim_start_matches('!').to_owned(),
            is_self_chosen: name.starts_with('!'),
        };
        Occupants::new(names.iter().map(occupant), true)
    }

    #[test]
    fn all_in_a_namespace_have_to_match() {
        let rights = rights("capture:web-* capture:shop/**");
        for (names, may) in [
            (&["web-1"][..], true),
            (&["web-1", "shop/a"], true),
            (&["web-1", "db"], false),
            (&["systemd(1)", "web-1"], false),
            // What somebody calls himself in another's namespace says nothing.
            (&["!web-1"], false),
            (&["web-1", "!web-2"], false),
            (&[], false),
        ] {
            let all = occupants(names);
            let verdict = if may { Verdict::Allowed } else { Verdict::Refused };
            assert_eq!(rights.may_capture(&all), verdict, "{names:?}");
            assert!(!rights.may_list(&all), "{names:?}");
            assert_eq!(Rights::ORDINARY.may_capture(&all), Verdict::Allowed);
            assert_eq!(Rights::NONE.may_capture(&all), Verdict::Refused);
            let some = Occupants {
                is_complete: false,
                ..all
            };
            let verdict = if may { Verdict::Unsure } else { Verdict::Refused };
            assert_eq!(rights.may_capture(&some), verdict, "{names:?}");
            assert_eq!(Rights::ORDINARY.may_capture(&some), Verdict::Allowed);
        }
        let everything = self::rights("capture:**");
        let mut all = occupants(&["!web-1", "db"]);
        all.is_complete = false;
        assert_eq!(everything.may_capture(&all), Verdict::Allowed);
        assert_eq!(everything.may_capture(&Occupants::default()), Verdict::Refused);
    }

    #[test]
    fn lists_have_what_may_be_captured() {
        let by_pattern = rights("discover capture:web-*");
        assert!(by_pattern.may_list(&occupants(&["web-1"])) && !by_pattern.may_list(&occupants(&["db"])));
        // One who only looks may see all.
        assert!(rights("discover").may_list(&occupants(&["db"])));
        assert!(!rights("capture").may_list(&occupants(&["db"])));
    }
}
