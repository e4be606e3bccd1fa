//! What a caller may do.

use serde::{Deserialize, Serialize};

use super::pattern::{Pattern, PatternError};

/// What a caller may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Rights {
    discover: Extent,
    capture: Extent,
    administer: bool,
}

/// How far a right reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Extent {
    Nothing,
    /// To what is called so.
    Matching(Vec<Pattern>),
    /// To pods of Kubernetes that are called so.
    Pods(Vec<Pattern>),
    Everything,
}

/// All who are in a network namespace, whose packets a capture of it would have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Occupants {
    occupants: Vec<Occupant>,
    is_complete: bool,
}

/// One who is in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Occupant {
    /// Full name.
    pub(crate) name: String,
    /// Whether it has the name from itself, in a namespace that is not its own, so that the name says nothing.
    pub(crate) is_self_chosen: bool,
    /// Whether an engine of the host runs it for Kubernetes: then the name is that of the pod, `NAMESPACE/POD`.
    pub(crate) is_pod: bool,
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
        discover: Extent::Nothing,
        capture: Extent::Nothing,
        administer: false,
    };

    /// Those of whom nothing else is said: to discover and to capture everything, but not to administer.
    pub(crate) const ORDINARY: Self = Self {
        discover: Extent::Everything,
        capture: Extent::Everything,
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
        let mut discover = false;
        for scope in scopes {
            match scope.split_once(':') {
                None if scope == "discover" => discover = true,
                None if scope == "capture" => rights.capture = Extent::Everything,
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
        // Where captures are bound to patterns, those only may be listed that may be captured.
        rights.discover = match &rights.capture {
            _ if !discover => Extent::Nothing,
            bounded @ Extent::Matching(_) => bounded.clone(),
            _ => Extent::Everything,
        };
        Ok(rights)
    }

    /// Those that reach so far.
    pub(crate) fn new(discover: Extent, capture: Extent, administer: bool) -> Self {
        Self {
            discover,
            capture,
            administer,
        }
    }

    /// What both these and others allow.
    pub(crate) fn within(&self, others: &Self) -> Self {
        Self {
            discover: self.discover.within(&others.discover),
            capture: self.capture.within(&others.capture),
            administer: self.administer && others.administer,
        }
    }

    /// Those to look for what may be captured, by a name that is known.
    pub(crate) fn to_find(&self) -> Self {
        Self {
            discover: self.capture.clone(),
            capture: self.capture.clone(),
            administer: false,
        }
    }

    /// Whether these allow to list and capture all that others allow.
    pub(crate) fn include(&self, others: &Self) -> bool {
        self.discover.includes(&others.discover) && self.capture.includes(&others.capture)
    }

    /// The patterns of pods to which the right to list reaches, and that to capture.
    pub(crate) fn pods(&self) -> [&[Pattern]; 2] {
        [&self.discover, &self.capture].map(|extent| match extent {
            Extent::Pods(patterns) => &patterns[..],
            _ => &[],
        })
    }

    /// Whether there can be targets that may be listed.
    pub(crate) fn may_discover(&self) -> bool {
        self.discover != Extent::Nothing
    }

    /// Whether all targets may be listed.
    pub(crate) fn may_discover_all(&self) -> bool {
        self.discover == Extent::Everything
    }

    /// Whether there can be anything that may be captured.
    pub(crate) fn may_capture_something(&self) -> bool {
        self.capture != Extent::Nothing
    }

    /// Whether all that belongs to everyone may be seen and ended.
    pub(crate) fn may_administer(&self) -> bool {
        self.administer
    }

    /// Whether it takes the names of targets to decide what may be captured.
    pub(crate) fn are_by_pattern(&self) -> bool {
        self.capture.is_by_name()
    }

    /// Whether it takes the names of targets to decide what may be listed.
    pub(crate) fn lists_are_by_pattern(&self) -> bool {
        self.discover.is_by_name()
    }

    /// Whether there are targets of which nothing may be known.
    pub(crate) fn are_bounded(&self) -> bool {
        self.capture.is_by_name() || self.discover.is_by_name()
    }

    /// Whether a namespace may be captured: all who are in it. One who may not would be captured with the others. Where
    /// nobody is known, there is no telling.
    pub(crate) fn may_capture(&self, occupants: &Occupants) -> Verdict {
        self.capture.covers(occupants)
    }

    /// Whether there may be something of this full name that may be captured.
    pub(crate) fn may_ask_for(&self, name: &str) -> bool {
        match &self.capture {
            Extent::Nothing => false,
            Extent::Everything => true,
            Extent::Matching(patterns) | Extent::Pods(patterns) => {
                patterns.iter().any(|pattern| pattern.matches(name))
            }
        }
    }

    /// Whether the targets of a namespace may be listed.
    pub(crate) fn may_list(&self, occupants: &Occupants) -> bool {
        self.discover.covers(occupants) == Verdict::Allowed
    }
}

impl Extent {
    fn add(&mut self, pattern: Pattern) {
        match self {
            Self::Nothing => *self = Self::Matching(vec![pattern]),
            Self::Matching(patterns) | Self::Pods(patterns) => patterns.push(pattern),
            Self::Everything => {}
        }
    }

    /// How far both reach. Of two that reach to some, what both have is known only where they are the same.
    fn within(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Everything, extent) | (extent, Self::Everything) => extent.clone(),
            (one, other) if one == other => one.clone(),
            _ => Self::Nothing,
        }
    }

    fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Everything, _) | (_, Self::Nothing) => true,
            (Self::Matching(these), Self::Matching(others)) | (Self::Pods(these), Self::Pods(others)) => {
                others
                    .iter()
                    .all(|other| these.iter().any(|this| this.includes(other)))
            }
            _ => false,
        }
    }

    fn is_by_name(&self) -> bool {
        matches!(self, Self::Matching(_) | Self::Pods(_))
    }

    /// Whether it reaches to all who are in a namespace.
    fn covers(
        &self,
        Occupants {
            occupants,
            is_complete,
        }: &Occupants,
    ) -> Verdict {
        let (patterns, pods_only) = match self {
            Self::Nothing => return Verdict::Refused,
            Self::Everything => return Verdict::Allowed,
            Self::Matching(patterns) => (patterns, false),
            Self::Pods(patterns) => (patterns, true),
        };
        let matches = |occupant: &Occupant| {
            patterns.iter().any(|pattern| match occupant.is_self_chosen {
                true => !pods_only && pattern.matches_everything(),
                false => (occupant.is_pod || !pods_only) && pattern.matches(&occupant.name),
            })
        };
        let is_sure = *is_complete || (!pods_only && patterns.iter().any(Pattern::matches_everything));
        match !occupants.is_empty() && occupants.iter().all(matches) {
            false => Verdict::Refused,
            true if is_sure => Verdict::Allowed,
            true => Verdict::Unsure,
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
            is_pod: name.contains('/'),
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

    #[test]
    fn rights_are_bounded_by_others() {
        let pods = |patterns: &[&str]| {
            let patterns = patterns.iter().map(|pattern| pattern.parse().unwrap());
            Extent::Pods(patterns.collect())
        };
        let some = Rights::new(pods(&["shop/*", "bank/web"]), pods(&["bank/web"]), false);
        assert_eq!(Rights::ALL.within(&some), some);
        assert_eq!(some.within(&Rights::ALL), some);
        assert_eq!(some.within(&some), some);
        assert_eq!(Rights::NONE.within(&some), Rights::NONE);
        assert_eq!(rights("discover").within(&some).capture, Extent::Nothing);
        // What both have of two that reach to some only is not known.
        assert_eq!(rights("discover capture:web").within(&some), Rights::NONE);
        assert_eq!(
            some.to_find(),
            Rights::new(pods(&["bank/web"]), pods(&["bank/web"]), false)
        );
        for (these, others, expected) in [
            (Rights::ALL, &some, true),
            (some.clone(), &some, true),
            (Rights::new(pods(&["*/*"]), pods(&["*/*"]), false), &some, true),
            (
                Rights::new(pods(&["shop/*", "bank/*"]), pods(&["bank/*"]), false),
                &some,
                true,
            ),
            (
                Rights::new(pods(&["shop/a", "bank/web"]), pods(&["bank/web"]), false),
                &some,
                false,
            ),
            (
                Rights::new(pods(&["shop/*"]), pods(&["bank/web"]), false),
                &some,
                false,
            ),
            (some.clone(), &Rights::ALL, false),
            (rights("discover capture:**"), &some, false),
            (
                rights("discover capture:a capture:b"),
                &rights("discover capture:b"),
                true,
            ),
            (
                rights("discover capture:a*"),
                &rights("discover capture:**"),
                false,
            ),
        ] {
            assert_eq!(these.include(others), expected, "{these:?} {others:?}");
        }
        let told = serde_json::to_string(&some).unwrap();
        assert_eq!(
            told,
            r#"{"discover":{"pods":["shop/*","bank/web"]},"capture":{"pods":["bank/web"]},"administer":false}"#
        );
        for rights in [
            some,
            Rights::ALL,
            Rights::NONE,
            rights("discover capture:web-* capture:a/**"),
        ] {
            let told = serde_json::to_string(&rights).unwrap();
            assert_eq!(serde_json::from_str::<Rights>(&told).unwrap(), rights);
        }
    }

    #[test]
    fn rights_to_pods_reach_to_nothing_else() {
        let pods = |patterns: &[&str]| {
            Extent::Pods(patterns.iter().map(|pattern| pattern.parse().unwrap()).collect())
        };
        let rights = Rights::new(pods(&["shop/*", "bank/web"]), pods(&["shop/*"]), false);
        assert!(rights.are_by_pattern() && rights.are_bounded() && rights.may_discover());
        assert_eq!(
            rights.may_capture(&occupants(&["shop/a", "shop/b"])),
            Verdict::Allowed
        );
        assert_eq!(rights.may_capture(&occupants(&["bank/web"])), Verdict::Refused);
        assert!(rights.may_list(&occupants(&["bank/web"])) && !rights.may_list(&occupants(&["bank/db"])));
        // A container, or a process, that is only called so.
        let called_so = Occupant {
            name: "shop/a".to_owned(),
            is_self_chosen: false,
            is_pod: false,
        };
        let with_a_pod = Occupants::new(
            [
                called_so.clone(),
                Occupant {
                    is_pod: true,
                    ..called_so.clone()
                },
            ],
            true,
        );
        for occupants in [Occupants::new([called_so], true), with_a_pod] {
            assert_eq!(rights.may_capture(&occupants), Verdict::Refused);
            assert!(!rights.may_list(&occupants));
        }
        let all = Rights::new(Extent::Nothing, pods(&["**"]), false);
        assert_eq!(all.may_capture(&occupants(&["!shop/a"])), Verdict::Refused);
        let mut some = occupants(&["shop/a"]);
        some.is_complete = false;
        assert_eq!(all.may_capture(&some), Verdict::Unsure);
        // Who sees some pods only is told of nothing else.
        assert!(Rights::new(pods(&["shop/*"]), Extent::Nothing, false).are_bounded());
    }
}
