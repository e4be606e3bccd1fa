//! All nodes are asked the same, at the same time and within bounds of time, size and count. One that does not answer costs its
//! own answer only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use packetflix_client::{
    connect::ConnectError,
    http::{self, RequestError},
    server::Server,
    stream::OpenError,
};
use serde_json::Value;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

use super::node::{Node, Nodes, ShownError};
use crate::{access::Rights, error::chain, memory, text::shortened};

/// How many nodes are asked at the same time.
const AT_ONCE: usize = 64;

/// Most bytes of what a node answers, and of the metrics of all nodes.
const MAX_ANSWER_LEN: usize = 4 << 20;
const MAX_METRICS_LEN: usize = 32 << 20;

/// What all together answer for one list may have this part of the memory that the process may use, and within these bounds. There
/// are as many lists at the same time as there are rounds of questions, of clients and of the gateway itself.
const SHARE: u64 = 8;
const MIN_ANSWERS_LEN: usize = 32 << 20;
const MAX_ANSWERS_LEN: usize = 128 << 20;

/// Most bytes of a sentence of a node's.
const MAX_SENTENCE_LEN: usize = 1024;

/// A node that did not answer the last time is waited for no longer than this, where others wait for the answers of all.
const LITTLE_PATIENCE: Duration = Duration::from_secs(1);

/// So many times what one node may take is the most that all together may, and so many of these may pass before the first is asked.
const ROUNDS_OF_PATIENCE: u32 = 3;
const ROUNDS_OF_WAITING: u32 = ROUNDS_OF_PATIENCE - 1;

/// What a node has answered, or why it has not.
#[derive(Debug)]
pub(super) struct Asked<T> {
    pub(super) node: Arc<Node>,
    pub(super) answer: Result<T, NodeError>,
}

impl<T> Asked<T> {
    /// A node that is not asked, since it did not answer the last time.
    pub(super) fn left_out(node: Arc<Node>) -> Self {
        let problem = node.state().problem.unwrap_or_default();
        Self {
            node,
            answer: Err(NodeError::Silent(problem)),
        }
    }
}

/// Why a node has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error("{}{}", chain(.0), remedy(.0))]
    Request(Box<RequestError>),
    #[error("it does not answer within {0:?}")]
    Late(Duration),
    #[error("there was no time for it, since others took too long")]
    NoTime,
    #[error("it did not answer when it was last asked: {0}")]
    Silent(String),
    #[error("its answer is no JSON of packetflix: {0}")]
    Unreadable(String),
    #[error("its answer has no list of {0}")]
    NoList(&'static str),
    #[error(transparent)]
    Open(Box<OpenError>),
    #[error("it has ended: {0}")]
    Ended(String),
    #[error("the answers of all nodes have more than {0} bytes, and this one is left out")]
    TooMuch(usize),
}

/// Why there is no answer of any node.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("too many requests wait for nodes: try again")]
    Busy,
    #[error("there is nothing to show to nodes")]
    Shown(#[from] ShownError),
    #[error("there is no node {name}: there {}", are(known))]
    NoNode { name: String, known: Vec<String> },
    /// No node is known, for that reason.
    #[error("{0}")]
    Nobody(String),
    /// Each is named with its reason.
    #[error("{}: {}", nobody(.0), first_of(.0))]
    None(Vec<Failed>),
    #[error("node {}: {}", .0.name, .0.why)]
    Node(Box<Failed>),
}

/// A node that has not answered, and why.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) node: Arc<Node>,
    pub(crate) name: String,
    pub(crate) why: NodeError,
}

/// The nodes that there are, up to a bound.
pub(super) fn are(known: &[String]) -> String {
    const MOST: usize = 8;
    match known {
        [] => "is none".to_owned(),
        [one] => format!("is {one}"),
        known if known.len() <= MOST => format!("are {}", known.join(", ")),
        known => format!("are {} and {} more", known[..MOST].join(", "), known.len() - MOST),
    }
}

/// What they all do.
fn nobody(failed: &[Failed]) -> &'static str {
    match !failed.is_empty() && failed.iter().all(|failed| failed.why.is_refusal()) {
        true => "all nodes refuse it",
        false => "no node answers",
    }
}

/// The first of those that have failed, and how many more there are.
fn first_of(failed: &[Failed]) -> String {
    match failed {
        [] => "there is none".to_owned(),
        [one] => format!("{}: {}", one.name, chain(&one.why)),
        [one, rest @ ..] => format!("{}: {}; and {} more", one.name, chain(&one.why), rest.len()),
    }
}

