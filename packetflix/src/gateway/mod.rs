//! One address for the captures of several hosts, the nodes: their lists become one list, and their streams one stream.
//!
//! It is a client of the nodes, as everyone else is, and captures nothing itself: it takes no right of the kernel. Who may ask
//! for what is decided here, before a node is asked; the nodes know the gateway only.

mod ask;
mod capture;
mod config;
mod elements;
mod feed;
mod lists;
mod metrics;
mod near;
mod node;
mod pods;
mod rates;
mod request;
mod stream;
mod window;

use std::{
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::time::sleep;

pub use self::config::{GatewayConfig, GatewayConfigError};
use self::{
    ask::Asked,
    config::Whereabouts,
    lists::Part,
    node::{Node, Nodes},
    request::NodeChoice,
};
pub(crate) use self::{
    ask::{AskError, NodeError},
    capture::{GatewayStartError, StartedGatewayStream},
    node::ShownError,
    rates::Rates,
};
use crate::{
    access::Rights,
    kubernetes::Finder,
    metrics::{Load, Metrics},
    service::{AppError, Caller, Frontend, StartError},
};

/// How often nodes are looked at that nobody asks for anything.
const LOOK_INTERVAL: Duration = Duration::from_secs(15);

/// The whole gateway but for the sockets at which it is asked.
pub struct Gateway {
    pub(crate) frontend: Frontend,
    nodes: Arc<Nodes>,
    /// Finds the nodes, where they are not named.
    finder: Option<Finder>,
    /// What those share who look at rates.
    rates: Mutex<Vec<Weak<Rates>>>,
}

impl Gateway {
    /// Lets clients in. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the tokens or the account cannot be used.
    pub fn build(config: GatewayConfig) -> Result<Self, AppError> {
        let mut frontend = Frontend::open(Arc::clone(&config.frontend), Metrics::of_gateway())?;
        let finder = match &config.nodes {
            Whereabouts::Named(_) => None,
            Whereabouts::Found { finder, .. } => Some(finder.clone()),
        };
        let nodes = Arc::new(Nodes::new(config));
        // Rights to all nodes, and to pods of all of them.
        frontend.ask_kubernetes("", pods::finder(Arc::clone(&nodes)));
        Ok(Self {
            frontend,
            nodes,
            finder,
            rates: Mutex::default(),
        })
    }

    /// Does again and again what is to be done beside requests. Never ends.
    pub(crate) async fn maintain(&self) {
        let looks = async {
            loop {
                sleep(LOOK_INTERVAL).await;
                self.look().await;
            }
        };
        let search = async {
            match &self.finder {
                Some(finder) => finder.follow(|finding| self.nodes.found(finding)).await,
                None => std::future::pending().await,
            }
        };
        let greetings = async {
            let mut changes = self.nodes.changes();
            // The sender is as old as this.
            while changes.changed().await.is_ok() {
                self.look().await;
            }
        };
        let pods = self.nodes.follow_pods();
        tokio::join!(self.frontend.maintain(), looks, search, greetings, pods);
    }

    /// Asks all nodes how they are.
    pub(crate) async fn look(&self) {
        self.nodes.look().await;
    }

    /// Why nothing can be captured, if so.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.frontend.stop.is_cancelled() {
            return Some(StartError::ShuttingDown.to_string());
        }
        self.nodes.problem().or_else(|| self.frontend.audit.problem())
    }

    /// What is not as it should be, although something can be captured.
    pub(crate) fn doubt(&self) -> Option<String> {
        self.nodes.doubt()
    }

    /// `/targets` of all nodes, or of those that the words choose, with what the others select.
    ///
    /// # Errors
    /// When no node answers.
    pub(crate) async fn targets(
        &self,
        words: Vec<String>,
        caller: &Caller,
    ) -> Result<Vec<Bytes>, GatewayStartError> {
        let (chosen, words) = NodeChoice::take(words)?;
        let nodes = self.chosen(&chosen)?;
        let path = match &words[..] {
            [] => "/targets".to_owned(),
            words => format!("/targets?{}", request::targets_query(words)),
        };
        let asked = self
            .ask_for(nodes, &path, caller.bounds(), lists::TARGETS)
            .await?;
        let doubt = self.nodes.doubt();
        Ok(lists::targets(asked, doubt, &self.frontend.config.host_name))
    }

    /// What becomes of an expression of a filter, as the first node says that answers: the gateway compiles none.
    ///
    /// # Errors
    /// When none does, or the expression is none.
    pub(crate) async fn filter(&self, query: &str) -> Result<Value, AskError> {
        self.nodes.ask_one_for_json(&format!("/filter?{query}")).await
    }

    /// `/mobyshark` of all nodes.
    ///
    /// # Errors
    /// When no node answers.
    pub(crate) async fn mobyshark(&self, caller: &Caller) -> Result<Vec<Bytes>, AskError> {
        let asked = self
            .ask_for(
                self.nodes.some()?,
                "/mobyshark",
                caller.bounds(),
                lists::CONTAINERS,
            )
            .await?;
        Ok(lists::mobyshark(asked))
    }

    /// `/captures` of all nodes, behind `own`, the captures of the gateway's clients.
    pub(crate) async fn captures(&self, own: &[Value]) -> Vec<Bytes> {
        let nodes = self.nodes.all();
        let asked = self.ask_for(nodes.clone(), "/captures", None, lists::CAPTURES);
        let asked = asked.await.unwrap_or_else(|error| match error {
            AskError::None(_) => error.into_asked(),
            // Nobody was asked, for a reason of the gateway's.
            error => nodes
                .into_iter()
                .map(|node| Asked {
                    node,
                    answer: Ok(Part::not_asked(&error)),
                })
                .collect(),
        });
        lists::captures(own, asked)
    }

    /// Asks nodes for what they have a list of.
    async fn ask_for(
        &self,
        nodes: Vec<Arc<Node>>,
        path: &str,
        rights: Option<&Rights>,
        list: &'static str,
    ) -> Result<Vec<Asked<Part>>, AskError> {
        self.nodes
            .ask_for_json(nodes, path, rights, |node, body| Part::read(node, body, list))
            .await
    }

    /// Has a node end a capture.
    ///
    /// # Errors
    /// When it refuses, or there is no such node.
    pub(crate) async fn end_on(&self, node: &str, id: u64) -> Result<(), AskError> {
        self.nodes.delete(node, &format!("/captures/{id}")).await
    }

    /// The gateway's metrics, and those of all nodes, each with its name as a label.
    pub(crate) async fn metrics(&self, load: &Load) -> String {
        let own = self.frontend.metrics.render(load);
        let asked: Vec<Asked<String>> = self.nodes.ask_for_metrics().await;
        metrics::merged(&own, self.nodes.known(), &asked)
    }

    /// What is in use at the moment.
    pub(crate) fn load(&self) -> Load {
        let files = self.frontend.access.files();
        Load {
            captures: self.frontend.captures.count(),
            ring_memory: 0,
            ring_memory_limit: 0,
            keeper_descriptors: (0, 0),
            files: files.iter().map(|files| files.age()).collect(),
        }
    }
}
