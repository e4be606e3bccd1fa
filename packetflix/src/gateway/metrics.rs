//! Metrics of several nodes become one text, each sample with the name of its node as a label. Pure.
//!
//! Source: OpenMetrics 1.0, section 4: what is said of a family stands before its samples, and a family in one piece.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    time::Duration,
};

use super::ask::Asked;

/// How the text ends.
const END: &str = "# EOF";

/// What the names of the gateway's own begin with.
const OWN: &str = "packetflix_gateway_";

/// Whether a node has told its metrics.
const UP: &str = "packetflix_node_up";

/// The types that families may have.
const TYPES: [&str; 8] = [
    "counter",
    "gauge",
    "gaugehistogram",
    "histogram",
    "info",
    "stateset",
    "summary",
    "unknown",
];

/// What is known of nodes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// How many there are.
    pub(super) nodes: usize,
    /// For how long that was not followed, and how much of their Service is no node to ask, where they are looked for.
    pub(super) followed: Option<(Duration, usize)>,
}

/// A family of metrics: what is said of it, and its samples.
#[derive(Debug, Default)]
struct Family {
    said: String,
    samples: String,
}

/// Families in the order in which they came.
#[derive(Debug, Default)]
struct Families {
    list: Vec<Family>,
    by_name: HashMap<String, usize>,
}

impl Known {
    fn text(self) -> String {
        let mut text = format!(
            "# HELP {OWN}nodes Nodes that there are, as far as is known.\n# TYPE {OWN}nodes gauge\n{OWN}nodes {}\n",
            self.nodes
        );
        if let Some((age, left_out)) = self.followed {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "# HELP {OWN}nodes_age_seconds For how long it was not followed which nodes there are.\n\
                 # TYPE {OWN}nodes_age_seconds gauge\n# UNIT {OWN}nodes_age_seconds seconds\n{OWN}nodes_age_seconds {}\n\
                 # HELP {OWN}endpoints_left_out Endpoints of the nodes' Service that are not asked, beside those that come and go.\n\
                 # TYPE {OWN}endpoints_left_out gauge\n{OWN}endpoints_left_out {left_out}",
                age.as_secs_f64()
            );
        }
        text
    }
}

/// The gateway's own, as they are, and those of all nodes.
pub(super) fn merged(own: &str, known: Known, asked: &[Asked<String>]) -> String {
    let mut families = Families::default();
    families.add(own, None);
    families.add(&known.text(), None);
    let mut up = Family {
        said: format!("# HELP {UP} Whether the node has told its metrics.\n# TYPE {UP} gauge\n"),
        samples: String::new(),
    };
    for Asked { node, answer } in asked {
        let told = answer.as_ref().ok().filter(|text| are_of_a_node(text));
        let value = u8::from(told.is_some());
        let _ = writeln!(up.samples, "{UP}{{node=\"{}\"}} {value}", node.name);
        if let Some(text) = told {
            families.add(text, Some(&node.name));
        }
    }
    families.list.push(up);
    let mut text = String::new();
    for Family { said, samples } in &families.list {
        text += said;
        text += samples;
    }
    text + END + "\n"
}

/// Whether a text is metrics that a node may tell: one line that a reader refuses would cost those of all nodes.
fn are_of_a_node(text: &str) -> bool {
    let mut told = HashSet::new();
    text.lines().all(|line| match line.strip_prefix("# ") {
        _ if line.is_empty() || line == END => true,
        // Of each kind there is one line of a family.
        Some(said) => said_of(said).is_some_and(|kind_and_name| told.insert(kind_and_name)),
        None => is_sample(line),
    })
}

/// What kind of thing a line says, and of which family, if a node may say it.
fn said_of(line: &str) -> Option<(&str, &str)> {
    let mut words = line.splitn(3, ' ');
    let (kind, name, text) = (words.next()?, words.next()?, words.next()?);
    let is_good = match kind {
        "HELP" => true,
        "TYPE" => TYPES.contains(&text),
        "UNIT" => name
            .strip_suffix(text)
            .is_some_and(|before| before.ends_with('_')),
        _ => false,
    };
    (is_good && is_name_of_a_node(name)).then_some((kind, name))
}

