//! The nodes: where they are, and how they were when they were last looked at.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use packetflix_client::{
    http::{ClockReading, Greeting},
    server::{Address, Server, ServerError, Token, Trust},
};
use tokio::sync::Semaphore;

use super::GatewayConfig;
use crate::access::{FileError, read_secret};

/// Requests of clients for which all nodes are asked at the same time.
const ROUNDS: usize = 4;

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: Address,
    state: Mutex<State>,
}

/// How a node was when it last was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct State {
    /// Why it does not answer, if so; `None` also where it was never asked.
    pub(crate) problem: Option<String>,
    /// Whether it was asked.
    pub(crate) is_known: bool,
    /// The version of its program, once it has told.
    pub(crate) version: Option<String>,
    /// How its clock stood.
    pub(crate) clock: Option<ClockReading>,
}

/// All of them.
pub(super) struct Nodes {
    list: Vec<Arc<Node>>,
    token_file: Option<PathBuf>,
    trust: Trust,
    /// How long each may take to answer.
    pub(super) timeout: Duration,
    pub(super) rounds: Semaphore,
}

/// Why there is nothing to show to nodes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("--node-token-file")]
    File(#[from] FileError),
    #[error(transparent)]
    Token(#[from] ServerError),
}

impl Nodes {
    pub(super) fn new(config: GatewayConfig) -> Self {
        let node = |(name, address)| {
            Arc::new(Node {
                name,
                address,
                state: Mutex::default(),
            })
        };
        Self {
            list: config.nodes.into_iter().map(node).collect(),
            token_file: config.token_file,
            trust: Trust {
                cacert: config.cacert,
                identity: None,
            },
            timeout: config.timeout,
            rounds: Semaphore::new(ROUNDS),
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.list.clone()
    }

    /// The node of a name.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Node>> {
        self.list.iter().find(|node| node.name == name)
    }

    /// Why nothing can be captured, if so: no node is known to answer.
    pub(super) fn problem(&self) -> Option<String> {
        let mut problems = self.list.iter().map(|node| (node, node.state()));
        if problems
            .clone()
            .any(|(_, state)| state.is_known && state.problem.is_none())
        {
            return None;
        }
        let (node, state) = problems.next()?;
        let problem = state.problem.unwrap_or_else(|| "it was not asked yet".to_owned());
        Some(match self.list.len() {
            1 => format!("node {} cannot be asked: {problem}", node.name),
            count => format!(
                "none of {count} nodes can be asked, the first of which is {}: {problem}",
                node.name
            ),
        })
    }

    /// The token that is shown to nodes, as its file has it now.
    ///
    /// # Errors
    /// When there is to be one, and it cannot be read.
    pub(super) fn token(&self) -> Result<Option<Token>, TokenError> {
        let read = |file: &PathBuf| -> Result<Token, TokenError> {
            let text = read_secret(Path::new(file))?;
            let origin = file.display().to_string();
            Ok(Token::parse(&String::from_utf8_lossy(&text), &origin)?)
        };
        self.token_file.as_ref().map(read).transpose()
    }

    /// A node, and what is shown to it.
    pub(super) fn server(&self, node: &Node, token: Option<&Token>) -> Server {
        Server {
            address: node.address.clone(),
            token: token.cloned(),
            trust: self.trust.clone(),
        }
    }
}

impl Node {
    /// How it was when it last was asked.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// It has answered.
    pub(super) fn greeted(&self, greeting: Greeting) {
        let mut state = self.lock();
        if state.problem.is_some() {
            tracing::info!(node = self.name, "a node answers again");
        }
        *state = State {
            problem: None,
            is_known: true,
            version: Some(greeting.version),
            clock: greeting.clock,
        };
    }

    /// It does not answer.
    pub(super) fn failed(&self, problem: &str) {
        let mut state = self.lock();
        if state.problem.is_none() {
            tracing::warn!(node = self.name, problem, "a node does not answer");
        }
        state.problem = Some(problem.to_owned());
        state.is_known = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
