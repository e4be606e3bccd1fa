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

/// Why a word is no scope.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScopeError {
    /// There is no such scope.
    #[error("{0} is no scope: there are discover, capture, capture:PATTERN and admin")]
    Unknown(String),
    /// The pattern of a scope cannot be used.
    #[error("{scope}: {source}")]
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
        let mut scopes = scopes.into_iter().peekable();
        if scopes.peek().is_none() {
            return Ok(Self::ORDINARY);
        }
        let mut rights = Self::NONE;
        for scope in scopes {
            match scope.split_once(':') {
                None if scope == "discover" => rights.discover = true,
                None if scope == "capture" => rights.capture = Captures::Everything,
                None if scope == "admin" => rights.administer = true,
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

    /// Whether a namespace may be captured: all targets that are in it, given by their full names. One that may not
    /// would be captured with the others. Where none is known, there is no telling.
    pub(crate) fn may_capture<S: AsRef<str>>(&self, targets: &[S]) -> bool {
        match &self.capture {
            Captures::Nothing => false,
            Captures::Everything => true,
            Captures::Matching(patterns) => {
                let matches = |target: &S| patterns.iter().any(|pattern| pattern.matches(target.as_ref()));
                !targets.is_empty() && targets.iter().all(matches)
            }
        }
    }

    /// Whether the targets of a namespace may be listed: where captures are bound to patterns, those only that may be
    /// captured.
    pub(crate) fn may_list<S: AsRef<str>>(&self, targets: &[S]) -> bool {
        self.discover && (!self.are_by_pattern() || self.may_capture(targets))
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
            ("admin discover capture", true, true, true),
        ] {
            let rights = rights(scopes);
            assert_eq!(rights.may_discover(), discover, "{scopes}");
            assert_eq!(rights.may_capture_something(), something, "{scopes}");
            assert_eq!(rights.may_administer(), administer, "{scopes}");
        }
        assert_eq!(rights("admin discover capture"), Rights::ALL);
        assert_eq!(rights("capture:a capture"), rights("capture capture:a"));
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
    }

    #[test]
    fn all_targets_of_a_namespace_have_to_match() {
        let rights = rights("capture:web-* capture:shop/**");
        for (targets, may) in [
            (&["web-1"][..], true),
            (&["web-1", "shop/a"], true),
            (&["web-1", "db"], false),
            (&["systemd(1)", "web-1"], false),
            (&[], false),
        ] {
            assert_eq!(rights.may_capture(targets), may, "{targets:?}");
            assert!(!rights.may_list(targets), "{targets:?}");
            assert!(Rights::ORDINARY.may_capture(targets));
            assert!(!Rights::NONE.may_capture(targets));
        }
    }

    #[test]
    fn lists_have_what_may_be_captured() {
        let by_pattern = rights("discover capture:web-*");
        assert!(by_pattern.may_list(&["web-1"]) && !by_pattern.may_list(&["db"]));
        // One who only looks may see all.
        assert!(rights("discover").may_list(&["db"]));
        assert!(!rights("capture").may_list(&["db"]));
    }
}
