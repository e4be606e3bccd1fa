//! A selection of targets: words of which each may mean several.

use std::io;

use crate::{
    access::{Pattern, PatternError, Rights},
    description::{Alias, HOST, TargetDescription, known_as},
    discovery::DiscoveredTarget,
};

/// Most words of a selection.
pub(crate) const MAX_WORDS: usize = 64;

/// Longer texts are matched by no pattern, so that matching stays quick whatever containers call things.
const MAX_MATCHED_LEN: usize = 1024;

/// Labels that say to which compose project a container belongs.
const COMPOSE_LABELS: [&str; 2] = ["com.docker.compose.project", "io.podman.compose.project"];

/// Words of which each means some targets, or, with `!` before it, leaves some out.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    meant: Vec<Meaning>,
    left_out: Vec<Meaning>,
    /// Words that mean one target each, as they were given.
    single: Vec<String>,
}

/// Which targets a word means.
#[derive(Clone, Debug)]
enum Meaning {
    /// What a name means that is asked for alone.
    Name(String),
    /// Those with such full names, and those whose namespace the host has mounted at such a path.
    Names(Pattern),
    /// Those of a type, with such full names.
    OfType(String, Option<Pattern>),
    /// Those with a label of this key, and such a value.
    Label(String, Option<Pattern>),
    /// Those of a compose project.
    Compose(String),
    /// Those of such images.
    Image(Pattern),
    /// Those in a namespace, by its inode number; none where it is that of a process which is not to be known.
    Namespace(Option<u64>),
    /// Those in the host's namespace.
    Host,
    /// Those that each of these means.
    Each(Vec<Meaning>),
}

/// Why a word cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelectionError {
    #[error("target= has more than {MAX_WORDS} words")]
    TooMany,
    #[error("target= is empty: give a name, a pattern such as shop-*, or label:KEY=VALUE")]
    Empty,
    #[error("target={word} cannot be used")]
    Pattern {
        word: String,
        #[source]
        source: PatternError,
    },
    #[error("target={0} has no number: give pid:NUMBER, or netns:NUMBER")]
    Number(String),
    #[error("target=pid:{pid}: the namespace of that process cannot be looked at")]
    Process {
        pid: u64,
        #[source]
        source: io::Error,
    },
}

/// Tells the number of the network namespace that a process is in.
pub(crate) type NamespaceOf<'a> = &'a dyn Fn(u64) -> io::Result<u64>;

/// Whether a word says what it is about, so that it may mean any number of targets.
fn has_prefix(word: &str) -> bool {
    word.split_once(':')
        .is_some_and(|(prefix, _)| matches!(prefix, "type" | "pod" | "label" | "compose" | "image"))
}

impl Selection {
    /// Reads words of somebody with these rights. Of a process it is looked up now in which namespace it is; who may know of some
    /// targets only is not told whether there is such a process.
    pub(crate) fn parse(
        words: &[String],
        rights: &Rights,
        namespace_of: NamespaceOf<'_>,
    ) -> Result<Self, SelectionError> {
        if words.len() > MAX_WORDS {
            return Err(SelectionError::TooMany);
        }
        let (mut meant, mut left_out, mut single) = (Vec::new(), Vec::new(), Vec::new());
        for word in words {
            if let Some(word) = word.strip_prefix('!') {
                left_out.push(Meaning::parse(word, rights, namespace_of)?);
                continue;
            }
            let meaning = Meaning::parse(word, rights, namespace_of)?;
            if meaning.is_single() {
                single.push(word.clone());
            }
            meant.push(meaning);
        }
        Ok(Self {
            meant,
            left_out,
            single,
        })
    }

    /// Words that mean one target each, as they were given.
    pub(crate) fn single(&self) -> &[String] {
        &self.single
    }

    /// Whether a word means one target, if it can be used, and nothing else can come to be meant beside that.
    pub(crate) fn is_single(word: &str) -> bool {
        !word.starts_with('!') && !has_prefix(word) && !word.contains(['*', '?'])
    }

    /// Whether a word may mean any number of targets.
    pub(crate) fn has_patterns(&self) -> bool {
        self.single.len() < self.meant.len() || self.meant.is_empty()
    }

