//! The captures of a stream: which nodes have what is asked for, and each begins, or says why not.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::BytesMut;
use futures_util::{StreamExt as _, future::BoxFuture, stream};
use packetflix_client::{
    http::{self, ClockReading},
    server::Server,
    stream::{Bounds, CaptureStream},
};
use serde_json::Value;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{
    Gateway,
    ask::{AskError, Asked, Failed, NodeError, are, sentence, some_answer},
    feed::{Feed, NodeEnd, Note, Said},
    lists::{self, Found},
    node::Node,
    rates::at_node,
    request::{self, NodeChoice, NodeWordError, Wanted},
    stream::{GatewayStream, Member, StreamInfo},
};
use crate::{
    access::Rights,
    captures::{CaptureFacts, Unaccounted},
    description::TargetDescription,
    error::chain,
    pcapng::{CaptureComment, MAX_BLOCK_LEN, MAX_STATISTICS_LEN},
    resolve::Selection,
    service::{Caller, CaptureRequest, Forbidden, Permit, StartError},
    session::{Limits, TooFewBytes, encode_section_header},
    tap::InterfaceSelection,
};

/// No message of a node is as long as this, in bytes: a packetflix sends no longer ones than blocks may be.
const MAX_MESSAGE_LEN: usize = MAX_BLOCK_LEN + 1;

/// Messages of all nodes of a stream that wait on their connections, beside one of each that is being merged; and least of each.
const WAITING_MESSAGES: usize = 256;
const LEAST_WAITING: usize = 1;
const MOST_WAITING: usize = 8;

/// How many captures of a stream are begun at the same time.
const AT_ONCE: usize = 64;

/// The type of target that stands in the section header of a stream of several.
const KIND: &str = "selection";

/// Most bytes of a target's name before that of its interfaces.
const MAX_PREFIX_LEN: usize = 256;

/// Most bytes of words that stand for the name of a selection.
const MAX_NAME_LEN: usize = 120;

/// A stream that runs, and waits for its client.
pub(crate) struct StartedGatewayStream {
    pub(crate) stream: GatewayStream,
    pub(crate) stop: CancellationToken,
    pub(crate) permit: Permit,
    /// What people are told of it.
    pub(crate) note: Option<String>,
}

/// Why a stream does not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GatewayStartError {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Unaccounted(#[from] Unaccounted),
    #[error(transparent)]
    TooFewBytes(#[from] TooFewBytes),
    #[error(transparent)]
    Word(#[from] NodeWordError),
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("a number says nothing without its node: say in container= which \"node-name\" it is of")]
    NoNodeSaid,
    #[error("the node of this number of a namespace is not there any more: have the targets listed anew")]
    NoNodeNumbered,
    #[error("no node of this name is chosen: node:NAME is one, and node:PATTERN several; there {}", are(.0))]
    NoNodeChosen(Vec<String>),
    #[error("{}{}{}", missing(name, asked.len()), unheard(*failed, asked.len()), but(nearest))]
    Nowhere {
        name: String,
        asked: Vec<Arc<Node>>,
        /// How many of them have not answered, or could not look at everything.
        failed: usize,
        /// What may be meant, of what the caller may list.
        nearest: Vec<String>,
    },
    #[error(
        "{name} is on several nodes: there {}; say which is meant, by node:NAME, or in container= as \"node-name\"",
        are(nodes)
    )]
    Ambiguous { name: String, nodes: Vec<String> },
}

/// The beginning of a sentence on what was not found.
fn missing(name: &str, asked: usize) -> String {
    match asked {
        1 => format!("the node that was asked has no {name}"),
        asked => format!("none of {asked} nodes has {name}"),
    }
}

/// What comes next in it.
fn unheard(failed: usize, asked: usize) -> String {
    match (failed, asked) {
        (0, _) => String::new(),
        (1, 1) => ", as far as it answers and could look at everything".to_owned(),
        (1, _) => ", 1 of which does not answer, or could not look at everything".to_owned(),
        _ => format!(", {failed} of which do not answer, or could not look at everything"),
    }
}

/// The end of one on what was not found, with what was.
fn but(nearest: &[String]) -> String {
    match nearest {
        [] => String::new(),
        [only] => format!("; the nearest of what they have is {only}"),
        names => format!("; the nearest of what they have are {}", names.join(", ")),
    }
}

