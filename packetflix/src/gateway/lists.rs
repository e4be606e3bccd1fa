//! Lists of several nodes become one. Pure.
//!
//! Each element has the name of its node; members that this version does not know are passed on as they are. Nodes that have not
//! answered are named. What a node lists is made part of the list as soon as it has answered, one element after the other, so that
//! nothing more of it is there than its bytes; what is not used of its answer is not kept.

use std::fmt;

use bytes::Bytes;
use serde::{
    Deserializer as _,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, json};

use super::{
    ask::{AskError, Asked, NodeError, sentence},
    elements::{is_engine, is_such},
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

/// What else is used of their answers: engines, sentences on what could not be looked at, and when it was looked.
const ENGINES: &str = "engines";
const GAPS: &str = "gaps";
const SCANNED_AT: &str = "scanned-at";

/// What a node lists, with its name in each element.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The elements, with commas between them.
    elements: Vec<u8>,
    /// Its engines, likewise.
    engines: Vec<u8>,
    /// The first of its sentences on what it could not look at, and how many more there are.
    gaps: Vec<String>,
    more_gaps: usize,
    scanned_at: Option<f64>,
    /// That some of it is left out, if so.
    left_out: Option<String>,
}

/// What stands in an answer.
pub(super) enum Told {
    /// An element of the list that is read.
    Element(Value),
    Engine(Value),
    Gap(Value),
    ScannedAt(f64),
}

impl Part {
    /// Reads what a node answers that has a list of this name.
    ///
    /// # Errors
    /// When it has none.
    pub(super) fn read(node: &Node, body: &[u8], list: &'static str) -> Result<Self, NodeError> {
        let mut part = Self {
            elements: Vec::with_capacity(body.len()),
            ..Self::default()
        };
        let mut others = 0;
        read(body, list, |told| match told {
            Told::Element(element) => others += usize::from(!part.add(node, element, list)),
            Told::Engine(engine) => part.add_engine(node, engine),
            Told::Gap(Value::String(_)) if part.gaps.len() >= MAX_GAPS => part.more_gaps += 1,
            Told::Gap(gap) => part.gaps.extend(gap.as_str().map(sentence)),
            Told::ScannedAt(at) => part.scanned_at = Some(at),
        })?;
        part.elements.shrink_to_fit();
        part.left_out = left_out(others, list);
        Ok(part)
    }

    /// What is there of a node that was not asked.
    pub(super) fn not_asked(why: &AskError) -> Self {
        Self {
            left_out: Some(format!("was not asked: {}", chain(why))),
            ..Self::default()
        }
    }

    /// Adds an element; tells whether it is one of such a list.
    fn add(&mut self, node: &Node, element: Value, list: &str) -> bool {
        let mut members = match element {
            Value::Object(members) if is_such(&element, list) => members,
            _ => return false,
        };
        members.insert(NODE_NAME.to_owned(), node.name.clone().into());
        if list == TARGETS
            && let Some(netns) = members.get_mut("netns")
            && let Some(number) = netns.as_u64().and_then(|number| u32::try_from(number).ok())
        {
            *netns = at_gateway(node.number, number).into();
        }
        push(&mut self.elements, &Value::Object(members));
        true
    }

    fn add_engine(&mut self, node: &Node, mut engine: Value) {
        if !is_engine(&engine) {
            return;
        }
        if let Some(problem) = engine.get("problem").and_then(Value::as_str) {
            engine["problem"] = sentence(problem).into();
        }
        engine[NODE_NAME] = node.name.clone().into();
        push(&mut self.engines, &engine);
    }
}

/// What is told where so many elements of a list are no such ones.
fn left_out(others: usize, list: &str) -> Option<String> {
    match others {
        0 => None,
        1 => Some(format!(
            "lists 1 {} that is none, and is left out",
            list.trim_end_matches('s')
        )),
        others => Some(format!("lists {others} {list} that are none, and are left out")),
    }
}

