//! Lists of several nodes become one. Pure.
//!
//! Each element has the name of its node; members that this version does not know are passed on as they are. Nodes that have not
//! answered are named.

use serde_json::{Map, Value, json};

use super::{
    ask::{Asked, NodeError},
    rates::at_gateway,
};
use crate::error::chain;

/// The member with the name of a node, as GhostWire's clients have it.
const NODE_NAME: &str = "node-name";

/// Most sentences on what nodes could not look at.
const MAX_GAPS: usize = 1000;

/// `/targets`. With a doubt there may be other nodes than were asked.
pub(super) fn targets(asked: Vec<Asked<Value>>, doubt: Option<String>, gateway: &str) -> Value {
    let asked = with_list(asked, "targets");
    let (mut targets, mut engines, mut gaps) = (Vec::new(), Vec::new(), Vec::from_iter(doubt));
    let mut scanned_at: Option<f64> = None;
    let nodes = nodes(&asked);
    for Asked { node, answer } in asked {
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                gaps.push(not_asked(&node.name, &error));
                continue;
            }
        };
        targets
            .extend(elements(&mut answer, "targets", &node.name).map(|target| numbered(target, node.number)));
        engines.extend(elements(&mut answer, "engines", &node.name));
        let sentences = list(&mut answer, "gaps");
        gaps.extend(
            sentences
                .iter()
                .filter_map(Value::as_str)
                .map(|gap| format!("node {}: {gap}", node.name)),
        );
        // What all of it is at least as new as.
        let at = answer["scanned-at"].as_f64();
        scanned_at = scanned_at.into_iter().chain(at).reduce(f64::min);
    }
    let rest = gaps.len().saturating_sub(MAX_GAPS);
    if rest > 0 {
        gaps.truncate(MAX_GAPS);
        gaps.push(format!("{rest} more things could not be looked at"));
    }
    let mut merged = json!({
        "version": 1,
        "scanned-at": scanned_at.unwrap_or_default(),
        NODE_NAME: gateway,
        "nodes": nodes,
        "engines": engines,
        "targets": targets,
    });
    if !gaps.is_empty() {
        merged["gaps"] = gaps.into();
    }
    merged
}

/// `/mobyshark`: GhostWire's list. What its clients do not know they leave alone.
pub(super) fn mobyshark(asked: Vec<Asked<Value>>) -> Value {
    let asked = with_list(asked, "containers");
    let nodes = nodes(&asked);
    let answers = asked.into_iter().filter_map(|Asked { node, answer }| {
        let mut answer = answer.ok()?;
        Some(elements(&mut answer, "containers", &node.name))
    });
    let containers: Vec<Value> = answers.flatten().collect();
    json!({
        "metadata": {
            "creator": "packetflix",
            "creator-id": "packetflix",
            "creator-version": env!("CARGO_PKG_VERSION"),
            "nodes": nodes,
        },
        "containers": containers,
    })
}

/// `/captures`: those of the gateway's clients, which have no name of a node, and those of the nodes.
pub(super) fn captures(own: Vec<Value>, asked: Vec<Asked<Value>>) -> Value {
    let asked = with_list(asked, "captures");
    let nodes = nodes(&asked);
    let of_nodes = asked.into_iter().filter_map(|Asked { node, answer }| {
        let mut answer = answer.ok()?;
        Some(elements(&mut answer, "captures", &node.name))
    });
    let captures: Vec<Value> = own.into_iter().chain(of_nodes.flatten()).collect();
    json!({ "version": 1, "nodes": nodes, "captures": captures })
}

/// An answer without its list is none.
fn with_list(asked: Vec<Asked<Value>>, name: &'static str) -> Vec<Asked<Value>> {
    let with_list = |answer: Value| match answer[name].is_array() {
        true => Ok(answer),
        false => Err(NodeError::NoList(name)),
    };
    let checked = |Asked { node, answer }| Asked {
        node,
        answer: answer.and_then(with_list),
    };
    asked.into_iter().map(checked).collect()
}

/// How each node stands: its name, what is known of its clock, and why it has not answered.
fn nodes(asked: &[Asked<Value>]) -> Vec<Value> {
    let node = |Asked { node, answer }: &Asked<Value>| {
        let state = node.state();
        let mut told = Map::new();
        told.insert("name".to_owned(), node.name.clone().into());
        if let Some(version) = state.version {
            told.insert("version".to_owned(), version.into());
        }
        if let Some(clock) = state.clock {
            let seconds = |nanoseconds: f64| nanoseconds / 1e9;
            told.insert("clock-ahead".to_owned(), seconds(clock.ahead as f64).into());
            told.insert(
                "clock-uncertainty".to_owned(),
                seconds(clock.uncertainty as f64).into(),
            );
        }
        if let Err(error) = answer {
            told.insert("problem".to_owned(), chain(error).into());
        }
        Value::Object(told)
    };
    asked.iter().map(node).collect()
}

/// Takes the list of this name.
fn list(answer: &mut Value, name: &str) -> Vec<Value> {
    match answer.get_mut(name).map(Value::take) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

/// Takes the objects of a list, and puts the name of the node into each.
fn elements(answer: &mut Value, name: &str, node: &str) -> impl Iterator<Item = Value> + use<> {
    let node = node.to_owned();
    list(answer, name)
        .into_iter()
        .filter_map(move |element| match element {
            Value::Object(mut members) => {
                members.insert(NODE_NAME.to_owned(), node.clone().into());
                Some(Value::Object(members))
            }
            _ => None,
        })
}

/// A target with the number that its namespace has at the gateway.
fn numbered(mut target: Value, node: u32) -> Value {
    if let Some(netns) = target["netns"].as_u64() {
        target["netns"] = at_gateway(node, netns).into();
    }
    target
}

fn not_asked(node: &str, error: &NodeError) -> String {
    format!("node {node}: {}", chain(error))
}
