//! What another service says of tokens, for as long as that is believed.
//!
//! Whoever asks that service puts its answers here. Requests are judged by what is here alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    AccessError, Identity, Rights,
    tokens::{DIGEST_LEN, digest_of},
};

/// For how long an answer lets in.
const FRESH: Duration = Duration::from_secs(5);

/// For how long a token is asked for again that nobody has shown, and no capture has needed.
const IN_USE: Duration = Duration::from_secs(10);

/// Most tokens of which something is known.
const MAX_KNOWN: usize = 4096;

/// The longest token that is asked for, in bytes.
pub(crate) const MAX_TOKEN_LEN: usize = 16 << 10;

type Digest = [u8; DIGEST_LEN];

/// What is known of tokens.
#[derive(Default)]
pub(crate) struct Reviews(Mutex<HashMap<Digest, Reviewed>>);

struct Reviewed {
    token: Box<[u8]>,
    /// Whose it is, if it is anybody's.
    holder: Option<Identity>,
    at: Instant,
    used: Instant,
}

impl Reviewed {
    fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.at) < FRESH
    }
}

impl Reviews {
    /// Whether an answer is there that lets in, or keeps out.
    pub(crate) fn is_fresh(&self, token: &[u8]) -> bool {
        let now = Instant::now();
        let known = self.lock();
        known.get(&digest_of(token)).is_some_and(|one| one.is_fresh(now))
    }

    /// Takes an answer in. `holder` says whose the token with this digest is, if it is anybody's.
    pub(crate) fn note(&self, token: &[u8], holder: impl FnOnce(Digest) -> Option<Identity>) {
        let digest = digest_of(token);
        let now = Instant::now();
        let mut known = self.lock();
        let used = known.get(&digest).map_or(now, |one| one.used);
        known.retain(|other, one| *other == digest || now.duration_since(one.used) < 2 * IN_USE);
        if known.len() >= MAX_KNOWN && !known.contains_key(&digest) {
            // Whoever is let in stays known before all who are not.
            let oldest = known
                .iter()
                .min_by_key(|(_, one)| (one.holder.is_some(), one.used));
            if let Some(oldest) = oldest.map(|(oldest, _)| *oldest) {
                known.remove(&oldest);
            }
        }
        known.insert(
            digest,
            Reviewed {
                token: token.into(),
                holder: holder(digest),
                at: now,
                used,
            },
        );
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When it is nobody's, or that is not known for certain any more.
    pub(super) fn holder_of(&self, token: &[u8]) -> Result<Identity, AccessError> {
        let now = Instant::now();
        let mut known = self.lock();
        let one = known.get_mut(&digest_of(token)).filter(|one| one.is_fresh(now));
        let one = one.ok_or(AccessError::NotReviewed)?;
        one.used = now;
        one.holder.clone().ok_or(AccessError::WrongToken)
    }

    /// Whose token has this digest, as it was last known: what runs goes on while nobody can be asked.
    ///
    /// # Errors
    /// When it is nobody's.
    pub(super) fn holder_by(&self, digest: &Digest) -> Result<Identity, AccessError> {
        let mut known = self.lock();
        let one = known.get_mut(digest).ok_or(AccessError::WrongToken)?;
        one.used = Instant::now();
        one.holder.clone().ok_or(AccessError::WrongToken)
    }

    /// What whoever has this token was last known to may do, if anybody has it.
    pub(crate) fn rights_of(&self, token: &[u8]) -> Option<Arc<Rights>> {
        let known = self.lock();
        let holder = known.get(&digest_of(token))?.holder.as_ref()?;
        Some(Arc::clone(&holder.rights))
    }

    /// Tokens that are in use and have to be asked for again.
    pub(crate) fn due(&self) -> Vec<Box<[u8]>> {
        let now = Instant::now();
        let known = self.lock();
        let due = known.values().filter(|one| {
            one.holder.is_some()
                && now.duration_since(one.used) < IN_USE
                && now.duration_since(one.at) > FRESH / 2
        });
        due.map(|one| one.token.clone()).collect()
    }

    /// Has all that is known be so much older.
    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        for one in self.lock().values_mut() {
            one.at -= by;
            one.used -= by;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Reviewed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Basis, *};

    fn identity(digest: Digest) -> Identity {
        Identity {
            name: "alice".into(),
            rights: Arc::new(Rights::ORDINARY),
            basis: Basis::Review(digest),
        }
    }

    /// Has all that is known be so much older.
    fn age(reviews: &Reviews, by: Duration) {
        for one in reviews.lock().values_mut() {
            one.at -= by;
            one.used -= by;
        }
    }

    #[test]
    fn answers_let_in_for_seconds_and_what_runs_goes_on() {
        let reviews = Reviews::default();
        assert_eq!(reviews.holder_of(b"t"), Err(AccessError::NotReviewed));
        reviews.note(b"t", |digest| Some(identity(digest)));
        reviews.note(b"wrong", |_| None);
        let alice = reviews.holder_of(b"t").unwrap();
        let Basis::Review(digest) = alice.basis else {
            panic!("{alice:?}")
        };
        assert_eq!(reviews.holder_of(b"wrong"), Err(AccessError::WrongToken));
        assert!(reviews.is_fresh(b"t") && reviews.due().is_empty());
        age(&reviews, FRESH);
        assert_eq!(reviews.holder_of(b"t"), Err(AccessError::NotReviewed));
        assert_eq!(reviews.holder_by(&digest), Ok(alice));
        assert_eq!(reviews.due(), [Box::from(&b"t"[..])]);
        // It is taken away.
        reviews.note(b"t", |_| None);
        assert_eq!(reviews.holder_by(&digest), Err(AccessError::WrongToken));
        assert!(reviews.due().is_empty());
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_all_is_bounded() {
        let reviews = Reviews::default();
        reviews.note(b"t", |digest| Some(identity(digest)));
        for wrong in 0..2 * MAX_KNOWN {
            reviews.note(&wrong.to_ne_bytes(), |_| None);
        }
        assert_eq!(reviews.lock().len(), MAX_KNOWN);
        assert!(reviews.holder_of(b"t").is_ok());
        age(&reviews, 2 * IN_USE);
        reviews.note(b"u", |_| None);
        assert_eq!(reviews.lock().len(), 1);
    }
}