/// What a node is asked for.
struct Order {
    node: Arc<Node>,
    path: String,
    /// What stands before the names of its interfaces.
    prefix: String,
    /// Snapshot length in bytes.
    snaplen: u32,
}

/// Has nodes join a stream that come, or come back, while it runs.
pub(super) struct Joining {
    gateway: Arc<Gateway>,
    nodes: NodeChoice,
    /// What each is asked for.
    path: String,
    snaplen: u32,
    bounds: Bounds,
    /// What the client may do, where that is with some targets only.
    rights: Option<Rights>,
}

/// What all captures of a stream are, beside what each node is asked for.
struct Orders {
    orders: Vec<Order>,
    /// Nodes of which nothing is captured, and why.
    told: Vec<(String, String)>,
    is_of_one: bool,
    /// Which nodes may join later, and what each is asked for.
    coming: Option<(NodeChoice, String)>,
    /// What is captured, for people.
    name: String,
    target: TargetDescription,
}

impl Gateway {
    /// Starts a stream, as number `id`.
    ///
    /// # Errors
    /// When no node has what is asked for, or it may not be had; nothing of it is left then.
    pub(crate) async fn start(
        self: &Arc<Self>,
        id: u64,
        request: &CaptureRequest,
        caller: &Caller,
    ) -> Result<StartedGatewayStream, GatewayStartError> {
        self.frontend.check_account()?;
        let permit = self.frontend.permit(caller)?;
        let Orders {
            orders,
            mut told,
            is_of_one,
            coming,
            name,
            target,
        } = match self.orders(request, caller).await {
            Ok(orders) => orders,
            Err(error) => return Err(self.with_nearest(error, caller).await),
        };
        let bounds = Bounds {
            message_len: MAX_MESSAGE_LEN,
            pieces: (WAITING_MESSAGES / orders.len().max(1)).clamp(LEAST_WAITING, MOST_WAITING),
        };
        let shown = self.nodes.shown(caller.bounds()).map_err(AskError::from)?;
        let opened = stream::iter(orders).map(|order| {
            let server = self.nodes.server(&order.node, &shown);
            async move {
                (
                    open(self.nodes.timeout, &server, &order, &bounds).await,
                    order.node,
                )
            }
        });
        let opened: Vec<_> = opened.buffered(AT_ONCE).collect().await;
        let (mut members, mut failed) = (Vec::new(), Vec::new());
        for (opened, node) in opened {
            match opened {
                Ok(member) => members.push(member),
                Err(why) => failed.push(Failed {
                    name: node.name.clone(),
                    node,
                    why,
                }),
            }
        }
        if members.is_empty() {
            return Err(AskError::of_failed(failed).into());
        }
        told.extend(failed.into_iter().map(|Failed { name, why, .. }| {
            let sentence = format!("node {name}: not captured: {}", chain(&why));
            (name, sentence)
        }));
        let note = members.iter().find_map(|member| member.feed.note());
        let stop = self.frontend.stop.child_token();
        let section_header = match (&mut members[..], is_of_one) {
            ([only], true) => {
                let node = self.nodes.find(&only.name)?;
                begin_as(only, node, &stop).await?
            }
            _ => self.section_header(request, &name),
        };
        let limits = Limits {
            max_duration: self.frontend.config.max_duration,
            ..request.limits.clone()
        };
        let least = (section_header.len() + MAX_STATISTICS_LEN) as u64;
        if let Some(bytes) = limits.bytes
            && bytes < least
        {
            return Err(TooFewBytes { bytes, least }.into());
        }
        let facts = CaptureFacts {
            id,
            tap: id,
            stream: None,
            client: caller.facts(),
            netns: target.netns.unwrap_or_default(),
            asked: target.clone(),
            target,
            selection: request.selection.clone().unwrap_or(InterfaceSelection::All),
            filter: request.filter.clone(),
        };
        let captures = &self.frontend.captures;
        let running = captures.begin(captures.prepare(facts, stop.clone()))?;
        tracing::info!(
            name,
            nodes = members.len(),
            caller = caller.name(),
            caller_type = caller.kind(),
            "started a stream of nodes"
        );
        let info = StreamInfo {
            section_header,
            snaplen: request.snaplen,
            limits,
            is_of_one,
            joining: coming.map(|(nodes, path)| Joining {
                gateway: Arc::clone(self),
                nodes,
                path,
                snaplen: request.snaplen,
                bounds,
                rights: caller.bounds().cloned(),
            }),
            judge: self.judge(caller.clone()),
        };
        let mut stream = GatewayStream::begin(info, members, running, stop.clone());
        for (name, sentence) in told {
            stream.miss(&name, &sentence);
        }
        Ok(StartedGatewayStream {
            stream,
            stop,
            permit,
            note,
        })
    }

