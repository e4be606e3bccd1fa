//! Whose a word was: it does not pass from what is the host's to what is trusted less.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
};

use super::{target::DiscoveredTarget, trust::Trust};
use crate::description::{HOST, as_beginning, usual, words_of_mount};

/// Most words of a kind that are remembered: one of so many containers ago is free again.
const MAX_WORDS: usize = 16 << 10;

/// Words that have meant what is the host's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Formerly {
    /// Full names of containers and pods of the host's engines.
    names: Words,
    /// Their identifiers.
    ids: Words,
    /// What namespaces are called that the host has mounted.
    mounts: Words,
}

/// The last words of a kind.
#[derive(Clone, Debug, Default)]
struct Words {
    known: BTreeSet<Arc<str>>,
    /// The same, in the order in which they were first seen.
    order: VecDeque<Arc<str>>,
}

impl Formerly {
    /// Remembers the words for what is the host's.
    pub(super) fn look_at(&mut self, targets: &[DiscoveredTarget]) {
        for target in targets {
            if let (Trust::Host, Some(facts)) = (target.trust, &target.workload) {
                self.names.add(&target.full_name());
                self.ids.add(&facts.id);
            }
            for mount in target.namespace.mounts.iter().filter(|mount| mount.is_hosts) {
                let path = mount.path.display().to_string();
                words_of_mount(&path).for_each(|word| self.mounts.add(&word));
            }
        }
    }

    /// Whether a word has meant something of the host's.
    pub(crate) fn has(&self, word: &str) -> bool {
        let is_id = || as_beginning(word).is_some_and(|beginning| self.ids.has_beginning(&beginning));
        word == HOST || self.names.has(word) || self.mounts.has(&usual(word)) || is_id()
    }
}

impl Words {
    fn add(&mut self, word: &str) {
        if self.has(word) {
            return;
        }
        let word: Arc<str> = word.into();
        self.known.insert(Arc::clone(&word));
        self.order.push_back(word);
        if self.order.len() > MAX_WORDS {
            self.order.pop_front().map(|oldest| self.known.remove(&oldest));
        }
    }

    fn has(&self, word: &str) -> bool {
        self.known.contains(word)
    }

    fn has_beginning(&self, beginning: &str) -> bool {
        let bounds = (Bound::Included(beginning), Bound::Unbounded);
        let mut next = self.known.range::<str, _>(bounds);
        next.next().is_some_and(|word| word.starts_with(beginning))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_known() {
        let mut formerly = Formerly::default();
        formerly.ids.add("9f2d7c0e41aa00");
        formerly.names.add("web");
        words_of_mount("/var/run/netns/demo").for_each(|word| formerly.mounts.add(&word));
        for word in [
            "9f2d",
            "9F2D7c0e41aa00",
            "web",
            "demo",
            "/run/netns/demo",
            "/var/run/netns/demo",
            "host",
        ] {
            assert!(formerly.has(word), "{word}");
        }
        for word in [
            "9f2",
            "9f2e",
            "9f2d7c0e41aa001",
            "9f2d7c0e41aa01",
            "we",
            "/run/netns",
            "netns",
        ] {
            assert!(!formerly.has(word), "{word}");
        }
        (0..MAX_WORDS).for_each(|number| formerly.names.add(&number.to_string()));
        assert!(formerly.has("0") && !formerly.has("web"));
        assert_eq!(formerly.names.known.len(), MAX_WORDS);
    }
}