impl NodeError {
    /// Whether the node answers as packetflix does, and refuses: others would, too.
    fn is_refusal(&self) -> bool {
        matches!(self, Self::Request(error) if matches!(**error, RequestError::Refused(_) | RequestError::Request(_)))
    }

    /// Whether the node is not reached, or does not answer.
    fn is_of_connection(&self) -> bool {
        match self {
            Self::Request(error) => matches!(**error, RequestError::Connect(_)),
            Self::Late(_) => true,
            Self::NoTime
            | Self::Silent(_)
            | Self::Unreadable(_)
            | Self::NoList(_)
            | Self::Open(_)
            | Self::Ended(_)
            | Self::TooMuch(_) => false,
        }
    }
}

/// These, if there is an answer of any node.
pub(super) fn some_answer<T>(asked: Vec<Asked<T>>) -> Result<Vec<Asked<T>>, AskError> {
    if asked.iter().any(|one| one.answer.is_ok()) {
        return Ok(asked);
    }
    let failed = asked.into_iter().filter_map(|Asked { node, answer }| {
        Some(Failed {
            name: node.name.clone(),
            node,
            why: answer.err()?,
        })
    });
    Err(AskError::None(failed.collect()))
}

/// What to do about it at a gateway, by its own flags.
fn remedy(error: &RequestError) -> &'static str {
    const UNAUTHORIZED: u16 = 401;
    match error {
        RequestError::Refused(refusal) if refusal.status == UNAUTHORIZED => {
            ". --node-token-file names the file of a token that it knows"
        }
        RequestError::Connect(ConnectError::Untrusted(..)) => {
            ". --node-cacert names the file of the CA that issued it"
        }
        RequestError::Connect(ConnectError::Plain(_)) => {
            ". Nodes without TLS are named with http://, or found with --nodes-plain"
        }
        RequestError::NotHttp(..) => {
            ". Nodes with TLS are named with https://, or found without --nodes-plain"
        }
        _ => "",
    }
}

/// A sentence of a node's, which may say what it likes.
pub(super) fn sentence(text: &str) -> String {
    shortened(text, MAX_SENTENCE_LEN).into_owned()
}

impl From<serde_json::Error> for NodeError {
    fn from(error: serde_json::Error) -> Self {
        // It may have what is no JSON in it.
        Self::Unreadable(sentence(&error.to_string()))
    }
}

impl From<OpenError> for NodeError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Request(error) => error.into(),
            error => Self::Open(Box::new(error)),
        }
    }
}

impl From<RequestError> for NodeError {
    fn from(mut error: RequestError) -> Self {
        if let RequestError::Refused(refusal) = &mut error {
            refusal.sentence = sentence(&refusal.sentence);
        }
        Self::Request(Box::new(error))
    }
}

impl AskError {
    /// None of several nodes does what it was asked for.
    pub(super) fn of_failed(mut failed: Vec<Failed>) -> Self {
        match (failed.pop(), failed.is_empty()) {
            (Some(only), true) => Self::Node(Box::new(only)),
            (last, _) => {
                failed.extend(last);
                Self::None(failed)
            }
        }
    }

    /// What is left to list where nobody has answered.
    pub(super) fn into_asked<T>(self) -> Vec<Asked<T>> {
        let Self::None(failed) = self else {
            return Vec::new();
        };
        let asked = |Failed { node, why, .. }| Asked {
            node,
            answer: Err(why),
        };
        failed.into_iter().map(asked).collect()
    }
}

impl Nodes {
    /// All of them.
    ///
    /// # Errors
    /// When there is none, as far as is known.
    pub(super) fn some(&self) -> Result<Vec<Arc<Node>>, AskError> {
        let nodes = self.all();
        match nodes.is_empty() {
            true => Err(AskError::Nobody(self.problem().unwrap_or_default())),
            false => Ok(nodes),
        }
    }

    /// How long a node is waited for by whoever waits for others, too.
    fn patience_with(&self, node: &Node) -> Duration {
        match node.is_silent() {
            true => self.timeout.min(LITTLE_PATIENCE),
            false => self.timeout,
        }
    }