    /// A caller may have streams. To whoever may have everything the nodes name all that there is.
    ///
    /// # Errors
    /// When they may not.
    pub(crate) fn may_capture(caller: &Caller) -> Result<(), Forbidden> {
        caller.may_capture_something()?;
        match caller.bounds() {
            None => caller.may_discover(),
            Some(_) => Ok(()),
        }
    }

    /// Says why a caller may have a stream no more, if so.
    fn judge(self: &Arc<Self>, caller: Caller) -> Box<dyn Fn() -> Option<String> + Send> {
        let access = Arc::clone(&self.frontend.access);
        Box::new(move || {
            let renewed = match caller.renew(&access) {
                Ok(renewed) => renewed,
                Err(error) => return Some(chain(&error)),
            };
            let lost = Self::may_capture(&renewed).and_then(|()| renewed.may_still(caller.rights()));
            lost.err().map(|forbidden| forbidden.to_string())
        })
    }

    /// Which nodes are asked for what.
    async fn orders(&self, request: &CaptureRequest, caller: &Caller) -> Result<Orders, GatewayStartError> {
        let wanted = Wanted::of(request)?;
        let has_patterns = matches!(
            &wanted,
            Wanted::Several { words, described, .. } if described.is_empty() && request::have_patterns(words)
        );
        if has_patterns {
            // As a node has it: such a stream tells what there is.
            caller.may_discover().map_err(StartError::from)?;
        }
        let rights = caller.bounds().map(|bounds| match has_patterns {
            true => bounds.clone(),
            false => bounds.to_find(),
        });
        let rights = rights.as_ref();
        match wanted {
            Wanted::One(target) => {
                let target = self.on_its_node(target)?;
                let node = self.node_of(&target, rights).await?;
                let described = [target];
                let path = request::path_of_described(request, &described, request.names);
                let [target] = described;
                Ok(Orders {
                    name: target.full_name(),
                    orders: vec![Order {
                        node,
                        path,
                        prefix: String::new(),
                        snaplen: request.snaplen,
                    }],
                    told: Vec::new(),
                    is_of_one: true,
                    coming: None,
                    target: TargetDescription {
                        node_name: String::new(),
                        ..target
                    },
                })
            }
            Wanted::Several {
                nodes,
                words,
                described,
                follow,
                wait,
            } if described.is_empty() => {
                self.orders_of_words(request, rights, nodes, &words, follow, wait)
                    .await
            }
            Wanted::Several { described, .. } => {
                let described = described.into_iter().map(|target| self.on_its_node(target));
                self.orders_of_described(request, described.collect::<Result<_, _>>()?)
            }
        }
    }

