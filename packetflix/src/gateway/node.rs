//! The nodes: where they are, and how they were when they were last looked at.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use packetflix_client::{
    http::{ClockReading, Greeting},
    server::{Address, Server, ServerError, Token, Trust},
};
use tokio::sync::{Semaphore, watch};

use super::{
    GatewayConfig,
    ask::sentence,
    config::{Whereabouts, is_name},
    metrics::Known,
    pods::KnownPods,
};
use crate::{
    access::{FileError, Rights, read_secret},
    kubernetes::{Finding, FoundNode, LeftOut, Unfit},
};

/// Requests of clients for which all nodes are asked at the same time.
const ROUNDS: usize = 4;

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// From 1 on, the same as long as it is there.
    pub(super) number: u32,
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

/// Most bytes of rights that are told to nodes, in the head of a request, whose 64 KiB are for the URL, too.
const MAX_RIGHTS_LEN: usize = 32 << 10;

/// Numbers of nodes stay below this one, and begin anew.
const NUMBERS: u32 = 1 << 20;

/// Most nodes that there may be.
pub(super) const MAX_NODES: usize = 4096;

/// All of them.
pub(super) struct Nodes {
    list: RwLock<List>,
    /// Says that there are others.
    changes: watch::Sender<()>,
    /// Whether TLS is spoken with those that are found.
    is_encrypted: bool,
    token_file: Option<PathBuf>,
    trust: Trust,
    /// How long each may take to answer.
    pub(super) timeout: Duration,
    /// Turns of clients, and of the gateway itself, which clients cannot take.
    pub(super) rounds: Semaphore,
    pub(super) own_rounds: Semaphore,
    pub(super) pods: KnownPods,
}

/// The nodes that there are, as far as is known.
#[derive(Debug, Default)]
struct List {
    /// In the order of their names where they are found.
    nodes: Arc<[Arc<Node>]>,
    search: Search,
    /// What of their Service is no node to ask.
    left_out: LeftOut,
    /// The highest number that a node has had.
    numbered: u32,
}

/// How it is known which nodes there are.
#[derive(Debug, Default)]
enum Search {
    /// They were named.
    #[default]
    None,
    /// They are being looked for, and why nothing is found, if so.
    Begun(Option<String>),
    /// They are followed.
    Followed,
    /// They are those of this time, and why not of now.
    Stale(Instant, String),
}

/// What is shown to nodes.
#[derive(Clone)]
pub(super) struct Shown {
    token: Option<Token>,
    rights: Option<String>,
}

/// Why there is nothing to show to nodes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShownError {
    #[error("--node-token-file")]
    File(#[from] FileError),
    #[error(transparent)]
    Token(#[from] ServerError),
    #[error(
        "these are rights to more single targets than nodes can be told of in {MAX_RIGHTS_LEN} bytes: have rights to whole namespaces"
    )]
    TooManyRights,
}

/// Rights as nodes read them.
fn told(rights: &Rights) -> Result<String, ShownError> {
    match serde_json::to_string(rights) {
        Ok(told) if told.len() <= MAX_RIGHTS_LEN => Ok(told),
        _ => Err(ShownError::TooManyRights),
    }
}

impl Nodes {
    pub(super) fn new(config: GatewayConfig) -> Self {
        let (list, name, is_encrypted) = match config.nodes {
            Whereabouts::Named(named) => {
                let nodes = (1..).zip(named);
                let nodes = nodes.map(|(number, (name, address))| Node::new(name, number, address));
                let list = List {
                    nodes: nodes.collect(),
                    ..List::default()
                };
                (list, None, false)
            }
            Whereabouts::Found { finder, is_encrypted } => {
                let list = List {
                    search: Search::Begun(None),
                    ..List::default()
                };
                (list, Some(finder.dns_name()), is_encrypted)
            }
        };
        Self {
            list: RwLock::new(list),
            changes: watch::Sender::new(()),
            is_encrypted,
            token_file: config.token_file,
            trust: Trust {
                cacert: config.cacert,
                identity: None,
                name,
            },
            timeout: config.timeout,
            rounds: Semaphore::new(ROUNDS),
            own_rounds: Semaphore::new(1),
            pods: KnownPods::default(),
        }
    }

    pub(super) fn all(&self) -> Vec<Arc<Node>> {
        self.read().nodes.to_vec()
    }

    /// The node of a number.
    pub(super) fn numbered(&self, number: u32) -> Option<Arc<Node>> {
        self.read()
            .nodes
            .iter()
            .find(|node| node.number == number)
            .cloned()
    }