/// Reads an answer that has a list of this name: gives what is used of it, of each list one element after the other.
///
/// # Errors
/// When it has no such list.
pub(super) fn read(body: &[u8], list: &'static str, mut take: impl FnMut(Told)) -> Result<(), NodeError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let take: &mut dyn FnMut(Told) = &mut take;
    let is_there = json.deserialize_map(Members { list, take })?;
    json.end()?;
    match is_there {
        true => Ok(()),
        false => Err(NodeError::NoList(list)),
    }
}

/// Whether a node has a target that is meant.
#[derive(Debug)]
pub(super) enum Found {
    One,
    Nothing,
    /// It has found none, and could not look at everything.
    Unknown(String),
}

/// Whether a node has a target, of those that it was asked for, which is `wanted`.
///
/// # Errors
/// When its answer has no such list.
pub(super) fn find_target(body: &[u8], wanted: impl Fn(&Value) -> bool) -> Result<Found, NodeError> {
    let (mut is_there, mut first_gap) = (false, None);
    read(body, TARGETS, |told| match told {
        Told::Element(found) => is_there |= is_such(&found, TARGETS) && wanted(&found),
        Told::Gap(Value::String(gap)) if first_gap.is_none() => first_gap = Some(sentence(&gap)),
        _ => {}
    })?;
    Ok(match first_gap {
        _ if is_there => Found::One,
        Some(gap) => Found::Unknown(gap),
        None => Found::Nothing,
    })
}

/// The members of an answer; whether a list of this name is among them. Those that are not used are not kept.
struct Members<'a> {
    list: &'static str,
    take: &'a mut dyn FnMut(Told),
}

impl<'de> Visitor<'de> for Members<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let Self { list, take } = self;
        let mut is_there = false;
        while let Some(name) = members.next_key::<String>()? {
            let kind = match &name[..] {
                name if name == list => {
                    is_there = true;
                    Told::Element
                }
                ENGINES => Told::Engine,
                GAPS => Told::Gap,
                SCANNED_AT => {
                    take(Told::ScannedAt(members.next_value()?));
                    continue;
                }
                _ => {
                    members.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            members.next_value_seed(Elements {
                kind,
                take: &mut *take,
            })?;
        }
        Ok(is_there)
    }
}

/// The elements of a list, and what they are.
struct Elements<'a> {
    kind: fn(Value) -> Told,
    take: &'a mut dyn FnMut(Told),
}

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
            (self.take)((self.kind)(element));
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
    let mut more_gaps = 0;
    let mut scanned_at: Option<f64> = None;
    let nodes = nodes(&asked);
    for Asked { node, answer } in asked {
        let part = match answer {
            Ok(part) => part,
            Err(error) => {
                gaps.push(not_asked(&node.name, &error));
                continue;
            }
        };
        parts.push(part.elements);
        engines.push(part.engines);
        gaps.extend(
            part.left_out
                .map(|left_out| format!("node {} {left_out}", node.name)),
        );
        let sentences = part.gaps.iter();
        gaps.extend(sentences.map(|gap| format!("node {}: {gap}", node.name)));
        more_gaps += part.more_gaps;
        // What all of it is at least as new as.
        scanned_at = scanned_at.into_iter().chain(part.scanned_at).reduce(f64::min);
    }
    more_gaps += gaps.len().saturating_sub(MAX_GAPS);
    if more_gaps > 0 {
        gaps.truncate(MAX_GAPS);
        gaps.push(format!("{more_gaps} more things could not be looked at"));
    }
    let mut merged = json!({
        "version": 1,
        "scanned-at": scanned_at.unwrap_or_default(),
        NODE_NAME: gateway,
        "nodes": nodes,
    });
    if !gaps.is_empty() {
        merged["gaps"] = gaps.into();
    }
    with_lists(&merged, [(ENGINES, engines), (TARGETS, parts)])
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
    with_lists(&merged, [(CONTAINERS, elements_of(asked).collect())])
}