    /// Nodes that have something of what words mean, and, where others may come to have it, all that answer.
    async fn orders_of_words(
        &self,
        request: &CaptureRequest,
        rights: Option<&Rights>,
        nodes: NodeChoice,
        words: &[String],
        follow: Option<bool>,
        wait: bool,
    ) -> Result<Orders, GatewayStartError> {
        let chosen = self.chosen(&nodes)?;
        let name = match words {
            [] => "everything".to_owned(),
            words => words.join(" "),
        };
        let name = shortened(&name, MAX_NAME_LEN).to_owned();
        let may_come = wait || follow.unwrap_or_else(|| request::have_patterns(words));
        let all_chosen = chosen.clone();
        // Those that do not answer hold up nobody where they join once they do.
        let (silent, others) = chosen.into_iter().partition(|node| may_come && node.is_silent());
        let asked = self.ask_who_has(words, rights, others, silent, wait).await?;
        let (mut orders, mut told) = (Vec::new(), Vec::new());
        let (mut has_some, mut failed) = (false, 0);
        let unsaid = |node: &Node, why: &str| {
            (
                node.name.clone(),
                format!("node {}: not captured: {why}", node.name),
            )
        };
        // Addresses of one node may be others' names on another.
        let names = request.names && all_chosen.len() == 1;
        for Asked { node, answer } in asked {
            failed += usize::from(!matches!(answer, Ok(Found::One | Found::Nothing)));
            match answer {
                Ok(Found::Unknown(gap)) if !may_come => {
                    let why = format!("it has not found it, and could not look at everything: {gap}");
                    told.push(unsaid(&node, &why));
                }
                Ok(found) => {
                    let is_there = matches!(found, Found::One);
                    has_some |= is_there;
                    if is_there || may_come {
                        let path = request::path_of_words(request, words, follow, names);
                        let prefix = format!("{}/", node.name);
                        orders.push(Order {
                            node,
                            path,
                            prefix,
                            snaplen: request.snaplen,
                        });
                    }
                }
                Err(error) => told.push(unsaid(&node, &chain(&error))),
            }
        }
        if !has_some && !wait {
            return Err(GatewayStartError::Nowhere {
                name,
                asked: all_chosen,
                failed,
                nearest: Vec::new(),
            });
        }
        let path_of_newcomers = || request::path_of_words(request, words, follow, false);
        Ok(Orders {
            orders,
            told,
            is_of_one: false,
            coming: may_come.then(|| (nodes, path_of_newcomers())),
            target: TargetDescription {
                name: name.clone(),
                kind: KIND.to_owned(),
                ..TargetDescription::default()
            },
            name,
        })
    }

    /// The nodes that are chosen, of which there is one at least.
    pub(super) fn chosen(&self, choice: &NodeChoice) -> Result<Vec<Arc<Node>>, GatewayStartError> {
        let all = self.nodes.some()?;
        let names = || all.iter().map(|node| node.name.clone()).collect();
        let chosen: Vec<_> = all
            .iter()
            .filter(|node| choice.has(&node.name))
            .cloned()
            .collect();
        match chosen.is_empty() {
            true => Err(GatewayStartError::NoNodeChosen(names())),
            false => Ok(chosen),
        }
    }

    /// Asks these nodes who has something of what words mean; and those that are `silent` only where none has anything, unless that
    /// is waited for, or none answers.
    async fn ask_who_has(
        &self,
        words: &[String],
        rights: Option<&Rights>,
        nodes: Vec<Arc<Node>>,
        silent: Vec<Arc<Node>>,
        wait: bool,
    ) -> Result<Vec<Asked<Found>>, AskError> {
        let path = format!("/targets?{}", request::targets_query(words));
        let path = path.trim_end_matches('?');
        let read = |_: &Node, body: &[u8]| lists::find_target(body, |_| true);
        let mut asked = self.nodes.ask_each_for_json(nodes, path, rights, read).await?;
        let mut answers = asked.iter().filter_map(|one| one.answer.as_ref().ok());
        if answers.any(|found| wait || matches!(found, Found::One)) {
            asked.extend(silent.into_iter().map(Asked::left_out));
        } else {
            asked.extend(self.nodes.ask_each_for_json(silent, path, rights, read).await?);
        }
        some_answer(asked)
    }

    /// Each node is asked for those that are described as its.
    fn orders_of_described(
        &self,
        request: &CaptureRequest,
        described: Vec<TargetDescription>,
    ) -> Result<Orders, GatewayStartError> {
        let mut by_node: BTreeMap<String, (Arc<Node>, Vec<TargetDescription>)> = BTreeMap::new();
        let names: Vec<String> = described.iter().map(TargetDescription::full_name).collect();
        for target in described {
            let node = self.said_node(&target)?.ok_or(GatewayStartError::NoNodeSaid)?;
            let (_, targets) = by_node
                .entry(node.name.clone())
                .or_insert_with(|| (node, Vec::new()));
            targets.push(target);
        }
        let with_names = request.names && by_node.len() == 1;
        let orders = by_node.into_values().map(|(node, targets)| Order {
            path: request::path_of_described(request, &targets, with_names),
            prefix: match &targets[..] {
                // A node that is asked for one says nothing of it with its interfaces.
                [only] => format!("{}/{}/", node.name, shortened(&only.full_name(), MAX_PREFIX_LEN)),
                _ => format!("{}/", node.name),
            },
            snaplen: request.snaplen,
            node,
        });
        let name = names.join(" ");
        let name = shortened(&name, MAX_NAME_LEN).to_owned();
        Ok(Orders {
            orders: orders.collect(),
            told: Vec::new(),
            is_of_one: false,
            coming: None,
            target: TargetDescription {
                name: name.clone(),
                kind: KIND.to_owned(),
                ..TargetDescription::default()
            },
            name,
        })
    }