    /// Is told when there are other nodes.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Takes in what was found out of nodes. One that is where it was stays what is known of it.
    pub(super) fn found(&self, finding: Finding) {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        match finding {
            Finding::Nodes(found, left_out) => {
                if !matches!(list.search, Search::Followed) {
                    tracing::info!(
                        nodes = found.len(),
                        "which nodes there are is known, and followed"
                    );
                }
                list.search = Search::Followed;
                if list.take(found, left_out, self.is_encrypted) {
                    drop(list);
                    self.changes.send_replace(());
                }
            }
            Finding::Problem(why) => list.fail(why),
        }
    }

    /// Why there may be other nodes than are asked, if so.
    pub(super) fn doubt(&self) -> Option<String> {
        self.read().doubt()
    }

    /// Why nothing can be captured, if so: no node is known to answer.
    pub(super) fn problem(&self) -> Option<String> {
        let list = self.read();
        if let Search::Begun(why) = &list.search {
            let why = why.as_deref().unwrap_or("the API server was not asked yet");
            return Some(format!("which nodes there are is not known: {why}"));
        }
        let mut problems = list.nodes.iter().map(|node| (node, node.state()));
        if problems
            .clone()
            .any(|(_, state)| state.is_known && state.problem.is_none())
        {
            return None;
        }
        let Some((node, state)) = problems.next() else {
            let why = list.left_out.sentence();
            let why = why.unwrap_or_else(|| "no pod is behind their Service".to_owned());
            return Some(format!("there are no nodes: {why}"));
        };
        let problem = state.problem.unwrap_or_else(|| "it was not asked yet".to_owned());
        Some(match list.nodes.len() {
            1 => format!("node {} cannot be asked: {problem}", node.name),
            count => format!(
                "none of {count} nodes can be asked, the first of which is {}: {problem}",
                node.name
            ),
        })
    }

