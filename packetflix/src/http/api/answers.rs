//! Long answers: made once for all who may see the same, and given up when too many of them are not read.

use std::{
    any::Any,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use warp::{
    Reply as _,
    http::header,
    reply::{self, Response},
};

use crate::{access::Rights, memory};

/// Bytes that are handed to a connection at once.
const PIECE_LEN: usize = 64 << 10;

/// Answers under way may take this part of the memory that the process may use, and within these bounds.
const OF_HOST: Share = Share {
    part: 16,
    least: 4 << 20,
    most: 64 << 20,
};

/// Those of several hosts.
const OF_GATEWAY: Share = Share {
    part: 4,
    least: 64 << 20,
    most: 256 << 20,
};

/// Most answers of one subject that are kept for those who ask next.
const MAX_KEPT: usize = 16;

/// How much of the memory something may take.
struct Share {
    part: u64,
    least: usize,
    most: usize,
}

impl Share {
    fn bytes(&self) -> usize {
        let bytes = usize::try_from(memory::usable() / self.part).unwrap_or(self.most);
        bytes.clamp(self.least, self.most)
    }
}

/// What an answer tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BodyKind {
    Mobyshark,
    /// Those that these words select.
    Targets(Vec<String>),
}

/// The answers that are kept, and those under way.
#[derive(Debug)]
pub(crate) struct Answers {
    state: Mutex<State>,
    /// Most bytes of all of them.
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    /// What those tell of that are kept.
    subject: Option<Arc<dyn Any + Send + Sync>>,
    kept: Vec<Kept>,
    /// All that may still be there, from the oldest.
    all: Vec<Weak<Answer>>,
}

#[derive(Debug)]
struct Kept {
    kind: BodyKind,
    rights: Arc<Rights>,
    answer: Arc<Answer>,
}

/// An answer in pieces, of which there are none once it is given up.
#[derive(Debug)]
struct Answer(Mutex<Vec<Bytes>>);

impl Answer {
    fn pieces(&self) -> MutexGuard<'_, Vec<Bytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn len(&self) -> usize {
        self.pieces().iter().map(Bytes::len).sum()
    }
}

impl Answers {
    /// With bounds that suit the memory that there is.
    pub(crate) fn of_host() -> Self {
        Self::within(OF_HOST.bytes())
    }

    /// The same, for lists of several hosts.
    pub(crate) fn of_gateway() -> Self {
        Self::within(OF_GATEWAY.bytes())
    }

    fn within(most: usize) -> Self {
        Self {
            state: Mutex::default(),
            most,
        }
    }

    /// The answer on a subject to whoever has these rights: made by `make`, unless it is there already.
    pub(crate) fn tell<S: Send + Sync + 'static, T: Serialize>(
        &self,
        subject: &Arc<S>,
        kind: BodyKind,
        rights: &Arc<Rights>,
        make: impl FnOnce() -> T,
    ) -> Result<Response, serde_json::Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_about =
            |known: &Arc<dyn Any + Send + Sync>| Arc::as_ptr(known).addr() == Arc::as_ptr(subject).addr();
        if !state.subject.as_ref().is_some_and(is_about) {
            state.kept.clear();
            state.subject = Some(Arc::clone(subject) as _);
        }
        let mut kept = state.kept.iter();
        let known = kept.find(|kept| kept.kind == kind && kept.rights == *rights && kept.answer.len() > 0);
        if let Some(known) = known {
            return Ok(respond(Arc::clone(&known.answer), false));
        }
        // Others wait meanwhile, rather than making the same.
        let bytes = serde_json::to_vec(&make())?;
        let answer = state.add(vec![bytes.into()], self.most);
        if state.kept.len() < MAX_KEPT {
            state.kept.push(Kept {
                kind,
                rights: Arc::clone(rights),
                answer: Arc::clone(&answer),
            });
        }
        Ok(respond(answer, false))
    }

    /// An answer to one who asks, of which nothing is there any more once it is read.
    pub(crate) fn hand_out(&self, pieces: Vec<Bytes>) -> Response {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        respond(state.add(pieces, self.most), true)
    }
}

impl State {
    fn add(&mut self, pieces: Vec<Bytes>, most: usize) -> Arc<Answer> {
        let answer = Arc::new(Answer(Mutex::new(pieces)));
        self.make_room(answer.len(), most);
        self.all.push(Arc::downgrade(&answer));
        answer
    }

    /// Gives up the oldest answers until there is room for one of so many bytes, whoever has yet to read them.
    fn make_room(&mut self, len: usize, most: usize) {
        self.all.retain(|answer| answer.strong_count() > 0);
        let answers: Vec<Arc<Answer>> = self.all.iter().filter_map(Weak::upgrade).collect();
        let mut used: usize = answers.iter().map(|answer| answer.len()).sum();
        for answer in answers {
            if used + len <= most {
                return;
            }
            used -= answer.len();
            answer.pieces().clear();
        }
    }
}

