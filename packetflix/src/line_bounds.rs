//! Bounds how many lines are written of each of many in a while, and counts the rest.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// For so long lines are counted together.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);

/// Those with lines of their own in that time; the others share those of one.
const MAX_KEYS: usize = 32;

/// How many lines there were of each in this window.
#[derive(Debug)]
pub(crate) struct LineBounds<K> {
    lines: u64,
    counts: Mutex<HashMap<Option<K>, u64>>,
}

impl<K: Clone + Eq + Hash> LineBounds<K> {
    /// Allows so many lines of each.
    pub(crate) fn new(lines: u64) -> Self {
        let counts = Mutex::default();
        Self { lines, counts }
    }

    /// Counts one more, and tells whether there is a line for it.
    pub(crate) fn allow(&self, of: &K) -> bool {
        let mut counts = self.counts();
        let of = Some(of.clone());
        let has_room = counts.len() < MAX_KEYS || counts.contains_key(&of);
        let count = counts.entry(of.filter(|_| has_room)).or_default();
        *count += 1;
        *count <= self.lines
    }

    /// How many of whom had no line, and begins anew.
    pub(crate) fn take_the_rest(&self) -> Vec<(Option<K>, u64)> {
        let mut counts = self.counts();
        let rest = counts.drain().filter_map(|(of, count)| {
            let more = count.checked_sub(self.lines).filter(|more| *more > 0)?;
            Some((of, more))
        });
        rest.collect()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Option<K>, u64>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few_and_nothing_is_lost() {
        const LINES: u64 = 50;

        let bounds = LineBounds::new(LINES);
        let lines = |of: usize, times: usize| (0..times).filter(|_| bounds.allow(&of)).count();
        assert_eq!(lines(1, 1000), LINES as usize);
        // Who is quiet is not drowned by who is not.
        assert_eq!(lines(2, 3), 3);
        let many: usize = (3..3000).map(|of| lines(of, 1)).sum();
        assert!(many <= MAX_KEYS + LINES as usize, "{many}");
        let rest = bounds.take_the_rest();
        assert!(rest.contains(&(Some(1), 1000 - LINES)), "{rest:?}");
        let untold: u64 = rest.iter().map(|(_, count)| count).sum();
        assert_eq!(untold, 4000 - (LINES + 3 + many as u64));
        assert!(bounds.take_the_rest().is_empty());
        assert_eq!(lines(1, 1000), LINES as usize);
    }
}
