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

/// For how long it is known what was said of a token on which nothing rests.
const KEPT: Duration = Duration::from_secs(20);

/// Most tokens of which something is known.
const MAX_KNOWN: usize = 4096;

/// The longest token that is asked for, in bytes.
const MAX_TOKEN_LEN: usize = 16 << 10;

/// The digest of a token. Whoever was let in by the token has the one that is kept, so that it shows what rests on it.
pub(super) type Digest = Arc<[u8; DIGEST_LEN]>;

/// What is known of tokens.
#[derive(Default)]
pub(crate) struct Reviews(Mutex<HashMap<Digest, Reviewed>>);

struct Reviewed {
    /// Whose it is, if it is anybody's.
    holder: Option<Holder>,
    /// When that was asked.
    at: Instant,
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

    fn identity(&self, digest: &Digest) -> Result<Identity, AccessError> {
        let holder = self.holder.as_ref().ok_or(AccessError::WrongToken)?;
        Ok(Identity {
            name: Arc::clone(&holder.name),
            rights: Arc::clone(&holder.rights),
            basis: Basis::Review(Arc::clone(digest)),
        })
    }
}

/// Whether somebody rests on what is said of a token.
fn is_in_use(digest: &Digest) -> bool {
    Arc::strong_count(digest) > 1
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
        let holder = holder.map(|(name, rights)| Holder {
            token: token.into(),
            name: name.into(),
            rights: Arc::new(rights),
        });
        let digest = digest_of(token.as_bytes());
        let answer = Reviewed { holder, at };
        let mut known = self.lock();
        if let Some(one) = known.get_mut(&digest) {
            if one.at <= at {
                *one = answer;
            }
            return;
        }
        let now = Instant::now();
        known.retain(|digest, one| is_in_use(digest) || now.saturating_duration_since(one.at) < KEPT);
        if known.len() >= MAX_KNOWN {
            // Whoever is let in stays known before all who are not.
            let oldest = known
                .iter()
                .min_by_key(|(digest, one)| (is_in_use(digest), one.holder.is_some(), one.at));
            if let Some(oldest) = oldest.map(|(oldest, _)| Arc::clone(oldest)) {
                known.remove(&oldest);
            }
        }
        known.insert(Arc::new(digest), answer);
    }

    /// Whose token it is with which somebody came then.
    ///
    /// # Errors
    /// When it is nobody's, or that is not known for certain any more.
    pub(super) fn holder_of(&self, token: &[u8], came: Instant) -> Result<Identity, AccessError> {
        let token = as_asked(token).ok_or(AccessError::WrongToken)?;
        let digest = digest_of(token.as_bytes());
        let known = self.lock();
        let one = known.get_key_value(&digest);
        let one = one.filter(|(_, one)| one.is_fresh(came));
        let (digest, one) = one.ok_or(AccessError::NotReviewed)?;
        one.identity(digest)
    }

    /// Whose token has this digest, as it was last known: what runs goes on while nobody can be asked.
    ///
    /// # Errors
    /// When it is nobody's.
    pub(super) fn holder_by(&self, digest: &Digest) -> Result<Identity, AccessError> {
        let known = self.lock();
        let (digest, one) = known.get_key_value(digest).ok_or(AccessError::WrongToken)?;
        one.identity(digest)
    }

    /// What whoever has this token was last known to may do, if anybody has it.
    pub(crate) fn rights_of(&self, token: &str) -> Option<Arc<Rights>> {
        let known = self.lock();
        let holder = known.get(&digest_of(token.as_bytes()))?.holder.as_ref()?;
        Some(Arc::clone(&holder.rights))
    }

    /// Tokens in use that have to be asked for again, those first that have not been for the longest time.
    pub(crate) fn due(&self) -> Vec<Box<str>> {
        let known = self.lock();
        let due = known.iter().filter_map(|(digest, one)| {
            let is_due = is_in_use(digest) && one.at.elapsed() > FRESH / 2;
            let holder = one.holder.as_ref().filter(|_| is_due)?;
            Some((one.at, holder.token.clone()))
        });
        let mut due: Vec<_> = due.collect();
        due.sort_unstable();
        due.into_iter().map(|(_, token)| token).collect()
    }

    /// Has all that is known be so much older.
    #[cfg(test)]
    pub(crate) fn age(&self, by: Duration) {
        for one in self.lock().values_mut() {
            one.at -= by;
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

    fn digest(identity: &Identity) -> &Digest {
        match &identity.basis {
            Basis::Review(digest) => digest,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_let_in_for_seconds_and_what_runs_goes_on() {
        let reviews = Reviews::default();
        assert_eq!(holder_of(&reviews, "t"), Err(AccessError::NotReviewed));
        note(&reviews, "t", alice());
        note(&reviews, "wrong", None);
        let alice = holder_of(&reviews, "t").unwrap();
        assert_eq!(holder_of(&reviews, "wrong"), Err(AccessError::WrongToken));
        assert!(reviews.is_fresh("t", Instant::now()) && reviews.due().is_empty());
        reviews.age(FRESH);
        assert_eq!(holder_of(&reviews, "t"), Err(AccessError::NotReviewed));
        assert_eq!(reviews.holder_by(digest(&alice)), Ok(alice.clone()));
        assert_eq!(reviews.due(), [Box::from("t")]);
        // It is taken away.
        note(&reviews, "t", None);
        assert_eq!(reviews.holder_by(digest(&alice)), Err(AccessError::WrongToken));
        reviews.age(FRESH);
        assert!(reviews.due().is_empty());
    }

    #[test]
    fn what_somebody_rests_on_is_asked_for_and_kept() {
        let reviews = Reviews::default();
        for token in ["seldom", "often", "shown"] {
            note(&reviews, token, alice());
        }
        let [seldom, often] = ["seldom", "often"].map(|token| holder_of(&reviews, token).unwrap());
        assert!(holder_of(&reviews, "shown").is_ok());
        reviews.age(FRESH);
        note(&reviews, "often", alice());
        reviews.age(FRESH);
        assert_eq!(reviews.due(), ["seldom", "often"].map(Box::from));
        // However long nobody looks at it, and whatever comes.
        reviews.age(KEPT);
        for other in 0..2 * MAX_KNOWN {
            note(&reviews, &other.to_string(), alice());
        }
        assert_eq!(reviews.lock().len(), MAX_KNOWN);
        assert_eq!(reviews.holder_by(digest(&seldom)), Ok(seldom.clone()));
        let digest = Digest::clone(digest(&often));
        drop((seldom, often));
        assert_eq!(reviews.due(), [Box::from("often")]);
        drop(digest);
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
        let came = Instant::now();
        note(&reviews, "t", alice());
        for wrong in 0..2 * MAX_KNOWN {
            note(&reviews, &wrong.to_string(), None);
        }
        assert_eq!(reviews.lock().len(), MAX_KNOWN);
        assert!(reviews.holder_of(b"t", came).is_ok());
        reviews.age(KEPT);
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