    /// Whether a target is selected by a word that means it alone.
    pub(crate) fn has_by_name(&self, target: &DiscoveredTarget) -> bool {
        let description = target.description();
        let mut single = self.meant.iter().filter(|word| word.is_single());
        single.any(|word| word.has(target, &description)) && !self.leaves_out(target, &description)
    }

    /// Whether a target is selected by a word that may mean any number of them.
    pub(crate) fn has_by_pattern(&self, target: &DiscoveredTarget) -> bool {
        let description = target.description();
        let is_meant = self.meant.is_empty()
            || self
                .meant
                .iter()
                .any(|word| !word.is_single() && word.has(target, &description));
        is_meant && !self.leaves_out(target, &description)
    }

    fn leaves_out(&self, target: &DiscoveredTarget, description: &TargetDescription) -> bool {
        self.left_out.iter().any(|word| word.has(target, description))
    }

    /// Whether a target is selected. Where all words leave something out, all others are meant.
    pub(crate) fn has(&self, target: &DiscoveredTarget) -> bool {
        let description = target.description();
        let is_meant = self.meant.is_empty() || self.meant.iter().any(|word| word.has(target, &description));
        is_meant && !self.leaves_out(target, &description)
    }
}

impl Meaning {
    fn parse(word: &str, rights: &Rights, namespace_of: NamespaceOf<'_>) -> Result<Self, SelectionError> {
        let pattern = |text: &str| {
            text.parse().map_err(|source| SelectionError::Pattern {
                word: word.to_owned(),
                source,
            })
        };
        // Images and labels have slashes and colons that separate nothing here.
        let anything = |text: &str| pattern(&text.replace('*', "**"));
        let number = |text: &str| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            let number = is_number.then(|| text.parse().ok()).flatten();
            number.ok_or_else(|| SelectionError::Number(word.to_owned()))
        };
        if word.contains('&') && word.split('&').all(has_prefix) {
            let each = word
                .split('&')
                .map(|part| Self::parse(part, rights, namespace_of));
            return Ok(Self::Each(each.collect::<Result<_, _>>()?));
        }
        Ok(match word.split_once(':') {
            _ if word.is_empty() => return Err(SelectionError::Empty),
            None if word == HOST => Self::Host,
            Some(("pid", text)) => {
                let pid: u64 = number(text)?;
                match namespace_of(pid) {
                    Ok(inode) => Self::Namespace(Some(inode)),
                    Err(_) if rights.are_by_pattern() => Self::Namespace(None),
                    Err(source) => return Err(SelectionError::Process { pid, source }),
                }
            }
            Some(("netns", text)) => Self::Namespace(Some(number(text)?)),
            Some(("type", kind)) if !kind.is_empty() => Self::OfType(kind.to_owned(), None),
            Some(("pod", names)) => Self::OfType("pod".to_owned(), Some(pattern(names)?)),
            Some(("label", label)) if !label.is_empty() => match label.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(anything(value)?)),
                None => Self::Label(label.to_owned(), None),
            },
            Some(("compose", project)) if !project.is_empty() => Self::Compose(project.to_owned()),
            Some(("image", images)) => Self::Image(anything(images)?),
            Some(("type" | "label" | "compose", _)) => return Err(SelectionError::Empty),
            _ if word.contains(['*', '?']) => Self::Names(pattern(word)?),
            _ => Self::Name(word.to_owned()),
        })
    }

    /// Whether it means one target, and nothing else can come to be meant beside that.
    fn is_single(&self) -> bool {
        matches!(self, Self::Name(_) | Self::Namespace(_) | Self::Host)
    }

    fn has(&self, target: &DiscoveredTarget, description: &TargetDescription) -> bool {
        let label = |key: &str| target.workload.as_ref().and_then(|facts| facts.labels.get(key));
        match self {
            Self::Name(name) => {
                let wanted = TargetDescription {
                    name: name.clone(),
                    ..TargetDescription::default()
                };
                // What others have mounted at such a path is known by that to them alone.
                let is_known = |alias| !matches!(alias, Alias::Mount { is_hosts: false });
                let mut aliases = known_as(&wanted, description).map(|(_, alias)| alias);
                description.full_name() == *name || aliases.any(is_known)
            }
            Self::Names(names) => {
                let mut mounts = description.aliases.mounts.iter();
                fits(names, &description.full_name())
                    || mounts.any(|mount| mount.is_hosts && fits(names, &mount.path))
            }
            Self::OfType(kind, names) => {
                let is_called = |names| fits(names, &description.full_name());
                target.kind == kind && names.as_ref().is_none_or(is_called)
            }
            Self::Label(key, values) => {
                let is_such = |value: &String| values.as_ref().is_none_or(|values| fits(values, value));
                label(key).is_some_and(is_such)
            }
            Self::Compose(project) => COMPOSE_LABELS.into_iter().any(|key| label(key) == Some(project)),
            Self::Image(images) => target.images().iter().any(|image| fits(images, image)),
            Self::Namespace(inode) => *inode == Some(target.namespace.inode),
            Self::Host => target.namespace.is_host,
            Self::Each(words) => words.iter().all(|word| word.has(target, description)),
        }
    }
}

