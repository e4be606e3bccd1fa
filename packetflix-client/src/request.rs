//! What is asked of `/capture`.

use std::time::Duration;

use serde_json::json;

/// What is to be captured, and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRequest {
    /// Whose packets.
    pub target: Target,
    /// Names of the interfaces; none is all of them, also those that come later, or those of the description.
    pub interfaces: Vec<String>,
    /// Expression of pcap-filter(7); empty is none.
    pub filter: String,
    /// Most bytes captured of a packet.
    pub snaplen: Option<u32>,
    /// Whether interfaces are put into promiscuous mode.
    pub promiscuous: bool,
    /// Ends after so many packets.
    pub packets: Option<u64>,
    /// Ends before the stream is longer.
    pub bytes: Option<u64>,
    /// Ends after that time.
    pub duration: Option<Duration>,
}

/// Whose packets are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// What the server knows by this name.
    Name(String),
    /// The network namespace of this inode number.
    Netns(u64),
    /// What a client describes as a JSON object, as an element of `/mobyshark`.
    Description(String),
    /// All that these words mean.
    Selection(Selection),
}

/// What words mean of the targets of a server, now or later.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// As `/targets?target=` takes them.
    pub words: Vec<String>,
    /// Whether targets that come later join, and one that starts again goes on; the server decides where it is not said.
    pub follows: Option<bool>,
    /// Whether the targets need not be there yet.
    pub waits: bool,
}

/// What words begin with that mean any number of targets.
const KINDS: [&str; 6] = ["!", "type:", "pod:", "label:", "compose:", "image:"];

impl Target {
    /// What somebody has typed.
    pub fn parse(text: &str) -> Self {
        let number = text.strip_prefix("netns:").and_then(|rest| rest.parse().ok());
        number.map_or_else(|| Self::Name(text.to_owned()), Self::Netns)
    }

    /// What somebody has typed in one or several words. One that means one target only is asked for as all servers take it.
    pub fn select(selection: Selection) -> Self {
        match &selection.words[..] {
            [word] if selection.follows.is_none() && !selection.waits && !means_many(word) => {
                Self::parse(word)
            }
            _ => Self::Selection(selection),
        }
    }
}

/// Whether a word may mean several targets.
fn means_many(word: &str) -> bool {
    word.contains(['*', '?']) || KINDS.iter().any(|kind| word.starts_with(kind))
}

impl CaptureRequest {
    /// A request for all packets of a target.
    pub fn new(target: Target) -> Self {
        Self {
            target,
            interfaces: Vec::new(),
            filter: String::new(),
            snaplen: None,
            promiscuous: true,
            packets: None,
            bytes: None,
            duration: None,
        }
    }

    /// Path and query. The final statistics are the only ones, as for everyone who ends with `stop`.
    pub(crate) fn path(&self) -> String {
        let mut query = vec![("statistics", "end".to_owned())];
        match &self.target {
            Target::Name(name) => query.push(("container", json!({ "name": name }).to_string())),
            Target::Netns(inode) => query.push(("netns", inode.to_string())),
            Target::Description(json) => query.push(("container", json.clone())),
            Target::Selection(selection) => query.extend(selection.parameters()),
        }
        match (&self.target, &self.interfaces[..]) {
            // It says itself which.
            (Target::Description(_), []) => {}
            (_, []) => query.push(("nif", "all".to_owned())),
            (_, names) => query.push(("nif", names.join("/"))),
        }
        if !self.filter.is_empty() {
            query.push(("filter", self.filter.clone()));
        }
        if !self.promiscuous {
            query.push(("chaste", "1".to_owned()));
        }
        let numbers = [
            ("snaplen", self.snaplen.map(|len| len.to_string())),
            ("packets", self.packets.map(|count| count.to_string())),
            ("bytes", self.bytes.map(|count| count.to_string())),
            (
                "duration",
                self.duration.map(|time| format!("{}ms", time.as_millis().max(1))),
            ),
        ];
        query.extend(
            numbers
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let query = serde_urlencoded::to_string(query).unwrap_or_default();
        format!("/capture?{query}")
    }
}

impl Selection {
    fn parameters(&self) -> impl Iterator<Item = (&'static str, String)> {
        let words = self.words.iter().map(|word| ("target", word.clone()));
        let follows = self
            .follows
            .map(|follows| ("follow", u8::from(follows).to_string()));
        let waits = self.waits.then(|| ("wait", "1".to_owned()));
        words.chain(follows).chain(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_paths() {
        let mut request = CaptureRequest::new(Target::parse("netns:5"));
        assert_eq!(request.path(), "/capture?statistics=end&netns=5&nif=all");
        request = CaptureRequest {
            target: Target::parse("a\"b"),
            interfaces: vec!["eth0".to_owned(), "lo".to_owned()],
            filter: "tcp port 80".to_owned(),
            snaplen: Some(96),
            promiscuous: false,
            packets: Some(7),
            bytes: Some(1000),
            duration: Some(Duration::from_millis(1500)),
        };
        assert_eq!(
            request.path(),
            "/capture?statistics=end&container=%7B%22name%22%3A%22a%5C%22b%22%7D&nif=eth0%2Flo&filter=tcp+port+80&chaste=1\
             &snaplen=96&packets=7&bytes=1000&duration=1500ms"
        );
    }

    #[test]
    fn descriptions_say_which_interfaces() {
        let description = Target::Description(r#"{"netns":5}"#.to_owned());
        assert_eq!(
            CaptureRequest::new(description).path(),
            "/capture?statistics=end&container=%7B%22netns%22%3A5%7D"
        );
    }

    #[test]
    fn targets_are_what_people_type() {
        assert_eq!(Target::parse("netns:4026532246"), Target::Netns(4_026_532_246));
        for name in ["web", "netns:x", "pid:12", "host", "/run/netns/s1"] {
            assert_eq!(Target::parse(name), Target::Name(name.to_owned()));
        }
    }

    #[test]
    fn several_words_are_a_selection() {
        let select = |words: &[&str], follows, waits| {
            let words = words.iter().map(|word| (*word).to_owned()).collect();
            Target::select(Selection {
                words,
                follows,
                waits,
            })
        };
        for word in ["web", "netns:5", "pid:12", "host", "docker:web", "/run/netns/s1"] {
            assert_eq!(select(&[word], None, false), Target::parse(word));
        }
        for (target, query) in [
            (select(&["web", "!db"], None, false), "target=web&target=%21db"),
            (select(&["shop-*"], Some(false), false), "target=shop-*&follow=0"),
            (
                select(&["label:app=web"], None, true),
                "target=label%3Aapp%3Dweb&wait=1",
            ),
            (select(&["web"], Some(true), false), "target=web&follow=1"),
        ] {
            let path = CaptureRequest::new(target).path();
            assert_eq!(path, format!("/capture?statistics=end&{query}&nif=all"));
        }
    }
}
