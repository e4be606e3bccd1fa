//! What another service says of tokens, for as long as that is believed.
//!
//! Whoever asks that service puts its answers here. Requests are judged by what is here alone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::{
    AccessError, Basis, Identity, Rights,
    tokens::{DIGEST_LEN, digest_of},
};

/// For how long an answer lets in, from when it was asked for.
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
    /// Whose it is, if it is anybody's.
    holder: Option<Holder>,
    /// When that was asked.
    at: Instant,
    used: Instant,
}

/// Whoever has a token. Those that nobody has are not kept, but their digests are.
struct Holder {
    token: Box<str>,
    name: Arc<str>,
    rights: Arc<Rights>,
}

impl Reviewed {
    /// Whether it lets in who came then. The answer to a question that is younger than that does, however long it took.
    fn is_fresh(&self, came: Instant) -> bool {
        came.saturating_duration_since(self.at) < FRESH
    }

    fn identity(&self, digest: Digest) -> Result<Identity, AccessError> {
        let holder = self.holder.as_ref().ok_or(AccessError::WrongToken)?;
        Ok(Identity {
            name: Arc::clone(&holder.name),
            rights: Arc::clone(&holder.rights),
            basis: Basis::Review(digest),
        })
    }
}

/// A token as it is asked for, unless it is none that anybody has.
pub(crate) fn as_asked(token: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(token).ok();
    text.filter(|text| !text.is_empty() && text.len() <= MAX_TOKEN_LEN)
}

impl Reviews {
    /// Whether an answer is there that lets in, or keeps out, who came with a token then.
    pub(crate) fn is_fresh(&self, token: &str, came: Instant) -> bool {
        let known = self.lock();
        let known = known.get(&digest_of(token.as_bytes()));
        known.is_some_and(|one| one.is_fresh(came))
    }

    /// Takes an answer in to what was asked at that time, unless a later one is known: the name and the rights of whoever has the
    /// token, if anybody has it.
    pub(crate) fn note(&self, token: &str, at: Instant, holder: Option<(String, Rights)>) {
        let digest = digest_of(token.as_bytes());
        let holder = holder.map(|(name, rights)| Holder {
            token: token.into(),
            name: name.into(),
            rights: Arc::new(rights),
        });
        let now = Instant::now();
        let mut known = self.lock();
        if known.get(&digest).is_some_and(|one| one.at > at) {
            return;
        }
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
        known.insert(digest, Reviewed { holder, at, used });
    }

    /// Whose token it is with which somebody came then.
    ///
    /// # Errors
    /// When it is nobody's, or that is not known for certain any more.
    pub(super) fn holder_of(&self, token: &[u8], came: Instant) -> Result<Identity, AccessError> {
        let token = as_asked(token).ok_or(AccessError::WrongToken)?;
        let digest = digest_of(token.as_bytes());
        let mut known = self.lock();
        let one = known.get_mut(&digest).filter(|one| one.is_fresh(came));
        let one = one.ok_or(AccessError::NotReviewed)?;
        one.used = Instant::now();
        one.identity(digest)
    }

    /// Whose token has this digest, as it was last known: what runs goes on while nobody can be asked.
    ///
    /// # Errors
    /// When it is nobody's.
    pub(super) fn holder_by(&self, digest: &Digest) -> Result<Identity, AccessError> {
        let mut known = self.lock();
        let one = known.get_mut(digest).ok_or(AccessError::WrongToken)?;
        one.used = Instant::now();
        one.identity(*digest)
    }

    /// What whoever has this token was last known to may do, if anybody has it.
    pub(crate) fn rights_of(&self, token: &str) -> Option<Arc<Rights>> {
        let known = self.lock();
        let holder = known.get(&digest_of(token.as_bytes()))?.holder.as_ref()?;
        Some(Arc::clone(&holder.rights))
    }

    /// Tokens that are in use and have to be asked for again.
    pub(crate) fn due(&self) -> Vec<Box<str>> {
        let now = Instant::now();
        let known = self.lock();
        let due = known
            .values()
            .filter(|one| now.duration_since(one.used) < IN_USE && now.duration_since(one.at) > FRESH / 2);
        due.filter_map(|one| Some(one.holder.as_ref()?.token.clone()))
            .collect()
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
    use super::*;

    fn alice() -> Option<(String, Rights)> {
        Some(("alice".to_owned(), Rights::ORDINARY))
    }

    fn note(reviews: &Reviews, token: &str, holder: Option<(String, Rights)>) {
        reviews.note(token, Instant::now(), holder);
    }

    fn holder_of(reviews: &Reviews, token: &str) -> Result<Identity, AccessError> {
        reviews.holder_of(token.as_bytes(), Instant::now())
    }

    #[test]
    fn answers_let_in_for_seconds_and_what_runs_goes_on() {
        let reviews = Reviews::default();
        assert_eq!(holder_of(&reviews, "t"), Err(AccessError::NotReviewed));
        note(&reviews, "t", alice());
        note(&reviews, "wrong", None);
        let alice = holder_of(&reviews, "t").unwrap();
        let Basis::Review(digest) = alice.basis else {
            panic!("{alice:?}")
        };
        assert_eq!(holder_of(&reviews, "wrong"), Err(AccessError::WrongToken));
        assert!(reviews.is_fresh("t", Instant::now()) && reviews.due().is_empty());
        reviews.age(FRESH);
        assert_eq!(holder_of(&reviews, "t"), Err(AccessError::NotReviewed));
        assert_eq!(reviews.holder_by(&digest), Ok(alice));
        assert_eq!(reviews.due(), [Box::from("t")]);
        // It is taken away.
        note(&reviews, "t", None);
        assert_eq!(reviews.holder_by(&digest), Err(AccessError::WrongToken));
        assert!(reviews.due().is_empty());
    }

    #[test]
    fn answers_are_as_old_as_their_questions() {
        let reviews = Reviews::default();
        let came = Instant::now();
        let [before, after] = [came.checked_sub(FRESH).unwrap(), came + FRESH];
        reviews.note("t", before, alice());
        assert!(!reviews.is_fresh("t", came) && reviews.is_fresh("t", before));
        // Whoever waits for the answer is let in by it, however long it takes.
        reviews.note("t", came, alice());
        assert!(reviews.is_fresh("t", came) && !reviews.is_fresh("t", after));
        // One to an older question comes too late.
        reviews.note("t", after, None);
        reviews.note("t", came, alice());
        assert_eq!(reviews.holder_of(b"t", came), Err(AccessError::WrongToken));
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_all_is_bounded() {
        let reviews = Reviews::default();
        note(&reviews, "t", alice());
        for wrong in 0..2 * MAX_KNOWN {
            note(&reviews, &wrong.to_string(), None);
        }
        assert_eq!(reviews.lock().len(), MAX_KNOWN);
        assert!(holder_of(&reviews, "t").is_ok());
        reviews.age(2 * IN_USE);
        note(&reviews, "u", None);
        assert_eq!(reviews.lock().len(), 1);
    }

    #[test]
    fn what_nobody_can_have_is_wrong_unasked() {
        for wrong in [&[b'x'; MAX_TOKEN_LEN + 1][..], b"", b"\xff"] {
            assert_eq!(as_asked(wrong), None);
            let reviews = Reviews::default();
            assert_eq!(
                reviews.holder_of(wrong, Instant::now()),
                Err(AccessError::WrongToken)
            );
        }
        assert!(as_asked(&[b'x'; MAX_TOKEN_LEN]).is_some());
    }
}