/// Whether a metric may have this name: those of the gateway are the gateway's.
fn is_name_of_a_node(name: &str) -> bool {
    is_name(name) && !name.starts_with(OWN) && !name.starts_with(UP)
}

fn is_name(name: &str) -> bool {
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"_:".contains(&byte);
    !name.is_empty()
        && name.bytes().all(is_of_name)
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

/// Whether a line is a sample: a name, labels, a number, and perhaps a time.
fn is_sample(line: &str) -> bool {
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = match rest.strip_prefix('{') {
        Some(labels) => after_labels(labels),
        None => Some(rest),
    };
    let Some(numbers) = rest.and_then(|rest| rest.strip_prefix(' ')) else {
        return false;
    };
    let (value, time) = match numbers.split_once(' ') {
        Some((value, time)) => (value, Some(time)),
        None => (numbers, None),
    };
    is_name_of_a_node(name) && is_value(value) && time.is_none_or(is_finite)
}

/// Whether this is a value as readers take it. Rust takes more: signs of what is no number, and what is too large for one.
fn is_value(text: &str) -> bool {
    match text.parse::<f64>() {
        Ok(value) if value.is_nan() => !text.starts_with(['+', '-']),
        Ok(value) if value.is_infinite() => !text.contains(|c: char| c.is_ascii_digit()),
        value => value.is_ok(),
    }
}

fn is_finite(text: &str) -> bool {
    text.parse::<f64>().is_ok_and(f64::is_finite)
}

/// What stands behind labels, if these are some, and each is there once.
fn after_labels(labels: &str) -> Option<&str> {
    if let Some(behind) = labels.strip_prefix('}') {
        return Some(behind);
    }
    let (mut rest, mut names) = (labels, HashSet::new());
    loop {
        let (name, value) = rest.split_once("=\"")?;
        if !is_label_of_a_node(name) || !names.insert(name) {
            return None;
        }
        let mut is_escaped = false;
        let end = value.find(|c| match c {
            '"' if !is_escaped => true,
            c => {
                is_escaped = c == '\\' && !is_escaped;
                false
            }
        })?;
        rest = &value[end + 1..];
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None => return rest.strip_prefix('}'),
        }
    }
}

/// Whether a label may have this name: not that of the one that is added, and none of those that readers have for themselves.
fn is_label_of_a_node(name: &str) -> bool {
    is_name(name) && !name.contains(':') && !name.starts_with("__") && name != "node"
}

impl Families {
    /// Adds the families of a text; the samples get the name of a node as a label.
    fn add(&mut self, text: &str, node: Option<&str>) {
        let mut current = None;
        for line in text.lines() {
            match line.strip_prefix("# ") {
                Some(rest) => {
                    let mut words = rest.split(' ').skip(1);
                    let Some(name) = words.next() else {
                        continue;
                    };
                    let (index, is_new) = self.family(name);
                    // Of what several say of it, the first counts.
                    if is_new || current == Some((index, true)) {
                        let said = &mut self.list[index].said;
                        said.push_str(line);
                        said.push('\n');
                        current = Some((index, true));
                    } else {
                        current = Some((index, false));
                    }
                }
                None => {
                    let family = current.and_then(|(index, _)| self.list.get_mut(index));
                    if let Some(family) = family
                        && !line.is_empty()
                    {
                        labelled(line, node, &mut family.samples);
                    }
                }
            }
        }
    }

    /// The family of a name, and whether it is new.
    fn family(&mut self, name: &str) -> (usize, bool) {
        if let Some(index) = self.by_name.get(name) {
            return (*index, false);
        }
        let index = self.list.len();
        self.list.push(Family::default());
        self.by_name.insert(name.to_owned(), index);
        (index, true)
    }
}

