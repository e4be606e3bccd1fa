//! Lists of several nodes become one. Pure.
//!
//! Each element has the name of its node; members that this version does not know are passed on as they are. Nodes that have not
//! answered are named. What a node lists is made part of the list as soon as it has answered, one element after the other, so that
//! nothing more of it is there than its bytes.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserializer as _,
    de::{DeserializeSeed, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json};

use super::{
    ask::{Asked, NodeError},
    node::Node,
    rates::at_gateway,
};
use crate::error::chain;

/// The member with the name of a node, as GhostWire's clients have it.
const NODE_NAME: &str = "node-name";

/// Most sentences on what nodes could not look at.
const MAX_GAPS: usize = 1000;

/// The lists that nodes have.
pub(super) const TARGETS: &str = "targets";
pub(super) const CONTAINERS: &str = "containers";
pub(super) const CAPTURES: &str = "captures";

/// What a node lists, with its name in each element.
#[derive(Debug)]
pub(super) struct Part {
    /// The elements, with commas between them.
    elements: Vec<u8>,
    /// What else stands in its answer.
    rest: Map<String, Value>,
}

impl Part {
    /// Reads what a node answers that has a list of this name.
    ///
    /// # Errors
    /// When it has none.
    pub(super) fn read(node: &Node, body: &[u8], list: &'static str) -> Result<Self, NodeError> {
        let mut elements = Vec::with_capacity(body.len());
        let rest = read(body, list, |element| {
            let Value::Object(mut members) = element else {
                return;
            };
            members.insert(NODE_NAME.to_owned(), node.name.clone().into());
            if list == TARGETS
                && let Some(netns) = members.get_mut("netns")
                && let Some(number) = netns.as_u64()
            {
                *netns = at_gateway(node.number, number).into();
            }
            push(&mut elements, &Value::Object(members));
        })?;
        elements.shrink_to_fit();
        Ok(Self { elements, rest })
    }
}

/// Reads an answer: gives the elements of the list of this name one after the other, and then what stands beside it.
///
/// # Errors
/// When it has no such list.
pub(super) fn read(
    body: &[u8],
    list: &'static str,
    mut take: impl FnMut(Value),
) -> Result<Map<String, Value>, NodeError> {
    let mut is_there = false;
    let mut take = |element| take(element);
    let mut json = serde_json::Deserializer::from_slice(body);
    let members = Members {
        list,
        is_there: &mut is_there,
        take: &mut take,
    };
    let rest = json.deserialize_map(members);
    let rest = rest.and_then(|rest| json.end().map(|()| rest));
    match rest.map_err(NodeError::Unreadable)? {
        rest if is_there => Ok(rest),
        _ => Err(NodeError::NoList(list)),
    }
}

/// The members of an answer.
struct Members<'a> {
    list: &'static str,
    is_there: &'a mut bool,
    take: &'a mut dyn FnMut(Value),
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut rest = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if name == self.list {
                *self.is_there = true;
                members.next_value_seed(Elements(&mut *self.take))?;
            } else {
                rest.insert(name, members.next_value()?);
            }
        }
        Ok(rest)
    }
}

/// The elements of its list.
struct Elements<'a>(&'a mut dyn FnMut(Value));

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, list: D) -> Result<(), D::Error> {
        list.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(element) = list.next_element()? {
            (self.0)(element);
        }
        Ok(())
    }
}

/// Adds an element to others.
fn push(elements: &mut Vec<u8>, element: &Value) {
    if !elements.is_empty() {
        elements.push(b',');
    }
    // Writing to memory does not fail, and a value is JSON.
    let _ = serde_json::to_writer(elements, element);
}

/// `/targets`. With a doubt there may be other nodes than were asked.
pub(super) fn targets(asked: Vec<Asked<Part>>, doubt: Option<String>, gateway: &str) -> Vec<Bytes> {
    let (mut parts, mut engines, mut gaps) = (Vec::new(), Vec::new(), Vec::from_iter(doubt));
    let mut scanned_at: Option<f64> = None;
    let nodes = nodes(&asked);
    for Asked { node, answer } in asked {
        let Part { elements, mut rest } = match answer {
            Ok(part) => part,
            Err(error) => {
                gaps.push(not_asked(&node.name, &error));
                continue;
            }
        };
        parts.push(elements);
        engines.extend(list(&mut rest, "engines").into_iter().filter_map(|mut engine| {
            engine
                .as_object_mut()?
                .insert(NODE_NAME.to_owned(), node.name.clone().into());
            Some(engine)
        }));
        let sentences = list(&mut rest, "gaps");
        gaps.extend(
            sentences
                .iter()
                .filter_map(Value::as_str)
                .map(|gap| format!("node {}: {gap}", node.name)),
        );
        // What all of it is at least as new as.
        let at = rest.get("scanned-at").and_then(Value::as_f64);
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
    });
    if !gaps.is_empty() {
        merged["gaps"] = gaps.into();
    }
    with_list(&merged, TARGETS, parts)
}