/// Tells an answer piece by piece. What a connection has of it is a copy, so that it holds no more than that. What is read is let
/// go of where nobody else reads it.
fn respond(answer: Arc<Answer>, is_only_reader: bool) -> Response {
    let len = answer.len();
    let pieces = stream::unfold(
        (answer, 0, 0, len),
        move |(answer, mut index, mut at, left)| async move {
            if left == 0 {
                return None;
            }
            let copy = loop {
                let mut pieces = answer.pieces();
                let Some(piece) = pieces.get_mut(index) else {
                    break None;
                };
                let end = piece.len().min(at + PIECE_LEN);
                if at < end {
                    let copy = Bytes::copy_from_slice(&piece[at..end]);
                    at = end;
                    break Some(copy);
                }
                if is_only_reader {
                    *piece = Bytes::new();
                }
                (index, at) = (index + 1, 0);
            };
            match copy {
                Some(copy) => {
                    let left = left - copy.len();
                    Some((Ok(copy), (answer, index, at, left)))
                }
                None => Some((Err(given_up()), (answer, index, at, 0))),
            }
        },
    );
    let response = reply::stream(pieces);
    let response = reply::with_header(response, header::CONTENT_TYPE, "application/json");
    reply::with_header(response, header::CONTENT_LENGTH, len).into_response()
}

fn given_up() -> io::Error {
    io::Error::other("too many answers are not read, and this one is the oldest")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const LEN: usize = 3 * PIECE_LEN;

    fn answer(answers: &Answers, subject: &Arc<usize>) -> Response {
        let rights = Arc::new(Rights::ALL);
        answers
            .tell(subject, BodyKind::Targets(Vec::new()), &rights, || {
                "x".repeat(LEN)
            })
            .unwrap()
    }

    async fn read(response: Response) -> Option<usize> {
        Some(response.into_body().collect().await.ok()?.to_bytes().len())
    }

    #[tokio::test]
    async fn answers_are_made_once_for_those_who_may_see_the_same() {
        let answers = Answers::within(10 * LEN);
        let subject = Arc::new(1);
        let rights = [Rights::ALL, Rights::ALL, Rights::ORDINARY].map(Arc::new);
        let mut made = 0;
        for (rights, kind) in rights.iter().flat_map(|rights| {
            [
                (rights, BodyKind::Targets(Vec::new())),
                (rights, BodyKind::Mobyshark),
            ]
        }) {
            let response = answers
                .tell(&subject, kind, rights, || {
                    made += 1;
                    "text"
                })
                .unwrap();
            assert_eq!(response.headers()[header::CONTENT_LENGTH], "6");
            assert_eq!(read(response).await, Some(6));
        }
        assert_eq!(made, 4);
    }

    #[tokio::test]
    async fn the_oldest_that_nobody_reads_are_given_up() {
        let answers = Answers::within(3 * LEN);
        let mut unread = Vec::new();
        for subject in 0..20 {
            unread.push(answer(&answers, &Arc::new(subject)));
        }
        let held: usize = {
            let state = answers.state.lock().unwrap();
            state
                .all
                .iter()
                .filter_map(Weak::upgrade)
                .map(|answer| answer.len())
                .sum()
        };
        assert!(held <= 3 * LEN, "{held}");
        let last = unread.pop().unwrap();
        assert_eq!(read(last).await, Some(LEN + 2));
        assert_eq!(read(unread.remove(0)).await, None);
    }

    #[tokio::test]
    async fn what_one_alone_reads_is_let_go_of() {
        let answers = Answers::within(3 * LEN);
        let pieces = |len: usize| ["", "x", &"y".repeat(len), "z"].map(|piece| Bytes::from(piece.to_owned()));
        let response = answers.hand_out(pieces(LEN).into());
        assert_eq!(response.headers()[header::CONTENT_LENGTH], (LEN + 2).to_string());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, pieces(LEN).concat());
        let used = || {
            let state = answers.state.lock().unwrap();
            let answers = state.all.iter().filter_map(Weak::upgrade);
            answers.map(|answer| answer.len()).sum::<usize>()
        };
        let mut half_read = answers.hand_out(pieces(LEN).into()).into_body();
        assert_eq!(used(), LEN + 2);
        while half_read.frame().await.unwrap().unwrap().into_data().unwrap() != "z" {}
        assert_eq!(used(), 1);
        let given_up = answers.hand_out(pieces(LEN).into());
        let _others = [0, 1, 2].map(|_| answers.hand_out(pieces(LEN).into()));
        assert_eq!(read(given_up).await, None);
    }

    #[tokio::test]
    async fn one_that_is_too_long_is_told_all_the_same() {
        let answers = Answers::within(LEN / 2);
        assert_eq!(read(answer(&answers, &Arc::new(1))).await, Some(LEN + 2));
    }
}
