//! A target as GhostWire lists it and clients send it back.

mod aliases;

use serde::Deserialize;

pub(crate) use self::aliases::{
    Alias, Aliases, HOST, MountName, as_beginning, known_as, usual, words_of_mount,
};
use crate::json::{null_as_default, zero_as_none};

/// What is known of a target. Zero, an empty text and an empty list count as absent, since clients written in Go
/// send every member; members that we do not know are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct TargetDescription {
    /// Name of the container, pod or process, or path of a bind mount.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) name: String,
    /// Kind of target, such as `docker`, `pod` or `proc`.
    #[serde(rename = "type", deserialize_with = "null_as_default")]
    pub(crate) kind: String,
    /// Names of the containers around its engine, joined by slashes.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) prefix: String,
    /// Inode number of its network namespace.
    #[serde(deserialize_with = "zero_as_none")]
    pub(crate) netns: Option<u64>,
    /// Its first process.
    #[serde(deserialize_with = "zero_as_none")]
    pub(crate) pid: Option<u32>,
    /// When that began, in clock ticks after boot.
    #[serde(deserialize_with = "zero_as_none")]
    pub(crate) starttime: Option<u64>,
    /// Names of its network interfaces.
    #[serde(rename = "network-interfaces", deserialize_with = "null_as_default")]
    pub(crate) interfaces: Vec<String>,
    /// Whether whoever has the PID now is meant, and not a process that is known by its start time.
    #[serde(skip)]
    pub(crate) is_by_pid_alone: bool,
    /// What else it is known by, as the directory knows it.
    #[serde(skip)]
    pub(crate) aliases: Aliases,
    /// Its images, as the directory knows them.
    #[serde(skip)]
    pub(crate) images: Vec<String>,
    /// Name of its host in a cluster.
    #[serde(rename = "node-name", deserialize_with = "null_as_default")]
    pub(crate) node_name: String,
    /// The cluster that its host belongs to.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) cluster: Cluster,
}

/// A Kubernetes cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Cluster {
    /// Its identifier.
    #[serde(deserialize_with = "null_as_default")]
    pub(crate) uid: String,
}

impl TargetDescription {
    /// A network namespace of which nothing else is known.
    pub(crate) fn namespace(inode: u64) -> Self {
        Self {
            netns: Some(inode),
            ..Self::default()
        }
    }

    /// The namespace, where that is all that is known.
    pub(crate) fn netns_alone(&self) -> Option<u64> {
        let is_alone = self.name.is_empty() && self.pid.is_none();
        self.netns.filter(|_| is_alone)
    }

    /// Whether a word is all that it says of where the target is: people type one, and programs send what they were told.
    pub(crate) fn is_word(&self) -> bool {
        let is_elsewhere = self.netns.is_some() || self.pid.is_some() || self.starttime.is_some();
        !self.name.is_empty() && self.prefix.is_empty() && !is_elsewhere
    }

    /// With the number that its name spells, where that is all it says: `pid:1234` is who has this PID now, and
    /// `netns:4026531840` who owns this number.
    pub(crate) fn spelled_out(self) -> Self {
        let spelled = self
            .name
            .split_once(':')
            .filter(|_| self.is_word() && self.kind.is_empty());
        let spelled = spelled.filter(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit()));
        let (pid, netns) = match spelled {
            Some(("pid", number)) => (number.parse().ok(), None),
            Some(("netns", number)) => (None, number.parse().ok()),
            _ => (None, None),
        };
        if pid.is_none() && netns.is_none() {
            return self;
        }
        Self {
            name: String::new(),
            pid,
            netns,
            is_by_pid_alone: pid.is_some(),
            ..self
        }
    }

    /// The name as people write it, with its prefix.
    pub(crate) fn full_name(&self) -> String {
        full_name(&self.prefix, &self.name)
    }
}

/// A target's name as people write it, with its prefix.
pub(crate) fn full_name(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}:{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_values_are_absent_and_unknown_members_ignored() {
        let absent = r#"{"name":"","type":"","netns":0,"network-interfaces":null,"prefix":"","starttime":0,"pid":0,
                         "node-name":null,"cluster":null,"capture-service":"x","captureport":5001,"new":{"a":[1]}}"#;
        for text in ["{}", absent] {
            let description: TargetDescription = serde_json::from_str(text).unwrap();
            assert_eq!(description, TargetDescription::default());
        }
    }

    #[test]
    fn reads_what_clients_send() {
        let text = r#"{"name":"web","type":"docker","netns":4026532300,"network-interfaces":["eth0","lo"],"prefix":"kind",
                       "starttime":4711,"pid":42,"node-name":"n1","cluster":{"context":"c","uid":"u-1"}}"#;
        let description: TargetDescription = serde_json::from_str(text).unwrap();
        assert_eq!(
            description,
            TargetDescription {
                name: "web".to_owned(),
                kind: "docker".to_owned(),
                prefix: "kind".to_owned(),
                netns: Some(4_026_532_300),
                pid: Some(42),
                starttime: Some(4711),
                interfaces: vec!["eth0".to_owned(), "lo".to_owned()],
                is_by_pid_alone: false,
                aliases: Aliases::default(),
                images: Vec::new(),
                node_name: "n1".to_owned(),
                cluster: Cluster {
                    uid: "u-1".to_owned()
                },
            }
        );
        assert_eq!(description.full_name(), "kind:web");
    }

    #[test]
    fn words_spell_numbers() {
        let word = |name: &str| TargetDescription {
            name: name.to_owned(),
            ..TargetDescription::default()
        };
        let process = word("pid:1234").spelled_out();
        assert_eq!(
            (process.pid, process.netns, process.is_by_pid_alone),
            (Some(1234), None, true)
        );
        assert_eq!(
            word("netns:4026531840").spelled_out(),
            TargetDescription::namespace(4_026_531_840)
        );
        let of_kind = TargetDescription {
            kind: "docker".to_owned(),
            ..word("pid:1234")
        };
        let known = TargetDescription {
            netns: Some(5),
            ..word("pid:1234")
        };
        let others = [
            "web",
            "pid:",
            "pid:-1",
            "pid:12x",
            "pid:+12",
            "pid:4294967296",
            "host:1",
            ":1",
            "kind:web",
        ];
        for description in others.map(word).into_iter().chain([of_kind, known]) {
            assert_eq!(description.clone().spelled_out(), description);
        }
    }

    #[test]
    fn tells_the_place_of_what_it_cannot_read() {
        for (text, words) in [
            ("", "line 1 column 0"),
            ("{\"name\":", "line 1 column 8"),
            ("{\n\"netns\":\"4\"}", "line 2 column 11"),
            ("{\"netns\":-1}", "line 1 column 11"),
            ("{\"pid\":4294967296}", "line 1 column 17"),
            (
                "{\"network-interfaces\":\"eth0\"}",
                "expected a sequence at line 1 column 28",
            ),
            ("{} x", "trailing characters at line 1 column 4"),
        ] {
            let error = serde_json::from_str::<TargetDescription>(text).unwrap_err();
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