/// A sample with the name of a node before its other labels. Names of nodes have nothing that would have to be escaped.
fn labelled(sample: &str, node: Option<&str>, out: &mut String) {
    let end = sample.find(['{', ' ']).unwrap_or(sample.len());
    let (name, rest) = sample.split_at(end);
    // Writing to a string does not fail.
    let _ = match (node, rest.strip_prefix('{')) {
        (None, _) => writeln!(out, "{sample}"),
        (Some(node), Some(labels)) if labels.starts_with('}') => {
            writeln!(out, "{name}{{node=\"{node}\"{labels}")
        }
        (Some(node), Some(labels)) => writeln!(out, "{name}{{node=\"{node}\",{labels}"),
        (Some(node), None) => writeln!(out, "{name}{{node=\"{node}\"}}{rest}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_node_spoils_the_metrics_of_others() {
        for good in [
            "",
            "# HELP a What a is.\n# TYPE a counter\na_total 1\n# EOF\n",
            "a{x=\"y\"} 1.5e3",
            "a{x=\"\\\"}\",z=\"\"} NaN",
            "a{} +Inf 1.0",
            "a:b{_x=\"1\",x1=\"2\"} -1",
            "# HELP a ",
            "# TYPE a histogram\n# UNIT a_seconds seconds\n# HELP a_seconds As \\\\ is.\n",
        ] {
            assert!(are_of_a_node(good), "{good}");
        }
        for bad in [
            "not a metric",
            "a",
            "a{x=\"y",
            "a{x=\"y\"}",
            "a{node=\"n1\",x=\"}\"} 5",
            "a{x=y} 1",
            "1a 1",
            "a 1 2 3",
            "packetflix_node_up{x=\"y\"} 0",
            "packetflix_gateway_x 7",
            "# TYPE packetflix_gateway_x gauge",
            "# HELP",
            "# EVIL a b",
            "# TYPE a nonsense",
            "# TYPE a gauge ",
            "# TYPE a gauge\n# TYPE a counter",
            "# HELP a x\na 1\n# HELP a y",
            "# UNIT a x",
            "# UNIT ax x",
            "# UNIT x x",
            "a{x=\"1\"y=\"2\"} 1",
            "a{x=\"1\",,y=\"2\"} 1",
            "a{,} 1",
            "a{x=\"1\",} 1",
            "a{x=\"1\",x=\"2\"} 1",
            "a{x:y=\"1\"} 1",
            "a{__name__=\"b\"} 1",
            "a 1 NaN",
            "a 1 +Inf",
            "a 1e999",
            "a -NaN",
            "a +nan",
            "a\u{0} 1",
        ] {
            assert!(!are_of_a_node(bad), "{bad}");
        }
    }

    #[test]
    fn families_stand_in_one_piece_and_samples_have_their_node() {
        let mut families = Families::default();
        families.add(
            "# HELP a_x Things.\n# TYPE a_x counter\na_x_total 1\n# EOF\n",
            None,
        );
        for node in ["n1", "n2"] {
            let text = "# HELP a_x Other words.\n# TYPE a_x counter\na_x_total 2\n# TYPE b gauge\nb{c=\"d e\"} 3\nb{} 4\n# EOF\n";
            families.add(text, Some(node));
        }
        let text: String = families
            .list
            .iter()
            .map(|family| family.said.clone() + &family.samples)
            .collect();
        assert_eq!(
            text,
            "# HELP a_x Things.\n# TYPE a_x counter\na_x_total 1\na_x_total{node=\"n1\"} 2\na_x_total{node=\"n2\"} 2\n\
             # TYPE b gauge\nb{node=\"n1\",c=\"d e\"} 3\nb{node=\"n1\"} 4\nb{node=\"n2\",c=\"d e\"} 3\nb{node=\"n2\"} 4\n"
        );
    }
}