/// `/mobyshark`: GhostWire's list. What its clients do not know they leave alone.
pub(super) fn mobyshark(asked: Vec<Asked<Part>>) -> Vec<Bytes> {
    let merged = json!({
        "metadata": {
            "creator": "packetflix",
            "creator-id": "packetflix",
            "creator-version": env!("CARGO_PKG_VERSION"),
            "nodes": nodes(&asked),
        },
    });
    with_list(&merged, CONTAINERS, elements_of(asked))
}

/// `/captures`: those of the gateway's clients, which have no name of a node, and those of the nodes.
pub(super) fn captures(own: &[Value], asked: Vec<Asked<Part>>) -> Vec<Bytes> {
    let merged = json!({ "version": 1, "nodes": nodes(&asked) });
    let mut first = Vec::new();
    for capture in own {
        push(&mut first, capture);
    }
    with_list(
        &merged,
        CAPTURES,
        std::iter::once(first).chain(elements_of(asked)),
    )
}

fn elements_of(asked: Vec<Asked<Part>>) -> impl Iterator<Item = Vec<u8>> {
    let answers = asked.into_iter().filter_map(|asked| asked.answer.ok());
    answers.map(|part| part.elements)
}

/// An object with these members, and a list that is the elements of all parts, in pieces.
fn with_list(members: &Value, list: &str, parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<Bytes> {
    let mut head = members.to_string();
    // The brace at its end.
    head.pop();
    head += &format!(",\"{list}\":[");
    let mut pieces = vec![Bytes::from(head)];
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        if pieces.len() > 1 {
            pieces.push(Bytes::from_static(b","));
        }
        pieces.push(part.into());
    }
    pieces.push(Bytes::from_static(b"]}"));
    pieces
}

/// How each node stands: its name, what is known of its clock, and why it has not answered.
fn nodes<T>(asked: &[Asked<T>]) -> Vec<Value> {
    let node = |Asked { node, answer }: &Asked<T>| {
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
fn list(rest: &mut Map<String, Value>, name: &str) -> Vec<Value> {
    match rest.remove(name) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn not_asked(node: &str, error: &NodeError) -> String {
    format!("node {node}: {}", chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(body: &str) -> Result<(Vec<Value>, Map<String, Value>), String> {
        let mut elements = Vec::new();
        let rest = read(body.as_bytes(), TARGETS, |element| elements.push(element));
        rest.map(|rest| (elements, rest)).map_err(|error| chain(&error))
    }

    #[test]
    fn answers_are_read_element_by_element() {
        let (elements, rest) =
            read_all(r#"{"version": 1, "targets": [{"name": "web"}, 7], "gaps": []}"#).unwrap();
        assert_eq!(elements, [json!({ "name": "web" }), json!(7)]);
        assert_eq!(Value::Object(rest), json!({ "version": 1, "gaps": [] }));
        for (body, why) in [
            (r#"{"containers": []}"#, "its answer has no list of targets"),
            (
                "[]",
                "its answer is no JSON of packetflix: invalid type: sequence, expected an object",
            ),
            (
                r#"{"targets": {}}"#,
                "its answer is no JSON of packetflix: invalid type: map, expected a list",
            ),
            (
                r#"{"targets": []} x"#,
                "its answer is no JSON of packetflix: trailing characters",
            ),
            (
                r#"{"targets": [{"name": ""#,
                "its answer is no JSON of packetflix: EOF",
            ),
        ] {
            let told = read_all(body).unwrap_err();
            assert!(told.starts_with(why), "{body}: {told}");
        }
        let deep = format!(r#"{{"targets": [{}{}]}}"#, "[".repeat(200), "]".repeat(200));
        assert!(read_all(&deep).unwrap_err().contains("recursion limit"));
    }

    #[test]
    fn parts_become_one_list() {
        let part = |elements: &str| elements.as_bytes().to_vec();
        for (parts, expected) in [
            (vec![], json!([])),
            (vec![part("")], json!([])),
            (vec![part("1,2"), part(""), part("3")], json!([1, 2, 3])),
        ] {
            let pieces = with_list(&json!({ "version": 1 }), "targets", parts);
            let list: Value = serde_json::from_slice(&pieces.concat()).unwrap();
            assert_eq!(list, json!({ "version": 1, "targets": expected }));
        }
    }
}