fn fits(pattern: &Pattern, text: &str) -> bool {
    text.len() <= MAX_MATCHED_LEN && pattern.matches(text)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::discovery::{
        Trust,
        target::{Mount, Namespace, WorkloadFacts},
    };

    fn nowhere(_: u64) -> io::Result<u64> {
        Err(io::ErrorKind::NotFound.into())
    }

    fn target(name: &str, kind: &'static str, inode: u64) -> DiscoveredTarget {
        DiscoveredTarget {
            name: name.to_owned(),
            kind,
            trust: Trust::Host,
            prefix: String::new(),
            namespace: Arc::new(Namespace {
                inode,
                is_host: inode == 1,
                is_roots: true,
                links: Vec::new(),
                mounts: Vec::new(),
            }),
            process: None,
            workload: None,
        }
    }

    fn run(
        name: &str,
        kind: &'static str,
        inode: u64,
        image: &str,
        labels: &[(&str, &str)],
    ) -> DiscoveredTarget {
        DiscoveredTarget {
            workload: Some(WorkloadFacts {
                id: format!("{inode:04x}cafe"),
                engine: "/run/engine.sock".into(),
                images: vec![image.to_owned()],
                labels: labels
                    .iter()
                    .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                    .collect(),
                labels_left_out: 0,
                state: "running".to_owned(),
                pod: None,
            }),
            ..target(name, kind, inode)
        }
    }

    fn all() -> Vec<DiscoveredTarget> {
        let mut nested = run("web", "docker", 7, "nginx", &[]);
        nested.prefix = "kind".to_owned();
        let mut mounted = target("/run/netns/s1", "bindmount", 6);
        Arc::make_mut(&mut mounted.namespace).mounts = vec![Mount {
            path: "/run/netns/s1".into(),
            is_hosts: true,
        }];
        let mut inside = target("ping(7)", "proc", 8);
        inside.namespace = Arc::new(Namespace {
            mounts: vec![
                Mount {
                    path: "/run/netns/used".into(),
                    is_hosts: true,
                },
                Mount {
                    path: "/run/theirs/x".into(),
                    is_hosts: false,
                },
            ],
            ..Namespace::clone(&inside.namespace)
        });
        vec![
            inside,
            target("init(1)", "proc", 1),
            run(
                "web",
                "docker",
                2,
                "registry:5000/shop/nginx:1.27",
                &[("app", "web/front"), (COMPOSE_LABELS[0], "shop")],
            ),
            run(
                "db",
                "docker",
                3,
                "postgres:17",
                &[("app", "db"), (COMPOSE_LABELS[1], "shop")],
            ),
            run("shop/cart-1", "pod", 4, "cart", &[("app", "cart")]),
            run("bank/cart-1", "pod", 5, "cart", &[]),
            mounted,
            nested,
        ]
    }

    fn selected(words: &[&str]) -> Result<Vec<u64>, SelectionError> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let selection = Selection::parse(&words, &Rights::ALL, &nowhere)?;
        let targets = all();
        let selected = targets.iter().filter(|target| {
            let has = selection.has(target);
            assert_eq!(
                has,
                selection.has_by_name(target) || selection.has_by_pattern(target)
            );
            has
        });
        Ok(selected.map(|target| target.namespace.inode).collect())
    }

    #[test]
    fn words_select_targets() {
        for (words, expected) in [
            (&[][..], &[8, 1, 2, 3, 4, 5, 6, 7][..]),
            (&["web"], &[2]),
            (&["kind:web"], &[7]),
            (&["kind:*"], &[7]),
            (&["w*"], &[2]),
            (&["w?b", "db"], &[2, 3]),
            (&["0003"], &[3]),
            (&["host"], &[1]),
            (&["s1"], &[6]),
            (&["/var/run/netns/s1"], &[6]),
            (&["/run/netns/*"], &[8, 6]),
            (&["/run/theirs/*"], &[]),
            (&["/run/theirs/x"], &[]),
            (&["/run/netns/used"], &[8]),
            (&["netns:5"], &[5]),
            (&["type:docker"], &[2, 3, 7]),
            (&["type:pod", "!bank/*"], &[4]),
            (&["pod:shop/*"], &[4]),
            (&["pod:*"], &[]),
            (&["label:app"], &[2, 3, 4]),
            (&["label:app=db"], &[3]),
            (&["label:app=w*"], &[2]),
            (&["label:app=*"], &[2, 3, 4]),
            (&["label:app=w"], &[]),
            (&["label:app=*&label:app=w*"], &[2]),
            (&["type:docker&label:app=nothing"], &[]),
            (&["compose:shop"], &[2, 3]),
            (&["image:*nginx*"], &[2, 7]),
            (&["image:nginx*"], &[7]),
            (&["compose:shop", "!db"], &[2]),
            (&["!type:docker", "!type:pod"], &[8, 1, 6]),
            (&["nobody"], &[]),
        ] {
            assert_eq!(selected(words).unwrap(), expected, "{words:?}");
        }
    }

    #[test]
    fn process_selects_the_namespace_it_is_in() {
        let own = 4_026_531_840;
        let selection = Selection::parse(&["pid:7".to_owned()], &Rights::ALL, &|pid| {
            assert_eq!(pid, 7);
            Ok(own)
        });
        let selection = selection.unwrap();
        assert!(selection.has(&target("here", "proc", own)));
        assert!(!selection.has(&target("there", "proc", own + 1)));
        // Beyond what a kernel gives.
        let error = selected(&["pid:4194305"]).unwrap_err();
        assert!(matches!(error, SelectionError::Process { .. }), "{error}");
        let some = Rights::parse(["discover", "capture:web"]).unwrap();
        let words = ["pid:4194305", "web"].map(str::to_owned);
        let selection = Selection::parse(&words, &some, &nowhere).unwrap();
        let targets = all();
        let selected = targets.iter().filter(|target| selection.has(target));
        let selected: Vec<u64> = selected.map(|target| target.namespace.inode).collect();
        assert_eq!(selected, [2]);
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for word in [
            "",
            "!",
            "pid:",
            "pid:x",
            "pid:-1",
            "netns:",
            "netns:99999999999999999999",
            "type:",
            "label:",
            "compose:",
        ] {
            assert!(selected(&["web", word]).is_err(), "{word}");
        }
        for word in ["image:", "pod:", "label:app=", &"*x".repeat(300)] {
            assert!(
                matches!(selected(&[word]), Err(SelectionError::Pattern { .. })),
                "{word}"
            );
        }
        assert!(selected(&["web"; MAX_WORDS]).is_ok());
        assert!(matches!(
            selected(&["web"; MAX_WORDS + 1]),
            Err(SelectionError::TooMany)
        ));
    }

    #[test]
    fn long_texts_are_matched_by_no_pattern() {
        let long = "a".repeat(MAX_MATCHED_LEN + 1);
        let target = run("web", "docker", 2, "nginx", &[("app", &long)]);
        let has = |word: &str| {
            Selection::parse(&[word.to_owned()], &Rights::ALL, &nowhere)
                .unwrap()
                .has(&target)
        };
        assert!(has("label:app"));
        assert!(!has("label:app=*"));
    }
}