/// `/captures`: those of the gateway's clients, which have no name of a node, and those of the nodes.
pub(super) fn captures(own: &[Value], asked: Vec<Asked<Part>>) -> Vec<Bytes> {
    let merged = json!({ "version": 1, "nodes": nodes(&asked) });
    let mut first = Vec::new();
    for capture in own {
        push(&mut first, capture);
    }
    let parts = std::iter::once(first).chain(elements_of(asked));
    with_lists(&merged, [(CAPTURES, parts.collect())])
}

fn elements_of(asked: Vec<Asked<Part>>) -> impl Iterator<Item = Vec<u8>> {
    let answers = asked.into_iter().filter_map(|asked| asked.answer.ok());
    answers.map(|part| part.elements)
}

/// An object with these members, and lists that are the elements of all their parts, in pieces.
fn with_lists<const N: usize>(members: &Value, lists: [(&str, Vec<Vec<u8>>); N]) -> Vec<Bytes> {
    let mut head = members.to_string();
    // The brace at its end.
    head.pop();
    let mut pieces = vec![Bytes::from(head)];
    for (name, parts) in lists {
        pieces.push(format!(",\"{name}\":[").into());
        let begun = pieces.len();
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            if pieces.len() > begun {
                pieces.push(Bytes::from_static(b","));
            }
            pieces.push(part.into());
        }
        pieces.push(Bytes::from_static(b"]"));
    }
    pieces.push(Bytes::from_static(b"}"));
    pieces
}

/// How each node stands: its name, what is known of its clock, and why it has not answered, or not all of it is here.
fn nodes(asked: &[Asked<Part>]) -> Vec<Value> {
    let node = |Asked { node, answer }: &Asked<Part>| {
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
        let problem = match answer {
            Ok(part) => part.left_out.as_ref().map(|left_out| format!("it {left_out}")),
            Err(error) => Some(chain(error)),
        };
        if let Some(problem) = problem {
            told.insert("problem".to_owned(), problem.into());
        }
        Value::Object(told)
    };
    asked.iter().map(node).collect()
}