    /// Asks each of these nodes in its turn, and gives the answers in their order.
    async fn ask<T, F>(
        &self,
        rounds: &Semaphore,
        nodes: Vec<Arc<Node>>,
        rights: Option<&Rights>,
        patience: impl Fn(&Node) -> Duration,
        ask: impl Fn(Arc<Node>, Server) -> F,
    ) -> Result<Vec<Asked<T>>, AskError>
    where
        F: Future<Output = Result<T, NodeError>>,
    {
        let begun = Instant::now();
        let deadline = begun + self.timeout * ROUNDS_OF_PATIENCE;
        let _round = timeout_at(begun + self.timeout * ROUNDS_OF_WAITING, rounds.acquire())
            .await
            .map_err(|_| AskError::Busy)?;
        let shown = self.shown(rights)?;
        let asked = stream::iter(nodes).map(|node| {
            let patience = patience(&node);
            let asking = ask(Arc::clone(&node), self.server(&node, &shown));
            async move {
                let until = Instant::now() + patience;
                let answer = timeout_at(until.min(deadline), asking).await;
                // A node whose time others have taken is not known to be late.
                let late = if until <= deadline {
                    NodeError::Late(patience)
                } else {
                    NodeError::NoTime
                };
                let answer = answer.unwrap_or(Err(late));
                Asked { node, answer }
            }
        });
        Ok(asked.buffered(AT_ONCE).collect().await)
    }

    /// Asks these nodes for JSON, and has what each answers read when it comes. With `rights`, it is what somebody may have who
    /// has these.
    ///
    /// # Errors
    /// When they cannot be asked.
    pub(super) async fn ask_each_for_json<T>(
        &self,
        nodes: Vec<Arc<Node>>,
        path: &str,
        rights: Option<&Rights>,
        read: impl Fn(&Node, &[u8]) -> Result<T, NodeError>,
    ) -> Result<Vec<Asked<T>>, AskError> {
        self.ask_in_turn(&self.rounds, nodes, path, rights, read).await
    }

    async fn ask_in_turn<T>(
        &self,
        rounds: &Semaphore,
        nodes: Vec<Arc<Node>>,
        path: &str,
        rights: Option<&Rights>,
        read: impl Fn(&Node, &[u8]) -> Result<T, NodeError>,
    ) -> Result<Vec<Asked<T>>, AskError> {
        let room = Room::of(most_of_lists());
        let asked = self
            .ask(
                rounds,
                nodes,
                rights,
                |node| self.patience_with(node),
                async |node, server| {
                    let body = http::get_within(&server, path, MAX_ANSWER_LEN).await?;
                    room.take(body.len())?;
                    read(&node, &body)
                },
            )
            .await?;
        for Asked { node, answer } in &asked {
            if let Err(error) = answer
                && error.is_of_connection()
            {
                node.failed(&chain(error));
            }
        }
        Ok(asked)
    }

    /// The same, where one has to answer.
    ///
    /// # Errors
    /// When none answers.
    pub(super) async fn ask_for_json<T>(
        &self,
        nodes: Vec<Arc<Node>>,
        path: &str,
        rights: Option<&Rights>,
        read: impl Fn(&Node, &[u8]) -> Result<T, NodeError>,
    ) -> Result<Vec<Asked<T>>, AskError> {
        some_answer(self.ask_each_for_json(nodes, path, rights, read).await?)
    }

    /// Asks all nodes for JSON of which the gateway itself has need, whatever clients ask for.
    ///
    /// # Errors
    /// When none answers.
    pub(super) async fn ask_for_own_json<T>(
        &self,
        path: &str,
        read: impl Fn(&Node, &[u8]) -> Result<T, NodeError>,
    ) -> Result<Vec<Asked<T>>, AskError> {
        some_answer(
            self.ask_in_turn(&self.own_rounds, self.all(), path, None, read)
                .await?,
        )
    }

    /// Asks one node after the other, until one answers as packetflix does.
    ///
    /// # Errors
    /// When none does, or the one that does refuses.
    pub(super) async fn ask_one_for_json(&self, path: &str) -> Result<Value, AskError> {
        let shown = self.shown(None)?;
        let deadline = Instant::now() + self.timeout * ROUNDS_OF_PATIENCE;
        let mut failed = Vec::new();
        for node in self.some()? {
            let server = self.server(&node, &shown);
            let until = deadline.min(Instant::now() + self.timeout);
            let why: NodeError =
                match timeout_at(until, http::get_within(&server, path, MAX_ANSWER_LEN)).await {
                    Ok(Ok(body)) => match serde_json::from_slice(&body) {
                        Ok(answer) => return Ok(answer),
                        Err(error) => error.into(),
                    },
                    Ok(Err(error)) => error.into(),
                    Err(_) => NodeError::Late(self.timeout),
                };
            let (name, is_refusal) = (node.name.clone(), why.is_refusal());
            let one = Failed { node, name, why };
            if is_refusal || Instant::now() >= deadline {
                return Err(AskError::Node(Box::new(one)));
            }
            failed.push(one);
        }
        Err(AskError::None(failed))
    }