    /// What a description means on its node, where a number of the gateway's says which one that is.
    fn on_its_node(&self, mut target: TargetDescription) -> Result<TargetDescription, GatewayStartError> {
        let as_word = target.name.strip_prefix("netns:").filter(|_| target.is_word());
        let as_word = as_word.and_then(|number| number.parse().ok());
        let Some((node, netns)) = target.netns.or(as_word).and_then(at_node) else {
            return Ok(target);
        };
        let node = self
            .nodes
            .numbered(node)
            .ok_or(GatewayStartError::NoNodeNumbered)?;
        if !target.node_name.is_empty() && target.node_name != node.name {
            return Err(GatewayStartError::NoNodeNumbered);
        }
        target.node_name.clone_from(&node.name);
        match as_word {
            Some(_) => target.name = format!("netns:{netns}"),
            None => target.netns = Some(netns),
        }
        Ok(target)
    }

    /// The node that a description names, or the only one that there is.
    fn said_node(&self, target: &TargetDescription) -> Result<Option<Arc<Node>>, AskError> {
        if !target.node_name.is_empty() {
            return self.nodes.find(&target.node_name).map(Some);
        }
        let mut all = self.nodes.some()?;
        Ok(match all.len() {
            1 => all.pop(),
            _ => None,
        })
    }

    /// The node that has a target: the one that is said, or the only one that has something of this name.
    async fn node_of(
        &self,
        target: &TargetDescription,
        rights: Option<&Rights>,
    ) -> Result<Arc<Node>, GatewayStartError> {
        if let Some(node) = self.said_node(target)? {
            return Ok(node);
        }
        let name = target.full_name();
        let is_by_number = target.netns.is_some() || target.pid.is_some();
        if is_by_number || name.is_empty() || !Selection::is_single(&name) {
            return Err(GatewayStartError::NoNodeSaid);
        }
        let all = self.nodes.all();
        let path = format!("/targets?{}", request::targets_query(std::slice::from_ref(&name)));
        let is_such = |found: &Value| target.kind.is_empty() || found["type"] == target.kind;
        let read = |_: &Node, body: &[u8]| lists::find_target(body, is_such);
        let asked = self.nodes.ask_for_json(all.clone(), &path, rights, read);
        let asked = asked.await?;
        let is_heard = |one: &&Asked<Found>| matches!(one.answer, Ok(Found::One | Found::Nothing));
        let failed = all.len() - asked.iter().filter(is_heard).count();
        let having = asked
            .into_iter()
            .filter(|one| matches!(one.answer, Ok(Found::One)));
        let mut having: Vec<Arc<Node>> = having.map(|one| one.node).collect();
        match having.len() {
            0 => Err(GatewayStartError::Nowhere {
                name,
                asked: all,
                failed,
                nearest: Vec::new(),
            }),
            1 => Ok(having.remove(0)),
            _ => Err(GatewayStartError::Ambiguous {
                name,
                nodes: having.iter().map(|node| node.name.clone()).collect(),
            }),
        }
    }

    fn section_header(&self, request: &CaptureRequest, name: &str) -> BytesMut {
        let comment = CaptureComment {
            container_name: name,
            container_type: KIND,
            node_name: &self.frontend.config.host_name,
            cluster_uid: "",
            filter: &request.filter,
            chaste: request.chaste,
        };
        let mut header = BytesMut::new();
        encode_section_header(&comment, &mut header);
        header
    }
}

fn shortened(text: &str, len: usize) -> &str {
    &text[..text.floor_char_boundary(len)]
}