fn not_asked(node: &str, error: &NodeError) -> String {
    format!("node {node}: {}", chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements of an answer, and what else is used of it.
    fn read_all(body: &str) -> Result<(Vec<Value>, Vec<Value>), String> {
        let (mut elements, mut others) = (Vec::new(), Vec::new());
        let read = read(body.as_bytes(), TARGETS, |told| match told {
            Told::Element(element) => elements.push(element),
            Told::Engine(other) | Told::Gap(other) => others.push(other),
            Told::ScannedAt(at) => others.push(at.into()),
        });
        read.map(|()| (elements, others)).map_err(|error| chain(&error))
    }

    #[test]
    fn answers_are_read_element_by_element() {
        let body = r#"{"version": 1, "engines": [5], "targets": [{"name": "web"}, 7], "gaps": ["no", []], "x": [[]], "scanned-at": 3}"#;
        let (elements, others) = read_all(body).unwrap();
        assert_eq!(elements, [json!({ "name": "web" }), json!(7)]);
        assert_eq!(others, [json!(5), json!("no"), json!([]), json!(3.0)]);
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

    fn asked(name: &str, list: &'static str, body: &Value) -> Asked<Part> {
        let node = Node::new(name.to_owned(), 1, "http://127.0.0.1:1".parse().unwrap());
        let answer = Part::read(&node, body.to_string().as_bytes(), list);
        Asked { node, answer }
    }

    fn read_back(pieces: &[Bytes]) -> Value {
        serde_json::from_slice(&pieces.concat()).unwrap()
    }

    #[test]
    fn elements_that_are_none_are_left_out_and_told() {
        let target =
            |name: Value| json!({ "name": name, "type": "docker", "netns": 5, "network-interfaces": [] });
        let bodies = [
            json!({ "targets": [target(json!(5)), target(json!("web")), 7], "engines": [7, { "socket": "/s", "workloads": 1 }] }),
            json!({ "targets": [target(json!("db")), target(Value::Null)] }),
            json!({ "targets": [target(json!("mail"))] }),
        ];
        let nodes = ["one", "two", "three"];
        let all: Vec<_> = nodes
            .iter()
            .zip(&bodies)
            .map(|(name, body)| asked(name, TARGETS, body))
            .collect();
        let list = read_back(&targets(all, None, "here"));
        let names: Vec<&Value> = list["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one["name"])
            .collect();
        assert_eq!(names, ["web", "db", "mail"]);
        assert_eq!(
            list["gaps"],
            json!([
                "node one lists 2 targets that are none, and are left out",
                "node two lists 1 target that is none, and is left out"
            ])
        );
        assert_eq!(list["engines"].as_array().map(Vec::len), Some(1), "{list}");
        let problem = "it lists 2 targets that are none, and are left out";
        assert_eq!(list["nodes"][0]["problem"], problem);
        assert_eq!(list["nodes"][2]["problem"], Value::Null);
        // These have no gaps.
        let one = asked("one", CAPTURES, &json!({ "captures": [{ "id": "1" }] }));
        let list = read_back(&captures(&[], vec![one]));
        assert_eq!(list["captures"], json!([]));
        let problem = "it lists 1 capture that is none, and is left out";
        assert_eq!(list["nodes"][0]["problem"], problem);
    }

    #[test]
    fn sentences_of_nodes_on_what_is_not_looked_at_are_cut() {
        let long = "no ".repeat(100_000);
        let body = json!({ "targets": [], "gaps": [long],
            "engines": [{ "socket": "/s", "workloads": 1, "problem": long }] });
        let list = read_back(&targets(vec![asked("one", TARGETS, &body)], None, "here"));
        for said in [&list["gaps"][0], &list["engines"][0]["problem"]] {
            let said = said.as_str().unwrap();
            assert!(said.contains("no no no") && said.ends_with('…'), "{said}");
            assert!(said.len() < 1100, "{}", said.len());
        }
    }

    #[test]
    fn sentences_without_number_are_counted() {
        let many = json!({ "targets": [], "gaps": vec!["no"; MAX_GAPS + 5] });
        let part = asked("one", TARGETS, &many);
        assert_eq!(
            part.answer.as_ref().map(|part| part.gaps.len()).unwrap(),
            MAX_GAPS
        );
        let few = json!({ "targets": [], "gaps": ["no", 5] });
        let list = read_back(&targets(vec![part, asked("two", TARGETS, &few)], None, "here"));
        let gaps = list["gaps"].as_array().unwrap();
        assert_eq!(gaps.len(), MAX_GAPS + 1);
        assert_eq!(gaps[0], "node one: no");
        assert_eq!(gaps[MAX_GAPS], "6 more things could not be looked at");
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_nobody() {
        let target = json!({ "name": "web", "type": "docker", "netns": 5, "network-interfaces": [] });
        let such = |found: &Value| found["type"] == "docker";
        for (answer, expected) in [
            (json!({ "targets": [target] }), "One"),
            (json!({ "targets": [target], "gaps": ["an engine"] }), "One"),
            (json!({ "targets": [] }), "Nothing"),
            (json!({ "targets": [], "gaps": [] }), "Nothing"),
            (
                json!({ "targets": [], "gaps": ["an engine"] }),
                "Unknown(\"an engine\")",
            ),
            // It is no target, whatever it says.
            (json!({ "targets": [{ "type": "docker" }, 1] }), "Nothing"),
        ] {
            let found = find_target(answer.to_string().as_bytes(), such).unwrap();
            assert_eq!(format!("{found:?}"), expected, "{answer}");
        }
        assert!(find_target(b"{}", such).is_err());
    }

    #[test]
    fn parts_become_one_list() {
        let part = |elements: &str| elements.as_bytes().to_vec();
        for (parts, expected) in [
            (vec![], json!([])),
            (vec![part("")], json!([])),
            (vec![part("1,2"), part(""), part("3")], json!([1, 2, 3])),
        ] {
            let lists = [("engines", parts.clone()), ("targets", parts)];
            let pieces = with_lists(&json!({ "version": 1 }), lists);
            let all = json!({ "version": 1, "engines": expected, "targets": expected });
            assert_eq!(read_back(&pieces), all);
        }
    }
}