    /// Asks all nodes for their metrics. Where none can be asked, none has told them.
    pub(super) async fn ask_for_metrics(&self) -> Vec<Asked<String>> {
        let nodes = self.all();
        let room = Room::of(MAX_METRICS_LEN);
        let patience = |node: &Node| self.patience_with(node);
        let asked = self.ask(&self.rounds, nodes.clone(), None, patience, async |_, server| {
            let body = http::get_within(&server, "/metrics", MAX_ANSWER_LEN).await?;
            room.take(body.len())?;
            Ok(String::from_utf8_lossy(&body).into_owned())
        });
        let untold = |node| Asked {
            node,
            answer: Err(NodeError::NoTime),
        };
        asked
            .await
            .unwrap_or_else(|_| nodes.into_iter().map(untold).collect())
    }

    /// Asks all nodes how they are.
    pub(super) async fn look(&self) {
        let asked = self.ask(
            &self.own_rounds,
            self.all(),
            None,
            |_| self.timeout,
            async |_, server| Ok(http::greet(&server).await?),
        );
        let asked = match asked.await {
            Ok(asked) => asked,
            // It says nothing of them.
            Err(AskError::Busy) => return,
            Err(error) => {
                self.all().iter().for_each(|node| node.failed(&chain(&error)));
                return;
            }
        };
        for Asked { node, answer } in asked {
            match answer {
                Ok(greeting) => node.greeted(&greeting),
                Err(NodeError::NoTime) => {}
                Err(error) => node.failed(&chain(&error)),
            }
        }
    }

    /// Has a node delete something.
    ///
    /// # Errors
    /// When it refuses, or there is no such node.
    pub(super) async fn delete(&self, name: &str, path: &str) -> Result<(), AskError> {
        let node = self.find(name)?;
        let server = self.server(&node, &self.shown(None)?);
        let deleted = timeout(self.timeout, http::delete(&server, path)).await;
        let failed = |why| {
            AskError::Node(Box::new(Failed {
                node: Arc::clone(&node),
                name: name.to_owned(),
                why,
            }))
        };
        deleted
            .map_err(|_| failed(NodeError::Late(self.timeout)))?
            .map_err(|error| failed(error.into()))
    }

    /// The node of a name.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn find(&self, name: &str) -> Result<Arc<Node>, AskError> {
        let known = self.some()?;
        let found = known.iter().find(|node| node.name == name).cloned();
        found.ok_or_else(|| AskError::NoNode {
            name: name.to_owned(),
            known: known.iter().map(|node| node.name.clone()).collect(),
        })
    }
}

/// Bytes that answers may have together.
struct Room {
    most: usize,
    left: AtomicUsize,
}

impl Room {
    fn of(most: usize) -> Self {
        Self {
            most,
            left: AtomicUsize::new(most),
        }
    }

    /// Takes so many of them.
    fn take(&self, len: usize) -> Result<(), NodeError> {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(len))
            .map(drop)
            .map_err(|_| NodeError::TooMuch(self.most))
    }
}

/// Most bytes of what all nodes answer for one list.
fn most_of_lists() -> usize {
    let most = usize::try_from(memory::usable() / SHARE).unwrap_or(MAX_ANSWERS_LEN);
    most.clamp(MIN_ANSWERS_LEN, MAX_ANSWERS_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_of_nodes_are_cut() {
        let long = "no ".repeat(100_000);
        let refused = || {
            RequestError::Refused(http::Refusal {
                status: 500,
                sentence: long.clone(),
                code: String::new(),
            })
        };
        let unreadable: Result<u8, _> = serde_json::from_value(long.clone().into());
        for error in [
            NodeError::from(refused()),
            OpenError::Request(refused()).into(),
            unreadable.unwrap_err().into(),
        ] {
            let told = chain(&error);
            assert!(told.contains("no no no") && told.ends_with('…'), "{told}");
            assert!(told.len() < 2 * MAX_SENTENCE_LEN, "{}", told.len());
        }
    }

    #[test]
    fn answers_have_a_bound_together() {
        let room = Room::of(10);
        assert!(room.take(8).is_ok());
        let sentence = room.take(3).unwrap_err().to_string();
        assert_eq!(
            sentence,
            "the answers of all nodes have more than 10 bytes, and this one is left out"
        );
        assert!(room.take(2).is_ok());
        assert!((MIN_ANSWERS_LEN..=MAX_ANSWERS_LEN).contains(&most_of_lists()));
    }
}