/// Has a node begin a capture, and measures its clock meanwhile.
async fn open(
    patience: Duration,
    server: &Server,
    Order {
        node,
        path,
        prefix,
        snaplen,
    }: &Order,
    bounds: &Bounds,
) -> Result<Member, NodeError> {
    let opening = async { tokio::join!(CaptureStream::open_at(server, path, bounds), http::greet(server)) };
    let opened = timeout(patience, opening).await;
    let (capture, greeting) = opened.map_err(|_| NodeError::Late(patience))?;
    let capture = capture?;
    let clock = greeting.as_ref().ok().and_then(|greeting| greeting.clock);
    let version = greeting
        .as_ref()
        .map_or_else(|_| String::new(), |greeting| sentence(&greeting.version));
    let note = Note {
        path: prefix.clone(),
        comment: about_clock(&node.name, &version, clock),
        snaplen: *snaplen,
    };
    let feed = Feed::new(capture, note);
    if let Ok(greeting) = greeting {
        node.greeted(&greeting);
    }
    Ok(Member {
        name: node.name.clone(),
        feed,
        clock,
    })
}

impl Joining {
    /// The nodes that may take part now.
    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        let mut nodes = self.gateway.nodes.all();
        nodes.retain(|node| self.nodes.has(&node.name));
        nodes
    }

    /// Has a node begin its capture; gives its name, too.
    pub(super) fn open(&self, node: Arc<Node>) -> BoxFuture<'static, (String, Result<Member, String>)> {
        let gateway = Arc::clone(&self.gateway);
        let bounds = Bounds {
            pieces: LEAST_WAITING,
            ..self.bounds
        };
        let rights = self.rights.clone();
        let name = node.name.clone();
        let order = Order {
            path: self.path.clone(),
            prefix: format!("{name}/"),
            snaplen: self.snaplen,
            node,
        };
        Box::pin(async move {
            let shown = match gateway.nodes.shown(rights.as_ref()) {
                Ok(shown) => shown,
                Err(error) => return (name, Err(chain(&error))),
            };
            let server = gateway.nodes.server(&order.node, &shown);
            let opened = open(gateway.nodes.timeout, &server, &order, &bounds).await;
            (name, opened.map_err(|error| chain(&error)))
        })
    }
}

/// What is said of the clock with each interface of a node, and of its program, where that is another.
fn about_clock(node: &str, version: &str, clock: Option<ClockReading>) -> String {
    let milliseconds = |nanoseconds: u64| Duration::from_nanos(nanoseconds).as_secs_f64() * 1000.0;
    let mut said = match clock {
        None => format!("node {node}: how its clock stands to the gateway's is not known"),
        Some(ClockReading { ahead, uncertainty }) => format!(
            "node {node}: its clock is {:.3} ms {} the gateway's (± {:.3} ms), by which no time was altered",
            milliseconds(ahead.unsigned_abs()),
            if ahead < 0 { "behind" } else { "ahead of" },
            milliseconds(uncertainty),
        ),
    };
    if !version.is_empty() && version != env!("CARGO_PKG_VERSION") {
        said += &format!("; it runs packetflix {version}");
    }
    said
}

/// Takes the section header of the only capture for that of the stream.
async fn begin_as(
    member: &mut Member,
    node: Arc<Node>,
    stop: &CancellationToken,
) -> Result<BytesMut, AskError> {
    /// More than a node takes for the first blocks of a stream that it has begun.
    const PATIENCE: Duration = Duration::from_secs(5);

    let why = match timeout(PATIENCE, member.feed.next(stop)).await {
        Ok(Said::Blocks { blocks, .. }) => return Ok(member.feed.begin(blocks)),
        Ok(Said::Ended(NodeEnd::Closed(close))) => NodeError::Ended(close.reason),
        Ok(Said::Ended(NodeEnd::Broken(why) | NodeEnd::Malformed(why))) => NodeError::Ended(why),
        Err(_) => NodeError::Late(PATIENCE),
    };
    Err(AskError::Node(Box::new(Failed {
        node,
        name: member.name.clone(),
        why,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_told_in_words() {
        let reading = |ahead, uncertainty| Some(ClockReading { ahead, uncertainty });
        for (version, clock, expected) in [
            (
                env!("CARGO_PKG_VERSION"),
                reading(5_000_250_000, 120_000),
                "node n1: its clock is 5000.250 ms ahead of the gateway's (± 0.120 ms), by which no time was altered",
            ),
            (
                "7.0.0",
                reading(-250_000, 0),
                "node n1: its clock is 0.250 ms behind the gateway's (± 0.000 ms), by which no time was altered; it runs \
                 packetflix 7.0.0",
            ),
            (
                "",
                None,
                "node n1: how its clock stands to the gateway's is not known",
            ),
        ] {
            assert_eq!(about_clock("n1", version, clock), expected);
        }
    }
}
