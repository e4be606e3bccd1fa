//! What each node is asked for. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{
    access::Pattern, description::TargetDescription, pcapng::SNAPLEN, resolve::Selection,
    service::CaptureRequest, session::StatisticsPace, tap::InterfaceSelection,
};

/// Words that choose nodes begin with this.
const NODE: &str = "node:";

/// A word that leaves nothing out, and so means everything: no namespace has this number.
const EVERYTHING: &str = "!netns:0";

/// Which nodes words choose: `node:PATTERN`, or `!node:PATTERN`. Without any, all.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeChoice {
    meant: Vec<Pattern>,
    left_out: Vec<Pattern>,
}

/// What is to be captured.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// One target.
    One(TargetDescription),
    /// Several in one stream.
    Several {
        nodes: NodeChoice,
        /// For each node.
        words: Vec<String>,
        described: Vec<TargetDescription>,
        follow: Option<bool>,
        wait: bool,
    },
}

/// A word that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("target={word}: give node:NAME, or a pattern of names such as node:web-*")]
pub(crate) struct NodeWordError {
    word: String,
    source: crate::access::PatternError,
}

impl NodeChoice {
    /// Takes the words that choose nodes; gives the others.
    ///
    /// # Errors
    /// When one of them has no pattern.
    pub(crate) fn take(words: Vec<String>) -> Result<(Self, Vec<String>), NodeWordError> {
        let mut choice = Self::default();
        let mut others = Vec::new();
        for word in words {
            let (is_left_out, rest) = match word.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, &word[..]),
            };
            let Some(pattern) = rest.strip_prefix(NODE) else {
                others.push(word);
                continue;
            };
            let pattern = match pattern.parse() {
                Ok(pattern) => pattern,
                Err(source) => return Err(NodeWordError { word, source }),
            };
            if is_left_out {
                choice.left_out.push(pattern);
            } else {
                choice.meant.push(pattern);
            }
        }
        Ok((choice, others))
    }

    /// Whether a node is chosen.
    pub(crate) fn has(&self, name: &str) -> bool {
        let is_meant = self.meant.is_empty() || self.meant.iter().any(|names| names.matches(name));
        is_meant && !self.left_out.iter().any(|names| names.matches(name))
    }
}

impl Wanted {
    /// What a request is for.
    ///
    /// # Errors
    /// When a word that chooses nodes cannot be used.
    pub(super) fn of(request: &CaptureRequest) -> Result<Self, NodeWordError> {
        let target = &request.target;
        let Some(several) = &request.several else {
            let is_of_nodes = target.is_word() && target.name.starts_with(NODE);
            return Ok(match is_of_nodes {
                false => Self::One(target.clone()),
                true => Self::Several {
                    nodes: NodeChoice::take(vec![target.name.clone()])?.0,
                    words: Vec::new(),
                    described: Vec::new(),
                    follow: None,
                    wait: false,
                },
            });
        };
        let (nodes, words) = NodeChoice::take(several.words.clone())?;
        Ok(Self::Several {
            nodes,
            words,
            described: several.described.clone(),
            follow: several.follow,
            wait: several.wait,
        })
    }
}

/// Whether words may mean any number of targets, so that those that come later join.
pub(super) fn have_patterns(words: &[String]) -> bool {
    words.is_empty() || words.iter().any(|word| !Selection::is_single(word))
}

/// The query of `/targets` for what these words mean.
pub(super) fn targets_query(words: &[String]) -> String {
    let pairs: Vec<(&str, &str)> = words.iter().map(|word| ("target", &word[..])).collect();
    serde_urlencoded::to_string(pairs).unwrap_or_default()
}

/// Path and query with which a node is asked for what these words mean, also where it is not there yet.
pub(super) fn path_of_words(
    request: &CaptureRequest,
    words: &[String],
    follow: Option<bool>,
    names: bool,
) -> String {
    let mut pairs: Vec<(&str, String)> = Vec::new();
    match words {
        [] => pairs.push(("target", EVERYTHING.to_owned())),
        words => pairs.extend(words.iter().map(|word| ("target", word.clone()))),
    }
    pairs.push(("wait", "1".to_owned()));
    if let Some(follow) = follow {
        pairs.push(("follow", u8::from(follow).to_string()));
    }
    path(pairs, request, names)
}

/// Path and query with which a node is asked for what is described.
pub(super) fn path_of_described(
    request: &CaptureRequest,
    described: &[TargetDescription],
    names: bool,
) -> String {
    let container = match described {
        [one] => json_of(one),
        several => several.iter().map(json_of).collect(),
    };
    path(vec![("container", container.to_string())], request, names)
}