    /// What is known of them.
    pub(super) fn known(&self) -> Known {
        let list = self.read();
        let age = match &list.search {
            Search::None | Search::Begun(_) => None,
            Search::Followed => Some(Duration::ZERO),
            Search::Stale(since, _) => Some(since.elapsed()),
        };
        Known {
            nodes: list.nodes.len(),
            followed: age.map(|age| (age, list.left_out.count())),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, List> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is shown to nodes: the token, as its file has it now, and these rights, if some are bounded by them.
    ///
    /// # Errors
    /// When there is to be a token, and it cannot be read, or there are too many rights.
    pub(super) fn shown(&self, rights: Option<&Rights>) -> Result<Shown, ShownError> {
        Ok(Shown {
            token: self.token()?,
            rights: rights.map(told).transpose()?,
        })
    }

    fn token(&self) -> Result<Option<Token>, ShownError> {
        let read = |file: &PathBuf| -> Result<Token, ShownError> {
            let text = read_secret(Path::new(file))?;
            let origin = file.display().to_string();
            Ok(Token::parse(&String::from_utf8_lossy(&text), &origin)?)
        };
        self.token_file.as_ref().map(read).transpose()
    }

    /// A node, and what is shown to it.
    pub(super) fn server(&self, node: &Node, shown: &Shown) -> Server {
        Server {
            address: node.address.clone(),
            token: shown.token.clone(),
            trust: self.trust.clone(),
            rights: shown.rights.clone(),
        }
    }
}

impl List {
    /// These are all nodes from now on; whether that makes a difference.
    fn take(&mut self, mut found: Vec<FoundNode>, mut left_out: LeftOut, is_encrypted: bool) -> bool {
        found.retain(|node| {
            let has_name = is_name(&node.name);
            if !has_name {
                left_out.note(Unfit::Name, &node.name);
            }
            has_name
        });
        for node in found.drain(found.len().min(MAX_NODES)..) {
            left_out.note(Unfit::Beyond, &node.name);
        }
        if left_out != self.left_out
            && let Some(sentence) = left_out.sentence()
        {
            tracing::warn!(sentence, "endpoints of the nodes' Service are left out");
        }
        self.left_out = left_out;
        let before = Arc::clone(&self.nodes);
        let mut known: HashMap<&str, &Arc<Node>> = HashMap::new();
        known.extend(before.iter().map(|node| (&node.name[..], node)));
        let (mut nodes, mut is_other) = (Vec::new(), false);
        for FoundNode { name, address, port } in found {
            let address = Address::Tcp {
                host: address.to_string(),
                port,
                tls: is_encrypted,
                prefix: String::new(),
            };
            let same = known.get(&name[..]);
            nodes.push(match same.filter(|node| node.address == address) {
                Some(node) => Arc::clone(node),
                None => {
                    is_other = true;
                    tracing::info!(node = name, %address, "a node is found");
                    let number = same.map_or_else(|| self.next_number(), |node| node.number);
                    Node::new(name, number, address)
                }
            });
        }
        for node in self.nodes.iter() {
            if !nodes.iter().any(|other| other.name == node.name) {
                is_other = true;
                tracing::info!(node = node.name, "a node is gone");
            }
        }
        self.nodes = nodes.into();
        is_other
    }

    /// A number that no node has.
    fn next_number(&mut self) -> u32 {
        loop {
            self.numbered = (self.numbered + 1) % NUMBERS;
            let is_taken = self.nodes.iter().any(|node| node.number == self.numbered);
            if self.numbered > 0 && !is_taken {
                return self.numbered;
            }
        }
    }

    /// Nothing is found out.
    fn fail(&mut self, why: String) {
        let is_told = match &self.search {
            Search::Begun(Some(told)) | Search::Stale(_, told) => *told == why,
            _ => false,
        };
        if !is_told {
            tracing::warn!(
                why,
                nodes = self.nodes.len(),
                "which nodes there are is not followed"
            );
        }
        self.search = match &self.search {
            Search::None | Search::Begun(_) => Search::Begun(Some(why)),
            Search::Followed => Search::Stale(Instant::now(), why),
            Search::Stale(since, _) => Search::Stale(*since, why),
        };
    }

    fn doubt(&self) -> Option<String> {
        let stale = match &self.search {
            Search::None | Search::Followed | Search::Begun(_) => None,
            Search::Stale(since, why) => Some(format!(
                "which nodes there are is what it was {} s ago: {why}",
                since.elapsed().as_secs()
            )),
        };
        let doubts: Vec<String> = stale.into_iter().chain(self.left_out.sentence()).collect();
        (!doubts.is_empty()).then(|| doubts.join("; "))
    }
}

impl Node {
    pub(super) fn new(name: String, number: u32, address: Address) -> Arc<Self> {
        Arc::new(Self {
            name,
            number,
            address,
            state: Mutex::default(),
        })
    }

    /// How it was when it last was asked.
    pub(crate) fn state(&self) -> State {
        self.lock().clone()
    }

    /// Whether it did not answer when it was last asked.
    pub(super) fn is_silent(&self) -> bool {
        self.lock().problem.is_some()
    }

    /// It has answered.
    pub(super) fn greeted(&self, greeting: &Greeting) {
        let mut state = self.lock();
        if state.problem.is_some() {
            tracing::info!(node = self.name, "a node answers again");
        }
        *state = State {
            problem: None,
            is_known: true,
            version: Some(sentence(&greeting.version)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::{Extent, Pattern};

    #[test]
    fn nodes_that_are_left_out_are_told() {
        let node = |name: String| FoundNode {
            name,
            address: [10, 0, 0, 1].into(),
            port: 5001,
        };
        let mut list = List::default();
        let mut found: Vec<FoundNode> = (0..=MAX_NODES).map(|n| node(format!("n{n:04}"))).collect();
        found.insert(0, node("a b".to_owned()));
        assert!(list.take(found, LeftOut::default(), false));
        assert_eq!(list.nodes.len(), MAX_NODES);
        assert_eq!(
            list.doubt().unwrap(),
            "not all of the Service is asked: 1 node has a name that none may have here (a b), 1 node is more than there may be (n4096)"
        );
        list.search = Search::Stale(Instant::now(), "it is away".to_owned());
        assert!(list.doubt().unwrap().starts_with(
            "which nodes there are is what it was 0 s ago: it is away; not all of the Service is asked: "
        ));
        list.search = Search::Followed;
        assert!(list.take(vec![node("n1".to_owned())], LeftOut::default(), false));
        assert_eq!(list.doubt(), None);
    }

    #[test]
    fn rights_that_are_told_have_a_bound() {
        let rights = |pods: usize| {
            let patterns = (0..pods).map(|pod| Pattern::exactly(&format!("shop/web-{pod:04}")));
            Rights::new(Extent::Pods(patterns.collect()), Extent::Nothing, false)
        };
        assert!(told(&rights(1000)).is_ok());
        let error = told(&rights(4000)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "these are rights to more single targets than nodes can be told of in 32768 bytes: have rights to whole namespaces"
        );
    }
}
