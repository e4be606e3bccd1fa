//! What became of expressions that were compiled before.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::child::Answer;
use crate::pcapng::LinkType;

/// Most bytes of all that is kept.
const MAX_SIZE: usize = 4 << 20;
/// Most of them for one: expressions may be long, and make short programs.
const MAX_ENTRY: usize = MAX_SIZE / 16;

/// What decides what becomes of an expression, and who has asked for it: how long an answer takes tells nobody what others
/// look for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) account: Arc<str>,
    /// Names are numbers in it by then.
    pub(super) expression: String,
    pub(super) link_type: LinkType,
}

/// The answers of the compiler that hold for good; those that were not asked for longest go first.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    known: HashMap<Key, (Answer, u64)>,
    size: usize,
    asked: u64,
}

impl Cache {
    /// What became of an expression, if that is known.
    pub(super) fn get(&self, key: &Key) -> Option<Answer> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.asked += 1;
        let now = entries.asked;
        let (answer, asked) = entries.known.get_mut(key)?;
        *asked = now;
        Some(answer.clone())
    }

    /// Keeps what became of an expression, unless that depends on the moment.
    pub(super) fn put(&self, key: &Key, answer: &Answer) {
        let size = size_of_entry(key, answer);
        if size > MAX_ENTRY || matches!(answer, Answer::OutOfMemory | Answer::Failed { .. }) {
            return;
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.asked += 1;
        let now = entries.asked;
        entries.size += size;
        if let Some((old, _)) = entries.known.insert(key.clone(), (answer.clone(), now)) {
            entries.size -= size_of_entry(key, &old);
        }
        while entries.size > MAX_SIZE {
            let oldest = entries.known.iter().min_by_key(|(_, (_, asked))| *asked);
            let Some(oldest) = oldest.map(|(key, _)| key.clone()) else {
                return;
            };
            if let Some((answer, _)) = entries.known.remove(&oldest) {
                entries.size -= size_of_entry(&oldest, &answer);
            }
        }
    }
}

fn size_of_entry(key: &Key, answer: &Answer) -> usize {
    /// Roughly what an entry takes besides.
    const OVERHEAD: usize = 256;

    let said = match answer {
        Answer::Program(program) => size_of_val(&program[..]),
        Answer::Refused(message) => message.len(),
        Answer::TooLarge(_) | Answer::OutOfMemory | Answer::Failed { .. } => 0,
    };
    OVERHEAD + key.expression.len() + said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(expression: &str) -> Key {
        Key {
            account: "".into(),
            expression: expression.to_owned(),
            link_type: LinkType::Ethernet,
        }
    }

    #[test]
    fn what_is_asked_for_stays() {
        let cache = Cache::default();
        let program = Answer::Program(vec![(6, 0, 0, 1); 4000]);
        cache.put(&key("often"), &program);
        for n in 0..1000 {
            cache.put(&key(&format!("once {n}")), &program);
            assert!(matches!(cache.get(&key("often")), Some(Answer::Program(_))));
        }
        let entries = cache.0.lock().unwrap();
        assert!(entries.size <= MAX_SIZE && entries.known.len() > 50);
        let sizes = entries
            .known
            .iter()
            .map(|(key, (answer, _))| size_of_entry(key, answer));
        assert_eq!(sizes.sum::<usize>(), entries.size);
        assert!(entries.known.contains_key(&key("once 999")) && !entries.known.contains_key(&key("once 0")));
    }

    #[test]
    fn what_passes_is_not_kept() {
        let cache = Cache::default();
        let failed = Answer::Failed {
            step: String::new(),
            needs: None,
            errno: None,
            sentence: String::new(),
        };
        cache.put(&key("a"), &failed);
        cache.put(&key("a"), &Answer::OutOfMemory);
        cache.put(&key(&"x".repeat(MAX_ENTRY)), &Answer::TooLarge(5000));
        assert!(cache.get(&key("a")).is_none() && cache.0.lock().unwrap().known.is_empty());
        cache.put(&key("a"), &Answer::Refused("no".to_owned()));
        let other = Key {
            link_type: LinkType::Raw,
            ..key("a")
        };
        assert!(cache.get(&key("a")).is_some() && cache.get(&other).is_none());
    }

    #[test]
    fn nobody_learns_what_others_have_asked_for() {
        let [one, another] = ["one", "another"].map(|account| Key {
            account: account.into(),
            ..key("a")
        });
        let cache = Cache::default();
        cache.put(&one, &Answer::TooLarge(5000));
        assert!(cache.get(&one).is_some() && cache.get(&another).is_none());
    }
}