/// With all that is the same for each node. Where the stream ends is not: it is the gateway's that ends.
fn path(mut pairs: Vec<(&str, String)>, request: &CaptureRequest, names: bool) -> String {
    match &request.selection {
        // What its description lists.
        None | Some(InterfaceSelection::Listed(_) | InterfaceSelection::Coming(_)) => {}
        Some(InterfaceSelection::All) => pairs.push(("nif", "all".to_owned())),
        Some(InterfaceSelection::Named(names)) => pairs.push(("nif", names.join("/"))),
    }
    if !request.filter.is_empty() {
        pairs.push(("filter", request.filter.clone()));
    }
    if request.with_own {
        pairs.push(("self", "1".to_owned()));
    }
    if request.chaste {
        pairs.push(("chaste", String::new()));
    }
    if !names {
        pairs.push(("names", "0".to_owned()));
    }
    if request.snaplen != SNAPLEN {
        pairs.push(("snaplen", request.snaplen.to_string()));
    }
    match request.statistics {
        StatisticsPace::OnLoss => {}
        StatisticsPace::AtEnd => pairs.push(("statistics", "end".to_owned())),
        StatisticsPace::Every(interval) => pairs.push(("statistics", milliseconds(interval))),
    }
    let query = serde_urlencoded::to_string(pairs).unwrap_or_default();
    format!("/capture?{query}")
}

fn milliseconds(time: Duration) -> String {
    format!("{}ms", time.as_millis())
}

/// A description as clients send it.
fn json_of(target: &TargetDescription) -> Value {
    let mut members = BTreeMap::new();
    for (name, text) in [
        ("name", &target.name),
        ("type", &target.kind),
        ("prefix", &target.prefix),
        ("node-name", &target.node_name),
    ] {
        if !text.is_empty() {
            members.insert(name, json!(text));
        }
    }
    let numbers = [
        ("netns", target.netns),
        ("pid", target.pid.map(u64::from)),
        ("starttime", target.starttime),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            members.insert(name, json!(number));
        }
    }
    if !target.interfaces.is_empty() {
        members.insert("network-interfaces", json!(target.interfaces));
    }
    if !target.cluster.uid.is_empty() {
        members.insert("cluster", json!({ "uid": target.cluster.uid }));
    }
    json!(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Limits;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn request() -> CaptureRequest {
        CaptureRequest {
            target: TargetDescription::default(),
            several: None,
            selection: None,
            filter: String::new(),
            with_own: false,
            chaste: false,
            names: true,
            snaplen: SNAPLEN,
            limits: Limits::default(),
            statistics: StatisticsPace::OnLoss,
        }
    }

    #[test]
    fn words_choose_nodes() {
        for (given, others, chosen) in [
            (&["web"][..], &["web"][..], &["n1", "n2", "m1"][..]),
            (&["node:n1", "web"], &["web"], &["n1"]),
            (&["node:n*", "!node:n2"], &[], &["n1"]),
            (&["!node:n1", "!web"], &["!web"], &["n2", "m1"]),
            (&["node:x"], &[], &[]),
        ] {
            let (choice, left) = NodeChoice::take(words(given)).unwrap();
            assert_eq!(left, words(others), "{given:?}");
            let names = ["n1", "n2", "m1"].into_iter().filter(|name| choice.has(name));
            assert_eq!(names.collect::<Vec<_>>(), chosen, "{given:?}");
        }
        assert!(NodeChoice::take(words(&["node:"])).is_err());
    }

    #[test]
    fn single_word_may_choose_nodes_too() {
        let of = |name: &str| {
            let target = TargetDescription {
                name: name.to_owned(),
                ..TargetDescription::default()
            };
            Wanted::of(&CaptureRequest { target, ..request() }).unwrap()
        };
        assert!(matches!(of("web"), Wanted::One(_)));
        assert!(matches!(of("node:n1"), Wanted::Several { words, .. } if words.is_empty()));
    }

    #[test]
    fn nodes_are_asked_for_what_the_client_wants_but_for_its_end() {
        assert_eq!(
            path_of_words(&request(), &words(&["label:app=web", "!db"]), Some(false), true),
            "/capture?target=label%3Aapp%3Dweb&target=%21db&wait=1&follow=0"
        );
        let all = path_of_words(&request(), &[], None, true);
        assert_eq!(all, "/capture?target=%21netns%3A0&wait=1");
        let request = CaptureRequest {
            selection: Some(InterfaceSelection::Named(words(&["eth0", "lo"]))),
            filter: "tcp port 80".to_owned(),
            with_own: true,
            chaste: true,
            snaplen: 96,
            limits: Limits {
                packets: Some(7),
                ..Limits::default()
            },
            statistics: StatisticsPace::AtEnd,
            ..request()
        };
        let target = TargetDescription {
            name: "web".to_owned(),
            netns: Some(5),
            node_name: "n1".to_owned(),
            ..TargetDescription::default()
        };
        assert_eq!(
            path_of_described(&request, &[target], false),
            "/capture?container=%7B%22name%22%3A%22web%22%2C%22netns%22%3A5%2C%22node-name%22%3A%22n1%22%7D&nif=eth0%2Flo\
             &filter=tcp+port+80&self=1&chaste=&names=0&snaplen=96&statistics=end"
        );
    }

    #[test]
    fn patterns_and_everything_are_followed() {
        for (given, expected) in [
            (&[][..], true),
            (&["web"], false),
            (&["web", "label:app"], true),
            (&["!web"], true),
        ] {
            assert_eq!(have_patterns(&words(given)), expected, "{given:?}");
        }
    }
}
